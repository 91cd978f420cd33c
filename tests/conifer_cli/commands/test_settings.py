"""`conifer default`, `alias`, `config` and `presets`: kept in config.toml, used by `run`."""

from __future__ import annotations

import json
import sys

import pytest

from conifer_cli import app, config_edit, errors
from conifer_cli.acquire import locate
from support.program import MODELS

QWEN = str(MODELS / "qwen3moe" / "model.gguf")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config file's place, in a home of its own, without a standard input."""
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.delenv("CONIFER_MODEL", raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    return tmp_path / "config.toml"


@pytest.fixture
def asked(monkeypatch):
    """What `run` was asked for, in place of doing it."""
    found = []
    monkeypatch.setattr(
        "conifer_cli.commands.run.run_model", lambda *request: found.append(request) or 0
    )
    return found


def say(capsys, *arguments):
    """Run a command line that succeeds and return what it prints."""
    code = app._outcome(list(arguments))
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out + captured.err


TEXT = """# mine
kv_type = "q8"  # smaller

[run]
temperature = 0.5
"""


def test_a_change_leaves_every_other_line(config):
    config.write_text(TEXT)
    config_edit.change("", "model", "smollm2-135m")
    config_edit.change("alias", "fast", "qwen3-30b-a3b:Q4_K_M")
    config_edit.change("run", "temperature", 0.25)
    text = config.read_text()
    assert text.splitlines() == [
        *("# mine", 'kv_type = "q8"  # smaller', 'model = "smollm2-135m"', ""),
        *("[run]", "temperature = 0.25", "", "[alias]", 'fast = "qwen3-30b-a3b:Q4_K_M"'),
    ]
    config_edit.change("", "model", None)
    config_edit.change("run", "temperature", 0.5)
    assert config.read_text().startswith(TEXT)
    assert config.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("value", ["a", 'quo"te\\', "ünï\n\x07\x7f", 3, 0.5, True, ["a", "b"]])
def test_a_value_comes_back_as_it_was_written(config, value):
    config_edit.change("", "stop", value)
    assert config_edit.literal(value) in config.read_text()


def test_the_default_model_is_used_unless_another_is_named(config, capsys, asked, monkeypatch):
    assert "No default model" in say(capsys, "default")
    assert "now the default model" in say(capsys, "default", "qwen3-30b-a3b:q8_0")
    assert say(capsys, "default") == "qwen3-30b-a3b:q8_0\n"
    for arguments in (("-p", "hi"), ("olmoe-1b-7b", "hi"), ("-m", "gpt-oss-20b", "a", "b")):
        say(capsys, "run", *arguments)
    monkeypatch.setenv("CONIFER_MODEL", "smollm2-135m")
    say(capsys, "run", "-p", "hi")
    say(capsys, "run", "--resume", "talk", "-p", "hi")
    models = [(name, words) for name, words, _ in asked]
    assert models == [
        ("qwen3-30b-a3b:q8_0", None),
        ("olmoe-1b-7b", "hi"),
        ("gpt-oss-20b", "a b"),
        ("smollm2-135m", None),
        (None, None),
    ]
    say(capsys, "run", "Why is the sky blue?")
    assert asked[-1][:2] == ("smollm2-135m", "Why is the sky blue?")
    assert "overrides" in say(capsys, "default", "gpt-oss-20b")
    say(capsys, "default", "--unset")
    assert "model" not in config.read_text()


def test_a_default_that_does_not_exist_is_refused(config, capsys):
    assert app._outcome(["default", "qwen3-30b-a3"]) == errors.USAGE
    assert "Did you mean qwen3-30b-a3b?" in capsys.readouterr().err
    assert not config.exists()


def test_an_alias_works_wherever_a_name_does(config, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(MODELS / "qwen3moe")
    say(capsys, "alias", "tiny=model.gguf")
    monkeypatch.chdir(tmp_path)
    assert locate("tiny").name == QWEN
    assert say(capsys, "alias") == f"tiny  {QWEN}\n"
    assert "qwen3moe" in say(capsys, "show", "tiny")
    say(capsys, "alias", "--remove", "tiny")
    assert "No aliases" in say(capsys, "alias")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("alias", "fast"), "an alias is written NAME=MODEL"),
        (("alias", "a c=smollm2-135m"), "is not a name for an alias"),
        (("alias", "gpt-oss-20b=smollm2-135m"), "is a model in the catalog"),
        (("alias", "fast=nothing-like-it"), "no model named"),
        (("alias", "--remove", "fast"), "no alias is called 'fast'"),
        (("presets", "show"), "needs a NAME"),
        (("presets", "show", "../x"), "is not a name for a preset"),
        (("run", "-t", "none", "hi"), "no preset is called 'none'"),
        (("run", "--save-preset", "empty"), "needs options to keep"),
    ],
)
def test_what_cannot_be_kept_exits_2(config, capsys, arguments, said):
    assert app._outcome(list(arguments)) == errors.USAGE
    assert said in capsys.readouterr().err


