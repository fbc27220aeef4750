"""The launches of a learned perturbation: rows that their solver can solve, classes with several
rows, plain steps for what both have left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...paths import LEARNING, SCALING, WEIGHING, Path
from ...problem import Problem, accumulate_dtype
from ..buffers import new
from ..contract import Form
from ..kernels.arguments import NUMBERS, Arguments, Groups, Shared, State, Upstream, Wanted
from ..kernels.launch import (
    GroupMeta,
    blocks_of,
    group_meta,
    moved_meta,
    resident_meta,
    solver_meta,
    steps_meta,
    sweeping_meta,
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
PROGRAMS = 4096  # that share the work of a kernel whose size the host does not know


def solves(problem: Problem) -> bool:
    """Whether the solver gives all that is wanted of a problem's rows, not only their δ."""
    return problem.steps is not None and _SOLVED.serves(problem)


class Saved(NamedTuple):
    """What the forward leaves for a backward of its own."""

    rows: State
    groups: Groups
    outcome: Tensor  # (N,): of the rows, classes with several included
    shared: Shared | None  # from which the δ of such classes is one sweep

    @staticmethod
    def forms(problem: Problem) -> tuple[Form, ...]:
        """Shapes and dtypes of the memory that all parts are in."""
        totals = [sum(math.prod(shape) for shape in kind) for kind in _saved_shapes(problem)]
        kinds = accumulate_dtype(problem.input.dtype), torch.int32, torch.int64
        return tuple(((total,), dtype) for total, dtype in zip(totals, kinds, strict=True))

    @staticmethod
    def within(problem: Problem, memory: Sequence[Tensor]) -> Saved:
        """The parts of such memory."""
        numbers, columns, places = (
            _parts(whole, kind) for whole, kind in zip(memory, _saved_shapes(problem), strict=True)
        )
        heads, outcome, last, *of_groups = columns
        shared = None
        if of_groups:
            shift, unit, ways, inverses, change, node, ends = numbers[2:]
            n, meta = problem.input.shape[0], group_meta(problem)
            shared = Shared(
                rows=n,
                most=n // 2,
                chunks=-(-problem.input.shape[1] // meta.block),
                leaders=places[1],
                counts=of_groups[0],
                heads=of_groups[1],
                **{"shift": shift, "unit": unit, "ways": ways, "inverses": inverses},
                **{"change": change, "node": node, "ends": ends},
            )
        rows = State(numbers[0], heads, numbers[1], outcome)
        return Saved(rows, Groups(*places[0].unbind()), last, shared)


def _saved_shapes(problem: Problem) -> tuple[list[tuple[int, ...]], ...]:
    """Of the parts of Saved, by kind: floating numbers, columns and outcomes, rows."""
    n, classes = problem.input.shape
    head = solver_meta(problem)["HEAD"]
    numbers: list[tuple[int, ...]] = [(n, NUMBERS), (n, head)]
    columns: list[tuple[int, ...]] = [(n, head), (n,), (n,)]
    places: list[tuple[int, ...]] = [(4, n)]
    if solves_groups(problem):
        meta, most = group_meta(problem), n // 2
        numbers += [(n,), (n,), (n, meta.nodes), (n, meta.nodes)]
        numbers += [(most, meta.head), (most, 4, meta.nodes), (most, 2)]
        columns += [(most, -(-classes // meta.block)), (n, meta.head)]
        places += [(most + 1,)]
    return numbers, columns, places


def _parts(memory: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Pieces of flat memory, one behind the other."""
    pieces = memory.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def solves_groups(problem: Problem) -> bool:
    """Whether classes with several rows are solved: not in float64, where what the relaxation
    leaves would show."""
    return problem.input.shape[0] > 1 and problem.input.dtype != torch.float64


def new_saved(problem: Problem) -> tuple[tuple[Tensor, ...], Saved]:
    """(memory, what is in it). Zeros: what is saved for a backward, and what torch compares, holds
    no garbage."""
    forms = Saved.forms(problem)
    memory = tuple(new(problem, *shape, dtype=dtype).zero_() for shape, dtype in forms)
    return memory, Saved.within(problem, memory)


def solve_rows(
    problem: Problem, arguments: Arguments, groups: Groups, state: State, losses: Tensor | None
) -> None:
    """All steps of rows that have their class for themselves or take none; their losses."""
    from ..kernels.solver import step_rows, weigh_rivals

    n, meta = problem.input.shape[0], solver_meta(problem)
    how = {"NORMALIZE": problem.options.normalize}
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (steps, step_size, state, losses)
    launching.launch(weigh_rivals, (n,), arguments, groups, *what, **how, **meta)
    launching.launch(step_rows, (n,), arguments, *what, **how, **steps_meta(meta))


def move_rows(
    problem: Problem,
    arguments: Arguments,
    groups: Groups,
    state: State,
    upstream: Upstream | None,
    grad: Tensor | None = None,
    delta: Tensor | None = None,
) -> None:
    """The gradient of solved rows, or their δ."""
    from ..kernels.solver import move_rows as kernel

    meta = moved_meta(problem, solver_meta(problem))
    grid = (problem.input.shape[0], blocks_of(problem, meta))
    launching.launch(kernel, grid, arguments, groups, state, upstream, grad, delta, **meta)


def with_learned(
    problem: Problem, wanted: Wanted, upstream: Upstream, unless: Tensor | None = None
) -> tuple[Arguments, Tensor | None]:
    """The problem, prepared, with its δ if any; and, where all weight of a row is on its label,
    which rows already have what is `wanted`: see take_steps.
    """
    if problem.steps is None:
        return prepared(problem, wanted.terms, unless), None
    if not solves(problem):
        delta = new(problem, *problem.input.shape)
        return take_steps(problem, Wanted(delta=delta), unless=unless)[0], None
    return take_steps(problem, wanted, upstream, unless)


def take_steps(
    problem: Problem,
    wanted: Wanted,
    upstream: Upstream | None = None,
    unless: Tensor | None = None,
) -> tuple[Arguments, Tensor]:
    """Solves what rows it can, and takes plain steps for the others' classes.

    Returns:
        arguments: of the problem, prepared, with δ (N, C), of all rows if wanted.delta is given,
            else of those left alone, the others' never touched.
        outcome: (N,), SOLVED where a row has what is `wanted`.
    """
    arguments, losses = prepared(problem, unless=unless), wanted.losses
    if losses is None and wanted.grad is not None:
        losses = new(problem, problem.input.shape[0])
    saved = new_saved(problem)[1]
    groups, state = saved.groups, saved.rows
    group_rows(problem, arguments, groups)
    solve_rows(problem, arguments, groups, state, losses)
    upstream = upstream or Upstream()
    if wanted.delta is not None:
        move_rows(problem, arguments, groups, state, upstream, delta=wanted.delta)
    elif wanted.grad is not None:
        move_rows(problem, arguments, groups, state, upstream, grad=wanted.grad)
    saved = saved._replace(outcome=state.outcome)
    return step_classes(problem, arguments, saved, wanted.delta), state.outcome


def step_classes(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    delta: Tensor | None = None,
    *,
    again: bool = False,
) -> Arguments:
    """δ of the classes whose rows the solver has left alone, by their outcome; into `delta`
    (N, C), or new memory. Returns the problem with it. `again`: classes with several rows have been
    solved, and what is saved knows how."""
    from ..kernels.lpl import resident_steps, sweeping_steps

    n, classes = problem.input.shape
    normalize = problem.options.normalize
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (arguments, saved.groups, steps, step_size, saved.outcome)
    delta = new(problem, n, classes) if delta is None else delta
    meta = resident_meta(problem)
    done = meta["ROWS"] if classes <= meta["BLOCK"] else 0
    if saved.shared is not None:
        _solve_groups(problem, what, saved.shared, delta, done, again)
    if done:
        launching.launch(resident_steps, (n,), *what, delta, NORMALIZE=normalize, **meta)
    if n > done:
        rowwise = new(problem, 2, n)
        direction = new(problem, n, classes) if normalize else None
        meta = sweeping_meta(problem)
        launching.launch(sweeping_steps, (n,), *what, delta, rowwise, direction, done, **meta)
    return arguments._replace(delta=delta, slot=saved.groups.slot)


def _solve_groups(
    problem: Problem,
    what: tuple[Any, ...],
    shared: Shared,
    delta: Tensor,
    resident: int,
    again: bool,
) -> None:
    """δ of the classes with several rows for which that costs less than plain steps, into the row
    of `delta` (N, C) of their first row. `resident`: the most rows that have these in registers.
    """
    from ..kernels.group_rows import gather_heads, list_groups, split_columns, weigh_rows
    from ..kernels.group_solver import finish_groups, move_tail, take_group_steps

    n = problem.input.shape[0]
    arguments, groups, steps, _, outcome = what
    meta = group_meta(problem)
    each = (shared.most,)
    pieces = (min(shared.most * shared.chunks, PROGRAMS),)
    how = {"AGAIN": again}
    if again:
        common = (*what[:4], shared)
        launching.launch(move_tail, pieces, *common, delta, LAST=True, **how, **meta.move_tail)
        launching.launch(finish_groups, each, *common, delta, outcome, **how, **meta.finish_groups)
        return
    shared = _with_scratch(problem, shared, meta)
    common = (*what[:4], shared)
    block = min(1024, max(16, 1 << (n - 1).bit_length()))
    listed = (arguments, groups, steps, outcome, shared, n, resident)
    launching.launch(list_groups, (1,), *listed, BLOCK=block)
    launching.launch(weigh_rows, (n,), *what, shared, resident, **meta.weigh_rows)
    launching.launch(split_columns, pieces, *common, delta, **meta.split_columns)
    launching.launch(gather_heads, pieces, *common, delta, **meta.gather_heads)
    for turn in range(meta.rounds):
        last = {"LAST": turn == meta.rounds - 1}
        launching.launch(take_group_steps, each, *common, ROUND=turn, **meta.take_group_steps)
        launching.launch(move_tail, pieces, *common, delta, **last, **how, **meta.move_tail)
    launching.launch(finish_groups, each, *common, delta, outcome, **how, **meta.finish_groups)


def _with_scratch(problem: Problem, shared: Shared, meta: GroupMeta) -> Shared:
    """With the memory that only the solving of groups needs."""
    n, nodes = problem.input.shape[0], meta.nodes
    lift, tail, slope, way, inverse = new(problem, 5, n).unbind()
    gains, used = new(problem, 2, n, nodes).unbind()
    return shared._replace(
        lift=lift,
        tail=tail,
        slope=slope,
        way=way,
        inverse=inverse,
        exact=new(problem, n, meta.head),
        partial=new(problem, shared.chunks, nodes, n),
        squares=new(problem, shared.most, shared.chunks, nodes),
        gains=gains,
        used=used,
    )
