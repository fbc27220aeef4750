"""A row of two labels (mixup, CutMix) where what is added to its logits depends on the label:

    L_i = λ_i·L(u_i, y_i) + (1 − λ_i)·L(u_i, y'_i)

so that it is two rows, each with the margin or the δ of its label: two calls of the fused loss. δ_c
is that of all rows that have a share of class c, each with its share, see `lpl_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..algebra.learned import with_delta
from ..algebra.rows import normalizer
from ..backends.contract import Choose
from ..ops.dispatch import INPLACE
from ..problem import SUM, Options, Problem, accumulate_dtype, divides

_OFF = Options()


def cross_entropy(
    problem: Problem, run: Callable[[Problem], Tensor], form: str, choose: Choose | None = None
) -> Tensor:
    """The loss of a problem whose rows have two labels; `run` gives that of one with one label.

    `choose` makes its steps from the losses (2·N,) without them, those of the first labels first.

    Raises:
        ValueError: the gradient is to be made in the logits' place.
    """
    if form == INPLACE:
        raise ValueError(
            'gradient: "inplace" takes the memory of logits that the second label still reads'
        )
    reference.check_labels(problem)
    # two gradients are added up: those of 16 bits before they are rounded
    problem = problem._replace(input=problem.input.to(accumulate_dtype(problem.input.dtype)))
    rows = problem
    if divides(problem):
        rows = rows._replace(
            normalizer=normalizer(problem), options=rows.options._replace(reduction=SUM)
        )
    halves: tuple[Problem, ...] = _by_label(
        rows._replace(options=rows.options._replace(penalty=_OFF.penalty))
    )
    if choose is not None or problem.steps is not None:
        both, n = members(problem), problem.input.shape[0]
        if choose is not None:
            steps = choose(_losses(both))
            both = both._replace(steps=steps)
        through = problem.options.through
        delta, slot = reference.learned_perturbation(both, differentiable=through)
        halves = tuple(
            with_delta(half._replace(options=_without_steps(half.options)), delta, place)
            for half, place in zip(halves, (slot[:n], slot[n:]), strict=True)
        )
    value = run(halves[0]) + run(halves[1])
    return value + reference.penalty_of(problem) if problem.options.penalty else value


def members(problem: Problem) -> Problem:
    """The 2·N rows, of the first labels first, each with its share (`lam`) of its label's δ."""
    first, second = _by_label(problem)

    def twice(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.cat([tensor, tensor])

    assert problem.lam is not None
    target = torch.cat([first.target, second.target])
    # no class has a row of a label out of range, which a GPU must not follow
    ignore_index = problem.options.ignore_index
    nobody = (target < 0) | (target >= problem.classes)
    target = target.masked_fill(nobody, ignore_index)
    shares = torch.cat([problem.lam, 1 - problem.lam])
    return first._replace(
        input=torch.cat([problem.input, problem.input]),
        target=target,
        lam=shares.masked_fill(target == ignore_index, 1),
        sample_weight=None,
        row_index=twice(problem.row_index),
        normalizer=None,
    )


def _by_label(problem: Problem) -> tuple[Problem, Problem]:
    """The rows with one of their labels each, its share among the sample weights. A label without
    a share is ignored, however infinite its loss."""
    lam, ignore_index = problem.lam, problem.options.ignore_index
    assert lam is not None and problem.other is not None

    def half(label: Tensor, share: Tensor) -> Problem:
        weight = share if problem.sample_weight is None else problem.sample_weight * share
        label = label.masked_fill(share == 0, ignore_index)
        return problem._replace(target=label, other=None, lam=None, sample_weight=weight)

    return half(problem.target, lam), half(problem.other, 1 - lam)


def _losses(both: Problem) -> Tensor:
    """(2·N,) the cross-entropy of every label, 0 where it is ignored."""
    with torch.no_grad():
        ignored = both.target == both.options.ignore_index
        label = both.target.masked_fill(ignored, 0)
        losses = reference.target_cross_entropy(reference.perturb(both), label)
        return losses.masked_fill(ignored, 0)


def _without_steps(options: Options) -> Options:
    return options._replace(
        step_size=_OFF.step_size, normalize=_OFF.normalize, through=_OFF.through
    )
