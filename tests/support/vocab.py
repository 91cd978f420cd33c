"""Vocabularies to test with: real ones, stored compressed, and small made-up ones."""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.gguf import reader
from engine.text.tokenizer import BYTE_OF, Tokenizer, from_metadata
from engine.text.vocabulary import TokenType

DATA = Path(__file__).parents[1] / "data"
REAL = ("deepseek-llm", "gpt-2", "llama-bpe", "llama-spm", "qwen2", "qwen35", "smollm")
# Stored are those of their tokens that the mixed strings need: see packaged.py.
PARTS = (
    *("cl100k", "command-r", "deepseek-coder", "deepseek-v3", "falcon", "gemma-3", "gemma-4"),
    *("gpt-oss", "llama-4", "mpt", "olmo", "phi-3", "refact", "starcoder", "tekken"),
)
# The words of Qwen2, cut as for vocabularies that no package ships.
BORROWING = ("afmoe", "bailingmoe2", "cohere2moe", "exaone-moe", "glm4", "kimi-k2", "laguna")
# The vocabulary of gpt-2, cut as files are that name no pre-tokenizer.
ALL = (*REAL, "default")


@lru_cache(maxsize=2)
def metadata(name: str) -> dict[str, Any]:
    """The metadata of a stored vocabulary."""
    data = lzma.decompress((DATA / "vocab" / f"{name}.gguf.xz").read_bytes())
    return dict(reader.read_header(data).metadata)


@cache
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a stored vocabulary."""
    if name == "default":
        return from_metadata({**metadata("gpt-2"), "tokenizer.ggml.pre": "default"})
    return from_metadata(metadata(name))


def borrowed(pre: str) -> dict[str, Any]:
    """Qwen2's vocabulary without user-defined tokens, and with another pre-tokenizer."""
    found = metadata("qwen2")
    kinds = np.array(found["tokenizer.ggml.token_type"])
    kinds[kinds == TokenType.USER_DEFINED] = TokenType.UNUSED
    return {**found, "tokenizer.ggml.pre": pre, "tokenizer.ggml.token_type": kinds}


def stored_checksums(name: str) -> np.ndarray[Any, Any]:
    """The checksums of the ids that the reference gives the mixed strings."""
    found: np.ndarray[Any, Any] = np.load(DATA / "tokens" / f"{name}.npz")["checksums"]
    return found


def llama_cpp_ids(name: str) -> list[list[int]]:
    """What llama.cpp makes of the mixed strings, one list for each."""
    stored = np.load(DATA / "tokens" / f"{name}.npz")
    rows = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
    return [row.tolist() for row in rows]


def checksums(rows: Iterable[list[int]]) -> np.ndarray[Any, Any]:
    """A CRC-32 of each list of ids."""
    packed = (np.array(ids, dtype="<i4").tobytes() for ids in rows)
    return np.array([zlib.crc32(row) for row in packed], dtype=np.uint32)


def template_source(name: str) -> str:
    """A stored chat template."""
    return (DATA / "templates" / name).read_text(encoding="utf-8")


def renderings() -> dict[str, dict[str, str | None]]:
    """What transformers makes of every stored template, by name and conversation."""
    stored: dict[str, dict[str, str | None]] = json.loads(
        (DATA / "rendered.json").read_text(encoding="utf-8")
    )
    return stored


def byte_vocabulary(
    control: Iterable[str] = (), user_defined: Iterable[str] = (), **keys: Any
) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary: 256 bytes, `t` + `h` = `th`, then the special tokens.

    keys: further `tokenizer.ggml` keys, or others in place of those made here.
    """
    special = [*((text, 3) for text in control), *((text, 4) for text in user_defined)]
    made = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*BYTE_OF, "th", *(text for text, _ in special)],
        "token_type": np.array([1] * 257 + [kind for _, kind in special], dtype=np.int32),
        "merges": ["t h"],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**made, **keys}.items()}


def scored_vocabulary(ranked: dict[str, float], **keys: Any) -> dict[str, Any]:
    """Metadata of a scored vocabulary: `<unk>`, `<s>`, `</s>`, 256 bytes, then the given tokens."""
    made = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ranked],
        "token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(ranked), dtype=np.int32),
        "scores": np.array([0.0] * 259 + list(ranked.values()), dtype=np.float32),
    }
    return {f"tokenizer.ggml.{key}": value for key, value in {**made, **keys}.items()}
