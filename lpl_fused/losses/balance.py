"""Losses that balance by class priors: additive offsets and class weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..class_stats import Counts, checked_counts, effective_number_weights
from ..perturbation import Perturbation
from .cross_entropy import CrossEntropyLoss


class LogitAdjustedLoss(CrossEntropyLoss):
    """Logit adjustment (Menon et al., 2021): L = CE(u + log(π^τ + 1e-12), y), π_c = n_c/Σn.

    Predict with the raw logits u: the adjustment belongs to training.

    Args:
        cls_num_list: (C,) training samples per class. The floor 1e-12, inside the logarithm as in
            the authors' code, keeps a class without samples finite (−27.6).
        tau: τ, default 1.0, the paper's.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts.
    """

    def __init__(self, cls_num_list: Counts, tau: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list)
        self.tau = float(tau)
        self.register_table("offset", torch.log((counts / counts.sum()) ** self.tau + 1e-12))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))


class BalancedSoftmaxLoss(CrossEntropyLoss):
    """Balanced softmax (Ren et al., 2020): L = CE(u + log n, y).

    Equal to `LogitAdjustedLoss` with τ = 1, a constant apart that softmax does not see.

    Args:
        cls_num_list: (C,) training samples per class. One without samples is masked out (−∞).
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts.
    """

    def __init__(self, cls_num_list: Counts, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.register_table("offset", torch.log(checked_counts(cls_num_list)))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(offset=self.table("offset", logits))


class ClassBalancedLoss(CrossEntropyLoss):
    """Class-balanced cross-entropy (Cui et al., 2019): weights w_c ∝ (1 − β)/(1 − β^{n_c}), Σw = C.

    Args:
        cls_num_list: (C,) training samples per class.
        beta: in [0, 1), default 0.9999, the paper's.
        **keywords: of `CrossEntropyLoss`, `weight` apart.

    Raises:
        ValueError: bad counts or `beta`.
    """

    def __init__(self, cls_num_list: Counts, beta: float = 0.9999, **keywords: Any) -> None:
        super().__init__(weight=effective_number_weights(cls_num_list, beta), **keywords)
