"""Choose the kernels for this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.device import backend
from engine.errors import BackendError

if TYPE_CHECKING:
    from engine.kernels.base import Kernels

NAMES = ("auto", "native", "stock")


def select(name: str = "auto", threads: int | None = None) -> Kernels:
    """Return the kernels for this machine. Raises BackendError if they are unavailable.

    name: `auto` is native on a CPU, and stock on a GPU or where native does not load
    (`fallback_reason` says why). threads: CPU threads; None is one per core of this process.
    """
    if name not in NAMES:
        raise BackendError(f"unknown kernels {name!r}; choose one of {', '.join(NAMES)}")
    if threads is not None and threads < 1:
        raise BackendError(f"threads is {threads}; it must be at least 1")
    device = backend()
    reason = None
    if name != "stock" and device == "cpu":
        from engine.kernels.native import NativeKernels, unavailable_reason

        reason = unavailable_reason()
        if reason is None:
            return NativeKernels(threads)
    if name == "native":
        raise BackendError(reason or f"the native kernels run on a CPU only; MLX is using {device}")
    from engine.kernels.stock import StockKernels

    return StockKernels(device, threads, reason)


def selected(name: str, device: str) -> str:
    """Return the name of the kernels, native or stock, that `select` chooses on a device.

    device: cpu, metal or cuda.
    """
    if name == "stock" or device != "cpu":
        return "stock"
    from engine.kernels.native import unavailable_reason

    return "native" if name == "native" or unavailable_reason() is None else "stock"
