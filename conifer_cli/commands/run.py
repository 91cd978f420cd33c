"""`conifer run`: answer one prompt, or start a conversation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from conifer_cli import errors, presets
from conifer_cli.acquire import RequestedModel, locate
from conifer_cli.errors import UsageError, prompt_hint, why
from conifer_cli.run_options import RunOptions
from conifer_cli.session import checkpoint, files, history, prompt_cache
from conifer_cli.session.function_calls import answer_with_tools, read_offer, read_results
from conifer_cli.session.history import PastConversation
from conifer_cli.session.open import open_session
from conifer_cli.session.response import Response
from conifer_cli.session.router_report import collect, document, require_target, show_experts
from conifer_cli.session.session import JSON_OBJECT, Generation, Messages, Session
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, size
from conifer_cli.terminal.keyboard import keyboard
from conifer_cli.usage import quoted
from engine.errors import EngineError

MAX_SCHEMA_BYTES = 1 << 20
EFFORT = "reasoning_effort"  # the variable name in chat templates
SHOWN = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "max_tokens", "seed")
# Options that apply only to a single answer.
ONE_ANSWER = {
    "as_json": "--json",
    "raw": "--raw",
    "extract": "-x/--extract",
    "cache": "--cache",
    "tools": "--tools",
}


def run_model(name: str | None, words: str | None, options: RunOptions) -> int:
    """Answer a prompt or start a conversation. Return the exit code."""
    # --resume and --continue alone never download.
    offline = name is None and (options.resume is not None or options.last)
    past = history.last() if options.last else None
    if past is not None:
        name = name or past.model
        options = replace(options, resume=_state_of(past), system=_system_of(past))
    elif options.resume is not None:
        name = _resumed_model(name, options, Path(options.resume))
    if options.schema is not None or options.format is not None:
        options = replace(options, grammar=_grammar(options.schema))
    if options.experts_out is not None:
        require_target(options.experts_out, options.yes)
    if options.save is not None:
        checkpoint.require_writable(Path(options.save))
    offer = None if options.tools is None else read_offer(options.tools)
    results = [] if options.tool_results is None else read_results(options.tool_results)
    if results and offer is None:
        raise UsageError("--tool-results requires --tools")
    target = _target(name, words)
    typed = words if words is not None else options.prompt
    sent = list(options.files or [])
    if words is not None and os.path.isfile(words):
        console.note(f"{words} is the prompt; -f {words} would send the file's text")
    if words is None and typed is not None:
        typed, mentioned = files.split_mentions(typed)
        sent += mentioned
    alone = options.template is not None and not presets.needs_input(options.template)
    chatting = typed is None and not alone and files.STDIN not in sent and console.conversing()
    if not chatting:
        keyboard.release()
    staged = files.texts(sent)
    prompt = "" if chatting else _prompt(typed, staged, options, alone)
    if options.interactive:
        console.reopen_stdin()
        if not console.conversing():
            raise UsageError("-i/--interactive requires a terminal")
    if chatting:
        options = _for_chat(options)
    if chatting or options.interactive:
        keyboard.collect()
    session = open_session(target, options, offline=offline)
    if options.verbose:
        _explain(session)
    _require_thinking(session)
    if options.resume:
        messages = session.resume(Path(options.resume))
    else:
        messages = list(past.messages) if past else session.initial_messages()
    if options.save is not None:
        session.require_identity()
    code = errors.OK
    if offer is not None:
        return answer_with_tools(session, messages, prompt, offer, results)
    if not chatting:
        with _saved_on_failure(session, messages):
            code = answer_once(session, messages, prompt)
        if (options.log or past) and history.is_on(options.history):
            number = past.id if past else None
            history.keep(number, history.model_of(session.report), messages)
    if chatting or options.interactive:
        from conifer_cli.chat.repl import converse

        number = past.id if past else None
        session = converse(session, messages, staged if chatting else [], number)
        code = errors.OK
    if options.save is not None:
        session.save(Path(options.save), messages)
    return code


@contextmanager
def _saved_on_failure(session: Session, messages: Messages) -> Iterator[None]:
    """If the engine fails, save the answer so far without the model's state, which may be bad."""
    try:
        yield
    except EngineError:
        if messages and messages[-1]["role"] == "user":  # there is no answer
            messages.pop()
        if session.options.save is not None and any(m["role"] == "user" for m in messages):
            session.save(Path(session.options.save), messages, with_cache=False)
        raise


