"""The verdict: arithmetic a reader can redo, on machines that are made up."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
import sys

import pytest

from engine.fit import memory
from engine.fit.machine import Machine
from engine.fit.memory import PROGRAM, judge_size, reserve_bytes, surely_too_large
from engine.gguf.reader import TensorInfo, open_model
from engine.gguf.types import TYPE_BY_NAME
from engine.kernels.sizes import bytes_by_type, loaded_bytes, loaded_size_ratio, resident_bytes
from engine.limits import SCORE_BYTES, prefill_chunk
from engine.nn.cache.spec import kv_bytes
from engine.nn.config import read_config
from support.models import HERE

GB = 10**9
judge = functools.partial(memory.judge, kernels="stock")  # whichever this build would choose
TINY = open_model(HERE / "qwen3moe" / "model.gguf")
CONFIG = read_config(TINY.metadata)
# Qwen3-30B-A3B: 48 layers, 4 kv heads of 128, 32 query heads, 128 experts of 768.
QWEN3_30B = {
    "general.architecture": "qwen3moe",
    "tokenizer.ggml.tokens": [""] * 151_936,
    "qwen3moe.block_count": 48,
    "qwen3moe.context_length": 40_960,
    "qwen3moe.embedding_length": 2048,
    "qwen3moe.feed_forward_length": 6144,
    "qwen3moe.attention.head_count": 32,
    "qwen3moe.attention.head_count_kv": 4,
    "qwen3moe.attention.key_length": 128,
    "qwen3moe.attention.value_length": 128,
    "qwen3moe.attention.layer_norm_rms_epsilon": 1e-6,
    "qwen3moe.expert_count": 128,
    "qwen3moe.expert_used_count": 8,
    "qwen3moe.expert_feed_forward_length": 768,
}


def machine(budget: float, memory: float = 64 * GB, backend: str = "cpu") -> Machine:
    return Machine("made up", backend, int(memory), int(budget), "available memory")


def q4_tensor(gigabytes: float) -> dict[str, TensorInfo]:
    """So much of Q4_K, in a hundred matrices."""
    kind = TYPE_BY_NAME["Q4_K"]
    blocks = int(gigabytes * GB) // 100 // kind.size_bytes
    return {
        name: TensorInfo(name, (blocks, 256), kind, 0, blocks * kind.size_bytes)
        for name in (f"w{i}" for i in range(100))
    }


def test_kv_of_qwen3_30b_at_32k_is_three_gib():
    # 2 (k and v) * 48 layers * 4 heads * 128 values * 2 bytes * 32768 tokens
    config = read_config(QWEN3_30B)
    assert kv_bytes(config.cache_specs, 32_768, "f16") == 2 * 48 * 4 * 128 * 2 * 32_768 == 3 << 30


def test_kv_in_eight_bits_carries_its_scales():
    config = read_config(QWEN3_30B)
    assert kv_bytes(config.cache_specs, 32_768, "q8") == (3 << 30) // 2 * 34 // 32
    assert kv_bytes(config.cache_specs, 32_768, "f32") == 6 << 30


def test_weights_count_what_the_stock_kernels_really_hold():
    # Q4_K is 4.5 bits in the file and 4 + 64/32 = 6 bits repacked with float32 scales.
    on_cpu = judge(read_config(QWEN3_30B), q4_tensor(9), machine(60 * GB))
    on_gpu = judge(read_config(QWEN3_30B), q4_tensor(9), machine(60 * GB, backend="metal"))
    assert on_cpu.need.weights_bytes == pytest.approx(12 * GB, rel=1e-6)
    assert on_gpu.need.weights_bytes == pytest.approx(10 * GB, rel=1e-6)
    assert on_cpu.file_bytes == pytest.approx(9 * GB, rel=1e-6)


def test_the_native_kernels_hold_the_blocks_of_the_file():
    verdict = judge(read_config(QWEN3_30B), q4_tensor(9), machine(60 * GB), kernels="native")
    assert verdict.need.weights_bytes == verdict.file_bytes == pytest.approx(9 * GB, rel=1e-6)


@pytest.mark.parametrize("backend", ["metal", "cuda"])
def test_a_gpu_holds_the_blocks_of_the_file_unless_stock_is_asked_for(backend: str):
    there = machine(60 * GB, backend=backend)
    config, tensors = read_config(QWEN3_30B), q4_tensor(9)
    blocks = judge(config, tensors, there, kernels="auto").need
    stock = judge(config, tensors, there, kernels="stock").need
    assert blocks.weights_bytes == pytest.approx(9 * GB, rel=1e-6)
    assert stock.weights_bytes == pytest.approx(10 * GB, rel=1e-6)


def test_the_native_kernels_buffers_do_not_grow_with_the_context():
    config = read_config(QWEN3_30B)
    tensors = q4_tensor(9)

    def buffers(context: int) -> int:
        verdict = judge(config, tensors, machine(60 * GB), context=context, kernels="native")
        return verdict.need.buffers_bytes

    assert (
        buffers(512)
        == buffers(40_960)
        < judge(config, tensors, machine(60 * GB), context=40_960).need.buffers_bytes
    )
    assert prefill_chunk(config, 40_960, "native") == 512


def test_need_is_the_sum_of_its_parts():
    need = judge(CONFIG, TINY.tensors, machine(8 * GB)).need
    parts = need.weights_bytes + need.kv_bytes + need.buffers_bytes + need.program_bytes
    assert need.total_bytes == parts
    assert min(need.weights_bytes, need.kv_bytes, need.buffers_bytes) > 0
    assert need.program_bytes == PROGRAM + 512 * CONFIG.vocab


def test_verdict_words_follow_the_rule():
    config, tensors = read_config(QWEN3_30B), q4_tensor(18)
    need = judge(config, tensors, machine(60 * GB), context=4096).need.total_bytes
    reserve = reserve_bytes(machine(0))

    def kind(budget: float) -> str:
        return judge(config, tensors, machine(budget), context=4096).kind

    assert kind(1.02 * need + reserve + 1) == "fits"
    assert kind(1.02 * need + reserve - 2) == "tight"
    assert kind(need) == "tight"
    assert kind(need - 1) == "too_large"


def test_default_context_is_the_smallest_of_four_limits():
    config, tensors = read_config(QWEN3_30B), q4_tensor(9)
    assert judge(config, tensors, machine(60 * GB)).context == 32_768
    assert judge(config, tensors, machine(60 * GB), default_context=8192).context == 8192
    assert judge(CONFIG, TINY.tensors, machine(60 * GB)).context == CONFIG.context == 2048
    small = judge(config, tensors, machine(16 * GB))
    assert small.kind == "fits"
    assert 256 <= small.context < 32_768
    assert judge(config, tensors, machine(16 * GB), context=small.context + 512).kind != "fits"


def test_largest_context_is_the_last_that_is_not_too_large():
    config, tensors = read_config(QWEN3_30B), q4_tensor(9)
    largest = judge(config, tensors, machine(15 * GB)).largest_context
    assert 0 < largest < config.context
    assert judge(config, tensors, machine(15 * GB), context=largest).kind == "tight"
    assert judge(config, tensors, machine(15 * GB), context=largest + 256).kind == "too_large"
    assert judge(config, tensors, machine(5 * GB)).largest_context == 0


def test_verdicts_are_monotone_in_memory_and_context():
    config, tensors = read_config(QWEN3_30B), q4_tensor(18)
    order = ["too_large", "tight", "fits"]
    by_memory = [
        order.index(judge(config, tensors, machine(b * GB), context=16_384).kind)
        for b in range(4, 64, 2)
    ]
    assert by_memory == sorted(by_memory)
    assert by_memory[0] == 0 and by_memory[-1] == 2
    needs = [
        judge(config, tensors, machine(30 * GB), context=c).need.total_bytes
        for c in range(256, 40_960, 1024)
    ]
    assert all(a < b for a, b in itertools.pairwise(needs))


def test_size_alone_refuses_only_what_cannot_fit():
    assert judge_size(18_556_685_824, machine(16 * GB)).kind == "too_large"
    verdict = judge_size(18_556_685_824, machine(64 * GB))
    assert (verdict.kind, verdict.estimated) == ("fits", True)
    assert verdict.need.total_bytes == 18_556_685_824 + PROGRAM


def test_size_alone_is_certain_beyond_what_layers_that_only_draft_take():
    assert judge_size(30 * GB, machine(30 * GB)).kind == "too_large"
    assert not surely_too_large(30 * GB, machine(30 * GB))
    assert surely_too_large(31 * GB, machine(30 * GB))  # 0.97 x 31 = 30.07


def test_an_estimate_counts_what_repacking_adds():
    # Q4_K 6 / 4.5, Q6_K 10 / 6.5625 bits on a CPU: three parts of one and one of the other.
    assert loaded_size_ratio("Q4_K_M", "cpu", "stock") == pytest.approx(
        0.75 * 6 / 4.5 + 0.25 * 10 / 6.5625
    )
    assert loaded_size_ratio("Q4_0", "cpu", "stock") == pytest.approx(6 / 4.5)
    assert loaded_size_ratio("Q8_0", "metal", "stock") == pytest.approx(9 / 8.5)
    for unchanged in ("MXFP4", "NVFP4", "FP16"):
        assert loaded_size_ratio(unchanged, "cpu", "stock") == 1
    assert loaded_size_ratio("IQ1_S", "cpu", "stock") == pytest.approx(4 / 1.5625)
    # Named after a type that most of its weights do not have.
    mix = 0.75 * 10 / 3.0625 + 0.25 * 10 / 6.5625
    assert loaded_size_ratio("UD-Q3_K_XL", "cpu", "stock") == pytest.approx(mix, rel=0.1)
    # Of Qwen3-30B-A3B with 16-bit scales, tensor by tensor: 18.56 GB become 21.8.
    assert loaded_size_ratio("Q4_K_M", "metal", "stock") == pytest.approx(21.8 / 18.56, rel=0.01)
    assert loaded_size_ratio("Q4_K_M", "cpu", "native") == 1


# Shares of the weights by type, in published files.
MIXES = {
    "UD-IQ1_S": {"IQ1_S": 40, "IQ1_M": 10, "IQ2_XXS": 16, "IQ2_S": 15, "IQ3_XXS": 17, "Q6_K": 2},
    "UD-TQ1_0": {"IQ1_S": 80, "IQ2_XXS": 17, "Q4_K": 2, "Q6_K": 1},
    "UD-Q2_K_XL": {"IQ2_XS": 60, "IQ3_XXS": 34, "IQ4_XS": 3, "Q5_K": 2, "Q6_K": 1},
    "UD-Q3_K_XL": {"IQ3_XXS": 64, "IQ4_XS": 32, "Q8_0": 4},
    "UD-Q3_K_M": {"IQ3_XXS": 60, "IQ4_XS": 38, "Q6_K": 2},
    "IQ1_M": {"IQ1_M": 90, "IQ2_XXS": 8, "Q6_K": 2},
    "IQ3_M": {"IQ3_S": 85, "Q4_K": 13, "Q6_K": 2},
}


@pytest.mark.parametrize("quant", MIXES)
@pytest.mark.parametrize("device", ["cpu", "metal"])
@pytest.mark.parametrize("known", [True, False])
def test_an_estimate_of_a_mix_is_never_below_what_its_tensors_take(quant, device, known):
    tensors = {
        name: TensorInfo(
            name,
            (share, 2560),
            kind := TYPE_BY_NAME[name],
            0,
            share * 2560 // kind.weights * kind.size_bytes,
        )
        for name, share in MIXES[quant].items()
    }
    weights = sum(2560 * share for share in MIXES[quant].values())
    size_bytes = sum(bytes_by_type(tensors).values())
    exact = sum(resident_bytes(info, device, "stock") for info in tensors.values())
    counts = weights if known else None
    assert loaded_bytes(quant, size_bytes, counts, device, "stock") >= 0.999 * exact
    assert loaded_bytes(quant, size_bytes, counts, device, "native") == size_bytes


@pytest.mark.parametrize("context", [256, 4096, 32_768, 1 << 20])
def test_prefill_chunks_bound_the_scores(context: int):
    config = read_config(QWEN3_30B)
    chunk = prefill_chunk(config, context, "stock")
    assert 16 <= chunk <= 512
    assert chunk == 16 or 4 * max(config.heads) * chunk * context <= SCORE_BYTES
    assert prefill_chunk(config, 256, "stock") == 512


def test_matrices_in_half_precision_are_widened_on_a_cpu_only():
    kind = TYPE_BY_NAME["F16"]
    tensors = {"w": TensorInfo("w", (1 << 20, 64), kind, 0, 128 << 20)}
    on_cpu = judge(CONFIG, tensors, machine(9 * GB), context=256).need.buffers_bytes
    on_gpu = judge(CONFIG, tensors, machine(9 * GB, backend="cuda"), context=256).need.buffers_bytes
    assert on_cpu - on_gpu == 256 << 20


def test_a_stack_of_experts_in_half_precision_is_widened_anywhere():
    kind = TYPE_BY_NAME["F16"]
    one = {"w": TensorInfo("w", (1 << 20, 64), kind, 0, 128 << 20)}
    stack = {"w": TensorInfo("w", (4, 1 << 18, 64), kind, 0, 128 << 20)}
    cuda = machine(9 * GB, backend="cuda")
    matrix, experts = (judge(CONFIG, t, cuda, context=256).need.buffers_bytes for t in (one, stack))
    assert experts - matrix == 256 << 20


def test_attention_on_top_of_native_kernels_keeps_scores():
    tensors = q4_tensor(9)
    plain = judge(read_config(QWEN3_30B), tensors, machine(60 * GB), context=40_960)
    native = functools.partial(judge, tensors=tensors, machine=machine(60 * GB), kernels="native")
    name = "blk.0.ffn_up_shexp.bias"  # keeps the layers apart
    biased = tensors | {name: dataclasses.replace(tensors["w0"], name=name)}
    fused = native(read_config(QWEN3_30B), context=40_960).need.buffers_bytes
    apart = memory.judge(
        read_config(QWEN3_30B), biased, machine(60 * GB), context=40_960, kernels="native"
    )
    assert fused < apart.need.buffers_bytes == plain.need.buffers_bytes


def test_repacking_holds_the_largest_matrix_once_more():
    tensors = q4_tensor(9)
    need = judge(CONFIG, tensors, machine(60 * GB), context=256).need
    assert need.buffers_bytes == need.weights_bytes / 100 + memory.REPACKED_PIECE
    native = judge(CONFIG, tensors, machine(60 * GB), context=256, kernels="native").need
    assert native.buffers_bytes < need.buffers_bytes / 10


@pytest.mark.process
@pytest.mark.parametrize("name", ["memory", "speed", "estimate", "machine", "machine_specs"])
def test_the_arithmetic_imports_no_mlx_and_no_numpy(name: str):
    code = f"import sys, engine.fit.{name}; assert not {{'mlx', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize("name", ["qwen3moe", "deepseek2-v3"])
def test_a_longer_chunk_of_a_streamed_prompt_is_for_experts_alone(name):
    file = open_model(HERE / name / "model.gguf")
    config = read_config(file.metadata)

    def longer(**changes):
        changed = dataclasses.replace(config, **changes)
        found = memory.streamed_experts(changed, file.tensors, "cpu", "native")
        return found.buffers_bytes

    assert longer(heads=tuple(4 * n for n in config.heads)) == longer() > 0
    wider = dataclasses.replace(config.experts, width=config.experts.width + 256)
    more = 4 * 256 + 256 + 7 * 32  # a value in float32, and in 8 bits with sums and scales
    assert longer(experts=wider) - longer() == 1536 * config.experts.used * more
