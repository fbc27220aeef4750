"""Long-tailed data that needs no download, and the user's own images.

`load` returns every data set as one `LongTailedData`: a training set with few examples of many
classes, and a test set to judge by. In "tags" an example has several classes, in the others one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..extras import MissingExtraError, needs_extra
from .base import PROFILES, DataError, LongTailedData, long_tail_counts
from .labels import LabelSets

NAMES = ("glyphs", "digits", "tokens", "tags", "folder")
MULTI_LABEL = frozenset({"tags"})

__all__ = [
    "MULTI_LABEL",
    "NAMES",
    "PROFILES",
    "DataError",
    "LabelSets",
    "LongTailedData",
    "MissingExtraError",
    "load",
    "long_tail_counts",
    "needs_extra",
]


def load(name: str, *, seed: int = 0, **options: Any) -> LongTailedData:
    """Load a data set by name.

    Args:
        name: "glyphs" (`num_classes`, `imbalance`, `profile`, `largest`), "digits" (`imbalance`,
            `profile`, `largest`), "tokens" (`num_classes`, `train_samples`, `context`),
            "tags" (`num_classes`) or "folder" (`path`, `image_size`).
        seed: of everything random in the data; the same seed gives the same tensors.
        options: those in parentheses above; see `load_glyphs`, `load_digits`, `load_tokens`,
            `load_tags`, `load_folder`.

    Raises:
        DataError: unknown name, or data that cannot be made as asked.
        TypeError: an option that the data set does not have.
        MissingExtraError: a package of the `train` extra is missing.
    """
    if name not in NAMES:
        raise DataError(f"data must be one of {', '.join(NAMES)}; got {name!r}")
    with needs_extra():
        return _loader(name)(seed=seed, **options)


def _loader(name: str) -> Callable[..., LongTailedData]:
    # Each needs its own packages, so each is imported when it is asked for.
    if name == "glyphs":
        from . import glyphs

        return glyphs.load_glyphs
    if name == "digits":
        from . import digits

        return digits.load_digits
    if name == "tokens":
        from . import tokens

        return tokens.load_tokens
    if name == "tags":
        from . import tags

        return tags.load_tags
    from . import folder

    return folder.load_folder
