"""The learned perturbation of rows alone in their class: all steps, from the sums over their
rivals; and δ of some columns, whoever took the steps.

docs/solver.md says how. With q_j = e^(z_j)/Σ_rivals e^(z) a step maps every mass E of a rival to
E·exp(a·E) with one a for all, so that those of the tail remain one power series in q, and the heads
are taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Options, Problem, accumulate_dtype
from .known import Known
from .parts import Mass, Rivals
from .rows import Classes, Rows

HEADS = 512  # of a row that are listed; where all classes find room there is no tail
NORM_FLOOR = 1e-12  # a gradient shorter than this has no direction: the normalised step is 0
LOWERING = 1.25  # what steps that lower a loss may add up to, beyond their number times their size
CHUNK = 1 << 21  # numbers of a matrix (rows, columns) that are looked at at once
LARGEST = 700.0  # an exponent that float64 holds

# z, without δ, of the columns from begin to end of a problem, (N, end − begin)
Perturbed = Callable[[Problem, Known, int, int], Tensor]


def order(dtype: torch.dtype) -> int:
    """R: how many power sums there are of the tail."""
    return 10 if dtype == torch.float64 else 8


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative error of a probability that steps may leave, beside rounding."""
    return 1e-13 if dtype == torch.float64 else 2e-7


class Learned(NamedTuple):
    """What the steps made of each row, (N,) float64 unless said otherwise; q_j as above.

    δ_j of a class that is listed in `columns` is its `change`, of the label `own`, of any other

        log(Σ_r series_r·q_j^(r−1)) + B_j·(1 + B_j·(second + B_j·third)) ,   B_j = Σ_i way_i·q_ij

    over the rows i of the row's class: the series is 1 where the class has several rows, `way` is 0
    where it has one.
    """

    shift: Tensor
    inverse: Tensor  # 1/Σ_rivals e^(z − shift)
    series: Tensor  # (N, R)
    way: Tensor
    second: Tensor
    third: Tensor
    columns: Tensor  # (N, H) int64, numbered among all classes; −1: none
    change: Tensor  # (N, H)
    own: Tensor
    lift: Tensor  # log of the label's mass, in units of the rivals' before the steps, as `rest`
    rest: Tensor  # the rivals' mass
    exact: Tensor  # bool; False where the error's bound exceeds the tolerance
    left: Tensor | None = None  # (S,) int64: rows whose δ somebody else has found
    left_delta: Tensor | None = None  # (S, W), accumulate dtype: theirs, of the problem's columns
    grouped: bool = False  # classes may have several rows: `way` is looked at

    def mass(self) -> Mass:
        """What a sweep of the row under δ would find, of problems whose target is one label."""
        nothing = torch.zeros_like(self.rest)
        level = self.shift - torch.log(self.inverse)
        return Mass(
            shift=torch.where(self.rest > 0, level, -torch.inf),
            rest=self.rest,
            own=torch.where(self.rest == 0, self.lift, self.lift + level),
            other=nothing,
            mass=nothing,
            pull=nothing,
            along=nothing,
            along_own=nothing,
            along_other=nothing,
            along_spread=nothing,
        )


def signed_steps(problem: Problem, rows: Rows) -> Tensor:
    """(N,) int64: the steps of each row's class, 0 where it is ignored or has none."""
    assert problem.steps is not None
    lost = ~rows.live | rows.hard.isnan()
    return problem.steps[rows.label].long().masked_fill(lost, 0)


def threshold(problem: Problem) -> Tensor:
    """(N,), accumulate dtype: heads are rivals with more than this part of the rivals' mass. The
    largest that keeps what the series leaves out within the tolerance, by the steps' sizes."""
    dtype = accumulate_dtype(problem.input.dtype)
    steps = signed_steps(problem, Rows.of(problem))
    if problem.classes <= HEADS:
        return torch.full_like(steps, -1, dtype=dtype)
    dose = steps.abs() * problem.options.step_size * torch.where(steps < 0, LOWERING, 1.0)
    least = (tolerance(dtype) / (2 * (1 + dose.double()))) ** (1 / order(dtype))
    part = (0.999 * least).clamp(max=0.49) / dose.clamp(min=1e-30)
    return part.clamp(max=1).to(dtype)


def error_bound(dose: Tensor, largest: Tensor, terms: int) -> Tensor:
    """Of the relative error of all probabilities, by the largest q of the tail."""
    x = dose * largest
    return torch.where(x < 0.5, (1 + dose) * 2 * x**terms, torch.inf)


