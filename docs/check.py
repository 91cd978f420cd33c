"""Check that the docs are true of the code: links resolve, the tree in CONTRIBUTING.md is complete,
docs/commands.md is what `--help` prints, docs/models.md what the catalog and the tests' records
say, docs/fit.svg what `fit` prints, and tables behind a line `<!-- results: NAME ... -->` what
benchmarks/results says.

`--write` rewrites what is made.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from catalog import Entry, entries
from conifer_cli.app import app
from conifer_cli.fit.alternatives import estimate_of
from conifer_cli.terminal.format import count
from engine.architectures.registry import ARCHITECTURES
from engine.fit.estimate import estimate_bytes_per_token, judge_estimate
from engine.fit.machine import Machine
from engine.fit.machine_specs import simulate
from engine.fit.speed import Bandwidth, predict
from engine.fit.streaming import ASSUMED_DISK, forecast, published_curve

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "tests" / "data"
RESULTS = ROOT / "benchmarks" / "results"
DECISIONS = ROOT / "docs" / "decisions"
PROGRAM = typer.main.get_command(app)
COMMANDS = ("", *(name for name, each in PROGRAM.commands.items() if not each.hidden))
TABLE = re.compile(r"(<!-- results: ([^>]+) -->\n\n)(?:\|.*\n)*\n*")
# What the tables call a result's file.
FILES = {
    "starter-avx2": "starter, Q4_1, AVX2",
    "qwen3-30b-a3b-12-layers-avx2": "Qwen3-30B-A3B shapes, 12 of 48 layers, Q4_K_M, AVX2",
    **{
        f"qwen3-30b-a3b-12-layers-{mix}-avx2": f"Qwen3-30B-A3B shapes, 12 of 48 layers, {mix}, AVX2"
        for mix in ("Q6_K", "Q3_K_M", "IQ3_XXS")
    },
    "gpt-oss-20b-4-layers-avx2": "gpt-oss-20b shapes, 4 of 24 layers, MXFP4, AVX2",
    "starter-avxvnni": "starter, Q4_1, AVX-VNNI",
    "qwen3-30b-a3b-12-layers-avxvnni": ("Qwen3-30B-A3B shapes, 12 of 48 layers, Q4_K_M, AVX-VNNI"),
    "starter-avx512": "starter, Q4_1, AVX-512",
    "qwen3-30b-a3b-12-layers-avx512": "Qwen3-30B-A3B shapes, 12 of 48 layers, Q4_K_M, AVX-512",
    "starter": "starter, Q4_1",
    "qwen3-30b-a3b-12-layers": "Qwen3-30B-A3B shapes, 12 of 48 layers, Q4_K_M",
    **{
        f"qwen3-30b-a3b-12-layers-{mix}": f"Qwen3-30B-A3B shapes, 12 of 48 layers, {mix}"
        for mix in ("IQ3_XXS", "UD-Q2_K_XL", "IQ2_XS")
    },
    "qwen3-30b-a3b-48-layers": "Qwen3-30B-A3B shapes, all 48 layers, Q4_K_M",
    "olmoe-6-layers": "OLMoE shapes, 6 of 16 layers",
    "gpt-oss-20b-4-layers": "gpt-oss-20b shapes, 4 of 24 layers",
    "deepseek-v2-lite-5-layers": "DeepSeek-V2-Lite shapes, 5 of 27 layers",
    "granite-4.0-h-tiny-20-layers": "Granite 4.0 H Tiny shapes, 20 of 40 layers",
    "qwen3.5-35b-a3b-8-layers": "Qwen3.5-35B-A3B shapes, 8 of 40 layers",
    "gemma-4-26b-a4b-6-layers": "Gemma 4 26B-A4B shapes, 6 of 30 layers",
    "nemotron-3-nano-30b-a3b-6-layers": "Nemotron 3 Nano 30B-A3B shapes, 6 of 52 layers",
    "laguna-xs-2.1-5-layers": "Laguna XS 2.1 shapes, 5 of 40 layers",
    "kimi-linear-48b-a3b-4-layers": "Kimi Linear 48B-A3B shapes, 4 of 27 layers",
    "lfm2-8b-a1b-8-layers": "LFM2 8B-A1B shapes, 8 of 24 layers",
    "llama-4-scout-4-layers": "Llama 4 Scout shapes, 4 of 48 layers",
    "phi-3.5-moe-3-layers": "Phi-3.5-MoE shapes, 3 of 32 layers",
    "glm-5-4-layers": "GLM-5 shapes, 4 of 78 layers",
    "llama-4-scout-4-layers-avxvnni": "Llama 4 Scout shapes, 4 of 48 layers, AVX-VNNI",
    "phi-3.5-moe-3-layers-avxvnni": "Phi-3.5-MoE shapes, 3 of 32 layers, AVX-VNNI",
    "glm-5-4-layers-avxvnni": "GLM-5 shapes, 4 of 78 layers, AVX-VNNI",
}
FIGURES = {
    "prefill_512": "prefill of 512 tokens, tokens/s",
    "decode_0": "decode, tokens/s",
    "decode_4096": "decode at 4,096 tokens, tokens/s",
    "start_s": "cold start to first token, s",
}
LEFT_OUT = (
    "left out|reports|sources|median of predicted : reported|lowest to highest|inside the range"
)
ACCURACY = (
    "file|context|peak memory, of the predicted|tokens/s, of the predicted, median of 9"
    "|prompt's tokens/s, of the predicted"
)
# Title, date and status of a decision record.
RECORD = re.compile(r"# (\d+\. .+)\n\n- Date: (\d{4}-\d\d-\d\d)\n- Status: (.+)\n")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
MODELS_PAGE = """# Models

