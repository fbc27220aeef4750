"""Multi-label kernels: loss and gradient of a tile of logits; δ of a block of classes, all rows.

The sigmoid couples no classes, so a tile needs nothing but its own logits, labels and tables; the
learned perturbation needs a block of classes of the whole batch, which stays in registers if it
fits. If it does not, its steps are taken from moments of the batch. In the distance s of a logit
from its label (−z of positives, z of negatives) both sides are one recursion, d ← d + a·mean_i
σ(s_i + d), and about a centre c, with T_i = tanh((s_i + c)/2), ρ = tanh((d − c)/4) and Chebyshev's
polynomials C_n, whose generating function 1/(1 + 2ρT + ρ²) leads to

    σ(s_i + d) = ½ + ½·(ρ + (1 − ρ²)·Σ_{n ≥ 1} (−ρ)^(n−1) C_n(T_i)) ,

they need the batch only through mean C_n. |C_n| ≤ 1, so |ρ| bounds what the series leaves out:
about one centre one tanh per logit serves all steps that stay near it. What is left when the
promise is used up is taken about a centre further along d's path, LEGS times; then by steps that
read all rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ... import phi
from .algebra import phi_slope, phi_value
from .elementary import exp, log1p, log1p_of_unit, reciprocal, scales_exactly

# forms of a loss
HARD = tl.constexpr(0)  # labels are bool: one side for each logit
SHARED = tl.constexpr(1)  # both sides have the same z, and φ = log: one exponential for both
SIDES = tl.constexpr(2)  # each side for itself
# what sums of moments may know of labels: a logit is on one side alone; its distances from both
# labels are each other's negative; or neither
OWN = tl.constexpr(0)
MIRRORED = tl.constexpr(1)
BOTH = tl.constexpr(2)


ASYMMETRIC = tl.constexpr(phi.ASYMMETRIC)
MOMENTS = tl.constexpr(10)  # about 0 enough for any steps that add up to 1
LARGEST_MISS = tl.constexpr(1.5e-7)  # of δ, which is to have the digits of a float
# numbers of a class and side, its walk: how far it has come, a bound of what is left out of that,
# how many steps it has taken, and the centre of its moments
WALK = tl.constexpr(4)


class BinaryArguments(NamedTuple):
    """A lpl_fused.problem.BinaryProblem in kernel form; what is absent is None."""

    input: Any  # (N, C), row stride input_stride
    input_stride: Any
    rows: Any
    classes: Any
    total: Any  # None, or how many logits there are, N rows of C, of which the last ends early
    target: Any  # (N, C), row stride target_stride
    target_stride: Any
    form: Any  # constexpr
    even: Any  # constexpr: φ = log, and no weights: what a label says counts once
    missing: Any  # constexpr: labels that are nan or `ignored` are not there
    ignored: Any
    positive_weight: Any  # (C,), and so what follows
    negative_weight: Any
    positive_scale: Any
    positive_offset: Any
    negative_scale: Any
    negative_offset: Any
    inverse_count: Any
    delta: Any  # (2, C): added to the offset of positives, of negatives
    masses: Any  # (N,): Σ of inverse_count over a row's positives
    alpha: Any
    beta: Any
    mu: Any
    sample_weight: Any  # (N,)
    phi: Any  # constexpr, a code of lpl_fused.phi
    phi_parameter: Any
    phi_negative: Any  # of an asymmetric φ: see lpl_fused.phi
    phi_clip: Any
    phi_detached: Any  # constexpr
    soft: Any = None  # (chunks, blocks): whether labels of soft_chunk rows, soft_block classes are
    soft_chunk: Any = None  # other than 0 and 1
    soft_block: Any = None  # constexpr


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


class At(NamedTuple):
    """Where a tile is. (No function returns one: in Triton 3.6 none returns what may be None.)"""

    rows: Any  # (R, 1)
    columns: Any  # (1, B)
    inside: Any  # (R, B): which of its logits there are
    places: Any  # of its logits, labels and gradient, or None: by the strides of each


class Found(NamedTuple):
    """Of logits: their loss is `most` + log(1 + e), where a problem is not even `most` alone; and
    its derivative by u. All 0 where no label is known."""

    most: Any
    e: Any
    du: Any


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
    """(positive, negative) Side of some classes. Without tables there is −0 to be added, which
    the compiler knows to leave out."""
    positive = Side(
        read_table(problem.positive_scale, columns, inside, 1, dtype),
        read_table(problem.positive_offset, columns, inside, -0.0, dtype),
        read_table(problem.positive_weight, columns, inside, 1, dtype),
    )
    negative = Side(
        read_table(problem.negative_scale, columns, inside, 1, dtype),
        read_table(problem.negative_offset, columns, inside, -0.0, dtype),
        read_table(problem.negative_weight, columns, inside, 1, dtype),
    )
    if problem.delta is not None:
        own = read_table(problem.delta, columns, inside, 0, dtype)
        positive = Side(positive.scale, positive.offset + own, positive.weight)
        own = read_table(problem.delta + problem.classes, columns, inside, 0, dtype)
        negative = Side(negative.scale, negative.offset + own, negative.weight)
    return positive, negative


@triton.jit
def is_inside(rows, columns, problem):
    """Which logits of rows (R, 1) and columns (1, B) there are."""
    inside = (rows < problem.rows) & (columns >= 0) & (columns < problem.classes)
    if problem.total is not None:
        inside = rows * problem.classes + columns < problem.total
    return inside


@triton.jit
def places_of(at, stride):
    places = at.places
    if at.places is None:
        places = at.rows * stride + at.columns
    return places


@triton.jit
def read_tile(at, problem, dtype: tl.constexpr):
    """(u, y, known) of a tile; 0 and not known outside."""
    known = at.inside
    here = problem.input + places_of(at, problem.input_stride)
    u = tl.load(here, mask=known, other=0).to(dtype)
    here = problem.target + places_of(at, problem.target_stride)
    y = tl.load(here, mask=known, other=0).to(dtype)
    if problem.missing:
        known = known & is_there(y, problem.ignored)
        y = tl.where(known, y, 0)
    return u, y, known


@triton.jit
def is_there(y, ignored):
    """Whether labels are none of the missing ones."""
    there = y == y
    if ignored is not None:
        there = there & (y != ignored)
    return there


@triton.jit
def distance_exponential(s, problem):
    """(e, 1/(1 + e), whether s > 0), e = exp(−|s|); the second is for gradients alone."""
    e = exp(-tl.abs(s))
    wide: tl.constexpr = problem.input.dtype.element_ty.primitive_bitwidth > 16
    return e, reciprocal(1 + e, wide), s > 0


@triton.jit
def distance_terms(s, is_positive, problem):
    """(φ, dφ/ds) of ℓ = log(1 + e^s), a logit's distance s from its label."""
    e, far, beyond = distance_exponential(s, problem)
    ell = tl.where(beyond, s, 0) + log1p_of_unit(e)
    sigma = tl.where(beyond, 1, e) * far
    if problem.phi == ASYMMETRIC:
        near = tl.where(beyond, e, 1) * far
        value, slope = asymmetric_terms(ell, sigma, near, is_positive, problem)
    else:
        value = phi_value(ell, problem)
        slope = phi_slope(ell, problem) * sigma
    return value, slope


