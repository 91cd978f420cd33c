"""Bounds on scratch memory, used by the layers and by the estimate of memory use.

All sizes are bytes. Imports no MLX.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.errors import DoesNotFit

if TYPE_CHECKING:
    from engine.nn.config import ModelConfig

MAX_CHUNK, MIN_CHUNK = 512, 16  # tokens of a prompt that run at a time
SCORE_BYTES = 128 << 20  # attention scores of one prefill chunk
INDEXER_BYTES = 64 << 20  # scores that the heads of an indexer compute at a time
# Tokens per chunk of a recurrence, a power of two. Longer chunks mean fewer steps, which suits a
# GPU; shorter ones mean less work.
SCAN_CHUNK = 64


def prefill_chunk(config: ModelConfig, context: int, kernels: str) -> int:
    """Return how many tokens to prefill at a time so that attention scores stay bounded."""
    chunk = MAX_CHUNK
    # Native kernels hold the scores of a few tokens only; latent attention bounds its own.
    if kernels == "native" or config.latent:
        return chunk
    while chunk > MIN_CHUNK and 4 * config.heads * chunk * context > SCORE_BYTES:
        chunk //= 2
    return chunk


@contextmanager
def enough_memory() -> Iterator[None]:
    """Raise DoesNotFit when MLX cannot allocate memory."""
    try:
        yield
    except MemoryError as error:
        raise DoesNotFit("out of memory") from error
    except RuntimeError as error:  # MLX has no exception class for it
        if "alloc" not in str(error).lower():
            raise
        raise DoesNotFit(f"out of memory: {error}") from error
