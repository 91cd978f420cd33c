"""Fenced Markdown code blocks: recognise fences, and extract the first block from a stream."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from conifer_cli.errors import NoCode

FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>`{3,}(?=[^`]*$)|~{3,})\s*(?P<language>[\w+#.-]*).*")


def closes(line: str, fence: str) -> bool:
    """True if a line closes the block that `fence` opened.

    The closing fence must be at least as long, with nothing else on the line.
    """
    line = line.strip()
    return len(line) >= len(fence) and not line.strip(fence[0])


def first_code_block(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the first code block line by line, then stop reading.

    Raises NoCode if there is no code block.
    """
    fence = ""
    held: list[str] = []  # the pieces of the current line
    for piece in pieces:
        *lines, rest = piece.split("\n")
        code = ""
        for end in lines:
            whole = "".join([*held, end])
            held.clear()
            if not fence:
                fence = _opened(whole)
            elif closes(whole, fence):
                yield code
                return
            else:
                code += whole + "\n"
        held.append(rest)
        yield code
    line = "".join(held)
    if not fence and not _opened(line):
        raise NoCode("the answer contains no code block")
    if fence and not closes(line, fence):
        yield line


def _opened(line: str) -> str:
    """Return the fence if a line opens a block, else "".

    A fence is indented by at most three spaces.
    """
    found = FENCE.fullmatch(line)
    return found["fence"] if found and found["indent"] in ("", " ", "  ", "   ") else ""
