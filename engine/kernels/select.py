"""Choose the kernels for this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.device import backend
from engine.errors import BackendError

if TYPE_CHECKING:
    from engine.kernels.base import Kernels

NAMES = ("auto", "native", "blocks", "stock")


def select(
    name: str = "auto",
    threads: int | None = None,
    isa: str | None = None,
    gpu_verdicts: Path | None = None,
    wide: bool = False,
) -> Kernels:
    """Return the kernels for this machine. Raises BackendError if they are unavailable.

    name: `auto` chooses native on a CPU and blocks on a GPU. If the native kernels do not load, it
    chooses stock, and `fallback_reason` explains why.
    threads: CPU threads; None means one per core. isa: the native kernels' instruction set, such as
    avx2; None means the best that this processor supports. gpu_verdicts: the file that keeps which
    kernels work on this GPU; None means that all do. wide: the activations of the model may pass
    what float16 holds.
    """
    if name not in NAMES:
        raise BackendError(f"kernels must be one of {', '.join(NAMES)}, got {name!r}")
    if threads is not None and threads < 1:
        raise BackendError(f"threads must be at least 1, got {threads}")
    device = backend()
    reason = None
    if name in ("auto", "native") and device == "cpu":
        from engine.kernels.native import NativeKernels, unavailable_reason

        reason = unavailable_reason()
        if reason is None:
            return NativeKernels(threads, isa)
    if name == "native":
        raise BackendError(reason or f"the native kernels only run on a CPU, but MLX uses {device}")
    if name == "blocks" and device == "cpu":
        raise BackendError("the kernels blocks only run on a GPU, but MLX uses cpu")
    if isa is not None:
        raise BackendError(f"only the native kernels can use an instruction set, {isa!r}")
    if device != "cpu" and name != "stock":
        return _blocks(device, gpu_verdicts, wide)
    from engine.kernels.stock import StockKernels

    return StockKernels(device, threads, reason)


def _blocks(device: str, verdicts: Path | None, wide: bool) -> Kernels:
    import mlx.core as mx

    from engine.kernels.gpu.blocks import BlockKernels
    from engine.kernels.gpu.launch import Gpu
    from engine.kernels.gpu.verdicts import Verdicts, refusal, this_gpu

    gpu, dtype = Gpu(cuda=device == "cuda"), mx.float32 if wide else mx.float16
    if verdicts is None:
        return BlockKernels(device, gpu, dtype)
    kept = Verdicts(verdicts, this_gpu())
    return BlockKernels(device, gpu, dtype, lambda name: refusal(name, kept, gpu.cuda))


def selected(name: str, device: str) -> str:
    """Return which kernels `select` chooses on a device: native, blocks or stock.

    device: cpu, metal or cuda.
    """
    if name == "stock":
        return "stock"
    if device != "cpu":
        return "blocks"
    from engine.kernels.native import unavailable_reason

    return "native" if name == "native" or unavailable_reason() is None else "stock"
