"""Clients take turns, and each client's items stay in order."""

import pytest

from engine.serving.fair_queue import FairQueue


def filled(*items):
    queue = FairQueue()
    for item in items:
        queue.push(item[0], item)
    return queue


def test_clients_take_turns():
    queue = filled("a1", "a2", "a3", "b1", "b2", "c1")
    order = list(queue)
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [queue.pop() for _ in range(len(queue))] == order


def test_a_removed_item_is_skipped():
    queue = filled("a1", "b1", "a2")
    assert queue.remove("a1") and not queue.remove("a1")
    assert [queue.pop(), queue.pop()] == ["a2", "b1"]


def test_an_empty_queue():
    with pytest.raises(IndexError):
        FairQueue().pop()
