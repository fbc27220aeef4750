"""Margins on cosine logits, as face and product recognition use them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..arguments import POSITIVE, REAL, Either, Number, RealTensor, live, shown
from ..perturbation import Perturbation, chained
from ..problem import MEAN, accumulate_dtype
from ..row_transforms import arc_margin, class_dim
from ..validation import MixedTarget, Shaped, Target, checked_normalizer
from .cross_entropy import NO_SOFTCAP, CrossEntropyLoss
from .rows import blanked, class_indices, expect_classes, mean_divisor, row_weights

_BY_CLASS = RealTensor(1, "a tensor (C,), one margin per class")
_MARGIN = Either(REAL, _BY_CLASS)
_ANGLE = Number(least=0, most=math.pi)
_ANGLES = Either(_ANGLE, _BY_CLASS)


def _angles(name: str, value: Any) -> Any:
    """An angle, or one per class, as a check."""
    found = _ANGLES(name, value)
    if isinstance(found, Tensor) and not ((found >= 0) & (found <= math.pi)).all():
        raise ValueError(f"{name}: expected angles in [0, {math.pi:.6g}], got {shown(value)}")
    return found


class CosFaceLoss(CrossEntropyLoss):
    """CosFace (Wang et al., 2018): L = CE(s·(u − m·e_y), y) on cosine logits u.

    End the model in `linear.NormalizedLinear`. Cost: tables, that of plain cross-entropy.

    Args:
        s: scale > 0, default 64, insightface's.
        m: margin, default 0.4, insightface's; or one per class, a tensor (C,), say
            `class_stats.frequency_margins(…)`.
        **keywords: of `CrossEntropyLoss`; `ignore_index=-1` is insightface's.

    Raises:
        ValueError: `s` not positive; a target that is not class indices, when called.

    Examples:
        >>> cosines, target = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0])
        >>> losses.CosFaceLoss(s=30.0, m=0.4)(cosines, target)
        tensor(0.6932)
    """

    arguments: ClassVar = {"s": live(POSITIVE), "m": live(_MARGIN)}

    def __init__(self, s: float = 64.0, m: float | Tensor = 0.4, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.s, self.m = s, m

    def perturbation(self, logits: Tensor) -> Perturbation:
        if isinstance(self.m, Tensor):
            return Perturbation(margin=self.m, temperature=1 / self.s)
        classes = logits.shape[class_dim(logits)]
        dtype = accumulate_dtype(logits.dtype)
        margin = torch.full((classes,), self.m, dtype=dtype, device=logits.device)
        return Perturbation(margin=margin, temperature=1 / self.s)


class AMSoftmaxLoss(CosFaceLoss):
    """AM-softmax (Wang et al., 2018): CosFace's equation, with its own defaults s = 30, m = 0.35.

    Cost: tables, that of plain cross-entropy.

    Args, Raises:
        as `CosFaceLoss`.

    Examples:
        >>> cosines, target = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0])
        >>> losses.AMSoftmaxLoss()(cosines, target)
        tensor(0.2014)
    """

    def __init__(self, s: float = 30.0, m: float | Tensor = 0.35, **keywords: Any) -> None:
        super().__init__(s, m, **keywords)


class ArcFaceLoss(CrossEntropyLoss):
    """ArcFace (Deng et al., 2019): L = CE(s·(u + (ψ(u_y) − u_y)·e_y), y), u_j = cos θ_j.

    ψ = cos(θ + m), from cos θ ≤ cos(π − m) on cos θ − m·sin(π − m). The gradient of the target
    carries dψ/dcos θ = cos m + sin m·cos θ/sin θ, with sin θ held constant where it is 0. End the
    model in `linear.NormalizedLinear`; with its `sub_centers` this is sub-centre ArcFace (Deng et
    al., 2020). Of two labels (`MixedTarget`) each has its own cosine rotated, and its share of the
    loss. Cost: one more row sweep; of two labels twice as much.

    Args:
        s: scale > 0, default 64, insightface's.
        m: margin in [0, π], radians, default 0.5, insightface's; or one per class, a tensor (C,),
            say `class_stats.frequency_margins(…)`.
        **keywords: of `CrossEntropyLoss`, `softcap` apart; `ignore_index=-1` is insightface's.

    Raises:
        ValueError: bad `s` or `m`; a target that is not class indices, when called.

    Examples:
        >>> cosines, target = torch.tensor([[0.6, 0.2, -0.1]]), torch.tensor([0])
        >>> losses.ArcFaceLoss(s=30.0, m=0.5)(cosines, target)
        tensor(1.8761)
    """

    arguments: ClassVar = {"s": live(POSITIVE), "m": live(_angles), "softcap": NO_SOFTCAP}

    def __init__(self, s: float = 64.0, m: float | Tensor = 0.5, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.s, self.m = s, m

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(temperature=1 / self.s)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Target,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        if isinstance(self.m, Tensor):
            expect_classes(input, len(self.m))
        if isinstance(target, tuple):
            return self._of_two(input, MixedTarget(*target), perturbation, normalizer)
        rotated = self._rotated(input, target)
        return super().forward(rotated, target, perturbation=perturbation, normalizer=normalizer)

    def _rotated(self, input: Tensor, target: Tensor) -> Tensor:
        label = class_indices(input, target, self)
        return arc_margin(blanked(input, target, self.ignore_index), label, self.m)

    def _of_two(
        self,
        input: Tensor,
        target: MixedTarget,
        perturbation: Perturbation | None,
        normalizer: float | Tensor | None,
    ) -> Tensor:
        """Rows of two labels: each label's loss, its own cosine rotated, by its share."""
        Shaped(input, target)
        # two gradients are added up: those of 16 bits before they are rounded
        input = input.to(accumulate_dtype(input.dtype))
        first = torch.as_tensor(target.lam, dtype=input.dtype, device=input.device)
        first = first.expand(target.target.shape)
        pairs = [
            (label.long().masked_fill(share == 0, self.ignore_index), share)
            for label, share in ((target.target, first), (target.other, 1 - first))
        ]
        keywords = self.keywords()
        if self.reduction == "mean":
            checked_normalizer(normalizer, MEAN, input)  # none, beside a mean
            weights = [
                row_weights(label, class_indices(input, label, self), share, self) * share
                for label, share in pairs
            ]
            normalizer = mean_divisor(sum(weight.sum() for weight in weights), self.empty)  # type: ignore[arg-type]
            keywords["reduction"] = "sum"
        tables = chained(self.perturbation(input), perturbation)
        nobody = torch.full_like(target.target, self.ignore_index, dtype=torch.int64)
        values = [
            functional.cross_entropy(
                self._rotated(input, label),
                MixedTarget(label, nobody, share),
                perturbation=tables,
                normalizer=normalizer,
                **keywords,
            )
            for label, share in pairs
        ]
        loss: Tensor = values[0] + values[1]
        return loss
