"""Vocabularies to test with: real ones, stored compressed, and small made-up ones."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from engine import gguf
from engine.tokenizer import BYTE_OF, Tokenizer, from_metadata

DATA = Path(__file__).parents[1] / "data"
REAL = ("deepseek-llm", "gpt-2", "llama-bpe", "llama-spm", "qwen2", "qwen35", "smollm")
# The vocabulary of gpt-2, cut as files are that name no pre-tokenizer.
ALL = (*REAL, "default")


@lru_cache(maxsize=2)
def metadata(name: str) -> dict[str, Any]:
    """The metadata of a stored vocabulary."""
    data = lzma.decompress((DATA / "vocab" / f"{name}.gguf.xz").read_bytes())
    return dict(gguf.read_header(data).metadata)


@cache
def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a stored vocabulary."""
    if name == "default":
        return from_metadata({**metadata("gpt-2"), "tokenizer.ggml.pre": "default"})
    return from_metadata(metadata(name))


def llama_cpp_ids(name: str) -> list[list[int]]:
    """What llama.cpp makes of the mixed strings, one list for each."""
    stored = np.load(DATA / "tokens" / f"{name}.npz")
    rows = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
    return [row.tolist() for row in rows]


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
