"""What the store finds, lists and removes, without a network."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

import catalog
from catalog.hub.client import RemoteFile
from catalog.store import manifest, renames
from catalog.store.store import Store

OLD, NEW = "a" * 40, "b" * 40
REPOSITORY = "Qwen/Qwen3-8B-GGUF"
NAME = "Qwen3-8B-Q4_K_M.gguf"


def place(
    store: Store, name: str, data: bytes, commit: str = NEW, repository: str = REPOSITORY
) -> Path:
    """Put a file where huggingface_hub would."""
    folder = store.hub.repository_folder(repository)
    blob = folder / "blobs" / f"{sum(data):064x}"
    pointer = folder / "snapshots" / commit / name
    for path in (blob, pointer, folder / "refs" / "main"):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (folder / "refs" / "main").write_text(commit)
    return pointer


def place_starter(store: Store) -> Path:
    """Put a file of the starter's size where the starter belongs."""
    package = catalog.starter_entry().package
    assert package is not None
    path = store.packages.path(package)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(package.size_bytes)
    return path


def test_empty_store_has_nothing(store: Store) -> None:
    assert store.installed() == []
    assert store.find(catalog.resolve("qwen3-8b")) is None
    assert store.find(catalog.resolve("smollm2-135m")) is None
    assert not store.home.exists()


def test_path_is_its_own_place(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    assert store.find(catalog.resolve(str(path))) == [path]


def test_catalog_model_is_found_in_the_cache(store: Store) -> None:
    path = place(store, NAME, b"GGUF")
    assert store.find(catalog.resolve("qwen3-8b")) == [path]
    assert store.find(catalog.resolve("qwen3-8b:Q8_0")) is None
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}")) == [path]
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}/{NAME}")) == [path]
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}@{NEW}")) == [path]
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}@{OLD}")) is None


def test_main_comes_before_other_snapshots(store: Store) -> None:
    old = place(store, NAME, b"GGUF old", OLD)
    new = place(store, NAME, b"GGUF new", NEW)
    os.utime(old.parents[0], (2e9, 2e9))
    assert store.find(catalog.resolve("qwen3-8b")) == [new]
    other = place(store, "Qwen3-8B-Q8_0.gguf", b"GGUF 8", OLD)
    (store.hub.repository_folder(REPOSITORY) / "refs" / "main").write_text(NEW)
    assert store.find(catalog.resolve("qwen3-8b:Q8_0")) == [other]


def test_incomplete_model_is_not_found(store: Store) -> None:
    first = place(store, "m-Q4_K_M-00001-of-00002.gguf", b"GGUF 1")
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}")) is None
    assert store.installed() == []
    second = place(store, "m-Q4_K_M-00002-of-00002.gguf", b"GGUF 2")
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}")) == [first, second]
    second.resolve().unlink()  # a pointer to nothing
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}")) is None


def test_starter_is_found_only_at_its_full_size(store: Store) -> None:
    path = place_starter(store)
    assert store.find(catalog.resolve("smollm2-135m")) == [path]
    path.write_bytes(b"GGUF")
    assert store.find(catalog.resolve("smollm2-135m")) is None


def test_installed_lists_both_places(store: Store) -> None:
    place_starter(store)
    place(store, NAME, b"GGUF1234")
    place(store, "x-Q8_0.gguf", b"GGUF", repository="some/one")
    found = [(i.model_id, i.repository, i.quant, i.size_bytes) for i in store.installed()]
    assert found == [
        ("smollm2-135m", None, "Q4_1", 98_362_432),
        ("qwen3-8b", REPOSITORY, "Q4_K_M", 8),
        (None, "some/one", "Q8_0", 4),
    ]


def test_remove_frees_the_bytes_and_leaves_no_folder(store: Store) -> None:
    place(store, NAME, b"GGUF1234")
    (installed,) = store.installed()
    assert store.remove(installed) == 8
    assert list(store.hub_cache.iterdir()) == []
    assert store.installed() == []


def test_remove_keeps_what_others_need(store: Store) -> None:
    place(store, NAME, b"GGUF1234", OLD)
    place(store, NAME, b"GGUF1234", NEW)
    place(store, "other-Q8_0.gguf", b"GGUF", NEW)
    installed = store.locate(catalog.resolve("qwen3-8b"))
    assert installed is not None
    assert store.remove(installed) == 0  # the older snapshot has the same blob
    left = store.locate(catalog.resolve("qwen3-8b"))
    assert left is not None
    assert left.commit == OLD
    assert store.remove(left) == 8
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}:Q8_0")) is not None


