"""The shape of the code: which module may import which, and what may not be done below the CLI."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

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
    "huggingface_hub": {"catalog/hub/session.py"},
    "rich": {"conifer_cli"},
    "typer": {"conifer_cli"},
}
# Runs foreign code in a child process of its own, where any exception may come out of it.
SANDBOX = ROOT / "engine" / "text" / "sandbox.py"
# Packages that cost start-up time. A module that loads one of them may be imported in a function.
HEAVY = {
    *("huggingface_hub", "jinja2", "llguidance", "mlx", "numpy", "prompt_toolkit", "psutil"),
    *("rich", "tokenizers", "typer"),
}
# Modules of the CLI that load none of them, and still are not needed before the first line.
LATE = {
    "conifer_cli.fit.verdict",
    "conifer_cli.terminal.format",
    "conifer_cli.terminal.highlight",
    "conifer_cli.terminal.keyboard",
    "conifer_cli.terminal.markdown",
}
MOST_FILES = 14  # besides __init__.py
LISTS = {"engine/architectures"}  # folders of like things may hold more
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


class Import(NamedTuple):
    """One imported module. in_function: not run on import. typing: under TYPE_CHECKING."""

    name: str
    in_function: bool
    typing: bool


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


def module(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in SOURCES}


def imports_below(node: ast.AST, in_function: bool = False, typing: bool = False) -> set[Import]:
    """All imports under a node of the syntax tree; of `from a import b`, a.b if that is ours."""
    found = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            found |= {Import(alias.name, in_function, typing) for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            longer = {f"{base}.{alias.name}" for alias in child.names}
            names = {name if name in MODULES else base for name in longer}
            found |= {Import(name, in_function, typing) for name in names}
        inside = in_function or isinstance(child, ast.FunctionDef)
        checking = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
        found |= imports_below(child, inside, checking)
    return found


@cache
def imports_of(name: str) -> frozenset[Import]:
    """The imports of a module of ours."""
    return frozenset(imports_below(tree(MODULES[name])))


def loaded_with(name: str) -> set[str]:
    """The modules that importing this one loads, itself and foreign ones included."""
    loaded, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in loaded:
            loaded.add(name)
            waiting += filter(None, [name.rpartition(".")[0]])
            if name in MODULES:
                waiting += [i.name for i in imports_of(name) if not i.in_function | i.typing]
    return loaded


def may_wait(importer: str, imported: str) -> bool:
    """Whether a function may import this module: it costs start-up time, or is not ours."""
    wing = importer.partition(".")[0]
    if imported.partition(".")[0] != wing or imported in LATE:
        return True
    if importer == "conifer_cli.app" and imported.startswith("conifer_cli.commands"):
        return True
    return bool(loaded_with(imported) & (HEAVY | set(WINGS) - {wing}))


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


def test_no_file_is_in_a_circle_of_imports():
    graph = {
        name: {i.name for i in imports_of(name) if i.name in MODULES} - {name} for name in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@by_name(SOURCES)
def test_an_import_in_a_function_is_there_for_the_start_up_time(path: Path):
    importer = module(path)
    needless = [
        i.name for i in imports_of(importer) if i.in_function and not may_wait(importer, i.name)
    ]
    assert not needless


def test_no_folder_holds_too_many_files():
    files = defaultdict(list)
    for path in SOURCES:
        if path.name != "__init__.py":
            files[str(path.parent.relative_to(ROOT))].append(path.name)
    full = {folder: len(names) for folder, names in files.items() if len(names) > MOST_FILES}
    assert full.keys() <= LISTS, full


@by_name([path for path in SOURCES if path.name == "__init__.py"])
def test_every_folder_says_what_it_holds(path: Path):
    assert 3 <= len((ast.get_docstring(tree(path)) or "").splitlines()) <= 8


def test_no_two_classes_have_one_name():
    homes = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(module(path))
    assert not {name: where for name, where in homes.items() if len(where) > 1}
