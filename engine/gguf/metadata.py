"""Typed, range-checked reads of GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from engine.errors import GGUFError
from engine.gguf.reader import WHOLE, numbers


class Metadata:
    """Typed access to one architecture's metadata keys. Every error names the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata = metadata
        self.prefix = architecture + "."

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Read an integer between `low` and `high`, inclusive."""
        value: int = self._typed(key, default, "an integer", int)
        if not low <= value <= high:
            raise self._error(key, f"must be between {low:,} and {high:,}, got {value:,}")
        return value

    def integers(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        """Read one integer per layer, stored as an array of `count` or as a single integer."""
        array = numbers(self._value(key, None))
        if array is None:
            return (self.integer(key, low, high),) * count
        if array.format not in WHOLE or len(array) < count:
            raise self._error(key, f"must be an array of {count} integers")
        values = tuple(array[:count].tolist())
        if not low <= min(values) <= max(values) <= high:
            raise self._error(key, f"must contain only values between {low:,} and {high:,}")
        return values

    def listed(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """Read an array of one or more integers, or a single one."""
        array = numbers(self._value(key, None))
        return self.integers(key, 1 if array is None else max(len(array), 1), low, high)

    def each(
        self, key: str, count: int, low: int, high: int, default: int | None = None
    ) -> tuple[int, ...]:
        """Read one integer per layer like `integers`, or take the default for all."""
        if key not in self:
            return (self.integer(key, low, high, default),) * count
        return self.integers(key, count, low, high)

    def flags(self, key: str, count: int) -> tuple[bool, ...]:
        """Read an array of booleans, one per layer, which may be stored as the integers 0 and 1."""
        array = numbers(self._value(key, None))
        if array is None or array.format not in ("?", *WHOLE) or len(array) < count:
            raise self._error(key, f"must be an array of {count} booleans")
        values = array[:count].tolist()
        if not {*values} <= {0, 1}:
            raise self._error(key, "must contain only the values 0 and 1")
        return tuple(map(bool, values))

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """Read one number per layer, stored as an array of `count` or as a single number."""
        array = numbers(self._value(key, None))
        if array is None:
            return (self.number(key, low, high),) * count
        if array.format not in ("f", "d") or len(array) < count:
            raise self._error(key, f"must be an array of {count} numbers")
        values = tuple(array[:count].tolist())
        if not all(low <= value <= high for value in values):
            raise self._error(key, f"must contain only values between {low:g} and {high:g}")
        return values

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """Read a finite number between `low` and `high`, inclusive."""
        value: float = self._typed(key, default, "a number", int, float)
        if not (math.isfinite(value) and low <= value <= high):
            raise self._error(key, f"must be between {low:g} and {high:g}, got {value}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Read a boolean."""
        return bool(self._typed(key, default, "a boolean", bool))

    def word(self, key: str, default: str) -> str:
        """Read a string."""
        return str(self._typed(key, default, "a string", str))

    def _typed(self, key: str, default: object, noun: str, *types: type) -> Any:
        value = self._value(key, default)
        if type(value) not in types:  # isinstance would accept a bool as an int
            raise self._error(key, f"must be {noun}")
        return value

    def _value(self, key: str, default: object) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise self._error(key, "is missing")
        return value

    def _error(self, key: str, problem: str) -> GGUFError:
        return GGUFError(f"{self.prefix + key} {problem}")
