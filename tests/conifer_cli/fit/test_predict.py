"""What `fit` judges by: the disk, the hub, a header that was kept, or what the catalog knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog import resolve
from catalog.hub.client import Hub, RemoteFile
from catalog.store.store import Store
from conifer_cli.commands.fit import _name_of
from conifer_cli.fit.choice import judge_model
from conifer_cli.fit.predict import best_known_report
from conifer_cli.fit.quant_matrix import QuantRow, smaller_row
from conifer_cli.fit.verdict import FitReport, FitRequest
from engine.fit.machine import Machine
from engine.fit.memory import Need, Verdict
from support.hub_server import COMMIT, HubServer, running_hub
from support.program import MODELS, know_bandwidth, run_conifer, run_unplugged

pytestmark = pytest.mark.process

QWEN = MODELS / "qwen3moe" / "model.gguf"
NAME = "hf:org/repo:Q4_K_M"


@pytest.fixture
def hub():
    with running_hub() as server:
        server.files["org/repo/tiny-Q4_K_M.gguf"] = QWEN.read_bytes()
        yield server


def fit(name: str, home: Path, hub: HubServer | None = None, *arguments: str):
    more = {"HF_ENDPOINT": hub.url} if hub else {}
    done = run_conifer("fit", name, "--json", *arguments, home=home, **more)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr.decode()


def ranges(hub: HubServer) -> int:
    return len([request for request in hub.requests if "/resolve/" in request.path])


def test_a_header_is_read_once_and_by_range(tmp_path, hub):
    code, first, said = fit(NAME, tmp_path, hub)
    assert (code, said, first["judged_by"]) == (0, "", "the header on the hub")
    assert (first["estimated"], ranges(hub)) == (False, 1)
    assert first["size_bytes"] == QWEN.stat().st_size
    _, again, _ = fit(NAME, tmp_path, hub)
    assert ranges(hub) == 1
    assert again["need_bytes"] == first["need_bytes"]
    assert not list(tmp_path.rglob("*.gguf"))  # no weights


def test_a_file_that_changed_is_read_again(tmp_path, hub):
    fit(NAME, tmp_path, hub)
    changed = bytearray(QWEN.read_bytes())
    changed[-1] ^= 1
    hub.files["org/repo/tiny-Q4_K_M.gguf"] = bytes(changed)
    fit(NAME, tmp_path, hub)
    assert ranges(hub) == 2


def test_without_a_network_the_kept_header_is_judged(tmp_path, hub):
    _, first, _ = fit(NAME, tmp_path, hub)
    code, kept, said = fit(NAME, tmp_path)
    assert (code, kept["judged_by"], kept["estimated"]) == (0, "the header as last seen", False)
    assert kept["need_bytes"] == first["need_bytes"]
    assert "falling back to the header as last seen" in said


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b"{}\n" + b, lambda b: b""])
def test_a_kept_header_that_was_damaged_is_fetched_anew(tmp_path, hub, damage):
    fit(NAME, tmp_path, hub)
    (kept,) = (tmp_path / "conifer" / "headers").rglob("*.header")
    kept.write_bytes(damage(kept.read_bytes()))
    code, found, _ = fit(NAME, tmp_path, hub)
    assert (code, found["judged_by"], ranges(hub)) == (0, "the header on the hub", 2)
    kept.write_bytes(damage(kept.read_bytes()))
    assert fit(NAME, tmp_path)[0] == 5


def test_what_is_pulled_after_a_fit_is_what_was_judged(tmp_path, hub):
    _, report, _ = fit(NAME, tmp_path, hub)
    more = {"HF_ENDPOINT": hub.url}
    assert run_conifer("pull", NAME, "--yes", home=tmp_path, **more).returncode == 0
    _, pulled, _ = fit(NAME, tmp_path)
    assert pulled["judged_by"] == "the file's header"
    assert pulled["need_bytes"] == report["need_bytes"]


def test_a_catalog_model_without_a_network_is_an_estimate(tmp_path):
    know_bandwidth(tmp_path)
    code, found, said = fit("qwen3-0.6b", tmp_path)
    assert (code, found["estimated"], found["judged_by"]) == (0, True, "what the catalog knows")
    assert "falling back to what the catalog knows" in said
    assert found["need_bytes"]["kv"] == 28 * 2048 * 2 * 32_768
    text = run_conifer("fit", "qwen3-0.6b", home=tmp_path).stdout.decode()
    assert "verdict: fits (estimated)" in text


def test_nothing_known_and_no_network_exits_5(tmp_path):
    assert fit("hf:org/unseen", tmp_path)[:2] == (5, None)


def test_simulating_a_machine_asks_no_hub(tmp_path):
    done = run_unplugged("fit", NAME, "--machine", "m4-max-64gb", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no header or catalog data for hf:org/repo:Q4_K_M on this machine" in done.stderr


def test_the_catalog_takes_kept_headers_for_exact(tmp_path):
    name = "Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf"
    with running_hub() as server:
        server.files[name] = QWEN.read_bytes()
        assert fit("qwen3-8b", tmp_path, server)[0] == 0
    done = run_unplugged("fit", "--json", home=tmp_path)
    rows = {row["id"]: row for row in json.loads(done.stdout)["models"]}
    assert (rows["qwen3-8b"]["estimated"], rows["qwen3-4b"]["estimated"]) == (False, True)


def test_the_ladder_has_what_lies_beside_the_file_on_the_hub(tmp_path, hub):
    data = QWEN.read_bytes()
    for quant, more in (("Q8_0", 10**6), ("Q4_0_4_4", 0), ("Q2_K", 0)):
        hub.files[f"org/repo/tiny-{quant}.gguf"] = data + bytes(more)
    hub.files["org/repo/mmproj-F16.gguf"] = data
    _, found, _ = fit(NAME, tmp_path, hub)
    rows = {row["quant"]: (row["size_bytes"], row["exact"]) for row in found["ladder"]}
    assert rows == {
        "Q2_K": (len(data), False),
        "Q4_K_M": (len(data), True),
        "Q8_0": (len(data) + 10**6, False),
    }


@pytest.mark.parametrize(
    ("quant", "name"),
    [("Q2_K", "qwen3-30b-a3b:Q2_K"), ("Q3_K_S", "hf:Qwen/Qwen3-30B-A3B-GGUF:Q3_K_S")],
)
def test_another_quantisation_is_named_by_where_it_lies(quant: str, name: str):
    reference = resolve("qwen3-30b-a3b")  # of which the catalog has Q2_K in another repository
    assert reference.entry.file("Q2_K").repository != reference.repository
    first = RemoteFile(reference.repository, "m.gguf", 1, None, "", COMMIT, "main")
    report = FitReport("qwen3-30b-a3b", reference.entry, None, 1, remote=(first,))
    assert _name_of(report, quant) == name and resolve(name).wanted_quant == quant


class Asked(Exception):
    """The hub was asked."""


def connect() -> Hub:
    raise Asked


@pytest.mark.parametrize(
    ("name", "share", "stream", "asked"),
    [
        ("qwen3-30b-a3b:Q4_K_M", 0.05, False, False),
        ("llama-3.3-70b:Q4_K_M", 0.9, True, False),
        ("qwen3-30b-a3b:Q4_K_M", 0.9, True, True),  # its experts may stay on the disk
        ("qwen3-30b-a3b:Q4_K_M", 0.98, False, True),  # without layers that only draft it might fit
        ("qwen3-30b-a3b:Q2_K", 0.9, False, True),  # of which the catalog has a rounded size
    ],
)
def test_fit_and_pull_end_alike_on_a_size_of_the_catalog(
    tmp_path, monkeypatch, name: str, share: float, stream: bool, asked: bool
):
    reference, request = resolve(name), FitRequest(stream=stream)
    store = Store(tmp_path / "home", tmp_path / "hub")
    budget = int(share * reference.catalog_file.size_bytes)
    machine = Machine("", "cpu", budget, budget, "available memory")
    monkeypatch.setattr("engine.fit.machine.this_machine", lambda: machine)
    for judge in (
        lambda: judge_model(name, reference, request, store, connect),
        lambda: best_known_report(name, reference, request, machine, store, connect),
    ):
        if asked:
            with pytest.raises(Asked):
                judge()
        else:
            assert judge().verdict.kind == "too_large"


def test_the_largest_smaller_file_that_fits_is_a_way_out():
    def row(quant: str, gigabytes: int, *kinds: str) -> QuantRow:
        steps = tuple(zip((2048, 4096, 8192), kinds, (None,) * 3, strict=True))
        return QuantRow(quant, gigabytes * 10**9, False, steps)

    need = Need(8 * 10**9, 0, 0, 0)
    machine = Machine("", "cpu", 10**10, 6 * 10**9, "")
    verdict = Verdict("too_large", need, machine, 0, 4096, 0, 8 * 10**9)
    report = FitReport("m", None, verdict, 8 * 10**9)
    rows = [
        row("Q2_K", 3, "fits", "fits", "fits"),
        row("Q3_K_M", 4, "fits", "fits", "tight"),
        row("Q4_0", 5, "fits", "tight", "too_large"),  # with too few tokens to be of use
        row("Q8_0", 8, "too_large", "too_large", "too_large"),
    ]
    assert smaller_row(rows, report) == "Q3_K_M"
    assert smaller_row(rows[2:], report) is None
