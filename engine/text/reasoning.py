"""Separate a model's thinking from its answer while the text streams.

Markers are recognised only where the model family writes them. Thinking can only come first: once
the answer has begun, no marker in it can start another thinking block. Markers and the blank lines
around them are dropped. All other text is passed on as soon as its kind is certain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer


class Kind(StrEnum):
    """A kind of output text. COMMENTARY is a message to a tool or about a tool call.

    CALLED is the name of the function that the next COMMENTARY text calls.
    """

    THINKING = "thinking"
    ANSWER = "answer"
    COMMENTARY = "commentary"
    CALLED = "called"


Part = tuple[Kind, str]
NOTHING: Part = (Kind.ANSWER, "")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The markers that a model family writes around its thinking and, optionally, its answer.

    answer_header: what precedes `answer_opens` after thinking.
    """

    opens: str
    closes: str
    answer_opens: str = ""
    answer_closes: str = ""
    answer_header: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers that the reader needs to see, including control tokens."""
        found = (self.opens, self.closes, self.answer_opens, self.answer_closes)
        header = CONTROL_TOKEN.findall(self.answer_header)
        return HARMONY_MARKERS if self is HARMONY else tuple(filter(None, (*found, *header)))


CONTROL_TOKEN = re.compile(r"<\|\w+\|>")
HARMONY_MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
# Each message has a header: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>
HARMONY = Dialect("<|channel|>", "<|channel|>")
# The first match wins, so rows with more markers come before plain <think>.
DIALECTS = (
    HARMONY,  # gpt-oss
    Dialect("<|channel>thought", "<channel|>"),  # Gemma 4
    Dialect(  # North Mini, Command A+
        "<|START_THINKING|>", "<|END_THINKING|>", "<|START_TEXT|>", "<|END_TEXT|>"
    ),
    Dialect(  # Solar Open
        "<|think|>", "<|end|>", "<|content|>", "<|end|>", answer_header="<|begin|>assistant"
    ),
    Dialect("<think:opensource>", "</think:opensource>"),  # Hy 3
    Dialect("<think>", "</think>", "<response>", "</response>"),  # Granite 3.3
    Dialect("<think>", "</think>", "<answer>", "</answer>"),  # Hunyuan
    Dialect("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    Dialect("[THINK]", "[/THINK]"),  # Mistral, Magistral
    Dialect("◁think▷", "◁/think▷"),  # Kimi-VL
    Dialect("<think>", "</think>"),  # DeepSeek, ERNIE, GLM, Kimi, Laguna, MiniMax, Nemotron, Qwen
)
PROMPT_END_TOKENS = 24  # enough for any marker and trailing whitespace
HEADER_CHARACTERS = 512  # longer text is not a header
HEADER_STARTS = (*HARMONY_MARKERS, "to=")
MESSAGE, END = "<|message|>", "<|end|>"
MESSAGE_ENDS = (f"{END}<|start|>", f"{END}<|channel|>")
NEXT_MESSAGE = re.compile(r"<\|end\|>(?=<\|start\|>|<\|channel\|>)")
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
CALLED = re.compile(r"\bto=functions\.([^\s<]+)")
NO_EFFORT = re.compile(r"""reasoning_effort.*==\s*['"](no_think|none)['"]""")
CHANNELS = {"analysis": Kind.THINKING, "commentary": Kind.COMMENTARY}


def switches(think: bool | None, effort: str | None = None, source: str = "") -> dict[str, Any]:
    """Return the template variables that turn thinking on or off. None keeps the default.

    source: the template. In some, an effort is the only switch.
    """
    names: dict[str, Any] = {} if think is None else {"enable_thinking": think, "thinking": think}
    no_effort = NO_EFFORT.search(source)
    if think is False:
        effort = no_effort[1] if no_effort else "low"
    elif think and no_effort:
        effort = effort or "high"
    return names if effort is None else {**names, "reasoning_effort": effort}


