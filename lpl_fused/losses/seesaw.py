"""Seesaw loss: pairs of classes balanced by what was seen so far."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import CONSUMED, NOT_NEGATIVE, Integer, Number, live
from ..perturbation import Perturbation, chained
from ..problem import accumulate_dtype, is_ignored
from ..tracing import recomputing
from .cross_entropy import NO_SOFTCAP, CrossEntropyLoss
from .module import Reducing
from .rows import as_rows, blanked, changed, class_indices, expect_classes, numbered


class SeesawLoss(Reducing, CrossEntropyLoss):
    """Seesaw loss (Wang et al., 2021): L = CE(u_j + log M_{y,j} + log K_ij, y).

        M_{y,j} = min(1, N_j/N_y)^p                mitigation: spares classes rarer than y
        K_ij    = max(1, p_ij/max(p_iy, ε))^q      compensation: presses those preferred to y

    p_i = softmax(u_i), held constant in both. N counts the labels seen in training, this batch
    included, at least 1 each; rows whose −log p_iy is not finite are left out, and in `eval()` all.
    The single softmax of classification; detection's objectness branch is left out. Cost: one more
    row sweep, and rows as large as the logits.

    State: `seen` (C,). With torch.distributed the counts are summed over ranks (one collective of C
    numbers per batch), so that all ranks hold the same (the authors' code counts per process); see
    `Reducing`.

    Args:
        num_classes: C.
        p: ≥ 0, default 0.8; q: ≥ 0, default 2.0; eps: ε > 0, default 1e-2; the authors'.
        **keywords: `data_group`, and those of `CrossEntropyLoss`, `softcap` apart.

    Raises:
        ValueError: bad numbers; a target that is not class indices, when called.

    Examples:
        >>> criterion = losses.SeesawLoss(num_classes=3)
        >>> criterion(torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2]))
        tensor(3.2293)
        >>> criterion.seen
        tensor([1., 0., 1.], dtype=torch.float64)
    """

    arguments: ClassVar = {
        "num_classes": CONSUMED,
        "p": live(NOT_NEGATIVE),
        "q": live(NOT_NEGATIVE),
        "eps": live(Number(above=0, most=1)),
        "softcap": NO_SOFTCAP,
    }

    seen: Tensor

    def __init__(
        self, num_classes: int, p: float = 0.8, q: float = 2.0, eps: float = 1e-2, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        num_classes = Integer(least=1)("num_classes", num_classes)
        self.p, self.q, self.eps = p, q, eps
        # float32 would stop counting at 2²⁴ labels of a class
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def rows(self, input: Tensor, label: Tensor) -> Tensor:
        """log M + log K for every row of logits, (N, C)."""
        return self._rows(_log_softmax(input), label.reshape(-1, 1))

    def _rows(self, log_p: Tensor, y: Tensor) -> Tensor:
        seen = self.seen.clamp(min=1).to(log_p.dtype)
        mitigation = self.p * (seen / seen[y]).clamp(max=1).log()
        own = log_p.gather(1, y).clamp(min=math.log(self.eps))
        return mitigation + self.q * (log_p - own).clamp(min=0)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        label = class_indices(input, target, self)
        logits = blanked(input, target, self.ignore_index)
        expect_classes(input, len(self.seen))
        with torch.no_grad():
            log_p, y = _log_softmax(logits), label.reshape(-1, 1)
            if self.training and not recomputing():
                counted = ~changed(label, target) & ~is_ignored(target, self.ignore_index)
                counted = counted.reshape(-1) & log_p.gather(1, y)[:, 0].isfinite()
                batch = torch.zeros_like(self.seen)
                batch.index_add_(0, y[:, 0], counted.to(batch.dtype))
                self.seen.add_(self.all_sum(batch))
            own = Perturbation(rows=self._rows(log_p, y), row_index=numbered(label))
        tables = chained(own, perturbation)
        return super().forward(input, target, perturbation=tables, normalizer=normalizer)


def _log_softmax(input: Tensor) -> Tensor:
    """(N, C) log p of logits of any shape."""
    return torch.log_softmax(as_rows(input).to(accumulate_dtype(input.dtype)), 1)
