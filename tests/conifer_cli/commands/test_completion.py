"""Completion: what may be typed, and real shells that ask for it at a Tab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from catalog import entries
from conifer_cli import options, presets
from conifer_cli.app import app
from conifer_cli.commands.completion import SCRIPTS, candidates
from conifer_cli.options import Shell
from engine.fit.machine_specs import choose
from support.program import MODELS, environment, run_conifer, run_unplugged
from support.terminal_session import TerminalSession

COMMIT = "0" * 40
PULLED = "hf:org/tiny/tiny-F32.gguf"
# How a shell is started without anybody's settings, and made to read the script; %s is its path.
START = {
    "bash": (["--norc", "--noprofile", "-i"], "source %s"),
    "zsh": (["-f", "-i"], "autoload -U compinit; compinit -u -D; source %s"),
    "fish": (["--no-config", "-i"], "source %s"),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one pulled model, which this process takes for its own."""
    folder = tmp_path / "hf" / "hub" / "models--org--tiny"
    for name in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copy(MODELS / "qwen3moe" / "model.gguf", folder / "blobs" / "b")
    (folder / "snapshots" / COMMIT / "tiny-F32.gguf").symlink_to("../../blobs/b")
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path / "conifer"))
    monkeypatch.setattr("catalog.hub.session.cache_folder", lambda: tmp_path / "hf" / "hub")
    options.open_store.cache_clear()
    yield tmp_path
    options.open_store.cache_clear()


def words(line: str) -> list[str]:
    """What may stand in place of the last word of a line that begins after `conifer `."""
    *before, current = line.split(" ")
    return [found.word for found in candidates(typer.main.get_command(app), before, current)]


def test_commands_are_those_of_the_program_and_none_that_is_hidden(home: Path):
    found = words("")
    assert {"run", "pull", "fit", "list", "show", "rm", "bench", "doctor", "completion"} <= {*found}
    assert not any(word.startswith("_") for word in found)
    assert words("ru") == ["run"]
    assert "--version" in words("--v")


def test_options_are_those_of_the_command(home: Path):
    assert words("run --kern") == ["--kernels"]
    assert "--no-think" in words("run --no-t") and "--json" in words("list --")
    assert "--kernels" not in words("list --")
    assert "--help" in words("run qwen3-30b-a3b --he")


def test_a_value_that_is_one_of_a_few_is_completed(home: Path):
    assert words("run --kernels ") == ["auto", "native", "blocks", "stock"]
    assert words("run --kernels n") == ["native"]
    assert words("completion ") == ["bash", "zsh", "fish"]
    assert words("run --seed ") == []


def test_models_are_those_of_the_catalog_and_those_that_were_pulled(home: Path):
    found = words("run ")
    assert {PULLED, *entries()} == {*found} and found[0] == PULLED
    assert words("run --kernels native --stats qwen3-30b-a3b-i") == ["qwen3-30b-a3b-instruct-2507"]
    assert words("rm ") == [PULLED]
    assert words(f"rm {PULLED} h") == [PULLED]  # it takes several
    assert words("run qwen3-30b-a3b ") == []  # a prompt follows


def test_a_colon_is_followed_by_a_quantisation(home: Path):
    expected = {f"qwen3-30b-a3b:{file.quant}" for file in entries()["qwen3-30b-a3b"].files}
    assert {*words("pull qwen3-30b-a3b:")} == expected


def test_names_after_an_option_are_completed(home: Path):
    assert words("run -m qwen3-30b-a3b-i") == ["qwen3-30b-a3b-instruct-2507"]
    found = words("fit --machine m4")
    assert {"m4-16gb", "m4-max-64gb"} <= {*found}
    assert words("fit --machine rtx-409") == ["rtx-4090"]  # sold with one size
    assert "ryzen-7950x" in words("fit --machine ryzen-7")
    assert "ryzen-7950x-64gb" in words("fit --machine ryzen-7950x")
    for name in found:
        assert choose(name).size_gb or len(choose(name).spec.memory_gb) == 1
    presets.write("brief", {"temperature": 0.0})
    assert words("run -t b") == ["brief"]


def test_a_path_is_left_to_the_shell(home: Path):
    assert words("run ./mod") == words("run /tmp/") == []


@pytest.mark.process
@pytest.mark.parametrize("shell", [shell.value for shell in Shell])
def test_the_script_is_printed_and_only_for_a_known_shell(shell: str, tmp_path: Path):
    done = run_conifer("completion", shell, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == SCRIPTS[Shell(shell)]
    assert run_conifer("completion", "csh", home=tmp_path).returncode == 2


@pytest.mark.process
def test_asking_opens_no_socket_and_any_words_will_do(tmp_path: Path):
    done = run_unplugged("__complete", "--", "run", "", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"qwen3-30b-a3b\t30.5B" in done.stdout
    for odd in ([], [""], ["nonsense", ""], ["run", "--nonsense", "--"], ["-", "é\udcff"]):
        done = run_conifer("__complete", "--", *odd, home=tmp_path)
        assert (done.returncode, done.stderr) == (0, b""), odd


@pytest.mark.process
def test_completion_loads_neither_mlx_nor_what_talks_to_the_hub():
    code = (
        "import sys\n"
        "from conifer_cli.commands.completion import candidates\n"
        "from conifer_cli.app import app, typer\n"
        "list(candidates(typer.main.get_command(app), ['run'], 'qwen'))\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    assert not {b"mlx.core", b"numpy", b"httpx2", b"rich"} & {*done.stdout.split()}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("shell", START)
def test_a_real_shell_completes(shell: str, home: Path):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed: its completion cannot be tried")
    (home / "bin").mkdir()
    wrapper = home / "bin" / "conifer"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m conifer_cli "$@"\n')
    wrapper.chmod(0o755)
    script = home / "script"
    script.write_text(SCRIPTS[Shell(shell)])
    (home / "model.gguf").touch()
    arguments, prepare_line = START[shell]
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    settings = environment(home, PATH=path, TERM="dumb" if shell != "fish" else "xterm")
    with TerminalSession([program, *arguments], settings) as session:
        session.type(f"cd {home}; {prepare_line % script}; echo re''ady\n")
        session.expect("ready")
        for typed, expected in [
            ("conifer pul", "conifer pull"),
            ("conifer run --kernels nat", "conifer run --kernels native"),
            ("conifer pull qwen3-30b-a3b:Q4_K", "conifer pull qwen3-30b-a3b:Q4_K_M"),
            ("conifer rm hf:o", f"conifer rm {PULLED}"),
            ("conifer run ./mod", "conifer run ./model.gguf"),
        ]:
            # What stands on the line after the Tab is printed in place of being run.
            session.type(f"{typed}\t\x01printf '<%s>' \n")
            session.expect("".join(f"<{word}>" for word in expected.split()))
        session.type("exit\n")
