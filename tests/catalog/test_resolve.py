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


PAGE = "https://huggingface.co/org/repo"
LINKS = {
    # link: (file, folder, quant, revision)
    f"{PAGE}?library=gguf": (None, None, None, None),
    f"{PAGE}#how-to-run": (None, None, None, None),
    f"{PAGE}/tree/main": (None, None, None, "main"),
    f"{PAGE}/tree/main/": (None, None, None, "main"),
    f"{PAGE}/tree/main/Q4%20K/b": (None, "Q4 K/b", None, "main"),
    f"{PAGE}/tree/refs%2Fpr%2F3/Q8_0": (None, "Q8_0", None, "refs/pr/3"),
    f"{PAGE}/tree/refs/pr/3": (None, None, None, "refs/pr/3"),
    f"{PAGE}/blob/feature%2Fx/b.gguf": ("b.gguf", None, None, "feature/x"),
    f"{PAGE}/blob/main/Q4/b.gguf": ("Q4/b.gguf", None, None, "main"),
    f"{PAGE}/blob/main/b.gguf#L3": ("b.gguf", None, None, "main"),
    f"{PAGE}/raw/v1.0/b.gguf": ("b.gguf", None, None, "v1.0"),
    f"{PAGE}/resolve/main/b.gguf?download=true": ("b.gguf", None, None, "main"),
    f"{PAGE}/blame/main/b.gguf": ("b.gguf", None, None, "main"),
    f"{PAGE}/commits/main/b.gguf": ("b.gguf", None, None, "main"),
    f"{PAGE}/commit/c0ffee": (None, None, None, "c0ffee"),
    f"{PAGE}/discussions/12": (None, None, None, None),
    f"{PAGE}?show_file_info=Q4%2Fb.gguf": ("Q4/b.gguf", None, None, None),
    f"{PAGE}/tree/main?show_file_info=b.gguf&x=1": ("b.gguf", None, None, "main"),
    f"{PAGE}/tree/main/Q4?show_file_info=Q4%2Fb.gguf": ("Q4/b.gguf", None, None, "main"),
    f"{PAGE}/": (None, None, None, None),
    f" <{PAGE}> \n": (None, None, None, None),
    f"{PAGE}.git": (None, None, None, None),
    f"{PAGE}:q8_0": (None, None, "Q8_0", None),
    "https://user:secret@huggingface.co/org/repo": (None, None, None, None),
    "HTTPS://WWW.HuggingFace.CO:443//org/repo": (None, None, None, None),
    "http://hf.co/org/repo": (None, None, None, None),
    "huggingface.co/org/repo/blob/main/b.gguf": ("b.gguf", None, None, "main"),
    "hf.co/org/repo:Q4_K_M": (None, None, "Q4_K_M", None),
    "hf.co/org/repo@v1": (None, None, None, "v1"),
    "https://huggingface.co/api/models/org/repo/tree/main/Q4": (None, "Q4", None, "main"),
    "https://huggingface.co/api/models/org/repo": (None, None, None, None),
    "hf://models/org/repo": (None, None, None, None),
    "hf://org/repo@main/Q4/b.gguf": ("Q4/b.gguf", None, None, "main"),
    "hf:org/repo@refs/pr/3": (None, None, None, "refs/pr/3"),
    "hf:org/repo@refs/pr/3/b.gguf": ("b.gguf", None, None, "refs/pr/3"),
    "hf:org/repo@v1:Q8_0": (None, None, "Q8_0", "v1"),
    "hf:org/repo/": (None, None, None, None),
    "hf:org/repo/tree/main/Q4": (None, "Q4", None, "main"),
    "https://mirror.example/hf/org/repo/blob/main/b.gguf?x#y": ("b.gguf", None, None, "main"),
}


@pytest.mark.parametrize("text", LINKS)
def test_link_means_what_it_names_in_every_form(text: str) -> None:
    found = catalog.resolve(text, "https://Mirror.example/hf/")
    assert (found.kind, found.repository) == ("hub", "org/repo")
    assert (found.file, found.folder, found.quant, found.revision) == LINKS[text]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("https://huggingface.co/datasets/org/data", "the link is to a dataset"),
        ("https://huggingface.co/spaces/org/demo", "the link is to a Space"),
        ("https://huggingface.co/collections/org/some-0123", "the link is to a collection"),
        ("https://huggingface.co/papers/2401.00001", "the link is to a paper"),
        ("https://huggingface.co/models?search=qwen", "the link is to a list of models"),
        ("hf://datasets/org/data", "the link is to a dataset"),
        ("https://huggingface.co/org", "no repository"),
        ("https://huggingface.co", "no repository"),
        ("https://huggingface.co/org/repo/blob/main/README.md", "README.md is not a GGUF file"),
        ("https://huggingface.co/org/repo/resolve/main/m.safetensors", "not a GGUF file"),
        ("https://huggingface.co/org/repo?show_file_info=m.safetensors", "not a GGUF file"),
        ("https://example.com/org/repo/b.gguf", "the link is not to the Hugging Face Hub"),
        ("https://huggingface.co.example.com/org/repo", "the link is not to the Hugging Face Hub"),
        ("ftp://huggingface.co/org/repo", "the link is not to the Hugging Face Hub"),
        ("hf:org/repo@main/../b.gguf", "not a valid file name"),
    ],
)
def test_link_that_leads_to_no_model_is_told_by_what_it_is(text: str, problem: str) -> None:
    with pytest.raises(catalog.BadName, match=problem):
        catalog.resolve(text)


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
    with pytest.raises(catalog.ModelNotFound) as caught:
        catalog.resolve(text)
    assert "Errno" not in str(caught.value)


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
        ("m-UD-IQ3_XXS.gguf", "UD-IQ3_XXS"),
        ("m-UD-TQ1_0.gguf", "UD-TQ1_0"),
        ("m-NVFP4.gguf", "NVFP4"),
        ("m-UD-Q1_0.gguf", "UD-Q1_0"),
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


