"""The conversation loop: read a message, answer it or run a slash command, repeat."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from conifer_cli import errors
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import EditorHost, history_file, open_editor
from conifer_cli.chat.slash_commands import Leave, complete, is_command, run_command
from conifer_cli.chat.turn import send
from conifer_cli.interrupts import scope
from conifer_cli.session.session import Messages, Session
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.layout import Line

FAREWELLS = ("exit", "quit", "bye")  # a message that is only this word ends the conversation
DEMONSTRATION = "This is a demonstration. `conifer fit` names the best model for this machine."
MOST_SHOWN = 1500  # characters of a message when a conversation goes on


def converse(
    session: Session,
    messages: Messages,
    staged: Sequence[str] = (),
    number: int | None = None,
) -> Session:
    """Run the conversation until the user exits, appending to `messages`.

    staged: texts to send with the first message. number: of the past conversation that goes on.
    Return the session, which /model may have replaced.
    """
    with scope() as interrupts, ExitStack() as on_failure:
        conversation = Conversation(session, messages, interrupts)
        conversation.staged, conversation.number = list(staged), number
        conversation.host = EditorHost(
            complete, history_file(), conversation.meter, {"c-o": conversation.toggle_fold}
        )
        conversation.editor = open_editor(conversation.host, interrupts)
        name, context = session.report.name, conversation.context
        console.log(f"{name}, {context:,}-token context. Type /? for help.")
        if session.report.entry is not None and session.report.entry.starter:
            console.log(DEMONSTRATION)
        if any(message["role"] == "user" for message in messages):
            console.log_lines(["", *exchange(messages), ""])
        if staged:
            held = f"{counted(len(staged), 'file')}, {counted(conversation.used() or 0, 'token')}"
            console.log(f"{held} of {context:,}, will be sent with your first message.")
        if session.raw:
            console.log("This model has no chat template, so it continues your text.")
        on_failure.callback(_rescue, conversation)
        _loop(conversation)
        on_failure.pop_all()  # the caller saves the model's state too
    return conversation.session


def exchange(messages: Messages) -> list[Line]:
    """Return the last message and its answer, to show where a conversation goes on."""
    start = max(at for at, message in enumerate(messages) if message["role"] == "user")
    lines: list[Line] = [f">>> {messages[start]['content'].strip()[:MOST_SHOWN]}"]
    for message in messages[start + 1 :]:
        text = message["content"].strip()
        lines += ["", text[:MOST_SHOWN] + ("..." if text[MOST_SHOWN:] else "")]
    return lines


def _loop(conversation: Conversation) -> None:
    while True:
        try:
            text = conversation.editor.message()
            if text is None or text.strip().lower() in FAREWELLS:
                return
            if is_command(text):
                run_command(text, conversation)
            elif text.strip():
                send(conversation, text)
        except KeyboardInterrupt:
            console.write_stdout("\n")
            console.log("Use Ctrl-D or /bye to exit.")
        except Leave:
            return


def _rescue(conversation: Conversation) -> None:
    """Save only the messages: after a signal, the model may be in the middle of a step."""
    session, messages = conversation.session, conversation.messages
    if session.options.save is None or all(m["role"] == "system" for m in messages):
        return
    try:
        session.save(Path(session.options.save), messages, with_cache=False)
    except errors.known_exceptions() as error:
        console.problem(errors.explain(error)[1])
