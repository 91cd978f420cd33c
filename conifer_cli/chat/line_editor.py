"""The conversation's line editor, with its completions and message history.

prompt_toolkit is imported lazily, for the first message. A dumb terminal uses plain input instead.
Messages typed before the prompt appeared come first.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.files import open_regular, parse_json, read_file, write_atomically
from conifer_cli import errors, options
from conifer_cli.interrupts import Interrupts
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.keyboard import END_OF_INPUT, dumb, keyboard
from engine.text.tokenizer import without_surrogates

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import AnyFormattedText
    from prompt_toolkit.key_binding import KeyBindings

    from conifer_cli.chat.typed_keys import TypedKeys

PROMPT, CONTINUATION = ">>> ", "... "
PLACEHOLDER = "Send a message (/? for help)"
QUOTES = '"""'
HINT_WIDTH = 40  # columns; a narrower terminal shows no placeholder and no meter
FAINT = "ansibrightblack"
MAX_NAMES = 200  # maximum number of file names to offer
HISTORY_FORMAT = {"format": 1}  # first line; each later line is one JSON string
MAX_HISTORY = 1000  # messages
MAX_HISTORY_BYTES = 256 << 20  # a larger file is not read
MAX_MESSAGE = 100_000  # characters; longer messages are not saved

Complete = Callable[[str], list[str]]  # the text after a command -> candidates for its last word


@dataclass
class EditorHost:
    """The callbacks and history file that the conversation passes to its editor.

    complete: takes the text before the cursor; returns the start of its last word, and candidates.
    meter: returns the text to the right of the prompt.
    keys: maps each prompt_toolkit key name to an action, which may print.
    """

    complete: Callable[[str], tuple[int, list[str]]]
    history: Path | None
    meter: Callable[[], str]
    keys: dict[str, Callable[[], None]]


def is_closed(text: str) -> bool:
    """True unless a message starts with triple quotes but does not end with them."""
    text = text.strip()
    return not text.startswith(QUOTES) or (len(text) >= 6 and text.endswith(QUOTES))


