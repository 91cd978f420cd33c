"""The config file: below the command line and the environment, above the catalog."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conifer_cli import app, config_file, errors
from conifer_cli.fit.verdict import FitRequest

WRONG = [
    ("temprature = 1", "line 1, temprature: unknown option", "Did you mean temp"),
    ("# a\n\n[run]\ntemperature = 11", "line 4, temperature: must be", "from 0 to 10, got 11"),
    ("[run]\nseed = -1", "line 2, seed: must be", "0 to 18"),
    ("[run]\nmax-tokens = 0", "line 2, max-tokens: must be", "1 to 16,777,216"),
    ("[fit]\n'context' = '12z'", "line 2, context:", "12z"),
    ("kernels = 'cuda'", "line 1, kernels:", "'auto', 'native', 'blocks', 'stock'"),
    ("stats = 1", "line 1, stats: must be true or false", ""),
    ("temperature = true", "line 1, temperature: must be a string or a number", ""),
    ("[run]\nschema = 'a\\u0000b'".replace("'", '"'), "line 2, schema: must not contain a NUL", ""),
    ("temperature = [1]", "line 1, temperature: must be a string or a number", ""),
    ("[run]\nstop = ['END', '']", "line 2, stop: ", "must not be empty"),
    ("[nope]\na = 1", "line 1, nope: unknown option", ""),
    ("[list]\ntemperature = 1", "line 2, temperature: unknown option", ""),
    ("[run]\nversion = true", "line 2, version: unknown option", ""),
    ("format = 2", "format must be 1, got 2", ""),
    ("a = 1\nb =", "invalid value", ""),
    ("x = " + "[" * 5000, "nested too deeply", ""),
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The config file's place, in a home of its own."""
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", None)
    return tmp_path / "config.toml"


@pytest.fixture
def asked(monkeypatch):
    """What `run` and `pull` were asked for, in place of doing it."""
    found = []

    def take(*request):
        found.append(request)
        return 0

    monkeypatch.setattr("conifer_cli.commands.run.run_model", take)
    monkeypatch.setattr("conifer_cli.commands.pull.pull_model", take)
    return found


@pytest.mark.parametrize(("text", "said", "more"), WRONG)
def test_what_is_wrong_exits_2_and_names_file_line_and_key(config, capsys, text, said, more):
    config.write_text(text)
    code = app._outcome(["run", "smollm2-135m", "hi"])
    out, err = capsys.readouterr()
    assert (code, out) == (errors.USAGE, "")
    assert err.startswith(f"conifer: {config}") and said in err and more in err
    assert err.count("\n") <= 2


def test_bytes_that_are_not_utf8_are_named_by_their_line(config, capsys):
    config.write_bytes(b"# one\n\xff = 1")
    assert app._outcome(["list"]) == errors.USAGE
    assert "line 2: invalid UTF-8" in capsys.readouterr().err


def test_a_folder_in_its_place_is_one_line(config, capsys):
    config.mkdir()
    assert app._outcome(["list"]) == errors.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_flag_goes_over_environment_over_config_over_default(config, asked, monkeypatch):
    config.write_text(
        "format = 1\ntemperature = 0.1\ntop_p = 0.2\n"
        "[run]\nmin-p = 0.3\nstop = ['a b', 'c']\nthink = false\nstats = true\ncontext = '1k'\n"
    )
    monkeypatch.setenv("CONIFER_TOP_P", "0.5")
    monkeypatch.setenv("CONIFER_MIN_P", "0.5")
    app._outcome(["run", "smollm2-135m", "hi", "--min-p", "0.7"])
    options = asked[0][2]
    assert options.sampling == {"temperature": 0.1, "top_p": 0.5, "min_p": 0.7}
    assert (options.stop, options.think, options.stats) == (["a b", "c"], False, True)
    assert (options.context, options.seed) == (1024, None)
    sources = [options.sources[name] for name in ("temperature", "top_p", "min_p", "seed")]
    assert sources == ["config file", "CONIFER_TOP_P", "command line", "default"]


def test_a_key_at_the_top_is_for_all_commands_and_a_table_for_one(config, asked):
    config.write_text("context = 2048\n[run]\ncontext = 512\nyes = true\n")
    app._outcome(["pull", "smollm2-135m"])
    app._outcome(["run", "smollm2-135m", "hi"])
    assert asked[0][1] == FitRequest(context=2048)
    assert (asked[1][2].context, asked[1][2].yes) == (512, True)


def test_what_two_commands_mean_differently_is_named_by_its_variable(config, asked):
    config.write_text("prompt = 'hi'\nbench_prompt = '1k'\n[bench]\ndepth = 0\n")
    app._outcome(["run", "smollm2-135m"])
    assert asked[0][2].prompt == "hi"


def test_the_weaker_of_two_that_exclude_each_other_gives_way(config, asked, monkeypatch):
    config.write_text("raw = true\nprompt = 'from the file'\neffort = 'low'\n")
    monkeypatch.setenv("CONIFER_JSON", "1")
    app._outcome(["run", "smollm2-135m", "typed", "--no-think"])
    _, words, options = asked[0]
    assert (options.as_json, options.raw) == (True, False)
    assert (words, options.prompt) == ("typed", None)
    assert (options.think, options.effort) == (False, None)


def test_commands_that_mend_things_run_whatever_the_file_says(config, capsys):
    config.write_text("x =")
    assert app._outcome(["completion", "bash"]) == errors.OK
    assert capsys.readouterr().err == ""


def test_tab_completes_whatever_the_file_says(config, capsys):
    config.write_text("x =")
    assert app._outcome(["__complete", "--", "run", "--kern"]) == errors.OK
    out, err = capsys.readouterr()
    assert out.startswith("--kernels\t") and err == ""


@pytest.mark.parametrize(
    ("platform", "more", "expected"),
    [
        ("linux", {"CONIFER_HOME": "/c"}, "/c/config.toml"),
        ("linux", {"XDG_CONFIG_HOME": "/x"}, "/x/conifer/config.toml"),
        ("linux", {}, "/home/me/.config/conifer/config.toml"),
        ("darwin", {}, "/home/me/Library/Application Support/conifer/config.toml"),
    ],
)
def test_its_place_is_the_platforms(monkeypatch, platform, more, expected):
    for name in ("CONIFER_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert config_file.place() == Path(expected)
