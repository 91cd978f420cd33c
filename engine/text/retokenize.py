"""Find what a cache holds in a conversation that was cut into tokens anew.

A model may write a word in other tokens than those into which its text is cut the next time. The
words are the same, and what the cache holds of them is what the model wrote: those ids stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from engine.text.tokenizer import Tokenizer


def retokenized(held: Sequence[int], wanted: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Write the tokens `wanted` with those of `held` for as long as both spell the same text.

    Control tokens spell nothing: they have to be the same ones, and text never stands for one.
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
        span = _spelling(wanted, at, tokenizer.token_bytes(held[seen:end]), tokenizer, marks)
        whole = end < len(held)  # then a mark follows, and has to follow in both
        if not span or (whole and _text_end(wanted, at, marks) != at + span):
            break
        ids += held[seen:end]
        at, seen = at + span, end
    return [*ids, *wanted[at:]]


def _text_end(ids: Sequence[int], start: int, marks: set[int]) -> int:
    return next((i for i in range(start, len(ids)) if ids[i] in marks), len(ids))


def _spelling(
    ids: Sequence[int], start: int, text: bytes, tokenizer: Tokenizer, marks: set[int]
) -> int:
    """Count the ids from `start` on that spell exactly `text`; 0 if none do."""
    part = ids[start : min(_text_end(ids, start, marks), start + len(text))]
    sizes = accumulate(len(tokenizer.token_bytes([id])) for id in part)
    count = next((n for n, size in enumerate(sizes, 1) if size >= len(text)), 0)
    return count if text and tokenizer.token_bytes(part[:count]) == text else 0
