"""One turn of llama.cpp, through llama-cpp-python's low-level calls: `llama_decode` and the greedy
sampler of llama.cpp itself. No text is made. See turns.py.

settings: "repack" (weights copied into the order that its kernels like best) and "flash"
(flash attention), each true or false.
"""

from __future__ import annotations

import ctypes
import platform
import time

import llama_cpp as llama
import turns


@llama.llama_log_callback
def quiet(level: int, text: bytes, data: object) -> None:
    """Drop what llama.cpp says while it loads."""


def main() -> None:
    """Run the turn."""
    job = turns.read_job()
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    model = load(job)
    context = make_context(job, model)
    memory = llama.llama_get_memory(context)
    batch = llama.llama_n_batch(context)
    sampler = llama.llama_sampler_init_greedy()

    def feed(tokens: list[int]) -> None:
        array = (llama.llama_token * len(tokens))(*tokens)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))):
            raise SystemExit("llama_decode failed")

    def answer(tokens: list[int], count: int) -> tuple[float, float, int]:
        llama.llama_memory_clear(memory, True)
        started = time.perf_counter()
        for start in range(0, len(tokens), batch):
            feed(tokens[start : start + batch])
        token = chosen = llama.llama_sampler_sample(sampler, context, -1)
        first = time.perf_counter()
        for _ in range(count):
            feed([token])
            token = llama.llama_sampler_sample(sampler, context, -1)
        return first - started, time.perf_counter() - first, chosen

    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    figures, said = turns.measure(job, vocab, answer)
    about = {
        "llama_cpp_python": llama.__version__,
        "llama_cpp": version(),
        "system_info": llama.llama_print_system_info().decode(),
        "repack_settable": settable(),
        "python": platform.python_version(),
    }
    turns.finish(figures, said, about, turns.peak_memory_bytes())


def load(job: turns.Job) -> llama.llama_model_p:
    """Load the model, on the CPU."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    if settable():
        params.use_extra_bufts = job.settings["repack"]
    model = llama.llama_model_load_from_file(job.model.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp does not load {job.model}")
    return model


def make_context(job: turns.Job, model: llama.llama_model_p) -> llama.llama_context_p:
    """Make the context: keys and values in float16, as Conifer holds them."""
    params = llama.llama_context_default_params()
    params.n_ctx = job.context
    params.n_threads = params.n_threads_batch = job.threads
    flash, plain = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.flash_attn_type = flash if job.settings["flash"] else plain
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp makes no context")
    return context


def settable() -> bool:
    """Say whether this version lets repacking be switched off."""
    return any(name == "use_extra_bufts" for name, *_ in llama.llama_model_params._fields_)


def version() -> str | None:
    """Say which llama.cpp this is, where it says so itself."""
    asked = getattr(llama, "llama_version", None)
    return asked().decode() if asked else None


if __name__ == "__main__":
    main()
