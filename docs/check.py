"""Check that the docs are true of the code: links resolve, the tree in the README is complete, and
docs/commands.md is what `--help` prints. `--write` rewrites docs/commands.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMANDS = ("", "run", "pull", "fit", "bench", "list", "show", "rm")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def main() -> int:
    """Print what is wrong, one line each. Gives the number of faults."""
    pages = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    help_page = ROOT / "docs" / "commands.md"
    text = commands_page()
    if "--write" in sys.argv[1:]:
        help_page.write_text(text)
    faults = [*broken_links(pages), *missing_from_tree(), *unfinished(pages)]
    if not help_page.exists() or help_page.read_text() != text:
        faults.append("docs/commands.md is not what --help prints: run docs/check.py --write")
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


def unfinished(pages: list[Path]) -> list[str]:
    """List places left to be filled in."""
    return [f"{page.relative_to(ROOT)}: has an @@" for page in pages if "@@" in page.read_text()]


def missing_from_tree() -> list[str]:
    """List source files that the README's tree does not name, but for the architectures' pages."""
    readme = (ROOT / "README.md").read_text()
    files = [
        path for wing in ("conifer_cli", "engine", "catalog") for path in (ROOT / wing).rglob("*")
    ]
    return [
        f"README.md: its tree does not name {path.relative_to(ROOT)}"
        for path in files
        if path.suffix in (".py", ".toml") and path.name not in ("__init__.py", "__main__.py")
        if path.parent != ROOT / "engine" / "models"
        if not re.search(rf"\b{re.escape(path.name)}", readme)
    ]


def commands_page() -> str:
    """Put together what every command prints under --help."""
    parts = [
        "# Commands\n\nWhat `conifer COMMAND --help` prints; made by `docs/check.py --write`.\n"
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


if __name__ == "__main__":
    sys.exit(min(main(), 1))
