"""A mixture that does not fit: what `fit`, `pull`, `run`, `list` and `show` say and do."""

from __future__ import annotations

import json
import os
import sys

import pytest

from conifer_cli.fit.run_history import machine_key
from engine.fit.machine import Machine
from engine.kernels.native import unavailable_reason
from support.mixture import write_mixture
from support.program import UNPLUGGED, environment, know_bandwidth, run_conifer, run_unplugged
from support.terminal_session import TerminalSession

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(unavailable_reason() is not None, reason="needs the native kernels"),
]
TOO_LITTLE, SOME, PLENTY = 150 << 20, 480 << 20, 4 << 30
CONTEXT = ("-c", "1024")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_mixture(tmp_path_factory.mktemp("streams")))


@pytest.fixture
def home(model, tmp_path):
    """A home that knows how fast memory and disk are, so that nothing is measured."""
    know_bandwidth(tmp_path)
    machine = Machine("test machine", "cpu", 1, 1, "")
    device = os.stat(model).st_dev
    known = {
        "machine": machine_key(machine),
        "device": f"{os.major(device)}:{os.minor(device)}",
        "read_bytes": 600_000,
        "bytes_per_s": 10**9,
    }
    with (tmp_path / "conifer" / "ledger.jsonl").open("a") as file:
        file.write(3 * (json.dumps({"format": 1, "kind": "disk", **known}) + "\n"))
    return tmp_path


def fit(model, home, *more, memory_bytes=SOME):
    arguments = ("fit", model, *CONTEXT, "--json", *more)
    done = run_unplugged(*arguments, home=home, memory_bytes=memory_bytes)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("memory_bytes", "kind", "code", "streamed_code"),
    [(TOO_LITTLE, "too_large", 4, 4), (SOME, "streams", 4, 0), (PLENTY, "fits", 0, 0)],
)
def test_fit_exits_as_asked(model, home, memory_bytes, kind, code, streamed_code):
    got, found = fit(model, home, memory_bytes=memory_bytes)
    assert (got, found["verdict"], bool(found["streaming"])) == (code, kind, kind == "streams")
    assert bool(found["ways_out"]) == (code == 4)
    got, found = fit(model, home, "--stream", memory_bytes=memory_bytes)
    assert (got, found["verdict"]) == (streamed_code, kind)
    assert bool(found["ways_out"]) == (streamed_code == 4)


def test_fit_says_what_streams_and_how_fast(model, home):
    _, found = fit(model, home)
    streaming = found["streaming"]
    assert streaming["experts"] == 256 and 0 < streaming["cached_experts"] < 256
    spent = streaming["resident_bytes"] + streaming["store_bytes"]
    assert spent <= found["machine"]["budget_bytes"] == SOME
    missed = 1 - streaming["hit_rate"]
    read = missed * 16 * streaming["expert_bytes"]
    assert streaming["read_bytes_per_token"] == pytest.approx(read, rel=0.02, abs=10_000)
    assert streaming["disk"]["source"] == "measured"
    rate = streaming["speed"]
    assert rate["low"] <= rate["per_s"] <= rate["high"]
    assert found["speed"]["at_start"] == rate
    assert streaming["first_token_s"] > 0
    assert streaming["command"] == f"conifer run {model} --stream"
    assert "200 words take" in streaming["sentence"] in found["ways_out"][0]


def test_fit_prints_a_sentence_and_the_split(model, home):
    done = run_unplugged("fit", model, *CONTEXT, home=home, memory_bytes=SOME)
    text = done.stdout.decode()
    assert done.returncode == 4
    assert text.startswith("verdict: streams; ")
    for said in (
        "streams: about ",
        "in memory: ",
        " of 256 experts",
        "hit rate ",
        "per token from",
    ):
        assert said in text
    assert f"conifer run {model} --stream" in text


def test_a_budget_is_a_limit_on_a_larger_machine(model, home):
    code, found = fit(model, home, "--budget", "1GB", memory_bytes=PLENTY)
    assert (code, found["verdict"], found["machine"]["budget_bytes"]) == (0, "fits", 10**9)
    assert found["machine"]["limited_by"] == "as given"


def test_another_machines_disk_is_assumed(model, home):
    done = run_unplugged(
        *("fit", model, "-c", "4096", "--machine", "cpu-64gb", "--bandwidth", "50", "--json"),
        home=home,
    )
    assert json.loads(done.stdout)["streaming"] is None
    done = run_unplugged(
        "fit",
        "qwen3-235b-a22b-instruct-2507",
        "--machine",
        "cpu-64gb",
        "--bandwidth",
        "50",
        "--json",
        home=home,
    )
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"]) == (4, "streams")
    assert found["streaming"]["disk"] == {"bytes_per_s": 5_500_000_000, "source": "assumed"}
    rate = found["streaming"]["speed"]
    assert rate["high"] > 2 * rate["low"]
    assert rate["source"] == "prior"


