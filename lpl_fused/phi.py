"""φ: what a loss does to the cross-entropy ℓ = −log p of the target.

Every member maps ℓ ≥ 0 to φ(ℓ); the gradient of the row is φ'(ℓ)·(p − t). Soft targets t
(smoothed, mixed, dense) use Σ_j t_j φ(−log p_j), which for one-hot t is φ(ℓ).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .arguments import BELOW_ONE, FLAG, NOT_NEGATIVE, REAL, SHARE, Number, hold, shown

LOG, POWER, FOCAL, POLY1, ASYMMETRIC = range(5)


@dataclass(frozen=True)
class Alpha:
    """α-loss (Sypherd et al.): φ = (1 − p^κ)/κ with κ = 1 − 1/α.

    α = 1 is the log loss, α = ∞ is 1 − p, α = 1/2 is 1/p − 1. α > 1 resists label noise, α < 1
    stresses rare classes; there p^κ is cut off at e^80 (of float64 e^700), without gradient beyond.
    The same family as `GCE(q=κ)`.

    Args:
        alpha: in (0, ∞]. Default 2.0, from the middle of the authors' grid of 0.8 to 4.

    Raises:
        ValueError: `alpha` is not positive.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, phi=lpl_fused.Alpha(2.0))
        tensor(1.3999)
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        hold(self, alpha=Number(above=0, infinite=True))

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

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, phi=lpl_fused.GCE(0.7))
        tensor(1.1637)
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        hold(self, q=SHARE)

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.q == 0 else (POWER, self.q)


