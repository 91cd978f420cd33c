"""Run experts that stay in the file, for kernels that hold them as MLX arrays.

Axes: T tokens, D width, k chosen experts.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.kernels.streamed import StoredTensor
from engine.nn.decoder import Blocks, Decoder
from engine.nn.moe import SORT_FROM, ExpertLinear, Experts, weighted_sum


def run_from_store(decoder: Decoder) -> None:
    """Let all layers fetch the experts that they choose."""
    if not isinstance(decoder.layers, Blocks):  # native kernels do so themselves
        return
    for block in decoder.layers.blocks:
        routed = getattr(block.feed_forward, "routed", block.feed_forward)
        if isinstance(routed, Experts) and isinstance(routed.down.weight, StoredTensor):
            routed.sum = run_stored


def run_stored(
    experts: Experts,
    x: mx.array,
    ids: mx.array,
    weights: mx.array,
    decodes: bool | None = None,
) -> mx.array:
    """Do what `weighted_sum` does with experts that stay in the file.

    If a prompt's tokens chose more than may be in memory at a time, some run after the others.
    decodes: False for a token of a prompt, whose experts push nothing out.
    """
    down = experts.down.weight
    assert isinstance(down, StoredTensor)
    store, at_once = down.store, down.store.at_once
    decodes = ids.shape[0] == 1 if decodes is None else decodes
    flat = np.array(ids).reshape(-1)
    chosen = np.unique(flat)
    if len(chosen) <= at_once:
        store.fetch(down.layer, chosen.tolist(), decodes)
        local = mx.array(np.searchsorted(chosen, flat)).reshape(ids.shape)
        return weighted_sum(stacked(experts, chosen), x, local, weights)
    if flat.size < SORT_FROM and _fuses(experts, flat[: ids.shape[1]]):
        tokens = [slice(at, at + 1) for at in range(x.shape[0])]
        return mx.concatenate(
            [run_stored(experts, x[t], ids[t], weights[t], decodes) for t in tokens]
        )
    weights = weights.astype(x.dtype)
    on_input = experts.config.weight_on_input
    rows = (x[:, None, :] * weights[..., None]).reshape(-1, x.shape[-1]) if on_input else x
    order, parts = [], []
    for start in range(0, len(chosen), at_once):
        group = chosen[start : start + at_once]
        pairs = np.flatnonzero(np.isin(flat, group))
        store.fetch(down.layer, group.tolist(), decodes)
        own = rows[mx.array(pairs if on_input else pairs // ids.shape[1])]
        local = mx.array(np.searchsorted(group, flat[pairs]))
        some = stacked(experts, group)
        if some.fused is not None:  # as all of them would run, however few these are
            parts.append(some.fused.pairs(own, local[:, None]))
        else:
            parts.append(some.run(own[:, None, :], local[:, None]).squeeze(1))
        mx.eval(parts[-1])  # frees the experts
        order.append(pairs)
    y = mx.concatenate(parts)[mx.array(np.argsort(np.concatenate(order)))]
    y = y.reshape(*ids.shape, -1)
    if some.fused is not None:
        weights = weights.astype(y.dtype)
    return (y if on_input else y * weights[..., None]).sum(axis=-2)


def _fuses(experts: Experts, few: NDArray[Any]) -> bool:
    """True if a kernel computes a whole token, so that tokens may run one by one."""
    down = experts.down.weight
    assert isinstance(down, StoredTensor)
    down.store.fetch(down.layer, few.tolist(), False)
    return stacked(experts, few).fused is not None


def stacked(experts: Experts, chosen: NDArray[Any]) -> Experts:
    """Return a layer with only the chosen experts, in this order, which the store has fetched."""
    view = copy.copy(experts)
    for name in ("gate_up", "gate", "up", "down"):
        part = getattr(experts, name, None)
        if part is not None:
            bias = None if part.bias is None else part.bias[mx.array(chosen)]
            setattr(view, name, ExpertLinear(part.weight.stack(chosen.tolist()), bias))
    view.fused = experts.fuse(view)
    return view
