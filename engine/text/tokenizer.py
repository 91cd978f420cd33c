"""Text to token ids and back, with the vocabulary in the model file.

Two families: BPE over bytes (Gemma 4: over lines), merged by the `tokenizers` library, and
SentencePiece-style vocabularies, whose merges are ranked by score and done here. Either gives the
ids of the model's own tokenizer, but for one promise: without `markup=True` no text, whatever it
spells, becomes a control token. Nor is Unicode normalised first, which a model file cannot ask for.
This module knows no chat template and adds no token that was not asked for.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.errors import GGUFError
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

WHITE_SPACE = " \t\n\v\f\r"

Encoder = Callable[[str], list[int]]
Mark = tuple[str, int]  # the text of a token that is found before anything is merged, and its id


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that a file's metadata describes.

    Raises UnsupportedError for a kind of tokenizer the engine does not have, GGUFError naming the
    key for a vocabulary that makes no sense.
    """
    return Tokenizer(read_vocabulary(metadata))


class Tokenizer:
    """A vocabulary and the way it cuts text.

    `control`, `unknown` and `user_defined` map the texts of those tokens to ids; `eog_ids` end an
    answer; `add_bos` says that a prompt begins with `bos_id`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        scored = vocabulary.model == "llama"
        pre = PreTokenizer((), add_bos=True) if scored else pre_tokenizer(vocabulary.pre)
        self._pre = pre
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
        wanted = pre.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        self.add_bos = wanted and self.bos_id is not None
        self._typed_marks = _longest_first(self.user_defined)
        self._all_marks = _longest_first({**self.user_defined, **self.unknown, **self.control})

    def special_texts(self) -> dict[str, str]:
        """Name the special tokens as chat templates do: "bos_token", "eos_token" and so on."""
        vocabulary = self._vocabulary
        return {f"{name}_token": vocabulary.tokens[id] for name, id in vocabulary.specials.items()}

    def encode(self, text: str, *, markup: bool = False) -> list[int]:
        """Cut text into ids, without BOS. With `markup`, control tokens in it are recognised."""
        return self._encode(text, self._all_marks if markup else self._typed_marks, {})

    def encode_quoted(self, text: str, quoted: Mapping[str, str]) -> list[int]:
        """Cut text with markup in which each key of `quoted` stands for words that are not markup.

        The words are put back only once the markup has been found, and are then cut together with
        the text around them: nothing they spell is a control or user-defined token.
        """
        return self._encode(text, self._all_marks, quoted)

    def decode(self, ids: Iterable[int], *, markup: bool = False) -> str:
        """Put ids back together, dropping control tokens unless `markup`.

        Bytes that are no UTF-8 become U+FFFD.
        """
        text = b"".join(self._piece(id, markup) for id in ids)
        return self._without_prefix(text).decode("utf-8", "replace")

    def token_bytes(self, ids: Iterable[int]) -> bytes:
        """Join the bytes of ids, which need not be whole characters; control tokens have none."""
        return b"".join(map(self._piece, ids))

    def stream(self, shown: frozenset[int] = frozenset()) -> StreamDecoder:
        """Start to decode ids that arrive one at a time; `shown` control tokens are not dropped."""
        return StreamDecoder(lambda id: self._piece(id, id in shown), self._without_prefix)

    def pieces(self) -> list[bytes | None]:
        """The bytes that each id stands for in text; None for those that stand for none."""
        return [self._piece(id) or None for id in range(self.vocab_size)]

    def _encode(self, text: str, marks: Sequence[Mark], quoted: Mapping[str, str]) -> list[int]:
        vocabulary = self._vocabulary
        ids: list[int] = []
        after_mark = True
        for fragment in _partition(without_surrogates(text), marks, vocabulary.stripping):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                words = _restored(fragment, quoted)
                prefix = " " if after_mark and vocabulary.add_space_prefix else ""
                ids += self._words(prefix + words)
            after_mark = isinstance(fragment, int)
        return ids

    @functools.cached_property
    def _words(self) -> Encoder:
        """Cuts text without marks. Made when first used: an answer to ids needs none."""
        return ENCODERS[self._vocabulary.model](self._vocabulary, self._pre)

    def _piece(self, id: int, markup: bool = False) -> bytes:
        """The bytes of one token."""
        kind = self._vocabulary.types[id]
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN) and not markup:
            return b""
        if id not in self._pieces:
            self._pieces[id] = _token_bytes(self._vocabulary, id)
        return self._pieces[id]

    def _without_prefix(self, text: bytes) -> bytes:
        """Take away the space that encoding put before the text."""
        return text.removeprefix(b" ") if self._vocabulary.add_space_prefix else text


class StreamDecoder:
    """Decode ids one by one: the pieces join to what `decode` gives; none splits a character."""

    def __init__(
        self, piece: Callable[[int], bytes], without_prefix: Callable[[bytes], bytes]
    ) -> None:
        self._piece = piece
        self._without_prefix = without_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def push(self, id: int) -> str:
        """Take one id; return the text that is certain now, maybe none."""
        piece = self._piece(id)
        if self._at_start and piece:
            self._at_start = False
            piece = self._without_prefix(piece)
        return self._utf8.decode(piece)

    def finish(self) -> str:
        """Return what an unfinished character leaves."""
        return self._utf8.decode(b"", final=True)


def _longest_first(marks: Mapping[str, int]) -> list[Mark]:
    return sorted(marks.items(), key=lambda mark: -len(mark[0].encode()))


def _partition(text: str, marks: Sequence[Mark], stripping: frozenset[int]) -> list[str | int]:
    """Cut text at marks: a long mark anywhere goes before a short one."""
    fragments: list[str | int] = [text] if text else []
    for literal, id in marks:
        if literal not in text:
            continue
        cut: list[str | int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                cut.append(fragment)
                continue
            for index, words in enumerate(fragment.split(literal)):
                if index:
                    cut.append(id)
                if index and id in stripping:
                    words = words.lstrip(WHITE_SPACE)
                if words:
                    cut.append(words)
        fragments = cut
    return fragments


def _restored(text: str, quoted: Mapping[str, str]) -> str:
    for stand_in, words in quoted.items():
        text = text.replace(stand_in, words)
    return text


def without_surrogates(text: str) -> str:
    """Join surrogate pairs; a lone surrogate, which is no character, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _byte_alphabet() -> dict[int, str]:
    """How byte-level BPE writes a byte: as itself if printable, or as the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


BYTE_OF = {character: bytes([byte]) for byte, character in _byte_alphabet().items()}


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


def _byte_encoder(vocabulary: Vocabulary, pre: PreTokenizer) -> Encoder:
    from tokenizers import pre_tokenizers

    bytes_as_text = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _merging_encoder(vocabulary, pre, SPECIAL_TYPES, bytes_as_text)


def _line_encoder(vocabulary: Vocabulary, pre: PreTokenizer) -> Encoder:
    """Merge whole lines of Unicode; line ends together are one token where there is one."""
    merged = _merging_encoder(vocabulary, pre, (TokenType.UNKNOWN, TokenType.CONTROL))
    ends = {
        text: id
        for text, id in vocabulary.of_type(TokenType.NORMAL).items()
        if not text.strip("\n")
    }

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for words in re.split("(\n+)", text.replace(" ", SPACE)):
            ids += [ends[words]] if words in ends else merged(words)
        return ids

    return encode


def _merging_encoder(
    vocabulary: Vocabulary, pre: PreTokenizer, unused: Sequence[TokenType], *last: Any
) -> Encoder:
    """Cut text, by the patterns and then by `last`, and merge with the `tokenizers` library."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    model = models.BPE(
        vocab=vocabulary.without(*unused),
        merges=vocabulary.merges,
        ignore_merges=pre.whole_words,
        byte_fallback=vocabulary.model in SPACED,
    )
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, *last])

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return encode


ENCODERS: dict[str, Callable[[Vocabulary, PreTokenizer], Encoder]] = {
    "gpt2": _byte_encoder,
    "gemma4": _line_encoder,
    "llama": lambda vocabulary, _: sentencepiece_encoder(vocabulary),
}
