"""Loss and gradient of logits whose classes are on several ranks, by the rounds of a backend: sums
over a rank's columns, gathered from all ranks, settled on each; the gradient of a rank's columns
from the numbers of the rows, with no word from another rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..algebra import groups, learned
from ..algebra.known import Known
from ..algebra.learned import Learned
from ..algebra.parts import Kind, Round
from ..algebra.parts import Part as Sums
from ..algebra.rows import Classes, label_rows, normalizer, present
from ..algebra.settle import begin, stepped
from ..algebra.statistics import RowStatistics, statistics
from ..algebra.sweep import with_steps
from ..backends import REFERENCE, load
from ..backends.contract import Choose, Forward
from ..ops.dispatch import INPLACE, SWEEP, given, once_backward, spend
from ..ops.softmax import gradient_past
from ..problem import NONE, TABLES, Options, Problem, accumulate_dtype
from ..reference import parts as reference_door
from ..tracing import settled, uncompiled
from ..validation import Shaped, Target, moved_by_two
from .agree import Shards, agreed, agreed_choice
from .gather import whole
from .left import left_rows
from .local import Part


class Run(NamedTuple):
    """Who makes the sums, and who has which columns."""

    backend: str
    door: Any  # that backend, or the reference's door
    shards: Shards

    @staticmethod
    def of(backend: str, shards: Shards) -> Run:
        return Run(backend, reference_door if backend == REFERENCE else load(backend), shards)

    def sweep(self, problem: Problem) -> Known:
        """Loss and terms of all rows. Rounds of classes with several rows are left out where no
        class is open, which all ranks see alike."""
        known, rounds = begin(problem), self.door.rounds(problem)
        steps = [k for k, round in enumerate(rounds) if round.kind in (Kind.RIVALS, Kind.GROUP)]
        for k, round in enumerate(rounds):
            if round.kind is Kind.GROUP and not bool(groups.open_rows(known).any()):
                if k == steps[-1]:
                    known = stepped(problem, known)
            else:
                part = self.door.reduce(problem, round, known)
                part = whole(problem, self.shards, round, part)
                known = self.door.settle(problem, round, part, known)
            if steps and k == steps[-1]:
                known = left_rows(self.door, problem, self.shards, known)
        return known

    def statistics(self, problem: Problem, known: Known) -> RowStatistics:
        """Those of the rows, once their loss is known: one more collective."""
        join = functools.partial(self._joined, problem)
        return statistics(self.door.reduce, [problem], known, join)

    def _joined(self, problem: Problem, round: Round, parts: list[Sums]) -> Sums:
        (part,) = parts
        return whole(problem, self.shards, round, part)

    def forward(self, problem: Problem, want_grad: bool, *, final: bool) -> Forward:
        """The losses of rows, for whoever chooses steps."""
        loss = self.sweep(problem).loss
        assert loss is not None
        return Forward(loss)


def _reduced(problem: Problem, loss: Tensor, norm: Tensor) -> Tensor:
    if problem.options.reduction == NONE:
        return loss
    return loss.double().sum().div(norm).to(loss.dtype)


def _problem(tensors: Sequence[Tensor | None], options: Options) -> Problem:
    return Problem(*tensors, options=options)  # type: ignore


class ShardedCrossEntropy(torch.autograd.Function):
    """The loss of a problem some of whose columns are here; its gradient by statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        run: Run,
        choose: Choose | None,
        form: str,
        return_stats: bool,
        *tensors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        problem = _problem(tensors, options)
        if choose is not None:
            problem = with_steps(run.forward, problem, agreed_choice(choose, run.shards))
        known, norm = run.sweep(problem), normalizer(problem)
        assert known.loss is not None
        moved = () if known.learned is None else known.learned[:-1]  # all but `grouped`
        ctx.save_for_backward(*problem[:-1], norm, known.terms, *moved)
        ctx.options, ctx.run, ctx.tables = options, run, len(tensors)
        ctx.grouped = known.learned is not None and known.learned.grouped
        ctx.in_place, ctx.spent = form == INPLACE, False
        loss = _reduced(problem, known.loss, norm)
        if not return_stats:
            return loss
        found = run.statistics(problem, known)
        ctx.mark_non_differentiable(*found)
        return loss, *found

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.in_place:
            spend(ctx)
        return once_backward(ctx, settled(grad_loss), _backward)


