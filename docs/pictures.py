"""Make the README's pictures from real runs: `docs/fit.svg` and the recording `docs/recording.svg`.

`fit.svg` is a verdict for another machine, so it is the same wherever it is made; docs/check.py
compares it with what the program prints now. The recording is of a shell in which somebody types
SCRIPT: the starter model must be on this machine. Pauses are shortened to IDLE_S. Run it from
anywhere: `python docs/pictures.py [fit|recording]`.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from itertools import groupby, pairwise
from pathlib import Path

import pyte

ROOT = Path(__file__).resolve().parent.parent
WIDTH, HEIGHT = 84, 24
PROGRAM = [sys.executable, "-P", "-m", "conifer_cli"]
FIT = ["fit", "qwen3-30b-a3b", "-c", "16k", "--machine", "m4-max-64gb"]
# What is typed, and what the row of the cursor then begins with when it is done.
SCRIPT = (
    ("conifer fit --machine m4-max-64gb", "$ "),
    ("conifer run --seed 1", ">>> Send"),
    ("What is the capital of France?", ">>> Send"),
    ("Write a Python function that adds two numbers.", ">>> Send"),
    ("/bye", "$ "),
)
KEY_S, IDLE_S, LAST_S = 0.05, 1.5, 5.0
QUIET_S, DEADLINE_S = 0.7, 120.0
FRAME_S = 0.12  # between two frames, at least
CELL, ROW, MARGIN = 8.4, 18, 12  # pixels
COLOURS = {"default": "#d0d0d0", "black": "#7f848e", "red": "#e06c75", "green": "#98c379"}
COLOURS |= {"brown": "#e5c07b", "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2"}
BACKGROUND = "#1e2127"
Cell = tuple[str, str, bool]  # text, colour, bold
Frame = tuple[tuple[Cell, ...], ...]


def main() -> None:
    """Make the pictures that the command line names, or both."""
    wanted = sys.argv[1:] or ["fit", "recording"]
    if "fit" in wanted:
        (ROOT / "docs" / "fit.svg").write_text(still(), encoding="utf-8")
    if "recording" in wanted:
        frames = thinned(recording())
        (ROOT / "docs" / "recording.svg").write_text(film(frames), encoding="utf-8")


def still() -> str:
    """Run `conifer fit` and draw what it prints."""
    more = {"COLUMNS": str(WIDTH), "CLICOLOR_FORCE": "1", "TERM": "xterm-256color"}
    more |= {"CONIFER_HOME": os.devnull, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*PROGRAM, *FIT], env=os.environ | more, stdout=subprocess.PIPE, text=True, check=True
    )
    printed = f"$ conifer {' '.join(FIT)}\n{done.stdout.rstrip()}"
    screen = pyte.Screen(WIDTH, 2 * printed.count("\n"))
    pyte.Stream(screen).feed(printed.replace("\n", "\r\n"))
    shown = frame(screen)[: screen.cursor.y + 1]
    drawn = (
        f'<g transform="translate(0 {y * ROW})">{row(each)}</g>' for y, each in enumerate(shown)
    )
    return document(len(shown), list(drawn))


def recording() -> list[tuple[float, Frame]]:
    """Type the script in a shell. Return the frames, each with its time in seconds."""
    pid, fd = pty.fork()
    if pid == 0:
        more = {"PS1": "$ ", "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
        os.execve("/bin/bash", ["bash", "--norc", "-i"], os.environ | more)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    screen = pyte.Screen(WIDTH, HEIGHT)
    stream, frames = pyte.ByteStream(screen), list[tuple[float, Frame]]()

    def wait(start: str, quiet_s: float = QUIET_S) -> None:
        """Read until nothing more comes and the cursor is in such a row."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if select.select([fd], [], [], quiet_s)[0]:
                stream.feed(os.read(fd, 1 << 16))
                frames.append((time.monotonic(), frame(screen)))
            elif screen.display[screen.cursor.y].startswith(start):
                return
        raise TimeoutError(f"no {start!r} in {screen.display}")

    try:
        wait("$ ")
        os.write(fd, f'conifer() {{ {" ".join(PROGRAM)} "$@"; }}; clear\r'.encode())
        wait("$ ")
        frames.clear()
        for typed, then in SCRIPT:
            for key in typed:
                os.write(fd, key.encode())
                wait("", KEY_S)
            os.write(fd, b"\r")
            wait(then)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
    return frames


