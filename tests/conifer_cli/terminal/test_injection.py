"""Model output cannot control a real terminal, however the stream is split."""

from __future__ import annotations

import json
import re
import sys

import pytest

from conifer_cli.terminal.sanitize import clean
from support.program import environment
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

ESC, ST, BEL = "\x1b", "\x1b\\", "\x07"
SEQUENCES = [
    *[f"{ESC}[{body}" for body in ("31m", "2J", "10;20H", "?1049h", "6n", "1;2;3;4m", "38:2::1m")],
    *[f"{ESC}]{body}{BEL}" for body in ("0;owned title", "8;;http://evil.example", "52;c;ZWNo")],
    *[f"{ESC}]{body}{ST}" for body in ("0;owned title", "52;c;ZWNobyBoaQ==", "1337;File=:AAAA")],
    *[f"{ESC}{opener}a longer payload{ST}" for opener in "PX^_"],
    f"{ESC}P1$qm{ST}",
    f"{ESC}_Gf=24;AAAA{ST}",
    "\x9b31m",
    "\x9d0;owned\x9c",
    *[f"{opener}payload\x9c" for opener in "\x90\x98\x9e\x9f"],
    *[f"{ESC}{final}" for final in ("c", "7", "8", "(0", "#8", "%G", "=", "M")],
    f"over{BEL}\x08\x08\x08\x08write\x00\x0b\x0c\x0e\x0f\x7f",
    "line\rover\r\rwritten\r\n",
    *[f"a{mark}b" for mark in "\u202a\u202b\u202d\u202e\u2066\u2067\u2068\x85\x84"],
    f"[bold red]x[/]{ESC}[1m[link=http://x]y[/link]",
]
# Prints each case as the conversation would, with a separator line after each.
SHOW = """
import json, sys
from conifer_cli.terminal import console
from conifer_cli.terminal.output import AnswerPrinter
from conifer_cli.terminal.highlight import lexer_for
from conifer_cli.terminal.markdown import MarkdownRenderer
from conifer_cli.session.response import Response
from conifer_cli.run_options import RunOptions
from engine.text.reasoning import Kind
console.prepare()
for kind, styled, parts in json.load(open(sys.argv[1])):
    painter = MarkdownRenderer(80, 24, lexer_for) if styled else None
    answer = AnswerPrinter(thinking=True, renderer=painter)
    Response(RunOptions(), answer).print([(Kind(kind), part) for part in parts])
    console.write_stdout("\\x1e\\n")
"""


def cases():
    """Return each sequence split at every position, as an answer and some as code or thinking."""
    found = []
    for at, sequence in enumerate(SEQUENCES):
        text = f"before {sequence} after [bold]x[/bold] " + "and so on"
        for cut in range(len(text) + 1):
            found.append(("answer", cut % 2 == 0, [text[:cut], text[cut:]]))
        for cut in range(0, len(text), 3):
            code = f"```python\nx = '{text}'\n```\n| a | {text} |"
            found.append(("answer", True, [code[: cut + 10], code[cut + 10 :]]))
            found.append(("thinking", at % 2 == 0, [text[:cut], text[cut:]]))
    return found


@pytest.mark.slow
def test_no_split_of_any_sequence_reaches_the_terminal(tmp_path):
    shown = cases()
    assert len(shown) >= 3000
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(shown))
    arguments = [sys.executable, "-P", "-c", SHOW, str(file)]
    with TerminalSession(arguments, environment(tmp_path, TERM="xterm-256color")) as session:
        assert session.wait(deadline_s=120) == 0, session.screen[-2000:]
        screens = session.screen.replace("\r\n", "\n").split("\x1e\n")[:-1]
    assert len(screens) == len(shown)
    ours = re.compile(r"\x1b\[(?:[0-9;]*m|[0-9]+[AC]|[KJ])|(?<=\x1b)\r")
    for (kind, styled, parts), screen in zip(shown, screens, strict=True):
        left = ours.sub("", screen)
        if styled or kind == "thinking":
            left = left.replace("\r", "")
        bad = [c for c in left if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f"]
        assert not bad, (parts, screen)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", left)
        if not styled and kind == "answer":
            assert left.rstrip("\n") == clean("".join(parts)).rstrip("\n")
            assert "[bold]x[/bold]" in left
