"""Equalisation losses: rare classes are spared the gradients of being the wrong answer."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .. import reference
from ..arguments import (
    CLASS_WEIGHTS,
    CONSUMED,
    POSITIVE,
    REAL,
    SHARE,
    Integer,
    Number,
    fixed,
    live,
)
from ..class_stats import Counts, checked_counts
from ..perturbation import Perturbation, chained
from ..phi import Phi
from ..problem import Options, accumulate_dtype, is_ignored
from ..tracing import recomputing
from ..validation import Shaped
from .binary import BinaryLoss
from .cross_entropy import CrossEntropyLoss
from .module import Reducing
from .rows import class_indices, expect_classes, numbered, reduced, row_weights


class SoftmaxEQLLoss(CrossEntropyLoss):
    """Softmax equalisation loss (Tan et al., 2020): L = −log(e^{u_y}/Σ_k w_k e^{u_k}).

        w_ik = 1 − β_ik·1[π_k < λ]·1[k ≠ y_i],   β_ik ~ Bernoulli(γ), drawn per logit

    so that log w, 0 or −∞, is a row of offsets. In `eval()` nothing is drawn (β = 0). The draw is
    torch's own, its random state what a bit-equal continuation needs. Cost: one more row sweep, and
    a draw as large as the logits.

    Args:
        cls_num_list: (C,) training samples per class, π_c = n_c/Σn.
        threshold: λ > 0, the share of samples below which a class is rare; the authors choose it
            per data set.
        gamma: γ in [0, 1], default 0.9, of the authors' 0.9 to 0.95.
        **keywords: of `CrossEntropyLoss`. `label_smoothing` must stay 0: what is dropped has no
            share.

    Raises:
        ValueError: bad counts, λ or γ; a target that is not class indices, when called.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> criterion = losses.SoftmaxEQLLoss([100, 10, 1], threshold=0.1, gamma=1.0)
        >>> criterion(logits, torch.tensor([0]))  # both rivals are rare
        tensor(0.)
        >>> criterion(logits, target)
        tensor(2.1269)
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "threshold": fixed(POSITIVE),
        "gamma": live(SHARE),
        "label_smoothing": fixed(Number(least=0, most=0)),
    }

    rare: Tensor

    def __init__(
        self, cls_num_list: Counts, threshold: float, gamma: float = 0.9, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self.threshold, self.gamma = threshold, gamma
        self.register_buffer("rare", rare_classes(cls_num_list, threshold), persistent=False)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        if not self.training:
            return super().forward(input, target, perturbation=perturbation, normalizer=normalizer)
        label = class_indices(input, target, self)
        expect_classes(input, len(self.rare))
        y = label.reshape(-1, 1)
        draw = torch.rand(y.shape[0], len(self.rare), dtype=torch.float32, device=input.device)
        dropped = ((draw < self.gamma) & self.rare).scatter(1, y, False)
        rows = torch.zeros(
            dropped.shape, dtype=accumulate_dtype(input.dtype), device=input.device
        ).masked_fill_(dropped, -math.inf)
        own = Perturbation(rows=rows, row_index=numbered(label))
        tables = chained(own, perturbation)
        return super().forward(input, target, perturbation=tables, normalizer=normalizer)


class OneVsRestLoss(BinaryLoss):
    """Base: L_i = w⁺_y·φ(−log σ(z_iy)) + Σ_{j≠y} w⁻_j·φ(−log σ(−z_ij)), mean over the rows.

    Args:
        num_classes: C.
        weight: (C,) weights of the rows by their class; the mean divides by their sum.
        ignore_index: rows with this label count nothing.
        reduction, phi: as in `functional.cross_entropy`.

    Called `loss(logits, target)`, shapes as in `functional.cross_entropy`, class indices alone;
    with `perturbation=…` z is perturbed. Plain PyTorch, half a dozen sweeps over the rows.
    """

    arguments: ClassVar = {
        "num_classes": fixed(Integer(least=1)),
        "weight": live(CLASS_WEIGHTS),
        "ignore_index": live(Integer()),
    }

    weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        phi: Phi = "log",
    ) -> None:
        super().__init__(reduction=reduction, phi=phi)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.register_weight("weight", weight)

    _used: tuple[Tensor, Tensor] | None = None  # by the last forward, which may be run again

    def weights(self) -> tuple[Tensor, Tensor]:
        """(w⁺, w⁻), each (C,)."""
        raise NotImplementedError

    def collect(self, z: Tensor, label: Tensor, weight: Tensor) -> None:
        """Called in training, without gradient, with the logits z (N, C) that the loss saw.

        Args:
            label, weight: (N, 1); weight 0 for rows that do not count, or whose loss is not finite.
        """

    def forward(
        self, input: Tensor, target: Tensor, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        label = class_indices(input, target, self)
        expect_classes(input, self.num_classes)
        # on CUDA a label may be no class: it must index no table, its weight makes the row nan
        known = torch.where(is_ignored(target, self.ignore_index), target.long(), label)
        options = Options(ignore_index=self.ignore_index)
        problem = Shaped(input, known).problem(options, perturbation)
        reference.check_labels(problem)
        ignored = problem.target == self.ignore_index
        z = reference.perturb(problem).masked_fill(ignored[:, None], 0)
        y = label.reshape(-1, 1)
        again = self.training and recomputing() and self._used is not None
        used = self._used if again and self._used is not None else self.weights()
        if self.training and not torch.compiler.is_compiling():
            self._used = used
        positive, negative = (table.to(z.dtype) for table in used)
        own = positive[y] * self.phi_of(-logsigmoid(z.gather(1, y)))
        others = negative * self.phi_of(-logsigmoid(-z))
        value = (own[:, 0] + others.scatter(1, y, 0.0).sum(1)).reshape(target.shape)
        weights = row_weights(target, label, value, self)
        if self.training and not recomputing():
            with torch.no_grad():
                fit = value.isfinite() & weights.isfinite()
                self.collect(z, y, weights.masked_fill(~fit, 0).reshape(-1, 1))
        return reduced(value * weights, weights, self.reduction)


class EQLLoss(OneVsRestLoss):
    """Equalisation loss (Tan et al., 2020): one-vs-rest BCE without rare classes' negatives.

    L_i = −log σ(u_y) − Σ_{j≠y} 1[π_j ≥ λ]·log σ(−u_j). In detection backgrounds keep them; here all
    rows are foreground. Cost: one-vs-rest, half a dozen sweeps over the rows in plain PyTorch.

    Args:
        cls_num_list: (C,) training samples per class.
        threshold: λ > 0, default 0.00177, the authors' for LVIS.
        **keywords: of `OneVsRestLoss`.

    Raises:
        ValueError: bad counts or λ; a target that is not class indices, when called.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.EQLLoss([100, 10, 1], threshold=0.1)(logits, target)
        tensor(2.8201)
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "threshold": fixed(POSITIVE)}

    rare: Tensor

    def __init__(self, cls_num_list: Counts, threshold: float = 0.00177, **keywords: Any) -> None:
        rare = rare_classes(cls_num_list, threshold)
        super().__init__(len(rare), **keywords)
        self.threshold = threshold
        self.register_buffer("rare", rare, persistent=False)

    def weights(self) -> tuple[Tensor, Tensor]:
        kept = (~self.rare).double()
        return torch.ones_like(kept), kept


class EQLv2Loss(Reducing, OneVsRestLoss):
    """Equalisation loss v2 (Tan et al., 2021): one-vs-rest BCE balanced by accumulated gradients.

        w⁻_c = f(g_c) = σ(γ·(g_c − μ)),   w⁺_c = 1 + α·(1 − f(g_c))
        g_c  = Σ|positive gradients|/(Σ|negative gradients| + 1e-10), weighted, over all batches

    Before the first batch all weights are 1. In `eval()` nothing is accumulated, nor of rows whose
    loss is not finite. With φ other than "log" the gradients counted remain those of the plain BCE.
    Cost: one-vs-rest, half a dozen sweeps over the rows in plain PyTorch, and one for the sums.

    State: `positive`, `negative` (C,), the sums. With torch.distributed both are summed over ranks
    in every batch, as in the authors' code, so that all ranks hold the same; see `Reducing`.

    Args:
        num_classes: C.
        gamma: γ, default 12; mu: μ, default 0.8; alpha: α, default 4; the authors'.
        **keywords: `data_group`, and those of `OneVsRestLoss`.

    Raises:
        ValueError: `num_classes` < 1; a target that is not class indices, when called.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> criterion = losses.EQLv2Loss(num_classes=3)
        >>> criterion(logits, target)
        tensor(4.1333)
        >>> criterion.positive
        tensor([0.0000, 0.0000, 0.5000], dtype=torch.float64)
        >>> criterion.negative
        tensor([0.8808, 0.7311, 0.0000], dtype=torch.float64)
    """

    arguments: ClassVar = {"gamma": live(REAL), "mu": live(REAL), "alpha": live(REAL)}

    positive: Tensor
    negative: Tensor

    def __init__(
        self,
        num_classes: int,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        **keywords: Any,
    ) -> None:
        super().__init__(num_classes, **keywords)
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.register_buffer("positive", torch.zeros(self.num_classes, dtype=torch.float64))
        self.register_buffer("negative", torch.zeros(self.num_classes, dtype=torch.float64))

    def weights(self) -> tuple[Tensor, Tensor]:
        ratio = self.positive / (self.negative + 1e-10)
        negative = torch.sigmoid(self.gamma * (ratio - self.mu))
        fresh = (self.positive.sum() + self.negative.sum()) == 0
        negative = torch.where(fresh, 1.0, negative)
        return 1 + self.alpha * (1 - negative), negative

    def collect(self, z: Tensor, label: Tensor, weight: Tensor) -> None:
        positive, negative = self.weights()
        z = z.masked_fill(weight == 0, 0)
        own = torch.sigmoid(-z.gather(1, label)) * weight  # |∂/∂z_y| = 1 − σ(z_y)
        others = (torch.sigmoid(z) * weight).scatter(1, label, 0.0)
        sums = torch.stack(
            [
                torch.zeros_like(positive).index_add(0, label[:, 0], own[:, 0].double()) * positive,
                others.sum(0).double() * negative,
            ]
        )
        sums = self.all_sum(sums)
        if torch.compiler.is_compiling():
            # the compiled backward makes the weights again, from the sums that its forward was
            # given: these must not be written over
            self.positive, self.negative = self.positive + sums[0], self.negative + sums[1]
            return
        self.positive.add_(sums[0])
        self.negative.add_(sums[1])


def rare_classes(cls_num_list: Counts, threshold: float) -> Tensor:
    threshold = POSITIVE("threshold", threshold)
    counts = checked_counts(cls_num_list)
    return counts / counts.sum() < threshold