def settle(problem: Problem, part: Rivals, known: Known) -> Known:
    """All steps of rows alone in their class. Those of others are begun in groups.py."""
    from . import groups

    rows = Rows.of(problem)
    steps = signed_steps(problem, rows)
    classes = Classes.of(problem)
    # without rivals there is no direction to move in
    has_rivals = part.rest > 0
    inverse = torch.where(has_rivals, 1 / part.rest, 1.0)
    shift = torch.where(has_rivals, part.shift, 0.0)
    log_rest = torch.where(has_rivals, torch.log(part.rest), 0.0)
    level = shift + log_rest
    lift = torch.where(has_rivals, (part.own - level).clamp(max=LARGEST), part.own)

    # the whole's threshold: what a part of the columns took for a head may be of the tail
    assert known.threshold is not None
    q = torch.where(part.columns >= 0, torch.exp(part.logits - level[:, None]), 0.0)
    is_head = (part.columns >= 0) & (q > known.threshold.double()[:, None])
    demoted = torch.where(is_head, 0.0, q)
    orders = torch.arange(1, part.powers.shape[1] + 1, device=q.device)
    powers = part.powers * inverse[:, None] ** orders
    powers = powers + torch.stack([(demoted**r).sum(1) for r in orders.tolist()], 1)
    largest = torch.maximum(part.largest * inverse, _max(demoted))
    heads = torch.where(is_head, part.logits - level[:, None], -torch.inf)

    alone = (classes.rows == 1) & has_rivals
    count = torch.where(alone, steps.abs(), 0)
    size = problem.options.step_size * steps.sign().double()
    moved = _take_steps(powers, heads, lift, count, size, problem.options.normalize)
    missed = part.listed > (part.columns >= 0).sum(1)
    bound = error_bound(moved.dose, largest, powers.shape[1])
    dtype = accumulate_dtype(problem.input.dtype)
    exact = (count == 0) | (~missed & (bound <= tolerance(dtype)))
    # nan is nan, whoever takes the steps
    exact = exact | part.rest.isnan() | part.own.isnan()
    nothing = torch.zeros_like(shift)
    found = Learned(
        shift=shift,
        inverse=inverse,
        series=moved.series,
        way=nothing,
        second=nothing,
        third=nothing,
        columns=torch.where(is_head & (count > 0)[:, None], part.columns, -1),
        change=moved.change,
        own=moved.own_change,
        lift=lift + moved.own_change,
        rest=torch.where(has_rivals, moved.rest, part.rest),
        exact=exact,
    )
    known = known._replace(learned=found)
    return groups.start(problem, known, classes, lift, steps, size)


class _Moved(NamedTuple):
    series: Tensor  # (N, R)
    change: Tensor  # (N, H): δ of the heads
    own_change: Tensor
    rest: Tensor
    dose: Tensor  # Σ |a|


def _take_steps(
    powers: Tensor, heads: Tensor, lift: Tensor, count: Tensor, size: Tensor, normalize: bool
) -> _Moved:
    """`count` steps of each row. `heads` (N, H): log q, −inf where there is none."""
    terms = powers.shape[1]
    series = [torch.ones_like(lift)] + [torch.zeros_like(lift)] * (terms - 1)
    change, own_change = torch.zeros_like(heads), torch.zeros_like(lift)
    dose = torch.zeros_like(lift)
    for k in range(int(count.max()) if count.numel() else 0):
        masses = torch.exp(heads + change)
        rest = masses.sum(1) + _tail(series, powers)
        own = torch.exp((lift + own_change).clamp(max=LARGEST))
        a = size / (rest + own)
        if normalize:
            squares = (masses * masses).sum(1) + _tail_square(series, powers)
            length = torch.sqrt(squares + rest * rest)
            a = torch.where(length < NORM_FLOOR * (rest + own), 0.0, size / length)
        a = torch.where(count > k, a, 0.0)
        change = change + a[:, None] * masses
        own_change = own_change - a * rest
        dose = dose + a.abs()
        series = _advanced(series, a)
    rest = torch.exp(heads + change).sum(1) + _tail(series, powers)
    return _Moved(torch.stack(series, 1), change, own_change, rest, dose)


def _tail(series: list[Tensor], powers: Tensor) -> Tensor:
    """Σ_tail E."""
    return sum(e * powers[:, r] for r, e in enumerate(series))  # type: ignore[return-value]


def _tail_square(series: list[Tensor], powers: Tensor) -> Tensor:
    """Σ_tail E², cut off as E·q is."""
    total = torch.zeros_like(series[0])
    for s in range(1, powers.shape[1]):
        coefficient = sum(series[r] * series[s - 1 - r] for r in range(s))
        total = total + coefficient * powers[:, s]
    return total


def _advanced(series: list[Tensor], a: Tensor) -> list[Tensor]:
    """E·exp(a·E): g = exp(a·E) by n·g_n = Σ k·(a·E_k)·g_{n−k}."""
    terms = len(series)
    slope = [a * e * (i + 1) for i, e in enumerate(series[:-1])]
    growth = [torch.ones_like(a)]
    for n in range(1, terms):
        growth.append(sum(slope[i] * growth[n - 1 - i] for i in range(n)) / n)  # type: ignore[arg-type]
    return [
        sum(series[i] * growth[n - i] for i in range(n + 1))  # type: ignore[misc]
        for n in range(terms)
    ]


def height(z: Tensor) -> Tensor:
    """(N, 1), the largest of each row of z (N, C), 0 where that is no number. What is added to z
    less that keeps its digits, however far from 0 the logits are."""
    top = z.detach().amax(1, keepdim=True)
    return torch.where(top.isfinite(), top, 0.0)


