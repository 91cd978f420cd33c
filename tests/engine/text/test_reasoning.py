"""Thinking and answer, told apart wherever the text was cut."""

from __future__ import annotations

import pytest

from engine.text.chat_template import ChatTemplate
from engine.text.reasoning import (
    DIALECTS,
    HARMONY,
    Dialect,
    HarmonyReader,
    Kind,
    Part,
    Reader,
    TagReader,
    control_markers,
    find_dialect,
    new_reader,
    switches,
)
from engine.text.tokenizer import from_metadata
from support.vocab import DATA, byte_vocabulary, template_source, tokenizer

THINK, TALK, ANSWER = Kind.THINKING, Kind.COMMENTARY, Kind.ANSWER
TAGS = {row.opens + row.answer_opens: row for row in DIALECTS if row is not HARMONY}
PLAIN, GRANITE = TAGS["<think>"], TAGS["<think><response>"]
STARTED = "<|channel|>analysis<|message|>"
NEXT = "<|end|><|start|>assistant<|channel|>"


def fresh(dialect: Dialect | None, begun: Kind | None = None) -> Reader:
    if dialect is None:
        return Reader()
    return HarmonyReader() if dialect is HARMONY else TagReader(dialect, begun)


def joined(parts: list[Part]) -> list[Part]:
    """Put neighbours of one kind together."""
    found: list[Part] = []
    for kind, text in parts:
        assert text
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


def read(reader: Reader, pieces: list[str]) -> list[Part]:
    parts = [part for piece in pieces for part in reader.push(piece)]
    return joined([*parts, *reader.finish()])


# (dialect, what the prompt has begun, output, expected)
Case = tuple[Dialect | None, Kind | None, str, list[Part]]
CASES: list[Case] = []
for row in TAGS.values():
    o, c, z = row.opens, row.closes, row.answer_closes
    a = row.answer_header + row.answer_opens
    both = [(THINK, "Let me see.\n\n 2 + 2?"), (ANSWER, "Four: <b>4</b>.\n")]
    words = "Let me see.\n\n 2 + 2?"
    CASES += [
        (row, None, f"{o}{words}{c}{a}Four: <b>4</b>.\n", both),
        (row, None, f"\n {o}\n{words}\n\n{c}\n\n{a}\nFour: <b>4</b>.\n", both),
        (row, THINK, f"{words}{c}Four: <b>4</b>.\n", both),
        (row, THINK, f"\n{words}\n{c}\n\nFour: <b>4</b>.\n", both),
        (row, THINK, f"{c}\n\n    indented", [(ANSWER, "    indented")]),
        (row, ANSWER, "\n\nFour.", [(ANSWER, "Four.")]),
        (row, ANSWER, f"a {o} b {c} c", [(ANSWER, f"a {o} b {c} c")]),
        (row, None, f"Four {o} b {c} c", [(ANSWER, f"Four {o} b {c} c")]),
        (row, None, f" \n Four {c}", [(ANSWER, f" \n Four {c}")]),
        (row, None, f"{o}x{c}y {o} z {c}", [(THINK, "x"), (ANSWER, f"y {o} z {c}")]),
        (row, None, f"{o}x{c}y{o[:-1]}", [(THINK, "x"), (ANSWER, f"y{o[:-1]}")]),
        (row, None, f"{o}never closed \n", [(THINK, "never closed \n")]),
        (row, None, f"{o}never {c[:-1]}", [(THINK, f"never {c[:-1]}")]),
        (row, None, o[:-1], [(ANSWER, o[:-1])]),
        (row, None, o, []),
        (row, None, f"{o}{c}", []),
        (row, None, "", []),
        (row, None, " \n", [(ANSWER, " \n")]),
        (row, THINK, f"größer 你好 😀👨‍👩‍👧{c}é", [(THINK, "größer 你好 😀👨‍👩‍👧"), (ANSWER, "é")]),
    ]
    if a:
        CASES += [
            (row, None, f"{o}x{c}{a}y{z}", [(THINK, "x"), (ANSWER, "y")]),
            (row, None, f"{o}x{c} {a}\ny\n{z}\n", [(THINK, "x"), (ANSWER, "y")]),
            (row, None, f"{o}x{c}{a}y {z} q{z}.", [(THINK, "x"), (ANSWER, f"y {z} q{z}.")]),
            (row, None, f"{o}x{c}{a}y {z[:-1]}", [(THINK, "x"), (ANSWER, f"y {z[:-1]}")]),
            (row, None, f"{o}x{c}{a[:-1]}", [(THINK, "x"), (ANSWER, a[:-1])]),
            (row, None, f"{row.answer_opens}y{z}", [(ANSWER, "y")]),
            (row, None, f"\n{row.answer_opens}\ny {o} z {c}q", [(ANSWER, f"y {o} z {c}q")]),
            (row, None, row.answer_opens[:-1], [(ANSWER, row.answer_opens[:-1])]),
        ]
