"""The penalty on logit distances above a margin (lpl_fused.penalty) of a row, and its gradient."""

import triton
import triton.language as tl

from ... import penalty
from .algebra import class_of, read_at

RELU = tl.constexpr(penalty.RELU)
PHR = tl.constexpr(penalty.PHR)
P2 = tl.constexpr(penalty.P2)


@triton.jit
def penalty_of(u, top, columns, inside, problem):
    """(P(h), dP/dh) of some columns."""
    h = ((top - u) - problem.penalty_margin) / problem.penalty_unit
    if problem.penalty == RELU:
        value = tl.where(h > 0, h * problem.penalty_strength, 0)
        slope = tl.where(h > 0, h * 0 + problem.penalty_strength, 0)
    else:
        classes = class_of(columns, problem)
        lam = read_at(problem.multiplier + classes, inside, u.dtype)
        rho = read_at(problem.rho + classes, inside, u.dtype, 1)
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
def push_of(u, columns, inside, terms, problem):
    """The penalty's gradient in some columns of a row."""
    _, slope = penalty_of(u, terms.top, columns, inside, problem)
    return tl.where(u == terms.top, terms.raises, 0) - slope * terms.each
