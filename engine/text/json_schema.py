"""Parse a JSON schema. Reject invalid, unsupported and endless schemas.

Places are JSON pointers, such as #/properties/age. `json_grammar` checks numbers and combinations.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from engine.errors import SchemaError
from engine.text import json_document
from engine.text.json_document import DRAFT, pointer, validator_class

Node = dict[str, Any]
MAPS = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalItems", "additionalProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
NUMBERS = (*BOUNDS, "multipleOf")
COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength")
VALUES = ("$ref", "const", "enum", "type", "required", "pattern", "format")
KEPT = frozenset((*MAPS, *LISTS, *SINGLE, *NUMBERS, *COUNTS, *VALUES))
REFUSED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
    *("propertyNames", "dependencies", "dependentRequired", "dependentSchemas"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema", "extends", "disallow"),
    *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "divisibleBy"),
)
ANNOTATIONS = (
    *("$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description"),
    *("default", "example", "examples", "deprecated", "readOnly", "writeOnly", "nullable"),
    *("contentEncoding", "contentMediaType"),
)
SCALARS = frozenset(("null", "boolean", "string", "number", "integer"))
TYPES = SCALARS | {"array", "object"}


@dataclass(frozen=True)
class Schema:
    """A parsed JSON schema: exact numbers, and every subschema by its place."""

    root: Node

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """Every schema in the document and every target of a `$ref`, by place. May be booleans."""
        found: dict[str, Any] = {}
        waiting: list[tuple[str, Any]] = [("#", self.root)]
        while waiting:
            place, node = waiting.pop()
            if place in found:
                continue
            found[place] = node
            if isinstance(node, dict):
                waiting += reversed(list(_children(place, node)))
                if isinstance(target := node.get("$ref"), str):
                    waiting.append((target, self.target(place, target)))
        return found

    def target(self, place: str, reference: str) -> Any:
        """Return the schema that a `$ref` names. Raises SchemaError if there is none."""
        found: Any = self.root
        if not (reference == "#" or reference.startswith("#/")):
            raise problem_at(
                place, "$ref", f"{reference!r} is not a place in this file, such as #/$defs/x"
            )
        for step in reference.split("/")[1:]:
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            known = found if isinstance(found, dict) else {}
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif step in known:
                found = known[step]
            else:
                raise problem_at(place, "$ref", f"there is nothing at {reference!r}")
        if not isinstance(found, dict | bool):
            raise problem_at(place, "$ref", f"{reference!r} is not a schema")
        return found


def parse(text: str) -> Schema:
    """Parse a JSON schema. Raises SchemaError if it is not one object of valid JSON."""
    try:
        root = json_document.parse(text.removeprefix("\ufeff"))
    except ValueError as error:
        raise SchemaError(str(error)) from error
    try:
        json.dumps(root, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise SchemaError("a text in the schema has half of a surrogate pair") from error
    if not isinstance(root, dict):
        raise SchemaError('a JSON schema must be an object, such as {"type": "string"}')
    return Schema(root)


def require_supported(schema: Schema) -> None:
    """Raise SchemaError if a schema is invalid, uses an unsupported keyword, or never ends."""
    require_valid(schema)
    new = schema.root.get("$schema", DRAFT).rstrip("#") == DRAFT
    for place, node in schema.nodes.items():
        if isinstance(node, dict):
            _require_keywords(place, node, new)
    _require_an_end(schema)
    _require_progress(schema)


def problem_at(place: str, keyword: str, problem: str) -> SchemaError:
    return SchemaError(f"`{keyword}` at {place}: {problem}")


def below(place: str, *names: str | int) -> str:
    return place + pointer(names)[1:]


def _children(place: str, node: Node) -> Iterator[tuple[str, Any]]:
    """Yield the place and content of each schema that `node` contains."""
    for keyword, value in node.items():
        if keyword in MAPS and isinstance(value, dict):
            yield from ((below(place, keyword, name), each) for name, each in value.items())
        elif keyword in LISTS and isinstance(value, list):
            yield from ((below(place, keyword, n), each) for n, each in enumerate(value))
        elif keyword in SINGLE and isinstance(value, dict | bool):
            yield below(place, keyword), value


def require_valid(schema: Schema) -> None:
    """Raise SchemaError unless each keyword has a value of its kind."""
    from jsonschema.exceptions import best_match

    validator = validator_class(schema.root.get("$schema", DRAFT))
    error = best_match(validator(validator.META_SCHEMA).iter_errors(schema.root))
    if error is None:
        return
    *path, last = error.absolute_path or ["$schema"]
    while path and not isinstance(last, str):  # for example, an item of `enum`
        last = path.pop()
    raise problem_at(pointer(path), str(last), "the value is not one that JSON Schema allows")


def _require_keywords(place: str, node: Node, new: bool) -> None:
    """new: the schema is of draft 2020-12, which has no `additionalItems`."""
    if "$id" in node and place != "#":
        raise problem_at(place, "$id", "only the whole schema may have one")
    for keyword in node:
        if keyword == "additionalItems" and new:
            raise problem_at(place, keyword, "this keyword is not supported. Try items")
        if keyword in KEPT or keyword in ANNOTATIONS:
            continue
        if keyword in REFUSED:
            raise problem_at(place, keyword, "this keyword is not supported")
        if meant := difflib.get_close_matches(keyword, KEPT, 1, 0.8):
            raise problem_at(place, keyword, f"unknown keyword. Did you mean {meant[0]}?")


def _require_an_end(schema: Schema) -> None:
    """Raise SchemaError if only endless documents match a `$ref`."""
    finite: set[str] = set()
    while more := {place for place in schema.nodes if _ends(schema, place, finite)} - finite:
        finite |= more
    for place, node in schema.nodes.items():
        if isinstance(node, dict) and "$ref" in node and place not in finite:
            raise problem_at(place, "$ref", "it leads back to itself without an end")


def _ends(schema: Schema, place: str, finite: set[str]) -> bool:
    """True if a finite document matches a schema. finite: places where that is known."""
    node = schema.nodes[place]
    if isinstance(node, bool):
        return True  # `false` matches no document, so no endless one
    if "$ref" in node and node["$ref"] not in finite:
        return False
    if not all(below(place, "allOf", n) in finite for n in range(len(node.get("allOf", ())))):
        return False
    for keyword in ("anyOf", "oneOf"):
        options = range(len(node.get(keyword, ())))
        if options and not any(below(place, keyword, n) in finite for n in options):
            return False
    types = _types(node)
    return (
        not SCALARS.isdisjoint(types)
        or ("array" in types and all(each in finite for each in _required_items(place, node)))
        or ("object" in types and _has_required_values(place, node, finite))
    )


def _require_progress(schema: Schema) -> None:
    """Raise SchemaError if a `$ref` leads to itself for the same value, as `{"$ref": "#"}` does."""
    done: set[str] = set()
    for start in schema.nodes:
        path: dict[str, Iterator[tuple[str, str]]] = {start: _same_value(schema, start)}
        while path and start not in done:
            place = next(reversed(path))
            keyword, after = next(path[place], ("", ""))
            if not after:
                done.add(place)
                del path[place]
            elif after in path:
                raise problem_at(place, keyword, "it leads back to itself without an end")
            elif after not in done:
                path[after] = _same_value(schema, after)


def _same_value(schema: Schema, place: str) -> Iterator[tuple[str, str]]:
    """Yield the keyword and place of each schema that applies to the same value as this one."""
    node = schema.nodes[place]
    if not isinstance(node, dict):
        return
    if "$ref" in node:
        yield "$ref", node["$ref"]
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from ((keyword, below(place, keyword, n)) for n in range(len(node.get(keyword, ()))))


def is_written_out(node: Node) -> bool:
    """True if a schema lists its documents."""
    return "enum" in node or "const" in node


def _types(node: Node) -> frozenset[str]:
    if is_written_out(node):
        return SCALARS
    chosen = node.get("type", TYPES)
    return frozenset([chosen] if isinstance(chosen, str) else chosen)


def _required_items(place: str, node: Node) -> Iterator[str]:
    tuple_key = "items" if isinstance(node.get("items"), list) else "prefixItems"
    tuple_length = len(node.get(tuple_key, ()))
    count = int(node.get("minItems", 0))
    yield from (below(place, tuple_key, n) for n in range(min(count, tuple_length)))
    rest = "additionalItems" if tuple_key == "items" else "items"
    if count > tuple_length and rest in node:
        yield below(place, rest)


def _has_required_values(place: str, node: Node, finite: set[str]) -> bool:
    """True if the properties that an object must have can have finite values."""
    known, required = node.get("properties", {}), node.get("required", ())
    rest = below(place, "additionalProperties")
    others = [below(place, "properties", name) for name in known]
    others += [
        below(place, "patternProperties", name) for name in node.get("patternProperties", {})
    ]
    is_open = rest in finite or "additionalProperties" not in node
    for name in required:
        if name in known and below(place, "properties", name) not in finite:
            return False
        if name not in known and not (is_open or "patternProperties" in node):
            return False
    enough = node.get("minProperties", 0) <= len(required)
    return enough or is_open or any(each in finite for each in others)
