"""Keys for prompt_toolkit, including those typed before its prompt appeared."""

from __future__ import annotations

import os
import sys
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prompt_toolkit.application import Application, get_app_or_none, run_in_terminal
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyPress
from prompt_toolkit.keys import Keys

from conifer_cli.terminal.keyboard import keyboard

ESCAPE = b"\x1b"
CHUNK_BYTES = 1024


class TypedKeys(Vt100Input):
    """The terminal as prompt_toolkit's input. A paste may begin before the prompt."""

    def __init__(self) -> None:
        super().__init__(sys.stdin)
        self._decoder = getincrementaldecoder("utf-8")("surrogateescape")

    def read_keys(self) -> list[KeyPress]:
        """Read the keys that are waiting. An unreadable terminal counts as closed."""
        try:
            data = os.read(self.fileno(), CHUNK_BYTES)
        except OSError:
            data = b""
        self.stdin_reader.closed = not data
        return self._keys_of(data)

    def collected(self) -> list[KeyPress]:
        """Return the keys typed ahead. Each line feed counts as Enter, as in a terminal's lines."""
        data = keyboard.typed()
        keys = self._keys_of(data)
        if data.endswith(ESCAPE):  # a lone Escape key, not the start of a sequence
            keys += self.flush_keys()
        return list(_with_enter(keys))

    def _keys_of(self, data: bytes) -> list[KeyPress]:
        self.vt100_parser.feed(self._decoder.decode(data))
        keys, self._buffer = self._buffer, []
        return keys


def _with_enter(keys: list[KeyPress]) -> Iterator[KeyPress]:
    before = None
    for press in keys:
        if press.key is not Keys.ControlJ:
            yield press
        elif before is not Keys.ControlM:
            yield KeyPress(Keys.ControlM, "\r")
        before = press.key


@contextmanager
def prompting(keys: TypedKeys, question: bool) -> Iterator[None]:
    """Let prompts read keys. question: save keys typed ahead for the next message."""
    with keyboard.editing(_soon(_suspend), _soon(_redraw)):
        store_typeahead(keys, keys.collected())
        saved = get_typeahead(keys) if question else []
        try:
            yield
        finally:
            store_typeahead(keys, [*saved, *get_typeahead(keys)])


def _soon(action: Callable[[Application[object]], object]) -> Callable[[], None]:
    """Return a function that a signal handler may call to act on the running prompt."""

    def schedule() -> None:
        app = get_app_or_none()
        if app is not None and app.loop is not None:
            app.loop.call_soon_threadsafe(action, app)

    return schedule


def _suspend(app: Application[object]) -> None:
    run_in_terminal(keyboard.stop)


def _redraw(app: Application[object]) -> None:
    keyboard.unprocessed()
    app.renderer.reset()
    app.invalidate()
