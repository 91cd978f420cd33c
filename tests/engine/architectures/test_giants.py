"""Models of hundreds of gigabytes are sized exactly from headers alone, without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.fit.machine import Machine
from engine.fit.memory import judge
from engine.gguf.reader import ModelFile, open_model
from engine.kernels.sizes import resident_bytes
from engine.nn.cache.spec import kv_read_bytes
from engine.nn.config import count_parameters, read_config
from support.giants import write_deepseek_v3, write_qwen3_235b

WRITERS = {"deepseek-v3": write_deepseek_v3, "qwen3-235b": write_qwen3_235b}
# Published parameter counts (safetensors indices, without DeepSeek's draft-only layer), and the
# parameters that stay F32: norms, routers and selection biases.
TOTAL = {"deepseek-v3": 671_026_419_200, "qwen3-235b": 235_093_634_560}
KEPT = {
    "deepseek-v3": 61 * (2 * 7168 + 1536 + 512) + 7168 + 58 * (256 * 7168 + 256),
    "qwen3-235b": 94 * (2 * 4096 + 2 * 128 + 128 * 4096) + 4096,
}
KV = {"deepseek-v3": 61 * 576, "qwen3-235b": 94 * 4 * (128 + 128)}  # values per token


@pytest.fixture(scope="module", params=list(WRITERS))
def giant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return a large model's name and header, from 13 parts; the first contains only metadata."""
    paths = WRITERS[request.param](tmp_path_factory.mktemp("giant"), 13)
    assert len(paths) == 13
    return request.param, open_model(paths[0])


def machine(memory_bytes: int) -> Machine:
    return Machine("test machine", "cpu", memory_bytes, memory_bytes, "memory")


def test_parameters_are_counted_as_published(giant: tuple[str, ModelFile]):
    name, file = giant
    total, active = count_parameters(read_config(file.metadata), file.tensors)
    assert total == TOTAL[name]
    # Published as 37B and 22B, which include the whole embedding.
    assert active == {"deepseek-v3": 36_625_625_600, "qwen3-235b": 21_568_437_760}[name]


def test_weights_take_what_the_tensors_of_all_parts_take(giant: tuple[str, ModelFile]):
    name, file = giant
    verdict = judge(read_config(file.metadata), file.tensors, machine(1 << 40), kernels="stock")
    in_file = 4 * KEPT[name] + (TOTAL[name] - KEPT[name]) // 32 * 34
    assert verdict.file_bytes == in_file == sum(t.size_bytes for t in file.tensors.values())
    assert all(resident_bytes(t, "cpu", "native") == t.size_bytes for t in file.tensors.values())
    stock = 4 * KEPT[name] + (TOTAL[name] - KEPT[name]) // 32 * 40  # float32 scale and bias
    assert verdict.need.weights_bytes == stock


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
def test_the_cache_takes_what_the_shapes_say(giant: tuple[str, ModelFile], kv_type: str):
    name, file = giant
    config = read_config(file.metadata)
    verdict = judge(config, file.tensors, machine(2 << 40), 8192, kv_type)
    assert verdict.need.kv_bytes == 8192 * KV[name] * {"f16": 2, "f32": 4}[kv_type]
    assert kv_read_bytes(config.cache_specs, 4096, "f16") == 4096 * KV[name] * 2


def test_the_verdict_turns_where_the_memory_is(giant: tuple[str, ModelFile]):
    _, file = giant
    config = read_config(file.metadata)
    kinds = [judge(config, file.tensors, machine(gib << 30), 4096).kind for gib in (32, 128, 4096)]
    assert kinds == ["streams", "streams", "fits"]
    need = judge(config, file.tensors, machine(1 << 40), 4096).need.total_bytes
    assert judge(config, file.tensors, machine(need), 4096).kind == "tight"
    assert judge(config, file.tensors, machine(need - 1), 4096).kind == "streams"
    assert judge(config, file.tensors, machine(4 << 30), 4096).kind == "too_large"


def test_parts_change_nothing(giant: tuple[str, ModelFile], tmp_path: Path):
    name, file = giant
    (whole,) = WRITERS[name](tmp_path, 1)
    one = open_model(whole)
    assert one.tensors.keys() == file.tensors.keys()
    config = read_config(one.metadata)
    assert config == read_config(file.metadata)
    verdicts = [judge(config, f.tensors, machine(300 << 30)) for f in (one, file)]
    assert verdicts[0] == verdicts[1]
