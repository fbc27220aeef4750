"""Losses whose weights follow training: difficulty of classes, influence of rows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..arguments import (
    CLASS_WEIGHTS,
    CONSUMED,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    Choice,
    Integer,
    fixed,
    live,
    shown,
)
from ..class_stats import Counts, checked_counts, checked_tau, difficulty_weights, real_tensor
from ..norm import checked_norm
from ..perturbation import Perturbation, chained
from ..phi import checked_phi
from ..validation import Target
from .cross_entropy import NO_SOFTCAP, CrossEntropyLoss
from .module import DeferredStart, Reducing, counted
from .rows import class_indices, expect_classes, looked_up, mean_divisor


class CDBLoss(Reducing, CrossEntropyLoss):
    """CDB-W (Sinha et al., 2020): L = mean_i w_{y_i}·ℓ_i, w_c ∝ d_c^τ, Σw = C, d_c = 1 − acc_c.

    Call `update` once per epoch with the accuracies on a balanced held-out set; before that all
    classes weigh 1. Cost: tables, that of plain cross-entropy.

    Args:
        num_classes: C.
        tau: τ, "dynamic" (default) or "dynamic-cifar", see `class_stats.difficulty_weights`; the
            authors' README has 1.5.
        normalization: what "mean" divides by: "rows", default, the authors' CIFAR code, or
            "weight", Σ_i w_{y_i}, their ImageNet-LT code and torch's.
        **keywords: `data_group`, and those of `CrossEntropyLoss`, `weight` apart. φ = `Focal` is
            CDB-Focal, differentiated as a whole; the authors' code takes (1 − p)^γ for a constant,
            which gives another gradient (that of `functional.cross_entropy` with it as
            `sample_weight`, summed).

    State: `difficulty` and `weight`. Every rank of torch.distributed must call `update`, with what
    it has seen; accuracies are averaged by `samples`, so that all ranks weigh alike; see
    `Reducing`.

    Raises:
        ValueError: bad `num_classes`, `tau` or `normalization`.

    Examples:
        >>> criterion = losses.CDBLoss(num_classes=3, tau=1.0)
        >>> criterion.update(torch.tensor([0.9, 0.5, 0.1]))  # held-out accuracies, once per epoch
        >>> criterion.weight
        tensor([0.2000, 1.0000, 1.8000], dtype=torch.float64)
        >>> criterion(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2]))
        tensor(4.3337)
    """

    arguments: ClassVar = {
        "num_classes": CONSUMED,
        "tau": live(checked_tau),
        "normalization": live(Choice("rows", "weight")),
        "weight": fixed(CLASS_WEIGHTS),
    }

    difficulty: Tensor

    def __init__(
        self,
        num_classes: int,
        tau: float | str = "dynamic",
        *,
        normalization: str = "rows",
        **keywords: Any,
    ) -> None:
        num_classes = Integer(least=1)("num_classes", num_classes)
        difficulty = torch.ones(num_classes, dtype=torch.float64, device="cpu")
        super().__init__(weight=difficulty_weights(difficulty, tau), **keywords)
        self.tau, self.normalization = tau, normalization
        self.register_buffer("difficulty", difficulty)

    @torch.no_grad()
    def update(self, accuracy: Counts, samples: Counts | None = None) -> None:
        """Weights from the classes' accuracies on held-out data.

        Args:
            accuracy: (C,) in [0, 1], as `evaluation.accuracy(…).per_class`; nan where there were
                no samples.
            samples: (C,) held-out samples per class behind it; default 1 each.

        Raises:
            ValueError: bad shapes; a class without held-out samples on any rank.
        """
        shape = self.difficulty.shape
        expected = "one number per class"
        values = real_tensor(accuracy, "accuracy", expected).to(self.difficulty)
        count = torch.ones_like(values)
        if samples is not None:
            count = real_tensor(samples, "samples", expected).to(self.difficulty)
        if values.shape != shape or count.shape != shape:
            raise ValueError(
                f"accuracy, samples: expected shape {tuple(shape)}, got {tuple(values.shape)} and "
                f"{tuple(count.shape)}"
            )
        right = torch.where(count > 0, values * count, 0)
        right, count = self.all_sum(torch.stack([right, count])).unbind(0)
        if (count <= 0).any() or right.isnan().any():
            empty = int(((count <= 0) | right.isnan()).nonzero()[0])
            raise ValueError(f"accuracy: expected held-out samples of every class, none of {empty}")
        difficulty = 1 - right / count
        if not ((difficulty >= 0) & (difficulty <= 1)).all():
            raise ValueError(
                "accuracy: expected numbers in [0, 1], got"
                f" {float((1 - difficulty).min()):g} to {float((1 - difficulty).max()):g}"
            )
        assert self.weight is not None
        self.weight.copy_(difficulty_weights(difficulty, self.tau))
        self.difficulty.copy_(difficulty)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Target,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        if self.reduction != "mean" or self.normalization == "weight":
            return super().forward(input, target, perturbation=perturbation, normalizer=normalizer)
        if normalizer is not None:
            raise ValueError('normalizer: divides a sum, expected reduction="sum"')
        keywords = {**self.keywords(), "reduction": "sum"}
        tables = chained(self.perturbation(input), perturbation)
        total: Tensor = functional.cross_entropy(input, target, perturbation=tables, **keywords)
        return total / mean_divisor(counted(target, self.ignore_index).sum(), self.empty)

    def extra_repr(self) -> str:
        return f"tau={self.tau!r}, normalization={self.normalization!r}, {super().extra_repr()}"


class IBLoss(DeferredStart, CrossEntropyLoss):
    """Influence-balanced loss (Park et al., 2021), from `start_epoch` on:

        L = mean_i w_{y_i}·f_i·ℓ_i,   f_i = α/(‖p_i − e_{y_i}‖₁·‖h_i‖₁ + ε),   w_c ∝ 1/n_c, Σw = C

    with ‖p − e_y‖₁ = 2·(1 − p_y), h the features before the classifier; plain cross-entropy before
    that and in `eval()` mode. "mean" divides by the number of rows, as in the authors' code.
    Cost: row losses and a light second step.

    Args:
        cls_num_list: (C,) training samples per class; None: w = 1.
        alpha: α > 0, default 1000, the authors' script.
        epsilon: ε > 0, default 1e-3, the authors'.
        start_epoch: see `set_epoch`; default 100, the authors'.
        detach: f is a constant in the backward pass. Default False: the authors' code
            differentiates it, ‖h‖₁ included.
        **keywords: `weight`, `ignore_index`, `reduction`, `empty`, `backend` of
            `CrossEntropyLoss`. `weight` multiplies w·f·ℓ ("mean" divides by the number of rows, all
            the same). f needs p_y, so φ, smoothing and z-loss do not compose.

    Called `loss(logits, target, feature_norm)`, class indices and ‖h_i‖₁ of the same shape.
    State: the epoch; nothing is to be reduced over ranks.

    Raises:
        ValueError: bad counts, numbers, target or shape of `feature_norm`; keywords that do not
            compose.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> feature_norm = torch.tensor([4.0])
        >>> losses.IBLoss([100, 10, 1], start_epoch=0)(logits, target, feature_norm)
        tensor(893.7319)
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "alpha": live(POSITIVE),
        "epsilon": live(POSITIVE),
        "detach": live(FLAG),
        # do not compose
        "label_smoothing": fixed(NOT_NEGATIVE),
        "phi": fixed(checked_phi),
        "z_loss": fixed(NOT_NEGATIVE),
        "softcap": NO_SOFTCAP,
        "norm": fixed(checked_norm),
        "gradient": fixed(Choice("auto")),
    }

    def __init__(
        self,
        cls_num_list: Counts | None = None,
        *,
        alpha: float = 1000.0,
        epsilon: float = 1e-3,
        start_epoch: int = 100,
        detach: bool = False,
        **keywords: Any,
    ) -> None:
        allowed = {"weight", "ignore_index", "reduction", "empty", "backend"}
        if not keywords.keys() <= allowed:
            raise ValueError(
                f"expected keywords among {sorted(allowed)}, which compose with the influence, got "
                f"{sorted(keywords.keys() - allowed)}"
            )
        super().__init__(**keywords)
        self.alpha, self.epsilon, self.detach = alpha, epsilon, detach
        self.start_at(start_epoch)
        self.balanced = cls_num_list is not None
        if cls_num_list is not None:
            inverse = 1 / checked_counts(cls_num_list, filled=True)
            self.register_table("class_weight", inverse * (len(inverse) / inverse.sum()))

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Target,
        feature_norm: Tensor,
        *,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        label = class_indices(input, target, self)
        assert isinstance(target, Tensor)
        if self.balanced:
            expect_classes(input, len(self.table("class_weight", input)))
        if not isinstance(feature_norm, Tensor) or feature_norm.shape != target.shape:
            raise ValueError(
                f"feature_norm: expected one per row, shape {tuple(target.shape)}, got"
                f" {shown(feature_norm)}"
            )
        if not self.started or not self.training:
            return super().forward(input, target, perturbation=perturbation)
        keywords = {**self.keywords(), "reduction": "none", "weight": None}
        tables = chained(self.perturbation(input), perturbation)
        losses: Tensor = functional.cross_entropy(input, target, perturbation=tables, **keywords)
        rows = counted(target, self.ignore_index)
        norm = torch.where(rows, feature_norm, 0).to(losses.dtype)
        factor = self.alpha / (-2 * torch.expm1(-losses) * norm + self.epsilon)
        if self.balanced:
            # a label out of range has made its row nan (on a GPU) and is not looked up
            factor = factor * looked_up(self.table("class_weight", losses), label)
        if self.detach:
            factor = factor.detach()
        losses = losses * factor
        if self.weight is not None:
            losses = losses * looked_up(self.weight.to(losses.dtype), label)
        if self.reduction == "none":
            return losses
        total = losses.sum()
        return total / mean_divisor(rows.sum(), self.empty) if self.reduction == "mean" else total
