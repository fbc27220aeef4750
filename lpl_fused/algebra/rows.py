"""What labels, weights and classes say of the rows of a batch, without their logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import MEAN, SUM, Problem, accumulate_dtype


class Rows(NamedTuple):
    """The targets of a batch, all (N,): weights t'_j = hard·1[j = label] +
    other_hard·1[j = other] + uniform·w_j. nan where a label or a row index is out of range.
    """

    live: Tensor  # bool: the row counts
    label: Tensor  # int64, a class even where there is none
    other: Tensor
    hard: Tensor  # float64, so the next
    other_hard: Tensor
    uniform: Tensor

    @staticmethod
    def of(problem: Problem) -> Rows:
        n, device = problem.input.shape[0], problem.input.device
        share = torch.ones(n, dtype=torch.float64, device=device)
        if problem.sample_weight is not None:
            share = problem.sample_weight.double()
        strange = torch.zeros(n, dtype=torch.bool, device=device)
        if problem.row_index is not None:
            assert problem.rows is not None
            strange = (problem.row_index < 0) | (problem.row_index >= problem.rows.shape[0])
        nothing = torch.zeros_like(share)
        anywhere = torch.zeros(n, dtype=torch.int64, device=device)
        if problem.dense:
            uniform = share.masked_fill(strange, torch.nan)
            return Rows(torch.ones_like(strange), anywhere, anywhere, nothing, nothing, uniform)
        label, ignored, outside = _column(problem, problem.target)
        outside = outside | strange
        if problem.other is None:
            share = share.masked_fill(outside, torch.nan)
            hard, uniform = _split(problem, label, share)
            return Rows(~ignored, label, anywhere, hard, nothing, uniform)
        assert problem.lam is not None
        lam = problem.lam.double()
        other, other_ignored, other_outside = _column(problem, problem.other)
        first = torch.where(ignored | (lam == 0), 0.0, share * lam)
        second = torch.where(other_ignored | (lam == 1), 0.0, share * (1 - lam))
        first = first.masked_fill(outside, torch.nan)
        second = second.masked_fill(other_outside, torch.nan)
        hard, uniform = _split(problem, label, first)
        other_hard, other_uniform = _split(problem, other, second)
        live = ~(ignored & other_ignored)
        return Rows(live, label, other, hard, other_hard, uniform + other_uniform)


def _column(problem: Problem, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(class, ignored, out of range) of labels; one that names no class has class 0."""
    ignored = label == problem.options.ignore_index
    outside = ((label < 0) | (label >= problem.classes)) & ~ignored
    return label.masked_fill(ignored | outside, 0), ignored, outside