def find_dialect(tokenizer: Tokenizer, template: ChatTemplate | None) -> Dialect | None:
    """Return a model's dialect, or None if the model cannot think or has no template."""
    if template is None:
        return None
    tokens = {*tokenizer.control, *tokenizer.user_defined}

    def known(text: str) -> bool:
        return text in template.source or text in tokens

    for row in DIALECTS:
        # Tags such as <response> have other uses, unless a template writes both together.
        both = row.answer_opens + row.answer_closes
        answer = [row.answer_opens, row.answer_closes] if row.opens.startswith("<|") else [both]
        if all(map(known, answer)) and (known(row.opens) or known(row.closes)):
            return row
    return None


def control_markers(dialect: Dialect | None, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the ids of markers that are control tokens, which decoding drops by default."""
    markers = dialect.markers if dialect is not None else ()
    return frozenset(tokenizer.control[text] for text in markers if text in tokenizer.control)


def new_reader(dialect: Dialect | None, tokenizer: Tokenizer, prompt: Sequence[int]) -> Reader:
    """Return a reader for the output after a prompt, which may already open the thinking block."""
    if dialect is None:
        return Reader()
    if dialect is HARMONY:
        return HarmonyReader()
    end = list(prompt[-PROMPT_END_TOKENS:])
    text = tokenizer.decode(end, markup=True).rstrip()
    markers = (dialect.opens, dialect.closes)
    marker = next((marker for marker in markers if text.endswith(marker)), "")
    # If the marker is a token, the same characters in other tokens are message text.
    id = {**tokenizer.user_defined, **tokenizer.control}.get(marker)
    if not marker or (id is not None and id not in end):
        return TagReader(dialect)
    return TagReader(dialect, Kind.THINKING if marker == dialect.opens else Kind.ANSWER)


def overlap(text: str, marker: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `marker`."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)


class Reader:
    """Split streamed text into parts by kind. This base class treats all text as the answer.

    names_calls: whether to yield the name of a called function, as CALLED, if a header has it.
    """

    names_calls = False

    def __init__(self) -> None:
        self._held = ""
        self._blank: list[str] = []  # white space after `_held`, which ends in white space too
        self._state: Callable[[bool], Part] = self._answer  # reads the next text

    @property
    def answering(self) -> bool:
        """True if the answer has begun or is certain to come next."""
        return True

    @property
    def thinking(self) -> bool:
        """True if the next text is certain to be thinking."""
        return False

    def push(self, piece: str) -> Iterator[Part]:
        """Add text and yield the parts whose kind is certain."""
        if piece.isspace() and self._held[-1:].isspace():  # changes nothing, so do not read
            self._blank.append(piece)
            return
        self._unite(piece)
        yield from self._read(False)

    def finish(self) -> Iterator[Part]:
        """Yield the remaining parts at the end of the output."""
        self._unite("")
        yield from self._read(True)

    def _unite(self, piece: str) -> None:
        self._held = "".join([self._held, *self._blank, piece])
        self._blank.clear()

    def _read(self, ended: bool) -> Iterator[Part]:
        before = None
        while before != self._state:
            before = self._state
            kind, text = before(ended)
            if text:
                yield kind, text

    def _answer(self, ended: bool) -> Part:
        return Kind.ANSWER, self._take(len(self._held))

    def _take(self, size: int, skip: int = 0) -> str:
        """Remove and return the first `size` buffered characters, and drop `skip` more."""
        text, self._held = self._held[:size], self._held[size + skip :]
        return text

    def _before(self, marker: str, ended: bool) -> str:
        """Remove and return the text before a possible partial marker, or all text if `ended`."""
        text = self._held
        if not ended:
            text = text[: len(text) - overlap(text, marker)].rstrip()
        return self._take(len(text))

    def _skip_blank(self, ended: bool, then: Callable[[bool], Part]) -> Part:
        """Drop blank lines. Set the state to `then` once other text arrives or the output ends."""
        text = self._held.lstrip()
        if text or ended:
            space = self._held[: len(self._held) - len(text)]
            self._held = space[space.rfind("\n") + 1 :] + text
            self._state = then
        return NOTHING

    def _at_marker(self, marker: str, ended: bool) -> bool | None:
        """Drop a marker and the whitespace before it.

        Return False if the marker is absent, or None if it may still arrive.
        """
        text = self._held.lstrip()
        if text.startswith(marker):
            self._held = text[len(marker) :]
            return True
        return None if marker.startswith(text) and not ended else False


class TagReader(Reader):
    """Read thinking between two markers, then the answer, which may have markers too.

    begun: THINKING if the prompt opened the thinking block, ANSWER if it also closed it.
    """

    def __init__(self, dialect: Dialect, begun: Kind | None = None) -> None:
        super().__init__()
        self._dialect = dialect
        states = {None: self._start, Kind.THINKING: self._opened, Kind.ANSWER: self._closed}
        self._state = states[begun]

    @property
    def answering(self) -> bool:
        return self._state != self._start and not self.thinking

    @property
    def thinking(self) -> bool:
        return self._state in (self._opened, self._thinking)

    def _start(self, ended: bool) -> Part:
        answer = self._dialect.answer_opens
        found = self._at_marker(self._dialect.opens, ended)
        unwrapped = self._at_marker(answer, ended) if answer and not found else False
        if found or unwrapped:
            self._state = self._opened if found else self._unwrapped
        elif found is unwrapped is False:
            self._state = self._answer
        return NOTHING

    def _opened(self, ended: bool) -> Part:
        return self._skip_blank(ended, self._thinking)

    def _thinking(self, ended: bool) -> Part:
        closes = self._dialect.closes
        at = self._held.find(closes)
        if at >= 0:
            self._state = self._closed
            return Kind.THINKING, self._take(at, len(closes)).rstrip()
        return Kind.THINKING, self._before(closes, ended)

    def _closed(self, ended: bool) -> Part:
        marker = self._dialect.answer_header + self._dialect.answer_opens
        found = self._at_marker(marker, ended) if marker else False
        if found:
            self._state = self._unwrapped
        elif found is False:
            return self._skip_blank(ended, self._answer)
        return NOTHING

    def _unwrapped(self, ended: bool) -> Part:
        return self._skip_blank(ended, self._wrapped)

    def _wrapped(self, ended: bool) -> Part:
        """Return answer text. The closing marker is recognised only at the end of the output."""
        text, closes = self._held.rstrip(), self._dialect.answer_closes
        if text.endswith(closes):
            certain = text.removesuffix(closes).rstrip()
            return Kind.ANSWER, self._take(len(certain), len(self._held) if ended else 0)
        return Kind.ANSWER, self._before(closes, ended)


class HarmonyReader(Reader):
    """Read messages with headers. The final channel's message extends to the end of the output."""

    def __init__(self) -> None:
        super().__init__()
        self._kind = Kind.ANSWER
        self._state = self._header

    @property
    def answering(self) -> bool:
        return self._state in (self._final, self._answer)

    @property
    def thinking(self) -> bool:
        return self._state == self._message and self._kind is Kind.THINKING

    def _header(self, ended: bool) -> Part:
        header, message, _ = self._held.partition(MESSAGE)
        start = header.lstrip()
        longest = HEADER_CHARACTERS + (0 if message else len(MESSAGE) - 1)
        if len(header) > longest or not any(
            start.startswith(text) or text.startswith(start) for text in HEADER_STARTS
        ):
            self._state = self._answer
        elif message:
            self._take(0, len(header) + len(message))
            self._kind = _channel_kind(header)
            self._state = self._final if self._kind is Kind.ANSWER else self._message
            called = CALLED.search(header) if self.names_calls else None
            if called is not None:
                return Kind.CALLED, called[1]
        elif ended:
            self._take(0, len(header))  # the output ended inside a header
        return NOTHING

    def _message(self, ended: bool) -> Part:
        found = NEXT_MESSAGE.search(self._held)
        if found:
            self._state = self._header
            return self._kind, self._take(found.start(), len(END))
        if ended:
            return self._final(ended)
        kept = max(overlap(self._held, end) for end in MESSAGE_ENDS)
        return self._kind, self._take(len(self._held) - kept)

    def _final(self, ended: bool) -> Part:
        kept = len(END) if self._held.endswith(END) else overlap(self._held, END)
        if ended and not self._held.endswith(END):
            kept = 0
        return self._kind, self._take(len(self._held) - kept, kept if ended else 0)


def _channel_kind(header: str) -> Kind:
    if "to=" in header:
        return Kind.COMMENTARY
    channel = CHANNEL.search(header)
    return CHANNELS.get(channel[1], Kind.ANSWER) if channel else Kind.ANSWER
