"""Reuse a conversation's cached tokens after its text has been tokenised again.

A model may spell a word with different tokens than the tokenizer would. As long as the text is the
same, the generated ids, which are in the cache, take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from engine.text.tokenizer import Tokenizer


def retokenized(held: Sequence[int], wanted: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return `wanted`, but with the ids from `held` for the longest prefix with the same text.

    Control tokens have no text, so their ids must be equal.
    """
    marks = {*tokenizer.control.values(), *tokenizer.unknown.values(), *tokenizer.eog_ids}
    ids: list[int] = []
    at = seen = 0  # positions in `wanted` and in `held`
    while at < len(wanted) and seen < len(held):
        if wanted[at] == held[seen]:
            ids.append(wanted[at])
            at, seen = at + 1, seen + 1
            continue
        end = _text_end(held, seen, marks)
        span = _count_matching(wanted, at, tokenizer.token_bytes(held[seen:end]), tokenizer, marks)
        whole = end < len(held)  # `held` continues with a control token
        if not span or (whole and _text_end(wanted, at, marks) != at + span):
            break
        ids += held[seen:end]
        at, seen = at + span, end
    return [*ids, *wanted[at:]]


def _text_end(ids: Sequence[int], start: int, marks: set[int]) -> int:
    return next((i for i in range(start, len(ids)) if ids[i] in marks), len(ids))


def _count_matching(
    ids: Sequence[int], start: int, text: bytes, tokenizer: Tokenizer, marks: set[int]
) -> int:
    """Return how many ids, starting at `start`, spell exactly this text, or 0 if none do."""
    part = ids[start : min(_text_end(ids, start, marks), start + len(text))]
    sizes = accumulate(len(tokenizer.token_bytes([id])) for id in part)
    count = next((n for n, size in enumerate(sizes, 1) if size >= len(text)), 0)
    return count if text and tokenizer.token_bytes(part[:count]) == text else 0
