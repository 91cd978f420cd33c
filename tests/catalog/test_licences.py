"""The licences that a user accepted."""

from __future__ import annotations

import json
from pathlib import Path

from catalog import licences


def test_one_odd_date_forgets_no_licence(tmp_path: Path) -> None:
    text = json.dumps({"format": 1, "agreed": {"gemma": "2024-01-01", "llama3": 1}})
    (tmp_path / licences.FILE).write_text(text)
    licences.agree(tmp_path, "lfm")
    assert set(licences.agreed(tmp_path)) == {"gemma", "llama3", "lfm"}
