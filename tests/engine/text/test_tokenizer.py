"""Text to ids and back: stored cases, what is never markup, vocabularies that make no sense."""

from __future__ import annotations

import operator
import time
from typing import Any

import numpy as np
import pytest

from engine.errors import GGUFError, UnsupportedError
from engine.text.pretokenizers import PRE_TOKENIZERS
from engine.text.tokenizer import Tokenizer, from_metadata
from engine.text.vocabulary import read_vocabulary
from support.vocab import (
    DATA,
    REAL,
    byte_vocabulary,
    metadata,
    scored_vocabulary,
    tokenizer,
)

WITH_CASES = tuple(name for name in REAL if name != "smollm")


def stored_cases(name: str) -> list[tuple[str, list[int]]]:
    texts = (DATA / "vocab" / f"{name}.inp").read_bytes().decode()
    ids = (DATA / "vocab" / f"{name}.out").read_text().split("\n")
    return [
        (text, [int(id) for id in line.split()])
        for text, line in zip(texts.split("\n__ggml_vocab_test__\n"), ids, strict=True)
    ]


@pytest.mark.parametrize("name", WITH_CASES)
def test_stored_cases_give_the_expected_ids_and_come_back(name: str) -> None:
    cases = stored_cases(name)
    assert len(cases) >= 47
    for text, expected in cases:
        assert tokenizer(name).encode(text) == expected, text
        assert tokenizer(name).decode(expected) == text


# Fill, bos, eos, end-of-generation ids: from the files' keys, or by the text of a token.
@pytest.mark.parametrize(
    ("name", "add_bos", "bos", "eos", "ends"),
    [
        ("deepseek-llm", True, 100000, 100001, {100001}),
        ("gpt-2", False, 50256, 50256, {50256}),
        ("llama-bpe", True, 128000, 128001, {128001, 128009}),
        ("llama-spm", True, 1, 2, {2}),
        ("qwen2", False, 151643, 151643, {151643, 151645}),
        ("smollm", False, 1, 2, {0, 2, 4}),
    ],
)
def test_special_ids_are_read_from_the_file(
    name: str, add_bos: bool, bos: int, eos: int, ends: set[int]
) -> None:
    found = tokenizer(name)
    assert (found.add_bos, found.bos_id, found.eos_id) == (add_bos, bos, eos)
    assert found.eog_ids == ends


@pytest.mark.parametrize("name", REAL)
def test_control_tokens_come_from_markup_only(name: str) -> None:
    found = tokenizer(name)
    untypeable = {*found.control.values(), *found.unknown.values()}
    for text, id in list(found.control.items())[:40]:
        typed = f"a{text} b {text}"
        assert found.encode(typed, markup=True).count(id) == 2
        ids = found.encode(typed)
        assert untypeable.isdisjoint(ids)
        assert found.decode(ids) == typed.replace("▁", " " if name == "llama-spm" else "▁")
        assert found.decode([id]) == ""
        assert found.decode([id], markup=True) == text


def test_html_that_merges_build_is_text() -> None:
    # 128247 is "</s>" in Qwen's vocabulary: strike-through, not an end.
    assert tokenizer("qwen2").decode([128247]) == "</s>"
    assert 128247 not in tokenizer("qwen2").eog_ids


def test_user_defined_tokens_are_matched_in_any_text() -> None:
    found = from_metadata(byte_vocabulary(control=["<|end|>"], user_defined=["<think>"]))
    end, think = 257, 258
    letter = found.encode("x")
    assert found.encode("x<think>x") == [*letter, think, *letter]
    assert end not in found.encode("<|end|>")
    assert found.encode("x<|end|><think>", markup=True) == [*letter, end, think]
    assert found.decode([think, end]) == "<think>"


def test_quoted_words_are_no_tokens() -> None:
    found = from_metadata(byte_vocabulary(control=["<|end|>"], user_defined=["<think>"]))
    ids = found.encode_quoted("1<|end|>t2", {"1": "<|end|>", "2": "h<think>"})
    assert ids.count(257) == 1
    assert 258 not in ids
    assert 256 in ids  # the t before the stand-in and the h in it are one word, and merge
    assert found.decode(ids, markup=True) == "<|end|><|end|>th<think>"


def test_a_longer_mark_goes_first_wherever_it_is() -> None:
    found = from_metadata(byte_vocabulary(control=["ab", "bcd"]))
    assert found.encode("abcd", markup=True) == [*found.encode("a"), 258]


def test_phi_markers_swallow_the_space_after_them() -> None:
    vocabulary = byte_vocabulary(control=["<|user|>", "<|endoftext|>"])
    phi = from_metadata({**vocabulary, "general.name": "Phi-3 mini"})
    letter = phi.encode("x")
    assert phi.encode("<|user|>\n x", markup=True) == [257, *letter]
    assert phi.encode("<|endoftext|>\nx", markup=True) == [258, *phi.encode("\nx")]


def test_whole_words_skip_merging_where_the_pre_tokenizer_says_so() -> None:
    # "ab" is a token that no merge makes.
    vocabulary = byte_vocabulary(user_defined=[])
    vocabulary["tokenizer.ggml.tokens"] = [*vocabulary["tokenizer.ggml.tokens"], "ab"]
    vocabulary["tokenizer.ggml.token_type"] = np.ones(258, dtype=np.int32)
    for pre, count in (("llama-bpe", 1), ("gpt-2", 2)):
        assert len(from_metadata({**vocabulary, "tokenizer.ggml.pre": pre}).encode("ab")) == count