@triton.jit
def asymmetric_terms(ell, away, near, is_positive, problem):
    """(φ, dφ/ds) of an asymmetric φ, from ℓ, σ(s) and σ(−s): see lpl_fused.phi."""
    zero = tl.zeros_like(ell)  # what it is added to has its type, not that of a lone number
    clip = tl.where(is_positive, zero, zero + problem.phi_clip)
    gamma = tl.where(is_positive, zero + problem.phi_parameter, zero + problem.phi_negative)
    clipped = clip > 0
    rest = away - clip
    # no tl.maximum: on a GPU it drops a nan
    nothing = clipped & (rest <= 0)
    double: tl.constexpr = ell.dtype == tl.float64
    tiny: tl.constexpr = 2.2250738585072014e-308 if double else 1.1754943508222875e-38
    rest = tl.where(rest < tiny, tiny, rest)
    kept = tl.where(clipped, near + clip, 1)
    ell = tl.where(clipped, log1p(rest / kept), ell)
    slope = tl.where(clipped, away * (near / kept), away)
    factor = tl.exp(tl.log(rest) * gamma)
    if problem.phi_detached == 0:
        # ℓ·near vanishes where ℓ is infinite
        bend = near * tl.where(near == 0, 0, ell)
        slope += gamma * (bend * tl.where(clipped, away / rest, 1))
    return tl.where(nothing, 0, factor * ell), tl.where(nothing, 0, factor * slope)


