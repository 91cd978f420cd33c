"""A schema is kept to the letter, or refused before a model is loaded."""

from __future__ import annotations

import functools
import json
import random
import re

import pytest

from engine.errors import AnswerMismatch, ConstraintError, SchemaError
from engine.text.constrained import Guide, check_schema
from engine.text.json_document import KeyTracker, require_match
from engine.text.tokenizer import Tokenizer, from_metadata
from support.vocab import byte_vocabulary

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
BOUNDS = ("0", "1", "-1", "0.5", "-0.5", "0.05", "0.15", "1.5", "-1.5", "10", "-3.25", "99", "1e3")
STEPS = ("0.1", "0.01", "0.25", "3", "0.5", "1.5", "7")
STRINGS = (
    *('"maxLength": 3', '"minLength": 1, "maxLength": 2', '"enum": ["é", "x", "x"]'),
    *('"pattern": "^[a-c]{1,3}$"', '"pattern": "b"', '"format": "date"'),
)
NAMES = ("a", "b", "xa", "é", 'q"')
LIBRARIES = re.compile(r"llguidance|jsonschema|referencing|NoExtension|derivre|regex parse")


@functools.cache
def tokenizer() -> Tokenizer:
    return from_metadata(byte_vocabulary(["<|im_end|>"]))


@functools.cache
def pieces() -> list[bytes]:
    return [piece or b"" for piece in tokenizer().pieces()]


