"""Losses of ℓ∞-distance nets, whose logits are 1-Lipschitz in ℓ∞."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import (
    CONSUMED,
    NOT_NEGATIVE,
    POSITIVE,
    REAL,
    SHARE,
    Choice,
    Number,
    fixed,
    live,
)
from ..norm import checked_norm
from ..perturbation import Perturbation
from ..phi import checked_phi
from ..problem import accumulate_dtype
from ..row_transforms import class_dim
from .cross_entropy import NO_SOFTCAP, CrossEntropyLoss
from .rows import blanked, class_indices, reduced, row_weights


def certified_margins(input: Tensor, label: Tensor, epsilon: float) -> Tensor:
    """M_ij = 1 + (g_ij − g_iy)/(2ε) for 1-Lipschitz logits g, M_iy = 0; the shape of `input`.

    M_ij < 0 for all j ≠ y certifies the row against all perturbations of ‖·‖_∞ ≤ ε.
    """
    dim = class_dim(input)
    g = input.to(accumulate_dtype(input.dtype))
    column = label.unsqueeze(dim)
    margins = 1 + (g - g.gather(dim, column)) / (2 * epsilon)
    return margins.scatter(dim, column, 0.0)


class LInfHingeLoss(CrossEntropyLoss):
    """Hinge on certified margins (Zhang et al., 2022): L = (1−μ)·max_j relu(M_ij) + μ·mean_j relu.

    M as in `certified_margins`. Cross-entropy on the margins, the authors' third loss, is
    `CosFaceLoss(s=1/(2ε), m=2ε)`. Cost: half a dozen row sweeps in plain PyTorch.

    Args:
        epsilon: ε > 0 in the units of the network's input (divided by the data's deviation); may be
            assigned, `schedules.smooth_ramp` lets it grow.
        mix: μ in [0, 1], default 0.25, the authors' code.
        **keywords: `weight`, `ignore_index` and `reduction` of `CrossEntropyLoss`.

    Raises:
        ValueError: bad numbers; a target that is not class indices, when called.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.LInfHingeLoss(epsilon=0.1)(logits, target)
        tensor(9.6667)
    """

    arguments: ClassVar = {
        "epsilon": live(POSITIVE),
        "mix": live(SHARE),
        # a hinge has none of these
        "label_smoothing": fixed(SHARE),
        "phi": fixed(checked_phi),
        "z_loss": fixed(NOT_NEGATIVE),
        "softcap": NO_SOFTCAP,
        "norm": fixed(checked_norm),
        "gradient": fixed(Choice("auto")),
        "backend": fixed(Choice("auto")),
    }

    def __init__(
        self,
        epsilon: float,
        mix: float = 0.25,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        empty: str = "nan",
    ) -> None:
        super().__init__(weight, ignore_index=ignore_index, reduction=reduction, empty=empty)
        self.epsilon, self.mix = epsilon, mix

    def forward(  # type: ignore[override]
        self, input: Tensor, target: Tensor, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        if perturbation is not None:
            raise ValueError("perturbation: a hinge of margins takes none")
        label = class_indices(input, target, self)
        margins = certified_margins(blanked(input, target, self.ignore_index), label, self.epsilon)
        positive, dim = margins.clamp(min=0), class_dim(input)
        value = (1 - self.mix) * positive.amax(dim) + self.mix * positive.mean(dim)
        weights = row_weights(target, label, value, self)
        return reduced(weights * value, weights, self.reduction, self.empty)


class LInfMixtureLoss(CrossEntropyLoss):
    """Clipped hinge and scaled cross-entropy (Zhang et al., 2022), the loss of ℓ∞-dist-net v2:

        L_i = max_j clamp(M_ij, 0, clip) + λ·φ(CE(s·g_i, y))

    M of the unscaled logits g as in `certified_margins`, s learnable (`loss.s`, give it its own
    learning rate: the authors' 0.006 beside 0.03). Rows with M > clip, the misclassified ones, get
    no gradient from the hinge. Class weights multiply both parts; φ, smoothing, z-loss and
    perturbation act on the cross-entropy. Cost: plain cross-entropy and half a dozen row sweeps.

    State: s (1,), a parameter: an optimiser moves it, DDP averages its gradient, FSDP2 shards it.

    Args:
        epsilon: ε > 0 in the units of the network's input (divided by the data's deviation); may be
            assigned, `schedules.smooth_ramp` lets it grow.
        strength: λ ≥ 0, default 0.1, the authors' first value; assigned from
            `schedules.geometric(0.1, 0.001, r)` in the course of training.
        clip: > 0, default 1.
        scale: s at first, default 1.
        **keywords: of `CrossEntropyLoss`, `softcap` apart.

    Raises:
        ValueError: bad numbers; a target that is not class indices, when called.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.LInfMixtureLoss(epsilon=0.1)(logits, target).detach()
        tensor(1.2408)
    """

    arguments: ClassVar = {
        "epsilon": live(POSITIVE),
        "strength": live(NOT_NEGATIVE),
        "clip": live(Number(above=0, infinite=True)),
        "scale": CONSUMED,
        "softcap": NO_SOFTCAP,
    }

    def __init__(
        self,
        epsilon: float,
        strength: float = 0.1,
        clip: float = 1.0,
        scale: float = 1.0,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.epsilon, self.strength, self.clip = epsilon, strength, clip
        self.s = nn.Parameter(torch.tensor([REAL("scale", scale)]))  # FSDP2 takes no 0-dim ones

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **keywords: Any
    ) -> None:
        saved = state_dict.get(prefix + "s")
        if isinstance(saved, Tensor) and saved.dim() == 0:  # as it was before 1.0.0
            state_dict[prefix + "s"] = saved.detach().reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **keywords)

    def perturbation(self, logits: Tensor) -> Perturbation:
        s = self.s.to(accumulate_dtype(logits.dtype))  # products with other tables lose no digits
        return Perturbation(scale=s.expand(logits.shape[class_dim(logits)]))

    def forward(  # type: ignore[override]
        self, input: Tensor, target: Tensor, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        label = class_indices(input, target, self)
        input = input.to(accumulate_dtype(input.dtype))  # the sum of two gradients is rounded
        margins = certified_margins(blanked(input, target, self.ignore_index), label, self.epsilon)
        hinge = margins.amax(class_dim(input)).clamp(0, self.clip)
        weights = row_weights(target, label, hinge, self)
        hinge = reduced(weights * hinge, weights, self.reduction, self.empty)
        return hinge + self.strength * super().forward(input, target, perturbation=perturbation)