def test_an_alias_that_is_no_name_is_an_error_with_its_line(config, capsys):
    config.write_text("[alias]\nfast = 3\n")
    assert app._outcome(["list"]) == errors.USAGE
    assert "line 2, fast: must be a model's name" in capsys.readouterr().err


def test_config_names_what_holds_and_its_source(config, capsys, monkeypatch):
    config.write_text('model = "gpt-oss-20b"\n[run]\ntemperature = 0.5\n')
    monkeypatch.setenv("CONIFER_MODEL", "smollm2-135m")
    shown = {row["setting"]: row for row in json.loads(say(capsys, "config", "--json"))[::-1]}
    assert shown["model"]["source"] == "environment, CONIFER_MODEL"
    assert shown["run.temperature"] == {
        "setting": "run.temperature",
        "value": "0.5",
        "source": "config.toml",
    }
    assert "config.toml, overridden" in say(capsys, "config")
    assert say(capsys, "config", "path") == f"{config}\n"


def test_a_preset_keeps_the_options_just_typed(config, capsys, asked):
    typed = ("-m", "gpt-oss-20b", "-s", "Be brief.", "--temperature", "0.25", "--stop", "END")
    said = say(capsys, "run", *typed, "Write a {kind} for:\n{input}", "--save-preset", "commit")
    assert "conifer run -t commit" in said and not asked
    say(capsys, "run", "-t", "commit", "--temperature", "1", "--var", "kind=poem")
    name, words, options = asked[0]
    assert (name, words) == ("gpt-oss-20b", None)
    assert (options.system, options.temperature, options.stop) == ("Be brief.", 1.0, ["END"])
    assert options.template == "Write a {kind} for:\n{input}"
    assert options.sources["system"] == "preset commit"
    say(capsys, "run", "-t", "commit", "this diff", "--var", "kind=poem")
    assert asked[1][:2] == ("gpt-oss-20b", "this diff")
    assert "commit" in say(capsys, "presets") and "Be brief." in say(
        capsys, "presets", "show", "commit"
    )
    say(capsys, "presets", "rm", "commit", "--yes")
    assert "No presets" in say(capsys, "presets")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 1", "temprature: unknown option"),
        ("temperature = 11", "temperature: must be a number from 0 to 10, got 11"),
        ("template = 3", "template: must be a string"),
        ("save = 'x'", "save: unknown option"),
        ("a =", "not valid TOML"),
    ],
)
def test_a_wrong_preset_names_its_file_and_key(config, capsys, text, said):
    (config.parent / "presets").mkdir()
    (config.parent / "presets" / "bad.toml").write_text(text)
    assert app._outcome(["run", "-t", "bad", "hi"]) == errors.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "more", "prompt"),
    [
        ("Translate to {to}: {input}", ("--var", "to=French"), "Translate to French: word"),
        ("Be brief.", (), "Be brief.\n\nword"),
        ('Fill {"a": 1}: {input}', (), 'Fill {"a": 1}: word'),
        ("{a}: {input}", (), "the preset p needs a"),
        ("{input}", ("--var", "b=1"), "has no {b}"),
        ("{input}", ("--var", "b"), "--var must be NAME=VALUE"),
    ],
)
def test_a_template_takes_the_prompt_and_variables(
    config, capsys, monkeypatch, template, more, prompt
):
    (config.parent / "presets").mkdir()
    text = f"template = {config_edit.literal(template)}\n"
    (config.parent / "presets" / "p.toml").write_text(text)
    found = []
    monkeypatch.setattr(
        "conifer_cli.commands.run.answer_once", lambda _, messages, text: found.append(text) or 0
    )
    app._outcome(["run", QWEN, "-t", "p", "word", *more])
    said = capsys.readouterr().err
    assert found == [prompt] or (not found and prompt in said)
