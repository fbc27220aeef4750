"""φ, the perturbed logits of some columns, the target of a row, and what differentiates them.

Logits and φ are elementwise and shape-polymorphic: one column, a block of them, or a tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ... import phi
from ...algebra.terms import Terms
from . import arguments
from .elementary import expm1, tanh
from .norms import read_length

LOG = tl.constexpr(phi.LOG)
POWER = tl.constexpr(phi.POWER)
FOCAL = tl.constexpr(phi.FOCAL)
POLY1 = tl.constexpr(phi.POLY1)
ONE_LABEL = tl.constexpr(arguments.ONE_LABEL)
LABELS = tl.constexpr(arguments.LABELS)
DENSE = tl.constexpr(arguments.DENSE)
TERMS = tl.constexpr(arguments.TERMS)
SHIFT = tl.constexpr(Terms._fields.index("shift"))
SOLVED = tl.constexpr(arguments.SOLVED)
TWO_INFINITIES = tl.constexpr(0xFF80FF80 - (1 << 32))  # −∞ twice, in bfloat16


class Row(NamedTuple):
    """A row's target weights t'_j = hard·1[j = column] + other_hard·1[j = other] + uniform·w_j
    (w_j: see read_weights) and the places of its tables.
    """

    index: Any
    lost: Any  # whether its label, or its row of a table, is out of range
    column: Any  # the number of columns if the label's is not among them; so `other`
    hard: Any
    other: Any
    other_hard: Any
    uniform: Any
    table_row: Any  # of problem.rows
    delta_row: Any  # of problem.delta
    base: Any  # what is taken off z before δ is added: its terms' shift
    begin: Any  # where it begins among the logits, without its phase
    phase: Any  # by how many logits it begins behind a multiple of 16 bytes
    margin: Any
    factor: Any  # its logits are this many times as long: see norms.py
    length: Any
    bend: Any


class Block(NamedTuple):
    """Columns of a row that follow each other, (lanes, problem.each): what a lane has is in one
    thread, which adds it up by itself.

    Their places count from Row.begin, so that every lane begins at a multiple of 16 bytes.
    """

    places: Any
    columns: Any
    inside: Any  # which of them exist
    first: Any  # column; so `end`, behind the last
    end: Any
    u: Any  # raw logits
    z: Any  # perturbed ones
    weight: Any  # see read_weights


@triton.jit
def read_at(place, inside, dtype: tl.constexpr, default: tl.constexpr = 0):
    """What stands there, or the default where it is not inside."""
    return tl.load(place, mask=inside, other=default).to(dtype)


@triton.jit
def class_count(problem):
    """C, whatever columns of them the input has."""
    count = problem.classes
    if problem.total is not None:
        count = problem.total
    return count


@triton.jit
def class_of(columns, problem):
    """The columns' numbers among all classes."""
    if problem.first is not None:
        columns = columns + problem.first
    return columns


@triton.jit
def column_of(label, problem):
    """The column of a class; the number of columns if it is not among them."""
    column = label
    if problem.first is not None:
        column = label - problem.first
        elsewhere = (column < 0) | (column >= problem.classes)
        column = tl.where(elsewhere, problem.classes, column)
    return column


@triton.jit
def bounded(u, row, problem):
    """v = softcap·tanh(T(u)/softcap)"""
    if problem.norm_p is not None:
        u = u * row.factor
    if problem.softcap is not None:
        u = tanh(u / problem.softcap) * problem.softcap
    return u


@triton.jit
def perturb(u, columns, inside, row, problem):
    """z = ((scale·v + offset + rows[r] − margin[y]·1[j = y])/temperature − base) + delta; −inf
    outside."""
    z = bounded(u, row, problem)
    classes = class_of(columns, problem)
    if problem.scale is not None:
        z = z * read_at(problem.scale + classes, inside, z.dtype)
    if problem.offset is not None:
        z = z + read_at(problem.offset + classes, inside, z.dtype)
    if problem.rows is not None:
        table = problem.rows + row.table_row * class_count(problem)
        z = z + read_at(table + classes, inside, z.dtype)
    if problem.margin is not None:
        z = tl.where(columns == row.column, z - row.margin, z)
    if problem.inverse_temperature is not None:
        z = z * problem.inverse_temperature
    if problem.delta is not None:
        z = z - row.base  # of logits far from 0 δ keeps its digits so
        delta = problem.delta + row.delta_row * problem.classes
        z = z + read_at(delta + columns, inside, z.dtype)
    # last, so that no transform makes a padded lane finite
    return tl.where(inside, z, float("-inf"))


