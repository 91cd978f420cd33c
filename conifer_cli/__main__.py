"""Entry point. Makes Ctrl-C exit silently, even while the program loads.

Until the handler is installed, Ctrl-C prints a traceback, so this module imports almost nothing.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn

ONE_ANSWER = {"-p", "--prompt", "-h", "--help", "-"}
_cleanup: list[Callable[[], None]] = []  # called on Ctrl-C before the program exits


def main() -> NoReturn:
    """Run the program and exit with its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # background jobs ignore SIGINT
        signal.signal(signal.SIGINT, _leave)
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]  # an empty variable counts as unset, also in libraries
    # Typer imports pydantic, which would otherwise search every installed package for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # NumPy multiplies no matrices here. OpenBLAS would start a thread per core, or exit.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from conifer_cli.terminal.keyboard import keyboard

    _cleanup.append(keyboard.release)
    if _may_converse(sys.argv[1:]):  # keep keys typed during start-up
        keyboard.take()
    try:
        from conifer_cli.app import main

        main()
    finally:
        keyboard.release()


def _may_converse(arguments: list[str]) -> bool:
    """True if a command line may start a conversation. `run` decides once it has parsed it."""
    command, *rest = arguments or [""]
    words = [word for word in rest if not word.startswith("-")]
    options = len(rest) - len(words)  # each option may have a value
    return command == "run" and ONE_ANSWER.isdisjoint(rest) and len(words) <= 1 + options


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    for restore in _cleanup:
        restore()
    os._exit(128 + number)


if __name__ == "__main__":
    main()
