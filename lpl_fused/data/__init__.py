"""Long-tailed data that needs no download, and the user's own images.

`load` returns every data set as one `LongTailedData`: a training set with few examples of many
classes, and a test set to judge by. In "tags" an example has several classes, in the others one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from typing import Any

from ..arguments import FLAG, Check, Choice, Integer, Maybe, Number, shown
from ..extras import MissingExtraError, needs_extra
from .base import PROFILES, DataError, LongTailedData, long_tail_counts
from .labels import LabelSets

NAMES = ("glyphs", "digits", "tokens", "tags", "folder")
MULTI_LABEL = frozenset({"tags"})


def _path(name: str, value: Any) -> str:
    expected = f"{name}: expected the path of a folder of images, got {shown(value)}"
    if not isinstance(value, (str, PathLike)):
        raise TypeError(expected)
    if fspath(value) == "":
        raise ValueError(expected)
    return fspath(value)


_COUNT, _CLASSES = Integer(least=1), Integer(least=2)
_LONG_TAIL: dict[str, Check] = {
    "imbalance": Number(least=1),
    "profile": Choice(*PROFILES),
    "largest": _COUNT,
}
OPTIONS: dict[str, dict[str, Check]] = {
    "glyphs": {"num_classes": Maybe(_CLASSES), **_LONG_TAIL},
    "digits": _LONG_TAIL,
    "tokens": {"num_classes": _CLASSES, "train_samples": _COUNT, "context": _COUNT},
    "tags": {"num_classes": _CLASSES},
    # the largest is that of what small models are for
    "folder": {
        "path": _path,
        "image_size": Integer(least=1, most=4096),
        "test_share": Maybe(Number(above=0, below=1)),
        "skip_broken": FLAG,
    },
}

__all__ = [
    "MULTI_LABEL",
    "NAMES",
    "OPTIONS",
    "PROFILES",
    "DataError",
    "LabelSets",
    "LongTailedData",
    "MissingExtraError",
    "check_options",
    "load",
    "long_tail_counts",
    "needs_extra",
]


def load(name: str, *, seed: int = 0, **options: Any) -> LongTailedData:
    """Load a data set by name.

    Args:
        name: "glyphs" (`num_classes`, `imbalance`, `profile`, `largest`), "digits" (`imbalance`,
            `profile`, `largest`), "tokens" (`num_classes`, `train_samples`, `context`),
            "tags" (`num_classes`) or "folder" (`path`, `image_size`, `test_share`,
            `skip_broken`).
        seed: of everything random in the data; the same seed gives the same tensors.
        options: those in parentheses above; see `load_glyphs`, `load_digits`, `load_tokens`,
            `load_tags`, `load_folder`.

    Raises:
        DataError: unknown name, an option out of range, or data that cannot be made as asked.
        TypeError: an option that the data set does not have, or something else than it takes.
        MissingExtraError: a package of the `train` extra is missing.
    """
    try:
        options = check_options(name, options)
        seed = Integer()("seed", seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    with needs_extra():
        return _loader(name)(seed=seed, **options)


def check_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data set as `load` takes them.

    Raises:
        ValueError: unknown name, or an option out of range.
        TypeError: an option that the data set does not have, or something else than it takes.
    """
    known = OPTIONS[Choice(*NAMES)("name", name)]
    for option in options:
        if option not in known:
            raise TypeError(f"data {name!r} has no option {option!r}; it has {', '.join(known)}")
    return {option: known[option](option, value) for option, value in options.items()}


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
