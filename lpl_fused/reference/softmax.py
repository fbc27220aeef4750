"""The definition of correct: every loss in plain, differentiable PyTorch, any dtype, any device.

Backends are tested against this file run in float64. Reading order: `perturb` gives z, `learned_
perturbation` gives δ, `row_losses` gives the loss of each row, `cross_entropy` reduces.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..algebra.learned import height, plain_steps
from ..algebra.statistics import RowStatistics
from ..norm import Numbers
from ..paths import LEARNING, NORMING, PENALISING, SCALING, TARGETS, WEIGHING, Path
from ..penalty import value_of
from ..phi import value_of as phi_of
from ..problem import MEAN, NONE, Problem, accumulate_dtype, divides, label_range_error
from ..tracing import batched, of_all_levels, readable
from .operators import constant, fake_rows, opaque, operator, problem_of

_KNOWN = Path(
    "reference",
    Problem,
    (
        *("z_loss", "softcap", "through"),
        *(*WEIGHING, *SCALING, *NORMING, *TARGETS, *LEARNING, *PENALISING),
    ),
)


def check_labels(problem: Problem) -> None:
    """Raises RangeError for a label or row index out of range; on the CPU alone (no GPU sync)."""
    if not readable(problem.input):
        return
    classes = problem.classes
    ignore = problem.options.ignore_index
    for labels in () if problem.dense else (problem.target, problem.other):
        if labels is None or not readable(labels):
            continue
        bad = ((labels < 0) | (labels >= classes)) & (labels != ignore)
        if bad.any():
            raise label_range_error("target", int(labels[bad][0]), classes, ignore)
    if problem.rows is not None and problem.row_index is not None:
        bad = (problem.row_index < 0) | (problem.row_index >= problem.rows.shape[0])
        if bad.any():
            value = int(problem.row_index[bad][0])
            raise label_range_error("row_index", value, problem.rows.shape[0], None)


def row_norm(u: Tensor, p: float, dim: int) -> Tensor:
    """‖u‖_p along `dim`, kept as a dimension; no power overflows, the gradient at 0 is 0."""
    # the norm does not depend on what it is scaled by, so neither does its gradient
    peak = u.detach().abs().amax(dim, keepdim=True).clamp(min=torch.finfo(u.dtype).tiny)
    norm: Tensor = torch.linalg.vector_norm(u / peak, p, dim=dim, keepdim=True)
    return peak * norm


def renormed(u: Tensor, norm: Numbers, dim: int = 1) -> Tensor:
    """T(u) = u·f(‖u‖_p) along `dim`: see `lpl_fused.norm`. What is −inf stays so, uncounted."""
    masked = u == -torch.inf
    counted = u.masked_fill(masked, 0)
    length = row_norm(counted, norm.p, dim) + norm.offset
    # the branch that torch.where leaves out must not divide by 0 either
    factor = norm.gain / length.clamp(min=norm.limit)
    factor = torch.where(length > norm.limit, factor, 1.0)
    return torch.where(masked, u * factor.detach(), counted * factor)


def perturb(problem: Problem) -> Tensor:
    """The perturbed logits z (N, C), without the learned perturbation."""
    options = problem.options
    z = problem.input.to(accumulate_dtype(problem.input.dtype))
    if options.norm_p > 0:
        if not problem.dense and problem.other is None:
            # garbage in ignored rows (padding) must not reach the gradient as 0·nan
            z = z.masked_fill((problem.target == options.ignore_index)[:, None], 0)
        z = renormed(z, options.norm)
    if options.softcap > 0:
        z = options.softcap * torch.tanh(z / options.softcap)
    if problem.scale is not None:
        z = z * problem.scale
    if problem.offset is not None:
        z = z + problem.offset
    if problem.rows is not None:
        index = problem.row_index
        if index is None:
            # an ignored row needs no perturbation, but its label is no row either
            index = problem.target.masked_fill(problem.target == options.ignore_index, 0)
        z = z + problem.rows[index]
    if problem.margin is not None:
        ignored = problem.target == options.ignore_index
        label = problem.target.masked_fill(ignored, 0)
        margin = problem.margin[label].masked_fill(ignored, 0)
        z = z.scatter_add(1, label[:, None], -margin[:, None])
    return z * options.inverse_temperature


def leaders(problem: Problem) -> tuple[Tensor, Tensor]:
    """Groups the rows by class: (slot, count), both (N,).

    slot[i] is the first row with row i's label, count[i] the number of such rows. Ignored rows
    form a group of their own (slot of the first of them), which takes no steps.
    """
    n, classes = problem.input.shape
    ignored = problem.target == problem.options.ignore_index
    label = problem.target.masked_fill(ignored, classes)
    index = torch.arange(n, device=label.device)
    first = label.new_full((classes + 1,), n).scatter_reduce(0, label, index, "amin")
    slot = first[label]
    count = torch.zeros_like(slot).index_add(0, slot, torch.ones_like(slot))[slot]
    return slot, count


def learned_perturbation(
    problem: Problem, *, differentiable: bool = False
) -> tuple[Tensor, Tensor]:
    """The learned perturbation: (delta (N, C), slot (N,)), row i having delta[slot[i]].

    Per class c in the batch, with rows I_c, for k < |steps[c]|:
        g = mean_{i∈I_c} softmax(z_i + δ) − e_c
        if normalize: g ← g/‖g‖₂ (0 where ‖g‖ < NORM_FLOOR)
        δ ← δ + sign(steps[c])·step_size·g
    With shares (`lam`) beside one label means are weighted by them. Rows of delta that lead no
    group are 0. `differentiable=True` keeps the graph of all steps.
    """
    check_labels(problem)
    if differentiable:
        return _learned_perturbation(problem)
    if opaque(problem):
        return _perturbation_op(problem)  # type: ignore[no-any-return]
    with torch.no_grad():
        return _learned_perturbation(constant(problem))


def _learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    assert problem.steps is not None
    options = problem.options
    z = perturb(problem)
    slot, count = leaders(problem)
    if z.shape[0] == 0:
        return torch.zeros_like(z), slot
    ignored = problem.target == options.ignore_index
    label = problem.target.masked_fill(ignored, 0)
    steps = problem.steps[label].masked_fill(ignored, 0)
    is_leader = slot == torch.arange(slot.shape[0], device=slot.device)
    steps = steps.masked_fill(~is_leader, 0)
    share = 1 / count.to(z.dtype)
    if problem.lam is not None:
        share = problem.lam / torch.zeros_like(problem.lam).index_add(0, slot, problem.lam)[slot]
    most = _most(problem.steps if batched() else steps)
    return plain_steps(z, label, slot, share, steps, options, most), slot


def _most(steps: Tensor) -> int:
    """The most steps that any class takes.

    Raises:
        RuntimeError: somebody traces, who does not see numbers.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "through_perturbation: the number of steps is in the data, which torch.compile does not"
            " see; call the loss outside of what is compiled (torch.compiler.disable)"
        )
    steps = of_all_levels(steps)
    return int(steps.abs().max()) if steps.numel() else 0


