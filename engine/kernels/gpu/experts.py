"""The two kernels for the experts that few tokens chose.

Axes: T tokens, D width, E experts, k chosen experts, F hidden width.
"""

from __future__ import annotations

import mlx.core as mx

from engine.kernels.gpu.launch import dims
from engine.kernels.gpu.tensor import BlockTensor


def gated(
    gate: BlockTensor,
    up: BlockTensor,
    biases: tuple[mx.array, mx.array] | None,
    x: mx.array,
    ids: mx.array,
    activation: int,
    limit: mx.array,
    merged: bool = False,
) -> mx.array:
    """Compute gate, up and activation: x (T, D), ids (T, k) -> (T, k, F).

    biases: of gate and up, (E, F) float32. activation: its number in activation.metal. limit: of
    the activation, (1,). merged: gate and up are one stack, which has the rows of the gate first.
    """
    _, rows, columns = up.shape
    count = rows // 2 if merged else rows
    gate_bias, up_bias = biases or (limit, limit)  # an input cannot be left out
    inputs = [
        *(gate.blocks, up.blocks, x, ids.astype(mx.uint32), gate_bias, up_bias, limit),
        dims(columns, count, ids.shape[1], rows, rows - count),
    ]
    shape = (*ids.shape, count)
    return up.gpu.by_rows(
        *("gated", up.type.name, inputs, count, ids.size, shape, x.dtype),
        BIASED=int(biases is not None),
        ACTIVATION=activation,
    )


def weighted(
    down: BlockTensor, bias: mx.array | None, x: mx.array, ids: mx.array, scores: mx.array
) -> mx.array:
    """Compute down and the weighted sum: x (T, k, F), ids (T, k), scores (T, k) -> (T, D)."""
    _, count, columns = down.shape
    scores = scores.astype(mx.float32)
    inputs = [
        *(down.blocks, x, ids.astype(mx.uint32), scores),
        *(scores if bias is None else bias, dims(columns, count, ids.shape[1])),
    ]
    tokens = ids.shape[0]
    return down.gpu.by_rows(
        *("weighted", down.type.name, inputs, count, tokens, (tokens, count), x.dtype),
        BIASED=int(bias is not None),
    )
