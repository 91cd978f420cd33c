"""Prepare a JSON schema for the grammar engine, llguidance, or reject what it cannot enforce.

The engine stores numbers as doubles and detects some contradictions only during an answer. Where it
would be too lenient, the schema is narrowed, so that every document that the engine allows also
matches the original schema. If that is impossible, the schema is rejected before a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from functools import cache
from math import ceil, floor, inf, isinf, nextafter
from typing import TYPE_CHECKING, Any

from engine.errors import SchemaError
from engine.text.json_document import TOO_DEEP, is_number
from engine.text.json_schema import (
    ANNOTATIONS,
    BOUNDS,
    KEPT,
    NUMBERS,
    Node,
    Schema,
    is_written_out,
    parse,
    problem_at,
    require_supported,
)

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from llguidance._lib import JsonCompileOptions

# Allow exactly one layout, on one line. Otherwise small models can emit whitespace without end.
LAYOUT: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
MAX_MULTIPLES = 1000  # a shorter list of multiples within bounds becomes an enum
MAX_COEFFICIENT = (1 << 32) - 1  # the engine's limit for `multipleOf`
LARGEST = Decimal(10**18 - 1)  # for bounds, because the engine has 64-bit integers
NARROWING = 6  # decimal places of an interval that an exclusive bound may lose
MAX_CHANGES = 500  # schemas compiled to find the keyword that the engine rejects
INEXACT = "has more digits than Conifer can enforce exactly"
# The engine's requirements for keywords that it rejects.
LIMITS = {
    "oneOf": "its options must differ in type or in a constant. Try anyOf",
    "minProperties": "it is supported only if every key in properties is required",
    "maxProperties": "it is supported only if every key in properties is required",
    "patternProperties": "no key may match two of the patterns",
}
NO_VALUE = ("Unsatisfiable", "NoExtension")  # in the engine's messages


def require_enforceable(text: str) -> None:
    """Raise SchemaError if answers cannot be constrained to a schema exactly."""
    schema = parse(text)
    try:
        require_supported(schema)
        for place, node in schema.nodes.items():
            if isinstance(node, dict):
                _require_exact(place, node)
        _require_compiled(schema)
    except RecursionError as error:
        raise SchemaError(TOO_DEEP) from error


def grammar(text: str) -> str:
    """Return the engine's form of a schema, which allows no document that the schema forbids."""
    return _grammar(_prepared(parse(text)))


def enforceable_schema(text: str) -> Node:
    """Return the engine's form of a schema, as a part of a grammar. Raises SchemaError."""
    require_enforceable(text)
    return _prepared(parse(text))


def _require_exact(place: str, node: Node) -> None:
    """Raise SchemaError if the engine would round a number that must be met exactly."""
    for keyword in ("const", "enum"):
        for number in _numbers(node.get(keyword)):
            if not _is_exact(number):
                raise problem_at(place, keyword, f"{_short(number)} {INEXACT}")
    step = node.get("multipleOf")
    if step is not None and "enum" not in _with_bounds(node) and not _is_exact_step(step):
        raise problem_at(place, "multipleOf", f"{_short(step)} {INEXACT}")


def _numbers(value: Any) -> Iterator[int | Decimal]:
    if is_number(value):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)


def _is_exact(number: int | Decimal) -> bool:
    """True if the shortest text for the nearest double is this number."""
    near = float(Decimal(number))
    return not isinf(near) and _exactly(near) == number


def _exactly(number: float) -> Decimal:
    # The engine writes large numbers with all digits of the double.
    return Decimal(number) if number.is_integer() else Decimal(repr(number))


def _is_exact_step(step: int | Decimal) -> bool:
    """True if the engine reads the step exactly, as a coefficient and a power of ten."""
    if not _is_exact(step):
        return False
    coefficient, power = abs(float(step)), 0
    while not coefficient.is_integer():
        coefficient, power = coefficient * 10, power + 1
    exact = Decimal(coefficient).scaleb(-power) == abs(step)
    return exact and 0 < coefficient <= MAX_COEFFICIENT


def _short(value: Any) -> str:
    text = json.dumps(value, default=str).strip('"')
    return text if len(text) <= 40 else f"{text[:40]}..."


def _prepared(schema: Schema) -> Node:
    """Return the schema with the engine's numbers, and without annotations."""
    nodes = (node for node in schema.nodes.values() if isinstance(node, dict))
    whole: Node = _plain(schema.root, {id(node): _with_bounds(node) for node in nodes})
    whole.pop("x-guidance", None)  # the engine's options
    return whole


def _plain(value: Any, narrowed: Mapping[int, Node]) -> Any:
    """Copy a value with doubles in place of decimals, and the narrowed form of each schema."""
    if isinstance(value, Decimal):
        whole = abs(value) < 1 << 53 and value == value.to_integral_value()
        return int(value) if whole else float(value) if _is_exact(value) else str(value)
    if isinstance(value, dict):
        schema = narrowed.get(id(value))
        rows = value.items() if schema is None else schema.items()
        return {
            key: _plain(each, narrowed)
            for key, each in rows
            if schema is None or key not in ANNOTATIONS or key in ("$schema", "$id", "id")
        }
    return [_plain(each, narrowed) for each in value] if isinstance(value, list) else value


