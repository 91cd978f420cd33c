"""Compare with transformers on random models of other shapes than the fixtures': held_out.json.

    python make_held_out.py LLAMA_CPP [CASE...]

held_out.json holds, by case, the class of transformers, its configuration, the seed of weights and
tokens, and what was measured: the largest difference of our logits from transformers', prompt and
decoded, in standard deviations of the logits, by kernels. "published" is what the publishers'
configurations say and transformers does not save, or null for what only transformers saves. This
makes each model anew, measures, and writes the figures. Needs torch, transformers and the engine;
LLAMA_CPP is a source tree of llama.cpp, whose converter writes the model files, so that their form
is not ours either.
"""

import contextlib
import copy
import io
import json
import logging
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
import engine  # noqa: E402 (its folder is put on the path above)
from support.parity import KERNELS, decoded_logits  # noqa: E402
from support.vocab import byte_vocabulary  # noqa: E402

CASES = Path(__file__).with_name("held_out.json")
PROMPT, DECODED = 61, 12
GAIN = 1.5  # of matrices: so that what a layer adds is not lost in what it is added to
FAN_IN_FIRST = ("GptOss", "Llama4")  # classes whose experts hold (experts, in, out)


def random_model(case: dict[str, Any]) -> Any:
    """Build a model of transformers with random weights, none of them without effect."""
    torch.manual_seed(case["seed"])
    family = getattr(transformers, case["hf_class"])
    config = family.config_class(**case["config"])
    config._attn_implementation = "eager"
    model = family(config).eval()
    for layer, (used, width) in case.get("experts_by_layer", {}).items():
        own = copy.deepcopy(config)
        own.num_experts_per_tok, own.moe_intermediate_size = used, width
        block = model.model.layers[int(layer)]
        block.mixer = type(block.mixer)(own, layer_idx=int(layer)).eval()
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):  # which experts a token chooses
            order = torch.rand(len(table), config.n_routed_experts).argsort(dim=-1)
            table.copy_(order[:, : table.shape[1]])
    with torch.no_grad():
        for name, weights in [*model.named_parameters(), *model.named_buffers()]:
            randomize(name, weights, case["hf_class"].startswith(FAN_IN_FIRST))
    return model


def randomize(name: str, weights: torch.Tensor, fan_in_first: bool) -> None:
    """Fill a parameter in place: matrices by fan-in, vectors around what they start as."""
    if not weights.is_floating_point():  # of hashes, which the configuration determines
        return
    noise = torch.randn_like(weights, dtype=torch.float32)
    if "inv_freq" in name or "embed_scale" in name:
        return
    if name.endswith("A_log"):
        weights.copy_(torch.log(1 + 7 * torch.rand_like(weights)))
    elif "correction_bias" in name or "expert_bias" in name:
        weights.copy_(0.3 * noise)
    elif weights.dim() < 2:
        weights.add_(0.2 * noise)
    elif "embed_tokens" in name:
        weights.copy_(noise)
    else:
        first = fan_in_first and weights.dim() == 3 and "experts" in name
        fan_in = weights.shape[1] if first else weights.shape[-1]
        weights.copy_(noise * GAIN / math.sqrt(fan_in))


