"""Multi-label kernels: loss and gradient of a tile of logits; δ of a block of classes, all rows.

The sigmoid couples no classes, so a tile needs nothing but its own logits, labels and tables; the
learned perturbation needs a block of classes of the whole batch, which stays in registers if it
fits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .algebra import phi_slope, phi_value
from .elementary import log1p, scales_exactly

# forms of a loss
HARD = tl.constexpr(0)  # labels are bool: one side for each logit
SHARED = tl.constexpr(1)  # both sides have the same z, and φ = log: one exponential for both
SIDES = tl.constexpr(2)  # each side for itself


class BinaryArguments(NamedTuple):
    """A lpl_fused.problem.BinaryProblem in kernel form; what is absent is None."""

    input: Any  # (N, C), row stride input_stride
    input_stride: Any
    rows: Any
    classes: Any
    target: Any  # (N, C), row stride target_stride
    target_stride: Any
    form: Any  # constexpr
    missing: Any  # constexpr: labels that are nan or `ignored` are not there
    ignored: Any
    positive_weight: Any  # (C,), and so what follows
    negative_weight: Any
    positive_scale: Any
    positive_offset: Any
    negative_scale: Any
    negative_offset: Any
    inverse_count: Any
    masses: Any  # (N,): Σ of inverse_count over a row's positives
    alpha: Any
    beta: Any
    mu: Any
    sample_weight: Any  # (N,)
    phi: Any  # constexpr, a code of lpl_fused.phi
    phi_parameter: Any


class BinaryWanted(NamedTuple):
    """Where a kernel stores what, each or None, and where the gradient starts from."""

    sums: Any = None  # (programs,): loss of each program's tile
    losses: Any = None  # (N, C)
    grad: Any = None  # (N, C), input dtype
    delta: Any = None  # (2, C)
    norm: Any = None  # one: the gradient is divided by it
    upstream: Any = None  # one, or (N, C) if `each`: the gradient is multiplied by it
    each: Any = None
    unless: Any = None  # one: where a power of two, the gradient that is there is multiplied by it


class Side(NamedTuple):
    """Tables of some classes for labels that are positive, or for those that are not."""

    scale: Any
    offset: Any
    weight: Any


@triton.jit
def read_table(table, columns, inside, default: tl.constexpr, dtype: tl.constexpr):
    values = tl.full(columns.shape, default, dtype)
    if table is not None:
        values = tl.load(table + columns, mask=inside, other=default)
    return values


@triton.jit
def read_sides(columns, inside, problem, dtype: tl.constexpr):
    """(positive, negative) Side of some classes."""
    positive = Side(
        read_table(problem.positive_scale, columns, inside, 1, dtype),
        read_table(problem.positive_offset, columns, inside, 0, dtype),
        read_table(problem.positive_weight, columns, inside, 1, dtype),
    )
    negative = Side(
        read_table(problem.negative_scale, columns, inside, 1, dtype),
        read_table(problem.negative_offset, columns, inside, 0, dtype),
        read_table(problem.negative_weight, columns, inside, 1, dtype),
    )
    return positive, negative


@triton.jit
def read_tile(rows, columns, problem, dtype: tl.constexpr):
    """(u, y, known) of rows (R, 1) and columns (1, B); 0 and not known outside."""
    known = (rows < problem.rows) & (columns < problem.classes)
    places = rows * problem.input_stride + columns
    u = tl.load(problem.input + places, mask=known, other=0).to(dtype)
    places = rows * problem.target_stride + columns
    y = tl.load(problem.target + places, mask=known, other=0).to(dtype)
    if problem.missing:
        there = y == y
        if problem.ignored is not None:
            there = there & (y != problem.ignored)
        known = known & there
        y = tl.where(known, y, 0)
    return u, y, known


@triton.jit
def distance_terms(s, problem):
    """(φ, dφ/ds) of ℓ = log(1 + e^s), a logit's distance s from its label."""
    e = tl.exp(-tl.abs(s))
    ell = tl.where(s > 0, s, 0) + log1p(e)
    sigma = tl.where(s > 0, 1, e) / (1 + e)
    return phi_value(ell, problem), phi_slope(ell, problem) * sigma


