"""Whatever a model writes, the time to show it is linear in its length, and it ends on a signal."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conifer_cli.interrupts import Ended
from conifer_cli.run_options import RunOptions
from conifer_cli.session.response import Response
from conifer_cli.terminal import code_block, highlight, inline, markdown, sanitize, table
from conifer_cli.terminal.highlight import lexer_for
from conifer_cli.terminal.languages import BY_NAME
from conifer_cli.terminal.markdown import LONG_LINE, MarkdownRenderer
from conifer_cli.terminal.output import AnswerPrinter
from engine.text import reasoning
from engine.text.reasoning import HARMONY, HarmonyReader, Kind, TagReader
from support.screen import Screen

SIZE, TIMES, PIECE = 3_000, 4, 64
LINE = LONG_LINE - 100
FLOODS = {
    # one line, never ended
    **{f"one line of {text!r}": text for text in ["a", "word ", "*", "`", "[", ">", "#", " ", "|"]},
    **{
        f"one line of {text!r}": text
        for text in ["*a ", "| a ", "\u200b", "e\u0301", "\u65e5", "\\"]
    },
    # lines as long as are rendered
    **{
        f"long lines of {text!r}": text * (LINE // len(text)) + "\n"
        for text in [
            *("*a ", "**a *b ~~c ", "*a* ", "[a](b) ", "[a](b", "[", "\\*", "> ", "  ", "\t", "| "),
            *(
                "`a``b```c",
                "- ",
                "1",
                "**",
                "~~",
                "***",
                "|",
                "|\\",
                "<b>",
                "\u65e5\u672c",
                "\u200d",
            ),
            *("\U0001f468\u200d\U0001f469\u200d\U0001f467", "e\u0301\u0302", "&amp;", "$x$ "),
        ]
    },
    "stars before a letter": "*" * LINE + "a\n",
    "spaces before a letter": " " * LINE + "a\n",
    "a heading with a gap": "# a" + " " * LINE + "x\n",
    "a rule with a gap": "-" + " " * LINE + "-x\n",
    "no rule after all": "- " * (LINE // 2) + "x\n",
    "no rule of a table": "| a |\n" + " " * LINE + "|-x\n\n",
    "dashes below a row": "| a |\n|" + "-" * LINE + "x\n\n",
    "columns below a row": "| a |\n" + "|-" * (LINE // 2) + "x\n\n",
    "no fence after all": "`" * LINE + "x`\n",
    "deep lists": "".join(" " * depth + "- x\n" for depth in range(0, 100, 2)),
    "deep quotes": "".join("> " * depth + "x\n" for depth in range(50)),
    "fences": "```a\n```\n",
    "newlines": "\n",
}
TABLES = {
    "rows": ("| a | b |\n|---|---|\n", "| row **x** | `value` |\n"),
    "wide rows": ("| a | b |\n|---|---|\n", "| " + "word " * 40 + "| b |\n"),
    "many columns": ("| a | b |\n|---|---|\n", "| a" * 600 + "|\n"),
    "no rule": ("", "| a | b |\n"),
}
NASTY = [
    *"\"'`\\#/*-<>{}[]()$@:.;=!|&%^~+,? \t\n",
    "a",
    "0",
    "_",
    "\u00e9",
    "\u0301",
    "\u65e5",
    "<!--",
]
NASTY += [
    "-->",
    "/*",
    "*/",
    "//",
    "--",
    '"""',
    "'''",
    "{-",
    "[[",
    "]]",
    '\\"',
    "a-",
    "0.",
    "</a",
    'R"(',
]


def shown(text: str, size: int = PIECE, width: int = 80, height: int = 24) -> str:
    renderer = MarkdownRenderer(width, height, lexer_for)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return "".join([*map(renderer.push, pieces), renderer.finish()])


