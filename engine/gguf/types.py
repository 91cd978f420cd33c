"""GGML's block types: weights and bytes per block. A tensor row is a sequence of blocks.

The header reader needs only this table, not NumPy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockType:
    """A GGML tensor type. Each block stores `weights` weights in `size_bytes` bytes."""

    id: int
    name: str
    weights: int
    size_bytes: int


_BLOCKS = (
    BlockType(0, "F32", 1, 4),
    BlockType(1, "F16", 1, 2),
    BlockType(2, "Q4_0", 32, 18),
    BlockType(3, "Q4_1", 32, 20),
    BlockType(6, "Q5_0", 32, 22),
    BlockType(7, "Q5_1", 32, 24),
    BlockType(8, "Q8_0", 32, 34),
    BlockType(10, "Q2_K", 256, 84),
    BlockType(11, "Q3_K", 256, 110),
    BlockType(12, "Q4_K", 256, 144),
    BlockType(13, "Q5_K", 256, 176),
    BlockType(14, "Q6_K", 256, 210),
    BlockType(16, "IQ2_XXS", 256, 66),
    BlockType(17, "IQ2_XS", 256, 74),
    BlockType(18, "IQ3_XXS", 256, 98),
    BlockType(19, "IQ1_S", 256, 50),
    BlockType(20, "IQ4_NL", 32, 18),
    BlockType(21, "IQ3_S", 256, 110),
    BlockType(22, "IQ2_S", 256, 82),
    BlockType(23, "IQ4_XS", 256, 136),
    BlockType(29, "IQ1_M", 256, 56),
    BlockType(30, "BF16", 1, 2),
    BlockType(34, "TQ1_0", 256, 54),
    BlockType(35, "TQ2_0", 256, 66),
    BlockType(39, "MXFP4", 32, 17),
    BlockType(40, "NVFP4", 64, 36),
    BlockType(41, "Q1_0", 128, 18),
    BlockType(42, "Q2_0", 64, 18),
)
TYPES = {block.id: block for block in _BLOCKS}
I32 = BlockType(26, "I32", 1, 4)  # of tables of whole numbers, which are no weights
TYPE_BY_NAME = {block.name: block for block in _BLOCKS}

# GGML's other type ids, so that errors can name unsupported types.
_UNSUPPORTED = """
4 Q4_2  5 Q4_3  9 Q8_1  15 Q8_K  24 I8  25 I16  26 I32  27 I64  28 F64
31 Q4_0_4_4  32 Q4_0_4_8  33 Q4_0_8_8  36 IQ4_NL_4_4  37 IQ4_NL_4_8  38 IQ4_NL_8_8
"""
KNOWN_NAMES: dict[int, str] = {id: block.name for id, block in TYPES.items()} | {
    int(id): name for id, name in re.findall(r"(\d+) (\w+)", _UNSUPPORTED)
}
