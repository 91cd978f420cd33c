"""Metadata as GGUF packs it. Values come with their type in front, as behind a key."""

from __future__ import annotations

import struct

# Types of metadata values.
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def packed(text: str) -> bytes:
    """Pack a key, or a text without its type."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def string(text: str) -> bytes:
    """Pack a text."""
    return struct.pack("<I", STRING) + packed(text)


def uint32(value: int) -> bytes:
    """Pack a whole number."""
    return struct.pack("<II", UINT32, value)


def float32(value: float) -> bytes:
    """Pack a number."""
    return struct.pack("<If", FLOAT32, value)


def boolean(value: bool) -> bytes:
    """Pack a truth."""
    return struct.pack("<I?", BOOL, value)


def strings(texts: list[str]) -> bytes:
    """Pack an array of texts."""
    return array(STRING, b"".join(packed(text) for text in texts), len(texts))


def array(type_id: int, payload: bytes, count: int) -> bytes:
    """Pack an array whose `count` values of one type are packed already."""
    return struct.pack("<IIQ", ARRAY, type_id, count) + payload
