"""A queue that takes turns between clients, so that one with many requests delays no other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import zip_longest
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items by client: first in, first out within a client, and in turns between clients."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[T]] = {}  # the client whose turn is next comes first

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        """Yield the items in the order in which `pop` would return them."""
        for turn in zip_longest(*self._lines.values()):
            yield from (item for item in turn if item is not None)

    def push(self, client: str, item: T) -> None:
        self._lines.setdefault(client, deque()).append(item)

    def pop(self) -> T:
        """Remove and return the next item. Raises IndexError if there is none."""
        if not self._lines:
            raise IndexError("the queue is empty")
        client = next(iter(self._lines))
        line = self._lines.pop(client)
        item = line.popleft()
        if line:
            self._lines[client] = line  # to the end
        return item

    def remove(self, item: T) -> bool:
        """Remove an item. Returns whether it was in the queue."""
        for client, line in self._lines.items():
            if item in line:
                line.remove(item)
                if not line:
                    del self._lines[client]
                return True
        return False
