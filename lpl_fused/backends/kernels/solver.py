"""The learned perturbation of a class with one row, solved: all its steps for one softmax's price.

A step moves every rival j ≠ y by a·e_j, e_j = exp(z_j − shift), with the same a = ±α/Z (over ‖g‖
where it is made unit length). Rivals with more than 1/HEAD of the rivals' mass, at most HEAD,
are the head and take their steps one by one. All others, the tail, remain one polynomial

    E⁰(e) = e ,   E^{k+1} = E^k·exp(a_k·E^k) ,   E(e) = Σ_{r=1..ORDER} E_r·e^r

whose mass Σ_r E_r·M_r needs the tail's power sums M_r = Σ_tail e^r taken once. With D = Σ_k |a_k|
|E_r| ≤ D^{r−1} (the map is majorised by its flow e/(1 − D·e)), so cutting the series off changes a
probability by at most x^ORDER/(1 − x), x = D·max_tail e, relative, and about 1 + D·Σ_j e_j times
that where the error feeds back through Z. Every row checks this at its end (good_enough); one that
may be less exact says so and is left to the plain steps of lpl.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import arguments
from .algebra import (
    SOLVED,
    is_within,
    last_block,
    read_block,
    read_label,
    read_logits,
    read_row,
    store_block,
    unperturb,
)
from .elementary import exp, log1p, scales_exactly
from .lpl import is_worth_it, normalized
from .rows import Mass, edge_blocks, finite_shift, first_whole, row_terms, upstream_of
from .series import added, advanced, tail_mass, tail_square

GROUP = tl.constexpr(arguments.GROUP)
FELL_BACK = tl.constexpr(arguments.FELL_BACK)
WEIGHED = tl.constexpr(arguments.WEIGHED)
NUMBERS = tl.constexpr(arguments.NUMBERS)
POWERS = tl.constexpr(arguments.POWERS)
SERIES = tl.constexpr(arguments.SERIES)
LARGEST_LIFT = tl.constexpr(80.0)  # exp(80) is a float still


class Rivals(NamedTuple):
    """All columns but the label's, e_j = exp(z_j − shift)."""

    mass: Any  # Σ e_j
    powers: Any  # Σ_tail e_j^r, r = 1, 2, …
    largest: Any  # max_tail e_j


class Tail(NamedTuple):
    """Rivals of the blocks seen so far, by lane."""

    powers: Any
    largest: Any
    count: Any  # of the head


class Moved(NamedTuple):
    """A row after its steps, in units of exp(shift)."""

    series: Any  # E_1 … E_ORDER
    change: Any  # (HEAD,): δ of the head
    own_change: Any  # δ of the target
    dose: Any  # Σ |a_k|


@triton.jit
def without_label(block, row):
    """x of a block's rivals: −inf at the label."""
    z = block.z
    if is_within(row.column, block):
        z = tl.where(block.columns == row.column, float("-inf"), z)
    return z


@triton.jit
def add_rivals(maximum, mass, z):
    """(maximum, Σ exp(z − maximum)) by lane with the rivals of a block."""
    joint = tl.maximum(maximum, tl.max(z, 1))
    shift = finite_shift(joint)
    mass = mass * exp(maximum - shift) + tl.sum(exp(z - shift[:, None]), 1)
    return joint, mass


