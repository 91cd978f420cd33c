"""The README stays short, and its Python example runs as shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LONGEST_LINES = 130


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LONGEST_LINES


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = re.search(r"<!-- python: run as a test -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    Path("model.gguf").symlink_to(ROOT / "tests" / "fixtures" / "qwen3moe" / "model.gguf")
    exec(compile(found[1], "README.md", "exec"), {})
    assert capsys.readouterr().out
