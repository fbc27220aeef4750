"""Gradients of the logits and of the tables from the terms of the rows; another upstream for one
that is finished.
"""

import triton
import triton.language as tl

from .algebra import (
    DENSE,
    Block,
    bounded,
    last_block,
    read_block,
    read_logits,
    read_row,
    read_weights,
    store_block,
)
from .elementary import scales_exactly
from .rows import (
    block_gradient,
    move_block,
    read_own,
    read_terms,
    store_own,
    sweep_gradient,
    times,
    upstream_of,
)


@triton.jit
def gradient_rows(problem, upstream, grad, BLOCK: tl.constexpr):
    """grad (N, W) of the logits alone. One program per row and block of its columns, which has
    nothing to sum and nothing to wait for.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = tl.program_id(0).to(tl.int64)
    column_start = tl.program_id(1) * BLOCK
    live, row = read_row(index, problem, problem.terms.dtype.element_ty)
    terms = times(read_terms(index, problem), upstream_of(index, upstream))
    whole = column_start < last_block(row, problem, BLOCK)
    if problem.phased:
        whole &= column_start > 0
    if live == 0:
        block = read_block(row, column_start, problem, False, BLOCK)
        store_block(grad, row, block, tl.zeros_like(block.u), problem)
    else:
        own = row.hard
        column = row.column + row.phase
        owns = (column >= column_start) & (column < column_start + BLOCK)
        if owns:
            own = read_own(row, problem)
        if whole:
            move_block(row, column_start, terms, grad, problem, True, BLOCK)
        else:
            move_block(row, column_start, terms, grad, problem, False, BLOCK)
        if owns:
            store_own(row, own, terms, grad, problem)


@triton.jit
def gradient(problem, upstream, wanted, n_rows, CHUNK, BLOCK: tl.constexpr):
    """dL/du, and of each chunk of CHUNK rows Σ_i dL/d scale and Σ_i dL/d offset.

    One program per chunk and block of columns. `wanted` says what is stored where.
    """
    chunk = tl.program_id(0).to(tl.int64)
    column_first = tl.program_id(1) * BLOCK
    columns = column_first + tl.arange(0, BLOCK)
    inside = columns < problem.classes
    dtype: tl.constexpr = problem.terms.dtype.element_ty
    d_scale = tl.zeros((BLOCK,), dtype)
    d_offset = tl.zeros((BLOCK,), dtype)
    index = chunk * CHUNK
    end = tl.minimum(index + CHUNK, n_rows)
    while index < end:
        live, row = read_row(index, problem, dtype)
        du = tl.zeros((BLOCK,), dtype)
        d_row = tl.zeros((BLOCK,), dtype)
        if live:
            terms = times(read_terms(index, problem), upstream_of(index, upstream))
            u, z, _ = read_logits(row, columns, problem)
            weight = read_weights(row, columns, inside, problem)
            # by column, not by place: rows with other phases are added to it
            behind = column_first + BLOCK
            block = Block(columns, columns, inside, column_first, behind, u, z, weight)
            du, d_row = block_gradient(row, block, terms, problem, True)
            if wanted.scale is not None:
                d_scale += d_row * bounded(u, row, problem)
            if wanted.offset is not None:
                d_offset += d_row
        start = index * problem.classes
        if wanted.input is not None:
            du = du.to(wanted.input.dtype.element_ty)
            tl.store(wanted.input + start + columns, du, mask=inside)
        if wanted.rows is not None:
            tl.store(wanted.rows + start + columns, d_row, mask=inside)
        if wanted.margin is not None:
            # by the one lane that holds the target's column
            own = inside & (columns == row.column)
            tl.store(wanted.margin + index + columns * 0, -d_row, mask=own)
        index += 1
    start = chunk * problem.classes
    if wanted.scale is not None:
        tl.store(wanted.scale + start + columns, d_scale, mask=inside)
    if wanted.offset is not None:
        tl.store(wanted.offset + start + columns, d_offset, mask=inside)


@triton.jit
def rescale_rows(problem, upstream, grad, BLOCK: tl.constexpr):
    """grad (N, C), of 16 bits and for an upstream gradient of 1, becomes that of `upstream`: scaled
    where that is exact, else made anew, so that it is rounded once. One program per row.
    """
    index = tl.program_id(0).to(tl.int64)
    factor = tl.load(upstream.rows + index * upstream.stride)
    if scales_exactly(factor):
        if problem.form != DENSE:
            factor = heard(index, factor, problem.target, problem.other, problem.ignore_index)
        scale_row(index, factor, grad, problem.classes, BLOCK)
    else:
        live, row = read_row(index, problem, problem.terms.dtype.element_ty)
        if live:
            terms = times(read_terms(index, problem), upstream_of(index, upstream))
            sweep_gradient(row, terms, grad, problem, BLOCK)


@triton.jit
def scale_rows(
    matrix, factors, stride, classes, target, other, ignore_index,
    EXACTLY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """matrix[i] ← factors[i·stride]·matrix[i], in place; if EXACTLY, where nothing is rounded.
    target and other (N,) are labels, each or None."""
    index = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + index * stride)
    if EXACTLY and scales_exactly(factor) == 0:
        return
    if target is not None:
        factor = heard(index, factor, target, other, ignore_index)
    scale_row(index, factor, matrix, classes, BLOCK)


@triton.jit
def heard(index, factor, target, other, ignore_index):
    """The factor of a row's gradient; 1 where it is not finite and the row ignored, as the 0 that
    stands there must not become 0·inf.
    """
    if (tl.abs(factor) < float("inf")) == 0:
        ignored = tl.load(target + index) == ignore_index
        if other is not None:
            ignored = ignored & (tl.load(other + index) == ignore_index)
        factor = tl.where(ignored, 1, factor)
    return factor


@triton.jit
def scale_row(index, factor, matrix, classes, BLOCK: tl.constexpr):
    """matrix[index] ← factor·matrix[index]; nothing to do where the factor is 1."""
    start = 0
    if factor != 1:
        while start < classes:
            columns = start + tl.arange(0, BLOCK)
            here = matrix + index * classes + columns
            value = tl.load(here, mask=columns < classes).to(factor.dtype) * factor
            tl.store(here, value.to(matrix.dtype.element_ty), mask=columns < classes)
            start += BLOCK
