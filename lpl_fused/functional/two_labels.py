"""A row of two labels (mixup, CutMix) where what is added to its logits depends on the label:

    L_i = λ_i·L(u_i, y_i) + (1 − λ_i)·L(u_i, y'_i)

so that it is two rows, each with the margin or the δ of its label: two calls of the fused loss. δ_c
is that of all rows that have a share of class c, each with its share, see `lpl_cross_entropy`.
(Here all logits are in one place; where they are not, `algebra.rows.label_rows` makes the rows.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..algebra.learned import with_delta
from ..algebra.rows import by_label, label_rows, normalizer
from ..backends.contract import Choose
from ..ops.dispatch import INPLACE
from ..problem import SUM, Options, Problem, accumulate_dtype, divides


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
    halves: tuple[Problem, ...] = by_label(rows._replace(options=rows.options._replace(penalty=0)))
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
    rows = label_rows(problem, learned=True)
    assert rows.lam is not None
    # no class has a row of a label out of range, which a GPU must not follow
    ignore_index = problem.options.ignore_index
    nobody = (rows.target < 0) | (rows.target >= problem.classes)
    return rows._replace(
        input=torch.cat([problem.input, problem.input]),
        target=rows.target.masked_fill(nobody, ignore_index),
        lam=rows.lam.masked_fill(nobody, 1),
        sample_weight=None,
        normalizer=None,
    )


def _losses(both: Problem) -> Tensor:
    """(2·N,) the cross-entropy of every label, 0 where it is ignored."""
    with torch.no_grad():
        ignored = both.target == both.options.ignore_index
        label = both.target.masked_fill(ignored, 0)
        losses = reference.target_cross_entropy(reference.perturb(both), label)
        return losses.masked_fill(ignored, 0)


def _without_steps(options: Options) -> Options:
    # numbers of this text: of a module's, or a default, torch.compile(dynamic=True) makes a tensor
    return options._replace(step_size=0.0, normalize=False, through=False)
