"""Unsound files: each ends in one error of ours that says where, at once and in little memory."""

from __future__ import annotations

import os
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from engine.errors import GGUFError, MoreNeeded, UnsupportedError
from engine.gguf import reader
from engine.gguf.reader import merge_parts, open_model, read_header
from support.gguf_writer import (
    ARRAY,
    STRING,
    Raw,
    Tensor,
    array,
    gguf_bytes,
    split_bytes,
    string,
    u32,
    u64,
    write_parts,
)

REJECTIONS = (GGUFError, UnsupportedError)
LIMIT_S = 0.050
LIMIT_BYTES = 1 << 20
NAMES_A_PLACE = re.compile(r"byte [\d,]+|key '|tensor '|not a GGUF file|cut short: [\d,]+ of")

U8, U32, BOOL, F64 = 0, 4, 7, 12
W = Tensor("w", (32,))


def rejection(blob: bytes) -> str:
    """Return the message of the error that reading must end in; it must come fast and cheap."""
    seconds = []
    for _ in range(3):  # the best of three, as other processes share the machine
        start = time.perf_counter()
        with pytest.raises(REJECTIONS):
            read_header(blob)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) <= LIMIT_S
    with traced_peak() as peak, pytest.raises(REJECTIONS) as caught:
        read_header(blob)
    assert peak[0] <= LIMIT_BYTES
    message = str(caught.value)
    assert len(message) < 500
    assert NAMES_A_PLACE.search(message)
    return message


@contextmanager
def traced_peak() -> Iterator[list[int]]:
    """Measure the most bytes that Python objects took inside the block."""
    peak = [0]
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak[0] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def raw_key(type_id: int, payload: bytes = b"") -> bytes:
    """Build a file of one key, which ends with its value."""
    return gguf_bytes([("k", Raw(type_id, payload))], pad_last=False)


def raw_array(type_id: int, payload: bytes, count: int) -> bytes:
    value = array(type_id, payload, count)
    return raw_key(value.type_id, value.payload)


