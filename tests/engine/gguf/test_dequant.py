"""The table of block types and the reference dequantisers, against the `gguf` package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.gguf.dequant import dequantize
from engine.gguf.types import KNOWN_NAMES, TYPE_BY_NAME, TYPES, BlockType

# What the package does not have yet: weights and bytes, bits per weight, and the value of a code.
NEWER = {
    "Q1_0": ((128, 18), 1, lambda code: 2 * code - 1),
    "Q2_0": ((64, 18), 2, lambda code: code - 1),
}
ALL_TYPES = pytest.mark.parametrize("type", TYPES.values(), ids=TYPE_BY_NAME)


def random_blocks(type: BlockType, *shape: int) -> NDArray[np.uint8]:
    """Blocks of random bytes: every bit pattern is legal in every type."""
    shape = (*shape[:-1], shape[-1] * type.size_bytes)
    return np.random.default_rng(type.id).integers(0, 256, shape, dtype=np.uint8)


def test_types_are_those_supported() -> None:
    names = (
        "F32 F16 BF16 Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS "
        "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S TQ1_0 TQ2_0 MXFP4 NVFP4"
    )
    assert set(TYPE_BY_NAME) == set(names.split())


@ALL_TYPES
def test_type_has_the_size_that_ggml_gives_it(type: BlockType) -> None:
    if type.name in NEWER:
        assert NEWER[type.name][0] == (type.weights, type.size_bytes)
        return
    oracle = gguf.GGMLQuantizationType(type.id)
    assert oracle.name == type.name
    assert gguf.GGML_QUANT_SIZES[oracle] == (type.weights, type.size_bytes)


def test_known_names_are_ggmls() -> None:
    for oracle in gguf.GGMLQuantizationType:
        assert KNOWN_NAMES[oracle.value] == oracle.name


def oracle(blocks: NDArray[np.uint8], type: BlockType) -> NDArray[np.float32]:
    if type.name not in NEWER:
        return gguf.dequantize(blocks, gguf.GGMLQuantizationType(type.id))
    _, bits, value = NEWER[type.name]
    rows = []
    for block in blocks.reshape(-1, type.size_bytes):
        (d,), packed = block[:2].view(np.float16), int.from_bytes(block[2:].tobytes(), "little")
        codes = [packed >> bits * i & (1 << bits) - 1 for i in range(type.weights)]
        rows.append([np.float32(d) * np.float32(value(code)) for code in codes])
    return np.array(rows, np.float32).reshape(len(blocks), -1)


@ALL_TYPES
def test_dequantize_equals_the_gguf_package_to_the_bit(type: BlockType) -> None:
    blocks = random_blocks(type, 64, 3)
    with np.errstate(all="ignore"):  # some random scales are NaN or infinity
        expected = oracle(blocks, type)
    weights = dequantize(blocks, type)
    assert weights.shape == (64, 3 * type.weights)
    assert weights.dtype == np.float32
    assert np.isfinite(weights).mean() > 0.8
    same = weights.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(weights) & np.isnan(expected))).all()


@ALL_TYPES
def test_dequantize_keeps_leading_axes_and_reads_views(type: BlockType) -> None:
    blocks = random_blocks(type, 2, 4, 1)
    weights = dequantize(blocks, type)
    assert weights.shape == (2, 4, type.weights)
    every_other = dequantize(blocks[:, ::2], type)
    np.testing.assert_array_equal(every_other, weights[:, ::2])


def test_q4_0_block_by_hand() -> None:
    # d = 2, byte i holds i in its low nibble (weight i) and 15 - i in its high one (weight 16 + i).
    block = np.float16(2).tobytes() + bytes(i | (15 - i) << 4 for i in range(16))
    weights = dequantize(np.frombuffer(block, np.uint8), TYPE_BY_NAME["Q4_0"])
    assert weights.tolist() == [2.0 * (i - 8) for i in range(16)] + [
        2.0 * (7 - i) for i in range(16)
    ]


def test_mxfp4_block_by_hand() -> None:
    # Exponent 128 is 2^1; nibbles 2 and 15 are 1 and -6.
    block = np.array([128] + [0xF2] * 16, np.uint8)
    weights = dequantize(block, TYPE_BY_NAME["MXFP4"])
    assert weights.tolist() == [2.0] * 16 + [-12.0] * 16
