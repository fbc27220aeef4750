"""The sources of the running Python's standard library, as data."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import DataError

# Not every distribution ships the test suites; site-packages is not the standard library.
_SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
)


def source_files() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Every module but the tests', in order: its file, and the parts of its relative path."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if _SKIPPED_FOLDERS.isdisjoint(parts):
            yield path, parts


@contextmanager
def readable_source(path: Path) -> Iterator[None]:
    """Name the module that cannot be read, decoded or parsed."""
    try:
        yield
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the standard library's {path} cannot be read: {error}") from error
