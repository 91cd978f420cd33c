"""Grammars of valid calls, in each dialect, for the grammar engine.

A grammar names the functions that may be called, and their arguments match their schemas. Its
language is llguidance's variant of Lark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from engine.errors import SchemaError
from engine.text.constrained import Constraint
from engine.text.json_grammar import LAYOUT, enforceable_schema
from engine.text.json_schema import parse, require_valid
from engine.tools.bodies import Schemas
from engine.tools.dialects import HARMONY, CallDialect

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

NAME = "NAME"  # in the texts of a form, the function's name
MAX_CALLS = 8  # in one answer whose calls are forced
ANALYSIS = "<|channel|>analysis<|message|>"
NEXT_MESSAGE = "<|end|><|start|>assistant"


@dataclass(frozen=True)
class CallForm:
    """The texts of calls: around all of them, around each and between two.

    arguments: the form of the arguments.
    """

    begin: str
    open: str
    arguments: Callable[[Rules, Mapping[str, Any]], str]
    close: str
    end: str = ""
    between: str = ""


class Rules:
    """The rules of a grammar. control: control tokens' ids by text."""

    def __init__(self, tokenizer: Tokenizer, control: tuple[str, ...]) -> None:
        found = {text: tokenizer.control[text] for text in control if text in tokenizer.control}
        self._control, self._numbers, self._rows = found, count(), list[str]()
        texts = sorted(found, key=len, reverse=True)
        self._split = re.compile("|".join(map(re.escape, texts)) or "(?!)")

    def add(self, body: str, attributes: str = "") -> str:
        """Add a rule and return its name."""
        name = f"r{next(self._numbers)}"
        self._rows.append(f"{name}{attributes}: {body}")
        return name

    def literal(self, text: str) -> str:
        """Return an expression for a text, in which control tokens are tokens."""
        parts, at = [], 0
        for match in self._split.finditer(text):
            parts += [_quoted(text[at : match.start()]), f"<[{self._control[match[0]]}]>"]
            at = match.end()
        return " ".join(filter(None, [*parts, _quoted(text[at:])])) or '""'

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return an expression for a JSON value that matches a schema."""
        exact = enforceable_schema(json.dumps(schema))
        return self.add(f"%json {json.dumps({**exact, 'x-guidance': LAYOUT})}")

    def text_before(self, end: str) -> str:
        """Return an expression for any text up to and including `end`."""
        return self.add("/(?s:.*)/", f"[suffix={_quoted(end)}]")

    def grammar(self, start: str) -> str:
        """Return the whole grammar."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rows])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _as_json(rules: Rules, schema: Mapping[str, Any]) -> str:
    return rules.json(schema)


def _as_tags(open: str, close: str, string: str = "", other: str = "") -> Any:
    """Return a form of arguments as tags. open: has NAME. string, other: replace TYPE in it."""

    def form(rules: Rules, schema: Mapping[str, Any]) -> str:
        def field(name: str, value: Mapping[str, Any]) -> str:
            plain = value.get("type") == "string"
            head = open.replace(NAME, name).replace("TYPE", string if plain else other)
            if plain and "enum" in value:
                options = " | ".join(rules.literal(str(each)) for each in value["enum"])
                return f"{rules.literal(head)} ({options}) {rules.literal(close)}"
            if plain:
                return f"{rules.literal(head)} {rules.text_before(close)}"
            return f"{rules.literal(head)} {rules.json(value)} {rules.literal(close)}"

        return _fields(rules, schema, field)

    return form


def _as_python(rules: Rules, schema: Mapping[str, Any]) -> str:
    def field(name: str, value: Mapping[str, Any]) -> str:
        return f"{rules.literal(f'{name}=')} {rules.json(value)}"

    properties, required = _properties(schema)
    needed = [field(name, value) for name, value in properties.items() if name in required]
    others = [field(name, value) for name, value in properties.items() if name not in required]
    if needed:
        rest = "".join(f' (", " {each})?' for each in others)
        return ' ", " '.join(needed) + rest
    return " | ".join(others) and f"({' | '.join(others)})?"


def _fields(
    rules: Rules, schema: Mapping[str, Any], field: Callable[[str, Mapping[str, Any]], str]
) -> str:
    """Return an expression for all properties in their order; those not required may be absent."""
    properties, required = _properties(schema)
    parts = [
        field(name, value) if name in required else f"({field(name, value)})?"
        for name, value in properties.items()
    ]
    return " ".join(parts)


def _properties(schema: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], set[str]]:
    require_valid(parse(json.dumps(schema)))
    properties = schema.get("properties") or {}
    if not all(isinstance(value, Mapping) for value in properties.values()):
        raise SchemaError("each property of a tool's parameters must be a schema")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    found: dict[str, Mapping[str, Any]] = {
        name: {**value, **shared} for name, value in properties.items()
    }
    return found, {*(schema.get("required") or ())}


def _dsml(block: str) -> CallForm:
    """Return the form of DeepSeek's tags. block: the name of those around all calls."""
    arguments = _as_tags(
        '<｜DSML｜parameter name="NAME" string="TYPE">', "</｜DSML｜parameter>\n", "true", "false"
    )
    begin, end = f"<｜DSML｜{block}>\n", f"</｜DSML｜{block}>"
    return CallForm(begin, '<｜DSML｜invoke name="NAME">\n', arguments, "</｜DSML｜invoke>\n", end)