What has been proved for each model of the catalog, and no more. `docs/check.py --write` generates
this page from the catalog and the tests' records.

- **Fixture parity**: small models of the same architecture, with random weights, compared with
  the logits of the published model's code: the largest difference, for prompts and decoding, in
  standard deviations of the logits. `tests/engine/architectures/test_parity.py` keeps it below
  1e-3 and keeps the record up to date. It shows that the architecture is right; it is not a run
  of the model.
- **Tokenizer exact**: 2,000 strings give the same ids as the publisher's own library or
  llama.cpp, on the named vocabularies. They are of the same kind: their files name the same
  pre-tokenizer, or have scores and no pre-tokenizer. The model's own vocabulary may differ.
  "regex only": on another vocabulary, text is split as the reference splits it. "unknown": no
  source names the pre-tokenizer.
- **Real weights run**: a published file of this model was run, and a test checks its answer.

A dash means that no source gives the number.

{models}

## Fixtures

The models behind the parity column, with the native and the stock kernels. For a float model the
figure is as above. For a quantised model it is the median over positions of the root mean square
difference from the published code, divided by llama.cpp's on the same file; the tests allow 1.1.
Stock kernels lose nothing for the types without a figure.

{fixtures}

## Held-out shapes

Models with other shapes and seeds than the fixtures' (odd head counts, other numbers of experts,
groups, ranks, windows and rotary dimensions). `tests/data/make_held_out.py` makes them with
transformers, converts them with llama.cpp's converter, and compares; the shapes are in
`tests/data/held_out.json`. The difference is as above, over a prompt of 61 tokens and 12 decoded.
These have no row: `bailingmoe2`, which transformers 5.24 does not have; `mistral3`; `mistral4`,
whose query scale llama.cpp's converter does not write; `qwen3vl`, `qwen3vlmoe` and `step35`, which
transformers has only as a part of models that see images.

{held_out}

## Chat templates

The templates in `tests/data/templates` render as in transformers, and no message's text becomes a
control token; `tests/data/templates.md` gives their sources. The published templates of
Phi-3.5-MoE, OLMoE, dots.llm1, Hunyuan-A13B, the thinking model of ERNIE 4.5, Qwen3-VL, Mistral
Small 4, Trinity, Mellum 2, K-EXAONE, MiMo V2 and Kimi Linear could not be obtained: theirs run like
any file's template, without a test.
"""


LEDGER_PAGE = """# Ledger

Every model of the catalog on five machines, and its published scores. `docs/check.py --write`
generates this page from the catalog and [the arithmetic](fit.md). Rates are tokens/s at the start
of a context of 8,192, for the default file. **All are predicted** from published bandwidths and
other programs' rates: none was measured on these machines. "-" means too large, "tight" that little
else may run, "streams" that [experts stay on a disk](streaming.md) of an assumed 5.5 GB/s, "?" that
a fact is missing.

{machines}

{models}

## Scores

In per cent, by the publishers. Benchmarks cannot be compared with each other. A model without a row
has no score whose source could be read.

