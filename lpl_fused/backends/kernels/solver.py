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
    SHIFT,
    SOLVED,
    TERMS,
    is_within,
    last_block,
    perturb,
    read_at,
    read_block,
    read_label,
    read_logits,
    read_row,
    row_stride,
    store_block,
    unperturb,
)
from .elementary import exp, log1p, scales_exactly
from .grouping import list_classes, store_rows
from .lpl import is_worth_it, normalized
from .rows import Mass, edge_blocks, finite_shift, first_whole, row_terms, upstream_of
from .series import added_unless, advanced, power_of, tail_mass, tail_square

GROUP = tl.constexpr(arguments.GROUP)
FELL_BACK = tl.constexpr(arguments.FELL_BACK)
WEIGHED = tl.constexpr(arguments.WEIGHED)
NUMBERS = tl.constexpr(arguments.NUMBERS)
POWERS = tl.constexpr(arguments.POWERS)
SERIES = tl.constexpr(arguments.SERIES)
LARGEST_LIFT = tl.constexpr(80.0)  # exp(80) is a float still
TURNS = tl.constexpr(32)  # blocks that a lane has bits for
FEW = tl.constexpr(128)  # heads that are put in their places at once, by as many threads
NOWHERE = tl.constexpr(-(1 << 30))  # a column that no block has
TILE = tl.constexpr(4096)  # columns that four warps have in their registers
AT_ONCE = tl.constexpr(64)  # lanes whose heads are looked for at once


class Rivals(NamedTuple):
    """All columns but the label's, e_j = exp(z_j − shift)."""

    mass: Any  # Σ e_j
    powers: Any  # Σ_tail e_j^r, r = 1, 2, …
    largest: Any  # max_tail e_j


class Tail(NamedTuple):
    """Rivals of the blocks seen so far, by lane, without those lanes that have a head."""

    powers: Any
    largest: Any
    turns: Any  # a bit for each block of which the lane has one
    count: Any  # of such blocks