_BEFORE = 5  # options, run, choose, form and return_stats stand before the tensors


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    saved, many = ctx.saved_tensors, len(Problem._fields) - 1
    problem, (norm, terms, *moved) = _problem(saved[:many], ctx.options), saved[many:]
    known = Known(terms, learned=Learned._make([*moved, ctx.grouped]) if moved else None)
    upstream = grad_loss
    if not grad_loss.dim():
        upstream = (grad_loss / norm).expand(problem.input.shape[0])
    wanted = [
        name for name in ("input", *TABLES) if _at(ctx.needs_input_grad, _place(name) + _BEFORE)
    ]
    found = gradient_past(problem, ctx.run.door, known, upstream, wanted, ctx.in_place)
    grads: list[Tensor | None] = [None] * ctx.tables
    shards = ctx.run.shards
    around = shards.first, shards.classes - shards.first - problem.input.shape[1]
    for name in wanted:
        grad = getattr(found, name)
        # of all classes, as the table is; margins are so already
        grads[_place(name)] = grad if name in ("input", "margin") else F.pad(grad, around)
    return (*[None] * _BEFORE, *grads)


def _place(name: str) -> int:
    return Problem._fields.index(name)


def _at(flags: Sequence[bool], place: int) -> bool:
    return place < len(flags) and flags[place]


class Built(NamedTuple):
    """A call as its function reads it, from validated logits and target."""

    problem: Problem
    backend: str  # that runs
    choose: Choose | None = None  # who makes its steps
    zero: bool = False  # a mean over nothing is 0
    return_stats: bool = False  # statistics of the rows are wanted, too


Build = Callable[[Shaped], Built]


@uncompiled
def cross_entropy(
    kind: str, input: Any, target: Target, process_group: Any, form: str, build: Build
) -> Tensor | tuple[Tensor, RowStatistics]:
    """The loss of a call of the function `kind` whose `input` has this rank's classes alone; and
    the statistics of its rows, if they are wanted."""
    shape = functools.partial(Part, input, target)
    built = functools.partial(_built, build, form)
    call = agreed(kind, input, process_group, shape, built, form)
    problem, run = call.problem, Run.of(call.built.backend, call.shards)
    choose, return_stats, rows = call.built.choose, call.built.return_stats, problem.target.shape[0]
    pairs = moved_by_two(problem, choose, return_stats, whole=False)
    if pairs:
        problem = _by_label(problem, learned=problem.steps is not None or choose is not None)
    options = problem.options
    found = ShardedCrossEntropy.apply(options, run, choose, form, return_stats, *given(problem))  # type: ignore[no-untyped-call]
    if pairs and options.reduction == NONE:
        found = found[:rows] + found[rows:]
    return call.restored_with(*found) if return_stats else call.restored(found)


def _built(build: Build, form: str, shaped: Shaped) -> Built:
    built = build(shaped)
    pairs = moved_by_two(built.problem, built.choose, built.return_stats, whole=False)
    if form == INPLACE and pairs:
        raise ValueError('gradient: "inplace" is not for rows of two labels that move their logits')
    if form == SWEEP:
        raise ValueError('gradient: "sweep" is not for process_group, where it is "statistics"')
    if form == INPLACE and (built.problem.steps is not None or built.choose is not None):
        raise ValueError('gradient: "inplace" is not for a learned perturbation')
    return built


def _by_label(problem: Problem, *, learned: bool) -> Problem:
    """With a row for each of two labels. Two gradients are added up: those of 16 bits before they
    are rounded."""
    input = problem.input.to(accumulate_dtype(problem.input.dtype))
    return label_rows(problem, learned=learned)._replace(input=torch.cat([input, input]))


@uncompiled
def lpl_perturbation(
    input: Any, target: Target, process_group: Any, build: Build
) -> tuple[Tensor, Tensor]:
    """(classes (G,) of the batch, δ (G, W) of this rank's columns)."""
    with torch.no_grad():
        shape = functools.partial(Part, input, target)
        call = agreed("lpl_perturbation", input, process_group, shape, build)
        problem, run = call.problem, Run.of(call.built.backend, call.shards)
        if problem.other is not None:
            problem = _by_label(problem, learned=True)
        known = run.sweep(problem)
        delta = learned.delta(problem, known, run.door.perturbed)
        assert delta is not None
        assert known.learned is not None
        delta = delta.masked_fill(~known.learned.exact[:, None], torch.nan)
        classes, leader = present(problem, Classes.of(problem).slot)
        return classes, delta[leader]
