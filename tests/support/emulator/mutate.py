"""Small mistakes in the kernels' texts, one token each: which of them do checks and numbers see?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.kernels.gpu.texts import TEXT

SWAPS = {"+": "-", "-": "+", "*": "+", "/": "*", "%": "/", "<<": ">>", ">>": "<<"}
SWAPS |= {"&": "|", "|": "&", "<": "<=", "==": "!="}
TOKEN = re.compile(
    r"(?<![\w.])(?:\d+\.\d+(?:e-?\d+)?f|0x[0-9a-f]+|\d+)(?![\w.])"
    r"|(?<= )(?:<<|>>|==|[-+*/%&|<])(?= )"
)


@dataclass(frozen=True)
class Mistake:
    """One token of a file replaced by another."""

    file: str  # below TEXT
    line: int
    old: str
    new: str
    text: str  # of the whole file, with the mistake

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.old} -> {self.new}"


def mistakes(path: Path) -> Iterator[Mistake]:
    """List the mistakes in a file, without those in comments."""
    text = path.read_text()
    for match in TOKEN.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        before = text[start : match.start()]
        if "//" in before or before.lstrip().startswith("#"):
            continue
        old, new = match[0], _other(match[0])
        changed = text[: match.start()] + new + text[match.end() :]
        line = text.count("\n", 0, match.start()) + 1
        yield Mistake(str(path.relative_to(TEXT)), line, old, new, changed)


def _other(token: str) -> str:
    if token in SWAPS:
        return SWAPS[token]
    if token.startswith("0x"):
        return hex(int(token, 16) ^ 1 << (len(token) * 2 % 8))
    if "." in token:
        return repr(float(token[:-1]) * 2 or 1.0) + "f"
    return str(int(token) + 1)
