"""The standard streams. Only this module writes to stdout and stderr, or reads from stdin.

stdout carries answers and data; everything else goes to stderr. Output is UTF-8 in any locale, and
`sanitize` cleans it unless a function's docstring says otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn, TextIO

from conifer_cli.errors import OutputError, UsageError, explain, why
from conifer_cli.terminal.format import size
from conifer_cli.terminal.inline import BOLD
from conifer_cli.terminal.keyboard import dumb, keyboard
from conifer_cli.terminal.layout import (
    BAD,
    PROSE_WIDTH,
    Line,
    marked,
    painted,
    plain,
    rows_of,
    wrap,
)
from conifer_cli.terminal.sanitize import clean, clean_line

STDIN_PATIENCE_S = 2.0
MIN_STYLED_WIDTH = 20
PREFIX = "conifer: "
MAX_STDIN_BYTES = 64 * 10**6


class ReaderGone(Exception):
    """Broken pipe: the program that reads stdout has closed it."""


def prepare() -> None:
    """Set the standard streams to UTF-8, and point closed streams at /dev/null.

    Otherwise the next file to be opened would get descriptor 0, 1 or 2.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(nothing, number)
    if nothing > 2:
        os.close(nothing)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - input() needs it
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    sys.stdout, sys.stderr = _writer(sys.stdout), _writer(sys.stderr)


class _Whole(io.FileIO):
    """A descriptor that writes all bytes or raises OSError, even if it is non-blocking and full.

    With PYTHONUNBUFFERED, Python's own streams ignore how much of the text was written.
    """

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size_bytes = len(rest)
        while rest:
            try:
                rest = rest[os.write(self.fileno(), rest) :]
            except BlockingIOError:
                select.select([], [self], [])
        return size_bytes


def _writer(stream: TextIO | None) -> Any:
    """Return a UTF-8 stream for the descriptor of an output stream that Python has opened."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        raw = _Whole(stream.fileno(), "wb", closefd=False)
    except OSError:  # no descriptor, as in a test
        stream.reconfigure(encoding="utf-8", errors="replace")
        return stream
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, "utf-8", "replace", line_buffering=raw.isatty())


def finish(code: int) -> NoReturn:
    """Exit with `code`. If it is 128 or more, do not wait for queued computations."""
    if code == 130:  # another Ctrl-C ends the program at once
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    keyboard.release()
    if code == 130 and is_terminal(sys.stderr):
        log()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        os._exit(code)  # a normal exit would try to write again, and fail
    if code >= 128:
        os._exit(code)
    sys.exit(code)


def is_terminal(stream: TextIO | None) -> bool:
    """True if `stream` is an open terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def shows_thinking(option: bool | None) -> bool:
    """Return `option` or, if it is None, whether stderr is a terminal."""
    return is_terminal(sys.stderr) if option is None else option


def reopen_stdin() -> None:
    """Connect stdin to the keyboard if it is not a terminal, for example if it is a pipe.

    Raises UsageError if there is no terminal.
    """
    if is_terminal(sys.stdin):
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDWR)
    except OSError as error:
        raise UsageError("-i/--interactive requires a terminal") from error
    os.dup2(terminal, 0)
    os.close(terminal)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def dimensions() -> tuple[int, int]:
    """Return the terminal's size as (columns, lines)."""
    return shutil.get_terminal_size()