@triton.jit
def sweep_rivals(row, problem, BLOCK: tl.constexpr):
    """(maximum, Σ exp(z − maximum)) of a row's rivals: every lane keeps its own to the end."""
    mass = tl.zeros((BLOCK // problem.each,), row.hard.dtype)
    maximum = mass + float("-inf")
    first, last = edge_blocks(row, problem, BLOCK)
    edge = without_label(read_block(row, last, problem, False, BLOCK), row)
    maximum, mass = add_rivals(maximum, mass, edge)
    if problem.phased and last > first:
        edge = without_label(read_block(row, first, problem, False, BLOCK), row)
        maximum, mass = add_rivals(maximum, mass, edge)
    start = first_whole(last, problem, BLOCK)
    while start < last:
        z = without_label(read_block(row, start, problem, True, BLOCK), row)
        maximum, mass = add_rivals(maximum, mass, z)
        start += BLOCK
    largest = tl.max(maximum, 0)
    return largest, tl.sum(mass * exp(maximum - finite_shift(largest)), 0)


@triton.jit
def no_tail(row, problem, POWERS: tl.constexpr, BLOCK: tl.constexpr):
    """The Tail of no columns."""
    zeros = tl.zeros((BLOCK // problem.each,), row.hard.dtype)
    return Tail((zeros,) * POWERS, zeros, tl.full((), 0, tl.int32))


@triton.jit
def add_tail(tail, columns, e, bound, heads, room, POWERS: tl.constexpr):
    """The Tail with a block's rivals; those above the bound are listed while there is room."""
    largest = tl.max(e, 1)
    count = tail.count
    if tl.max(largest, 0) > bound:
        chosen = e > bound
        number = chosen.to(tl.int32)
        of_lane = tl.sum(number, 1)
        place = count + (tl.cumsum(of_lane, 0) - of_lane)[:, None] + tl.cumsum(number, 1) - 1
        tl.store(heads + place, columns, mask=chosen & (place < room))
        count += tl.sum(of_lane, 0)
        e = tl.where(chosen, 0, e)
        largest = tl.max(e, 1)
    return Tail(added(tail.powers, e, POWERS), tl.maximum(tail.largest, largest), count)


@triton.jit
def sweep_tail(
    row, shift, bound, heads, room, problem, POWERS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The Tail of a row, by lane: from its end, which a sweep before has left in the caches."""
    tail = no_tail(row, problem, POWERS, BLOCK)
    first, last = edge_blocks(row, problem, BLOCK)
    edge = read_block(row, last, problem, False, BLOCK)
    of_edge = exp(without_label(edge, row) - shift)
    tail = add_tail(tail, edge.columns, of_edge, bound, heads, room, POWERS)
    if problem.phased and last > first:
        edge = read_block(row, first, problem, False, BLOCK)
        of_edge = exp(without_label(edge, row) - shift)
        tail = add_tail(tail, edge.columns, of_edge, bound, heads, room, POWERS)
    start = last - BLOCK
    while start >= first_whole(last, problem, BLOCK):
        block = read_block(row, start, problem, True, BLOCK)
        e = exp(without_label(block, row) - shift)
        tail = add_tail(tail, block.columns, e, bound, heads, room, POWERS)
        start -= BLOCK
    return tail


@triton.jit
def head_share(steps, step_size, classes, HEAD: tl.constexpr, ORDER: tl.constexpr):
    """A rival of the head has more than this part of all rivals' mass: the largest that keeps what
    the series leaves out within the tolerance (good_enough), by what steps of such number and size
    may add up to; but so many that all heads find room, and nothing where all rivals do."""
    tolerance: tl.constexpr = 1e-13 if step_size.dtype == tl.float64 else 2e-7
    dose = tl.abs(steps) * step_size * tl.where(steps < 0, 1.25, 1.0)
    least = exp(tl.log(tolerance / (2 * (1 + dose))) / ORDER) * 0.999
    share = tl.where(least < 0.49, least, 0.49) / tl.where(dose > 0, dose, 1)
    share = tl.where(share < 1.0 / HEAD, 1.0 / HEAD, share)
    return tl.where(classes > HEAD, share, 0)


@triton.jit
def take_steps(
    rivals, own, head, steps, step,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """Moved, of a row with target logit `own` and the head's logits (HEAD,), less the shift."""
    zero = tl.zeros_like(own)
    moved = Moved((zero + 1,) + (zero,) * (ORDER - 1), tl.zeros_like(head), zero, zero)
    lost = tl.zeros_like(head)
    own_lost = zero
    # log Z so far, up to what a step changes: keeps every exponential near its share of 1
    level = tl.maximum(tl.log(rivals.mass), own)
    k = steps * 0
    while k < steps:
        unit = tl.exp(-level)
        e = tl.exp(head + moved.change - level)
        tail = tail_mass(moved.series, rivals.powers, ORDER) * unit
        others = tl.sum(e, 0) + tail
        total = others + tl.exp(own + moved.own_change - level)
        share = 1 / total
        factor = step
        if NORMALIZE:
            square = tail_square(moved.series, rivals.powers, ORDER) * unit * unit
            square = (tl.sum(e * e, 0) + square) * share * share
            factor = normalized(factor, others * share, square)
        share *= factor
        a = share * unit
        change, lost = compensated(moved.change, lost, e * share)
        own_change, own_lost = compensated(moved.own_change, own_lost, -others * share)
        series = advanced(moved.series, a, ORDER)
        moved = Moved(series, change, own_change, moved.dose + tl.abs(a))
        level += tl.log(total)
        k += 1
    return moved


@triton.jit
def compensated(total, lost, term):
    """(total + term, what rounding has added to it so far): Kahan's sum, as exact after many steps
    as after one.
    """
    term -= lost
    result = total + term
    return result, (result - total) - term


@triton.jit
def good_enough(rivals, moved, ORDER: tl.constexpr):
    """Whether the series is as exact as the module's docstring asks; False where it overflowed."""
    tolerance: tl.constexpr = 1e-13 if moved.dose.dtype == tl.float64 else 2e-7
    x = moved.dose * rivals.largest
    error = 1 + moved.dose * rivals.mass
    for _ in tl.static_range(ORDER):
        error *= x
    return (x < 1) & (error <= (1 - x) * tolerance)


@triton.jit
def weigh_rivals(
    problem, groups, steps, step_size, state, shared, resident_rows, losses,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """What the steps of a row want to know of its rivals, and its head; of rows that have their
    class for themselves or take no steps. One program per row.

    The outcome of others is GROUP; of those that are to be solved, if there is a place for that,
    `shared`, shift, unit and lift. Rows that are ignored are SOLVED; their loss is 0.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    dtype: tl.constexpr = state.numbers.dtype.element_ty
    place = tl.program_id(0).to(tl.int64)
    index = tl.load(groups.order + place)
    live, row = read_row(index, problem, dtype)
    if live == 0:
        tl.store(state.outcome + index, SOLVED)
        if losses is not None:
            tl.store(losses + index, 0)
        return
    signed = steps_of(row, problem, steps)
    count = tl.load(groups.count + index)
    together = (signed != 0) & (count > 1)
    left = together
    if shared is not None:
        worth = is_worth_it(count, tl.abs(signed), problem.classes, resident_rows)
        left = together & (worth == 0)
    if left:
        tl.store(state.outcome + index, GROUP)
        return

    # read before the sweep, which hides the latency
    own = read_logits(row, row.column, problem)[1]
    powers: tl.constexpr = ORDER + 1 if NORMALIZE else ORDER
    heads = state.heads + index * HEAD
    size = tl.full((), 1, dtype) * step_size
    share = head_share(signed, size, problem.classes, HEAD, ORDER)
    if ONE_BLOCK:
        block = read_block(row, tl.full((), 0, tl.int32), problem, False, BLOCK)
        z = without_label(block, row)
        maximum = tl.max(tl.max(z, 1), 0)
        e = exp(z - finite_shift(maximum))
        mass = tl.sum(tl.sum(e, 1), 0)
    else:
        maximum, mass = sweep_rivals(row, problem, BLOCK)
    if shared is not None and together:
        tl.store(state.outcome + index, GROUP)
        weigh_member(place, row, own, maximum, mass, shared)
        return
    if ONE_BLOCK:
        tail = no_tail(row, problem, powers, BLOCK)
        tail = add_tail(tail, block.columns, e, share * mass, heads, HEAD, powers)
    else:
        shift = finite_shift(maximum)
        tail = sweep_tail(row, shift, share * mass, heads, HEAD, problem, powers, BLOCK)
    shift = finite_shift(tl.where(mass == 0, own, maximum))
    here = state.numbers + index * NUMBERS
    tl.store(here, shift)
    tl.store(here + 1, mass)
    tl.store(here + 2, tl.max(tail.largest, 0))
    tl.store(here + 3, own - shift)
    tl.store(here + 4, tail.count.to(dtype))
    for r in tl.static_range(powers):
        tl.store(here + POWERS + r, tl.sum(tail.powers[r], 0))
    tl.store(state.outcome + index, WEIGHED)


@triton.jit
def weigh_member(place, row, own, maximum, mass, shared):
    """shift, unit and lift of a row whose class is to be solved."""
    # an index of a table's row that means nothing makes the whole class nan
    own = tl.where(row.lost, float("nan"), own)
    shift = finite_shift(maximum)
    # without rivals p_y = 1, and no step moves anything; without anything it is nan
    lift = tl.where(mass == 0, own - own, own - shift - tl.log(mass))
    tl.store(shared.shift + place, shift)
    tl.store(shared.unit + place, tl.where(mass == 0, 0, 1 / mass))
    tl.store(shared.lift + place, tl.where(lift > LARGEST_LIFT, LARGEST_LIFT, lift))


@triton.jit
def steps_of(row, problem, steps):
    """The signed number of steps of a row; 0 where its label is out of range."""
    _, _, outside = read_label(tl.load(problem.target + row.index), problem)
    return tl.where(outside, 0, tl.load(steps + row.column))


@triton.jit
def step_rows(
    problem, steps, step_size, state, losses,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, FEW: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """All steps of each row that is WEIGHED: its loss, and what its gradient and δ are made of; or
    it FELL_BACK. One program per row; heads that are few take fewer lanes.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    if tl.load(state.outcome + index) != WEIGHED:
        return
    if tl.load(state.numbers + index * NUMBERS + 4) <= FEW:
        step_row(index, problem, steps, step_size, state, losses, NORMALIZE, HEAD, FEW, ORDER)
    else:
        step_row(index, problem, steps, step_size, state, losses, NORMALIZE, HEAD, HEAD, ORDER)


@triton.jit
def step_row(
    index, problem, steps, step_size, state, losses,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, LANES: tl.constexpr, ORDER: tl.constexpr,
):  # fmt: skip
    """step_rows of one row, whose head has at most LANES columns."""
    dtype: tl.constexpr = state.numbers.dtype.element_ty
    powers: tl.constexpr = ORDER + 1 if NORMALIZE else ORDER
    _, row = read_row(index, problem, dtype)
    here = state.numbers + index * NUMBERS
    shift = tl.load(here)
    sums = ()
    for r in tl.static_range(powers):
        sums += (tl.load(here + POWERS + r),)
    rivals = Rivals(tl.load(here + 1), sums, tl.load(here + 2))
    own = tl.load(here + 3)
    count = tl.load(here + 4).to(tl.int32)
    lanes = tl.arange(0, LANES)
    listed = lanes < count
    columns = tl.load(state.heads + index * HEAD + lanes, mask=listed, other=problem.classes)
    z_head = read_logits(row, columns, problem)[1] - shift
    # without rivals p_y = 1, and no step moves anything
    alone = rivals.mass == 0
    # nan stays nan, whoever takes the steps
    hopeless = (rivals.mass != rivals.mass) | (own != own)
    signed = steps_of(row, problem, steps)
    number = tl.where(alone, 0, tl.abs(signed))
    step = tl.where(signed > 0, 1.0, -1.0).to(dtype) * step_size
    moved = take_steps(rivals, own, z_head, number, step, NORMALIZE, LANES, ORDER)
    # neither label nor rivals: what has no softmax has no δ either
    nothing = alone & (tl.abs(own) == float("inf")) & (signed != 0)
    lost = tl.where(nothing, float("nan"), 0.0).to(dtype)

    own += moved.own_change
    z_head += moved.change
    tail = tail_mass(moved.series, rivals.powers, ORDER)
    level = tl.maximum(tl.maximum(tl.max(z_head, 0), tl.log(tail)), own)
    unit = finite_shift(level)
    of_tail = tl.exp(-unit)
    rest = tl.sum(tl.exp(z_head - unit), 0) + tail * of_tail
    # tl.maximum drops a nan: what has overflowed on the way shows in the sum
    whole = (rest + own < float("inf")) & (of_tail < float("inf"))
    if ((good_enough(rivals, moved, ORDER) & whole) | hopeless | alone) == 0:
        tl.store(state.outcome + index, FELL_BACK)
        return

    zero = tl.zeros_like(own)
    mass = Mass(shift + unit, rest, zero, zero, zero, zero)
    if losses is not None:
        label = (own - unit, zero)
        value, terms = row_terms(index, row, label, label, mass, mass, problem)
        tl.store(losses + index, value)
        tl.store(here + 7, terms.strength)
        tl.store(here + 8, terms.part)
    tl.store(here + 5, moved.own_change + lost)
    tl.store(here + 6, unit)
    for r in tl.static_range(ORDER):
        tl.store(here + SERIES + r, moved.series[r] + lost)
    tl.store(state.changes + index * HEAD + lanes, moved.change, mask=listed)
    tl.store(state.outcome + index, SOLVED)


@triton.jit
def move_rows(
    problem, groups, state, upstream, grad, delta,
    HEAD: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is wanted of each row that is SOLVED: grad (N, C), its gradient times `upstream`, or
    delta (N, C), its δ, which rows that do not lead their class have none of. One program per row
    and block of its columns.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    column_start = tl.program_id(1) * BLOCK
    dtype: tl.constexpr = state.numbers.dtype.element_ty
    live, row = read_row(index, problem, dtype)
    solved = tl.load(state.outcome + index) == SOLVED
    if delta is not None:
        filler = tl.where(row.lost & solved, float("nan"), 0.0)
        follows = (solved == 0) & (tl.load(groups.slot + index) != index)
        if (live == 0) | row.lost | follows:
            fill_block(row, column_start, filler, delta, problem, BLOCK)
            return
    if solved == 0:
        return
    if grad is not None and live == 0:
        fill_block(row, column_start, 0.0, grad, problem, BLOCK)
        return
    whole = column_start < last_block(row, problem, BLOCK)
    if problem.phased:
        whole &= column_start > 0
    if whole:
        move_tail_block(
            row, column_start, state, upstream, grad, delta, problem, True, HEAD, ORDER, BLOCK
        )
    else:
        move_tail_block(
            row, column_start, state, upstream, grad, delta, problem, False, HEAD, ORDER, BLOCK
        )


@triton.jit
def fill_block(row, start, value, matrix, problem, BLOCK: tl.constexpr):
    """Stores one number in a block of a row."""
    block = read_block(row, start, problem, False, BLOCK)
    store_block(matrix, row, block, tl.zeros_like(block.u) + value, problem)


@triton.jit
def move_tail_block(
    row, start, state, upstream, grad, delta, problem,
    WHOLE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_rows of a block: first as if all but the label were of the tail."""
    here = state.numbers + row.index * NUMBERS
    shift = tl.load(here)
    unit = tl.load(here + 6)
    block = read_block(row, start, problem, WHOLE, BLOCK)
    e = exp(block.z - shift)
    strength = shift
    own = shift
    if grad is not None:
        factor = upstream_of(row.index, upstream)
        strength = tl.load(here + 7) * factor
        own = tl.load(here + 8) * factor
        of_tail = tl.exp(-unit) * strength
        value = tl.zeros_like(e) + tl.load(here + SERIES + ORDER - 1) * of_tail
        for r in tl.static_range(1, ORDER):
            value = value * e + tl.load(here + SERIES + ORDER - 1 - r) * of_tail
        value *= e
    else:
        value = tl.zeros_like(e) + tl.load(here + SERIES + ORDER - 1)
        for r in tl.static_range(1, ORDER - 1):
            value = value * e + tl.load(here + SERIES + ORDER - 1 - r)
        value = log1p(value * e)
        own = tl.load(here + 5)
    if is_within(row.column, block):
        # without a barrier the compiler asks every column of every block instead
        tl.debug_barrier()
        value = tl.where(block.columns == row.column, own, value)
    if grad is not None:
        value = unperturb(value, block.u, block.columns, block.inside, row, problem)[0]
        store_block(grad, row, block, value, problem)
    else:
        store_block(delta, row, block, value, problem)
    count = tl.load(here + 4).to(tl.int32)
    listed = count * 0
    while listed < count:
        tl.debug_barrier()
        lanes = listed + tl.arange(0, 64)
        places = row.index * HEAD + lanes
        columns = tl.load(state.heads + places, mask=lanes < count, other=problem.classes)
        inside = (columns >= block.first) & (columns < block.end) & (lanes < count)
        columns = tl.where(inside, columns, problem.classes)
        change = tl.load(state.changes + places, mask=inside, other=0)
        if grad is not None:
            u, z, _ = read_logits(row, columns, problem)
            dz = tl.exp(z - shift + change - unit) * strength
            du = unperturb(dz, u, columns, inside, row, problem)[0]
            to = grad + row.index * problem.classes + columns
            tl.store(to, du.to(grad.dtype.element_ty), mask=inside)
        else:
            tl.store(delta + row.index * problem.classes + columns, change, mask=inside)
        listed += 64