def test_run_without_a_terminal_stops_with_the_sentence_and_the_command(model, home):
    done = run_unplugged("run", model, "hi", *CONTEXT, home=home, memory_bytes=SOME)
    assert (done.returncode, done.stdout) == (4, b"")
    said = done.stderr.decode()
    assert "does not fit this machine" in said
    assert "tokens/s; 200 words take" in said
    assert f"`conifer run {model} --stream`" in said


ANSWER = ("--seed", "1", "-n", "24", "--json")


@pytest.fixture
def resident(model, home):
    done = run_unplugged(
        "run", model, "hi there", *CONTEXT, *ANSWER, home=home, memory_bytes=PLENTY
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("how", [("--stream",), ("--budget", "1GB")])
def test_run_streams_the_same_answer(model, home, resident, how):
    done = run_unplugged(
        "run", model, "hi there", *CONTEXT, *ANSWER, *how, home=home, memory_bytes=SOME
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["answer"] == resident["answer"]
    assert "experts_from_disk" not in resident
    disk = found["experts_from_disk"]
    assert disk["hits"] + disk["misses"] > 0
    assert 0 <= disk["hit_rate"] <= 1
    assert disk["bytes_read"] > disk["prompt_bytes_read"] > 0
    assert b"streams from the disk. In memory: " in done.stderr


def test_stats_say_hits_bytes_and_time(model, home):
    done = run_unplugged(
        *("run", model, "hi", *CONTEXT, "-n", "4", "--stream", "--stats"),
        home=home,
        memory_bytes=SOME,
    )
    said = done.stderr.decode()
    assert done.returncode == 0
    assert (
        "experts: " in said and " in memory, " in said and " read, " in said and " s waited" in said
    )


def test_force_still_means_paging(model, home):
    done = run_unplugged(
        "run", model, "hi", *CONTEXT, "-n", "2", "--force", "--json", home=home, memory_bytes=SOME
    )
    assert done.returncode == 0
    assert "experts_from_disk" not in json.loads(done.stdout)
    assert b"--force was given" in done.stderr


@pytest.mark.parametrize("how", [("--stream",), ("--budget", "1GB")])
def test_streaming_and_force_exclude_each_other(model, home, how):
    done = run_conifer("run", model, "hi", "--force", *how, home=home)
    assert done.returncode == 2
    assert b"cannot be used together" in done.stderr


def test_what_does_not_fit_without_experts_is_too_large_as_before(model, home):
    done = run_unplugged(
        "run", model, "hi", *CONTEXT, "--stream", home=home, memory_bytes=TOO_LITTLE
    )
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"--stream`" not in done.stderr


def test_pull_of_a_model_on_disk_exits_as_fit_does(model, home):
    for more, code in (((), 4), (("--stream",), 0), (("--budget", "1GB"), 0)):
        done = run_unplugged("pull", model, *CONTEXT, *more, home=home, memory_bytes=SOME)
        assert done.returncode == code
        done = run_unplugged(
            "pull", model, *CONTEXT, "--dry-run", *more, home=home, memory_bytes=SOME
        )
        assert done.returncode == code
        assert b"verdict: streams" in done.stdout and b"200 words take" in done.stdout


def test_show_says_what_would_be_in_memory(model, home):
    done = run_unplugged("show", model, home=home, memory_bytes=SOME)
    assert done.returncode == 0
    assert b"streams from the disk, with " in done.stdout
    done = run_unplugged("show", model, "--json", home=home, memory_bytes=SOME)
    verdict = json.loads(done.stdout)["file"]["verdict"]
    assert verdict["kind"] == "streams" and verdict["streaming"]["experts"] == 256
    done = run_unplugged("show", model, "--json", home=home, memory_bytes=PLENTY)
    assert json.loads(done.stdout)["file"]["verdict"] == {"kind": "fits", "streaming": None}


@pytest.mark.parametrize(("reply", "said"), [("y", "streams from the disk"), ("n", "--stream`")])
def test_at_a_terminal_run_asks_once(model, home, reply, said):
    run = ("run", model, "hi", *CONTEXT, "-n", "4", "--stats")
    arguments = [sys.executable, "-P", "-c", UNPLUGGED, str(SOME), *run]
    with TerminalSession(arguments, environment(home, TERM="xterm")) as session:
        before = session.expect("Read its experts from the disk (about ")
        assert "does not fit in memory: it needs" in " ".join(before.split())
        session.expect("[Y/n]")
        session.type(reply + "\n")
        session.expect(said)
        if reply == "y":
            session.expect("s waited")


def test_at_a_terminal_a_yes_on_the_command_line_asks_nothing(model, home):
    run = ("run", model, "hi", *CONTEXT, "-n", "4", "--stream", "--stats")
    arguments = [sys.executable, "-P", "-c", UNPLUGGED, str(SOME), *run]
    with TerminalSession(arguments, environment(home, TERM="xterm")) as session:
        assert "[Y/n]" not in session.expect("s waited")