HERMES_FORM = CallForm(
    "", '<tool_call>\n{"name": "NAME", "arguments": ', _as_json, "}\n</tool_call>", "", "\n"
)
LLAMA_FORM = CallForm("", '{"name": "NAME", "parameters": ', _as_json, "}")
FORMS = {
    "hermes": HERMES_FORM,
    "qwen-coder": CallForm(
        "",
        "<tool_call>\n<function=NAME>\n",
        _as_tags("<parameter=NAME>\n", "\n</parameter>\n"),
        "</function>\n</tool_call>",
        "",
        "\n",
    ),
    "glm": CallForm(
        "",
        "<tool_call>NAME\n",
        _as_tags("<arg_key>NAME</arg_key>\n<arg_value>", "</arg_value>\n"),
        "</tool_call>",
        "",
        "\n",
    ),
    "deepseek": CallForm(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>",
        _as_json,
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "dsml": _dsml("function_calls"),
    "dsml-v4": _dsml("tool_calls"),
    "minimax": CallForm(
        "<minimax:tool_call>\n",
        '<invoke name="NAME">\n',
        _as_tags('<parameter name="NAME">', "</parameter>\n"),
        "</invoke>\n",
        "</minimax:tool_call>",
    ),
    "lfm2": CallForm("<|tool_call_start|>[", "NAME(", _as_python, ")", "]<|tool_call_end|>", ", "),
    "mistral": CallForm(
        "[TOOL_CALLS][", '{"name": "NAME", "arguments": ', _as_json, "}", "]", ", "
    ),
    "granite": CallForm(
        "<|tool_call|>[", '{"name": "NAME", "arguments": ', _as_json, "}", "]", ", "
    ),
    "llama3": LLAMA_FORM,
    "llama4": LLAMA_FORM,
}
KIMI_CALL = ("<|tool_call_begin|>functions.NAME:", "<|tool_call_argument_begin|>")


def example(dialect: CallDialect) -> str:
    """Return what a call looks like, with placeholders for its name and arguments."""
    form = FORMS.get(dialect.name, HERMES_FORM)
    texts = (form.begin, form.open.replace(NAME, "<function-name>"), "<args-json-object>")
    return "".join([*texts, form.close, form.end])


def call_constraint(
    dialect: CallDialect,
    tokenizer: Tokenizer,
    schemas: Schemas,
    forced: bool,
    several: bool,
    loose: frozenset[str] = frozenset(),
) -> Constraint | None:
    """Return the constraint that makes every call valid.

    forced: the answer is a call, or several of them. Otherwise only a call that the model begins is
    constrained, and None is returned if a dialect does not mark calls. loose: names of functions
    whose arguments may be any object. Raises SchemaError for a schema that cannot be enforced.
    """
    known = {
        name: {"type": "object"} if name in loose else schema for name, schema in schemas.items()
    }
    rules = Rules(tokenizer, (*dialect.markers, *HARMONY_MARKS))
    if dialect is HARMONY:
        return Constraint(rules.grammar(_harmony(rules, known)), at_once=True) if forced else None
    one, form = _calls(rules, dialect, known)
    begin, end = rules.literal(form.begin), rules.literal(form.end)
    if forced:
        more = f"({rules.literal(form.between)} {one}){{0,{MAX_CALLS - 1}}}" if several else ""
        if not form.between and not form.begin:
            more = ""
        return Constraint(rules.grammar(f"{begin} {one} {more} {end}"))
    if dialect.at_start:
        return None
    return Constraint(rules.grammar(f"{begin} {one}"), opens=dialect.opens[0])


HARMONY_MARKS = (
    *("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>"),
)


def _calls(rules: Rules, dialect: CallDialect, schemas: Schemas) -> tuple[str, CallForm]:
    """Return a rule for one call of any of the functions, and the form that it has."""
    if dialect.name == "kimi":
        form = CallForm(
            "<|tool_calls_section_begin|>",
            "",
            _as_json,
            "<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        )
        opens = {
            name: f"{rules.literal(KIMI_CALL[0].replace(NAME, name))} /[0-9]{{1,2}}/ "
            + rules.literal(KIMI_CALL[1])
            for name in schemas
        }
    else:
        form = FORMS[dialect.name]
        opens = {name: rules.literal(form.open.replace(NAME, name)) for name in schemas}
    choices = [
        rules.add(f"{opens[name]} {form.arguments(rules, schema)} {rules.literal(form.close)}")
        for name, schema in schemas.items()
    ]
    return rules.add(" | ".join(choices)), form


def _harmony(rules: Rules, schemas: Schemas) -> str:
    """Return a rule for one call after optional thinking. It ends with <|call|>."""
    thinking = rules.add(f"{rules.literal(ANALYSIS)} /(?s:.*)/ {rules.literal(NEXT_MESSAGE)}")
    choices = []
    for name, schema in schemas.items():
        header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        choices.append(rules.add(f"{rules.literal(header)} {rules.json(schema)}"))
    return f"{thinking}? ({' | '.join(choices)})"
