"""`conifer chats`: list, search, show, export and delete past conversations."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from conifer_cli import errors
from conifer_cli.errors import Declined, UsageError
from conifer_cli.session import history
from conifer_cli.session.history import PastConversation
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted
from conifer_cli.terminal.inline import BOLD
from conifer_cli.terminal.layout import Cell, Column, Grid, Line
from conifer_cli.usage import quoted

SHOWN = 20  # conversations in a list, unless all are wanted
COLUMNS = (
    Column("ID", True),
    Column("CHANGED"),
    Column("MODEL", rank=2),
    Column("TURNS", True, rank=1),
    Column("FIRST MESSAGE"),
)
CONTINUE = "`conifer run --continue` takes up the latest; in a chat, /resume ID takes up another."
TITLE_WIDTH = 60  # columns


def run_chats(action: str, words: Sequence[str], everything: bool, yes: bool, as_json: bool) -> int:
    """Run one action on the past conversations."""
    count = history.MAX_CONVERSATIONS if everything or as_json else SHOWN
    if action == "list":
        _list(history.latest(count), as_json, "No conversations yet. Run `conifer run` for one.")
    elif action == "search":
        _list(history.search(" ".join(words), count), as_json, "No conversation has these words.")
    elif action == "rm":
        _remove(None if everything and not words else _numbers(words), yes)
    else:
        for number in _numbers(words):
            past = history.get(number)
            if action == "export":
                console.print_lines([markdown(past)])
            else:
                console.print_lines(transcript(past.messages))
    return errors.OK


def transcript(messages: Sequence[dict[str, str]]) -> list[Line]:
    """Return messages for a terminal, each below the name of its author."""
    names = {"system": "System", "user": "You", "assistant": "Answer"}
    lines: list[Line] = []
    for message in messages:
        lines += [*([""] if lines else []), [(BOLD, f"{names[message['role']]}:")]]
        lines.append(message["content"].strip())
    return lines


def markdown(past: PastConversation) -> str:
    """Return a conversation as Markdown."""
    from conifer_cli.chat.attachments import markdown

    return markdown(past.messages, past.model).rstrip("\n")


def rows(found: Sequence[PastConversation]) -> list[tuple[Cell, ...]]:
    """Return conversations as rows of a table."""
    return [
        (
            str(past.id),
            past.changed[:16].replace("T", " "),
            past.model.rpartition("/")[2],
            str(sum(message["role"] == "user" for message in past.messages)),
            past.title[:TITLE_WIDTH] + ("..." if past.title[TITLE_WIDTH:] else ""),
        )
        for past in found
    ]


def _list(found: Sequence[PastConversation], as_json: bool, nothing: str) -> None:
    if as_json:
        console.print_json([dataclasses.asdict(past) for past in found])
    elif not found:
        console.log(nothing)
    else:
        console.print_lines([Grid(COLUMNS, rows(found))])
        if len(found) == SHOWN:
            console.note("older ones: `conifer chats --all`")
        if console.is_terminal(sys.stdout):
            console.log(CONTINUE)


def _numbers(words: Sequence[str]) -> list[int]:
    if not words:
        raise UsageError("expected a conversation's ID", "Run `conifer chats` to list them.")
    wrong = next((word for word in words if not word.isdecimal()), None)
    if wrong is not None:
        raise UsageError(
            f"{quoted(wrong)} is not a conversation's ID", "Run `conifer chats` to list them."
        )
    return [int(word) for word in words]


def _remove(numbers: list[int] | None, yes: bool) -> None:
    what = "all conversations"
    if numbers is not None:
        found = [history.get(number) for number in numbers]
        what = counted(len(found), "conversation")
        console.print_lines([Grid(COLUMNS, rows(found))])
    if not yes:
        if not console.can_ask():
            reason = "removal requires confirmation, but there is no terminal"
            raise UsageError(reason, "Pass --yes to confirm.")
        if not console.confirm(f"Remove {what}?", default=False):
            raise Declined("nothing was removed")
    console.note(f"{counted(history.remove(numbers), 'conversation')} removed")