def test_a_file_that_cannot_be_removed_is_named_with_the_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place_starter(store)

    def refuse(self: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(catalog.StoreError) as caught:
        store.remove(store.installed()[0])
    assert str(caught.value) == f"cannot remove {path}: Permission denied"


def test_remove_starter(store: Store) -> None:
    path = place_starter(store)
    assert store.remove(store.installed()[0]) == 98_362_432
    assert not path.parent.exists()


def test_remove_never_follows_a_link_out_of_the_repository(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(b"GGUF")
    pointer = store.hub.repository_folder(REPOSITORY) / "snapshots" / NEW / NAME
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(precious)
    (installed,) = store.installed()
    assert store.remove(installed) == 0
    assert precious.read_bytes() == b"GGUF"


def test_looking_writes_nothing_and_opens_no_socket(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_starter(store)
    place(store, NAME, b"GGUF")
    paths = [store.home, store.hub_cache, *store.home.rglob("*"), *store.hub_cache.rglob("*")]
    before = {path: path.lstat().st_mtime_ns for path in paths}

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert store.find(catalog.resolve("smollm2-135m"))
    assert store.find(catalog.resolve("qwen3-8b"))
    assert len(store.installed()) == 2
    assert {path: path.lstat().st_mtime_ns for path in before} == before


def test_hostile_ref_is_ignored(store: Store) -> None:
    path = place(store, NAME, b"GGUF")
    (store.hub.repository_folder(REPOSITORY) / "refs" / "main").write_text("../../../../etc")
    assert store.find(catalog.resolve("qwen3-8b")) == [path]
    assert store.find(catalog.resolve(f"hf:{REPOSITORY}@main")) is None


def test_the_manifest_is_read_once_however_many_models_there_are(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        place(store, f"m{number}-Q4_K_M.gguf", bytes([number]), repository=f"a/m{number}")
    file = RemoteFile("a/m1", "m1-Q4_K_M.gguf", 1, f"{1:064x}", "", NEW, "")
    manifest.write(store.home, store.hub_cache, [file])
    reads = []
    read = manifest.read
    monkeypatch.setattr(manifest, "read", lambda home: reads.append(home) or read(home))
    assert [model.repository for model in store.ours()] == ["a/m1"]
    assert len(reads) == 1


def test_a_file_without_a_hash_has_no_record(store: Store) -> None:
    manifest.write(
        store.home, store.hub_cache, [RemoteFile("a/m1", "m1.gguf", 1, None, "", NEW, "")]
    )
    assert manifest.read(store.home) == []


@pytest.mark.parametrize("typed", [REPOSITORY, REPOSITORY.lower(), REPOSITORY.upper()])
def test_repository_has_one_spelling_however_it_is_typed(store: Store, typed: str) -> None:
    path = place(store, NAME, b"GGUF")
    file = RemoteFile(typed, NAME, 4, "0" * 64, "e", NEW, "main")
    manifest.write(store.home, store.hub_cache, [file])
    for name in (f"hf:{typed}", f"https://huggingface.co/{typed}/blob/{NEW}/{NAME}"):
        found = store.locate(catalog.resolve(name))
        assert found is not None
        assert (found.repository, found.model_id) == (REPOSITORY, "qwen3-8b")
        assert found.paths == (path,)
    assert store.hub.blob_path(file).parents[1] == path.parents[2]
    assert [model.repository for model in store.ours()] == [REPOSITORY]


def test_catalog_model_is_found_in_a_folder_of_another_case(store: Store) -> None:
    path = place(store, NAME, b"GGUF", repository=REPOSITORY.lower())
    assert store.find(catalog.resolve("qwen3-8b")) == [path]
    assert [model.model_id for model in store.installed()] == ["qwen3-8b"]


def test_renamed_repository_is_found_under_its_old_name(store: Store) -> None:
    path = place(store, NAME, b"GGUF", repository="New-Org/New-Name")
    assert store.find(catalog.resolve("qwen3-8b")) is None
    renames.record(store.home, REPOSITORY, "New-Org/New-Name")
    for name in ("qwen3-8b", f"hf:{REPOSITORY}", f"hf:{REPOSITORY.lower()}", "hf:new-org/new-name"):
        found = store.locate(catalog.resolve(name))
        assert found is not None
        assert (found.repository, found.model_id) == ("New-Org/New-Name", "qwen3-8b")
        assert found.paths == (path,)
    (old,) = [place(store, NAME, b"GGUF old", repository=REPOSITORY)]
    path.unlink()
    assert store.find(catalog.resolve("qwen3-8b")) == [old]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1, "names": {"a/b": 1}}', '{"format": 1, "names": {"a": "../x"}}'],
)
def test_damaged_record_of_renames_is_empty(store: Store, text: str) -> None:
    store.home.mkdir()
    (store.home / renames.FILE).write_text(text)
    assert renames.read(store.home) == {}
    renames.record(store.home, "a/b", "c/d")
    renames.record(store.home, "c/d", "a/b")  # renamed back
    assert renames.read(store.home) == {"c/d": "a/b"}


def test_a_thousand_folders_within_each_other_are_no_recursion(store: Store) -> None:
    path = place(store, NAME, b"GGUF")
    deep = path.parent
    for _ in range(1200):
        deep = deep / "a"
        deep.mkdir()
    (model,) = store.installed()
    assert store.remove(model) == 4
    assert store.installed() == [] and not path.parent.exists()
