"""Losses of one logit and two classes, elementwise in plain PyTorch."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..arguments import Number, fixed, live, rebuilding
from ..phi import Alpha, Phi, checked_phi, coded
from ..phi import value_of as phi_of
from ..problem import accumulate_dtype
from ..tracing import readable
from .cross_entropy import REDUCTION
from .module import LossModule
from .rows import reduced


class BinaryLoss(LossModule):
    """Base of the losses on one logit f per sample: φ of −log σ(±f), and its reduction.

    Args:
        reduction: "none", "mean" or "sum".
        phi: "log", or `Alpha`, `GCE`, `Focal`, `Poly1`.
    """

    arguments: ClassVar = {"reduction": REDUCTION, "phi": live(checked_phi)}

    def __init__(self, *, reduction: str = "mean", phi: Phi = "log") -> None:
        super().__init__()
        self.reduction, self.phi = reduction, phi

    def phi_of(self, ell: Tensor) -> Tensor:
        return phi_of(ell, *coded(self.phi))

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, phi={self.phi!r}"


class BinaryAlphaLoss(BinaryLoss):
    """Binary α-loss (Sypherd et al., 2022): L = t·φ(−log σ(f)) + (1 − t)·φ(−log σ(−f)).

    φ(ℓ) = (1 − e^{−κℓ})/κ, κ = 1 − 1/α. In the margin z = ±f: α = 1/2 is e^{−z}, α = 1 the
    logistic loss, α = ∞ is σ(−z). Cost: elementwise, plain PyTorch.

    Args:
        alpha: α in (0, ∞], default 2.0, as `AlphaLoss`.
        reduction: "none", "mean" or "sum".

    Shapes: logits and targets of one shape, any; targets in [0, 1], soft ones too, of any dtype.
    The loss is float32, float64 for float64 logits.

    Raises:
        ValueError: `alpha` not positive; shapes that differ; targets outside [0, 1] (on the CPU;
            nan on CUDA).

    Examples:
        >>> logits, target = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 0.0])
        >>> losses.BinaryAlphaLoss(alpha=0.5, reduction="none")(logits, target)  # e^u
        tensor([7.3891, 0.3679])
    """

    arguments: ClassVar = {
        "alpha": rebuilding(Number(above=0, infinite=True)),
        "phi": fixed(checked_phi),
    }

    def __init__(self, alpha: float = 2.0, **keywords: Any) -> None:
        super().__init__(phi=Alpha(alpha), **keywords)
        self.alpha = alpha

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", Alpha(self.alpha))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        f = input.to(accumulate_dtype(input.dtype))
        t = checked_targets(input, target)
        f = f.masked_fill((t < 0) | (t > 1), math.nan)
        positive = self.phi_of(-logsigmoid(f))
        negative = self.phi_of(-logsigmoid(-f))
        # a side without mass counts nothing, even where its loss is infinite
        value = torch.where(t == 0, 0.0, t * positive) + torch.where(
            t == 1, 0.0, (1 - t) * negative
        )
        return reduced(value, torch.ones_like(value), self.reduction)


def checked_targets(input: Tensor, target: Tensor) -> Tensor:
    """The targets, of any real dtype, in the dtype of sums."""
    if not input.is_floating_point():
        raise TypeError(f"input: expected floating logits, got {input.dtype}")
    if target.shape != input.shape:
        raise ValueError(
            f"target: expected shape {tuple(input.shape)}, that of input, got {tuple(target.shape)}"
        )
    if target.is_complex():
        raise TypeError(f"target: expected a real tensor, got {target.dtype}")
    numbers = target.to(accumulate_dtype(input.dtype))
    if readable(numbers) and bool(((numbers < 0) | (numbers > 1)).any()):
        raise ValueError("target: expected values in [0, 1]")
    return numbers


def binary_labels(target: Tensor) -> Tensor:
    """Hard labels 0 and 1 as int64, of `checked_targets`."""
    label = target.long()
    if readable(target) and not torch.equal(label.to(target.dtype), target):
        raise ValueError("target: expected hard labels 0 and 1, got soft ones")
    return label.clamp(0, 1)
