"""Several classes per example, kept as lists of classes and not as an N×C table of mostly zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Integer, Numbers


class LabelSets:
    """The classes of N examples, any number of them each; `sets[index]` is a multi-hot batch.

    Args:
        offsets: `(N + 1,)` int64 from 0: example i has `classes[offsets[i]:offsets[i + 1]]`.
        classes: int64 in `[0, num_classes)`, ascending and without repeats within an example.
        num_classes: C.

    Raises:
        ValueError: offsets that do not start at 0, fall, or do not end at the number of classes;
            a class out of range, out of order or repeated.
    """

    def __init__(self, offsets: Tensor, classes: Tensor, num_classes: int) -> None:
        num_classes = Integer(least=1)("num_classes", num_classes)
        Numbers(False, 1)("offsets", offsets)
        Numbers(False, 1)("classes", classes)
        sizes = offsets.diff()
        if len(offsets) == 0 or offsets[0] != 0 or (sizes < 0).any():
            raise ValueError("offsets: expected numbers from 0 on that never fall")
        if offsets[-1] != len(classes):
            raise ValueError(f"offsets: expected an end at {len(classes)}, got {int(offsets[-1])}")
        if len(classes) and not (classes.min() >= 0 and classes.max() < num_classes):
            raise ValueError(f"classes: expected 0 to {num_classes - 1}")
        example = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        if ((example * num_classes + classes).diff() <= 0).any():
            raise ValueError("classes: expected ascending classes without repeats")
        self.offsets, self.classes, self.num_classes = offsets, classes, num_classes

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Tensor) -> Tensor:
        """(n, C) float32, 1 at the classes of the examples `index` (n,) int64, else 0."""
        sizes, classes = self._gather(index)
        row = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        dense = torch.zeros(len(sizes), self.num_classes, device=sizes.device)
        dense[row, classes] = 1
        return dense

    def dense(self) -> Tensor:
        """(N, C) float32, all of them."""
        return self[torch.arange(len(self), device=self.offsets.device)]

    def select(self, index: Tensor) -> LabelSets:
        """Those of the examples `index`: (n,) int64 numbers or a bool per example."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        sizes, classes = self._gather(index)
        return LabelSets(offsets_of(sizes), classes, self.num_classes)

    def counts(self) -> Tensor:
        """(C,) int64 examples of each class."""
        return torch.bincount(self.classes, minlength=self.num_classes)

    def to(self, device: torch.device) -> LabelSets:
        """The same on another device."""
        return LabelSets(self.offsets.to(device), self.classes.to(device), self.num_classes)

    def _gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of classes (n,) of the examples `index`, and the classes themselves."""
        sizes = self.offsets[index + 1] - self.offsets[index]
        shift = (self.offsets[index] - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
        return sizes, self.classes[torch.arange(len(shift), device=shift.device) + shift]


def offsets_of(sizes: Tensor) -> Tensor:
    """(N + 1,) where each of N lists of the `sizes` starts, and where the last one ends."""
    return torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])


def class_counts(targets: Tensor | LabelSets, num_classes: int) -> Tensor:
    """(C,) int64 examples of each class; longer where a target is no class below C."""
    if isinstance(targets, LabelSets):
        return targets.counts()
    return torch.bincount(targets, minlength=num_classes)