MALFORMED: dict[str, tuple[bytes, str]] = {
    # Preamble
    "empty file": (b"", "byte 0: expected 4 more bytes, but the file ends at byte 0"),
    "wrong magic": (
        gguf_bytes(magic=b"GGUG"),
        "not a GGUF file, but a file that starts with the bytes 47 47 55 47",
    ),
    "older magic": (gguf_bytes(magic=b"ggml"), "not a GGUF file, but a GGML file"),
    "magic only": (b"GGUF", "byte 4: expected 4 more bytes, but the file ends at byte 4"),
    "version 0": (gguf_bytes(version=0), "GGUF version 0"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "no counts": (b"GGUF" + u32(3), "byte 8: expected 8 more bytes"),
    "no key count": (b"GGUF" + u32(3) + u64(0), "byte 16: expected 8 more bytes"),
    "too many tensors": (
        gguf_bytes(tensor_count=65_537),
        "tensor count must be at most 65,536, got 65,537",
    ),
    "too many keys": (gguf_bytes(key_count=65_537), "key count must be at most 65,536, got 65,537"),
    "more keys than bytes": (gguf_bytes(key_count=65_536), "expected 851,968 more bytes"),
    "more tensors than bytes": (gguf_bytes(tensor_count=100), "expected 2,400 more bytes"),
    # Keys
    "empty key": (
        gguf_bytes({"": 1}),
        "key 0, byte 32: string must be from 1 to 65,535 bytes long, got 0",
    ),
    "key too long": (gguf_bytes({"k" * 65_536: 1}), "65,535 bytes long, got 65,536"),
    "long key with a bad value": (gguf_bytes({"k" * 65_535: Raw(99)}), "type 99"),
    "key past the end": (
        gguf_bytes([(string("k", 60_000), 1)]),
        "key 0, byte 32: expected 60,000 more bytes",
    ),
    "key not UTF-8": (gguf_bytes([(string(b"\xff\xfe"), 1)]), "key 0, .* not UTF-8"),
    "key with a lone surrogate": (gguf_bytes([(string(b"\xed\xa0\x80"), 1)]), "not UTF-8"),
    "key twice": (gguf_bytes([("k", 1), ("k", 2)]), "key 'k', .* duplicate name"),
    "one key fewer than counted": (
        gguf_bytes({"k": "x" * 20}, key_count=2, pad_last=False),
        "key 1, byte 65: expected 8 more bytes, but the file ends at byte 65",
    ),
    "key without a type": (gguf_bytes()[:16] + u64(1) + string("k" * 5), "key 'kkkkk', byte 37"),
    # Values
    "unknown value type": (raw_key(13, bytes(8)), "key 'k', .* unknown value type 13"),
    "huge value type": (raw_key(2**32 - 1, bytes(8)), "unknown value type 4294967295"),
    "number cut short": (raw_key(F64, bytes(7)), "key 'k', .* expected 8 more bytes"),
    "bool of 7": (raw_key(BOOL, b"\x07"), "key 'k', .* bool must be 0 or 1, got 7"),
    "bool of 255": (raw_key(BOOL, b"\xff"), "bool must be 0 or 1, got 255"),
    "string past the end": (raw_key(STRING, string("abc", 4)), "key 'k', .* expected 4 more bytes"),
    "string over 16 MiB": (
        raw_key(STRING, string("abc", 2**24 + 1)),
        "from 0 to 16,777,216 bytes long, got 16,777,217",
    ),
    "string not UTF-8": (raw_key(STRING, string(b"\xc0\x80")), "key 'k', .* not UTF-8"),
    "template over 1 MiB": (
        gguf_bytes({"tokenizer.chat_template": Raw(STRING, u64(2**20 + 1) + bytes(2**20 + 1))}),
        "key 'tokenizer.chat_template', .* from 0 to 1,048,576 bytes long",
    ),
    "named template over 1 MiB": (
        gguf_bytes({"tokenizer.chat_template.tool_use": "x" * (2**20 + 1)}),
        "key 'tokenizer.chat_template.tool_use'",
    ),
    # Arrays
    "array without a type": (raw_key(ARRAY), "key 'k', .* expected 4 more bytes"),
    "array of arrays": (raw_array(ARRAY, bytes(32), 1), "'k', .* nested arrays"),
    "array of an unknown type": (raw_array(13, b"", 0), "unknown element type 13"),
    "array over 4 Mi": (raw_array(U8, b"", 2**22 + 1), "elements, got 4,194,305"),
    "array past the end": (raw_array(U32, bytes(8), 3), "'k', .* expected 12 more bytes"),
    "array with a bool of 2": (raw_array(BOOL, b"\0\1\2", 3), "bool must be 0 or 1, got 2"),
    "strings past the end": (raw_array(STRING, string("a"), 2), "expected 16 more bytes"),
    "last string past the end": (
        raw_array(STRING, string("a") + string("b", 2), 2),
        r"key 'k'\[1\], byte 66: expected 2 more bytes",
    ),
    "last string without a length": (
        raw_array(STRING, string("abcdefgh") + bytes(7), 2),
        r"key 'k'\[1\], byte 65: expected 8 more bytes",
    ),
    "second string over 16 MiB": (
        raw_array(STRING, string("") + string("b", 2**24 + 1), 2),
        r"key 'k'\[1\], .* got 16,777,217",
    ),
    "second string not UTF-8": (
        raw_array(STRING, string("a") + string(b"\x80"), 2),
        r"key 'k'\[1\], .* not UTF-8",
    ),
    # Alignment
    "alignment as int32": (gguf_bytes({"general.alignment": np.int32(32)}), "must be a uint32"),
    "alignment as a string": (gguf_bytes({"general.alignment": "32"}), "must be a uint32"),
    "alignment 0": (gguf_bytes({"general.alignment": 0}), "key 'general.alignment' must .* got 0"),
    "alignment 4": (gguf_bytes({"general.alignment": 4}), "'general.alignment' must .* got 4"),
    "alignment 48": (gguf_bytes({"general.alignment": 48}), "must be a power of two .* got 48"),
    "alignment 8192": (gguf_bytes({"general.alignment": 8192}), "got 8192"),
    # Tensors
    "empty tensor name": (gguf_bytes({}, [Tensor("", (1,))]), "tensor 0, byte 32: string must be"),
    "tensor name of 64": (
        gguf_bytes({}, [Tensor("w" * 64, (1,))]),
        "from 1 to 63 bytes long, got 64",
    ),
    "tensor name not UTF-8": (gguf_bytes({}, [Tensor(string(b"\xff"), (1,))]), "not UTF-8"),
    "tensor twice": (gguf_bytes({}, [W, W]), "tensor 'w', .* duplicate name"),
    "five dimensions": (
        gguf_bytes({}, [Tensor("w", (1,) * 5)]),
        "tensor 'w', .* at most 4 dimensions, got 5",
    ),
    "2^32 - 1 dimensions": (
        gguf_bytes({}, [Tensor("w", (1,), dim_count=2**32 - 1)]),
        "at most 4 dimensions, got 4,294,967,295",
    ),
    "too many weights": (
        gguf_bytes({}, [Tensor("w", (), dims=(2**20, 2**20, 2))]),
        r"tensor 'w', .* more than 2\^40 weights",
    ),
    "a huge dimension beside 0": (
        gguf_bytes({}, [Tensor("w", (), dims=(0, 2**41))]),
        r"tensor 'w', .* more than 2\^40 weights",
    ),
    "dimensions that wrap to 0": (
        gguf_bytes({}, [Tensor("w", (), dims=(2**32, 2**32))]),
        r"more than 2\^40 weights",
    ),
    "row not of whole blocks": (
        gguf_bytes({}, [Tensor("w", (32, 48), "Q4_0")]),
        r"tensor 'w', .* multiple of the Q4_0 block size \(32\), got 48",
    ),
    "scalar of a block type": (
        gguf_bytes({}, [Tensor("w", (), "Q8_0")]),
        r"block size \(32\), got 1",
    ),
    "unsupported type": (
        gguf_bytes({}, [Tensor("w", (256,), 15)]),
        "'w' has the unsupported type Q8_K",
    ),
    "removed type": (gguf_bytes({}, [Tensor("w", (32,), 4)]), "'w' has the unsupported type Q4_2"),
    "unknown type": (
        gguf_bytes({}, [Tensor("w", (32,), 1000)]),
        "'w' has the unsupported type 1000",
    ),
    "one tensor fewer than counted": (
        gguf_bytes({}, [W], tensor_count=2),
        "tensor 1, byte 65: string",
    ),
    "one tensor more than counted": (
        gguf_bytes({}, [W, Tensor("v", (99,))], tensor_count=1),
        "byte 192, after the last tensor, but its size is 640 bytes",
    ),
    "no room for the data": (
        gguf_bytes({}, [W])[:-1],
        "the file is cut short: 191 of 192 bytes are there",
    ),
    "junk after the tensors": (gguf_bytes({}, [W], trailing=b"x"), "byte 192, .* 193 bytes"),
    "junk after the keys": (gguf_bytes({"k": 1}, trailing=bytes(33)), "byte 64, .* 97 bytes"),
}


def test_there_are_enough_malformed_headers() -> None:
    assert len(MALFORMED) >= 46


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_header_is_rejected_at_once_saying_where(case: str) -> None:
    blob, message = MALFORMED[case]
    assert re.search(message, rejection(blob))


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_rejected_by_name(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(MALFORMED[case][0])
    with pytest.raises(REJECTIONS, match=r"bad\.gguf: "):
        open_model(path)


def test_unsupported_type_is_not_called_damage() -> None:
    with pytest.raises(UnsupportedError):
        read_header(gguf_bytes({}, [Tensor("w", (256,), 15)]))


def test_bytes_beyond_the_file_size_are_refused() -> None:
    with pytest.raises(GGUFError, match="received 64 bytes, but the file is only 63 bytes"):
        read_header(gguf_bytes({"k": 1}), file_size=63)


def test_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(GGUFError, match=r"pipe\.gguf: not a regular file"):
        open_model(tmp_path / "pipe.gguf")


def test_header_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 100)
    read_header(gguf_bytes({"k": ["x" * 30]}))
    for value in ("x" * 80, ["x" * 40, "x" * 40], np.zeros(80, np.uint8)):
        with pytest.raises(GGUFError, match=r"key 'k'.*the header is larger than 100 bytes"):
            read_header(gguf_bytes({"k": value}))


def test_strings_of_all_arrays_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_ELEMENTS", 5)
    read_header(gguf_bytes({"a": ["x"] * 3, "b": ["x"] * 2, "c": np.zeros(5)}))
    with pytest.raises(GGUFError, match=r"key 'b', .* more than 5 strings"):
        read_header(gguf_bytes({"a": ["x"] * 3, "b": ["x"] * 3}))


# Length bombs: twelve fields that say how much follows, each claiming far more than there is.

HEAD = b"GGUF" + u32(3)
ONE_KEY = HEAD + u64(0) + u64(1) + string("k")
ONE_TENSOR = HEAD + u64(1) + u64(0) + string("w")
LENGTH_FIELDS = {
    "tensor count": (HEAD, u64(0) + bytes(24)),
    "key count": (HEAD + u64(0), bytes(24)),
    "key length": (HEAD + u64(0) + u64(1), b"k" + u32(U8) + bytes(9)),
    "string length": (ONE_KEY + u32(STRING), b"abc"),
    "count of u8": (ONE_KEY + u32(ARRAY) + u32(U8), bytes(8)),
    "count of f64": (ONE_KEY + u32(ARRAY) + u32(F64), bytes(8)),
    "count of bool": (ONE_KEY + u32(ARRAY) + u32(BOOL), bytes(8)),
    "count of strings": (ONE_KEY + u32(ARRAY) + u32(STRING), bytes(8)),
    "length in an array": (ONE_KEY + u32(ARRAY) + u32(STRING) + u64(1), b"abc"),
    "tensor name length": (HEAD + u64(1) + u64(0), b"w" + bytes(24)),
    "dimension": (ONE_TENSOR + u32(1), u32(0) + u64(0)),
    "tensor offset": (ONE_TENSOR + u32(1) + u64(1) + u32(0), bytes(4)),
}


@pytest.mark.parametrize("length", [2**31 - 1, 2**32, 2**62, 2**63, 2**64 - 1], ids=hex)
@pytest.mark.parametrize("field", LENGTH_FIELDS)
def test_length_bomb_is_rejected_at_once(field: str, length: int) -> None:
    before, after = LENGTH_FIELDS[field]
    bomb = before + u64(length) + after
    assert len(bomb) <= 64
    rejection(bomb)


# Files cut short.


def sound_file(size_bytes: int) -> bytes:
    """Build a sound file of that size, which ends with its last tensor."""
    metadata = {"general.architecture": "llama", "tokens": [f"token {i}" for i in range(40)]}
    tensors = [Tensor("blk.0.attn_q.weight", (4, 32), "Q8_0"), Tensor("norm.weight", (7,))]
    rest = size_bytes - len(gguf_bytes(metadata, [*tensors, Tensor("output.weight", (0,))]))
    blob = gguf_bytes(metadata, [*tensors, Tensor("output.weight", (rest // 4,))])
    assert len(blob) == size_bytes == read_header(blob).size_bytes
    return blob


def test_every_prefix_of_a_file_is_rejected() -> None:
    blob = sound_file(4096)
    for size_bytes in range(len(blob)):
        with pytest.raises(GGUFError) as caught:
            read_header(blob[:size_bytes])
        assert NAMES_A_PLACE.search(str(caught.value))
        assert not isinstance(caught.value, MoreNeeded)


def test_every_prefix_with_the_file_size_asks_for_more_or_is_the_whole_header() -> None:
    blob = sound_file(4096)
    whole = read_header(blob)
    asked = 0
    for size_bytes in range(len(blob)):
        try:
            assert read_header(blob[:size_bytes], file_size=len(blob)) == whole
        except MoreNeeded as more:
            assert size_bytes < more.size_bytes <= whole.data_start
            asked += 1
    assert whole.data_start - 32 < asked <= whole.data_start


def test_random_truncations_of_a_larger_file_are_rejected(tmp_path: Path) -> None:
    blob = sound_file(1 << 20)
    path = tmp_path / "cut.gguf"
    rng = random.Random(64)
    for _ in range(64):
        path.write_bytes(blob[: rng.randrange(len(blob))])
        with pytest.raises(GGUFError, match=r"cut\.gguf: "):
            open_model(path)


@pytest.mark.parametrize(
    "offset",
    [0, 32, 127, 129, 160, 2**40, 2**63, 2**64 - 32, 2**64 - 1],
    ids=lambda offset: f"{offset:,}",
)
def test_hostile_offset_is_rejected_naming_the_tensor(offset: int) -> None:
    # 'v' must lie at 128, behind the 128 bytes of 'w': the first two overlap it, 160 leaves a hole.
    message = rejection(gguf_bytes({}, [W, Tensor("v", (32,), offset=offset)]))
    assert re.search(f"tensor 'v', byte .* expected offset 128, got {offset:,}", message)


def test_decreasing_offsets_are_rejected() -> None:
    tensors = [Tensor("w", (32,), offset=128), Tensor("v", (32,), offset=0)]
    assert "tensor 'w'" in rejection(gguf_bytes({}, tensors))


# Split files.

PARTS = [[Tensor("a", (32,))], [Tensor("b", (32,))], [Tensor("c", (32,))]]
KEYS = {"general.architecture": "llama"}


def opening(folder: Path, blobs: list[bytes]) -> str:
    """Write the parts and return the error of opening them."""
    paths = write_parts(folder, "m", blobs)
    with pytest.raises(GGUFError) as caught:
        open_model(paths[0])
    return str(caught.value)


def test_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, "m", split_bytes(KEYS, PARTS))
    paths[1].unlink()
    with pytest.raises(GGUFError, match=r"part 2 of 3 is missing: m-00002-of-00003\.gguf"):
        open_model(paths[0])


def test_part_with_another_count_is_named(tmp_path: Path) -> None:
    blobs = split_bytes(KEYS, PARTS)
    blobs[1] = split_bytes(KEYS, [*PARTS, []])[1]
    assert opening(tmp_path, blobs) == "part 2: key 'split.count' is 4, expected 3"


def test_part_of_another_model_is_named(tmp_path: Path) -> None:
    blobs = split_bytes(KEYS, PARTS)
    blobs[2] = split_bytes({}, PARTS, **{"general.architecture": "qwen3"})[2]
    assert opening(tmp_path, blobs) == "part 3: key 'general.architecture' differs from part 1"
    blobs[2] = split_bytes({}, [*PARTS[:2], [Tensor("c", (1,)), Tensor("d", (1,))]])[2]
    assert opening(tmp_path, blobs) == "part 3: key 'split.tensors.count' is 4, expected 3"


def test_swapped_parts_are_named(tmp_path: Path) -> None:
    first, second, third = split_bytes(KEYS, PARTS)
    assert opening(tmp_path, [first, third, second]) == ("part 2: key 'split.no' is 2, expected 1")


def test_tensor_in_two_parts_is_named(tmp_path: Path) -> None:
    blobs = split_bytes(KEYS, [PARTS[0], PARTS[1], PARTS[0]])
    assert opening(tmp_path, blobs) == "part 3: tensor 'a' is also in an earlier part"


def test_bad_last_part_is_named(tmp_path: Path) -> None:
    *blobs, last = split_bytes(KEYS, PARTS)
    message = opening(tmp_path, [*blobs, last[:-1]])
    assert re.match(
        r"m-00003-of-00003\.gguf: the file is cut short: 287 of 288 bytes are there",
        message,
    )


def test_tensors_that_no_part_holds_are_missed(tmp_path: Path) -> None:
    blobs = split_bytes(KEYS, PARTS, **{"split.tensors.count": np.int32(4)})
    assert "'split.tensors.count' is 4, but the number of tensors in the parts is 3" in opening(
        tmp_path, blobs
    )


def test_other_part_than_the_first_is_refused_naming_the_first(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, "m", split_bytes(KEYS, PARTS))
    with pytest.raises(GGUFError, match=r"not the first part; open m-00001-of-00003\.gguf"):
        open_model(paths[1])


def test_part_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(split_bytes(KEYS, PARTS)[0])
    with pytest.raises(GGUFError, match=r"'split.count' is 3, so the file name must end in"):
        open_model(path)


@pytest.mark.parametrize("value", ["three", True, 1.5, np.int32(-1), [3]])
def test_split_count_that_is_no_count_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "m-00001-of-00003.gguf"
    path.write_bytes(gguf_bytes({"split.count": value}))
    with pytest.raises(GGUFError, match=r"key 'split.count' is missing or is not a count"):
        open_model(path)


def test_one_header_of_several_is_not_a_model() -> None:
    with pytest.raises(GGUFError, match=r"part 1: key 'split.count' is 3, expected 1"):
        merge_parts([read_header(split_bytes(KEYS, PARTS)[0])])
