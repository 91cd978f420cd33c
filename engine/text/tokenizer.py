"""Convert text to token ids and back, with the vocabulary in the model file.

The `tokenizers` library handles byte-level BPE vocabularies and, one line at a time, Gemma 4's
vocabulary. `engine.text.sentencepiece` handles scored vocabularies. The ids match those of the
model's original tokenizer, with two exceptions. Text becomes a control token only with
`markup=True`. Unicode is not normalised, because GGUF has no key for normalisation.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from engine.errors import GGUFError
from engine.text.marks import Marks
from engine.text.pretokenizers import PreTokenizer, pre_tokenizer
from engine.text.sentencepiece import sentencepiece_encoder
from engine.text.vocabulary import (
    BYTE_TOKEN,
    PREFIX,
    SPACE,
    SPACED,
    SPECIAL_TYPES,
    TokenType,
    Vocabulary,
    read_vocabulary,
)

COUNTED_CHARACTERS = 1 << 16
WHITE_SPACE = " \t\n\v\f\r"

Encoder = Callable[[str], list[int]]


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a file's metadata describes.

    Raises UnsupportedError if the tokenizer is unsupported, or GGUFError, naming the key, if the
    metadata is invalid. Merges that do not match the tokens are noticed later: see
    `Tokenizer.prepare`.
    """
    return Tokenizer(read_vocabulary(metadata))


