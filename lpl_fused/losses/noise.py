"""Losses that draw a perturbation anew for every logit."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import CONSUMED, NOT_NEGATIVE, POSITIVE, REAL, live, rebuilding
from ..class_stats import Counts, checked_counts
from ..perturbation import Perturbation, chained
from ..row_transforms import class_dim
from ..validation import Shaped, Target
from .cross_entropy import CrossEntropyLoss
from .rows import expect_classes, numbered


class NoiseLoss(CrossEntropyLoss):
    """Base: CE(perturb(u + ε ⊙ strength), y), ε_ic = |N(0, σ²)| cut off at 1, drawn per logit.

    The draw is torch's own, so its random state is what a bit-equal continuation needs; in `eval()`
    there is none. Cost: one more row sweep, and the draw as large as the logits.
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "sigma": live(NOT_NEGATIVE)}

    def __init__(self, sigma: float, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.sigma = sigma

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Target,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        drawn = None
        if self.training:
            strength = self.table("strength", input)
            Shaped(input, target)
            expect_classes(input, len(strength))
            index = numbered(input.select(class_dim(input), 0))
            draw = torch.randn(
                index.numel(), len(strength), dtype=strength.dtype, device=input.device
            )
            noise = (draw * self.sigma).abs().clamp(max=1)
            drawn = Perturbation(rows=noise * strength, row_index=index)
        tables = chained(drawn, self.after(input), perturbation)
        return super().forward(input, target, perturbation=tables, normalizer=normalizer)

    def after(self, logits: Tensor) -> Perturbation | None:
        """The tables that follow the noise."""
        return None


class GCLLoss(NoiseLoss):
    """Gaussian clouded logits (Li et al., 2022): L = CE(s·(u − ν·|ε|⊙r − m·e_y), y).

    r_c = (log n_max − log n_c)/max_j(…), ε_ic ~ N(0, (1/3)²) cut off at ±1: rare classes' logits
    are lowered most, for every sample. The logits are cosines (`linear.NormalizedLinear`).
    Cost: one more row sweep, and a draw as large as the logits.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        s: scale > 0, default 30; nu: ν, default 0.5; m: margin, default 0; sigma: deviation of ε,
            default 1/3; all the authors' code.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts, `s` not positive; with m ≠ 0 a target that
            is not class indices, when called.

    Examples:
        >>> cosines, target = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0])
        >>> criterion = losses.GCLLoss([100, 10, 1])
        >>> criterion(cosines, target).shape  # drawn anew in every call
        torch.Size([])
        >>> criterion.eval()(cosines, target)
        tensor(6.1450e-06)
    """

    arguments: ClassVar = {"s": live(POSITIVE), "nu": rebuilding(REAL), "m": rebuilding(REAL)}

    def __init__(
        self,
        cls_num_list: Counts,
        s: float = 30.0,
        nu: float = 0.5,
        m: float = 0.0,
        sigma: float = 1 / 3,
        **keywords: Any,
    ) -> None:
        super().__init__(sigma, **keywords)
        self._counts = checked_counts(cls_num_list, filled=True)
        self.s, self.nu, self.m = s, nu, m
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        logs = torch.log(self._counts)
        self.register_table("strength", -self.nu * relative(logs.max() - logs))
        self.register_table("margin", torch.full_like(logs, self.m))

    def after(self, logits: Tensor) -> Perturbation:
        margin = self.table("margin", logits) if self.m else None
        return Perturbation(margin=margin, temperature=1 / self.s)


class BLVLoss(NoiseLoss):
    """Balancing logit variation (Wang et al., 2023): L = CE(u + |ε|⊙r, y), ε_ic ~ N(0, σ²).

    r_c = f_c/max f, f_c = log Σn − log n_c, |ε| cut off at 1. The opposite sign of `GCLLoss`: rare
    classes' logits are raised. Cost: one more row sweep, and a draw as large as the logits.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        sigma: σ, default 4, the authors' code.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts, bad σ.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> criterion = losses.BLVLoss([100, 10, 1])
        >>> criterion(logits, target).shape  # drawn anew in every call
        torch.Size([])
        >>> criterion.eval()(logits, target)  # cross-entropy
        tensor(2.4076)
    """

    def __init__(self, cls_num_list: Counts, sigma: float = 4.0, **keywords: Any) -> None:
        super().__init__(sigma, **keywords)
        counts = checked_counts(cls_num_list, filled=True)
        self.register_table("strength", relative(torch.log(counts.sum() / counts)))


def relative(values: Tensor) -> Tensor:
    """values/max; all 0 where the largest is (equal counts)."""
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
