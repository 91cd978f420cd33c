"""The command itself: help, version, exit codes, pipes, and what else lies in the folder."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conifer_cli import app, errors, interrupts
from conifer_cli.terminal import console
from engine.device import backend
from engine.fit.machine import this_machine
from support.program import (
    INTERRUPTED,
    ROOT,
    command,
    environment,
    know_bandwidth,
    run_conifer,
    run_unplugged,
)

pytestmark = pytest.mark.process

HERE = f"{backend()}: {this_machine().name}"
COMMANDS = ("run", "pull", "fit", "list", "show", "verify", "rm")


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_has_examples_and_goes_to_stdout(tmp_path, name, flag):
    done = run_conifer(*filter(None, (name, flag)), home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Examples:\n  conifer " in done.stdout


def test_the_door_listens_for_ctrl_c_before_it_imports_anything_of_weight(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules)\n"
        "import conifer_cli.__main__\n"
        "print(*(set(sys.modules) - before))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"typing", "re", "inspect", "dataclasses", "typer", "engine", "catalog"}


def test_help_imports_neither_wing_nor_anything_heavy(tmp_path):
    code = (
        "import sys\n"
        "from conifer_cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print(sorted(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.rsplit("\n[", 1)[1]
    heavy = ("mlx", "numpy", "huggingface_hub", "jinja2", "tokenizers", "engine", "catalog")
    assert not [name for name in heavy if f"'{name}" in loaded]
    assert "'typer'" in loaded


def test_version_is_one_line(tmp_path):
    done = run_conifer("--version", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"conifer ") and done.stdout.count(b"\n") == 1


def test_a_command_in_a_folder_of_decoys_imports_none_of_them(tmp_path):
    for name in ("engine", "catalog", "conifer_cli", "tests", "typer", "json"):
        package = tmp_path / "decoys" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise SystemExit('decoy imported')\n")
    for arguments in (("--version",), ("fit",), ("list", "--catalog")):
        done = run_conifer(*arguments, home=tmp_path, cwd=tmp_path / "decoys")
        assert done.returncode == 0, done.stderr
        assert b"decoy" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("list", "--catalog"), ("fit",), ("--help",)])
def test_a_reader_that_leaves_is_no_error(tmp_path, arguments):
    know_bandwidth(tmp_path, machine=HERE)  # a slow measurement is reported on stderr
    for _ in range(3):
        program = subprocess.Popen(
            [*command(), *arguments],
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert program.stdout and program.stderr
        program.stdout.close()
        code = program.wait(timeout=60)
        assert code in (0, 1, 141)
        assert program.stderr.read() == b""
        program.stderr.close()


@pytest.mark.parametrize("arguments", [("list", "--catalog"), ("--help",), ("fit",)])
def test_a_full_disk_behind_stdout_is_one_line(tmp_path, arguments):
    know_bandwidth(tmp_path, machine=HERE)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*command(), *arguments],
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1 and b"No space left on device" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_end_cleanly(tmp_path, closed):
    script = " ".join([*command(), "list", "--catalog", closed])
    done = subprocess.run(
        ["sh", "-c", script],
        env=environment(tmp_path),
        capture_output=True,
        check=False,
        timeout=60,
        text=True,
    )
    assert done.returncode in (0, 1)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), errors.INTERRUPTED),
        (console.ReaderGone(), errors.READER_GONE),
        (interrupts.Ended(15), 143),
    ],
)
def test_an_interruption_has_its_exit_code(monkeypatch, capsys, raised, code):
    def broken_off(as_json):
        raise raised

    monkeypatch.setattr("conifer_cli.commands.list.list_installed", broken_off)
    assert app._outcome(["list"]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [ZeroDivisionError, FileNotFoundError, PermissionError])
def test_an_unforeseen_exception_stays_a_traceback(monkeypatch, kind):
    def bug(as_json):
        raise kind("ours")

    monkeypatch.setattr("conifer_cli.commands.list.list_installed", bug)
    with pytest.raises(kind):
        app._outcome(["list"])


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("typer", "list"),
        ("huggingface_hub", "list"),
        ("catalog.registry", "fit"),
        ("mlx.core", "fit"),
    ],
)
def test_ctrl_c_while_loading_exits_130_without_a_word(tmp_path, module, arguments):
    done = subprocess.run(
        [sys.executable, "-P", "-c", INTERRUPTED, module, arguments],
        env=environment(tmp_path),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.skipif(sys.platform == "darwin", reason="there MLX always has Metal")
@pytest.mark.parametrize("found", [(), ("mlx-cpu", "mlx-cuda-12")])
@pytest.mark.parametrize("arguments", [("fit",), ("run", "-p", "hi")])
def test_without_one_mlx_backend_the_extras_are_named(
    tmp_path, monkeypatch, capsys, arguments, found
):
    monkeypatch.setenv("CONIFER_HOME", str(tmp_path))
    monkeypatch.setattr("engine.device._installed_backends", lambda: list(found))
    monkeypatch.setattr(sys, "stdin", None)
    assert app._outcome(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "[cpu]" in captured.err and "cuda12" in captured.err


def test_windows_is_told_about_wsl2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as left:
        app.main()
    captured = capsys.readouterr()
    assert left.value.code == 1
    assert "WSL2" in captured.err and captured.err.count("\n") == 1


def test_listing_and_showing_open_no_socket(tmp_path):
    for arguments in (("list",), ("list", "--catalog"), ("show", "qwen3-30b-a3b"), ("fit",)):
        assert run_unplugged(*arguments, home=tmp_path).returncode == 0


def test_the_program_can_be_run_as_a_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "conifer_cli", "--version"],
        env=environment(tmp_path),
        cwd=ROOT / "tests",
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"conifer ")
