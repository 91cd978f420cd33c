"""What Ctrl-C does, by where the program is."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time

import pytest

from conifer_cli.interrupts import scope, time_limit


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_it_raises_at_a_prompt_once():
    with scope() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.propagate():
            try:
                press()
            finally:
                press()  # while the first is dealt with
        press()


def test_a_prompt_that_outlives_the_exception_raises_again(monkeypatch):
    monkeypatch.setattr("conifer_cli.interrupts.AGAIN_S", 0.0)
    with scope() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.propagate():
        with pytest.raises(KeyboardInterrupt):  # as a destructor would swallow it
            press()
        press()


def test_it_tells_an_answer_to_stop_once():
    stopped = []
    with scope() as interrupts, interrupts.on_interrupt(lambda: stopped.append(1)):
        press()
        press()
    assert stopped == [1]


def test_one_that_came_before_stops_the_answer_that_begins():
    stopped = []
    with scope() as interrupts:
        press()
        with interrupts.on_interrupt(lambda: stopped.append(1)):
            assert stopped == [1]
        with interrupts.on_interrupt(lambda: stopped.append(2)):
            pass
    assert stopped == [1]


def test_one_that_came_before_is_forgotten_at_a_prompt():
    stopped = []
    with scope() as interrupts:
        press()
        with interrupts.propagate():
            pass
        with interrupts.on_interrupt(lambda: stopped.append(1)):
            pass
    assert stopped == []


def test_one_that_came_before_a_message_was_typed_is_forgotten():
    stopped = []
    with scope() as interrupts:
        press()
        interrupts.forget()
        with interrupts.on_interrupt(lambda: stopped.append(1)):
            pass
    assert stopped == []


def test_the_handler_of_before_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with scope():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_time_limit_ends_a_regular_expression():
    start, before = time.monotonic(), signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), time_limit(0.2):
        re.search("^(a+)+$", "a" * 60 + "b")
    assert time.monotonic() - start < 5
    with time_limit(0.01):
        pass
    time.sleep(0.05)  # no alarm is left
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.process
def test_a_signal_in_a_destructor_is_not_lost():
    program = """
import os, signal, time
from conifer_cli import interrupts

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)

interrupts.catch_signals()
try:
    Dying()
    time.sleep(10)
except interrupts.Ended as signal:
    print("ended by", signal.number)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ended by 15\n", "")
