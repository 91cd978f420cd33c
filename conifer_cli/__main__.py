"""Entry point. Ctrl-C exits silently from here on, even while the program loads.

Imports almost nothing: until the handler is set, Ctrl-C prints a traceback.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program and exit with its code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored for background jobs
        signal.signal(signal.SIGINT, _leave)
    # typer imports pydantic, which would search all installed packages for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from conifer_cli.app import main

    main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
