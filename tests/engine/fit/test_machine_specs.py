"""Machines that are elsewhere: their names, their memory and the priors for their speed."""

from __future__ import annotations

import pytest

from engine.fit.machine import METAL_SHARE, Machine
from engine.fit.machine_specs import (
    UnknownMachine,
    machine_specs,
    resized,
    simulate,
    working_set_bytes,
)
from engine.fit.speed import PRIOR

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
        ("toaster", "choose one of m1,"),
        ("m4-10core-16gb", "leave out the core count"),
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
    assert machine.budget_bytes == int(METAL_SHARE * 48 * GIB)
    small, _ = simulate("m1-8gb")
    assert small.budget_bytes < 2 / 3 * 8 * GIB


def test_working_sets_are_near_those_seen_in_the_wild():
    # macOS grants 10.7 to 11.8 GiB of 16, 21.3 of 32, 36 of 48: never less than is assumed here.
    for gib, seen in ((16, 10.7), (32, 21.4), (48, 36.0), (64, 51.0)):
        assert working_set_bytes(gib * GIB) <= seen * GIB


@pytest.mark.parametrize(("name", "memory_bytes"), [("gb10", 119 * GIB), ("gb10-128gb", 128 * GB)])
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


def test_every_chip_has_a_bandwidth_that_chips_have():
    assert all(60 <= spec.gb_per_s <= 5000 for spec in machine_specs().values())
    assert all(
        spec.slower["gb_per_s"] < spec.gb_per_s for spec in machine_specs().values() if spec.slower
    )
