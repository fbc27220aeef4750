"""The learned perturbation of a class, by plain steps: each one softmax of its rows.

For classes that solver.py and group_solver.py leave: where few steps of a small class cost less
than they do, or where they are too inexact. Programs take classes in turn, on tiles of the class's
rows, (ROWS, BLOCK): one that fits a tile stays in registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import arguments
from .algebra import SHIFT, TERMS, Row, read_label, read_logits, read_row, read_table_row, unperturb
from .batch import reduce_losses
from .elementary import scales_exactly
from .norms import read_length
from .rows import Mass, fill_row, finite_shift, row_terms, store_terms, times, upstream_of

GROUP = tl.constexpr(arguments.GROUP)
FELL_BACK = tl.constexpr(arguments.FELL_BACK)
RESIDENT_STEPS = tl.constexpr(16)
SWEEPING_STEPS = tl.constexpr(2)
SMALL = tl.constexpr(1 << 18)
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
def is_left(leader, problem, groups, outcome):
    """Whether a row leads a class that the solvers have left to plain steps; all there is, without
    an outcome."""
    leads = tl.load(groups.slot + leader) == leader
    if outcome is None:
        left = tl.load(problem.target + leader) != problem.ignore_index
    else:
        found = tl.load(outcome + leader)
        left = (found == GROUP) | (found == FELL_BACK)
    return leads & left


@triton.jit
def is_worth_it(count, steps, classes, resident_rows):
    """Whether a class with several rows is solved, or plain steps cost less.

    By estimated instructions per logit, neither counted nor timed: the solver takes some 200, in
    seven sweeps that all programs share, a plain step in registers 12. One that sweeps takes 30,
    in two sweeps by the one program that a class has: only where the class is small, too, and few
    steps are to be taken, is that less.
    """
    resident = (count <= resident_rows) & (steps <= RESIDENT_STEPS)
    swept = (steps <= SWEEPING_STEPS) & (count * classes <= SMALL)
    return (resident | swept) == 0


@triton.jit
def read_group(leader, problem, groups, steps, step_size, dtype: tl.constexpr):
    """The Group that a row leads. One of labels out of range takes no steps."""
    column, _, outside = read_label(tl.load(problem.target + leader), problem)
    signed = tl.where(outside, 0, tl.load(steps + column))
    one = tl.full((), 1, dtype)
    margin = one * 0
    if problem.margin is not None:
        margin = tl.load(problem.margin + column)
    begin = tl.load(groups.begin + leader)
    count = tl.load(groups.count + leader)
    step = tl.where(signed > 0, one, -one) * step_size
    return Group(leader, column, margin, begin, count, tl.abs(signed), step)


@triton.jit
def read_members(group, first, problem, groups, ROWS: tl.constexpr):
    """The Row (ROWS, 1) of the group's rows from its `first` on; beyond its last, its leader."""
    member = first + tl.arange(0, ROWS)[:, None]
    inside = member < group.count
    index = tl.load(groups.order + group.begin + member, mask=inside, other=group.leader)
    table_row, outside = read_table_row(index, group.column, problem)
    weight = group.step
    factor, length, bend = read_length(index, problem, weight)
    return Row(
        index, outside, group.column, weight, group.column, weight, weight, table_row, index,
        weight * 0, index, index, group.margin, factor, length, bend,
    )  # fmt: skip


@triton.jit
def read_tile(group, first, columns, problem, groups, ROWS: tl.constexpr):
    """(u, z) of these rows, (ROWS, BLOCK)."""
    row = read_members(group, first, problem, groups, ROWS)
    u, z, _ = read_logits(row, columns, problem)
    if problem.row_index is not None:
        z = tl.where(row.lost, float("nan"), z)
    return u, z


@triton.jit
def normalized(step, own, square):
    """step/‖g‖, 0 below NORM_FLOOR; ‖g‖² = `square` + own²."""
    norm = tl.sqrt(square + own * own)
    return tl.where(norm < NORM_FLOOR, 0, step / norm)


