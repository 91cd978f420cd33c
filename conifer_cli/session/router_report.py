"""Report which experts a model's routers chose for the last answer (`--experts`, `/experts`).

docs/experts.md explains the figures. Axes: L MoE layers, E experts per layer, C cells per row.
"""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli.errors import UsageError
from conifer_cli.session import output_file
from conifer_cli.terminal import console
from conifer_cli.terminal.format import counted, size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from conifer_cli.fit.verdict import FitReport
    from conifer_cli.session.session import Session
    from engine.nn.router_stats import Hits

SHARE = 0.9  # fraction of the hits that the busiest experts must cover
FORMATS = (".png", ".json")
LABEL_COLUMNS = 19  # columns of a row taken by the layer number and figures
SHADES = " ▁▂▃▄▅▆▇█"
# Terminal colours from cold to hot. The first is for experts that were never chosen.
COLOURS = (16, 17, 54, 90, 126, 161, 197, 203, 209, 215, 221, 227, 231)
# Evenly spaced RGB colours for the PNG, interpolated.
RAMP = ((0, 0, 40), (60, 0, 110), (160, 20, 110), (235, 80, 50), (250, 190, 60), (255, 255, 230))
PICTURE_WIDTH = 1024  # maximum in pixels, unless a layer has more experts
PIXELS = 16  # maximum side of a square


@dataclass(frozen=True)
class RouterReport:
    """The routers' choices for one answer. hits: (L, E).

    used: experts used per token in each layer. token_bytes: bytes of weights read per decoded
    token. dense_bytes: the same if every expert were read.
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
        return int(self.hits.shape[1])


def require_target(path: Path, yes: bool) -> None:
    """Raise UsageError if no report can be written to `path`. yes: replace an old file."""
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"expected a file name ending in .png or .json, got {path.name!r}")
    output_file.require_new(path, yes)


def require_experts(report: FitReport, path: Path | None) -> None:
    """Raise UsageError if --experts-out is given and the model has no experts."""
    if path is not None and report.config is not None and report.config.experts is None:
        raise UsageError(f"--experts-out: {_dense(report.name)}")


def _dense(name: str) -> str:
    return f"{name} is a dense model, so it has no experts"


def show_experts(session: Session) -> None:
    """After an answer, show the report for --experts and write it for --experts-out."""
    options = session.options
    if options.experts and not options.as_json:
        show(session)
    if options.experts_out is not None:
        write(session, options.experts_out)


def show(session: Session) -> None:
    """Print the last answer's report to stderr."""
    report = collect(session)
    if report is None:
        console.log(f"conifer: {_dense(session.report.name)}")
    elif not report.tokens:
        console.log("conifer: nothing has been generated yet")
    else:
        coloured = console.supports_styles(sys.stderr)
        lines = heat_map(report, console.dimensions()[0], coloured)
        console.write_stderr("".join(line + "\n" for line in lines))
        console.log_text("\n".join(summary(report)))


def write(session: Session, path: Path) -> None:
    """Write the last answer's report as PNG or JSON. Raises UsageError or OutputError."""
    report = collect(session)
    if report is None or not report.tokens:
        reason = _dense(session.report.name) if report is None else "nothing has been generated yet"
        raise UsageError(f"cannot write {path.name!r}: {reason}")
    as_json = path.suffix.lower() == ".json"
    data = (json.dumps(document(report), indent=1) + "\n").encode() if as_json else png(report)
    output_file.write(path, data)


def collect(session: Session) -> RouterReport | None:
    """Collect the last answer's counts. Return None for a dense model."""
    from engine.fit.speed import bytes_per_token
    from engine.gguf.reader import open_model

    routes, config, report = session.model.count_routes(), session.model.config, session.report
    if routes is None:
        return None
    tensors = (report.file or open_model(report.paths[0])).tensors
    device, kernels = report.verdict.machine.backend, session.model.kernels.name
    moved, dense_bytes = (
        bytes_per_token(one, tensors, device, kernels, 0, session.options.kv_type).weights_bytes
        for one in (config, replace(config, experts=None))
    )
    return RouterReport(
        report.name, routes.layers, routes.used, routes.tokens, routes.hits(), moved, dense_bytes
    )


def summary(report: RouterReport) -> list[str]:
    """Return the figures for all layers as lines of text."""
    figures = document(report)
    bits, most = figures["entropy_bits"], math.log2(report.experts)
    covered, total = figures["experts_for_90_percent"], report.hits.size
    factor = report.dense_bytes / report.token_bytes
    return [
        f"{counted(report.tokens, 'token')}, {report.used} of {report.experts} experts in each of "
        f"{counted(len(report.layers), 'layer')}",
        f"entropy: {bits['mean']:.2f} of {most:.2f} bits (layers range from {bits['low']:.2f} to "
        f"{bits['high']:.2f})",
        f"90% of the hits: {covered:.1f} experts per layer ({covered / report.experts:.0%})",
        f"never chosen: {figures['never_chosen']:,} of {total:,} experts",
        f"weights read per token: {size(report.token_bytes)}; a dense model of the same size "
        f"would read {size(report.dense_bytes)} ({factor:.1f} times as much)",
    ]


