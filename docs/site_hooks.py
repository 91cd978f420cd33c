"""Hooks of the docs site: README.md as its first page, and links to files outside docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the decision records to the navigation."""
    records = sorted((DOCS / "decisions").glob("0*.md"))
    pages = ["README.md", *(record.name for record in records)]
    config.nav = [*(config.nav or []), {"Decisions": [f"decisions/{page}" for page in pages]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the first page."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Rewrite the links of one page."""
    source = page.file.src_uri
    home = ROOT if source == "index.md" else (DOCS / source).parent
    return LINK.sub(lambda link: rewritten(link, home, source, config.repo_url), markdown)


def rewritten(link: re.Match[str], home: Path, source: str, repository: str | None) -> str:
    """Return a link as the site needs it: relative inside docs/, absolute outside of it."""
    target = link["target"]
    if not target or "://" in target or target.startswith("mailto:"):
        return link[0]
    path = (home / target).resolve()
    anchor = link["anchor"] or ""
    if path == ROOT / "README.md":
        path = DOCS / "index.md"
    if path.is_relative_to(DOCS) and path.suffix != ".py":
        if path.is_dir():
            path /= "README.md"
        up = "../" * source.count("/")
        return f"{link['image']}[{link['text']}]({up}{path.relative_to(DOCS)}{anchor})"
    if not repository:
        return link["text"]
    kind = "tree" if path.is_dir() else "blob"
    address = f"{repository.rstrip('/')}/{kind}/main/{path.relative_to(ROOT)}{anchor}"
    return f"[{link['text']}]({address})"
