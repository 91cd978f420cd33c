"""Slash commands and settings, and the error for an unknown word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from conifer_cli.chat.conversation import Conversation
from conifer_cli.chat.line_editor import Complete, complete_nothing
from conifer_cli.errors import UsageError
from conifer_cli.usage import did_you_mean, quoted


@dataclass(frozen=True)
class Command:
    """A slash command, or a setting that /set changes.

    usage: the arguments, or empty if there are none. `action` and `complete` receive the rest of
    the line.
    """

    spellings: str
    usage: str
    help: str
    action: Callable[[Conversation, str], None]
    complete: Complete = complete_nothing

    @property
    def names(self) -> list[str]:
        return self.spellings.split()

    def run(self, name: str, conversation: Conversation, rest: str) -> None:
        """Run the command. Raises UsageError for an argument that it does not take."""
        if rest and not self.usage:
            raise UsageError(f"{name} takes no argument, got {quoted(rest)}")
        self.action(conversation, rest)


def find(commands: Sequence[Command], name: str) -> Command | None:
    """Return the command with this name, or None."""
    return next((command for command in commands if name in command.names), None)


def names_of(commands: Sequence[Command]) -> list[str]:
    """Return every name of every command."""
    return [name for command in commands for name in command.names]


def expected(what: str, word: str, known: Iterable[str]) -> UsageError:
    """Return the error for a word that is missing or not one of `known`."""
    known = list(known)
    listed = f"expected one of {', '.join(known)}"
    if not word:
        return UsageError(listed)
    return UsageError(f"unknown {what} {quoted(word)}; {listed}", did_you_mean(word, known))