def _state_of(past: PastConversation) -> str | None:
    """Return the file with the model's state, if it is of this very conversation."""
    if not past.saved:
        return None
    try:
        header = checkpoint.read_header(Path(past.saved), checkpoint.ConversationHeader)
    except (UsageError, errors.BadSaved):
        return None
    return past.saved if header.messages == past.messages else None


def _system_of(past: PastConversation) -> str | None:
    first = past.messages[0]
    return first["content"] if first["role"] == "system" else None


def save_preset(name: str, values: dict[str, Any]) -> int:
    """Keep options under a name, for `conifer run -t NAME`. Return the exit code."""
    if not values:
        raise UsageError("--save-preset needs options to keep", "Add -m, -s, --temperature, ...")
    path = presets.write(name, values)
    console.note(f"kept as the preset {name} in {path}; use it with `conifer run -t {name}`")
    return errors.OK


def _target(name: str | None, words: str | None) -> RequestedModel:
    """Locate the model. If its name begins a question, the hint quotes the whole question."""
    from catalog import UnknownModel

    try:
        return locate(name)
    except UnknownModel as error:
        if name and words is None and os.path.isfile(name):
            raise UsageError(str(error), f"Did you mean `conifer run -f {name}`?") from error
        if error.closest or not name or not name.isalpha():
            raise
        whole = " ".join(filter(None, (name, words)))
        raise UsageError(str(error), prompt_hint(whole, sure=True)) from error


def _prompt(typed: str | None, staged: list[str], options: RunOptions, alone: bool) -> str:
    """Return the whole prompt: files, standard input and the typed text, within the template.

    alone: the template needs no other text.
    """
    given = "" if typed is None and alone else None if typed == "-" else typed
    piped = files.STDIN in (options.files or [])
    prompt = whole_prompt(given, staged, optional=alone, piped=piped)
    if options.template is None:
        if options.var:
            raise UsageError("--var requires a preset with a template", "Add -t NAME.")
        return prompt
    return presets.filled(options.template, prompt, _variables(options), options.preset or "")


def _variables(options: RunOptions) -> dict[str, str]:
    found = {}
    for text in options.var or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--var must be NAME=VALUE, got {quoted(text)}")
        found[name] = value
    return found


def whole_prompt(
    typed: str | None, staged: Sequence[str] = (), optional: bool = False, piped: bool = False
) -> str:
    """Return files, standard input and the typed prompt, separated by blank lines.

    optional: return an empty prompt instead of raising UsageError. piped: read standard input even
    if it is a terminal.
    """
    read = ""
    if typed is None or piped or not console.is_terminal(sys.stdin):
        read = console.piped().strip("\r\n")
    parts = [part for part in (*staged, read, typed or "") if part.strip()]
    if not parts and not optional:
        raise UsageError(
            "no prompt given, and standard input is empty",
            'Pass a prompt: `conifer run -p "Why is the sky blue?"`',
        )
    return "\n\n".join(parts)


