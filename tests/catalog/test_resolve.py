from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import catalog
from catalog.file_names import file_sets, is_repository, is_safe, parts, quant_of, select


@pytest.mark.parametrize(
    ("text", "id", "quant", "wanted", "repository"),
    [
        ("qwen3-30b-a3b", "qwen3-30b-a3b", None, "Q4_K_M", "Qwen/Qwen3-30B-A3B-GGUF"),
        ("Qwen3-30B-A3B:q8_0", "qwen3-30b-a3b", "Q8_0", "Q8_0", "unsloth/Qwen3-30B-A3B-GGUF"),
        ("qwen3-30b-a3b@Q2_K", "qwen3-30b-a3b", "Q2_K", "Q2_K", "unsloth/Qwen3-30B-A3B-GGUF"),
        ("gpt-oss-20b", "gpt-oss-20b", None, "MXFP4", "ggml-org/gpt-oss-20b-GGUF"),
        ("gpt-oss-20b:Q4_K_M", "gpt-oss-20b", "Q4_K_M", "Q4_K_M", "unsloth/gpt-oss-20b-GGUF"),
        ("smollm2-135m", "smollm2-135m", None, "Q4_1", None),
    ],
)
def test_catalog_name(
    text: str, id: str, quant: str | None, wanted: str, repository: str | None
) -> None:
    found = catalog.resolve(text)
    assert found.kind == "catalog"
    assert found.entry is not None
    assert (found.entry.id, found.quant, found.wanted_quant) == (id, quant, wanted)
    assert found.repository == repository


def test_only_the_starters_default_quant_comes_from_the_package_index() -> None:
    assert catalog.resolve("smollm2-135m").package is not None
    assert catalog.resolve("smollm2-135m:q4_1").package is not None
    other = catalog.resolve("smollm2-135m:Q4_K_M")
    assert other.package is None
    assert other.repository == "bartowski/SmolLM2-135M-Instruct-GGUF"


@pytest.mark.parametrize(
    ("text", "repository", "file", "quant", "revision"),
    [
        ("hf:org/repo", "org/repo", None, None, None),
        ("HF:org/repo:q4_k_m", "org/repo", None, "Q4_K_M", None),
        ("hf://org/repo", "org/repo", None, None, None),
        ("hf:org/repo/a/b.gguf", "org/repo", "a/b.gguf", None, None),
        ("hf:org/repo:Q8_0@v1.0", "org/repo", None, "Q8_0", "v1.0"),
        ("hf:org/repo/b.gguf@c0ffee", "org/repo", "b.gguf", None, "c0ffee"),
        ("hf.co/org/repo:Q8_0", "org/repo", None, "Q8_0", None),
        ("https://huggingface.co/org/repo", "org/repo", None, None, None),
        ("https://huggingface.co/org/repo/", "org/repo", None, None, None),
        ("https://huggingface.co/org/repo/tree/main", "org/repo", None, None, "main"),
        (
            "https://huggingface.co/org/repo/blob/main/Q4/b.gguf?download=true",
            "org/repo",
            "Q4/b.gguf",
            None,
            "main",
        ),
        (
            "https://hf.co/org/repo/resolve/c0ffee/b%20c.gguf",
            "org/repo",
            "b c.gguf",
            None,
            "c0ffee",
        ),
    ],
)
def test_hub_name(
    text: str, repository: str, file: str | None, quant: str | None, revision: str | None
) -> None:
    found = catalog.resolve(text)
    assert found.kind == "hub"
    assert (found.repository, found.file) == (repository, file)
    assert (found.quant, found.revision) == (quant, revision)


@pytest.mark.parametrize(
    ("text", "closest"),
    [
        ("qwen3-30b-a3", "qwen3-30b-a3b"),
        ("QWEN3-30B-A3B:", "qwen3-30b-a3b"),
        ("qwen3-30b-a3b:no such", "qwen3-30b-a3b"),
        ("smolm2-135m", "smollm2-135m"),
        ("mixtral", "mixtral-8x7b-instruct"),
        ("qwen3-30b", "qwen3-30b-a3b"),
        ("llama3.1", "llama-3.1-8b"),
        ("qwen3-235b-a22b", "qwen3-235b-a22b-instruct-2507"),
        ("qwen3-coder", "qwen3-coder-30b-a3b"),
        ("scout", "llama-4-scout"),
        ("zzzzzzzz", None),
        ("a", None),
        ("", None),
        ("why is the sky blue", None),
    ],
)
def test_unknown_name_carries_the_closest(text: str, closest: str | None) -> None:
    with pytest.raises(catalog.UnknownModel) as caught:
        catalog.resolve(text)
    assert caught.value.closest == closest


@pytest.mark.parametrize(
    "text",
    [
        "hf:",
        "hf:org",
        "hf:org/repo/readme.md",
        "hf:org/repo/../../b.gguf",
        "hf:org/../b.gguf",
        "hf:../repo",
        "hf:org/repo:Q4 K",
        "hf:org/repo@../../x",
        "https://huggingface.co/org/repo/blob/main/%2e%2e/b.gguf",
        "https://huggingface.co/org/repo/blob/main/a%00.gguf",
        "https://huggingface.co/datasets",
    ],
)
def test_malformed_hub_name_is_unknown(text: str) -> None:
    with pytest.raises(catalog.UnknownModel):
        catalog.resolve(text)


