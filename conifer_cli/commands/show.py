"""`conifer show`: print a model's catalog entry and file header.

The header is read from the file on disk, or from the cache that `fit` fills. Opens no socket.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conifer_cli import errors
from conifer_cli.acquire import RequestedModel, locate
from conifer_cli.errors import UsageError
from conifer_cli.fit.alternatives import supported
from conifer_cli.fit.headline import WORDS
from conifer_cli.fit.naming import naming
from conifer_cli.fit.verdict import reading
from conifer_cli.options import open_store
from conifer_cli.terminal import console
from conifer_cli.terminal.format import count, counted, shares, size
from conifer_cli.terminal.inline import BOLD
from conifer_cli.terminal.layout import Column, Grid, Line

if TYPE_CHECKING:
    from catalog import Entry
    from engine.gguf.reader import TensorInfo
    from engine.nn.config import ModelConfig

TOKENS = 1000  # cache length for which KV cache sizes are shown
NOTHING = "-"
LABEL_WIDTH = 16  # of all groups, so that their values align
Groups = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class ShownHeader:
    """A model's header. `paths` is empty if only the header is on this machine."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    config: ModelConfig
    paths: tuple[Path, ...]
    parts: int
    size_bytes: int


def show_model(name: str, as_json: bool) -> int:
    """Print the catalog entry and the file's header, if known."""
    model = locate(name)
    entry, header = model.reference.entry, _header(model)
    if entry is None and header is None:
        raise UsageError(
            f"{name} is not on this machine",
            f"Run `conifer fit {name}` to read its header, "
            f"or `conifer pull {name}` to download the model.",
        )
    if as_json:
        catalog = dataclasses.asdict(entry) if entry else None
        console.print_json({"catalog": catalog, "file": _document(header) if header else None})
        return errors.OK
    groups = _entry_groups(entry) if entry else {}
    if header is None:
        hint = f"run `conifer fit {name}` to read the header from the Hub"
        groups["File"] = [("on this machine", f"no; {hint}")]
    else:
        groups |= _header_groups(header)
    console.print_lines(_sections(groups))
    return errors.OK


def _sections(groups: Groups) -> list[Line]:
    """Format each group below its name. Values that say nothing are left out."""
    lines: list[Line] = []
    for title, pairs in groups.items():
        said = [(label, value) for label, value in pairs if value != NOTHING]
        if said:
            columns = [Column(least=LABEL_WIDTH), Column()]
            table = Grid(columns, [(f"{label}:", value) for label, value in said])
            lines += ["", [(BOLD, f"{title}:")], table]
    return lines[1:]


def _header(model: RequestedModel) -> ShownHeader | None:
    from catalog.hub.header_cache import HeaderCache
    from engine.errors import GGUFError
    from engine.gguf.reader import merge_parts, open_model, read_header
    from engine.nn.config import read_model_config

    store, reference = open_store(), model.reference
    if paths := store.find(reference):
        with reading(model.name, reference):
            file = open_model(paths[0])
            config = read_model_config(file.metadata, file.tensors)
        parts = file.parts
        return ShownHeader(file.metadata, file.tensors, config, parts, len(parts), file.size_bytes)
    cached = HeaderCache(store.home).find(reference)
    if cached is None:
        return None
    try:
        metadata, tensors = merge_parts(
            [read_header(part.data, part.size_bytes, i) for i, part in enumerate(cached)]
        )
    except GGUFError:  # treat a damaged header as missing
        return None
    size_bytes = sum(part.size_bytes for part in cached)
    with naming(model.name):
        config = read_model_config(metadata, tensors)
    return ShownHeader(metadata, tensors, config, (), len(cached), size_bytes)


