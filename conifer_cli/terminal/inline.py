"""Inline Markdown: parse the emphasis, code and links in a line into styled spans.

The text must already be clean. Underscores are literal: in answers they appear in names far more
often than as emphasis.
"""

from __future__ import annotations

import re

Span = tuple[str, str]  # (SGR parameters, text)
Row = list[Span]

BOLD, DIM, ITALIC, UNDERLINE, STRUCK, CODE = "1", "2", "3", "4", "9", "36"

_MARKS_AT_END = re.compile(r"[*`~\\]+$")
_INLINE = re.compile(
    r"\\(?P<escaped>[\\`*_{}\[\]()#+.!|>~-])|(?P<code>`+)|(?P<emphasis>\*\*\*|\*\*|~~|\*)"
    r"|\[(?P<link>[^\]\[]+)\]\((?P<target>[^()\s]*)\)"
)
_EMPHASIS = {"***": f"{BOLD};{ITALIC}", "**": BOLD, "~~": STRUCK, "*": ITALIC}


def cells(text: str) -> int:
    """Return the width of text on a terminal, in columns."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def width_of(row: Row) -> int:
    return sum(cells(text) for _, text in row)


def joined(row: Row) -> Row:
    """Merge adjacent spans that have the same style."""
    whole: Row = []
    for style, text in row:
        if whole and whole[-1][0] == style:
            whole[-1] = (style, whole[-1][1] + text)
        else:
            whole.append((style, text))
    return whole


def settled(text: str) -> bool:
    """True if no marker in an unfinished line still needs a closing marker."""
    return inline(text, "", True) == inline(text, "", False)


def inline(text: str, style: str, ended: bool) -> Row:
    """Parse a line into spans. Unless `ended`, close open markers at the end of the line."""
    if not ended:
        text = _MARKS_AT_END.sub("", text)
    row: Row = []
    at = 0
    while found := _INLINE.search(text, at):
        row.append((style, text[at : found.start()]))
        spans, at = _READERS[found.lastgroup or ""](text, found, style, ended)
        row += spans
    row.append((style, text[at:]))
    return [span for span in row if span[1]]


def _read_escaped(text: str, mark: re.Match[str], style: str, ended: bool) -> tuple[Row, int]:
    return [(style, mark["escaped"])], mark.end()


def _read_code(text: str, mark: re.Match[str], style: str, ended: bool) -> tuple[Row, int]:
    closing = re.compile(rf"(?<!`){mark[0]}(?!`)").search(text, mark.end())
    if closing is None and (ended or not cells(text[mark.end() : mark.end() + 1])):
        return [(style, mark[0])], mark.end()
    end = closing.start() if closing else len(text)
    code = text[mark.end() : end]
    if len(code) > 1 and code.startswith(" ") and code.endswith(" ") and code.strip():
        code = code[1:-1]
    return [(styled(style, CODE), code)], closing.end() if closing else end


def _read_emphasis(text: str, mark: re.Match[str], style: str, ended: bool) -> tuple[Row, int]:
    inner_style = styled(style, _EMPHASIS[mark[0]])
    before, after = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    within_word = before.isalnum() and after.isalnum()
    opens = not within_word or (ended and mark[0] == "**")
    if not opens or not after.strip() or not cells(after):
        return [(style, mark[0])], mark.end()
    literal = re.escape(mark[0])
    pattern = (
        rf"(?<!\s){literal}" if len(mark[0]) > 1 else rf"(?<![\s{literal}]){literal}(?!{literal})"
    )
    closing = re.compile(pattern).search(text, mark.end() + 1)
    if closing is None:
        if ended:
            return [(style, mark[0])], mark.end()
        return inline(text[mark.end() :], inner_style, False), len(text)
    inner = inline(text[mark.end() : closing.start()], inner_style, True)
    return inner, closing.end()


def _read_link(text: str, mark: re.Match[str], style: str, ended: bool) -> tuple[Row, int]:
    row = inline(mark["link"], styled(style, UNDERLINE), True)
    if mark["target"] and mark["target"] != mark["link"]:
        row.append((styled(style, DIM), f" ({mark['target']})"))
    return row, mark.end()


_READERS = {
    "escaped": _read_escaped,
    "code": _read_code,
    "emphasis": _read_emphasis,
    "target": _read_link,  # the last group in a link
}


def styled(style: str, more: str) -> str:
    """Combine two styles."""
    return f"{style};{more}" if style else more
