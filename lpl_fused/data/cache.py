"""Arrays that take seconds to make, kept under `$XDG_CACHE_HOME`."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..atomic import replacing

Arrays = Mapping[str, np.ndarray[Any, Any]]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lpl_fused`, or `~/.cache/lpl_fused`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "lpl_fused"


def cached(path: Path, names: tuple[str, ...], make: Callable[[], Arrays]) -> Arrays:
    """The arrays `names` stored in `path`, or what `make` gives, stored there.

    A file that cannot be read or written is a warning: the arrays are made anew.
    """
    if path.exists():
        try:
            with np.load(path) as stored:
                return {name: stored[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} is unreadable ({error}); making it anew", stacklevel=3)
    arrays = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        warnings.warn(
            f"{path.name} is not cached, so the next run makes it again: {error}", stacklevel=3
        )
    return arrays
