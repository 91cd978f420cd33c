"""The first code block of an answer, however the stream is split."""

from __future__ import annotations

import pytest

from conifer_cli.errors import NoCode
from conifer_cli.terminal.code_block import first_code_block

BLOCKS = [
    ("Here:\n```python\nx = 1\n\ny\n```\nand\n```\nno\n```\n", "x = 1\n\ny\n", True),
    ("```\na", "a", False),
    ("~~~~ sh\n~~~\n```\n~~~~~\nrest", "~~~\n```\n", True),
    ("   ```\n    indented\n   ```  \n", "    indented\n", True),
    ("````md\n```\nx\n```\n````", "```\nx\n```\n", True),
    ("```a\n```b\n``` \n", "```b\n", True),
]
NONE = [
    *("", "no code", "`inline`", "```inline``` too\n"),
    *("    ```\nindented by four\n", "\r```\nindented by no space\n"),
]


@pytest.mark.parametrize(("text", "code", "ended"), BLOCKS)
def test_the_first_block_is_the_same_at_every_split(text, code, ended):
    for pieces in ([text], text, *([text[:at], text[at:]] for at in range(len(text) + 1))):
        assert "".join(first_code_block(pieces)) == code
    unread = iter([text + "\n", "next"])
    assert "".join(first_code_block(unread)).startswith(code)
    assert list(unread) == ["next"] * ended


@pytest.mark.parametrize("text", NONE)
def test_a_text_without_a_block_gives_nothing(text):
    for pieces in ([text], text):
        with pytest.raises(NoCode):
            assert "".join(first_code_block(pieces)) == ""
