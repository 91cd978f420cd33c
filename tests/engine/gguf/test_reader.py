"""Sound files: what the reader gives back, from bytes, from a mapping, from several parts."""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

import engine
from engine.errors import GGUFError, MoreNeeded
from engine.gguf.reader import merge_parts, open_model, read_header
from engine.gguf.types import TYPE_BY_NAME
from support.gguf_writer import NUMBER_IDS, Tensor, gguf_bytes, split_bytes, write_parts

FIXTURES = sorted(Path(__file__).parents[2].glob("fixtures/*/model.gguf"))

SMALL = gguf_bytes(
    {"general.architecture": "llama", "n": 3, "tokens": ["a", "é", "日本", ""]},
    [Tensor("token_embd.weight", (4, 32), "Q8_0"), Tensor("blk.0.ffn_gate_exps.weight", (2, 3, 8))],
)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (np.uint8(255), 255),
        (np.int8(-128), -128),
        (np.uint16(65_535), 65_535),
        (np.int16(-32_768), -32_768),
        (np.uint32(2**32 - 1), 2**32 - 1),
        (np.int32(-(2**31)), -(2**31)),
        (np.float32(0.5), 0.5),
        (True, True),
        (False, False),
        ("naïve 日本 \0 \n", "naïve 日本 \0 \n"),
        ("", ""),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.int64(-(2**63)), -(2**63)),
        (np.float64(1e300), 1e300),
        (["a", "", "日本"], ["a", "", "日本"]),
        ([], []),
    ],
)
def test_value_is_read_as_the_python_value(written: object, read: object) -> None:
    value = read_header(gguf_bytes({"key": written})).metadata["key"]
    assert value == read
    assert type(value) is type(read)


@pytest.mark.parametrize("dtype", NUMBER_IDS)
@pytest.mark.parametrize("count", [0, 1, 5])
def test_numeric_array_keeps_its_dtype_and_is_read_only(dtype: str, count: int) -> None:
    written = np.arange(count).astype(dtype)
    value = read_header(gguf_bytes({"key": written})).metadata["key"]
    assert isinstance(value, memoryview)
    assert np.asarray(value).dtype == np.dtype(dtype)
    np.testing.assert_array_equal(value, written)
    assert value.readonly


@pytest.mark.parametrize("version", [2, 3])
def test_version_is_read(version: int) -> None:
    assert read_header(gguf_bytes({"a": 1}, version=version)).version == version


@pytest.mark.parametrize("alignment", [8, 32, 64, 4096])
def test_tensors_have_outermost_first_shapes_and_absolute_offsets(alignment: int) -> None:
    data = np.arange(6, dtype=np.float32)
    blob = gguf_bytes(
        {"a": 1},
        [Tensor("first", (3, 64), "Q4_0"), Tensor("second", (1, 2, 3), "F32", data)],
        alignment=alignment,
    )
    header = read_header(blob)
    first, second = header.tensors.values()
    assert (first.shape, second.shape) == ((3, 64), (1, 2, 3))
    assert first.type == TYPE_BY_NAME["Q4_0"]
    assert first.offset == header.data_start
    assert first.size_bytes == 3 * 2 * 18
    assert second.offset % alignment == 0
    assert blob[second.offset : second.offset + second.size_bytes] == data.tobytes()
    assert header.size_bytes == second.offset + second.size_bytes


@pytest.mark.parametrize("name", TYPE_BY_NAME)
def test_tensor_of_every_type_has_its_size(name: str) -> None:
    block = TYPE_BY_NAME[name]
    header = read_header(gguf_bytes({}, [Tensor("w", (2, 3, 512), name)]))
    assert header.tensors["w"].size_bytes == 2 * 3 * 512 // block.weights * block.size_bytes


@pytest.mark.parametrize("shape", [(), (0,), (0, 32), (4, 0), (1, 1, 1, 1)])
def test_tensor_may_be_a_scalar_or_empty(shape: tuple[int, ...]) -> None:
    header = read_header(gguf_bytes({}, [Tensor("w", shape), Tensor("v", (1,))]))
    assert header.tensors["w"].shape == shape
    assert header.tensors["v"].offset - header.data_start == (0 if 0 in shape else 32)


@pytest.mark.parametrize("pad_last", [True, False])
def test_padding_of_the_last_tensor_is_optional(pad_last: bool) -> None:
    blob = gguf_bytes({}, [Tensor("w", (1,))], pad_last=pad_last)
    assert len(blob) - read_header(blob).size_bytes == (28 if pad_last else 0)


@pytest.mark.parametrize("pad_last", [True, False])
def test_header_without_tensors_ends_where_its_keys_do(pad_last: bool) -> None:
    blob = gguf_bytes({"a": 1}, pad_last=pad_last)
    header = read_header(blob)
    assert header.tensors == {}
    assert header.size_bytes == 24 + 9 + 4 + 4


def test_header_is_the_same_from_any_kind_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALL)
    expected = read_header(SMALL)
    assert read_header(bytearray(SMALL)) == expected
    assert read_header(memoryview(SMALL)) == expected
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert read_header(mapping) == expected  # and the mapping can be closed


