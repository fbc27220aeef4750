"""Multi-label losses in plain PyTorch.

Reading order: `labels` says which labels are there, `sides` gives z of positives and negatives,
`learned_perturbation` gives δ of both, `elementwise` the loss of each logit, `binary_cross_entropy`
reduces.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..paths import PHI_OF_LABELS, SIDE_TABLES, WEIGHING_LABELS, Path
from ..phi import ASYMMETRIC
from ..phi import value_of as phi_of
from ..problem import NONE, BinaryProblem, accumulate_dtype, divides
from ..tracing import of_all_levels
from .operators import binary_problem_of, constant, fake_sides, opaque, operator

_KNOWN = Path(
    "reference, multi-label",
    BinaryProblem,
    (*WEIGHING_LABELS, *SIDE_TABLES, *PHI_OF_LABELS, "steps", "step_size"),
)


class Sides(NamedTuple):
    """One tensor for the labels that are positive, one for those that are not."""

    positive: Tensor
    negative: Tensor


def labels(problem: BinaryProblem) -> tuple[Tensor, Tensor | None]:
    """(Y (N, C), which are there, bool (N, C), or None for all); a missing label is 0 in Y."""
    y = problem.target.to(accumulate_dtype(problem.input.dtype))
    if not problem.options.missing:
        return y, None
    known = ~(y.isnan() | (y == problem.options.ignored))
    return torch.where(known, y, 0.0), known


def sides(problem: BinaryProblem) -> Sides:
    """The perturbed logits z⁺ and z⁻ (N, C), without the learned perturbation."""
    u = problem.input.to(accumulate_dtype(problem.input.dtype))

    def perturbed(scale: Tensor | None, offset: Tensor | None) -> Tensor:
        z = u if scale is None else u * scale
        return z if offset is None else z + offset

    return Sides(
        perturbed(problem.positive_scale, problem.positive_offset),
        perturbed(problem.negative_scale, problem.negative_offset),
    )


def learned_perturbation(problem: BinaryProblem) -> Tensor:
    """(2, C): δ⁺ and δ⁻ of every class, 0 for a side that no label of the batch is on.

    Per class, for k < |steps|, with means over the batch weighted by Y (positives) and 1 − Y:
        δ⁺ ← δ⁺ + sign(steps)·step_size·mean (σ(z⁺ + δ⁺) − 1)
        δ⁻ ← δ⁻ + sign(steps)·step_size·mean σ(z⁻ + δ⁻)
    """
    if opaque(problem):
        return _perturbation_op(problem)  # type: ignore[no-any-return]
    with torch.no_grad():
        return _learned_perturbation(constant(problem))


def _learned_perturbation(problem: BinaryProblem) -> Tensor:
    assert problem.steps is not None
    y, known = labels(problem)
    z = sides(problem)
    count = problem.steps.abs()
    of_all = of_all_levels(count)
    most = int(of_all.max()) if of_all.numel() else 0
    step = problem.steps.sign().to(y.dtype) * problem.options.step_size
    others = 1 - y if known is None else (1 - y) * known
    found = []
    # σ(z) − 1 = −σ(−z): both sides are one recursion, of the distance of a logit from its label
    for sign, distance, share in ((-1, -z.positive, y), (1, z.negative, others)):
        mass = share.sum(0)
        share = torch.where(mass > 0, share / mass.where(mass > 0, torch.ones_like(mass)), 0.0)
        distance = distance.masked_fill(share == 0, 0)  # an infinite logit of the other side
        moved = torch.zeros_like(step)
        for k in range(most):
            mean = (share * torch.sigmoid(distance + moved)).sum(0)
            moved = moved + torch.where(count > k, step * mean, 0.0)
        found.append(sign * moved)
    return torch.stack(found)


_perturbation_op = operator(
    "reference_binary_perturbation",
    "Tensor",
    lambda *packed: _learned_perturbation(binary_problem_of(*packed)),
    fake_sides,
)


def row_class_weights(problem: BinaryProblem, y: Tensor) -> Tensor | None:
    """(N, C) or broadcast to it: the weights that positives and negatives share."""
    weight = None
    if problem.inverse_count is not None:
        mass = (y * problem.inverse_count).sum(1, keepdim=True)
        some = mass > 0  # the branch that torch.where leaves out must not divide by 0 either
        ratio = problem.inverse_count / torch.where(some, mass, 1.0)
        ratio = torch.where(some, ratio, torch.inf)
        options = problem.options
        weight = options.alpha + torch.sigmoid(options.beta * (ratio - options.mu))
    if problem.sample_weight is not None:
        own = problem.sample_weight[:, None]
        weight = own if weight is None else weight * own
    return weight


def elementwise(problem: BinaryProblem, z: Sides) -> Tensor:
    """(N, C): w·(Y·w⁺·φ(softplus(−z⁺)) + (1 − Y)·w⁻·φ(softplus(z⁻))), 0 where a label is missing.

    A side without mass counts nothing, even where its loss is infinite.
    """
    options = problem.options
    y, known = labels(problem)

    def side(
        share: Tensor, distance: Tensor, weight: Tensor | None, gamma: float, clip: float
    ) -> Tensor:
        absent = share == 0
        distance = distance.masked_fill(absent, 0)
        if options.phi == ASYMMETRIC:
            value = share * asymmetric_of(distance, gamma, clip, options.phi_detached)
        else:
            value = share * phi_of(softplus_of(distance), options.phi, options.phi_parameter)
        value = torch.where(absent, 0.0, value)
        return value if weight is None else value * weight

    others = 1 - y if known is None else (1 - y) * known
    loss = side(y, -z.positive, problem.positive_weight, options.phi_parameter, 0.0)
    negative = options.phi_negative, options.phi_clip
    loss = loss + side(others, z.negative, problem.negative_weight, *negative)
    weight = row_class_weights(problem, y)
    return loss if weight is None else loss * weight


def softplus_of(x: Tensor) -> Tensor:
    """log(1 + e^x) with all digits of value and gradient; torch's is x itself above a threshold."""
    return torch.logaddexp(x, torch.zeros_like(x))