def test_path_needs_a_separator_or_a_dot_or_the_ending(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("m.gguf", "qwen3-8b", ".m"):
        Path(name).write_bytes(b"GGUF")
    assert catalog.resolve("m.gguf").path == Path("m.gguf")
    assert catalog.resolve("./qwen3-8b").path == Path("qwen3-8b")
    assert catalog.resolve(".m").path == Path(".m")
    assert catalog.resolve(str(tmp_path / "m.gguf")).kind == "path"
    assert catalog.resolve("qwen3-8b").kind == "catalog"


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").write_bytes(b"GGUF")
    assert catalog.resolve("~/m").path == tmp_path / "m"


@pytest.mark.parametrize(
    "text",
    ["./none", "none.gguf", "a/b", "/", "~nobody-of-that-name/x", "a\0/b", "x" * 5000 + "/y"],
)
def test_missing_path_is_not_found(text: str) -> None:
    with pytest.raises(catalog.ModelNotFound):
        catalog.resolve(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("olmoe-1b-7b-0924-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("mixtral-8x7b-instruct-v0.1.Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen3.6-35B-A3B-UD-Q4_K_M.gguf", "UD-Q4_K_M"),
        ("UD-Q2_K_XL/Kimi-K2.5-UD-Q2_K_XL-00001-of-00008.gguf", "UD-Q2_K_XL"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("m-IQ4_XS.gguf", "IQ4_XS"),
        ("m-IQ4_NL.gguf", "IQ4_NL"),
        ("m-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("m-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("m-bf16.gguf", "BF16"),
        ("m.gguf", None),
        ("Qwen3.gguf", None),
    ],
)
def test_label_is_read_off_the_name(name: str, expected: str | None) -> None:
    assert quant_of(name) == expected


def test_parts_follow_from_the_first() -> None:
    assert parts("a-00001-of-00002.gguf") == ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf")
    assert parts("a.gguf") == ("a.gguf",)


def test_projectors_and_importance_matrices_are_not_models() -> None:
    names = ["mmproj-F16.gguf", "a-mmproj-BF16.gguf", "imatrix_unsloth.gguf", "README.md", "a.gguf"]
    assert [s.names for s in file_sets(names)] == [("a.gguf",)]


LISTING = ("m-Q4_K_M.gguf", "m-UD-Q5_K_M.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf")


def test_select_prefers_q4_k_m_and_falls_back_to_dynamic() -> None:
    assert select(LISTING, "r").names == ("m-Q4_K_M.gguf",)
    assert select(LISTING, "r", quant="Q5_K_M").names == ("m-UD-Q5_K_M.gguf",)
    assert select(["only-Q2_K.gguf"], "r").names == ("only-Q2_K.gguf",)


def test_select_prefers_the_spelling_the_catalog_knows() -> None:
    names = ["a-MXFP4.gguf", "b-mxfp4.gguf"]
    assert select(names, "r", quant="MXFP4", known=("b-mxfp4.gguf",)).names == ("b-mxfp4.gguf",)


def test_select_names_what_is_missing() -> None:
    with pytest.raises(catalog.ModelNotFound, match="no Q2_K file in r; available: Q4_K_M, Q8_0"):
        select(LISTING, "r", quant="Q2_K")
    with pytest.raises(catalog.ModelNotFound, match="missing parts: 2"):
        select(LISTING, "r", quant="Q8_0")
    with pytest.raises(catalog.ModelNotFound, match="several Q4_0 models"):
        select(["a-Q4_0.gguf", "b-Q4_0.gguf"], "r", quant="Q4_0")
    with pytest.raises(catalog.ModelNotFound, match="no GGUF file"):
        select(["README.md"], "r")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a", "a/../b", "a/./b", "a//b", "/a", "a/", "a/" * 600 + "b"),
        *("a\\b", "\\\\host\\a", "c:\\a", "a\0b", "a\nb", "x" * 201, "\udcff"),
    ],
)
def test_hostile_name_is_unsafe(name: str) -> None:
    assert not is_safe(name)


@pytest.mark.parametrize(
    "name", ["org", "a/b/c", "a--b/c", "a/..", "-a/b", "a/b ", "a/b\n", "a/", ""]
)
def test_malformed_repository_is_refused(name: str) -> None:
    assert not is_repository(name)


@pytest.mark.process
def test_importing_the_catalog_is_cheap() -> None:
    root = str(Path(catalog.__file__).parents[1])
    heavy = ("huggingface_hub", "httpx2", "psutil", "tomllib", "mlx", "jinja2")
    code = f"""
import sys
sys.path.insert(0, {root!r})
import catalog, catalog.store.store, catalog.download.pull, catalog.download.package_index
print([name for name in {heavy} if name in sys.modules])
"""
    command = [sys.executable, "-I", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
