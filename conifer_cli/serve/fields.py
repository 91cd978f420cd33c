"""Read fields of a request's JSON body. A wrong value raises BadRequest, which names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 100  # lists and objects in each other; grammars and templates recurse into schemas
TOO_DEEP = f"more than {MAX_DEPTH} levels of lists and objects"
HALF_PAIR = re.compile("[\ud800-\udfff]")


class BadRequest(Exception):
    """A request cannot be answered. status: the HTTP status. field: the part that is wrong."""

    def __init__(
        self, message: str, field: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.field, self.status, self.code = field, status, code


Body = Mapping[str, Any]


def parse_body(data: bytes) -> Body:
    """Parse a request's body. Raises BadRequest unless it is a JSON object."""
    try:
        body = parse_json(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BadRequest(f"the body is not valid JSON: {str(error)[:120]}") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return body


def parse_json(text: str) -> Any:
    """Parse JSON. Halves of surrogate pairs, which are no text, become U+FFFD.

    Raises ValueError, also for more than MAX_DEPTH levels.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    if _levels(value) > MAX_DEPTH:
        raise ValueError(TOO_DEEP)
    if "\\ud" in text.lower():  # clients that cut a text may cut a pair
        value = json.loads(HALF_PAIR.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    return value


def _levels(value: Any) -> int:
    """Return how many lists and objects are in each other, at most MAX_DEPTH + 1."""
    level, count = [value], 0
    while (
        level := [each for each in level if isinstance(each, dict | list)]
    ) and count <= MAX_DEPTH:
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level, count = [value for values in inner for value in values], count + 1
    return count


def number(body: Body, name: str, low: float, high: float) -> float | None:
    """Return a number, or None if it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(f"{name} must be a number from {low:g} to {high:g}", name)
    return value


def whole(body: Body, name: str, low: int, high: int) -> int | None:
    """Return a whole number, or None if it is absent or null."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest(f"{name} must be a whole number from {low} to {high}", name)
    return value


def flag(body: Body, name: str, default: bool = False) -> bool:
    """Return a boolean."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequest(f"{name} must be true or false", name)
    return value


def text(body: Body, name: str) -> str | None:
    """Return a string, or None if it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name} must be a string", name)
    return value


def listed(body: Body, name: str) -> list[Any]:
    """Return a list, or an empty one if it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, list):
        raise BadRequest(f"{name} must be a list", name)
    return value or []


def mapping(body: Body, name: str) -> Body:
    """Return an object, or an empty one if it is absent or null."""
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f"{name} must be an object", name)
    return value or {}


def strings(body: Body, name: str) -> tuple[str, ...]:
    """Return a string or a list of strings as a tuple, without empty ones."""
    value = body.get(name)
    items = [value] if isinstance(value, str) else listed(body, name)
    if not all(isinstance(item, str) for item in items):
        raise BadRequest(f"{name} must be a string or a list of strings", name)
    return tuple(filter(None, items))


def plain_text(content: Any, where: str) -> str:
    """Return the text of a message's content: a string, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("content must be a string or a list of parts", where)
    return "".join(_part_text(part, where) for part in content)


def _part_text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"):
        value = part.get("text", part.get("refusal"))
        if isinstance(value, str):
            return value
    if kind is not None and any(word in str(kind) for word in ("image", "audio", "file", "video")):
        raise BadRequest(f"parts of type {kind!r} are not supported: models read text only", where)
    raise BadRequest("each part of content must have a type and a text", where)
