"""From the columns of a row to its statistics, its loss and its gradient, block by block.

Forward and backward share these parts; all they hand each other is two numbers per row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .algebra import (
    DENSE,
    LABELS,
    LOG,
    ONE_LABEL,
    phi_slope,
    phi_value,
    read_logits,
    read_weights,
    unperturb,
)
from .elementary import log1p
from .norms import along_norm


class Terms(NamedTuple):
    """What the gradient of a row's columns is made of:
    dL/dz_k = exp(z_k − shift)·strength − uniform·w_k·φ'(ℓ_k), plus or (ONE_LABEL) replaced by
    `part` at the label and `other_part` at the other one; ℓ_k = log_total − (z_k − shift).
    """

    shift: Any
    log_total: Any
    strength: Any
    uniform: Any
    part: Any
    other_part: Any


@triton.jit
def finite_shift(maximum):
    """What to subtract before exp: the maximum, or 0 where all logits are −inf (no −inf + inf)."""
    return tl.where(maximum == float("-inf"), 0, maximum)


@triton.jit
def block_statistics(row, z, weight, columns, inside, problem):
    """(max, rest, mass, pull) of a block: rest = Σ exp(z_j − max), without the target's own term
    for ONE_LABEL. Where weights w_j are spread over all columns and φ = log, also
    mass = Σ w_j and pull = Σ w_j (z_j − max), which then give Σ w_j ℓ_j.
    """
    maximum = tl.max(z, 0)
    shift = finite_shift(maximum)
    e = tl.exp(z - shift)
    if problem.form == ONE_LABEL:
        e = tl.where(columns == row.column, 0, e)
    rest = tl.sum(e, 0)
    mass = tl.zeros_like(rest)
    pull = tl.zeros_like(rest)
    if problem.spread and problem.phi == LOG:
        counts = inside
        if problem.form == DENSE:
            counts = weight != 0
        mass = tl.sum(weight, 0)
        pull = tl.sum(tl.where(counts, z - shift, 0) * weight, 0)
    return maximum, rest, mass, pull


@triton.jit
def sweep_statistics(row, problem, BLOCK: tl.constexpr):
    """block_statistics of a whole row."""
    maximum = tl.full((), float("-inf"), row.hard.dtype)
    rest = tl.full((), 0, row.hard.dtype)
    mass = tl.full((), 0, row.hard.dtype)
    pull = tl.full((), 0, row.hard.dtype)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        _, z, inside = read_logits(row, columns, problem)
        weight = read_weights(row, columns, inside, problem)
        block = block_statistics(row, z, weight, columns, inside, problem)
        joint = tl.maximum(maximum, block[0])
        shift = finite_shift(joint)
        rest = rest * tl.exp(maximum - shift) + block[1] * tl.exp(block[0] - shift)
        pull += mass * (finite_shift(maximum) - shift)
        pull += block[3] + block[2] * (finite_shift(block[0]) - shift)
        mass += block[2]
        maximum = joint
        start += BLOCK
    return maximum, rest, mass, pull


@triton.jit
def block_sums(z, weight, inside, shift, log_total, problem):
    """(Σ w_j φ(ℓ_j), Σ w_j φ'(ℓ_j), Σ w_j) of a block, ℓ_j = log_total − (z_j − shift)."""
    counts = inside
    if problem.form == DENSE:
        # a class without weight counts nothing, however infinite its loss
        counts = weight != 0
    ell = log_total - (z - shift)
    values = tl.sum(tl.where(counts, phi_value(ell, problem), 0) * weight, 0)
    slopes = tl.sum(phi_slope(ell, problem) * weight, 0)
    return values, slopes, tl.sum(weight, 0)


@triton.jit
def sweep_sums(row, shift, log_total, problem, BLOCK: tl.constexpr):
    """block_sums of a whole row."""
    values = tl.zeros_like(shift)
    slopes = tl.zeros_like(shift)
    mass = tl.zeros_like(shift)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        _, z, inside = read_logits(row, columns, problem)
        weight = read_weights(row, columns, inside, problem)
        block = block_sums(z, weight, inside, shift, log_total, problem)
        values += block[0]
        slopes += block[1]
        mass += block[2]
        start += BLOCK
    return values, slopes, mass


@triton.jit
def read_label_logits(row, problem):
    """(z at the label, z at the other label), 0 where there is none."""
    own = tl.zeros_like(row.hard)
    other = tl.zeros_like(row.hard)
    if problem.form != DENSE:
        _, own, _ = read_logits(row, row.column, problem)
    if problem.other is not None:
        _, other, _ = read_logits(row, row.other, problem)
    return own, other


@triton.jit
def row_terms(row, gaps, shift, rest, sums, scale, problem):
    """(loss of the row, Terms of its gradient times `scale`), from its statistics.

    `gaps` are the logits at the label and the other label, less the shift.

    L = Σ_j t'_j (φ(ℓ_j) + z_loss·lse²) and dL/dz_k = p_k·S − t'_k φ'(ℓ_k) with
    S = Σ_j t'_j (φ'(ℓ_j) + 2·z_loss·lse). `sums` are block_sums of the whole row, used where
    weight is spread over all columns.
    """
    part = tl.zeros_like(rest)
    other_part = tl.zeros_like(rest)
    own = tl.exp(gaps[0])
    if problem.form == ONE_LABEL:
        total = rest + own
        # own is 1 where the target is the maximum: then ℓ = log1p(rest), without cancellation
        log_total = log1p(rest + (own - 1))
        ell = log_total - gaps[0]
        weight = row.hard
        value = weight * phi_value(ell, problem)
        slope = weight * phi_slope(ell, problem)
        part = -slope * (rest / total)
    else:
        total = rest
        log_total = tl.log(rest)
        weight = row.uniform * sums[2]
        # where nothing is spread the infinite loss of a masked class does not count
        value = tl.where(row.uniform == 0, 0, row.uniform * sums[0])
        slope = row.uniform * sums[1]
        if problem.form == LABELS:
            ell = log_total - gaps[0]
            value += _weighted(row.hard, phi_value(ell, problem), problem)
            part = -row.hard * phi_slope(ell, problem)
            slope -= part
            weight += row.hard
            if problem.other is not None:
                ell = log_total - gaps[1]
                value += _weighted(row.other_hard, phi_value(ell, problem), problem)
                other_part = -row.other_hard * phi_slope(ell, problem)
                slope -= other_part
                weight += row.other_hard
    if problem.z_loss is not None:
        lse = shift + log_total
        value += weight * (lse * lse * problem.z_loss)
        penalty = weight * (lse * 2 * problem.z_loss)
        slope += penalty
        if problem.form == ONE_LABEL:
            part += penalty * (own / total)
    return value, Terms(
        shift,
        log_total,
        slope / total * scale,
        row.uniform * scale,
        part * scale,
        other_part * scale,
    )


@triton.jit
def _weighted(weight, value, problem):
    """weight·value; of a mixed target's two labels one may have no weight and an infinite loss."""
    product = weight * value
    if problem.other is not None:
        product = tl.where(weight == 0, 0, product)
    return product


@triton.jit
def block_gradient(row, z, weight, columns, terms, problem):
    """dL/dz of a block of columns: see Terms."""
    dz = tl.exp(z - terms.shift) * terms.strength
    if problem.spread:
        ell = terms.log_total - (z - terms.shift)
        dz -= weight * phi_slope(ell, problem) * terms.uniform
    if problem.form == ONE_LABEL:
        dz = tl.where(columns == row.column, terms.part, dz)
    if problem.form == LABELS:
        dz += tl.where(columns == row.column, terms.part, 0)
        if problem.other is not None:
            dz += tl.where(columns == row.other, terms.other_part, 0)
    return dz


@triton.jit
def sweep_along(row, terms, problem, BLOCK: tl.constexpr):
    """along_norm of a whole row: see norms.py."""
    along = tl.zeros_like(terms.strength)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        u, z, inside = read_logits(row, columns, problem)
        weight = read_weights(row, columns, inside, problem)
        dz = block_gradient(row, z, weight, columns, terms, problem)
        du, _ = unperturb(dz, u, columns, inside, row, problem)
        along += along_norm(du, u, row)
        start += BLOCK
    return along


@triton.jit
def fill_row(matrix, index, value, classes, BLOCK: tl.constexpr):
    """Stores one number in a row of a contiguous (N, C) matrix."""
    block = (tl.zeros((BLOCK,), tl.float32) + value).to(matrix.dtype.element_ty)
    start = 0
    while start < classes:
        columns = start + tl.arange(0, BLOCK)
        tl.store(matrix + index * classes + columns, block, mask=columns < classes)
        start += BLOCK


@triton.jit
def store_nothing(index, losses, stats, grad, problem, BLOCK: tl.constexpr):
    """Loss, statistics and gradient of a row that is ignored, each if there is a place for it."""
    if losses is not None:
        tl.store(losses + index, 0)
        tl.store(stats + index, 0)
        tl.store(stats + tl.num_programs(0) + index, 0)
    if grad is not None:
        fill_row(grad, index, 0, problem.classes, BLOCK)
