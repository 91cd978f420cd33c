"""Build a kernel with g++ and run it, thread by thread.

`run` checks every load and store. `launch` has the engine's form; without checks it is ten times as
fast, for whole models.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from engine.kernels.gpu.texts import KernelText
from support.emulator.text import CUDA_TYPES, METAL_TYPES, Template, bits, whole_text

HERE = Path(__file__).parent
# EMULATOR_BUILD: where compiled kernels are kept. EMULATOR_SANITIZE=address: checks the arrays of a
# thread instead of all other memory. EMULATOR_MATH: the compiler's options for rounding.
BUILD = Path(
    os.environ.get("EMULATOR_BUILD", HERE.parents[2] / ".pytest_cache" / "emulator")
).absolute()
SANITIZE = os.environ.get("EMULATOR_SANITIZE", "thread")
MATH = os.environ.get("EMULATOR_MATH", "-ffp-contract=off").split()
UNDEFINED = (
    "alignment,null,bounds,shift,integer-divide-by-zero,signed-integer-overflow,float-cast-overflow"
)
WARNINGS = [
    *("-Wall", "-Wextra", "-Werror", "-Wdouble-promotion", "-Wno-attributes", "-Wno-parentheses"),
    *("-Wno-unknown-pragmas", "-Wno-unused-parameter", "-Wno-unused-variable"),
]
CHECKED = [
    *("-O1", f"-fsanitize={SANITIZE}", f"-fsanitize={UNDEFINED}", "-fno-sanitize-recover=all"),
    "-ftrivial-auto-var-init=pattern",
]
RUNTIME = [HERE / name for name in ("msl.h", "emu.cpp", "cuda_fp16.h", "cuda_bf16.h")]
POSITIONS = {
    "threadgroup_position_in_grid": "uint3{p.group.x, p.group.y, p.group.z}",
    "thread_position_in_threadgroup": "uint3{p.inside.x, p.inside.y, p.inside.z}",
    "thread_position_in_grid": "uint3{p.grid.x, p.grid.y, p.grid.z}",
    "threadgroups_per_grid": "uint3{p.groups.x, p.groups.y, p.groups.z}",
    "threads_per_threadgroup": "uint3{p.threads.x, p.threads.y, p.threads.z}",
    "thread_index_in_threadgroup": "p.index",
    "thread_index_in_simdgroup": "p.lane",
    "simdgroup_index_in_threadgroup": "p.simdgroup",
    "simdgroups_per_threadgroup": "p.simdgroups",
}
HUGE = 1 << 30


class Fault(Exception):
    """A kernel did not compile, or a check failed."""


class Sparse:
    """A huge array of bytes, of which only some parts are there: (start, bytes)."""

    def __init__(self, shape: tuple[int, ...], parts: Sequence[tuple[int, np.ndarray]]) -> None:
        self.shape, self.parts = shape, parts
        self.array = mx.zeros((8, *[1] * (len(shape) - 1)), mx.uint8)  # for the text
        self.nbytes = int(np.prod(shape))


def launch(
    kernel: KernelText,
    inputs: Sequence[mx.array],
    template: Template,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shape: tuple[int, ...],
    dtype: mx.Dtype,
) -> mx.array:
    """Run a kernel without checks. See `engine.kernels.gpu.launch`."""
    return run(kernel, inputs, template, grid, threadgroup, shape, dtype, checked=False)


def run(
    kernel: KernelText,
    inputs: Sequence[mx.array | Sparse],
    template: Template,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    *,
    seed: int = 0,
    checked: bool = True,
    partial: bool = False,
    flags: tuple[str, ...] = (),
) -> mx.array:
    """Run a kernel on a grid, in threads. Raises Fault.

    seed: the order of threads. partial: the grid is a part of the whole one, so outputs are left
    out. flags: compiler options instead of the usual warnings.
    """
    assert all(g % t == 0 for g, t in zip(grid, threadgroup, strict=True)), "Metal would trim it"
    if 0 in shape:
        return mx.zeros(shape, dtype)
    arrays = [a.array if isinstance(a, Sparse) else a for a in inputs]
    text = whole_text(kernel, arrays, template, dtype)
    library = build(text, kernel, tuple(a.dtype for a in arrays), dtype, checked, flags)
    out = np.zeros(shape, np.uint16 if dtype == mx.bfloat16 else _numpy(dtype))
    held = [_held(a) for a in inputs] + [_held(out)]
    count, error = len(held), ctypes.create_string_buffer(1024)
    sizes = [a.nbytes for a in inputs] + [out.nbytes]
    code = _load(library)(
        count,
        (ctypes.c_void_p * count)(*(room.ctypes.data + at for room, at in held)),
        (ctypes.c_uint64 * count)(*sizes),
        (ctypes.c_int * count)(*[0] * (count - 1), 1),
        (ctypes.c_uint * 3)(*grid),
        (ctypes.c_uint * 3)(*threadgroup),
        seed,
        error,
        1024,
        (ctypes.c_uint64 * 2)(),
    )
    if code and not (partial and error.value.startswith(b"nobody writes")):
        raise Fault(_located(error.value.decode(), library))
    room, at = held[-1]
    out.reshape(-1).view(np.uint8)[:] = room[at : at + out.nbytes]
    made = mx.array(out)
    return made.view(mx.bfloat16) if dtype == mx.bfloat16 else made


def _numpy(dtype: mx.Dtype) -> type:
    return {mx.float32: np.float32, mx.float16: np.float16}[dtype]


def _held(array: mx.array | np.ndarray | Sparse) -> tuple[np.ndarray, int]:
    """Copy an array to where it is aligned for 16 bytes and no more: a room, and where in it."""
    room = np.empty(array.nbytes + (1 << 17), np.uint8)
    at = (1 << 16) - room.ctypes.data % 64 + 16
    if isinstance(array, Sparse):
        parts = array.parts
    else:
        values = bits(array) if isinstance(array, mx.array) else array
        parts = [(0, np.ascontiguousarray(values).reshape(-1).view(np.uint8))]
    for start, values in parts:
        room[at + start : at + start + values.size] = values.reshape(-1)
    return room, at


@cache
def _load(library: Path) -> ctypes._FuncPointer:
    return ctypes.CDLL(str(library), mode=os.RTLD_LOCAL | os.RTLD_NOW).emu_run


@cache
def build(
    text: str,
    kernel: KernelText,
    inputs: tuple[mx.Dtype, ...],
    dtype: mx.Dtype,
    checked: bool,
    flags: tuple[str, ...] = (),
) -> Path:
    """Compile a kernel's text into a library, unless that was done before."""
    types, before = CUDA_TYPES if kernel.cuda else METAL_TYPES, "#define CONIFER_EMULATED\n"
    if kernel.cuda:
        name, positions = f"mlx::core::cu::custom_kernel_{kernel.name}", []
        before += "#define CONIFER_CUDA\n"
    else:
        text, _, instance = text.partition("\ntemplate [[host_name(")
        named = re.search(r"decltype\((.*?)\) ", instance) or re.search(r"void (\w+)\(", text)
        assert named
        name = named[1]
        signature = text[text.index("[[kernel]]") :].partition(") {\n")[0]
        positions = re.findall(r"\[\[(?!buffer|kernel)(\w+)\]\]", signature)
    pointers = [f"(const {types[of]}*)b[{i}]" for i, of in enumerate(inputs)]
    given = [*pointers, f"({types[dtype]}*)b[{len(inputs)}]", *(POSITIONS[p] for p in positions)]
    entry = (
        '\n#line 1 "entry"\nextern "C" __attribute__((no_sanitize("thread"))) void emu_entry('
        f"void** b) {{ const emu::Place& p = emu::me(); (void)p; {name}({', '.join(given)}); }}\n"
    )
    # CUDA's `namespace a::b` is C++17; Metal's language is C++14.
    standard = "-std=c++17" if kernel.cuda else "-std=c++14"
    options = [standard, "-g1", "-fPIC", *MATH, *(flags or WARNINGS)]
    options += CHECKED if checked else ["-O2", "-fno-strict-aliasing"]
    return _compiled(f'{before}#include "msl.h"\n{text}{entry}', options)


