"""Render chat messages into a prompt with the template in the model file.

The template is untrusted code and runs in a child process. Only text that the template writes is
markup. Before rendering, control tokens in messages are replaced with random placeholders. Their
original text is restored once the markup in the rendered prompt has been recognised.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.errors import TemplateError
from engine.text.marks import Marks
from engine.text.message_forms import REASONING_FIELDS, Message, render_in_full
from engine.text.sandbox import Sandbox
from engine.text.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
# In messages with these roles, the template sees user-defined tokens such as <think>, because it
# splits past answers at them. In all other messages they are plain text.
TRUSTED_ROLES = ("system", "developer", "assistant", "model")
TAG = re.compile(r"[<\[].+[>\]]", re.DOTALL)
# Special tokens that templates add to text, although a file may lack them.
TOKEN_NAMES = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")


def from_metadata(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, sandbox: Sandbox | None = None
) -> ChatTemplate | None:
    """Return the chat template in a file's metadata, or None if there is none."""
    source = metadata.get(KEY)
    if source is None:
        return None
    if not isinstance(source, str):
        raise TemplateError(f"{KEY} must be a string, got {type(source).__name__}")
    return ChatTemplate(source, tokenizer, sandbox)


class ChatTemplate:
    """A chat template with its tokenizer. digest: the template's SHA-256, in hex.

    sandbox: the sandbox that renders the template; by default, a new one. folded: whether the last
    prompt has its system text in a user message, because the template takes no system message.
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
        self._tokenizer, self._clock = tokenizer, clock
        self._sandbox = sandbox or Sandbox()
        self.folded = False

    def render(self, messages: Sequence[Message], **variables: Any) -> str:
        """Return the prompt as text, like `apply_chat_template` in transformers.

        variables: the standard variables `tools` and `add_generation_prompt` (default True), and
        any that the template defines, such as `enable_thinking`. Raises TypeError if a value is not
        plain data, or TemplateError if the template fails or rejects the conversation.
        """
        quotes = _Quotes(Marks({}), Marks({}))
        said = [quotes.message(_with_reasoning(message)) for message in messages]
        return self._render(said, quotes.data(variables, trusted=True))

    def encode(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """Return the prompt as token ids, with BOS if the model requires it.

        Only text that the template itself writes can become control tokens. The arguments are the
        same as for `render`. If the template leaves out a message, its content is passed as typed
        parts, or the system text in the user message. Raises MessageLeftOut if neither helps.
        """
        tokenizer = self._tokenizer
        quotes = _Quotes(self._control, self._special)
        text, form = render_in_full(
            self.source,
            [quotes.message(_with_reasoning(message)) for message in messages],
            lambda messages: self._render(messages, quotes.data(variables, trusted=True)),
        )
        self.folded = len(form) < len(messages)
        ids = tokenizer.encode_quoted(text, quotes.words)
        bos = tokenizer.bos_id
        if tokenizer.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    @functools.cached_property
    def _control(self) -> Marks:
        return Marks({**self._tokenizer.control, **self._tokenizer.unknown})

    @functools.cached_property
    def _special(self) -> Marks:
        tokenizer = self._tokenizer
        tags = {text: id for text, id in tokenizer.user_defined.items() if TAG.fullmatch(text)}
        return Marks({**tokenizer.control, **tokenizer.unknown, **tags})

    @functools.cached_property
    def _token_variables(self) -> list[str]:
        """Names of special tokens, except those for which the template has its own default."""
        names = [f"{name}_token" for name in TOKEN_NAMES]
        return [name for name in names if not re.search(rf"\b{name}\s+is\b", self.source)]

    def _render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        context = {
            **dict.fromkeys(self._token_variables, ""),
            **self._tokenizer.special_texts(),
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **variables,
        }
        return self._sandbox.render(self.source, context, self._clock())


class _Quotes:
    """Replace special tokens in text with placeholders. `words` maps these back to the tokens."""

    def __init__(self, control: Marks, special: Marks) -> None:
        self._control, self._special = control, special
        self._secret = secrets.token_hex(8)
        self._stand_ins: dict[str, str] = {}
        self.words: dict[str, str] = {}

    def message(self, message: Message) -> Any:
        return self.data(message, trusted=message.get("role") in TRUSTED_ROLES)

    def data(self, value: Any, trusted: bool) -> Any:
        """Return plain data with the special tokens in all strings replaced by placeholders.

        Raises TypeError for any other value.
        """
        if isinstance(value, str):
            return self._text(str(value), trusted)
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    given = type(key).__name__
                    raise TypeError(f"chat template input must have string keys, got {given}")
            return {self.data(key, trusted): self.data(value[key], trusted) for key in value}
        if isinstance(value, list | tuple):
            return [self.data(item, trusted) for item in value]
        raise TypeError(f"chat template input must be plain data, got {type(value).__name__}")

    def _text(self, text: str, trusted: bool) -> str:
        parts: list[str] = []
        at = 0
        for start, end, _ in (self._control if trusted else self._special).find(text):
            parts += [text[at:start], self._stand_in(text[start:end])]
            at = end
        return "".join([*parts, text[at:]])

    def _stand_in(self, literal: str) -> str:
        # Use only letters and digits, so that template filters do not change or split the word.
        word = self._stand_ins.setdefault(literal, f"q{self._secret}x{len(self.words)}q")
        self.words[word] = literal
        return word


def _with_reasoning(message: Message) -> Message:
    """Return the message with its reasoning copied to all fields that templates read."""
    found = [message[name] for name in REASONING_FIELDS if message.get(name) is not None]
    return {"thinking": found[0], **message, "reasoning_content": found[0]} if found else message
