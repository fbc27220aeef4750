"""The launches of a learned perturbation: rows that their solver can solve, classes with several
rows, plain steps for what both have left.

The logits are read by the forward and once more by the backward. In between there are some numbers
of each row and each class (Saved); δ, N×C, is made only where it is all that is wanted, or where
the solvers do not know the loss under it (_SOLVED).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...paths import LEARNING, SCALING, WEIGHING, Path
from ...problem import MEAN, Problem, accumulate_dtype
from ..buffers import new
from ..kernels.arguments import (
    NUMBERS,
    Arguments,
    Groups,
    Reduced,
    Shared,
    State,
    Upstream,
    Wanted,
)
from ..kernels.launch import (
    blocks_of,
    group_meta,
    moved_meta,
    plain_meta,
    solver_meta,
    steps_meta,
)
from . import launching
from .arguments import group_rows, prepared
from .launching import number

# rows of which the solver gives all that is wanted, not only their δ
_SOLVED = Path(
    "triton, solved rows",
    Problem,
    (*WEIGHING, "z_loss", *SCALING, "softcap", *LEARNING, "through"),
)
PROGRAMS = 2048  # that share the work of a kernel whose size the host does not know
# Logits of a batch whose classes with several rows all take plain steps: five launches less, which
# the host has to pay, for what a class of all rows costs one program (predicted: 0.8 ms for 50
# steps, mostly far less).
FEW_LOGITS = 1 << 16
# Programs that take plain steps, each with memory for δ of a class: so many numbers they may have
# beside an eighth of N×C
MOST_PLAIN, ENOUGH_NUMBERS = 256, 1 << 18


def solves(problem: Problem) -> bool:
    """Whether the solver gives all that is wanted of a problem's rows, not only their δ."""
    return problem.steps is not None and _SOLVED.serves(problem)