@triton.jit
def tile_terms(u, y, known, at, positive, negative, problem, form: tl.constexpr):
    """What is Found of a tile."""
    most = tl.zeros_like(u)
    e = most
    if form == HARD:
        is_positive = y > 0.5
        scale = tl.where(is_positive, positive.scale, negative.scale)
        z = u * scale + tl.where(is_positive, positive.offset, negative.offset)
        s = tl.where(is_positive, -z, z)
        weight = tl.where(is_positive, positive.weight, negative.weight)
        if problem.even:
            e, far, beyond = distance_exponential(s, problem)
            most = tl.where(beyond, s, 0)
            slope = tl.where(beyond, 1, e) * far
        else:
            value, slope = distance_terms(s, is_positive, problem)
            most = value * weight
        du = tl.where(is_positive, -slope, slope) * weight * scale
    elif form == SHARED:
        z = u * negative.scale + negative.offset
        e, far, above = distance_exponential(z, problem)
        one = y * positive.weight
        zero = (1 - y) * negative.weight
        # z is on the side of one of both labels, its distance from the other is |z|
        other = tl.where(above, zero, one)
        own = tl.where(above, one, zero)
        # a side without mass counts nothing, however infinite its loss; a weight of 0 hides no such
        share = other
        if problem.positive_weight is not None:
            share = tl.where(above, 1 - y, y)
        if problem.negative_weight is not None:
            share = tl.where(above, 1 - y, y)
        most = tl.where(share == 0, 0, other * tl.abs(z))
        du = (other - own * e) * far
        du = tl.where(above, du, -du) * negative.scale
        if problem.even == 0:
            most += (one + zero) * log1p_of_unit(e)
    else:
        z = u * positive.scale + positive.offset
        value, slope = distance_terms(-z, tl.full(z.shape, 1, tl.int1), problem)
        most = tl.where(y == 0, 0, y * positive.weight * value)
        du = -tl.where(y == 0, 0, y * positive.weight * positive.scale * slope)
        z = u * negative.scale + negative.offset
        value, slope = distance_terms(z, tl.full(z.shape, 0, tl.int1), problem)
        most += tl.where(y == 1, 0, (1 - y) * negative.weight * value)
        du += tl.where(y == 1, 0, (1 - y) * negative.weight * negative.scale * slope)
    if problem.inverse_count is not None:
        inside = (at.columns >= 0) & (at.columns < problem.classes)
        own = tl.load(problem.inverse_count + at.columns, mask=inside, other=0)
        mass = tl.load(problem.masses + at.rows, mask=at.rows < problem.rows, other=1)
        ratio = tl.where(mass > 0, own / tl.where(mass > 0, mass, 1), float("inf"))
        weight = 1 / (1 + tl.exp(-((ratio - problem.mu) * problem.beta))) + problem.alpha
        most = most * weight
        du = du * weight
    if problem.sample_weight is not None:
        weight = tl.load(problem.sample_weight + at.rows, mask=at.rows < problem.rows, other=0)
        most = most * weight
        du = du * weight
    most = tl.where(known, most, 0)
    return Found(most, tl.where(known, e, 0), tl.where(known, du, 0))


@triton.jit
def loss_of(found, problem):
    """The losses of a tile."""
    loss = found.most
    if problem.even:
        loss += log1p_of_unit(found.e)
    return loss


@triton.jit
def added_loss(sums, found, problem):
    """(Σ most, Π (1 + e) − 1) by lane, with what is Found of a tile: of few tiles, or the
    product, for which there is but one logarithm, becomes infinite."""
    product = sums[1]
    if problem.even:
        product = product + found.e + product * found.e
    return sums[0] + found.most, product


@triton.jit
def joined_loss(sums, problem):
    """Σ of the losses, a number."""
    total = sums[0]
    if problem.even:
        product = sums[1]
        # of lanes beside each other, in one thread, one logarithm
        wide: tl.constexpr = problem.input.dtype.element_ty.primitive_bitwidth // 8
        joined: tl.constexpr = 1 if wide == 8 else 2 if wide == 4 else 3
        for _ in tl.static_range(joined):
            a, b = neighbours(total)
            total = a + b
            a, b = neighbours(product)
            product = a + b + a * b
        total += log1p(product)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def neighbours(values):
    """Of the columns every other one, and those between."""
    half: tl.constexpr = values.shape[1] // 2
    return tl.split(tl.reshape(values, (values.shape[0], half, 2)))


