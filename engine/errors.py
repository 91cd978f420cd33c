"""Exceptions of the engine. Messages say what is wrong and where; callers add what to do."""

from __future__ import annotations


class EngineError(Exception):
    """Base class of all expected failures."""


class ModelFileError(EngineError):
    """The model file cannot be used."""


class GGUFError(ModelFileError):
    """The file is damaged, truncated or not GGUF."""


class MoreNeeded(GGUFError):
    """The given bytes end inside the header; the first `size_bytes` of the file are needed."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the header continues: at least {size_bytes:,} bytes are needed")
        self.size_bytes = size_bytes


class UnsupportedError(ModelFileError):
    """The file is valid but uses a feature the engine does not support."""


class TemplateError(ModelFileError):
    """The chat template is missing, hostile, or rejects this conversation."""


class SchemaError(EngineError):
    """A JSON schema is invalid or not supported."""


class ConstraintError(EngineError):
    """An answer cannot continue within its schema."""


class CacheStateError(EngineError):
    """A saved cache state is not from this model."""


class BackendError(EngineError):
    """MLX has no usable backend, or the requested kernels are unavailable."""


class DoesNotFit(EngineError):
    """Memory allocation failed."""


class ContextOverflow(EngineError):
    """A sequence is longer than the context. used, limit: token counts."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(f"{used:,} tokens do not fit a context of {limit:,}")
        self.used, self.limit = used, limit


class NumericError(EngineError):
    """The model's logits contain NaN or infinity."""
