"""The tools of a request: their schemas, which of them may be called, and their place in a prompt.

A chat template that has no place for tools gets their description in the system message, and calls
in Hermes' form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from conifer_cli.serve.fields import BadRequest, parse_json
from engine.tools.dialects import (
    HERMES,
    CallDialect,
    find_call_dialect,
    lists_tools,
    shows_calls,
)
from engine.tools.messages import calls_as_text, described

if TYPE_CHECKING:
    from engine.model import Model
    from engine.text.constrained import Constraint

AUTO, NONE, REQUIRED = "auto", "none", "required"
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


@dataclass(frozen=True)
class Tools:
    """The tools that a request declares.

    given: function tools in OpenAI's form. choice: auto, none, required, or the name of one.
    strict: names of the tools whose arguments must match their schemas.
    """

    given: list[dict[str, Any]] = field(default_factory=list)
    choice: str = AUTO
    parallel: bool = True
    strict: frozenset[str] = frozenset()

    @property
    def used(self) -> bool:
        """True if the answer may contain calls."""
        return bool(self.given) and self.choice != NONE

    @cached_property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Each tool's parameters, as a JSON schema."""
        functions = (tool["function"] for tool in self.given)
        return {f["name"]: f.get("parameters") or NO_PARAMETERS for f in functions}

    def dialect_for(self, model: Model) -> CallDialect:
        """Return how a model writes calls."""
        template = model.template
        return (find_call_dialect(template.source) if template else None) or HERMES

    def constraint(self, model: Model) -> Constraint | None:
        """Return the grammar of valid calls, or None if the model decides freely."""
        from engine.tools.grammar import call_constraint

        if not self.used or (self.choice == AUTO and not self.strict):
            return None
        forced = self.choice != AUTO
        names = [self.choice] if self.choice in self.schemas else list(self.schemas)
        loose = frozenset(names) - self.strict if not forced else frozenset()
        return call_constraint(
            self.dialect_for(model),
            model.tokenizer,
            {name: self.schemas[name] for name in names},
            forced=forced,
            several=self.parallel,
            loose=loose,
        )


def read_tools(given: list[Any], choice: Any, parallel: bool = True) -> Tools:
    """Read tools in OpenAI's form. Other types than functions are ignored.

    Raises BadRequest if a function has no name, or the choice names none of them.
    """
    functions = [tool for tool in map(_function, given) if tool is not None]
    names = [tool["function"]["name"] for tool in functions]
    strict = {t["function"]["name"] for t in functions if t["function"].get("strict") is True}
    return Tools(functions, read_choice(choice, names), parallel, frozenset(strict))


def read_choice(choice: Any, names: list[str]) -> str:
    """Return auto, none, required, or the name of a tool."""
    if isinstance(choice, dict):
        inner = choice.get("function")
        found = inner.get("name") if isinstance(inner, dict) else choice.get("name")
        if found is None and choice.get("type") in (AUTO, NONE, REQUIRED):
            found = choice["type"]
        choice = found if found is not None else AUTO
    choice = REQUIRED if choice == "any" else AUTO if choice is None else choice
    if choice not in (AUTO, NONE, REQUIRED, *names):
        raise BadRequest(f"tool_choice names no tool of this request: {choice!r}", "tool_choice")
    if choice == REQUIRED and not names:
        raise BadRequest("tool_choice is 'required', but there are no tools", "tool_choice")
    return str(choice)


def _function(tool: Any) -> dict[str, Any] | None:
    """Return a function tool in its plain form, or None for another type."""
    if not isinstance(tool, dict):
        raise BadRequest("each tool must be an object", "tools")
    if tool.get("type", "function") != "function":
        return None
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise BadRequest("each function must have a name", "tools")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise BadRequest(f"the parameters of {name} must be a JSON schema", "tools")
    kept: dict[str, Any] = {
        "name": name,
        "description": str(function.get("description") or ""),
        "parameters": parameters or NO_PARAMETERS,
    }
    if function.get("strict") is True:
        kept["strict"] = True
    return {"type": "function", "function": kept}


def with_tools(
    messages: list[dict[str, Any]], tools: Tools, template: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages, and the tools for the template, or none if the messages have them."""
    from engine.tools.grammar import example

    plain = [
        {"type": "function", "function": {k: v for k, v in t["function"].items() if k != "strict"}}
        for t in tools.given
        if tools.choice != NONE
    ]
    dialect = find_call_dialect(template)
    if dialect is None or not shows_calls(template):
        messages = calls_as_text(messages)
    if not plain or (dialect is not None and lists_tools(template)):
        return messages, plain
    return described(messages, plain, example(dialect or HERMES)), []


def parsed_arguments(text: str, where: str) -> Any:
    """Return the arguments of a past call as an object. Raises BadRequest."""
    try:
        value = parse_json(text) if text.strip() else {}
    except ValueError as error:
        raise BadRequest("the arguments of a call are not valid JSON", where) from error
    if not isinstance(value, dict):
        raise BadRequest("the arguments of a call must be an object", where)
    return value