@triton.jit
def read_pull(wanted, dtype: tl.constexpr):
    """What every derivative is multiplied by."""
    pull = tl.full((), 1, dtype)
    if wanted.norm is not None:
        pull = pull / tl.load(wanted.norm)
    if wanted.upstream is not None and wanted.each == 0:
        pull = pull * tl.load(wanted.upstream)
    return pull


@triton.jit
def store_tile(found, known, at, pull, problem, wanted, FINITE: tl.constexpr):
    """Stores losses and gradient of a tile, as wanted. FINITE: what all derivatives are multiplied
    by is; gradients of labels that are missing are 0, whatever it be.
    """
    places = places_of(at, problem.classes)
    if wanted.losses is not None:
        tl.store(wanted.losses + places, loss_of(found, problem), mask=at.inside)
    if wanted.grad is not None:
        du = found.du * pull
        each: tl.constexpr = wanted.upstream is not None and wanted.each
        if each:
            du = du * tl.load(wanted.upstream + places, mask=at.inside, other=0)
        if problem.missing and (each or not FINITE):
            du = tl.where(known, du, 0)
        tl.store(wanted.grad + places, du.to(wanted.grad.dtype.element_ty), mask=at.inside)


@triton.jit
def scale_tile(at, factor, problem, wanted):
    """Multiplies a gradient that is there."""
    here = wanted.grad + places_of(at, problem.classes)
    du = tl.load(here, mask=at.inside, other=0).to(factor.dtype) * factor
    known = at.inside
    if problem.missing and (tl.abs(factor) < float("inf")) == 0:
        _, _, known = read_tile(at, problem, factor.dtype)
    tl.store(here, du.to(wanted.grad.dtype.element_ty), mask=known)


@triton.jit
def scale_labels(grad, upstream, classes, target, target_stride, ignored, BLOCK: tl.constexpr):
    """grad (N, C) ← upstream·grad, in place. Where `target` (N, C) says that a label is missing its
    gradient stays 0, whatever comes from upstream; None: none is. One program per row.
    """
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(upstream)
    if factor == 1:
        return
    start = 0
    while start < classes:
        columns = start + tl.arange(0, BLOCK)
        inside = columns < classes
        here = grad + row * classes + columns
        value = tl.load(here, mask=inside, other=0).to(factor.dtype) * factor
        if target is not None and (tl.abs(factor) < float("inf")) == 0:
            y = tl.load(target + row * target_stride + columns, mask=inside, other=0)
            inside = inside & is_there(y.to(factor.dtype), ignored)
        tl.store(here, value.to(grad.dtype.element_ty), mask=inside)
        start += BLOCK


