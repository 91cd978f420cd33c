"""The conversation in a terminal: a prompt, an answer, and what came before.

Nothing is ever cut from the conversation in silence. Ctrl-C stops an answer and keeps what was said
of it; at an empty prompt it says how to leave. Where --save was asked for, what was said is also
kept if a signal or a terminal that has gone ends the conversation.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from conifer_cli import errors
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.editor import EditorHost, history_file, open_editor
from conifer_cli.chat.slash_commands import Leave, carry_out, complete, is_command
from conifer_cli.chat.turn import send
from conifer_cli.interrupts import owned
from conifer_cli.session.session import Messages, Session
from conifer_cli.terminal import console

LEAVING = "Use Ctrl-D or /bye to leave."


def converse(session: Session, messages: Messages) -> Session:
    """Talk until the person leaves, adding to `messages`. Returns who answered last."""
    with owned() as interrupts, console.keys(quiet=True), ExitStack() as otherwise:
        conversation = Conversation(session, messages, interrupts)
        conversation.desk = EditorHost(
            complete, history_file(), conversation.meter, {"c-o": conversation.fold}
        )
        conversation.editor = open_editor(conversation.desk, interrupts)
        console.log(f"{session.judged.name}, context {conversation.context:,} tokens. /? for help.")
        if session.raw:
            console.log("This model has no chat template: it continues your text.")
        otherwise.callback(_rescue, conversation)
        _talk(conversation)
        otherwise.pop_all()  # the person has left: who called saves it, with the model's state
    return conversation.session


def _talk(conversation: Conversation) -> None:
    while True:
        try:
            text = conversation.editor.message()
            if text is None:
                return
            if is_command(text):
                with console.keys(quiet=False):
                    carry_out(text, conversation)
            elif text.strip():
                send(conversation, text)
        except KeyboardInterrupt:
            console.write_stdout("\n")
            console.log(LEAVING)
        except Leave:
            return


def _rescue(conversation: Conversation) -> None:
    """Save the text, if that was asked for: the model may be in the middle of a step."""
    session, messages = conversation.session, conversation.messages
    if session.options.save is None or all(said["role"] == "system" for said in messages):
        return
    try:
        session.save(Path(session.options.save), messages, with_cache=False)
    except errors.foreseen() as error:
        console.log(f"conifer: {errors.explain(error)[1]}")
