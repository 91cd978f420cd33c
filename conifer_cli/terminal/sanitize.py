"""A filter between text from elsewhere and the terminal: what comes out cannot drive one.

Models, file names, metadata and servers all write text that we print. The filter drops control
sequences whole (CSI, OSC, DCS, SOS, PM, APC, their 8-bit forms), every other control character but
newline and tab, and the characters that reverse the order of text; a carriage return becomes a
newline. It is one state machine fed a character at a time, so that where a stream is split cannot
change what comes out. It knows nothing of styles or widths.
"""

from __future__ import annotations

import re

# Ground state: everything that is not plain text on its own.
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))

# What follows ESC and opens a payload that only a string terminator ends, and the same as one C1.
_STRING_OPENERS = frozenset("]PX^_")
_STRING_C1 = frozenset("\x9d\x90\x98\x9e\x9f")
_CSI_C1 = "\x9b"
_TERMINATOR_C1 = "\x9c"

# A payload longer than this was never one: the rest is shown instead of lost.
PAYLOAD_LIMIT = 4096

GROUND, RETURN, ESCAPE, CSI, STRING, STRING_ESCAPE = range(6)


class Filter:
    """Clean a stream of text, chunk by chunk: `push` each chunk, then `finish` once."""

    def __init__(self) -> None:
        self._state = GROUND
        self._payload = 0

    def push(self, text: str) -> str:
        """Return the part of the stream that is now safe to print."""
        if self._state == GROUND and not _SUSPECT.search(text):
            return text
        return "".join(self._step(char) for char in text)

    def finish(self) -> str:
        """Return what was held back; an unfinished sequence is dropped."""
        held = "\n" if self._state == RETURN else ""
        self._state = GROUND
        return held

    def _step(self, char: str) -> str:
        """Advance by one character and return what it lets through."""
        if self._state == GROUND:
            return self._ground(char)
        if self._state == RETURN:
            self._state = GROUND
            return "\n" if char == "\n" else "\n" + self._ground(char)
        if self._state == ESCAPE:
            return self._escape(char)
        if self._state == CSI:
            return self._csi(char)
        return self._string(char)

    def _ground(self, char: str) -> str:
        if char == "\x1b":
            self._state = ESCAPE
        elif char == "\r":
            self._state = RETURN
        elif char == _CSI_C1:
            self._state = CSI
        elif char in _STRING_C1:
            self._open_string()
        elif char in "\n\t" or not (char < " " or "\x7f" <= char <= "\x9f" or char in _INVISIBLE):
            return char
        return ""

    def _escape(self, char: str) -> str:
        if char == "[":
            self._state = CSI
        elif char in _STRING_OPENERS:
            self._open_string()
        elif " " <= char <= "/":
            pass  # an intermediate byte: the final one is still to come
        elif "0" <= char <= "~":
            self._state = GROUND
        else:
            self._state = GROUND
            return self._ground(char)
        return ""

    def _csi(self, char: str) -> str:
        if " " <= char <= "?":
            return ""
        self._state = GROUND
        return "" if "@" <= char <= "~" else self._ground(char)

    def _open_string(self) -> None:
        self._state = STRING
        self._payload = 0

    def _string(self, char: str) -> str:
        """Inside a payload: BEL, ST and CAN or SUB end it, and so does its length."""
        if self._state == STRING_ESCAPE:
            self._state = GROUND if char == "\\" else ESCAPE
            return "" if char == "\\" else self._escape(char)
        self._payload += 1
        if char == "\x1b":
            self._state = STRING_ESCAPE
        elif char in ("\x07", "\x18", "\x1a", _TERMINATOR_C1) or self._payload > PAYLOAD_LIMIT:
            self._state = GROUND
        return ""


def clean(text: str) -> str:
    """Clean a whole text; newlines and tabs stay."""
    sieve = Filter()
    return sieve.push(text) + sieve.finish()


def clean_line(text: str) -> str:
    """Clean a name, a message or a metadata value down to one line."""
    return re.sub(r"[\s\u2028\u2029]+", " ", clean(text)).strip()