@pytest.mark.parametrize(
    "companion",
    [
        *("mmproj-Q4_K_M.gguf", "m-Q4_K_M.mmproj.gguf", "mmproj/m-Q4_K_M.gguf"),
        *("m-draft-Q4_K_M.gguf", "draft-Q4_K_M.gguf", "drafters/q-Q4_K_M.gguf"),
        *("mtp-m-Q4_K_M.gguf", "m-MTP-Q4_K_M.gguf", "MTP/m-Q4_K_M.gguf", "m.nextn.Q4_K_M.gguf"),
        *("m-eagle3-Q4_K_M.gguf", "m-eagle-Q4_K_M.gguf", "m-dflash-Q4_K_M.gguf"),
        *("m-assistant-Q4_K_M.gguf", "assistant/q-Q4_K_M.gguf", "m-vision-Q4_K_M.gguf"),
        *("m-lora-Q4_K_M.gguf", "loras/style-Q4_K_M.gguf", "adapter-Q4_K_M.gguf"),
        *("imatrix-Q4_K_M.gguf", "m.imatrix.gguf", "imatrix.dat", "imatrix_unsloth.gguf_file"),
        *("ggml-vocab-m-Q4_K_M.gguf", "m-Q4_K_M-imatrix.gguf", "imatrix/m-Q4_K_M.gguf"),
    ],
)
def test_companion_of_a_model_is_neither_chosen_nor_in_the_way(companion: str) -> None:
    for model in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "m.gguf"):
        assert select([companion, model, "README.md"], "org/repo").names == (model,)
    with pytest.raises(catalog.ModelNotFound, match="no Q4_K_M file in r; available: Q6_K, Q8_0"):
        select([companion, "m-Q8_0.gguf", "m-Q6_K.gguf"], "r", quant="Q4_K_M")


@pytest.mark.parametrize(
    "names",
    [
        ["Qwen3-DRAFT-0.6B-Q4_K_M.gguf", "Qwen3-DRAFT-0.6B-Q8_0.gguf"],
        ["m-MTP-Q4_K_M.gguf", "m-MTP-Q8_0.gguf", "mmproj-F16.gguf"],
        ["m-MTP-Q4_K_M.gguf", "m-MTP-draft-Q4_K_M.gguf"],
        ["v5-eagle-7b-Q4_K_M.gguf", "v5-finch-7b-Q8_0.gguf"],
        ["m-11b-vision-Q4_K_M.gguf", "m-11b-vision-Q8_0.gguf", "m-11b-vision-mmproj.gguf"],
        ["medical-assistant-Q4_K_M.gguf", "nurse-Q8_0.gguf"],
        ["m-imatrix-Q4_K_M.gguf", "m-imatrix-Q8_0.gguf", "m.imatrix.gguf"],
        ["loramodel-Q4_K_M.gguf", "drafty-Q8_0.gguf"],
        ["lora/m-lora-Q4_K_M.gguf"],
    ],
)
def test_word_in_a_models_own_name_excludes_nothing(names: list[str]) -> None:
    assert select(names, "org/repo").names == (names[0],)


def test_companion_that_is_named_is_selected_or_told_by_what_it_is() -> None:
    names = ["m-Q4_K_M.gguf", "m-draft-Q8_0.gguf", "mmproj-F16.gguf"]
    assert select(names, "r", file="m-draft-Q8_0.gguf").names == ("m-draft-Q8_0.gguf",)
    with pytest.raises(catalog.ModelNotFound, match=r"mmproj-F16.gguf is a projector, not a model"):
        select(names, "r", file="mmproj-F16.gguf")
    with pytest.raises(
        catalog.ModelNotFound, match=r"no GGUF model in r; mmproj-F16.gguf is a pro"
    ):
        select(["mmproj-F16.gguf"], "r")


def test_folder_of_a_link_limits_the_choice() -> None:
    names = ["m-Q4_K_M.gguf", "Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf"]
    names += ["MTP/m-MTP-Q8_0.gguf", "two/a-Q4_0.gguf", "two/b-Q4_0.gguf"]
    assert select(names, "r", folder="Q8_0").names == tuple(names[1:3])
    assert select(names, "r", folder="MTP").names == ("MTP/m-MTP-Q8_0.gguf",)
    with pytest.raises(catalog.ModelNotFound, match="in r/two; available: Q4_0"):
        select(names, "r", folder="two")
    with pytest.raises(catalog.ModelNotFound, match="no GGUF files in r/none"):
        select(names, "r", folder="none")


def test_any_part_of_a_model_means_the_model_in_any_case() -> None:
    names = [f"Q8_0/M-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for name in (names[1], names[2].lower(), names[0].upper()):
        assert select(names, "r", file=name).names == tuple(names)


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
        *("", ".", "..", "../a", "a/../b", "a/./b", "a//b", "/a", "a/", "a/" * 40 + "b"),
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
