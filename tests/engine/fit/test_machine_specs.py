"""Machines that are elsewhere: their names, their memory and the priors for their speed."""

from __future__ import annotations

import pytest

from engine.fit.machine import METAL_SHARE, Machine
from engine.fit.machine_specs import (
    UnknownMachine,
    known_here,
    machine_specs,
    raised_limit,
    resized,
    simulate,
    working_set_bytes,
)
from engine.fit.speed import DECODE_COSTS, PRIOR

GIB, GB = 1 << 30, 10**9


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("m1-16gb", 68),
        ("M4-Max-64GB", 546),
        ("m4-max-36gb", 410),  # a size that only the slower part has
        ("m4-max-32core-64gb", 410),
        ("m4-max-40core-36gb", 546),
        ("m3-max-96gb", 300),
        ("m3-max-30core-36gb", 300),
        ("m3-max-128gb", 400),
        ("m5-max-32core-36gb", 460),
        ("rtx-4090", 1008),
        ("h100-pcie", 2039),
    ],
)
def test_the_slower_part_under_a_name_is_told_by_its_cores_or_memory(name: str, gb_per_s: int):
    machine, bandwidth = simulate(name)
    assert (bandwidth.bytes_per_s, bandwidth.source) == (gb_per_s * GB, PRIOR)
    assert "(simulated)" in machine.name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("m4-max", "add the memory size: m4-max-64gb"),
        ("m4-maxx-64gb", "did you mean m4-max"),
        ("toaster", "the names are such as m4-max-64gb"),
        ("m4-12core-16gb", "has 8 or 10 GPU cores, not 12"),
        ("rtx-4090-10core", "leave out the core count"),
        ("rtx-4090-64gb", "is sold with 24 GB, not 64 GB; for the memory of the PC, pass --ram"),
        ("a100-60gb", "is sold with 40 GB or 80 GB, not 60 GB"),
        ("a100", "add the memory size"),
        ("strix-halo-256gb", "is sold with 32 GB or 64 GB or 96 GB or 128 GB"),
        ("cpu-64gb", "pass --bandwidth 80"),
        ("", "unknown machine ''"),
        ("m4-max-0gb", "add the memory size"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(name: str, said: str):
    with pytest.raises(UnknownMachine, match=said):
        simulate(name)


def test_a_mac_gives_less_than_its_working_set_and_never_all_its_memory():
    machine, _ = simulate("m4-max-64gb")
    assert (machine.backend, machine.memory_bytes) == ("metal", 64 * GIB)
    assert machine.budget_bytes == int(METAL_SHARE * int(0.81 * 64 * GIB))
    small, _ = simulate("m1-8gb")
    assert small.budget_bytes < 0.74 * 8 * GIB


# What llama.cpp logs as recommendedMaxWorkingSetSize, in MB (10^6 bytes), on macOS 15 and 26.
LOGGED = {16: 12_713.12, 18: 14_302.25, 24: 19_069.67, 32: 26_800.60, 36: 30_150.67, 48: 40_200.90}
LOGGED |= {64: 55_662.79, 128: 115_448.73, 512: 498_216.21}


@pytest.mark.parametrize("gib", LOGGED)
def test_working_sets_are_those_that_were_logged(gib: int):
    assert working_set_bytes(gib * GIB) == pytest.approx(LOGGED[gib] * 1e6, rel=0.002)


def test_working_sets_grow_with_the_memory():
    sizes = [working_set_bytes(gib * GIB) for gib in range(8, 513)]
    assert sizes == sorted(sizes)


def test_the_raised_limit_leaves_the_system_its_share():
    mac, _ = simulate("m4-pro-24gb")
    limit_mb, raised = raised_limit(mac) or (0, mac)
    assert limit_mb == int(24 * 1024 * 0.9)
    assert mac.budget_bytes < raised.budget_bytes == int(METAL_SHARE * (limit_mb << 20))
    assert raised_limit(simulate("rtx-4090")[0]) is None


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("MacBook Pro M3 32GB", "m3-32gb"),
        ("MacBook Pro 16 M3 Max 64GB", "m3-max-64gb"),
        ("M3_Max_64GB", "m3-max-64gb"),
        ("32 GB Mac mini M4", "m4-32gb"),
        ("Mac Studio M3 Ultra 512 GB", "m3-ultra-512gb"),
        ("NVIDIA GeForce RTX 4070 Ti Super", "rtx-4070-ti-super"),
        ("4090", "rtx-4090"),
        ("A100 40GB", "a100-40gb"),
        ("dgx-spark", "gb10"),
        ("Ryzen AI Max+ 395 64GB", "strix-halo-64gb"),
        ("Intel Core i7-8700 32GB", "i7-8700-32gb"),
    ],
)
def test_a_machine_is_found_by_what_people_type(text: str, same_as: str):
    assert simulate(text) == simulate(same_as)


