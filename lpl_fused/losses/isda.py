"""ISDA: infinitely many feature augmentations, as a table of class pairs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import CONSUMED, NOT_NEGATIVE, Choice, Integer, Number, Numbers, live
from ..class_stats import present_classes
from ..perturbation import Perturbation, chained
from ..precision import product
from ..problem import accumulate_dtype
from ..tracing import recomputing
from .cross_entropy import CrossEntropyLoss
from .module import Reducing
from .rows import as_rows, class_indices, expect_classes

_FEATURES = Numbers(True, None, "those of the rows")
_WEIGHT = Numbers(True, 2, "that of the last layer, shape (C, A)")
_OUTER_ELEMENTS = 1 << 22  # of outer products x xᵀ formed at a time


class ISDALoss(Reducing, CrossEntropyLoss):
    """Implicit semantic data augmentation (Wang et al., 2019): L = CE(u_j + Δ_{y,j}, y).

        Δ_{y,j} = (λ/2)·(w_j − w_y)ᵀ Σ_y (w_j − w_y)

    with w the rows of the classifier u = W f + b and Σ_y the covariance of class y's features. The
    gradient passes into W through Δ, not into Σ. Estimates are updated first, from the detached
    features of the same batch:

        w = k/(k + M),  Σ ← (1−w)Σ + wΣ_B + w(1−w)(μ−μ_B)(μ−μ_B)ᵀ,  μ ← (1−w)μ + wμ_B,  M ← M + k

    over the k rows of the class whose features are finite,
    which is exactly the pooled covariance of all features of the class ever seen; the authors'
    forget nothing although features drift, `decay` < 1 multiplies M by it before each update of the
    class. In `eval()` there is neither update nor perturbation.

    λ grows with the epoch: `loss.strength = schedules.isda_strength(epoch, epochs)`.

    Cost: P×A×C multiplications more for the P classes present ("diagonal": two matrix products;
    "full": P products A×A×C), and their P×C rows.

    State: `seen` (C,) float64, `mean` (C, A), `covariance` (C, A) or (C, A, A). With
    torch.distributed the ranks' features are gathered, so that all hold the same estimates, those
    of the whole batch (the authors' are per process), for which they wait; see `Reducing`.

    Args:
        num_classes: C.
        num_features: A.
        strength: λ ≥ 0, default 0.5, the authors' λ₀ for CIFAR (ImageNet: 7.5).
        covariance: "diagonal" (default; the authors' ImageNet code) or "full" (their CIFAR code).
        decay: in (0, 1], default 1.0: nothing is forgotten.
        dtype: of the estimates, default float32.
        **keywords: `data_group`, and those of `CrossEntropyLoss`.

    Called `loss(logits, target, features, classifier_weight)`; features (N, A), or (N, A, d1, …)
    beside such logits, classifier_weight (C, A).

    Raises:
        ValueError: bad numbers or shapes; a target that is not class indices.

    Examples:
        >>> features, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> classifier = torch.nn.Linear(2, 3)
        >>> criterion = losses.ISDALoss(num_classes=3, num_features=2)
        >>> loss = criterion(classifier(features), target, features, classifier.weight)
        >>> criterion.covariance[0]
        tensor([0.2500, 1.0000])
    """

    arguments: ClassVar = {
        "num_classes": CONSUMED,
        "num_features": CONSUMED,
        "strength": live(NOT_NEGATIVE),
        "decay": live(Number(above=0, most=1)),
        "dtype": CONSUMED,
    }

    seen: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        strength: float = 0.5,
        *,
        covariance: str = "diagonal",
        decay: float = 1.0,
        dtype: torch.dtype = torch.float32,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        num_classes = Integer(least=1)("num_classes", num_classes)
        num_features = Integer(least=1)("num_features", num_features)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating torch.dtype, got {dtype!r}")
        self.strength, self.decay = strength, decay
        self.full = Choice("diagonal", "full")("covariance", covariance) == "full"
        shape = (num_classes, num_features)
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=dtype))
        wide = (*shape, num_features) if self.full else shape
        self.register_buffer("covariance", torch.zeros(wide, dtype=dtype))

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Takes a batch, features (N, A) and labels (N,), into the estimates."""
        x = self.joined_rows(features.to(self.mean.dtype))
        label = self.joined_rows(target)
        if len(x) == 0:
            return
        classes, slot = present_classes(label, len(self.seen), self.ignore_index)
        counted = (label != self.ignore_index) & (label >= 0) & (label < len(self.seen))
        counted &= x.isfinite().all(1)
        x = torch.where(counted[:, None], x, 0)
        count = self.seen.new_zeros(len(classes)).index_add(0, slot, counted.to(self.seen.dtype))
        share = (1 / count.clamp(min=1)).to(x.dtype)
        batch_mean = x.new_zeros(len(classes), x.shape[1]).index_add(0, slot, x) * share[:, None]
        centred = torch.where(counted[:, None], x - batch_mean[slot], 0)
        gap = self.mean[classes] - batch_mean
        stored = self.covariance[classes]
        pooled = torch.zeros_like(stored)
        if self.full:
            size = max(1, _OUTER_ELEMENTS // x.shape[1] ** 2)
            for part, at in zip(centred.split(size), slot.split(size), strict=True):
                pooled.index_add_(0, at, part[:, :, None] * part[:, None, :])
            between, share = gap[:, :, None] * gap[:, None, :], share[:, None, None]
        else:
            pooled.index_add_(0, slot, centred.square())
            between, share = gap.square(), share[:, None]
        known = self.seen[classes]
        decayed = torch.where(count > 0, known * self.decay, known)
        # entries without samples, the fill of `classes`, get w = 0 and change nothing
        w = (count / (count + decayed).clamp(min=1)).to(x.dtype)
        self.seen.index_add_(0, classes, count + decayed - known)
        self.mean.index_add_(0, classes, -w[:, None] * gap)
        w = w.reshape(-1, *[1] * (stored.dim() - 1))
        self.covariance.index_add_(
            0, classes, w * (pooled * share - stored) + w * (1 - w) * between
        )

    def rows(self, classes: Tensor, classifier_weight: Tensor) -> Tensor:
        """(R, C) Δ of the given classes, differentiable with respect to the classifier."""
        dtype = accumulate_dtype(classifier_weight.dtype)
        weight, sigma = classifier_weight.to(dtype), self.covariance[classes].to(dtype)
        # only differences of its rows count: what they have in common would take the digits
        weight = weight - weight.detach().mean(0)
        if self.full:
            pairs: Tensor = _FullPairs.apply(weight, sigma, classes)
            return 0.5 * self.strength * pairs
        own = weight[classes]
        scaled = sigma * own
        rows = product(sigma, weight.square().t()) - 2 * product(scaled, weight.t())
        rows = 0.5 * self.strength * (rows + (scaled * own).sum(1, keepdim=True))
        return rows.scatter(1, classes[:, None], 0.0)  # exactly, where rounding left a trace

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        features: Tensor,
        classifier_weight: Tensor,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        if not self.training:
            return super().forward(input, target, perturbation=perturbation, normalizer=normalizer)
        class_indices(input, target, self)
        expect_classes(input, len(self.seen))
        _FEATURES("features", features)
        x, label = as_rows(features.detach()), target.reshape(-1).long()
        if x.shape != (len(label), self.mean.shape[1]):
            raise ValueError(
                f"features: expected {len(label)} rows of {self.mean.shape[1]} numbers"
                f", got shape {tuple(features.shape)}"
            )
        if _WEIGHT("classifier_weight", classifier_weight).shape != self.mean.shape:
            raise ValueError(
                f"classifier_weight: expected shape {tuple(self.mean.shape)}"
                f", got {tuple(classifier_weight.shape)}"
            )
        if not recomputing():
            self.update(x, label)
        classes, slot = present_classes(label, len(self.seen), self.ignore_index)
        own = Perturbation(
            rows=self.rows(classes, classifier_weight), row_index=slot.reshape(target.shape)
        )
        tables = chained(own, perturbation)
        return super().forward(input, target, perturbation=tables, normalizer=normalizer)


class _FullPairs(torch.autograd.Function):
    """rows[r, j] = (w_j − w_r)ᵀ Σ_r (w_j − w_r), one class at a time: no R×C×A memory."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        ctx.save_for_backward(weight, sigma, classes)
        rows = weight.new_empty(len(classes), len(weight))
        for row, own, covariance in zip(rows, weight[classes], sigma, strict=True):
            difference = weight - own
            row.copy_((product(difference, covariance) * difference).sum(1))
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, sigma, classes = ctx.saved_tensors
        total = torch.zeros_like(weight)
        owns = torch.zeros_like(weight[classes])
        for r, own in enumerate(weight[classes]):
            part = 2 * grad[r][:, None] * product(weight - own, sigma[r])
            total += part
            owns[r] = -part.sum(0)
        return total.index_add(0, classes, owns), None, None
