"""Templates that attack: none runs code, reads the environment, or takes time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from engine.errors import TemplateError
from engine.text import sandbox
from engine.text.chat_template import ChatTemplate
from engine.text.tokenizer import from_metadata
from support.vocab import byte_vocabulary

pytestmark = pytest.mark.process

HELLO = [{"role": "user", "content": "Hello", "tool_calls": [{"id": 1}]}]
TOKENIZER = from_metadata(byte_vocabulary())
SECRET = "canary-in-the-environment"

# Each expression would yield something to run a command with, were there no sandbox.
CLIMBS = """
''.__class__.__mro__[1].__subclasses__()
().__class__.__base__.__subclasses__()
[].__class__.__bases__[0].__subclasses__()
messages.__class__.__mro__
messages[0].__class__.__init__.__globals__
messages.append.__self__.__class__
''['__class__']['__mro__'][1]['__subclasses__']()
''|attr('__class__')|attr('__mro__')
''|attr('\\x5f\\x5fclass\\x5f\\x5f')
''['\\x5f\\x5fclass\\x5f\\x5f']
(''|attr('format')).__self__.__class__
['__class__']|map('attr')|list
['']|map(attribute='__class__')|list
[{'a': ''}]|map(attribute='a.__class__.__mro__')|list
['']|groupby('__class__')|list
['']|selectattr('__class__')|map(attribute='__class__.__mro__')|list
['']|sort(attribute='__class__.__mro__')|sum(attribute='__class__.__mro__', start=[])
'{0.__class__.__mro__}'.format('')
'{0.__class__.__init__.__globals__}'.format(cycler)
'{a.__globals__}'.format_map({'a': raise_exception})
('{0.__class__}'|string).format('')
''.join(['{0.__cla','ss__}']).format(1)
'%s'|format(cycler.__init__.__globals__)
cycler.__init__.__globals__.os.popen('touch CANARY').read()
joiner.__init__.__globals__.os.popen('touch CANARY').read()
namespace.__init__.__globals__.os.popen('touch CANARY').read()
lipsum.__globals__['os'].popen('touch CANARY').read()
lipsum.__globals__.__builtins__.open('CANARY', 'w')
lipsum|attr('__globals__')
range.__class__.__base__.__subclasses__()
dict.__base__.__subclasses__()
dict.mro()
namespace(a=1).__class__.__init__.__globals__
raise_exception.__globals__['os'].system('touch CANARY')
raise_exception.__code__.co_consts
raise_exception.__closure__[0].cell_contents.__init__.__globals__
strftime_now.__self__.__class__.__base__.__subclasses__()
self.__init__.__globals__
self._TemplateReference__context.environment
self.__dict__
loop.__init__.__globals__
caller.__globals__
undefined_name.__class__.__init__.__globals__
undefined_name.__init__.__globals__.os
(messages|map('upper')).gi_frame.f_back.f_globals
(messages|map('upper')).gi_code
(messages|batch(2)).gi_frame.f_builtins
(messages|select).gi_frame.f_back.f_back.f_locals
messages|map('list')|first.__class__
__import__('os').system('touch CANARY')
__builtins__.open('CANARY', 'w')
open('CANARY', 'w').write('x')
exec('import os')
eval('1+1')
os.environ['CONIFER_CANARY']
''.__init_subclass__.__self__.__subclasses__()
1.0.__class__.__subclasses__()
(1).__reduce_ex__(2)
none.__class__.__base__.__subclasses__()
true.__class__.__mro__[2].__subclasses__()
""".strip().splitlines()

STATEMENTS = """
{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__init__.__globals__ }}{% endfor %}
{% set x = ''.__class__ %}{{ x.__mro__[1].__subclasses__() }}
{% set n = namespace(x='') %}{% set n.__class__ = 1 %}{{ n.__class__.__mro__ }}
{% macro m() %}{{ m.__globals__ }}{{ caller.__func__.__globals__ }}{% endmacro %}{{ m() }}
{% macro m() %}{{ varargs.__class__.__mro__[1].__subclasses__() }}{% endmacro %}{{ m(1) }}
{% with a = ''.__class__.__mro__[1] %}{{ a.__subclasses__() }}{% endwith %}
{% filter attr('__class__') %}x{% endfilter %}{{ ''.__class__.__mro__[1].__subclasses__() }}
{% include '/etc/passwd' %}
{% import 'os' as os %}{{ os.system('touch CANARY') }}
{% from 'os' import system %}{{ system('touch CANARY') }}
{% extends '/etc/passwd' %}
{% block b %}{{ self.b.__func__.__globals__ }}{% endblock %}
{% for x in messages recursive %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}
{% call(x) cycler.__init__.__globals__ %}{% endcall %}
""".strip().splitlines()
PAYLOADS = [f"{{{{ {expression} }}}}" for expression in CLIMBS] + STATEMENTS


def test_there_are_enough_payloads() -> None:
    assert len(PAYLOADS) >= 40


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "CANARY"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_template_runs_no_code_and_sees_no_secret(
    payload: str, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONIFER_CANARY", SECRET)
    monkeypatch.chdir(canary.parent)
    before = os.environ.copy()
    try:
        text = ChatTemplate(payload.replace("CANARY'", f"{canary}'"), TOKENIZER).render(HELLO)
    except TemplateError:
        text = ""
    assert not any(canary.parent.iterdir())
    for trace in (
        SECRET,
        "<class",
        "<module",
        "<frame",
        "<code",
        "<built-in",
        "root:",
        "__builtins__",
    ):
        assert trace not in text
    assert os.environ == before


BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ 'a' * 10 ** 9 }}",
    "{{ ('a' * 10 ** 9) | length }}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ '%1000000000d' | format(1) }}{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'.ljust(1000000000) | replace('a', 'b' * 1000) }}",
    "{{ [1] * 10 ** 9 }}",
    "{{ range(99999) | batch(1000000000, 'x') | list }}",
    "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ strftime_now('%1000000000d') }}{{ ('a' * 200) | center(1000000000) }}",
]


class Highest:
    """The most memory that this process and its children have held while the block ran."""

    def __enter__(self) -> Highest:
        self._done = threading.Event()
        self.bytes = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.01):
            held = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, held)


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.alone
def test_a_bomb_is_an_error_within_two_seconds_and_bounded_memory(bomb: str) -> None:
    before = psutil.Process().memory_info().rss
    found = sandbox.Sandbox()
    found.render("x", {}, datetime.now())
    with Highest() as highest:
        start = time.perf_counter()
        with pytest.raises(TemplateError):
            found.render(bomb, {"messages": HELLO}, datetime.now())
        elapsed = time.perf_counter() - start
    assert elapsed < 2
    assert highest.bytes - before < 300 << 20  # 256 MiB and what an idle child holds


def test_a_template_works_again_after_its_process_was_killed() -> None:
    source = "{% if messages[0].bomb %}{% for a in range(99999) %}{% for b in range(99999) %}"
    source += "{% endfor %}{% endfor %}{% endif %}fine"
    found = ChatTemplate(source, TOKENIZER)
    assert found.render(HELLO) == "fine"
    with pytest.raises(TemplateError, match="too much CPU time"):
        found.render([{"role": "user", "bomb": True}])
    assert found.render(HELLO) == "fine"


def test_a_process_ends_with_its_template() -> None:
    others = psutil.Process().children()
    found = ChatTemplate("x", TOKENIZER)
    found.render(HELLO)
    mine = [child for child in psutil.Process().children() if child not in others]
    assert len(mine) == 1
    del found
    assert psutil.wait_procs(mine, timeout=5)[1] == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("3.1.5", "3.1.6 or later; version 3.1.5"),
        ("2.11.3", "3.1.6 or later"),
        (None, "not installed"),
    ],
)
def test_an_old_or_missing_jinja_is_refused(
    version: str | None, expected: str, tmp_path: Path
) -> None:
    if version:
        (tmp_path / "jinja2.py").write_text(f"__version__ = {version!r}\n")
    # -S: the environment's own jinja2 is out of the child's sight.
    command = [sys.executable, "-I", "-S", str(sandbox.PROGRAM), "1000000000", str(tmp_path)]
    first = subprocess.run(command, input=b"", capture_output=True, check=True).stdout
    assert expected in json.loads(first)["error"]


def test_what_the_child_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text('print(\'{"error": "no jinja2"}\')\n')
    monkeypatch.setattr(sandbox, "PROGRAM", program)
    found = ChatTemplate("x", TOKENIZER)
    for _ in range(2):
        with pytest.raises(TemplateError, match="no jinja2"):
            found.render(HELLO)


def test_a_child_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('{}', flush=True)\ninput()\nraise SystemExit(7)\n")
    monkeypatch.setattr(sandbox, "PROGRAM", program)
    with pytest.raises(TemplateError, match="exit status 7"):
        ChatTemplate("x", TOKENIZER).render(HELLO)


def test_the_child_has_no_secrets_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONIFER_CANARY", SECRET)
    others = psutil.Process().children()
    found = ChatTemplate("x", TOKENIZER)
    found.render(HELLO)
    (mine,) = [child for child in psutil.Process().children() if child not in others]
    assert set(mine.environ()) <= {*sandbox.KEPT_VARIABLES, "LC_CTYPE"}
