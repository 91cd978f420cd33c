"""What is typed wrong ends with exit code 2 and says what would be right."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
import typer

from conifer_cli import app, errors
from conifer_cli.options import open_store
from support.program import MODELS, run_conifer

NUMBERS = {
    "--temperature": (["-1", "-0.001", "10.5", "1e9", "nan", "inf", "-inf", "warm", ""], "0 to 10"),
    "--top-p": (["-0.5", "0", "0.001", "1.01", "2", "nan", "half"], "0.01 to 1"),
    "--top-k": (["0", "-1", "16777217", "1.5", "many"], "1 to 16,777,216"),
    "--min-p": (["-0.1", "1", "2", "nan", "some"], "0 to 0.99"),
    "--seed": (["-1", "1180591620717411303424", "0.5", "x"], "0 to 18,446,744,073,709,551,615"),
    "--max-tokens": (["0", "-5", "16777217", "1e3", "all"], "1 to 16,777,216"),
    "--context": (["0", "-1", "64m", "1.5k", "99999999999", "k", ""], "1 to 16,777,216"),
    "--kv-type": (["f64", "F16", ""], "'f16', 'q8', 'f32'"),
    "--effort": (["none", "HIGH", ""], "'low', 'medium', 'high'"),
    "--kernels": (["cuda", "none"], "'auto', 'native', 'blocks', 'stock'"),
    "--stop": ([""], "must not be empty"),
}
PAIRS = [(flag, value, said) for flag, (values, said) in NUMBERS.items() for value in values]


def outcome(capsys, *arguments):
    code = app._outcome(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_there_are_forty_invalid_pairs():
    assert len(PAIRS) >= 40


@pytest.mark.parametrize(("flag", "value", "said"), PAIRS)
def test_an_invalid_value_exits_2_and_names_flag_and_range(capsys, flag, value, said):
    code, out, err = outcome(capsys, "run", "smollm2-135m", f"{flag}={value}", "hi")
    assert (code, out) == (errors.USAGE, "")
    assert flag in err and said in err
    assert err.startswith("conifer: ") and err.count("\n") == 2


LONG = 5000 * "a"  # longer than any file's name


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("run", "--bogus"),
        ("run", "--temperature"),
        ("fit", "a", "b"),
        ("pull",),
        ("rm",),
        ("show",),
        ("list", "extra"),
        ("run", "smollm2-135m", "hi", "-p", "ho"),
        ("run", "smollm2-135m", "hi", "--json", "--raw"),
        ("run", "smollm2-135m", "hi", "--json", "-i"),
        ("run", "smollm2-135m", "hi", "-x", "-i"),
        ("run", "smollm2-135m", "hi", "--stop", "a", "--stop", ""),
        ("run", "smollm2-135m", "hi", "--no-think", "--effort", "low"),
        ("run", "smollm2-135m", "hi", "--no-think", "--show-thinking"),
        ("rm", "smollm2-135m"),
        *((command, f"{LONG}/x") for command in ("run", "pull", "fit", "show", "rm", "bench")),
        ("run", f"./{LONG}", "hi"),
        ("run", "smollm2-135m", "hi", "--schema", LONG),
        ("run", "smollm2-135m", "hi", "-f", LONG),
        ("run", "--resume", LONG, "hi"),
        ("run", "-t", LONG),
        ("default", f"{LONG}/x"),
        ("fit", "--memory", "32"),
        ("fit", "--machine", "nowhere-64gb"),
        ("run", "smollm2-135m", "-c", "100k", "hi"),
        ("run", str(MODELS / "llama" / "model.gguf"), "--think", "hi"),
        ("run", str(MODELS / "llama" / "model.gguf"), "-s", "be brief", "hi"),
        ("rm", str(MODELS / "llama" / "model.gguf")),
    ],
)
def test_a_command_line_without_sense_exits_2(capsys, arguments, tmp_path, monkeypatch):
    def load(*_, **__):
        raise AssertionError("loaded all the same")

    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr("engine.model.load", load)
    monkeypatch.setattr(sys, "stdin", None)
    open_store.cache_clear()
    code, out, err = outcome(capsys, *arguments)
    open_store.cache_clear()
    assert (code, out) == (errors.USAGE, "")
    assert err.startswith("conifer: ")


STANDING = {"--all", "--dry-run", "--continue", "--unset", "--remove"}  # never a wish


def test_every_option_has_a_variable_that_follows_from_its_name_or_is_in_its_help(capsys):
    for name, command in typer.main.get_command(app.app).commands.items():
        options = [p for p in command.params if p.opts[0].startswith("-") and p.name != "help"]
        if command.hidden or not options:
            continue
        _, out, _ = outcome(capsys, name, "--help")
        said = "".join(out.split())
        for option in options:
            if STANDING & {*option.opts}:
                continue
            long = next(word for word in option.opts if word.startswith("--"))
            regular = "CONIFER_" + long.strip("-").upper().replace("-", "_")
            assert option.envvar.startswith("CONIFER_"), (name, option.name)
            assert (option.envvar == regular) != (option.envvar in said), (name, option.name)


@pytest.mark.parametrize(
    ("line", "said", "hint"),
    [
        ("--temprature", "unknown option --temprature", "See `conifer --help`."),
        ("--version=3", "--version takes no value", "See `conifer --help`."),
        ("lst", "unknown command 'lst'", "Did you mean `conifer list`?"),
        ("nonsense", "unknown command 'nonsense'", "See `conifer --help`."),
        ("remove x", "unknown command 'remove'", "Did you mean `conifer rm`?"),
        ("use x", "unknown command 'use'", "Did you mean `conifer default`?"),
        ("continue", "unknown command 'continue'", "Did you mean `conifer run --continue`?"),
        ("prune", "unknown command 'prune'", "Did you mean `conifer rm`?"),
        ("recommend", "unknown command 'recommend'", "Did you mean `conifer fit`?"),
        ("search", "unknown command 'search'", "Did you mean `conifer list --catalog`?"),
        (
            "Why is it so?",
            "unknown command 'Why'",
            'Did you mean `conifer run -p "Why is it so?"`?',
        ),
        ("help fitt", "no help on 'fitt'", "Did you mean `conifer help fit`?"),
        ("help enviroment", "no help on 'enviroment'", "Did you mean `conifer help environment`?"),
        ("fit --color red", "--color must be one of 'auto', 'always', 'never'", "See `conifer fit"),
        ("run --temprature 1", "unknown option --temprature", "Did you mean --temperature?"),
        ("run --temp 1", "unknown option --temp", "Did you mean --temperature?"),
        ("run --top_p 1", "unknown option --top_p", "Did you mean --top-p?"),
        ("run --bogus x", "unknown option --bogus", "See `conifer run --help`."),
        ("run -xZ", "unknown option -Z", "See `conifer run --help`."),
        ("run --json=3", "--json takes no value", "See `conifer run --help`."),
        ("run --top-k", "--top-k needs a value: a whole number from 1 to", "See `conifer run"),
        ("run --effort", "needs a value: one of 'low', 'medium', 'high'", "See `conifer run"),
        ("run -p", "-p needs a value", "See `conifer run --help`."),
        ("run --top-k 1.5", "must be a whole number from 1 to 16,777,216", "See `conifer run"),
        ("run -c ٣", "-c/--context must be from 1 to 16,777,216 tokens", "See `conifer run"),
        ("fit a b c", "unexpected argument 'b'", "See `conifer fit --help`."),
        ("pull", "MODEL is missing", "See `conifer pull --help`."),
        ("completion", "SHELL is missing; it must be one of 'bash', 'zsh', 'fish'", "See `conif"),
        ("completion ksh", "SHELL must be one of 'bash', 'zsh', 'fish'", "See `conifer compl"),
    ],
)
def test_a_command_line_that_cannot_be_read_gets_our_words(capsys, line, said, hint):
    code, out, err = outcome(capsys, *line.split())
    first, second = err.splitlines()
    assert (code, out) == (errors.USAGE, "")
    assert first.startswith("conifer: ") and said in first and second.startswith(hint)


@pytest.mark.parametrize(("name", "value"), [("JSON", "maybe"), ("THINK", "perhaps")])
def test_a_switch_in_the_environment_is_true_or_false(capsys, monkeypatch, name, value):
    monkeypatch.setenv(f"CONIFER_{name}", value)
    code, _, err = outcome(capsys, "run", "smollm2-135m", "hi")
    assert code == errors.USAGE
    assert err.startswith(f"conifer: CONIFER_{name} must be true or false\n")


@pytest.mark.parametrize("prompt", ["why is it so", 'say "hi" now', "cost of $HOME `x` !"])
def test_the_command_in_a_hint_runs_as_it_is(capsys, prompt):
    _, _, err = outcome(capsys, "run", prompt)
    (command,) = re.findall(r"Did you mean `(.*)`\?\n", err)
    assert shlex.split(command) == ["conifer", "run", "-p", prompt]


def test_an_environment_variable_is_checked_like_its_option(capsys, monkeypatch):
    monkeypatch.setenv("CONIFER_TOP_P", "2")
    code, _, err = outcome(capsys, "run", "smollm2-135m", "hi")
    assert code == errors.USAGE
    assert "CONIFER_TOP_P" in err and "0.01 to 1" in err


@pytest.mark.process
def test_an_unknown_model_exits_2_with_the_closest_name(tmp_path):
    done = run_conifer("run", "qwen3-30b-a3", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"'qwen3-30b-a3'" in done.stderr and b"Did you mean qwen3-30b-a3b?" in done.stderr


@pytest.mark.process
def test_an_unknown_model_that_is_a_sentence_is_taken_for_a_prompt(tmp_path):
    done = run_conifer("run", "why is the sky blue", home=tmp_path)
    assert done.returncode == 2
    assert b'Did you mean `conifer run -p "why is the sky blue"`?' in done.stderr


@pytest.mark.parametrize("sentence", ["What is 1/2 of 10?", "two\twords"])
def test_a_sentence_that_looks_like_a_path_is_taken_for_a_prompt_too(capsys, sentence):
    code, _, err = outcome(capsys, "run", sentence)
    assert code == errors.USAGE
    assert "Did you mean `conifer run -p" in err


def test_a_home_of_nobody_exits_2(capsys, monkeypatch):
    monkeypatch.setenv("CONIFER_HOME", "~nobody-of-that-name/x")
    open_store.cache_clear()
    code, out, err = outcome(capsys, "list")
    assert (code, out) == (errors.USAGE, "")
    assert "CONIFER_HOME" in err


def test_a_file_that_may_not_be_read_exits_1(capsys, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("engine.gguf.reader.open_model", refuse)
    code, out, err = outcome(capsys, "fit", str(MODELS / "llama" / "model.gguf"))
    assert (code, out) == (errors.FAILURE, "")
    assert "model.gguf: Permission denied" in err


@pytest.mark.process
@pytest.mark.parametrize("command", ["run", "fit", "pull", "show"])
def test_a_missing_path_exits_2(tmp_path, command):
    done = run_conifer(command, "./missing.gguf", home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no such file: './missing.gguf'" in done.stderr


@pytest.mark.process
def test_empty_stdin_and_no_prompt_exits_2(tmp_path):
    for stdin in (b"", b"\n \n"):
        done = run_conifer("run", str(MODELS / "llama" / "model.gguf"), home=tmp_path, stdin=stdin)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"no prompt given" in done.stderr


@pytest.mark.process
def test_a_hostile_name_does_not_reach_the_terminal(tmp_path):
    done = run_conifer("run", "\x1b]0;owned\x07no\x1b[2Jpe[bold]", home=tmp_path)
    assert done.returncode == 2
    assert b"\x1b" not in done.stderr and b"\x07" not in done.stderr
    assert b"[bold]" in done.stderr
