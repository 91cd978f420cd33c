"""What 33 commands show in a terminal of 60, 80 and 140 columns, with and without colours.

The screens are kept in tests/data/screens.json, cell by cell: the text, and the styles of each row.
CONIFER_WRITE_SCREENS=1 writes them anew; look at the difference before you commit it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from itertools import groupby
from pathlib import Path

import pytest
from huggingface_hub import constants

import engine.fit.machine
from catalog import starter_entry
from conifer_cli import acquire, app, options
from conifer_cli.session import history
from conifer_cli.terminal import console
from support.program import MODELS, know_bandwidth
from support.screen import Screen

RECORD = Path(__file__).parents[1] / "data" / "screens.json"
WIDTHS = (60, 80, 140)
WIDEST = 400
WRITES = bool(os.environ.get("CONIFER_WRITE_SCREENS"))
BAR = re.compile(r"\[[WKBP.r|]+\]")
COMMANDS = (
    "",
    "help environment",
    "help exit-codes",
    "help run",
    "run -h",
    "pull -h",
    "fit -h",
    "fit",
    "fit --all",
    "fit qwen3-30b-a3b",
    "fit deepseek-v3.1",
    "fit qwen3-30b-a3b --machine m4-max-64gb",
    "fit model.gguf",
    "fit --for code",
    "fit gpt-oss-120b --buy",
    "list",
    "ls",
    "list --catalog",
    "list --speeds",
    "show qwen3-30b-a3b",
    "show model.gguf",
    "verify",
    "chats",
    "chats 1",
    "chats search sourdough",
    "config",
    "ps",
    "default",
    "alias",
    "presets",
    "run nope",
    "run Why is the sky blue?",
    "rmm",
)
# What the first 24 rows have, by the first words of a command that match.
HEADLINES = {
    "help environment": "Environment:",
    "help exit-codes": "Exit codes:",
    "fit gpt-oss-120b --buy": "the machines that it fits",
    "fit --for code": "Best here for code",
    "fit q": "verdict: ",
    "fit d": "verdict: ",
    "fit m": "verdict: ",
    "list --catalog": "qwen3-30b-a3b  ",
    "list": "No ",
    "ls": "smollm2-135m:Q4_1",
    "ps": "393.5 MB",
    "show": "architecture:",
    "chats search": "sourdough",
    "chats 1": "You:",
    "chats": "sourdough",
    "config": "config file:",
    "default": "No default model.",
    "alias": "No aliases.",
    "presets": "No presets.",
    "run nope": "no model named 'nope'",
    "run Why": "Did you mean",
    "verify": "no models to verify",
    "rmm": "unknown command 'rmm'",
}


def headline_of(line: str) -> str:
    if line.endswith(" -h") or line == "help run" or not line:
        return "Usage: conifer"
    words = next((each for each in HEADLINES if line.startswith(each)), "")
    return HEADLINES.get(words, "Best here for chat")


TALK = [
    {"role": "user", "content": "How do I bake sourdough bread without a scale?"},
    {"role": "assistant", "content": "Use cups: three of flour, one and a half of water. " * 4},
]
# What /health of a server says.
SERVER = {
    "model": "smollm2-135m",
    "context": 8192,
    "need_bytes": 393_454_848,
    "prefix_bytes": 12_500_000,
    "prefix_budget_bytes": 4 << 30,
    "running": 1,
    "parallel": 2,
    "queued": 0,
    "decoded_tokens_per_s": 54.83,
}


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Run a command line in a terminal of some width. Return what it writes to it."""
    machine = engine.fit.machine.Machine("test machine", "cpu", 32 << 30, 24 << 30, "free memory")
    monkeypatch.setattr(engine.fit.machine, "this_machine", lambda idle=False: machine)
    monkeypatch.setattr("engine.kernels.native.best_isa", lambda: "amx")
    know_bandwidth(tmp_path)
    for name in [name for name in os.environ if name.startswith(("CONIFER_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODELS / "qwen3moe" / "model.gguf", tmp_path)
    for name, value in {"CONIFER_HOME": "conifer", "HF_HOME": "hf"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "hf/hub")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(console, "is_terminal", lambda stream: stream is not None)
    monkeypatch.setattr(history.datetime, "datetime", Noon)
    history.keep(None, "qwen3-30b-a3b", TALK)
    state = {**SERVER, "loaded_s": time.time() - 7200}
    monkeypatch.setattr("conifer_cli.commands.ps.state_of", lambda host, port: state)
    options.open_store.cache_clear()
    acquire.connect.cache_clear()

    def run(line: str, width: int, coloured: bool) -> str:
        if line == "ls":  # with the starter model, as far as its size tells
            path = options.open_store().packages.path(starter_entry().package)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, starter_entry().package.size_bytes)
            os.utime(path, 2 * (time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1)),))
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.delenv("NO_COLOR", raising=False)
        if not coloured:
            monkeypatch.setenv("NO_COLOR", "1")
        app._outcome(line.split())
        captured = capsys.readouterr()
        return captured.out + captured.err

    yield run
    options.open_store.cache_clear()
    acquire.connect.cache_clear()


class Noon(history.datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 29, 12, 0, tzinfo=history.datetime.UTC)

    def astimezone(self, tz=None):
        return self


def rendered(text: str, width: int) -> Screen:
    screen = Screen(width=width, height=10_000)
    screen.write(text)
    return screen


def styles(screen: Screen) -> list[str]:
    """Return the styles of each row as runs, such as "1x8 x3", without those at its end."""
    rows = []
    for row in screen.styles:
        runs = [f"{style}x{len([*cells])}" for style, cells in groupby(row)]
        while runs and runs[-1].startswith("x"):
            runs.pop()
        rows.append(" ".join(runs))
    return rows


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line or "conifer")
def test_a_screen_is_as_it_was_seen(shown, line):
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    found = {}
    words = set(shown(line, WIDEST, False).split())
    for width in WIDTHS:
        plain, coloured = (shown(line, width, choice) for choice in (False, True))
        screen = rendered(coloured, width)
        assert "\x1b" not in plain
        assert plain == "".join(f"{row}\n" for row in screen.text.splitlines())
        rows = screen.text.splitlines()
        # The screen wraps what is too long, so a row too many is a line too wide.
        assert len(rows) == coloured.count("\n")
        assert [word for word in plain.split() if word not in words and not BAR.match(word)] == []
        assert headline_of(line) in "\n".join(rows[:24])
        found[str(width)] = {"text": rows, "styles": styles(screen)}
    if WRITES:
        known = {name: known[name] for name in COMMANDS if name in known} | {line: found}
        RECORD.write_text(json.dumps(known, indent=0, ensure_ascii=False) + "\n")
    assert known.get(line) == found


def test_there_are_enough_screens_and_no_others():
    assert len(COMMANDS) >= 25
    assert json.loads(RECORD.read_text()).keys() == {*COMMANDS}


def test_colours_say_what_words_say(shown):
    screen = rendered(shown("fit", 80, True), 80)
    assert screen.styled("Best here") == "1;32" and screen.styled("fits ~") == "32"
    assert screen.styled("MODEL") == "1"
    for name, style in (("deepseek-v3.1", "1;33"), ("llama-3.3-70b", "1;31")):
        screen = rendered(shown(f"fit {name}", 80, True), 80)
        assert screen.styled("verdict:") == style
    assert rendered(shown("run nope", 80, True), 80).styled("conifer:") == "31;1"
