"""`conifer list`, `show` and `rm`: the models on this machine, and those that could be."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from conifer_cli import errors, terminal
from conifer_cli.errors import UsageError
from conifer_cli.layout import count, facts, size, table
from conifer_cli.prepare import locate, open_store
from conifer_cli.suggest import supported
from conifer_cli.verdict import reading

if TYPE_CHECKING:
    from catalog import Entry
    from catalog.store import Installed
    from engine.config import ModelConfig
    from engine.gguf import ModelFile


def list_installed(as_json: bool) -> int:
    """Print the models on this machine."""
    installed = open_store().installed()
    if as_json:
        terminal.out_json([_installed_document(model) for model in installed])
    elif not installed:
        terminal.say("No model is here yet. `conifer run` fetches the starter, 98 MB.")
    else:
        rows = [
            (name_of(model), size(model.size_bytes), _modified(model)[:16], str(model.paths[0]))
            for model in installed
        ]
        terminal.out(table([("NAME", "SIZE", "MODIFIED", "WHERE"), *rows], right=(1,)))
    return errors.OK


def list_catalog(as_json: bool) -> int:
    """Print every model that Conifer knows, and what has been proved of it."""
    from catalog import entries, status

    known = supported()
    pairs = [(entry, status(entry, known)) for entry in entries().values()]
    if as_json:
        terminal.out_json([_entry_document(entry) | {"status": text} for entry, text in pairs])
        return errors.OK
    heading = ("MODEL", "TOTAL", "ACTIVE", "KIND", "CONTEXT", "LICENCE", "STATUS")
    rows = [
        (
            entry.id,
            count(entry.total_parameters),
            count(entry.active_parameters) if entry.moe else "dense",
            entry.kind,
            f"{entry.context:,}" if entry.context else "-",
            entry.licence,
            text,
        )
        for entry, text in pairs
    ]
    terminal.out(table([heading, *rows], right=(1, 2, 4)))
    return errors.OK


def show_model(name: str, as_json: bool) -> int:
    """Print the catalog's facts, and those of the file's header where the file is here."""
    target = locate(name)
    entry, paths = target.reference.entry, open_store().find(target.reference)
    if entry is None and not paths:
        raise UsageError(f"{name} is not on this machine", f"`conifer pull {name}` fetches it.")
    file = config = None
    if paths:
        from engine.config import read_config
        from engine.gguf import open_model

        with reading(name, target.reference):
            file = open_model(paths[0])
        config = read_config(file.metadata)
    if as_json:
        terminal.out_json(
            {"catalog": _entry_document(entry) if entry else None}
            | {"file": _file_document(file, config) if file and config else None}
        )
        return errors.OK
    pairs = _entry_facts(entry) if entry else []
    pairs += _file_facts(file, config) if file and config else [("on this machine", "no")]
    terminal.out(facts(pairs))
    return errors.OK


def name_of(model: Installed) -> str:
    """Write the name by which `run` and `rm` find this very file."""
    if model.model_id is not None:
        return f"{model.model_id}:{model.quant}" if model.quant else model.model_id
    return f"hf:{model.repository}/{model.name}"


def _modified(model: Installed) -> str:
    seconds = model.paths[0].stat().st_mtime
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


def _installed_document(model: Installed) -> dict[str, Any]:
    return {
        "name": name_of(model),
        "size_bytes": model.size_bytes,
        "modified": _modified(model),
        "paths": [str(path) for path in model.paths],
        "repository": model.repository,
        "commit": model.commit,
    }


def _entry_facts(entry: Entry) -> list[tuple[str, str]]:
    from catalog import status

    experts = "none: every weight is used for every token"
    if entry.experts:
        experts = f"{entry.experts_used} of {entry.experts} a layer and token"
        experts += f", and {entry.experts_shared} always" if entry.experts_shared else ""
    files = [f"{f.quant} {size(f.size_bytes)}" if f.size_bytes else f.quant for f in entry.files]
    return [
        ("model", f"{entry.id} ({entry.name})"),
        ("kind", entry.kind),
        ("status", status(entry, supported())),
        (
            "parameters",
            f"{count(entry.total_parameters)}, "
            f"{count(entry.active_parameters)} active for each token",
        ),
        ("experts", experts),
        ("layers", str(entry.layers or "-")),
        ("context", f"{entry.context:,}" if entry.context else "-"),
        ("architecture", entry.architecture),
        ("licence", entry.licence),
        ("original", entry.original or "-"),
        ("repository", entry.repository or "-"),
        ("files", ", ".join(files)),
        ("default", entry.default_quant),
    ]


def _file_facts(file: ModelFile, config: ModelConfig) -> list[tuple[str, str]]:
    from engine.config import count_parameters

    types = sorted({tensor.type.name for tensor in file.tensors.values()})
    experts = f"{config.experts.used} of {config.experts.count}" if config.experts else "none"
    total, active = count_parameters(config, file.tensors)
    counts = f"{total:,}, {active:,} active for each token"
    return [
        ("file", str(file.parts[0])),
        ("file size", f"{size(file.size_bytes)} in {len(file.parts)} part(s)"),
        ("file name", config.name),
        ("file architecture", config.architecture),
        ("file layers", f"{config.layers}, {config.width} wide"),
        ("file parameters", counts),
        ("file experts", experts),
        ("file context", f"{config.context:,}"),
        ("vocabulary", f"{config.vocab:,}"),
        ("tensors", f"{len(file.tensors)}: {', '.join(types)}"),
        ("chat template", "yes" if "tokenizer.chat_template" in file.metadata else "none"),
    ]


def _entry_document(entry: Entry) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(entry)


def _file_document(file: ModelFile, config: ModelConfig) -> dict[str, Any]:
    import dataclasses

    from engine.config import count_parameters

    total, active = count_parameters(config, file.tensors)
    return {
        "paths": [str(path) for path in file.parts],
        "size_bytes": file.size_bytes,
        "total_parameters": total,
        "active_parameters": active,
        "config": dataclasses.asdict(config),
        "tensors": len(file.tensors),
        "types": sorted({tensor.type.name for tensor in file.tensors.values()}),
    }
