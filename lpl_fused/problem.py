"""One call, validated and flattened to rows: what functional, ops and backends hand each other.

A `Problem` is (N, C) logits with everything that the loss of its rows depends on. Tables, weights
and per-row numbers are contiguous and of `accumulate_dtype(input.dtype)`, labels are int64.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .norm import Numbers
from .version import text

NONE, MEAN, SUM = range(3)
REDUCTIONS = {"none": NONE, "mean": MEAN, "sum": SUM}


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses, tables and sums beside logits of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def features_of(record: Any) -> frozenset[str]:
    """The fields of a named tuple that are on: those with a default and another value than that,
    and in the place of options what is on in these."""
    found = set()
    for name, off in record._field_defaults.items():
        value = getattr(record, name)
        if isinstance(off, tuple):
            found |= value.features
        elif value is not off and (off is None or value != off):
            found.add(name)
    return frozenset(found)


def _packed(options: Any) -> tuple[list[int], list[float]]:
    """Options as two lists, the form in which an operator's schema takes them; first what says
    whose text gives them, and what the operator returns, their meaning."""
    codes = [text()]
    numbers: list[float] = []
    for name, off in options._field_defaults.items():
        value = getattr(options, name)
        if isinstance(off, float):
            numbers.append(value)
        else:
            codes.append(int(value) if isinstance(off, bool) else value)
    return codes, numbers


@functools.cache
def _lengths(kind: Any) -> tuple[int, int]:
    codes, numbers = _packed(kind())
    return len(codes), len(numbers)


def _unpacked(kind: Any, codes: Sequence[int], numbers: Sequence[float]) -> dict[str, Any]:
    """The fields of options from these lists, by name.

    Raises:
        RuntimeError: they are of other fields than there are here.
    """
    next_code, next_number = iter(codes[1:]), iter(numbers)
    expected, got = _lengths(kind), (len(codes), len(numbers))
    if got != expected:
        raise RuntimeError(
            "a graph made with another version of lpl_fused: expected options of"
            f" {expected[0]} codes and {expected[1]} numbers, got {got[0]} and {got[1]};"
            " export or compile it anew"
        )
    fields: dict[str, Any] = {}
    for name, off in kind._field_defaults.items():
        value = next(next_number) if isinstance(off, float) else next(next_code)
        fields[name] = bool(value) if isinstance(off, bool) else value
    return fields


class Options(NamedTuple):
    """The numbers of a call; every field has a value that switches it off."""

    reduction: int = MEAN
    ignore_index: int = -100
    phi: int = 0  # code of lpl_fused.phi
    phi_parameter: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0
    norm_p: float = 0.0  # what a lpl_fused.norm does to the rows: its Numbers
    norm_limit: float = 0.0
    norm_gain: float = 1.0
    norm_offset: float = 0.0
    inverse_temperature: float = 1.0
    step_size: float = 0.0
    penalty: int = 0  # code of lpl_fused.penalty
    penalty_margin: float = 1.0
    penalty_unit: float = 1.0
    penalty_strength: float = 1.0
    normalize: bool = False
    through: bool = False  # the gradient goes through the learned perturbation's steps
    first: int = 0  # the input's first column, numbered among all classes
    classes: int = 0  # how many there are; 0: as many as the input has columns

    @property
    def norm(self) -> Numbers:
        """What happens to the rows' norms."""
        return Numbers(self.norm_p, self.norm_limit, self.norm_gain, self.norm_offset)

    def with_norm(self, norm: Numbers) -> Options:
        return self._replace(
            norm_p=norm.p, norm_limit=norm.limit, norm_gain=norm.gain, norm_offset=norm.offset
        )

    @property
    def features(self) -> frozenset[str]:
        return features_of(self)

    def packed(self) -> tuple[list[int], list[float]]:
        return _packed(self)

    @staticmethod
    def unpacked(codes: Sequence[int], numbers: Sequence[float]) -> Options:
        return Options(**_unpacked(Options, codes, numbers))


