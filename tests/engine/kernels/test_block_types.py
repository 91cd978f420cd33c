"""The C++ list of block types against the Python table."""

from __future__ import annotations

from typing import Any

import pytest

from engine.gguf.types import TYPES

native: Any = pytest.importorskip("engine.kernels.native._native")


def test_native_block_types_match_the_table() -> None:
    """The kernels read the types of the table, with its ids, names, weights and bytes."""
    table = sorted(
        (block.id, block.name, block.weights, block.size_bytes) for block in TYPES.values()
    )
    assert sorted(native.block_types()) == table
