"""Eleven ways in which other programs' verdicts have been wrong, each held against ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from catalog import entries
from conifer_cli.fit.alternatives import estimate_of
from engine.fit.estimate import estimate_needs, judge_estimate
from engine.fit.machine import Machine, cuda_machine, linux_cpu
from engine.fit.machine_specs import simulate
from engine.fit.memory import judge
from engine.fit.speed import bytes_per_token
from engine.gguf.reader import open_model
from engine.limits import prefill_chunk
from engine.nn.cache.spec import kv_bytes, kv_read_bytes
from engine.nn.config import read_config
from support.giants import write_deepseek_v3, write_qwen3_235b
from support.headers import metadata
from support.program import MODELS, run_unplugged

GIB, GB = 1 << 30, 10**9


def estimate(name: str, quant: str | None = None):
    entry = entries()[name]
    return estimate_of(entry, entry.file(quant))


def cpu(memory_bytes: float) -> Machine:
    return Machine("made up", "cpu", int(memory_bytes), int(memory_bytes), "available memory")


def kind(name: str, machine: Machine, context: int | None = None, quant: str | None = None) -> str:
    kernels = "native" if machine.backend == "cpu" else "stock"
    return judge_estimate(estimate(name, quant), machine, context, kernels=kernels).kind


def test_1_memory_is_by_all_parameters_and_speed_by_the_active_ones(tmp_path):
    # 73 GB, of which 12 of 106 B are active: memory is that of all, even if experts may stay out
    assert kind("glm-4.5-air", cpu(33 * GB)) == "streams"
    assert kind("glm-4.5-air", cpu(80 * GB)) == "fits"
    file = open_model(write_qwen3_235b(tmp_path, 1)[0])
    config = read_config(file.metadata)
    need = judge(config, file.tensors, cpu(300 * GB), kernels="native").need
    assert need.weights_bytes == sum(info.size_bytes for info in file.tensors.values())
    moved = bytes_per_token(config, file.tensors, "cpu", "native", 0, "f16")
    assert moved.experts_bytes * 128 == pytest.approx(need.weights_bytes * 8, rel=0.05)
    assert moved.weights_bytes < need.weights_bytes / 9


@pytest.mark.parametrize("gib", [8, 12, 16, 24])
def test_2_mixtral_needs_what_its_file_weighs(gib: int):
    assert kind("mixtral-8x7b-instruct", cpu(gib * GIB), quant="Q4_K_M") == "streams"
    assert kind("mixtral-8x7b-instruct", cpu(32 * GIB), quant="Q4_K_M") == "fits"


def test_3_a_heads_width_is_the_files_not_width_over_heads(tmp_path):
    config = read_config(open_model(write_qwen3_235b(tmp_path, 1)[0]).metadata)
    assert config.width // config.heads[0] == 64 != config.key_dim
    assert kv_bytes(config.cache_specs, 32_768, "f16") == 2 * 94 * 4 * 128 * 2 * 32_768
    spec = estimate("gpt-oss-20b").cache_specs[0]
    assert spec.buffers == ((1, 2 * 8 * 64),)  # and not 2880 / 64 = 45


def test_4_a_mixtures_cache_is_by_its_layers_not_by_its_parameters():
    need = estimate_needs(estimate("qwen3-30b-a3b"), "cpu", "f16", "native")
    assert need(32_768).kv_bytes == 3 * GIB


def test_5_layers_that_keep_less_are_counted_as_less(tmp_path):
    state = 36 * 548_864 * 4 * 3  # bytes, with the states to go back to
    need = estimate_needs(estimate("qwen3-next-80b-a3b"), "cpu", "f16", "native")
    assert need(32_768).kv_bytes - state == int(0.75 * GIB)
    config = read_config(open_model(write_deepseek_v3(tmp_path, 1)[0]).metadata)
    for found in (
        kv_bytes(config.cache_specs, 32_768, "f16"),
        estimate_needs(estimate("deepseek-v3.1"), "cpu", "f16", "native")(32_768).kv_bytes,
    ):
        assert found == 61 * 576 * 2 * 32_768
        assert found / GIB == pytest.approx(2.14, abs=0.01)


@pytest.mark.process
def test_6_the_whole_context_is_not_assumed_and_every_figure_is_a_number(tmp_path):
    verdict = judge_estimate(estimate("qwen3-coder-30b-a3b"), cpu(32 * GIB), kernels="native")
    assert (verdict.kind, verdict.context) == ("fits", 32_768)
    assert verdict.largest_context < 262_144
    done = run_unplugged("fit", "--json", home=tmp_path)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} in the output"))
    shown = run_unplugged("fit", home=tmp_path).stdout.decode().lower()
    assert "nan" not in re.findall(r"[a-z]+", shown)


def test_7_unified_memory_is_counted_once():
    for name in ("m1-8gb", "m2-pro-32gb", "m4-max-128gb", "m3-ultra-512gb", "gb10"):
        machine, _ = simulate(name)
        assert machine.budget_bytes < 0.99 * machine.memory_bytes
    machine, _ = simulate("m2-pro-32gb")
    assert machine.budget_bytes < 32 * GIB * 0.75


def test_8_a_model_that_just_ran_is_credited_and_other_processes_are_not(tmp_path):
    files = {
        "proc/meminfo": "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 31457280 kB\n",
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": str(24 * GIB),
        "sys/fs/cgroup/job/memory.current": str(21 * GIB),
        # 18 GiB of a mapped model that was read twice, 1 GiB read once, 2 GiB of processes.
        "sys/fs/cgroup/job/memory.stat": f"active_file {18 * GIB}\ninactive_file {GIB}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = linux_cpu(tmp_path)
    assert machine.budget_bytes == 22 * GIB
    assert kind("qwen3-30b-a3b", machine, 4096, "Q4_K_M") == "fits"
    assert cuda_machine("card", 80 * GIB, 30 * GIB).budget_bytes == 30 * GIB


@pytest.mark.process
def test_9_every_option_ends_in_a_verdict_and_drafting_blocks_are_not_counted(tmp_path):
    path = str(MODELS / "qwen3moe" / "model.gguf")
    for more in (("--total",), ("--kernels", "stock"), ("--kv-type", "q8"), ("--memory", "8GB")):
        done = run_unplugged("fit", path, "--json", *more, home=tmp_path)
        assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "fits")
    plain, drafting = (
        read_config(metadata("qwen3moe", block_count=count, nextn_predict_layers=extra))
        if extra
        else read_config(metadata("qwen3moe", block_count=count))
        for count, extra in ((2, 0), (3, 1))
    )
    assert kv_bytes(plain.cache_specs, 4096, "f16") == kv_bytes(drafting.cache_specs, 4096, "f16")
    file = open_model(Path(path))
    config = read_config(file.metadata)
    beyond = {
        name.replace("blk.0.", f"blk.{config.layers}."): info
        for name, info in file.tensors.items()
        if name.startswith("blk.0.")
    }
    with_draft = judge(config, {**file.tensors, **beyond}, cpu(8 * GB), kernels="stock").need
    assert (
        with_draft.weights_bytes
        == judge(config, file.tensors, cpu(8 * GB), kernels="stock").need.weights_bytes
    )


@pytest.mark.process
def test_10_gb_and_gib_are_told_apart(tmp_path):
    budgets = {}
    for text in ("32GB", "32GiB", "29.8GiB"):
        done = run_unplugged("fit", "smollm2-135m", "--memory", text, "--json", home=tmp_path)
        budgets[text] = json.loads(done.stdout)["machine"]["memory_bytes"]
    assert budgets == {"32GB": 32 * GB, "32GiB": 32 * GIB, "29.8GiB": int(29.8 * GIB)}
    both = run_unplugged("fit", "smollm2-135m", home=tmp_path).stdout.decode()
    assert "GB" in both and "GiB" in both


def test_11_the_peak_of_prefill_is_counted(tmp_path):
    machine, _ = simulate("m2-pro-32gb")  # where others' 4-bit files swap at 8,000 tokens
    assert kind("qwen3.5-35b-a3b", machine, 8192) != "fits"
    file = open_model(write_qwen3_235b(tmp_path, 1)[0])
    config = read_config(file.metadata)
    need = judge(config, file.tensors, cpu(400 * GB), context=32_768, kernels="stock").need
    scores = 4 * max(config.heads) * prefill_chunk(config, 32_768, "stock") * 32_768
    assert need.buffers_bytes > 2 * scores > 0
    specs = config.cache_specs
    assert kv_read_bytes(specs, 32_768, "f16") == kv_bytes(specs, 32_768, "f16")