class Tokenizer:
    """A vocabulary with its pre-tokenizer.

    control, unknown, user_defined: ids by token text. eog_ids: ids that end an answer. add_bos:
    whether prompts begin with `bos_id`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        scored = vocabulary.model == "llama"
        self._pre = PreTokenizer((), add_bos=True) if scored else pre_tokenizer(vocabulary.pre)
        self._pieces: dict[int, bytes] = {}
        self.vocab_size = len(vocabulary.tokens)
        self.control = vocabulary.of_type(TokenType.CONTROL)
        self.unknown = vocabulary.of_type(TokenType.UNKNOWN)
        self.user_defined = vocabulary.of_type(TokenType.USER_DEFINED)
        self.bos_id = vocabulary.specials.get("bos")
        self.eos_id = vocabulary.specials.get("eos")
        self.eog_ids = vocabulary.eog_ids
        if vocabulary.add_bos and self.bos_id is None:
            raise GGUFError(f"{PREFIX}add_bos_token is true, but {PREFIX}bos_token_id is missing")
        wanted = self._pre.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        self.add_bos = wanted and self.bos_id is not None

    @functools.cached_property
    def _typed_marks(self) -> Marks:
        return Marks(self.user_defined)

    @functools.cached_property
    def _all_marks(self) -> Marks:
        return Marks({**self.user_defined, **self.unknown, **self.control})

    def prepare(self) -> None:
        """Build the encoder, as the first text would. Raises GGUFError if merges are invalid."""
        self._words  # noqa: B018

    def special_texts(self) -> dict[str, str]:
        """Return special tokens' texts, keyed by template variable, such as "bos_token"."""
        vocabulary = self._vocabulary
        return {f"{name}_token": vocabulary.tokens[id] for name, id in vocabulary.specials.items()}

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """Encode text without adding BOS. markup: recognise control tokens in the text."""
        return self._encode(text, self._all_marks if markup else self._typed_marks, {})

    def count(self, text: str) -> int:
        """Count the tokens in a text to about one in 10,000, using little memory."""
        parts = range(0, len(text), COUNTED_CHARACTERS)
        return sum(len(self.encode(text[at : at + COUNTED_CHARACTERS])) for at in parts)

    def encode_quoted(self, text: str, quoted: Mapping[str, str]) -> list[int]:
        """Encode text with markup. Each key of `quoted` is a placeholder for literal text.

        The literal text is restored after the markup has been recognised and is encoded together
        with the text around it. It therefore cannot become a control or user-defined token.
        """
        return self._encode(text, self._all_marks, quoted)

    def decode(self, ids: Iterable[int], *, markup: bool = False) -> str:
        """Decode ids. markup: keep control tokens. Invalid UTF-8 is replaced with U+FFFD."""
        text = b"".join(self._piece(id, markup) for id in ids)
        return self._without_prefix(text).decode("utf-8", "replace")

    def token_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of all ids except control tokens. They may end mid-character."""
        return b"".join(map(self._piece, ids))

    def stream(self, shown: frozenset[int] = frozenset()) -> StreamDecoder:
        """Return a decoder for ids that arrive one by one. shown: control tokens to keep."""
        return StreamDecoder(lambda id: self._piece(id, id in shown), self._without_prefix)

    def pieces(self) -> list[bytes | None]:
        """Return the bytes of each id, or None if the id has no text."""
        return [self._piece(id) or None for id in range(self.vocab_size)]

    def _encode(self, text: str, marks: Marks, quoted: Mapping[str, str]) -> list[int]:
        vocabulary = self._vocabulary
        prefix = " " if vocabulary.add_space_prefix else ""
        placeholders = Marks({placeholder: at for at, placeholder in enumerate(quoted)})
        ids: list[int] = []
        for words, mark in marks.split(without_surrogates(text)):
            if ids and ids[-1] in vocabulary.stripping:
                words = words.lstrip(WHITE_SPACE)
            if words:
                ids += self._words(prefix + _restored(words, placeholders, [*quoted.values()]))
            if mark is not None:
                ids.append(mark)
        return ids

    @functools.cached_property
    def _words(self) -> Encoder:
        """The encoder for text without marks. Built lazily, because decoding does not need it."""
        return ENCODERS[self._vocabulary.model](self._vocabulary, self._pre)

    def _piece(self, id: int, markup: bool = False) -> bytes:
        kind = self._vocabulary.types[id]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) and not markup:
            return b""
        if id not in self._pieces:
            self._pieces[id] = _token_bytes(self._vocabulary, id)
        return self._pieces[id]

    def _without_prefix(self, text: bytes) -> bytes:
        """Remove the space that encoding adds before the text."""
        return text.removeprefix(b" ") if self._vocabulary.add_space_prefix else text


class StreamDecoder:
    """Decode ids one by one, into whole characters. The joined text is what `decode` returns."""

    def __init__(
        self, piece: Callable[[int], bytes], without_prefix: Callable[[bytes], bytes]
    ) -> None:
        self._piece = piece
        self._without_prefix = without_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def push(self, id: int) -> str:
        """Add one id and return the completed text, which may be empty."""
        piece = self._piece(id)
        if self._at_start and piece:
            self._at_start = False
            piece = self._without_prefix(piece)
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """Return U+FFFD if the last character is incomplete, otherwise an empty string."""
        return self._utf8.decode(b"", final=True)


def _restored(text: str, placeholders: Marks, literals: Sequence[str]) -> str:
    parts = placeholders.split(text)
    return "".join(part if at is None else part + literals[at] for part, at in parts)


def without_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates with U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


# Byte-level BPE represents printable bytes as themselves and all other bytes from U+0100 upwards.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): bytes([byte]) for byte in _PRINTABLE}
BYTE_OF |= {chr(256 + index): bytes([byte]) for index, byte in enumerate(_OTHERS)}


def _token_bytes(vocabulary: Vocabulary, id: int) -> bytes:
    text, kind = vocabulary.tokens[id], vocabulary.types[id]
    if kind == TokenType.BYTE and (match := BYTE_TOKEN.fullmatch(text)):
        return bytes([int(match[1], 16)])
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
        return text.encode()
    if kind != TokenType.NORMAL:
        return b""
    if vocabulary.model in SPACED:
        return text.replace(SPACE, " ").encode()
    return b"".join(BYTE_OF.get(character) or character.encode() for character in text)


def _line_encoder(vocabulary: Vocabulary, pre: PreTokenizer) -> Encoder:
    """Return an encoder that merges whole lines. A run of newlines is one token if possible."""
    merged = _merging_encoder(vocabulary, pre, (TokenType.UNKNOWN, TokenType.CONTROL))
    normal = vocabulary.of_type(TokenType.NORMAL)
    ends = {text: id for text, id in normal.items() if not text.strip("\n")}

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for words in re.split("(\n+)", text.replace(" ", SPACE)):
            ids += [ends[words]] if words in ends else merged(words)
        return ids

    return encode


def _merging_encoder(
    vocabulary: Vocabulary, pre: PreTokenizer, unused: Sequence[TokenType] = SPECIAL_TYPES
) -> Encoder:
    """Return an encoder that splits text by the patterns, then merges with `tokenizers`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    spaced = vocabulary.model in SPACED
    model = models.BPE(
        vocab=vocabulary.without(*unused),
        merges=vocabulary.pairs(),
        ignore_merges=pre.whole_words,
        byte_fallback=spaced,
    )
    vocabulary.merges.clear()  # 17 MB of a large vocabulary; the model has its own
    tokenizer = Tokenizer(model)
    splits: list[Any] = [pre_tokenizers.Split(Regex(text), "isolated") for text in pre.patterns]
    if not spaced:
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


ENCODERS: dict[str, Callable[[Vocabulary, PreTokenizer], Encoder]] = {
    "gpt2": _merging_encoder,
    "gemma4": _line_encoder,
    "llama": lambda vocabulary, _: sentencepiece_encoder(vocabulary),
}


def retokenized(held: Sequence[int], wanted: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return `wanted`, but with the ids from `held` for the longest prefix with the same text.

    A model may spell a word with different tokens than the tokenizer would. As long as the text is
    the same, the generated ids, which are in the cache, take precedence.
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
