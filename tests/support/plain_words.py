"""Notice messages in the words of Python, typer or errno, whichever test provokes them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from conifer_cli.terminal import console
from conifer_cli.terminal.layout import text_of

FOREIGN = (
    r"Traceback \(most recent",
    r"\[Errno",
    r"\b(?:Key|Value|Type|Attribute|Index|JSONDecode|Unicode\w+|Zero\w+|OS|Runtime|Assertion)Error\b",
    "NoneType",
    "<class '",
    r"<[A-Z]\w+\.[A-Z]\w+: ",  # an enum's member
    r"<[\w.]+ object at 0x",
    "object has no attribute",
    "invalid literal",
    "could not convert",
    "Input should be",
    "Value error,",
    r"codec can't (?:en|de)code",
    "index out of range",
    "embedded null byte",
    r"Expecting (?:value|property|',' delimiter)",
    "No such option",
    "No such command",
    "Possible options",
    "Invalid value",
    r"Missing (?:argument|option|parameter)",
    "requires an argument",
    "does not take a value",
    r"[Gg]ot unexpected extra",
    "is undefined",
    "nodename nor servname",
)
# Bytes as Python writes them, a plural in brackets, and a plural of one thing.
NOUNS = "answers|characters|experts|files|layers|messages|models|parts|runs|threads|tokens|turns"
OURS = (r"(?<![\w'\"`])b['\"]", r"\w\(s\)", rf"(?<![\d,.:/-])1 (?:{NOUNS})\b(?!/s)")
_MESSAGES = re.compile("|".join((*FOREIGN, *OURS)))
_SCREENS = re.compile("|".join(FOREIGN))  # a screen shows answers too, which may say anything
_screens: list[str] = []


def seen(text: str) -> None:
    """Remember what a terminal showed."""
    _screens.append(text)


@contextmanager
def listening() -> Iterator[Callable[[], str | None]]:
    """Listen to every message. Yield a function that returns the first foreign words, or None."""
    messages: list[str] = []
    communicate = subprocess.Popen.communicate

    def overhear(program: Any, *arguments: Any, **settings: Any) -> Any:
        out, err = communicate(program, *arguments, **settings)
        if err and "conifer" in str(program.args):
            messages.append(err if isinstance(err, str) else err.decode(errors="replace"))
        return out, err

    def noting(say: Callable[..., None], text_of: Callable[[Any], str]) -> Callable[..., None]:
        def heard(said: Any) -> None:
            said = said if isinstance(said, str) else [*said]
            messages.append(text_of(said))
            say(said)

        return heard

    def first() -> str | None:
        for pattern, texts in ((_MESSAGES, messages), (_SCREENS, _screens)):
            if found := pattern.search("".join(texts)):
                start = max(found.start() - 60, 0)
                return found.string[start : found.end() + 60]
        return None

    _screens.clear()
    with ExitStack() as patched:
        patched.enter_context(mock.patch.object(subprocess.Popen, "communicate", overhear))
        for name, as_text in (("write_stderr", str), ("print_lines", text_of)):
            say = noting(getattr(console, name), as_text)
            patched.enter_context(mock.patch.object(console, name, say))
        yield first
