"""What a conversation says is in the prompt, in a form that the template takes."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import MessageLeftOut, TemplateRefusal
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import from_metadata
from support.vocab import byte_vocabulary

pytestmark = pytest.mark.process

TOKENIZER = from_metadata(byte_vocabulary(control=["<|end|>"]))
LOOP = "{% for m in messages %}"
TEXTS = LOOP + "[{{ m.role }}]{{ m.content }}{% endfor %}"
PARTS = LOOP + "[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
MIXED = (
    LOOP + "{% if m.role == 'user' %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %};{% endfor %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hi", "reasoning_content": "A greeting."},
    {"role": "user", "content": " hi\n"},
]


def said(source: str, messages: list[dict[str, Any]]) -> tuple[str, bool]:
    chat = ChatTemplate(source, TOKENIZER)
    text = TOKENIZER.decode(chat.encode(messages), markup=True)
    return text, chat.folded


@pytest.mark.parametrize(
    ("source", "expected", "folded"),
    [
        (TEXTS, "[system]Be brief.[user]hi[assistant]hi[user] hi\n", False),
        (PARTS, "[system]Be brief.[user]hi[assistant]hi[user] hi\n", False),
        (MIXED, "Be brief.;hi;hi; hi\n;", False),
        (NO_SYSTEM + TEXTS, "[user]Be brief.\n\nhi[assistant]hi[user] hi\n", True),
        (NO_SYSTEM + PARTS, "[user]Be brief.\n\nhi[assistant]hi[user] hi\n", True),
        (LOOP + "{% if m.role != 'system' %}{{ m.content | trim }};{% endif %}{% endfor %}",
         "Be brief.\n\nhi;hi;hi;", True),
        (LOOP + "{{ m.content[0].text + ';' }}{% endfor %}", "Be brief.;hi;hi; hi\n;", False),
    ],
)  # fmt: skip
def test_the_template_gets_the_form_that_it_takes(source: str, expected: str, folded: bool) -> None:
    assert said(source, TURNS) == (expected, folded)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if false %}x{% endif %}", "system message: it does not read the messages"),
        (LOOP + "{{ m['from'] }}: {{ m['value'] }}{% endfor %}", "it reads from, value, not conte"),
        ("hi hi {{ messages[-1].content }}", "the system message"),
        ("Be brief. hi {{ messages[1].content }}{{ messages[2].content }}", "the system message"),
        (
            LOOP + "{% if m.role == 'human' %}{{ m.content }}{% endif %}{% endfor %}",
            "the only roles it knows are human",
        ),
        (LOOP + "{{ m.content[:1] }}{% endfor %}", "the chat template leaves out"),
    ],
)
def test_what_would_be_lost_is_an_error_with_what_the_template_wants(
    source: str, expected: str
) -> None:
    with pytest.raises(MessageLeftOut, match=expected):
        said(source, TURNS)


def test_a_text_that_is_cut_is_an_error() -> None:
    with pytest.raises(MessageLeftOut, match="changes or cuts the user message"):
        said("{{ messages[0].content[:60] }}", [{"role": "user", "content": "word " * 40}])


@pytest.mark.parametrize(
    ("source", "role", "text"),
    [
        ("{{ messages[0].content | tojson }}", "tool", 'a "quoted"\nline é'),
        ("{{ messages[0].content.replace('/no_think', '') }}", "system", "Be brief. /no_think"),
        ("{{ messages[0].content.split('</think>')[-1] }}", "assistant", "a</think>b"),
        ("{{ messages[0].content | replace('\\n', ' ') }}", "user", "a\nb"),
        ("{{ messages[0].content | upper }}", "user", "shout"),
        (TEXTS, "user", "a <|end|> b"),
        (TEXTS, "user", " \n"),
    ],
)
def test_other_spellings_of_a_text_are_no_loss(source: str, role: str, text: str) -> None:
    said(source, [{"role": role, "content": text}])


def test_a_refusal_keeps_the_templates_words() -> None:
    source = "{{ raise_exception('not ' + messages[-1].content) }}"
    with pytest.raises(TemplateRefusal, match="not  hi"):
        said(source, TURNS)


@pytest.mark.parametrize(
    "name", ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "date_string", "x.y"]
)
def test_what_nobody_sets_is_empty(name: str) -> None:
    tokenizer = from_metadata(byte_vocabulary())
    for source in (f"{{{{ {name} + 'a' }}}}", f"{{{{ 'a' + {name} }}}}", f"a{{{{ {name} }}}}"):
        assert ChatTemplate(source, tokenizer).render(TURNS) == "a"
    defined = ChatTemplate("{{ cls_token is defined }} {{ tools }}", tokenizer)
    assert defined.render(TURNS) == "False None"


def test_long_text_of_wide_letters_and_many_messages_render() -> None:
    text = "word " * 900_000 + "😀"
    chat = ChatTemplate(TEXTS, TOKENIZER)
    assert chat.render([{"role": "user", "content": text}]).endswith("😀")
    many = [{"role": "user", "content": "hi"}] * 30_000
    assert chat.render(many) == "[user]hi" * 30_000
