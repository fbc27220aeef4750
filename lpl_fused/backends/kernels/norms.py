"""T(u) = u·f(‖u‖_p) of a row (lpl_fused.norm): its norm, and what that makes of the gradient.

With n = ‖u‖_p and g = dL/dT

    dL/du_j = f·(g_j − bend·s_j·Σ_k g_k u_k/n) ,   s = ∇n ,   bend = −f'·n/f

Logits of −inf stay so, and count nothing.
"""

import triton
import triton.language as tl

from . import arguments

INFINITY = tl.constexpr(arguments.INFINITY)


@triton.jit
def measure_rows(problem, lengths, BLOCK: tl.constexpr):
    """lengths (N, 3) = (f, n, bend), bend shared among ties for p = inf. One program per row."""
    index = tl.program_id(0).to(tl.int64)
    logits = problem.input + index * problem.input_stride
    dtype: tl.constexpr = lengths.dtype.element_ty
    peak = tl.full((), 0, dtype)
    total = tl.full((), 0, dtype)
    start = 0
    while start < problem.classes:
        columns = start + tl.arange(0, BLOCK)
        u = tl.load(logits + columns, mask=columns < problem.classes, other=0).to(dtype)
        magnitude = tl.abs(counted(u))
        joint = tl.maximum(peak, tl.max(magnitude, 0))
        if problem.norm_p == INFINITY:
            # the number of ties
            ties = (magnitude == joint) & (columns < problem.classes)
            total = tl.where(peak == joint, total, 0) + tl.sum(ties.to(dtype), 0)
        else:
            unit = tl.where(joint == 0, 1, joint)
            total = total * power(peak / unit, problem.norm_p)
            total += tl.sum(power(magnitude / unit, problem.norm_p), 0)
        peak = joint
        start += BLOCK
    store_length(lengths + index * 3, peak, total, problem)


@triton.jit
def store_length(here, peak, total, problem):
    """(f, n, bend) of a row from its largest |u_j| and Σ (|u_j|/peak)^p, or the number of ties."""
    dtype: tl.constexpr = here.dtype.element_ty
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
    tl.store(here, tl.where(moves, problem.norm_gain / length, 1).to(dtype))
    tl.store(here + 1, n.to(dtype))
    tl.store(here + 2, tl.where(moves, n / length / ties, 0).to(dtype))


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
    if problem.lengths is not None:
        factor = tl.load(problem.lengths + index * 3)
        length = tl.load(problem.lengths + index * 3 + 1)
        bend = tl.load(problem.lengths + index * 3 + 2)
    return factor, length, bend


@triton.jit
def along_norm(g, u, row):
    """Σ g_k u_k/n of a block of columns, g = dL/dT."""
    inverse = tl.where(row.length == 0, 0, 1 / tl.where(row.length == 0, 1, row.length))
    return tl.sum((g * (counted(u) * inverse)).to(tl.float64), 0).to(g.dtype)


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
