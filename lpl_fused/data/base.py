"""The one structure every data set is handed over in, and the long-tailed profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import CLASSES, Choice, Integer, Maybe, Number, RealTensor, shown
from .files import ImageFiles
from .labels import LabelSets, class_counts

PROFILES = ("exp", "zipf", "step")

_MOST_FAULTS = 20  # that a message lists


class DataError(ValueError):
    """The data asked for cannot be made: a wrong option, a missing folder, an unreadable image."""


@dataclass(frozen=True)
class LongTailedData:
    """Training data with few examples of many classes, and the test data to judge it by.

    Args:
        name: the data set's name, as `load` knows it.
        train_inputs: images `(N, channels, height, width)` uint8, or their `ImageFiles`, or
            contexts `(N, length)` int64, or bags of words `(N, length)` int64.
        train_targets: class of each training input, `(N,)` int64, in `[0, len(class_names))`; or,
            of multi-label data, their `LabelSets`.
        test_inputs: as `train_inputs`, `(M, ...)`. The built-in data sets hold the same number for
            every class.
        test_targets: `(M,)` int64, or `LabelSets`.
        class_names: one name per class; its length is the number of classes C.
        words: number of words, where inputs are bags of them, 1 to `words`, filled up with 0.
        left_out: what of the user's data was not taken, and why.

    `cls_num_list`, `(C,)` int64, is counted from `train_targets`.

    Raises:
        DataError: inputs and targets differ in length, or a class has no training example (the
            count-based losses are not defined for it).
    """

    name: str
    train_inputs: Tensor | ImageFiles
    train_targets: Tensor | LabelSets
    test_inputs: Tensor | ImageFiles
    test_targets: Tensor | LabelSets
    class_names: tuple[str, ...]
    words: int | None = None
    left_out: tuple[str, ...] = ()
    cls_num_list: Tensor = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a name, got {shown(self.name)}")
        for name in ("train_inputs", "test_inputs"):
            if not isinstance(getattr(self, name), ImageFiles):
                RealTensor()(name, getattr(self, name))
        for name in ("train_targets", "test_targets"):
            targets = getattr(self, name)
            if not isinstance(targets, LabelSets):
                CLASSES(name, targets)
        for name in ("class_names", "left_out"):
            names = getattr(self, name)
            if not isinstance(names, tuple) or not all(isinstance(one, str) for one in names):
                raise TypeError(f"{name}: expected a tuple of names, got {shown(names)}")
        Maybe(Integer(least=1))("words", self.words)
        for part, inputs, targets in (
            ("train", self.train_inputs, self.train_targets),
            ("test", self.test_inputs, self.test_targets),
        ):
            if len(inputs) != len(targets):
                raise DataError(
                    f"{self.name}: {len(inputs)} {part} inputs but {len(targets)} {part} targets"
                )
        counts = class_counts(self.train_targets, len(self.class_names))
        if len(counts) != len(self.class_names):
            raise DataError(
                f"{self.name}: training label {len(counts) - 1} is out of range for "
                f"{len(self.class_names)} classes"
            )
        empty = (counts == 0).nonzero().flatten().tolist()
        if empty:
            raise DataError(
                f"{self.name}: class {self.class_names[empty[0]]!r} has no training example "
                f"({len(empty)} such classes)"
            )
        object.__setattr__(self, "cls_num_list", counts)

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether an example may have several classes, or none."""
        return isinstance(self.train_targets, LabelSets)


def long_tail_counts(
    num_classes: int,
    largest: int,
    imbalance: float,
    profile: str = "exp",
    *,
    rounding: str = "nearest",
) -> Tensor:
    """Number of training examples per class, from the most to the least frequent.

    With `i = 0 … C−1`, `N` the largest count and `IF` the imbalance factor:

        exp:   n_i = N · IF^(−i/(C−1))                 (Cui et al. 2019, Cao et al. 2019)
        zipf:  n_i = N · (i+1)^(−a),   a = ln IF / ln C
        step:  n_i = N for i < ⌊C/2⌋, N/IF for the others    (Buda et al. 2018, Cao et al. 2019)

    All start at `N` and end at `N/IF`.

    Args:
        num_classes: C, at least 2.
        largest: N, the count of the most frequent class.
        imbalance: IF ≥ 1, the ratio of the largest to the smallest count; 1 means balanced.
        profile: "exp", "zipf" or "step".
        rounding: of the counts: "nearest", or "down" as in the code of LDAM.

    Returns:
        `(C,)` int64, non-increasing.

    Raises:
        DataError: unknown profile, fewer than two classes, `imbalance` not a finite number ≥ 1,
            or larger than `largest` (the rarest class would be left without an example).
        TypeError: no numbers at all.
    """
    try:
        num_classes = Integer(least=2)("num_classes", num_classes)
        largest = Integer(least=1)("largest", largest)
        imbalance = Number(least=1)("imbalance", imbalance)
        Choice(*PROFILES)("profile", profile)
        Choice("nearest", "down")("rounding", rounding)
    except ValueError as error:
        raise DataError(str(error)) from error
    if imbalance > largest:
        raise DataError(
            f"imbalance: expected 1 (balanced) to {largest} (the number of training "
            f"examples of the most frequent class), got {imbalance:g}"
        )
    rank = torch.arange(num_classes, dtype=torch.float64)
    if profile == "exp":
        exponent = rank / (num_classes - 1)
    elif profile == "zipf":
        exponent = (rank + 1).log() / torch.tensor(num_classes, dtype=torch.float64).log()
    else:
        exponent = (rank >= num_classes // 2).double()
    if rounding == "down":
        # the power as Python takes it: where it is whole, the last bit decides
        counts = [int(largest * (1 / imbalance) ** power) for power in exponent.tolist()]
        return torch.tensor(counts).clamp(min=1)  # N · (1/N) may be less than 1
    log_imbalance = torch.tensor(imbalance, dtype=torch.float64).log()
    return (largest * torch.exp(-log_imbalance * exponent)).round().long()


def told(root: Path, faults: Sequence[str], *, skipping: bool) -> str:
    """All faults of the data below `root`, for a message: one is told by itself.

    Args:
        skipping: `skip_broken` is on already.
    """
    if len(faults) == 1:
        return faults[0] if skipping else f"{faults[0]} (skip_broken leaves it out)"
    lines = list(faults[:_MOST_FAULTS])
    if len(faults) > len(lines):
        lines = [*lines, f"… and {len(faults) - len(lines)} more"]
    hint = "" if skipping else " (skip_broken leaves them out)"
    return "\n  ".join([f"{root} has {len(faults)} faults{hint}:", *lines])


def too_few(root: Path, faults: Sequence[str], classes: int) -> DataError:
    """What the data below `root` have, or are left with, is no two classes."""
    word = "class" if classes == 1 else "classes"
    if not faults:
        return DataError(f"{root} has {classes} {word}; at least 2 are needed")
    told_of = told(root, faults, skipping=True)
    return DataError(f"{told_of}\n{root} is left with {classes} {word}; at least 2 are needed")
