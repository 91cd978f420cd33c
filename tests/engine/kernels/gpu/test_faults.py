"""What the emulator must not let pass: each kernel has one mistake, and a check that sees it."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from engine.kernels.gpu.launch import Gpu
from engine.kernels.gpu.tensor import Grouped
from engine.kernels.gpu.texts import KernelText
from support.emulator.run import Fault, Sparse, run
from support.gpu import NIGHT, needs_compiler, off, vectors, weight

pytestmark = [pytest.mark.process, needs_compiler]
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def broken(old: str, new: str) -> Gpu:
    """Return an emulated GPU whose kernels have a mistake."""

    def launch(kernel: KernelText, *given, **more):
        assert old in kernel.header + kernel.source
        header, source = (text.replace(old, new, 1) for text in (kernel.header, kernel.source))
        if header != kernel.header:
            source = kernel.source
        return run(dataclasses.replace(kernel, header=header, source=source), *given, **more)

    return Gpu(cuda=False, launch=launch, rows=4)


GROUPED = [
    (f"  {BARRIER}\n  threadgroup half* into", "  threadgroup half* into", "read since"),
    (f"  {BARRIER}\n#pragma unroll\n  for (uint k", "#pragma unroll\n  for (uint k", "wrote"),
    (f"{BARRIER}  // the sums go", "// the sums go", "another thread read since"),
    (f"STRIDE, lane);\n{BARRIER}", "STRIDE, lane);\n", "another thread"),
    ("32 * (64 + 8));", "31 * (64 + 8));", "outside of a threadgroup array"),
    ("32 * (64 + 8));", "100 * (64 + 8));", "32 KiB"),
    ("me / 2 < count", "me / 2 < 9999", "past the end|no buffer"),
    ("if (token < used && column < count)", "if (column < count)", "past|no buffer|two threads"),
    ("&& column < count)", "&& column < count - 1)", "nobody writes"),
    ("STRIDE + k, STRIDE, lane", "STRIDE + k + lane / 16, STRIDE, lane", "different arguments"),
    (
        "if (expert == experts) return;",
        "if (expert == experts && lane < 3) return;",
        "come to|no b",
    ),
]
PRODUCT = [
    ("uint(r) < last_row ? uint(r) : last_row", "uint(r)", "past the end|no buffer"),
    ("if (thread_index_in_simdgroup == 0 && ", "if (", "two threads write"),
    ("scaled[4 * i + 3] = x3", "scaled[4 * i + 7] = x3", "indexes past the end"),
    ("block + 16 + 16 * part", "block + 12 + 16 * part", "not aligned"),
    ("float dot = 0.0f;", "float dot = 0.0;  double more = dot;", "does not compile"),
    ("y[ulong(token)", "w[ulong(token)", "does not compile"),
    ("static_cast<T>(sum)", "sum", "does not compile"),
]


def by_mistake(mistakes):
    marked = [
        pytest.param(*mistake, marks=NIGHT if i > 1 else ()) for i, mistake in enumerate(mistakes)
    ]
    return pytest.mark.parametrize(("old", "new", "message"), marked)


@by_mistake(GROUPED)
def test_mistakes_in_the_grouped_product(old: str, new: str, message: str):
    rng = np.random.default_rng(0)
    tensor, _ = weight("Q4_K", (1, 83, 512), broken(old, new))
    x = vectors(rng, 64, 512, dtype=mx.bfloat16)
    tokens = 64 if "lane < 3" in new else 45  # two whole tiles leave a threadgroup idle
    groups = Grouped.of(mx.zeros(tokens, mx.int32), 1)
    with pytest.raises(Fault, match=message):
        tensor.grouped_matmul(x[:tokens], groups)


@by_mistake(PRODUCT)
def test_mistakes_in_a_product(old: str, new: str, message: str):
    tensor, _ = weight("Q4_K", (21, 768), broken(old, new))
    x = vectors(np.random.default_rng(0), 2, 768, dtype=mx.bfloat16)
    with pytest.raises(Fault, match=message):
        tensor.matmul(x)


@pytest.mark.nightly
@pytest.mark.parametrize("operation", ["chosen", "grouped"])
def test_experts_past_four_gibibytes(operation: str):
    experts, count, columns, used = 700, 2048, 6144, (3, 699)
    rng, row = np.random.default_rng(0), 6144 // 256 * 144
    parts = [weight("Q4_K", (64, columns), Gpu(False), seed=e) for e in used]
    held = [
        (e * count * row, np.array(part.blocks)) for e, (part, _) in zip(used, parts, strict=True)
    ]
    stack = Sparse((experts, count, row), held)
    assert stack.nbytes > 4 << 30

    def launch(kernel, inputs, template, grid, threadgroup, shape, dtype):
        across = 32 if operation == "chosen" else 1
        grid = (threadgroup[0] * across, grid[1], 1)  # the rows that are there
        return run(
            *(kernel, [stack, *inputs[1:]], template, grid, threadgroup, shape, dtype), partial=True
        )

    small, _ = parts[0]
    tensor = dataclasses.replace(small, shape=(experts, count, columns), gpu=Gpu(False, launch, 2))
    x, ids = vectors(rng, 2, columns), mx.array(used)
    if operation == "chosen":
        y = tensor.gather_matmul(x[:, None], ids[:, None])[:, 0]
    else:
        y = tensor.grouped_matmul(x, Grouped.of(ids, experts))
    for i, (_, w) in enumerate(parts):
        assert off(y[i : i + 1, :64], np.array(x[i : i + 1]).astype(np.float64), w) < 2.0**-11


def simple(source: str) -> np.ndarray:
    kernel = KernelText("simple", ("x",), "", source, cuda=False)
    x = mx.arange(64, dtype=mx.float32)
    return np.array(run(kernel, [x], {}, (64, 1, 1), (64, 1, 1), (64,), mx.float32))


def test_simdgroups_do_not_run_in_step():
    head = "const uint i = thread_position_in_grid.x, lane = thread_index_in_simdgroup;"
    own = f"SHARED(float, a, 64); {head} a[i] = x[i]; "
    own += "simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = a[(i & 32) + 31 - lane];"
    assert (simple(own).reshape(2, 32) == np.arange(64).reshape(2, 32)[:, ::-1]).all()
    with pytest.raises(Fault, match="another thread"):  # two simdgroups use one array
        simple(own.replace("a[i]", "a[lane]").replace("a[(i & 32) + 31 - lane]", "a[31 - lane]"))