HARMONIES: list[tuple[str, list[Part]]] = [
    (f"{STARTED}Sum.{NEXT}final<|message|>Four.\n", [(THINK, "Sum."), (ANSWER, "Four.\n")]),
    (f"{STARTED}Sum.{NEXT}final<|message|>Four.<|end|>", [(THINK, "Sum."), (ANSWER, "Four.")]),
    ("<|channel|>final<|message|>Four.", [(ANSWER, "Four.")]),
    (f"{STARTED}unclosed <|en", [(THINK, "unclosed <|en")]),
    (f"{STARTED}unclosed<|end|>", [(THINK, "unclosed")]),
    (f"{STARTED}cut{NEXT}fin", [(THINK, "cut")]),
    (f"{STARTED}a <|end|> b{NEXT}final<|message|>c", [(THINK, "a <|end|> b"), (ANSWER, "c")]),
    (
        f"{STARTED}q{NEXT}final<|message|>Write {STARTED}x{NEXT}final<|message|>y",
        [(THINK, "q"), (ANSWER, f"Write {STARTED}x{NEXT}final<|message|>y")],
    ),
    (
        f"{STARTED}Ask.{NEXT}commentary to=functions.weather <|constrain|>json<|message|>"
        '{"city": "Łódź"}',
        [(THINK, "Ask."), (TALK, '{"city": "Łódź"}')],
    ),
    (" to=functions.f<|channel|>commentary<|message|>{}", [(TALK, "{}")]),
    (
        f"<|channel|>commentary<|message|>I'll look.{NEXT}analysis<|message|>So.{NEXT}final"
        "<|message|>Grey 🌧.",
        [(TALK, "I'll look."), (THINK, "So."), (ANSWER, "Grey 🌧.")],
    ),
    ("No markup at all.", [(ANSWER, "No markup at all.")]),
    ("to be or <|message|> not", [(ANSWER, "to be or <|message|> not")]),
    ("<|channel|>" + "x" * 600, [(ANSWER, "<|channel|>" + "x" * 600)]),
    ("<|chan", []),
    ("", []),
]
CASES += [(HARMONY, None, text, parts) for text, parts in HARMONIES]
CASES += [(None, None, "<think>x</think>y", [(ANSWER, "<think>x</think>y")])]


@pytest.mark.parametrize(("dialect", "begun", "text", "expected"), CASES)
def test_every_cut_in_two_gives_the_same_parts(
    dialect: Dialect | None, begun: Kind | None, text: str, expected: list[Part]
) -> None:
    for at in range(len(text) + 1):
        assert read(fresh(dialect, begun), [text[:at], text[at:]]) == expected, at


@pytest.mark.parametrize(("dialect", "begun", "text", "expected"), CASES)
def test_every_size_of_pieces_gives_the_same_parts(
    dialect: Dialect | None, begun: Kind | None, text: str, expected: list[Part]
) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read(fresh(dialect, begun), pieces) == expected, size


