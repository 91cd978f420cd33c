"""Where Conifer keeps its files."""

from __future__ import annotations

import sys

import pytest

from conifer_cli.options import home


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/u/.local/share/conifer"),
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/conifer"),
        ("linux", {"XDG_DATA_HOME": "/data", "CONIFER_HOME": "~/c"}, "/u/c"),
        ("darwin", {}, "/u/Library/Application Support/conifer"),
    ],
)
def test_home_is_the_platforms(monkeypatch, platform, variables, expected):
    for name in ("CONIFER_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/u", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert str(home()) == expected
