"""What losses share that work on rows in plain PyTorch, beside or after the fused kernel."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..problem import is_ignored, label_range_error
from ..row_transforms import class_dim
from ..tracing import readable
from ..validation import Shaped, Target


class RowLoss(Protocol):
    """A loss of rows with labels."""

    ignore_index: int
    weight: Tensor | None


def class_indices(input: Tensor, target: Target, loss: RowLoss) -> Tensor:
    """`target`, of its own shape, as int64 in [0, C), fit to index with.

    Ignored labels, and on CUDA those out of range, become some class: whoever goes on with the
    target itself, the fused loss or `row_weights`, leaves them out or makes them nan.

    Raises:
        ValueError, TypeError: no class indices, one per row of logits; out of range (CPU).
    """
    if not isinstance(target, (Tensor, tuple)):
        raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
    if not isinstance(target, Tensor) or target.is_floating_point():
        raise ValueError(
            f"target: {type(loss).__name__} needs class indices, one per row, got"
            f" {'class probabilities' if isinstance(target, Tensor) else 'a mixed target'}"
        )
    shaped = Shaped(input, target)
    label = shaped.target.clamp(0, shaped.classes - 1).reshape(target.shape)
    ignore_index = loss.ignore_index
    if readable(target):
        bad = changed(label, target) & ~is_ignored(target, ignore_index)
        if bad.any():
            wrong = int(target.long()[bad][0])
            raise label_range_error("target", wrong, shaped.classes, ignore_index)
    return label


def changed(label: Tensor, target: Tensor) -> Tensor:
    """Where a label that is fit to index with is not the one that was given: that is ignored, or no
    class. (Integers of few dtypes are compared with those of another.)"""
    return label != target.long()


def expect_classes(input: Tensor, classes: int) -> None:
    """Raises ValueError where the logits are not of `classes` classes."""
    if input.shape[class_dim(input)] != classes:
        raise ValueError(f"input: expected {classes} classes, got shape {tuple(input.shape)}")


def blanked(input: Tensor, target: Target, ignore_index: int) -> Tensor:
    """The logits with ignored rows set to 0: garbage in padding must not become 0·nan."""
    Shaped(input, target)
    if not isinstance(target, Tensor) or target.is_floating_point():
        return input
    return input.masked_fill(is_ignored(target, ignore_index).unsqueeze(class_dim(input)), 0)


def as_rows(tensor: Tensor) -> Tensor:
    """(C,), (N, C) or (N, C, d1, …) as (rows, C)."""
    if tensor.dim() == 1:
        return tensor[None]
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])


def numbered(label: Tensor) -> Tensor:
    """A row index for tables that hold one row per row of logits."""
    return torch.arange(label.numel(), device=label.device).reshape(label.shape)


def looked_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] of a table (R,). (Within `vmap` torch takes a lone index for a number, which it
    asks for.)"""
    return table[index.reshape(-1)].reshape(index.shape)


def row_weights(target: Tensor, label: Tensor, like: Tensor, loss: RowLoss) -> Tensor:
    """w_y of every row in the dtype of `like`, 0 for ignored ones, nan for what is no class.

    Args:
        label: `class_indices` of `target`.
    """
    weight = torch.ones_like(like)
    if loss.weight is not None:
        weight = looked_up(loss.weight.to(like.dtype), label)
    ignored = is_ignored(target, loss.ignore_index)
    return weight.masked_fill(changed(label, target), math.nan).masked_fill(ignored, 0)


def reduced(values: Tensor, weights: Tensor, reduction: str, empty: str = "nan") -> Tensor:
    """Losses of rows, weighted already, reduced as `functional.cross_entropy` reduces them."""
    if reduction == "none":
        return values
    total = values.sum()
    return total / mean_divisor(weights.sum(), empty) if reduction == "mean" else total


def mean_divisor(norm: Tensor, empty: str) -> Tensor:
    """What a mean divides by, whose sum over nothing is 0: see `empty` of `CrossEntropyLoss`."""
    return torch.where(norm == 0, 1, norm) if empty == "zero" else norm
