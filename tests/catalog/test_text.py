"""Text is UTF-8; another encoding is told by its name."""

from __future__ import annotations

import pytest

from catalog.text import WrongEncoding, decode


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfa", "a"),
        (b"", ""),
        (b"\0\0\0\0", "\0\0\0\0"),
        (b"a\0b\0c", "a\0b\0c"),
        ("é\ufeff".encode(), "é\ufeff"),
    ],
)
def test_text_is_utf8_without_its_mark(data: bytes, text: str) -> None:
    assert decode(data) == text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("size", [2, 10_000])
def test_other_encodings_are_named(encoding: str, size: int) -> None:
    with pytest.raises(WrongEncoding, match=encoding[:6].upper()):
        decode(("ab" * size).encode(encoding))
    with pytest.raises(WrongEncoding, match="UTF-16"):
        decode(b"\xfe\xff" + "ab".encode("utf-16-be"))