class Saved(NamedTuple):
    """What the forward leaves for a backward of its own, parts of one memory."""

    rows: State
    groups: Groups
    shared: Shared | None  # classes with several rows, if they are solved

    @staticmethod
    def size(problem: Problem) -> int:
        """Bytes of the memory."""
        return sum(_bytes(part) for part in _saved_parts(problem))

    @staticmethod
    def within(problem: Problem, memory: Tensor) -> Saved:
        """The parts of such memory."""
        parts = _saved_parts(problem)
        pieces = memory.split([_bytes(part) for part in parts])
        found = [
            piece[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for piece, (shape, dtype) in zip(pieces, parts, strict=True)
        ]
        tickets, order, numbers, heads, changes, outcome, *of_groups = found
        shared = None
        if of_groups:
            n, meta = problem.input.shape[0], group_meta(problem)
            chunks = -(-problem.input.shape[1] // meta.block)
            shared = Shared(n, n // 2, chunks, *of_groups)
        rows = State(numbers, heads, changes, outcome)
        slot, count, begin, places = order.unbind()
        return Saved(rows, Groups(slot, count, begin, places, tickets), shared)


Part = tuple[tuple[int, ...], torch.dtype]


def _saved_parts(problem: Problem) -> list[Part]:
    """Shapes and dtypes of the parts of Saved, in their order."""
    n, classes = problem.input.shape
    head, number = solver_meta(problem)["HEAD"], accumulate_dtype(problem.input.dtype)
    rows: list[Part] = [((2,), torch.int32), ((4, n), torch.int64), ((n, NUMBERS), number)]
    rows += [((n, head), torch.int32), ((n, head), number), ((n,), torch.int32)]
    if not solves_groups(problem):
        return rows
    meta, most = group_meta(problem), n // 2
    chunks = -(-classes // meta.block)
    groups: list[Part] = [((most + 1,), torch.int64), *[((most,), torch.int32)] * 2]
    groups += [((most, chunks), torch.int32), ((n, meta.head), torch.int32)]
    groups += [((n,), number)] * 4 + [((n, meta.nodes), number)] * 2
    groups += [((most, meta.head), number), ((most, 4, meta.nodes), number), ((most, 2), number)]
    return rows + groups


def _bytes(part: Part) -> int:
    """Of a part, which begins and ends at a multiple of 16, as a kernel is compiled for."""
    shape, dtype = part
    return -(-math.prod(shape) * dtype.itemsize // 16) * 16


def solves_groups(problem: Problem) -> bool:
    """Whether classes with several rows are solved: not in float64, where what the relaxation
    leaves would show, and not where there is little to be gained."""
    n, classes = problem.input.shape
    return n > 1 and problem.input.dtype != torch.float64 and n * classes > FEW_LOGITS


def new_saved(problem: Problem) -> tuple[Tensor, Saved]:
    """(memory, what is in it). Zeros: tickets begin at 0, and what is saved for a backward, and
    what torch compares, holds no garbage."""
    memory = new(problem, Saved.size(problem), dtype=torch.uint8).zero_()
    return memory, Saved.within(problem, memory)


def take_steps(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    losses: Tensor | None = None,
) -> None:
    """Takes all steps that the solvers can; where losses (N,) are wanted they know them, and what
    gradients are made of. The classes that are left take theirs in `finish`."""
    from ..kernels.solver import step_rows, weigh_rivals

    n, meta = problem.input.shape[0], solver_meta(problem)
    shared = saved.shared and _with_scratch(problem, saved.shared)
    resident = _resident(problem)
    group_rows(problem, arguments, saved.groups, shared, resident)
    how = {"NORMALIZE": problem.options.normalize}
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    asked = steps, step_size, saved.rows
    rows = (arguments, saved.groups, *asked, shared, resident, losses)
    launching.launch(weigh_rivals, (n,), *rows, **how, **meta)
    launching.launch(step_rows, (n,), arguments, *asked, losses, **how, **steps_meta(meta))
    if shared is not None:
        what = arguments, saved.groups, steps, step_size, shared
        _solve_groups(problem, what, saved.rows.outcome, losses)


def finish(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    wanted: Wanted,
    upstream: Upstream,
    reduced: Reduced | None = None,
) -> None:
    """Plain steps for the classes that the solvers have left, and what is wanted of their rows: δ
    (N, C), or losses and gradients. At last the loss of the batch, if there is a place for it."""
    from ..kernels.lpl import plain_steps

    n, classes = problem.input.shape
    by_row, normalize = wanted.delta is not None, problem.options.normalize
    if by_row:
        programs, work = min(n, MOST_PLAIN), wanted.delta
    else:
        programs = min(max(n // 8, ENOUGH_NUMBERS // max(1, classes), 1), n, MOST_PLAIN)
        work = new(problem, programs, classes)
    direction = new(problem, n if by_row else programs, classes) if normalize else None
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (arguments, saved.groups, steps, step_size, saved.rows.outcome, work)
    whose = wanted._replace(delta=None), upstream, reduced
    launching.launch(
        plain_steps,
        (programs,),
        *what,
        new(problem, 2, n),
        direction,
        *whose,
        n,
        _resident(problem),
        BY_ROW=by_row,
        NORMALIZE=normalize,
        **plain_meta(problem),
    )


def _resident(problem: Problem) -> int:
    """Rows of a class whose plain steps are taken in registers."""
    meta = plain_meta(problem)
    return int(meta["ROWS"]) if problem.input.shape[1] <= meta["BLOCK"] else 0


def move(
    problem: Problem, arguments: Arguments, saved: Saved, upstream: Upstream, wanted: Wanted
) -> None:
    """The gradient of rows that the solvers have solved, or their δ."""
    from ..kernels.group_solver import move_groups
    from ..kernels.solver import move_rows

    n, meta = problem.input.shape[0], moved_meta(problem, solver_meta(problem))
    whither = upstream, wanted.grad, wanted.delta
    grid = (n, blocks_of(problem, meta))
    launching.launch(move_rows, grid, arguments, saved.groups, saved.rows, *whither, **meta)
    if saved.shared is not None:
        steps, step_size = problem.steps, number(problem, problem.options.step_size)
        what = (arguments, saved.groups, steps, step_size, saved.shared, saved.rows.outcome)
        pieces = (min(saved.shared.most * saved.shared.chunks, PROGRAMS),)
        launching.launch(move_groups, pieces, *what, *whither, **group_meta(problem).move_groups)


def with_learned(
    problem: Problem, terms: Tensor | None = None, unless: Tensor | None = None
) -> tuple[Arguments, Tensor]:
    """The problem, prepared, with δ (N, C); and what the solvers made of each row (N,)."""
    arguments = prepared(problem, terms, unless)
    delta = new(problem, *problem.input.shape)
    saved = new_saved(problem)[1]
    take_steps(problem, arguments, saved)
    wanted = Wanted(delta=delta)
    move(problem, arguments, saved, Upstream(), wanted)
    finish(problem, arguments, saved, wanted, Upstream())
    return arguments._replace(delta=delta, slot=saved.groups.slot), saved.rows.outcome


def solve(
    problem: Problem, losses: Tensor, unless: Tensor | None = None
) -> tuple[Tensor, Saved, Arguments]:
    """Takes the steps of a problem that the solver solves: the losses (N,) of its rows, but for
    classes that are left, which `finish`, or `gradient`, has. (What the gradient wants of it, in
    its memory; the problem, prepared)."""
    arguments = prepared(problem, unless=unless)
    memory, saved = new_saved(problem)
    take_steps(problem, arguments, saved, losses)
    return memory, saved, arguments


def gradient(
    problem: Problem, arguments: Arguments, saved: Saved, upstream: Upstream, grad: Tensor
) -> None:
    """grad (N, C) of what `solve` has left. Plain steps are taken anew."""
    wanted = Wanted(grad=grad)
    move(problem, arguments, saved, upstream, wanted)
    finish(problem, arguments, saved, wanted, upstream)


def reduction(problem: Problem) -> tuple[Reduced, Tensor]:
    """Where the loss of a batch goes, and what it is divided by."""
    from triton.language import constexpr

    normalizer = problem.normalizer
    norm = new(problem) if normalizer is None else None
    mean = constexpr(problem.options.reduction == MEAN)
    reduced = Reduced(new(problem), norm, mean, normalizer)
    return reduced, norm if normalizer is None else normalizer  # type: ignore[return-value]


def _solve_groups(
    problem: Problem, what: tuple[Any, ...], outcome: Tensor, losses: Tensor | None
) -> None:
    """All steps of the classes with several rows for which that costs less than plain ones."""
    from ..kernels.group_solver import move_tail, split_columns

    meta, shared = group_meta(problem), what[-1]
    pieces = (min(shared.most * shared.chunks, PROGRAMS),)
    launching.launch(split_columns, pieces, *what, **meta.split_columns)
    for turn in range(meta.rounds):
        which = {"ROUND": turn, "LAST": turn == meta.rounds - 1}
        launching.launch(move_tail, pieces, *what, outcome, losses, **which, **meta.move_tail)


def _with_scratch(problem: Problem, shared: Shared) -> Shared:
    """With the memory that only the solving of groups needs."""
    meta = group_meta(problem)
    n, nodes = problem.input.shape[0], meta.nodes
    lift, tail, slope, way, inverse, rest = new(problem, 6, n).unbind()
    gains, used = new(problem, 2, n, nodes).unbind()
    return shared._replace(
        listed=new(problem, shared.most, meta.head, dtype=torch.int32),
        lift=lift,
        tail=tail,
        slope=slope,
        way=way,
        inverse=inverse,
        rest=rest,
        exact=new(problem, n, meta.head),
        partial=new(problem, shared.chunks, nodes, n),
        squares=new(problem, shared.most, shared.chunks, nodes),
        gains=gains,
        used=used,
    )
