"""The launches of a learned perturbation: rows that their solver can solve, classes with several
rows, plain steps for what both have left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...paths import LEARNING, SCALING, WEIGHING, Path
from ...problem import Problem, accumulate_dtype
from ..buffers import new
from ..contract import Form
from ..kernels.arguments import NUMBERS, Arguments, Groups, Shared, State, Upstream, Wanted
from ..kernels.launch import (
    blocks_of,
    group_meta,
    moved_meta,
    resident_meta,
    solver_meta,
    steps_meta,
    sweeping_meta,
)
from . import launching
from .arguments import groups_of, prepared
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


def state_forms(problem: Problem) -> tuple[Form, ...]:
    """Shapes and dtypes of a State."""
    n, head = problem.input.shape[0], solver_meta(problem)["HEAD"]
    dtype = accumulate_dtype(problem.input.dtype)
    return (
        ((n, NUMBERS), dtype),
        ((n, head), torch.int32),
        ((n, head), dtype),
        ((n,), torch.int32),
    )


def solve_rows(
    problem: Problem,
    arguments: Arguments,
    groups: Groups,
    losses: Tensor | None,
) -> State:
    """All steps of rows that have their class for themselves or take none; their losses."""
    from ..kernels.solver import step_rows, weigh_rivals

    n, meta = problem.input.shape[0], solver_meta(problem)
    # zeros: what is saved for a backward, and what torch compares, holds no garbage
    forms = state_forms(problem)
    state = State(*(new(problem, *shape, dtype=dtype).zero_() for shape, dtype in forms))
    how = {"NORMALIZE": problem.options.normalize}
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (steps, step_size, state, losses)
    launching.launch(weigh_rivals, (n,), arguments, groups, *what, **how, **meta)
    launching.launch(step_rows, (n,), arguments, *what, **how, **steps_meta(meta))
    return state


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
    arguments, groups = prepared(problem, unless=unless), groups_of(problem)
    losses = wanted.losses
    if losses is None and wanted.grad is not None:
        losses = new(problem, problem.input.shape[0])
    state = solve_rows(problem, arguments, groups, losses)
    upstream = upstream or Upstream()
    if wanted.delta is not None:
        move_rows(problem, arguments, groups, state, upstream, delta=wanted.delta)
    elif wanted.grad is not None:
        move_rows(problem, arguments, groups, state, upstream, grad=wanted.grad)
    return step_classes(problem, arguments, groups, state.outcome, wanted.delta), state.outcome


def step_classes(
    problem: Problem,
    arguments: Arguments,
    groups: Groups,
    outcome: Tensor,
    delta: Tensor | None = None,
) -> Arguments:
    """δ of the classes whose rows the solver has left alone, by their outcome; into `delta`
    (N, C), or new memory. Returns the problem with it."""
    from ..kernels.lpl import resident_steps, sweeping_steps

    n, classes = problem.input.shape
    normalize = problem.options.normalize
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (arguments, groups, steps, step_size, outcome)
    delta = new(problem, n, classes) if delta is None else delta
    meta = resident_meta(problem)
    done = meta["ROWS"] if classes <= meta["BLOCK"] else 0
    if n > 1 and problem.input.dtype != torch.float64:
        _solve_groups(problem, what, delta, done)
    if done:
        launching.launch(resident_steps, (n,), *what, delta, NORMALIZE=normalize, **meta)
    if n > done:
        rowwise = new(problem, 2, n)
        direction = new(problem, n, classes) if normalize else None
        meta = sweeping_meta(problem)
        launching.launch(sweeping_steps, (n,), *what, delta, rowwise, direction, done, **meta)
    return arguments._replace(delta=delta, slot=groups.slot)


def _solve_groups(problem: Problem, what: tuple[Any, ...], delta: Tensor, resident: int) -> None:
    """δ of the classes with several rows for which that costs less than plain steps, into the row
    of `delta` (N, C) of their first row. `resident`: the most rows that have these in registers.

    In float64 there are none, because what the relaxation leaves would show.
    """
    from ..kernels.group_rows import gather_heads, list_groups, split_columns, weigh_rows
    from ..kernels.group_solver import finish_groups, move_tail, take_group_steps

    n, classes = problem.input.shape
    arguments, groups, steps, _, outcome = what
    meta = group_meta(problem)
    shared = _shared(problem, -(-classes // meta.block), meta.head, meta.nodes)
    alone, each = (1,), (shared.most,)
    pieces = (min(shared.most * shared.chunks, PROGRAMS),)
    block = min(1024, max(16, 1 << (n - 1).bit_length()))
    listed = (arguments, groups, steps, outcome, shared, n, resident)
    launching.launch(list_groups, alone, *listed, BLOCK=block)
    launching.launch(weigh_rows, (n,), *what, shared, resident, **meta.weigh_rows)
    common = (*what[:4], shared)
    launching.launch(split_columns, pieces, *common, delta, **meta.split_columns)
    launching.launch(gather_heads, pieces, *common, delta, **meta.gather_heads)
    for turn in range(meta.rounds):
        last = turn == meta.rounds - 1
        launching.launch(take_group_steps, each, *common, ROUND=turn, **meta.take_group_steps)
        launching.launch(move_tail, pieces, *common, delta, LAST=last, **meta.move_tail)
    launching.launch(finish_groups, each, *common, delta, outcome, **meta.finish_groups)


def _shared(problem: Problem, chunks: int, head: int, nodes: int) -> Shared:
    n = problem.input.shape[0]
    most = n // 2

    def indices(*shape: int) -> Tensor:
        return new(problem, *shape, dtype=torch.int32)

    shift, unit, lift, tail, slope, way, inverse = new(problem, 7, n).unbind()
    gains, ways, used, inverses = new(problem, 4, n, nodes).unbind()
    return Shared(
        rows=n,
        most=most,
        chunks=chunks,
        leaders=new(problem, most + 1, dtype=torch.int64),
        shift=shift,
        unit=unit,
        lift=lift,
        tail=tail,
        slope=slope,
        way=way,
        inverse=inverse,
        counts=indices(most, chunks),
        heads=indices(n, head),
        exact=new(problem, n, head),
        change=new(problem, most, head),
        partial=new(problem, chunks, nodes, n),
        squares=new(problem, most, chunks, nodes),
        gains=gains,
        ways=ways,
        used=used,
        inverses=inverses,
        node=new(problem, most, 4, nodes),
        ends=new(problem, most, 2),
    )