def document(report: RouterReport) -> dict[str, Any]:
    """Return the report as a JSON object."""
    from engine.nn.router_stats import covering, entropy_bits

    bits, covered = entropy_bits(report.hits), covering(report.hits, SHARE)
    rows = zip(report.layers, report.hits.tolist(), bits.tolist(), covered.tolist(), strict=True)
    return {
        "model": report.model,
        "tokens": report.tokens,
        "experts": report.experts,
        "experts_used": report.used,
        "entropy_bits": {
            "mean": round(float(bits.mean()), 4),
            "low": round(float(bits.min()), 4),
            "high": round(float(bits.max()), 4),
        },
        "experts_for_90_percent": round(float(covered.mean()), 4),
        "never_chosen": int((report.hits == 0).sum()),
        "token_bytes": report.token_bytes,
        "dense_token_bytes": report.dense_bytes,
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


def heat_map(report: RouterReport, columns: int, coloured: bool) -> list[str]:
    """Draw a row of cells for each layer. Hotter cells were chosen more often."""
    from engine.nn.router_stats import covering, entropy_bits

    per_cell = -(-report.experts // max(8, columns - LABEL_COLUMNS))
    heat = _cells(report, per_cell)
    steps = len(COLOURS if coloured else SHADES)
    rows = _levels(heat, steps).tolist()
    width = heat.shape[1]
    cell = "one expert" if per_cell == 1 else f"{per_cell} experts"
    lines = [
        f"Each row is a layer, each cell {cell}. bits: entropy. 90%: experts with 90% of the hits.",
        f"layer {'':{width}}   bits   90%",
    ]
    bits, covered = entropy_bits(report.hits), covering(report.hits, SHARE)
    for layer, row, entropy, count in zip(report.layers, rows, bits, covered, strict=True):
        cells = _coloured(row) if coloured else "".join(SHADES[level] for level in row)
        lines.append(f"{layer:5d} {cells}  {entropy:5.2f}  {count:4d}")
    scale = _coloured(list(range(steps))) if coloured else SHADES
    lines.append(f"never {scale} {heat.max():.1f}x an even share")
    return lines


def png(report: RouterReport) -> bytes:
    """Draw the heat map as a PNG: one square per expert, with the first layer at the top."""
    import numpy as np
    import png as pypng

    side = max(1, min(PIXELS, PICTURE_WIDTH // report.experts))
    heat = _cells(report, 1)
    levels = _levels(heat, 256).astype(np.uint8)
    pixels = np.repeat(np.repeat(levels, side, axis=0), side, axis=1)
    text = (
        f"Rows: layers {report.layers[0]} to {report.layers[-1]}; columns: experts 0 to "
        f"{report.experts - 1}; hottest: {heat.max():.2f} times an even share of "
        f"{counted(report.tokens, 'token')}"
    )
    height, width = pixels.shape
    image, described = io.BytesIO(), io.BytesIO()
    pypng.Writer(width, height, palette=_palette(), compression=9).write(image, pixels)
    first, *rest = pypng.Reader(bytes=image.getvalue()).chunks()
    description = (b"tEXt", b"Description\0" + text.encode("latin-1"))
    pypng.write_chunks(described, [first, description, *rest])
    return described.getvalue()


def _cells(report: RouterReport, per_cell: int) -> NDArray[np.float64]:
    """Return how often each cell's experts were chosen, relative to an even share: (L, C)."""
    import numpy as np

    starts = np.arange(0, report.experts, per_cell)
    counts = np.diff(np.append(starts, report.experts))
    even = report.tokens * report.used / report.experts
    cells: NDArray[np.float64] = np.add.reduceat(report.hits, starts, axis=1) / counts / even
    return cells


def _levels(heat: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Quantise values to `steps` levels. Only a value of 0 gets level 0."""
    import numpy as np

    levels: NDArray[np.int64] = np.ceil(heat / heat.max() * (steps - 1)).astype(np.int64)
    return levels


def _coloured(levels: list[int]) -> str:
    return "".join(f"\x1b[48;5;{COLOURS[level]}m " for level in levels) + "\x1b[0m"


def _palette() -> list[tuple[int, int, int]]:
    """Return 256 colours. Index 0 is black, for experts that were never chosen."""
    import numpy as np

    at = np.linspace(0, len(RAMP) - 1, 256)
    columns = [np.interp(at, range(len(RAMP)), column) for column in zip(*RAMP, strict=True)]
    rows = np.rint(np.stack(columns, axis=1)).astype(int).tolist()
    return [(0, 0, 0), *(tuple(row) for row in rows[1:])]
