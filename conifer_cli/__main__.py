"""The program's door: from here on Ctrl-C ends it without a word, even while it still loads.

It imports next to nothing, as every millisecond before it listens is one in which Ctrl-C is a
traceback. What Python does before it comes here is out of reach.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program and leave with its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell has it in the background
        signal.signal(signal.SIGINT, _leave)
    # typer brings pydantic, which would look through all installed packages for plugins to run.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from conifer_cli.app import main

    main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
