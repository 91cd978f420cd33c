"""Tells a model's thinking from its answer while the text arrives.

Which markers a model writes is a table, chosen from by its chat template and its special tokens.
A marker counts only where the family writes it: thinking begins an output or does not come at all,
and nothing in an answer, whatever it spells, makes it thinking again. Markers, and the blank lines
around them, belong to neither side; all other text is passed on, as soon as it is certain what it
is. This module knows text only, and neither the model nor the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer


class Kind(StrEnum):
    """What a piece of output is; COMMENTARY is what is said to a tool, or about calling one."""

    THINKING = "thinking"
    ANSWER = "answer"
    COMMENTARY = "commentary"


Part = tuple[Kind, str]
NOTHING: Part = (Kind.ANSWER, "")


@dataclass(frozen=True, slots=True)
class Dialect:
    """The markers of a family: around its thinking and, in some, around the answer after that."""

    opens: str
    closes: str
    answer_opens: str = ""
    answer_closes: str = ""

    @property
    def markers(self) -> tuple[str, ...]:
        """Every text that may have to be seen although it is a control token."""
        found = (self.opens, self.closes, self.answer_opens, self.answer_closes)
        return HARMONY_MARKERS if self is HARMONY else tuple(filter(None, found))


HARMONY_MARKERS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
# Messages with a header each: <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>
HARMONY = Dialect("<|channel|>", "<|channel|>")
# The first that fits is a model's: those with more to recognise go before plain <think>.
DIALECTS = (
    HARMONY,  # gpt-oss
    Dialect("<|channel>thought", "<channel|>"),  # Gemma 4
    Dialect("<think>", "</think>", "<response>", "</response>"),  # Granite 3.3
    Dialect("<think>", "</think>", "<answer>", "</answer>"),  # Hunyuan
    Dialect("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    Dialect("[THINK]", "[/THINK]"),  # Mistral, Magistral
    Dialect("◁think▷", "◁/think▷"),  # Kimi-VL
    Dialect("<think>", "</think>"),  # DeepSeek, ERNIE, GLM, Kimi, MiniMax, Qwen, Ring
)
PROMPT_END_TOKENS = 24  # room for the longest marker, cut small, and the white space after it
HEADER_CHARACTERS = 512  # a longer header is none
HEADER_STARTS = (*HARMONY_MARKERS, "to=")
MESSAGE, END = "<|message|>", "<|end|>"
MESSAGE_ENDS = (f"{END}<|start|>", f"{END}<|channel|>")
NEXT_MESSAGE = re.compile(r"<\|end\|>(?=<\|start\|>|<\|channel\|>)")
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
CHANNELS = {"analysis": Kind.THINKING, "commentary": Kind.COMMENTARY}


def switches(think: bool | None, effort: str | None = None) -> dict[str, Any]:
    """Ask for thinking or for none, and how much, by every name that templates know the wish by.

    None leaves it to the template.
    """
    wish: dict[str, Any] = {} if think is None else {"enable_thinking": think, "thinking": think}
    effort = "low" if think is False else effort
    return wish if effort is None else {**wish, "reasoning_effort": effort}


def choose(template: ChatTemplate | None, tokenizer: Tokenizer) -> Dialect | None:
    """Find how a model writes its thinking; None for one that cannot or has no template."""
    if template is None:
        return None

    def known(text: str) -> bool:
        return (
            text in template.source or text in tokenizer.control or text in tokenizer.user_defined
        )

    fitting = (
        row
        for row in DIALECTS
        if (known(row.opens) or known(row.closes)) and known(row.answer_opens + row.answer_closes)
    )
    return next(fitting, None)


def hidden_markers(dialect: Dialect | None, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of the markers that decoding would drop, because they are control tokens."""
    markers = dialect.markers if dialect is not None else ()
    return frozenset(tokenizer.control[text] for text in markers if text in tokenizer.control)


