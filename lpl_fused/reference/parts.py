"""The door of lpl_fused/backends/contract.py in plain PyTorch: what every backend's sums over some
columns, and the gradient from a row's terms, are. Matrices (N, W) of temporaries, any dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import penalty, phi
from ..algebra import groups, learned, statistics
from ..algebra.known import Known
from ..algebra.parts import (
    Detail,
    Kind,
    Mass,
    Part,
    Rivals,
    Round,
    Size,
    Statistics,
    finite,
    power,
)
from ..algebra.rows import Rows
from ..algebra.settle import rounds, settle
from ..algebra.terms import Gradients, Terms
from ..problem import Problem, accumulate_dtype

__all__ = ["gradient", "perturbed", "reduce", "rounds", "settle"]


def reduce(problem: Problem, round: Round, known: Known) -> Part:
    """Sums over the problem's columns."""
    if round.kind is Kind.GROUP:
        return groups.reduce(problem, round, known, perturbed)
    return {
        Kind.SIZE: _size,
        Kind.MASS: _mass,
        Kind.DETAIL: _detail,
        Kind.RIVALS: _rivals,
        Kind.STATISTICS: _statistics,
    }[round.kind](problem, known)


def perturbed(problem: Problem, known: Known, begin: int, end: int) -> Tensor:
    """z (N, end − begin) of columns of the problem, without δ, accumulate dtype."""
    return _Columns(problem.columns(begin, end), known).z


def gradient(problem: Problem, known: Known, upstream: Tensor, want: Sequence[str]) -> Gradients:
    """The gradients of the problem's columns: see lpl_fused/algebra/terms.py."""
    at, options = _Columns(problem, known), problem.options
    terms = Terms(*(column[:, None] for column in Terms.of(known.terms)))
    moved, base = _moved(problem, known, at)
    above = moved - (terms.shift - base)
    dz = torch.exp(above) * terms.strength
    if problem.spread:
        slope = phi.slope_of(terms.log_total - above, options.phi, options.phi_parameter)
        dz = dz - terms.uniform * at.weight * slope
    for place, part in ((at.is_label, terms.part), (at.is_other, terms.other_part)):
        dz = torch.where(place, dz + part if problem.spread else part, dz)
    upstream = upstream.to(dz.dtype)[:, None]
    dead = ~at.rows.live[:, None]
    dz = torch.where(dead, 0.0, dz * upstream)
    d_offset = dz * options.inverse_temperature
    du = d_offset if at.scale is None else d_offset * at.scale
    du = du * at.slope
    if options.norm_p > 0:
        along = terms.along * upstream
        du = terms.factor * (du - along * terms.bend * at.norm_gradient(terms.length))
    if options.penalty:
        push = torch.where(at.u == terms.top, terms.raises, 0.0)
        du = du + (push - at.penalty(terms.top)[1] * terms.each) * upstream
    du = torch.where(dead, 0.0, du)
    found: dict[str, Tensor] = {}
    if "input" in want:
        found["input"] = du.to(problem.input.dtype)
    if "scale" in want:
        found["scale"] = torch.where(dead, 0.0, d_offset * at.bounded).sum(0)
    if "offset" in want:
        found["offset"] = d_offset.sum(0)
    if "margin" in want:
        assert problem.margin is not None
        of_label = torch.where(at.is_label, d_offset, 0.0).sum(1)
        found["margin"] = torch.zeros_like(problem.margin).index_add(0, at.rows.label, -of_label)
    if "rows" in want:
        assert problem.rows is not None
        zeros = d_offset.new_zeros((problem.rows.shape[0], d_offset.shape[1]))
        found["rows"] = zeros.index_add(0, at.row_index, d_offset)
    return Gradients(**found)