def unquoted(text: str) -> str:
    """Remove the triple quotes around a message, if any."""
    bare = text.strip()
    if bare.startswith(QUOTES) and is_closed(bare):
        return bare[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


class PlainEditor:
    """Plain input, with readline key bindings if Python has readline."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._ahead = b""  # keys typed before the prompt appeared

    def message(self) -> str | None:
        """Read a message. Return None at the end of input. Raises KeyboardInterrupt on Ctrl-C."""
        text, prompt = "", PROMPT
        while (line := self._line(prompt)) is not None:
            text += without_surrogates(line)
            if is_closed(text):
                return unquoted(text)
            text, prompt = text + "\n", CONTINUATION
        return None

    def question(self, text: str) -> str:
        """Ask for a short reply, which may be empty."""
        try:
            with keyboard.lines(), self._interrupts.propagate():
                return (console.ask(text) or "").strip()
        except KeyboardInterrupt:
            console.write_stdout("\n")
            return ""

    def _line(self, prompt: str) -> str | None:
        """Return the next line typed ahead or, if there is none, ask for one."""
        with keyboard.lines():  # first, so that readline gets all later keys
            self._ahead += keyboard.typed()
            typed, end, rest = split_line(self._ahead)
            if not end:
                self._ahead = b""
                with self._interrupts.propagate():
                    return console.ask(prompt, typed)
        self._ahead = rest
        console.write_stdout(f"{prompt}{typed}\n")
        return None if end == END_OF_INPUT and not typed else typed


def split_line(data: bytes) -> tuple[str, bytes, bytes]:
    """Split keys typed ahead into the first line, edited as a terminal does, its end and the rest.

    The end is empty if the line is unfinished.
    """
    found = re.search(rb"\r\n?|\n|\x04", data)
    start, end = found.span() if found else (len(data), len(data))
    line = re.sub(r".*\x15", "", data[:start].decode(errors="replace"), flags=re.DOTALL)  # Ctrl-U
    while line != (line := re.sub(r"[^\x7f\b]?[\x7f\b]", "", line, count=1)):
        pass
    return re.sub(r"[\x00-\x08\x0a-\x1f]", "", line), data[start:end], data[end:]


class LineEditor:
    """prompt_toolkit's editor. Ctrl-C and Ctrl-Z are key bindings here, not signals."""

    def __init__(self, host: EditorHost, interrupts: Interrupts) -> None:
        self._host, self._interrupts = host, interrupts
        self._session: PromptSession[str] | None = None
        self._keys: TypedKeys | None = None

    def message(self) -> str | None:
        from conifer_cli.chat.typed_keys import TypedKeys, prompting

        keys = self._keys = self._keys or TypedKeys()
        try:
            with prompting(keys, question=False):
                self._session = self._session or _session(self._host, keys)
                text = without_surrogates(self._session.prompt(handle_sigint=False))
                self._interrupts.forget()  # a Ctrl-C pressed in $EDITOR must not stop the answer
        except EOFError:
            return None
        if self._host.history is not None and text.strip():
            add_to_history(self._host.history, text)
        return unquoted(text)

    def question(self, text: str) -> str:
        from prompt_toolkit import PromptSession

        from conifer_cli.chat.typed_keys import TypedKeys, prompting

        keys = self._keys = self._keys or TypedKeys()
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            with prompting(keys, question=True):
                session: PromptSession[str] = PromptSession(
                    input=keys, output=_output(), key_bindings=_suspending()
                )
                reply = session.prompt(text, handle_sigint=False).strip()
            self._interrupts.forget()
            return reply
        return ""


Editor = PlainEditor | LineEditor


def open_editor(host: EditorHost, interrupts: Interrupts) -> Editor:
    """Return the editor that this terminal supports."""
    return PlainEditor(interrupts) if dumb() else LineEditor(host, interrupts)


def _output() -> Any:
    """Return an `Output` that never queries the cursor position: some terminals do not reply."""
    from prompt_toolkit.output import ColorDepth
    from prompt_toolkit.output.vt100 import Vt100_Output

    depth = None if console.colours() else ColorDepth.MONOCHROME
    output = Vt100_Output.from_pty(
        sys.stdout, term=os.environ.get("TERM"), default_color_depth=depth
    )
    output.enable_cpr = False
    output._cursor_visible = True  # so that the first output is the prompt
    return output


def _session(host: EditorHost, keys: TypedKeys) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.shortcuts import CompleteStyle

    class HostCompleter(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            start, words = host.complete(document.text_before_cursor)
            back = start - len(document.text_before_cursor)
            return [Completion(word, start_position=back) for word in words]

    def hint(text: Callable[[], str]) -> Callable[[], AnyFormattedText]:
        def fitting() -> AnyFormattedText:
            app = get_app()
            narrow = app.output.get_size().columns < HINT_WIDTH
            return [] if app.is_done or narrow else [(faint, text())]

        return fitting

    faint = FAINT if console.colours() else ""
    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=_continuation,
        placeholder=hint(lambda: PLACEHOLDER) if faint else None,
        rprompt=hint(host.meter),
        completer=HostCompleter(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=InMemoryHistory(read_history(host.history) if host.history else []),
        key_bindings=_bindings(host.keys),
        input=keys,
        output=_output(),
    )


def _suspending() -> KeyBindings:
    """Return bindings in which Ctrl-Z suspends the program."""
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("c-z")
    def _suspend(event: KeyPressEvent) -> None:
        run_in_terminal(lambda: keyboard.stop(group=True))

    return bindings


def _bindings(keys: dict[str, Callable[[], None]]) -> KeyBindings:
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyPressEvent

    bindings = _suspending()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_closed(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    @bindings.add("c-j")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @bindings.add("c-c")
    def _drop(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.app.exit(result="")
        else:
            event.app.exit(exception=KeyboardInterrupt)

    @bindings.add("c-g")
    async def _edit(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = await run_in_terminal(lambda: edit_externally(buffer.text), in_executor=True)
        if text is not None:
            buffer.document = Document(text)

    for key, action in keys.items():

        @bindings.add(key)
        def _act(event: KeyPressEvent, action: Callable[[], None] = action) -> None:
            run_in_terminal(action)

    return bindings


def edit_externally(text: str) -> str | None:
    """Edit text in $VISUAL, $EDITOR or vi. Return the new text, or None on failure."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="conifer-") as folder:
        path = Path(folder, "message.md")
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            with keyboard.lines(lent=True):
                done = subprocess.run([*shlex.split(editor), str(path)], check=False)
            changed = console.decoded(path.read_bytes(), "the message")
        except (OSError, ValueError, errors.UsageError) as error:
            console.problem(f"the editor {editor!r} failed: {errors.why(error)}")
            return None
    return changed.removesuffix("\n") if done.returncode == 0 else None


def history_file() -> Path | None:
    """Return the path of the message history, or None if history is off or unavailable."""
    if os.environ.get("CONIFER_NOHISTORY") or dumb() or not console.is_terminal(sys.stdin):
        return None
    try:
        return options.home() / "history"
    except errors.UsageError:
        return None


def read_history(path: Path) -> list[str]:
    """Return the saved messages, oldest first. An unreadable file is treated as empty."""
    try:
        lines = read_file(path, MAX_HISTORY_BYTES).decode(errors="replace").split("\n")
    except OSError:
        return []
    if parse_json(lines[0], dict) != HISTORY_FORMAT:
        return []
    found = [text for line in lines[1:] if (text := parse_json(line, str)) is not None]
    if len(found) > 2 * MAX_HISTORY:
        with contextlib.suppress(OSError):
            _write_history(path, found[-MAX_HISTORY:])
    return found[-MAX_HISTORY:]


def add_to_history(path: Path, text: str) -> None:
    """Append a message to the history file. Ignores write errors."""
    if len(text) > MAX_MESSAGE:
        return
    with contextlib.suppress(OSError):
        if not path.exists():
            _write_history(path, [])
        with open_regular(path, "r+b") as file:
            if parse_json(file.readline(MAX_MESSAGE), dict) == HISTORY_FORMAT:
                file.seek(0, os.SEEK_END)
                file.write(json.dumps(text).encode() + b"\n")


def _write_history(path: Path, texts: list[str]) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in (HISTORY_FORMAT, *texts))
    write_atomically(path, lines, mode=0o600)


def words(*words: str) -> Complete:
    """Return a completer that offers `words`."""
    return lambda typed: [word for word in words if word.startswith(typed.rpartition(" ")[2])]


complete_nothing = words()


def complete_path(typed: str) -> list[str]:
    """Return the files and folders that complete a path."""
    folder, _, start = typed.rpartition("/")
    where = Path(os.path.expanduser(folder + "/" if "/" in typed else "."))
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(where))
    except OSError:
        return []
    hidden = start.startswith(".")
    found = [n for n in names if n.startswith(start) and n.startswith(".") == hidden]
    return [f"{folder}/{name}" if "/" in typed else name for name in found[:MAX_NAMES]]


def _continuation(width: int, line: int, wraps: int) -> str:
    """Return what is before a further row of a message: dots if Enter began it, else spaces."""
    return " " * width if wraps else CONTINUATION


def complete_model(typed: str) -> list[str]:
    """Return the models that complete a name, those here first, or files if it is a path.

    Before anything is typed, only the models here: the catalog would fill the screen.
    """
    from catalog import entries
    from catalog.store.store import name_of

    if typed.startswith((".", "~")) or ("/" in typed and not typed.startswith("hf:")):
        return complete_path(typed)
    here = [model.model_id or name_of(model) for model in open_store().installed()]
    if here and not typed:
        return list(dict.fromkeys(here))
    return [name for name in dict.fromkeys([*here, *entries()]) if name.startswith(typed)]
