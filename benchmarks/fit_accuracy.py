"""Hold what `fit` says against what happens: peak memory, and tokens per second, on this machine.

Each case is a fresh process that loads a file as `conifer run` does, fills its cache with a random
prompt (or, with --touch, touches every page of a longer one), and decodes at its end. Memory is the
process's own high-water mark. Rates of a shared machine change by the second, so that the plain
reads by which `fit` predicts take turns with decoding every few tokens, for as long as it took, and
every round is compared within itself. Then the same prompt is read again, twice.

    python benchmarks/fit_accuracy.py FILE... --context 512,4096 --out results/fit-accuracy.json
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DECODED = 64  # tokens, at the end of the context, before memory is taken
ROUNDS = 9
TURNS, TURN = 4, 4  # of decoding and reading in a round; tokens of a turn
PROMPTS = 2  # readings of the prompt, once its experts were used
TOUCHED = 512  # tokens of the random prompt that wakes all experts before pages are touched
READ_BYTES = 256 << 20
PAGE_BYTES = 4096
LEAST, MOST = 0.95, 1.02  # of the predicted memory


def main() -> int:
    """Run every case and write the results. Gives 1 where one is outside its bounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--context", default="512,4096")
    parser.add_argument("--touch", action="store_true", help="touch the cache, do not fill it")
    parser.add_argument("--memory", action="store_true", help="measure no rates: others work")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        rounds = 0 if options.memory else ROUNDS
        context = int(options.case)
        print(json.dumps(case(options.files[0], context, options.touch, options.kernels, rounds)))
        return 0
    cases = []
    for file in options.files:
        for context in map(int, options.context.split(",")):
            words = [sys.executable, __file__, str(file), "--case", str(context)]
            words += ["--kernels", options.kernels]
            words += ["--touch"] if options.touch else []
            words += ["--memory"] if options.memory else []
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(cases[-1]), flush=True)
    if options.out:
        from compare import commit  # not in the process that is measured

        known = json.loads(options.out.read_text())["cases"] if options.out.exists() else []
        document: dict[str, Any] = {"cpu": cpu(), "system": platform.platform(), "commit": commit()}
        document["date"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        same = {identity(made) for made in cases}
        kept = [made for made in known if identity(made) not in same]
        document["cases"] = kept + cases
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(made["memory_holds"] for made in cases) else 1


def identity(made: dict[str, Any]) -> tuple[object, ...]:
    """Say what a later run of the same case replaces."""
    return made["file"], made["context"], made["kernels"]


def case(file: Path, context: int, touch: bool, kernels: str, rounds: int) -> dict[str, Any]:
    """Measure one file at one context. rounds: of decoding and reading; 0 for memory alone."""
    from conifer_cli.acquire import judge, locate
    from conifer_cli.fit.verdict import FitRequest
    from conifer_cli.run_options import RunOptions
    from conifer_cli.session.session import Session
    from engine.benchmark import prompt
    from engine.device import backend
    from engine.fit.bandwidth import peak_memory_bytes, read_rates

    request = FitRequest(context=context, kernels=kernels)
    report = judge(locate(str(file)), request)
    session = Session(report, RunOptions(context=context, kernels=kernels, max_tokens=8))
    warm_up(session)
    model = session.model
    cache = model.new_cache(context)
    held = context - DECODED - 2
    tokens = prompt(model.config.vocab, held)
    if touch:
        model.step(tokens[:TOUCHED], cache)
        for start in range(TOUCHED, held - 1, tokens_a_page(model.config)):
            cache.tokens = tokens[:start]
            model.step(tokens[start : start + 1], cache)
        cache.tokens = tokens[:-1]
        model.step(tokens[-1:], cache)
    else:
        fill(model, tokens, cache)
    decode(model, tokens, cache, DECODED)
    peak = peak_memory_bytes()
    pairs: list[tuple[float, float]] = []
    if rounds:
        reads = read_rates(READ_BYTES, sys.maxsize, backend())
        pairs = [
            alternate(lambda: decode(model, tokens, cache, TURN), reads) for _ in range(rounds)
        ]
    found = summarise(report, model.kernels.name, context, peak, pairs)
    if rounds and not touch:
        taken_s = [fill(model, tokens, cache) for _ in range(PROMPTS)]
        found |= prompts(report, held, statistics.median(taken_s), found)
    return found


def warm_up(session: Any) -> None:
    """Have all in memory that a conversation has beside the model: answer, and colour a line."""
    for name in ("conifer_cli.app", "conifer_cli.chat.repl", "prompt_toolkit.shortcuts"):
        importlib.import_module(name)
    from conifer_cli.terminal.highlight import lexer_for

    list(session.answer(session.encode([{"role": "user", "content": "Hi."}])))
    if colour := lexer_for("python"):
        colour("pass")


def tokens_a_page(config: Any) -> int:
    """Count the tokens of a head of the cache, in f16, that surely share a page."""
    remembered = (spec.buffers for spec in config.cache_specs)
    widest = max(values for buffers in remembered for _, values in buffers)
    return max(1, PAGE_BYTES // (2 * int(widest)))


def fill(model: Any, tokens: list[int], cache: Any) -> float:
    """Read the prompt into the empty cache: its seconds."""
    from engine.sampling import Settings

    cache.trim(0)
    stream = model.generate(tokens, Settings(max_tokens=1), cache)
    list(stream)
    return float(stream.stats.prefill_s)


def decode(model: Any, tokens: list[int], cache: Any, count: int) -> float:
    """Decode `count` tokens, and one before them, at the end of the context: their seconds."""
    from engine.sampling import Settings

    settings = Settings(max_tokens=count + 1, temperature=0, ignore_end=True)
    stream = model.generate(tokens, settings, cache)
    list(stream)
    return float(stream.stats.decode_s)


def alternate(decode: Callable[[], float], reads: Iterator[float]) -> tuple[float, float]:
    """Take turns at decoding and at reading memory plainly: tokens and bytes per second."""
    decoding = reading = 0.0
    read_bytes = 0
    for _ in range(TURNS):
        decoding += decode()
        while reading < decoding:
            reading += READ_BYTES / next(reads)
            read_bytes += READ_BYTES
    return TURNS * TURN / decoding, read_bytes / reading


def summarise(
    report: Any, kernels: str, context: int, peak: int, pairs: list[tuple[float, float]]
) -> dict[str, Any]:
    """Compare. Ratios are of what was measured to what was predicted."""
    from engine.fit.decode_cost import byte_seconds
    from engine.fit.memory import needs
    from engine.fit.speed import MEASURED, Bandwidth, bytes_per_token, seconds

    config, tensors, backend = report.config, report.tensors, report.verdict.machine.backend
    need = needs(config, tensors, backend, "f16", kernels)(context)
    moved = bytes_per_token(config, tensors, backend, kernels, context - DECODED, "f16")
    core_s = byte_seconds(backend)
    predicted = [
        1 / seconds(moved, config.layers, Bandwidth(read, MEASURED, core_s), backend, kernels)
        for _, read in pairs
    ]
    ratios = [rate / by for (rate, _), by in zip(pairs, predicted, strict=True)]
    share = peak / need.total_bytes
    memory: dict[str, Any] = {
        "file": Path(report.paths[0]).name,
        "layers": config.layers,
        "context": context,
        "kernels": kernels,
        "memory": {"peak_bytes": peak, "predicted_bytes": need.total_bytes},
        "measured_over_predicted_memory": round(share, 4),
        "memory_holds": LEAST <= share <= MOST,
        "need_bytes": {
            "weights": need.weights_bytes,
            "kv": need.kv_bytes,
            "buffers": need.buffers_bytes,
            "program": need.program_bytes,
        },
    }
    if not pairs:
        return memory
    return memory | {
        "tokens_per_s": [round(rate, 2) for rate, _ in pairs],
        "predicted_tokens_per_s": [round(by, 2) for by in predicted],
        "read_bytes_per_s": [round(read) for _, read in pairs],
        "measured_over_predicted_speed": round(statistics.median(ratios), 3),
        "speed_ratios": [round(ratio, 3) for ratio in ratios],
    }


def prompts(report: Any, tokens: int, taken_s: float, decoded: dict[str, Any]) -> dict[str, Any]:
    """Compare how long the prompt took, at the median rate of the plain reads."""
    from engine.fit.prefill import flops_here, prompt_seconds, prompt_work
    from engine.fit.speed import MEASURED, Bandwidth

    backend, read = report.verdict.machine.backend, statistics.median(decoded["read_bytes_per_s"])
    work = prompt_work(report.config, report.tensors, decoded["need_bytes"]["weights"])
    bandwidth = Bandwidth(read, MEASURED, flops=flops_here(backend))
    predicted_s = prompt_seconds(work, tokens, bandwidth, backend)
    if predicted_s is None:  # the machine's rate of multiplying is unknown
        return {}
    return {
        "prompt_tokens": tokens,
        "prompt_s": round(taken_s, 3),
        "predicted_prompt_s": round(predicted_s, 3),
        "measured_over_predicted_prompt": round(predicted_s / taken_s, 3),
    }


def cpu() -> str:
    """Name this machine's processor."""
    from engine.fit.machine import this_machine

    return this_machine().name


if __name__ == "__main__":
    sys.exit(main())