@triton.jit
def tile_terms(u, y, known, rows, columns, positive, negative, problem):
    """(loss, its derivative by u) of a tile; 0 where no label is known."""
    if problem.form == HARD:
        is_positive = y > 0.5
        scale = tl.where(is_positive, positive.scale, negative.scale)
        z = u * scale + tl.where(is_positive, positive.offset, negative.offset)
        value, slope = distance_terms(tl.where(is_positive, -z, z), problem)
        weight = tl.where(is_positive, positive.weight, negative.weight)
        loss = value * weight
        du = tl.where(is_positive, -slope, slope) * weight * scale
    elif problem.form == SHARED:
        z = u * negative.scale + negative.offset
        e = tl.exp(-tl.abs(z))
        log_mass = log1p(e)
        far = 1 / (1 + e)
        near = e / (1 + e)
        one = y * positive.weight
        zero = (1 - y) * negative.weight
        # a side without mass counts nothing, however infinite its loss
        loss = tl.where(one == 0, 0, one * (tl.where(z < 0, -z, 0) + log_mass))
        loss += tl.where(zero == 0, 0, zero * (tl.where(z > 0, z, 0) + log_mass))
        du = zero * tl.where(z > 0, far, near) - one * tl.where(z > 0, near, far)
        du = du * negative.scale
    else:
        z = u * positive.scale + positive.offset
        value, slope = distance_terms(-z, problem)
        loss = tl.where(y == 0, 0, y * positive.weight * value)
        du = -tl.where(y == 0, 0, y * positive.weight * positive.scale * slope)
        z = u * negative.scale + negative.offset
        value, slope = distance_terms(z, problem)
        loss += tl.where(y == 1, 0, (1 - y) * negative.weight * value)
        du += tl.where(y == 1, 0, (1 - y) * negative.weight * negative.scale * slope)
    if problem.inverse_count is not None:
        inside = columns < problem.classes
        own = tl.load(problem.inverse_count + columns, mask=inside, other=0)
        mass = tl.load(problem.masses + rows, mask=rows < problem.rows, other=1)
        ratio = tl.where(mass > 0, own / tl.where(mass > 0, mass, 1), float("inf"))
        weight = 1 / (1 + tl.exp(-((ratio - problem.mu) * problem.beta))) + problem.alpha
        loss = loss * weight
        du = du * weight
    if problem.sample_weight is not None:
        weight = tl.load(problem.sample_weight + rows, mask=rows < problem.rows, other=0)
        loss = loss * weight
        du = du * weight
    return tl.where(known, loss, 0), tl.where(known, du, 0)


@triton.jit
def store_tile(loss, du, rows, columns, problem, wanted):
    """Stores losses and gradient of a tile, as wanted."""
    inside = (rows < problem.rows) & (columns < problem.classes)
    places = rows * problem.classes + columns
    if wanted.losses is not None:
        tl.store(wanted.losses + places, loss, mask=inside)
    if wanted.grad is not None:
        if wanted.norm is not None:
            # without a label that counts the norm is 0, and so is every gradient
            du = tl.where(du == 0, 0, du * (1 / tl.load(wanted.norm)))
        if wanted.upstream is not None:
            if wanted.each:
                du = du * tl.load(wanted.upstream + places, mask=inside, other=0)
            else:
                du = tl.where(du == 0, 0, du * tl.load(wanted.upstream))
        tl.store(wanted.grad + places, du.to(wanted.grad.dtype.element_ty), mask=inside)


@triton.jit
def scale_tile(rows, columns, factor, problem, wanted):
    """Multiplies a gradient that is there; nothing to do where the factor is 1."""
    if factor != 1:
        inside = (rows < problem.rows) & (columns < problem.classes)
        here = wanted.grad + rows * problem.classes + columns
        du = tl.load(here, mask=inside, other=0).to(factor.dtype) * factor
        tl.store(here, du.to(wanted.grad.dtype.element_ty), mask=inside)


