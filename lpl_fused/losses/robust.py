"""Losses that weigh rows or groups by the losses they have: distributionally robust training.

Both take their row losses from a `base` loss with `reduction="none"`, any of this package, so that
they run on its kernels and compose with its tables, φ, weights and smoothing.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import (
    CONSUMED,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    REAL,
    Maybe,
    Number,
    fixed,
    is_integer,
    live,
    rebuilding,
    shown,
)
from ..class_stats import Counts, checked_counts, class_mean
from ..perturbation import Perturbation
from ..problem import label_range_error
from ..tracing import readable, recomputing
from ..validation import Target
from .cross_entropy import CrossEntropyLoss
from .module import DeferredStart, Reducing, counted
from .multilabel import MultiLabelLoss
from .rows import mean_divisor


def _of_rows(name: str, base: Any) -> nn.Module:
    """A base, as a check."""
    if not isinstance(base, nn.Module):
        raise TypeError(f"{name}: expected a loss, a module, got {shown(base)}")
    if isinstance(base, MultiLabelLoss):
        raise ValueError(f"{name}: expected a loss of one number per row, got {shown(base)}")
    if getattr(base, "reduction", None) != "none":
        raise ValueError(f'{name}: expected a loss with reduction="none", got {shown(base)}')
    return base


class _Rows(Reducing):
    """The row losses of a base, and which of them count."""

    arguments: ClassVar = {"base": live(_of_rows)}

    def __init__(self, base: nn.Module | None, data_group: Any) -> None:
        super().__init__(data_group=data_group)
        self.base = CrossEntropyLoss(reduction="none") if base is None else base

    def rows(
        self, input: Tensor, target: Target, perturbation: Perturbation | None
    ) -> tuple[Tensor, Tensor]:
        """(losses, counted), both (M,)."""
        # a base of another package need not know the keyword
        keywords = {} if perturbation is None else {"perturbation": perturbation}
        losses = self.base(input, target, **keywords)
        rows = counted(target, getattr(self.base, "ignore_index", -100))
        if not isinstance(losses, Tensor) or losses.shape != rows.shape:
            raise ValueError(
                f"base: expected one loss per row, shape {tuple(rows.shape)}, got {shown(losses)}"
                f" of {type(self.base).__name__}"
            )
        return losses.reshape(-1), rows.reshape(-1)


def _not_zero(name: str, value: Any) -> float:
    number = REAL(name, value)
    if number == 0:
        raise ValueError(f"{name}: expected a finite number other than 0, got {shown(value)}")
    return number


class ABSGDLoss(DeferredStart, _Rows):
    """ABSGD (Qi et al.): L = Σ_i p_i·ℓ_i, p_i = exp(ℓ_i/λ)/(B·U), a constant in the backward pass.

        U ← (1 − γ)·U + γ·a·mean_i exp(ℓ_i/λ)

    over the B rows of the batch, kept as log U, so that nothing overflows. λ > 0 stresses rows of
    large loss (imbalance), λ < 0 mutes them (label noise); γ = a = 1 is p = softmax(ℓ/λ). U starts
    at 0: the weights of the first batch sum to 1/(γ·a), in the long run to about 1/a. Where λ is
    None, and in `eval()` mode, it is the mean of the rows, and U rests. Class weights of `base` are
    part of ℓ, as in the authors' code. U leaves out rows of infinite or nan loss, the loss of their
    batch does not. Cost: row losses and a light second step.

    Args:
        lam: λ ≠ 0, or None; default 0.5, the authors' tutorial.
        base: a loss with `reduction="none"`; default cross-entropy.
        gamma: γ in (0, 1], default 0.9, the authors' package (their scripts: 0.1).
        scale: a > 0, default 1.0, the authors' package (their scripts: 0.5).
        start_epoch: when λ becomes `lam`, see `set_epoch`; default 0 (their long-tail runs: 160).
        first_lam: λ before that; default None (their scripts: 10, or 200, which means None).
        bias_correction: divides U by 1 − (1 − γ)^t after t batches, as Adam does: Σp starts at 1/a.
        add_mean: adds 1/B to every p_i (the authors' label-noise script).
        data_group: of `Reducing`.

    State: `log_u`, `batches`, the epoch. Under torch.distributed U is that of all ranks' rows (one
    all_gather of two numbers per batch; the authors' is each process's own), and p is scaled so
    that the average over ranks, which DistributedDataParallel takes, is that of the whole batch.

    Shapes: as `base`; returns a 0-dim tensor. Called with `perturbation=…` it hands it to `base`.

    Raises:
        ValueError: λ zero or not finite, γ or a out of range, `base` with another reduction.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> losses.ABSGDLoss(lam=1.0, gamma=1.0)(logits, target)  # the mean: 1.4076
        tensor(2.1692)
        >>> losses.ABSGDLoss(lam=-1.0, gamma=1.0)(logits, target)
        tensor(0.6460)
    """

    arguments: ClassVar = {
        "lam": live(Maybe(_not_zero)),
        "gamma": live(Number(above=0, most=1)),
        "scale": live(POSITIVE),
        "first_lam": live(Maybe(_not_zero)),
        "bias_correction": live(FLAG),
        "add_mean": live(FLAG),
    }

    log_u: Tensor
    batches: Tensor

    def __init__(
        self,
        lam: float | None = 0.5,
        base: nn.Module | None = None,
        *,
        gamma: float = 0.9,
        scale: float = 1.0,
        start_epoch: int = 0,
        first_lam: float | None = None,
        bias_correction: bool = False,
        add_mean: bool = False,
        data_group: Any = None,
    ) -> None:
        super().__init__(base, data_group)
        self.lam, self.first_lam = lam, first_lam
        self.gamma, self.scale = gamma, scale
        self.bias_correction, self.add_mean = bias_correction, add_mean
        self.start_at(start_epoch)
        self.register_buffer("log_u", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("batches", torch.tensor(0))

    def forward(
        self, input: Tensor, target: Target, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        losses, rows = self.rows(input, target, perturbation)
        lam = self.lam if self.started else self.first_lam
        if lam is None or not self.training:
            return losses.sum() / mean_divisor(rows.sum(), getattr(self.base, "empty", "nan"))
        finite = losses.detach().isfinite()
        weights = self._weights(losses.detach().double() / lam, rows & finite)
        weights = torch.where(rows & ~finite, 1.0, weights)  # seen in the loss of this batch alone
        return (weights.to(losses.dtype) * losses).sum()

    @torch.no_grad()
    def _weights(self, exponent: Tensor, rows: Tensor) -> Tensor:
        exponent = exponent.masked_fill(~rows, -math.inf)
        local = torch.stack([torch.logsumexp(exponent, 0), rows.sum().double()])
        log_sums, counts = self.all_rows(local).unbind(1)
        log_mean = torch.logsumexp(log_sums, 0) - counts.sum().log()
        old = self.log_u + (math.log1p(-self.gamma) if self.gamma < 1 else -math.inf)
        new = torch.logaddexp(old, log_mean + math.log(self.gamma * self.scale))
        some = (counts.sum() > 0) & (not recomputing())
        log_u, batches = torch.where(some, new, self.log_u), self.batches + some
        if torch.compiler.is_compiling():  # see `EQLv2Loss.collect`
            self.log_u, self.batches = log_u, batches
        else:
            self.log_u.copy_(log_u)
            self.batches.copy_(batches)
        log_u = self.log_u
        if self.bias_correction:
            log_u = log_u - torch.log1p(-torch.pow(1 - self.gamma, self.batches.double()))
        share = counts.mean()  # B of one rank
        weights = torch.exp(exponent - log_u - share.log())
        if self.add_mean:
            weights = weights + 1 / share
        return weights.masked_fill(~rows, 0)

    def extra_repr(self) -> str:
        return f"lam={self.lam}, gamma={self.gamma}, scale={self.scale}"


class GroupDROLoss(_Rows):
    """Group DRO (Sagawa et al., 2020): L = Σ_g q_g·ℓ_g, ℓ_g the mean loss of group g in the batch.

        q_g ∝ q_g·exp(η·(ℓ_g + adjustment/√n_g))                                       default
        q = the worst α of the groups by share n_g/Σn, by running losses ℓ̄_g           cvar=α
            ℓ̄_g ← (1 − momentum)·ℓ̄_g + momentum·ℓ_g                (the authors' "greedy")

    q is updated before it is used and is a constant in the backward pass. It is kept as a
    logarithm: no group is lost to underflow. A group absent from the batch has ℓ_g = 0 there (where
    all are, nothing changes). q and ℓ̄ leave out rows of infinite or nan loss, the loss of their
    batch does not; in `eval()` mode they rest. Cost: row losses and a light second step.

    Args:
        group_counts: (G,) training samples per group, each ≥ 1.
        base: a loss with `reduction="none"`; default cross-entropy.
        step_size: η ≥ 0, default 0.01, the authors'.
        adjustment: ≥ 0, the generalisation adjustment C, default 0.
        cvar: α in (0, 1] or None; the authors' greedy variant has 0.2.
        momentum: share of the new loss in ℓ̄, default 0.1, the authors' γ. `cvar` alone.
        data_group: of `Reducing`.

    Called `loss(logits, target, group)`, `group` (…) integer in [0, G) of the losses' shape; with
    `perturbation=…` it hands that to `base`.

    State: `log_q`, or `running_loss` and `seen`. Under torch.distributed the sums and counts of
    groups are all_reduced, so that q is the same on all ranks, and the loss is scaled so that the
    average over ranks is that of the whole batch.

    Raises:
        ValueError: bad counts, numbers, `base` or shape of `group`; a group out of range (on CUDA
            it makes its row nan instead).
        TypeError: `group` is not integer.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> criterion = losses.GroupDROLoss([90, 10], step_size=1.0)
        >>> criterion(logits, target, group=torch.tensor([0, 1]))
        tensor(2.1692)
        >>> criterion.q
        tensor([0.1192, 0.8808], dtype=torch.float64)
    """

    arguments: ClassVar = {
        "group_counts": CONSUMED,
        "step_size": live(NOT_NEGATIVE),
        "adjustment": rebuilding(NOT_NEGATIVE),
        "cvar": fixed(Maybe(Number(above=0, most=1))),
        "momentum": live(Number(above=0, most=1)),
    }

    log_q: Tensor
    running_loss: Tensor
    seen: Tensor
    bonus: Tensor
    share: Tensor

    def __init__(
        self,
        group_counts: Counts,
        base: nn.Module | None = None,
        *,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        cvar: float | None = None,
        momentum: float = 0.1,
        data_group: Any = None,
    ) -> None:
        super().__init__(base, data_group)
        counts = checked_counts(group_counts, minimum=1, name="group_counts")
        self._counts, self.groups = counts, len(counts)
        self.step_size, self.adjustment = step_size, adjustment
        self.cvar, self.momentum = cvar, momentum
        self.rebuild()
        self.register_buffer("share", counts / counts.sum(), persistent=False)
        if cvar is None:
            self.register_buffer("log_q", torch.full_like(counts, -math.log(self.groups)))
        else:
            self.register_buffer("running_loss", torch.zeros_like(counts))
            self.register_buffer("seen", torch.zeros(self.groups, dtype=torch.bool))

    def rebuild(self) -> None:
        super().rebuild()
        bonus, old = self.adjustment / self._counts.sqrt(), self._buffers.get("bonus")
        bonus = bonus if old is None else bonus.to(old.device)
        self.register_buffer("bonus", bonus, persistent=False)

    @property
    def q(self) -> Tensor:
        """(G,) float64, the weights of the groups; they sum to 1."""
        if self.cvar is None:
            return self.log_q.exp()
        order = torch.argsort(self.running_loss + self.bonus, descending=True)
        share = self.share[order]
        left = self.cvar - (share.cumsum(0) - share)  # of α, before the group takes its share
        taken = torch.minimum(left.clamp(min=0), share) / self.cvar
        return torch.zeros_like(taken).scatter(0, order, taken)

    def forward(
        self,
        input: Tensor,
        target: Target,
        group: Tensor,
        *,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        shape = (target if isinstance(target, Tensor) else target[0]).shape
        losses, rows = self.rows(input, target, perturbation)
        index = self._checked(group, shape, rows)
        with torch.no_grad():
            values = losses.double()
            finite = torch.where(values.isfinite(), index, self.groups)
            mean, fit = class_mean(values.nan_to_num(0, 0, 0), finite, self.groups)
            _, count = class_mean(torch.ones_like(values), index, self.groups)
            total, fit, count = self.all_sum(torch.stack([mean * fit, fit, count])).unbind(0)
            if self.training and not recomputing():
                self._update(total / fit.clamp(min=1), fit > 0)
            by_group = self.q * self.ranks / count.clamp(min=1)
            weights = torch.cat([by_group, by_group.new_full((1,), math.nan)])[index]
            weights = weights.masked_fill(~rows, 0).to(losses.dtype)
        return (weights * losses).sum()

    def _update(self, mean: Tensor, present: Tensor) -> None:
        if self.cvar is None:
            raised = self.log_q + self.step_size * (mean + self.bonus)
            raised = raised - torch.logsumexp(raised, 0)
            self.log_q.copy_(torch.where(present.any(), raised, self.log_q))
            return
        new = self.running_loss.lerp(mean, self.momentum)
        new = torch.where(self.seen, new, mean)
        self.running_loss.copy_(torch.where(present, new, self.running_loss))
        self.seen.logical_or_(present)

    def _checked(self, group: Tensor, shape: torch.Size, rows: Tensor) -> Tensor:
        """(M,) groups; G for what is no group, on a GPU, where it cannot be looked at, too."""
        if not isinstance(group, Tensor):
            raise TypeError(f"group: expected a tensor of integers, got {shown(group)}")
        if not is_integer(group):
            raise TypeError(f"group: expected integers, got {group.dtype}")
        if group.shape != shape:
            raise ValueError(
                f"group: expected one per loss, shape {tuple(shape)}, got {tuple(group.shape)}"
            )
        group = group.reshape(-1).long()
        outside = ((group < 0) | (group >= self.groups)) & rows
        if readable(group) and outside.any():
            raise label_range_error("group", int(group[outside][0]), self.groups, None)
        return torch.where(rows & ~outside, group, self.groups)

    def extra_repr(self) -> str:
        rule = f"step_size={self.step_size}" if self.cvar is None else f"cvar={self.cvar}"
        return f"groups={self.groups}, {rule}"
