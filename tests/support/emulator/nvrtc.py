"""NVIDIA's run-time compiler, from the wheels nvidia-cuda-nvrtc and nvidia-cuda-runtime.

CONIFER_NVRTC names the folder that holds `cuda_nvrtc` and `cuda_runtime`; by default, it is that
of the installed wheels.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path

HEADERS = ("cuda_runtime", "cuda_cccl")
# What MLX's own header brings.
STAND_IN = """typedef unsigned char uint8_t; typedef unsigned int uint32_t; typedef int int32_t;
#include <cooperative_groups.h>
"""


def folder() -> Path | None:
    """Return the folder of the wheels, or None if there are none."""
    if given := os.environ.get("CONIFER_NVRTC"):
        return Path(given)
    found = importlib.util.find_spec("nvidia")
    places = list(found.submodule_search_locations or ()) if found else []
    return next((Path(place) for place in places if (Path(place) / "cuda_nvrtc").exists()), None)


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiler, or return None if there is none."""
    place = folder()
    found = sorted(place.glob("cuda_nvrtc/lib/libnvrtc.so*")) if place else []
    if not found or not (place / "cuda_runtime" / "include" / "cuda_fp16.h").exists():
        return None
    return ctypes.CDLL(str(found[0]), mode=ctypes.RTLD_GLOBAL)


def refusal(text: str, architecture: str) -> str:
    """Compile a text for an architecture, such as sm_80. Return what is wrong with it, or ""."""
    nvrtc, place = library(), folder()
    assert nvrtc is not None and place is not None
    program = ctypes.c_void_p()
    whole = (STAND_IN + text).encode()
    made = nvrtc.nvrtcCreateProgram(ctypes.byref(program), whole, b"kernel.cu", 0, None, None)
    assert made == 0
    options = [
        "--device-as-default-execution-space",  # as MLX
        f"--gpu-architecture={architecture}",
        *(f"--include-path={place / part / 'include'}" for part in HEADERS),
    ]
    words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), words) == 0:
            return ""
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return log.value.decode(errors="replace") or "refused"
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
