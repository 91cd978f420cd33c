"""Performance limits for the conversation, measured with the starter model on a pseudo-terminal.

Run `pytest -m nightly -s` to print the measurements.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import sys
import time

import psutil
import pytest

from support.program import command, environment
from support.terminal_session import TerminalSession

pytestmark = [pytest.mark.nightly, pytest.mark.process]

# Alternates between printed and discarded answers, and records CPU seconds for each.
PAIRS = """
import json, sys, time
from conifer_cli.terminal.output import AnswerPrinter
from conifer_cli.terminal.highlight import lexer_for
from conifer_cli.terminal.markdown import MarkdownRenderer
from conifer_cli.acquire import locate
from conifer_cli.session.open import open_session
from conifer_cli.session.response import Response
from conifer_cli.run_options import RunOptions
from conifer_cli.terminal import console
path, out, pairs = sys.argv[1], sys.argv[2], int(sys.argv[3])
console.prepare()
session = open_session(locate(path), RunOptions(max_tokens=200, temperature=0.0))
ask = "Write a Python function with comments, then explain it in a list with **bold** words."
tokens = session.encode([{"role": "user", "content": ask}])
seconds = {True: [], False: []}
def run(shown):
    start = time.process_time()
    answering = session.answer(tokens)
    if shown:
        painter = MarkdownRenderer(*console.dimensions(), lexer_for)
        Response(session.options, AnswerPrinter(renderer=painter)).print(answering)
    else:
        for _ in answering:
            pass
    seconds[shown].append(time.process_time() - start)
run(True), run(False), seconds[True].clear(), seconds[False].clear()
for pair in range(pairs):
    for shown in ((True, False) if pair % 2 else (False, True)):
        run(shown)
with open(out, "w") as file:
    json.dump([seconds[True], seconds[False]], file)
"""


def test_showing_an_answer_costs_at_most_three_percent(tmp_path, starter_path):
    out = tmp_path / "seconds.json"
    arguments = [sys.executable, "-P", "-c", PAIRS, str(starter_path), str(out), "12"]
    with TerminalSession(arguments, environment(tmp_path, TERM="xterm-256color")) as session:
        assert session.wait(deadline_s=600) == 0, session.screen[-2000:]
        assert "\x1b[" in session.screen  # it was styled
    shown, plain = json.loads(out.read_text())
    ratios = [a / b for a, b in zip(shown, plain, strict=True)]
    print(f"shown / not shown, CPU: {statistics.median(ratios):.4f}", sorted(ratios))
    assert statistics.median(ratios) <= 1.03


def test_the_tenth_turn_answers_as_soon_as_the_second(tmp_path, starter_path):
    waits = {2: [], 10: []}
    arguments = [*command(), "run", str(starter_path), "--temperature", "0", "--max-tokens", "32"]
    for _ in range(7):
        with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
            session.expect(">>> ")
            for turn in range(1, 11):
                message = f"Tell me something about the number {turn:02} and why people like it.\n"
                session.type(message)
                session.expect("like it.\r\n")
                start = time.perf_counter()
                while not session.screen.strip():
                    session.expect_more()
                if turn in waits:
                    waits[turn].append(time.perf_counter() - start)
                session.expect(">>> ")
    second, tenth = statistics.median(waits[2]), statistics.median(waits[10])
    print(f"to the first token: turn 2 {second:.3f} s, turn 10 {tenth:.3f} s", waits)
    assert tenth <= 1.25 * second


def test_ctrl_c_stops_an_answer_within_half_a_second(tmp_path, starter_path):
    chance = random.Random(2)
    waits = []
    arguments = [*command(), "run", str(starter_path), "--temperature", "1", "--seed", "1"]
    with TerminalSession(arguments, environment(tmp_path, TERM="dumb")) as session:
        session.expect(">>> ")
        for turn in range(50):
            words = "Tell a long story about a fox. " * chance.choice([1, 1, 20])
            session.type(f"/clear\n{words}{turn}\n")
            session.expect(f"{turn}\r\n")
            time.sleep(chance.random() * chance.choice([0.02, 0.2, 1]))
            start = time.perf_counter()
            session.type("\x03")
            session.expect(">>> ")
            waits.append(time.perf_counter() - start)
        session.type("/bye\n")
        assert session.wait() == 0
    print(f"Ctrl-C to prompt: median {statistics.median(waits):.3f} s, most {max(waits):.3f} s")
    assert max(waits) <= 0.5


def test_two_hundred_turns_grow_by_the_cache_alone(tmp_path, starter_path):
    arguments = [*command(), "run", str(starter_path), "--temperature", "0", "--max-tokens", "8"]
    resident, rates, files = [], [], []
    with TerminalSession(
        [*arguments, "--stats", "-c", "8k"], environment(tmp_path, TERM="dumb")
    ) as session:
        session.expect(">>> ")
        process = psutil.Process(session.pid)
        for turn in range(200):
            session.type(f"Is {turn:03} even?\n")
            said = session.expect(">>> ")
            resident.append(process.memory_info().rss)
            files.append(len(os.listdir(f"/proc/{session.pid}/fd")))
            rates.append(float(re.search(r"answer: .*?, ([\d.]+) tokens/s", said)[1]))
            used = said
    tokens = int(re.search(r"ctx ([\d.]+)k/8k", used)[1].replace(".", "")) * 1024 // 10
    kv_bytes = tokens * 30 * 2 * 3 * 64 * 2
    growth = (resident[-1] - resident[9] - kv_bytes) / 190
    early, late = statistics.median(rates[5:45]), statistics.median(rates[-40:])
    print(f"beyond the cache {growth / 2**20:.3f} MiB a turn; {early:.1f} to {late:.1f} tokens/s")
    assert growth <= 2**20
    assert len(set(files[5:])) == 1