@triton.jit
def binary_tiles(
    problem, wanted,
    DTYPE: tl.constexpr, STEP: tl.constexpr, TURNS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Losses and gradient. One program for TURNS tiles of ROWS rows, one below the other.

    Rows of which every STEP-th begins as far behind a multiple of 16 bytes, its phase, are tiles by
    themselves, of that multiple and what follows; with the next below it is the STEP-th.
    """
    program = tl.program_id(0).to(tl.int64)
    start = program // STEP * (STEP * ROWS * TURNS) + program % STEP
    end = tl.minimum(start + STEP * ROWS * TURNS, problem.rows)
    column_start = tl.program_id(1) * BLOCK
    column_lanes = (column_start + tl.arange(0, BLOCK))[None, :]
    columns = column_lanes
    lanes = tl.arange(0, ROWS).to(tl.int64)[:, None]
    # from which row on tiles are not whole, or not usual
    whole = end - (end - start) % ROWS
    if problem.total is not None:
        whole = tl.minimum(end, problem.total // BLOCK)
    elif STEP > 1:
        phase = ((start * problem.classes) & (STEP - 1)).to(tl.int32)
        columns = column_lanes - phase
        if (column_start < phase) | (column_start - phase + BLOCK > problem.classes):
            whole = start
    elif column_start + BLOCK > problem.classes:
        whole = start
    if wanted.unless is not None:
        factor = tl.load(wanted.unless)
        if scales_exactly(factor):
            while (start < end) & (factor != 1):
                rows = start + lanes
                inside = is_inside(rows, columns, problem)
                scale_tile(At(rows, columns, inside, None), factor, problem, wanted)
                start += STEP * ROWS
            return
    sides = read_sides(columns, (columns >= 0) & (columns < problem.classes), problem, DTYPE)
    pull = read_pull(wanted, DTYPE)
    form: tl.constexpr = problem.form if problem.soft is None else HARD
    if problem.soft is not None and has_soft(start, end, column_start, problem, STEP, BLOCK):
        whole = start
    # a comparison with nan is false
    if (tl.abs(pull) < float("inf")) == 0:
        whole = start
    zeros = tl.zeros((ROWS, BLOCK), DTYPE)
    sums = (zeros, zeros)
    # a constant, of which the compiler makes accesses without a mask
    inside = tl.full((ROWS, BLOCK), 1, tl.int1)
    while start < whole:
        places = None
        if STEP > 1:
            places = tl.multiple_of(start * problem.classes - phase, STEP) + column_lanes
        at = At(start + lanes, columns, inside, places)
        sums = do_tile(sums, at, sides, pull, problem, wanted, form, True, DTYPE)
        start += STEP * ROWS
    while start < end:
        places = None
        if STEP > 1:
            places = tl.multiple_of(start * problem.classes - phase, STEP) + column_lanes
        rows = start + lanes
        at = At(rows, columns, is_inside(rows, columns, problem), places)
        sums = do_tile(sums, at, sides, pull, problem, wanted, problem.form, False, DTYPE)
        start += STEP * ROWS
    if wanted.sums is not None:
        place = program * tl.num_programs(1) + tl.program_id(1)
        tl.store(wanted.sums + place, joined_loss(sums, problem))


@triton.jit
def has_soft(start, end, column_start, problem, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """Whether a program's tiles may have labels other than 0 and 1."""
    columns = column_start - STEP + 1
    first = tl.where(columns < 0, 0, columns) // problem.soft_block
    lanes: tl.constexpr = 2 * BLOCK // problem.soft_block
    blocks = first + tl.arange(0, lanes if lanes > 2 else 2)
    count = (problem.classes + problem.soft_block - 1) // problem.soft_block
    inside = (blocks < count) & (blocks * problem.soft_block < column_start + BLOCK)
    chunk = start // problem.soft_chunk
    soft = tl.zeros(blocks.shape, tl.int32)
    while chunk * problem.soft_chunk < end:
        soft |= tl.load(problem.soft + chunk * count + blocks, mask=inside, other=0)
        chunk += 1
    return tl.sum(soft, 0) != 0


@triton.jit
def do_tile(
    sums, at, sides, pull, problem, wanted,
    form: tl.constexpr, FINITE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stores what is wanted of a tile; the sums with its losses, where these are wanted."""
    u, y, known = read_tile(at, problem, DTYPE)
    found = tile_terms(u, y, known, at, sides[0], sides[1], problem, form)
    store_tile(found, known, at, pull, problem, wanted, FINITE)
    if wanted.sums is not None:
        sums = added_loss(sums, found, problem)
    return sums


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
            y = tl.where(is_there(y, problem.ignored), y, 0)
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
def half_tanh(x):
    """tanh(x/2), to the last place of 1; nan stays."""
    e = exp(-tl.abs(x))
    t = (1 - e) * reciprocal(1 + e, True)
    return tl.where(x < 0, -t, t)


@triton.jit
def read_walk(walk, side, what: tl.constexpr, columns, inside, classes):
    """One of the numbers of a walk, float64."""
    number = tl.zeros((), tl.int64) + (side * WALK + what)
    return tl.load(walk + number * classes + columns, mask=inside, other=0)


@triton.jit
def added_chebyshev(sums, t, share):
    """sums + share·C_n(t), n = 0 … MOMENTS"""
    before = tl.zeros_like(t) + 1
    now = t
    twice = t + t
    result = (sums[0] + share, sums[1] + share * t)
    for n in tl.static_range(2, MOMENTS + 1):
        new = twice * now - before
        before = now
        now = new
        result += (sums[n] + share * now,)
    return result


@triton.jit
def binary_moments(
    problem, walk, steps, partial, soft, CHUNK,
    FIRST: tl.constexpr, KIND: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """partial (2, MOMENTS + 1, chunks, C): Σ of share·C_n(T) over chunks of CHUNK rows, of classes
    that are still on their walk; at FIRST soft (chunks, blocks), where labels may be. One program
    per block of classes and chunk of rows.
    """
    column_start = tl.program_id(0) * BLOCK
    columns = (column_start + tl.arange(0, BLOCK))[None, :]
    inside = columns < problem.classes
    count = tl.abs(tl.load(steps + columns, mask=inside, other=0))
    centres = (tl.zeros((1, BLOCK), DTYPE), tl.zeros((1, BLOCK), DTYPE))
    going = count > 0
    if soft is not None:
        soft += tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    if not FIRST:
        centres = (
            read_walk(walk, 0, 3, columns, inside, problem.classes).to(DTYPE),
            read_walk(walk, 1, 3, columns, inside, problem.classes).to(DTYPE),
        )
        taken_one = read_walk(walk, 0, 2, columns, inside, problem.classes)
        taken_zero = read_walk(walk, 1, 2, columns, inside, problem.classes)
        going = (taken_one < count) | (taken_zero < count)
    if tl.sum(tl.sum(going.to(tl.int32), 1), 0) == 0:
        if FIRST and soft is not None:
            tl.store(soft, 1)
        return
    sides = read_sides(columns, inside, problem, DTYPE)
    zeros = tl.zeros((ROWS, BLOCK), DTYPE)
    sums = ((zeros,) * (MOMENTS + 1), (zeros,) * (MOMENTS + 1), zeros)
    start = tl.program_id(1).to(tl.int64) * CHUNK
    end = tl.minimum(start + CHUNK, problem.rows)
    hard = tl.full((), 1, tl.int1)
    if KIND == BOTH and not FIRST:
        hard = tl.load(soft) == 0
    kind: tl.constexpr = OWN if KIND == BOTH and not FIRST else KIND
    # two ways of which one is not there where all labels are of one kind
    if hard:
        sums = swept_moments(
            sums, start, end, column_start, columns, sides, centres, problem,
            kind, DTYPE, ROWS, BLOCK,
        )  # fmt: skip
    elif KIND == BOTH:
        sums = swept_moments(
            sums, start, end, column_start, columns, sides, centres, problem,
            BOTH, DTYPE, ROWS, BLOCK,
        )  # fmt: skip
    if FIRST and soft is not None:
        # nan is, too
        tl.store(soft, (tl.sum(tl.sum(sums[2], 1), 0) != 0).to(tl.int32))
    chunk = tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(1).to(tl.int64)
    for n in tl.static_range(MOMENTS + 1):
        here = partial + (n * chunks + chunk) * problem.classes + columns
        total = tl.sum(sums[0][n], 0)[None, :]
        if KIND == MIRRORED and n % 2 == 1:
            total = -total
        tl.store(here, total, mask=inside)
        here += (MOMENTS + 1) * chunks * problem.classes
        tl.store(here, tl.sum(sums[1][n], 0)[None, :], mask=inside)


@triton.jit
def swept_moments(
    sums, start, end, column_start, columns, sides, centres, problem,
    KIND: tl.constexpr, DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """added_moments of the rows from `start` to `end`."""
    # from which row on tiles are not whole
    whole = end - (end - start) % ROWS
    if column_start + BLOCK > problem.classes:
        whole = start
    lanes = tl.arange(0, ROWS)[:, None]
    there = tl.full((ROWS, BLOCK), 1, tl.int1)
    while start < whole:
        at = At(start + lanes, columns, there, None)
        sums = added_moments(sums, at, sides, centres, problem, KIND, DTYPE)
        start += ROWS
    while start < end:
        rows = start + lanes
        at = At(rows, columns, is_inside(rows, columns, problem) & (rows < end), None)
        sums = added_moments(sums, at, sides, centres, problem, KIND, DTYPE)
        start += ROWS
    return sums


@triton.jit
def added_moments(sums, at, sides, centres, problem, KIND: tl.constexpr, DTYPE: tl.constexpr):
    """(moments of positives, of negatives, something unless labels are 0 or 1) with a tile's."""
    u, y, known = read_tile(at, problem, DTYPE)
    one = tl.where(known, y, 0)
    zero = tl.where(known, 1 - y, 0)
    if KIND == BOTH:
        s_one, one, s_zero, zero = distances(u, y, known, sides[0], sides[1])
        ones = added_chebyshev(sums[0], half_tanh(s_one + centres[0]), one)
        zeros = added_chebyshev(sums[1], half_tanh(s_zero + centres[1]), zero)
    else:
        s = u * sides[1].scale + sides[1].offset + centres[1]
        if KIND == OWN:
            far = u * sides[0].scale + sides[0].offset
            s = tl.where(one > 0.5, centres[0] - far, s)
        t = half_tanh(tl.where(known, s, 0))
        # of what is mirrored C_n(−t) = (−1)^n·C_n(t)
        ones = added_chebyshev(sums[0], t, one)
        zeros = added_chebyshev(sums[1], t, zero)
    return ones, zeros, sums[2] + tl.abs(one * zero)


@triton.jit
def binary_walk(
    walk, steps, step_size, partial, classes, chunks, FIRST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Goes on with each class's steps as long as what the series leaves out is as little as
    promised; the next centre lies ahead, not as far as this one then lies behind. One program per
    block of classes and side.
    """
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    side = tl.program_id(1).to(tl.int64)
    inside = columns < classes
    signed = tl.load(steps + columns, mask=inside, other=0)
    count = tl.abs(signed).to(tl.float64)
    d = tl.zeros((BLOCK,), tl.float64)
    miss = d
    taken = d
    centre = d
    if not FIRST:
        d = read_walk(walk, side, 0, columns, inside, classes)
        miss = read_walk(walk, side, 1, columns, inside, classes)
        taken = read_walk(walk, side, 2, columns, inside, classes)
        # as the moments have it
        centre = read_walk(walk, side, 3, columns, inside, classes)
        if tl.sum((taken < count).to(tl.int32), 0) == 0:
            return
    means = ()
    for n in tl.static_range(MOMENTS + 1):
        total = tl.zeros((BLOCK,), tl.float64)
        here = partial + ((side * (MOMENTS + 1) + n) * chunks) * classes + columns
        chunk = chunks * 0
        while chunk < chunks:
            total += tl.load(here, mask=inside & (taken < count), other=0).to(tl.float64)
            here += classes
            chunk += 1
        means += (total,)
    mass = means[0]
    # nothing moves a side without labels
    taken = tl.where(mass == 0, count, taken)
    inverse = 1 / tl.where(mass == 0, 1, mass)
    size = tl.full((), 0, tl.float64) + step_size
    step = tl.where(signed < 0, -size, size)
    # an early miss grows with the steps that follow, by σ' ≤ 1/4 in each
    dose = count * (size / 4)
    growth = tl.exp(tl.where(dose < 100, dose, 100)) * (0.5 * size)
    go = taken < count
    while tl.sum(go.to(tl.int32), 0) > 0:
        x = tl.exp(-tl.abs(d - centre) * 0.5)
        rho = (1 - x) / (1 + x)
        rho = tl.where(d < centre, -rho, rho)
        square = rho * rho
        fourth = square * square
        # (1 + |ρ|)·|ρ|^10, where it is of use
        missed = miss + growth * 1.5 * (fourth * fourth * square)
        # a comparison with nan is false
        go &= missed * count <= (taken + 1) * LARGEST_MISS
        total = means[MOMENTS]
        for n in tl.static_range(1, MOMENTS):
            total = means[MOMENTS - n] - rho * total
        moved = d + step * (0.5 + 0.5 * (rho + (1 - square) * (total * inverse)))
        d = tl.where(go, moved, d)
        miss = tl.where(go, missed, miss)
        taken = tl.where(go, taken + 1, taken)
        go &= taken < count
    ahead = tl.abs(d - centre) * 0.6
    centre = d + tl.where(signed < 0, -ahead, ahead)
    here = walk + side * WALK * classes + columns
    for numbers in tl.static_range(WALK):
        number = d
        if numbers == 1:
            number = miss
        if numbers == 2:
            number = taken
        if numbers == 3:
            number = centre.to(tl.float32).to(tl.float64)
        tl.store(here, number, mask=inside)
        here += classes


@triton.jit
def binary_rest(
    problem, walk, steps, step_size, delta, left,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta (2, C): where the walks have come, and on from there by steps that read all rows;
    left (C,): how many of these there were.
    """
    columns = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = columns < problem.classes
    signed = tl.load(steps + columns, mask=inside, other=0)
    count = tl.abs(signed)
    moved_one = read_walk(walk, 0, 0, columns, inside, problem.classes).to(DTYPE)
    moved_zero = read_walk(walk, 1, 0, columns, inside, problem.classes).to(DTYPE)
    taken_one = read_walk(walk, 0, 2, columns, inside, problem.classes).to(tl.int32)
    taken_zero = read_walk(walk, 1, 2, columns, inside, problem.classes).to(tl.int32)
    fewest = tl.where(taken_one < taken_zero, taken_one, taken_zero)
    fewest = tl.where(fewest < count, fewest, count)
    tl.store(left + columns, count - fewest, mask=inside)
    k = tl.min(tl.min(tl.where(fewest < count, fewest, 2147483647), 1), 0)
    most = tl.max(tl.max(count, 1), 0)
    positive, negative = read_sides(columns, inside, problem, DTYPE)
    step = tl.where(signed < 0, -1, 1) * (tl.zeros((1, BLOCK), DTYPE) + step_size)
    while k < most:
        mean_one, mean_zero = sweep_sigmas(
            columns, moved_one, moved_zero, positive, negative, problem, DTYPE, ROWS, BLOCK
        )
        moved_one += tl.where((count > k) & (taken_one <= k), step * mean_one, 0)
        moved_zero += tl.where((count > k) & (taken_zero <= k), step * mean_zero, 0)
        k += 1
    tl.store(delta + columns, -moved_one, mask=inside)
    tl.store(delta + problem.classes + columns, moved_zero, mask=inside)


@triton.jit
def sweep_sigmas(
    columns, moved_one, moved_zero, positive, negative, problem,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(mean σ(s + moved_one) over positives, the same of negatives), (1, BLOCK), of all rows; 0
    where there are none.
    """
    sum_one = tl.zeros((1, BLOCK), DTYPE)
    sum_zero = tl.zeros((1, BLOCK), DTYPE)
    mass_one = tl.zeros((1, BLOCK), DTYPE)
    mass_zero = tl.zeros((1, BLOCK), DTYPE)
    lanes = tl.arange(0, ROWS)[:, None]
    start = tl.zeros((), tl.int64)
    while start < problem.rows:
        rows = start + lanes
        at = At(rows, columns, is_inside(rows, columns, problem), None)
        u, y, known = read_tile(at, problem, DTYPE)
        s_one, one, s_zero, zero = distances(u, y, known, positive, negative)
        sum_one += sigma_sum(s_one + moved_one, one)
        sum_zero += sigma_sum(s_zero + moved_zero, zero)
        mass_one += tl.sum(one, 0)[None, :]
        mass_zero += tl.sum(zero, 0)[None, :]
        start += ROWS
    mean_one = tl.where(mass_one > 0, sum_one / tl.where(mass_one > 0, mass_one, 1), 0)
    mean_zero = tl.where(mass_zero > 0, sum_zero / tl.where(mass_zero > 0, mass_zero, 1), 0)
    return mean_one, mean_zero


@triton.jit
def scale_columns(columns, factor, problem, wanted, ROWS: tl.constexpr):
    """scale_tile of all rows."""
    lanes = tl.arange(0, ROWS)[:, None]
    start = tl.zeros((), tl.int64)
    while (start < problem.rows) & (factor != 1):
        rows = start + lanes
        at = At(rows, columns, is_inside(rows, columns, problem), None)
        scale_tile(at, factor, problem, wanted)
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
    lanes = tl.arange(0, ROWS)[:, None]
    if RESIDENT:
        rows = lanes.to(tl.int64)
        at = At(rows, columns, is_inside(rows, columns, problem), None)
        u, y, known = read_tile(at, problem, DTYPE)
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
            mean_one, mean_zero = sweep_sigmas(
                columns, moved_one, moved_zero, positive, negative, problem, DTYPE, ROWS, BLOCK
            )
            moved_one += tl.where(count > k, step * mean_one, 0)
            moved_zero += tl.where(count > k, step * mean_zero, 0)
            k += 1
    if wanted.delta is not None:
        tl.store(wanted.delta + columns, -moved_one, mask=inside)
        tl.store(wanted.delta + problem.classes + columns, moved_zero, mask=inside)
    if wanted.delta is None:
        positive = Side(positive.scale, positive.offset - moved_one, positive.weight)
        negative = Side(negative.scale, negative.offset + moved_zero, negative.weight)
        pull = read_pull(wanted, DTYPE)
        total = tl.zeros((1, BLOCK), DTYPE)
        start = tl.zeros((), tl.int64)
        if RESIDENT:
            found = tile_terms(u, y, known, at, positive, negative, problem, problem.form)
            store_tile(found, known, at, pull, problem, wanted, False)
            total += tl.sum(loss_of(found, problem), 0)[None, :]
        else:
            while start < problem.rows:
                rows = start + lanes
                below = At(rows, columns, is_inside(rows, columns, problem), None)
                u, y, known = read_tile(below, problem, DTYPE)
                found = tile_terms(u, y, known, below, positive, negative, problem, problem.form)
                store_tile(found, known, below, pull, problem, wanted, False)
                total += tl.sum(loss_of(found, problem), 0)[None, :]
                start += ROWS
        if wanted.sums is not None:
            tl.store(wanted.sums + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
