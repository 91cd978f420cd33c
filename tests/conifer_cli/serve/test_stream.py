"""A mixture that does not fit, served: the same verdict, the same answers, and what they cost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.kernels.native import unavailable_reason
from support.mixture import write_mixture
from support.program import RESIZED, environment, know_bandwidth, run_conifer
from support.serving import free_port, serving, snapshot

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(unavailable_reason() is not None, reason="needs the native kernels"),
]
TOO_LITTLE, SOME, PLENTY = 150 << 20, 520 << 20, 4 << 30
CONTEXT = ("-c", "1024")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_mixture(tmp_path_factory.mktemp("streams"))


@pytest.fixture
def home(tmp_path):
    know_bandwidth(tmp_path)
    return tmp_path


def on_machine(memory_bytes):
    """The program, on a machine of so much memory."""
    return "-c", RESIZED, str(memory_bytes)


def complete(server, text="hi there", **fields):
    asked = {"prompt": text, "max_tokens": 12, "temperature": 0, **fields}
    return server.ask("/v1/completions", asked)


def text_of(reply):
    assert reply.status == 200, reply.body
    return reply.json["choices"][0]["text"]


def metric(server, name):
    found = re.search(rf"^conifer_{name} (\S+)$", server.ask("/metrics").body.decode(), re.M)
    assert found, name
    return float(found[1])


@pytest.fixture(scope="module")
def right(model, tmp_path_factory):
    """Answers with all experts in memory, by prompt."""
    home = tmp_path_factory.mktemp("home")
    know_bandwidth(home)
    prompts = ("hi there", "another one, please")
    with serving(home, str(model), *CONTEXT, program=on_machine(PLENTY)) as server:
        assert server.ask("/health").json["experts_from_disk"] is None
        assert metric(server, "expert_read_bytes_total") == 0
        return {prompt: text_of(complete(server, prompt)) for prompt in prompts}


def refused(home, memory_bytes, *arguments):
    command = [sys.executable, "-P", *on_machine(memory_bytes), "serve", *arguments]
    command += ["--port", str(free_port())]
    return subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, timeout=60, check=False
    )


def test_without_leave_the_server_exits_as_run_does(model, home):
    done = refused(home, SOME, str(model), *CONTEXT)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (4, b"")
    assert "tokens/s; 200 words take" in said
    assert f"`conifer serve {model} --stream`" in said
    done = refused(home, TOO_LITTLE, str(model), *CONTEXT, "--stream")
    assert done.returncode == 4
    assert b"--stream`" not in done.stderr


@pytest.mark.parametrize("how", [("--stream",), ("--budget", "1GB")])
def test_streaming_and_force_exclude_each_other(model, home, how):
    for command in ("serve", "bench", "pull"):
        done = run_conifer(command, str(model), "--force", *how, home=home)
        assert done.returncode == 2
        assert f"{how[0]} and --force cannot be used together" in done.stderr.decode()


def test_a_served_mixture_gives_the_resident_answers_and_counts_what_they_cost(model, home, right):
    with serving(home, str(model), *CONTEXT, "--stream", program=on_machine(SOME)) as server:
        assert "streams from the disk. In memory: " in server.log.read_text()
        for prompt, text in right.items():
            assert text_of(complete(server, prompt)) == text
        state = server.ask("/health").json
        experts = state["experts_from_disk"]
        assert state["need_bytes"] <= SOME
        assert 0 < experts["held"] <= experts["slots"] < experts["experts"] == 256
        assert experts["bytes_read"] > experts["prompt_bytes_read"] > 0
        assert metric(server, "expert_misses_total") == experts["misses"] > 0
        assert metric(server, "expert_hits_total") == experts["hits"]
        assert metric(server, "expert_read_bytes_total") == pytest.approx(
            experts["bytes_read"], rel=1e-5
        )
        assert metric(server, "expert_hit_rate") == pytest.approx(experts["hit_rate"], abs=1e-4)
        assert metric(server, "expert_wait_seconds_total") >= 0
        shown = run_conifer("ps", "--port", str(server.port), home=home).stdout.decode()
        assert "EXPERTS" in shown and f"{experts['held']} of 256 in memory" in shown


def measured(home, kinds=("run", "routes")):
    """What the ledger has of answers. The disk's rate is there only if the disk was waited for."""
    lines = (home / "conifer" / "ledger.jsonl").read_text().splitlines()
    return [found for found in map(json.loads, lines) if found["kind"] in kinds]


