"""Reads that are slow, short or refused, files that shrink and Ctrl-C, through the program.

The answer is that of an undisturbed run, or there is an error with the promised exit.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from engine.fit.machine import Machine
from engine.fit.memory import judge
from engine.gguf.reader import open_model
from engine.kernels.native import unavailable_reason
from engine.nn.config import read_model_config
from support.benchmarks import program
from support.program import RESIZED, environment, know_bandwidth
from support.serving import serving
from support.terminal_session import TerminalSession

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(unavailable_reason() is not None, reason="needs the native kernels"),
]
synthesize = program("synthesize")
REAL = synthesize.SHAPES["qwen3-30b-a3b"]
KEYS = {**REAL.keys, "embedding_length": 512, "expert_feed_forward_length": 256}
SHAPE = dataclasses.replace(REAL, layers=4, vocab=4096, keys=KEYS)
WHERE = re.compile(r"tensor 'blk\.\d+\.ffn_\w+_exps\.weight', expert \d+, byte [\d,]+ of")
STOP_S = 1.5  # with the end of the program, on a busy machine; the hanging read takes a minute

# Conifer, whose Nth step over the model meets a disturbance: delay and bytes of each read, reads
# before one fails, or a file that is cut.
DISTURBED = (
    """
import json, os, sys
how = json.loads(sys.argv.pop(1))
from engine import model
forward, calls = model.Model.forward, 0
def disturbed(self, tokens, cache):
    global calls
    calls += 1
    if calls == how["step"] and how.get("cut"):
        os.truncate(how["cut"], os.path.getsize(how["cut"]) // 2)
    elif calls == how["step"]:
        self.expert_store.store.disturb(how["delay_s"], how["most"], how["fails_after"])
        sys.stderr.write("disturbed\\n")
        sys.stderr.flush()
    return forward(self, tokens, cache)
model.Model.forward = disturbed
"""
    + RESIZED
)


def fault(step=1, delay_s=0.0, most=0, fails_after=-1):
    return {"step": step, "delay_s": delay_s, "most": most, "fails_after": fails_after}


# 1 is the prompt, 4 the third token.
HARMLESS = {
    "slow": fault(delay_s=0.002),
    "short": fault(most=4096),
    "slow and short": fault(delay_s=0.0005, most=16_384),
    "slow later": fault(step=4, delay_s=0.004),
}
SOME = {name: HARMLESS[name] for name in ("short", "slow later")}
REFUSED = {
    "at once": fault(fails_after=0),
    "in the prompt": fault(fails_after=150),
    "later": fault(step=4, fails_after=0),
}
HANGS = {"in the prompt": fault(delay_s=60), "later": fault(step=4, delay_s=60)}
CUT = {"in the prompt": 1, "later": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "mixture.gguf"
    synthesize.synthesize(SHAPE, path, seed=1)
    return path


@pytest.fixture(scope="module")
def memory_bytes(model):
    """Of a machine on which the model streams, with a part of its experts in memory."""
    file = open_model(model)
    config = read_model_config(file.metadata, file.tensors)
    machine = Machine("test machine", "cpu", 1 << 40, 1 << 40, "available memory")
    need = judge(config, file.tensors, machine, 512, kernels="native").need.total_bytes
    return need - 10 * 10**6


@pytest.fixture
def home(tmp_path):
    know_bandwidth(tmp_path)
    return tmp_path


def command(memory_bytes, how, *arguments):
    return [
        *(sys.executable, "-P", "-c", DISTURBED, json.dumps(how), str(memory_bytes)),
        *(*arguments, "-c", "512", "--stream"),
    ]


def start(home, memory_bytes, how, path, *more):
    run = ("run", str(path), "-p", "hi there", "--temperature", "0", "-n", "12", *more)
    return subprocess.Popen(
        command(memory_bytes, how, *run),
        env=environment(home),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def one_shot(*arguments):
    program = start(*arguments)
    out, err = program.communicate(timeout=60)
    return program.returncode, out.decode(errors="replace"), err.decode(errors="replace")


@pytest.fixture(scope="module")
def right(model, memory_bytes, tmp_path_factory):
    """The answer of an undisturbed run, with all experts in memory."""
    home = tmp_path_factory.mktemp("home")
    know_bandwidth(home)
    code, out, err = one_shot(home, 1 << 34, fault(step=0), model)
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("how", HARMLESS.values(), ids=HARMLESS)
def test_slow_and_short_reads_do_not_change_an_answer(model, home, memory_bytes, right, how):
    code, out, err = one_shot(home, memory_bytes, how, model)
    assert (code, out) == (0, right), err
    assert "disturbed" in err


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_a_disk_that_refuses_is_exit_1_with_tensor_and_offset(
    model, home, memory_bytes, right, how
):
    code, out, err = one_shot(home, memory_bytes, how, model)
    assert code == 1, err
    assert WHERE.search(err) and "Input/output error" in err and "Traceback" not in err
    assert right.startswith(out.rstrip("\n"))


@pytest.mark.parametrize("step", CUT.values(), ids=CUT)
def test_a_file_that_shrinks_is_exit_3(model, home, memory_bytes, right, step):
    path = home / "copy.gguf"
    shutil.copy(model, path)
    code, out, err = one_shot(home, memory_bytes, {"step": step, "cut": str(path)}, path)
    assert code == 3, err
    assert "shrank" in err and "Traceback" not in err
    assert right.startswith(out.rstrip("\n"))


@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_ctrl_c_does_not_wait_for_a_read(model, home, memory_bytes, right, how):
    program = start(home, memory_bytes, how, model)
    said = b""
    while not said.endswith(b"disturbed\n"):
        said += (line := program.stderr.readline())
        assert line, said
    time.sleep(0.2)
    begun = time.monotonic()
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=30)
    assert time.monotonic() - begun < STOP_S
    assert program.returncode == 130
    assert b"Traceback" not in err
    assert right.startswith(out.decode().rstrip("\n"))


def chat(home, memory_bytes, how, path):
    arguments = command(memory_bytes, how, "run", str(path), "--temperature", "0", "-n", "12")
    return TerminalSession(arguments, environment(home, TERM="dumb"))


@pytest.mark.parametrize("how", (SOME | REFUSED).values(), ids=SOME | REFUSED)
def test_a_chat_goes_on_and_says_only_what_the_disk_refused(model, home, memory_bytes, how):
    with chat(home, memory_bytes, how, model) as session:
        session.expect(">>> ")
        session.type("hi there\r")
        session.expect("disturbed")
        said = " ".join(session.expect(">>> ").split())
        assert bool(WHERE.search(said)) == (how["fails_after"] >= 0), said
        session.type("\x04")
        assert session.wait() == 0


@pytest.mark.parametrize("step", CUT.values(), ids=CUT)
def test_a_chat_says_that_its_file_shrank(model, home, memory_bytes, step):
    path = home / "copy.gguf"
    shutil.copy(model, path)
    with chat(home, memory_bytes, {"step": step, "cut": str(path)}, path) as session:
        session.expect(">>> ")
        session.type("hi there\r")
        session.expect("shrank")
        session.expect(">>> ")
        session.type("\x04")
        assert session.wait() == 0


@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_ctrl_c_ends_an_answer_of_a_chat_that_waits_for_a_read(model, home, memory_bytes, how):
    with chat(home, memory_bytes, how, model) as session:
        session.expect(">>> ")
        session.type("hi there\r")
        session.expect("disturbed")
        time.sleep(0.2)
        begun = time.monotonic()
        session.type("\x03")
        session.expect(">>> ")
        assert time.monotonic() - begun < STOP_S
        session.type("\x04")
        assert session.wait() == 0


def complete(server, **fields):
    asked = {"prompt": "hi there", "max_tokens": 12, "temperature": 0, **fields}
    return server.ask("/v1/completions", asked)


def served(home, memory_bytes, how, path):
    driver = ("-c", DISTURBED, json.dumps(how), str(memory_bytes))
    return serving(home, str(path), "-c", "512", "--stream", program=driver)


@pytest.fixture(scope="module")
def right_completion(model, memory_bytes, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    know_bandwidth(home)
    with served(home, memory_bytes, fault(step=0), model) as server:
        return complete(server).json["choices"][0]["text"]


@pytest.mark.parametrize("how", SOME.values(), ids=SOME)
def test_a_server_answers_over_slow_and_short_reads(
    model, home, memory_bytes, right_completion, how
):
    with served(home, memory_bytes, how, model) as server:
        reply = complete(server)
        assert reply.json["choices"][0]["text"] == right_completion


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_a_server_says_what_the_disk_refused_and_goes_on(model, home, memory_bytes, how):
    with served(home, memory_bytes, how, model) as server:
        reply = complete(server)
        assert reply.status == 500
        assert WHERE.search(reply.json["error"]["message"])
        streamed = complete(server, stream=True)
        assert b"Input/output error" in streamed.body
        until = time.monotonic() + 2
        while server.ask("/health").json["running"]:
            assert time.monotonic() < until, "the answer keeps its place"
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("step", CUT.values(), ids=CUT)
def test_a_server_says_that_its_file_shrank(model, home, memory_bytes, step):
    path = home / "copy.gguf"
    shutil.copy(model, path)
    with served(home, memory_bytes, {"step": step, "cut": str(path)}, path) as server:
        reply = complete(server)
        assert reply.status == 400 and "shrank" in reply.json["error"]["message"]
        assert server.ask("/health").status == 200


@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_a_server_stops_while_an_answer_waits_for_a_read(model, home, memory_bytes, how):
    with served(home, memory_bytes, how, model) as server:
        asking = threading.Thread(target=lambda: complete(server, stream=True))
        asking.start()
        while "disturbed" not in server.log.read_text():
            time.sleep(0.02)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        code = server.process.wait(30)
        assert time.monotonic() - begun < STOP_S + 0.6  # for streams to end
        assert code == 130
        asking.join()


@pytest.mark.parametrize("how", HANGS.values(), ids=HANGS)
def test_a_client_that_leaves_ends_an_answer_that_waits_for_a_read(model, home, memory_bytes, how):
    with served(home, memory_bytes, how, model) as server:
        with pytest.raises(TimeoutError):
            server.ask("/v1/completions", {"prompt": "hi there", "max_tokens": 12}, timeout_s=2)
        until = time.monotonic() + STOP_S
        while server.ask("/health").json["running"] and time.monotonic() < until:
            time.sleep(0.05)
        assert server.ask("/health").json["running"] == 0