@triton.jit
def unperturb(dz, u, columns, inside, row, problem):
    """(dL/dT, dL/d offset) of some columns, from dL/dz: dT = dz·scale·(1 − tanh²)/temperature.
    T is u itself unless there is a norm; see norms.through_norm.
    """
    d_offset = dz
    if problem.inverse_temperature is not None:
        d_offset = d_offset * problem.inverse_temperature
    du = d_offset
    if problem.scale is not None:
        classes = class_of(columns, problem)
        du = du * read_at(problem.scale + classes, inside, du.dtype)
    if problem.softcap is not None:
        if problem.norm_p is not None:
            u = u * row.factor
        t = tanh(u / problem.softcap)
        du = du * (1 - t * t)
    return du, d_offset


@triton.jit
def read_logits(row, columns, problem):
    """(u, z, inside): raw and perturbed logits of a row's columns, and which columns exist."""
    inside = columns < problem.classes
    # one 64-bit offset per row; columns are 32-bit
    logits = problem.input + row.index * row_stride(problem)
    u = tl.load(logits + columns, mask=inside, other=0).to(row.hard.dtype)
    return u, perturb(u, columns, inside, row, problem), inside


@triton.jit
def row_stride(problem):
    stride = problem.classes
    if problem.input_stride is not None:
        stride = problem.input_stride
    return stride


@triton.jit
def last_block(row, problem, BLOCK: tl.constexpr):
    """The place at which the last block of a row begins."""
    column_start = (problem.classes + row.phase - 1) // BLOCK * BLOCK
    return column_start


