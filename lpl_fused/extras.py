"""What is said where a package is missing that only some of this one needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_TRAIN = frozenset({"matplotlib", "numpy", "PIL", "rich", "sklearn", "torchmetrics"})


class MissingExtraError(ModuleNotFoundError):
    """A package of the `train` extra is not installed."""


@contextmanager
def needs_extra() -> Iterator[None]:
    """Say which `pip install` helps where a package of the `train` extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _TRAIN:
            raise MissingExtraError(
                f'{package} is missing: pip install "lpl_fused[train]"', name=error.name
            ) from error
        raise
