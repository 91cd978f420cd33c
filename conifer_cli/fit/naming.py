"""Add file names to error messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the file's name before the message of a ModelFileError that names no file."""
    from engine.errors import ModelFileError

    try:
        yield
    except ModelFileError as error:
        if name not in str(error) and ".gguf: " not in str(error):
            error.args = (f"{name}: {error}",)
        raise
