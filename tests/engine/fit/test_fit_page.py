"""The example of docs/fit.md, held to what the code computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.fit.machine_specs import simulate
from engine.fit.memory import needs
from engine.fit.prefill import prompt_seconds, prompt_work
from engine.fit.speed import DECODE_COSTS, MEASURED, Bandwidth, bytes_per_token, seconds
from engine.gguf.reader import TensorInfo
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.sizes import resident_bytes
from engine.nn.config import read_config

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "fit.md").read_text()
FITTED = json.loads((ROOT / "benchmarks" / "results" / "fit-speed.json").read_text())
WIDTH, HIDDEN, VOCAB, EXPERTS = 2048, 768, 151_936, 128
KEYS = {
    "general.architecture": "qwen3moe",
    "tokenizer.ggml.tokens": [""] * VOCAB,
    "qwen3moe.block_count": 48,
    "qwen3moe.context_length": 40_960,
    "qwen3moe.embedding_length": WIDTH,
    "qwen3moe.feed_forward_length": 6144,
    "qwen3moe.attention.head_count": 32,
    "qwen3moe.attention.head_count_kv": 4,
    "qwen3moe.attention.key_length": 128,
    "qwen3moe.attention.value_length": 128,
    "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen3moe.expert_count": EXPERTS,
    "qwen3moe.expert_used_count": 8,
    "qwen3moe.expert_feed_forward_length": HIDDEN,
}


def tensors() -> dict[str, TensorInfo]:
    """The tensors of a Q4_K_M file, as `llama-quantize` makes it."""
    made = [
        ("token_embd.weight", (VOCAB, WIDTH), "Q4_K"),
        ("output.weight", (VOCAB, WIDTH), "Q6_K"),
        ("output_norm.weight", (WIDTH,), "F32"),
    ]
    for layer in range(48):
        at, more = f"blk.{layer}.", "Q6_K" if layer % 2 else "Q4_K"
        made += [(f"{at}{name}_norm.weight", (WIDTH,), "F32") for name in ("attn", "ffn")]
        made += [(f"{at}attn_{name}_norm.weight", (128,), "F32") for name in "qk"]
        made += [
            (at + "attn_q.weight", (4096, WIDTH), "Q4_K"),
            (at + "attn_k.weight", (512, WIDTH), "Q4_K"),
            (at + "attn_v.weight", (512, WIDTH), more),
            (at + "attn_output.weight", (WIDTH, 4096), "Q4_K"),
            (at + "ffn_gate_inp.weight", (EXPERTS, WIDTH), "F32"),
            (at + "ffn_gate_exps.weight", (EXPERTS, HIDDEN, WIDTH), "Q4_K"),
            (at + "ffn_up_exps.weight", (EXPERTS, HIDDEN, WIDTH), "Q4_K"),
            (at + "ffn_down_exps.weight", (EXPERTS, WIDTH, HIDDEN), more),
        ]
    return {name: tensor(name, shape, kind) for name, shape, kind in made}


def tensor(name: str, shape: tuple[int, ...], kind: str) -> TensorInfo:
    type, weights = TYPE_BY_NAME[kind], 1
    for length in shape:
        weights *= length
    return TensorInfo(name, shape, type, 0, weights // type.weights * type.size_bytes)


CONFIG, TENSORS = read_config(KEYS), tensors()


def total(*parts: str) -> int:
    return sum(i.size_bytes for n, i in TENSORS.items() if any(part in n for part in parts))


def assert_on_page(*numbers: int) -> None:
    for number in numbers:
        assert f"{number:,}" in PAGE, number


def test_the_pages_weights_are_the_files():
    rows = [
        total("gate_exps", "up_exps"),
        total("down_exps"),
        total("attn_q.", "attn_output"),
        total("attn_k.", "attn_v."),
        total("gate_inp"),
        total("norm"),
        total("token_embd"),
        total("output.weight") - total("attn_output"),
    ]
    assert_on_page(*rows, sum(rows))
    assert sum(rows) == sum(info.size_bytes for info in TENSORS.values()) == 18_550_716_416


def test_the_pages_need_is_the_codes():
    need = needs(CONFIG, TENSORS, "cpu", "f16", "native")(32_768)
    parts = (need.weights_bytes, need.kv_bytes, need.buffers_bytes, need.program_bytes)
    assert_on_page(*parts, need.total_bytes)
    assert f"{need.total_bytes / 2**30:.2f} GiB" in PAGE
    assert f"{1.02 * need.total_bytes / 2**30 + 0.04 * 32:.2f} <= 30" in PAGE
    held = sum(resident_bytes(info, "metal", "stock") for info in TENSORS.values())
    assert_on_page(held)


def test_the_pages_speed_is_the_codes():
    pace, bandwidth = DECODE_COSTS["cpu, native"], Bandwidth(16e9, MEASURED)
    start, end = (bytes_per_token(CONFIG, TENSORS, "cpu", "native", d, "f16") for d in (0, 32_768))
    assert_on_page(start.experts_bytes, start.attention_bytes, start.shared_bytes)
    assert_on_page(start.head_bytes, start.weights_bytes, end.kv_bytes)
    for moved, text in ((start, "{:.1f} at the start"), (end, "{:.1f} at 32,768")):
        rate = 1 / seconds(moved, 48, bandwidth, "cpu", "native")
        assert text.format(rate) in PAGE.replace("\n", " ")
    assert f"{pace.weights:g} x {start.weights_bytes:,}" in PAGE
    assert f"{pace.kv:g} x {end.kv_bytes:,}" in PAGE


@pytest.mark.parametrize(
    ("name", "backend", "kernels", "said"),
    [
        (
            "m4-max-64gb",
            "metal",
            "stock",
            ("9.23 ms, or 108", "59.6 tokens/s", "5.4 s to the first"),
        ),
        ("ryzen-7950x-64gb", "cpu", "native", ("39.2 ms, or 25.5", "10.6", "14.2 s")),
    ],
)
def test_the_pages_machines_are_the_codes(
    name: str, backend: str, kernels: str, said: tuple[str, str, str]
):
    _, bandwidth = simulate(name)
    start, end = (bytes_per_token(CONFIG, TENSORS, "cpu", "native", d, "f16") for d in (0, 32_768))
    start_s, end_s = (seconds(moved, 48, bandwidth, backend, kernels) for moved in (start, end))
    held = sum(info.size_bytes for info in TENSORS.values())
    prompt_s = prompt_seconds(prompt_work(CONFIG, TENSORS, held), 4096, bandwidth, backend)
    page = PAGE.replace("\n", " ")
    assert all(text in page for text in said)
    assert said[0] == f"{1e3 * start_s:.3g} ms, or {1 / start_s:.3g}"
    assert said[1].split()[0] == f"{1 / end_s:.3g}"
    assert said[2].split()[0] == f"{prompt_s:.1f}"


ROWS = {"cpu, native": "CPU here, native", "cpu, stock": "CPU here, stock"} | {
    "ampere": "NVIDIA Ampere",
    "ada": "NVIDIA Ada and later",
    "gb10": "GB10",
    "cpu, others": "CPU elsewhere",
}


@pytest.mark.parametrize("key", DECODE_COSTS)
def test_the_pages_constants_are_the_codes(key: str):
    name = ROWS.get(key, key.upper())
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    cost = DECODE_COSTS[key]
    assert [float(cell) for cell in cells[1:4]] == [cost.weights, cost.kv, cost.reuse]
    assert float(cells[4].split()[0]) * 1e6 == cost.layer_bytes
    assert [float(cell.split()[0]) for cell in cells[5:7]] == pytest.approx(
        [1e3 * cost.layer_s, 1e3 * cost.routed_s]
    )
    assert cells[7] == f"x{cost.low:g} to x{cost.high:g}"


@pytest.mark.parametrize("group", FITTED)
def test_the_codes_constants_are_those_that_were_fitted(group: str):
    found = FITTED[group]
    for key, reports in found["chips"].items():
        cost, values = DECODE_COSTS[key], found["values"]
        first = {"m3": "m2", "m5": "m4"}.get(key, key)
        layer_ms = values.get(f"layer_ms {first}", values.get("layer_ms"))
        assert 1e3 * cost.layer_s == pytest.approx(layer_ms, rel=0.02)
        assert cost.weights == pytest.approx(values["weights"], rel=0.01)
        assert cost.kv == pytest.approx(values["kv"], rel=0.01)
        assert cost.reuse == pytest.approx(values["reuse"], rel=0.01)
        routed_ms = (values.get("routed", 1) - 1) * layer_ms
        assert 1e3 * cost.routed_s == pytest.approx(routed_ms, rel=0.02)
        row = next(
            x for x in PAGE.splitlines() if x.startswith(f"| {ROWS.get(key, key.upper())} |")
        )
        assert f"| {reports} reports, " in row


@pytest.mark.parametrize("group", FITTED)
def test_reports_that_were_left_out_are_inside_the_printed_range(group: str):
    for figures in FITTED[group]["left_out"].values():
        assert 0.88 <= figures["median"] <= 1.14
        assert figures["inside"] >= 0.9
    for key in FITTED[group]["chips"]:
        assert DECODE_COSTS[key].low >= 0.6 and DECODE_COSTS[key].high <= 1.6
