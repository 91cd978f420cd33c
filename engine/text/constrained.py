"""Constrain answers to a JSON schema, token by token, and limit thinking to a token budget.

The llguidance library compiles the schema and computes which tokens are allowed in each state. This
module determines where the answer begins. The schema does not apply to the thinking before it.
Axes: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import mlx.core as mx

from engine.errors import ConstraintError, SchemaError
from engine.text.json_document import KeyTracker
from engine.text.json_grammar import grammar, require_enforceable
from engine.text.reasoning import HARMONY, Kind, control_markers, find_dialect, new_reader

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from engine.text.chat_template import ChatTemplate
    from engine.text.tokenizer import Tokenizer

HARMONY_ANSWER = "<|end|><|start|>assistant<|channel|>final<|message|>"


@dataclass(frozen=True)
class Constraint:
    """A grammar, in the grammar engine's form.

    opens: empty if the answer must match from its beginning. Otherwise the text from each `opens`
    on must, and other text is free. at_once: the thinking must match too.
    """

    grammar: str
    opens: str = ""
    at_once: bool = False


class Guide:
    """The constraints on the answer to one prompt.

    schema: a JSON schema as text, or None. budget: the maximum number of thinking tokens, or None
    for no limit. think: whether the user turned thinking on or off; None lets the model decide.
    constraint: a grammar instead of a schema. Raises SchemaError if the schema is invalid or
    unsupported.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        prompt: list[int],
        schema: str | None = None,
        budget: int | None = None,
        think: bool | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._tokenizer, self._budget = tokenizer, budget
        self._constraint = constraint
        self._dialect = find_dialect(tokenizer, template)
        self._reader = new_reader(self._dialect, tokenizer, prompt)
        self._text = tokenizer.stream(control_markers(self._dialect, tokenizer))
        self._matcher = None if schema is None else _Matcher(tokenizer, grammar(schema))
        self._answer = ""  # since the last constrained part
        if constraint is not None and not constraint.opens:
            self._matcher = _Matcher(tokenizer, constraint.grammar, json=False)
        self._not_an_end = ~_mask(tokenizer, sorted(tokenizer.eog_ids))
        self._forced_tokens: deque[int] = deque()
        self._think_opener: int | None = None  # the token that may start thinking, if any
        self._at_start = False
        self._constrained_now = False  # whether the schema applies to the next token
        self._thought = 0
        decides = self._matcher is not None and not (constraint and constraint.at_once)
        if decides and not (self._reader.answering or self._reader.thinking):
            self._begin(think)

    def allowed(self) -> mx.array | None:
        """Return a mask of the tokens that may come next, (V,) bool, or None to allow all."""
        if self._reader.thinking and self._thought == self._budget and not self._forced_tokens:
            self._forced_tokens.extend(self._closing())
        if self._forced_tokens:
            return _mask(self._tokenizer, [self._forced_tokens[0]])
        if self._matcher is None:
            return None
        at_once = self._constraint is not None and self._constraint.at_once
        self._constrained_now = self._at_start or at_once or self._reader.answering
        if not self._constrained_now:
            return self._not_an_end  # the output must not end during the thinking
        allowed = self._matcher.allowed()
        opener = self._think_opener
        return allowed if opener is None else allowed | _mask(self._tokenizer, [opener])

    def accept(self, token: int) -> None:
        """Advance by one token. Raises ConstraintError if the schema does not allow the token."""
        if self._forced_tokens:
            self._forced_tokens.popleft()
        thinking, leftover = self._reader.thinking, ""
        for kind, text in self._reader.push(self._text.push(token)):
            leftover += text if kind is Kind.ANSWER else ""
        self._thought += thinking and self._reader.thinking
        if self._constraint is not None and self._constraint.opens:
            self._follow(token, leftover, self._constraint)
        elif self._matcher is not None:
            if self._constrained_now and token != self._think_opener:
                self._matcher.accept([token])
            elif not self._constrained_now and leftover.strip():  # this token begins the answer
                self._matcher.accept(self._tokenizer.encode(leftover.lstrip()))
        self._constrained_now, self._at_start, self._think_opener = False, False, None

    def _follow(self, token: int, text: str, constraint: Constraint) -> None:
        """Start the grammar where the answer opens it, and end it when it is complete."""
        if self._matcher is not None:
            self._matcher.accept([token])
        else:
            self._answer += text
            _, found, rest = self._answer.partition(constraint.opens)
            if found:
                self._matcher = _Matcher(self._tokenizer, constraint.grammar, json=False)
                self._matcher.accept(self._tokenizer.encode(found + rest, markup=True))
        if self._matcher is not None and self._matcher.complete:
            self._matcher, self._answer = None, ""

    def _begin(self, think: bool | None) -> None:
        """Set which tokens may come first if the prompt leaves open whether the model thinks."""
        assert self._dialect is not None
        opens = self._tokenizer.encode(self._dialect.opens, markup=True)
        if think or self._dialect is HARMONY:
            self._forced_tokens.extend(opens)
            return
        self._at_start = True
        if think is None and len(opens) == 1:
            self._think_opener = opens[0]

    def _closing(self) -> list[int]:
        assert self._dialect is not None
        text = HARMONY_ANSWER if self._dialect is HARMONY else f"\n{self._dialect.closes}\n\n"
        return self._tokenizer.encode(text, markup=True)


