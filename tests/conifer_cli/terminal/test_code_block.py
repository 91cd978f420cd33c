"""The first code block of an answer, wherever the pieces that it arrives in are cut."""

from __future__ import annotations

import pytest

from conifer_cli.terminal.code_block import FirstBlock

BLOCKS = [
    ("Here:\n```python\nx = 1\n\ny\n```\nand\n```\nno\n```\n", "x = 1\n\ny\n", True),
    ("```\na", "a", False),
    ("~~~~ sh\n~~~\n```\n~~~~~\nrest", "~~~\n```\n", True),
    ("   ```\n    indented\n   ```  \n", "    indented\n", True),
    ("````md\n```\nx\n```\n````", "```\nx\n```\n", True),
    ("```a\n```b\n``` \n", "```b\n", True),
]
NONE = ["", "no code", "`inline`", "```inline``` too\n", "    ```\nindented by four\n"]


def extracted(pieces):
    block = FirstBlock()
    text = "".join(map(block.push, pieces)) + block.finish()
    return text, block


@pytest.mark.parametrize(("text", "code", "ended"), BLOCKS)
def test_the_first_block_is_the_same_at_every_split(text, code, ended):
    whole, block = extracted([text])
    assert (whole, block.begun) == (code, True)
    for at in range(len(text) + 1):
        assert extracted([text[:at], text[at:]])[0] == code
    assert extracted(text)[0] == code
    assert not ended or block.ended


@pytest.mark.parametrize("text", NONE)
def test_a_text_without_a_block_gives_nothing(text):
    code, block = extracted([text])
    assert (code, block.begun) == ("", False)
