"""Losses that bound or fix the norm of the logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..perturbation import Perturbation
from ..row_transforms import check_clip, logit_clip, logit_norm
from ..validation import Target
from .cross_entropy import CrossEntropyLoss
from .rows import blanked


class LogitClipLoss(CrossEntropyLoss):
    """LogitClip (Wei et al., 2023): L = φ(CE(u·min(1, τ/‖u‖_p), y)); bounded, so robust to noise.

    Any φ, weights, targets and perturbation go on top. To clip before another loss of the package,
    `loss(row_transforms.logit_clip(logits, …), target)`. Predict with the raw logits.
    Cost: one more row sweep.

    Args:
        tau: τ > 0, default 1.0, the authors' code.
        p: of the norm, ≥ 1 or inf, default 2, the authors'.
        form: "paper" (default), or "official": the authors' code, which clips rows longer than τ
            to the radius 1/τ.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad `tau`, `p` or `form`.
    """

    def __init__(
        self, tau: float = 1.0, p: float = 2.0, form: str = "paper", **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        check_clip(tau, p, form)
        self.tau, self.p, self.form = float(tau), float(p), form

    def forward(
        self, input: Tensor, target: Target, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        clipped = logit_clip(blanked(input, target, self.ignore_index), self.tau, self.p, self.form)
        return super().forward(clipped, target, perturbation=perturbation)


class LogitNormLoss(CrossEntropyLoss):
    """LogitNorm (Wei et al., 2022): L = φ(CE(u/((‖u‖₂ + 1e-7)·τ), y)); against overconfidence.

    Cost: one more row sweep.

    Args:
        tau: τ > 0, default 0.04, the paper's; the authors' code defaults to 1.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: bad `tau`.
    """

    def __init__(self, tau: float = 0.04, **keywords: Any) -> None:
        super().__init__(**keywords)
        check_clip(tau, 2.0, "paper")
        self.tau = float(tau)

    def forward(
        self, input: Tensor, target: Target, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        normed = logit_norm(blanked(input, target, self.ignore_index), self.tau)
        return super().forward(normed, target, perturbation=perturbation)
