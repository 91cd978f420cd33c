"""The shape of the house: which wing may import which, and what may not be done below the CLI."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("conifer_cli", "catalog", "engine")
ALLOWED = {"conifer_cli": {"conifer_cli", "catalog", "engine"}, "catalog": {"catalog"}} | {
    "engine": {"engine"}
}
SOURCES = sorted(path for wing in WINGS for path in (ROOT / wing).rglob("*.py"))
HARD_LIMIT = 500
# The one file that may import a package whose cost or reach we keep in one place.
ONLY_IN = {
    "huggingface_hub": {"catalog/hub/client.py"},
    "rich": {"conifer_cli"},
    "typer": {"conifer_cli"},
}
# Runs foreign code in a child process of its own, where any exception may come out of it.
SANDBOX = ROOT / "engine" / "text" / "sandbox.py"
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def by_name(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda p: str(p.relative_to(ROOT)))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_all_three_wings_are_walked():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(WINGS)


@by_name(SOURCES)
def test_imports_run_one_way(path: Path):
    wing = path.relative_to(ROOT).parts[0]
    ours = {name.partition(".")[0] for name in imported(path)} & set(WINGS)
    assert ours <= ALLOWED[wing]


@by_name(SOURCES)
def test_a_package_kept_in_one_place_stays_there(path: Path):
    place = path.relative_to(ROOT)
    for package, homes in ONLY_IN.items():
        if any(name.partition(".")[0] == package for name in imported(path)):
            assert {str(place), place.parts[0]} & homes, f"{place} imports {package}"


@by_name([path for path in SOURCES if path.relative_to(ROOT).parts[0] != "conifer_cli"])
def test_nothing_below_the_cli_prints_exits_or_reads_the_environment(path: Path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input", "exit", "quit"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in {"os.getenv", "sys.exit", "os._exit", "warnings.warn"}
        if isinstance(node, ast.Subscript | ast.Attribute) and path != SANDBOX:
            assert ast.unparse(node.value) != "os.environ"  # handing all of it to a child is fine


@by_name(SOURCES)
def test_no_file_runs_data_as_code(path: Path):
    assert not {name.partition(".")[0] for name in imported(path)} & {"pickle", "marshal", "shelve"}
    for call in calls(path):
        if isinstance(call.func, ast.Name):
            assert call.func.id not in FORBIDDEN_CALLS
        assert not any(
            word.arg in {"shell", "trust_remote_code"}
            and not (isinstance(word.value, ast.Constant) and word.value.value is False)
            for word in call.keywords
        )


@by_name(SOURCES)
def test_every_child_python_ignores_the_folder_it_starts_in(path: Path):
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.List | ast.Tuple):
            continue
        for word, following in zip(node.elts, node.elts[1:], strict=False):
            if ast.unparse(word) == "sys.executable":
                assert ast.unparse(following) in {"'-I'", "'-P'"}


@by_name([path for path in SOURCES if path != SANDBOX])
def test_no_exception_is_caught_blindly(path: Path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None
            assert ast.unparse(node.type) not in {"Exception", "BaseException"}


@by_name(SOURCES)
def test_no_file_is_over_the_hard_limit(path: Path):
    assert len(path.read_text().splitlines()) <= HARD_LIMIT


@by_name(SOURCES)
def test_every_module_says_what_it_is(path: Path):
    assert ast.get_docstring(tree(path)), "no docstring"