def _entry_groups(entry: Entry) -> Groups:
    from catalog import status

    total, active = count(entry.total_parameters), count(entry.active_parameters)
    experts = "none (dense model)"
    if entry.experts:
        experts = f"{entry.experts_used} of {entry.experts} per layer and token"
        experts += f", plus {entry.experts_shared} shared" if entry.experts_shared else ""
    files = [f"{f.quant} {size(f.size_bytes)}" if f.size_bytes else f.quant for f in entry.files]
    return {
        "Model": [
            ("name", f"{entry.id} ({entry.name})"),
            ("kind", entry.kind),
            ("parameters", f"{total}, {active} active per token"),
            ("experts", experts),
            ("layers", str(entry.layers or "-")),
            ("context", f"{entry.context:,}" if entry.context else "-"),
            ("architecture", entry.architecture),
            ("licence", entry.licence),
            ("scores", _scores(entry)),
            ("status", status(entry, supported())),
        ],
        "Download": [
            ("files", ", ".join(files)),
            ("default", entry.default_quant),
            ("repository", entry.repository or "-"),
            ("original", entry.original or "-"),
        ],
    }


def _scores(entry: Entry) -> str:
    scores = (f"{each.benchmark} {each.value:g} ({each.date})" for each in entry.quality)
    return ", ".join(scores) or "-"


def _header_groups(header: ShownHeader) -> Groups:
    config, metadata, tensors = header.config, header.metadata, header.tensors
    document = _document(header)
    routed = document["experts"]
    experts = "none (dense model)"
    if routed:
        experts = f"{routed['used']} of {routed['count']} per token, in {routed['layers']} of "
        experts += f"{config.layers} layers; {routed['shared']} shared"
    total, active = document["total_parameters"], document["active_parameters"]
    traffic, state_bytes = document["bytes_per_token"], document["state_bytes"]
    always, routed_part = (_share(traffic[part], traffic) for part in ("always", "routed"))
    template = metadata.get("tokenizer.chat_template")
    f16, q8 = (size(document["kv_bytes_per_1000_tokens"][kv_type]) for kv_type in ("f16", "q8"))
    tokenizer, pre = document["tokenizer"]["model"], document["tokenizer"]["pre"]
    where = str(header.paths[0]) if header.paths else "not on this machine (cached header)"
    read = size(traffic["total"])
    if routed:
        read += f": always {always}, routed {routed_part}"
    return {
        "File": [
            ("path", where),
            ("size", f"{size(header.size_bytes)} in {counted(header.parts, 'part')}"),
            ("made of", shares(document["type_bytes"])),
            ("tensors", f"{len(tensors):,}"),
            ("not read", _unread(document["unread"])),
        ],
        "Header": [
            ("name", config.name),
            ("architecture", config.architecture),
            ("layers", f"{config.layers}, {config.width} wide"),
            ("parameters", f"{total:,}, {active:,} active per token"),
            ("experts", experts),
            ("context", f"{config.context:,}"),
            ("window", _windows(config)),
            ("tokenizer", f"{tokenizer}, {pre or 'no pre-tokenizer'}, {config.vocab:,} tokens"),
            ("chat template", counted(len(template), "character") if template else "none"),
            ("licence", document["licence"] or "not stated"),
        ],
        "Memory": [
            ("verdict here", _on_this_machine(document["verdict"])),
            ("read per token", read),
            ("expert size", size(routed["expert_bytes"]) if routed else "-"),
            ("KV cache", f"{f16} per 1,000 tokens in f16, {q8} in q8"),
            ("state", f"{size(state_bytes)} at any context length" if state_bytes else "-"),
        ],
    }


def _on_this_machine(verdict: dict[str, Any]) -> str:
    word, streaming = WORDS[verdict["kind"]], verdict["streaming"]
    if streaming is None:
        return word
    held = f"{streaming['cached_experts']:,} of {streaming['experts']:,} experts"
    text = f"{word} from the disk, with {held} in memory: a hit rate of about "
    return f"{text}{100 * streaming['hit_rate']:.0f} %"


def _verdict(header: ShownHeader) -> dict[str, Any]:
    """Judge a model on this machine. Measures nothing."""
    from engine.errors import BackendError
    from engine.fit.machine import this_machine
    from engine.fit.memory import judge
    from engine.fit.streaming import published_curve

    try:
        verdict = judge(header.config, header.tensors, this_machine())
    except BackendError:
        return {"kind": None, "streaming": None}
    plan = verdict.plan
    if plan is None:
        return {"kind": verdict.kind, "streaming": None}
    curve = published_curve(plan.experts.count, plan.experts.used)
    hit_rate = curve.hit_rate(plan.share)
    return {
        "kind": verdict.kind,
        "streaming": {
            "resident_bytes": plan.resident_bytes,
            "store_bytes": plan.store_bytes,
            "experts": plan.experts.total,
            "cached_experts": plan.cached,
            "hit_rate": round(hit_rate, 3),
            "hit_rate_source": curve.source,
            "read_bytes_per_token": plan.missed_bytes(hit_rate),
        },
    }