def document(schema: str, choose: random.Random, limit: int = 120) -> str | None:
    """A document of a schema, chosen at random; None for one that does not end in time."""
    guide, written = Guide(tokenizer(), None, [1], schema), bytearray()
    for count in range(limit * 2):
        mask = guide.allowed()
        assert mask is not None
        allowed = [id for id, kept in enumerate(mask.tolist()) if kept]
        assert allowed
        ends = [id for id in allowed if id in tokenizer().eog_ids]
        if ends and (len(allowed) == 1 or choose.random() < 0.3 or count > limit):
            return written.decode(errors="surrogateescape")
        going = [id for id in allowed if id not in ends]
        closing = [id for id in going if pieces()[id] in (b'"', b"}", b"]")]
        hurried = closing and (count > limit // 2 or choose.random() < 0.2)
        plain = [id for id in going if pieces()[id].isascii() and pieces()[id] != b"\\"]
        id = choose.choice(closing if hurried else plain or going)
        written += pieces()[id]
        guide.accept(id)
    return None


def numbers(choose: random.Random) -> str:
    keys = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    rows = [f'"{key}": {choose.choice(BOUNDS)}' for key in keys if choose.random() < 0.35]
    if choose.random() < 0.4:
        rows.append(f'"multipleOf": {choose.choice(STEPS)}')
    return ", ".join(rows)


def schema_of(choose: random.Random, depth: int = 2) -> str:
    """A small random schema, as text: it may be one that nothing matches."""
    within = functools.partial(schema_of, choose, depth - 1)
    kind = choose.choice(TYPES if depth else TYPES[:5])
    rows = [f'"type": "{kind}"']
    if kind in ("integer", "number"):
        rows.append(numbers(choose))
    elif kind == "string":
        rows.append(choose.choice(STRINGS))
    elif kind == "array":
        rows.append(f'"items": {within()}, "maxItems": {choose.choice((1, 2))}')
        if choose.random() < 0.4:
            rows.append(f'"minItems": 1, "prefixItems": [{within()}]')
    elif kind == "object":
        names = choose.sample(NAMES, 2)
        fields = ", ".join(f"{json.dumps(name)}: {within()}" for name in names)
        rows.append(f'"properties": {{{fields}}}')
        if choose.random() < 0.5:
            rows.append(f'"required": {json.dumps(choose.sample(NAMES, 2))}')
        if choose.random() < 0.5:
            rows.append(f'"additionalProperties": {choose.choice(("false", within()))}')
        if choose.random() < 0.3:
            rows.append(f'"patternProperties": {{"^x": {within()}}}')
        if choose.random() < 0.3:
            rows.append(choose.choice(('"minProperties": 2', '"maxProperties": 2')))
    if choose.random() < 0.15:
        rows = (
            [f'"{choose.choice(("anyOf", "oneOf"))}": [{within()}, {within()}]'] if depth else rows
        )
    if choose.random() < 0.08:
        rows.append(
            choose.choice(('"not": {}', '"uniqueItems": true', '"const": 12345678901234567'))
        )
    return "{" + ", ".join(filter(None, rows)) + "}"


@pytest.mark.parametrize("seed", range(4))
def test_a_random_schema_is_kept_or_refused(seed: int):
    choose, kept, refused = random.Random(seed), 0, 0
    for _ in range(40):
        schema = schema_of(choose)
        try:
            check_schema(schema, "file.json")
        except SchemaError as error:
            assert not LIBRARIES.search(str(error)) and "\n" not in str(error)
            refused += 1
            continue
        for _ in range(2):
            try:
                text = document(schema, choose)
            except ConstraintError:
                continue  # exit code 1: no document, but no wrong one either
            if text is not None and "E" not in text.upper():  # 1e99999999999999999999 is no number
                require_match(text, schema)
                kept += 1
    assert kept > 20 and refused > 2


REFUSED = {
    '{"enum": [1234567890123456789]}': "`enum` at #: 1234567890123456789 has more digits",
    '{"const": {"a": [9007199254740993]}}': "`const` at #: 9007199254740993 has more digits",
    '{"const": 1e400}': "`const` at #",
    '{"multipleOf": 0.07}': "`multipleOf` at #: 0.07 has more digits",
    '{"type": "integer", "multipleOf": 12345678901}': "`multipleOf` at #",
    '{"type": "integer", "minimum": 9007199254740993, "maximum": 9007199254740993}': "no value",
    '{"type": "integer", "minimum": 5, "maximum": 3}': "`minimum` at #: no value matches",
    '{"$ref": "#"}': "`$ref` at #: it leads back to itself",
    '{"anyOf": [{"$ref": "#"}]}': "`$ref` at #/anyOf/0: it leads back",
    '{"type": "array", "items": {"$ref": "#"}, "minItems": 1}': "`$ref` at #/items",
    '{"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#"}}': "leads back",
    '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "properties": {"b": {"$ref": "#/$defs/a"}}}': "back",
    '{"properties": {"a/b": {"not": {}}}}': "`not` at #/properties/a~1b: this keyword is not",
    '{"uniqueItems": true}': "`uniqueItems` at #: this keyword is not supported",
    '{"if": {}, "then": {}}': "`if` at #",
    '{"dependentRequired": {}}': "`dependentRequired` at #",
    '{"type": "string", "minLenght": 3}': "unknown keyword. Did you mean minLength?",
    '{"oneOf": [{"type": "integer"}, {"type": "number"}]}': "`oneOf` at #: its options must differ",
    '{"type": "string", "pattern": "(?=a)"}': "`pattern` at #: (?=a) is not supported",
    '{"type": "string", "format": "nonsense"}': "`format` at #: nonsense is not supported",
    '{"type": "nonsense"}': "`type` at #: the value is not one that JSON Schema allows",
    '{"properties": {"a": {"required": "b"}}}': "`required` at #/properties/a",
    '{"$schema": "http://example.org/x"}': "`$schema` at #",
    '{"$ref": "http://example.org/x"}': "`$ref` at #: 'http://example.org/x' is not a place",
    '{"$ref": "#/nowhere"}': "there is nothing at '#/nowhere'",
    '{"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2}': "every key",
    '{"type": "object", "required": ["y"], "additionalProperties": false}': "no value matches",
    '{"enum": [1], "enum": [2]}': "the key 'enum' appears twice",
    '{"maximum": NaN}': "NaN is not a JSON number",
    r'{"const": "\ud800"}': "half of a surrogate pair",
    r'{"properties": {"\udc00": {}}}': "half of a surrogate pair",
    r'{"pattern": "\ud800"}': "half of a surrogate pair",
    '{"anyOf": [{"type": "null"}, {"$ref": "#"}]}': "`$ref` at #/anyOf/1: it leads back to itself",
    '{"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {}]}, '
    '"b": {"oneOf": [{"$ref": "#/$defs/a"}]}}}': "it leads back to itself",
    '{"items": ' * 600 + "{}" + "}" * 600: "",
}


@pytest.mark.parametrize(("schema", "said"), REFUSED.items(), ids=lambda text: text[:60])
def test_what_cannot_be_kept_is_refused_and_the_place_is_named(schema: str, said: str):
    with pytest.raises(SchemaError) as caught:
        check_schema(schema, "file.json")
    assert said in str(caught.value) and not LIBRARIES.search(str(caught.value))


# What a schema allows, however the engine rounds its numbers.
KEPT = {
    '{"type": "number", "multipleOf": 0.1, "minimum": 0.05, "maximum": 0.15}': {"0.1"},
    '{"type": "number", "multipleOf": 0.07, "minimum": 0, "exclusiveMaximum": 0.2}': {
        *("0", "0.07", "0.14")
    },
    '{"type": "integer", "multipleOf": 1.5, "minimum": 1, "maximum": 5}': {"3"},
    '{"const": 9007199254740994}': {"9007199254740994"},
    '{"enum": ["\u00e9", "\u00e9", 1.0]}': {'"é"', "1"},
    '{"type": "object", "properties": {"é": {"const": 1}}, "required": ["é"], '
    '"additionalProperties": false}': {'{"é": 1}'},
}


@pytest.mark.parametrize("schema", KEPT)
def test_what_can_be_kept_is_kept_exactly(schema: str):
    check_schema(schema, "file.json")
    assert {document(schema, random.Random(seed)) for seed in range(12)} == KEPT[schema]


@pytest.mark.parametrize(
    "bounds",
    [
        '"exclusiveMinimum": 0, "maximum": 0.5',
        '"minimum": -1.5, "exclusiveMaximum": -1',
        '"minimum": -9223372036854775808, "maximum": 9223372036854775807',
        '"exclusiveMinimum": 9007199254740993',
        '"exclusiveMaximum": 0.3, "minimum": 0.1',
    ],
)
def test_bounds_are_met_to_the_last_digit(bounds: str):
    schema = f'{{"type": "number", {bounds}}}'
    check_schema(schema, "file.json")
    for seed in range(12):
        text = document(schema, random.Random(seed))
        assert text is None or not require_match(text, schema)


def test_keys_of_one_object_differ_so_their_count_is_true():
    values = '"additionalProperties": {"const": 1}'
    schema = f'{{"type": "object", {values}, "minProperties": 3, "maxProperties": 3}}'
    check_schema(schema, "file.json")
    for seed in range(8):
        text = document(schema, random.Random(seed))
        assert text is None or len(json.loads(text)) == text.count(": 1") == 3


def test_where_no_key_is_left_the_answer_fails():
    keys = '"patternProperties": {"^a$": {"const": 1}}, "additionalProperties": false'
    schema = f'{{"type": "object", {keys}, "minProperties": 2}}'
    with pytest.raises(ConstraintError, match="cannot continue the answer within the schema"):
        document(schema, random.Random(1))


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ('{"a": 1, "b": {"a": 2}}', False),
        ('{"a": 1, "a": 2}', True),
        ('[{"a": 1}, {"a": 1}]', False),
        (r'{"\u0061": "a\"", "a": 2}', True),
        ('{"a": "a", "b": ["a", "b"]}', False),
        ('{"": 1, "": 1}', True),
    ],
)
def test_a_repeated_key_is_seen_however_the_text_is_cut(text: str, repeats: bool):
    for size in (1, 2, 3, 7, 100):
        tracker, seen, data = KeyTracker(), False, text.encode()
        for piece in (data[at : at + size] for at in range(0, len(data), size)):
            told = tracker.may_repeat(piece.count(b'"')) and tracker.repeats(piece)
            seen = not tracker.push(piece) or seen
            assert told <= seen
        assert seen == repeats


