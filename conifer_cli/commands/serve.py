"""`conifer serve`: serve models over HTTP, or print how a client uses the server."""

from __future__ import annotations

from pathlib import Path

from conifer_cli import errors, usage
from conifer_cli.errors import UsageError
from conifer_cli.serve.client_configs import CLIENT_CONFIGS, configured
from conifer_cli.serve.command import serve
from conifer_cli.serve.host import ServeOptions
from conifer_cli.terminal import console

__all__ = ["ServeOptions", "print_client_config", "serve"]
DEFAULT_CONTEXT = 32_768  # in a printed configuration
NO_KEY = "none"


def print_client_config(
    name: str, model: str | None, host: str, port: int, context: int | None
) -> int:
    """Print the configuration of a client. Raises UsageError if the client is unknown."""
    if name not in CLIENT_CONFIGS:
        known = ", ".join(CLIENT_CONFIGS)
        meant = usage.did_you_mean(name, list(CLIENT_CONFIGS), "`--print-config {}`")
        raise UsageError(f"unknown client {name!r}; known are {known}", meant)
    config = CLIENT_CONFIGS[name]
    url = f"http://{host}:{port}"
    served = Path(model).name if model else "MODEL"
    text = configured(config, url, served, context or DEFAULT_CONTEXT, NO_KEY)
    console.log(f"conifer: for {config.title}, in {config.where} ({config.tried}):")
    console.print_lines(text.splitlines())
    return errors.OK
