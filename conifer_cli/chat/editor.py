"""Where a person types a message: a line editor, or plain input where the terminal is dumb.

The editor is prompt_toolkit's, imported when the first message is asked for. What a message means
is not known here.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from conifer_cli import errors, options
from conifer_cli.chat import history
from conifer_cli.interrupts import Interrupts
from conifer_cli.terminal import console

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

PROMPT, CONTINUATION = ">>> ", "... "
PLACEHOLDER = "Send a message (/? for help)"
QUOTES = '"""'
FAINT = "ansibrightblack"

# The text before the cursor -> where in it the word begins, and what it may become.
Complete = Callable[[str], tuple[int, list[str]]]


@dataclass
class EditorHost:
    """What an editor is given: who completes, what is remembered, which keys do more.

    meter: what stands at the right of the prompt. keys: by prompt_toolkit's names; what they do
    may print.
    """

    complete: Complete
    history: Path | None
    meter: Callable[[], str]
    keys: dict[str, Callable[[], None]]


class Editor(Protocol):
    """Asks a person."""

    def message(self) -> str | None:
        """Ask for a message; None at the end of input. Raises KeyboardInterrupt for Ctrl-C."""

    def question(self, text: str) -> str:
        """Ask for a short reply, empty for none."""


def open_editor(desk: EditorHost, interrupts: Interrupts) -> Editor:
    """Choose the editor that this terminal can bear."""
    return PlainEditor(interrupts) if console.dumb() else LineEditor(desk, interrupts)


def closed(text: str) -> bool:
    """Tell whether a message is complete: what three quotes open, three quotes must close."""
    text = text.strip()
    return not text.startswith(QUOTES) or (len(text) >= 6 and text.endswith(QUOTES))


def readable(text: str) -> str:
    """Put U+FFFD for what was typed and is no character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unquoted(text: str) -> str:
    """Take the quotes around a message away."""
    bare = text.strip()
    if bare.startswith(QUOTES) and closed(bare):
        return bare[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


class PlainEditor:
    """The terminal's own line, and readline's keys where there is one."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def message(self) -> str | None:
        text: str | None = ""
        prompt = PROMPT
        with self._interrupts.raising():
            while text is not None:
                line = console.ask(prompt)
                text = None if line is None else text + readable(line)
                if text is None or closed(text):
                    break
                text, prompt = text + "\n", CONTINUATION
        return None if text is None else unquoted(text)

    def question(self, text: str) -> str:
        try:
            with self._interrupts.raising():
                return (console.ask(text) or "").strip()
        except KeyboardInterrupt:
            console.write_stdout("\n")
            return ""


class LineEditor:
    """prompt_toolkit's editor. Ctrl-C is a key here; one that was noted before, as in $EDITOR, is
    not meant for the answer to what is typed now.
    """

    def __init__(self, desk: EditorHost, interrupts: Interrupts) -> None:
        self._desk, self._interrupts = desk, interrupts
        self._session: PromptSession[str] | None = None

    def message(self) -> str | None:
        if self._session is None:
            self._session = _session(self._desk)
        try:
            text = readable(self._session.prompt(handle_sigint=False))
        except EOFError:
            return None
        self._interrupts.forget()
        if self._desk.history is not None and text.strip():
            history.add(self._desk.history, text)
        return unquoted(text)

    def question(self, text: str) -> str:
        from prompt_toolkit import PromptSession

        with contextlib.suppress(EOFError, KeyboardInterrupt):
            session: PromptSession[str] = PromptSession(output=_output())
            reply = session.prompt(text, handle_sigint=False).strip()
            self._interrupts.forget()
            return reply
        return ""


def _output() -> Any:
    """Say how to draw: without asking the terminal where its cursor is, which not all can tell."""
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    output.enable_cpr = False
    return output


def _session(desk: EditorHost) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.shortcuts import CompleteStyle

    class Words(Completer):
        def get_completions(
            self, document: Document, complete_event: CompleteEvent
        ) -> Iterable[Completion]:
            start, words = desk.complete(document.text_before_cursor)
            back = start - len(document.text_before_cursor)
            return [Completion(word, start_position=back) for word in words]

    faint = "" if "NO_COLOR" in os.environ else FAINT
    return PromptSession(
        PROMPT,
        multiline=True,
        prompt_continuation=CONTINUATION,
        placeholder=[(faint, PLACEHOLDER)] if faint else None,
        rprompt=lambda: [(faint, "" if get_app().is_done else desk.meter())],
        completer=Words(),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        history=InMemoryHistory(history.read(desk.history) if desk.history else []),
        key_bindings=_bindings(desk.keys),
        output=_output(),
    )


def _bindings(keys: dict[str, Callable[[], None]]) -> KeyBindings:
    """Enter sends, Alt-Enter and Ctrl-J break the line, Ctrl-G opens the editor of choice."""
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if closed(buffer.text):
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
        text = await run_in_terminal(lambda: edited(buffer.text), in_executor=True)
        if text is not None:
            buffer.document = Document(text)

    for key, action in keys.items():

        @bindings.add(key)
        def _act(event: KeyPressEvent, action: Callable[[], None] = action) -> None:
            run_in_terminal(action)

    return bindings


def edited(text: str) -> str | None:
    """Have a person edit text in $VISUAL, $EDITOR or vi; None where that failed."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="conifer-") as folder:
        path = Path(folder, "message.md")
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            done = subprocess.run([*shlex.split(editor), str(path)], check=False)
            changed = path.read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError) as error:
            console.log(f"conifer: the editor {editor!r} failed: {error}")
            return None
    return changed.removesuffix("\n") if done.returncode == 0 else None


def history_file() -> Path | None:
    """Say where what is typed is kept, if it is to be and can."""
    if os.environ.get("CONIFER_NOHISTORY") or not console.is_terminal(sys.stdin):
        return None
    if console.dumb():  # there is no line editor that would read it
        return None
    try:
        return options.home() / "history"
    except errors.UsageError:
        return None