def _with_bounds(node: Node) -> Node:
    """Return a schema whose numeric bounds the engine enforces exactly or too strictly."""
    if not any(keyword in node for keyword in BOUNDS):
        return node
    if (multiples := _multiples(node)) is not None:
        kept = {key: each for key, each in node.items() if key not in NUMBERS}
        return {**kept, "enum": multiples}
    low, above = _bound(node, "minimum", "exclusiveMinimum", max)
    high, below = _bound(node, "maximum", "exclusiveMaximum", min)
    if low is not None and high is not None and low < high and _truncated(low) == _truncated(high):
        # If both bounds have the same whole part, the engine treats a whole exclusive bound as
        # inclusive.
        narrow = Decimal(1).scaleb((high - low).adjusted() - NARROWING)
        low, above = (low + narrow, False) if above else (low, above)
        high, below = (high - narrow, False) if below else (high, below)
    rest = {key: each for key, each in node.items() if key not in BOUNDS}
    if low is not None:
        rest["exclusiveMinimum" if above else "minimum"] = _inward(max(low, -LARGEST), inf)
    if high is not None:
        rest["exclusiveMaximum" if below else "maximum"] = _inward(min(high, LARGEST), -inf)
    return rest


def _truncated(number: Decimal) -> Decimal:
    return number.to_integral_value(ROUND_DOWN)  # int() would write out 1e999999


def _bound(
    node: Node, plain: str, exclusive: str, strictest: Callable[..., Decimal]
) -> tuple[Decimal | None, bool]:
    """Return the stricter of two bounds, and whether it is exclusive."""
    found = {name: Decimal(node[name]) for name in (plain, exclusive) if is_number(node.get(name))}
    if not found:
        return None, False
    bound = strictest(found.values())
    # In draft 4, `exclusiveMinimum` says whether `minimum` is exclusive.
    return bound, found.get(exclusive) == bound or node.get(exclusive) is True


def _multiples(node: Node) -> list[Decimal] | None:
    """Return every number that `multipleOf` and two bounds allow, or None if there are too many."""
    low, above = _bound(node, "minimum", "exclusiveMinimum", max)
    high, below = _bound(node, "maximum", "exclusiveMaximum", min)
    step, kind = node.get("multipleOf"), node.get("type")
    if low is None or high is None or step is None or kind not in ("number", "integer"):
        return None
    if is_written_out(node) or not all(map(_is_exact, (low, high, step))):
        return None
    start, end, width = Fraction(low), Fraction(high), Fraction(step)
    if (end - start) / width > MAX_MULTIPLES:
        return None
    found = [n * width for n in range(ceil(start / width), floor(end / width) + 1)]
    inside = [
        Decimal(value.numerator) / value.denominator
        for value in found
        if not ((above and value == start) or (below and value == end))
        and not (kind == "integer" and value.denominator != 1)
    ]
    return inside if all(map(_is_exact, inside)) else None


def _inward(bound: Decimal, direction: float) -> Decimal:
    """Return the bound if the engine reads it exactly, or the next number inward that it does."""
    near = float(bound)
    outside = _exactly(near) < bound if direction > 0 else _exactly(near) > bound
    return _exactly(nextafter(near, direction) if outside else near)


def _require_compiled(schema: Schema) -> None:
    """Raise SchemaError if the engine rejects a schema, or finds no document for it."""
    whole = _prepared(schema)
    prepared = Schema(whole)
    places = [(place, node) for place, node in prepared.nodes.items() if isinstance(node, dict)]
    for place, node in places:  # the engine detects an empty set of numbers late
        numbers = {key: node[key] for key in ("type", *NUMBERS) if key in node}
        if "multipleOf" in node and node.get("type") in ("number", "integer") and _problem(numbers):
            raise problem_at(
                place, "multipleOf", "no multiple within the bounds can be written exactly"
            )
    if not _problem(whole):
        return
    # Remove keywords, innermost first, until the rest compiles: the last one is the cause.
    rows = [(place, node, key) for place, node in reversed(places) for key in _by_blame(node)]
    for place, node, keyword in rows[:MAX_CHANGES]:
        problem, value = _problem(whole), node.pop(keyword)
        if _problem(whole):
            continue
        if any(word in problem for word in NO_VALUE):
            raise problem_at(place, keyword, "no value matches this and the rest of the schema")
        raise problem_at(place, keyword, LIMITS.get(keyword, f"{_short(value)} is not supported"))
    raise SchemaError("the schema is too complex, or no document matches it")


def _by_blame(node: Node) -> list[str]:
    """Return the keywords that may cause a problem, the most specific first."""
    blamed = KEPT - {"properties", "$defs", "definitions"}
    return sorted((key for key in node if key in blamed), key=lambda key: key == "type")


def _grammar(schema: Node) -> str:
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=LAYOUT)


def _problem(schema: Node) -> str:
    """Return the engine's objection to a schema, or an empty string."""
    from llguidance import LLMatcher

    matcher = LLMatcher(_byte_tokens(), _grammar(schema), log_level=0)
    if not matcher.is_error():
        matcher.compute_logit_bias()
    return matcher.get_error()


@cache
def _byte_tokens() -> LLTokenizer:
    """Return a vocabulary of 256 bytes and an end, to compile schemas for before a model loads."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_ByteTokenizer()), eos_token=256)


class _ByteTokenizer:
    """Provide the attributes that llguidance's TokenizerWrapper reads."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"\xff256")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)
