"""Label-distribution-aware margins."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..arguments import CONSUMED, POSITIVE, REAL, live, rebuilding
from ..class_stats import Counts, checked_counts
from ..perturbation import Perturbation
from .cross_entropy import CrossEntropyLoss


class LDAMLoss(CrossEntropyLoss):
    """LDAM (Cao et al., 2019): L = CE(s·(u − m_y e_y), y), m_c = max_m·n_c^{−1/4}/max_j n_j^{−1/4}.

    The logits u are cosines: end the model in `linear.NormalizedLinear`. For LDAM-DRW assign
    `loss.weight = schedules.drw_weights(…)` once per epoch.
    Cost: tables, that of plain cross-entropy.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `class_stats.checked_counts`.
        max_m: the rarest class's margin, default 0.5, the authors'.
        s: scale of margin and logits alike, default 30, the authors'.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad counts, `s` not positive.

    Examples:
        >>> cosines, target = torch.tensor([[0.6, 0.2, -0.1]] * 2), torch.tensor([0, 2])
        >>> losses.LDAMLoss([100, 10, 1], reduction="none")(cosines, target)
        tensor([7.0535e-04, 3.6000e+01])
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "max_m": rebuilding(REAL), "s": live(POSITIVE)}

    def __init__(
        self, cls_num_list: Counts, max_m: float = 0.5, s: float = 30.0, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(cls_num_list, filled=True)
        self.max_m, self.s = max_m, s
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        margins = self._counts**-0.25
        self.register_table("margin", margins * (self.max_m / margins.max()))

    def perturbation(self, logits: Tensor) -> Perturbation:
        return Perturbation(margin=self.table("margin", logits), temperature=1 / self.s)
