"""Remove control sequences from untrusted text, so that it cannot control the terminal.

The filter removes control sequences (CSI, OSC, DCS, SOS, PM, APC and their 8-bit forms), control
characters except newline and tab, and bidirectional overrides. Carriage returns become newlines.
The filter is a state machine, so the result does not depend on how a stream is split.
"""

from __future__ import annotations

import re

# Characters that need the state machine.
_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = frozenset(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]))

# Characters that open a string payload after ESC, and their C1 equivalents.
_STRING_OPENERS = frozenset("]PX^_")
_STRING_C1 = frozenset("\x9d\x90\x98\x9e\x9f")

# A longer payload was probably plain text, so print the rest instead of losing it.
PAYLOAD_LIMIT = 4096

GROUND, RETURN, ESCAPE, CSI, STRING, STRING_ESCAPE = range(6)


class Filter:
    """Clean a stream of text, chunk by chunk: `push` each chunk, then `finish` once."""

    def __init__(self) -> None:
        self._state = GROUND
        self._payload = 0

    def push(self, text: str) -> str:
        """Return the text that is now safe to print."""
        if self._state == GROUND and not _SUSPECT.search(text):
            return text
        steps = (self._ground, self._return, self._escape, self._csi, self._string, self._string)
        return "".join(steps[self._state](char) for char in text)

    def finish(self) -> str:
        """Return any held-back newline, and drop any unfinished sequence."""
        held = "\n" if self._state == RETURN else ""
        self._state = GROUND
        return held

    def _ground(self, char: str) -> str:
        if char == "\x1b":
            self._state = ESCAPE
        elif char == "\r":
            self._state = RETURN
        elif char == "\x9b":
            self._state = CSI
        elif char in _STRING_C1:
            self._open_string()
        elif char in "\n\t" or not (char < " " or "\x7f" <= char <= "\x9f" or char in _INVISIBLE):
            return char
        return ""

    def _return(self, char: str) -> str:
        self._state = GROUND
        return "\n" if char == "\n" else "\n" + self._ground(char)

    def _escape(self, char: str) -> str:
        if char == "[":
            self._state = CSI
        elif char in _STRING_OPENERS:
            self._open_string()
        elif " " <= char <= "/":
            pass  # an intermediate byte; the final byte follows
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
        if self._state == STRING_ESCAPE:
            self._state = GROUND if char == "\\" else ESCAPE
            return "" if char == "\\" else self._escape(char)
        self._payload += 1
        if char == "\x1b":
            self._state = STRING_ESCAPE
        elif char in ("\x07", "\x18", "\x1a", "\x9c") or self._payload > PAYLOAD_LIMIT:
            self._state = GROUND
        return ""


def clean(text: str) -> str:
    """Clean a complete text, keeping newlines and tabs."""
    stream = Filter()
    return stream.push(text) + stream.finish()


def clean_line(text: str) -> str:
    """Clean a name, a message or a metadata value, and reduce it to one line."""
    return re.sub(r"[\s\u2028\u2029]+", " ", clean(text)).strip()
