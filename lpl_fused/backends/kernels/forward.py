"""The shortcut: loss of a row, its terms, its gradient, in one sweep where that is possible."""

import triton
import triton.language as tl

from .algebra import LOG, SOLVED, of_rivals, read_block, read_row, store_block
from .batch import reduce_losses
from .elementary import scales_exactly
from .norms import length_of
from .reductions import sweep_penalty, sweep_size
from .rows import (
    EACH,
    RAISES,
    TERMS,
    TOP,
    Detail,
    beside,
    block_detail,
    block_gradient,
    block_mass_alone,
    finite_shift,
    joined_details,
    label_logits,
    read_aim,
    read_own,
    row_terms,
    store_mass_stats,
    store_nothing,
    store_own,
    store_terms,
    sweep_detail,
    sweep_gradient,
    sweep_mass,
    times,
    upstream_of,
)

SUMMED = tl.constexpr(1024)  # losses at once


@triton.jit
def prepare_rows(problem, weight, BLOCK: tl.constexpr):
    """What `forward` wants to know of a row's raw logits: of its Terms those of the norm and of the
    penalty, and what the penalty adds to its loss; `weight` of the penalty 0-dim or None. One
    program per row.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = problem.terms.dtype.element_ty
    here = problem.terms + index * TERMS
    size = sweep_size(index, problem, dtype, BLOCK)
    if problem.norm_p is not None:
        factor, length, bend = length_of(size.peak, size.total, problem)
        tl.store(here, factor)
        tl.store(here + 1, length)
        tl.store(here + 2, bend)
    if problem.penalty is not None:
        value, slope = sweep_penalty(index, size.top, problem, dtype, BLOCK)
        each = tl.full((), 1, dtype)
        if weight is not None:
            each = tl.load(weight).to(dtype)
        tl.store(problem.penalties + index, value * each / problem.classes)
        each = each / (problem.classes * problem.penalty_unit)
        tl.store(here + TOP, size.top)
        tl.store(here + RAISES, slope * each / size.ties)
        tl.store(here + EACH, each)


@triton.jit
def forward(
    problem, upstream, wanted, reduced, ticket, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr
):  # fmt: skip
    """What is `wanted` of each row, see sweep_row; one program per row. The last of them to be done
    sums the losses of the batch, if there is a place for that, `reduced`."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    if wanted.outcome is not None and tl.load(wanted.outcome + index) == SOLVED:
        return
    dtype: tl.constexpr = tl.float64 if problem.input.dtype.element_ty == tl.float64 else tl.float32
    live, row = read_row(index, problem, dtype)
    if live == 0:
        store_nothing(index, wanted, problem, BLOCK)
    else:
        sweep_row(index, row, problem, upstream, wanted, BLOCK, ONE_BLOCK)
    if reduced.loss is not None:
        tl.debug_barrier()
        if tl.atomic_add(ticket, 1) == tl.num_programs(0) - 1:
            reduce_losses(problem, wanted.losses, reduced, tl.num_programs(0), SUMMED)


@triton.jit
def sweep_row(
    index, row, problem, upstream, wanted, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr
):  # fmt: skip
    """L_i = Σ_j t'_j (φ(ℓ_j) + z_loss·lse²), the terms of its gradient, dL_i/du times `upstream`.

    With ONE_BLOCK the row stays in registers: one read of the logits, one write of the gradient.
    """
    # read before the sweep, which hides the latency
    own, other = label_logits(row, problem)
    stats: tl.constexpr = wanted.aim is not None
    aim = read_aim(row, index, wanted, problem)
    if ONE_BLOCK:
        block = read_block(row, tl.full((), 0, tl.int32), problem, False, BLOCK)
        block = of_rivals(block, row, problem)
        mass = block_mass_alone(row, block, aim, problem, stats)
    else:
        mass = sweep_mass(row, aim, problem, stats, BLOCK)
    if stats:
        store_mass_stats(index, row, own[0], other[0], mass, aim, wanted, problem)

    if problem.other is not None and not problem.spread:
        mass = beside(mass, own[0], other[0])
    detail = Detail(mass.rest, mass.rest, mass.rest)
    shift = finite_shift(mass.shift)
    if problem.spread:
        log_total = tl.log(mass.rest)
        if problem.phi == LOG:
            detail = Detail(mass.mass * log_total - mass.pull, mass.mass, mass.along_spread)
        elif ONE_BLOCK:
            detail = joined_details(block_detail(row, block, shift, log_total, problem))
        else:
            detail = sweep_detail(row, shift, log_total, problem, BLOCK)
    own = (own[0] - shift, own[1])
    other = (other[0] - shift, other[1])
    value, terms = row_terms(index, row, own, other, mass, detail, problem)
    if wanted.losses is not None:
        tl.store(wanted.losses + index, value)
    if wanted.terms is not None:
        store_terms(wanted.terms, index, terms)

    if wanted.grad is not None:
        terms = times(terms, upstream_of(index, upstream))
        if ONE_BLOCK:
            u = read_own(row, problem)
            du, _ = block_gradient(row, block, terms, problem, False)
            store_block(wanted.grad, row, block, du, problem)
            store_own(row, u, terms, wanted.grad, problem)
        else:
            sweep_gradient(row, terms, wanted.grad, problem, BLOCK)
