"""`conifer run`: one prompt and its answer, in a terminal or in a pipe; else it starts the chat."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from conifer_cli import errors
from conifer_cli.acquire import locate
from conifer_cli.errors import UsageError
from conifer_cli.run_options import RunOptions
from conifer_cli.session import checkpoint, prompt_cache
from conifer_cli.session.open import open_session
from conifer_cli.session.response import Response
from conifer_cli.session.router_report import experts_document, require_format, show_experts
from conifer_cli.session.session import (
    JSON_OBJECT,
    Generation,
    Messages,
    Session,
)
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

MAX_SCHEMA_BYTES = 1 << 20
EFFORT = "reasoning_effort"  # what templates call it
SHOWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens", "seed")
# What a conversation has no use for, by parameter.
ONE_ANSWER = {"as_json": "--json", "raw": "--raw", "extract": "-x/--extract", "cache": "--cache"}


def run_model(name: str | None, words: str | None, options: RunOptions) -> int:
    """Answer, or hold a conversation. Returns the exit code."""
    from_file = name is None and options.resume is not None  # which is no reason to fetch it
    if options.resume is not None:
        name = _resumed_model(name, options, Path(options.resume))
    if options.schema is not None or options.format is not None:
        options = replace(options, grammar=_grammar(options.schema))
    require_format(options.experts_out)
    if options.save is not None:
        checkpoint.require_writable(Path(options.save))
    target = locate(name)
    typed = words if words is not None else options.prompt
    chatting = typed is None and console.conversing()
    prompt = "" if chatting else whole_prompt(None if typed == "-" else typed)
    if options.interactive:
        console.take_keyboard()
        if not console.conversing():
            raise UsageError("-i/--interactive needs a terminal to go on in")
    if chatting:
        options = _for_talking(options)
    session = open_session(target, options, offline=from_file)
    if options.verbose:
        _explain(session)
    _require_thinking(session)
    messages = (
        session.resume(Path(options.resume)) if options.resume else session.initial_messages()
    )
    code = errors.OK
    if not chatting:
        code = answer_once(session, messages, prompt)
    if chatting or options.interactive:
        from conifer_cli.chat.repl import converse

        session, code = converse(session, messages), errors.OK
    if options.save is not None:
        session.save(Path(options.save), messages)
    return code


def whole_prompt(typed: str | None) -> str:
    """Put the prompt together: standard input, a blank line, then what was typed."""
    piped = ""
    if typed is None or not console.is_terminal(sys.stdin):
        piped = console.piped().strip("\r\n")
    parts = [part for part in (piped, typed or "") if part.strip()]
    if not parts:
        raise UsageError(
            "there is nothing to answer: no prompt, and standard input is empty",
            'Type one: `conifer run -p "Why is the sky blue?"`',
        )
    return "\n\n".join(parts)


def answer_once(session: Session, messages: Messages, prompt: str) -> int:
    """Print the answer to one prompt, and nothing else, to stdout. It is added to `messages`."""
    messages.append({"role": "user", "content": prompt})
    tokens, shared = session.encode(messages), 0
    if session.options.cache:
        shared = prompt_cache.recall(session, tokens)
    answering = session.answer(tokens)
    reply = Response(session.options)
    reply.print(answering)
    messages.append(reply.message())
    if session.options.as_json:
        console.out_json(_record(session, reply, answering))
    show_experts(session)
    if session.options.verbose:
        console.say(f"conifer: seed {answering.seed} gives this answer again")
    if session.options.stats or session.options.verbose:
        console.say(answering.stats())
    if session.options.cache:
        prompt_cache.remember(session, tokens, shared)
    if not answering.cut_by_context:
        return errors.OK
    used = answering.stream.stats.prompt_tokens + answering.stream.stats.decoded_tokens
    limit = session.context
    console.say(f"conifer: the answer was cut: {used:,} tokens fill the context of {limit:,}")
    console.say("Ask for a larger context with -c; `conifer fit MODEL` prints the largest.")
    return errors.NO_ROOM


def _resumed_model(name: str | None, options: RunOptions, path: Path) -> str:
    """Name the model of a saved conversation, unless one was typed."""
    if options.system is not None and options.is_explicit("system"):
        raise UsageError("-s/--system and --resume exclude each other: what was said stays")
    if name is not None:
        return name
    return checkpoint.read_header(path, checkpoint.ConversationHeader).model


def _for_talking(options: RunOptions) -> RunOptions:
    """Leave out what is for one answer alone. Raises UsageError for what was typed of it."""
    for name, flag in ONE_ANSWER.items():
        if getattr(options, name) and options.is_explicit(name):
            raise UsageError(
                f"{flag} is for one answer, and without a prompt this is a conversation",
                'Type a prompt too: `conifer run MODEL -p "Why is the sky blue?"`',
            )
    return replace(options, as_json=False, raw=False, extract=False, cache=False)


def _grammar(path: str | None) -> str:
    """Read a schema, or take it as it was typed; without one, an answer is any JSON object."""
    from engine.text.constrained import check_schema

    if path is None:
        return JSON_OBJECT
    if path.lstrip().startswith("{"):
        check_schema(path, "--schema")
        return path
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_SCHEMA_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the schema {path}: {error.strerror}") from error
    if len(data) > MAX_SCHEMA_BYTES:
        raise UsageError(f"the schema {path} is longer than {size(MAX_SCHEMA_BYTES)}")
    text = data.decode("utf-8", errors="replace")
    check_schema(text, path)
    return text


def _require_thinking(session: Session) -> None:
    """Raise UsageError for wishes about thinking, typed for this run, that this model ignores."""
    options, template = session.options, session.model.template
    knows_effort = template is not None and EFFORT in template.source
    if options.effort is not None and options.is_explicit("effort") and not knows_effort:
        raise UsageError(f"--effort needs a chat template that knows {EFFORT}; here is none")
    if options.reasoning_budget is not None and options.is_explicit("reasoning_budget"):
        from engine.text.reasoning import supports_thinking

        if not supports_thinking(session.model.tokenizer, template):
            raise UsageError("--reasoning-budget needs a model that reasons; this one does not")


def _record(session: Session, reply: Response, answering: Generation) -> dict[str, Any]:
    """Put together what --json prints."""
    return {
        "model": session.report.name,
        "answer": reply.shown,
        "thinking": reply.thinking,
        **answering.record(),
        "context": session.context,
        "seed": answering.seed,
        **({"experts": experts_document(session)} if session.options.experts else {}),
    }


def _explain(session: Session) -> None:
    """Say what runs, and where each setting came from."""
    report, options = session.report, session.options
    console.say(f"conifer: {report.name} is {report.paths[0]}, {size(report.size_bytes)}")
    console.say(
        f"conifer: context {report.verdict.context:,} tokens, KV cache in {options.kv_type}, "
        f"{session.model.kernels.name} kernels"
    )
    catalogued = report.entry.sampling if report.entry else None
    for name in SHOWN:
        value = getattr(session.settings, name)
        origin = options.sources.get(name, "default")
        if origin == "default" and getattr(catalogued, name, None) is not None:
            origin = "catalog"
        console.say(f"conifer: {name} {'open' if value is None else value} ({origin})")
