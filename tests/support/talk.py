"""A conversation with a tiny model of random weights, without a terminal around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conifer_cli.acquire import locate
from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import EditorHost
from conifer_cli.chat.slash_commands import complete
from conifer_cli.interrupts import Interrupts
from conifer_cli.run_options import RunOptions
from conifer_cli.session.open import open_session

PLAIN = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}{% endfor %}<|bos|>assistant: "


class Replies:
    """An editor at which somebody gives these replies to questions."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.asked: list[str] = []

    def message(self) -> str | None:
        return None

    def question(self, text: str) -> str:
        self.asked.append(text)
        return self.replies.pop(0)


def conversation(path: str | Path, *replies: str, **options: Any) -> Conversation:
    """Begin to talk with the model in a file; greedy, four tokens an answer."""
    chosen = {"max_tokens": 4, "temperature": 0.0, **options}
    session = open_session(locate(str(path)), RunOptions(**chosen))
    talk = Conversation(session, session.initial_messages(), Interrupts())
    talk.editor = Replies(*replies)
    talk.host = EditorHost(complete, None, talk.meter, {})
    return talk