_perturbation_op = operator(
    "reference_perturbation",
    "(Tensor delta, Tensor slot)",
    lambda *packed: _learned_perturbation(problem_of(*packed)),
    fake_rows,
)


def target_cross_entropy(z: Tensor, label: Tensor) -> Tensor:
    """(N,) −log softmax(z)[label] = log(1 + Σ_{j≠y} e^{z_j − z_y}).

    Written with the rivals' sum alone, so that value and gradient keep all digits where p_y → 1;
    torch's log_softmax ends at p_y − 1 = 0 there.
    """
    z = z - z.detach().amax(1, keepdim=True)  # a common offset must not eat the digits
    rivals = z.scatter(1, label[:, None], -torch.inf)
    # (beside +inf all others are −inf, too, but no number)
    alone = (rivals == -torch.inf).all(1) & ~z.isnan().any(1)
    rivals = rivals.masked_fill(alone[:, None], 0)  # logsumexp of nothing has no gradient
    log_mass = torch.logsumexp(rivals, 1).masked_fill(alone, -torch.inf)
    own = z.gather(1, label[:, None])[:, 0]
    return torch.logaddexp(log_mass - own, torch.zeros_like(own))


def row_losses(problem: Problem, z: Tensor, base: Tensor | None = None) -> Tensor:
    """(N,) losses Σ_j t_j·(φ(ℓ_j) + z_loss·lse²), t weighted by class and sample; of z + base
    (N, 1), if there is one."""
    options = problem.options
    lse = torch.logsumexp(z, 1)
    if base is not None:
        lse = lse + base[:, 0]
    penalty = options.z_loss * lse**2 if options.z_loss > 0 else None

    def phi_at(columns: Tensor | slice) -> Tensor:
        """φ(ℓ_j) + penalty for the given column per row, or for all columns."""
        if isinstance(columns, slice):
            value = phi_of(-torch.log_softmax(z, 1), options.phi, options.phi_parameter)
            return value if penalty is None else value + penalty[:, None]
        value = phi_of(target_cross_entropy(z, columns), options.phi, options.phi_parameter)
        return value if penalty is None else value + penalty

    if problem.dense:
        t = problem.target.to(z.dtype)
        if options.label_smoothing > 0:
            t = t * (1 - options.label_smoothing) + options.label_smoothing / z.shape[1]
        if problem.weight is not None:
            t = t * problem.weight
        # a class without target mass counts nothing, whatever its logit (−inf included)
        return _weighted(torch.where(t == 0, 0.0, t * phi_at(slice(None))).sum(1), problem)

    total = z.new_zeros(z.shape[0])
    for label, share in labels_with_shares(problem, z.dtype):
        ignored = label == options.ignore_index
        label = label.masked_fill(ignored, 0)
        value = phi_at(label)
        if problem.weight is not None:
            value = value * problem.weight[label]
        if problem.smooth:
            everywhere = phi_at(slice(None))
            if problem.weight is not None:
                everywhere = everywhere * problem.weight
            epsilon = options.label_smoothing
            if problem.smoothing is not None:
                epsilon = problem.smoothing[label]  # type: ignore[assignment]
            value = _part(1 - epsilon, value) + _part(epsilon, everywhere.mean(1))
        if share is not None:
            value = _part(share, value)
        total = total + value.masked_fill(ignored, 0)
    return _weighted(total, problem)