def test_scores_rank_merges_and_the_leftmost_of_equals_wins() -> None:
    found = from_metadata(
        scored_vocabulary({"▁": -9, "a": -9, "b": -9, "aa": -1, "ab": -1, "aab": -5})
    )
    # a a a b: "aa" and "ab" score the same; the first "aa" is leftmost, then "ab" is left.
    assert found.encode("aaab") == [259, 262, 263]
    # "aab" is made of "aa" and "b" once nothing better merges.
    assert found.encode("aab") == [259, 264]


def test_scored_text_falls_back_to_bytes_and_takes_a_space_after_markup() -> None:
    found = from_metadata(scored_vocabulary({"▁": -9, "a": -9}))
    space, a = 259, 260
    assert found.encode("é") == [space, 3 + 0xC3, 3 + 0xA9]
    assert found.encode("a</s>a", markup=True) == [space, a, 2, space, a]
    assert found.decode([1, space, a, space, a]) == "a a"
    plain = from_metadata(scored_vocabulary({"▁": -9, "a": -9}, add_space_prefix=False))
    assert plain.encode("a") == [a]
    assert plain.decode([space, a]) == " a"


def test_scored_words_may_merge_over_spaces_if_a_token_does() -> None:
    found = from_metadata(scored_vocabulary({"▁": -9, "a": -9, "a▁": -1, "a▁a": -1}))
    assert found.encode("a a") == [259, 262]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_every_byte(pre: str) -> None:
    found = from_metadata(byte_vocabulary(pre=pre, bos_token_id=0))
    text = "The  HTTPServer's\r\n\n path/to 12345 汉字ひらがな ÉTÉ \u0301 x\u2003\t😀!? "
    assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("model", "t5", "t5"), ("model", "rwkv", "rwkv"), ("pre", "poro-chat", "poro-chat")],
)
def test_unknown_kinds_are_named(key: str, value: str, named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        from_metadata(byte_vocabulary(**{key: value}))


def with_token(text: str, kind: int = 1) -> dict[str, Any]:
    vocabulary = byte_vocabulary(control=[text])
    vocabulary["tokenizer.ggml.token_type"][-1] = kind
    return vocabulary


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    ("tokens", with_token("<0x-1>", kind=6)),
    ("tokens", with_token("<0xZZ>", kind=6)),
    ("tokens", with_token("<0x100>", kind=6)),
    ("tokens", with_token("", kind=6)),
    ("tokens", with_token("th")),
    ("tokens", with_token("\ud800")),
    ("tokens", byte_vocabulary(tokens=[])),
    ("tokens", byte_vocabulary(tokens=np.arange(3))),
    ("tokens", byte_vocabulary(tokens=None)),
    ("token_type", byte_vocabulary(token_type=np.ones(3, dtype=np.int32))),
    ("token_type", byte_vocabulary(token_type=["1"] * 257)),
    ("merges", byte_vocabulary(merges=["t h", "t q"])),
    ("merges", byte_vocabulary(merges=["th"])),
    ("merges", byte_vocabulary(merges=[""])),
    ("merges", byte_vocabulary(merges=7)),
    ("bos_token_id", byte_vocabulary(bos_token_id=257)),
    ("eos_token_id", byte_vocabulary(eos_token_id=-1)),
    ("eot_token_id", byte_vocabulary(eot_token_id="0")),
    ("eos_token_id", byte_vocabulary(eos_token_id=True)),
    ("add_bos_token", byte_vocabulary(add_bos_token=1)),
    ("add_bos_token", byte_vocabulary(add_bos_token=True)),
    ("scores", scored_vocabulary({"a": float("nan")})),
    ("scores", scored_vocabulary({"a": 0}, scores=np.zeros(2, dtype=np.float32))),
    ("model", byte_vocabulary(model=3)),
    ("model", {}),
]


@pytest.mark.parametrize(("key", "vocabulary"), HOSTILE)
def test_a_vocabulary_that_makes_no_sense_is_refused(key: str, vocabulary: dict[str, Any]) -> None:
    with pytest.raises(GGUFError, match=rf"tokenizer\.ggml\.{key}"):
        from_metadata(vocabulary).prepare()


@pytest.mark.parametrize("text", ["<0x-1>", "<0xZZ>", "", "x" * (1 << 20), "\x00", "Ġ\ufeff語"])
def test_an_odd_token_is_only_text(text: str) -> None:
    found = from_metadata(with_token(text))
    for sample in (text, "a" + text + " b"):
        assert found.decode(found.encode(sample)) == sample
    assert isinstance(found.decode([257]), str)


def test_merges_into_a_control_token_are_dropped() -> None:
    found = from_metadata(byte_vocabulary(control=["tt"], merges=["t t", "t h"]))
    assert 257 not in found.encode("tttt")
    assert found.encode("th") == [256]


def test_merges_are_kept_once() -> None:
    # Pairs of a vocabulary of 262,144 words took 45 MB.
    given = metadata("qwen2")
    vocabulary = read_vocabulary(given)
    lines = given["tokenizer.ggml.merges"]
    assert all(map(operator.is_, vocabulary.merges, lines))
    assert [" ".join(pair) for pair in vocabulary.pairs()] == lines
    tokenizer = Tokenizer(vocabulary)
    first = tokenizer.encode("an analysis of merges")
    assert not vocabulary.merges  # the encoder has them
    assert tokenizer.encode("an analysis of merges") == first
    assert len(lines) > 150_000


def test_merges_with_other_spaces() -> None:
    found = from_metadata(byte_vocabulary(merges=["t h", "t  t"]))
    with pytest.raises(GGUFError, match="merges joins 't' and ' t'"):
        found.encode("tt")


def test_a_large_vocabulary_loads_in_time() -> None:
    large = metadata("qwen2")
    assert len(large["tokenizer.ggml.tokens"]) > 150_000
    times = []
    for _ in range(3):
        start = time.perf_counter()
        from_metadata(large)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5
