"""Hooks of mkdocs.yml: pages and pictures of the repository outside docs/ belong to the site, too.

README.md is the site's first page. Whatever a page links to, records of benchmarks and changes,
say, is a page or a file of the site, at its place in the repository; what is in docs/ moves up one
level, and links follow. So one text serves the repository and the site, and mkdocs checks links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
START = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def place(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    return path.removeprefix("docs/")


def goal(page: str, link: str) -> str | None:
    """The file of the repository that a link on one of its pages leads to."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if (ROOT / path).is_file() else None


def links(page: str) -> list[str]:
    """The files that a page of the repository links to."""
    if not page.endswith(".md"):
        return []
    found = (goal(page, link) for link in LINK.findall((ROOT / page).read_text()))
    return [path for path in found if path is not None]


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    waiting = [*START, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            file = File.generated(config, place(path), abs_src_path=str(ROOT / path))
            files.append(file)
        fresh = set(links(path)) - known
        known |= fresh
        waiting += fresh
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    here = page.file.src_uri
    source = Path(page.file.abs_src_path or "").resolve().relative_to(ROOT).as_posix()

    def moved(found: re.Match[str]) -> str:
        path = goal(source, found[0])
        return (
            found[0]
            if path is None
            else posixpath.relpath(place(path), posixpath.dirname(here) or ".")
        )

    return LINK.sub(moved, markdown)