@dataclass(frozen=True)
class Focal:
    """Focal loss (Lin et al.): φ = (1 − p)^γ·ℓ; φ' = (1 − p)^γ + γ·ℓ·p·(1 − p)^(γ−1).

    Args:
        gamma: ≥ 0, finite; 0 is the log loss. Default 2.0, the paper's.

    Raises:
        ValueError: `gamma` is negative or not finite.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, phi=lpl_fused.Focal(2.0))
        tensor(1.9936)
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        hold(self, gamma=NOT_NEGATIVE)

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.gamma == 0 else (FOCAL, self.gamma)


@dataclass(frozen=True)
class Poly1:
    """Poly-1 loss (Leng et al.): φ = ℓ + ε·(1 − p); φ' = 1 + ε·p.

    Args:
        epsilon: finite; the paper tunes it per task, 2.0 (default) being its ImageNet value.

    Raises:
        ValueError: `epsilon` is not finite.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, phi=lpl_fused.Poly1(2.0))
        tensor(4.2275)
    """

    epsilon: float = 2.0

    def __post_init__(self) -> None:
        hold(self, epsilon=REAL)

    def coded(self) -> tuple[int, float]:
        return (LOG, 0.0) if self.epsilon == 0 else (POLY1, self.epsilon)


@dataclass(frozen=True)
class Asymmetric:
    """Asymmetric focusing and clipping (Ridnik et al., 2021), for several labels alone:

        positives   (1 − p)^γ⁺·(−log p)
        negatives   p_m^γ⁻·(−log(1 − p_m)),    p_m = max(p − clip, 0),  p = σ(z)

    A negative whose probability is `clip` or less costs nothing.

    Args:
        gamma_pos: γ⁺ ≥ 0. Default 0.0, the paper's; the authors' code has 1.0.
        gamma_neg: γ⁻ ≥ 0. Default 4.0, theirs in both.
        clip: in [0, 1). Default 0.05, theirs in both.
        detach: the powers have no gradient, as in the authors' code by default.

    Raises:
        ValueError: a number out of range.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]])
        >>> phi = lpl_fused.Asymmetric()
        >>> LF.binary_cross_entropy_with_logits(logits, labels, phi=phi, reduction="none")
        tensor([[0.4741, 0.0006]])
    """

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    clip: float = 0.05
    detach: bool = False

    def __post_init__(self) -> None:
        sides = {"gamma_pos": NOT_NEGATIVE, "gamma_neg": NOT_NEGATIVE, "clip": BELOW_ONE}
        hold(self, **sides, detach=FLAG)


Phi = Literal["log"] | Alpha | GCE | Focal | Poly1
BinaryPhi = Phi | Asymmetric


def coded(phi: Phi) -> tuple[int, float]:
    """The pair (code, parameter) under which kernels know `phi`."""
    if isinstance(phi, str) and phi == "log":
        return LOG, 0.0
    if isinstance(phi, (Alpha, GCE, Focal, Poly1)):
        return phi.coded()
    asymmetric = isinstance(phi, Asymmetric)
    raise TypeError(
        "phi: expected 'log', Alpha(...), GCE(...), Focal(...) or Poly1(...), got"
        f" {'Asymmetric(...), which is for several labels' if asymmetric else shown(phi)}"
    )


def binary_coded(phi: BinaryPhi) -> dict[str, Any]:
    """The options under which the kernels of several labels know `phi`."""
    if not isinstance(phi, Asymmetric):
        code, parameter = coded(phi)
        return {"phi": code, "phi_parameter": parameter}
    sides = phi.gamma_pos, phi.gamma_neg, phi.clip
    if sides[0] == sides[1] and sides[2] == 0 and (sides[0] == 0 or not phi.detach):
        code, parameter = Focal(sides[0]).coded()
        return {"phi": code, "phi_parameter": parameter}
    return {
        "phi": ASYMMETRIC,
        "phi_detached": bool(phi.detach),
        "phi_parameter": sides[0],
        "phi_negative": sides[1],
        "phi_clip": sides[2],
    }


def checked_binary_phi(name: str, phi: Any) -> BinaryPhi:
    """`phi` of several labels as a check."""
    binary_coded(phi)
    return phi  # type: ignore[no-any-return]


def checked_phi(name: str, phi: Any) -> Phi:
    """`phi` as a check (see `arguments`)."""
    coded(phi)
    return phi  # type: ignore[no-any-return]


def exponent_limit(dtype: torch.dtype) -> float:
    """Largest −κℓ that φ = (1 − p^κ)/κ raises e to; beyond it float would overflow."""
    return 700.0 if dtype == torch.float64 else 80.0


def one_minus_exp(x: Tensor) -> Tensor:
    """1 − e^x with all digits of the value at x → 0, and of the derivative at x → −∞.

    (torch forms the derivative of expm1 as expm1(x) + 1, which is 0 from x = −37 on.)
    """
    return torch.where(x > -1, -torch.expm1(x), 1 - torch.exp(x))


def value_of(ell: Tensor, code: int, parameter: float, dtype: torch.dtype | None = None) -> Tensor:
    """φ(ℓ), elementwise, differentiable in ℓ; bounded as in `dtype`, by default that of `ell`."""
    if code == LOG:
        return ell
    if code == POWER:
        exponent = (-parameter * ell).clamp(max=exponent_limit(dtype or ell.dtype))
        return one_minus_exp(exponent) / parameter
    # far beyond where p is 0 the loss is ℓ, its slope 1; autograd would form ∞·0 of γ·ℓ·p
    lost = ell > 1e30
    finite = ell.masked_fill(lost, 0)
    # the clamp keeps the derivative of (1 − p)^γ finite at p = 1
    rest = _rest(finite)
    if code == FOCAL:
        return torch.where(lost, ell, rest**parameter * finite)
    if code == POLY1:
        return ell + parameter * rest
    raise AssertionError(f"phi code {code}")


def slope_of(ell: Tensor, code: int, parameter: float, dtype: torch.dtype | None = None) -> Tensor:
    """φ'(ℓ), elementwise, finite for every ℓ in [0, ∞]; as `value_of`."""
    if code == LOG:
        return torch.ones_like(ell)
    p = torch.exp(-ell)
    if code == POWER:
        exponent = -parameter * ell
        limit = exponent_limit(dtype or ell.dtype)
        return torch.where(exponent > limit, 0.0, torch.exp(exponent))
    if code == FOCAL:
        rest = _rest(ell)
        # p·ℓ vanishes where ℓ is infinite
        bend = torch.where(p == 0, 0.0, p * ell) * parameter * rest ** (parameter - 1)
        return rest**parameter + bend
    if code == POLY1:
        return 1 + parameter * p
    raise AssertionError(f"phi code {code}")


def _rest(ell: Tensor) -> Tensor:
    """1 − p, at least the smallest normal number."""
    return one_minus_exp(-ell).clamp(min=torch.finfo(ell.dtype).tiny)