@pytest.mark.parametrize(("dialect", "begun", "text", "expected"), CASES)
def test_every_cut_in_three_gives_the_same_parts(
    dialect: Dialect | None, begun: Kind | None, text: str, expected: list[Part]
) -> None:
    for first in range(min(len(text), 120) + 1):
        for second in range(first, min(len(text), 120) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert read(fresh(dialect, begun), pieces) == expected


@pytest.mark.parametrize(("dialect", "begun", "text", "expected"), CASES)
def test_bytes_one_by_one_give_the_same_parts(
    dialect: Dialect | None, begun: Kind | None, text: str, expected: list[Part]
) -> None:
    found = from_metadata(byte_vocabulary(merges=[]))
    decoder, parting = found.stream(), fresh(dialect, begun)
    pieces = [decoder.push(id) for id in found.encode(text)]
    assert read(parting, [*pieces, decoder.finish()]) == expected


@pytest.mark.parametrize(("dialect", "begun", "text", "expected"), CASES)
def test_nothing_but_markers_and_white_space_is_lost(
    dialect: Dialect | None, begun: Kind | None, text: str, expected: list[Part]
) -> None:
    rest = "".join(text for _, text in expected)
    left = iter(text)
    assert all(character in left for character in rest)  # in order
    if dialect in TAGS.values():
        markers = sum(map(len, (*dialect.markers, dialect.answer_header)))
        assert len("".join(text.split())) - len("".join(rest.split())) <= markers


def test_an_answer_is_passed_on_at_once_and_thinking_without_delay() -> None:
    parting = TagReader(PLAIN)
    assert list(parting.push("<think>")) == []
    assert list(parting.push("one")) == [(THINK, "one")]
    assert list(parting.push(" two")) == [(THINK, " two")]
    assert list(parting.push("</think>\n\nyes")) == [(ANSWER, "yes")]
    assert list(parting.push(" <")) == [(ANSWER, " <")]
    assert list(TagReader(PLAIN).push("Hi")) == [(ANSWER, "Hi")]


def template_of(source: str, **specials: list[str]) -> ChatTemplate:
    return ChatTemplate(source, from_metadata(byte_vocabulary(**specials)))


STORED = {
    "Cohere2MoE.jinja": TAGS["<|START_THINKING|><|START_TEXT|>"],
    "GLM-4.6.jinja": PLAIN,
    "GLM-4.7-Flash.jinja": PLAIN,
    "Kimi-K2-Thinking.jinja": PLAIN,
    "LFM2-8B-A1B.jinja": None,
    "LFM2.5-8B-A1B.jinja": PLAIN,
    "MiniMax-M2.jinja": PLAIN,
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja": PLAIN,
    "Qwen-Qwen2.5-7B-Instruct.jinja": None,
    "Qwen-Qwen3-0.6B.jinja": PLAIN,
    "Qwen3-Coder.jinja": None,
    "Qwen3.5-4B.jinja": PLAIN,
    "StepFun3.5-Flash.jinja": PLAIN,
    "baidu-ERNIE-4.5.jinja": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja": PLAIN,
    "deepseek-ai-DeepSeek-V3.1.jinja": PLAIN,
    "deepseek-ai-DeepSeek-V3.2.jinja": PLAIN,
    "deepseek-ai-DeepSeek-V4.jinja": PLAIN,
    "deepseek-ai-DeepSeek-V4-Flash-0731.jinja": PLAIN,
    "google-gemma-2-2b-it.jinja": None,
    "google-gemma-4-31B-it.jinja": TAGS["<|channel>thought"],
    "ibm-granite-granite-3.3-2B-Instruct.jinja": GRANITE,
    "ibm-granite-granite-4.0.jinja": None,
    "inclusionai-ling-3.0-flash.jinja": PLAIN,
    "meta-llama-Llama-3.3-70B-Instruct.jinja": None,
    "meta-llama-Llama-4-Scout-17B-16E-Instruct.jinja": None,
    "microsoft-Phi-3.5-mini-instruct.jinja": None,
    "mistralai-Ministral-3-14B-Reasoning-2512.jinja": TAGS["[THINK]"],
    "mistralai-Mistral-Nemo-Instruct-2407.jinja": None,
    "mistralai-Mixtral-8x7B-Instruct-v0.1.jinja": None,
    "moonshotai-Kimi-K2.jinja": None,
    "openai-gpt-oss-120b.jinja": HARMONY,
    "poolside-Laguna-S-2.1.jinja": PLAIN,
    "poolside-Laguna-XS-2.1.jinja": PLAIN,
    "poolside-Laguna-XS.2.jinja": PLAIN,
    "tencent-Hy3.jinja": None,  # its tokens are in the vocabulary
    "upstage-Solar-Open-100B.jinja": TAGS["<|think|><|content|>"],
}


@pytest.mark.parametrize("name", sorted(path.name for path in (DATA / "templates").iterdir()))
def test_the_dialect_is_found_in_the_template(name: str) -> None:
    found = from_metadata(byte_vocabulary())
    assert find_dialect(found, ChatTemplate(template_source(name), found)) == STORED[name]


def test_the_dialect_is_found_in_the_vocabulary() -> None:
    found = from_metadata(byte_vocabulary(control=["[THINK]", "[/THINK]"]))
    assert find_dialect(found, ChatTemplate("x", found)) == TAGS["[THINK]"]
    assert find_dialect(found, None) is None
    assert find_dialect(tokenizer("gpt-oss"), ChatTemplate("x", tokenizer("gpt-oss"))) == HARMONY
    assert find_dialect(tokenizer("gpt-2"), ChatTemplate("x", tokenizer("gpt-2"))) is None


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "variables", "begun"),
    [
        ("Qwen-Qwen3-0.6B.jinja", {}, "no"),
        ("Qwen-Qwen3-0.6B.jinja", switches(False), "closed"),
        ("Qwen3.5-4B.jinja", switches(True), "open"),
        ("Qwen3.5-4B.jinja", switches(False), "closed"),
        ("GLM-4.6.jinja", switches(True), "no"),
        ("GLM-4.6.jinja", switches(False), "closed"),
        ("GLM-4.7-Flash.jinja", switches(True), "open"),
        ("GLM-4.7-Flash.jinja", switches(False), "closed"),
        ("deepseek-ai-DeepSeek-V3.1.jinja", switches(True), "open"),
        ("deepseek-ai-DeepSeek-V3.1.jinja", switches(False), "closed"),
        ("deepseek-ai-DeepSeek-V3.2.jinja", switches(True), "open"),
        ("Kimi-K2-Thinking.jinja", {}, "no"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", switches(True), "open"),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja", switches(False), "closed"),
        ("StepFun3.5-Flash.jinja", {}, "open"),
        ("deepseek-ai-DeepSeek-V4.jinja", switches(True), "open"),
        ("deepseek-ai-DeepSeek-V4.jinja", switches(False), "closed"),
        ("poolside-Laguna-S-2.1.jinja", switches(True), "open"),
        ("poolside-Laguna-XS-2.1.jinja", switches(False), "closed"),
    ],
)
@pytest.mark.parametrize("token", [True, False])
def test_the_prompt_says_what_has_begun(
    name: str, variables: dict[str, bool | str], begun: str, token: bool
) -> None:
    marks = ["<think>", "</think>"] if token else []
    found = from_metadata(byte_vocabulary(user_defined=marks))
    chat = ChatTemplate(template_source(name), found)
    for question in ("Hello", "Say <think>", "</think>"):
        prompt = chat.encode([{"role": "user", "content": question}], **variables)
        parting = new_reader(find_dialect(found, chat), found, prompt)
        expected: list[Part] = {
            "no": [(ANSWER, "a</think>b")],
            "open": [(THINK, "a"), (ANSWER, "b")],
            "closed": [(ANSWER, "a</think>b")],
        }[begun]
        assert read(parting, ["a</think>", "b"]) == expected
        again = read(new_reader(find_dialect(found, chat), found, prompt), ["<think>a</think>b"])
        thought = {"no": [(THINK, "a"), (ANSWER, "b")], "closed": [(ANSWER, "<think>a</think>b")]}
        assert again == thought.get(begun, [(THINK, "<think>a"), (ANSWER, "b")])


