"""What a loss does to the length of a row of logits: T(u) = u·f(‖u‖_p), before everything else.

Every member is the same f under other numbers, those of `Numbers`:

    f(n) = gain/(n + offset)   where n + offset exceeds limit, else 1

The gradient passes through the norm: dL/du = f·g + f'(n)·⟨g, u⟩·∇n for g = dL/dT.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .arguments import POSITIVE, Choice, Number, hold, shown

FORMS = ("paper", "official")
NORM_OFFSET = 1e-7  # what the authors of LogitClip and LogitNorm add to the norm


class Numbers(NamedTuple):
    """f as kernels know it; p = 0 is no norm at all."""

    p: float = 0.0
    limit: float = 0.0
    gain: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class LogitClip:
    """LogitClip (Wei et al., 2023): rows longer than a threshold are shortened.

        "paper"      u·min(1, τ/‖u‖_p)
        "official"   u/(n·τ) where n = ‖u‖_p + 1e-7 exceeds τ, else u: the authors' code, whose
                     clipped radius is 1/τ

    For p = inf the gradient of the norm is shared evenly where the largest |u_j| is not one alone.
    Classes masked with −inf stay so and do not count.

    Args:
        tau: τ > 0. Default 1.0, the authors' code, where both forms agree.
        p: ≥ 1 or inf. Default 2, the authors'.
        form: "paper" or "official".

    Raises:
        ValueError: bad `tau`, `p` or `form`.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, norm=lpl_fused.LogitClip(tau=1.0))
        tensor(1.6114)
    """

    tau: float = 1.0
    p: float = 2.0
    form: str = "paper"

    def __post_init__(self) -> None:
        hold(self, tau=POSITIVE, p=Number(least=1, infinite=True), form=Choice(*FORMS))

    def numbers(self) -> Numbers:
        gain, offset = (self.tau, 0.0) if self.form == "paper" else (1 / self.tau, NORM_OFFSET)
        return Numbers(self.p, self.tau, gain, offset)


@dataclass(frozen=True)
class LogitNorm:
    """LogitNorm (Wei et al., 2022): u/((‖u‖₂ + 1e-7)·τ), every row of one length 1/τ.

    Classes masked with −inf stay so and do not count.

    Args:
        tau: τ > 0. Default 0.04, the paper's (the authors' code defaults to 1).

    Raises:
        ValueError: bad `tau`.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target, norm=lpl_fused.LogitNorm(tau=0.5))
        tensor(2.2437)
    """

    tau: float = 0.04

    def __post_init__(self) -> None:
        hold(self, tau=POSITIVE)

    def numbers(self) -> Numbers:
        return Numbers(2.0, 0.0, 1 / self.tau, NORM_OFFSET)


Norm = LogitClip | LogitNorm


def numbers_of(norm: Norm | None) -> Numbers:
    """The numbers under which kernels know `norm`."""
    if norm is None:
        return Numbers(0.0, 0.0, 1.0, 0.0)
    if isinstance(norm, (LogitClip, LogitNorm)):
        return norm.numbers()
    raise TypeError(f"norm: expected LogitClip(...), LogitNorm(...) or None, got {shown(norm)}")


def checked_norm(name: str, norm: Any) -> Norm | None:
    """`norm` as a check (see `arguments`)."""
    numbers_of(norm)
    return norm  # type: ignore[no-any-return]
