"""A penalty on logit distances above a margin, added to the loss of every row that counts.

    h_ij = (max_k u_ik − u_ij − m)/unit ,   P_i = mean_j P(h_ij, λ_j, ρ_j)

on the raw logits u, with P one of four kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import FLAG, NOT_NEGATIVE, POSITIVE, Choice, hold

NONE, RELU, PHR, P2, P3 = range(5)
KINDS = {"relu": RELU, "phr": PHR, "p2": P2, "p3": P3}


@dataclass(frozen=True, eq=False)
class MarginPenalty:
    """The penalty of MbLS (Liu et al., 2022) and CALS (Liu et al., 2023) on distances above m.

        "relu"  α·max(0, h)
        "phr"   (max(0, λ + ρh)² − λ²)/(2ρ)
        "p2"    λh + λρh² + ρ²h³/6  for h ≥ 0,   λh/(1 − ρh) else
        "p3"    λh + λρh²           for h ≥ 0,   λh/(1 − ρh) else

    The gradient of the maximum is shared evenly among ties. The logits must be finite.

    Args:
        kind: "relu", "phr", "p2" or "p3".
        margin: m > 0.
        strength: α ≥ 0, of "relu" alone.
        normalize: h is divided by m.
        multiplier, rho: (C,), λ and ρ > 0 of each class, of all kinds but "relu".

    Raises:
        ValueError: bad `kind`, `margin` or `strength`; tables missing, or given beside "relu".

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, penalty=lpl_fused.MarginPenalty(margin=1.0))
        tensor(2.7409)
    """

    kind: str = "relu"
    margin: float = 10.0
    strength: float = 1.0
    normalize: bool = False
    multiplier: Tensor | None = None
    rho: Tensor | None = None

    def __post_init__(self) -> None:
        hold(self, kind=Choice(*KINDS), margin=POSITIVE, strength=NOT_NEGATIVE, normalize=FLAG)
        for name, table in (("multiplier", self.multiplier), ("rho", self.rho)):
            if (table is None) != (self.kind == "relu"):
                expected = "none" if self.kind == "relu" else "a (C,) tensor"
                raise ValueError(f"{name}: expected {expected} for kind {self.kind!r}")

    @property
    def unit(self) -> float:
        return self.margin if self.normalize else 1.0


def value_of(
    h: Tensor, code: int, strength: float, lam: Tensor | None, rho: Tensor | None
) -> Tensor:
    """P(h), elementwise, differentiable in h."""
    if code == RELU:
        return strength * torch.relu(h)
    assert lam is not None and rho is not None
    if code == PHR:
        return ((lam + rho * h).clamp(min=0) ** 2 - lam**2) / (2 * rho)
    cubic = rho**2 * h**3 / 6 if code == P2 else 0.0
    # |h| rather than −h: the branch that torch.where leaves out must not divide by 0 either
    return torch.where(h >= 0, lam * h + lam * rho * h**2 + cubic, lam * h / (1 + rho * h.abs()))


def slope_of(
    h: Tensor, code: int, strength: float, lam: Tensor | None, rho: Tensor | None
) -> Tensor:
    """dP/dh, elementwise."""
    if code == RELU:
        return strength * (h > 0).to(h.dtype)
    assert lam is not None and rho is not None
    if code == PHR:
        return (lam + rho * h).clamp(min=0)
    square = (rho * h) ** 2 / 2 if code == P2 else 0.0
    return torch.where(h >= 0, lam + 2 * lam * rho * h + square, lam / (1 + rho * h.abs()) ** 2)