def asymmetric_of(distance: Tensor, gamma: float, clip: float, detached: bool) -> Tensor:
    """An asymmetric φ of a side, from the distance s of logits from its label: with p = σ(s) and
    p_m = max(p − clip, 0) it is p_m^γ·(−log(1 − p_m)), without a clip σ(s)^γ·log(1 + e^s)."""
    away, near = torch.sigmoid(distance), torch.sigmoid(-distance)
    if clip > 0:
        rest = torch.where(away <= clip, 0.0, away - clip)
        ell = torch.log1p(rest / (near + clip))
    else:
        rest, ell = away, softplus_of(distance)
    if gamma == 0:
        return ell
    tiny = torch.finfo(rest.dtype).tiny  # where the derivative of a root is finite
    factor = torch.where(rest < tiny, tiny, rest) ** gamma
    if detached:
        return factor.detach() * ell
    # far beyond, where the factor is 1, autograd would form ∞·0 of its derivative
    return torch.where(ell > 1e30, ell, factor * ell.masked_fill(ell > 1e30, 0))


def normalizer(problem: BinaryProblem) -> Tensor:
    """0-dim: what the sum of the losses is divided by: for "mean" the number of labels that are
    there, for "sum" the problem's normalizer."""
    if problem.normalizer is not None:
        return problem.normalizer
    y, known = labels(problem)
    return y.new_full((), y.numel()) if known is None else known.sum().to(y.dtype)


def binary_cross_entropy(problem: BinaryProblem) -> Tensor:
    """The loss of a problem: 0-dim, or (N, C) for reduction "none"."""
    if not torch.compiler.is_compiling():
        _KNOWN.demand(problem)
    z = sides(problem)
    if problem.steps is not None:
        delta = learned_perturbation(problem)
        z = Sides(z.positive + delta[0], z.negative + delta[1])
    loss = elementwise(problem, z)
    if problem.options.reduction == NONE:
        return loss
    total = loss.sum()
    return total / normalizer(problem) if divides(problem) else total
