"""Merge characters by score, as SentencePiece BPE vocabularies require.

Characters that are not tokens are encoded as bytes. The `tokenizers` library is not used here: it
merges by rank, which produces different ids if scores are equal, as in Gemma 3, and it takes 0.7 s
to initialise for Llama 2.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from engine.text.vocabulary import BYTE_TOKEN, SPACE, SPECIAL_TYPES, TokenType, Vocabulary

CACHED_WORDS = 1 << 16


def sentencepiece_encoder(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Return an encoder that merges the highest-scoring pair first, or the leftmost on a tie."""
    usable = vocabulary.without(*SPECIAL_TYPES)
    cost = {text: -vocabulary.scores[id] for text, id in usable.items()}
    byte_ids = _byte_ids(vocabulary)
    # Words are merged separately unless a token spans a word boundary.
    inner = re.compile(f"[^{SPACE}]{SPACE}")
    starts = f"(?<=[^{SPACE}])(?={SPACE})"
    words = re.compile("(?!)" if any(map(inner.search, usable)) else starts)

    @lru_cache(maxsize=CACHED_WORDS)
    def word_ids(word: str) -> list[int]:
        ids: list[int] = []
        for symbol in _merged(word, cost):
            id = usable.get(symbol)
            ids += byte_ids(symbol) if id is None else [id]
        return ids

    def encode(text: str) -> list[int]:
        return [id for word in words.split(text.replace(" ", SPACE)) for id in word_ids(word)]

    return encode


def _byte_ids(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Return a function that encodes a character outside the vocabulary, byte by byte.

    A byte without a token becomes the unknown id, or is dropped if there is none.
    """
    by_value = {
        int(match[1], 16): id
        for text, id in vocabulary.of_type(TokenType.BYTE).items()
        if (match := BYTE_TOKEN.fullmatch(text))
    }
    unknown = vocabulary.specials.get("unk")

    def ids(symbol: str) -> list[int]:
        found = [by_value.get(byte, unknown) for byte in symbol.encode()]
        return [id for id in found if id is not None]

    return ids


def _merged(word: str, cost: Mapping[str, float]) -> list[str]:
    symbols = list(word)
    after = [*range(1, len(symbols)), -1]
    before = list(range(-1, len(symbols) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            pair = symbols[left] + symbols[right]
            if pair in cost:
                heapq.heappush(queue, (cost[pair], left, right, pair))

    for left in range(len(symbols) - 1):
        offer(left, left + 1)
    while queue:
        _, left, right, pair = heapq.heappop(queue)
        # Skip stale entries: one side has since been merged.
        if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != pair:
            continue
        symbols[left], symbols[right] = pair, ""
        after[left] = after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [symbol for symbol in symbols if symbol]
