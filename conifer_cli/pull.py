"""`conifer pull`: bring a model here, after the same verdict that `run` and `fit` give."""

from __future__ import annotations

from conifer_cli import errors, terminal
from conifer_cli.layout import size
from conifer_cli.prepare import judge, locate, ready
from conifer_cli.verdict import Wishes


def pull_model(name: str, wishes: Wishes) -> int:
    """Fetch a model and print the path of its file, or of its first part."""
    target = locate(name)
    judged = ready(target, judge(target, wishes), wishes)
    terminal.say(f"conifer: {judged.name} is here, {size(judged.size_bytes)}")
    terminal.out([str(judged.paths[0])])
    return errors.OK
