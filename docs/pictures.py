"""Make the README's two pictures from real runs: `docs/fit.svg` and `docs/chat.svg`.

`conifer fit` judges a catalog model for this machine; the chat is with the starter model, fetched
from the package index on its first run. Run it from anywhere: `python docs/pictures.py`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.terminal_session import TerminalSession  # noqa: E402

WIDTH, HEIGHT = 84, 60
DEADLINE_S = 300.0
PROGRAM = [sys.executable, "-P", "-m", "conifer_cli"]
FIT = ["fit", "qwen3-30b-a3b", "-c", "16k"]
CHAT = ["run", "--temperature", "0"]
MESSAGES = ["Why is the sky blue? In two sentences.", "/stats"]
PROMPT = "Send a message"  # in an empty editor
# rich's SVG loads its fonts from a web server; the viewer's own monospace font does as well.
WEB_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def main() -> None:
    """Run both programs and write the pictures."""
    with tempfile.TemporaryDirectory() as home:
        size = {"COLUMNS": str(WIDTH), "LINES": str(HEIGHT), "TERM": "xterm-256color"}
        environment = {"CONIFER_HOME": home, **os.environ, **size}
        picture("conifer fit qwen3-30b-a3b -c 16k", fit(environment), "fit.svg")
        picture("conifer run", chat(environment), "chat.svg")


def fit(environment: dict[str, str]) -> pyte.Screen:
    """Run `conifer fit` and return what it prints."""
    done = subprocess.run(
        [*PROGRAM, *FIT], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    screen = pyte.Screen(WIDTH, HEIGHT)
    pyte.Stream(screen).feed(done.stdout.replace("\n", "\r\n"))
    return screen


def chat(environment: dict[str, str]) -> pyte.Screen:
    """Run `conifer run` in a terminal, type the messages, and return the last screen."""
    screen = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.Stream(screen)
    with TerminalSession([*PROGRAM, *CHAT], environment) as session:
        stream.feed(session.expect(PROMPT, DEADLINE_S) + PROMPT)
        for message in MESSAGES:
            session.type(message)
            stream.feed(session.expect(message, DEADLINE_S) + message)
            session.type("\r")
            stream.feed(session.expect(PROMPT, DEADLINE_S))
    return screen


def picture(title: str, screen: pyte.Screen, name: str) -> None:
    """Write a screen as SVG, without the empty rows below it."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        rows = [[screen.buffer[y][x] for x in range(WIDTH)] for y in range(HEIGHT)]
        while rows and all(cell.data.isspace() for cell in rows[-1]):
            rows.pop()
        for row in rows:
            console.print(styled(row), soft_wrap=True)
        svg = console.export_svg(title=title)
    (ROOT / "docs" / name).write_text(WEB_FONT.sub("", svg))


def styled(row: list[pyte.screens.Char]) -> Text:
    """Return a row of a terminal as rich text."""
    text = Text()
    for look, cells in groupby(row, key=lambda cell: (cell.fg, cell.bold, cell.italics)):
        colour, bold, italic = look
        style = Style(color=None if colour == "default" else colour, bold=bold, italic=italic)
        text.append("".join(cell.data for cell in cells), style)
    text.rstrip()
    return text


if __name__ == "__main__":
    main()