class Summed(NamedTuple):
    """The rivals of a row."""

    powers: Any  # of the tail
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
    none = tl.zeros((BLOCK // problem.each,), tl.uint32)
    return Tail((zeros,) * POWERS, zeros, none, none.to(tl.int32))


@triton.jit
def add_tail(tail, e, bound, turn, POWERS: tl.constexpr):
    """The Tail with a block's rivals, but for those of lanes with one above the bound: of them the
    block's turn is kept. That asks a lane, not each of its columns, and no other thread.
    """
    largest = tl.max(e, 1)
    has_head = largest > bound
    bit = tl.where(has_head, 1, 0).to(tl.uint32)
    return Tail(
        added_unless(has_head, tail.powers, e, POWERS),
        tl.maximum(tail.largest, tl.where(has_head, 0, largest)),
        tail.turns | (bit << turn.to(tl.uint32)),
        tail.count + bit.to(tl.int32),
    )


@triton.jit
def list_lanes(tail, lanes, listed, room, last, turns, problem, BLOCK: tl.constexpr):
    """Lists the lanes of up to TURNS blocks that have heads, by their first places over `each`; the
    blocks' own are last, last − BLOCK, … (How many are listed now, the Tail ready for more.)
    """
    total = tl.sum(tail.count, 0)
    if total > 0:
        size: tl.constexpr = BLOCK // problem.each
        place = listed + (tl.cumsum(tail.count, 0) - tail.count)
        lane = last // problem.each + tl.arange(0, size)
        turn = turns * 0
        while turn < turns:
            bit = ((tail.turns >> turn.to(tl.uint32)) & 1).to(tl.int32)
            tl.store(lanes + place, lane, mask=(bit != 0) & (place < room))
            place += bit
            lane -= size
            turn += 1
    none = tail.turns * 0
    return listed + total, Tail(tail.powers, tail.largest, none, none.to(tl.int32))


@triton.jit
def sum_lanes(
    tail, row, shift, bound, lanes, listed, heads, room, problem, POWERS: tl.constexpr
):  # fmt: skip
    """The Summed of a row: what `tail` has and what the lanes listed have, whose heads are listed;
    e is taken anew, so that one question says of each column what it is."""
    powers = ()
    for r in tl.static_range(POWERS):
        powers += (tl.sum(tail.powers[r], 0),)
    largest = tl.max(tail.largest, 0)
    count = listed * 0
    start = listed * 0
    while (start < listed) & (start < room):
        tl.debug_barrier()
        which = start + tl.arange(0, AT_ONCE)
        known = (which < listed) & (which < room)
        column_lanes = tl.load(lanes + which, mask=known, other=0)[:, None] * problem.each
        places = column_lanes + tl.arange(0, problem.each)[None, :]
        columns = places - row.phase
        inside = known[:, None] & (columns >= 0) & (columns < problem.classes)
        u = read_at(problem.input + row.begin + places, inside, row.hard.dtype)
        z = perturb(u, columns, inside, row, problem)
        e = exp(tl.where(columns == row.column, float("-inf"), z) - shift)
        chosen = e > bound
        number = chosen.to(tl.int32)
        of_lane = tl.sum(number, 1)
        place = count + (tl.cumsum(of_lane, 0) - of_lane)[:, None] + tl.cumsum(number, 1) - 1
        tl.store(heads + place, columns, mask=chosen & (place < room))
        count += tl.sum(of_lane, 0)
        e = tl.where(chosen, 0, e)
        largest = tl.maximum(largest, tl.max(tl.max(e, 1), 0))
        more = ()
        for r in tl.static_range(POWERS):
            more += (powers[r] + tl.sum(tl.sum(power_of(e, r + 1), 1), 0),)
        powers = more
        start += AT_ONCE
    # lanes that found no room have a head each
    return Summed(powers, largest, tl.maximum(count, listed))


@triton.jit
def sweep_tail(
    row, shift, bound, lanes, heads, room, problem, POWERS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The Summed of a row: from its end, which a sweep before has left in the caches. Heads are
    listed while there is room; `lanes`, as much room, is scratch."""
    tail = no_tail(row, problem, POWERS, BLOCK)
    first, last = edge_blocks(row, problem, BLOCK)
    blocks = last // BLOCK + 1
    edge = without_label(read_block(row, last, problem, False, BLOCK), row)
    tail = add_tail(tail, exp(edge - shift), bound, first, POWERS)
    whole = blocks
    if problem.phased and last > first:
        whole -= 1
    listed = first
    done = first + 1
    begin = first
    while begin < blocks:
        until = tl.minimum(begin + TURNS, whole)
        while done < until:
            column_start = last - done * BLOCK
            z = without_label(read_block(row, column_start, problem, True, BLOCK), row)
            tail = add_tail(tail, exp(z - shift), bound, done - begin, POWERS)
            done += 1
        if problem.phased and (done < blocks) & (done < begin + TURNS):
            edge = without_label(read_block(row, first, problem, False, BLOCK), row)
            tail = add_tail(tail, exp(edge - shift), bound, done - begin, POWERS)
            done += 1
        column_start = last - begin * BLOCK
        listed, tail = list_lanes(
            tail, lanes, listed, room, column_start, done - begin, problem, BLOCK
        )
        begin += TURNS
    return sum_lanes(tail, row, shift, bound, lanes, listed, heads, room, problem, POWERS)


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
    problem, groups, steps, step_size, state, members, n_rows, resident_rows, losses,
    GROUPING: tl.constexpr, NORMALIZE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """What the steps of a row want to know of its rivals, and its head; of rows that have their
    class for themselves or take no steps. One program per row, which finds its part of `groups` if
    it is GROUPING.

    The outcome of others is GROUP; of those that are to be solved, if there is a place for that,
    `members`, shift, unit and lift. Ignored rows are SOLVED; their loss is 0. What is taken
    off z before δ is added becomes the shift of a row's terms, if they are there.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    dtype: tl.constexpr = state.numbers.dtype.element_ty
    place = tl.program_id(0).to(tl.int64)
    if GROUPING > 0:
        index = place
        found, rows = store_rows(tl.program_id(0), problem, groups, n_rows, 1, GROUPING)
        place = tl.sum(found, 0).to(tl.int64)
        count = tl.sum(rows, 0).to(tl.int64)
    else:
        index = tl.load(groups.order + place)
        count = tl.load(groups.count + index)
    live, row = read_row(index, problem, dtype)
    if live == 0:
        tl.store(state.outcome + index, SOLVED)
        if losses is not None:
            tl.store(losses + index, 0)
        return
    signed = steps_of(row, problem, steps)
    together = (signed != 0) & (count > 1)
    left = together
    if members is not None:
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
    if problem.terms is not None:
        tl.store(problem.terms + index * TERMS + SHIFT, finite_shift(maximum))
    if members is not None and together:
        tl.store(state.outcome + index, GROUP)
        weigh_member(place, row, own, maximum, mass, members)
        return
    shift = finite_shift(maximum)
    bound = share * mass
    # the steps' own room, which they have not begun to fill
    lanes = (state.changes + index * HEAD).to(tl.pointer_type(tl.int32), bitcast=True)
    if ONE_BLOCK:
        none = tl.full((), 0, tl.int32)
        lanewise = add_tail(no_tail(row, problem, powers, BLOCK), e, bound, none, powers)
        listed, lanewise = list_lanes(lanewise, lanes, none, HEAD, none, none + 1, problem, BLOCK)
        tail = sum_lanes(lanewise, row, shift, bound, lanes, listed, heads, HEAD, problem, powers)
    else:
        tail = sweep_tail(row, shift, bound, lanes, heads, HEAD, problem, powers, BLOCK)
    shift = finite_shift(tl.where(mass == 0, own, maximum))
    here = state.numbers + index * NUMBERS
    tl.store(here, shift)
    tl.store(here + 1, mass)
    tl.store(here + 2, tail.largest)
    tl.store(here + 3, own - shift)
    tl.store(here + 4, tail.count.to(dtype))
    for r in tl.static_range(powers):
        tl.store(here + POWERS + r, tail.powers[r])
    tl.store(state.outcome + index, WEIGHED)


@triton.jit
def weigh_member(place, row, own, maximum, mass, members):
    """shift, unit and lift of a row whose class is to be solved."""
    # an index of a table's row that means nothing makes the whole class nan
    own = tl.where(row.lost, float("nan"), own)
    shift = finite_shift(maximum)
    # without rivals p_y = 1, and no step moves anything; without anything it is nan
    lift = tl.where(mass == 0, own - own, own - shift - tl.log(mass))
    tl.store(members.shift + place, shift)
    tl.store(members.unit + place, tl.where(mass == 0, 0, 1 / mass))
    tl.store(members.lift + place, tl.where(lift > LARGEST_LIFT, LARGEST_LIFT, lift))


@triton.jit
def steps_of(row, problem, steps):
    """The signed number of steps of a row; 0 where its label is out of range."""
    _, _, outside = read_label(tl.load(problem.target + row.index), problem)
    return tl.where(outside, 0, tl.load(steps + row.column))


@triton.jit
def step_rows(
    problem, groups, steps, step_size, state, listing, n_rows, resident_rows, losses,
    LISTING: tl.constexpr, NORMALIZE: tl.constexpr, HEAD: tl.constexpr, FEW: tl.constexpr,
    ORDER: tl.constexpr,
):  # fmt: skip
    """All steps of each row that is WEIGHED: its loss, and what its gradient and δ are made of; or
    it FELL_BACK. One program per row; heads that are few take fewer lanes. One program more lists
    classes, of rows that have found theirs by themselves, if there is a place for that, `listing`.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    if listing is not None and index == n_rows:
        list_classes(problem, groups, steps, listing, n_rows, resident_rows, LISTING)
        return
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
    nothing = hopeless | (alone & (tl.abs(own) == float("inf")))
    lost = tl.where(nothing & (signed != 0), float("nan"), 0.0).to(dtype)

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
    mass = Mass(shift + unit, rest, zero, zero, zero, zero, zero, zero)
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
    move_row(index, column_start, problem, groups, state, upstream, grad, delta, HEAD, ORDER, BLOCK)


@triton.jit
def move_row(
    index, column_start, problem, groups, state, upstream, grad, delta,
    HEAD: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_rows of a block of a row, tile by tile."""
    live, row = read_row(index, problem, state.numbers.dtype.element_ty)
    solved = tl.load(state.outcome + index) == SOLVED
    filled = (live == 0) & solved
    if delta is not None:
        follows = (solved == 0) & (tl.load(groups.slot + index) != index)
        filled = (live == 0) | row.lost | follows
    if filled:
        if delta is not None:
            filler = tl.where(row.lost & solved, float("nan"), 0.0)
            fill_block(row, column_start, filler, delta, problem, BLOCK)
        else:
            fill_block(row, column_start, 0.0, grad, problem, BLOCK)
    elif solved:
        factor = upstream_of(index, upstream)
        tile: tl.constexpr = BLOCK if BLOCK < TILE else TILE
        last = last_block(row, problem, tile)
        start = column_start
        while (start <= last) & (start < column_start + BLOCK):
            whole = start < last
            if problem.phased:
                whole &= start > 0
            if whole:
                move_tail_block(
                    row, start, state, factor, grad, delta, problem, True, HEAD, ORDER, tile
                )
            else:
                move_tail_block(
                    row, start, state, factor, grad, delta, problem, False, HEAD, ORDER, tile
                )
            start += tile
        put_listed(row, column_start, problem, state, factor, grad, delta, HEAD, BLOCK)


@triton.jit
def put_listed(
    row, column_start, problem, state, factor, grad, delta,
    HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_rows of the label and the heads of a block, over what it has made of them."""
    index = row.index
    begin = column_start - row.phase
    end = begin + BLOCK
    owns = (row.column >= begin) & (row.column < end)
    here = state.numbers + index * NUMBERS
    count = tl.load(here + 4).to(tl.int32)
    if owns | (count > 0):
        tl.debug_barrier()
        if owns:
            put_label(row, factor, state, grad, delta, problem)
        shift = tl.load(here)
        unit = tl.load(here + 6)
        strength = tl.load(here + 7) * factor
        few: tl.constexpr = HEAD if HEAD < FEW else FEW
        for k in tl.static_range(HEAD // few):
            if count > k * few:
                put_heads(
                    row, begin, end, k * few, count, shift, unit, strength, state, grad, delta,
                    problem, HEAD, few,
                )  # fmt: skip


@triton.jit
def fill_block(row, start, value, matrix, problem, BLOCK: tl.constexpr):
    """Stores one number in a block of a row."""
    block = read_block(row, start, problem, False, BLOCK)
    store_block(matrix, row, block, tl.zeros_like(block.u) + value, problem)


@triton.jit
def move_tail_block(
    row, start, state, factor, grad, delta, problem,
    WHOLE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_rows of a block: as if all of it were of the tail."""
    here = state.numbers + row.index * NUMBERS
    block = read_block(row, start, problem, WHOLE, BLOCK)
    e = exp(block.z - tl.load(here))
    if grad is not None:
        strength = tl.load(here + 7) * factor
        strength *= exp(-tl.load(here + 6))
        value = tl.zeros_like(e) + tl.load(here + SERIES + ORDER - 1) * strength
        for r in tl.static_range(1, ORDER):
            value = value * e + tl.load(here + SERIES + ORDER - 1 - r) * strength
        value *= e
        value = unperturb(value, block.u, block.columns, block.inside, row, problem)[0]
        store_block(grad, row, block, value, problem)
    else:
        value = tl.zeros_like(e) + tl.load(here + SERIES + ORDER - 1)
        moved = tl.abs(tl.load(here + SERIES + ORDER - 1))
        for r in tl.static_range(1, ORDER - 1):
            value = value * e + tl.load(here + SERIES + ORDER - 1 - r)
            moved += tl.abs(tl.load(here + SERIES + ORDER - 1 - r))
        # no step moves anything, whatever the logit is
        value = tl.where(moved == 0, 0, log1p(value * e))
        store_block(delta, row, block, value, problem)


@triton.jit
def put_label(row, factor, state, grad, delta, problem):
    """move_rows of the label, over what its block has made of it."""
    here = state.numbers + row.index * NUMBERS
    at = row.index * problem.classes + row.column
    if grad is not None:
        own = tl.load(here + 8) * factor
        u, _, inside = read_logits(row, row.column, problem)
        own = unperturb(own, u, row.column, inside, row, problem)[0]
        tl.store(grad + at, own.to(grad.dtype.element_ty))
    else:
        tl.store(delta + at, tl.load(here + 5))


@triton.jit
def put_heads(
    row, begin, end, first, count, shift, unit, strength, state, grad, delta, problem,
    HEAD: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """move_rows of those of LANES heads, from a row's `first` on, that have columns from `begin`
    to `end`, over what their block has made of them."""
    lanes = first + tl.arange(0, LANES)
    places = row.index * HEAD + lanes
    # one question of a column, as one before `begin` is, without a sign, far beyond `end`
    columns = tl.load(state.heads + places, mask=lanes < count, other=NOWHERE)
    inside = (columns - begin).to(tl.uint32) < (end - begin).to(tl.uint32)
    change = tl.load(state.changes + places, mask=inside, other=0)
    at = row.index * problem.classes + columns
    if grad is not None:
        logits = problem.input + row.index * row_stride(problem)
        u = read_at(logits + columns, inside, row.hard.dtype)
        z = perturb(u, columns, inside, row, problem)
        dz = exp(z - shift + change - unit) * strength
        du = unperturb(dz, u, columns, inside, row, problem)[0]
        tl.store(grad + at, du.to(grad.dtype.element_ty), mask=inside)
    else:
        tl.store(delta + at, change, mask=inside)