@triton.jit
def binary_tiles(problem, wanted, DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Losses and gradient of tiles; one program for each."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    columns = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    if wanted.unless is not None and scales_exactly(tl.load(wanted.unless)):
        scale_tile(rows, columns, tl.load(wanted.unless), problem, wanted)
        return
    positive, negative = read_sides(columns, columns < problem.classes, problem, DTYPE)
    u, y, known = read_tile(rows, columns, problem, DTYPE)
    loss, du = tile_terms(u, y, known, rows, columns, positive, negative, problem)
    store_tile(loss, du, rows, columns, problem, wanted)
    if wanted.sums is not None:
        place = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        tl.store(wanted.sums + place, tl.sum(tl.sum(loss, 1), 0))


@triton.jit
def row_masses(problem, masses, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """masses (N,) ← Σ_k Y_ik v_k over the labels that are known. One program per row."""
    row = tl.program_id(0).to(tl.int64) + tl.zeros((1, 1), tl.int64)
    total = tl.zeros((1, BLOCK), DTYPE)
    start = 0
    while start < problem.classes:
        columns = (start + tl.arange(0, BLOCK))[None, :]
        inside = columns < problem.classes
        y = tl.load(problem.target + row * problem.target_stride + columns, mask=inside, other=0)
        y = y.to(DTYPE)
        if problem.missing:
            there = y == y
            if problem.ignored is not None:
                there = there & (y != problem.ignored)
            y = tl.where(there, y, 0)
        total += y * tl.load(problem.inverse_count + columns, mask=inside, other=0)
        start += BLOCK
    tl.store(masses + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))


@triton.jit
def distances(u, y, known, positive, negative):
    """Of both sides: distance of each logit from its label, and how much of it is on the side."""
    one = tl.where(known, y, 0)
    zero = tl.where(known, 1 - y, 0)
    s_one = tl.where(one == 0, 0, -(u * positive.scale + positive.offset))
    s_zero = tl.where(zero == 0, 0, u * negative.scale + negative.offset)
    return s_one, one, s_zero, zero


@triton.jit
def sigma_sum(s, share):
    """Σ share·σ(s) over rows, (1, B)."""
    e = tl.exp(-tl.abs(s))
    return tl.sum(tl.where(s > 0, 1, e) / (1 + e) * share, 0)[None, :]


@triton.jit
def scale_columns(columns, factor, problem, wanted, ROWS: tl.constexpr):
    """scale_tile of all rows."""
    start = tl.zeros((), tl.int64)
    while start < problem.rows:
        rows = (start + tl.arange(0, ROWS))[:, None]
        scale_tile(rows, columns, factor, problem, wanted)
        start += ROWS


@triton.jit
def binary_learned(
    problem, wanted, steps, step_size, DTYPE: tl.constexpr, RESIDENT: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """δ of a block of classes, |steps| times δ ← δ + sign(steps)·step_size·mean gradient, and what
    is wanted under it. `RESIDENT`: all rows of the batch are one tile, which stays in registers;
    else every step reads them again.
    """
    columns = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    if wanted.unless is not None and scales_exactly(tl.load(wanted.unless)):
        scale_columns(columns, tl.load(wanted.unless), problem, wanted, ROWS)
        return
    inside = columns < problem.classes
    positive, negative = read_sides(columns, inside, problem, DTYPE)
    signed = tl.load(steps + columns, mask=inside, other=0)
    count = tl.abs(signed)
    most = tl.max(tl.max(count, 1), 0)
    step = tl.where(signed < 0, -1, 1) * (tl.zeros((1, BLOCK), DTYPE) + step_size)
    moved_one = tl.zeros((1, BLOCK), DTYPE)
    moved_zero = tl.zeros((1, BLOCK), DTYPE)
    if RESIDENT:
        rows = tl.arange(0, ROWS).to(tl.int64)[:, None]
        u, y, known = read_tile(rows, columns, problem, DTYPE)
        s_one, one, s_zero, zero = distances(u, y, known, positive, negative)
        mass_one = tl.sum(one, 0)[None, :]
        mass_zero = tl.sum(zero, 0)[None, :]
        rate_one = tl.where(mass_one > 0, step / tl.where(mass_one > 0, mass_one, 1), 0)
        rate_zero = tl.where(mass_zero > 0, step / tl.where(mass_zero > 0, mass_zero, 1), 0)
        k = 0
        while k < most:
            sum_one = sigma_sum(s_one + moved_one, one)
            sum_zero = sigma_sum(s_zero + moved_zero, zero)
            moved_one += tl.where(count > k, rate_one * sum_one, 0)
            moved_zero += tl.where(count > k, rate_zero * sum_zero, 0)
            k += 1
    else:
        k = 0
        while k < most:
            sum_one = tl.zeros((1, BLOCK), DTYPE)
            sum_zero = tl.zeros((1, BLOCK), DTYPE)
            mass_one = tl.zeros((1, BLOCK), DTYPE)
            mass_zero = tl.zeros((1, BLOCK), DTYPE)
            start = tl.zeros((), tl.int64)
            while start < problem.rows:
                rows = (start + tl.arange(0, ROWS))[:, None]
                u, y, known = read_tile(rows, columns, problem, DTYPE)
                s_one, one, s_zero, zero = distances(u, y, known, positive, negative)
                sum_one += sigma_sum(s_one + moved_one, one)
                sum_zero += sigma_sum(s_zero + moved_zero, zero)
                mass_one += tl.sum(one, 0)[None, :]
                mass_zero += tl.sum(zero, 0)[None, :]
                start += ROWS
            rate_one = tl.where(mass_one > 0, step / tl.where(mass_one > 0, mass_one, 1), 0)
            rate_zero = tl.where(mass_zero > 0, step / tl.where(mass_zero > 0, mass_zero, 1), 0)
            moved_one += tl.where(count > k, rate_one * sum_one, 0)
            moved_zero += tl.where(count > k, rate_zero * sum_zero, 0)
            k += 1
    if wanted.delta is not None:
        tl.store(wanted.delta + columns, -moved_one, mask=inside)
        tl.store(wanted.delta + problem.classes + columns, moved_zero, mask=inside)
    if wanted.delta is None:
        positive = Side(positive.scale, positive.offset - moved_one, positive.weight)
        negative = Side(negative.scale, negative.offset + moved_zero, negative.weight)
        total = tl.zeros((1, BLOCK), DTYPE)
        start = tl.zeros((), tl.int64)
        if RESIDENT:
            rows = tl.arange(0, ROWS).to(tl.int64)[:, None]
            loss, du = tile_terms(u, y, known, rows, columns, positive, negative, problem)
            store_tile(loss, du, rows, columns, problem, wanted)
            total += tl.sum(loss, 0)[None, :]
        else:
            while start < problem.rows:
                rows = (start + tl.arange(0, ROWS))[:, None]
                u, y, known = read_tile(rows, columns, problem, DTYPE)
                loss, du = tile_terms(u, y, known, rows, columns, positive, negative, problem)
                store_tile(loss, du, rows, columns, problem, wanted)
                total += tl.sum(loss, 0)[None, :]
                start += ROWS
        if wanted.sums is not None:
            tl.store(wanted.sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
