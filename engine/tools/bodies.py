"""Read one call of a function from text that may still be incomplete.

Each reader takes the text of a call so far and the tools. It returns None until the name is
certain. The arguments are JSON text that only grows as more text arrives.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Schemas = Mapping[str, Mapping[str, Any]]  # each tool's parameters, as a JSON schema, by name


class NotACall(Exception):
    """The text cannot be a call."""


@dataclass(frozen=True, slots=True)
class Partial:
    """A call so far. end: the length of its text, or None while it is incomplete."""

    name: str
    arguments: str
    end: int | None = None
    id: str | None = None


Body = Callable[[str, Schemas], Partial | None]

STRING = r'"(?:[^"\\]|\\.)*"'
BRACES = re.compile(rf'{STRING}|["{{}}\[\]]', re.DOTALL)
NAME_FIRST = re.compile(
    rf'\s*\{{\s*(?:"(?:type|id)"\s*:\s*{STRING}\s*,\s*)*"name"\s*:\s*({STRING})\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)',
    re.DOTALL,
)
FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")
FUNCTION_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
TAGGED_NAME = re.compile(r"\s*([^\s<{]+)\s*(?=<|\n)")
DEEPSEEK = re.compile(  # V3.1 writes the name first, V3 and R1 the type
    r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>(?=[^<\n]+\n```json\n))?(?!function<)"
    r"([^<\n]+?)(?:<｜tool▁sep｜>|\n```json\n)"
)
KIMI = re.compile(
    r"<\|tool_call_begin\|>\s*((?:functions\.)?([^:<]+)(?::\d+)?)\s*"
    r"<\|tool_call_argument_begin\|>"
)
MISTRAL = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")
PYTHON_NAME = re.compile(r"\s*([A-Za-z_][\w.]*)\(")
LITERALS = {"true": True, "false": False, "null": None, "none": None}


def json_end(text: str, start: int = 0) -> int | None:
    """Return the end of the object or list that begins at `start`, or None if it is incomplete."""
    depth = 0
    for match in BRACES.finditer(text, start):
        mark = match[0]
        if mark == '"':
            return None
        depth += (mark in "{[") - (mark in "}]")
        if depth == 0 and mark in "}]":
            return match.end()
    return None


def json_object(text: str, schemas: Schemas) -> Partial | None:
    """Read `{"name": ..., "arguments": {...}}`."""
    if text.lstrip()[:1] not in ("", "{"):
        raise NotACall
    end = json_end(text, len(text) - len(text.lstrip())) if text.strip() else None
    if (head := NAME_FIRST.match(text)) is not None:
        stop = json_end(text, head.end())
        arguments = text[head.end() : stop]
        return Partial(json.loads(head[1], strict=False), arguments, end)
    if end is None:
        return None
    try:
        call = json.loads(text[:end], strict=False)
    except (ValueError, RecursionError) as error:
        raise NotACall from error
    call = call.get("function") if isinstance(call.get("function"), dict) else call
    name = call.get("name")
    if not isinstance(name, str):
        raise NotACall
    given = call.get("arguments", call.get("parameters", {}))
    return Partial(name, given if isinstance(given, str) else json.dumps(given), end)


def function_tags(text: str, schemas: Schemas) -> Partial | None:
    """Read `<function=name>`, its `<parameter=name>` blocks and `</function>`."""
    head = FUNCTION.match(text)
    if head is None:
        _require_short(text)
        return None
    name, rest = head[1].strip(), text[head.end() :]
    stop = rest.find("</function>")
    pairs = FUNCTION_PARAMETER.findall(rest if stop < 0 else rest[:stop])
    types = _types(schemas, name)
    fields = ((key.strip(), typed(value, types.get(key.strip()))) for key, value in pairs)
    end = None if stop < 0 else head.end() + stop + len("</function>")
    return Partial(name, _object(fields, end is not None), end)


def argument_pairs(text: str, schemas: Schemas) -> Partial | None:
    """Read a name with `<arg_key>` and `<arg_value>` pairs, up to `</tool_call>`."""
    head = TAGGED_NAME.match(text)
    if head is None:
        _require_short(text)
        return None
    name = head[1]
    stop = text.find("</tool_call>")
    pairs = PAIR.findall(text if stop < 0 else text[:stop])
    types = _types(schemas, name)
    fields = ((key.strip(), typed(value, types.get(key.strip()))) for key, value in pairs)
    return Partial(name, _object(fields, stop >= 0), None if stop < 0 else stop)


def tagged(text: str, schemas: Schemas) -> Partial | None:
    """Read whichever of the three forms a `<tool_call>` has."""
    start = text.lstrip()
    if start.startswith("{"):
        return json_object(text, schemas)
    if start.startswith("<function=") or "<function=".startswith(start):
        return function_tags(text, schemas) if start else None
    return argument_pairs(text, schemas)


def invoke(prefix: str) -> Body:
    """Return a reader of `<invoke name="...">` with `<parameter name="...">` blocks.

    prefix: what comes before each tag's name.
    """
    tag = re.escape(prefix)
    begins = re.compile(rf'\s*<{tag}invoke name="([^"]+)">')
    parameter = re.compile(
        rf'<{tag}parameter name="([^"]+)"(?: string="(true|false)")?>(.*?)</{tag}parameter>',
        re.DOTALL,
    )
    closes = f"</{prefix}invoke>"

    def read(text: str, schemas: Schemas) -> Partial | None:
        head = begins.match(text)
        if head is None:
            _require_short(text)
            return None
        stop = text.find(closes)
        types = _types(schemas, head[1])
        found = parameter.findall(text if stop < 0 else text[:stop])
        fields = (
            (key, typed(value, {"type": "string"} if string == "true" else types.get(key)))
            for key, string, value in found
        )
        end = None if stop < 0 else stop + len(closes)
        return Partial(head[1], _object(fields, end is not None), end)

    return read


def named_json(head: re.Pattern[str], name: int = 1, id: int | None = None) -> Body:
    """Return a reader of a head that has the name, then the arguments as a JSON object.

    name, id: the groups of `head`.
    """

    def read(text: str, schemas: Schemas) -> Partial | None:
        match = head.match(text.lstrip())
        if match is None:
            _require_short(text)
            return None
        start = len(text) - len(text.lstrip()) + match.end()
        begun = text.find("{", start)
        if begun < 0:
            return Partial(match[name].strip(), "", None, match[id] if id else None)
        end = json_end(text, begun)
        return Partial(match[name].strip(), text[begun:end], end, match[id] if id else None)

    return read


def mistral(text: str, schemas: Schemas) -> Partial | None:
    """Read an object of a list, or a name with its arguments."""
    if text.lstrip().startswith("{"):
        return json_object(text, schemas)
    return named_json(MISTRAL, id=2)(text, schemas)


def python_call(text: str, schemas: Schemas) -> Partial | None:
    """Read `name(key=value, ...)` with Python or JSON literals."""
    head = PYTHON_NAME.match(text)
    if head is None:
        _require_short(text)
        return None
    end = _call_end(text, head.end())
    if end is None:
        return None
    try:
        call = ast.parse(text[:end].strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        values = {word.arg or "": _literal(word.value) for word in call.keywords}
        names = list(_types(schemas, head[1]))
        values |= dict(zip(names, map(_literal, call.args), strict=False))
        return Partial(head[1], json.dumps(values, ensure_ascii=False), end)
    except (SyntaxError, ValueError, AssertionError, RecursionError) as error:
        raise NotACall from error


def python_or_json(text: str, schemas: Schemas) -> Partial | None:
    """Read a call as a JSON object or in Python's form."""
    form = json_object if text.lstrip().startswith("{") else python_call
    return form(text, schemas)


