"""Put a forecast into a sentence, lines and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conifer_cli.fit.headline import per_s
from conifer_cli.terminal.format import duration, size

if TYPE_CHECKING:
    from engine.fit.speed import Rate
    from engine.fit.streaming import DiskSpeed, Forecast, Plan
    from engine.streaming import StoreStats


def sentence(found: Forecast) -> str:
    """Return how fast a model streams: "about 4 tokens/s; 200 words take a minute"."""
    from engine.fit.streaming import sentence

    return sentence(found.rate.per_s)


def command(name: str, what: str = "run") -> str:
    """Return the command that streams a model. name: empty for `serve` without one."""
    return f"`conifer {' '.join(filter(None, (what, name)))} --stream`"


def offer(name: str, found: Forecast | None, what: str = "run") -> str:
    """Offer to stream a model that does not fit. name, what: as for `command`."""
    text = f": {sentence(found)}" if found else ""
    return f"It can read its experts from the disk{text}: {command(name, what)}"


def note(name: str, found: Forecast) -> str:
    """Return a sentence: the model streams, what memory holds, and the expected speed."""
    text = f"{split_of(found.plan)}; {sentence(found)}"
    return f"{name} streams from the disk. In memory: {text}"


def split_of(plan: Plan) -> str:
    """Return how a plan splits the memory, in words."""
    held = f"{plan.cached:,} of {plan.experts.total:,} experts ({100 * plan.share:.0f} %)"
    return f"{size(plan.resident_bytes)} of all else, and {held} in {size(plan.store_bytes)}"


def lines(found: Forecast) -> list[str]:
    """Format a forecast for `fit`."""
    rate, plan = found.rate, found.plan
    each = f"{size(found.read_bytes)} per token from the disk at {_disk(found.disk)}"
    range_ = f"{per_s(rate.per_s)} ({per_s(rate.low)} to {per_s(rate.high)})"
    text = [
        f"streams: {sentence(found)}",
        f"  in memory: {split_of(plan)}",
        f"  hit rate {100 * found.hit_rate:.0f} % ({found.curve.source}): {each}",
        f"  tokens/s: {range_} at the start, {rate.source}",
    ]
    if found.prompt_s is not None:
        from engine.fit.streaming import PROMPT

        first = duration(found.prompt_s)
        text.append(f"  prompt of {PROMPT:,}: {first} to the first token, reading every expert")
    return text


def _disk(disk: DiskSpeed) -> str:
    range_ = f"{size(int(disk.low))} to {size(int(disk.high))}"
    known = "measured" if disk.source == "measured" else f"assumed: {range_} are usual"
    return f"{size(int(disk.bytes_per_s))}/s ({known})"


def document(found: Forecast, name: str, in_json: Rate | dict[str, Any] | None) -> dict[str, Any]:
    """Return a forecast for --json. in_json: the rate as the document writes rates."""
    plan = found.plan
    return {
        "sentence": sentence(found),
        "command": command(name).strip("`"),
        "resident_bytes": plan.resident_bytes,
        "store_bytes": plan.store_bytes,
        "experts": plan.experts.total,
        "cached_experts": plan.cached,
        "expert_bytes": round(plan.experts.mean_bytes),
        "hit_rate": round(found.hit_rate, 3),
        "hit_rate_source": found.curve.source,
        "read_bytes_per_token": found.read_bytes,
        "disk": {
            "bytes_per_s": round(found.disk.bytes_per_s),
            "source": "measured" if found.disk.source == "measured" else "assumed",
        },
        "speed": in_json,
        "first_token_s": None if found.prompt_s is None else float(f"{found.prompt_s:.3g}"),
    }


def streamed(done: StoreStats) -> str:
    """Return what an answer read from the disk and how long it waited, in words."""
    waited = done.wait_s + done.prompt_wait_s
    return (
        f"experts: {100 * done.hit_rate:.0f} % in memory, {size(done.bytes_read)} read, "
        f"{waited:.1f} s waited"
    )


def streamed_document(done: StoreStats) -> dict[str, Any]:
    """Return what an answer read from the disk, for --json."""
    return {
        "hits": done.hits,
        "misses": done.misses,
        "hit_rate": round(done.hit_rate, 4),
        "bytes_read": done.bytes_read,
        "prompt_bytes_read": done.prompt_bytes_read,
        "wait_s": round(done.wait_s, 4),
        "prompt_wait_s": round(done.prompt_wait_s, 4),
        "held_bytes": done.held_bytes,
        "held": done.held,
        "slots": done.slots,
    }
