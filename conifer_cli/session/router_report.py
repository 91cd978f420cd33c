"""What `--experts` and `/experts` show: how a model's routers spread the tokens of one answer.

The engine counts; here the counts become a heat map for a terminal, a PNG or a JSON document. All
of it is about the tokens that were run for the last answer: what was new of the prompt, and the
answer itself. docs/experts.md says what the figures mean.

Axes: L layers with experts, E experts, C cells of a row.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli.errors import UsageError
from conifer_cli.terminal import console
from conifer_cli.terminal.format import size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from conifer_cli.fit.plan import Judged
    from conifer_cli.session.session import Session
    from engine.nn.router_stats import Hits

SHARE = 0.9  # of a layer's hits, that its busiest experts cover
FORMATS = (".png", ".json")
BESIDE_CELLS = 19  # columns that a row needs for its layer and its figures
SHADES = " ▁▂▃▄▅▆▇█"
# Cold to hot in the 256 colours of terminals; the first is for experts that were never chosen.
COLOURS = (16, 17, 54, 90, 126, 161, 197, 203, 209, 215, 221, 227, 231)
# The same for a picture: red, green, blue at even steps between which it is interpolated.
RAMP = ((0, 0, 40), (60, 0, 110), (160, 20, 110), (235, 80, 50), (250, 190, 60), (255, 255, 230))
PICTURE_WIDTH = 1024  # pixels at most, unless there are more experts than that
PIXELS = 16  # of a cell's side at most


@dataclass(frozen=True)
class RouterReport:
    """How one answer was spread. hits: (L, E); bytes are those of weights that a token moves.

    dense_bytes: of a model that holds as much and uses all of it for every token.
    """

    model: str
    layers: tuple[int, ...]
    used: int
    tokens: int
    hits: Hits
    token_bytes: int
    dense_bytes: int

    @property
    def experts(self) -> int:
        """How many experts a layer has."""
        count: int = self.hits.shape[1]
        return count


def require_format(path: Path | None) -> None:
    """Raise UsageError for a file that could not be written at the end."""
    if path is None:
        return
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{path.name!r} does not end in .png or .json")
    if not os.path.isdir(path.parent):
        raise UsageError(f"the folder {str(path.parent)!r} does not exist")


def require_experts(judged: Judged, path: Path | None) -> None:
    """Raise UsageError where a file was asked for and there will be nothing to write to it."""
    if path is not None and judged.config is not None and judged.config.experts is None:
        raise UsageError(f"--experts-out: {dense(judged.name)}")


def dense(name: str) -> str:
    """Say that a model has no experts."""
    return f"{name} is a dense model: it has no experts to show"


def show_experts(session: Session) -> None:
    """Do after an answer what --experts and --experts-out ask for; --json prints the former."""
    options = session.options
    if options.experts and not options.as_json:
        show(session)
    if options.experts_out is not None:
        write(session, options.experts_out)


def experts_document(session: Session) -> dict[str, Any] | None:
    """Put the last answer's spread into a JSON object; None for a dense model."""
    found = spread(session)
    return None if found is None else document(found)


def show(session: Session) -> None:
    """Draw the last answer's spread on stderr."""
    found = spread(session)
    if found is None:
        console.log(f"conifer: {dense(session.judged.name)}")
    elif not found.tokens:
        console.log("conifer: no token was run yet, so no expert was chosen")
    else:
        console.log_drawing(lambda columns, coloured: picture(found, columns, coloured))
        for line in summary(found):
            console.log(line)


def write(session: Session, path: Path) -> None:
    """Write the last answer's spread as a PNG or a JSON document, as the name says.

    Raises UsageError for another name and where there is nothing to write, OutputError.
    """
    require_format(path)
    found = spread(session)
    if found is None or not found.tokens:
        what = dense(session.judged.name) if found is None else "no token was run yet"
        raise UsageError(f"there is nothing to write to {path.name!r}: {what}")
    as_json = path.suffix.lower() == ".json"
    data = (json.dumps(document(found), indent=1) + "\n").encode() if as_json else png(found)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise console.OutputError(f"cannot write {path}: {error.strerror}") from error


def spread(session: Session) -> RouterReport | None:
    """Collect what was counted for the last answer; None for a dense model."""
    from engine.fit.speed import bytes_per_token
    from engine.gguf.reader import open_model

    routes, config, judged = session.model.count_routes(), session.model.config, session.judged
    if routes is None:
        return None
    tensors = (judged.file or open_model(judged.paths[0])).tensors
    device, kernels = judged.verdict.machine.backend, session.model.kernels.name
    moved, dense_bytes = (
        bytes_per_token(one, tensors, device, kernels, 0, session.options.kv_type).weights_bytes
        for one in (config, replace(config, experts=None))
    )
    return RouterReport(
        judged.name, routes.layers, routes.used, routes.tokens, routes.hits(), moved, dense_bytes
    )


