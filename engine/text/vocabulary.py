"""The vocabulary in a model file, checked: tokens, their kinds and scores, and ids with a meaning.

The file is not trusted: whatever could make a lookup go wrong later is refused here, with the
metadata key in the message. This module does not cut text or merge anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, repeat
from typing import Any

from engine.errors import GGUFError, UnsupportedError
from engine.gguf.reader import REAL, WHOLE, numbers

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama", "gemma4")
SPACED = ("llama", "gemma4")  # whose words are Unicode, with SPACE for a space, not bytes
SPACE = "▁"


class TokenType(IntEnum):
    """What a token is, numbered as in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Files often leave these untyped or unnamed; a model that emits one of them has finished.
ENDINGS = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|>
</s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> [e~[
<｜end▁of▁sentence｜> <turn|> <|tool_response> <|eot|> <|eom|> <|role_end|>
"""
# What a code model writes between files or as filler ends an answer too.
FILLERS = """
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|file_sep|>
<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>
"""
INFILLS = """
<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
"""
ENDS_ANSWER = frozenset((ENDINGS + FILLERS).split())
LOOKS_LIKE_CONTROL = ENDS_ANSWER.union(INFILLS.split())
# Kinds that no merge of ordinary text may yield.
SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
ENDING_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their kinds.

    `scores` is empty for byte-level BPE, `merges` for scored vocabularies. `specials` maps "bos",
    "eos", "unk" and "pad" to ids, where there are any. White space after a token of `stripping` is
    swallowed.
    """

    model: str
    pre: str
    tokens: list[str]
    ids: dict[str, int]  # of the tokens, by their texts
    kinds: list[int]
    scores: list[float]
    merges: Pairs
    specials: dict[str, int]
    eog_ids: frozenset[int]
    add_bos: bool | None
    add_space_prefix: bool
    stripping: frozenset[int]

    def of_kind(self, *kinds: TokenType) -> dict[str, int]:
        """Text and id of every token of these kinds."""
        return {self.tokens[id]: id for id in _of_kind(self.kinds, kinds)}

    def without(self, *kinds: TokenType) -> dict[str, int]:
        """Text and id of every token but those of these kinds."""
        left_out = self.of_kind(*kinds)
        return {text: id for text, id in self.ids.items() if text not in left_out}


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Check a file's vocabulary.

    Raises UnsupportedError for an unknown model, GGUFError naming the key for nonsense.
    """
    model = _value(metadata, "model", str, None)
    if model is None:
        raise GGUFError(f"{PREFIX}model is missing")
    if model not in MODELS:
        raise UnsupportedError(f"the engine does not have the tokenizer {model!r}")
    tokens = _tokens(metadata)
    by_text = dict(zip(tokens, range(len(tokens)), strict=True))
    scored = model == "llama"
    pairs, wholes = ([], []) if scored else _merges(metadata, by_text)
    kinds = _typed(by_text, _kinds(metadata, tokens), wholes)
    merges = _typeable(tokens, kinds, pairs, wholes)
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if scored else {}
    ids = _ids(metadata, len(tokens), defaults)
    return Vocabulary(
        model=model,
        pre=model if model == "gemma4" else _value(metadata, "pre", str, "default") or "default",
        tokens=tokens,
        ids=by_text,
        kinds=kinds,
        scores=_numbers(metadata, "scores", len(tokens)) if scored else [],
        merges=merges,
        specials={
            name: ids[key]
            for name, key in (
                ("bos", "bos"),
                ("eos", "eos"),
                ("unk", "unknown"),
                ("pad", "padding"),
            )
            if key in ids
        },
        eog_ids=_endings(by_text, kinds, ids),
        add_bos=_value(metadata, "add_bos_token", bool, None),
        add_space_prefix=_value(metadata, "add_space_prefix", bool, scored),
        stripping=_stripping(metadata, tokens, kinds),
    )


def _value(metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get(PREFIX + key, default)
    if value is not default and not isinstance(value, kind):
        raise GGUFError(f"{PREFIX}{key} is a {type(value).__name__}; expected {kind.__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    strings = metadata.get(PREFIX + key)
    if not isinstance(strings, list) or not {str}.issuperset(map(type, strings)):
        raise GGUFError(f"{PREFIX}{key} is not an array of strings")
    try:
        "".join(strings).encode()
    except UnicodeEncodeError as error:
        raise GGUFError(f"{PREFIX}{key} holds text that is not Unicode") from error
    return strings


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """The token texts. An empty one gets a name, so that texts are unique and ids stay."""
    tokens = _strings(metadata, "tokens")
    if "" in tokens:
        tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(tokens)]
    if not tokens:
        raise GGUFError(f"{PREFIX}tokens is empty")
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        for id, text in enumerate(tokens):
            if text in seen:
                raise GGUFError(f"{PREFIX}tokens[{id}] is there twice: {text[:60]!r}")
            seen.add(text)
    return tokens


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[Any]:
    array = numbers(metadata.get(PREFIX + key))
    if array is None or array.format not in (*WHOLE, *REAL) or len(array) != count:
        raise GGUFError(f"{PREFIX}{key} is not an array of {count:,} numbers")
    values = array.tolist()
    if array.format in REAL and not all(map(math.isfinite, values)):
        raise GGUFError(f"{PREFIX}{key} holds a number that is not finite")
    return values


def _kinds(metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """What the file says each token is."""
    if PREFIX + "token_type" not in metadata:
        kinds = [int(TokenType.NORMAL)] * len(tokens)
    else:
        kinds = list(map(int, _numbers(metadata, "token_type", len(tokens))))
    for id in _of_kind(kinds, (TokenType.BYTE,)):
        if not BYTE_TOKEN.fullmatch(tokens[id]):
            raise GGUFError(f"{PREFIX}tokens[{id}] is a byte token but reads {tokens[id][:60]!r}")
    return kinds


def _of_kind(kinds: list[int], wanted: tuple[TokenType, ...]) -> list[int]:
    """The ids of all tokens of these kinds."""
    numbers = set(map(int, wanted))  # whole numbers compare much faster than members of an enum
    return [id for id, kind in enumerate(kinds) if kind in numbers]


def _merges(metadata: Mapping[str, Any], known: Mapping[str, int]) -> tuple[Pairs, list[str]]:
    """The pairs that merge, most urgent first, and what each makes."""
    lines = dict.fromkeys(_strings(metadata, "merges"))
    pairs = [(left, right) for left, _, right in map(str.partition, lines, repeat(" "))]
    wholes = [left + right for left, right in pairs]
    if not all(map(known.__contains__, chain(wholes, chain.from_iterable(pairs)))):
        for left, right in pairs:
            if not known.keys() >= {left, right, left + right}:
                raise GGUFError(
                    f"{PREFIX}merges joins {left[:60]!r} and {right[:60]!r}: not all are tokens"
                )
    return pairs, wholes


def _typed(by_text: Mapping[str, int], kinds: list[int], wholes: list[str]) -> list[int]:
    """Make control what only looks like control.

    A token that merges build is ordinary text, whatever it looks like: some vocabularies have
    "</s>" from HTML. So has Gemma's, whose texts end with <eos>.
    """
    kinds = kinds.copy()
    html = ["</s>"] if "<eos>" in by_text else []
    for text in LOOKS_LIKE_CONTROL.intersection(by_text).difference(wholes, html):
        kinds[by_text[text]] = TokenType.CONTROL
    return kinds


def _typeable(tokens: list[str], kinds: list[int], pairs: Pairs, wholes: list[str]) -> Pairs:
    """Drop the merges that read or write a token which no text may become."""
    banned = {tokens[id] for id in _of_kind(kinds, SPECIAL_TYPES)}
    if banned.isdisjoint(wholes) and banned.isdisjoint(chain.from_iterable(pairs)):
        return pairs
    return [
        pair for pair, whole in zip(pairs, wholes, strict=True) if banned.isdisjoint((*pair, whole))
    ]


def _ids(metadata: Mapping[str, Any], count: int, defaults: dict[str, int]) -> dict[str, int]:
    """The ids that keys of the file give a meaning; a wrong one that steers generation is fatal."""
    ids = {name: id for name, id in defaults.items() if id < count}
    for name in (*ENDING_KEYS, "bos", "unknown", "padding"):
        key = f"{PREFIX}{name}_token_id"
        if key not in metadata:
            continue
        id = metadata[key]
        if type(id) is int and 0 <= id < count:
            ids[name] = id
        elif name in ("bos", "eos", "eot", "eom"):
            raise GGUFError(f"{key} is {id!r}, outside the vocabulary of {count:,} tokens")
    return ids


def _endings(by_text: Mapping[str, int], kinds: list[int], ids: dict[str, int]) -> frozenset[int]:
    texts = {
        text: by_text[text]
        for text in ENDS_ANSWER.intersection(by_text)
        if kinds[by_text[text]] == TokenType.CONTROL
    }
    ends = {*texts.values(), *(ids[name] for name in ENDING_KEYS if name in ids)}
    # In these two dialects <|end|> ends a message, and the answer goes on.
    if {"<|return|>", "<|call|>"} <= texts.keys() or {"<|flush|>", "<|calls|>"} <= texts.keys():
        ends.discard(texts.get("<|end|>", -1))
    return frozenset(ends)


def _stripping(metadata: Mapping[str, Any], tokens: list[str], kinds: list[int]) -> frozenset[int]:
    """Phi-3 swallows the white space after its markers; files cannot say so, hence by name."""
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    markers = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return frozenset(
        id for id, text in enumerate(tokens) if kinds[id] in markers and text not in kept
    )
