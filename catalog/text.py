"""Decode UTF-8 text."""

from __future__ import annotations

# Byte-order marks of other encodings. That of UTF-32 begins with that of UTF-16.
MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
SAMPLE_BYTES = 4096


class WrongEncoding(ValueError):
    """Text is in an encoding other than UTF-8. The message names the encoding."""


def decode(data: bytes, errors: str = "strict") -> str:
    """Decode UTF-8 text, without its byte-order mark. errors: as for bytes.decode.

    Raises WrongEncoding for UTF-16 or UTF-32, recognised by a byte-order mark or by NUL in every
    other byte, or UnicodeDecodeError for invalid bytes.
    """
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), None)
    halves = [data[start:SAMPLE_BYTES:2] for start in (0, 1)]
    nuls = sorted(half.count(0) for half in halves)
    if encoding is None and len(data) % 2 == 0 and nuls[0] == 0 and nuls[1] > len(halves[0]) // 2:
        encoding = "UTF-16"
    if encoding is not None:
        raise WrongEncoding(encoding)
    return data.decode("utf-8", errors).removeprefix("\ufeff")