def test_a_cpu_reads_with_its_channels_and_decodes_with_its_cores():
    machine, bandwidth = simulate("ryzen-7950x-64gb")
    assert (machine.backend, machine.memory_bytes) == ("cpu", 64 * GIB)
    assert bandwidth.bytes_per_s == pytest.approx(0.8 * 2 * 8 * 5600e6)
    assert bandwidth.core_s["Q4_K"] == pytest.approx(33e-12 / 16)
    assert simulate("cpu-64gb", None, 80e9)[1].bytes_per_s == 80e9
    assert simulate("ampereone-192-512gb")[1].barrier == 9


def test_a_machine_that_is_here_has_the_costs_of_its_generation():
    names = {"Apple M4 Max": "m4", "Apple M1": "m1", "Apple M9": None, "NVIDIA GB10": "gb10"}
    for name, costs in names.items():
        backend = "metal" if "Apple" in name else "cuda"
        assert known_here(Machine(name, backend, 1, 1, ""))[0] == costs


@pytest.mark.parametrize(("name", "memory_bytes"), [("gb10", 119 * GIB), ("gb10-128gb", 119 * GIB)])
def test_a_cuda_chip_with_unified_memory_leaves_the_system_its_share(name: str, memory_bytes: int):
    machine, _ = simulate(name)
    assert (machine.backend, machine.memory_bytes) == ("cuda", memory_bytes)
    assert machine.budget_bytes == memory_bytes - int(0.1 * memory_bytes)
    card, _ = simulate("rtx-4090")
    assert card.budget_bytes == 24 * GIB - 512 * 2**20


def test_memory_given_beside_a_name_wins():
    machine, _ = simulate("m4-max-64gb", 32 * GB)
    assert machine.memory_bytes == 32 * GB
    assert simulate("m4-max", 36 * GIB)[1].bytes_per_s == 546 * GB


@pytest.mark.parametrize("backend", ["cpu", "metal", "cuda"])
def test_another_size_keeps_the_kind_of_machine(backend: str):
    here = Machine("this", backend, 16 * GIB, 3 * GIB, "available memory")
    sizes = [resized(here, gib * GIB) for gib in (8, 16, 32)]
    assert {machine.backend for machine in sizes} == {backend}
    assert [machine.budget_bytes for machine in sizes] == sorted(m.budget_bytes for m in sizes)
    assert all(machine.budget_bytes < machine.memory_bytes for machine in sizes)


def test_every_machine_has_plausible_figures():
    for key, spec in machine_specs().items():
        assert key == "cpu" or 10 <= spec.gb_per_s <= 8000, key
        assert spec.costs in DECODE_COSTS
        assert not spec.slower or spec.slower["gb_per_s"] < spec.gb_per_s
        usable = spec.usable_gib or spec.memory_gb
        assert len(usable) == len(spec.memory_gb)
        assert all(0.9 * gb <= gib <= gb for gb, gib in zip(spec.memory_gb, usable, strict=True))
        assert (spec.tflops is None) == (spec.backend == "cpu")
