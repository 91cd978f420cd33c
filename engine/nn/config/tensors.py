"""Which of a file's tensors a model reads, and how much of each one token uses."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

from engine.gguf.reader import TensorInfo
from engine.nn.config.model import ModelConfig

OTHER_PARTS = ("nextn.", "mtp.", "vis_")  # of a block: for drafts and images
KEYS_AND_VALUES = ("attn_k.", "attn_k_norm.", "attn_v.")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
# `blk.0.ffn_up_exps.weight`, or `blk.0.ffn_up.7.weight` in files from before April 2024.
OF_EXPERTS = re.compile(r"blk\.\d+\.\w+(_exps|\.\d+)\.\w+")


def used_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> Iterator[TensorInfo]:
    """Yield the tensors that the model reads.

    Skips those for drafts, images and audio, and the keys of layers that borrow others.
    """
    return (info for name, info in tensors.items() if _is_read(name, config))


def _is_read(name: str, config: ModelConfig) -> bool:
    first, _, rest = name.partition(".")
    layer, _, inner = rest.partition(".")
    if first != "blk":
        return not inner  # `output.weight`, but not `mm.0.weight` or `v.patch_embd.weight`
    if inner.startswith(OTHER_PARTS):
        return False
    if not layer.isdecimal() or int(layer) < config.layers - config.borrowed_layers:
        return True
    return int(layer) < config.layers and not inner.startswith(KEYS_AND_VALUES)


def token_share(
    info: TensorInfo, config: ModelConfig, tensors: Mapping[str, TensorInfo]
) -> Fraction:
    """Return the fraction of a tensor that one token uses.

    A token uses only the chosen experts of an expert tensor, and only one row of an embedding that
    is not also the head. It uses all of every other tensor.
    """
    is_head = info.name == "token_embd.weight" and "output.weight" not in tensors
    if info.name in EMBEDDINGS and not is_head:
        return Fraction(1, config.vocab)
    if config.experts and OF_EXPERTS.fullmatch(info.name):
        experts = config.experts.of_layer(int(info.name.split(".")[1]))
        return Fraction(experts.used, experts.count)
    return Fraction(1)


def count_parameters(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Return the total parameter count and the number of parameters active per token."""
    used = list(used_tensors(config, tensors))
    total = sum(math.prod(info.shape) for info in used)
    active = sum(math.prod(info.shape) * token_share(info, config, tensors) for info in used)
    return total, int(active)
