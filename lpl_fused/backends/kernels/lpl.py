"""The learned perturbation of a class, by plain steps: each one softmax of its rows.

For classes that solver.py and group_solver.py leave: where few steps of a small class cost less
than they do, or where they are too inexact. One program per row of the batch; the first row of a
class works for it, on tiles of the class's rows, (ROWS, BLOCK). A class that fits one tile is
resident_steps', any other sweeping_steps'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import arguments
from .algebra import Row, read_logits, read_table_row
from .elementary import scales_exactly
from .norms import read_length
from .rows import fill_row, finite_shift

GROUP = tl.constexpr(arguments.GROUP)
FELL_BACK = tl.constexpr(arguments.FELL_BACK)
NORM_FLOOR = tl.constexpr(1e-12)  # a gradient shorter than this has no direction


class Group(NamedTuple):
    """A class of the batch, its rows, and what it has to do."""

    leader: Any
    column: Any
    margin: Any
    begin: Any  # of its rows in groups.order
    count: Any
    steps: Any
    step: Any  # signed


@triton.jit
def is_left(groups, outcome):
    """Whether a program's row leads a class that the solvers have left to plain steps."""
    index = tl.program_id(0)
    found = tl.load(outcome + index)
    return ((found == GROUP) | (found == FELL_BACK)) & (tl.load(groups.slot + index) == index)


@triton.jit
def read_group(leader, problem, groups, steps, step_size, dtype: tl.constexpr):
    """The Group that a row leads."""
    column = tl.load(problem.target + leader)
    signed = tl.load(steps + column)
    one = tl.full((), 1, dtype)
    margin = one * 0
    if problem.margin is not None:
        margin = tl.load(problem.margin + column)
    begin = tl.load(groups.begin + leader)
    count = tl.load(groups.count + leader)
    step = tl.where(signed > 0, one, -one) * step_size
    return Group(leader, column, margin, begin, count, tl.abs(signed), step)


@triton.jit
def read_tile(group, first, columns, problem, groups, ROWS: tl.constexpr):
    """z (ROWS, BLOCK) of the group's rows from its `first` on; beyond its last, its leader."""
    member = first + tl.arange(0, ROWS)[:, None]
    inside = member < group.count
    index = tl.load(groups.order + group.begin + member, mask=inside, other=group.leader)
    table_row, outside = read_table_row(index, group.column, problem)
    weight = group.step
    factor, length, bend = read_length(index, problem, weight)
    row = Row(
        index, outside, group.column, weight, group.column, weight, weight, table_row, index,
        index, index, group.margin, factor, length, bend,
    )  # fmt: skip
    _, z, _ = read_logits(row, columns, problem)
    if problem.row_index is not None:
        z = tl.where(outside, float("nan"), z)
    return z


