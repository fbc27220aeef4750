"""Losses that scale the logits of a class."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import CONSUMED, REAL, rebuilding
from ..class_stats import Counts, checked_counts
from ..perturbation import Perturbation
from .cross_entropy import CrossEntropyLoss


class VSLoss(CrossEntropyLoss):
    """Vector scaling (Kini et al., 2021): CE(Δ⊙u + ι, y), Δ_c = (n_c/n_max)^γ, ι_c = τ·log π_c.

    γ = 0 is logit adjustment, τ = 0 is CDT. Every logit is scaled by its own column's Δ, not by the
    label's. Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        gamma: γ, default 0.3, the authors' code.
        tau: τ, default 1.0, the authors' code.
        **keywords: of `CrossEntropyLoss`; `weight` is the paper's ω.

    Raises:
        ValueError: bad counts.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.VSLoss([100, 10, 1], gamma=0.3, tau=1.0)(logits, target)
        tensor(6.6286)
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "gamma": rebuilding(REAL),
        "tau": rebuilding(REAL),
    }

    def __init__(
        self, cls_num_list: Counts, gamma: float = 0.3, tau: float = 1.0, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(cls_num_list, filled=True)
        self.gamma, self.tau = gamma, tau
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        counts = self._counts
        self.register_table("scale", (counts / counts.max()) ** self.gamma)
        self.register_table("offset", self.tau * torch.log(counts / counts.sum()))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(scale=self.table("scale", logits), offset=self.table("offset", logits))


class CDTLoss(CrossEntropyLoss):
    """Class-dependent temperatures (Ye et al., 2020): L = CE(u_c/a_c, y), a_c = (n_max/n_c)^γ.

    Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        gamma: γ, default 0.3.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.CDTLoss([100, 10, 1], gamma=0.3)(logits, target)
        tensor(2.3066)
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "gamma": rebuilding(REAL)}

    def __init__(self, cls_num_list: Counts, gamma: float = 0.3, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(cls_num_list, filled=True)
        self.gamma = gamma
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        self.register_table("scale", (self._counts / self._counts.max()) ** self.gamma)

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(scale=self.table("scale", logits))
