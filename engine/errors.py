"""What can go wrong between a file and a token: a class for each thing that is handled differently.

EngineError
├── ModelFileError         the file cannot be used as it is
│   ├── GGUFError          it is damaged, cut short, or not GGUF
│   │   └── MoreNeeded     the bytes given end before the header does: read further and ask again
│   ├── UnsupportedError   an architecture, tensor type or tokenizer that the engine does not have
│   └── TemplateError      its chat template is missing, hostile or refuses the conversation
├── SchemaError            a JSON schema that makes no sense, or asks for what cannot be held to
├── ConstraintError        an answer cannot be held to its schema any further
├── CacheStateError        a saved cache state is not from this model
├── BackendError           MLX has no backend here, or two, or not the kernels asked for
├── DoesNotFit             the machine refused memory that was asked for
├── ContextOverflow        more tokens than the context holds; carries both counts
└── NumericError           the logits hold NaN or infinity

The engine says what and where; what to do about it is for the program that called it to say.
"""

from __future__ import annotations


class EngineError(Exception):
    """Any failure the engine foresees."""


class ModelFileError(EngineError):
    """The model file cannot be used."""


class GGUFError(ModelFileError):
    """The file is damaged, cut short, or not GGUF."""


class MoreNeeded(GGUFError):
    """The bytes given end inside the header; at least `size_bytes` of the file are needed."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the header goes on past the bytes given: at least {size_bytes:,} needed")
        self.size_bytes = size_bytes


class UnsupportedError(ModelFileError):
    """The file is sound but uses something the engine does not have."""


class TemplateError(ModelFileError):
    """The chat template is missing, hostile, or refuses this conversation."""


class SchemaError(EngineError):
    """A JSON schema makes no sense, or asks for what cannot be held to."""


class ConstraintError(EngineError):
    """An answer cannot be held to its schema any further."""


class CacheStateError(EngineError):
    """What was kept of a cache is not of this model."""


class BackendError(EngineError):
    """MLX has no usable backend here, or the kernels asked for are not there."""


class DoesNotFit(EngineError):
    """The machine refused memory that was asked for."""


class ContextOverflow(EngineError):
    """A sequence is longer than the context. `used` and `limit` are counts of tokens."""

    def __init__(self, used: int, limit: int) -> None:
        super().__init__(f"{used:,} tokens do not fit a context of {limit:,}")
        self.used = used
        self.limit = limit


class NumericError(EngineError):
    """The model's logits hold NaN or infinity."""
