"""One turn of mlx-lm on a dense `llama` model such as the starter. See turns.py.

mlx-lm does not read GGUF: MLX's own loader does, and repacks the weights into MLX's groups of 32;
what it has no form for becomes float16. So this is mlx-lm's program on weights repacked.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import turns
from mlx_lm.generate import generate_step
from mlx_lm.models import llama

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main() -> None:
    """Run the turn."""
    job = turns.read_job()
    mx.set_default_device(mx.cpu)
    model = load(job.model)

    def answer(tokens: list[int], count: int) -> tuple[float, float, int]:
        started = time.perf_counter()
        steps = generate_step(mx.array(tokens), model, max_tokens=count + 1)
        token, _ = next(steps)
        first = time.perf_counter()
        for _ in steps:
            pass
        return first - started, time.perf_counter() - first, int(token)

    figures, said = turns.measure(job, model.args.vocab_size, answer)
    names = ("mlx-lm", "mlx")
    about = {
        "weights": "repacked by MLX's GGUF loader",
        **{name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
    }
    turns.finish(figures, said, about, turns.peak_memory_bytes())


def load(path: str) -> llama.Model:
    """Build mlx-lm's model with the weights of the file."""
    weights, metadata = mx.load(path, return_metadata=True)
    if metadata["general.architecture"] != "llama":
        raise SystemExit("mlx-lm is compared on the starter only")
    weights = {rename(name): array for name, array in weights.items()}
    model = llama.Model(arguments(metadata, weights))
    nn.quantize(model, class_predicate=lambda place, _: form(place, weights))
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model


def rename(name: str) -> str:
    """Turn a tensor's GGUF name into mlx-lm's."""
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name)
    if block:
        return f"model.layers.{block[1]}.{NAMES[block[2]]}.{block[3]}"
    stem, _, kind = name.partition(".")
    return f"{NAMES[stem]}.{kind}"


def arguments(metadata: dict[str, Any], weights: dict[str, mx.array]) -> llama.ModelArgs:
    """Read mlx-lm's hyper-parameters; GGUF holds queries and keys in the traditional order."""

    def number(key: str) -> Any:
        return metadata[f"llama.{key}"].item()

    return llama.ModelArgs(
        model_type="llama",
        hidden_size=number("embedding_length"),
        num_hidden_layers=number("block_count"),
        intermediate_size=number("feed_forward_length"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        vocab_size=weights["model.embed_tokens.weight"].shape[0],
        rope_theta=number("rope.freq_base"),
        rope_traditional=True,
        tie_word_embeddings="lm_head.weight" not in weights,
    )


def form(place: str, weights: dict[str, mx.array]) -> dict[str, int] | bool:
    """Say in how many bits a layer's weights are held: packed words against groups of 32."""
    scales = weights.get(f"{place}.scales")
    if scales is None:
        return False
    return {"group_size": 32, "bits": weights[f"{place}.weight"].shape[-1] // scales.shape[-1]}


if __name__ == "__main__":
    main()
