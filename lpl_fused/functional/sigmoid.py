"""Multi-label losses: the sigmoid link."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops, reference
from ..arguments import FLAG
from ..backends import REFERENCE, resolve
from ..multilabel import MultiLabel, Weight, binary_options
from ..ops.dispatch import FORMS, INPLACE, checked_form
from ..perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from ..phi import BinaryPhi
from ..problem import NONE, BinaryOptions, BinaryProblem, divides
from ..validation import checked_step_size
from .differentiable import Fixed, device_type
from .inplace import check_form

_FORMS = tuple(form for form in FORMS if form != INPLACE)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    pos_weight: Tensor | None = None,
    neg_weight: Tensor | None = None,
    perturbation: Perturbation | BinaryPerturbation | None = None,
    rebalance: RebalancedWeight | None = None,
    ignore_index: float | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    phi: BinaryPhi = "log",
    gradient: str = "auto",
    backend: str = "auto",
) -> Tensor:
    r"""Binary cross-entropy of class-level perturbed logits, fused with its backward.

    Without the keywords that `torch.nn.functional.binary_cross_entropy_with_logits` lacks it is
    that function. With them, for logits u_ik (classes k: the last dimension) and labels Y_ik:

        z⁺, z⁻ = perturbation(u)                           see `BinaryPerturbation`
        L_ik   = w_ik·( Y_ik·w⁺_k·φ(softplus(−z⁺_ik)) + (1 − Y_ik)·w⁻_k·φ(softplus(z⁻_ik)) )
        L      = Σ L_ik / (number of labels that are there)            reduction "mean"

    Logits and labels are read once, the gradient is written once; no other N×C memory.

    Args:
        input: logits, any shape, the last dimension numbers the classes (as torch broadcasts
            `pos_weight`); float64, float32, bfloat16 or float16; read as they are, never written.
        target: labels Y of the same shape and any real dtype, bool and integers too; soft labels in
            [0, 1] (as in torch no value is refused).
        weight: broadcasts to `input`: w_ik. One by class or by row is applied in the kernel; any
            other, or one that requires grad, to the unreduced loss.
        pos_weight: broadcasts to `input`: w⁺, as in torch.
        neg_weight: the same for negatives: w⁻ (equalisation losses, NTR).
        perturbation: a `Perturbation` of all logits, its margin taken from positives, or a
            `BinaryPerturbation` with one for each side.
        rebalance: row×class weights from class counts, see `RebalancedWeight`, times `weight`.
        ignore_index: labels equal to this number (or nan) are missing: they count nothing, in no
            sum and no mean. `float("nan")` marks missing labels by nan alone. Default None: every
            label is there.
        reduction: "none", "mean" or "sum". As in torch the mean divides by the number of labels,
            whatever their weights; labels that are missing are not counted.
        normalizer: beside reduction "sum" alone, a number or a 0-dim tensor: the sum is divided by
            it. See `cross_entropy`.
        phi: "log", or `Focal`, `Alpha`, `GCE`, `Poly1`, or `Asymmetric` between the sides.
        gradient: "auto", "sweep" or "statistics", see `cross_entropy`: in the forward, for an
            upstream gradient of 1, or in the backward.
        backend: "auto", "cpp", "triton" or "reference"; see `lpl_fused.explain()`. Gradients of
            tables and of `target` are the reference's, which "auto" takes for them.

    Returns:
        0-dim for "mean" and "sum", the shape of `input` for "none"; float32, float64 for float64
        input. The gradient comes in `input`'s dtype. An empty mean is nan, as in torch.
        Differentiable once; backend="reference" differentiates twice.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device, table length or number.
        RuntimeError: a backend asked for by name that cannot run here, or cannot differentiate
            what requires grad.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, -1.0]])
        >>> LF.binary_cross_entropy_with_logits(logits, labels, ignore_index=-1)  # one is missing
        tensor(0.4741)
    """
    call = MultiLabel(input, target)
    options = binary_options(reduction, phi, ignore_index, rebalance)
    problem = call.problem(options, perturbation, rebalance, normalizer=normalizer)
    return _weighted(call, problem, weight, pos_weight, neg_weight, gradient, backend)


def lpl_binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    steps: Tensor,
    weight: Tensor | None = None,
    *,
    step_size: float,
    normalize: bool = False,
    pos_weight: Tensor | None = None,
    neg_weight: Tensor | None = None,
    perturbation: Perturbation | BinaryPerturbation | None = None,
    rebalance: RebalancedWeight | None = None,
    ignore_index: float | None = None,
    reduction: str = "mean",
    normalizer: float | Tensor | None = None,
    phi: BinaryPhi = "log",
    gradient: str = "auto",
    backend: str = "auto",
) -> Tensor:
    r"""Binary cross-entropy under a learned class-level logit perturbation: multi-label LPL.

    Class k has one δ⁺ for its positives and one δ⁻ for its negatives in the batch, found by
    |steps[k]| steps of gradient ascent (steps[k] > 0: raises the class's losses) or descent (< 0),
    from z = perturbation(u):

        δ⁺ ← δ⁺ + sign(steps)·step_size·mean_{Y=1} (σ(z⁺ + δ⁺) − 1)
        δ⁻ ← δ⁻ + sign(steps)·step_size·mean_{Y=0} σ(z⁻ + δ⁻)

    The loss is that of `binary_cross_entropy_with_logits` at z + δ. δ is a constant in the backward
    pass. The authors of LPL (Li, Su, Wu, Zhang, 2022) published no multi-label code; the equations
    are this library's reading of theirs.

    Args:
        input, target, weight, pos_weight, neg_weight, perturbation, rebalance, ignore_index,
            reduction, normalizer, phi, gradient, backend: as in
            `binary_cross_entropy_with_logits`. Missing labels take no part in δ; soft labels weigh
            the means by Y and 1 − Y. Weights do not enter δ.
        steps: (C,), integer; 0 leaves a class untouched.
        step_size: α ≥ 0, finite.
        normalize: steps of length α: the gradients never change sign, so δ⁺ = −steps·α and
            δ⁻ = +steps·α, a pair of offsets.

    Returns, Raises:
        as `binary_cross_entropy_with_logits`; also TypeError for `steps` that are not integers.

    Examples:
        >>> logits, labels = torch.tensor([[0.5]]), torch.tensor([[1.0]])
        >>> LF.lpl_binary_cross_entropy_with_logits(
        ...     logits, labels, torch.tensor([3]), step_size=0.1, normalize=True
        ... )
        tensor(0.5981)
    """
    call = MultiLabel(input, target)
    options = binary_options(reduction, phi, ignore_index, rebalance)
    options = options._replace(step_size=checked_step_size(step_size))
    if FLAG("normalize", normalize):
        normalized = _normalized_steps(call, steps, options, perturbation)
        problem = call.problem(options, normalized, rebalance, normalizer=normalizer)
    else:
        problem = call.problem(options, perturbation, rebalance, steps, normalizer)
    return _weighted(call, problem, weight, pos_weight, neg_weight, gradient, backend)


def lpl_binary_perturbation(
    input: Tensor,
    target: Tensor,
    steps: Tensor,
    *,
    step_size: float,
    normalize: bool = False,
    perturbation: Perturbation | BinaryPerturbation | None = None,
    ignore_index: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The δ that `lpl_binary_cross_entropy_with_logits` uses, for inspection; not differentiable.

    Args:
        as in `lpl_binary_cross_entropy_with_logits`.

    Returns:
        (δ⁺, δ⁻), each (C,); float32, float64 for float64 input. A side of a class that no label of
        the batch is on has 0 (with `normalize` what it would have: it needs no labels).

    Examples:
        >>> logits, labels = torch.tensor([[0.5]]), torch.tensor([[1.0]])
        >>> LF.lpl_binary_perturbation(
        ...     logits, labels, torch.tensor([3]), step_size=0.1, normalize=True
        ... )
        (tensor([-0.3000]), tensor([0.3000]))
    """
    call = MultiLabel(input, target)
    options = binary_options("mean", "log", ignore_index)
    options = options._replace(step_size=checked_step_size(step_size))
    if FLAG("normalize", normalize):
        delta = call.steps(steps).to(call.accumulate) * options.step_size
        return -delta, delta
    problem = call.problem(options, perturbation, steps=steps)
    chosen = _resolve(backend, problem)
    with torch.no_grad():
        if chosen == REFERENCE:
            delta = reference.sigmoid.learned_perturbation(problem)
        else:
            delta = ops.sigmoid.learned_perturbation(problem, chosen)
        return delta[0], delta[1]


def _normalized_steps(
    call: MultiLabel,
    steps: Tensor,
    options: BinaryOptions,
    perturbation: Perturbation | BinaryPerturbation | None,
) -> BinaryPerturbation:
    delta = call.steps(steps).to(call.accumulate) * options.step_size
    moved = BinaryPerturbation(Perturbation(offset=-delta), Perturbation(offset=delta))
    return moved if perturbation is None else BinaryPerturbation.of(perturbation).then(moved)


def _weighted(
    call: MultiLabel,
    problem: BinaryProblem,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    neg_weight: Tensor | None,
    form: str,
    backend: str,
) -> Tensor:
    """The loss of a problem under its weights: those by class or row within the kernel."""
    of_all = call.weight("weight", weight)
    positive, negative = (
        call.weight("pos_weight", pos_weight),
        call.weight("neg_weight", neg_weight),
    )
    problem = problem._replace(
        positive_weight=_product(of_all.by_class, positive.by_class),
        negative_weight=_product(of_all.by_class, negative.by_class),
        sample_weight=of_all.by_row,
    )
    chosen = _resolve(backend, problem)
    checked_form(form, _FORMS)
    check_form(form, call.input, chosen)
    # where a side's weights are not by class, the sides are separate losses
    split = any(
        side.by_row is not None or side.by_logit is not None for side in (positive, negative)
    )
    if not split and of_all.by_logit is None:
        return call.restore(_run(problem, chosen, form), problem.options)
    reduction = problem.options.reduction
    options = problem.options._replace(reduction=NONE)
    bare = problem._replace(normalizer=None, options=options)
    if split:
        nothing = call.input.new_zeros(call.classes, dtype=call.accumulate)
        loss = _outside(positive, call, bare._replace(negative_weight=nothing), chosen, form)
        loss = loss + _outside(negative, call, bare._replace(positive_weight=nothing), chosen, form)
    else:
        loss = call.restore(_run(bare, chosen, form), bare.options)
    if of_all.by_logit is not None:
        loss = loss * of_all.by_logit
    if reduction == NONE:
        return loss
    total = loss.sum()
    return total / reference.sigmoid.normalizer(problem) if divides(problem) else total


def _outside(
    weight: Weight, call: MultiLabel, problem: BinaryProblem, backend: str, form: str
) -> Tensor:
    loss = call.restore(_run(problem, backend, form), problem.options)
    if weight.by_row is not None:
        return loss * weight.by_row.reshape(*call.shape[:-1], 1)
    return loss if weight.by_logit is None else loss * weight.by_logit


def _product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one * other


def _run(problem: BinaryProblem, backend: str, form: str) -> Tensor:
    if backend == REFERENCE:
        return reference.sigmoid.binary_cross_entropy(problem)
    return ops.sigmoid.binary_cross_entropy(problem, backend, form)


# what no backend differentiates
_FIXED = Fixed(BinaryProblem, but=("input",))


def _resolve(backend: str, problem: BinaryProblem) -> str:
    """The backend to run; "auto" leaves to the reference what only it differentiates."""
    if _FIXED.left_to_reference(problem, backend):
        return REFERENCE
    return resolve(backend, device_type(problem.input), problem.input.dtype, multilabel=True)