def typed(text: str, schema: Any) -> Any:
    """Return the value of a parameter that is written as plain text."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # Python reads NaN, which no client does
    except (ValueError, RecursionError):
        return LITERALS.get(text.strip().lower(), text) if kinds else text
    return text if "string" in kinds and isinstance(value, int | float) else value


def _kinds(schema: Any) -> set[str]:
    """Return the types that a schema allows, from its well-formed parts: nothing has checked it."""
    if not isinstance(schema, Mapping):
        return set()
    kind, enum = schema.get("type"), schema.get("enum")
    kinds = [kind] if isinstance(kind, str) else _listed(kind)
    found = {each for each in kinds if isinstance(each, str)}
    for each in _listed(schema.get("anyOf") or schema.get("oneOf")):
        found |= _kinds(each)
    if isinstance(enum, list) and not found:
        found = {"string"} if all(isinstance(value, str) for value in enum) else set()
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _types(schemas: Schemas, name: str) -> Mapping[str, Any]:
    types = schemas.get(name, {}).get("properties", {})
    return types if isinstance(types, Mapping) else {}


def _object(fields: Iterable[tuple[str, Any]], ended: bool) -> str:
    """Return the start of a JSON object with these fields, complete if `ended`."""
    inner = ", ".join(
        f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in fields
    )
    return f"{{{inner}{'}' if ended else ''}"


def _require_short(text: str) -> None:
    """Raise NotACall if the text is too long for a name to arrive."""
    if len(text) > 256:
        raise NotACall


def _call_end(text: str, start: int) -> int | None:
    """Return the end of a Python call whose arguments begin at `start`."""
    depth, at = 1, start
    pattern = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|['\"()\[\]{}]", re.DOTALL)
    for match in pattern.finditer(text, at):
        mark = match[0]
        if mark in ("'", '"'):
            return None
        depth += (mark in ("(", "[", "{")) - (mark in (")", "]", "}"))
        if depth == 0:
            return match.end()
    return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id.lower() in LITERALS:
        return LITERALS[node.id.lower()]
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_literal(key)): _literal(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)
