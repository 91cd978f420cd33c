"""Chat messages to a prompt, by the template in the model file.

The template is foreign code and runs in a process of its own. What it writes is markup; what the
messages say is not, and stays text whatever it spells: before the template sees a message, the
texts of control tokens in it are replaced by words that nobody can guess, and those are put back
after the markup has been cut out. This module knows no terminal and no model.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.errors import TemplateError
from engine.text.sandbox import Sandbox
from engine.text.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
# Whose user-defined tokens, such as <think>, a template may act on: it splits an assistant's past
# at them. In anyone else's text they are words.
TRUSTED_ROLES = ("system", "developer", "assistant", "model")
TAG = re.compile(r"[<\[].+[>\]]", re.DOTALL)
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

Message = Mapping[str, Any]


def from_metadata(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, sandbox: Sandbox | None = None
) -> ChatTemplate | None:
    """Take the chat template from a file's metadata; None if there is none."""
    source = metadata.get(KEY)
    if source is None:
        return None
    if not isinstance(source, str):
        raise TemplateError(f"{KEY} is a {type(source).__name__}; expected str")
    return ChatTemplate(source, tokenizer, sandbox)


class ChatTemplate:
    """A template and the tokenizer it writes for. `digest` is the SHA-256 of the source, in hex.

    sandbox: where it runs; None is one of its own, started when something is rendered.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        sandbox: Sandbox | None = None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self.digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._tokenizer = tokenizer
        self._clock = clock
        self._sandbox = sandbox or Sandbox()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write the prompt as text, exactly as the template's author sees it.

        `variables` are the template's own switches, such as enable_thinking. Everything must be
        plain data: str, int, float, bool, None, lists and dicts of these (TypeError otherwise).
        Raises TemplateError if the template fails or refuses the conversation.
        """
        plain = _Quotes({}, {})
        return self._render(plain, messages, tools, add_generation_prompt, variables)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Write the prompt as ids, BOS included where the model wants it.

        As `render`, but only the template's own words can become control tokens.
        """
        tokenizer = self._tokenizer
        tags = {text: id for text, id in tokenizer.user_defined.items() if TAG.fullmatch(text)}
        quotes = _Quotes({**tokenizer.control, **tokenizer.unknown}, tags)
        text = self._render(quotes, messages, tools, add_generation_prompt, variables)
        ids = tokenizer.encode_quoted(text, quotes.words)
        bos = tokenizer.bos_id
        if tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def _render(
        self,
        quotes: _Quotes,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        context = {
            **self._tokenizer.special_texts(),
            "messages": [quotes.message(_with_reasoning(message)) for message in messages],
            "tools": quotes.data(tools, trusted=True),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{name: quotes.data(value, trusted=True) for name, value in variables.items()},
        }
        return self._sandbox.render(self.source, context, self._clock())


class _Quotes:
    """Stands secret words in for texts of special tokens; `words` maps each back to its text."""

    def __init__(self, control: Mapping[str, int], tags: Mapping[str, int]) -> None:
        # Longest first, so that a text within another is not cut out of it.
        self._control = sorted(control, key=len, reverse=True)
        self._all = sorted([*control, *tags], key=len, reverse=True)
        self._secret = secrets.token_hex(8)
        self._stand_ins: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def message(self, message: Message) -> Any:
        """Rebuild a message, quoted as its role demands."""
        return self.data(message, trusted=message.get("role") in TRUSTED_ROLES)

    def data(self, value: Any, trusted: bool) -> Any:
        """Rebuild plain data with every string in it quoted; TypeError for anything else."""
        if isinstance(value, str):
            return self._text(str(value), trusted)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {
                self.data(_name(key), trusted): self.data(item, trusted)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.data(item, trusted) for item in value]
        raise TypeError(f"chat templates take plain data, not {type(value).__name__}")

    def _text(self, text: str, trusted: bool) -> str:
        literals = self._control if trusted else self._all
        found = [literal for literal in literals if literal in text]
        if not found:
            return text
        return re.sub("|".join(map(re.escape, found)), self._stand_in, text)

    def _stand_in(self, match: re.Match[str]) -> str:
        literal = match[0]
        if literal not in self._stand_ins:
            # Letters and digits only: nothing a template does to text takes it apart.
            word = f"q{self._secret}x{len(self.words)}q"
            self._stand_ins[literal] = word
            self.words[word] = literal
        return self._stand_ins[literal]


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"chat templates take names, not {type(key).__name__}, as keys")
    return key


def _with_reasoning(message: Message) -> Message:
    """Offer an assistant's reasoning under every name that templates read it by."""
    found = [message[name] for name in REASONING_FIELDS if message.get(name) is not None]
    if not found:
        return message
    return {"thinking": found[0], **message, "reasoning_content": found[0]}
