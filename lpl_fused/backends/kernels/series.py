"""Power series of the tail: E(e) = Σ_{r=1..ORDER} E_r·e^r with E_1 = 1, and power sums
M_r = Σ e^r, r = 1, 2, …; tuples of numbers, whose loops are unrolled.
"""

import triton
import triton.language as tl


@triton.jit
def power_of(e, R: tl.constexpr):
    """e^R as a product of two smaller powers, which a sum takes in as it multiplies them."""
    half = e
    for _ in tl.static_range(R // 2 - 1):
        half *= e
    power = half
    if R == 1:
        power = e
    elif R % 2 == 1:
        power = half * (half * e)
    else:
        power = half * half
    return power


@triton.jit
def added_unless(skipped, powers, e, POWERS: tl.constexpr):
    """powers + Σ e^r of each lane, but for those skipped."""
    result = ()
    for r in tl.static_range(POWERS):
        result += (powers[r] + tl.where(skipped, 0, tl.sum(power_of(e, r + 1), 1)),)
    return result


@triton.jit
def tail_mass(series, powers, ORDER: tl.constexpr):
    """Σ_tail E(e)"""
    mass = powers[0]
    for r in tl.static_range(1, ORDER):
        mass += series[r] * powers[r]
    return mass


@triton.jit
def tail_square(series, powers, ORDER: tl.constexpr):
    """Σ_tail E(e)², cut off as E(e)·e is."""
    square = tl.zeros_like(powers[0])
    for r in tl.static_range(ORDER):
        coefficient = tl.zeros_like(square)
        for i in tl.static_range(r + 1):
            coefficient += series[i] * series[r - i]
        square += coefficient * powers[r + 1]
    return square


@triton.jit
def advanced(series, a, ORDER: tl.constexpr):
    """E·exp(a·E), cut off after ORDER terms."""
    # w = exp(a·E) from w' = a·E'·w
    slope = ()
    for i in tl.static_range(ORDER - 1):
        slope += (series[i] * a * (i + 1.0),)
    growth = (tl.zeros_like(a) + 1,)
    for n in tl.static_range(1, ORDER):
        term = slope[0] * growth[n - 1]
        for i in tl.static_range(1, n):
            term += slope[i] * growth[n - 1 - i]
        growth += (term * (1.0 / n),)
    result = series[:1]
    for n in tl.static_range(1, ORDER):
        term = series[n] + growth[n]
        for i in tl.static_range(1, n):
            term += series[i] * growth[n - i]
        result += (term,)
    return result
