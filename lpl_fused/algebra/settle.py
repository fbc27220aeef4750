"""Which rounds a problem needs, and what each round's sums say: `rounds` and `settle` of every
backend that has none of its own. float64, in plain torch, one number a row.

Of a learned perturbation the steps themselves are taken here (learned.py, groups.py), as many as
the host sees that there are, for which it waits on a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import phi
from ..problem import NotDifferentiable, Problem, accumulate_dtype
from . import groups, learned
from .known import Known
from .parts import Detail, Kind, Mass, Part, Rivals, Round, Size, finite, rescaled
from .rows import Rows, normalizer, penalty_weight
from .terms import Terms

_FAR = 40.0  # of a whole mass's logarithm: float32 holds the exponentials up to 88


def rounds(problem: Problem) -> tuple[Round, ...]:
    """The reductions that a problem needs, in their order; by shapes and options alone.

    Raises:
        NotDifferentiable: the gradient is to go through the steps of a learned perturbation, of
            which nothing is kept here that leads back.
    """
    options = problem.options
    found = []
    if options.norm_p > 0 or options.penalty:
        found.append(Round(Kind.SIZE))
    if problem.steps is not None:
        if options.through:
            raise NotDifferentiable("through_perturbation: steps in rounds keep no way back")
        found.append(Round(Kind.RIVALS))
        if problem.input.shape[0] > 1:
            found += [Round(Kind.GROUP, turn) for turn in range(groups.TURNS)]
    if problem.steps is None or not _settled_by_steps(problem):
        found.append(Round(Kind.MASS))
    if _detailed(problem):
        found.append(Round(Kind.DETAIL))
    return tuple(found)


def begin(problem: Problem) -> Known:
    """What is known before the first round."""
    dtype, device = accumulate_dtype(problem.input.dtype), problem.input.device
    terms = Terms.empty(problem.input.shape[0], dtype, device)
    threshold = None if problem.steps is None else learned.threshold(problem)
    return Known(terms.packed(dtype), threshold=threshold)


def settle(problem: Problem, round: Round, part: Part, known: Known) -> Known:
    """What is known after a round, from the part that has all columns.

    Reads labels, tables and options of the problem, whichever columns it has, never its logits.
    """
    if isinstance(part, Size):
        return _settle_size(problem, part, known)
    if isinstance(part, Mass):
        known = known._replace(mass=part)
        if _detailed(problem):
            shift, log_total = _totals(problem, part)
            return _with(problem, known, shift=shift, log_total=log_total)
        return _finished(problem, known, part, None)
    if isinstance(part, Detail):
        assert known.mass is not None
        return _finished(problem, known, known.mass, part)
    if isinstance(part, Rivals):
        known = learned.settle(problem, part, known)
    elif isinstance(part, groups.Tail):
        known = groups.settle(problem, round, part, known)
    else:
        raise TypeError(f"part: expected one of lpl_fused.algebra.parts, got {type(part).__name__}")
    last = round.kind is Kind.GROUP and round.turn == groups.TURNS - 1
    if problem.input.shape[0] > 1 and not last:
        return known
    return stepped(problem, known)


def stepped(problem: Problem, known: Known) -> Known:
    """What is known once no more steps are taken: of classes that are open still, nothing exact."""
    if known.walk is not None:
        known = groups.joined(problem, known)
    assert known.learned is not None
    mass = known.learned.mass()
    if _settled_by_steps(problem):
        if _detailed(problem):
            shift, log_total = _totals(problem, mass)
            return _with(problem, known._replace(mass=mass), shift=shift, log_total=log_total)
        return _finished(problem, known, mass, None)
    # about the largest z + δ: what sums under δ take off z first
    largest = torch.maximum(mass.shift, mass.own)
    return _with(problem, known, shift=largest.masked_fill(~largest.isfinite(), 0))


def _detailed(problem: Problem) -> bool:
    of_phi = problem.spread and problem.options.phi != phi.LOG
    return of_phi or bool(problem.options.penalty)


def _settled_by_steps(problem: Problem) -> bool:
    """Whether the steps' own masses give the loss, so that no sweep under δ has to."""
    return problem.one_label and problem.options.norm_p == 0


def _with(problem: Problem, known: Known, **columns: Tensor) -> Known:
    """With some columns of the terms set."""
    terms = Terms.of(known.terms)._replace(**columns)
    return known._replace(terms=terms.packed(known.terms.dtype))


def _settle_size(problem: Problem, size: Size, known: Known) -> Known:
    norm = problem.options.norm
    columns = {}
    if norm.p > 0:
        length, ties = size.peak, torch.ones_like(size.peak)
        if norm.p == math.inf:
            ties = size.total
        else:
            length = length * size.total ** (1 / norm.p)
        whole = length + norm.offset
        moves = whole > norm.limit
        whole = torch.where(moves, whole, 1.0)
        columns["factor"] = torch.where(moves, norm.gain / whole, 1.0)
        columns["length"] = length
        columns["bend"] = torch.where(moves, length / whole / ties, 0.0)
    if problem.options.penalty:
        columns["top"] = size.top
    return _with(problem, known._replace(size=size), **columns)


def _totals(problem: Problem, mass: Mass) -> tuple[Tensor, Tensor]:
    """(shift, log of the whole mass in its units)."""
    largest = mass.shift
    if not problem.spread:
        largest = torch.maximum(largest, mass.own)
        if problem.other is not None:
            largest = torch.maximum(largest, mass.other)
    # a number that kernels can hold, so that what is left of it is in no exponent
    shift = finite(largest).to(accumulate_dtype(problem.input.dtype)).double()
    total = rescaled(mass.rest, mass.shift, shift)
    if not problem.spread:
        for _, logit, _ in _labels(problem, Rows.of(problem), mass):
            total = total + torch.exp(logit - shift)
    log_total = torch.log(total)
    # learned steps may have led far from the largest logit: nothing of float may overflow there
    far = (log_total.abs() > _FAR) & log_total.isfinite()
    level = (shift + log_total).to(accumulate_dtype(problem.input.dtype)).double()
    level = torch.where(far, level, shift)
    return level, log_total - (level - shift)


