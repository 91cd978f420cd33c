"""HeaderCache of remote files, kept by name and ETag."""

from __future__ import annotations

import pytest

from catalog.hub.client import RemoteFile
from catalog.hub.header_cache import HeaderCache
from catalog.resolve import resolve

DATA = b"GGUF and what follows"


def remote(name: str = "m-Q4_K_M.gguf", etag: str = "a", repository: str = "org/repo"):
    return RemoteFile(repository, name, 1000, None, etag, "c0ffee0", "main")


def test_a_header_is_kept_by_its_etag(tmp_path):
    headers = HeaderCache(tmp_path)
    assert headers.get(remote()) is None
    headers.put(remote(), DATA)
    assert headers.get(remote()) == DATA
    assert headers.get(remote(etag="b")) is None
    assert headers.get(remote(name="other.gguf")) is None
    headers.put(remote(etag="b"), b"newer")
    assert headers.get(remote(etag="b")) == b"newer"
    assert headers.get(remote()) is None
    assert len(list(tmp_path.rglob("*.*"))) == 1


def test_all_parts_are_found_as_they_were_last_seen(tmp_path):
    headers = HeaderCache(tmp_path)
    names = [f"Q8_0/m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    headers.put(remote(names[0]), b"first")
    reference = resolve("hf:org/repo:Q8_0")
    assert headers.find(reference) is None
    headers.put(remote(names[1]), b"second")
    kept = headers.find(reference)
    assert kept is not None
    assert [part.name for part in kept] == names
    assert [part.data for part in kept] == [b"first", b"second"]
    assert headers.find(resolve("hf:org/repo:Q4_0")) is None
    assert headers.find(resolve("hf:org/repo:Q8_0@v1")) is None  # of which revision, is not kept


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[1]\n", b'{"etag": 1, "size_bytes": 2}\n', b"\xff\n"]
)
def test_a_kept_file_that_is_not_ours_is_no_header(tmp_path, text):
    headers = HeaderCache(tmp_path)
    headers.put(remote(), DATA)
    (kept,) = tmp_path.rglob("*.header")
    kept.write_bytes(text)
    assert headers.get(remote()) is None
    assert headers.find(resolve("hf:org/repo:Q4_K_M")) is None


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/m.gguf", "a\\b.gguf", "a/../../m.gguf"])
def test_a_hostile_name_becomes_no_path(tmp_path, name):
    headers = HeaderCache(tmp_path / "home")
    headers.put(remote(name), DATA)
    headers.put(remote(repository="../repo"), DATA)
    assert not list(tmp_path.rglob("*.header"))


def test_a_folder_that_takes_nothing_is_no_failure(tmp_path):
    (tmp_path / "headers").write_text("a file, not a folder")
    headers = HeaderCache(tmp_path)
    headers.put(remote(), DATA)
    assert headers.get(remote()) is None
