"""The licences that a user accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog import licences


def test_one_odd_date_forgets_no_licence(tmp_path: Path) -> None:
    text = json.dumps({"format": 1, "agreed": {"gemma": "2024-01-01", "llama3": 1}})
    (tmp_path / licences.FILE).write_text(text)
    licences.agree(tmp_path, "lfm")
    assert set(licences.agreed(tmp_path)) == {"gemma", "llama3", "lfm"}


@pytest.mark.parametrize("licence", ["k-exaone", "minimax-m2.7-license", "llama4", "qwen"])
def test_licence_with_conditions_on_use_is_not_open(licence: str) -> None:
    assert not licences.is_open(licence)


@pytest.mark.parametrize("licence", ["Apache-2.0", "OpenMDW-1.1", "upstage-solar-license"])
def test_licence_without_conditions_on_use_is_open(licence: str) -> None:
    assert licences.is_open(licence)