def plain_steps(
    z: Tensor,
    label: Tensor,
    slot: Tensor,
    share: Tensor,
    steps: Tensor,
    options: Options,
    most: int,
) -> Tensor:
    """δ (N, C) by steps one after the other, a softmax of every row each: the definition, which may
    be differentiated. Of rows that lead a class; of others 0.

    Args:
        z: (N, C).
        label, slot: (N,), of each row and the first row of its class.
        share: (N,), of its class's mean.
        steps: (N,), signed; 0 of rows that do not lead.
        most: steps that are taken at most.
    """
    label, steps = label[:, None], steps[:, None]
    z = z - height(z)
    sign, delta = steps.sign().to(z.dtype), torch.zeros_like(z)
    for k in range(most):
        # the target's entry is minus the rivals' sum: p_y − 1 without cancellation
        rivals = torch.softmax(z + delta[slot], 1).scatter(1, label, 0.0) * share[:, None]
        g = torch.zeros_like(delta).index_add(0, slot, rivals)
        g = g.scatter(1, label, -g.sum(1, keepdim=True))
        if options.normalize:
            norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
            g = torch.where(norm < NORM_FLOOR, 0.0, g / norm.clamp(min=NORM_FLOOR))
        # no `steps.sign() * ...` outside the where: an inactive row's g must not reach delta
        delta = delta + torch.where(steps.abs() > k, sign * options.step_size * g, 0.0)
    return delta


def by_plain_steps(problem: Problem, z: Tensor) -> Tensor:
    """δ (N, C) of every row, from z (N, C) of whole classes."""
    assert problem.steps is not None
    rows, classes = Rows.of(problem), Classes.of(problem)
    outside = (problem.target < 0) | (problem.target >= problem.classes)
    leads = classes.slot == torch.arange(z.shape[0], device=z.device)
    steps = problem.steps[rows.label].masked_fill(~rows.live | outside | ~leads, 0)
    most = int(steps.abs().max()) if steps.numel() else 0
    share = classes.shares(problem).to(z.dtype)
    return plain_steps(z, rows.label, classes.slot, share, steps, problem.options, most)[
        classes.slot
    ]


def _max(values: Tensor) -> Tensor:
    """Of (N, H), 0 where H is."""
    return values.amax(1) if values.shape[1] else values.sum(1)


def delta(problem: Problem, known: Known, perturbed: Perturbed) -> Tensor | None:
    """δ (N, W) of the problem's columns, accumulate dtype; None where there is none.

    As large as float32 logits: kernels that know of series and heads need not come here.
    """
    if known.learned is None:
        return None
    found, (n, width) = known.learned, problem.input.shape
    dtype, first = known.terms.dtype, problem.options.first
    label = Rows.of(problem).label[:, None] - first
    columns, change = found.columns - first, found.change
    result = problem.input.new_empty((n, width), dtype=dtype)
    classes = Classes.of(problem) if found.grouped else None
    shift, inverse = found.shift[:, None].to(dtype), found.inverse[:, None].to(dtype)
    size = max(1, CHUNK // max(1, n))
    for begin in range(0, width, size):
        end = min(width, begin + size)
        z = perturbed(problem, known, begin, end)
        q = torch.exp(z - shift) * inverse
        gain = torch.zeros_like(q)
        for r in range(found.series.shape[1] - 1, 0, -1):
            gain = (gain + found.series[:, r, None].to(dtype)) * q
        piece = torch.log1p(gain)
        if classes is not None:
            way = found.way[:, None].to(dtype)
            # a row that is nan is none of a class that takes no steps
            b = classes.sum(torch.where(way == 0, 0.0, way * q))
            second, third = found.second[:, None].to(dtype), found.third[:, None].to(dtype)
            piece = piece + b * (1 + b * (second + b * third))
        # a column behind the last takes what belongs elsewhere
        wide = torch.cat([piece, piece.new_zeros((n, 1))], 1)
        for place, value in ((columns, change), (label, found.own[:, None])):
            here = (place >= begin) & (place < end)
            wide.scatter_(1, torch.where(here, place - begin, end - begin), value.to(dtype))
        result[:, begin:end] = wide[:, :-1]
    if found.left is not None:
        assert found.left_delta is not None
        result[found.left] = found.left_delta
    return result


def with_delta(problem: Problem, delta: Tensor, slot: Tensor) -> Problem:
    """The problem with delta[slot] in the place of its steps: what is added to its rows last."""
    delta = delta / problem.options.inverse_temperature
    if problem.rows is None:
        return problem._replace(rows=delta, row_index=slot, steps=None)
    index = problem.row_index
    if index is None:
        ignored = problem.target == problem.options.ignore_index
        index = problem.target.masked_fill(ignored, 0)
    rows = problem.rows[index] + delta[slot]
    each = torch.arange(slot.shape[0], device=slot.device)
    return problem._replace(rows=rows, row_index=each, steps=None)