class _Columns:
    """The columns of a problem, (N, W) unless said otherwise, and what belongs to them."""

    def __init__(self, problem: Problem, known: Known) -> None:
        self.problem = problem
        options, dtype = problem.options, accumulate_dtype(problem.input.dtype)
        first, width = options.first, problem.input.shape[1]
        here = slice(first, first + width)
        terms = Terms(*(column[:, None] for column in Terms.of(known.terms)))
        self.rows = Rows.of(problem)
        self.u = problem.input.to(dtype)
        each = torch.arange(first, first + width, device=self.u.device)
        labelled = not problem.dense
        self.is_label = (each == self.rows.label[:, None]) & labelled
        self.is_other = (each == self.rows.other[:, None]) & (problem.other is not None)
        self.scale = None if problem.scale is None else problem.scale[here]
        self.multiplier = None if problem.multiplier is None else problem.multiplier[here]
        self.rho = None if problem.rho is None else problem.rho[here]
        self.row_index = self.rows.label
        if problem.row_index is not None and problem.rows is not None:
            self.row_index = problem.row_index.clamp(0, problem.rows.shape[0] - 1)

        length = self.u * terms.factor
        self.bounded, self.slope = length, torch.ones_like(length)
        if options.softcap > 0:
            self.bounded = options.softcap * torch.tanh(length / options.softcap)
            # 1 − tanh² from e^(−2|x|), not from tanh, where it would cancel
            decay = torch.exp(-2 / options.softcap * length.abs())
            self.slope = 4 * decay / (1 + decay) ** 2
        z = self.bounded if self.scale is None else self.bounded * self.scale
        if problem.offset is not None:
            z = z + problem.offset[here]
        if problem.rows is not None:
            z = z + problem.rows[self.row_index, here]
        if problem.margin is not None:
            z = z - torch.where(self.is_label, problem.margin[self.rows.label][:, None], 0.0)
        z = z * options.inverse_temperature
        # garbage in ignored rows (padding) counts nothing
        self.z = torch.where(self.rows.live[:, None], z, 0.0)

        self.weight = torch.ones_like(self.u)
        if problem.dense:
            smoothing = options.label_smoothing
            self.weight = problem.target.to(dtype) * (1 - smoothing) + smoothing / problem.classes
        if problem.weight is not None:
            self.weight = self.weight * problem.weight[here]

    def x(self, length: Tensor) -> Tensor:
        """What a norm multiplies by dL/dz."""
        counted = self.u.masked_fill(self.u == -torch.inf, 0)
        unit = torch.where(length == 0, 1.0, length)
        d = self.slope * self.problem.options.inverse_temperature
        d = d if self.scale is None else d * self.scale
        return torch.where(length == 0, 0.0, d * (counted / unit))

    def norm_gradient(self, length: Tensor) -> Tensor:
        """∇n."""
        u, p = self.u.masked_fill(self.u == -torch.inf, 0), self.problem.options.norm_p
        if p == math.inf:
            return torch.where(u.abs() == length, u.sign(), 0.0)
        unit = torch.where(length == 0, 1.0, length)
        return u.sign() if p == 1 else u.sign() * power(u.abs() / unit, p - 1)

    def penalty(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """(P(h), P'(h))."""
        options = self.problem.options
        h = (top - self.u - options.penalty_margin) / options.penalty_unit
        kind = options.penalty, options.penalty_strength, self.multiplier, self.rho
        return penalty.value_of(h, *kind), penalty.slope_of(h, *kind)


def _moved(problem: Problem, known: Known, at: _Columns) -> tuple[Tensor, Tensor]:
    """(z + δ − base, base (N, 1)): under a δ the base is the shift of the terms, so that of logits
    far from 0 δ keeps its digits, else 0."""
    delta = learned.delta(problem, known, perturbed)
    shift = Terms.of(known.terms).shift[:, None]
    if delta is None:
        return at.z, torch.zeros_like(shift)
    return (at.z - shift) + delta, shift


def _live(at: _Columns, *values: Tensor) -> list[Tensor]:
    """Sums over columns (N,) of matrices, 0 of ignored rows."""
    return [torch.where(at.rows.live, value.double().sum(1), 0.0) for value in values]


def _top(at: _Columns, z: Tensor, among: Tensor) -> Tensor:
    """(N,): the largest of some columns, −inf of none and of ignored rows."""
    z = torch.where(among & at.rows.live[:, None], z.double(), -torch.inf)
    return z.amax(1) if z.shape[1] else z.new_full((z.shape[0],), -torch.inf)


def _size(problem: Problem, known: Known) -> Part:
    u = problem.input.double()
    n, p = u.shape[0], problem.options.norm_p
    live = Rows.of(problem).live
    if u.shape[1] == 0:
        nothing = torch.zeros(n, dtype=torch.float64, device=u.device)
        return Size(nothing, nothing, torch.full_like(nothing, -torch.inf), nothing, p)
    magnitude = u.masked_fill(u == -torch.inf, 0).abs()
    peak = magnitude.amax(1)
    unit = torch.where(peak == 0, 1.0, peak)[:, None]
    if p == math.inf:
        total = (magnitude == peak[:, None]).double().sum(1)
    else:
        total = power(magnitude / unit, p).sum(1)
    top = u.amax(1)
    ties = (u == top[:, None]).double().sum(1)
    numbers = [torch.where(live, value, 0.0) for value in (peak, total, ties)]
    return Size(numbers[0], numbers[1], torch.where(live, top, -torch.inf), numbers[2], p)


def _mass(problem: Problem, known: Known) -> Part:
    at, options = _Columns(problem, known), problem.options
    length = Terms.of(known.terms).length[:, None]
    z, base = _moved(problem, known, at)
    among = torch.ones_like(at.is_label) if problem.spread else ~(at.is_label | at.is_other)
    shift = _top(at, z, among)
    above = z.double() - finite(shift)[:, None]
    e = torch.where(among, torch.exp(above), 0.0)
    x = at.x(length)
    weight = at.weight if problem.spread else torch.zeros_like(at.weight)
    by_log = problem.spread and options.phi == phi.LOG
    counts = (weight != 0) if problem.dense else torch.ones_like(at.is_label)
    pull = torch.where(counts, weight * above, 0.0) if by_log else torch.zeros_like(above)
    normed = options.norm_p > 0
    x = x if normed else torch.zeros_like(x)
    rest, mass, pulls, along, own, other, spread = _live(
        at,
        e,
        weight,
        pull,
        e * x,
        torch.where(at.is_label, x, 0.0),
        torch.where(at.is_other, x, 0.0),
        weight * x if by_log else torch.zeros_like(x),
    )
    base = base[:, 0].double()
    return Mass(
        shift=shift + base,
        rest=rest,
        own=_top(at, z, at.is_label) + base,
        other=_top(at, z, at.is_other) + base,
        mass=mass,
        pull=pulls,
        along=along,
        along_own=own,
        along_other=other,
        along_spread=spread,
    )


def _detail(problem: Problem, known: Known) -> Part:
    at, options = _Columns(problem, known), problem.options
    terms = Terms(*(column[:, None].double() for column in Terms.of(known.terms)))
    zeros = torch.zeros_like(at.u)
    value, slope, along, penalties, push = zeros, zeros, zeros, zeros, zeros
    if problem.spread and options.phi != phi.LOG:
        moved, base = _moved(problem, known, at)
        ell = terms.log_total - (moved.double() - (terms.shift - base))
        parameters = options.phi, options.phi_parameter, accumulate_dtype(problem.input.dtype)
        value = at.weight * phi.value_of(ell, *parameters)
        slope = at.weight * phi.slope_of(ell, *parameters)
        if problem.dense:
            # a class without target mass counts nothing, whatever its loss
            value = torch.where(at.weight == 0, 0.0, value)
        if options.norm_p > 0:
            along = slope * at.x(terms.length)
    if options.penalty:
        penalties, push = at.penalty(terms.top)
    return Detail(*_live(at, value, slope, along, penalties, push))


def _statistics(problem: Problem, known: Known) -> Part:
    at = _Columns(problem, known)
    moved, base = _moved(problem, known, at)
    z = moved.double() + base
    n, width = z.shape
    if not width:
        nothing = z.new_zeros(n)
        lowest = nothing - torch.inf
        return Statistics(lowest, nothing, nothing, lowest, -lowest, *statistics.likely(problem))
    shift = z.amax(1)
    above = z - finite(shift)[:, None]
    e = torch.exp(above)
    heat = torch.where(above == -torch.inf, 0.0, e * above).sum(1)
    top, place = problem.input.max(1)
    return Statistics(
        shift=shift,
        total=e.sum(1),
        heat=heat,
        top=top.double(),
        place=(place + problem.options.first).double(),
        likely=statistics.likely(problem)[0],
        aim=statistics.likely(problem)[1],
    )


def _rivals(problem: Problem, known: Known) -> Part:
    at = _Columns(problem, known)
    assert known.threshold is not None
    n, width = at.z.shape
    among = ~at.is_label & at.rows.live[:, None]
    shift = _top(at, at.z, among)
    e = torch.where(among, torch.exp(at.z.double() - finite(shift)[:, None]), 0.0)
    rest = e.sum(1)
    heads = (e > (known.threshold.double() * rest)[:, None]) & among
    room = min(learned.HEADS, width)
    place = heads.cumsum(1) - 1
    place = torch.where(heads & (place < room), place, room)  # behind the last: no room
    each = torch.arange(problem.options.first, problem.options.first + width, device=e.device)
    columns = torch.full((n, room + 1), -1, dtype=torch.int64, device=e.device)
    columns = columns.scatter(1, place, each.expand(n, -1))[:, :room]
    logits = torch.full((n, room + 1), -torch.inf, dtype=torch.float64, device=e.device)
    logits = logits.scatter(1, place, at.z.double())[:, :room]
    tail = torch.where(heads, 0.0, e)
    terms = range(1, learned.order(problem.input.dtype) + 1)
    powers = [(tail**r).sum(1) for r in terms]
    largest = tail.amax(1) if width else torch.zeros_like(rest)
    return Rivals(
        shift=shift,
        rest=rest,
        own=_top(at, at.z, at.is_label),
        largest=largest,
        listed=heads.sum(1).double(),
        powers=torch.stack(powers, 1),
        columns=columns,
        logits=logits,
    )
