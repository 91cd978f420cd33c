"""`conifer` between other programs: readers that leave, odd streams, odd bytes, and silence."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import time

import pytest

from conifer_cli.terminal import console
from support.program import MODELS, command, environment, run_conifer, templated
from support.terminal_session import TerminalSession

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
GREEDY = ("--temperature", "0", "--max-tokens", "8")
ENDLESS = ("run", QWEN, "hi", "--seed", "3", "--temperature", "2")  # some 900 tokens
# What is on stdout when the reader leaves; all of them write more than it reads.
WRITING = [
    ENDLESS,
    (*ENDLESS, "--raw"),
    (*ENDLESS, "--stats"),
    (*ENDLESS, "--verbose"),
    (*ENDLESS, "--kernels", "stock"),
    (*ENDLESS, "--stop", "none of this"),
    (*ENDLESS, "--format", "json"),
    ("run", QWEN, "hi", "--max-tokens", "200", "--json"),
    ("run", QWEN, "hi", "--max-tokens", "200", "--no-stream"),
    ("list", "--catalog"),
    ("list", "--catalog", "--json"),
    ("show", "qwen3-30b-a3b"),
    ("show", QWEN, "--json"),
    ("fit", QWEN),
    ("run", "--help"),
]
READS = [0, 1]  # bytes, before it leaves
SILENT = [(), ("--show-thinking",), ("--raw",), ("--no-stream",), ("--json",), ("--cache",)]
PATTERNS = [
    b"\x80",
    b"\xfe\xfd",
    b"\xc3",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x92",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfe",
    "hi".encode("utf-16") + b"\xd8",
    "hi".encode("utf-32") + b"\xd8",
    b"caf\xe9",
    b"a\xffb\xffc",
    b"\xef\xbb\xbf\xff",
    b"\x00\xff\x00",
    b"\x1b[31m\x9b31m",
    b"ok\r\n\xa0",
    b"\xe2\x82",
    bytes(range(256)),
]
LOCALES = [{"LC_ALL": "C"}, {"LC_ALL": "C.UTF-8"}, {"PYTHONIOENCODING": "ascii"}]


def test_there_are_thirty_broken_pipes():
    assert len(WRITING) * len(READS) == 30
    assert len(PATTERNS) == 20


@pytest.mark.parametrize("arguments", WRITING, ids=" ".join)
@pytest.mark.alone
def test_a_reader_that_leaves_ends_it_at_once_and_in_silence(tmp_path, arguments):
    break_off(tmp_path, arguments, 1)


@pytest.mark.nightly
@pytest.mark.parametrize("count", READS)
@pytest.mark.parametrize("arguments", WRITING, ids=" ".join)
def test_a_reader_may_leave_before_or_after_the_first_byte(tmp_path, arguments, count):
    break_off(tmp_path, arguments, count)


def break_off(home, arguments, count):
    quiet = not {"--stats", "--verbose"} & set(arguments)
    program = subprocess.Popen(
        [*command(), *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        assert program.stdout and program.stderr
        given = program.stdout.read(count)
        program.stdout.close()
        started = time.monotonic()
        err = program.stderr.read()
    assert len(given) == count
    assert program.returncode in (0, 141)
    assert b"Traceback" not in err and b"roken pipe" not in err
    assert err == b"" or not quiet
    assert not count or time.monotonic() - started < 1.0


@pytest.mark.parametrize("flags", SILENT, ids=" ".join)
def test_a_pipe_hears_nothing_that_it_did_not_ask_for(tmp_path, flags):
    path = templated(tmp_path, "{{ messages[0].content }}")
    done = run_conifer("run", path, "hi", *GREEDY, *flags, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


STDIO = [
    ("<&-", (0,)),
    (">&-", (1,)),
    ("2>&-", (0,)),
    (">&- 2>&-", (1,)),
    ("<&- >&- 2>&-", (1,)),
    (">/dev/full", (1,)),
    ("2>/dev/full", (0,)),
    (">&- 2>/dev/full", (1,)),
]


@pytest.mark.parametrize(("redirected", "codes"), STDIO)
def test_streams_that_are_closed_full_or_odd_end_cleanly(tmp_path, redirected, codes):
    script = " ".join([*command(), "run", QWEN, "-p", "hi", *GREEDY, redirected])
    done = subprocess.run(
        ["sh", "-c", script],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in codes
    assert b"Traceback" not in done.stderr and done.stderr.count(b"\n") <= 2


def check_bytes(home, data, locale):
    done = run_conifer("run", QWEN, *GREEDY, home=home, stdin=b"x" + data, **locale)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode().count("not valid UTF-8") == 1 and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_bytes_that_are_not_utf8_are_replaced_and_noted_once(tmp_path, locale):
    check_bytes(tmp_path, b"".join(PATTERNS), locale)


@pytest.mark.nightly
@pytest.mark.parametrize(("data", "locale"), [*itertools.product(PATTERNS, LOCALES)], ids=repr)
def test_each_of_twenty_patterns_is_replaced_in_each_locale(tmp_path, data, locale):
    check_bytes(tmp_path, data, locale)


@pytest.mark.parametrize("data", PATTERNS, ids=repr)
def test_what_is_left_of_bad_bytes_is_text(monkeypatch, capsys, data):
    monkeypatch.setattr(console, "_chunks", lambda: iter([b"xy" + data[:2], data[2:]]))
    text = console.piped()
    assert text.encode() and "\ufffd" in text
    assert capsys.readouterr().err.count("not valid UTF-8") == 1


@pytest.mark.parametrize("size_bytes", [1 << 20, pytest.param(10 << 20, marks=pytest.mark.nightly)])
def test_one_line_of_megabytes_is_an_error_with_both_counts(tmp_path, size_bytes):
    done = run_conifer("run", QWEN, *GREEDY, home=tmp_path, stdin=b"word " * (size_bytes // 5))
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"tokens do not fit in a context of 2,048 tokens" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_answer_in_silence(tmp_path, number):
    assert end_by_signal(tmp_path, number, 0.0) == 128 + number


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_at_any_moment(tmp_path, number):
    moments = random.Random(7)
    codes = [end_by_signal(tmp_path, number, moments.uniform(0, 1)) for _ in range(10)]
    # some answers had come to an end before
    assert set(codes) <= {128 + number, 0, 4} and codes.count(128 + number) >= 5


def end_by_signal(home, number, after_s):
    program = subprocess.Popen(
        [*command(), *ENDLESS],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with program:
        assert program.stdout
        program.stdout.read(1)
        time.sleep(after_s)
        program.send_signal(number)
        _, err = program.communicate(timeout=10)
    assert err == b""
    return program.returncode


def test_the_same_seed_gives_the_same_text_in_every_process(tmp_path):
    asked = ("run", QWEN, "hi", "--temperature", "1.5", "--max-tokens", "60", "--seed", "11")
    answers = {run_conifer(*asked, home=tmp_path).stdout for _ in range(3)}
    assert len(answers) == 1
    assert run_conifer(*asked[:-1], "12", home=tmp_path).stdout not in answers


def test_after_a_piped_prompt_the_conversation_goes_on_at_the_keyboard(tmp_path):
    program = " ".join([*command(), "run", QWEN, "-i", *GREEDY])
    arguments = ["/bin/sh", "-c", f"echo hi | {program}"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as typing:
        typing.expect(">>> ")
        typing.type("and you\n")
        typing.expect(">>> ")
        typing.type("/bye\n")
        assert typing.wait() == 0


def test_without_a_pipe_a_typed_prompt_can_begin_a_conversation_too(tmp_path):
    arguments = [*command(), "run", QWEN, "-i", "-p", "hi", *GREEDY]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as typing:
        typing.expect(">>> ")
        typing.type("/bye\n")
        assert typing.wait() == 0
