"""One turn of Conifer, through the engine's `generate`. See turns.py."""

from __future__ import annotations

import turns

import engine

READS = 5


def main() -> None:
    """Run the turn. What is only reported is imported after the start has been measured."""
    job = turns.read_job()
    kernels, isa = job.settings["kernels"], job.settings["isa"]
    model = engine.load(job.model, kernels=kernels, threads=job.threads, isa=isa)

    def answer(tokens: list[int], count: int) -> tuple[float, float, int]:
        settings = engine.Settings(temperature=0, max_tokens=count + 1, ignore_end=True)
        stream = model.generate(tokens, settings, model.new_cache(job.context))
        first, *_ = stream
        return stream.stats.prefill_s, stream.stats.decode_s, first

    figures, said = turns.measure(job, model.config.vocab, answer)
    turns.finish(*report(job, model, figures, said))


def report(
    job: turns.Job, model: engine.Model, figures: dict[str, float], said: list[int]
) -> tuple[dict[str, float], list[int], dict[str, object], int | None]:
    """Put the result together. The plain reads' buffer is not part of the peak memory."""
    import importlib.metadata
    import platform
    import statistics
    from pathlib import Path

    from engine.device import backend
    from engine.fit.bandwidth import read_method, read_rates
    from engine.fit.speed import bytes_per_token
    from engine.gguf.reader import open_model

    about = {
        "kernels": model.kernels.name,
        "isa": model.kernels.isa,
        "engine": str(Path(engine.__file__).parent),
        "mlx": importlib.metadata.version("mlx"),
        "python": platform.python_version(),
    }
    device, tensors = backend(), open_model(Path(job.model)).tensors
    counted = bytes_per_token(model.config, tensors, device, model.kernels.name, 0, "f16")
    moved = counted.total_bytes
    peak = turns.peak_memory_bytes()
    read = statistics.median(read_rates(moved, READS, device))
    figures = {**figures, "read_bytes_per_s": read}
    about = {**about, "moved_bytes": moved, "read_method": read_method(device)}
    return figures, said, about, peak


if __name__ == "__main__":
    main()
