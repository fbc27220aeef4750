"""From the columns of a row to its sums, its loss and its gradient, block by block.

The shortcut's sweep and the reductions that join share these parts, and so do all that write a
gradient: it is made of a row's Terms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...algebra.terms import Terms
from .algebra import (
    DENSE,
    LABELS,
    LOG,
    ONE_LABEL,
    SHIFT,
    TERMS,
    is_within,
    last_block,
    of_rivals,
    phi_slope,
    phi_value,
    read_block,
    read_logits,
    store_block,
    unperturb,
)
from .elementary import exp, log1p
from .norms import in_lengths, through_norm
from .penalties import push_of

TOP = tl.constexpr(Terms._fields.index("top"))
LOG_TOTAL = tl.constexpr(Terms._fields.index("log_total"))
RAISES = tl.constexpr(Terms._fields.index("raises"))
EACH = tl.constexpr(Terms._fields.index("each"))
NOTHING = tl.constexpr(-1e4)  # e^x is 0 in every dtype below it, and products with it are numbers


class Mass(NamedTuple):
    """Sums over columns: those of lpl_fused.algebra.parts.Mass that no label makes, and those that
    statistics of the row are made of."""

    shift: Any
    rest: Any
    mass: Any
    pull: Any
    along: Any
    along_spread: Any
    heat: Any  # Σ e_j·(z_j − shift)
    beaten: Any  # > 0: a column has a larger raw logit than the Aim's, or the same and is before it


class Aim(NamedTuple):
    """The column that is right, of a row whose statistics are wanted."""

    column: Any  # −1 where it does not exist
    u: Any  # its raw logit


class Detail(NamedTuple):
    """Sums over columns, once ℓ_j is known: as lpl_fused.algebra.parts.Detail."""

    value: Any
    slope: Any
    along: Any


@triton.jit
def finite_shift(maximum):
    """What to subtract before exp: the maximum, or 0 where all logits are −inf (no −inf + inf)."""
    return tl.where(maximum == float("-inf"), 0, maximum)


@triton.jit
def directions(u, columns, inside, row, problem):
    """x_j = (dz_j/dT_j)·u_j/n of some columns."""
    slope, _ = unperturb(tl.zeros_like(u) + 1, u, columns, inside, row, problem)
    return slope * in_lengths(u, row)


@triton.jit
def sum_exactly(values):
    """Σ of each lane in float64: what its rounding left would pull at every logit, by its size."""
    return tl.sum(values.to(tl.float64), 1)


@triton.jit
def label_logits(row, problem):
    """((z, x) at the label, the same at the other label): −inf and 0 where there is none."""
    nothing = tl.zeros_like(row.hard)
    own = (nothing + float("-inf"), nothing)
    other = own
    if problem.form != DENSE:
        own = logit_at(row.column, row, problem)
    if problem.other is not None:
        other = logit_at(row.other, row, problem)
    return own, other


@triton.jit
def logit_at(column, row, problem):
    """(z, x) of one column."""
    u, z, inside = read_logits(row, column, problem)
    x = tl.zeros_like(row.hard)
    if problem.norm_p is not None:
        # the interpreter reads 0 as no `other` of a single load
        x = tl.where(inside, directions(u, column, inside, row, problem), 0)
    return z, x


@triton.jit
def no_mass(row, problem, STATS: tl.constexpr, BLOCK: tl.constexpr):
    """The Mass by lane of no columns; what a problem does not ask for stays one 0."""
    zeros = tl.zeros((BLOCK // problem.each,), row.hard.dtype)
    mass = tl.zeros_like(row.hard)
    pull = mass
    heat = mass
    beaten = row.column * 0
    along = mass.to(tl.float64)
    along_spread = along
    if problem.spread:
        mass = zeros
        if problem.phi == LOG:
            pull = zeros
    if problem.norm_p is not None:
        along = zeros.to(tl.float64)
        if problem.spread and problem.phi == LOG:
            along_spread = along
    if STATS:
        heat = zeros
        beaten = zeros.to(tl.int32)
    return Mass(zeros + float("-inf"), zeros, mass, pull, along, along_spread, heat, beaten)


@triton.jit
def block_mass(row, block, maximum, x, aim, problem, STATS: tl.constexpr):
    """The Mass by lane of a block `of_rivals`, x = z − finite_shift(maximum)."""
    e = exp(x)
    rest = tl.sum(e, 1)
    mass = tl.zeros_like(row.hard)
    pull = mass
    along = mass.to(tl.float64)
    along_spread = along
    if problem.spread:
        mass = tl.sum(block.weight, 1)
        if problem.phi == LOG:
            pull = tl.sum(counted_distances(block, x, problem) * block.weight, 1)
    if problem.norm_p is not None:
        direction = directions(block.u, block.columns, block.inside, row, problem)
        along = sum_exactly(e * direction)
        if problem.spread and problem.phi == LOG:
            along_spread = sum_exactly(block.weight * direction)
    heat = tl.zeros_like(row.hard)
    beaten = row.column * 0
    if STATS:
        heat = tl.sum(heat_of(e, x), 1)
        beaten = beating(block, aim, problem)
    return Mass(maximum, rest, mass, pull, along, along_spread, heat, beaten)


@triton.jit
def heat_of(e, x):
    """e·x of e = exp(x): nothing, where that is 0."""
    return e * tl.maximum(x, NOTHING)


@triton.jit
def beating(block, aim, problem):
    """By lane whether a column has a larger raw logit than the Aim's, or the same and is before
    it: > 0."""
    # a lane's largest, which the sums look for, too, where z is the logits
    if problem.raw and problem.delta is None and problem.other is None:
        highest = tl.max(block.z, 1)
    else:
        highest = tl.max(tl.where(block.inside, block.u, float("-inf")), 1)
    before = block.end <= aim.column
    beaten = ((highest > aim.u) | (before & (highest == aim.u))).to(tl.int32)
    if is_within(aim.column, block):
        # without a barrier the compiler asks every column of every block instead
        tl.debug_barrier()
        here = block.inside & (block.columns < aim.column) & (block.u == aim.u)
        beaten |= tl.max(here.to(tl.int32), 1)
    return beaten


@triton.jit
def read_aim(row, index, wanted, problem):
    """The Aim of a row; of nothing, if no statistics are wanted."""
    column = row.column * 0
    u = row.hard
    if wanted.aim is not None:
        label = tl.load(wanted.aim + index)
        outside = (label < 0) | (label >= problem.classes)
        column = tl.where(outside, -1, label).to(tl.int32)
        u = tl.where(outside, 0, read_logits(row, tl.where(outside, 0, column), problem)[0])
    return Aim(column, u)


@triton.jit
def counted_distances(block, values, problem):
    """Values of columns, 0 where they count nothing however infinite they are: outside, and for
    class probabilities where there is no weight."""
    counts = block.inside
    if problem.form == DENSE:
        counts = block.weight != 0
    return tl.where(counts, values, 0)


@triton.jit
def add_mass(mass, row, block, aim, problem, STATS: tl.constexpr):
    """The Mass by lane with the columns of a block."""
    block = of_rivals(block, row, problem)
    maximum = tl.maximum(mass.shift, tl.max(block.z, 1))
    shift = finite_shift(maximum)
    x = block.z - shift[:, None]
    added = block_mass(row, block, maximum, x, aim, problem, STATS)
    shrink = exp(mass.shift - shift)
    pull = mass.pull
    along = mass.along
    if problem.spread and problem.phi == LOG:
        pull += mass.mass * (finite_shift(mass.shift) - shift) + added.pull
    if problem.norm_p is not None:
        along = along * shrink + added.along
    heat = mass.heat
    beaten = mass.beaten
    if STATS:
        heat = heat_from(mass, shift) * shrink + added.heat
        beaten |= added.beaten
    return Mass(
        maximum,
        mass.rest * shrink + added.rest,
        mass.mass + added.mass,
        pull,
        along,
        mass.along_spread + added.along_spread,
        heat,
        beaten,
    )


@triton.jit
def heat_from(mass, shift):
    """Σ e_j·(z_j − shift), e_j still in units of the Mass's own shift."""
    return mass.heat + mass.rest * (finite_shift(mass.shift) - shift)


