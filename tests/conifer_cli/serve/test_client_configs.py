"""Printed configurations are valid, and docs/serving.md has each of them."""

import json
import tomllib
from pathlib import Path

import pytest

from conifer_cli.commands.serve import print_client_config
from conifer_cli.errors import UsageError
from conifer_cli.serve.client_configs import CLIENT_CONFIGS, configured

DOCS = Path(__file__).parents[3] / "docs" / "serving.md"


@pytest.mark.parametrize("config", CLIENT_CONFIGS.values(), ids=lambda config: config.name)
def test_a_configuration(config):
    text = configured(config, "http://127.0.0.1:8321", "MODEL", 32768, "none")
    assert "URL/" not in text and "127.0.0.1:8321" in text
    assert text in DOCS.read_text()
    if text.startswith("{"):
        json.loads(text)
    if config.where.endswith(".toml"):
        tomllib.loads(text)


def test_printing(capsys):
    assert print_client_config("opencode", "./a.gguf", "127.0.0.1", 9000, 65536) == 0
    document = json.loads(capsys.readouterr().out)
    provider = document["provider"]["conifer"]
    assert provider["options"]["baseURL"] == "http://127.0.0.1:9000/v1"
    assert provider["models"]["a.gguf"]["limit"]["context"] == 65536
    with pytest.raises(UsageError, match="unknown client"):
        print_client_config("emacs", None, "127.0.0.1", 1, None)
