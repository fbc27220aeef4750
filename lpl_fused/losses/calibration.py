"""Losses for calibrated probabilities: margins between logits, smoothing by class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import functional
from ..arguments import (
    CONSUMED,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    Choice,
    Integer,
    Number,
    Pair,
    fixed,
    live,
    shown,
)
from ..class_stats import Counts, label_aware_smoothing
from ..penalty import KINDS, MarginPenalty, slope_of, value_of
from ..problem import REDUCTIONS, accumulate_dtype
from ..row_transforms import class_dim
from ..sharded import refused
from ..validation import Target, checked_normalizer
from .cross_entropy import CrossEntropyLoss
from .module import LossModule, Reducing, counted, of_part
from .multilabel import MultiLabelLoss
from .rows import mean_divisor


class LabelAwareSmoothingLoss(CrossEntropyLoss):
    """Label-aware smoothing (MiSLAS; Zhong et al., 2021): L = (1 − ε_y)·ℓ + ε_y·mean_j(−log p_j).

    Cost: that of cross-entropy with label smoothing.

    Args:
        cls_num_list: (C,) training samples per class.
        head, tail, shape, power: of `class_stats.label_aware_smoothing`, which gives ε.
        **keywords: of `CrossEntropyLoss`, `label_smoothing` apart.

    Raises:
        ValueError: bad counts, numbers or `shape`; at the call, a target of class probabilities.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> criterion = losses.LabelAwareSmoothingLoss([100, 10, 1], reduction="none")
        >>> criterion(logits, target)  # the rarest class is not smoothed: 2.4076
        tensor([0.7076, 2.4076])
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "head": CONSUMED,
        "tail": CONSUMED,
        "shape": CONSUMED,
        "power": CONSUMED,
        "label_smoothing": fixed(Number(least=0, most=0)),
    }

    smoothing: Tensor

    def __init__(
        self,
        cls_num_list: Counts,
        head: float = 0.3,
        tail: float = 0.0,
        *,
        shape: str = "concave",
        power: float = 1.0,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        smoothing = label_aware_smoothing(cls_num_list, head, tail, shape=shape, power=power)
        self.register_buffer("smoothing", smoothing, persistent=False)

    def keywords(self) -> dict[str, Any]:
        return {**super().keywords(), "label_smoothing": self.smoothing}


_PENALTIES = ("phr", "p2", "p3")


def _reducing(name: str, base: Any) -> nn.Module:
    """A base loss, as a check."""
    if not isinstance(base, nn.Module):
        raise TypeError(f"{name}: expected a loss, a module, got {shown(base)}")
    if getattr(base, "reduction", None) not in REDUCTIONS or isinstance(base, MultiLabelLoss):
        raise ValueError(f"{name}: expected a loss of rows with a reduction, got {shown(base)}")
    return base


class _MarginLoss(LossModule):
    """base(u, y) + the mean over rows and classes of a penalty on max_k u_k − u_j − m."""

    arguments: ClassVar = {"base": live(_reducing), "margin": live(POSITIVE)}

    reduction = of_part("reduction")

    @property
    def ignore_index(self) -> int:
        """That of the base; where it knows none, torch's default."""
        return getattr(self.base, "ignore_index", -100)

    def __init__(self, base: nn.Module | None, margin: float) -> None:
        super().__init__()
        self.base = CrossEntropyLoss() if base is None else base
        self.margin = margin

    def margin_penalty(self) -> MarginPenalty:
        """The second term."""
        raise NotImplementedError

    def penalty(self, excess: Tensor) -> Tensor:
        """Of `excess` (…, C), elementwise."""
        return self._elementwise(value_of, excess)

    def _elementwise(self, function: Callable[..., Tensor], excess: Tensor) -> Tensor:
        p = self.margin_penalty()
        tables = (t if t is None else t.to(excess.dtype) for t in (p.multiplier, p.rho))
        return function(excess, KINDS[p.kind], p.strength, *tables)

    def excess(self, input: Tensor) -> Tensor:
        """max_k u_k − u_j − m, divided by its unit, classes last; float32 (float64 for float64)."""
        u = input.to(accumulate_dtype(input.dtype)).movedim(min(input.dim() - 1, 1), -1)
        return (u.amax(-1, keepdim=True) - u - self.margin) / self.margin_penalty().unit

    def _fused_base(self) -> CrossEntropyLoss | None:
        """The base, where it only chooses tables and keywords."""
        base = self.base
        plain = isinstance(base, CrossEntropyLoss)
        return base if plain and type(base).forward is CrossEntropyLoss.forward else None  # type: ignore[return-value]

    @property
    def has_linear(self) -> bool:
        base = self._fused_base()
        return base is not None and base.has_linear

    def linear(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Target,
        linear_bias: Tensor | None = None,
        *,
        normalizer: float | Tensor | None = None,
        chunk_memory: int | None = None,
        return_stats: bool = False,
    ) -> Any:
        """As that of `CrossEntropyLoss`, of such a base."""
        base = self._fused_base()
        if base is None:
            return super().linear(input, linear_weight, target, linear_bias)
        try:
            layer = base.layer(input, linear_weight, linear_bias, target)
            self._expect_classes(layer.logits)
            tables = base.linear_perturbation(layer)
        except Exception as error:
            refused(input, base.process_group, error)
            raise
        return functional.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            perturbation=tables,
            penalty=self.margin_penalty(),
            normalizer=normalizer,
            chunk_memory=chunk_memory,
            return_stats=return_stats,
            **base.keywords(),
        )

    def _expect_classes(self, input: Tensor) -> None:
        """Raises ValueError where the logits are not of the loss's classes."""

    def forward(
        self,
        input: Tensor,
        target: Target,
        *,
        normalizer: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor:
        base = self._fused_base()
        if base is not None:
            try:
                tables = base.perturbation(input)
            except Exception as error:
                refused(input, base.process_group, error)
                raise
            fused: Tensor = functional.cross_entropy(
                input,
                target,
                perturbation=tables,
                penalty=self.margin_penalty(),
                normalizer=normalizer,
                return_stats=return_stats,
                **base.keywords(),
            )
            return fused
        if return_stats:
            raise NotImplementedError(
                f"return_stats: {type(self.base).__name__}, the base, looks at the logits itself"
            )
        input = input.to(accumulate_dtype(input.dtype))  # the sum of two gradients is rounded
        divisor = checked_normalizer(normalizer, REDUCTIONS[self.reduction], input)
        loss: Tensor = self.base(input, target)
        rows = counted(target, self.ignore_index)
        # garbage in ignored rows (padding) must not reach the gradient as 0·nan
        kept = input.masked_fill(~(rows if input.dim() == 1 else rows.unsqueeze(1)), 0)
        penalty = self.penalty(self.excess(kept)).mean(-1).masked_fill(~rows, 0)
        if self.reduction == "none":
            return loss + penalty
        total = penalty.sum()
        if self.reduction == "mean":
            return loss + total / mean_divisor(rows.sum(), getattr(self.base, "empty", "nan"))
        return loss + total if divisor is None else (loss + total) / divisor


def _bounds(name: str, value: Any) -> tuple[float, float]:
    """Of a parameter that evolves, as a check."""
    low, high = Pair(POSITIVE)(name, value)
    if low > high:
        raise ValueError(f"{name}: expected 0 < lower <= upper < inf, got {(low, high)}")
    return low, high


class MbLSLoss(_MarginLoss):
    """Margin-based label smoothing (Liu et al., 2022), for raw logits u of C classes:

        L = base + α·mean_ij max(0, max_k u_ik − u_ij − m)

    Cost: that of `base` and one more sweep, fused where `base` is a `CrossEntropyLoss` that only
    chooses tables and keywords, in plain PyTorch elsewhere. The logits must be finite.

    Args:
        alpha: α ≥ 0, default 0.1, the authors'.
        margin: m > 0, default 10, the authors'.
        base: a loss; its reduction holds for both terms, its weights and tables for the first.
            Default cross-entropy. A call's `normalizer`, beside its reduction "sum", divides both.

    Raises:
        ValueError: bad numbers or `base`.

    Examples:
        >>> logits, target = torch.tensor([[12.0, 1.0, 0.0]]), torch.tensor([0])
        >>> losses.MbLSLoss(alpha=0.1, margin=10.0)(logits, target)  # 0.1·(1 + 2)/3, and ℓ
        tensor(0.1000)
    """

    arguments: ClassVar = {"alpha": live(NOT_NEGATIVE)}

    def __init__(
        self, alpha: float = 0.1, margin: float = 10.0, base: nn.Module | None = None
    ) -> None:
        super().__init__(base, margin)
        self.alpha = alpha

    def margin_penalty(self) -> MarginPenalty:
        return MarginPenalty(margin=self.margin, strength=self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, margin={self.margin}"


class CALSLoss(Reducing, _MarginLoss):
    """Class-adaptive calibration, CALS-ALM (Liu et al., 2023), for raw logits u of C classes:

        h_ij = (max_k u_ik − u_ij − m)/m,   L = base + mean_ij P(h_ij, λ_j, ρ_j)

    with P the penalty of an augmented Lagrangian (λ the class's multiplier, ρ its weight):

        "phr"   (max(0, λ + ρh)² − λ²)/(2ρ)
        "p2"    λh + λρh² + ρ²h³/6  for h ≥ 0,   λh/(1 − ρh) else
        "p3"    λh + λρh²           for h ≥ 0,   λh/(1 − ρh) else

    λ and ρ are constants in the backward pass. Once per epoch show the held-out logits, batch by
    batch, to `observe`, then call `update`:

        λ_j ← mean over held-out rows of clamp(P'(h_ij, λ_j, ρ_j))
        ρ_j ← 1.2·ρ_j  where mean h_j > 0.9·max(mean h_j of the last epoch, 0)   every `rho_every`

    Cost: that of `base` and one more sweep, fused where `base` is a `CrossEntropyLoss` that only
    chooses tables and keywords, in plain PyTorch elsewhere. The logits must be finite.

    Args:
        num_classes: C.
        base: a loss; its reduction holds for both terms, its weights and tables for the first.
            Default cross-entropy. A call's `normalizer`, beside its reduction "sum", divides both.
        margin: m > 0, default 10, the authors' runs (their configuration file: 20).
        penalty: default "phr", the authors'.
        normalize: divides h by m; default True, the authors'.
        multiplier_bounds: of λ, which starts at the lower one; default (1e-6, 1e6), the authors'.
        rho_bounds: of ρ, which starts at the lower one; default (1, 10), the authors'.
        rho_every: epochs between updates of ρ, 0 for none; default 10, the authors'.
        data_group: of `Reducing`.

    State: `multiplier`, `rho`, `last_violation`, `updates` and the sums of an epoch under way.
    Under torch.distributed `update` all_reduces sums and counts: every rank must call it, with
    shards of whatever size (the authors' code averages the ranks' means).

    Raises:
        ValueError: bad numbers, `penalty` or `base`.
        RuntimeError: `update` without observed rows.

    Examples:
        >>> logits, target = torch.tensor([[12.0, 1.0, 0.0]]), torch.tensor([0])
        >>> criterion = losses.CALSLoss(num_classes=3)
        >>> criterion.observe(torch.tensor([[15.0, 0.0, 0.0]]))  # held-out logits, once per epoch
        >>> criterion.update()
        >>> criterion.multiplier
        tensor([1.0000e-06, 5.0000e-01, 5.0000e-01], dtype=torch.float64)
        >>> criterion(logits, target)
        tensor(0.0584)
    """

    arguments: ClassVar = {
        "num_classes": CONSUMED,
        "penalty": CONSUMED,
        "kind": fixed(Choice(*_PENALTIES)),
        "normalize": live(FLAG),
        "multiplier_bounds": fixed(_bounds),
        "rho_bounds": fixed(_bounds),
        "rho_every": live(Integer(least=0)),
    }

    multiplier: Tensor
    rho: Tensor
    last_violation: Tensor
    updates: Tensor
    sums: Tensor
    observed: Tensor

    def __init__(
        self,
        num_classes: int,
        base: nn.Module | None = None,
        *,
        margin: float = 10.0,
        penalty: str = "phr",
        normalize: bool = True,
        multiplier_bounds: tuple[float, float] = (1e-6, 1e6),
        rho_bounds: tuple[float, float] = (1.0, 10.0),
        rho_every: int = 10,
        data_group: Any = None,
    ) -> None:
        super().__init__(base, margin, data_group=data_group)
        num_classes = Integer(least=1)("num_classes", num_classes)
        self.kind = Choice(*_PENALTIES)("penalty", penalty)
        self.normalize, self.rho_every = normalize, rho_every
        self.multiplier_bounds, self.rho_bounds = multiplier_bounds, rho_bounds
        per_class = torch.ones(num_classes, dtype=torch.float64)
        self.register_buffer("multiplier", per_class * self.multiplier_bounds[0])
        self.register_buffer("rho", per_class * self.rho_bounds[0])
        # nothing is above infinity: ρ waits for a second epoch
        self.register_buffer("last_violation", per_class * math.inf)
        self.register_buffer("updates", torch.tensor(0))
        self.register_buffer("sums", torch.zeros(2, num_classes, dtype=torch.float64))
        self.register_buffer("observed", torch.tensor(0.0, dtype=torch.float64))

    def margin_penalty(self) -> MarginPenalty:
        return MarginPenalty(
            self.kind,
            self.margin,
            normalize=self.normalize,
            multiplier=self.multiplier,
            rho=self.rho,
        )

    def excess(self, input: Tensor) -> Tensor:
        """h, classes last."""
        self._expect_classes(input)
        return super().excess(input)

    def forward(
        self,
        input: Tensor,
        target: Target,
        *,
        normalizer: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor:
        self._expect_classes(input)
        return super().forward(input, target, normalizer=normalizer, return_stats=return_stats)

    def _expect_classes(self, input: Tensor) -> None:
        if getattr(self.base, "process_group", None) is not None:
            return  # of some of the classes; the function knows how many there are
        if input.shape[class_dim(input)] != len(self.rho):
            classes = input.shape[class_dim(input)]
            raise ValueError(f"input: expected {len(self.rho)} classes, got {classes}")

    @torch.no_grad()
    def observe(self, input: Tensor) -> None:
        """Adds held-out logits, (N, C) or (N, C, d1, …) and no padding, to the epoch's sums; rows
        that are not finite are left out."""
        excess = self.excess(input).reshape(-1, len(self.rho))
        fit = excess.isfinite().all(1, keepdim=True)
        excess = excess.masked_fill(~fit, 0)
        slope = self._elementwise(slope_of, excess).clamp(*self.multiplier_bounds)
        sums = [part.double().masked_fill(~fit, 0).sum(0) for part in (slope, excess)]
        self.sums.add_(torch.stack(sums))
        self.observed.add_(fit.sum())

    @torch.no_grad()
    def update(self) -> None:
        """Ends the epoch: new λ and, when their turn has come, new ρ."""
        total = self.all_sum(torch.cat([self.sums.reshape(-1), self.observed.reshape(1)]))
        if total[-1] == 0:
            raise RuntimeError("update: expected held-out logits shown to observe before, got none")
        slope, violation = (total[:-1] / total[-1]).reshape(2, -1)
        self.multiplier.copy_(slope.clamp(*self.multiplier_bounds))
        self.updates.add_(1)
        if self.rho_every and int(self.updates) % self.rho_every == 0:
            grows = violation > 0.9 * self.last_violation.clamp(min=0)
            grown = (1.2 * self.rho).clamp(max=self.rho_bounds[1])
            self.rho.copy_(torch.where(grows, grown, self.rho))
        self.last_violation.copy_(violation)
        self.sums.zero_()
        self.observed.zero_()

    def extra_repr(self) -> str:
        return f"margin={self.margin}, penalty={self.kind!r}"