@triton.jit
def joined_lanes(mass, problem, STATS: tl.constexpr):
    """The Mass of all lanes."""
    maximum = tl.max(mass.shift, 0)
    shift = finite_shift(maximum)
    shrink = exp(mass.shift - shift)
    pull = mass.pull
    along = mass.along
    if problem.spread and problem.phi == LOG:
        pull += mass.mass * (finite_shift(mass.shift) - shift)
    if problem.norm_p is not None:
        along *= shrink
    heat = mass.heat
    if STATS:
        heat = heat_from(mass, shift) * shrink
    spread = mass.along_spread
    rest = mass.rest * shrink
    mass = Mass(maximum, rest, mass.mass, pull, along, spread, heat, mass.beaten)
    return summed_lanes(mass, problem, STATS)


@triton.jit
def summed_lanes(mass, problem, STATS: tl.constexpr):
    """The Mass of all lanes, which have one shift."""
    total = mass.mass
    pull = mass.pull
    along = mass.along
    along_spread = mass.along_spread
    if problem.spread:
        total = tl.sum(total, 0)
        if problem.phi == LOG:
            pull = tl.sum(pull, 0)
    if problem.norm_p is not None:
        along = tl.sum(along, 0)
        if problem.spread and problem.phi == LOG:
            along_spread = tl.sum(along_spread, 0)
    heat = mass.heat
    beaten = mass.beaten
    if STATS:
        heat = tl.sum(heat, 0)
        beaten = tl.max(beaten, 0)
    rest = tl.sum(mass.rest, 0)
    return Mass(mass.shift, rest, total, pull, along, along_spread, heat, beaten)


