"""One turn of Conifer in less memory than the model's file: experts streamed, or all of it paged.

settings: "expert_bytes", for the experts in memory; null maps the file. See turns.py.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform

import turns

import engine


def main() -> None:
    """Run the turn."""
    job = turns.read_job()
    given = job.settings["expert_bytes"]
    model = engine.load(job.model, threads=job.threads, expert_bytes=given)
    done = []

    def answer(tokens: list[int], count: int) -> tuple[float, float, int]:
        settings = engine.Settings(temperature=0, max_tokens=count + 1, ignore_end=True)
        before = model.expert_store.stats() if model.expert_store else engine.StoreStats()
        stream = model.generate(tokens, settings, model.new_cache(job.context))
        first, *_ = stream
        if model.expert_store:
            after = dataclasses.asdict(model.expert_store.stats() - before)
            done.append({"prompt": len(tokens), "tokens": count, **after})
        return stream.stats.prefill_s, stream.stats.decode_s, first

    figures, said = turns.measure(job, model.config.vocab, answer)
    about = {
        "isa": model.kernels.isa,
        "mlx": importlib.metadata.version("mlx"),
        "python": platform.python_version(),
        "store": done,
    }
    turns.finish(figures, said, about, turns.peak_memory_bytes())


if __name__ == "__main__":
    main()
