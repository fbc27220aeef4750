"""T(u) = u·f(‖u‖_p) of a row (lpl_fused.norm): its norm, and what that makes of the gradient.

With n = ‖u‖_p and g = dL/dT

    dL/du_j = f·(g_j − bend·s_j·Σ_k g_k u_k/n) ,   s = ∇n ,   bend = −f'·n/f

Logits of −inf stay so, and count nothing.
"""

import triton
import triton.language as tl

from . import arguments

INFINITY = tl.constexpr(arguments.INFINITY)
TERMS = tl.constexpr(arguments.TERMS)


@triton.jit
def length_of(peak, total, problem):
    """(f, n, bend) of a row from its largest |u_j| and Σ (|u_j|/peak)^p, or the number of ties."""
    dtype: tl.constexpr = peak.dtype
    # a norm may be larger than what float32 holds
    n = peak.to(tl.float64)
    ties = total * 0 + 1
    if problem.norm_p == INFINITY:
        ties = total
    elif problem.norm_p == 2:
        n *= tl.sqrt(total.to(tl.float64))
    elif problem.norm_p == 1:
        n *= total.to(tl.float64)
    else:
        # every logit is multiplied by 1/n, so that its error grows with them: no float32 here
        total = tl.where(total == 0, 1, total).to(tl.float64)
        n *= tl.exp(tl.log(total) / problem.norm_p)
    length = n + problem.norm_offset
    moves = length > problem.norm_limit
    length = tl.where(moves, length, 1)
    factor = tl.where(moves, problem.norm_gain / length, 1)
    bend = tl.where(moves, n / length / ties, 0)
    return factor.to(dtype), n.to(dtype), bend.to(dtype)


@triton.jit
def counted(u):
    """Logits as their norm sees them."""
    return tl.where(u == float("-inf"), 0, u)


@triton.jit
def power(x, p: tl.constexpr):
    """x^p for x ≥ 0: products for what is whole of p, whose digits exp(p·log x) would lose."""
    whole: tl.constexpr = p // 1 if p < 64 else 0
    part: tl.constexpr = p - whole
    y = x * 0 + 1
    if part == 0.5:
        y = tl.sqrt(x)
    elif part != 0:
        y = tl.where(x == 0, 0, tl.exp(tl.log(tl.where(x == 0, 1, x)) * part))
    square = x
    for bit in tl.static_range(6):
        if whole // (1 << bit) % 2 == 1:
            y = y * square
        square = square * square
    return y


@triton.jit
def read_length(index, problem, like):
    """(f, n, bend) of rows; (1, 0, 0) where there is no norm."""
    factor = like * 0 + 1
    length = like * 0
    bend = like * 0
    if problem.norm_p is not None:
        factor = tl.load(problem.terms + index * TERMS)
        length = tl.load(problem.terms + index * TERMS + 1)
        bend = tl.load(problem.terms + index * TERMS + 2)
    return factor, length, bend


@triton.jit
def in_lengths(u, row):
    """u_k/n of some columns; of a row whose 1/n a float does not hold 0 (csrc/lpl_math.h)."""
    short = row.length < 1.2e-38
    inverse = tl.where(short, 0, 1 / tl.where(short, 1, row.length))
    return counted(u) * inverse


@triton.jit
def through_norm(g, along, u, row, problem):
    """dL/du of some columns, from g = dL/dT and Σ_k g_k u_k/n of the whole row."""
    u = counted(u)
    pull = along * row.bend
    safe = tl.where(row.length == 0, 1, row.length)
    magnitude = tl.abs(u)
    sign = tl.where(u > 0, pull, tl.where(u < 0, -pull, 0))
    if problem.norm_p == 2:
        pull = u * (pull / safe)
    elif problem.norm_p == 1:
        pull = sign
    elif problem.norm_p == INFINITY:
        pull = tl.where(magnitude == row.length, sign, 0)
    else:
        pull = sign * power(magnitude * (1 / safe), problem.norm_p - 1)
    return (g - pull) * row.factor
