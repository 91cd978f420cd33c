"""Limits on scratch memory. The layers apply them, and the memory estimate depends on them.

All sizes are in bytes. This module does not import MLX.
"""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import BackendError, DoesNotFit

if TYPE_CHECKING:
    from engine.nn.config import ModelConfig

MAX_CHUNK, MIN_CHUNK = 512, 16  # prompt tokens processed at a time
STREAM_CHUNK = 2048  # the same if experts stay in the file: each is read once for a chunk
SCORE_BYTES = 128 << 20  # attention scores for one prefill chunk
PIECE_BYTES = 64 << 20  # of blocks that a GPU turns into numbers at a time, as numbers
INDEXER_BYTES = 64 << 20  # scores that all indexer heads compute at a time
# Tokens per recurrence chunk, a power of two. Longer chunks need fewer steps, which suits a GPU.
# Shorter chunks need less arithmetic.
SCAN_CHUNK = 64
NO_THREADS = "cannot start a thread: this user or container has reached its limit of processes"


def prefill_chunk(config: ModelConfig, context: int, kernels: str) -> int:
    """Return how many prompt tokens to process at a time, to limit memory for attention scores."""
    chunk = MAX_CHUNK
    # Native kernels store scores for a few tokens at a time. Latent attention has its own limit.
    if kernels == "native" or config.latent:
        return chunk
    while chunk > MIN_CHUNK and 4 * max(config.heads) * chunk * context > SCORE_BYTES:
        chunk //= 2
    return chunk


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise DoesNotFit if memory cannot be allocated, or BackendError if no thread can start."""
    try:
        yield
    except MemoryError as error:
        raise DoesNotFit("out of memory") from error
    except RuntimeError as error:  # MLX raises no specific class for these
        if lacks_threads(error):
            raise BackendError(NO_THREADS) from error
        if "alloc" not in str(error).lower():
            raise
        raise DoesNotFit("out of memory") from error


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause the garbage collector: it takes a tenth of a load, and a vocabulary has no cycles."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def lacks_threads(error: RuntimeError) -> bool:
    """True if C++ or Python could not start a thread."""
    return any(words in str(error) for words in (os.strerror(errno.EAGAIN), "start new thread"))
