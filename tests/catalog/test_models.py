"""Every entry of models.toml, and how a wrong one is refused."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import catalog
from catalog.file_names import quant_of
from catalog.registry import (
    ANSWER_VERIFIED,
    ARCHITECTURE_IMPLEMENTED,
    KINDS,
    LICENCES,
    NOT_YET,
    load,
)

TABLES = tomllib.loads(Path(catalog.__file__).with_name("models.toml").read_text("utf-8"))
ENTRIES = catalog.entries()


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda e: e.id)
def test_entry_has_what_every_entry_must_have(entry: catalog.Entry) -> None:
    assert entry.sources
    assert all(source.partition(": ")[2] for source in entry.sources)
    assert entry.licence in LICENCES
    assert entry.kind in KINDS
    assert entry.architecture
    assert entry.repository
    assert entry.file() is not None
    for facts in entry.files:
        assert all(quant_of(name) == facts.quant for name in facts.names)


def test_catalog_holds_all_models_of_the_plan() -> None:
    moe = [entry for entry in ENTRIES.values() if entry.moe]
    assert len(moe) == 90
    assert len(ENTRIES) - len(moe) == 40


@pytest.mark.parametrize(
    ("id", "quant", "size_bytes", "approximate"),
    [
        ("qwen3-30b-a3b", "Q4_K_M", 18_556_685_824, False),
        ("qwen3-coder-30b-a3b", "Q4_K_M", 18_556_689_568, False),
        ("gpt-oss-20b", "MXFP4", 12_109_566_624, False),
        ("gpt-oss-20b", "Q4_K_M", 11_624_759_488, False),
        ("llama-4-scout", "Q4_K_M", 49_848_379_744 + 15_511_520_608, False),
        ("olmoe-1b-7b-instruct", "Q4_K_M", 4_213_512_672, False),
        ("smollm2-135m", "Q4_1", 98_362_432, False),
        ("deepseek-r1-0528", "Q4_K_M", 404_900_000_000, True),
        ("qwen3-0.6b", "Q4_K_M", 396_676_301, True),  # 378.3 MiB
    ],
)
def test_size_is_the_recorded_one(id: str, quant: str, size_bytes: int, approximate: bool) -> None:
    facts = ENTRIES[id].file(quant)
    assert facts is not None
    assert (facts.size_bytes, facts.approximate) == (size_bytes, approximate)


def test_experts_of_qwen3_30b_are_128_of_which_8_run() -> None:
    entry = ENTRIES["qwen3-30b-a3b"]
    assert (entry.experts, entry.experts_used, entry.experts_shared) == (128, 8, 0)
    assert (entry.total_parameters, entry.active_parameters) == (30_532_122_624, 3_300_000_000)


def test_unverified_facts_are_absent() -> None:
    assert ENTRIES["olmoe-1b-7b-instruct"].sampling == catalog.Sampling()
    assert ENTRIES["granite-4.0-h-350m"].context is None
    facts = ENTRIES["kimi-k2-instruct"].file()
    assert facts is not None
    assert facts.names == ()


# Parameters that a token uses, counted from the published files' headers.
ACTIVE = {
    "gpt-oss-120b": 5.13e9,
    "gpt-oss-20b": 3.61e9,
    "qwen3-next-80b-a3b": 3.56e9,
    "qwen3-coder-next": 3.56e9,
    "glm-4.7-flash": 3.58e9,
    "granite-4.0-h-tiny": 1.47e9,
    "ernie-4.5-21b-a3b-thinking": 3.35e9,
    "qwen3.5-35b-a3b": 2.95e9,
}


@pytest.mark.parametrize("id", ACTIVE)
def test_shapes_give_what_a_token_uses(id: str) -> None:
    entry = ENTRIES[id]
    parts = entry.parts
    used = (entry.experts_used or 0) / (entry.experts or 1)
    active = sum(parts.values()) - parts["embedding"] - parts["routed"] * (1 - used)
    assert active == pytest.approx(ACTIVE[id], rel=0.01)


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda e: e.id)
def test_shapes_agree_with_the_rest_of_the_entry(entry: catalog.Entry) -> None:
    if entry.shape is None:
        return
    weights = sum(entry.parts.values())
    assert weights - entry.shape.ngrams == pytest.approx(entry.total_parameters, rel=0.05)
    assert (entry.shape.experts is None) == (entry.experts is None)
    for facts in entry.files:
        if facts.size_bytes is not None and facts.quant in ("Q4_K_M", "Q8_0", "MXFP4"):
            bits = {"Q4_K_M": (4.4, 6.6), "Q8_0": (8.3, 9.3), "MXFP4": (4.25, 4.7)}[facts.quant]
            assert bits[0] <= 8 * facts.size_bytes / weights <= bits[1], facts.quant


def test_dense_model_uses_all_its_parameters() -> None:
    entry = ENTRIES["llama-3.1-8b"]
    assert not entry.moe
    assert entry.active_parameters == entry.total_parameters == 8_000_000_000


def test_split_file_lists_all_its_parts() -> None:
    facts = ENTRIES["llama-4-scout"].file()
    assert facts is not None
    stem = "Q4_K_M/Llama-4-Scout-17B-16E-Instruct-Q4_K_M"
    assert facts.parts == (f"{stem}-00001-of-00002.gguf", f"{stem}-00002-of-00002.gguf")


def test_hybrid_model_has_sampling_for_both_ways() -> None:
    entry = ENTRIES["qwen3-8b"]
    assert entry.sampling_no_think is not None
    assert (entry.sampling.temperature, entry.sampling_no_think.temperature) == (0.6, 0.7)


def test_status_says_no_more_than_was_proved() -> None:
    implemented = {"llama", "qwen3"}
    assert catalog.status(catalog.starter_entry(), implemented) == ANSWER_VERIFIED
    assert catalog.status(catalog.starter_entry(), set()) == NOT_YET
    assert catalog.status(ENTRIES["qwen3-8b"], implemented) == ARCHITECTURE_IMPLEMENTED
    assert catalog.status(ENTRIES["gpt-oss-20b"], implemented) == NOT_YET


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", "48", "qwen3-30b-a3b: layers: invalid value '48'"),
        ("layers", True, "layers"),
        ("layers", 0, "layers"),
        ("experts_used", 129, "experts_used: inconsistent"),
        ("active_parameters", 31_000_000_000, "active_parameters: inconsistent"),
        ("kind", "chat", "kind"),
        ("tokenizer", "Qwen 2", "tokenizer: invalid value 'Qwen 2'"),
        ("licence", "apache-2.0", "licence"),
        ("repository", "../../etc", "repository"),
        ("default_quant", "Q5_K_S", "default_quant: inconsistent"),
        ("hybrid", "yes", "hybrid"),
        ("sources", [], "sources"),
        ("sources", ["HEARSAY"], "'HEARSAY' is not defined"),
        ("status", "verified", "status: unknown key"),
        ("sampling", {"temperature": 3}, r"sampling\.temperature"),
        ("sampling", {"heat": 1}, r"sampling\.heat: unknown key"),
        ("files", [{"quant": "q4_k_m"}], r"files\[0\]\.quant"),
        ("files", [{"quant": "Q8_0", "names": ["a-Q4_0.gguf"]}], "is not a Q8_0 file name"),
        ("files", [{"quant": "Q4_K_M", "names": ["../a-Q4_K_M.gguf"]}], "names"),
        ("files", [{"quant": "Q4_K_M", "size_gb": 1, "size_gib": 1}], "conflicts with size_gib"),
        ("files", [{"quant": "Q4_K_M"}, {"quant": "Q4_K_M"}], "files: inconsistent"),
        ("package", {"wheel": "x==1"}, r"package\.member: missing"),
    ],
)
def test_wrong_fact_is_refused_by_name(key: str, value: Any, message: str) -> None:
    tables = copy.deepcopy(TABLES)
    tables["model"][0][key] = value
    with pytest.raises(catalog.CatalogError, match=message):
        load(tables)


def test_missing_fact_is_refused_by_name() -> None:
    tables = copy.deepcopy(TABLES)
    del tables["model"][3]["licence"]
    with pytest.raises(catalog.CatalogError, match="qwen3-coder-30b-a3b: licence: missing"):
        load(tables)


def test_repeated_id_is_refused() -> None:
    tables = copy.deepcopy(TABLES)
    tables["model"].append(tables["model"][0])
    with pytest.raises(catalog.CatalogError, match="duplicate id"):
        load(tables)