def thinned(frames: list[tuple[float, Frame]]) -> list[tuple[float, Frame]]:
    """Return the frames from time 0 on, without long pauses and with fewer of quick ones."""
    now_s, kept = 0.0, [(0.0, frames[0][1])]
    for (before_s, _), (after_s, shown) in pairwise(frames):
        now_s += min(after_s - before_s, IDLE_S)
        if now_s - kept[-1][0] < FRAME_S and len(kept) > 1:
            kept[-1] = (kept[-1][0], shown)
        elif shown != kept[-1][1]:
            kept.append((now_s, shown))
    return kept


def frame(screen: pyte.Screen) -> Frame:
    """Return the rows of a screen as spans of equal style."""
    shown = []
    for y in range(screen.lines):
        cells = [screen.buffer[y][x] for x in range(screen.columns)]
        spans = groupby(cells, key=lambda cell: (cell.fg, cell.bold))
        parts = [("".join(cell.data for cell in span), fg, bold) for (fg, bold), span in spans]
        while parts and not parts[-1][0].strip():
            parts.pop()
        shown.append(tuple(parts))
    return tuple(shown)


def film(frames: list[tuple[float, Frame]]) -> str:
    """Draw frames side by side, and move the strip from one to the next."""
    whole_s, width = frames[-1][0] + LAST_S, picture_width()
    names: dict[str, str] = {}  # of rows: most are in many frames
    strip = []
    for at, (_, shown) in enumerate(frames):
        used = [
            f'<use href="#{names.setdefault(drawn, f"r{len(names)}")}" y="{y * ROW}"/>'
            for y, drawn in enumerate(map(row, shown))
            if drawn
        ]
        strip.append(f'<g transform="translate({at * width:g} 0)">{"".join(used)}</g>')
    defs = "".join(f'<g id="{name}">{drawn}</g>' for drawn, name in names.items())
    steps = "".join(
        f"{100 * at_s / whole_s:.3f}%{{transform:translateX({-number * width:g}px)}}"
        for number, (at_s, _) in enumerate(frames)
    )
    last = f"transform:translateX({-(len(frames) - 1) * width:g}px)"
    style = (
        f"<style>@keyframes film{{{steps}100%{{{last}}}}}"
        f".film{{animation:film {whole_s:.2f}s steps(1,end) infinite}}"
        f"@media(prefers-reduced-motion){{.film{{animation:none;{last}}}}}</style>"
    )
    return document(HEIGHT, [style, f"<defs>{defs}</defs>", '<g class="film">', *strip, "</g>"])


def picture_width() -> float:
    return WIDTH * CELL + 2 * MARGIN


def document(height: int, parts: list[str]) -> str:
    """Return an SVG file of so many rows."""
    width, tall = picture_width(), height * ROW + 2 * MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {tall}" '
            f'font-family="ui-monospace,Menlo,Consolas,monospace" font-size="14">',
            f'<rect width="{width:g}" height="{tall}" rx="8" fill="{BACKGROUND}"/>',
            *parts,
            "</svg>\n",
        ]
    )


def row(spans: tuple[Cell, ...]) -> str:
    """Draw a row at the top. Each span has its width, so that any monospace font fits."""
    drawn, x = [], 0
    for text, colour, bold in spans:
        lead, word = len(text) - len(text.lstrip(" ")), text.strip(" ")
        if word:
            weight = ' font-weight="bold"' if bold else ""
            drawn.append(
                f'<text x="{MARGIN + (x + lead) * CELL:g}" y="{MARGIN + 14}" '
                f'fill="{COLOURS.get(colour, f"#{colour}")}"{weight} '
                f'textLength="{len(word) * CELL:g}" xml:space="preserve">{html.escape(word)}</text>'
            )
        x += len(text)
    return "".join(drawn)


if __name__ == "__main__":
    main()