def test_first_bytes_with_the_file_size_ask_for_more_until_the_header_is_whole() -> None:
    whole = read_header(SMALL)
    given, rounds = 1, 0
    while True:
        try:
            header = read_header(SMALL[:given], file_size=len(SMALL))
        except MoreNeeded as more:
            assert given < more.size_bytes <= whole.data_start
            given, rounds = more.size_bytes, rounds + 1
        else:
            break
    assert header == whole
    assert rounds > 3


def test_first_bytes_that_are_not_gguf_are_refused_without_asking_for_more() -> None:
    with pytest.raises(GGUFError, match="not a GGUF file") as caught:
        read_header(b"<htm", file_size=10**9)
    assert not isinstance(caught.value, MoreNeeded)


def test_part_number_is_carried_by_the_tensors() -> None:
    assert {t.part for t in read_header(SMALL, part=2).tensors.values()} == {2}


@pytest.mark.skipif(not FIXTURES, reason="no model fixtures here")
@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.parent.name)
def test_real_file_is_read_as_the_gguf_package_reads_it(path: Path) -> None:
    model = open_model(path)
    if any(tensor.type.name == "Q2_0" for tensor in model.tensors.values()):
        pytest.skip("the gguf package, the reference here, cannot read Q2_0")
    oracle = gguf.GGUFReader(path)
    assert list(model.tensors) == [tensor.name for tensor in oracle.tensors]
    for tensor in oracle.tensors:
        ours = model.tensors[tensor.name]
        assert ours.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (ours.offset, ours.size_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert ours.type.id == tensor.tensor_type
    fields = {name: f for name, f in oracle.fields.items() if not name.startswith("GGUF.")}
    assert model.metadata.keys() == fields.keys()
    for name, field in fields.items():
        value = model.metadata[name]
        found = value.tolist() if isinstance(value, memoryview) else value
        assert found == field.contents()
    assert model.parts == (path,)
    assert model.size_bytes == path.stat().st_size


def test_writer_is_understood_by_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SMALL)
    oracle = gguf.GGUFReader(path)
    assert oracle.fields["tokens"].contents() == ["a", "é", "日本", ""]
    assert [tuple(t.shape) for t in oracle.tensors] == [(32, 4), (8, 3, 2)]


@pytest.mark.alone
def test_vocabulary_of_150_000_tokens_is_read_in_half_a_second(tmp_path: Path) -> None:
    tokens = [f"Ġtoken{i}" for i in range(150_000)]
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(
        gguf_bytes(
            {
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.merges": [f"Ġto ken{i}" for i in range(150_000)],
                "tokenizer.ggml.scores": np.arange(150_000, dtype=np.float32),
                "tokenizer.ggml.token_type": np.ones(150_000, np.int32),
            }
        )
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model = open_model(path)
        seconds.append(time.perf_counter() - start)
    assert model.metadata["tokenizer.ggml.tokens"] == tokens
    assert min(seconds) < 0.5


@pytest.mark.process
def test_importing_the_reader_imports_neither_mlx_nor_gguf() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(engine.__file__).parents[1])!r}); "
        "import engine.gguf.reader; assert not {'mlx', 'gguf'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_missing_path_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_model(tmp_path / "nope.gguf")


def test_directory_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        open_model(tmp_path)


def test_split_model_is_opened_from_its_first_part(tmp_path: Path) -> None:
    data = np.arange(3, dtype=np.float32)
    parts = [[], [Tensor("a", (2, 32), "Q8_0")], [Tensor("b", (1,)), Tensor("c", (3,), data=data)]]
    blobs = split_bytes({"general.architecture": "llama"}, parts)
    paths = write_parts(tmp_path, "model", blobs)
    model = open_model(paths[0])
    assert model.parts == tuple(paths)
    assert model.size_bytes == sum(len(blob) for blob in blobs)
    assert model.metadata["general.architecture"] == "llama"
    assert {name: tensor.part for name, tensor in model.tensors.items()} == {"a": 1, "b": 2, "c": 2}
    last = model.tensors["c"]
    assert blobs[2][last.offset : last.offset + last.size_bytes] == data.tobytes()


def test_split_model_is_found_beside_its_link_not_its_target(tmp_path: Path) -> None:
    blobs = split_bytes({}, [[Tensor("a", (1,))], [Tensor("b", (1,))]])
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, blob in enumerate(blobs, 1):
        target = tmp_path / f"blob{number}"
        target.write_bytes(blob)
        (snapshot / f"m-{number:05}-of-00002.gguf").symlink_to(target)
    assert set(open_model(snapshot / "m-00001-of-00002.gguf").tensors) == {"a", "b"}


def test_headers_of_parts_merge_without_files() -> None:
    blobs = split_bytes({"general.name": "x"}, [[Tensor("a", (1,))], [Tensor("b", (1,))]])
    metadata, tensors = merge_parts([read_header(b, part=i) for i, b in enumerate(blobs)])
    assert metadata["general.name"] == "x"
    assert list(tensors) == ["a", "b"]


@pytest.mark.parametrize("count", [0, 1])
def test_merged_or_single_part_model_is_one_file(tmp_path: Path, count: int) -> None:
    keys = {"split.no": np.uint16(0), "split.count": np.uint16(count), "split.tensors.count": 9}
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(keys, [Tensor("a", (1,))]))
    assert open_model(path).parts == (path,)