@pytest.mark.process
def test_what_a_person_types_last_opens_nothing() -> None:
    found = from_metadata(byte_vocabulary(user_defined=["<think>", "</think>"]))
    chat = ChatTemplate("{{ messages[0].content }}", found)
    prompt = chat.encode([{"role": "user", "content": "<think>"}])
    assert read(new_reader(PLAIN, found, prompt), ["Hi"]) == [(ANSWER, "Hi")]


def test_control_tokens_are_shown_where_they_are_markers() -> None:
    found = tokenizer("gpt-oss")
    text = f"{STARTED}Sum.{NEXT}final<|message|>Four."
    ids = found.encode(text, markup=True)
    decoder = found.stream(control_markers(HARMONY, found))
    pieces = [*(decoder.push(id) for id in ids), decoder.finish()]
    assert "".join(pieces) == text
    assert read(HarmonyReader(), pieces) == [(THINK, "Sum."), (ANSWER, "Four.")]
    assert found.decode(ids) == "analysisSum.assistantfinalFour."
    assert control_markers(None, found) == frozenset()


HY3, HY3_OPENS = "tencent-Hy3.jinja", "<think:opensource>"
COHERE, GEMMA = "Cohere2MoE.jinja", "google-gemma-4-31B-it.jinja"
SOLAR = "upstage-Solar-Open-100B.jinja"


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "opens", "think", "output", "expected"),
    [
        (HY3, HY3_OPENS, None, "b", [(ANSWER, "b")]),
        (HY3, HY3_OPENS, True, "a</think:opensource>b", [(THINK, "a"), (ANSWER, "b")]),
        (HY3, HY3_OPENS, False, "b", [(ANSWER, "b")]),
        (
            *(COHERE, "<|START_THINKING|>", True),
            "a<|END_THINKING|><|START_TEXT|>b<|END_TEXT|>",
            [(THINK, "a"), (ANSWER, "b")],
        ),
        (
            *(COHERE, "<|START_THINKING|>", False),
            "<|START_TEXT|>b<|END_TEXT|>",
            [(ANSWER, "b")],
        ),
        (
            *(GEMMA, "<|channel>thought", True),
            "<|channel>thought\na<channel|>b",
            [(THINK, "a"), (ANSWER, "b")],
        ),
        (GEMMA, "<|channel>thought", False, "b", [(ANSWER, "b")]),
        (
            *(SOLAR, "<|think|>", True),
            "<|think|>a<|end|><|begin|>assistant<|content|>b<|end|>",
            [(THINK, "a"), (ANSWER, "b")],
        ),
        (SOLAR, "<|think|>", False, "<|content|>b<|flush|>", [(ANSWER, "b")]),
    ],
)
def test_models_with_markers_of_their_own_are_read(
    name: str, opens: str, think: bool | None, output: str, expected: list[Part]
) -> None:
    dialect = next(row for row in DIALECTS if row.opens == opens)
    control = dict.fromkeys([*dialect.markers, "<|begin|>", "<|flush|>"])
    found = from_metadata(byte_vocabulary(control=control))
    chat = ChatTemplate(template_source(name), found)
    assert find_dialect(found, chat) == dialect
    prompt = chat.encode([{"role": "user", "content": "Hi"}], **switches(think, source=chat.source))
    decoder = found.stream(control_markers(dialect, found))
    pieces = [decoder.push(id) for id in found.encode(output, markup=True)]
    assert read(new_reader(dialect, found, prompt), pieces) == expected


def test_wishes_go_by_all_their_names() -> None:
    assert switches(True) == {"enable_thinking": True, "thinking": True}
    assert switches(False)["reasoning_effort"] == "low"
    source = template_source("tencent-Hy3.jinja")
    assert switches(False, source=source)["reasoning_effort"] == "no_think"
    assert switches(True, source=source)["reasoning_effort"] == "high"
    assert switches(True, "low", source)["reasoning_effort"] == "low"
    source = template_source("Cohere2MoE.jinja")
    assert switches(False, "high", source)["reasoning_effort"] == "none"
