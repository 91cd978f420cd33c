"""How model families write calls of functions, as a table. The chat template decides the row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.tools.bodies import (
    DEEPSEEK,
    KIMI,
    Body,
    invoke,
    json_object,
    mistral,
    named_json,
    python_call,
    python_or_json,
    tagged,
)

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

PYTHON_START = re.compile(r"[A-Za-z_][\w.]*(\(|\Z)")


@dataclass(frozen=True)
class CallDialect:
    """How a model family writes calls.

    sign: a pattern that chat templates of the family contain. opens: texts that begin a
    call or a list of calls. body: reads one call. again: texts that begin a further call in a list
    and belong to it. skipped: texts between and after calls. at_start: the calls begin the answer
    without a marker, so the same text later is plain. python: a list holds calls in Python's form.
    """

    name: str
    sign: str
    opens: tuple[str, ...]
    body: Body
    again: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    at_start: bool = False
    python: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """All texts that may be control tokens, and must be kept in the text."""
        return (*self.opens, *self.again, *self.skipped, *EXTRA_MARKERS)

    def begins(self, text: str) -> bool | None:
        """True if text begins a further call of a list. None if that is not certain yet."""
        if self.python and (match := PYTHON_START.match(text)) is not None:
            return True if match[1] else None
        if any(text.startswith(start) for start in self.again):
            return True
        return None if any(start.startswith(text) for start in self.again) else False


# Between the parts of a call.
EXTRA_MARKERS = (
    *("<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    *("[ARGS]", "[CALL_ID]", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)
LIST = ("[", "]", ",", ";")
HARMONY = CallDialect("harmony", r"<\|channel\|>.*functions", (), json_object)
HERMES = CallDialect("hermes", "<tool_call>", ("<tool_call>",), tagged, (), ("</tool_call>",))
# The first match wins, so rows with more specific signs come first.
DIALECTS = (
    HARMONY,  # gpt-oss
    CallDialect(  # DeepSeek V4
        "dsml-v4",
        r"(?s)｜DSML｜(?!.*function_calls)",
        ("<｜DSML｜tool_calls>",),
        invoke("｜DSML｜"),
        ("<｜DSML｜invoke",),
        ("</｜DSML｜tool_calls>",),
    ),
    CallDialect(  # DeepSeek V3.2
        "dsml",
        "｜DSML｜",
        ("<｜DSML｜function_calls>",),
        invoke("｜DSML｜"),
        ("<｜DSML｜invoke",),
        ("</｜DSML｜function_calls>",),
    ),
    CallDialect(  # DeepSeek R1, V3 and V3.1
        "deepseek",
        "<｜tool▁calls▁begin｜>",
        ("<｜tool▁calls▁begin｜>",),
        named_json(DEEPSEEK),
        ("<｜tool▁call▁begin｜>",),
        ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```"),
    ),
    CallDialect(  # Kimi K2
        "kimi",
        r"<\|tool_calls_section_begin\|>",
        ("<|tool_calls_section_begin|>",),
        named_json(KIMI, name=2, id=1),
        ("<|tool_call_begin|>",),
        ("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    ),
    CallDialect(  # MiniMax M2
        "minimax",
        "minimax:tool_call",
        ("<minimax:tool_call>",),
        invoke(""),
        ("<invoke",),
        ("</minimax:tool_call>",),
    ),
    CallDialect(  # LFM2
        "lfm2",
        r"<\|tool_(list|call)_start\|>",
        ("<|tool_call_start|>",),
        python_call,
        skipped=("<|tool_call_end|>", *LIST),
        python=True,
    ),
    CallDialect("mistral", r"\[TOOL_CALLS\]", ("[TOOL_CALLS]",), mistral, ("{",), LIST),
    CallDialect(  # Granite 3
        "granite", r"<\|tool_call\|>", ("<|tool_call|>", "<tool_call>"), json_object, ("{",), LIST
    ),
    CallDialect(  # GLM 4.5 to 4.7
        "glm", "<arg_key>", ("<tool_call>",), tagged, (), ("</tool_call>",)
    ),
    CallDialect(  # Qwen3-Coder, Qwen3.5, Nemotron 3
        "qwen-coder",
        "<function=",
        ("<tool_call>", "<function="),
        tagged,
        ("<function=",),
        ("</tool_call>",),
    ),
    HERMES,  # Qwen 2.5 and 3, Granite 4, ERNIE, Hunyuan
    CallDialect(
        "llama4",
        r"<\|header_start\|>.*tool",
        ("<|python_start|>", "[", "{"),
        python_or_json,
        ("{",),
        ("<|python_end|>", *LIST),
        at_start=True,
        python=True,
    ),
    CallDialect(
        "llama3",
        "ipython",
        ("<|python_tag|>", "{"),
        json_object,
        ("{",),
        LIST,
        at_start=True,
    ),
)


def find_call_dialect(template: str) -> CallDialect | None:
    """Return the dialect of a chat template, or None if the template shows no calls."""
    return next((row for row in DIALECTS if re.search(row.sign, template, re.DOTALL)), None)


def lists_tools(template: str) -> bool:
    """True if a chat template writes the tools that it is given into the prompt."""
    return re.search(r"\btools\b", template) is not None


def shows_calls(template: str) -> bool:
    """True if a chat template writes the calls of past messages into the prompt."""
    return "tool_calls" in template


def call_markers(dialect: CallDialect, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of markers that are control tokens, which decoding drops by default."""
    control = tokenizer.control
    return frozenset(control[text] for text in dialect.markers if text in control)
