"""Long-tailed data: some that needs no download, the published benchmarks, the user's own images.

`load` returns every data set as one `LongTailedData`: a training set with few examples of many
classes, and a test set to judge by. In "tags" an example has several classes, in the others one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike, fspath
from typing import Any

from ..arguments import FLAG, Check, Choice, Integer, Maybe, Number, shown
from ..extras import MissingExtraError, needs_extra
from .base import PROFILES, DataError, LongTailedData, long_tail_counts
from .files import ImageFiles
from .labels import LabelSets

NAMES = (
    *("glyphs", "digits", "tokens", "tags", "folder"),
    *("inat2018", "imagenet-lt", "places-lt", "cifar10-lt", "cifar100-lt"),
)
MULTI_LABEL = frozenset({"tags"})
COLOURED = frozenset(NAMES[NAMES.index("folder") :])  # images of red, green and blue
IMAGES = COLOURED | {"glyphs", "digits"}


def _path(name: str, value: Any) -> str:
    expected = f"{name}: expected the path of a folder, got {shown(value)}"
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
# the largest is that of what small models are for
_PLACE: dict[str, Check] = {"path": _path, "image_size": Integer(least=1, most=4096)}
_LISTED: dict[str, Check] = {**_PLACE, "skip_broken": FLAG}
_CIFAR: dict[str, Check] = {**_LONG_TAIL, "path": _path, "largest": Maybe(_COUNT)}
OPTIONS: dict[str, dict[str, Check]] = {
    "glyphs": {"num_classes": Maybe(_CLASSES), **_LONG_TAIL},
    "digits": _LONG_TAIL,
    "tokens": {"num_classes": _CLASSES, "train_samples": _COUNT, "context": _COUNT},
    "tags": {"num_classes": _CLASSES},
    "folder": {
        **_PLACE,
        "test_share": Maybe(Number(above=0, below=1)),
        "skip_broken": FLAG,
    },
    **dict.fromkeys(("inat2018", "imagenet-lt", "places-lt"), _LISTED),
    **dict.fromkeys(("cifar10-lt", "cifar100-lt"), _CIFAR),
}

__all__ = [
    "COLOURED",
    "IMAGES",
    "MULTI_LABEL",
    "NAMES",
    "OPTIONS",
    "PROFILES",
    "DataError",
    "ImageFiles",
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
            "tags" (`num_classes`), "folder" (`path`, `image_size`, `test_share`, `skip_broken`),
            "inat2018", "imagenet-lt", "places-lt" (`path`, `image_size`, `skip_broken`),
            "cifar10-lt" or "cifar100-lt" (`path`, `imbalance`, `profile`, `largest`).
        seed: of everything random in the data; the same seed gives the same tensors.
        options: those in parentheses above; see `load_glyphs`, `load_digits`, `load_tokens`,
            `load_tags`, `load_folder`, `load_inat`, `load_lists`, `load_cifar`.

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
    if "path" in OPTIONS[name] and "path" not in options:
        raise TypeError(f"data {name!r} needs a path")
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
    if name == "folder":
        from . import folder

        return folder.load_folder
    if name == "inat2018":
        from . import inat

        return inat.load_inat
    if name in ("cifar10-lt", "cifar100-lt"):
        from . import cifar

        return partial(cifar.load_cifar, name)
    from . import lists

    return partial(lists.load_lists, name)