{scores}
"""
LEDGER_MACHINES = ("m4-16gb", "m3-max-64gb", "rtx-4090", "ryzen-7950x-64gb", "m3-ultra-512gb")


DECISIONS_PAGE = """# Decisions

Choices that could have gone the other way, with the numbers behind them. A record is not rewritten
when a later one replaces it; its status changes. `docs/check.py --write` generates this list.

{table}
"""


def main() -> int:
    """Print what is wrong, one line each. Gives the number of faults."""
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    made = {page: with_results(page.read_text()) for page in pages}
    made[ROOT / "docs" / "commands.md"] = commands_page()
    made[ROOT / "docs" / "models.md"] = models_page()
    made[ROOT / "docs" / "ledger.md"] = ledger_page()
    made[DECISIONS / "README.md"] = decisions_page()
    if "--write" in sys.argv[1:]:
        for page, text in made.items():
            page.write_text(text)
    faults = [
        *broken_links(pages),
        *missing_from_tree(),
        *unfinished(pages),
        *unknown_runs(),
        *undated(),
        *stale_picture(),
    ]
    for page, text in made.items():
        if not page.exists() or page.read_text() != text:
            faults.append(f"{page.relative_to(ROOT)} is stale: run docs/check.py --write")
    print("\n".join(faults) or f"docs: {len(pages)} pages checked")
    return len(faults)


def broken_links(pages: list[Path]) -> list[str]:
    """List relative links whose target does not exist."""
    return [
        f"{page.relative_to(ROOT)}: {target} does not exist"
        for page in pages
        for target in LINK.findall(page.read_text())
        if "://" not in target and not target.startswith("mailto:")
        if not (page.parent / target).exists()
    ]


def stale_picture() -> list[str]:
    """Return a complaint if docs/fit.svg differs from what `conifer fit` prints now."""
    source = (ROOT / "docs" / "pictures.py").read_text()
    found = re.search(r"^FIT = (\[.*\])$", source, re.MULTILINE)
    assert found is not None
    arguments = json.loads(found[1])
    environment = {**os.environ, "CONIFER_HOME": os.devnull, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "conifer_cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    drawn = re.findall(r">([^<>]*)</text>", (ROOT / "docs" / "fit.svg").read_text())
    shown = html.unescape("".join(drawn)).removeprefix(f"$ conifer {' '.join(arguments)}")
    same = "".join(shown.split()) == "".join(done.stdout.split())
    return [] if same else ["docs/fit.svg is stale: run `python docs/pictures.py fit`"]


def unfinished(pages: list[Path]) -> list[str]:
    """List places left to be filled in."""
    return [f"{page.relative_to(ROOT)}: has an @@" for page in pages if "@@" in page.read_text()]


def missing_from_tree() -> list[str]:
    """List folders of the product that the tree in CONTRIBUTING.md does not name."""
    tree = (ROOT / "CONTRIBUTING.md").read_text()
    return [
        f"CONTRIBUTING.md: its tree does not name {path.parent.relative_to(ROOT)}"
        for wing in ("conifer_cli", "engine", "catalog")
        for path in sorted((ROOT / wing).glob("*/__init__.py"))
        if not re.search(rf"^  {path.parent.name}/ ", tree, re.MULTILINE)
    ]


def commands_page() -> str:
    """Put together what every command prints under --help."""
    parts = [
        "# Commands\n\nWhat `conifer COMMAND --help` prints, or `conifer help COMMAND`; `-h` "
        "leaves out what is rarely used. Made by `docs/check.py --write`.\n"
    ]
    for command in COMMANDS:
        shown = " ".join(["conifer", command, "--help"]).replace("  ", " ")
        parts.append(f"## `{shown}`\n\n```\n{help_text(command)}\n```\n")
    return "\n".join(parts)


def help_text(command: str) -> str:
    """Run `conifer COMMAND --help` at a fixed width."""
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    words = [command] if command else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "conifer_cli", *words, "--help"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def models_page() -> str:
    """Put together what is proved of every model of the catalog, from the tests' records."""
    parity, runs = read_json("parity.json"), read_json("runs.json")
    largest = largest_differences(parity)
    models = [
        [
            f"`{entry.id}`",
            f"`{entry.architecture}`",
            count(entry.total_parameters),
            count(entry.active_parameters),
            largest.get(entry.architecture, "no fixture"),
            tokenizer_proof(entry),
            run_proof(runs.get(entry.id)),
        ]
        for entry in entries().values()
    ]
    fixtures = [
        [f"`{name}`", f"`{architecture}`", *fixture_figures(parity, name)]
        for name, architecture in parity["architectures"].items()
    ]
    held_out = [
        [f"`{name}`", f"`{case['architecture']}`", *map(str, case["difference"].values())]
        for name, case in read_json("held_out.json").items()
    ]
    heading = "Model|Family|Total|Active|Fixture parity|Tokenizer exact|Real weights run"
    return MODELS_PAGE.format(
        models=markdown_table(heading.split("|"), models),
        fixtures=markdown_table(["Fixture", "Family", "Compared", "Native", "Stock"], fixtures),
        held_out=markdown_table(["Case", "Family", "Native", "Stock"], held_out),
    )