def require_linear(work: Callable[[int], object]) -> None:
    """Fail if TIMES the size takes more than twice as long as it should. Other programs disturb."""
    for _ in range(3):
        took = []
        for size in (SIZE, TIMES * SIZE):
            before = time.process_time()
            work(size)
            took.append(time.process_time() - before)
        if took[1] < 2 * TIMES * took[0] + 0.05:
            return
    pytest.fail(f"{SIZE:,} characters took {took[0]:.3f} s, {TIMES * SIZE:,} took {took[1]:.3f} s")


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_takes_time_linear_in_its_length(flood):
    text = FLOODS[flood]
    require_linear(lambda size: shown(text * (size // len(text))))


@pytest.mark.parametrize("flood", TABLES)
def test_a_table_takes_time_linear_in_its_length(flood):
    head, row = TABLES[flood]
    require_linear(lambda size: shown(head + row * (size // len(row)), size=4))


def test_a_table_of_400_rows_takes_a_moment():
    text = "| a | b |\n|---|---|\n" + "".join(f"| row {i} | **{i}** |\n" for i in range(400))
    before = time.process_time()
    shown(text, size=4)
    assert time.process_time() - before < 5  # 17.7 s when each piece laid all rows out again


def test_a_table_that_outgrows_the_screen_keeps_its_columns():
    screen = Screen(60, 10)
    screen.write(shown("| name | n |\n|--|--|\n" + "| abc | 12 |\n" * 40, 3, 60, 10))
    rows = screen.text.split("\n")
    assert rows[0] == "name \u2502 n" and rows[2:42] == ["abc  \u2502 12"] * 40


def test_marks_without_end_do_not_nest_without_end():
    for mark in ("*a ", "**a ", "***a ", "~~a ", "*a **b ~~c "):
        row = inline.inline(mark * 5000, "", ended=False)
        assert max(len(style) for style, _ in row) <= len("1;3;9")


@given(st.text(st.sampled_from("ab *`~|-[](\n"), max_size=200), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_long_lines_in_pieces_end_in_the_same_screen(text, size):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(markdown, "LONG_LINE", 30)
        patched.setattr(markdown, "STEPS", 3)
        screens = [Screen(24, 200), Screen(24, 200)]
        for screen, each in zip(screens, (size, 1000), strict=True):
            screen.write(shown(text, each, 24, 200))
        assert screens[0].text == screens[1].text


# Code


def test_the_languages_that_people_use_are_known():
    names = (
        "python js ts tsx bash sh c cpp c# java go rust ruby php sql html css json yaml toml diff"
    )
    assert all(lexer_for(name) for name in names.split())
    assert lexer_for("Python") and lexer_for("JSON")
    assert lexer_for("maple") is None


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_no_line_of_code_takes_more_than_its_length(name):
    chance = random.Random(name)
    lines = [text * (10_000 // len(text)) for text in NASTY if text != "\n"]
    lines += ["".join(chance.choices(NASTY, k=2000)) for _ in range(5)]
    lines += ["".join(chance.choices(chance.sample(NASTY, 3), k=5000)) for _ in range(10)]
    before = time.process_time()
    line = lexer_for(name)
    for text in lines:
        text = text.replace("\n", "")
        assert "".join(part for _, part in line(text)) == text
    assert time.process_time() - before < 20  # about 0.5 s; a quadratic pattern takes minutes


@given(st.lists(st.sampled_from(NASTY), max_size=40), st.sampled_from(sorted(BY_NAME)))
@settings(max_examples=300, deadline=None)
def test_colours_lose_no_character(parts, name):
    line = lexer_for(name)
    for each in "".join(parts).split("\n"):
        assert "".join(part for _, part in line(each)) == each


@pytest.mark.parametrize(
    ("language", "lines", "word", "style"),
    [
        ("python", ["def f(): pass"], "f", "34"),
        ("python", ["class Name(Base):"], "Name", "33"),
        ("python", ["x = 'a # b'"], "'a # b'", "32"),
        ("python", ['"""doc', "if True"], "if True", "32"),
        ("python", ["@cache"], "@cache", "33"),
        ("bash", ["echo $# # done"], "# done", "2"),
        ("bash", ["for i in $(ls)"], "for", "35"),
        ("c", ["/* a", "b */ int x;"], "int", "35"),
        ("json", ['{"key" : 1.5}'], '"key"', "34"),
        ("json", ['{"key": "value"}'], '"value"', "32"),
        ("rust", ["fn f<'a>(x: &'a str) {}"], "str", "35"),
        ("html", ['<a href="x">don\'t</a>'], '"x"', "32"),
        ("sql", ["SELECT 1 -- one"], "SELECT", "35"),
        ("diff", ["-old"], "-old", "31"),
        ("diff", ["+new"], "+new", "32"),
        ("php", ["$class = 1"], "$class", ""),
        ("lua", ["--[[ a", "b ]] local x"], "local", "35"),
    ],
)
def test_code_is_coloured(language, lines, word, style):
    line = lexer_for(language)
    *_, last = map(line, lines)
    assert (style, word) in last or (not style and any(word in text for _, text in last))


# What is not shown as Markdown


def test_readers_of_thinking_hold_white_space_at_no_cost():
    def read(size: int) -> None:
        for reader in (TagReader(reasoning.DIALECTS[2]), HarmonyReader()):
            for piece in itertools.chain(
                ["<think>a"], itertools.repeat("\n", size), ["</think>", "b"]
            ):
                list(reader.push(piece))
            list(reader.finish())

    require_linear(read)


@pytest.mark.parametrize("dialect", [d for d in reasoning.DIALECTS if d is not HARMONY])
def test_white_space_in_pieces_reads_as_in_one(dialect):
    text = f" \n\n {dialect.opens} \n\n one \n\n two \n {dialect.closes}\n\n "
    text += f"{dialect.answer_opens}\n  hi \n\n {dialect.answer_closes}\n \n"

    def read(size: int) -> dict[Kind, str]:
        reader, found = TagReader(dialect), dict.fromkeys(Kind, "")
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        for kind, part in [*(p for piece in parts for p in reader.push(piece)), *reader.finish()]:
            found[kind] += part
        return found

    assert read(1) == read(2) == read(5) == read(1000)


def test_a_long_line_of_code_is_extracted_at_no_cost():
    require_linear(
        lambda size: "".join(code_block.first_code_block(["```\n", *["a"] * size, "\n```"]))
    )


def test_an_answer_is_collected_at_no_cost(capsys):
    def answer(size: int) -> None:
        response = Response(RunOptions(), AnswerPrinter())
        response.print((Kind.ANSWER, piece) for piece in itertools.chain(["a"] * size, "\n" * size))
        assert len(response.text) == 2 * size

    require_linear(answer)


# Patterns

PATTERNS = [
    (module.__name__, name, found)
    for module in (code_block, inline, markdown, sanitize, table, reasoning)
    for name, value in vars(module).items()
    for found in (value.values() if isinstance(value, dict) else [value])
    if isinstance(found, re.Pattern)
]
PATTERNS += [("highlight", name, highlight._pattern(BY_NAME[name])) for name in sorted(BY_NAME)]
ATOMS = [*"ab1 \t*`~#-_|>.:()[]\\!<", "\u65e5", "- ", "* ", "| ", ":-", "-:", "\x1b", "<|end|>"]


@pytest.mark.parametrize(("module", "name", "pattern"), PATTERNS, ids=lambda x: str(x)[:40])
def test_no_pattern_backtracks_over_a_line(module, name, pattern):
    chance = random.Random(f"{module}.{name}")
    before = time.process_time()
    for _ in range(40):
        run = "".join(chance.choices(ATOMS, k=chance.randint(1, 2)))
        text = chance.choice(ATOMS) + run * (LONG_LINE // len(run)) + chance.choice(ATOMS)
        # As the code uses them: on lines without the space around them, for the ones that need it.
        pattern.fullmatch(text.strip() if name in ("_UNDECIDED", "_RULE") else text)
        pattern.search(text)
    assert time.process_time() - before < 15


# The way out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Ended(15)])
def test_nothing_is_laid_out_on_the_way_out(error, capsys):
    renderer = MarkdownRenderer(80, 24, lexer_for)
    with pytest.raises(type(error)), AnswerPrinter(renderer=renderer) as printer:
        printer.push("some *text")
        renderer._draw_line = renderer._layout = None  # any use is an error
        raise error
    assert capsys.readouterr().out.endswith("\n")
