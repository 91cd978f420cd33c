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


@pytest.mark.parametrize(
    ("model", "name", "context"),
    [
        (None, "hf:a/b/c.gguf", "4096"),
        ("hf:a/b/c.gguf", "hf:a/b/c.gguf", "4096"),
        ("gpt-oss-20b", "gpt-oss-20b", "32768"),
    ],
)
def test_a_running_server_says_what_it_serves(capsys, monkeypatch, model, name, context):
    state = {"model": "hf:a/b/c.gguf", "context": 4096}
    monkeypatch.setattr("conifer_cli.commands.serve.state_of", lambda host, port: state)
    print_client_config("codex", model, "127.0.0.1", 9000, None)
    document = tomllib.loads(capsys.readouterr().out)
    assert (document["model"], str(document["model_context_window"])) == (name, context)


def test_printing(capsys):
    assert print_client_config("opencode", "./a.gguf", "127.0.0.1", 9000, 65536) == 0
    document = json.loads(capsys.readouterr().out)
    provider = document["provider"]["conifer"]
    assert provider["options"]["baseURL"] == "http://127.0.0.1:9000/v1"
    assert provider["models"]["a.gguf"]["limit"]["context"] == 65536
    assert print_client_config("opencode", "smollm2-135m", "127.0.0.1", 9000, None) == 0
    models = json.loads(capsys.readouterr().out)["provider"]["conifer"]["models"]
    assert models["smollm2-135m"]["limit"] == {"context": 8192, "output": 2048}
    with pytest.raises(UsageError, match="unknown client"):
        print_client_config("emacs", None, "127.0.0.1", 1, None)