def ledger_page() -> str:
    """Predict every model's speed on a few machines, and list the published scores."""
    machines = {name: simulate(name) for name in LEDGER_MACHINES}
    facts = [
        [f"`{name}`", machine.name.removesuffix(" (simulated)"), f"{rate.bytes_per_s / 1e9:.0f}"]
        for name, (machine, rate) in machines.items()
    ]
    models = [
        [
            f"`{entry.id}`",
            entry.default_quant,
            *(ledger_cell(entry, *found) for found in machines.values()),
        ]
        for entry in entries().values()
    ]
    scores = [
        [f"`{entry.id}`", score.benchmark, f"{score.value:g}", score.date, score.source]
        for entry in entries().values()
        for score in entry.quality
    ]
    return LEDGER_PAGE.format(
        machines=markdown_table(["Machine", "Chip", "GB/s"], facts),
        models=markdown_table(["Model", "File", *LEDGER_MACHINES], models),
        scores=markdown_table(["Model", "Benchmark", "Score", "Date", "Source"], scores),
    )


def ledger_cell(entry: Entry, machine: Machine, bandwidth: Bandwidth) -> str:
    """Write a model's verdict and rate on a machine."""
    estimate = estimate_of(entry, entry.file())
    if estimate is None or entry.architecture not in ARCHITECTURES:
        return "?" if estimate is None else "not yet"
    kernels = "native" if machine.backend == "cpu" else "blocks"
    context = min(8192, entry.context or 8192)
    verdict = judge_estimate(estimate, machine, context, kernels=kernels)
    if verdict.kind == "too_large":
        return "-"
    moved = estimate_bytes_per_token(estimate, machine.backend, kernels, 0, "f16")
    if moved is None:
        return "?"
    rate = predict(moved, estimate.layers or 0, bandwidth, machine.backend, kernels)
    if verdict.plan is not None:
        experts = verdict.plan.experts
        curve = published_curve(experts.count, experts.used)
        rate = forecast(verdict.plan, rate, curve, ASSUMED_DISK).rate
        return f"{rate.per_s:.2g} streams"
    return f"{rate.per_s:.3g}" + (" tight" if verdict.kind == "tight" else "")


def decisions_page() -> str:
    """List the decision records with the date and status that each of them states."""
    rows = []
    for path in sorted(DECISIONS.glob("0*.md")):
        found = RECORD.match(path.read_text())
        rows.append([f"[{found[1]}]({path.name})", found[2], found[3]] if found else [path.name])
    return DECISIONS_PAGE.format(table=markdown_table(["Record", "Date", "Status"], rows))


def with_results(text: str) -> str:
    """Put the results into a page's tables."""
    return TABLE.sub(lambda found: found[1] + results_table(found[2].split()) + "\n\n", text)


def results_table(names: list[str]) -> str:
    """Write what was measured as a table: a comparison with llama.cpp, or the accuracy of `fit`."""
    if names == ["fit-speed"]:
        return markdown_table(LEFT_OUT.split("|"), left_out_rows())
    if names == ["fit-accuracy"]:
        cases = read_json("fit-accuracy.json", RESULTS)["cases"]
        return markdown_table(ACCURACY.split("|"), [accuracy_row(case) for case in cases])
    if names == ["fit-memory"]:
        cases = read_json("fit-memory.json", RESULTS)["cases"]
        return markdown_table(ACCURACY.split("|")[:3], [memory_row(case) for case in cases])
    rows = [row for name in names for row in comparison_rows(name)]
    return markdown_table(["file", "metric", "Conifer", "llama.cpp", "ratio"], rows)


