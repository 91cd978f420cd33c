"""The engine's exceptions. Messages say what is wrong and where. Callers add the remedy."""

from __future__ import annotations


class EngineError(Exception):
    """Base class for all expected failures."""


class ModelFileError(EngineError):
    """A model file cannot be used."""


class GGUFError(ModelFileError):
    """A file is damaged, truncated or not a GGUF file."""


class MoreNeeded(GGUFError):
    """The data ends inside the header. At least the first `size_bytes` of the file are needed."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(
            f"the header is incomplete: reading it requires at least {size_bytes:,} bytes"
        )
        self.size_bytes = size_bytes


class FileShrank(ModelFileError):
    """A model's file became shorter while it was in use."""


class ReadFailed(EngineError):
    """The disk failed to read a part of a model's file."""


class UnsupportedError(ModelFileError):
    """A valid file uses a feature that the engine does not support."""


class TemplateError(ModelFileError):
    """A chat template is missing, unsafe, or rejects the conversation."""


class TemplateRefusal(TemplateError):
    """A chat template raises an exception for a conversation."""


class MessageLeftOut(TemplateError):
    """A chat template does not write the whole conversation into the prompt."""


class EmptyPrompt(EngineError):
    """A prompt has no tokens: the vocabulary has none for its text."""


class SchemaError(EngineError):
    """A JSON schema is invalid or unsupported."""


class ConstraintError(EngineError):
    """An answer cannot continue without violating its schema."""


class AnswerMismatch(ConstraintError):
    """A finished answer does not match its schema."""


class CacheStateError(EngineError):
    """A saved cache state belongs to a different model."""


class BackendError(EngineError):
    """MLX has no usable backend, or the requested kernels are unavailable."""


class DoesNotFit(EngineError):
    """A memory allocation failed."""


class ContextOverflow(EngineError):
    """A sequence is longer than the context. `used` and `limit` are token counts."""

    def __init__(self, used: int, limit: int) -> None:
        plural = "" if limit == 1 else "s"
        super().__init__(f"{used:,} tokens do not fit in a context of {limit:,} token{plural}")
        self.used, self.limit = used, limit


class NumericError(EngineError):
    """A model's logits contain NaN or infinity."""