def _compiled(source: str, options: list[str]) -> Path:
    key = hashlib.sha256((source + " ".join(options)).encode())
    for path in RUNTIME:
        key.update(path.read_bytes())
    folder = BUILD / key.hexdigest()[:24]
    library = folder / "kernel.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / f"{os.getpid()}"
    mine.with_suffix(".cpp").write_text(source)
    code, part, made = (mine.with_suffix(suffix) for suffix in (".cpp", ".o", ".so"))
    _compile(["g++", *options, f"-I{HERE}", "-c", str(code), "-o", str(part)])
    _compile(["g++", "-shared", str(part), str(_runtime()), "-o", str(made)])
    made.rename(library)
    return library


@cache
def _runtime() -> Path:
    key = hashlib.sha256(b"".join(path.read_bytes() for path in RUNTIME)).hexdigest()[:24]
    made = BUILD / f"emu-{key}.o"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        part = made.with_suffix(f".{os.getpid()}.o")
        source = str(HERE / "emu.cpp")
        _compile(["g++", "-std=c++17", "-O2", "-g1", "-fPIC", "-c", source, "-o", str(part)])
        part.rename(made)
    return made


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"does not compile: {done.stderr[:3000]}")


def _located(message: str, library: Path) -> str:
    """Replace a message's addresses in the library by files and lines."""
    text, _, where = message.partition(" @")
    address, _, who = where.partition(" ")
    places = {}
    for found in {address, *re.findall(r"0x[0-9a-f]+", text)}:
        if found and int(found, 16) > 0:
            at = hex(int(found, 16) - (found != address))
            command = ["addr2line", "-e", str(library), "-i", at]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line.split("/")[-1] for line in done.stdout.split("\n")]
            ours = [
                line
                for line in lines
                if line and not any(part in line for part in ("msl.h", "??", "cuda_fp16.h"))
            ]
            places[found] = " < ".join(ours[:3])
    for found, place in places.items():
        text = text.replace(found, place)
    return f"{places.get(address, '')}: {text} ({who})"
