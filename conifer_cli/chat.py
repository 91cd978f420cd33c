"""The conversation in a terminal: a prompt, an answer, and what came before.

Nothing is ever cut from the conversation in silence. Ctrl-C stops an answer and keeps what was said
of it; at an empty prompt it says how to leave.
"""

from __future__ import annotations

from conifer_cli import terminal
from conifer_cli.commands import Leave, carry_out, complete, is_command
from conifer_cli.conversation import Conversation, history_file
from conifer_cli.interrupts import owned
from conifer_cli.lineedit import Desk, open_editor
from conifer_cli.session import Messages, Session

LEAVING = "Use Ctrl-D or /bye to leave."


def converse(session: Session, messages: Messages) -> Session:
    """Talk until the person leaves, adding to `messages`. Returns who answered last."""
    with owned() as interrupts, terminal.keys(quiet=True):
        conversation = Conversation(session, messages, interrupts)
        conversation.desk = Desk(
            complete, history_file(), conversation.meter, {"c-o": conversation.fold}
        )
        conversation.editor = open_editor(conversation.desk, interrupts)
        terminal.say(
            f"{session.judged.name}, context {conversation.context:,} tokens. /? for help."
        )
        if session.raw:
            terminal.say("This model has no chat template: it continues your text.")
        while True:
            try:
                text = conversation.editor.message()
                if text is None:
                    return conversation.session
                if is_command(text):
                    with terminal.keys(quiet=False):
                        carry_out(text, conversation)
                elif text.strip():
                    conversation.say(text)
            except KeyboardInterrupt:
                terminal.write("\n")
                terminal.say(LEAVING)
            except Leave:
                return conversation.session