class Problem(NamedTuple):
    """The tensors of a call and its options. What is None is absent.

    The input, and class probabilities, may be of some of the classes alone: W columns from
    `options.first` on, of C = `classes`. All else is of all classes.
    """

    input: Tensor  # (N, W), unit stride along W
    target: Tensor  # (N,) int64, or (N, W) floating: class probabilities
    other: Tensor | None = None  # (N,) int64: the second label of a mixed target
    lam: Tensor | None = None  # (N,): the share of `target`; without `other` in its class's δ alone
    weight: Tensor | None = None  # (C,)
    sample_weight: Tensor | None = None  # (N,)
    smoothing: Tensor | None = None  # (C,): label smoothing by target class
    scale: Tensor | None = None  # (C,)
    offset: Tensor | None = None  # (C,)
    margin: Tensor | None = None  # (C,)
    rows: Tensor | None = None  # (R, C)
    row_index: Tensor | None = None  # (N,) int64; None: the target
    steps: Tensor | None = None  # (C,) int32: learned perturbation, signed step counts
    multiplier: Tensor | None = None  # (C,): λ of the penalty
    rho: Tensor | None = None  # (C,): ρ of the penalty
    normalizer: Tensor | None = None  # 0-dim: what a sum is divided by
    options: Options = Options()

    @property
    def classes(self) -> int:
        """C, whatever columns of them the input has."""
        return self.options.classes or self.input.shape[1]

    @property
    def features(self) -> frozenset[str]:
        """What is on: see csrc/fields.h."""
        return _features(Problem, self.dense, self.options, *[part is None for part in self[2:-1]])

    @property
    def dense(self) -> bool:
        """Targets are class probabilities."""
        return self.target.dim() == 2

    @property
    def spread(self) -> bool:
        """A target has weight on all columns."""
        return self.dense or self.smooth

    @property
    def one_label(self) -> bool:
        """All weight of a row is on one label."""
        return not self.spread and self.other is None

    @property
    def by_label(self) -> bool:
        """What is added to a row's logits depends on its label: of two labels it is two rows."""
        by_class = self.rows is not None and self.row_index is None
        return self.margin is not None or self.steps is not None or by_class

    def columns(self, begin: int, end: int) -> Problem:
        """The problem's part that has the input's columns from `begin` to `end`; of all columns
        the problem itself."""
        if (begin, end) == (0, self.input.shape[1]):
            return self
        options = self.options._replace(first=self.options.first + begin, classes=self.classes)
        target = self.target[:, begin:end] if self.dense else self.target
        return self._replace(input=self.input[:, begin:end], target=target, options=options)

    @property
    def smooth(self) -> bool:
        """Labels are smoothed."""
        return self.smoothing is not None or self.options.label_smoothing > 0


class BinaryOptions(NamedTuple):
    """The numbers of a multi-label call; every field has a value that switches it off."""

    reduction: int = MEAN
    phi: int = 0
    missing: bool = False  # labels equal to `ignored` or nan are not there
    phi_detached: bool = False  # asymmetric φ: what it multiplies ℓ by has no gradient
    phi_parameter: float = 0.0  # of an asymmetric φ that of positives
    phi_negative: float = 0.0  # that of negatives
    phi_clip: float = 0.0  # what is taken off their probability
    ignored: float = 0.0
    alpha: float = 0.0
    beta: float = 0.0
    mu: float = 0.0
    step_size: float = 0.0

    @property
    def features(self) -> frozenset[str]:
        return features_of(self)

    def packed(self) -> tuple[list[int], list[float]]:
        return _packed(self)

    @staticmethod
    def unpacked(codes: Sequence[int], numbers: Sequence[float]) -> BinaryOptions:
        return BinaryOptions(**_unpacked(BinaryOptions, codes, numbers))


class BinaryProblem(NamedTuple):
    """The tensors of a multi-label call and its options. What is None is absent."""

    input: Tensor  # (N, C), unit stride along C
    target: Tensor  # (N, C), any real dtype, unit stride along C
    positive_weight: Tensor | None = None  # (C,)
    negative_weight: Tensor | None = None  # (C,)
    positive_scale: Tensor | None = None  # (C,)
    positive_offset: Tensor | None = None  # (C,)
    negative_scale: Tensor | None = None  # (C,)
    negative_offset: Tensor | None = None  # (C,)
    inverse_count: Tensor | None = None  # (C,): row×class weights
    sample_weight: Tensor | None = None  # (N,)
    steps: Tensor | None = None  # (C,) int32: learned perturbation, signed step counts
    normalizer: Tensor | None = None  # 0-dim: what a sum is divided by
    options: BinaryOptions = BinaryOptions()

    @property
    def features(self) -> frozenset[str]:
        absent = [part is None for part in self[2:-1]]
        return _features(BinaryProblem, False, self.options, *absent)


@functools.lru_cache(maxsize=512)
def _features(kind: Any, dense: bool, options: Any, *absent: bool) -> frozenset[str]:
    """`features_of` a problem without these tensors, looked up: training repeats them."""
    parts = (None if is_absent else () for is_absent in absent)
    found = features_of(kind(None, None, *parts, options))
    return found | {"dense"} if dense else found


def divides(problem: Problem | BinaryProblem) -> bool:
    """Whether the sum of the losses is divided by a norm: by what a mean divides by, or by the
    normalizer."""
    return problem.options.reduction == MEAN or problem.normalizer is not None


TABLES = ("scale", "offset", "margin", "rows")  # the fields that can receive a gradient


class RangeError(ValueError, IndexError):
    """A label or row index outside its range. (torch raises IndexError for the same.)"""


class NotDifferentiable(RuntimeError):
    """A backend that cannot differentiate through the steps of this problem."""


def is_ignored(labels: Tensor, ignore_index: int) -> Tensor:
    """Which of them are `ignore_index`. (Compared in 8 bits of their own, −100 would be 156.)"""
    return labels.long() == ignore_index


def label_range_error(what: str, value: int, size: int, ignore_index: int | None) -> RangeError:
    ignored = "" if ignore_index is None else f", or ignore_index={ignore_index}"
    return RangeError(f"{what} {value} is out of range: expected 0 <= {what} < {size}{ignored}")
