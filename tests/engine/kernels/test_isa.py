"""The instruction sets that the native kernels can be told to use."""

from __future__ import annotations

import numpy as np
import pytest

import engine
from engine.errors import BackendError
from engine.kernels import native
from engine.kernels.select import select
from support.models import HERE
from support.program import run_unplugged

QWEN = HERE / "qwen3moe" / "model.gguf"

pytestmark = pytest.mark.skipif(native.unavailable_reason() is not None, reason="no extension")


@pytest.fixture
def isas():
    yield select("native").native.isas()
    select("native")  # the best again, for the tests that follow


def test_every_instruction_set_computes_the_same_model(isas):
    tokens = list(range(3, 40))
    results = {}
    for isa in isas:
        model = engine.load(QWEN, kernels="native", isa=isa)
        results[model.kernels.isa] = np.array(model.logits(tokens))
    assert len(results) == len(isas)
    expected = results[native.isa()]
    for name, logits in results.items():
        assert np.abs(logits - expected).max() < 0.1 * expected.std(), name


def test_a_model_loaded_without_one_uses_the_best(isas):
    select("native", isa=isas[0])
    assert select("native").isa == native.isa()
    assert select("native", isa=isas[-1]).isa == native.isa()


def test_an_unknown_instruction_set_is_refused(isas):
    with pytest.raises(BackendError, match=rf"are {', '.join(isas)}, not 'mmx'"):
        engine.load(QWEN, isa="mmx")
    with pytest.raises(BackendError, match="only the native kernels"):
        engine.load(QWEN, kernels="stock", isa=isas[0])


@pytest.mark.process
def test_the_command_line_names_what_the_processor_has(tmp_path):
    done = run_unplugged("run", str(QWEN), "-p", "x", "--isa", "mmx", home=tmp_path)
    assert done.returncode == 2
    assert b"'mmx'" in done.stderr and b"portable" in done.stderr
