"""The same losses without this library, the way that a user of PyTorch writes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import LogitClip, MarginPenalty, Perturbation
from lpl_fused.norm import Norm

Loss = Callable[..., Tensor]
PgdStep = Callable[..., Tensor]


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    perturbation: Perturbation | None,
    label_smoothing: float,
    norm: Norm | None = None,
    penalty: MarginPenalty | None = None,
    *,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """Shortens the rows and perturbs the logits, then `loss` of them, plus a penalty."""
    extra = 0.0 if penalty is None else margin_penalty(logits, penalty)
    if norm is not None:
        logits = normed(logits, norm)
    if perturbation is not None:
        logits = perturbed(logits, target, perturbation)
    return loss(logits, target, label_smoothing=label_smoothing) + extra


def focal_cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The focal loss of its authors' exponent, 2."""
    loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)
    return ((1 - torch.exp(-loss)) ** 2 * loss).mean()


def linear_cross_entropy(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """A classifier's last layer and its loss."""
    return F.cross_entropy(F.linear(features, weight), target)


def normed(logits: Tensor, norm: Norm) -> Tensor:
    """Rows of bounded or of equal length."""
    if isinstance(norm, LogitClip):
        length: Tensor = logits.norm(p=norm.p, dim=1, keepdim=True)
        return logits * (norm.tau / length).clamp(max=1)
    length = logits.norm(dim=1, keepdim=True) + 1e-7
    return logits / (length * norm.tau)


def margin_penalty(logits: Tensor, penalty: MarginPenalty) -> Tensor:
    """Distances from the largest logit above a margin, as the authors of MbLS and CALS penalise."""
    h = logits.max(dim=1, keepdim=True).values - logits - penalty.margin
    if penalty.multiplier is None or penalty.rho is None:
        return penalty.strength * F.relu(h).mean()
    h = h / penalty.margin
    lam, rho = penalty.multiplier, penalty.rho
    return ((F.relu(lam + rho * h) ** 2 - lam**2) / (2 * rho)).mean()


def perturbed(logits: Tensor, target: Tensor, perturbation: Perturbation) -> Tensor:
    """The logits under class tables; margins as the code of LDAM's authors takes them off."""
    if perturbation.scale is not None:
        logits = logits * perturbation.scale
    if perturbation.offset is not None:
        logits = logits + perturbation.offset
    if perturbation.margin is not None:
        is_target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target[:, None], True)
        logits = torch.where(is_target, logits - perturbation.margin[target][:, None], logits)
    if perturbation.temperature != 1:
        logits = logits / perturbation.temperature
    return logits


def pgd_step(
    logits: Tensor, delta: Tensor, group: Tensor, classes: Tensor, count: Tensor, rate: Tensor
) -> Tensor:
    """One step for all classes of the batch at once: delta (G, C) += rate·(mean softmax − e_c)."""
    probability = torch.softmax(logits + delta[group], 1)
    gradient = torch.zeros_like(delta).index_add_(0, group, probability) / count[:, None]
    gradient = gradient.scatter_add(1, classes[:, None], -torch.ones_like(count)[:, None])
    return delta.addcmul_(rate[:, None], gradient)


def lpl_cross_entropy(
    logits: Tensor,
    target: Tensor,
    steps: Tensor,
    step_size: float,
    max_steps: int,
    *,
    step: PgdStep = pgd_step,
    loss: Loss = F.cross_entropy,
) -> Tensor:
    """LPL over the classes that the batch holds: no C×C matrix, no loop over classes.

    Args:
        logits, target: (N, C), (N,).
        steps: (C,), signed step counts of magnitude at most `max_steps`.
        step, loss: what is done in every step and at the end, so that both can be compiled.
    """
    with torch.no_grad():
        classes, group, count = torch.unique(target, return_inverse=True, return_counts=True)
        wide = torch.promote_types(logits.dtype, torch.float32)
        delta = torch.zeros((len(classes), logits.shape[1]), dtype=wide, device=logits.device)
        count, signed = count.to(wide), steps[classes].to(wide)
        for k in range(max_steps):
            rate = torch.where(signed.abs() > k, signed.sign() * step_size, 0.0)
            delta = step(logits, delta, group, classes, count, rate)
    return loss(logits + delta[group], target)


def published_lpl_cross_entropy(
    logits: Tensor, target: Tensor, step_size: float, steps: int
) -> Tensor:
    """LPL as its authors' scripts compute it (github.com/limengyang1992/lpl at 9fe33e8): every step
    through C×C matrices, a row for every class, a class's row divided by the norm of its column.

    Of the scripts networks/train_adv.py: all classes are raised by as many steps. Their signs hang
    on no comparison that rounding may turn, and no step counts add a loop over classes.
    """
    with torch.no_grad():
        start = z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        one_hot = F.one_hot(target, z.shape[1]).to(z.dtype)
        count = one_hot.sum(0)
        count = torch.where(count == 0, 100, count)
        identity = torch.eye(len(count), dtype=z.dtype, device=z.device)
        for _ in range(steps):
            mean = one_hot.T @ torch.softmax(z, 1) / count[:, None]  # (C, C)
            gradient = mean - identity
            step = step_size * gradient / gradient.norm(dim=0).reshape(-1, 1)
            z = z + step[target]
        delta = z - start
    return F.cross_entropy(logits + delta, target)


def distribution_balanced(
    logits: Tensor, target: Tensor, inverse: Tensor, bias: Tensor, neg_scale: float
) -> Tensor:
    """The distribution-balanced loss with re-balanced weights, NTR and focal, step by step.

    Args:
        inverse, bias: (C,), 1/n and ν.
    """
    ratio = inverse / (target @ inverse)[:, None]
    weight = 0.1 + torch.sigmoid(10.0 * (ratio - 0.2))
    z = logits + bias
    z = torch.where(target == 1, z, neg_scale * z)
    weight = torch.where(target == 1, weight, weight / neg_scale)
    ell = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    return (2.0 * (1 - torch.exp(-ell)) ** 2 * weight * ell).mean()


def binary_pgd_step(logits: Tensor, target: Tensor, delta: Tensor, rate: Tensor) -> Tensor:
    """One step of the δ (2, C) of all classes: += rate·mean gradient of positives, of negatives."""
    positive = target.sum(0)
    one = ((torch.sigmoid(logits + delta[0]) - 1) * target).sum(0) / positive.clamp(min=1)
    negative = (target.shape[0] - positive).clamp(min=1)
    zero = (torch.sigmoid(logits + delta[1]) * (1 - target)).sum(0) / negative
    return delta + rate * torch.stack([one, zero])


def lpl_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    steps: Tensor,
    step_size: float,
    max_steps: int,
    *,
    step: PgdStep = binary_pgd_step,
    loss: Loss = F.binary_cross_entropy_with_logits,
) -> Tensor:
    """Multi-label LPL, as `lpl_cross_entropy`."""
    with torch.no_grad():
        wide = torch.promote_types(logits.dtype, torch.float32)
        delta = torch.zeros((2, logits.shape[1]), dtype=wide, device=logits.device)
        signed = steps.to(wide)
        for k in range(max_steps):
            rate = torch.where(signed.abs() > k, signed.sign() * step_size, 0.0)
            delta = step(logits, target, delta, rate)
    return loss(logits + torch.where(target == 1, delta[0], delta[1]), target)
