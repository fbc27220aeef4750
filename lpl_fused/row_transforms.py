"""Row operations before the perturbation that tables cannot say: in plain, differentiable PyTorch.

Each costs one more sweep over the rows, in float32 (float64 for float64 logits), and returns logits
for `functional.cross_entropy` and every loss of the package. They all stand here, behind functions
of rows, for a kernel that does both to replace.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import reference
from .norm import LogitClip, LogitNorm, Norm
from .problem import accumulate_dtype


def class_dim(input: Tensor) -> int:
    """The dimension of logits that counts the classes."""
    return 0 if input.dim() == 1 else 1


def logit_clip(input: Tensor, tau: float = 1.0, p: float = 2.0, form: str = "paper") -> Tensor:
    """`LogitClip` as a function of logits, for losses that take no `norm`.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, …).
        tau, p, form: of `LogitClip`.

    Returns:
        The shape of `input`, float32 (float64 for float64); the gradient passes through the norm.

    Raises:
        ValueError: bad `tau`, `p` or `form`.
    """
    return _renormed(input, LogitClip(tau, p, form))


def logit_norm(input: Tensor, tau: float = 0.04) -> Tensor:
    """`LogitNorm` as a function of logits: see `logit_clip`."""
    return _renormed(input, LogitNorm(tau))


def _renormed(input: Tensor, norm: Norm) -> Tensor:
    u = input.to(accumulate_dtype(input.dtype))
    return reference.renormed(u, norm.numbers(), class_dim(input))


def arc_margin(input: Tensor, label: Tensor, margin: float | Tensor) -> Tensor:
    """ArcFace's angular margin: the cosine of the label becomes ψ, all others stay.

        ψ = cos(θ + m)               cos θ > cos(π − m)
        ψ = cos θ − m·sin(π − m)     beyond, where cos(θ + m) would rise again

    Args:
        input: cosines (C,), (N, C) or (N, C, d1, …).
        label: (), (N,) or (N, d1, …), class indices in [0, C).
        margin: m in [0, π], one number or one per class, (C,).
    """
    dim = class_dim(input)
    u = input.to(accumulate_dtype(input.dtype))
    column = label.unsqueeze(dim)
    cosine = u.gather(dim, column)
    # where θ = 0 or rounding left |cos θ| > 1 the sine is 0, constant: no 1/sin θ in the gradient
    square = (1 - cosine) * (1 + cosine)
    some = square > 0
    sine = torch.where(some, torch.where(some, square, 1).sqrt(), 0)
    cos: Tensor | float
    sin: Tensor | float
    if isinstance(margin, Tensor):
        margin = margin.to(u.dtype)[column]
        cos, sin = margin.cos(), margin.sin()
    else:
        cos, sin = math.cos(margin), math.sin(margin)
    rotated = cosine * cos - sine * sin
    beyond = cosine - margin * sin  # sin(π − m) = sin m
    return u.scatter(dim, column, torch.where(cosine > -cos, rotated, beyond))


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
