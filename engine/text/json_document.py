"""Parse JSON with exact numbers, and check a finished answer against its schema.

The check does not share code with the grammar engine that produced the answer, so it can detect the
engine's mistakes.
"""

from __future__ import annotations

import json
import re
from calendar import monthrange
from collections.abc import Iterator
from copy import copy
from decimal import Context, Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any

from engine.errors import AnswerMismatch, SchemaError

if TYPE_CHECKING:
    from jsonschema import FormatChecker
    from jsonschema.protocols import Validator

DRAFT = "https://json-schema.org/draft/2020-12/schema"  # for a schema without `$schema`
MAX_INT_DIGITS = 1000  # int() may reject more than 4300
MAX_DIGITS = 10_000  # in a quotient, to check `multipleOf`
DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)", re.ASCII)
FORMATS = ("email", "ipv4", "ipv6", "uuid")  # checked by jsonschema without further packages
TOO_DEEP = "the JSON is nested too deeply"


def parse(text: str) -> Any:
    """Parse JSON: whole numbers as int, unless they are vast, and others as Decimal.

    Raises ValueError if the text is not JSON or an object has a key twice.
    """
    try:
        return json.loads(
            text,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_no_number,
            object_pairs_hook=_distinct,
        )
    except json.JSONDecodeError as error:
        if not text.strip():
            raise ValueError("there is no JSON") from error
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"invalid JSON at {place}") from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error


def require_match(text: str, schema: str) -> None:
    """Raise AnswerMismatch unless a text is one JSON document that matches the schema."""
    from jsonschema.exceptions import best_match

    try:
        document, parsed = parse(text), parse(schema)
        # A `$ref` to a schema with `$schema` would fall back to jsonschema's own number rules.
        validator = validator_class(parsed.pop("$schema", DRAFT))
        error = best_match(validator(parsed, format_checker=_formats()).iter_errors(document))
        # A forbidden key fails the schema `false`, which has no keyword.
        keyword = error and (error.validator or "additionalProperties")
        problem = error and f"`{keyword}` at {pointer(error.absolute_path)}"
    except ValueError as invalid:
        problem = str(invalid)
    except RecursionError:
        problem = TOO_DEEP
    if problem:
        raise AnswerMismatch(f"the answer does not match the schema: {problem}")


class KeyTracker:
    """Track the keys of the open objects in a growing JSON document."""

    def __init__(self) -> None:
        self._open: list[set[bytes] | None] = []  # the keys of each object, None for an array
        self._string: bytearray | None = None  # the unfinished string
        self._is_key = self._escaped = False

    def push(self, data: bytes) -> bool:
        """Advance. Return False if an object now repeats a key."""
        distinct = True
        for byte in data:
            if self._string is not None:
                distinct = self._in_string(byte) and distinct
            elif byte == ord('"'):
                self._string = bytearray()
            elif byte in b"{[":
                self._open.append(set() if byte == ord("{") else None)
                self._is_key = byte == ord("{")
            elif byte in b"}]" and self._open:
                self._open.pop()
            elif byte == ord(","):
                self._is_key = bool(self._open) and self._open[-1] is not None
            elif byte == ord(":"):
                self._is_key = False
        return distinct

    def may_repeat(self, quotes: int) -> bool:
        """True if a piece with this many quotation marks could complete a key a second time."""
        in_key = self._string is not None and self._is_key
        return any(self._open) and quotes > (0 if in_key else 1)

    def repeats(self, data: bytes) -> bool:
        """True if an object would repeat a key after `data`."""
        trial = copy(self)
        trial._open = [None if keys is None else set(keys) for keys in self._open]
        trial._string = None if self._string is None else bytearray(self._string)
        return not trial.push(data)

    def _in_string(self, byte: int) -> bool:
        string, keys = self._string, self._open[-1] if self._open else None
        assert string is not None
        if byte != ord('"') or self._escaped:
            self._escaped = byte == ord("\\") and not self._escaped
            string.append(byte)
            return True
        self._string = None
        if not self._is_key or keys is None:
            return True
        key = json.dumps(json.loads(b'"%s"' % string)).encode()  # one spelling of each key
        is_new = key not in keys
        keys.add(key)
        return is_new


def validator_class(draft: Any) -> type[Validator]:
    """Return the validator for a `$schema`, with exact numbers. Raises SchemaError if unknown."""
    from jsonschema import validators

    known: Any = None
    if isinstance(draft, str):
        known = validators.validator_for({"$schema": draft}, default=known)
    if known is None:
        raise SchemaError(f"`$schema` at #: {draft!r} is not a version of JSON Schema")
    rules = {
        "multipleOf": _multiple,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    extended: type[Validator] = validators.extend(known, rules)  # type: ignore[no-untyped-call]
    return extended


def pointer(steps: Iterator[str | int] | Any) -> str:
    """Return a JSON pointer in the form of a `$ref`, such as #/properties/age."""
    return "/".join(("#", *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)))


def is_number(value: Any) -> bool:
    """True for a number of `parse`."""
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def _number(text: str) -> int | Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"the number {text[:20]} is too large") from error
    is_whole = value.adjusted() < MAX_INT_DIGITS and value == value.to_integral_value()
    return int(value) if is_whole else value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice in one object")
    return found


def _multiple(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[Exception]:
    from jsonschema.exceptions import ValidationError

    if not is_number(value):
        return
    try:
        left = Context(prec=MAX_DIGITS).remainder(Decimal(value), Decimal(step))
    except InvalidOperation:  # the quotient has more digits
        left = Decimal(1)
    if left:
        yield ValidationError(f"not a multiple of {step}")


def _pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Exception]:
    from jsonschema.exceptions import ValidationError

    compiled = _compiled(pattern)
    if isinstance(value, str) and compiled is not None and not compiled.search(value):
        yield ValidationError(f"does not match {pattern}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], value: Any, schema: Any
) -> Iterator[Exception]:
    for pattern, below in patterns.items() if isinstance(value, dict) else ():
        compiled = _compiled(pattern)
        for key in value:
            if compiled is not None and compiled.search(key):
                yield from validator.descend(value[key], below, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, below: Any, value: Any, schema: Any
) -> Iterator[Exception]:
    patterns = [_compiled(pattern) for pattern in schema.get("patternProperties", ())]
    for key in value if isinstance(value, dict) else ():
        known = key in schema.get("properties", ())
        if not known and not any(p is None or p.search(key) for p in patterns):
            yield from validator.descend(value[key], below, path=key)


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    """Compile a pattern of JSON Schema, or return None if it has syntax that Python lacks."""
    translated = re.sub(r"\(\?<(?=[A-Za-z_])", "(?P<", pattern)
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, RecursionError, OverflowError):
        return None


@cache
def _formats() -> FormatChecker:
    from jsonschema import FormatChecker

    checker = FormatChecker(formats=FORMATS)
    for name in ("date", "date-time"):
        checker.checks(name)(_is_date)
    return checker


def _is_date(value: object) -> bool:
    """True for text that begins with a valid date, and for any value that is not text."""
    if not isinstance(value, str):
        return True
    found = DATE.match(value)
    year, month, day = map(int, found.groups()) if found else (0, 0, 0)
    return 1 <= month <= 12 and 1 <= day <= monthrange(year or 4, month)[1]  # 0 is a leap year
