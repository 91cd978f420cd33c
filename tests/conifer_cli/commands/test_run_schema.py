"""`conifer run --schema`: refused before anything is loaded, or checked once more at the end."""

from __future__ import annotations

import json

import pytest

from support.program import MODELS, run_conifer

pytestmark = pytest.mark.process

QWEN = str(MODELS / "qwen3moe" / "model.gguf")
# The grammar engine multiplies the two steps in 32 bits: to it, 65,536 is a multiple of both.
OVERFLOWING = (
    '{"allOf": [{"type": "integer", "multipleOf": 65536}, {"type": "integer", "multipleOf": 65537},'
    ' {"type": "integer", "minimum": 65536, "maximum": 65536}]}'
)


def run(home, *arguments):
    return run_conifer("run", QWEN, "-p", "hi", "--seed", "1", *arguments, home=home)


def test_a_schema_is_refused_before_the_model_is_looked_for(tmp_path):
    path = tmp_path / "id.json"
    path.write_text('{"properties": {"id": {"const": 1234567890123456789}}}')
    done = run_conifer("run", "no-such-model", "-p", "hi", "--schema", path, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    message, hint = done.stderr.decode().splitlines()
    assert message.startswith(f"conifer: {path}: `const` at #/properties/id: 1234567890123456789 ")
    assert hint == "Change or remove that part of the schema."


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("--json",)], ids=str)
def test_an_answer_that_fails_its_schema_is_printed_and_the_exit_code_is_1(tmp_path, flags):
    done = run(tmp_path, "--schema", OVERFLOWING, *flags)
    said = b'"answer": "65536"' if flags == ("--json",) else b"65536\n"
    assert done.returncode == 1 and said in done.stdout
    message, _ = done.stderr.decode().splitlines()
    assert message == "conifer: the answer does not match the schema: `multipleOf` at #"


def test_what_is_cut_short_is_not_held_to_its_schema(tmp_path):
    schema = '{"type": "string", "minLength": 40, "pattern": "^[a-z]+$"}'
    done = run(tmp_path, "--schema", schema, "--max-tokens", "2", "--json")
    assert (done.returncode, json.loads(done.stdout)["cut_by"]) == (0, "max_tokens")
    stops = [word for letter in "abcdefghijklmnopqrstuvwxyz" for word in ("--stop", letter)]
    assert run(tmp_path, "--schema", schema, *stops).returncode == 0


def test_a_decimal_multiple_is_written_exactly(tmp_path):
    schema = '{"type": "number", "multipleOf": 0.1, "minimum": 0.05, "maximum": 0.15}'
    done = run(tmp_path, "--schema", schema)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0.1\n", b"")


def test_a_pattern_without_an_end_ends_with_one_line(tmp_path):
    text = '"' + "a" * 40 + 'b"'  # Python takes 2^40 steps to find that the pattern fails
    schema = f'{{"anyOf": [{{"type": "string", "pattern": "^(a+)+$"}}, {{"const": {text}}}]}}'
    schema = f'{{"allOf": [{schema}, {{"const": {text}}}]}}'
    done = run(tmp_path, "--schema", schema)
    assert (done.returncode, done.stdout.decode()) == (1, text + "\n")
    message, _ = done.stderr.decode().splitlines()
    assert message == "conifer: the answer was not checked: its schema takes more than 10 s"