@triton.jit
def beside(mass, own, other):
    """The Mass in units of the largest logit, of which two are not in it."""
    maximum = tl.where(own > mass.shift, own, mass.shift)
    maximum = tl.where(other > maximum, other, maximum)
    shift = finite_shift(maximum)
    shrink = exp(mass.shift - shift)
    return Mass(
        maximum,
        mass.rest * shrink,
        mass.mass,
        mass.pull,
        mass.along * shrink,
        mass.along_spread,
        heat_from(mass, shift) * shrink,
        mass.beaten,
    )


@triton.jit
def edge_blocks(row, problem, BLOCK: tl.constexpr):
    """(place of the first block, place of the last): the edges of a row, which may have columns
    that are not there; the first only where rows are phased, and it may be the last.
    """
    # numbers to the machine even where they are known
    first = tl.zeros_like(row.column)
    return first, first + last_block(row, problem, BLOCK)


@triton.jit
def first_whole(last, problem, BLOCK: tl.constexpr):
    """The place of the first block between the edges."""
    start = tl.zeros_like(last)
    if problem.phased:
        start += BLOCK
    return start


@triton.jit
def sweep_mass(row, aim, problem, STATS: tl.constexpr, BLOCK: tl.constexpr):
    """The Mass of a whole row, with its STATS, if so asked: every lane keeps its own to the
    end."""
    mass = no_mass(row, problem, STATS, BLOCK)
    first, last = edge_blocks(row, problem, BLOCK)
    edge = read_block(row, last, problem, False, BLOCK)
    mass = add_mass(mass, row, edge, aim, problem, STATS)
    if problem.phased and last > first:
        edge = read_block(row, first, problem, False, BLOCK)
        mass = add_mass(mass, row, edge, aim, problem, STATS)
    start = first_whole(last, problem, BLOCK)
    while start < last:
        block = read_block(row, start, problem, True, BLOCK)
        mass = add_mass(mass, row, block, aim, problem, STATS)
        start += BLOCK
    return joined_lanes(mass, problem, STATS)