def summary(found: RouterReport) -> list[str]:
    """Say the figures of all layers together."""
    told = document(found)
    bits, most = told["entropy_bits"], math.log2(found.experts)
    covered, total = told["experts_for_90_percent"], found.hits.size
    factor = found.dense_bytes / found.token_bytes
    return [
        f"{found.tokens:,} tokens, {found.used} of {found.experts} experts in each of "
        f"{len(found.layers)} layers",
        f"entropy: {bits['mean']:.2f} of {most:.2f} bits (layers from {bits['low']:.2f} to "
        f"{bits['high']:.2f}); 90 % of the hits: {covered:.1f} experts of a layer, "
        f"{covered / found.experts:.0%}",
        f"never chosen: {told['never_chosen']:,} of {total:,} experts",
        f"weights moved for a token: {size(found.token_bytes)}; a dense model of the same total: "
        f"{size(found.dense_bytes)}, {factor:.1f} times as much",
    ]


def document(found: RouterReport) -> dict[str, Any]:
    """Put all of it into one JSON document."""
    from engine.nn.router_stats import covering, entropy_bits

    bits, covered = entropy_bits(found.hits), covering(found.hits, SHARE)
    rows = zip(found.layers, found.hits.tolist(), bits.tolist(), covered.tolist(), strict=True)
    return {
        "model": found.model,
        "tokens": found.tokens,
        "experts": found.experts,
        "experts_used": found.used,
        "entropy_bits": {
            "mean": round(float(bits.mean()), 4),
            "low": round(float(bits.min()), 4),
            "high": round(float(bits.max()), 4),
        },
        "experts_for_90_percent": round(float(covered.mean()), 4),
        "never_chosen": int((found.hits == 0).sum()),
        "token_bytes": found.token_bytes,
        "dense_token_bytes": found.dense_bytes,
        "layers": [
            {
                "layer": layer,
                "entropy_bits": round(entropy, 4),
                "experts_for_90_percent": count,
                "hits": hits,
            }
            for layer, hits, entropy, count in rows
        ],
    }


def picture(found: RouterReport, columns: int, coloured: bool) -> list[str]:
    """Draw the heat map: a row for each layer, its busiest cells the hottest."""
    from engine.nn.router_stats import covering, entropy_bits

    per_cell = -(-found.experts // max(8, columns - BESIDE_CELLS))
    heat = _cells(found, per_cell)
    steps = len(COLOURS if coloured else SHADES)
    rows = _levels(heat, steps).tolist()
    width = heat.shape[1]
    cell = "an expert" if per_cell == 1 else f"{per_cell} experts"
    lines = [
        f"A row is a layer, a cell {cell}; its entropy; experts that took 90 % of the hits.",
        f"layer {'':{width}}   bits  90 %",
    ]
    bits, covered = entropy_bits(found.hits), covering(found.hits, SHARE)
    for layer, row, entropy, count in zip(found.layers, rows, bits, covered, strict=True):
        cells = _coloured(row) if coloured else "".join(SHADES[level] for level in row)
        lines.append(f"{layer:5d} {cells}  {entropy:5.2f}  {count:4d}")
    scale = _coloured(list(range(steps))) if coloured else SHADES
    lines.append(f"never {scale} {heat.max():.1f} times even")
    return lines


def png(found: RouterReport) -> bytes:
    """Draw the heat map as a picture of one colour a cell, layers downwards, experts across."""
    import numpy as np

    side = max(1, min(PIXELS, PICTURE_WIDTH // found.experts))
    heat = _cells(found, 1)
    levels = _levels(heat, 256).astype(np.uint8)
    pixels = np.repeat(np.repeat(levels, side, axis=0), side, axis=1)
    height, width = pixels.shape
    lines = np.hstack([np.zeros((height, 1), np.uint8), pixels])  # each begins with: no filter
    text = (
        f"Rows: layers {found.layers[0]} to {found.layers[-1]}; columns: experts 0 to "
        f"{found.experts - 1}; hottest: {heat.max():.2f} times an even share of "
        f"{found.tokens} tokens"
    )
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", _palette()),
        (b"tEXt", b"Description\0" + text.encode("latin-1")),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _cells(found: RouterReport, per_cell: int) -> NDArray[np.float64]:
    """Say how often the experts of each cell were chosen, 1 being an even share: (L, C)."""
    import numpy as np

    starts = np.arange(0, found.experts, per_cell)
    counts = np.diff(np.append(starts, found.experts))
    even = found.tokens * found.used / found.experts
    cells: NDArray[np.float64] = np.add.reduceat(found.hits, starts, axis=1) / counts / even
    return cells


def _levels(heat: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Sort values into steps; the lowest is for nothing at all."""
    import numpy as np

    levels: NDArray[np.int64] = np.ceil(heat / heat.max() * (steps - 1)).astype(np.int64)
    return levels


def _coloured(levels: list[int]) -> str:
    return "".join(f"\x1b[48;5;{COLOURS[level]}m " for level in levels) + "\x1b[0m"


def _palette() -> bytes:
    import numpy as np

    at = np.linspace(0, len(RAMP) - 1, 256)
    columns = [np.interp(at, range(len(RAMP)), column) for column in zip(*RAMP, strict=True)]
    palette = np.rint(np.stack(columns, axis=1)).astype(np.uint8)
    palette[0] = 0  # black: never chosen
    return bytes(palette.tobytes())
