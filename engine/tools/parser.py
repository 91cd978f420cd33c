"""Find calls of functions in an answer while it streams.

Text before and after calls passes through as soon as it is certain that it belongs to no call.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass

from engine.text.reasoning import Kind, Part, overlap
from engine.tools.bodies import NotACall, Partial, Schemas
from engine.tools.dialects import CallDialect


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call. name: empty except in the call's first piece.

    index: the call's place among the calls of the answer. arguments: a piece of JSON text.
    """

    index: int
    id: str
    name: str
    arguments: str


Piece = Part | CallPiece


class CallParser:
    """Split an answer into text and calls. calls: how many calls have begun."""

    def __init__(self, dialect: CallDialect, schemas: Schemas, begun: str = "") -> None:
        self._dialect, self._schemas = dialect, schemas
        self._held = begun
        self._in_calls = False  # between a list's opening and other text
        self._armed = False  # a call comes next
        self._wrote = False  # the answer has begun with text
        self._opened = ""  # the marker to give back if no call follows
        self._id, self._sent = "", -1  # of the current call; -1: its name is not known yet
        self._header = False  # a header named the function
        self.calls = 0

    def push(self, kind: Kind, text: str) -> Iterator[Piece]:
        """Add labelled text, and yield what is certain."""
        if kind is Kind.CALLED:
            yield from self._end_header()
            self._header = True
            yield self._begin(text, None)
        elif kind is Kind.COMMENTARY and self._header:
            yield self._more(text)
        elif kind is Kind.ANSWER:
            yield from self._end_header()
            self._held += text
            yield from self._read(False)
        else:
            yield kind, text

    def finish(self) -> Iterator[Piece]:
        """Yield the rest at the end of the output."""
        yield from self._end_header()
        yield from self._read(True)
        cut = self._in_calls and not self._armed and self._may_continue(self._held)
        if self._held.strip() and self._sent < 0 and not cut:
            yield Kind.ANSWER, self._opened + self._held
        self._held = ""

    def _end_header(self) -> Iterator[Piece]:
        if self._header:
            self._header, self._sent = False, -1
        yield from ()

    def _read(self, ended: bool) -> Iterator[Piece]:
        before = None
        while before != (state := (len(self._held), self._in_calls, self._armed, self.calls)):
            before = state
            if self._armed:
                yield from self._call(ended)
            elif self._in_calls:
                yield from self._between(ended)
            else:
                yield from self._text(ended)

    def _text(self, ended: bool) -> Iterator[Piece]:
        held, opens = self._held, self._dialect.opens
        if not opens:
            yield from self._write(self._held)
            self._held = ""
            return
        if self._dialect.at_start:
            start = held.lstrip()
            if self._wrote or not any(o.startswith(start) or start.startswith(o) for o in opens):
                opens = self._long_openers
            else:
                held = start if any(start.startswith(mark) for mark in opens) else held
                if not start and not ended:
                    return
        found = [(at, mark) for mark in opens if (at := held.find(mark)) >= 0]
        if found:
            at, mark = min(found)
            before = held[:at].rstrip()
            yield from self._write(before)
            own = mark in self._dialect.again
            self._held = held[at:] if own else held[at + len(mark) :]
            self._opened = held[len(before) : at] + ("" if own else mark)
            self._in_calls = self._armed = True
            return
        kept = 0 if ended else max(overlap(held, mark) for mark in opens)
        certain = held[: len(held) - kept]
        blank = 0 if ended else len(certain) - len(certain.rstrip())  # may precede a call
        yield from self._write(certain[: len(certain) - blank])
        self._held = held[len(certain) - blank :]

    def _write(self, text: str) -> Iterator[Piece]:
        if text:
            self._wrote = self._wrote or bool(text.strip())
            yield Kind.ANSWER, text

    def _call(self, ended: bool) -> Iterator[Piece]:
        if self._sent < 0:
            self._opened += self._skip()
        try:
            found = self._dialect.body(self._held, self._schemas)
        except NotACall:
            self._in_calls = self._armed = False
            text, self._held, self._opened = self._opened + self._held, "", ""
            self._wrote = True
            yield from self._write(text)
            return
        if found is None:
            return
        if self._sent < 0:
            yield self._begin(found.name, found.id)
        if len(found.arguments) > self._sent:
            new = found.arguments[self._sent :]
            self._sent = len(found.arguments)
            yield CallPiece(self.calls - 1, self._id, "", new)
        if found.end is not None:
            yield from self._done(found)

    def _done(self, found: Partial) -> Iterator[Piece]:
        if not found.arguments:
            yield CallPiece(self.calls - 1, self._id, "", "{}")
        self._held = self._held[found.end :]
        self._armed, self._sent, self._opened = False, -1, ""

    def _begin(self, name: str, id: str | None) -> CallPiece:
        self.calls += 1
        self._id, self._sent = id or f"call_{secrets.token_hex(12)}", 0
        return CallPiece(self.calls - 1, self._id, name, "")

    def _more(self, text: str) -> CallPiece:
        return CallPiece(self.calls - 1, self._id, "", text)

    def _between(self, ended: bool) -> Iterator[Piece]:
        self._skip()
        held, dialect = self._held, self._dialect
        if not held:
            return
        begins = dialect.begins(held)
        opener = next((mark for mark in self._long_openers if held.startswith(mark)), None)
        if begins:
            self._armed = True
        elif opener is not None:
            self._armed, self._opened = True, opener
            self._held = held[len(opener) :]
        elif begins is False and not self._may_continue(held):
            self._in_calls, self._wrote = False, True
        yield from ()

    @property
    def _long_openers(self) -> tuple[str, ...]:
        """The markers that begin a call anywhere: a single character does so at the start."""
        return tuple(mark for mark in self._dialect.opens if len(mark) > 1)

    def _may_continue(self, held: str) -> bool:
        marks = (*self._long_openers, *self._dialect.skipped)
        return any(mark.startswith(held) for mark in marks)

    def _skip(self) -> str:
        """Drop and return white space and texts that belong to no call."""
        dropped = ""
        while True:
            rest = self._held.lstrip()
            opening = any(o.startswith(rest) or rest.startswith(o) for o in self._long_openers)
            texts = self._dialect.skipped
            found = next((text for text in texts if rest.startswith(text)), "")
            if rest and opening and not (self._armed and found):
                found = ""
            dropped += self._held[: len(self._held) - len(rest)] + found
            self._held = rest[len(found) :]
            if not found:
                return dropped