@triton.jit
def block_mass_alone(row, block, aim, problem, STATS: tl.constexpr):
    """The Mass of a row that is one Block, `of_rivals`."""
    maximum = tl.max(tl.max(block.z, 1), 0)
    x = block.z - finite_shift(maximum)
    mass = block_mass(row, block, maximum, x, aim, problem, STATS)
    return summed_lanes(mass, problem, STATS)


@triton.jit
def store_mass_stats(index, row, own, other, mass, aim, wanted, problem):
    """Stores the statistics of a row, from its Mass and the logits of its labels that are
    not in it."""
    if not problem.spread:
        mass = beside(mass, own, own)
        mass = with_logit(mass, own)
        if problem.other is not None:
            mass = beside(mass, other, other)
            same = row.column == row.other
            mass = with_logit(mass, tl.where(same, float("-inf"), other))
    shift = finite_shift(mass.shift)
    store_stats(index, row.base + shift, mass.rest, mass.heat, mass.beaten, aim, wanted)


@triton.jit
def store_stats(index, shift, total, heat, beaten, aim, wanted):
    """Stores the statistics of a row: from total = Σ exp(z − shift), heat = Σ exp(z − shift)·(z −
    shift), and whether the Aim is `beaten`."""
    log_total = tl.log(total)
    entropy = log_total - heat / total
    # of one class rounding leaves less than nothing; nan stays
    entropy = tl.where(entropy < 0, 0, entropy)
    right = (beaten == 0) & (aim.column >= 0) & (tl.abs(entropy) < float("inf"))
    tl.store(wanted.lse + index, shift + log_total)
    tl.store(wanted.entropy + index, entropy)
    tl.store(wanted.correct + index, right)


@triton.jit
def with_logit(mass, z):
    """rest and heat of the Mass with one more logit, which is not above its shift."""
    x = z - finite_shift(mass.shift)
    e = exp(x)
    return Mass(
        mass.shift,
        mass.rest + e,
        mass.mass,
        mass.pull,
        mass.along,
        mass.along_spread,
        mass.heat + heat_of(e, x),
        mass.beaten,
    )


@triton.jit
def block_detail(row, block, shift, log_total, problem):
    """The Detail by lane of a block, ℓ_j = log_total − (z_j − shift)."""
    ell = log_total - (block.z - shift)
    values = counted_distances(block, phi_value(ell, problem), problem)
    slopes = phi_slope(ell, problem) * block.weight
    value = tl.sum(values * block.weight, 1)
    along = tl.zeros_like(value).to(tl.float64)
    if problem.norm_p is not None:
        direction = directions(block.u, block.columns, block.inside, row, problem)
        along = sum_exactly(slopes * direction)
    return Detail(value, tl.sum(slopes, 1), along)


@triton.jit
def add_detail(detail, row, block, shift, log_total, problem):
    """The Detail by lane with the columns of a block."""
    added = block_detail(row, block, shift, log_total, problem)
    return Detail(
        detail.value + added.value, detail.slope + added.slope, detail.along + added.along
    )


@triton.jit
def joined_details(detail):
    """The Detail of all lanes."""
    return Detail(tl.sum(detail.value, 0), tl.sum(detail.slope, 0), tl.sum(detail.along, 0))