@triton.jit
def read_block(row, start, problem, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """The Block from a place on. WHOLE: all its columns exist."""
    start = tl.multiple_of(start, problem.each)
    column_lanes = tl.arange(0, BLOCK // problem.each)[:, None] * problem.each
    places = start + (column_lanes + tl.arange(0, problem.each)[None, :])
    first = start
    columns = places
    if problem.phased:
        first = start - row.phase
        columns = places - row.phase
    # a constant, of which the compiler makes loads without a mask, and nothing to choose
    inside = tl.full(columns.shape, 1, tl.int1)
    if not WHOLE:
        inside = columns < problem.classes
        if problem.phased:
            inside = inside & (columns >= 0)
    logits = problem.input + row.begin
    raw: tl.constexpr = problem.raw and problem.delta is None
    nothing: tl.constexpr = float("-inf") if raw else 0.0
    paired: tl.constexpr = problem.input.dtype.element_ty == tl.bfloat16
    if paired and (WHOLE or not problem.ragged):
        pairs: tl.constexpr = TWO_INFINITIES if raw else 0
        u = read_pairs(logits, start, problem, pairs, WHOLE, BLOCK)
    else:
        u = read_at(logits + places, inside, row.hard.dtype, nothing)
    z = u
    if not raw:
        z = perturb(u, columns, inside, row, problem)
    weight = read_weights(row, columns, inside, problem)
    return Block(places, columns, inside, first, first + BLOCK, u, z, weight)


@triton.jit
def read_pairs(
    logits, start, problem, DEFAULT: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr
):
    """Logits of bfloat16 as (lanes, problem.each) of float32; lanes are there as a whole or not. A
    bfloat16 is the upper half of a float, so that of two in 32 bits each takes one instruction;
    taken apart first they take three.
    """
    logits = logits.to(tl.pointer_type(tl.int32), bitcast=True)
    half: tl.constexpr = problem.each // 2
    here = start // 2 + tl.arange(0, BLOCK // 2).reshape(BLOCK // problem.each, half)
    here = tl.max_contiguous(tl.multiple_of(here, (1, half)), (1, half))
    if WHOLE:
        pairs = tl.load(logits + here)
    else:
        pairs = tl.load(logits + here, mask=here < problem.classes // 2, other=DEFAULT)
    low = (pairs << 16).to(tl.float32, bitcast=True)
    high = (pairs & -65536).to(tl.float32, bitcast=True)
    return tl.join(low, high).reshape(BLOCK // problem.each, problem.each)


@triton.jit
def is_within(column, block):
    return (column >= block.first) & (column < block.end)


@triton.jit
def of_rivals(block, row, problem):
    """The Block without the logits of the labels, where nothing is spread over the classes."""
    z = block.z
    if not problem.spread and is_within(row.column, block):
        z = tl.where(block.columns == row.column, float("-inf"), z)
    if not problem.spread and problem.other is not None and is_within(row.other, block):
        z = tl.where(block.columns == row.other, float("-inf"), z)
    return Block(
        block.places,
        block.columns,
        block.inside,
        block.first,
        block.end,
        block.u,
        z,
        block.weight,
    )


@triton.jit
def store_block(matrix, row, block, values, problem):
    """Stores a block of the row of a contiguous (N, W) matrix."""
    if problem.input_stride is None:
        here = matrix + row.begin + block.places
    else:
        here = matrix + row.index * problem.classes + block.columns
    tl.store(here, values.to(matrix.dtype.element_ty), mask=block.inside)


@triton.jit
def phi_value(ell, problem):
    """φ(ℓ). No tl.minimum or tl.maximum here: on a GPU they drop a nan."""
    value = ell
    if problem.phi == POWER:
        limit: tl.constexpr = 700.0 if ell.dtype == tl.float64 else 80.0
        exponent = ell * -problem.phi_parameter
        value = expm1(tl.where(exponent > limit, limit, exponent)) / -problem.phi_parameter
    elif problem.phi == FOCAL:
        value = tl.exp(tl.log(_rest(ell)) * problem.phi_parameter) * ell
    elif problem.phi == POLY1:
        value = ell + _rest(ell) * problem.phi_parameter
    return value


@triton.jit
def phi_slope(ell, problem):
    """φ'(ℓ), finite for every ℓ in [0, ∞]."""
    slope = tl.zeros_like(ell) + 1
    if problem.phi == POWER:
        limit: tl.constexpr = 700.0 if ell.dtype == tl.float64 else 80.0
        exponent = ell * -problem.phi_parameter
        slope = tl.where(exponent > limit, 0, tl.exp(exponent))
    elif problem.phi == FOCAL:
        rest = _rest(ell)
        power = tl.exp(tl.log(rest) * problem.phi_parameter)
        p = tl.exp(-ell)
        # p·ℓ vanishes where ℓ is infinite
        slope = power + tl.where(p == 0, 0, p * ell) * (power / rest) * problem.phi_parameter
    elif problem.phi == POLY1:
        slope = tl.exp(-ell) * problem.phi_parameter + 1
    return slope


@triton.jit
def _rest(ell):
    """1 − p = 1 − exp(−ℓ), at least the smallest normal number, so that its log is finite."""
    double: tl.constexpr = ell.dtype == tl.float64
    tiny: tl.constexpr = 2.2250738585072014e-308 if double else 1.1754943508222875e-38
    rest = -expm1(-ell)
    return tl.where(rest < tiny, tiny, rest)


@triton.jit
def read_label(label, problem):
    """(class, ignored, out of range) of a label; one that names no class reads class 0."""
    ignored = label == problem.ignore_index
    outside = (label < 0) | (label >= class_count(problem))
    outside = outside & (label != problem.ignore_index)
    return tl.where(ignored | outside, 0, label), ignored, outside


@triton.jit
def read_table_row(index, label, problem):
    """(row of problem.rows, out of range) for the rows `index`."""
    table_row = label
    outside = index < 0
    if problem.row_index is not None:
        table_row = tl.load(problem.row_index + index)
        outside = (table_row < 0) | (table_row >= problem.row_count)
        table_row = tl.where(outside, 0, table_row)
    return table_row, outside


@triton.jit
def split_share(label, share, problem):
    """(hard, uniform) of a label that has this share of the row's weight."""
    hard = share
    uniform = share * 0
    if problem.weight is not None:
        hard = hard * tl.load(problem.weight + label)
    if problem.smoothing is not None:
        epsilon = tl.load(problem.smoothing + label)
        hard = hard * (1 - epsilon)
        uniform = share * epsilon / class_count(problem)
    elif problem.label_smoothing is not None:
        hard = hard * (1 - problem.label_smoothing)
        uniform = share * problem.label_smoothing / class_count(problem)
    return hard, uniform


@triton.jit
def read_row(index, problem, dtype: tl.constexpr):
    """(live, Row): a row that is not live counts nothing. Weights are nan where a label or row
    index is out of range.
    """
    share = tl.full((), 1, dtype)
    if problem.sample_weight is not None:
        share = share * tl.load(problem.sample_weight + index)
    live = index >= 0
    label = index * 0
    lost = index < 0
    hard = share
    other = label
    other_hard = share
    if problem.form == DENSE:
        table_row, outside = read_table_row(index, label, problem)
        lost = outside
        uniform = tl.where(outside, float("nan"), share)
    else:
        label, ignored, bad = read_label(tl.load(problem.target + index), problem)
        table_row, outside = read_table_row(index, label, problem)
        lost = bad | outside
        if problem.other is None:
            live = ignored == 0
            share = tl.where(bad | outside, float("nan"), share)
            hard, uniform = split_share(label, share, problem)
        else:
            other, other_ignored, other_bad = read_label(tl.load(problem.other + index), problem)
            live = (ignored & other_ignored) == 0
            lam = tl.load(problem.lam + index)
            other_share = tl.where(other_ignored | (lam == 1), 0, share * (1 - lam))
            share = tl.where(ignored | (lam == 0), 0, share * lam)
            share = tl.where(bad | outside, float("nan"), share)
            other_share = tl.where(other_bad, float("nan"), other_share)
            hard, uniform = split_share(label, share, problem)
            other_hard, other_uniform = split_share(other, other_share, problem)
            uniform += other_uniform
    delta_row = index
    if problem.slot is not None:
        delta_row = tl.load(problem.slot + index)
    base = share * 0
    if problem.delta is not None:
        base = tl.load(problem.terms + index * TERMS + SHIFT)
    margin = share * 0
    if problem.margin is not None:
        margin = tl.load(problem.margin + label)
    factor, length, bend = read_length(index, problem, share)
    begin = index.to(tl.int64) * row_stride(problem)
    phase = 0
    if problem.phased:
        phase = (begin & (problem.each - 1)).to(tl.int32)
        begin -= phase
    begin = tl.multiple_of(begin, problem.each)
    # columns have 32 bits, so that no comparison with them has 64
    column = column_of(label, problem).to(tl.int32)
    row = Row(
        index, lost, column, hard, column_of(other, problem).to(tl.int32), other_hard, uniform,
        table_row, delta_row, base, begin, phase, margin, factor, length, bend,
    )  # fmt: skip
    return live, row


@triton.jit
def read_weights(row, columns, inside, problem):
    """What `uniform` multiplies: class weights w_j, for class probabilities t_j·w_j."""
    weight = inside.to(row.hard.dtype)
    if problem.spread:
        if problem.form == DENSE:
            target = problem.target + row.index * problem.target_stride
            t = read_at(target + columns, inside, row.hard.dtype)
            if problem.label_smoothing is not None:
                t = t * (1 - problem.label_smoothing)
                t += weight * problem.label_smoothing / class_count(problem)
            weight = t
        if problem.weight is not None:
            classes = class_of(columns, problem)
            weight *= read_at(problem.weight + classes, inside, weight.dtype)
    return weight
