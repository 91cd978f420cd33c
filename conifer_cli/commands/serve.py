"""`conifer serve`: serve models over HTTP, or print how a client uses the server."""

from __future__ import annotations

import http.client
from contextlib import suppress
from pathlib import Path

from conifer_cli import config_file, errors, usage
from conifer_cli.commands.ps import state_of
from conifer_cli.errors import UsageError
from conifer_cli.serve.client_configs import CLIENT_CONFIGS, NO_KEY, configured, refers_to_key
from conifer_cli.serve.command import serve
from conifer_cli.serve.host import ServeOptions
from conifer_cli.terminal import console

__all__ = ["ServeOptions", "print_client_config", "serve"]
DEFAULT_CONTEXT = 32_768  # in a printed configuration, at most


def print_client_config(
    name: str,
    model: str | None,
    host: str,
    port: int,
    context: int | None,
    api_key: str = "",
    typed: bool = False,
) -> int:
    """Print the configuration of a client. Raises UsageError if the client is unknown.

    api_key: the server's key, or an empty text. typed: whether the command line has it. If only the
    environment has it, a reference is printed.
    """
    if name not in CLIENT_CONFIGS:
        known = ", ".join(CLIENT_CONFIGS)
        meant = usage.did_you_mean(name, list(CLIENT_CONFIGS), "`--print-config {}`")
        raise UsageError(f"unknown client {name!r}; known are {known}", meant)
    config = CLIENT_CONFIGS[name]
    key = NO_KEY if not api_key else api_key if typed else None
    url = f"http://{host}:{port}"
    served, most = _running(host, port, model) or _planned(model)
    text = configured(config, url, served, context or min(most, DEFAULT_CONTEXT), key)
    console.log(f"conifer: for {config.title}, in {config.where} ({config.tried}):")
    if refers_to_key(config, key):
        console.log(f"conifer: {config.note}")
    console.print_lines(text.splitlines())
    return errors.OK


def _running(host: str, port: int, model: str | None) -> tuple[str, int] | None:
    """Return the name and the context of the model that a server has loaded, if it is the one."""
    try:
        state = state_of(host, port)
        name, context = state["model"], state["context"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    wanted = (None, name, *([Path(name).name] if name else []))
    same = model in wanted or (model is not None and Path(model).name in wanted)
    return (name, context) if name and same else None


def _planned(model: str | None) -> tuple[str, int]:
    """Return the name that a server would give a model, and the most context it supports."""
    from catalog import ModelNotFound, resolve

    if model is None:
        return "MODEL", DEFAULT_CONTEXT
    with suppress(ModelNotFound):
        entry = resolve(config_file.aliases().get(model, model)).entry
        if entry is not None:
            return model, entry.context or DEFAULT_CONTEXT
    return Path(model).name, DEFAULT_CONTEXT
