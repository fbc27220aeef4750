"""Gradients of the logits and of the tables, recomputed from saved row statistics."""

import triton
import triton.language as tl

from .algebra import LOG, SOLVED, bounded, read_logits, read_row, read_weights, unperturb
from .norms import through_norm
from .penalties import push_of
from .rows import (
    block_gradient,
    finite_shift,
    read_label_logits,
    row_terms,
    sweep_along,
    sweep_sums,
)


@triton.jit
def row_sums(problem, stats, sums, BLOCK: tl.constexpr):
    """sums (2, N) = (Σ_j w_j φ'(ℓ_j), Σ_j w_j): what `backward` needs of a whole row beside its
    statistics where weight is spread over all columns. One program per row.
    """
    index = tl.program_id(0).to(tl.int64)
    rows = tl.num_programs(0)
    live, row = read_row(index, problem, sums.dtype.element_ty)
    if live == 0:
        tl.store(sums + index, 0)
        tl.store(sums + rows + index, 0)
        return

    if problem.phi == LOG:
        mass = tl.full((), 0, sums.dtype.element_ty)
        start = 0
        while start < problem.classes:
            columns = start + tl.arange(0, BLOCK)
            mass += tl.sum(read_weights(row, columns, columns < problem.classes, problem), 0)
            start += BLOCK
        slopes = mass
    else:
        shift = finite_shift(tl.load(stats + index))
        log_total = tl.log(tl.load(stats + rows + index))
        _, slopes, mass = sweep_sums(row, shift, log_total, problem, BLOCK)
    tl.store(sums + index, slopes)
    tl.store(sums + rows + index, mass)


@triton.jit
def terms_of_row(row, index, n_rows, grad_rows, grad_stride, stats, sums, problem):
    """The row's Terms, from what is saved of it."""
    shift = finite_shift(tl.load(stats + index))
    rest = tl.load(stats + n_rows + index)
    of_row = (rest, rest, rest)
    if sums is not None:
        of_row = (rest, tl.load(sums + index), tl.load(sums + n_rows + index))
    upstream = tl.load(grad_rows + index * grad_stride)
    own, other = read_label_logits(row, problem)
    gaps = (own - shift, other - shift)
    return row_terms(row, gaps, shift, rest, of_row, upstream, problem)[1]


@triton.jit
def row_alongs(problem, grad_rows, grad_stride, stats, sums, alongs, BLOCK: tl.constexpr):
    """alongs (N,): what `backward` needs of a whole row beside that where there is a norm: see
    norms.py. One program per row.
    """
    index = tl.program_id(0).to(tl.int64)
    live, row = read_row(index, problem, alongs.dtype.element_ty)
    along = tl.full((), 0, alongs.dtype.element_ty)
    if live:
        rows = tl.num_programs(0)
        terms = terms_of_row(row, index, rows, grad_rows, grad_stride, stats, sums, problem)
        along = sweep_along(row, terms, problem, BLOCK)
    tl.store(alongs + index, along)


@triton.jit
def backward(
    problem, outcome, grad_rows, grad_stride, stats, sums, alongs, wanted, n_rows, CHUNK,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """dL/du = dL/dz·dz/du, and of each chunk of CHUNK rows Σ_i dL/d scale and Σ_i dL/d offset.

    One program per chunk and block of columns. `wanted` says what is stored where, grad_rows (N,)
    is dL/dL_i, sums is None unless weight is spread over all columns, alongs unless there is a
    norm. Where there is an outcome
    (N,) chunks are single rows, and those SOLVED are done.
    """
    chunk = tl.program_id(0).to(tl.int64)
    if outcome is not None and tl.load(outcome + chunk) == SOLVED:
        return
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < problem.classes
    dtype: tl.constexpr = stats.dtype.element_ty
    d_scale = tl.zeros((BLOCK,), dtype)
    d_offset = tl.zeros((BLOCK,), dtype)
    index = chunk * CHUNK
    end = tl.minimum(index + CHUNK, n_rows)
    while index < end:
        live, row = read_row(index, problem, dtype)
        u = tl.zeros((BLOCK,), dtype)
        dz = tl.zeros((BLOCK,), dtype)
        if live:
            u, z, _ = read_logits(row, columns, problem)
            terms = terms_of_row(row, index, n_rows, grad_rows, grad_stride, stats, sums, problem)
            weight = read_weights(row, columns, inside, problem)
            dz = block_gradient(row, z, weight, columns, terms, problem)
        du, d_row = unperturb(dz, u, columns, inside, row, problem)
        if live:
            if alongs is not None:
                du = through_norm(du, tl.load(alongs + index), u, row, problem)
            if problem.penalties is not None:
                push = push_of(index, u, columns, inside, problem)
                du += push * tl.load(grad_rows + index * grad_stride)
        start = index * problem.classes
        if wanted.input is not None:
            du = du.to(wanted.input.dtype.element_ty)
            tl.store(wanted.input + start + columns, du, mask=inside)
        if wanted.rows is not None:
            tl.store(wanted.rows + start + columns, d_row, mask=inside)
        if wanted.margin is not None:
            # by the one lane that holds the target's column
            tl.store(wanted.margin + index + columns * 0, -d_row, mask=columns == row.column)
        if wanted.scale is not None:
            d_scale += d_row * bounded(u, row, problem)
        if wanted.offset is not None:
            d_offset += d_row
        index += 1
    start = chunk * problem.classes
    if wanted.scale is not None:
        tl.store(wanted.scale + start + columns, d_scale, mask=inside)
    if wanted.offset is not None:
        tl.store(wanted.offset + start + columns, d_offset, mask=inside)


@triton.jit
def scale_rows(matrix, factors, stride, classes, BLOCK: tl.constexpr):
    """matrix[i] ← factors[i·stride]·matrix[i], in place; nothing to do where the factor is 1."""
    index = tl.program_id(0).to(tl.int64)
    factor = tl.load(factors + index * stride)
    if factor == 1:
        return
    start = 0
    while start < classes:
        columns = start + tl.arange(0, BLOCK)
        here = matrix + index * classes + columns
        value = tl.load(here, mask=columns < classes).to(factor.dtype) * factor
        tl.store(here, value.to(matrix.dtype.element_ty), mask=columns < classes)
        start += BLOCK
