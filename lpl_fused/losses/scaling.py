"""Losses that scale the logits of a class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..class_stats import Counts, checked_counts
from ..perturbation import Perturbation
from .cross_entropy import CrossEntropyLoss


class VSLoss(CrossEntropyLoss):
    """Vector scaling (Kini et al., 2021): CE(Δ⊙u + ι, y), Δ_c = (n_c/n_max)^γ, ι_c = τ·log π_c.

    γ = 0 is logit adjustment, τ = 0 is CDT. Every logit is scaled by its own column's Δ, not by the
    label's. Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class, each ≥ 1.
        gamma: γ, default 0.3, the authors' code.
        tau: τ, default 1.0, the authors' code.
        **keywords: of `CrossEntropyLoss`; `weight` is the paper's ω.

    Raises:
        ValueError: bad counts, or a class without samples.
    """

    def __init__(
        self, cls_num_list: Counts, gamma: float = 0.3, tau: float = 1.0, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list, minimum=1)
        self.gamma, self.tau = float(gamma), float(tau)
        self.register_table("scale", (counts / counts.max()) ** self.gamma)
        self.register_table("offset", self.tau * torch.log(counts / counts.sum()))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(scale=self.table("scale", logits), offset=self.table("offset", logits))


class CDTLoss(CrossEntropyLoss):
    """Class-dependent temperatures (Ye et al., 2020): L = CE(u_c/a_c, y), a_c = (n_max/n_c)^γ.

    Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class, each ≥ 1.
        gamma: γ, default 0.3.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts, or a class without samples.
    """

    def __init__(self, cls_num_list: Counts, gamma: float = 0.3, **keywords: Any) -> None:
        super().__init__(**keywords)
        counts = checked_counts(cls_num_list, minimum=1)
        self.gamma = float(gamma)
        self.register_table("scale", (counts / counts.max()) ** self.gamma)

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(scale=self.table("scale", logits))