def _labels(problem: Problem, rows: Rows, mass: Mass) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(weight of the target, z, x) of the labels. Where nothing is spread and two are one class the
    first has it all; an ignored one is class 0, whose z a part may have left out."""
    if problem.dense:
        return []
    first = rows.hard, mass.own, mass.along_own
    if problem.other is None:
        return [first]
    second = rows.other_hard, mass.other, mass.along_other
    if problem.spread:
        return [first, second]
    same = rows.label == rows.other
    lacks = same & (mass.own == -torch.inf)
    return [
        (
            torch.where(same, rows.hard + rows.other_hard, rows.hard),
            torch.where(lacks, mass.other, mass.own),
            torch.where(lacks, mass.along_other, mass.along_own),
        ),
        (
            rows.other_hard.masked_fill(same, 0),
            mass.other.masked_fill(same, -torch.inf),
            mass.along_other.masked_fill(same, 0),
        ),
    ]


def _finished(problem: Problem, known: Known, mass: Mass, detail: Detail | None) -> Known:
    """Loss and terms of every row, from all that was summed."""
    rows, options = Rows.of(problem), problem.options
    code = options.phi
    parameters = code, options.phi_parameter, accumulate_dtype(problem.input.dtype)
    shift, log_total = _totals(problem, mass)
    nothing = torch.zeros_like(shift)
    uniform, total = nothing, torch.exp(log_total)
    value, slope, weight, push = nothing, nothing, nothing, nothing
    if problem.spread:
        uniform = rows.uniform
        further = shift - finite(mass.shift)
        values, slopes = mass.mass * (log_total + further) - mass.pull, mass.mass
        if code != phi.LOG:
            assert detail is not None
            values, slopes = detail.value, detail.slope
        # where nothing is spread the infinite loss of a masked class does not count
        value = torch.where(uniform == 0, 0.0, uniform * values)
        slope, weight = uniform * slopes, uniform * mass.mass
    labels = _labels(problem, rows, mass)
    own = [torch.exp(logit - shift) for _, logit, _ in labels]
    rivals = rescaled(mass.rest, mass.shift, shift)
    rest = [rivals + sum(own[:k] + own[k + 1 :]) for k in range(len(own))]
    pulls = []
    for k, (hard, logit, _) in enumerate(labels):
        ell = log_total - (logit - shift)
        if not problem.spread:
            ell = torch.where(own[k] >= rest[k], torch.log1p(rest[k] / own[k]), ell)
        of_label = hard * phi.value_of(ell, *parameters)
        if not problem.one_label:  # of two, or beside what is spread, one may have no weight
            of_label = torch.where(hard == 0, 0.0, of_label)
        value = value + of_label
        pulls.append(hard * phi.slope_of(ell, *parameters))
        slope, weight = slope + pulls[k], weight + hard
    value = value + 0 * log_total  # a weight of 0 hides no row that has no softmax
    if options.z_loss > 0:
        lse = shift + log_total
        value = value + torch.where(weight == 0, 0.0, weight * (options.z_loss * lse * lse))
        push = weight * (2 * options.z_loss * lse)
        slope = slope + push
    parts = [-pull for pull in pulls]
    if not problem.spread:
        # of all strength but the label's own, which would cancel where it has all mass
        beside = [push + sum(pulls[:k] + pulls[k + 1 :]) for k in range(len(pulls))]
        parts = [
            beside[k] * (own[k] / total) - pulls[k] * (rest[k] / total) for k in range(len(pulls))
        ]
    part, other_part = [*parts, nothing, nothing][:2]
    strength = slope / total
    terms = Terms.of(known.terms)._replace(
        shift=shift,
        log_total=log_total,
        strength=strength,
        uniform=uniform,
        part=part,
        other_part=other_part,
    )
    if options.norm_p > 0:
        along_spread = mass.along_spread
        if problem.spread and code != phi.LOG:
            assert detail is not None
            along_spread = detail.along
        along = strength * rescaled(mass.along, mass.shift, shift) - uniform * along_spread
        for own_part, (_, _, x) in zip(parts, labels, strict=True):
            along = along + own_part * x
        terms = terms._replace(along=along)
    if problem.other is not None and not problem.spread:
        same = rows.label == rows.other
        terms = terms._replace(other_part=torch.where(same, part, other_part))
    if options.penalty:
        assert known.size is not None
        assert detail is not None
        each = torch.full_like(shift, 1 / problem.classes)
        weight_of_all = penalty_weight(problem, normalizer(problem))
        if weight_of_all is not None:
            each = each * weight_of_all
        value = value + detail.penalty * each
        each = each / options.penalty_unit
        terms = terms._replace(raises=detail.push / known.size.ties * each, each=each)
    if known.learned is not None:
        # no plausible number where the steps are not as exact as promised
        value = torch.where(known.learned.exact, value, torch.nan)
        terms = terms._replace(strength=torch.where(known.learned.exact, strength, torch.nan))
    dead = ~rows.live
    packed = terms.packed(known.terms.dtype).masked_fill(dead[:, None], 0)
    loss = value.to(known.terms.dtype).masked_fill(dead, 0)
    return known._replace(terms=packed, loss=loss)
