"""Compile a kernel's text for Metal with clang's C++ for OpenCL, the strictest that is near to it.

clang knows neither [[kernel]] nor templates of kernels: the signature is written again as OpenCL's,
with the template's arguments as constants at the head of the body, as MLX does for CUDA.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import mlx.core as mx

from support.emulator.run import HERE
from support.emulator.text import METAL_TYPES, Template

EXTENSIONS = "-all,+cl_khr_fp16,-__opencl_c_generic_address_space,-__opencl_c_fp64,-cl_khr_fp64"
COMMAND = [
    *("clang-19", "-x", "cl", "-cl-std=CLC++2021", "-target", "spir64", "-fsyntax-only"),
    *("-Xclang", "-finclude-default-header", "-Xclang", "-fdeclare-opencl-builtins"),
    *("-Xclang", f"-cl-ext={EXTENSIONS}", "-Wall", "-Wextra", "-Werror", "-Wpointer-arith"),
    *("-Wimplicit-float-conversion", "-Wdouble-promotion", "-Wno-unused-parameter"),
    *("-Wno-unused-variable", "-Wno-unknown-attributes", "-Wno-parentheses"),
    *("-Wno-unused-function", "-Wno-unused-but-set-variable", f"-I{HERE}"),
]


def refusal(text: str, template: Template, file: Path) -> str:
    """Return what clang says against a text that `whole_text` made for Metal, or nothing."""
    text = text.partition("\ntemplate [[host_name(")[0]
    head, _, rest = text.rpartition("[[kernel]] void ")
    head = head.rpartition("template <")[0] if template else head
    signature, _, body = rest.partition(") {\n")
    params = [
        re.sub(r" \[\[.*?\]\]", "", part).strip()
        for part in signature.partition("(\n")[2].split(",\n")
    ]
    constants = [
        f"using {name} = {METAL_TYPES[value]};"
        if isinstance(value, mx.Dtype)
        else f"constexpr int {name} = {value};"
        for name, value in template.items()
    ]
    opening = "\n__kernel void strict(\n  " + ",\n  ".join(params) + ") {\n"
    file.write_text(
        '#include "msl_strict.h"\n' + head + opening + "\n".join(constants) + "\n" + body
    )
    done = subprocess.run([*COMMAND, str(file)], capture_output=True, text=True)
    return done.stderr if done.returncode else ""
