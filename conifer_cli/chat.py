"""The conversation in a terminal: a prompt, an answer, and what came before.

Nothing is ever cut from the conversation in silence: one that has outgrown the context is an error
with both counts. Ctrl-C stops an answer and keeps what was said of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from conifer_cli import errors, terminal
from conifer_cli.interrupts import Interrupts, owned
from conifer_cli.session import Messages, Reply, Session

PROMPT = ">>> "
LEAVING = "Use Ctrl-D or /bye to leave."
HELP = (
    "/?        these commands",
    "/clear    forget the conversation",
    "/bye      leave (also /exit, /quit, Ctrl-D)",
    "Ctrl-C    stop an answer; what was said of it is kept",
)

# A word such as /clear; a path such as /etc/hosts is a message.
_COMMAND = re.compile(r"/(?:[A-Za-z_-]+|\?)")


class Leave(Exception):
    """The person wants to go."""


def converse(session: Session, messages: Messages) -> int:
    """Talk until the person leaves, adding to `messages`. Returns the exit code."""
    with owned() as interrupts:
        return _converse(session, messages, interrupts)


def _converse(session: Session, messages: Messages, interrupts: Interrupts) -> int:
    terminal.say(
        f"{session.judged.name}, context {session.judged.verdict.context:,} tokens. /? for help."
    )
    if session.raw:
        terminal.say("This model has no chat template: it continues your text.")
    while True:
        try:
            with interrupts.raising():
                line = terminal.ask(PROMPT)
        except KeyboardInterrupt:
            terminal.write("\n")
            terminal.say(LEAVING)
            continue
        if line is None:
            return errors.OK
        words = line.split()
        if not words:
            continue
        if _COMMAND.fullmatch(words[0]):
            try:
                command(words[0], session, messages)
            except Leave:
                return errors.OK
        else:
            say_and_answer(session, messages, line, interrupts)


def command(word: str, session: Session, messages: Messages) -> None:
    """Carry out /word; an unknown one is never sent to the model."""
    action = COMMANDS.get(word)
    if action is None:
        terminal.say(f"Unknown command '{word}'. Type /? for help.")
    else:
        action(session, messages)


def say_and_answer(session: Session, messages: Messages, text: str, interrupts: Interrupts) -> None:
    """Add what was typed to the conversation, and the answer to that, complete or stopped."""
    messages.append({"role": "user", "content": text})
    reply = Reply(session.options)
    try:
        answering = session.answer(session.encode(messages))
        with interrupts.calling(answering.stop):
            reply.print(answering)
    except errors.foreseen() as error:
        if isinstance(error, terminal.OutputError):
            raise
        messages.pop()
        _, message, hint = errors.explain(error)
        terminal.say(f"conifer: {message}")
        terminal.say(f"Your message was not added. {hint} /clear begins anew.")
        return
    if answering.stream.finish == "interrupted" and not reply.text:
        messages.pop()
        return
    if session.options.stats:
        terminal.say(answering.stats())
    if answering.cut_by_context:
        terminal.say("The context is full and the answer was cut. /clear begins anew.")
    messages.append(reply.message())


def _help(session: Session, messages: Messages) -> None:
    for line in HELP:
        terminal.say(line)


def _clear(session: Session, messages: Messages) -> None:
    messages[:] = session.opening()
    terminal.say("The conversation is forgotten.")


def _leave(session: Session, messages: Messages) -> None:
    raise Leave


COMMANDS: dict[str, Callable[[Session, Messages], None]] = {
    **dict.fromkeys(("/?", "/help"), _help),
    **dict.fromkeys(("/clear", "/reset", "/new"), _clear),
    **dict.fromkeys(("/bye", "/exit", "/quit"), _leave),
}
