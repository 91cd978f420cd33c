"""Which of a repository's files is chosen, for many listings and budgets, by headers of a mixture.

The files are headers of Qwen3-30B-A3B's shapes with every matrix in the type that most of the
quantisation consists of, so that sizes are about those of published files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from catalog import HubUnreachable, resolve
from catalog.hub.client import Hub, RemoteFile
from catalog.hub.header_cache import HeaderCache
from catalog.quants import preferred
from catalog.store.store import Store
from conifer_cli.fit import choice
from conifer_cli.fit.choice import ROOMY, grade, judge_model, judge_remote
from conifer_cli.fit.other_quants import quant_of_report
from conifer_cli.fit.verdict import FitReport, FitRequest, judge_header
from engine.fit.machine import Machine
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.sizes import _base
from support.headers import metadata
from support.hub_server import COMMIT
from support.program import MODELS

LAYERS, WIDTH, HIDDEN, EXPERTS, VOCAB = 48, 2048, 768, 128, 151_936
QWEN = metadata(
    "qwen3moe",
    block_count=LAYERS,
    context_length=40_960,
    embedding_length=WIDTH,
    attention__head_count=32,
    attention__head_count_kv=4,
    attention__key_length=128,
    attention__value_length=128,
    expert_count=EXPERTS,
    expert_used_count=8,
    expert_feed_forward_length=HIDDEN,
    rope__freq_base=1e6,
) | {"tokenizer.ggml.tokens": ["a"] * VOCAB}
LISTINGS = {
    "unsloth": "UD-TQ1_0 UD-IQ1_S UD-IQ2_XXS UD-IQ2_M UD-Q2_K_XL UD-IQ3_XXS UD-Q3_K_XL UD-Q4_K_XL "
    "Q4_K_M UD-Q6_K_XL Q8_0 BF16",
    "no four bits": "UD-IQ1_S UD-IQ2_XXS UD-Q2_K_XL UD-Q3_K_XL Q6_K Q8_0",
    "only dynamic": "UD-IQ1_S UD-IQ2_M UD-Q2_K_XL",
    "mradermacher": "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_M Q2_K IQ3_XXS Q3_K_M IQ4_XS Q4_K_S Q6_K",
    "nvidia": "NVFP4 Q8_0 BF16",
    "unreadable": "IQ2_KS Q4_0_4_8 UD-Q2_K_XL IQ4_KSS",
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "token_embd.weight", (VOCAB, WIDTH)
    yield "output.weight", (VOCAB, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm": (WIDTH,),
            "attn_q_norm": (128,),
            "attn_k_norm": (128,),
            "attn_q": (4096, WIDTH),
            "attn_k": (512, WIDTH),
            "attn_v": (512, WIDTH),
            "attn_output": (WIDTH, 4096),
            "ffn_norm": (WIDTH,),
            "ffn_gate_inp": (EXPERTS, WIDTH),
            "ffn_gate_exps": (EXPERTS, HIDDEN, WIDTH),
            "ffn_up_exps": (EXPERTS, HIDDEN, WIDTH),
            "ffn_down_exps": (EXPERTS, WIDTH, HIDDEN),
        }.items():
            yield f"blk.{layer}.{name}.weight", shape


@cache
def tensors(quant: str) -> dict[str, TensorInfo]:
    names = sorted(TYPE_BY_NAME, key=len, reverse=True)
    matrix = next((name for name in names if _base(quant).startswith(name)), "IQ2_XXS")
    found = {}
    for name, shape in shapes():
        plain = "norm" in name or "gate_inp" in name
        kind = TYPE_BY_NAME["F32" if plain else matrix]
        size_bytes = kind.size_bytes
        for dim in shape:
            size_bytes *= dim
        found[name] = TensorInfo(name, shape, kind, 0, size_bytes // kind.weights)
    return found


def size_of(quant: str) -> int:
    return sum(info.size_bytes for info in tensors(quant).values())


class Listing:
    """A hub with the files of one or several repositories."""

    def __init__(self, **repositories: str) -> None:
        self.repositories = {name.replace("__", "/"): q for name, q in repositories.items()}

    def files(self, repository: str, revision: str | None = None) -> tuple[RemoteFile, ...]:
        if repository not in self.repositories:
            raise HubUnreachable("no network")
        return tuple(
            RemoteFile(repository, f"m-{quant}.gguf", size_of(quant), None, "", COMMIT, "main")
            for quant in self.repositories[repository].split()
        )


@pytest.fixture
def judged(monkeypatch) -> list[str]:
    """Judge by made-up headers; returns the quantisations whose headers are read."""
    read: list[str] = []

    def judge_hub(name, reference, request, machine, hub, headers) -> FitReport:
        quant = reference.wanted_quant or "Q4_K_M"
        file = next(
            file
            for file in hub.files(reference.repository)
            if file.name.removeprefix("m-").removesuffix(".gguf") in (quant, f"UD-{quant}")
        )
        read.append(quant)
        report = judge_header(name, reference.entry, QWEN, tensors(quant), request, machine)
        size_bytes = file.size_bytes
        return FitReport(
            **{**vars(report), "remote": (file,), "size_bytes": size_bytes, "reference": reference}
        )

    monkeypatch.setattr(choice, "judge_hub", judge_hub)
    return read


def machine(budget: int, backend: str = "cpu") -> Machine:
    return Machine("", backend, budget, budget, "available memory")


def chosen(hub: Listing, place: Machine, tmp_path, **wishes) -> FitReport:
    request = FitRequest(**{"kernels": "native"} | wishes)
    headers = HeaderCache(tmp_path)
    return judge_remote("m", resolve("hf:org/repo"), request, place, headers, lambda: hub)


@pytest.mark.parametrize("listing", LISTINGS)
@pytest.mark.parametrize("kernels", ["native", "stock"])
@pytest.mark.parametrize("gigabytes", [5, 7, 9, 11, 13, 16, 20, 24, 32, 48, 96])
def test_the_first_in_preference_that_fits_is_chosen(
    tmp_path, judged, listing: str, kernels: str, gigabytes: int
):
    quants, place = LISTINGS[listing], machine(gigabytes * 10**9)
    found = chosen(Listing(org__repo=quants), place, tmp_path, kernels=kernels)
    request = FitRequest(kernels=kernels)
    grades = {}
    for quant in preferred(quants.split(), "Q4_K_M"):
        report = judge_header("m", None, QWEN, tensors(quant), request, place)
        grades[quant] = grade(report.verdict, report, request)
    most = max(grades.values())
    expected = next(quant for quant, value in grades.items() if value == most)
    if most == 0:
        expected = next(iter(grades))
    assert quant_of_report(found) == expected
    assert len(judged) <= 2 or kernels == "stock"  # the sizes of the others say that they do not


def test_a_default_that_fits_is_kept_and_no_other_header_is_read(tmp_path, judged):
    found = chosen(Listing(org__repo=LISTINGS["unsloth"]), machine(32 * 10**9), tmp_path)
    assert (quant_of_report(found), found.default_quant, judged) == ("Q4_K_M", None, ["Q4_K_M"])


def test_a_context_that_is_asked_for_takes_part_in_the_choice(tmp_path, judged):
    hub, place = Listing(org__repo=LISTINGS["unsloth"]), machine(21 * 10**9)
    assert quant_of_report(chosen(hub, place, tmp_path)) == "Q4_K_M"
    long = chosen(hub, place, tmp_path, context=40_000)
    assert (quant_of_report(long), long.default_quant) == ("UD-Q3_K_XL", "Q4_K_M")
    assert long.verdict.kind == "fits" and long.verdict.context == 40_000


def test_forced_is_the_default(tmp_path, judged):
    hub = Listing(org__repo=LISTINGS["unsloth"])
    assert quant_of_report(chosen(hub, machine(5 * 10**9), tmp_path, force=True)) == "Q4_K_M"


NAME = "qwen3-30b-a3b"  # of which the catalog has Q4_K_M here and Q2_K, Q8_0 in another repository


@pytest.fixture
def here(monkeypatch):
    def set_budget(budget: int) -> None:
        monkeypatch.setattr("engine.fit.machine.this_machine", lambda: machine(budget))

    return set_budget


def judge(hub: Listing | None, tmp_path, name: str = NAME) -> FitReport:
    def connect() -> Listing:
        assert hub is not None, "the hub was asked"
        return hub

    store = Store(tmp_path / "home", tmp_path / "hub")
    return judge_model(name, resolve(name), FitRequest(kernels="native"), store, connect)


def test_a_catalog_model_may_come_from_its_second_repository(tmp_path, judged, here):
    hub = Listing()
    hub.repositories = {
        "Qwen/Qwen3-30B-A3B-GGUF": "Q4_K_M Q6_K",
        "unsloth/Qwen3-30B-A3B-GGUF": LISTINGS["unsloth"],
    }
    for gigabytes, quant in ((32, "Q4_K_M"), (16, "UD-Q3_K_XL"), (11, "UD-Q2_K_XL")):
        here(gigabytes * 10**9)
        found = judge(hub, tmp_path)
        assert (quant_of_report(found), found.verdict.kind) == (quant, "fits")
        assert found.reference.repository == found.remote[0].repository
    assert found.default_quant == "Q4_K_M"


def test_an_unreachable_hub_leaves_the_verdict_on_the_default(tmp_path, judged, here, capsys):
    here(12 * 10**9)
    found = judge(Listing(), tmp_path)
    assert (found.verdict.kind, judged) == ("streams", [])
    assert "cannot look for a smaller file: no network" in capsys.readouterr().err


def test_nothing_is_asked_where_no_quantisation_could_fit(tmp_path, judged, here):
    here(8 * 10**9)
    assert judge(None, tmp_path, "llama-4-scout").verdict.kind == "too_large"
    here(12 * 10**9)
    assert judge(None, tmp_path, f"{NAME}:Q4_K_M").verdict.kind == "streams"


def test_a_chosen_file_has_room_for_a_useful_context(tmp_path, judged):
    hub = Listing(org__repo=LISTINGS["unsloth"])
    for megabytes in range(7000, 24_000, 500):
        place = machine(megabytes * 10**6)
        found = chosen(hub, place, tmp_path)
        graded = grade(found.verdict, found, FitRequest())
        assert graded == ROOMY or size_of("UD-TQ1_0") * 1.1 > place.budget_bytes * 0.8


def installed(tmp_path, repository: str, **files: str) -> None:
    """Put small models into the cache, by quantisation."""
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for quant, model in files.items():
        (snapshot / f"m-{quant}.gguf").write_bytes((MODELS / model / "model.gguf").read_bytes())


def no_hub() -> Hub:
    raise AssertionError("the hub was asked")


def judge_local(tmp_path, name: str, budget: int, monkeypatch) -> FitReport:
    place = Machine("", "cpu", budget, budget, "available memory")
    monkeypatch.setattr("engine.fit.machine.this_machine", lambda: place)
    store = Store(tmp_path / "home", tmp_path / "hub")
    return judge_model(name, resolve(name), FitRequest(kernels="native"), store, no_hub)


def test_of_files_on_disk_the_best_that_fits_is_chosen_without_the_hub(tmp_path, monkeypatch):
    installed(tmp_path, "org/repo", Q4_K_M="qwen3moe-Q4_K_M", Q2_K="qwen3moe-Q2_K")
    ample = judge_local(tmp_path, "hf:org/repo", 16 << 30, monkeypatch)
    assert (quant_of_report(ample), ample.default_quant) == ("Q4_K_M", None)
    small = judge_local(tmp_path, "hf:org/repo:Q2_K", 16 << 30, monkeypatch)
    needs = [report.verdict.need.total_bytes for report in (small, ample)]
    assert needs[0] < needs[1]
    budget = int(1.02 * sum(needs) / 2) + (512 << 20)
    chosen = judge_local(tmp_path, "hf:org/repo", budget, monkeypatch)
    assert (quant_of_report(chosen), chosen.default_quant) == ("Q2_K", "Q4_K_M")
    assert chosen.verdict.kind == "fits"
    named = judge_local(tmp_path, "hf:org/repo:Q4_K_M", budget, monkeypatch)
    assert quant_of_report(named) == "Q4_K_M"
    assert named.verdict.context < chosen.verdict.context == 2048  # what the model supports


def test_a_chosen_file_of_a_catalog_model_is_found_again(tmp_path, monkeypatch):
    installed(tmp_path, "unsloth/Qwen3-30B-A3B-GGUF", **{"UD-Q2_K_XL": "qwen3moe-UD_MIX"})
    found = judge_local(tmp_path, NAME, 12 * 10**9, monkeypatch)
    assert (quant_of_report(found), found.paths[0].name) == ("UD-Q2_K_XL", "m-UD-Q2_K_XL.gguf")
    with pytest.raises(AssertionError, match="the hub was asked"):  # the default fits
        judge_local(tmp_path, NAME, 32 * 10**9, monkeypatch)