@triton.jit
def resident_steps(
    problem,
    groups,
    steps,
    step_size,
    outcome,
    delta,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """δ of each class with at most ROWS rows, of at most BLOCK columns: they stay in registers.

    δ ← δ + sign(steps[c])·step_size·g, |steps[c]| times, with g of sweeping_steps. delta (N, C):
    row i is the δ of the class of which i is the first row. Classes with an outcome (N,) of
    SOLVED or PERTURBED are done.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    if (tl.load(groups.count + tl.program_id(0)) > ROWS) | (is_left(groups, outcome) == 0):
        return
    leader = tl.program_id(0).to(tl.int64)
    group = read_group(leader, problem, groups, steps, step_size, delta.dtype.element_ty)

    columns = tl.arange(0, BLOCK)[None, :]
    z = read_tile(group, 0, columns, problem, groups, ROWS)
    inside = tl.arange(0, ROWS)[:, None] < group.count
    change = tl.zeros((1, BLOCK), delta.dtype.element_ty)
    k = 0
    while k < group.steps:
        moved = z + change
        e = tl.exp(moved - finite_shift(tl.max(moved, 1))[:, None])
        share = tl.where(inside, 1 / (tl.sum(e, 1)[:, None] * group.count), 0)
        g = tl.sum(tl.where(columns == group.column, 0, e) * share, 0)
        # the target's entry is minus the rivals' sum: p_y − 1 without cancellation
        own = tl.sum(g, 0)
        factor = group.step
        if NORMALIZE:
            factor = normalized(factor, own, tl.sum(g * g, 0))
        change += tl.where(columns == group.column, -own, g[None, :]) * factor
        k += 1
    here = delta + group.leader * problem.classes + columns
    tl.store(here, change, mask=columns < problem.classes)


@triton.jit
def normalized(step, own, square):
    """step/‖g‖, 0 below NORM_FLOOR; ‖g‖² = `square` + own²."""
    norm = tl.sqrt(square + own * own)
    return tl.where(norm < NORM_FLOOR, 0, step / norm)


@triton.jit
def sweeping_steps(
    problem,
    groups,
    steps,
    step_size,
    outcome,
    delta,
    rowwise,
    direction,
    done,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """δ of each class with more than `done` rows: every step reads all its rows twice.

    δ ← δ + sign(steps[c])·step_size·g, |steps[c]| times, with over the rows I_c of class c
    g = mean_{i∈I_c} softmax(z_i + δ) − e_c, made unit length if there is a place for it, direction.

    delta and outcome as in resident_steps. Scratch: rowwise (2, N), direction (N, C) or None. The
    target's own δ is a number beside `delta` until the end, so that no lane waits for it.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    if (tl.load(groups.count + tl.program_id(0)) <= done) | (is_left(groups, outcome) == 0):
        return
    leader = tl.program_id(0).to(tl.int64)
    group = read_group(leader, problem, groups, steps, step_size, delta.dtype.element_ty)
    fill_row(delta, group.leader, 0, problem.classes, BLOCK)

    own_change = group.step * 0
    k = 0
    while k < group.steps:
        tl.debug_barrier()
        first = 0
        while first < group.count:
            sweep_rows(group, first, own_change, problem, groups, delta, rowwise, ROWS, BLOCK)
            first += ROWS
        tl.debug_barrier()
        own, square = sweep_columns(
            group, own_change, problem, groups, delta, rowwise, direction, ROWS, BLOCK
        )
        factor = group.step
        if direction is not None:
            factor = normalized(factor, own, square)
            tl.debug_barrier()
            start = 0
            while start < problem.classes:
                columns = start + tl.arange(0, BLOCK)
                inside = columns < problem.classes
                row = group.leader * problem.classes
                change = tl.load(delta + row + columns, mask=inside)
                change += tl.load(direction + row + columns, mask=inside) * factor
                tl.store(delta + row + columns, change, mask=inside)
                start += BLOCK
        own_change -= own * factor
        k += 1
    tl.debug_barrier()
    tl.store(delta + group.leader * problem.classes + group.column, own_change)


@triton.jit
def read_change(group, columns, own_change, problem, delta):
    """δ so far of some columns, (1, BLOCK)."""
    here = delta + group.leader * problem.classes + columns
    change = tl.load(here, mask=columns < problem.classes, other=0)
    return tl.where(columns == group.column, own_change, change)


@triton.jit
def sweep_rows(
    group, first, own_change, problem, groups, delta, rowwise,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per row of a tile: shift and 1/(count·Σ exp(z + δ − shift)), into rowwise (2, N)."""
    maximum = tl.full((ROWS,), float("-inf"), delta.dtype.element_ty)
    total = tl.zeros((ROWS,), delta.dtype.element_ty)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)[None, :]
        z = read_tile(group, first, columns, problem, groups, ROWS)
        z += read_change(group, columns, own_change, problem, delta)
        joint = tl.maximum(maximum, tl.max(z, 1))
        shift = finite_shift(joint)
        total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
        maximum = joint
        start += BLOCK
    member = first + tl.arange(0, ROWS)
    here = rowwise + group.begin + member
    tl.store(here, finite_shift(maximum), mask=member < group.count)
    tl.store(here + tl.num_programs(0), 1 / (total * group.count), mask=member < group.count)


@triton.jit
def sweep_columns(
    group, own_change, problem, groups, delta, rowwise, direction,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(Σ g_j, Σ g_j²) over the rivals; moves δ by them, or stores g where it is normalised."""
    own = tl.zeros((), delta.dtype.element_ty)
    square = tl.zeros((), delta.dtype.element_ty)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)[None, :]
        change = read_change(group, columns, own_change, problem, delta)
        g = tl.zeros((BLOCK,), delta.dtype.element_ty)
        first = 0
        while first < group.count:
            z = read_tile(group, first, columns, problem, groups, ROWS)
            member = first + tl.arange(0, ROWS)[:, None]
            here = rowwise + group.begin + member
            shift = tl.load(here, mask=member < group.count, other=0)
            share = tl.load(here + tl.num_programs(0), mask=member < group.count, other=0)
            e = tl.exp(z + change - shift)
            g += tl.sum(tl.where((columns == group.column) | (share == 0), 0, e * share), 0)
            first += ROWS
        own += tl.sum(g, 0)
        square += tl.sum(g * g, 0)
        row = group.leader * problem.classes
        inside = columns < problem.classes
        if direction is None:
            tl.store(delta + row + columns, change + g[None, :] * group.step, mask=inside)
        else:
            tl.store(direction + row + columns, g[None, :], mask=inside)
        start += BLOCK
    return own, square
