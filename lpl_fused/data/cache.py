"""Arrays that take seconds to make, kept under `$XDG_CACHE_HOME`."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from ..atomic import replacing

Arrays = Mapping[str, np.ndarray[Any, Any]]


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lpl_fused`, `~/.cache/lpl_fused`, or, without a home, a temporary one."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    if os.path.isabs(root):
        return Path(root) / "lpl_fused"
    try:
        return Path.home() / ".cache" / "lpl_fused"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"lpl_fused-{os.getuid()}"


def cached(
    path: Path,
    names: tuple[str, ...],
    make: Callable[[], Arrays],
    check: Callable[[Arrays], object] = lambda arrays: None,
) -> Arrays:
    """The arrays `names` stored in `path`, or what `make` gives, stored there.

    A file that cannot be read or written, or whose arrays `check` raises at, is a warning: the
    arrays are made anew.
    """
    if path.exists():
        try:
            # whole members, whose sums are looked at: np.load does not read to their ends
            with ZipFile(path) as stored:
                members = {name: io.BytesIO(stored.read(f"{name}.npy")) for name in names}
            arrays = {name: np.load(member) for name, member in members.items()}
            check(arrays)
            return arrays
        except Exception as error:  # there is no end to what a damaged archive raises
            warnings.warn(
                f"{path} is unreadable ({type(error).__name__}: {error}); making it anew",
                stacklevel=3,
            )
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **made)  # type: ignore[arg-type]
    except OSError as error:
        warnings.warn(
            f"{path.name} is not cached, so the next run makes it again: {error}", stacklevel=3
        )
    return made


def expect(arrays: Arrays, **kinds: tuple[type, int]) -> None:
    """Raise ValueError where an array is not of a kind of numbers and of so many dimensions."""
    for name, (kind, dims) in kinds.items():
        array = arrays[name]
        if not np.issubdtype(array.dtype, kind) or array.ndim != dims:
            raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}")