def reader(dialect: Dialect | None, tokenizer: Tokenizer, prompt: Sequence[int]) -> Reader:
    """Begin to read what follows a prompt, which may have opened the thinking, or closed it."""
    if dialect is None:
        return Reader()
    if dialect is HARMONY:
        return HarmonyReader()
    end = list(prompt[-PROMPT_END_TOKENS:])
    text = tokenizer.decode(end, markup=True).rstrip()
    markers = (dialect.opens, dialect.closes)
    marker = next((marker for marker in markers if text.endswith(marker)), "")
    # Where the marker is a token, the same letters without it are a message's.
    id = {**tokenizer.user_defined, **tokenizer.control}.get(marker)
    if not marker or (id is not None and id not in end):
        return TagReader(dialect)
    return TagReader(dialect, Kind.THINKING if marker == dialect.opens else Kind.ANSWER)


def overlap(text: str, marker: str) -> int:
    """Measure the longest end of `text` that begins `marker` without being all of it."""
    sizes = range(min(len(text), len(marker) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(marker[:size])), 0)


class Reader:
    """Takes text in pieces and gives it back in parts. This one knows no thinking."""

    def __init__(self) -> None:
        self._held = ""
        self._state = self._answer  # the method that reads what comes now

    @property
    def answering(self) -> bool:
        """Whether it is certain that the answer has begun, or comes next."""
        return True

    @property
    def thinking(self) -> bool:
        """Whether it is certain that what comes next is thinking."""
        return False

    def push(self, piece: str) -> Iterator[Part]:
        """Take the next text; give what is certain now."""
        self._held += piece
        yield from self._read(False)

    def finish(self) -> Iterator[Part]:
        """Give what was held back: the text has ended."""
        yield from self._read(True)

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
        """Cut `size` characters off what is held, and drop `skip` more."""
        text, self._held = self._held[:size], self._held[size + skip :]
        return text

    def _at_text(self, ended: bool) -> bool:
        """Drop blank lines; tell whether something else has come, or nothing will."""
        text = self._held.lstrip()
        if text or ended:
            space = self._held[: len(self._held) - len(text)]
            self._held = space[space.rfind("\n") + 1 :] + text
        return bool(text) or ended

    def _at_marker(self, marker: str, ended: bool) -> bool | None:
        """Drop white space and a marker; False if something else is there, None if it may come."""
        text = self._held.lstrip()
        if text.startswith(marker):
            self._held = text[len(marker) :]
            return True
        return None if marker.startswith(text) and not ended else False


class TagReader(Reader):
    """Reads thinking between two markers, and then the answer, maybe between two others.

    begun: THINKING if the prompt has opened it, ANSWER if it has also closed it.
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
        found = self._at_marker(self._dialect.opens, ended)
        if found is not None:
            self._state = self._opened if found else self._answer
        return NOTHING

    def _opened(self, ended: bool) -> Part:
        if self._at_text(ended):
            self._state = self._thinking
        return NOTHING

    def _thinking(self, ended: bool) -> Part:
        closes = self._dialect.closes
        at = self._held.find(closes)
        if at >= 0:
            self._state = self._closed
            return Kind.THINKING, self._take(at, len(closes)).rstrip()
        certain = self._held
        if not ended:
            certain = certain[: len(certain) - overlap(certain, closes)].rstrip()
        return Kind.THINKING, self._take(len(certain))

    def _closed(self, ended: bool) -> Part:
        marker = self._dialect.answer_opens
        found = self._at_marker(marker, ended) if marker else False
        if found:
            self._state = self._unwrapped
        elif found is False and self._at_text(ended):
            self._state = self._answer
        return NOTHING

    def _unwrapped(self, ended: bool) -> Part:
        if self._at_text(ended):
            self._state = self._wrapped
        return NOTHING

    def _wrapped(self, ended: bool) -> Part:
        """Pass the answer on; its closing marker is one only at the very end."""
        text, closes = self._held.rstrip(), self._dialect.answer_closes
        if text.endswith(closes):
            certain = text.removesuffix(closes).rstrip()
            return Kind.ANSWER, self._take(len(certain), len(self._held) if ended else 0)
        certain = self._held
        if not ended:
            certain = certain[: len(certain) - overlap(certain, closes)].rstrip()
        return Kind.ANSWER, self._take(len(certain))


class HarmonyReader(Reader):
    """Reads messages with headers. The final channel's is the last: nothing ends it but the end."""

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
        elif ended:
            self._take(0, len(header))  # cut off within the markup
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
