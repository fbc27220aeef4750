"""What is said where a package is missing that only some of this one needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# by the name that is imported
_EXTRAS = {
    **dict.fromkeys(("matplotlib", "numpy", "PIL", "rich", "sklearn"), "train"),
    "safetensors": "inspect",
    "torchmetrics": "metrics",
    "torchvision": "vision",
}


class MissingExtraError(ModuleNotFoundError):
    """A package of an extra is not installed."""


@contextmanager
def needs_extra(extra: str | None = None) -> Iterator[None]:
    """Say which `pip install` helps where a package is missing.

    Args:
        extra: brings all that is wanted; by default the least that brings the package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _EXTRAS:
            raise MissingExtraError(
                f'{package} is missing: pip install "lpl_fused[{extra or _EXTRAS[package]}]"',
                name=error.name,
            ) from error
        raise