def _part(share: Tensor | float, loss: Tensor) -> Tensor:
    """What has no share of a target counts nothing, whatever its loss (infinite included)."""
    if isinstance(share, Tensor):
        return torch.where(share == 0, 0.0, share * loss)
    return share * loss if share != 0 else torch.zeros_like(loss)


def labels_with_shares(problem: Problem, dtype: torch.dtype) -> list[tuple[Tensor, Tensor | None]]:
    """The labels of a row and the share of each: one, or the two of a mixed target."""
    if problem.other is None:
        return [(problem.target, None)]
    assert problem.lam is not None
    lam = problem.lam.to(dtype)
    return [(problem.target, lam), (problem.other, 1 - lam)]


def _weighted(loss: Tensor, problem: Problem) -> Tensor:
    return loss if problem.sample_weight is None else loss * problem.sample_weight


def normalizer(problem: Problem) -> Tensor:
    """0-dim: what the sum of the losses is divided by. For "mean" the sum of the weights of all
    rows that count, for "sum" the problem's normalizer.

    Dense targets count as one row each (as in torch), labels by their class weight, ignored ones
    not at all; sample weights multiply both.
    """
    dtype = accumulate_dtype(problem.input.dtype)
    if problem.normalizer is not None:
        return problem.normalizer
    if problem.dense:
        ones = problem.target.new_ones(problem.target.shape[0], dtype=dtype)
        return _weighted(ones, problem).sum()
    total = torch.zeros(problem.target.shape[0], dtype=dtype, device=problem.target.device)
    for label, share in labels_with_shares(problem, dtype):
        ignored = label == problem.options.ignore_index
        value = torch.ones_like(total) if share is None else share
        if problem.weight is not None:
            value = value * problem.weight[label.masked_fill(ignored, 0)]
        total = total + value.masked_fill(ignored, 0)
    return _weighted(total, problem).sum()


