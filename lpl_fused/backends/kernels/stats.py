"""Statistics of a row under a learned perturbation of its own, from what its steps have left: one
read of its logits. Its entropy wants to know what the steps make of every rival, of which the
solver's sums know the mass alone; a sum beside each of their powers would cost them as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .algebra import SOLVED, read_block, read_logits, read_row
from .elementary import exp, scales_exactly
from .rows import (
    beating,
    edge_blocks,
    first_whole,
    heat_of,
    read_aim,
    store_nothing,
    store_stats,
)
from .solver import NUMBERS, SERIES, without_label


class Sums(NamedTuple):
    """Of the columns seen so far, by lane."""

    total: Any  # Σ e_j, what the steps make of them, in units of exp(shift + unit)
    heat: Any  # Σ e_j·log e_j
    beaten: Any  # as Mass.beaten


@triton.jit
def row_stats(
    problem, state, wanted, HEAD: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The statistics of each row that is SOLVED. One program per row."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    if tl.load(state.outcome + index) != SOLVED:
        return
    dtype: tl.constexpr = state.numbers.dtype.element_ty
    live, row = read_row(index, problem, dtype)
    if live == 0:
        store_nothing(index, wanted, problem, BLOCK)
        return
    aim = read_aim(row, index, wanted, problem)
    here = state.numbers + index * NUMBERS
    shift = tl.load(here)
    unit = tl.load(here + 6)
    count = tl.load(here + 4).to(tl.int32)
    lanes = tl.arange(0, HEAD)
    listed = lanes < count
    places = index * HEAD + lanes
    columns = tl.load(state.heads + places, mask=listed, other=problem.classes)
    z = read_logits(row, columns, problem)[1]
    x = z - shift + tl.load(state.changes + places, mask=listed, other=0) - unit
    e = exp(x)
    own = tl.load(here + 3) + tl.load(here + 5) - unit
    own_e = exp(own)
    total = tl.sum(e, 0) + own_e
    heat = tl.sum(heat_of(e, x), 0) + heat_of(own_e, own)
    # heads are larger than all that the series stands for
    least = tl.min(tl.where(listed, z, float("inf")), 0)

    zeros = tl.zeros((BLOCK // problem.each,), dtype)
    sums = Sums(zeros, zeros, zeros.to(tl.int32))
    first, last = edge_blocks(row, problem, BLOCK)
    sums = add_stats(sums, row, last, here, shift, unit, least, aim, problem, False, ORDER, BLOCK)
    if problem.phased and last > first:
        sums = add_stats(
            sums, row, first, here, shift, unit, least, aim, problem, False, ORDER, BLOCK
        )
    start = first_whole(last, problem, BLOCK)
    while start < last:
        sums = add_stats(
            sums, row, start, here, shift, unit, least, aim, problem, True, ORDER, BLOCK
        )
        start += BLOCK
    total += tl.sum(sums.total, 0)
    heat += tl.sum(sums.heat, 0)
    store_stats(index, shift + unit, total, heat, tl.max(sums.beaten, 0), aim, wanted)


@triton.jit
def add_stats(
    sums, row, start, here, shift, unit, least, aim, problem,
    WHOLE: tl.constexpr, ORDER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The Sums with the columns of a block but for the label and the heads."""
    block = read_block(row, start, problem, WHOLE, BLOCK)
    z = without_label(block, row)
    e = tl.where(z >= least, 0, exp(z - shift))
    scale = exp(-unit)
    mass = tl.zeros_like(e) + tl.load(here + SERIES + ORDER - 1) * scale
    for r in tl.static_range(1, ORDER):
        mass = mass * e + tl.load(here + SERIES + ORDER - 1 - r) * scale
    mass *= e
    # of what is 0 a number
    heat = mass * tl.log(tl.maximum(mass, 1e-37))
    return Sums(
        sums.total + tl.sum(mass, 1),
        sums.heat + tl.sum(heat, 1),
        sums.beaten | beating(block, aim, problem),
    )
