"""The few numbers of a row that its gradient is made of; what a forward sweep may leave for it.

With e_j = exp(z_j − shift), ℓ_j = log_total − (z_j − shift), for an upstream gradient of 1:

    dL/dz_j = e_j·strength − uniform·w_j·φ'(ℓ_j),  at the label and the other label plus `part` and
              `other_part`; where nothing is spread over the classes (no smoothing, no dense target)
              these instead, which are the same where both labels are one class
    dL/dT_j = dL/dz_j·dz_j/dT_j                             T: the logits as their norm leaves them
    dL/du_j = factor·(dL/dT_j − along·bend·∇n_j)            n = ‖u‖_p, along = Σ_k dL/dT_k·u_k/n
              + raises where u_j = top, − each·P'(h_j)      the penalty, h_j by its `top`

`w_j` are class weights, for class probabilities those times the probability.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Numbers of each row, all (N,). A backend sees them as the columns of one (N, len) tensor."""

    factor: Tensor  # f(n) of lpl_fused.norm; 1 without
    length: Tensor  # n
    bend: Tensor  # −f'·n/f, over the number of ties for p = inf
    top: Tensor  # the largest logit, where there is a penalty
    shift: Tensor
    log_total: Tensor
    strength: Tensor
    uniform: Tensor
    part: Tensor
    other_part: Tensor
    along: Tensor
    raises: Tensor
    each: Tensor

    @staticmethod
    def empty(n: int, dtype: torch.dtype, device: torch.device) -> Terms:
        """Of rows of which nothing is known: no norm, no gradient."""
        rows = torch.zeros((n, len(Terms._fields)), dtype=dtype, device=device)
        rows[:, Terms._fields.index("factor")] = 1
        return Terms.of(rows)

    @staticmethod
    def of(rows: Tensor) -> Terms:
        """The columns of an (N, len) tensor."""
        return Terms(*rows.unbind(1))

    def packed(self, dtype: torch.dtype) -> Tensor:
        """(N, len), contiguous."""
        return torch.stack([column.to(dtype) for column in self], 1)


class Gradients(NamedTuple):
    """Of what was wanted, None where it was not. W columns of C classes."""

    input: Tensor | None = None  # (N, W), input dtype
    scale: Tensor | None = None  # (W,), accumulate dtype, as all tables'
    offset: Tensor | None = None  # (W,)
    margin: Tensor | None = None  # (C,); what rows whose label lies elsewhere add is missing
    rows: Tensor | None = None  # (R, W)