def convert(model: Any, case: dict[str, Any], folder: Path, llama_cpp: Path) -> Path:
    """Save a model and have llama.cpp's converter write it as GGUF, with a vocabulary of bytes."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import conversion
    import gguf

    model.save_pretrained(folder)
    published = case.get("published", {})
    saved = json.loads((folder / "config.json").read_text()) | published
    saved = {key: value for key, value in saved.items() if published.get(key, 0) is not None}
    (folder / "config.json").write_text(json.dumps(saved))
    words = {str(number): number for number in range(saved["vocab_size"])}  # Gemma's are counted
    vocabulary = {"model": {"vocab": words}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    hparams = conversion.ModelBase.load_hparams(folder, False)
    if "layer_types" in published:  # transformers may name them otherwise when it reads them
        hparams["layer_types"] = published["layer_types"]
    if hparams["architectures"] == ["DeepseekV4ForCausalLM"]:
        publish_deepseek4(folder, hparams)
    kind = conversion.get_model_class(
        conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    )

    class Converter(kind):  # type: ignore[misc, valid-type]
        model_arch = kind.model_arch
        no_mtp = True  # nothing that only drafts

        def _write_mxfp4_expert_tensor(self, bid: int, proj: str, key: Any) -> list[str]:
            """Write experts as they are: DeepSeek V4's are published as MXFP4."""
            names = [
                f"layers.{bid}.ffn.experts.{number}.{proj}.weight"
                for number in range(self.hparams["n_routed_experts"])
            ]
            stack = np.stack([self.model_tensors[name]().numpy() for name in names])
            self.gguf_writer.add_tensor(self.format_tensor_name(key, bid), stack)
            return names

        def set_vocab(self) -> None:
            count = hparams["vocab_size"]
            vocabulary = byte_vocabulary([f"<{number}>" for number in range(count - 257)])
            writer = self.gguf_writer
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("gpt-2")
            writer.add_token_list(vocabulary["tokenizer.ggml.tokens"])
            writer.add_token_types(vocabulary["tokenizer.ggml.token_type"].tolist())
            writer.add_token_merges(vocabulary["tokenizer.ggml.merges"])

    path = folder / "model.gguf"
    with contextlib.redirect_stderr(io.StringIO()):
        Converter(folder, gguf.LlamaFileType.ALL_F32, path, eager=True, hparams=hparams).write()
    return path


def publish_deepseek4(folder: Path, hparams: dict[str, Any]) -> None:
    """Name keys and tensors as DeepSeek publishes them. transformers writes a few otherwise."""
    from safetensors.torch import load_file, save_file

    kinds = {"sliding_attention": 0, **hparams["compress_rates"]}
    main, stretched = (hparams["rope_parameters"][kind] for kind in ("main", "compress"))
    hparams["compress_ratios"] = [kinds[kind] for kind in hparams["layer_types"]]
    hparams["num_hash_layers"] = hparams["mlp_layer_types"].count("hash_moe")
    hparams["rope_parameters"] = main | {
        name: stretched[name] for name in stretched if name not in main or name == "rope_type"
    }
    published = {}
    for name, weights in load_file(folder / "model.safetensors").items():
        name = name.removeprefix("model.").replace("embed_tokens.weight", "embed.weight")
        name = name.replace("hc_head.hc_", "hc_head_").replace(".attn.norm.", ".attn.kv_norm.")
        published[name.replace("e_score_correction_bias", "bias")] = weights.contiguous()
    save_file(published, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(hparams))


def measure(case: dict[str, Any], llama_cpp: Path) -> dict[str, float]:
    """Make the model of a case; the difference of each kernels' logits in standard deviations."""
    model = random_model(case)
    rng = np.random.default_rng(case["seed"])
    count = case.get("prompt", PROMPT) + DECODED
    tokens = rng.integers(0, case["config"]["vocab_size"], count).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = convert(model, case, Path(folder), llama_cpp)
        return {kernels: difference(path, kernels, tokens, logits) for kernels in KERNELS}


def difference(
    path: Path, kernels: str, tokens: list[int], expected: np.ndarray[Any, Any]
) -> float:
    """Compare a file's logits, of the prompt at once and of the rest token by token."""
    model = engine.load(path, kernels=kernels)
    prompt, rest = tokens[:-DECODED], tokens[-DECODED:]
    ours = np.concatenate([np.array(model.logits(prompt)), decoded_logits(model, prompt, rest)])
    return float(f"{np.abs(ours - expected).max() / expected.std():.1e}")


def main(llama_cpp: str, *names: str) -> None:
    """Measure the cases, or those named, and write down what came out."""
    logging.disable(logging.INFO)
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    for name in names or cases:
        cases[name]["difference"] = measure(cases[name], Path(llama_cpp))
        print(name, cases[name]["difference"], flush=True)
    rows = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()]
    CASES.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