MISMATCHES = {
    ("3", '{"maximum": 2}'): "`maximum` at #",
    ('{"a": [1, "x"]}', '{"properties": {"a": {"items": {"type": "integer"}}}}'): "`type` at #/a/1",
    ("0.30000000000000001", '{"multipleOf": 0.1}'): "`multipleOf` at #",
    ("9007199254740993", '{"const": 9007199254740992}'): "`const` at #",
    ("1e9999", '{"multipleOf": 3}'): "",
    ('"2023-02-29"', '{"format": "date"}'): "`format` at #",
    ('"1900-02-29T00:00:00Z"', '{"format": "date-time"}'): "`format` at #",
    ('{"a": 1, "a": 2}', "{}"): "the key 'a' appears twice",
    ('{"a": ', "{}"): "invalid JSON at line 1, column 7",
    ("1 2", "{}"): "invalid JSON",
    ("", "{}"): "there is no JSON",
    ("NaN", "{}"): "NaN is not a JSON number",
    ("1" + "0" * 5000, '{"maximum": 5}'): "`maximum` at #",
    ('{"a": 1}', '{"patternProperties": {"^(?<n>a)$": {"type": "null"}}}'): "`type` at #/a",
    (
        '{"b": 1}',
        '{"patternProperties": {"^(?<n>a)$": {}}, "additionalProperties": false}',
    ): "`additionalProperties` at #",
    (r'"é\n"', r'{"pattern": "^\\w+$"}'): "`pattern` at #",
}


@pytest.mark.parametrize(("text", "schema"), MISMATCHES)
def test_an_answer_that_breaks_its_schema_is_told_with_the_place(text: str, schema: str):
    with pytest.raises(AnswerMismatch) as caught:
        require_match(text, schema)
    assert MISMATCHES[text, schema] in str(caught.value)
    assert not LIBRARIES.search(str(caught.value))


@pytest.mark.parametrize(
    ("text", "schema"),
    [
        ("0.3", '{"multipleOf": 0.1}'),
        ("1e300", '{"multipleOf": 1e299, "type": "integer"}'),
        ("-0.0", '{"enum": [0]}'),
        ('"2024-02-29"', '{"format": "date"}'),
        ('"0000-02-29"', '{"format": "date"}'),
        ("[[]]", '{"$schema": "https://json-schema.org/draft/2020-12/schema", "items": '
         '{"items": {"$ref": "#"}}}'),
        ('"é"', r'{"pattern": "^\\p{L}$"}'),
        ('{"é": 1}', r'{"patternProperties": {"^\\p{L}$": {}}, "additionalProperties": false}'),
        ('{"a": 1}', r'{"patternProperties": {"^(?<n>a)$": {}}, "additionalProperties": false}'),
    ],
)  # fmt: skip
def test_an_answer_that_keeps_its_schema_passes(text: str, schema: str):
    require_match(text, schema)
