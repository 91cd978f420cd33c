"""Reuse the cached tokens of a conversation after tokenising its text again.

A model may split a word differently from the tokenizer. The text is the same, so the ids in the
cache, which the model wrote, take precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from engine.text.tokenizer import Tokenizer


def retokenized(held: Sequence[int], wanted: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return `wanted` with the ids of `held` for the leading part where both have the same text.

    Control tokens have no text: they must be the same ids in both.
    """
    marks = {*tokenizer.control.values(), *tokenizer.unknown.values(), *tokenizer.eog_ids}
    ids: list[int] = []
    at = seen = 0  # in `wanted`, and in `held`
    while at < len(wanted) and seen < len(held):
        if wanted[at] == held[seen]:
            ids.append(wanted[at])
            at, seen = at + 1, seen + 1
            continue
        end = _text_end(held, seen, marks)
        span = _count_matching(wanted, at, tokenizer.token_bytes(held[seen:end]), tokenizer, marks)
        whole = end < len(held)  # a control token follows, which must follow in both
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
    """Return how many ids from `start` have exactly this text; 0 for none."""
    part = ids[start : min(_text_end(ids, start, marks), start + len(text))]
    sizes = accumulate(len(tokenizer.token_bytes([id])) for id in part)
    count = next((n for n, size in enumerate(sizes, 1) if size >= len(text)), 0)
    return count if text and tokenizer.token_bytes(part[:count]) == text else 0
