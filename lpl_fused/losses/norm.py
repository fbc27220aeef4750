"""Losses that bound or fix the norm of the logits."""

from __future__ import annotations

from typing import Any, ClassVar

from ..arguments import POSITIVE, Choice, Number, fixed, rebuilding
from ..norm import FORMS, LogitClip, LogitNorm, checked_norm
from .cross_entropy import CrossEntropyLoss


class LogitClipLoss(CrossEntropyLoss):
    """LogitClip (Wei et al., 2023): L = φ(CE(u·min(1, τ/‖u‖_p), y)); bounded, so robust to noise.

    Any φ, weights, targets and perturbation go on top; any loss that takes the keywords of
    `CrossEntropyLoss` clips with `norm=LogitClip(…)`. Predict with the raw logits.
    Cost: one more sweep over the row, fused.

    Args:
        tau: τ > 0, default 1.0, the authors' code.
        p: of the norm, ≥ 1 or inf, default 2, the authors'.
        form: "paper" (default), or "official": the authors' code, which clips rows longer than τ
            to the radius 1/τ.
        **keywords: of `CrossEntropyLoss`, `norm` apart.

    Raises:
        ValueError: bad `tau`, `p` or `form`.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.LogitClipLoss(tau=1.0)(logits, target)  # cross-entropy: 2.4076
        tensor(1.6114)
    """

    arguments: ClassVar = {
        "tau": rebuilding(POSITIVE),
        "p": rebuilding(Number(least=1, infinite=True)),
        "form": rebuilding(Choice(*FORMS)),
        "norm": fixed(checked_norm),
    }

    def __init__(
        self, tau: float = 1.0, p: float = 2.0, form: str = "paper", **keywords: Any
    ) -> None:
        super().__init__(norm=LogitClip(tau, p, form), **keywords)
        self.tau, self.p, self.form = tau, p, form

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("norm", LogitClip(self.tau, self.p, self.form))


class LogitNormLoss(CrossEntropyLoss):
    """LogitNorm (Wei et al., 2022): L = φ(CE(u/((‖u‖₂ + 1e-7)·τ), y)); against overconfidence.

    Cost: one more sweep over the row, fused.

    Args:
        tau: τ > 0, default 0.04, the paper's; the authors' code defaults to 1.
        **keywords: of `CrossEntropyLoss`, `norm` apart.

    Raises:
        ValueError: bad `tau`.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.LogitNormLoss(tau=0.5)(logits, target)
        tensor(2.2437)
        >>> losses.LogitNormLoss(tau=0.5)(3 * logits, target)
        tensor(2.2437)
    """

    arguments: ClassVar = {"tau": rebuilding(POSITIVE), "norm": fixed(checked_norm)}

    def __init__(self, tau: float = 0.04, **keywords: Any) -> None:
        super().__init__(norm=LogitNorm(tau), **keywords)
        self.tau = tau

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("norm", LogitNorm(self.tau))
