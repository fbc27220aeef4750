"""All rounds of a problem, over its columns in one part or in many; and steps chosen in between."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from ..phi import LOG
from ..problem import NONE, Problem
from .known import Known
from .parts import Part, Round
from .settle import begin

if TYPE_CHECKING:
    from ..backends.contract import Choose, Forward


class Door(Protocol):
    """What of a backend's contract the rounds go through; the reference has it as well."""

    def rounds(self, problem: Problem) -> tuple[Round, ...]: ...

    def reduce(self, problem: Problem, round: Round, known: Known) -> Part: ...

    def settle(self, problem: Problem, round: Round, part: Part, known: Known) -> Known: ...


def sweep(
    door: Door,
    problems: Iterable[Problem],
    join: Callable[[list[Part]], Part] | None = None,
    *,
    whole: Problem | None = None,
) -> Known:
    """Loss and terms of the rows of a problem whose columns come in parts, each of all rows.

    Args:
        door: a backend.
        problems: parts of one problem, of disjoint columns that are all columns together; see
            `Problem.columns`. Gone through once a round, and none is held: they may be made as
            they are asked for.
        join: makes one part of all; by default from the first to the last.
        whole: the problem that they are parts of, whose logits nobody looks at; by default what
            the first of them is needed for.
    """
    one = next(iter(problems)) if whole is None else whole
    known = begin(one)
    for round in door.rounds(one):
        parts = [door.reduce(problem, round, known) for problem in problems]
        all_ = functools.reduce(lambda a, b: a.join(b), parts) if join is None else join(parts)
        known = door.settle(one, round, all_, known)
    return known


class Sweep(Protocol):
    """Backend.forward, as far as `with_steps` calls it."""

    def __call__(self, problem: Problem, want_grad: bool, *, final: bool) -> Forward: ...


def with_steps(forward: Sweep, problem: Problem, choose: Choose) -> Problem:
    """The problem with its steps, which `choose` makes from the unweighted losses of its rows
    without them, by a sweep of their own."""
    # without what weighs or bends the loss of z: whatever makes z stays
    options = problem.options._replace(
        reduction=NONE,
        phi=LOG,
        phi_parameter=0.0,
        label_smoothing=0.0,
        z_loss=0.0,
        penalty=0,
        step_size=0.0,
        normalize=False,
        through=False,
    )
    bare = problem._replace(
        lam=None, weight=None, sample_weight=None, smoothing=None, normalizer=None, options=options
    )
    return problem._replace(steps=choose(forward(bare, False, final=True).loss))