def counted_rows(problem: Problem) -> Tensor:
    """(N,) bool: the rows that count, all but those that are ignored (with both labels)."""
    if problem.dense:
        return problem.target.new_ones(problem.target.shape[0], dtype=torch.bool)
    counted = problem.target != problem.options.ignore_index
    if problem.other is not None:
        counted = counted | (problem.other != problem.options.ignore_index)
    return counted


def penalties(problem: Problem, counted: Tensor) -> Tensor:
    """(N,) penalties of the rows that count, 0 for the others: see `lpl_fused.penalty`."""
    options = problem.options
    u = problem.input
    excess = (u.amax(1, keepdim=True) - u - options.penalty_margin) / options.penalty_unit
    strength = options.penalty_strength
    values = value_of(excess, options.penalty, strength, problem.multiplier, problem.rho)
    return values.mean(1).masked_fill(~counted, 0)


def row_statistics(problem: Problem) -> RowStatistics:
    """Of the rows, beside their loss; no gradient."""
    check_labels(problem)
    with torch.no_grad():
        z, base = perturb(constant(problem)), None
        if problem.steps is not None:
            delta, slot = learned_perturbation(problem)
            base = height(z)
            z = (z - base) + delta[slot]
        lse = torch.logsumexp(z, 1)
        shift = 0.0 if base is None else base[:, 0]
        log_p = z - lse[:, None]
        p = torch.exp(log_p)
        entropy = -torch.where(p == 0, 0.0, p * log_p).sum(1)
        none = (z == -torch.inf).all(1)
        broken = (z.isnan() | (z == torch.inf)).any(1)
        lse, entropy = lse.masked_fill(broken, torch.nan), entropy.masked_fill(none, torch.nan)
        if problem.dense:
            label = problem.target.argmax(1)
        elif problem.other is None:
            label = problem.target
        else:
            assert problem.lam is not None
            gone = [y == problem.options.ignore_index for y in (problem.target, problem.other)]
            first = ((problem.lam >= 0.5) & ~gone[0]) | gone[1]
            label = torch.where(first, problem.target, problem.other)
        counted = counted_rows(problem)
        correct = (problem.input.argmax(1) == label) & ~broken & ~none & counted
        return RowStatistics(
            (lse + shift).masked_fill(~counted, 0), entropy.masked_fill(~counted, 0), correct
        )


def cross_entropy(problem: Problem) -> Tensor:
    """The loss of a problem: 0-dim, or (N,) for reduction "none"."""
    if not torch.compiler.is_compiling():
        _KNOWN.demand(problem)
    check_labels(problem)
    # once, so that a 16-bit gradient is rounded once, however many ways lead to the logits
    input = problem.input.to(accumulate_dtype(problem.input.dtype))
    nothing = None
    if not problem.dense:
        # garbage in ignored rows (padding) must not reach the gradient as 0·nan
        nothing = ~counted_rows(problem)[:, None]
        input = input.masked_fill(nothing, 0)
    problem = problem._replace(input=input)
    z, base = perturb(problem), None
    if problem.steps is not None:
        delta, slot = learned_perturbation(problem, differentiable=problem.options.through)
        base = height(z)
        z = (z - base) + delta[slot]
    if nothing is not None:
        z = z.masked_fill(nothing, 0)  # nor that of tables
    loss = row_losses(problem, z, base)
    reduction = problem.options.reduction
    value = loss if reduction == NONE else loss.sum()
    if divides(problem):
        value = value / normalizer(problem)
    return value + penalty_of(problem) if problem.options.penalty else value


def penalty_of(problem: Problem) -> Tensor:
    """What the penalty adds to the loss, reduced as that is."""
    counted, reduction = counted_rows(problem), problem.options.reduction
    penalty = penalties(problem, counted)
    if reduction == NONE:
        return penalty
    if not divides(problem):
        return penalty.sum()
    return penalty.sum() / (counted.sum() if reduction == MEAN else normalizer(problem))
