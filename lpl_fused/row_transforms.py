"""Row operations before the perturbation that tables cannot say: in plain, differentiable PyTorch.

Each costs one more sweep over the rows, in float32 (float64 for float64 logits), and returns logits
for `functional.cross_entropy` and every loss of the package. They all stand here, behind functions
of rows, for a kernel that does both to replace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import accumulate_dtype

FORMS = ("paper", "official")
NORM_OFFSET = 1e-7  # what the authors of LogitClip and LogitNorm add to the norm


def class_dim(input: Tensor) -> int:
    """The dimension of logits that counts the classes."""
    return 0 if input.dim() == 1 else 1


def row_norm(input: Tensor, p: float) -> Tensor:
    """‖u‖_p along the classes, kept as a dimension; no power overflows, the gradient at 0 is 0."""
    dim = class_dim(input)
    # the norm does not depend on what it is scaled by, so neither does its gradient
    peak = input.detach().abs().amax(dim, keepdim=True).clamp(min=torch.finfo(input.dtype).tiny)
    norm: Tensor = torch.linalg.vector_norm(input / peak, p, dim=dim, keepdim=True)
    return peak * norm


def logit_clip(input: Tensor, tau: float = 1.0, p: float = 2.0, form: str = "paper") -> Tensor:
    """LogitClip (Wei et al., 2023): rows longer than a threshold are shortened.

        "paper"      u·min(1, τ/‖u‖_p)
        "official"   u/(n·τ) where n = ‖u‖_p + 1e-7 exceeds τ, else u: the authors' code, whose
                     clipped radius is 1/τ

    Args:
        input: logits (C,), (N, C) or (N, C, d1, …), finite.
        tau: τ > 0. Default 1.0, the authors' code, where both forms agree.
        p: ≥ 1 or inf. Default 2, the authors'.
        form: "paper" or "official".

    Returns:
        The shape of `input`, float32 (float64 for float64). The gradient passes through the norm;
        for p = inf it is shared evenly where the largest |u_j| is not one alone.

    Raises:
        ValueError: bad `tau`, `p` or `form`.
    """
    check_clip(tau, p, form)
    u = input.to(accumulate_dtype(input.dtype))
    norm = row_norm(u, p)
    if form == "paper":
        return u * (tau / norm.clamp(min=tau))
    norm = norm + NORM_OFFSET
    return u * torch.where(norm > tau, 1 / (tau * norm), 1.0)


def check_clip(tau: float, p: float, form: str) -> None:
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: expected a finite number > 0, got {tau}")
    if not p >= 1:
        raise ValueError(f"p: expected a norm's exponent >= 1 or inf, got {p}")
    if form not in FORMS:
        raise ValueError(f'form: expected "paper" or "official", got {form!r}')


def logit_norm(input: Tensor, tau: float = 0.04) -> Tensor:
    """LogitNorm (Wei et al., 2022): u/((‖u‖₂ + 1e-7)·τ), every row of one length 1/τ.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, …), finite.
        tau: τ > 0. Default 0.04, the paper's (the authors' code defaults to 1).

    Returns:
        The shape of `input`, float32 (float64 for float64); the gradient passes through the norm.

    Raises:
        ValueError: bad `tau`.
    """
    check_clip(tau, 2.0, "paper")
    u = input.to(accumulate_dtype(input.dtype))
    return u / ((row_norm(u, 2.0) + NORM_OFFSET) * tau)


def arc_margin(input: Tensor, label: Tensor, margin: float) -> Tensor:
    """ArcFace's angular margin: the cosine of the label becomes ψ, all others stay.

        ψ = cos(θ + m)               cos θ > cos(π − m)
        ψ = cos θ − m·sin(π − m)     beyond, where cos(θ + m) would rise again

    Args:
        input: cosines (C,), (N, C) or (N, C, d1, …).
        label: (), (N,) or (N, d1, …), class indices in [0, C).
        margin: m in [0, π].
    """
    dim = class_dim(input)
    u = input.to(accumulate_dtype(input.dtype))
    column = label.unsqueeze(dim)
    cosine = u.gather(dim, column)
    # at θ = 0 and where rounding left |cos θ| > 1 the sine is constant: no 1/sin θ in the gradient
    sine = (1 - cosine.square()).clamp(min=torch.finfo(u.dtype).eps).sqrt()
    rotated = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine - margin * math.sin(margin)  # sin(π − m) = sin m
    return u.scatter(dim, column, torch.where(cosine > -math.cos(margin), rotated, beyond))


def scale_and_margin(input: Tensor, scale: Tensor, label: Tensor, margin: Tensor) -> Tensor:
    """Per-row scale and margin: z = scale_i·u_i − margin_i·e_y.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, …).
        scale, margin: (), (N,) or (N, d1, …), one number per row.
        label: of the same shape, class indices in [0, C).
    """
    dim = class_dim(input)
    z = input.to(scale.dtype) * scale.unsqueeze(dim)
    return z.scatter_add(dim, label.unsqueeze(dim), -margin.unsqueeze(dim))
