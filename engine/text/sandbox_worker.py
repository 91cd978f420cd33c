"""Render chat templates, which are untrusted code, in a child process.

This file runs as a script with `python -I` and imports nothing from the engine. The process writes
one line when it is ready. It then writes one line for each line that it reads. Each line is a JSON
object:

    {"source": template, "context": variables, "now": ISO time}  ->  {"text": ...} or {"error": ...}

If the template itself raises an exception, "refusal" replaces "error".

A template may loop forever, fill the memory, or escape from jinja2's sandbox. The process is
therefore limited in memory (its first argument, in bytes) and, for each template, in CPU time. It
cannot write files, and it receives no environment variables except library paths.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

JINJA = (3, 1, 6)  # earlier versions have known sandbox escapes
CPU_S, CPU_S_PER_BYTE = 0.6, 1e-6  # a conversation of many short messages takes this long
TEXT_CHARACTERS = 8 << 20  # plus twice the input size, since prompts may be long
MESSAGE_CHARACTERS = 500
# Python's exceptions for mistakes in a template, and the messages for them.
FAULTS: dict[type[Exception], str] = {
    ArithmeticError: "it divides by zero, or a number is too large",
    AttributeError: "a value has the wrong type",
    LookupError: "it reads an entry that does not exist",
    RuntimeError: "it changes a value that it is reading",
    TypeError: "a value has the wrong type",
    ValueError: "a value is not valid",
}


def main() -> None:
    sys.path += sys.argv[2:]  # where the parent found jinja2, which `-I` may hide
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _answer(_ready())
    _limit(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The kernel kills the process after this much CPU time, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, CPU_S + CPU_S_PER_BYTE * len(line))
        most = TEXT_CHARACTERS + 2 * len(line)
        answer = _render(request["source"], request["context"], request["now"], most)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(answer)


def _ready() -> dict[str, str]:
    try:
        import jinja2
    except ImportError:
        return {"error": "chat templates require jinja2, which is not installed"}
    version = jinja2.__version__
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < JINJA:
        return {
            "error": f"chat templates require jinja2 3.1.6 or later; version {version} is unsafe"
        }
    _compiled("")
    return {}


def _limit(memory_bytes: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,  # not enforced on macOS; the parent checks instead
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _answer(answer: dict[str, str]) -> None:
    line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def _render(source: str, context: dict[str, Any], now: str, most: int) -> dict[str, str]:
    import jinja2

    try:
        moment = datetime.fromisoformat(now)
        text = _compiled(source).render(context, strftime_now=moment.strftime)
        if len(text) > most:
            return {"error": f"its output is too long ({len(text):,} characters)"}
        return {"text": text}
    except MemoryError:
        return {"error": "it ran out of memory"}
    except RecursionError:
        return {"error": "infinite recursion"}
    except jinja2.UndefinedError:
        return {"refusal": "it uses a value that is not set"}
    except jinja2.TemplateError as error:
        kind = "error" if isinstance(error, jinja2.TemplateSyntaxError) else "refusal"
        return {kind: str(error)[:MESSAGE_CHARACTERS] or "it does not say why"}
    except tuple(FAULTS) as error:
        return {"refusal": next(FAULTS[kind] for kind in FAULTS if isinstance(error, kind))}


@lru_cache(maxsize=1)
def _compiled(source: str) -> Any:
    """Compile a template in an environment equivalent to the one in transformers."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_generation_tag(), loopcontrols],
        undefined=_lenient_undefined(),
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    del environment.globals["lipsum"]
    return environment.from_string(source)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Format JSON for a prompt. jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_plain,
    )


def _plain(value: Any) -> None:
    from jinja2 import Undefined

    if not isinstance(value, Undefined):
        raise TypeError(f"{type(value).__name__} is not plain data")


def _lenient_undefined() -> Any:
    """Return a class for undefined variables. Added to text, they are empty."""
    from jinja2 import Undefined
    from jinja2.utils import missing

    class Unset(Undefined):
        def _other(self, other: Any) -> Any:
            return other if self._undefined_obj is missing else self._fail_with_undefined_error()

        def __getattr__(self, name: str) -> Any:
            if self._undefined_obj is missing and name[:2] != "__":
                return Unset(name=name)
            return super().__getattr__(name)

        def __getitem__(self, name: Any) -> Any:
            if self._undefined_obj is missing:
                return Unset(name=str(name))
            return self._fail_with_undefined_error()

        __add__ = __radd__ = _other

    return Unset


def _generation_tag() -> Any:
    """Accept `{% generation %}`, which marks assistant text for training."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


if __name__ == "__main__":
    main()