def _split(problem: Problem, label: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """(hard, uniform) of labels that have these shares of their rows' weights."""
    hard = share if problem.weight is None else share * problem.weight[label].double()
    if not problem.smooth:
        return hard, torch.zeros_like(share)
    epsilon: Tensor | float = problem.options.label_smoothing
    if problem.smoothing is not None:
        epsilon = problem.smoothing[label].double()
    return hard * (1 - epsilon), share * epsilon / problem.classes


def normalizer(problem: Problem) -> Tensor:
    """0-dim, accumulate dtype: what the summed losses are divided by. For "mean" the weights of the
    rows that count, else the problem's normalizer or 1. As reference.normalizer, but for labels out
    of range, which the loss is nan for and which must not be followed."""
    dtype = accumulate_dtype(problem.input.dtype)
    if problem.normalizer is not None:
        return problem.normalizer
    if problem.options.reduction != MEAN:
        return problem.input.new_ones((), dtype=dtype)
    if problem.dense:
        if problem.sample_weight is None:
            return problem.input.new_full((), problem.input.shape[0], dtype=dtype)
        return problem.sample_weight.sum()

    def weights(label: Tensor, share: Tensor | None) -> Tensor:
        counts = label != problem.options.ignore_index
        if problem.weight is not None:
            column = label.clamp(0, problem.weight.shape[0] - 1)
            counts = torch.where(counts, problem.weight[column], 0)
        return counts if share is None else counts * share

    total = weights(problem.target, problem.lam)
    if problem.other is not None and problem.lam is not None:
        total = total + weights(problem.other, 1 - problem.lam)
    if problem.sample_weight is not None:
        total = total * problem.sample_weight
    return total.sum(dtype=dtype)


def penalty_weight(problem: Problem, norm: Tensor) -> Tensor | None:
    """0-dim: what undoes the weights of a mean (`norm`), as a penalty's is over the rows that
    count; None where there is nothing to undo."""
    if problem.options.reduction != MEAN:
        return None
    if problem.dense:
        return norm / problem.input.shape[0]
    return norm / (~ignored_rows(problem)).sum()


def ignored_rows(problem: Problem) -> Tensor:
    """(N,) bool, of targets that are labels."""
    ignored = problem.target == problem.options.ignore_index
    if problem.other is not None:
        ignored = ignored & (problem.other == problem.options.ignore_index)
    return ignored


def mean_as_sum(problem: Problem, *, of_nothing: float = torch.nan) -> Problem:
    """The problem with a mean written as a sum that is divided, whose chunks add up.

    Args:
        of_nothing: the mean where what it divides by is 0: nan, or 0.
    """
    if problem.options.reduction != MEAN:
        return problem
    options = problem.options._replace(reduction=SUM)
    norm = normalizer(problem)

    def divisor(total: Tensor) -> Tensor:
        return total if of_nothing != 0 else torch.where(total == 0, 1, total)

    if not options.penalty:
        return problem._replace(normalizer=divisor(norm), options=options)
    # a penalty's mean is over the rows that count, whatever their weights
    n = problem.input.shape[0]
    counted = norm.new_full((), n) if problem.dense else (~ignored_rows(problem)).sum()
    counted = divisor(counted.to(norm.dtype))
    share = (counted / divisor(norm)).expand(n)
    if problem.sample_weight is not None:
        share = share * problem.sample_weight
    return problem._replace(normalizer=counted, sample_weight=share.contiguous(), options=options)


def by_label(problem: Problem) -> tuple[Problem, Problem]:
    """Rows of two labels with one of their labels each, its share among the sample weights. A label
    without a share is ignored, however infinite its loss."""
    lam, ignore_index = problem.lam, problem.options.ignore_index
    assert lam is not None and problem.other is not None

    def half(label: Tensor, share: Tensor) -> Problem:
        weight = share if problem.sample_weight is None else problem.sample_weight * share
        label = label.masked_fill(share == 0, ignore_index)
        return problem._replace(target=label, other=None, lam=None, sample_weight=weight)

    return half(problem.target, lam), half(problem.other, 1 - lam)


def label_rows(problem: Problem, *, learned: bool) -> Problem:
    """The 2·N rows of one label each that N rows of two labels are, those of the first labels
    first. Their losses add up to those of the rows, in pairs; the input is left as it is, (N, W).

    Args:
        learned: there are, or will be, steps: each row has its share of its class's δ as `lam`.
    """
    first, second = by_label(mean_as_sum(problem))
    pairs: dict[str, Any] = {
        name: torch.cat([getattr(first, name), getattr(second, name)])
        for name in ("target", "sample_weight", "row_index")
        if getattr(first, name) is not None
    }
    lam = None
    if learned:
        assert problem.lam is not None
        shares = torch.cat([problem.lam, 1 - problem.lam])
        lam = shares.masked_fill(pairs["target"] == problem.options.ignore_index, 1)
    return first._replace(lam=lam, **pairs)


class Classes(NamedTuple):
    """The rows of a batch by class, (N,) int64. Ignored rows are a class of their own, and so are
    those whose label is out of range."""

    slot: Tensor  # the first row of a row's class, its leader
    rows: Tensor  # how many the class has

    @staticmethod
    def of(problem: Problem) -> Classes:
        n, classes = problem.input.shape[0], problem.classes
        target = problem.target
        ignored = target == problem.options.ignore_index
        label = target.masked_fill((target < 0) | (target >= classes), classes + 1)
        label = label.masked_fill(ignored, classes)
        each = torch.arange(n, device=label.device)
        first = label.new_full((classes + 2,), n).scatter_reduce(0, label, each, "amin")
        slot = first[label]
        count = torch.zeros_like(slot).index_add(0, slot, torch.ones_like(slot))[slot]
        return Classes(slot, count)

    def shares(self, problem: Problem) -> Tensor:
        """(N,) float64: what each row is of its class's mean, by `lam` where rows have a share."""
        if problem.lam is None:
            return 1 / self.rows.double()
        lam = problem.lam.double()
        return lam / self.sum(lam)

    def sum(self, values: Tensor) -> Tensor:
        """Of (N, …): each row gets its class's."""
        return torch.zeros_like(values).index_add(0, self.slot, values)[self.slot]

    def max(self, values: Tensor) -> Tensor:
        """Of (N,); nan prevails."""
        lowest = torch.full_like(values, -torch.inf)
        return lowest.scatter_reduce(0, self.slot, values, "amax")[self.slot]


def present(problem: Problem, slot: Tensor) -> tuple[Tensor, Tensor]:
    """(the classes of a batch (G,), ascending; a row of each), by the first row of every row's
    class."""
    live = problem.target != problem.options.ignore_index
    classes, group = torch.unique(problem.target[live], return_inverse=True)
    return classes, torch.empty_like(classes).scatter_(0, group, slot[live])
