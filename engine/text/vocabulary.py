"""Read and validate a model file's vocabulary: tokens, types, scores, merges and special ids.

The file is not trusted. Anything that could break a later lookup is rejected here, and the error
names the metadata key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, repeat
from typing import Any

from engine.errors import GGUFError, UnsupportedError
from engine.gguf.reader import REAL, WHOLE, numbers

PREFIX = "tokenizer.ggml."
MODELS = ("gpt2", "llama", "gemma4")
SPACED = ("llama", "gemma4")  # tokens are Unicode text, not bytes, with SPACE for spaces
SPACE = "▁"


class TokenType(IntEnum):
    """A token's type, numbered as in `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# End-of-generation tokens. Files often lack a type or a key for them.
ENDINGS = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|>
</s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> [e~[
<｜end▁of▁sentence｜> <turn|> <|tool_response> <|eot|> <|eom|> <|role_end|>
"""
# Code models' separators and fillers also end an answer.
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
# Merging ordinary text must not produce tokens of these types.
SPECIAL_TYPES = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE)
ENDING_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPECIAL_KEYS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with their types.

    types: a byte each. scores: empty for byte-level BPE. merges: as in the file, two texts with a
    space between them, highest priority first; empty for scored vocabularies, and once an encoder
    has them. specials: ids by name, for "bos", "eos", "unk" and "pad" if present. stripping: ids of
    tokens that drop the whitespace after them.
    """

    model: str
    pre: str
    tokens: list[str]
    ids: dict[str, int]  # by token text
    types: bytes
    scores: list[float]
    merges: list[str]
    specials: dict[str, int]
    eog_ids: frozenset[int]
    add_bos: bool | None
    add_space_prefix: bool
    stripping: frozenset[int]

    def of_type(self, *types: TokenType) -> dict[str, int]:
        """Return a dict from text to id, for all tokens with one of these types."""
        return {self.tokens[id]: id for id in _ids_of_type(self.types, types)}

    def without(self, *types: TokenType) -> dict[str, int]:
        """Return a dict from text to id, for all tokens except those with one of these types."""
        ids = self.ids.copy()
        for text in self.of_type(*types):
            del ids[text]
        return ids

    def pairs(self) -> list[tuple[str, str]]:
        """Return the texts to merge, without special tokens, highest priority first.

        Raises GGUFError if the vocabulary lacks a part or a result.
        """
        lines = list(dict.fromkeys(self.merges))
        if {1}.issuperset(map(str.count, lines, repeat(" "))):
            parts = " ".join(lines).split(" ") if lines else []
        else:
            parts = [part for line in lines for part in line.partition(" ")[::2]]
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        if not all(map(self.ids.__contains__, chain(parts, map("".join, pairs)))):
            raise self._merge_error(pairs)
        banned = self.of_type(*SPECIAL_TYPES).keys()
        if banned.isdisjoint(parts) and not _made_by_merging(banned, lines):
            return pairs
        return [pair for pair in pairs if banned.isdisjoint((*pair, "".join(pair)))]

    def _merge_error(self, pairs: list[tuple[str, str]]) -> GGUFError:
        """Return the error for the first pair whose parts or result the vocabulary lacks."""
        left, right = next(pair for pair in pairs if not self.ids.keys() >= {*pair, "".join(pair)})
        return GGUFError(
            f"{PREFIX}merges joins {left[:60]!r} and {right[:60]!r}, "
            "but the vocabulary lacks a part or the result"
        )


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read a file's vocabulary.

    Raises UnsupportedError if the tokenizer is unsupported, or GGUFError, naming the key, if the
    metadata is invalid.
    """
    model = _value(metadata, "model", str, None)
    if model is None:
        raise GGUFError(f"{PREFIX}model is missing")
    if model not in MODELS:
        raise UnsupportedError(f"tokenizer {model!r} is not supported")
    tokens = _tokens(metadata)
    by_text = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(by_text) < len(tokens):
        raise _duplicate(tokens)
    scored = model == "llama"
    merges = [] if scored else _strings(metadata, "merges")
    types = _with_control(by_text, _types(metadata, tokens), merges)
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if scored else {}
    ids = _ids(metadata, len(tokens), defaults)
    return Vocabulary(
        model=model,
        pre=model if model == "gemma4" else _value(metadata, "pre", str, "default") or "default",
        tokens=tokens,
        ids=by_text,
        types=types,
        scores=_numbers(metadata, "scores", len(tokens)) if scored else [],
        merges=list(merges),
        specials={name: ids[key] for name, key in SPECIAL_KEYS.items() if key in ids},
        eog_ids=_eog_ids(by_text, types, ids),
        add_bos=_value(metadata, "add_bos_token", bool, None),
        add_space_prefix=_value(metadata, "add_space_prefix", bool, scored),
        stripping=_stripping(metadata, tokens, types),
    )


def _value(metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get(PREFIX + key, default)
    if value is not default and not isinstance(value, kind):
        raise GGUFError(f"{PREFIX}{key} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    strings = metadata.get(PREFIX + key)
    if not isinstance(strings, list) or not {str}.issuperset(map(type, strings)):
        raise GGUFError(f"{PREFIX}{key} must be an array of strings")
    try:
        "".join(strings).encode()
    except UnicodeEncodeError as error:
        raise GGUFError(f"{PREFIX}{key} contains invalid Unicode") from error
    return strings


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    """Return the token texts. Replace empty texts with unique names, so that ids do not shift."""
    tokens = _strings(metadata, "tokens")
    if "" in tokens:
        tokens = [text or f"[EMPTY_{id}]" for id, text in enumerate(tokens)]
    if not tokens:
        raise GGUFError(f"{PREFIX}tokens must not be empty")
    return tokens


def _duplicate(tokens: list[str]) -> GGUFError:
    """Return the error for the first text that is there twice."""
    first: dict[str, int] = {}
    id = next(id for id, text in enumerate(tokens) if first.setdefault(text, id) != id)
    return GGUFError(f"{PREFIX}tokens[{id}] is a duplicate: {tokens[id][:60]!r}")


def _numbers(metadata: Mapping[str, Any], key: str, count: int) -> list[Any]:
    array = numbers(metadata.get(PREFIX + key))
    if array is None or array.format not in (*WHOLE, *REAL) or len(array) != count:
        raise GGUFError(f"{PREFIX}{key} must be an array of {count:,} numbers")
    values = array.tolist()
    if array.format in REAL and not all(map(math.isfinite, values)):
        raise GGUFError(f"{PREFIX}{key} must not contain NaN or infinity")
    return values


def _types(metadata: Mapping[str, Any], tokens: list[str]) -> bytes:
    types = bytes([TokenType.NORMAL]) * len(tokens)
    if PREFIX + "token_type" in metadata:
        values = _numbers(metadata, "token_type", len(tokens))
        try:
            types = bytes(values)
        except (TypeError, ValueError):  # real numbers, or types that no file should have
            types = bytes(int(kind) if 0 <= kind < 256 else 0 for kind in values)
    for id in _ids_of_type(types, (TokenType.BYTE,)):
        if not BYTE_TOKEN.fullmatch(tokens[id]):
            raise GGUFError(
                f"{PREFIX}tokens[{id}] is a byte token and must have the form '<0xFF>', "
                f"got {tokens[id][:60]!r}"
            )
    return types


def _ids_of_type(types: bytes, wanted: tuple[TokenType, ...]) -> list[int]:
    return [match.start() for match in re.finditer(b"[%b]" % bytes(wanted), types)]


def _with_control(by_text: Mapping[str, int], types: bytes, merges: list[str]) -> bytes:
    # Tokens that merges produce are ordinary text. For example, "</s>" can be an HTML tag, as in
    # Gemma's vocabulary, where <eos> ends texts.
    html = ["</s>"] if "<eos>" in by_text else []
    texts = LOOKS_LIKE_CONTROL.intersection(by_text).difference(html)
    changed = bytearray(types)
    for text in texts - _made_by_merging(texts, merges):
        changed[by_text[text]] = TokenType.CONTROL
    return bytes(changed)


def _made_by_merging(texts: Iterable[str], merges: list[str]) -> set[str]:
    """Return those of the texts that a merge produces."""
    lines = {f"{text[:at]} {text[at:]}": text for text in texts for at in range(1, len(text))}
    return {lines[line] for line in lines.keys() & merges}


def _ids(metadata: Mapping[str, Any], count: int, defaults: dict[str, int]) -> dict[str, int]:
    """Return the special ids in the file. Raises GGUFError if an invalid id affects generation."""
    ids = {name: id for name, id in defaults.items() if id < count}
    for name in (*ENDING_KEYS, "bos", "unknown", "padding"):
        key = f"{PREFIX}{name}_token_id"
        if key not in metadata:
            continue
        id = metadata[key]
        if type(id) is int and 0 <= id < count:
            ids[name] = id
        elif name in ("bos", "eos", "eot", "eom"):
            raise GGUFError(f"{key} must be between 0 and {count - 1:,}, got {id!r}")
    return ids


def _eog_ids(by_text: Mapping[str, int], types: bytes, ids: dict[str, int]) -> frozenset[int]:
    texts = {text: by_text[text] for text in ENDS_ANSWER.intersection(by_text)}
    texts = {text: id for text, id in texts.items() if types[id] == TokenType.CONTROL}
    ends = {*texts.values(), *(ids[name] for name in ENDING_KEYS if name in ids)}
    # In these two dialects <|end|> ends a message, not the answer.
    if {"<|return|>", "<|call|>"} <= texts.keys() or {"<|flush|>", "<|calls|>"} <= texts.keys():
        ends.discard(texts.get("<|end|>", -1))
    return frozenset(ends)


def _stripping(metadata: Mapping[str, Any], tokens: list[str], types: bytes) -> frozenset[int]:
    """Return the ids of Phi-3's markers that drop the whitespace after them.

    GGUF has no key for this.
    """
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    markers = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
    kept = ("<unk>", "<s>", "<|endoftext|>")
    return frozenset(
        id for id, text in enumerate(tokens) if types[id] in markers and text not in kept
    )
