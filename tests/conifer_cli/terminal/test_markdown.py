"""Markdown on a terminal: the final screen does not depend on how the text was split."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conifer_cli.terminal.highlight import lexer_for
from conifer_cli.terminal.inline import inline
from conifer_cli.terminal.markdown import LONG_LINE, MarkdownRenderer
from support.screen import Screen

PAGE = """# A heading with `code`

A paragraph with **bold words**, *italic* ones, `code`, ~~struck~~ text, 5 * 3 * 2,
snake_case_names and a [link](https://example.org), so long that it has to be broken over some
lines.

- one item
- another, whose text is so long that it needs a second line, which is indented like the first one
  1. nested
  2. **nested** too

> a quotation

```python
def f(x):
    \"\"\"Text
    over lines.\"\"\"
    return x * 2  # [bold]not markup[/bold]
```

| name | value |
|------|------:|
| `a`  | 1     |
| much longer name | 2 |

---
日本語のテキストはここで折り返されます。日本語のテキストはここで折り返されます。日本語のテキスト。
**never closed, and `neither is this
"""


def shown(pieces: list[str], width: int = 60, height: int = 24) -> Screen:
    screen = Screen(width, height)
    painter = MarkdownRenderer(width, height, lexer_for)
    for piece in pieces:
        screen.write(painter.push(piece))
    screen.write(painter.finish())
    return screen


def same(a: Screen, b: Screen) -> bool:
    trimmed = [
        [(x, s) for x, s in zip("".join(line), styles, strict=False) if x != " "]
        for screen in (a, b)
        for line, styles in zip(screen.lines, screen.styles, strict=True)
    ]
    return a.text == b.text and trimmed[: len(a.lines)] == trimmed[len(a.lines) :]


def test_a_row_of_dashes_is_a_row_of_its_table():
    text = shown(["| a | b |\n|---|---|\n| - | -- |\n| 1 | 2 |\n\n"]).text
    assert "\n- \u2502 --\n" in text and "\n1 \u2502 2" in text


WIDE = """| Name | What it is **good** for |
|---|---|
| qwen3 | Long explanations with `many --options` that are wider than this screen |
| b | c |

"""


@pytest.mark.parametrize("size", [1, 7, len(WIDE)])
def test_the_cells_of_a_table_wider_than_the_screen_are_wrapped(size):
    screen = shown([WIDE[at : at + size] for at in range(0, len(WIDE), size)], 40)
    assert screen.text.rstrip().split("\n") == [
        "Name  \u2502 What it is good for",
        "\u2500" * 6 + "\u253c" + "\u2500" * 32,
        "qwen3 \u2502 Long explanations with many",
        "      \u2502 --options that are wider than",
        "      \u2502 this screen",
        "b     \u2502 c",
    ]


def test_a_table_too_wide_for_its_columns_is_plain_text():
    table = "| one | two | three | four and more |\n|---|---|---|---|\n| a | b | c | d |\n"
    assert shown([table], 22).text.startswith("| one | two | three |\n four")


def test_a_page_looks_as_it_should():
    text = shown([PAGE]).text
    assert text.startswith("A heading with code\n\nA paragraph with bold words, italic ones, code,")
    assert "snake_case_names" in text and "5 * 3 * 2" in text and "struck" in text
    assert "link (https://example.org)" in text
    assert "\u2022 one item\n" in text and "\n  1. nested\n" in text
    assert "\u2502 a quotation" in text
    assert "name             \u2502 value\n" in text
    assert "much longer name \u2502 2" in text
    assert "**never closed, and `neither is this" in text
    assert "[bold]not markup[/bold]" in text
    assert all(len(line) < 60 for line in text.split("\n"))


def test_styles_are_where_they_belong():
    screen = shown([PAGE])
    styles = {"bold": "1", "italic": "3", "struck": "9", "link": "4", "heading": "1;4"}
    assert {word: screen.styled(word) for word in styles} == styles
    assert screen.styled("def") == "35" and screen.styled("over lines.") == "32"
    assert screen.styled("# [bold]") == "2"
    assert screen.styled("never") == ""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(("width", "height"), [(60, 60), (25, 60), (200, 60)])
def test_pieces_of_any_size_end_in_the_same_screen(size, width, height):
    pieces = [PAGE[at : at + size] for at in range(0, len(PAGE), size)]
    assert same(shown(pieces, width, height), shown([PAGE], width, height))


def test_random_pieces_end_in_the_same_screen():
    chance = random.Random(1)
    at_once = shown([PAGE], 50, 60)
    for _ in range(50):
        cuts = sorted({0, len(PAGE), *(chance.randrange(len(PAGE)) for _ in range(40))})
        pieces = [PAGE[a:b] for a, b in itertools.pairwise(cuts)]
        assert same(shown(pieces, 50, 60), at_once)


ODD = "ab1 \n*_`~#-|>.()[]\\\u65e5"


@given(st.text(st.sampled_from(ODD), max_size=60), st.integers(1, 5))
@settings(max_examples=1500, deadline=None)
def test_any_text_in_pieces_ends_in_the_same_screen(text, size):
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert same(shown(pieces, 24, 80), shown([text], 24, 80))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_characters_of_several_codepoints_stay_whole(size):
    text = "cafe\u0301 and *cafe\u0301s* \u65e5\u672c\u8a9e `e\u0301` " * 4
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert same(shown(pieces, 30), shown([text], 30))


@given(st.text(st.sampled_from("ab \n`|-"), max_size=80))
@settings(max_examples=300, deadline=None)
def test_a_low_screen_is_never_left_upwards(text):
    shown(list(text), 21, 4)  # the screen refuses


@given(st.text(st.sampled_from("abc \n"), max_size=100))
@settings(max_examples=300, deadline=None)
def test_text_without_marks_loses_nothing(text):
    words = shown(list(text), 30, 80).text.split()
    assert "".join(words) == "".join(text.split())


@pytest.mark.parametrize("text", ["[red]x[/red]", "[link=http://x]y[/link]", "<b>x</b>", ":smile:"])
def test_rich_markup_and_html_are_text(text):
    assert shown([text]).text == text


def test_only_what_changes_is_written():
    painter = MarkdownRenderer(80, 24)
    painter.push("A paragraph of several words ")
    painter.push("that goes on")
    assert painter.push(" and ") == " and"
    assert painter.push("on") == " on"
    assert "\x1b" not in painter.push("\nThe next")


def test_what_is_finished_is_not_written_again():
    painter = MarkdownRenderer(80, 24, lexer_for)
    sent = sum(len(painter.push(char)) for char in PAGE * 20)
    assert sent < 12 * len(PAGE) * 20


def test_a_very_long_line_costs_no_more_than_its_length():
    painter = MarkdownRenderer(80, 24)
    words = "word " * 20_000
    screen = Screen()
    for at in range(0, len(words), 5):
        screen.write(painter.push(words[at : at + 5]))
    assert len(words) > 10 * LONG_LINE
    assert "".join(screen.text.split()) == "word" * 20_000


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a ** b ** c", "a ** b ** c"),
        ("**a** **b**", "a b"),
        ("***both***", "both"),
        ("`a ** b` *c*", "a ** b c"),
        ("``a ` b``", "a ` b"),
        (r"\*not\*", "*not*"),
        ("2*3*4", "2*3*4"),
        ("__init__.py, _private", "__init__.py, _private"),
        ("[a](b) [c] (d)", "a (b) [c] (d)"),
    ],
)
def test_marks_are_read_as_people_mean_them(text, plain):
    assert "".join(part for _, part in inline(text, "", ended=True)) == plain


def test_no_language_no_colours():
    assert lexer_for("nosuchlanguage") is None
    line = lexer_for("python")
    assert re.fullmatch("x = 1", "".join(text for _, text in line("x = 1")))


@pytest.mark.parametrize("height", [0, 1, 2])
def test_a_word_may_move_to_a_new_row_where_there_is_only_one(height):
    painter, text = MarkdownRenderer(20, height), "several rows of words that **grow and wrap**"
    for character in text:
        painter.push(character)
    painter.finish()


def test_after_a_stop_the_open_line_is_drawn_again():
    painter, screen = MarkdownRenderer(60, 24), Screen(60)
    screen.write(painter.push("done\nan open **li"))
    screen.write("\nStopped\n")
    painter.restart()
    screen.write(painter.push("ne** goes on"))
    screen.write(painter.finish())
    assert screen.text == "done\nan open li\nStopped\nan open line goes on"