def answer_once(session: Session, messages: Messages, prompt: str) -> int:
    """Print the answer to one prompt to stdout, and append it to `messages`."""
    messages.append({"role": "user", "content": prompt})
    tokens, shared = session.encode(messages), 0
    if session.options.files and console.is_terminal(sys.stderr):
        console.note(f"{counted(len(tokens), 'token')} of a context of {session.context:,}")
    if session.options.cache:
        shared = prompt_cache.recall(session, tokens)
    answering = session.answer(tokens)
    reply = Response(session.options)
    try:
        reply.print(answering)
    finally:
        if reply.text or answering.stream.finish:
            messages.append(reply.message())
    if notice := reply.notice(answering):
        console.log(f"conifer: {notice}")
    if session.options.as_json:
        console.print_json(_record(session, reply, answering))
    show_experts(session)
    if session.options.verbose:
        console.log(f"conifer: pass --seed {answering.seed} to reproduce this answer")
    if session.options.stats or session.options.verbose:
        console.log_parts(*answering.stats())
    if session.options.cache:
        prompt_cache.remember(session, tokens, shared)
    try:
        answering.require_schema(reply.text)
    except errors.known_exceptions() as error:  # the answer is printed, and may be saved
        return console.report(error)
    if not answering.cut_by_context:
        return errors.OK
    used = answering.stream.stats.prompt_tokens + answering.stream.stats.decoded_tokens
    full = f"{counted(used, 'token')} fill the {session.context:,}-token context"
    advice = session.context_advice(session.context + 1)
    console.problem(f"the answer was cut off: {full}", advice)
    return errors.NO_ROOM


def _resumed_model(name: str | None, options: RunOptions, path: Path) -> str:
    """Return the given model name or, if there is none, the saved conversation's model."""
    if options.system is not None and options.is_explicit("system"):
        raise UsageError(
            "-s/--system cannot be used with --resume, which keeps the saved system message"
        )
    if name is not None:
        return name
    return checkpoint.read_header(path, checkpoint.ConversationHeader).model


def _for_chat(options: RunOptions) -> RunOptions:
    """Turn off options that apply only to a single answer.

    Raises UsageError if one was set explicitly.
    """
    for name, flag in ONE_ANSWER.items():
        if getattr(options, name) and options.is_explicit(name):
            raise UsageError(
                f"{flag} requires a prompt: it cannot be used in a conversation",
                'Add a prompt: `conifer run MODEL -p "Why is the sky blue?"`',
            )
    return replace(options, as_json=False, raw=False, extract=False, cache=False, tools=None)


def _grammar(path: str | None) -> str:
    """Return the JSON schema, given as text or as a file. By default, allow any JSON object."""
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
        raise UsageError(f"cannot read the schema file {path}: {why(error)}") from error
    if len(data) > MAX_SCHEMA_BYTES:
        raise UsageError(f"the schema file {path} is larger than {size(MAX_SCHEMA_BYTES)}")
    text = console.decoded(data, path, strict=True)
    check_schema(text, path)
    return text


def _require_thinking(session: Session) -> None:
    """Raise UsageError if an explicit reasoning option has no effect on this model."""
    options, template = session.options, session.model.template
    knows_effort = template is not None and EFFORT in template.source
    if options.effort is not None and options.is_explicit("effort") and not knows_effort:
        raise UsageError(f"--effort has no effect: this model's chat template ignores {EFFORT}")
    if options.think and options.is_explicit("think") and not session.can_think:
        raise UsageError("--think has no effect: this model does not reason")
    if options.reasoning_budget is not None and options.is_explicit("reasoning_budget"):
        from engine.text.reasoning import find_dialect

        if find_dialect(session.model.tokenizer, template) is None:
            raise UsageError("--reasoning-budget has no effect: this model does not reason")


def _record(session: Session, reply: Response, answering: Generation) -> dict[str, Any]:
    experts = collect(session) if session.options.experts else None
    return {
        "model": session.report.name,
        "answer": reply.shown,
        "answer_empty": not reply.text.strip(),
        "thinking": reply.thinking,
        **answering.record(),
        "context": session.context,
        "seed": answering.seed,
        **({"experts": experts and document(experts)} if session.options.experts else {}),
    }


def _explain(session: Session) -> None:
    report, options = session.report, session.options
    console.log(f"conifer: loaded {report.name} from {report.paths[0]} ({size(report.size_bytes)})")
    console.log(
        f"conifer: {report.verdict.context:,}-token context, {options.kv_type} KV cache, "
        f"{session.model.kernels.name} kernels"
    )
    catalogued = report.entry.sampling if report.entry else None
    for name in SHOWN:
        value = getattr(session.settings, name)
        origin = options.sources.get(name, "default")
        if origin == "default" and getattr(catalogued, name, None) is not None:
            origin = "catalog"
        console.log(f"conifer: {name} {'unset' if value is None else value} ({origin})")
