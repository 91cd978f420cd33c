"""`conifer run` as a filter: a tiny model with random weights, run for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from catalog import entries, resolve
from conifer_cli.run_options import RunOptions
from conifer_cli.session.session import settings_for
from support.program import (
    MODELS,
    OTHER_PIP,
    command,
    environment,
    padded,
    run_conifer,
    run_unplugged,
    templated,
)

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "8")


def test_an_answer_is_all_of_stdout_and_ends_in_one_newline(tmp_path):
    done = run_conifer("run", QWEN, "hello", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"\n") and not done.stdout.endswith(b"\n\n")
    assert done.stdout.strip()


def test_a_prompt_means_the_same_wherever_it_comes_from(tmp_path):
    ways = [
        run_conifer("run", QWEN, "say", "it", *GREEDY, home=tmp_path),
        run_conifer("run", QWEN, "-p", "say it", *GREEDY, home=tmp_path),
        run_conifer("run", QWEN, *GREEDY, home=tmp_path, stdin=b"say it\n"),
        run_conifer("run", QWEN, *GREEDY, home=tmp_path, CONIFER_PROMPT="say it"),
        run_conifer("run", QWEN, "-", *GREEDY, home=tmp_path, stdin=b"say it"),
        run_conifer("run", QWEN, "-p", "-", *GREEDY, home=tmp_path, stdin=b"say it"),
    ]
    assert len({(done.returncode, done.stdout) for done in ways}) == 1
    assert ways[0].returncode == 0


def test_a_typed_prompt_wins_over_the_environment(tmp_path):
    typed = run_conifer("run", QWEN, "say it", *GREEDY, home=tmp_path)
    both = run_conifer("run", QWEN, "say it", *GREEDY, home=tmp_path, CONIFER_PROMPT="other")
    assert (both.returncode, both.stdout) == (0, typed.stdout)


def test_stdin_comes_first_then_a_blank_line_then_the_argument(tmp_path):
    both = run_conifer("run", QWEN, "ask", *GREEDY, home=tmp_path, stdin=b"text\n")
    joined = run_conifer("run", QWEN, "-p", "text\n\nask", *GREEDY, home=tmp_path)
    other = run_conifer("run", QWEN, "-p", "ask\n\ntext", *GREEDY, home=tmp_path)
    assert both.returncode == 0
    assert both.stdout == joined.stdout != other.stdout


def test_the_same_seed_gives_the_same_answer(tmp_path):
    hot = ("--temperature", "1.5", "--max-tokens", "16")
    answers = [
        run_conifer("run", QWEN, "x", *hot, "--seed", seed, home=tmp_path).stdout
        for seed in ("7", "7", "8")
    ]
    assert answers[0] == answers[1] != answers[2]


def test_stats_are_asked_for_and_go_to_stderr(tmp_path):
    done = run_conifer("run", QWEN, "hello", *GREEDY, "--stats", home=tmp_path)
    assert done.returncode == 0
    assert b"tokens/s" in done.stderr and b"tokens/s" not in done.stdout


def test_max_tokens_ends_an_answer_with_0_and_the_end_of_the_context_with_4(tmp_path):
    prompt = "a b c d e f g h"
    asked = run_conifer("run", QWEN, prompt, *GREEDY, home=tmp_path)
    cut = run_conifer("run", QWEN, prompt, "--temperature", "0", "-c", "24", home=tmp_path)
    assert asked.returncode == 0
    assert cut.returncode == 4
    assert cut.stdout.endswith(b"\n") and b"24 tokens fill the 24-token context" in cut.stderr


def test_a_prompt_over_the_context_exits_4_with_both_counts(tmp_path):
    done = run_conifer("run", QWEN, "word " * 100, "-c", "32", home=tmp_path)
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"tokens do not fit in a context of 32 tokens" in done.stderr


def test_a_context_over_the_models_own_exits_2(tmp_path):
    done = run_conifer("run", QWEN, "hi", "-c", "4k", home=tmp_path)
    assert done.returncode == 2
    assert b"supports a context of up to 2,048 tokens, got 4,096" in done.stderr


@pytest.mark.parametrize("kept_bytes", [0, 3, 100, 5000, 400_000])
def test_a_truncated_file_exits_3(tmp_path, kept_bytes):
    path = tmp_path / "cut.gguf"
    path.write_bytes((MODELS / "llama" / "model.gguf").read_bytes()[:kept_bytes])
    done = run_conifer("run", str(path), "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"Traceback" not in done.stderr and b"conifer rm" not in done.stderr


def test_a_model_too_large_exits_4_without_a_socket_and_says_what_fits(tmp_path):
    name = "qwen3-30b-a3b:Q4_K_M"
    for arguments in (("run", name, "hi"), ("pull", name)):
        done = run_unplugged(*arguments, home=tmp_path, memory_bytes=8 << 30)
        assert (done.returncode, done.stdout) == (4, b"")
        assert b"qwen3-30b-a3b:Q4_K_M does not fit this machine" in done.stderr
        assert b"18.6 GB (17.3 GiB)" in done.stderr and b"8.6 GB (8.0 GiB)" in done.stderr
        assert b"`conifer fit`" in done.stderr


def test_a_hub_that_cannot_be_reached_exits_5(tmp_path):
    done = run_conifer("run", "hf:org/repo", "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"HF_ENDPOINT" in done.stderr


def test_a_local_file_opens_no_socket(tmp_path):
    done = run_unplugged("run", QWEN, "hi", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_starter_that_is_here_opens_no_socket(tmp_path):
    package = resolve("smollm2-135m").package
    path = tmp_path / "conifer" / "models" / package.model_id / package.file_name
    path.parent.mkdir(parents=True)
    padded(path, package.size_bytes)
    done = run_unplugged("run", "-p", "hi", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_starter_is_fetched_leaves_nothing(tmp_path, number):
    pip, pid = tmp_path / "pip", tmp_path / "pid"
    pip.write_text(f"#!/bin/sh\necho $$ > {pid}.new && mv {pid}.new {pid}\nexec sleep 60\n")
    pip.chmod(0o755)
    program = subprocess.Popen(
        [sys.executable, "-P", "-c", OTHER_PIP, str(pip), "run", "-p", "hi"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not pid.exists():
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    program.send_signal(number)
    out, err = program.communicate(timeout=30)
    assert (program.returncode, out) == (128 + number, b"")
    assert b"Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not list((tmp_path / "conifer" / "models").iterdir())


def test_a_tight_fit_runs_with_one_line_on_stderr(tmp_path):
    done = run_unplugged("run", QWEN, "hi", *GREEDY, home=tmp_path, memory_bytes=500 << 20)
    assert done.returncode == 0
    assert done.stderr.count(b"\n") == 1 and b"tight" in done.stderr


def test_force_runs_what_does_not_fit(tmp_path):
    refused = run_unplugged("run", QWEN, "hi", *GREEDY, home=tmp_path, memory_bytes=32 << 20)
    forced = run_unplugged(
        "run", QWEN, "hi", *GREEDY, "--force", home=tmp_path, memory_bytes=32 << 20
    )
    assert (refused.returncode, refused.stdout) == (4, b"")
    assert forced.returncode == 0 and forced.stdout.strip()
    assert b"model.gguf does not fit this machine, but --force was given" in forced.stderr


def test_invalid_utf8_on_stdin_is_replaced_and_noted_once(tmp_path):
    for locale in ("C", "C.UTF-8"):
        done = run_conifer(
            "run", QWEN, *GREEDY, home=tmp_path, stdin=b"a\xff\xfeb\xc3", LC_ALL=locale
        )
        assert done.returncode == 0
        assert done.stderr.decode().count("not valid UTF-8") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_the_locale_changes_nothing_of_the_answer(tmp_path, encoding):
    plain = run_conifer("run", QWEN, "é", *GREEDY, home=tmp_path)
    odd = run_conifer("run", QWEN, "é", *GREEDY, home=tmp_path, PYTHONIOENCODING=encoding)
    assert (odd.returncode, odd.stdout) == (0, plain.stdout)


def test_a_reader_that_leaves_mid_answer_ends_it_in_silence(tmp_path):
    for _ in range(3):
        done = subprocess.run(
            ["sh", "-c", f"{' '.join(command())} run {QWEN} hi --seed 1 | head -c 1"],
            env=environment(tmp_path),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert len(done.stdout) == 1


def test_ctrl_c_exits_130_without_a_traceback(tmp_path):
    program = subprocess.Popen(
        [*command(), "run", QWEN, "hi", "--temperature", "2", "--seed", "3"],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout and program.stderr
    program.stdout.read(1)  # it has begun to answer
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=10)
    assert (program.returncode, err) == (130, b"")


def test_waiting_for_stdin_is_said_once(tmp_path):
    program = subprocess.Popen(
        [*command(), "run", QWEN, *GREEDY],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(5)
    _, err = program.communicate(b"hi", timeout=30)
    assert program.returncode == 0
    assert err.count(b"\n") == 1 and b"waiting" in err


def test_a_system_message_for_a_model_without_template_exits_2(tmp_path):
    done = run_conifer("run", QWEN, "hi", "-s", "be brief", home=tmp_path)
    assert done.returncode == 2
    assert b"chat template" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ((), "user=hi;unset"),
        (("-s", "be brief"), "system=be brief;user=hi;unset"),
        (("--think",), "user=hi;True"),
        (("--no-think",), "user=hi;False"),
    ],
)
def test_the_chat_template_gets_roles_and_thinking(tmp_path, arguments, rendered):
    template = (
        "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
        "{{ enable_thinking if enable_thinking is defined else 'unset' }}"
    )
    asked = run_conifer(
        "run", templated(tmp_path, template), "hi", *GREEDY, *arguments, home=tmp_path
    )
    plain = run_conifer("run", QWEN, rendered, *GREEDY, home=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, plain.stdout)


def test_an_architecture_we_lack_exits_3(tmp_path):
    data = (MODELS / "llama" / "model.gguf").read_bytes()
    path = tmp_path / "other.gguf"
    path.write_bytes(data.replace(b"llama", b"lemma"))
    done = run_conifer("run", str(path), "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"lemma" in done.stderr


def test_a_path_may_have_any_name(tmp_path):
    path = tmp_path / "a b[red]é.gguf"
    shutil.copy(QWEN, path)
    done = run_conifer("run", str(path), "hi", *GREEDY, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_the_catalog_recommends_is_what_samples():
    entry = entries()["qwen3.5-35b-a3b"]
    advised = settings_for(entry, RunOptions())
    typed = settings_for(entry, RunOptions(temperature=0.0))
    assert (advised.temperature, advised.top_k, advised.presence_penalty) == (1.0, 20, 1.5)
    assert (typed.temperature, typed.presence_penalty) == (0.0, 1.5)


def test_a_file_where_a_model_or_a_prompt_belongs_gets_a_hint(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("On Friday.")
    done = run_unplugged("run", "notes.txt", home=tmp_path)
    assert done.returncode == 2
    assert b"Did you mean `conifer run -f notes.txt`?" in done.stderr
