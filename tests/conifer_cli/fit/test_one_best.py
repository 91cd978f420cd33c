"""`fit`, `run`, `pull` and `doctor` name the same best model, with or without a known bandwidth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import entries
from catalog.store.store import Store
from conifer_cli import acquire, options
from conifer_cli.commands import doctor
from conifer_cli.commands.fit import FitOptions, fit_all
from conifer_cli.fit import best, run_history
from conifer_cli.fit.best import FLUENT_PER_S, USABLE_PER_S
from conifer_cli.fit.predict import Target, choose_target
from conifer_cli.fit.verdict import FitRequest
from engine.fit.machine import Machine
from engine.fit.machine_specs import simulate
from engine.fit.speed import MEASURED, Bandwidth

GB = 10**9
HERE = "a CPU"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(options, "home", lambda: tmp_path)
    options.open_store.cache_clear()
    yield options.open_store()
    options.open_store.cache_clear()


def be(monkeypatch: pytest.MonkeyPatch, memory_gb: float, free_gb: float, gb_per_s: float) -> None:
    """Make this machine one of so much memory, whose bandwidth is yet to be measured."""

    def machine(idle: bool = False) -> Machine:
        budget = memory_gb * 0.95 if idle else free_gb
        return Machine(HERE, "cpu", int(memory_gb * GB), int(budget * GB), "memory")

    monkeypatch.setattr("engine.fit.machine.this_machine", machine)
    monkeypatch.setattr("engine.fit.bandwidth.bandwidth", lambda *_: gb_per_s * GB)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    "memory_gb, free_gb, gb_per_s",
    [(24, 20, 10), (24, 6, 20), (16, 14, 40), (64, 60, 80), (8, 7, 12), (512, 500, 300)],
)
def test_every_command_names_the_same_model(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    memory_gb: float,
    free_gb: float,
    gb_per_s: float,
    measured: bool,
):
    be(monkeypatch, memory_gb, free_gb, gb_per_s)
    if measured:
        run_history.bandwidth_of(Machine(HERE, "cpu", 64 * GB, 60 * GB, "memory"))
    demonstrated = acquire.demonstration("smollm2-135m", store)
    examined = doctor.check_memory().detail
    assert fit_all(FitOptions(FitRequest(), as_json=True)) == 0
    document = json.loads(capsys.readouterr().out)
    first = next(row for row in document["models"] if row["id"] == document["best"])
    default = entries()[first["id"]].default_quant
    name = first["id"] + ("" if first["quant"] == default else f":{first['quant']}")
    assert f"`conifer run {name}`" in demonstrated
    assert examined.endswith(f" {name}")
    target = choose_target(None, None, True, "auto")
    judged = [row for row in best.judged(target, FitRequest(), store) if row.report is not None]
    row = max(judged, key=lambda row: row.entry.total_parameters or 0)
    assert row.report is not None
    assert any(f"`conifer run {name}`" in hint for hint in best.ways_out(row.report, target, store))


MACHINES = ["m1-8gb", "m4-16gb", "m3-32gb", "m2-max-64gb", "rtx-4090", "gb10", "ryzen-7950x-64gb"]


@pytest.mark.parametrize("bandwidth_gb", [None, 8, 12, 20, 45, 90])
@pytest.mark.parametrize("name", MACHINES)
def test_a_slow_model_is_never_better_than_a_fluent_mixture(
    store: Store, name: str, bandwidth_gb: float | None
):
    machine, prior = simulate(name)
    bandwidth = prior if bandwidth_gb is None else Bandwidth(bandwidth_gb * GB, MEASURED)
    kernels = "native" if machine.backend == "cpu" else "blocks"
    rows = best.judged(Target(machine, kernels, None, bandwidth), FitRequest(), store)
    ranked = best.ranked(rows)
    assert ranked and ranked[0].rate is not None
    fluent = [row for row in ranked if row.entry.moe and row.rate and row.rate.per_s >= 20]
    if fluent:
        assert ranked[0].rate.per_s >= USABLE_PER_S
    slow = [row for row in ranked if row.rate and row.rate.per_s < USABLE_PER_S]
    assert ranked[len(ranked) - len(slow) :] == slow


def test_a_slow_machine_takes_the_default_quantisation_not_the_largest(store: Store):
    machine, _ = simulate("ryzen-7950x-64gb")
    for gb_per_s in (8, 20, 400):
        target = Target(machine, "native", None, Bandwidth(gb_per_s * GB, MEASURED))
        for row in best.judged(target, FitRequest(), store):
            default = row.entry.file()
            assert default is not None
            if row.rate and row.kind == "fits" and row.file_bytes > (default.size_bytes or 0):
                assert row.rate.per_s >= FLUENT_PER_S, row.name