class Colour(StrEnum):
    """When to print colours and styles. AUTO: to a terminal that supports them."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass
class Policy:
    """What the user has chosen for all output. quiet: print neither notes nor progress."""

    colour: Colour = Colour.AUTO
    quiet: bool = False


policy = Policy()


def line_width(stream: TextIO | None) -> int | None:
    """Return the width to lay lines out for, or None to leave them to a pipe or to the terminal.

    A terminal that is very narrow, or does not know its size, wraps lines itself.
    """
    if stream is None or not is_terminal(stream):
        return None
    chosen = os.environ.get("COLUMNS", "")
    columns = int(chosen) if chosen.isdecimal() else 0
    with contextlib.suppress(OSError, ValueError):
        columns = columns or os.get_terminal_size(stream.fileno()).columns
    return columns if columns >= MIN_STYLED_WIDTH else None


def colours() -> bool:
    """True unless --color never or NO_COLOR forbids them. An empty variable counts as unset."""
    if policy.colour is not Colour.AUTO:
        return policy.colour is Colour.ALWAYS
    return not os.environ.get("NO_COLOR")


def supports_styles(stream: TextIO | None) -> bool:
    """True if escape sequences for styles may be written to `stream`, which is a terminal."""
    return is_terminal(stream) and colours() and not dumb()


def paints(stream: TextIO | None) -> bool:
    """True if lines for `stream` are coloured. Colours can be forced even where it is a pipe."""
    forced = policy.colour is Colour.ALWAYS or (
        os.environ.get("CLICOLOR_FORCE", "0") != "0" and colours()
    )
    return forced or supports_styles(stream)


def styles() -> bool:
    """True if answers may be rendered as Markdown."""
    return supports_styles(sys.stdout) and dimensions()[0] >= MIN_STYLED_WIDTH


def conversing() -> bool:
    """True if both stdin and stdout are terminals."""
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def can_ask() -> bool:
    """True if `confirm` can ask: both stdin and stderr are terminals."""
    return is_terminal(sys.stdin) and is_terminal(sys.stderr)


def write_stdout(text: str) -> None:
    """Write text to stdout without cleaning it, and flush. Raises ReaderGone or OutputError."""
    if sys.stdout is None:
        if text:
            raise OutputError("standard output is closed")
        return
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {why(error)}") from error


def print_lines(lines: Iterable[Line]) -> None:
    """Print lines and tables to stdout, laid out for its width if it is a terminal."""
    write_stdout(_laid_out(lines, sys.stdout))


def _laid_out(lines: Iterable[Line], stream: TextIO | None) -> str:
    width = line_width(stream)
    show = painted if paints(stream) else plain
    return "".join(show(row) + "\n" for line in lines for row in rows_of(line, width))


def print_json(value: object) -> None:
    """Print one JSON document to stdout, in ASCII."""
    write_stdout(json.dumps(value, indent=2) + "\n")


def log_text(text: str) -> None:
    """Print a text to stderr as it is, without wrapping its lines."""
    write_stderr(clean(text).rstrip("\n") + "\n")


def log_lines(lines: Iterable[Line]) -> None:
    """Print lines and tables to stderr."""
    write_stderr(_laid_out(lines, sys.stderr))


def log(text: str = "", style: str = "") -> None:
    """Print one line to stderr. style: of the whole line, or of its prefix "conifer: "."""
    line = clean_line(text)
    if not line:
        write_stderr("\n")
        return
    start = PREFIX if line.startswith(PREFIX) else line if style else ""
    width = line_width(sys.stderr)
    row = [(style or BOLD, start.rstrip()), ("", start[len(start.rstrip()) :])]
    row = [span for span in (*row, *marked(line[len(start) :])) if span[1]]
    show = painted if paints(sys.stderr) else plain
    rows = [row] if width is None else wrap(row, min(width, PROSE_WIDTH))
    write_stderr("".join(show(row) + "\n" for row in rows))


def log_parts(*parts: str) -> None:
    """Print one line of parts to stderr or, if it is too long, break it between parts."""
    width, line = line_width(sys.stderr), ""
    for part in parts:
        longer = f"{line}; {part}" if line else part
        if line and width is not None and len(longer) > width:
            log(f"{line};")
            longer = part
        line = longer
    log(line)


def note(text: str) -> None:
    """Print a line about what the program does to stderr, unless --quiet forbids it."""
    if not policy.quiet:
        log(PREFIX + text)


def report(error: BaseException) -> int:
    """Print a known exception and its hint to stderr. Return its exit code."""
    code, message, hint = explain(error)
    problem(message, hint)
    return code


def problem(message: str, hint: str = "") -> None:
    """Print what is wrong, and lines on what to do about it, to stderr."""
    log(PREFIX + message, f"{BAD};{BOLD}")
    for line in hint.splitlines():
        log(line)


def write_stderr(text: str) -> None:
    """Write text to stderr without cleaning it. Ignores a closed stderr."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def piped() -> str:
    """Read all of stdin. Replaces bytes that are not valid UTF-8 and prints a warning."""
    data = bytearray()
    for chunk in _chunks():
        data += chunk
        if len(data) > MAX_STDIN_BYTES:
            raise UsageError(f"standard input exceeds the {size(MAX_STDIN_BYTES)} limit")
    return decoded(bytes(data), "standard input")


def decoded(data: bytes, name: str, strict: bool = False) -> str:
    """Decode UTF-8 text, without its byte-order mark. Raises UsageError for another encoding.

    strict: raise UsageError for invalid bytes too, instead of replacing them with a warning.
    """
    from catalog.text import WrongEncoding, decode

    try:
        return decode(data)
    except WrongEncoding as error:
        raise UsageError(
            f"{name} is {error} text, not UTF-8", f"Convert it, such as with `iconv -f {error}`."
        ) from error
    except UnicodeDecodeError as error:
        if strict:
            line = data[: error.start].count(b"\n") + 1
            raise UsageError(f"{name}, line {line}: invalid UTF-8") from error
        log(f"conifer: {name} is not valid UTF-8; invalid bytes were replaced with '\ufffd'")
        return decode(data, errors="replace")


def _chunks() -> Iterator[bytes]:
    if sys.stdin is None or sys.stdin.closed:
        return
    fd = sys.stdin.fileno()
    patience_s: float | None = STDIN_PATIENCE_S
    how = " (press Ctrl-D to end it)" if is_terminal(sys.stdin) else ""
    while True:
        if not select.select([fd], [], [], patience_s)[0]:
            log(f"conifer: waiting for the end of standard input{how}")
            patience_s = None
            continue
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:  # another reader of a non-blocking pipe took the data
            continue
        except OSError as error:
            raise UsageError(f"cannot read standard input: {why(error)}") from error
        if not data:
            return
        yield data


def ask(prompt: str, start: str = "") -> str | None:
    """Ask for a line, using readline if available. Return None at the end of input.

    start: the beginning of the line, which readline lets the user edit.
    """
    with _beginning(start) as shown:
        try:
            return (start if shown else "") + input(prompt + (start if shown else ""))
        except EOFError:
            write_stdout("\n")
            return None


@contextlib.contextmanager
def _beginning(start: str) -> Iterator[bool]:
    """Put text into readline's line. Yield True if there is no readline, and it must be printed."""
    try:
        import readline
    except ImportError:
        yield True
        return
    readline.set_startup_hook(lambda: readline.insert_text(start))
    try:
        yield False
    finally:
        readline.set_startup_hook(None)


def confirm(question: str, default: bool = True) -> bool:
    """Ask a yes/no question on stderr. Enter means `default`; end of input means no."""
    with keyboard.lines():
        write_stderr(f"{clean_line(question)} {'[Y/n]' if default else '[y/N]'} ")
        reply = sys.stdin.readline()
    if not reply:
        log()
    return reply.strip().lower() in ("y", "yes") or (default and reply == "\n")
