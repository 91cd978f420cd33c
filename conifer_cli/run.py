"""`conifer run`: one prompt and its answer, in a terminal or in a pipe; else it starts the chat."""

from __future__ import annotations

import sys

from conifer_cli import errors, terminal
from conifer_cli.errors import UsageError
from conifer_cli.prepare import judge, locate, ready
from conifer_cli.session import Reply, RunOptions, Session, require_template
from conifer_cli.verdict import Wishes, reading


def run_model(name: str | None, words: str | None, options: RunOptions) -> int:
    """Answer, or hold a conversation. Returns the exit code."""
    if words is not None and options.prompt is not None:
        raise UsageError("the prompt was given twice, after the model and with -p")
    target = locate(name)
    typed = words if words is not None else options.prompt
    chatting = typed is None and terminal.conversing()
    prompt = "" if chatting else whole_prompt(typed)
    wishes = Wishes(options.context, options.kv_type, options.force, options.yes, options.kernels)
    judged = judge(target, wishes)
    require_template(judged, options)
    judged = ready(target, judged, wishes)
    with reading(target.name, target.reference):
        session = Session(judged, options)
    if chatting:
        from conifer_cli.chat import converse

        return converse(session)
    return answer_once(session, prompt)


def whole_prompt(typed: str | None) -> str:
    """Put the prompt together: standard input, a blank line, then what was typed."""
    piped = ""
    if typed is None or not terminal.is_terminal(sys.stdin):
        piped = terminal.piped().strip("\r\n")
    parts = [part for part in (piped, typed or "") if part.strip()]
    if not parts:
        raise UsageError(
            "there is nothing to answer: no prompt, and standard input is empty",
            'Type one: `conifer run -p "Why is the sky blue?"`',
        )
    return "\n\n".join(parts)


def answer_once(session: Session, prompt: str) -> int:
    """Print the answer to one prompt, and nothing else, to stdout."""
    answering = session.answer(session.encode([*session.opening(), _user(prompt)]))
    Reply(session.options).print(answering)
    if session.options.stats:
        terminal.say(answering.stats())
    if not answering.cut_by_context:
        return errors.OK
    used = answering.stream.stats.prompt_tokens + answering.stream.stats.decoded_tokens
    assert session.cache is not None
    limit = session.cache.context
    terminal.say(f"conifer: the answer was cut: {used:,} tokens fill the context of {limit:,}")
    terminal.say("Ask for a larger context with -c; `conifer fit MODEL` prints the largest.")
    return errors.NO_ROOM


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
