"""φ: what a loss does to the cross-entropy ℓ = −log p of the target.

Every member maps ℓ ≥ 0 to φ(ℓ); the gradient of the row is φ'(ℓ)·(p − t). Soft targets t
(smoothed, mixed, dense) use Σ_j t_j φ(−log p_j), which for one-hot t is φ(ℓ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LOG, POWER, FOCAL, POLY1 = range(4)


@dataclass(frozen=True)
class Alpha:
    """α-loss (Sypherd et al.): φ = (1 − p^κ)/κ with κ = 1 − 1/α.

    α = 1 is the log loss, α = ∞ is 1 − p, α = 1/2 is 1/p − 1. α > 1 resists label noise, α < 1
    stresses rare classes. The same family as `GCE(q=κ)`.

    Args:
        alpha: in (0, ∞]. Default 2.0, from the middle of the authors' grid of 0.8 to 4.

    Raises:
        ValueError: `alpha` is not positive.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"Alpha: alpha must be in (0, inf], got {self.alpha}")

    def coded(self) -> tuple[int, float]:
        kappa = 1.0 - 1.0 / self.alpha
        return (LOG, 0.0) if kappa == 0 else (POWER, kappa)


@dataclass(frozen=True)
class GCE:
    """Generalised cross-entropy (Zhang & Sabuncu): φ = (1 − p^q)/q; q → 0 is the log loss.

    Args:
        q: in [0, 1]. Default 0.7, the paper's.

    Raises:
        ValueError: `q` is outside [0, 1].
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise ValueError(f"GCE: q must be in [0, 1], got {self.q}")

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.q == 0 else (POWER, float(self.q))


@dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al.): φ = (1 − p)^γ·ℓ; φ' = (1 − p)^γ + γ·ℓ·p·(1 − p)^(γ−1).

    Args:
        gamma: ≥ 0, finite; 0 is the log loss. Default 2.0, the paper's.

    Raises:
        ValueError: `gamma` is negative or not finite.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"Focal: gamma must be finite and >= 0, got {self.gamma}")

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.gamma == 0 else (FOCAL, float(self.gamma))


@dataclass(frozen=True)
class Poly1:
    """Poly-1 loss (Leng et al.): φ = ℓ + ε·(1 − p); φ' = 1 + ε·p.

    Args:
        epsilon: finite; the paper tunes it per task, 2.0 (default) being its ImageNet value.

    Raises:
        ValueError: `epsilon` is not finite.
    """

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.epsilon):
            raise ValueError(f"Poly1: epsilon must be finite, got {self.epsilon}")

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.epsilon == 0 else (POLY1, float(self.epsilon))


Phi = Literal["log"] | Alpha | GCE | Focal | Poly1


def coded(phi: Phi) -> tuple[int, float]:
    """The pair (code, parameter) under which kernels know `phi`."""
    if phi == "log":
        return LOG, 0.0
    if isinstance(phi, (Alpha, GCE, Focal, Poly1)):
        return phi.coded()
    raise TypeError(
        f"phi: expected 'log', Alpha(...), GCE(...), Focal(...) or Poly1(...), got {phi!r}"
    )
