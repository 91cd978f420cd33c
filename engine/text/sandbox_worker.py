"""The program that renders chat templates: a child process, because a template is foreign code.

Started as a script with `python -I`, it imports nothing of the engine. It answers one line that
says it is ready, and then one line to each line it reads; each line is a JSON object:

    {"source": template, "context": variables, "now": ISO time}  ->  {"text": ...} or {"error": ...}

A template can loop for ever, nest a list until its text fills the memory, or find a hole in the
sandbox. Here it costs at most CPU_S seconds and MEMORY_BYTES, finds no environment variables, as
the parent hands none on, and cannot write to a file. The text is what transformers'
`apply_chat_template` would give.
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

JINJA = (3, 1, 6)  # earlier sandboxes have known holes
CPU_S = 0.6
MEMORY_BYTES = 256 << 20
TEXT_CHARACTERS = 8 << 20  # and twice what it was given: a long prompt is not the template's fault
MESSAGE_CHARACTERS = 500
FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def main() -> None:
    """Answer requests until the input ends."""
    sys.path += sys.argv[1:]  # where the parent found jinja2: `-I` leaves out a user's own packages
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _answer(_ready())
    _limit()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The kernel ends the process when this much CPU time is gone, whatever the code is doing.
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        most = TEXT_CHARACTERS + 2 * len(line)
        answer = _render(request["source"], request["context"], request["now"], most)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(answer)


def _ready() -> dict[str, str]:
    try:
        import jinja2
    except ImportError:
        return {"error": "chat templates need jinja2, which is not installed"}
    version = jinja2.__version__
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < JINJA:
        return {"error": f"chat templates need jinja2 3.1.6 or newer; {version} has known holes"}
    _compiled("")
    return {}


def _limit() -> None:
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES,  # not enforced on macOS: there the parent watches
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
    """Render one template. What goes wrong inside it is its own fault, and only a message."""
    import jinja2

    try:
        moment = datetime.fromisoformat(now)
        text = _compiled(source).render(context, strftime_now=moment.strftime)
        if len(text) > most:
            return {"error": f"it wrote {len(text):,} characters"}
        return {"text": text}
    except MemoryError:
        return {"error": "it ran out of memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except (jinja2.TemplateError, *FAULTS) as error:
        return {"error": str(error)[:MESSAGE_CHARACTERS] or type(error).__name__}


@lru_cache(maxsize=1)
def _compiled(source: str) -> Any:
    """Compile a template in the environment that template authors write for."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
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
    """Write JSON as a prompt wants it; jinja2's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _generation_tag() -> Any:
    """Accept `{% generation %}`, which marks for training what an assistant wrote."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


if __name__ == "__main__":
    main()
