"""Losses that balance by class priors: additive offsets and class weights."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import (
    CLASS_WEIGHTS,
    CONSUMED,
    NOT_NEGATIVE,
    REAL,
    Choice,
    Number,
    fixed,
    live,
    rebuilding,
)
from ..class_stats import Counts, checked_counts, class_mean, effective_number_weights
from ..perturbation import Perturbation
from ..problem import accumulate_dtype
from ..validation import Target
from .cross_entropy import NO_SOFTCAP, SMOOTHING, CrossEntropyLoss
from .rows import class_indices


class LogitAdjustedLoss(CrossEntropyLoss):
    """Logit adjustment (Menon et al., 2021): L = CE(u + log(π^τ + 1e-12), y), π_c = n_c/Σn.

    Predict with the raw logits u: the adjustment belongs to training.
    Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class. The floor 1e-12, inside the logarithm as in
            the authors' code, keeps a class without samples finite (−27.6).
        tau: τ, default 1.0, the paper's.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.LogitAdjustedLoss([100, 10, 1])(logits, target)  # cross-entropy: 2.4076
        tensor(6.6426)
        >>> prior = torch.tensor([100, 10, 1]) / 111
        >>> torch.nn.functional.cross_entropy(logits + prior.log(), target)  # the same
        tensor(6.6426)
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "tau": rebuilding(REAL)}

    def __init__(self, cls_num_list: Counts, tau: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(cls_num_list)
        self.tau = tau
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        prior = self._counts / self._counts.sum()
        self.register_table("offset", torch.log(prior**self.tau + 1e-12))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))


class BalancedSoftmaxLoss(CrossEntropyLoss):
    """Balanced softmax (Ren et al., 2020): L = CE(u + log n, y).

    Equal to `LogitAdjustedLoss` with τ = 1, a constant apart that softmax does not see.
    Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class. One without samples is masked out (−∞).
        **keywords: of `CrossEntropyLoss`. `label_smoothing` must stay 0 where a class is masked
            out.

    Raises:
        ValueError: bad counts; labels smoothed over classes without samples.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.BalancedSoftmaxLoss([100, 10, 1])(logits, target)
        tensor(6.6426)
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "label_smoothing": rebuilding(SMOOTHING)}

    def __init__(self, cls_num_list: Counts, **keywords: Any) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list)
        self._masks = bool((counts == 0).any())
        self.register_table("offset", torch.log(counts))
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        smoothing = self.label_smoothing
        if self._masks and (smoothing.any() if isinstance(smoothing, Tensor) else smoothing):
            raise ValueError(
                "label_smoothing: expected 0 beside classes without samples, which are masked out"
                " (-inf) and whose share of a smoothed label would be an infinite loss"
            )

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))


class BayiasLoss(CrossEntropyLoss):
    """Bayias (Xu et al., 2021): L = CE(u + log π − log π', y), π_c = n_c/Σn, π' the test prior.

    With a uniform π' equal to `LogitAdjustedLoss` with τ = 1, a constant apart that softmax does
    not see. Takes the `MixedTarget` of `sampling.UniMix`: the two are the paper's method. Predict
    with the raw logits. Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        test_prior: (C,) π' > 0, up to a factor; default uniform, the authors'.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts or prior.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.BayiasLoss([100, 10, 1], test_prior=[0.5, 0.3, 0.2])(logits, target)
        tensor(5.7516)
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "test_prior": CONSUMED}

    def __init__(
        self, cls_num_list: Counts, test_prior: Counts | None = None, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list, filled=True)
        prior = torch.ones_like(counts)
        if test_prior is not None:
            prior = checked_counts(test_prior, name="test_prior")
        if prior.shape != counts.shape or not (prior > 0).all():
            raise ValueError(f"test_prior: expected {len(counts)} numbers > 0, got {test_prior}")
        offset = torch.log(counts / counts.sum()) - torch.log(prior / prior.sum())
        self.register_table("offset", offset)

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))


