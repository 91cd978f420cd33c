"""Entry point. Makes Ctrl-C exit silently, even while the program loads.

Until the handler is installed, Ctrl-C prints a traceback, so this module imports almost nothing.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def main() -> NoReturn:
    """Run the program and exit with its exit code."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # background jobs ignore SIGINT
        signal.signal(signal.SIGINT, _leave)
    for name in [name for name, value in os.environ.items() if not value]:
        del os.environ[name]  # an empty variable is an unset one, also for the libraries
    # Typer imports pydantic, which would otherwise search every installed package for plugins.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # NumPy multiplies no matrices here. OpenBLAS would start a thread per core, and exit without.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from conifer_cli.app import main

    main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


if __name__ == "__main__":
    main()