@triton.jit
def plain_steps(
    problem, groups, steps, step_size, outcome, work, rowwise, direction, wanted, upstream, reduced,
    n_rows, resident, BY_ROW: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr,
    MANY: tl.constexpr, BLOCK: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """All that is wanted of the rows of each class that is left (see take_plain_steps), by a fixed
    number of programs. The last of them sums the losses of the batch, if there is a place for that,
    SUMMED at once.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    place = tl.program_id(0).to(tl.int64)
    take_plain_steps(
        place, tl.num_programs(0), problem, groups, steps, step_size, outcome, work, rowwise,
        direction, wanted, upstream, n_rows, resident, BY_ROW, NORMALIZE, ROWS, MANY, BLOCK,
    )  # fmt: skip
    if reduced.loss is not None:
        tl.debug_barrier()
        if tl.atomic_add(groups.tickets + 1, 1) == tl.num_programs(0) - 1:
            reduce_losses(problem, wanted.losses, reduced, n_rows, SUMMED)


@triton.jit
def take_plain_steps(
    place, programs, problem, groups, steps, step_size, outcome, work, rowwise, direction, wanted,
    upstream, n_rows, resident, BY_ROW: tl.constexpr, NORMALIZE: tl.constexpr, ROWS: tl.constexpr,
    MANY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """All that is wanted of the rows of each class that is left: so many programs, of which this is
    number `place`, take them in turn. Without an `outcome` all classes are left, and the losses of
    rows that are ignored become 0.

    δ ← δ + sign(steps[c])·step_size·g, |steps[c]| times, with over the rows I_c of class c
    g = mean_{i∈I_c} softmax(z_i + δ) − e_c, made unit length if there is a place for it, direction.

    δ goes into a row of `work`, (programs, C); BY_ROW into that of the class's first row, (N, C),
    of rows that lead none nothing, and what is taken off a row's z before δ is added into its
    terms, if they are there. `direction` is as large, or None. Scratch: rowwise (2, N). Classes of
    at most `resident` rows, of at most BLOCK columns, stay in registers, and so do those of up to
    MANY rows, if that is more than ROWS.
    """
    leader = place
    while leader < n_rows:
        if outcome is None and wanted.losses is not None:
            ignored = tl.load(problem.target + leader) == problem.ignore_index
            tl.store(wanted.losses + leader, 0, mask=ignored)
        if is_left(leader, problem, groups, outcome):
            if BY_ROW:
                place = leader
            group = read_group(leader, problem, groups, steps, step_size, work.dtype.element_ty)
            change = work + place * problem.classes
            if group.count <= resident:
                step_resident(group, change, problem, groups, rowwise, NORMALIZE, ROWS, BLOCK)
            elif group.count <= MANY:
                if MANY > ROWS:
                    step_resident(group, change, problem, groups, rowwise, NORMALIZE, MANY, BLOCK)
            else:
                g = direction
                if NORMALIZE:
                    g = direction + place * problem.classes
                step_sweeping(
                    group, change, problem, groups, rowwise, g, n_rows, NORMALIZE, ROWS, BLOCK
                )
            tl.debug_barrier()
            if BY_ROW and problem.terms is not None:
                leave_bases(group, problem, groups, rowwise, ROWS)
            if wanted.losses is not None or wanted.grad is not None:
                member = group.count * 0
                while member < group.count:
                    index = tl.load(groups.order + group.begin + member)
                    base = tl.load(rowwise + group.begin + member)
                    tell_row(index, base, change, problem, wanted, upstream, BLOCK)
                    member += 1
                # the next class has the same memory
                tl.debug_barrier()
        leader += programs


@triton.jit
def leave_bases(group, problem, groups, rowwise, ROWS: tl.constexpr):
    """The rows' bases as the shift of their terms."""
    first = 0
    while first < group.count:
        member = first + tl.arange(0, ROWS)
        inside = member < group.count
        index = tl.load(groups.order + group.begin + member, mask=inside, other=0)
        base = tl.load(rowwise + group.begin + member, mask=inside, other=0)
        tl.store(problem.terms + index * TERMS + SHIFT, base, mask=inside)
        first += ROWS


@triton.jit
def step_resident(
    group, change, problem, groups, rowwise,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """δ of a class with at most ROWS rows, of at most BLOCK columns: they stay in registers. Their
    bases into rowwise (2, N)."""
    dtype: tl.constexpr = change.dtype.element_ty
    columns = tl.arange(0, BLOCK)[None, :]
    _, z = read_tile(group, 0, columns, problem, groups, ROWS)
    member = tl.arange(0, ROWS)
    base = finite_shift(tl.max(z, 1))
    tl.store(rowwise + group.begin + member, base, mask=member < group.count)
    z -= base[:, None]
    inside = member[:, None] < group.count
    moved = tl.zeros((1, BLOCK), dtype)
    k = 0
    while k < group.steps:
        x = z + moved
        e = tl.exp(x - finite_shift(tl.max(x, 1))[:, None])
        share = tl.where(inside, 1 / (tl.sum(e, 1)[:, None] * group.count), 0)
        g = tl.sum(tl.where(columns == group.column, 0, e) * share, 0)
        # the target's entry is minus the rivals' sum: p_y − 1 without cancellation
        own = tl.sum(g, 0)
        factor = group.step
        if NORMALIZE:
            factor = normalized(factor, own, tl.sum(g * g, 0))
        moved += tl.where(columns == group.column, -own, g[None, :]) * factor
        k += 1
    tl.store(change + columns, moved, mask=columns < problem.classes)


@triton.jit
def step_sweeping(
    group, change, problem, groups, rowwise, direction, n_rows,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """δ of a class of any size: every step reads all its rows twice. The target's own δ is a number
    beside `change` until the end, so that no lane waits for it.
    """
    fill_row(change, 0, 0, problem.classes, BLOCK)
    own_change = group.step * 0
    # the first step, of no δ, finds the rows' bases
    first = 0
    while first < group.count:
        member = first + tl.arange(0, ROWS)
        tl.store(rowwise + group.begin + member, own_change, mask=member < group.count)
        first += ROWS
    k = 0
    while k < group.steps:
        tl.debug_barrier()
        first = 0
        while first < group.count:
            sweep_rows(
                group, first, own_change, problem, groups, change, rowwise, n_rows, ROWS, BLOCK
            )
            first += ROWS
        tl.debug_barrier()
        own, square = sweep_columns(
            group, own_change, problem, groups, change, rowwise, direction, n_rows, NORMALIZE, ROWS,
            BLOCK,
        )  # fmt: skip
        factor = group.step
        if NORMALIZE:
            factor = normalized(factor, own, square)
            tl.debug_barrier()
            start = 0
            while start < problem.classes:
                columns = start + tl.arange(0, BLOCK)
                inside = columns < problem.classes
                moved = tl.load(change + columns, mask=inside)
                moved += tl.load(direction + columns, mask=inside) * factor
                tl.store(change + columns, moved, mask=inside)
                start += BLOCK
        own_change -= own * factor
        k += 1
    tl.debug_barrier()
    tl.store(change + group.column, own_change)


@triton.jit
def read_change(group, columns, own_change, problem, change):
    """δ so far of some columns, (1, BLOCK)."""
    moved = tl.load(change + columns, mask=columns < problem.classes, other=0)
    return tl.where(columns == group.column, own_change, moved)


@triton.jit
def raised(base, maximum):
    """(base + maximum in one number, what that is above the base): where the largest of a row's
    z − base + δ is `maximum`, a base as near to the largest of z + δ."""
    higher = base + finite_shift(maximum)
    return higher, higher - base


@triton.jit
def sweep_rows(
    group, first, own_change, problem, groups, change, rowwise, n_rows,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per row of a tile, in rowwise (2, N): its base becomes one near the largest of z + δ, and
    beside it comes 1/(count·Σ exp(z − base + δ))."""
    member = first + tl.arange(0, ROWS)
    here = rowwise + group.begin + member
    base = tl.load(here, mask=member < group.count, other=0)
    maximum = tl.full((ROWS,), float("-inf"), change.dtype.element_ty)
    total = tl.zeros((ROWS,), change.dtype.element_ty)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)[None, :]
        _, z = read_tile(group, first, columns, problem, groups, ROWS)
        z = (z - base[:, None]) + read_change(group, columns, own_change, problem, change)
        joint = tl.maximum(maximum, tl.max(z, 1))
        shift = finite_shift(joint)
        total = total * tl.exp(maximum - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
        maximum = joint
        start += BLOCK
    base, shift = raised(base, maximum)
    total *= tl.exp(finite_shift(maximum) - shift)
    tl.store(here, base, mask=member < group.count)
    tl.store(here + n_rows, 1 / (total * group.count), mask=member < group.count)


@triton.jit
def sweep_columns(
    group, own_change, problem, groups, change, rowwise, direction, n_rows,
    NORMALIZE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(Σ g_j, Σ g_j²) over the rivals; moves δ by them, or stores g where it is normalised."""
    own = tl.zeros((), change.dtype.element_ty)
    square = tl.zeros((), change.dtype.element_ty)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)[None, :]
        moved = read_change(group, columns, own_change, problem, change)
        g = tl.zeros((BLOCK,), change.dtype.element_ty)
        first = 0
        while first < group.count:
            _, z = read_tile(group, first, columns, problem, groups, ROWS)
            member = first + tl.arange(0, ROWS)[:, None]
            here = rowwise + group.begin + member
            base = tl.load(here, mask=member < group.count, other=0)
            share = tl.load(here + n_rows, mask=member < group.count, other=0)
            e = tl.exp((z - base) + moved)
            g += tl.sum(tl.where((columns == group.column) | (share == 0), 0, e * share), 0)
            first += ROWS
        own += tl.sum(g, 0)
        square += tl.sum(g * g, 0)
        inside = columns < problem.classes
        if NORMALIZE:
            tl.store(direction + columns, g[None, :], mask=inside)
        else:
            tl.store(change + columns, moved + g[None, :] * group.step, mask=inside)
        start += BLOCK
    return own, square


@triton.jit
def tell_row(index, base, change, problem, wanted, upstream, BLOCK: tl.constexpr):
    """What is wanted of a row, from the δ of its class."""
    dtype: tl.constexpr = change.dtype.element_ty
    row = read_row(index, problem, dtype)[1]
    maximum = tl.full((BLOCK,), float("-inf"), dtype)
    rest = tl.zeros((BLOCK,), dtype)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        _, z, inside = read_logits(row, columns, problem)
        z = (z - base) + tl.load(change + columns, mask=inside, other=0)
        z = tl.where(columns == row.column, float("-inf"), z)
        joint = tl.maximum(maximum, z)
        shift = finite_shift(joint)
        rest = rest * tl.exp(maximum - shift) + tl.exp(z - shift)
        maximum = joint
        start += BLOCK
    own = (read_logits(row, row.column, problem)[1] - base) + tl.load(change + row.column)
    base, shift = raised(base, tl.max(maximum, 0))
    rest = tl.sum(rest * tl.exp(maximum - shift), 0)
    zero = tl.zeros_like(own)
    label = (own - shift, zero)
    mass = Mass(base, rest, zero, zero, zero, zero, zero, zero)
    value, terms = row_terms(index, row, label, label, mass, mass, problem)
    if wanted.losses is not None:
        tl.store(wanted.losses + index, value)
    if wanted.terms is not None:
        store_terms(wanted.terms, index, terms)
    if wanted.grad is not None:
        terms = times(terms, upstream_of(index, upstream))
        start = 0
        while start < problem.classes:
            columns = start + tl.arange(0, BLOCK)
            u, z, inside = read_logits(row, columns, problem)
            z = (z - base) + tl.load(change + columns, mask=inside, other=0)
            dz = tl.exp(z) * terms.strength
            dz = tl.where(columns == row.column, terms.part, dz)
            du = unperturb(dz, u, columns, inside, row, problem)[0]
            here = wanted.grad + index * problem.classes + columns
            tl.store(here, du.to(wanted.grad.dtype.element_ty), mask=inside)
            start += BLOCK