def comparison_rows(name: str) -> list[list[str]]:
    """Write the medians of one comparison, and the lowest and highest ratio of its pairs."""
    result = read_json(f"{name}.json", RESULTS)
    rows = []
    for figure, title in FIGURES.items():
        if figure in result["ratios"]:
            pair = (result["medians"][who][figure]["median"] for who in ("conifer", "llama"))
            ratio = result["ratios"][figure]
            spread = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
            rows.append([FILES[name], title, *map(three_digits, pair), spread])
    return rows


def left_out_rows() -> list[list[str]]:
    """Write how well `fit_speed.py` predicts the sources that it leaves out, for each group."""
    return [
        [
            group if kind == "all" else f"{group}, {kind}",
            str(figures["reports"]),
            str(found["sources"]),
            f"{figures['median']:.2f}",
            f"{figures['lowest']:.2f} to {figures['highest']:.2f}",
            f"{figures['inside']:.0%}".replace("%", " %"),
        ]
        for group, found in read_json("fit-speed.json", RESULTS).items()
        for kind, figures in found["left_out"].items()
    ]


def accuracy_row(case: dict[str, Any]) -> list[str]:
    """Write one case of `fit-accuracy`: measured over predicted."""
    ratios = case["speed_ratios"]
    speed = f"{case['measured_over_predicted_speed']:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    file = f"{case['file']}, {case['layers']} layers"
    memory = f"{case['measured_over_predicted_memory']:.3f}"
    prompt = case.get("measured_over_predicted_prompt")
    return [file, f"{case['context']:,}", memory, speed, f"{prompt:.2f}" if prompt else "-"]


def memory_row(case: dict[str, Any]) -> list[str]:
    """Write one case of `fit-memory`: measured over predicted."""
    file = f"{Path(case['file']).stem}, {case['layers']} layers"
    return [file, f"{case['context']:,}", f"{case['measured_over_predicted_memory']:.3f}"]


def three_digits(value: float) -> str:
    """Write a figure with three digits."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def read_json(name: str, folder: Path = RECORDS) -> dict[str, Any]:
    """Read one of the tests' records, or a result."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def largest_differences(parity: dict[str, Any]) -> dict[str, str]:
    """Say of each architecture the largest difference of its float fixtures, with any kernels."""
    found: dict[str, float] = {}
    for figures in parity["figures"].values():
        for name, figure in figures.items():
            if name not in parity["quantized"]:
                family = parity["architectures"][name]
                found[family] = max(figure, found.get(family, 0.0))
    return {family: f"{figure:.0e}" for family, figure in found.items()}


def fixture_figures(parity: dict[str, Any], name: str) -> list[str]:
    """Write one fixture's figures: with what it is compared, native, stock."""
    figures = [str(parity["figures"][kernels].get(name, "-")) for kernels in ("native", "stock")]
    return ["with llama.cpp" if name in parity["quantized"] else "difference", *figures]


def tokenizer_proof(entry: Entry) -> str:
    """Return how far the ids of a model's tokenizer are verified, and on which vocabulary."""
    if entry.tokenizer is None:
        return "unknown"
    exact = read_json("exact_tokenizers.json")
    if entry.tokenizer == "llama":
        return f"exact: scored, on {', '.join(exact['scored'])}"
    vocabulary = exact["by_pre_tokenizer"].get(entry.tokenizer)
    if vocabulary is None:
        return f"regex only: `{entry.tokenizer}`"
    return f"exact: `{entry.tokenizer}`, on {vocabulary}"


def run_proof(run: dict[str, str] | None) -> str:
    """Say which file was run, and which test holds its answer."""
    return f"[{run['file']}](../{run['test']})" if run else "never run"


def unknown_runs() -> list[str]:
    """List recorded runs of what the catalog does not have."""
    known = {(entry.id, facts.quant) for entry in entries().values() for facts in entry.files}
    return [
        f"tests/data/runs.json: {name} has no {run['file']} file in the catalog"
        for name, run in read_json("runs.json").items()
        if (name, run["file"]) not in known
    ]


def undated() -> list[str]:
    """List decision records that do not begin with a numbered title, a date and a status."""
    return [
        f"docs/decisions/{path.name}: must begin with '# N. Title', '- Date: ' and '- Status: '"
        for path in sorted(DECISIONS.glob("0*.md"))
        if not (found := RECORD.match(path.read_text()))
        or int(path.name[:4]) != int(found[1].split(".")[0])
    ]


def markdown_table(heading: list[str], rows: list[list[str]]) -> str:
    """Write rows as a table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