def test_an_answer_alone_is_measured_as_that_of_run(model, home, tmp_path_factory):
    with serving(home, str(model), *CONTEXT, "--stream", program=on_machine(SOME)) as server:
        text_of(complete(server, max_tokens=64, logit_bias={"5": 1}))
        text_of(complete(server, max_tokens=64))
    served = measured(home)
    other = tmp_path_factory.mktemp("home")
    know_bandwidth(other)
    how = (sys.executable, "-P", *on_machine(SOME), "run", str(model), "-p", "hi there")
    subprocess.run(
        [*how, *CONTEXT, "--stream", "-n", "64", "--temperature", "0"],
        env=environment(other),
        cwd=other,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    ran = measured(other)
    assert [found.keys() for found in served] == [found.keys() for found in ran]
    assert [found["kind"] for found in served] == ["run", "routes"]
    for name in ("file", "kernels", "kv_type", "weights_bytes"):
        assert served[0][name] == ran[0][name], name
    assert served[1]["experts"] == ran[1]["experts"] == 128


SLOW_RECORD = """\
import time
from conifer_cli.fit.streaming import records
keep = records.keep_stream
records.keep_stream = lambda *given: (time.sleep(1), keep(*given))
"""


def test_an_answer_is_measured_before_it_can_be_read(model, home):
    _, code, memory_bytes = on_machine(SOME)
    slow = "-c", SLOW_RECORD + code, memory_bytes
    with serving(home, str(model), *CONTEXT, "--stream", program=slow) as server:
        text_of(complete(server, max_tokens=64))
    assert [found["kind"] for found in measured(home)] == ["run", "routes"]


def test_answers_at_once_are_not_measured(model, home):
    options = (*CONTEXT, "--stream", "--parallel", "2")
    program = on_machine(SOME)
    with (
        serving(home, str(model), *options, program=program) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(lambda text: complete(server, text, max_tokens=200), ("one", "two")))
    assert measured(home) == []


def test_answers_at_once_share_the_experts_and_stay_right(model, home, right):
    options = (*CONTEXT, "--stream", "--parallel", "2")
    with serving(home, str(model), *options, program=on_machine(SOME)) as server:
        assert server.ask("/health").json["parallel"] == 2
        for _ in range(2):
            with ThreadPoolExecutor(2) as pool:
                replies = list(pool.map(lambda prompt: complete(server, prompt), right))
            assert [text_of(reply) for reply in replies] == list(right.values())


def test_a_switch_of_models_obeys_the_budget_and_keeps_the_counts(model, home, right):
    (snapshot(home, "a/one") / "one.gguf").write_bytes(model.read_bytes())
    (snapshot(home, "a/two") / "two.gguf").write_bytes(model.read_bytes())
    one, two = "hf:a/one/one.gguf", "hf:a/two/two.gguf"
    with serving(home, *CONTEXT, program=on_machine(SOME)) as server:
        reply = complete(server, model=one)
        assert reply.status == 507
        assert "`conifer serve --stream`" in reply.json["error"]["message"]
    with serving(home, *CONTEXT, "--stream", program=on_machine(SOME)) as server:
        read = 0.0
        for name in (one, two, one):
            assert text_of(complete(server, "hi there", model=name)) == right["hi there"]
            state = server.ask("/health").json
            assert state["model"] == name and state["need_bytes"] <= SOME
            assert metric(server, "expert_read_bytes_total") > read
            read = metric(server, "expert_read_bytes_total")
        assert read > 2 * state["experts_from_disk"]["bytes_read"]


def test_bench_streams_and_says_what_the_disk_gave(model, home):
    sizes = ("--prompt", "8", "--depth", "0", "--tokens", "4")
    memory_bytes = SOME + (40 << 20)  # its context is 8,192 tokens
    run = [sys.executable, "-P", *on_machine(memory_bytes), "bench", str(model), *sizes]

    def bench(*more):
        return subprocess.run(
            [*run, *more], env=environment(home), cwd=home, capture_output=True, check=False
        )

    done = bench()
    assert done.returncode == 4
    assert f"`conifer bench {model} --stream`" in done.stderr.decode()
    done = bench("--stream")
    *table, last = done.stdout.decode().splitlines()
    found = json.loads(last)
    assert done.returncode == 0
    assert "HITS" in "".join(table) and "SHARE" not in "".join(table)
    assert 0 < found["streaming"]["cached_experts"] < found["streaming"]["experts"] == 256
    (decoded,) = found["decode"]
    disk = decoded["experts_from_disk"]
    assert 0 <= disk["hit_rate"] < 1 and disk["bytes_read"] > 0
    assert "bandwidth_share" not in decoded
    assert found["peak_memory_bytes"] < memory_bytes
