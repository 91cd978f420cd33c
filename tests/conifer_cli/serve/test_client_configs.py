"""Printed configurations are valid, and docs/serving.md has each of them."""

import json
import shlex
import tomllib
from pathlib import Path

import pytest

from conifer_cli.commands.serve import print_client_config
from conifer_cli.errors import UsageError
from conifer_cli.serve.client_configs import CLIENT_CONFIGS, PLACE_OF_KEY, configured
from support.program import run_conifer

KEY = 'it\'s a "key"'
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


@pytest.mark.parametrize("config", CLIENT_CONFIGS.values(), ids=lambda config: config.name)
def test_a_key_in_the_environment_is_referred_to(config, capsys):
    assert print_client_config(config.name, "smollm2-135m", "127.0.0.1", 1, None, "hunter2") == 0
    text, notes = capsys.readouterr()
    assert "CONIFER_API_KEY" in text + notes and "hunter2" not in text + notes
    assert "none" not in text and not PLACE_OF_KEY.search(text)
    if config.where == "Python":
        compile(text, config.name, "exec")
    if config.where.endswith(".toml"):
        provider = tomllib.loads(text)["model_providers"]["conifer"]
        assert provider["env_key"] == "CONIFER_API_KEY"
    if config.name == "opencode":
        options = json.loads(text)["provider"]["conifer"]["options"]
        assert options["apiKey"] == "{env:CONIFER_API_KEY}"


@pytest.mark.parametrize(
    ("client", "form"),
    [
        ("opencode", f'"apiKey": {json.dumps(KEY)}'),
        ("openai", f"api_key={json.dumps(KEY)}"),
        ("litellm", f"api_key: {json.dumps(KEY)}"),
        ("aider", f"OPENAI_API_KEY={shlex.quote(KEY)}"),
        ("codex", 'env_key = "CONIFER_API_KEY"'),  # its file has no place for a key
    ],
)
def test_a_key_on_the_command_line_is_printed_as_the_client_reads_it(client, form):
    text = configured(CLIENT_CONFIGS[client], "http://127.0.0.1:1", "MODEL", 4096, KEY)
    assert form in text


@pytest.mark.process
def test_only_a_typed_key_is_printed(tmp_path):
    asked = ("serve", "smollm2-135m", "--port", "1", "--print-config", "claude-code")
    done = run_conifer(*asked, home=tmp_path, CONIFER_API_KEY="secret")
    assert done.returncode == 0 and b"secret" not in done.stdout + done.stderr
    assert b'ANTHROPIC_AUTH_TOKEN="$CONIFER_API_KEY"' in done.stdout
    done = run_conifer(*asked, "--api-key", "typed", home=tmp_path, CONIFER_API_KEY="secret")
    assert b"ANTHROPIC_AUTH_TOKEN=typed" in done.stdout and b"secret" not in done.stdout
    assert b"ANTHROPIC_AUTH_TOKEN=none" in run_conifer(*asked, home=tmp_path).stdout