class LADELoss(CrossEntropyLoss):
    """LADE (Hong et al., 2021): L = CE(u + log(π + 1e-9), y) + w·R, π_c = n_c/Σn,

        R = −Σ_c π_c·(mean_{i: y_i=c} u_ic − s_c − r·s_c²)
        s_c = logsumexp_i(u_ic) − log π_c − log C − log B                          over the batch

    for the B rows of the batch that count; a class absent from it has the mean 0, as in the
    authors' code. For a test prior π' predict with u + log π'. Under torch.distributed R is that of
    each rank's own rows, as in the authors' code. Cost: tables, and a sweep down the columns in
    plain PyTorch.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        lader_weight: w ≥ 0, default 0.1, the authors' (iNaturalist: 0.05).
        regularizer: r ≥ 0, default 0.1, the authors' (iNaturalist: 0.5).
        **keywords: of `CrossEntropyLoss`; `reduction` is "mean", `empty` "nan", and there is no
            `softcap`. The class indices of the target are needed. `weight`, φ and smoothing act on
            the first term alone.

    Raises:
        ValueError: bad counts, numbers or reduction; a target that is not class indices.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> losses.LADELoss([100, 10, 1])(logits, target)
        tensor(3.2896)
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "lader_weight": live(NOT_NEGATIVE),
        "regularizer": live(NOT_NEGATIVE),
        "reduction": live(Choice("mean")),  # R couples the batch
        "empty": fixed(Choice("nan")),  # R of no rows is none
        "softcap": NO_SOFTCAP,
    }

    def __init__(
        self,
        cls_num_list: Counts,
        lader_weight: float = 0.1,
        regularizer: float = 0.1,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list, filled=True)
        prior = counts / counts.sum()
        self.lader_weight, self.regularizer = lader_weight, regularizer
        self.register_table("prior", prior)
        self.register_table("offset", torch.log(prior + 1e-9))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))

    def forward(  # type: ignore[override]
        self, input: Tensor, target: Target, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        class_indices(input, target, self)
        assert isinstance(target, Tensor)
        input = input.to(accumulate_dtype(input.dtype))  # the sum of two gradients is rounded
        loss = super().forward(input, target, perturbation=perturbation)
        return loss + self.lader_weight * self.lader(input, target)

    def lader(self, input: Tensor, target: Tensor) -> Tensor:
        """R, the regulariser alone; 0-dim."""
        prior = self.table("prior", input)
        u = input.movedim(min(input.dim() - 1, 1), -1).reshape(-1, len(prior)).to(prior.dtype)
        label = target.reshape(-1).long()
        rows = label != self.ignore_index
        # a label out of range has made the first term nan (on a GPU) and must not be looked up
        own = u.gather(1, label.clamp(0, len(prior) - 1)[:, None])[:, 0]
        own_mean, _ = class_mean(
            torch.where(rows, own, 0), torch.where(rows, label, -1), len(prior)
        )
        columns = u.masked_fill(~rows[:, None], -math.inf)
        s = torch.logsumexp(columns, 0) - torch.log(prior * len(prior) * rows.sum())
        return -(prior * (own_mean - s - self.regularizer * s**2)).sum()


class ClassBalancedLoss(CrossEntropyLoss):
    """Class-balanced cross-entropy (Cui et al., 2019): weights w_c ∝ (1 − β)/(1 − β^{n_c}), Σw = C.

    Cost: weights, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class.
        beta: in [0, 1), default 0.9999, the paper's.
        **keywords: of `CrossEntropyLoss`, `weight` apart.

    Raises:
        ValueError: bad counts or `beta`.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> criterion = losses.ClassBalancedLoss([100, 10, 1], beta=0.9)
        >>> criterion.weight
        tensor([0.2393, 0.3674, 2.3932])
        >>> criterion(logits, target)
        tensor(2.2258)
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "beta": fixed(Number(least=0, below=1)),
        "weight": fixed(CLASS_WEIGHTS),
    }

    def __init__(self, cls_num_list: Counts, beta: float = 0.9999, **keywords: Any) -> None:
        super().__init__(weight=effective_number_weights(cls_num_list, beta), **keywords)
        self.beta = beta
