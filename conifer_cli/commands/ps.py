"""`conifer ps`: what a running server has loaded, and how busy it is."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from conifer_cli import errors
from conifer_cli.errors import why
from conifer_cli.terminal import console
from conifer_cli.terminal.format import duration, size
from conifer_cli.terminal.layout import Column, Grid

TIMEOUT_S = 5.0
COLUMNS = (
    Column("MODEL"),
    Column("CONTEXT", True, rank=3),
    Column("MEMORY", True),
    Column("PREFIXES", True, rank=1),
    Column("RUNNING", True),
    Column("WAITING", True),
    Column("TOKENS/S", True),
    Column("LOADED", rank=2),
)


def state_of(host: str, port: int) -> Any:
    """Return what /health says. Raises OSError, HTTPException or ValueError."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def show_server(host: str, port: int, as_json: bool) -> int:
    """Print the state of the server at an address. The exit code is 1 if there is none."""
    try:
        state = state_of(host, port)
        rate = state["decoded_tokens_per_s"]
    except (OSError, http.client.HTTPException) as error:
        console.problem(
            f"no server at {host}:{port}: {why(error)}", "Start one with `conifer serve`."
        )
        return errors.FAILURE
    except (ValueError, KeyError, TypeError):
        console.log(f"conifer: the program at {host}:{port} is not Conifer")
        return errors.FAILURE
    if as_json:
        console.print_json(state)
    elif state["model"] is None:
        console.print_lines(["No model is loaded."])
    else:
        columns, row = list(COLUMNS), list(_row(state, rate))
        if (experts := state.get("experts_from_disk")) is not None:
            columns, row = [*columns, Column("EXPERTS")], [*row, _experts(experts)]
        console.print_lines([Grid(columns, [row])])
    return errors.OK


def _experts(streamed: dict[str, Any]) -> str:
    """Return how many experts of a model that streams are in memory, and how often that helps."""
    hits = f", {100 * streamed['hit_rate']:.0f} % hits" if streamed["hits"] else ""
    return f"{streamed['held']:,} of {streamed['experts']:,} in memory{hits}"


def _row(state: dict[str, Any], rate: float) -> tuple[str, ...]:
    since = duration(time.time() - state["loaded_s"])
    return (
        state["model"],
        f"{state['context']:,}",
        size(state["need_bytes"]),
        f"{size(state['prefix_bytes'])} of {size(state['prefix_budget_bytes'])}",
        f"{state['running']} of {state['parallel']}",
        str(state["queued"]),
        f"{rate:.1f}" if rate else "-",
        f"{since} ago",
    )
