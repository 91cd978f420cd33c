"""Conifer's inference engine: load a GGUF model and generate tokens.

    model = engine.load("model.gguf")
    cache = model.new_cache(context=4096)
    stream = model.generate(tokens, engine.Settings(temperature=0), cache)
    for token in stream: ...

The names below are imported lazily, so `import engine` stays fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.generate import TokenStream
    from engine.kernels.base import ExpertStore
    from engine.model import Model, load
    from engine.nn.cache.cache import Cache
    from engine.sampling import Settings
    from engine.streaming import ExpertsDoNotFit, StoreStats

_HOME = {
    "Cache": "engine.nn.cache.cache",
    "Model": "engine.model",
    "ExpertStore": "engine.kernels.base",
    "ExpertsDoNotFit": "engine.streaming",
    "Settings": "engine.sampling",
    "StoreStats": "engine.streaming",
    "TokenStream": "engine.generate",
    "load": "engine.model",
}

__all__ = [
    "Cache",
    "ExpertStore",
    "ExpertsDoNotFit",
    "Model",
    "Settings",
    "StoreStats",
    "TokenStream",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