def _share(part: int, traffic: dict[str, int]) -> str:
    return f"{size(part)} ({100 * part / max(traffic['total'], 1):.0f} %)"


def _windows(config: ModelConfig) -> str:
    windows = [window for window in config.windows if window]
    if not windows:
        return "-"
    shape = "chunks of" if config.chunked else "the last"
    return f"{len(windows)} of {config.layers} layers see {shape} {max(windows):,} tokens"


def _document(header: ShownHeader) -> dict[str, Any]:
    from engine.fit.speed import bytes_per_token
    from engine.kernels.sizes import bytes_by_type
    from engine.nn.cache.spec import token_bytes
    from engine.nn.config import count_parameters

    config, tensors = header.config, header.tensors
    total, active = count_parameters(config, tensors)
    traffic = bytes_per_token(config, tensors, "cpu", "native", 0, "f16")  # keeps the file's types
    layers = config.cache_specs
    kv_bytes = {
        kv_type: int(TOKENS * sum(token_bytes(layer, kv_type) for layer in layers))
        for kv_type in ("f16", "q8", "f32")
    }
    licence = header.metadata.get("general.license")
    return {
        "paths": [str(path) for path in header.paths],
        "size_bytes": header.size_bytes,
        "total_parameters": total,
        "active_parameters": active,
        "experts": _experts(config, tensors),
        "bytes_per_token": {
            "total": traffic.weights_bytes,
            "always": traffic.weights_bytes - traffic.experts_bytes,
            "routed": traffic.experts_bytes,
            "attention": traffic.attention_bytes,
            "shared": traffic.shared_bytes,
            "head": traffic.head_bytes,
        },
        "kv_bytes_per_1000_tokens": kv_bytes,
        "state_bytes": 4 * sum(layer.state_values for layer in layers),
        "tokenizer": {
            "model": str(header.metadata.get("tokenizer.ggml.model", "?")),
            "pre": header.metadata.get("tokenizer.ggml.pre"),
            "vocabulary": config.vocab,
        },
        "verdict": _verdict(header),
        "chat_template": "tokenizer.chat_template" in header.metadata,
        "licence": licence if isinstance(licence, str) else None,
        "config": dataclasses.asdict(config),
        "tensors": len(tensors),
        "unread": _unread_tensors(config, tensors),
        "types": sorted({tensor.type.name for tensor in tensors.values()}),
        "type_bytes": bytes_by_type(tensors),
    }


def _unread_tensors(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Count the tensors that the model does not read, such as those for images or drafts."""
    from engine.nn.config import used_tensors

    used = {info.name for info in used_tensors(config, tensors)}
    unread = [info for info in tensors.values() if info.name not in used]
    return {"tensors": len(unread), "size_bytes": sum(info.size_bytes for info in unread)}


def _unread(unread: dict[str, int]) -> str:
    if not unread["tensors"]:
        return "-"
    return (
        f"{unread['tensors']:,} tensors ({size(unread['size_bytes'])}), for drafts, images or audio"
    )


def _experts(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> dict[str, Any] | None:
    from engine.nn.config import OF_EXPERTS, used_tensors

    if config.experts is None:
        return None
    routed = sum(config.routed(layer) for layer in range(config.layers))
    stacks = [info for info in used_tensors(config, tensors) if OF_EXPERTS.fullmatch(info.name)]
    weights = sum(info.size_bytes for info in stacks)
    return {
        "count": config.experts.count,
        "used": config.experts.used,
        "layers": routed,
        "shared": round(config.experts.shared_width / config.experts.width),
        "expert_bytes": weights // max(1, routed * config.experts.count),
    }
