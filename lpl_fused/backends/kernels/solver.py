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
from .algebra import SOLVED, read_label, read_logits, read_row, read_table_row, unperturb
from .elementary import log1p, scales_exactly
from .lpl import normalized
from .rows import (
    Mass,
    fill_row,
    finite_shift,
    row_terms,
    store_nothing,
    times,
    upstream_of,
)
from .series import added, advanced, relative_series, scaled, tail_mass, tail_square

GROUP = tl.constexpr(arguments.GROUP)
FELL_BACK = tl.constexpr(arguments.FELL_BACK)


class Rivals(NamedTuple):
    """The columns seen so far but for the target, e_j = exp(z_j − maximum)."""

    maximum: Any
    mass: Any  # Σ e_j
    powers: Any  # Σ_tail e_j^r, r = 1, 2, …
    largest: Any  # max_tail e_j
    count: Any  # of the head


class Moved(NamedTuple):
    """A row after its steps, in units of exp(shift)."""

    series: Any  # E_1 … E_ORDER
    change: Any  # (HEAD,): δ of the head
    own_change: Any  # δ of the target
    dose: Any  # Σ |a_k|


@triton.jit
def add_block(
    rivals, row, z, columns, head, problem,
    HEAD: tl.constexpr, POWERS: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """(Rivals with a block of columns added, its e_j); head (HEAD,) takes the columns of its head.

    One sweep finds the head, though its threshold is known at the end: what exceeds a share of the
    final mass exceeds that of a smaller one. Where the head is full, it is sifted.
    """
    rival = tl.where(columns == row.column, float("-inf"), z)
    maximum = tl.maximum(rivals.maximum, tl.max(rival, 0))
    shift = finite_shift(maximum)
    shrink = tl.exp(rivals.maximum - shift)
    e = tl.exp(rival - shift)
    mass = rivals.mass * shrink + tl.sum(e, 0)
    # where all classes find room the series has nothing to do
    bound = tl.where(problem.classes > HEAD, mass / HEAD, -1)
    chosen = (e > bound) & (columns < problem.classes) & (columns != row.column)
    tail = tl.where(chosen, 0, e)
    powers = added(scaled(rivals.powers, shrink, POWERS), tail, POWERS)
    largest = tl.maximum(rivals.largest * shrink, tl.max(tail, 0))
    count = rivals.count
    found = tl.sum(chosen.to(tl.int32), 0)
    if not ONE_BLOCK and count + found > HEAD:
        tl.debug_barrier()
        kept, _, z_kept = read_head(row, count, head, problem, HEAD)
        e_kept = tl.exp(z_kept - shift)
        stays = e_kept > bound
        sifted = tl.where(stays, 0, e_kept)
        powers = added(powers, sifted, POWERS)
        largest = tl.maximum(largest, tl.max(sifted, 0))
        tl.debug_barrier()
        store_head(head, 0, kept, stays)
        count = tl.sum(stays.to(tl.int32), 0)
    if found > 0:
        store_head(head, count, columns, chosen)
        count += found
    return Rivals(maximum, mass, powers, largest, count), e


@triton.jit
def store_head(head, count, columns, chosen):
    """Stores the chosen columns behind the first `count`, in their order."""
    place = tl.cumsum(chosen.to(tl.int32), 0)
    tl.store(head + count + place - 1, columns, mask=chosen)


@triton.jit
def read_head(row, count, head, problem, HEAD: tl.constexpr):
    """(columns, u, z) of the head, (HEAD,): beyond its last no column, −inf."""
    lanes = tl.arange(0, HEAD)
    columns = tl.load(head + lanes, mask=lanes < count, other=problem.classes)
    u, z, _ = read_logits(row, columns, problem)
    return columns, u, z


@triton.jit
def no_rivals(row, POWERS: tl.constexpr):
    """Rivals before the first block."""
    zero = tl.full((), 0, row.hard.dtype)
    return Rivals(zero + float("-inf"), zero, (zero,) * POWERS, zero, tl.full((), 0, tl.int32))


@triton.jit
def sweep_rivals(row, head, problem, HEAD: tl.constexpr, POWERS: tl.constexpr, BLOCK: tl.constexpr):
    """Rivals of a whole row."""
    rivals = no_rivals(row, POWERS)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        z = read_logits(row, columns, problem)[1]
        rivals = add_block(rivals, row, z, columns, head, problem, HEAD, POWERS, False)[0]
        start += BLOCK
    return rivals


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
    k = 0
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
def solve(
    problem, groups, steps, step_size, outcome, heads, wanted, upstream,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, ORDER: tl.constexpr,
    BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """What is `wanted` of each row that has its class for itself or takes no steps: its loss, its
    gradient times `upstream`, or its δ. One program per row.

    outcome (N,) says of each row if it is SOLVED or, untouched, left to the plain steps: as one of
    a GROUP, or because it FELL_BACK. Scratch: heads (N, HEAD).
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    dtype: tl.constexpr = tl.float64 if problem.input.dtype.element_ty == tl.float64 else tl.float32
    index = tl.program_id(0).to(tl.int64)
    live, row = read_row(index, problem, dtype)
    if live == 0:
        tl.store(outcome + index, SOLVED)
        store_nothing(index, wanted, problem, BLOCK)
        return

    _, _, outside = read_label(tl.load(problem.target + index), problem)
    signed = tl.where(outside, 0, tl.load(steps + row.column))
    if (signed != 0) & (tl.load(groups.count + index) > 1):
        tl.store(outcome + index, GROUP)
        if wanted.delta is not None:
            fill_row(wanted.delta, index, 0, problem.classes, BLOCK)
        return
    if wanted.delta is not None:
        _, strange = read_table_row(index, row.column, problem)
        if outside | strange:
            tl.store(outcome + index, SOLVED)
            fill_row(wanted.delta, index, float("nan"), problem.classes, BLOCK)
            return

    head = heads + index * HEAD
    powers: tl.constexpr = ORDER + 1 if NORMALIZE else ORDER
    lanes = tl.arange(0, BLOCK)
    # read before the sweep, which hides the latency
    z_own = read_logits(row, row.column, problem)[1]
    if ONE_BLOCK:
        u, z, _ = read_logits(row, lanes, problem)
        rivals = no_rivals(row, powers)
        rivals, e = add_block(rivals, row, z, lanes, head, problem, HEAD, powers, True)
    else:
        rivals = sweep_rivals(row, head, problem, HEAD, powers, BLOCK)
    alone = rivals.mass == 0
    shift = finite_shift(tl.where(alone, z_own, rivals.maximum))
    own = z_own - shift
    # nan stays nan, whoever takes the steps
    hopeless = (rivals.mass != rivals.mass) | (own != own)
    tl.debug_barrier()
    head_columns, u_head, z_head = read_head(row, rivals.count, head, problem, HEAD)
    z_head -= shift
    # without rivals p_y = 1, and no step moves anything
    count = tl.where(alone, 0, tl.abs(signed))
    step = tl.where(signed > 0, 1.0, -1.0).to(dtype) * step_size
    moved = take_steps(rivals, own, z_head, count, step, NORMALIZE, HEAD, ORDER)

    own += moved.own_change
    z_head += moved.change
    tail = tail_mass(moved.series, rivals.powers, ORDER)
    level = tl.maximum(tl.maximum(tl.max(z_head, 0), tl.log(tail)), own)
    unit = finite_shift(level)
    e_head = tl.exp(z_head - unit)
    of_tail = tl.exp(-unit)
    rest = tl.sum(e_head, 0) + tail * of_tail
    # tl.maximum drops a nan: what has overflowed on the way shows in the sum
    whole = (rest + own < float("inf")) & (of_tail < float("inf"))
    if ((good_enough(rivals, moved, ORDER) & whole) | hopeless | alone) == 0:
        tl.store(outcome + index, FELL_BACK)
        return

    tl.store(outcome + index, SOLVED)
    part = own
    strength = own
    if wanted.delta is None:
        zero = tl.zeros_like(own)
        mass = Mass(shift + unit, rest, zero, zero, zero, zero)
        label = (own - unit, zero)
        value, terms = row_terms(index, row, label, label, mass, mass, problem)
        if wanted.losses is not None:
            tl.store(wanted.losses + index, value)
        terms = times(terms, upstream_of(index, upstream))
        part = terms.part
        strength = terms.strength
    if (wanted.grad is not None) | (wanted.delta is not None):
        of_tail *= strength
        if ONE_BLOCK:
            store_tail(row, u, e, lanes, moved, part, of_tail, wanted, problem, ORDER)
        else:
            # from the row's end, which the sweep before has left in the caches
            column = (problem.classes - 1) // BLOCK * BLOCK
            while column >= 0:
                columns = column + lanes
                both = read_logits(row, columns, problem)
                e = tl.exp(both[1] - shift)
                store_tail(row, both[0], e, columns, moved, part, of_tail, wanted, problem, ORDER)
                column -= BLOCK
        tl.debug_barrier()
        if wanted.grad is not None:
            store_gradient(row, e_head * strength, u_head, head_columns, wanted.grad, problem)
        if wanted.delta is not None:
            store_delta(row, moved.change, head_columns, wanted.delta, problem)


@triton.jit
def store_tail(row, u, e, columns, moved, part, strength, wanted, problem, ORDER: tl.constexpr):
    """Writes what is wanted of a block of columns as if all but the target were of the tail."""
    gain = relative_series(moved.series, e, ORDER)
    if wanted.grad is not None:
        dz = tl.where(columns == row.column, part, (e + e * gain) * strength)
        store_gradient(row, dz, u, columns, wanted.grad, problem)
    if wanted.delta is not None:
        change = tl.where(columns == row.column, moved.own_change, log1p(gain))
        store_delta(row, change, columns, wanted.delta, problem)


@triton.jit
def store_gradient(row, dz, u, columns, grad, problem):
    """Writes dL/du of some columns, of rows without a norm."""
    inside = columns < problem.classes
    du, _ = unperturb(dz, u, columns, inside, row, problem)
    here = grad + row.index * problem.classes + columns
    tl.store(here, du.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def store_delta(row, change, columns, delta, problem):
    """Writes δ of some columns."""
    here = delta + row.index * problem.classes + columns
    tl.store(here, change, mask=columns < problem.classes)