def check_schema(schema: str, name: str) -> None:
    """Raise SchemaError if answers cannot be constrained to this JSON schema.

    The error message starts with `name`.
    """
    try:
        require_enforceable(schema)
    except SchemaError as error:
        raise SchemaError(f"{name}: {error}") from error


class _Matcher:
    """The state of a document: what the grammar engine allows next, without repeated keys.

    json: the whole document is JSON, so that keys can be compared.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: str, json: bool = True) -> None:
        from llguidance import LLMatcher

        self._json = json
        self._engine = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
        if self._engine.is_error():
            raise SchemaError("the schema is too complex for this model's vocabulary")
        self._pieces, self._quoted = _pieces(tokenizer)
        self._keys = KeyTracker()

    def allowed(self) -> mx.array:
        """Return a mask of the tokens that may come next: (V,) bool. Raises ConstraintError."""
        biases = memoryview(self._engine.compute_logit_bias())  # one byte per token
        allowed = mx.array(biases) != 0  # type: ignore[arg-type]
        repeated = [
            id
            for id, piece, quotes in (self._quoted if self._json else ())
            if biases[id] and self._keys.may_repeat(quotes) and self._keys.repeats(piece)
        ]
        if repeated:
            allowed[mx.array(repeated, dtype=mx.int32)] = False
        if self._engine.is_error() or (repeated and not allowed.any().item()):
            raise ConstraintError("the model cannot continue the answer within the schema")
        return allowed

    def accept(self, tokens: list[int]) -> None:
        """Advance. Raises ConstraintError if the schema does not allow the tokens.

        The same if the engine gives up, as with 500 keys of which each may be absent.
        """
        if not self._engine.consume_tokens(tokens):
            gave_up = "TooComplex" in self._engine.get_error()
            problem = "the schema is too complex" if gave_up else "the model left the schema"
            raise ConstraintError(problem)
        if self._json:
            self._keys.push(b"".join(self._pieces[token] or b"" for token in tokens))

    @property
    def complete(self) -> bool:
        """True if the document may end here."""
        return bool(self._engine.is_accepting())


@lru_cache(maxsize=1)
def _pieces(tokenizer: Tokenizer) -> tuple[list[bytes | None], list[tuple[int, bytes, int]]]:
    """Return each token's bytes, and (id, bytes, count) of those with quotation marks."""
    pieces = tokenizer.pieces()
    quoted = [(id, p, p.count(b'"')) for id, p in enumerate(pieces) if p and b'"' in p]
    return pieces, quoted


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    if not tokenizer.eog_ids:
        raise SchemaError("this model has no end-of-generation token, which a JSON schema requires")
    wrapped = TokenizerWrapper(_TokenizerAdapter(tokenizer))
    return LLTokenizer(wrapped, eos_token=sorted(tokenizer.eog_ids))


class _TokenizerAdapter:
    """Provide the attributes that llguidance's TokenizerWrapper reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = tokenizer.pieces()
        self.eos_token_id, self.bos_token_id = min(tokenizer.eog_ids), tokenizer.bos_id
        self.special_token_ids = [id for id, piece in enumerate(pieces) if piece is None]
        # Each token needs a unique text. The byte \xff never occurs in UTF-8, so nothing clashes.
        self.tokens = [piece or b"\xff%d" % id for id, piece in enumerate(pieces)]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def _mask(tokenizer: Tokenizer, ids: list[int]) -> mx.array:
    """Return a mask that is True for these ids: (V,) bool."""
    mask = mx.zeros((tokenizer.vocab_size,), dtype=mx.bool_)
    mask[mx.array(ids, dtype=mx.int32)] = True
    return mask
