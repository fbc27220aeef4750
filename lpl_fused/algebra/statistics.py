"""What a user asks of rows beside their loss: how large, how spread and how right their softmax is.

One reduction over the columns, `parts.Statistics`, whose parts join as all others do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem, accumulate_dtype
from .known import Known
from .learned import CHUNK, Perturbed, delta
from .parts import Kind, Part, Round, Statistics, finite
from .rows import Rows
from .settle import begin, settle
from .terms import Terms

# of a backend's contract
Reduce = Callable[[Problem, Round, Known], Part]

# e^x is 0 in every dtype below it, and products with it are numbers
_NOTHING = -1e4


class RowStatistics(NamedTuple):
    """Numbers of each row beside its loss, for watching a training; no gradient.

    Of z, the logits that the loss took its softmax of (with its tables, δ, norm and temperature):
    `lse` and `entropy`. Of the raw logits, with which one predicts: `correct`. All have the shape
    of the target (class probabilities: without the classes). A row whose softmax is no number (nan
    or +inf among its logits) has nan in both and is not correct; nor is one of −inf alone, whose
    `lse` is −inf. A row that is ignored has 0, 0 and False.

    Attributes:
        lse: log Σ_j e^(z_j).
        entropy: −Σ_j p_j·log p_j, in nats, p = softmax(z); what has p_j = 0 adds nothing.
        correct: whether `logits.argmax` is the target: of classes that share the largest logit the
            first is predicted, as torch does. Of class probabilities the target is the most likely
            class (the first of several), of a `MixedTarget` the label with the larger share (the
            first of two halves; the one that is there, where the other is ignored).

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 1])
        >>> loss, stats = LF.cross_entropy(logits, target, return_stats=True)
        >>> stats.lse, stats.correct
        (tensor([2.4076, 1.0986]), tensor([ True, False]))
        >>> stats.entropy
        tensor([0.8324, 1.0986])
        >>> stats.z_loss  # as `ZLoss` weighs it
        tensor([5.7966, 1.2069])
    """

    lse: Tensor
    entropy: Tensor
    correct: Tensor

    @property
    def z_loss(self) -> Tensor:
        """lse², what z-loss has its weight for."""
        return self.lse.square()


def dtypes(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Of the fields of RowStatistics, beside logits of a dtype."""
    return accumulate_dtype(dtype), accumulate_dtype(dtype), torch.bool


def statistics(
    reduce: Reduce,
    problems: Iterable[Problem],
    known: Known | None = None,
    join: Callable[[Round, list[Part]], Part] | None = None,
    *,
    whole: Problem | None = None,
) -> RowStatistics:
    """Those of the rows of a problem whose columns come in parts, as `algebra.sweep` takes them.

    Args:
        known: what the rounds of the loss have left; without it a problem has no steps (its δ is a
            table).
        join: makes one part of all.
    """
    one = next(iter(problems)) if whole is None else whole

    def reduced(round: Round, known: Known) -> Part:
        parts = [reduce(problem, round, known) for problem in problems]
        if join is not None:
            return join(round, parts)
        return functools.reduce(lambda a, b: a.join(b), parts)

    if known is None:
        known = begin(one)
        if one.options.norm_p > 0:
            size = Round(Kind.SIZE)
            known = settle(one, size, reduced(size, known), known)
    part = reduced(Round(Kind.STATISTICS), known)
    assert isinstance(part, Statistics)
    return settled(one, part)


def settled(problem: Problem, part: Statistics) -> RowStatistics:
    """What the sums of all columns say, in the dtype of losses."""
    rows = Rows.of(problem)
    log_total = torch.log(part.total)
    entropy = log_total - part.heat / part.total
    right = (part.place == aim(problem, part.aim)) & entropy.isfinite() & rows.live
    dtype, lse = accumulate_dtype(problem.input.dtype), finite(part.shift) + log_total
    lse, entropy = (x.masked_fill(~rows.live, 0).to(dtype) for x in (lse, entropy))
    return RowStatistics(lse, entropy, right)


def aim(problem: Problem, likely: Tensor | None = None) -> Tensor:
    """(N,): the class that is right; `likely` the most likely one of class probabilities, where
    that is known."""
    if problem.dense:
        return problem.target.max(1)[1] if likely is None else likely
    if problem.other is None:
        return problem.target
    assert problem.lam is not None
    ignored = problem.options.ignore_index
    first = (problem.lam >= 0.5) & (problem.target != ignored) | (problem.other == ignored)
    return torch.where(first, problem.target, problem.other)


def likely(problem: Problem) -> tuple[Tensor, Tensor]:
    """Of class probabilities the largest of the problem's columns and the first class that has it;
    of labels what no columns have."""
    if problem.dense and problem.target.shape[1]:
        value, column = problem.target.max(1)
        return value.double(), (column + problem.options.first).double()
    shape, device = problem.input.shape[:1], problem.input.device
    lowest = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
    return lowest, -lowest


def reduce(problem: Problem, known: Known, perturbed: Perturbed) -> Statistics:
    """The sums over the problem's columns in plain PyTorch, piece by piece of the logits: of
    backends that have no kernel for them."""
    n, width = problem.input.shape
    moves = delta(problem, known, perturbed)
    base = Terms.of(known.terms).shift[:, None]  # as in reference/parts.py
    nothing = torch.zeros(n, dtype=torch.float64, device=problem.input.device)
    lowest = nothing - torch.inf
    found = Statistics(lowest, nothing, nothing, lowest, -lowest, *likely(problem))
    size = max(1, (CHUNK if problem.input.is_cpu else 16 * CHUNK) // max(1, n))
    for first in range(0, width, size):
        end = min(width, first + size)
        z = perturbed(problem, known, first, end)
        if moves is not None:
            z = (z - base) + moves[:, first:end]
        shift = z.amax(1)
        above = z - finite(shift)[:, None]
        e = torch.exp(above)
        top, place = problem.input[:, first:end].max(1)
        piece = Statistics(
            shift=shift.double() if moves is None else shift.double() + base[:, 0].double(),
            total=e.sum(1, dtype=torch.float64),
            heat=(e * above.clamp(min=_NOTHING)).sum(1, dtype=torch.float64),
            top=top.double(),
            place=(place + (problem.options.first + first)).double(),
            likely=found.likely,
            aim=found.aim,
        )
        found = found.join(piece)
    return found
