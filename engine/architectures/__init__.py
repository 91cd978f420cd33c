"""The architectures: one page per family, named by its GGUF architecture string."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from engine.errors import UnsupportedError

if TYPE_CHECKING:  # what needs MLX is imported with the page: the table is there without it
    from engine.nn.config import ModelConfig
    from engine.nn.decoder import Decoder
    from engine.nn.weights import Weights

# The architecture string of a file -> the page that builds it.
PAGES = {
    "bailingmoe2": "bailingmoe2",
    "deepseek2": "deepseek2",
    "deepseek32": "deepseek32",
    "dots1": "dots1",
    "ernie4_5": "ernie4_5",
    "ernie4_5-moe": "ernie4_5_moe",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "glm-dsa": "glm_dsa",
    "glm4moe": "glm4moe",
    "gpt-oss": "gpt_oss",
    "granite": "granite",
    "granitehybrid": "granitehybrid",
    "granitemoe": "granitemoe",
    "hunyuan-moe": "hunyuan_moe",
    "lfm2": "lfm2",
    "lfm2moe": "lfm2",
    "llama": "llama",
    "llama4": "llama4",
    "minimax-m2": "minimax_m2",
    "mistral3": "mistral3",
    "olmoe": "olmoe",
    "phimoe": "phimoe",
    "qwen2": "qwen2",
    "qwen2moe": "qwen2moe",
    "qwen3": "qwen3",
    "qwen35": "qwen35",
    "qwen35moe": "qwen35",
    "qwen3moe": "qwen3moe",
    "qwen3next": "qwen3next",
}


def require_architecture(architecture: str) -> None:
    """Raise UnsupportedError unless there is a page for this architecture."""
    if architecture not in PAGES:
        supported = ", ".join(PAGES)
        raise UnsupportedError(
            f"architecture {architecture!r} is not supported (supported: {supported})"
        )


def build(config: ModelConfig, weights: Weights) -> Decoder:
    """Build the graph of a file whose architecture `read_config` let pass."""
    page = importlib.import_module(f"engine.architectures.{PAGES[config.architecture]}")
    decoder: Decoder = page.build(config, weights)
    return decoder
