"""Which samples a batch has, and how they are mixed."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .arguments import CLASSES, CONSUMED, POSITIVE, REAL, Numbers, live
from .class_stats import Counts, checked_counts, difficulty_weights
from .losses.module import LossModule
from .problem import accumulate_dtype, label_range_error
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

    Examples:
        >>> target, difficulty = torch.tensor([0, 0, 1]), torch.tensor([0.2, 0.8])
        >>> lpl_fused.sampling.difficulty_sampling_weights(target, difficulty, tau=1.0)
        tensor([0.2000, 0.2000, 1.6000], dtype=torch.float64)
    """
    weights = difficulty_weights(difficulty, tau)
    _check_classes(target, len(weights))
    weights = weights.to(target.device)
    label = target.long()
    counts = torch.bincount(label, minlength=len(weights))
    return (weights / counts.clamp(min=1))[label]


class UniMix(LossModule):
    """UniMix (Xu et al., 2021): mixup towards rare classes, for `losses.BayiasLoss`.

        x_i ← λ_i·x_i + (1 − λ_i)·x_j,   j drawn from the batch with P ∝ n_{y_j}^τ
        λ_i = (Beta(α, α) + n_{y_j}/(n_{y_i} + n_{y_j})) mod 1

    so that the rarer of the two classes tends to get the larger share. α = 1, τ = 0 is mixup.

        mix = UniMix(cls_num_list)
        input, target = mix(input, target)
        loss = criterion(model(input), target)

    Draws from torch's global generators; has no state. Under torch.distributed each rank mixes its
    own batch.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        alpha: α > 0, default 0.8, the authors'.
        tau: τ, default −0.1, the authors' CIFAR-100-LT (CIFAR-10-LT: −0.5); < 0 prefers the rare.

    Shapes: input (N, …) floating and target (N,) integer → the mixed input and its `MixedTarget`
    with λ in float32 (float64 for float64 input).

    Raises:
        ValueError: bad counts, α or τ; at the call, lengths that disagree, a class out of range.
        TypeError: at the call, dtypes other than these.

    Examples:
        >>> mix = lpl_fused.sampling.UniMix([100, 10, 1])
        >>> images, mixed = mix(torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 2]))
        >>> losses.BayiasLoss([100, 10, 1])(torch.zeros(4, 3), mixed).shape
        torch.Size([])
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "alpha": live(POSITIVE), "tau": live(REAL)}

    counts: Tensor

    def __init__(self, cls_num_list: Counts, alpha: float = 0.8, tau: float = -0.1) -> None:
        super().__init__()
        self.alpha, self.tau = alpha, tau
        counts = checked_counts(cls_num_list, filled=True)
        self.register_buffer("counts", counts, persistent=False)

    @torch.no_grad()
    def draw(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """(index, lam) of the batch, both (N,): partners j and shares λ, float64."""
        _check_classes(target, len(self.counts))
        n = self.counts[target.long()]
        if len(n) == 0:
            return target.long(), n
        log_odds = self.tau * n.log()  # of which no power overflows
        odds = torch.exp(log_odds - log_odds.max())
        index = torch.multinomial(odds, len(n), replacement=True)
        concentration = torch.full_like(n, self.alpha)
        # validated above; distributions would look at values, and wait for a GPU
        beta = torch.distributions.Beta(concentration, concentration, validate_args=False).sample()
        lam = beta + n[index] / (n + n[index])
        return index, torch.where(lam > 1, lam - 1, lam)

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, MixedTarget]:
        Numbers(True)("input", input)
        CLASSES("target", target)
        if input.shape[:1] != target.shape:
            raise ValueError(
                f"target: expected one class per sample, {input.shape[0]}, "
                f"got {tuple(target.shape)}"
            )
        index, lam = self.draw(target)
        lam = lam.to(accumulate_dtype(input.dtype))
        share = lam.reshape(-1, *[1] * (input.dim() - 1))
        mixed = (share * input + (1 - share) * input[index]).to(input.dtype)
        return mixed, MixedTarget(target, target[index], lam)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, tau={self.tau}"


def _check_classes(target: Tensor, num_classes: int) -> None:
    """Dtype, shape and, on the CPU (elsewhere it would synchronise), range."""
    target = CLASSES("target", target).long()
    if target.device.type == "cpu":
        outside = target[(target < 0) | (target >= num_classes)]
        if len(outside):
            raise label_range_error("target", int(outside[0]), num_classes, None)
