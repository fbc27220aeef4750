"""Elementary functions near their zeros, from exp and log (libdevice cannot be interpreted)."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp(x):
    """exp(x) by the machine's own 2^x: one product and one instruction in float32, where tl.exp
    also asks of every number whether its result is denormal, which counts nothing beside a 1.
    """
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * LOG2E)


@triton.jit
def log1p(x):
    """log(1 + x) for x > −1, finite; relative error of a few ulp."""
    u = 1 + x
    # the rounding error of u cancels between log(u) and u − 1
    return tl.where(u == 1, x, tl.log(u) * (x / tl.where(u == 1, 1, u - 1)))


@triton.jit
def reciprocal(x, EXACT: tl.constexpr):
    """1/x of a usual number; to the last place or, if not EXACT, to four of them. A quotient also
    asks whether numbers are denormal or nearly infinite, which takes longer.
    """
    if x.dtype == tl.float64:
        found = 1 / x
    else:
        root = tl.rsqrt(x)
        found = root * root
        if EXACT:
            found += found * (1 - x * found)
    return found


@triton.jit
def log1p_of_unit(x):
    """log(1 + x) for 0 ≤ x ≤ 1; relative error of an ulp or two."""
    if x.dtype == tl.float64:
        found = log1p(x)
    else:
        # neither a logarithm nor a quotient: log(1 + x) = x + x·p(x), p by Chebyshev's points
        p = x * -3.2440256e-3 + 1.9851465e-2
        p = p * x - 5.6959540e-2
        p = p * x + 1.0603656e-1
        p = p * x - 1.5305593e-1
        p = p * x + 1.9675940e-1
        p = p * x - 2.4954133e-1
        p = p * x + 3.3329962e-1
        p = p * x - 4.9999902e-1
        found = x + x * (p * x)
    return found


@triton.jit
def expm1(x):
    """exp(x) − 1; relative error of a few ulp."""
    u = tl.exp(x)
    near = (u > 0.5) & (u < 2) & (u != 1)
    # as in log1p: what exp rounded away cancels between u − 1 and log(u)
    ratio = x / tl.log(tl.where(near, u, 2))
    return tl.where(u == 1, x, (u - 1) * tl.where(near, ratio, 1))


@triton.jit
def tanh(x):
    """tanh(x); relative error of a few ulp."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        e = expm1(-2 * a)
        t = -e / (2 + e)
        t = tl.where(x < 0, -t, t)
    else:
        # by every logit under a softcap, so no log here: near 0 the polynomial of Cephes' tanhf
        s = x * x
        p = -5.70498872745e-3 * s + 2.06390887954e-2
        p = (p * s - 5.37397155531e-2) * s + 1.33314422036e-1
        p = (p * s - 3.33332819422e-1) * s
        t = 1 - 2 / (tl.exp(2 * a) + 1)
        t = tl.where(a < 0.625, x + x * p, tl.where(x < 0, -t, t))
    return t


@triton.jit
def scales_exactly(factor):
    """Whether multiplying a number of 16 bits by this float32 leaves nothing to round: powers of
    two, 0, and what makes it inf or nan anyway.
    """
    bits = factor.to(tl.int32, bitcast=True)
    return ((bits & 0x7FFFFF) == 0) | (factor != factor)