@triton.jit
def sweep_detail(row, shift, log_total, problem, BLOCK: tl.constexpr):
    """The Detail of a whole row, as sweep_mass."""
    zeros = tl.zeros((BLOCK // problem.each,), row.hard.dtype)
    detail = Detail(zeros, zeros, zeros.to(tl.float64))
    first, last = edge_blocks(row, problem, BLOCK)
    edge = read_block(row, last, problem, False, BLOCK)
    detail = add_detail(detail, row, edge, shift, log_total, problem)
    if problem.phased and last > first:
        edge = read_block(row, first, problem, False, BLOCK)
        detail = add_detail(detail, row, edge, shift, log_total, problem)
    start = first_whole(last, problem, BLOCK)
    while start < last:
        block = read_block(row, start, problem, True, BLOCK)
        detail = add_detail(detail, row, block, shift, log_total, problem)
        start += BLOCK
    return joined_details(detail)


@triton.jit
def row_terms(index, row, own, other, mass, detail, problem):
    """(loss of the row, its Terms), from its sums and of its labels (z − shift, x).

    L = Σ_j t'_j (φ(ℓ_j) + z_loss·lse²) and dL/dz_k = p_k·S − t'_k φ'(ℓ_k) with
    S = Σ_j t'_j (φ'(ℓ_j) + 2·z_loss·lse). `detail` counts where weight is spread over all columns.
    Of two labels that leave nothing for others `mass` is `beside` these.
    """
    shift = finite_shift(mass.shift)
    part = tl.zeros_like(mass.rest)
    other_part = tl.zeros_like(mass.rest)
    gap = own[0]
    pair: tl.constexpr = problem.other is not None and not problem.spread
    if problem.form == ONE_LABEL:
        # in units of the label or of its rivals, whichever is larger
        above = (gap > 0) | (mass.rest == 0)
        e = exp(tl.where(above, -gap, gap))
        # nan where the label's logit is infinite
        lift = tl.where(above, gap - gap, gap)
        share = tl.where(above, 1 + lift, e)
        shrink = tl.where(above, tl.where(mass.rest == 0, 0, e), 1)
        rest = mass.rest * shrink
        total = rest + share
        # share is 1 where the label is larger: then ℓ = log1p(rest), without cancellation
        log_total = log1p(rest + (share - 1))
        ell = log_total - lift
        log_total += tl.where(above, gap, 0)
        weight = row.hard
        value = weight * phi_value(ell, problem)
        slope = weight * phi_slope(ell, problem)
        part = -slope * (rest / total)
    elif pair:
        # two labels, of which the first has all where they are one class
        same = row.column == row.other
        hard = tl.where(same, row.hard + row.other_hard, row.hard)
        other_hard = tl.where(same, 0, row.other_hard)
        other_gap = tl.where(same, float("-inf"), other[0])
        shrink = tl.zeros_like(mass.rest) + 1
        own_share = exp(gap)
        other_share = exp(other_gap)
        own_rest = mass.rest + other_share
        other_rest = mass.rest + own_share
        total = own_rest + own_share
        own_ell, own_total = _cross_entropy(gap, own_share, own_rest)
        other_ell, other_total = _cross_entropy(other_gap, other_share, other_rest)
        log_total = tl.where(other_gap > gap, other_total, own_total)
        weight = hard + other_hard
        # a weight of 0 hides no row that has no softmax
        value = _weighted(hard, phi_value(own_ell, problem), problem) + log_total * 0
        value += _weighted(other_hard, phi_value(other_ell, problem), problem)
        own_pull = hard * phi_slope(own_ell, problem)
        other_pull = other_hard * phi_slope(other_ell, problem)
        slope = own_pull + other_pull
        # of all strength but the label's own, which would cancel where it has all mass
        part = other_pull * (own_share / total) - own_pull * (own_rest / total)
        other_part = own_pull * (other_share / total) - other_pull * (other_rest / total)
    else:
        shrink = tl.zeros_like(mass.rest) + 1
        total = mass.rest
        log_total = tl.log(mass.rest)
        weight = row.uniform * mass.mass
        # where nothing is spread the infinite loss of a masked class does not count; a weight of 0
        # hides no row that has no softmax
        value = tl.where(row.uniform == 0, 0, row.uniform * detail.value) + log_total * 0
        slope = row.uniform * detail.slope
        if problem.form == LABELS:
            ell = log_total - gap
            loss = _weighted(row.hard, phi_value(ell, problem), problem)
            # nor does that of the label where all is spread
            value += tl.where((row.hard == 0) & (row.uniform != 0), 0, loss)
            part = -row.hard * phi_slope(ell, problem)
            slope -= part
            weight += row.hard
            if problem.other is not None:
                ell = log_total - other[0]
                value += _weighted(row.other_hard, phi_value(ell, problem), problem)
                other_part = -row.other_hard * phi_slope(ell, problem)
                slope -= other_part
                weight += row.other_hard
    if problem.z_loss is not None:
        lse = (row.base + shift) + log_total
        value += weight * (lse * lse * problem.z_loss)
        penalty = weight * (lse * 2 * problem.z_loss)
        slope += penalty
        if problem.form == ONE_LABEL:
            part += penalty * (share / total)
        elif pair:
            part += penalty * (own_share / total)
            other_part += penalty * (other_share / total)
    strength = slope / total * shrink
    along = tl.zeros_like(strength)
    if problem.norm_p is not None:
        pulled = mass.along * strength + own[1].to(tl.float64) * part
        if problem.spread:
            pulled -= detail.along * row.uniform
        if problem.other is not None:
            pulled += other[1].to(tl.float64) * other_part
        along = pulled.to(strength.dtype)
    if pair:
        other_part = tl.where(same, part, other_part)
    top = tl.zeros_like(strength)
    raises = top
    each = top
    if problem.penalty is not None:
        value += tl.load(problem.penalties + index)
        top = tl.load(problem.terms + index * TERMS + TOP)
        raises = tl.load(problem.terms + index * TERMS + RAISES)
        each = tl.load(problem.terms + index * TERMS + EACH)
    return value, Terms(
        row.factor,
        row.length,
        row.bend,
        top,
        shift,
        log_total,
        strength,
        row.uniform,
        part,
        other_part,
        along,
        raises,
        each,
    )


@triton.jit
def _cross_entropy(lift, share, rest):
    """(ℓ, log of the whole) of a label of e^lift = share beside the others' mass `rest`: of all
    digits where it has most of it."""
    most = share >= rest
    whole = tl.log(rest + share)
    # nan where there is no mass at all
    near = log1p(tl.where(most, rest, 0) / tl.where(most, share, 1))
    return tl.where(most, near, whole - lift), tl.where(most, near + lift, whole)


@triton.jit
def _weighted(weight, value, problem):
    """weight·value; of a mixed target's two labels one may have no weight and an infinite loss."""
    product = weight * value
    if problem.other is not None:
        product = tl.where(weight == 0, 0, product)
    return product


@triton.jit
def read_terms(index, problem):
    """The Terms of a row, their shift less its base."""
    here = problem.terms + index * TERMS
    return Terms(
        tl.load(here),
        tl.load(here + 1),
        tl.load(here + 2),
        tl.load(here + 3),
        read_shift(here, problem),
        tl.load(here + 5),
        tl.load(here + 6),
        tl.load(here + 7),
        tl.load(here + 8),
        tl.load(here + 9),
        tl.load(here + 10),
        tl.load(here + 11),
        tl.load(here + 12),
    )


@triton.jit
def read_shift(here, problem):
    """Of the terms that stand there, less the base."""
    shift = tl.load(here + SHIFT)
    if problem.delta is not None:
        shift = tl.zeros_like(shift)
    return shift


@triton.jit
def store_terms(place, index, terms):
    """Stores the Terms of a row."""
    for k in tl.static_range(TERMS):
        tl.store(place + index * TERMS + k, terms[k])


@triton.jit
def times(terms, factor):
    """The Terms for another upstream gradient than 1."""
    return Terms(
        terms.factor,
        terms.length,
        terms.bend,
        terms.top,
        terms.shift,
        terms.log_total,
        terms.strength * factor,
        terms.uniform * factor,
        terms.part * factor,
        terms.other_part * factor,
        terms.along * factor,
        terms.raises * factor,
        terms.each * factor,
    )


@triton.jit
def upstream_of(index, upstream):
    """What the gradient of a row's loss is multiplied by."""
    factor = 1.0
    if upstream.rows is not None:
        factor = tl.load(upstream.rows + index * upstream.stride)
    if upstream.norm is not None:
        factor = factor / tl.load(upstream.norm)
    return factor


@triton.jit
def block_gradient(row, block, terms, problem, OWN: tl.constexpr):
    """(dL/du, dL/d offset) of a block of columns: see lpl_fused.algebra.terms. Without OWN the
    entry of a label that has all weight is left to `store_own`.
    """
    dz = exp(block.z - terms.shift) * terms.strength
    if problem.spread:
        ell = terms.log_total - (block.z - terms.shift)
        dz -= block.weight * phi_slope(ell, problem) * terms.uniform
    asked: tl.constexpr = problem.form == LABELS or (problem.form == ONE_LABEL and OWN)
    if asked and is_within(row.column, block):
        # without a barrier the compiler asks every column of every block instead
        tl.debug_barrier()
        own = block.columns == row.column
        if problem.spread:
            dz += tl.where(own, terms.part, 0)
        else:
            dz = tl.where(own, terms.part, dz)
    if problem.other is not None and is_within(row.other, block):
        tl.debug_barrier()
        own = block.columns == row.other
        if problem.spread:
            dz += tl.where(own, terms.other_part, 0)
        else:
            dz = tl.where(own, terms.other_part, dz)
    du, d_offset = unperturb(dz, block.u, block.columns, block.inside, row, problem)
    if problem.norm_p is not None:
        du = through_norm(du, terms.along, block.u, row, problem)
    if problem.penalty is not None:
        du += push_of(block.u, block.columns, block.inside, terms, problem)
    return du, d_offset


@triton.jit
def move_block(row, start, terms, grad, problem, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Reads a block of a row, writes its dL/du but for what `store_own` does."""
    block = read_block(row, start, problem, WHOLE, BLOCK)
    du, _ = block_gradient(row, block, terms, problem, False)
    store_block(grad, row, block, du, problem)


@triton.jit
def read_own(row, problem):
    """The raw logit of a label that has all weight, before its gradient may lie where it was."""
    u = row.hard
    if problem.form == ONE_LABEL:
        u = read_logits(row, row.column, problem)[0]
        tl.debug_barrier()
    return u


@triton.jit
def store_own(row, u, terms, grad, problem):
    """dL/du at a label that has all weight, over what its block made of it: one number, where the
    block would ask of every column whether it is the label's.
    """
    if problem.form == ONE_LABEL:
        tl.debug_barrier()
        inside = row.column < problem.classes
        du, _ = unperturb(terms.part, u, row.column, inside, row, problem)
        if problem.norm_p is not None:
            du = through_norm(du, terms.along, u, row, problem)
        if problem.penalty is not None:
            du += push_of(u, row.column, inside, terms, problem)
        here = grad + row.index * problem.classes + row.column
        tl.store(here, du.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def sweep_gradient(row, terms, grad, problem, BLOCK: tl.constexpr):
    """Writes dL/du of a row, from its end, which the sweep before has left in the caches."""
    own = read_own(row, problem)
    first, last = edge_blocks(row, problem, BLOCK)
    move_block(row, last, terms, grad, problem, False, BLOCK)
    if problem.phased and last > first:
        move_block(row, first, terms, grad, problem, False, BLOCK)
    start = last - BLOCK
    while start >= first_whole(last, problem, BLOCK):
        move_block(row, start, terms, grad, problem, True, BLOCK)
        start -= BLOCK
    store_own(row, own, terms, grad, problem)


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
def store_nothing(index, wanted, problem, BLOCK: tl.constexpr):
    """What is wanted of a row that is ignored."""
    if wanted.losses is not None:
        tl.store(wanted.losses + index, 0)
    if wanted.aim is not None:
        tl.store(wanted.lse + index, 0)
        tl.store(wanted.entropy + index, 0)
        tl.store(wanted.correct + index, False)
    if wanted.terms is not None:
        for k in tl.static_range(TERMS):
            tl.store(wanted.terms + index * TERMS + k, 0)
    if wanted.grad is not None:
        fill_row(wanted.grad, index, 0, problem.classes, BLOCK)
    if wanted.delta is not None:
        fill_row(wanted.delta, index, 0, problem.classes, BLOCK)
