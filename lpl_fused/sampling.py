"""Which samples a batch has, and how they are mixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .class_stats import Counts, checked_counts, difficulty_weights
from .validation import MixedTarget


def difficulty_sampling_weights(
    target: Tensor, difficulty: Tensor, tau: float | str = "dynamic"
) -> Tensor:
    """CDB-S (Sinha et al., 2022): a class is drawn with P ∝ d_c^τ, its samples alike; (n,) float64.

        weight_i = d_{y_i}^τ / n_{y_i}

    For `torch.utils.data.WeightedRandomSampler`, anew whenever `CDBLoss.update` has changed its
    `difficulty`.

    Args:
        target: (n,) the classes of the training set, integer.
        difficulty: (C,) d_c = 1 − held-out accuracy.
        tau: τ, see `class_stats.difficulty_weights`.

    Raises:
        TypeError: `target` is not integer.
        ValueError: a class out of range; bad `difficulty` or `tau`.
    """
    weights = difficulty_weights(difficulty, tau).to(target.device)
    counts = _class_counts(target, len(weights))
    return (weights / counts.clamp(min=1))[target.long()]


def unimix(
    input: Tensor,
    target: Tensor,
    cls_num_list: Counts,
    *,
    alpha: float = 0.8,
    tau: float = -0.1,
) -> tuple[Tensor, MixedTarget]:
    """UniMix (Xu et al., 2021): mixup towards rare classes, for `losses.BayiasLoss`.

        x_i ← λ_i·x_i + (1 − λ_i)·x_j,   j drawn from the batch with P ∝ n_{y_j}^τ
        λ_i = (Beta(α, α) + n_{y_j}/(n_{y_i} + n_{y_j})) mod 1

    so that the rarer of the two classes tends to get the larger share. α = 1, τ = 0 is mixup.
    Draws from torch's global generators, on the device of `target`.

    Args:
        input: (N, …) floating, samples of the batch.
        target: (N,) their classes, integer.
        cls_num_list: (C,) training samples per class, each ≥ 1.
        alpha: α > 0, default 0.8, the authors'.
        tau: τ, default −0.1, the authors' CIFAR-100-LT (CIFAR-10-LT: −0.5); < 0 prefers the rare.

    Returns:
        the mixed inputs and their target: classes of both and λ, float32 (float64 for float64
        `input`).

    Raises:
        TypeError: dtypes other than these.
        ValueError: bad counts, α or τ; lengths that disagree; a class out of range.
    """
    counts = checked_counts(cls_num_list, minimum=1).to(target.device)
    if not 0 < alpha < math.inf or not math.isfinite(tau):
        raise ValueError(f"alpha, tau: expected finite, alpha > 0, got {alpha}, {tau}")
    if not input.is_floating_point():
        raise TypeError(f"input: expected a floating dtype, got {input.dtype}")
    if input.shape[:1] != target.shape:
        raise ValueError(
            f"target: expected one class per sample, {input.shape[0]}, got {tuple(target.shape)}"
        )
    _class_counts(target, len(counts))
    n = counts[target.long()]
    index = torch.multinomial(n**tau, len(n), replacement=True)
    concentration = torch.full_like(n, alpha)
    beta = torch.distributions.Beta(concentration, concentration).sample()
    lam = beta + n[index] / (n + n[index])
    lam = torch.where(lam > 1, lam - 1, lam).to(torch.promote_types(input.dtype, torch.float32))
    share = lam.reshape(-1, *[1] * (input.dim() - 1))
    mixed = (share * input + (1 - share) * input[index]).to(input.dtype)
    return mixed, MixedTarget(target, target[index], lam)


def _class_counts(target: Tensor, num_classes: int) -> Tensor:
    """Samples per class, (C,); checks dtype, shape and, on the CPU, range."""
    if target.is_floating_point() or target.dtype == torch.bool:
        raise TypeError(f"target: expected integer class indices, got {target.dtype}")
    if target.dim() != 1:
        raise ValueError(f"target: expected shape (N,), got {tuple(target.shape)}")
    label = target.long()
    if target.device.type == "cpu":
        outside = label[(label < 0) | (label >= num_classes)]
        if len(outside):
            raise ValueError(
                f"target: expected classes in [0, {num_classes}), got {int(outside[0])}"
            )
    return torch.bincount(label, minlength=num_classes)
