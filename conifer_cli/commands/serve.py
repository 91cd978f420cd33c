"""`conifer serve`: serve models over HTTP."""

from __future__ import annotations

from conifer_cli.serve.command import serve
from conifer_cli.serve.host import ServeOptions

__all__ = ["ServeOptions", "serve"]
