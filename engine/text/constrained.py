"""Steers an answer token by token: it ends thinking whose budget is spent, and holds the answer to
a JSON schema. What is thought before the answer is free.

The schema is compiled by the library llguidance, which says of every state which tokens may come
next; this module turns the model's vocabulary into its terms and knows where the answer begins.

Axes: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.errors import ConstraintError, SchemaError
from engine.text.reasoning import HARMONY, Kind, choose, hidden_markers, reader
from engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from engine.model import Model

# One way to write a document, on one line: small models lose themselves in white space.
LAYOUT: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
HARMONY_ANSWER = "<|end|><|start|>assistant<|channel|>final<|message|>"


class Guide:
    """Steers one answer to one prompt.

    schema: a JSON schema as text, or None. budget: tokens that thinking may take, or None. think:
    whether thinking was asked for, None where the model may choose. Raises SchemaError.
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        schema: str | None = None,
        budget: int | None = None,
        think: bool | None = None,
    ) -> None:
        tokenizer = model.tokenizer
        self._tokenizer, self._budget = tokenizer, budget
        self._dialect = choose(model.template, tokenizer)
        self._reader = reader(self._dialect, tokenizer, prompt)
        self._text = tokenizer.stream(hidden_markers(self._dialect, tokenizer))
        self._matcher = None if schema is None else _matcher(tokenizer, schema)
        self._free = ~_marked(tokenizer, sorted(tokenizer.eog_ids))
        self._forced: deque[int] = deque()
        self._door: int | None = None  # a token that opens thinking where the answer may begin
        self._at_start = False
        self._held = False  # whether the schema chooses the token that comes now
        self._thought = 0
        if schema is not None and not (self._reader.answering or self._reader.thinking):
            self._begin(think)

    def allowed(self) -> mx.array | None:
        """Say which tokens may come next: (V,) bool, or None for all of them."""
        if self._reader.thinking and self._thought == self._budget and not self._forced:
            self._forced.extend(self._closing())
        if self._forced:
            return _marked(self._tokenizer, [self._forced[0]])
        if self._matcher is None:
            return None
        self._held = self._at_start or self._reader.answering
        if not self._held:
            return self._free  # thinking must not end the whole
        allowed = _next(self._matcher)
        return allowed if self._door is None else allowed | _marked(self._tokenizer, [self._door])

    def accept(self, token: int) -> None:
        """Take the token that came. Raises ConstraintError if the schema cannot go on."""
        if self._forced:
            self._forced.popleft()
        thinking, leftover = self._reader.thinking, ""
        for kind, text in self._reader.push(self._text.push(token)):
            leftover += text if kind is Kind.ANSWER else ""
        self._thought += thinking and self._reader.thinking
        if self._matcher is not None:
            if self._held and token != self._door:
                _consume(self._matcher, [token])
            elif not self._held and leftover.strip():  # the answer began within this token
                _consume(self._matcher, self._tokenizer.encode(leftover.lstrip()))
        self._held, self._at_start, self._door = False, False, None

    def _begin(self, think: bool | None) -> None:
        """Choose what may come first where the prompt leaves it to the model whether to think."""
        assert self._dialect is not None
        opens = self._tokenizer.encode(self._dialect.opens, markup=True)
        if think or self._dialect is HARMONY:
            self._forced.extend(opens)
            return
        self._at_start = True
        if think is None and len(opens) == 1:
            self._door = opens[0]

    def _closing(self) -> list[int]:
        assert self._dialect is not None
        text = HARMONY_ANSWER if self._dialect is HARMONY else f"\n{self._dialect.closes}\n\n"
        return self._tokenizer.encode(text, markup=True)


def knows_thinking(model: Model) -> bool:
    """Tell whether a model's template or tokens know thinking."""
    return choose(model.template, model.tokenizer) is not None


def check_schema(schema: str, name: str) -> None:
    """Raise SchemaError, naming it, unless this text is a schema that an answer can be held to."""
    from llguidance import LLMatcher

    try:
        wrong, said = LLMatcher.validate_grammar_with_warnings(_grammar(schema))
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}") from error
    if wrong:
        raise SchemaError(f"{name}: {_first_line(said[0])}")


def _grammar(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        return LLMatcher.grammar_from_json_schema(schema, defaults=LAYOUT)
    except ValueError as error:
        raise SchemaError(_first_line(str(error))) from error


def _matcher(tokenizer: Tokenizer, schema: str) -> LLMatcher:
    from llguidance import LLMatcher

    matcher = LLMatcher(_vocabulary(tokenizer), _grammar(schema), log_level=0)
    if matcher.is_error():
        raise SchemaError(_first_line(matcher.get_error()))
    return matcher


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """Put a vocabulary into the library's terms."""
    from llguidance import LLTokenizer, TokenizerWrapper

    if not tokenizer.eog_ids:
        raise SchemaError("no answer can be held to a schema: no token of this model ends one")
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)), eos_token=sorted(tokenizer.eog_ids))


class _Words:
    """What the library asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ends = sorted(tokenizer.eog_ids)
        pieces = tokenizer.pieces()
        self.eos_token_id, self.bos_token_id = ends[0], tokenizer.bos_id
        self.special_token_ids = [id for id, piece in enumerate(pieces) if piece is None]
        # a text of their own, which cannot be written: every token needs one
        self.tokens = [
            b"\xff%d" % id if piece is None else piece for id, piece in enumerate(pieces)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def _next(matcher: LLMatcher) -> mx.array:
    """Ask which tokens may come next: (V,) bool."""
    biases = memoryview(matcher.compute_logit_bias())  # a byte for each token
    allowed = mx.array(biases) != 0  # type: ignore[arg-type]
    if matcher.is_error():
        raise ConstraintError(_first_line(matcher.get_error()))
    return allowed


def _consume(matcher: LLMatcher, tokens: list[int]) -> None:
    if not matcher.consume_tokens(tokens):
        raise ConstraintError(_first_line(matcher.get_error()))


def _marked(tokenizer: Tokenizer, ids: list[int]) -> mx.array:
    """Mark these ids in the vocabulary: (V,) bool."""
    marked = mx.zeros((tokenizer.vocab_size,), dtype=mx.bool_)
    marked[mx.array(ids, dtype=mx.int32)] = True
    return marked


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
