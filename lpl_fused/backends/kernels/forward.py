"""The loss of a row, its statistics, and on demand its gradient. One program per row."""

import triton
import triton.language as tl

from .algebra import LOG, SOLVED, read_logits, read_row, read_weights, unperturb
from .norms import along_norm, through_norm
from .penalties import push_of
from .rows import (
    block_gradient,
    block_statistics,
    block_sums,
    finite_shift,
    read_label_logits,
    row_terms,
    store_nothing,
    sweep_along,
    sweep_statistics,
    sweep_sums,
)


@triton.jit
def forward(
    problem, outcome, norm, losses, stats, grad, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr
):
    """L_i = Σ_j t'_j (φ(ℓ_j) + z_loss·lse²), and dL_i/du/norm in the same sweep.

    losses (N,), stats (2, N), grad (N, C) or None, norm 0-dim or None. With ONE_BLOCK the row
    stays in registers: one read of the logits, one write of the gradient. Rows with an outcome
    (N,) of SOLVED are done.
    """
    index = tl.program_id(0).to(tl.int64)
    if outcome is not None and tl.load(outcome + index) == SOLVED:
        return
    lanes = tl.arange(0, BLOCK)
    live, row = read_row(index, problem, losses.dtype.element_ty)
    if live == 0:
        store_nothing(index, losses, stats, grad, problem, BLOCK)
        return

    # read before the sweep, which hides the latency
    label_logits = read_label_logits(row, problem)
    if ONE_BLOCK:
        u, z, inside = read_logits(row, lanes, problem)
        weight = read_weights(row, lanes, inside, problem)
        maximum, rest, mass, pull = block_statistics(row, z, weight, lanes, inside, problem)
    else:
        maximum, rest, mass, pull = sweep_statistics(row, problem, BLOCK)
    tl.store(stats + index, maximum)
    tl.store(stats + tl.num_programs(0) + index, rest)

    shift = finite_shift(maximum)
    sums = (mass, mass, mass)
    if problem.spread:
        log_total = tl.log(rest)
        if problem.phi == LOG:
            sums = (mass * log_total - pull, mass, mass)
        elif ONE_BLOCK:
            sums = block_sums(z, weight, inside, shift, log_total, problem)
        else:
            sums = sweep_sums(row, shift, log_total, problem, BLOCK)
    scale = 1.0
    if norm is not None:
        scale = 1 / tl.load(norm)
    gaps = (label_logits[0] - shift, label_logits[1] - shift)
    value, terms = row_terms(row, gaps, shift, rest, sums, scale, problem)
    if problem.penalties is not None:
        value += tl.load(problem.penalties + index * 4)
    tl.store(losses + index, value)

    if grad is not None:
        if ONE_BLOCK:
            dz = block_gradient(row, z, weight, lanes, terms, problem)
            du, _ = unperturb(dz, u, lanes, inside, row, problem)
            if problem.lengths is not None:
                du = through_norm(du, along_norm(du, u, row), u, row, problem)
            if problem.penalties is not None:
                du += push_of(index, u, lanes, inside, problem) * scale
            here = grad + index * problem.classes + lanes
            tl.store(here, du.to(grad.dtype.element_ty), mask=inside)
        else:
            sweep_gradient(row, terms, scale, grad, problem, BLOCK)


@triton.jit
def sweep_gradient(row, terms, scale, grad, problem, BLOCK: tl.constexpr):
    """Writes dL/du of a row, from its end, which the sweep before has left in the caches."""
    along = terms.strength
    if problem.lengths is not None:
        along = sweep_along(row, terms, problem, BLOCK)
    column = (problem.classes - 1) // BLOCK * BLOCK
    while column >= 0:
        columns = column + tl.arange(0, BLOCK)
        u, z, inside = read_logits(row, columns, problem)
        weight = read_weights(row, columns, inside, problem)
        dz = block_gradient(row, z, weight, columns, terms, problem)
        du, _ = unperturb(dz, u, columns, inside, row, problem)
        if problem.lengths is not None:
            du = through_norm(du, along, u, row, problem)
        if problem.penalties is not None:
            du += push_of(row.index, u, columns, inside, problem) * scale
        here = grad + row.index * problem.classes + columns
        tl.store(here, du.to(grad.dtype.element_ty), mask=inside)
        column -= BLOCK
