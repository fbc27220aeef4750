"""The penalty on logit distances above a margin (lpl_fused.penalty) of a row, and its gradient."""

import triton
import triton.language as tl

from ... import penalty

RELU = tl.constexpr(penalty.RELU)
PHR = tl.constexpr(penalty.PHR)
P2 = tl.constexpr(penalty.P2)


@triton.jit
def penalise_rows(problem, weight, penalties, BLOCK: tl.constexpr):
    """penalties (N, 4) = weight·(mean_j P_j, ·, what each tie for the maximum is drawn down by, 1/C
    by the unit of h), second the maximum. weight 0-dim or None. One program per row.
    """
    index = tl.program_id(0).to(tl.int64)
    logits = problem.input + index * problem.input_stride
    dtype: tl.constexpr = penalties.dtype.element_ty
    top = tl.full((), float("-inf"), dtype)
    ties = tl.full((), 0, dtype)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        inside = columns < problem.classes
        u = tl.load(logits + columns, mask=inside, other=float("-inf")).to(dtype)
        joint = tl.maximum(top, tl.max(u, 0))
        ties = tl.where(top == joint, ties, 0) + tl.sum(((u == joint) & inside).to(dtype), 0)
        top = joint
        start += BLOCK
    value = tl.full((), 0, dtype)
    slope = tl.full((), 0, dtype)
    # from its end, which the sweep before has left in the caches
    column = (problem.classes - 1) // BLOCK * BLOCK
    while column >= 0:
        columns = column + tl.arange(0, BLOCK)
        inside = columns < problem.classes
        u = tl.load(logits + columns, mask=inside, other=0).to(dtype)
        values, slopes = penalty_of(u, top, columns, inside, problem)
        value += tl.sum(tl.where(inside, values, 0), 0)
        slope += tl.sum(tl.where(inside, slopes, 0), 0)
        column -= BLOCK
    each = tl.full((), 1, dtype)
    if weight is not None:
        each = tl.load(weight).to(dtype)
    here = penalties + index * 4
    tl.store(here, value * each / problem.classes)
    tl.store(here + 1, top)
    each = each / (problem.classes * problem.penalty_unit)
    tl.store(here + 2, slope * each / ties)
    tl.store(here + 3, each)


@triton.jit
def penalty_of(u, top, columns, inside, problem):
    """(P(h), dP/dh) of some columns."""
    h = ((top - u) - problem.penalty_margin) / problem.penalty_unit
    if problem.penalty == RELU:
        value = tl.where(h > 0, h * problem.penalty_strength, 0)
        slope = tl.where(h > 0, h * 0 + problem.penalty_strength, 0)
    else:
        lam = tl.load(problem.multiplier + columns, mask=inside, other=0)
        rho = tl.load(problem.rho + columns, mask=inside, other=1)
        dose = rho * h
        if problem.penalty == PHR:
            x = lam + dose
            # (x² − λ²)/(2ρ) without its cancellation
            value = tl.where(x > 0, h * (lam + x) * 0.5, -lam * lam / (rho * 2))
            slope = tl.where(x > 0, x, 0)
        else:
            inverse = 1 / (1 + tl.abs(dose))
            square = dose * 0
            if problem.penalty == P2:
                square = dose * dose
            value = tl.where(h >= 0, h * (lam + lam * dose + square / 6), lam * h * inverse)
            slope = lam + lam * dose * 2 + square * 0.5
            slope = tl.where(h >= 0, slope, lam * inverse * inverse)
    return value, slope


@triton.jit
def push_of(index, u, columns, inside, problem):
    """The penalty's gradient in some columns of a row."""
    here = problem.penalties + index * 4
    top = tl.load(here + 1)
    _, slope = penalty_of(u, top, columns, inside, problem)
    return tl.where(u == top, tl.load(here + 2), 0) - slope * tl.load(here + 3)
