"""The reductions: what is summed over the columns of a row, as lpl_fused.algebra.parts says, for
parts that join. One program per row; rows that are ignored have what no columns add up to. And what
others sum over: the perturbed logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .algebra import LOG, TERMS, class_of, read_logits, read_row, row_stride
from .norms import INFINITY, counted, power
from .penalties import penalty_of
from .rows import (
    LOG_TOTAL,
    TOP,
    Aim,
    Detail,
    finite_shift,
    heat_of,
    label_logits,
    read_shift,
    sweep_detail,
    sweep_mass,
)
from .solver import sweep_rivals, sweep_tail


class Size(NamedTuple):
    """Sums over the raw logits: as lpl_fused.algebra.parts.Size."""

    peak: Any
    total: Any
    top: Any
    ties: Any


@triton.jit
def sweep_size(index, problem, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """The Size of a row: what its norm wants to know, and what its penalty does."""
    logits = problem.input + index * row_stride(problem)
    peak = tl.full((), 0, dtype)
    total = tl.full((), 0, dtype)
    top = tl.full((), float("-inf"), dtype)
    ties = tl.full((), 0, dtype)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        inside = columns < problem.classes
        u = tl.load(logits + columns, mask=inside, other=float("-inf")).to(dtype)
        if problem.norm_p is not None:
            magnitude = tl.abs(counted(u))
            joint = tl.maximum(peak, tl.max(magnitude, 0))
            if problem.norm_p == INFINITY:
                many = tl.sum(((magnitude == joint) & inside).to(dtype), 0)
                total = tl.where(peak == joint, total, 0) + many
            else:
                unit = tl.where(joint == 0, 1, joint)
                total = total * power(peak / unit, problem.norm_p)
                total += tl.sum(power(magnitude / unit, problem.norm_p), 0)
            peak = joint
        if problem.penalty is not None:
            joint = tl.maximum(top, tl.max(u, 0))
            many = tl.sum(((u == joint) & inside).to(dtype), 0)
            ties = tl.where(top == joint, ties, 0) + many
            top = joint
        start += BLOCK
    return Size(peak, total, top, ties)


@triton.jit
def sweep_penalty(index, top, problem, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """(Σ P(h_j), Σ P'(h_j)) of a row, from its end, which a sweep before has left in the caches."""
    logits = problem.input + index * row_stride(problem)
    value = tl.full((), 0, dtype)
    slope = tl.full((), 0, dtype)
    column = (problem.classes - 1) // BLOCK * BLOCK
    while column >= 0:
        columns = column + tl.arange(0, BLOCK)
        inside = columns < problem.classes
        u = tl.load(logits + columns, mask=inside, other=0).to(dtype)
        values, slopes = penalty_of(u, top, columns, inside, problem)
        value += tl.sum(tl.where(inside, values, 0), 0)
        slope += tl.sum(tl.where(inside, slopes, 0), 0)
        column -= BLOCK
    return value, slope


@triton.jit
def store_numbers(here, numbers, COUNT: tl.constexpr):
    """Stores sums of a row as float64."""
    for k in tl.static_range(COUNT):
        tl.store(here + k, numbers[k].to(tl.float64))


@triton.jit
def measure_rows(problem, sizes, BLOCK: tl.constexpr):
    """sizes (N, 4): the Size of each row."""
    index = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = problem.terms.dtype.element_ty
    live, _ = read_row(index, problem, dtype)
    zero = tl.full((), 0, dtype)
    size = Size(zero, zero, zero + float("-inf"), zero)
    if live:
        size = sweep_size(index, problem, dtype, BLOCK)
    store_numbers(sizes + index * 4, size, 4)


@triton.jit
def mass_rows(problem, masses, BLOCK: tl.constexpr):
    """masses (N, 10): the Mass of each row."""
    index = tl.program_id(0).to(tl.int64)
    live, row = read_row(index, problem, problem.terms.dtype.element_ty)
    zero = tl.zeros_like(row.hard)
    along = zero.to(tl.float64)
    nowhere = along + float("-inf")
    numbers = (nowhere, zero, nowhere, nowhere, zero, zero, along, zero, zero, along)
    if live:
        own, other = label_logits(row, problem)
        nothing = Aim(row.column, row.hard)
        mass = sweep_mass(row, nothing, problem, False, BLOCK)
        base = row.base.to(tl.float64)
        numbers = (
            mass.shift + base, mass.rest, own[0] + base, other[0] + base, mass.mass, mass.pull,
            mass.along, own[1], other[1], mass.along_spread,
        )  # fmt: skip
    store_numbers(masses + index * 10, numbers, 10)


@triton.jit
def statistic_rows(problem, numbers, BLOCK: tl.constexpr):
    """numbers (N, 5): the Statistics of each row."""
    index = tl.program_id(0).to(tl.int64)
    live, row = read_row(index, problem, problem.terms.dtype.element_ty)
    zero = tl.zeros_like(row.hard)
    shift = zero + float("-inf")
    top = zero + float("-inf")
    total = zero
    heat = zero
    place = tl.full((), -1, tl.int32)
    if live:
        start = 0
        while start < problem.classes:
            columns = start + tl.arange(0, BLOCK)
            u, z, inside = read_logits(row, columns, problem)
            u = tl.where(inside, u, float("-inf"))
            z = tl.where(inside, z, float("-inf"))
            highest = tl.max(u, 0)
            first = tl.min(tl.where(u == highest, columns, problem.classes), 0)
            place = tl.where(highest > top, first, place)
            top = tl.maximum(highest, top)
            joint = tl.maximum(shift, tl.max(z, 0))
            by = finite_shift(joint)
            heat += tl.where(total > 0, total * (shift - by), 0)
            factor = tl.exp(shift - by)
            total *= factor
            heat *= factor
            shift = joint
            above = z - by
            e = tl.exp(above)
            total += tl.sum(e, 0)
            heat += tl.sum(heat_of(e, above), 0)
            start += BLOCK
    where = class_of(place, problem)
    shift = shift.to(tl.float64) + row.base.to(tl.float64)
    store_numbers(numbers + index * 5, (shift, total, heat, top, where), 5)


@triton.jit
def detail_rows(problem, details, BLOCK: tl.constexpr):
    """details (N, 5): the Detail of each row."""
    index = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = problem.terms.dtype.element_ty
    live, row = read_row(index, problem, dtype)
    zero = tl.zeros_like(row.hard)
    detail = Detail(zero, zero, zero.to(tl.float64))
    value = zero
    slope = zero
    if live:
        here = problem.terms + index * TERMS
        if problem.spread and problem.phi != LOG:
            shift = read_shift(here, problem)
            log_total = tl.load(here + LOG_TOTAL)
            detail = sweep_detail(row, shift, log_total, problem, BLOCK)
        if problem.penalty is not None:
            value, slope = sweep_penalty(index, tl.load(here + TOP), problem, dtype, BLOCK)
    numbers = (detail.value, detail.slope, detail.along, value, slope)
    store_numbers(details + index * 5, numbers, 5)


@triton.jit
def rival_rows(
    problem, thresholds, sums, powers, heads, logits, room,
    POWERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Rivals of each row: sums (N, 5), powers (N, POWERS); heads and logits (N, room) where
    there are any.
    """
    index = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = problem.terms.dtype.element_ty
    live, row = read_row(index, problem, dtype)
    zero = tl.zeros_like(row.hard)
    maximum = zero + float("-inf")
    rest = zero
    own = zero + float("-inf")
    largest = zero
    listed = tl.full((), 0, tl.int32)
    tail = (zero,) * POWERS
    if live:
        own = label_logits(row, problem)[0][0]
        maximum, rest = sweep_rivals(row, problem, BLOCK)
        shift = finite_shift(maximum)
        threshold = tl.load(thresholds + index)
        # rivals without mass are heads of no one: no step moves them
        bound = tl.where(threshold < 0, 0, threshold * rest)
        here = heads + index * room
        # the logits' own room, which nobody has begun to fill
        lanes = (logits + index * room).to(tl.pointer_type(tl.int32), bitcast=True)
        found = sweep_tail(row, shift, bound, lanes, here, room, problem, POWERS, BLOCK)
        tail = found.powers
        largest = found.largest
        listed = found.count
        start = listed * 0
        while (start < listed) & (start < room):
            tl.debug_barrier()
            places = start + tl.arange(0, 64)
            inside = (places < listed) & (places < room)
            columns = tl.load(here + places, mask=inside, other=problem.classes)
            z = read_logits(row, columns, problem)[1]
            tl.store(logits + index * room + places, z, mask=inside)
            tl.store(here + places, class_of(columns, problem).to(tl.int32), mask=inside)
            start += 64
    store_numbers(sums + index * 5, (maximum, rest, own, largest, listed), 5)
    store_numbers(powers + index * POWERS, tail, POWERS)


@triton.jit
def perturb_rows(problem, z, begin, end, BLOCK: tl.constexpr):
    """z (N, end − begin) of the columns from `begin` to `end`; 0 of ignored rows. One program per
    row and block of columns.
    """
    index = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = z.dtype.element_ty
    column_places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = begin + column_places
    live, row = read_row(index, problem, dtype)
    value = tl.zeros((BLOCK,), dtype)
    if live:
        value = read_logits(row, columns, problem)[1]
    here = z + index * (end - begin) + column_places
    tl.store(here, value, mask=columns < end)
