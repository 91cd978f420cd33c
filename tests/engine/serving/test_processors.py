"""Changes of logits that requests ask for."""

import mlx.core as mx
import pytest

from engine.serving.processors import LogitBias


def test_a_bias_is_added():
    logits = LogitBias({0: 2.0, 3: -1.0})(mx.array([1]), mx.zeros(4))
    assert logits.tolist() == [2.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("token", [-1, 4, 1_000_000_000])
def test_a_bias_outside_the_vocabulary_is_refused(token):
    with pytest.raises(ValueError, match="outside the vocabulary"):
        LogitBias({0: 1.0, token: 1.0})(mx.array([1]), mx.zeros(4))
