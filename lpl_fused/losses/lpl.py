"""LPL: the learned class-level logit perturbation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..arguments import (
    CONSUMED,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    REAL,
    Choice,
    Either,
    Maybe,
    Number,
    Pair,
    fixed,
    live,
    real_number,
    rebuilding,
    shown,
    whole_number,
)
from ..class_stats import Counts, checked_counts, class_mean
from ..perturbation import Perturbation, chained
from ..sharded import refused
from ..tracing import recomputing
from ..validation import Target
from .cross_entropy import CrossEntropyLoss
from .lpl_official import VARIANTS, official_cross_entropy
from .module import Reducing

# (step_size α, ε, Δε of head and tail) where none is given: the official CIFAR10-LT script
# (α 0.15, 0.6·10 and 10 steps) and the official balanced script (α 0.01, 40 and 0.1·40 steps).
_DEFAULTS = {"long-tail": (0.15, 0.0, (0.9, 1.5)), "balanced": (0.01, 0.4, (0.04, 0.04))}


# what the scripts know nothing of, and its defaults
_NOT_OF_VARIANTS = {
    "normalize": True,
    "tau": 0.0,
    "statistics": "batch",
    "through_perturbation": False,
}

_SPAN = Either(NOT_NEGATIVE, Pair(NOT_NEGATIVE))


def _span(name: str, value: Any) -> tuple[float, float]:
    """(lowered, raised) from one number or two, as a check."""
    found = _SPAN(name, value)
    return found if isinstance(found, tuple) else (found, found)


class LPLLoss(Reducing, CrossEntropyLoss):
    """Logit perturbation learned per class (Li, Su, Wu, Zhang, 2022): CE(u + τ·log π + δ_y, y).

    δ_c is found in every batch by K_c = ⌊ε_c/α⌋ steps that raise (S_c = +1) or lower (S_c = −1) the
    loss of class c (`functional.lpl_cross_entropy`). Who is raised, and how far:

        split "long-tail"   classes ranked by count; the first `head` are lowered, the rest raised;
                            ε_c = ε + Δε·n_c/n_max (head), ε + Δε·n_min/n_c (tail)
        split "balanced"    S_c = sign(q̄ − q̄_c), ε_c = ε + Δε·|q̄ − q̄_c|, with q̄_c the mean
                            probability of class c's samples for c, q̄ its mean over classes seen

    In `eval()` mode there is no learned perturbation and no statistic is touched (the paper
    perturbs in training alone); the offset τ·log π stays. Predict with the raw logits.

    Mixup and CutMix: with a `MixedTarget` a row is λ of a row of one class and 1 − λ of one of the
    other, in δ, in q̄ and in the loss; see `functional.lpl_cross_entropy`.

    Cost: cross-entropy and a sweep or two, whatever the steps; in `eval()` tables alone. A variant,
    and `through_perturbation` beyond what the C++ backend differentiates: sweeps by the step, in
    plain PyTorch.

    Args:
        cls_num_list: (C,) training samples per class; "balanced" takes of them how many classes
            there are and, beside `tau`, log π.
        split: "long-tail" or "balanced".
        head: classes that are lowered, a number (an integer type) or a share (a floating type) of
            all; default 0.4 (the official 4 of 10 and 40 of 100), of the variant
            "official-la-long-tail" 0.27 (27 of 100). "long-tail" alone.
        epsilon: ε ≥ 0, the fixed part of the bound; default 0 ("long-tail") or 0.4 ("balanced").
        delta_epsilon: Δε ≥ 0, the varied part, one number or a pair (head, tail) / (lowered,
            raised); default (0.9, 1.5) or 0.04. 0 makes all bounds equal.
        step_size: α > 0; default 0.15 or 0.01.
        normalize: unit-length steps, so that ‖δ_c‖₂ ≤ ε_c; False takes the paper's plain gradient.
        tau: τ, strength of logit adjustment under the perturbation (LA+LPL: 1.0). Default 0.0.
        statistics: "batch": q̄_c of the batch's classes; "ema": a running mean over batches of each
            class, kept in `state_dict`, of the samples of all ranks of torch.distributed (one
            collective of 2·C numbers a batch; see `Reducing`). "balanced" alone. Rows whose loss is
            not finite count nothing.
        momentum: share of the old value in "ema", default 0.9.
        variant: None, or a name of `lpl_official.VARIANTS`: what the authors' scripts do, slips
            included, in plain PyTorch; their split, step sizes and bounds apply, and but for
            `split` and `head` ours must be unset.
        through_perturbation: differentiate through the steps (reference backend).
        **keywords: `data_group`, and those of `CrossEntropyLoss`.

    `epsilon`, `delta_epsilon`, `step_size` and `tau` may be assigned: the steps follow.

    Raises:
        ValueError: bad counts, split, bounds or variant.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> criterion = losses.LPLLoss([100, 10, 1], reduction="none")
        >>> criterion.steps  # lowers the first class's loss, raises that of the rarest
        tensor([-6,  1, 10], dtype=torch.int32)
        >>> criterion(logits, target)
        tensor([0.1504, 4.2626])
        >>> criterion.eval()(logits, target)  # cross-entropy
        tensor([0.4076, 2.4076])
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "split": fixed(Choice(*_DEFAULTS)),
        "head": CONSUMED,
        "epsilon": rebuilding(NOT_NEGATIVE),
        "delta_epsilon": rebuilding(_span),
        "step_size": rebuilding(POSITIVE),
        "normalize": rebuilding(FLAG),
        "tau": rebuilding(REAL),
        "statistics": fixed(Choice("batch", "ema")),
        "momentum": live(Number(least=0, below=1)),
        "variant": fixed(Maybe(Choice(*VARIANTS))),
        "through_perturbation": rebuilding(FLAG),
    }

    counts: Tensor
    mean_probability: Tensor
    seen: Tensor
    steps: Tensor

    def __init__(
        self,
        cls_num_list: Counts,
        *,
        split: str = "long-tail",
        head: int | float | None = None,
        epsilon: float | None = None,
        delta_epsilon: float | tuple[float, float] | None = None,
        step_size: float | None = None,
        normalize: bool = True,
        tau: float = 0.0,
        statistics: str = "batch",
        momentum: float = 0.9,
        variant: str | None = None,
        through_perturbation: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.split, self.statistics, self.momentum = split, statistics, momentum
        self.normalize, self.variant = normalize, variant
        self.through_perturbation = through_perturbation
        self.check_group()
        if variant is not None and (epsilon, delta_epsilon, step_size) != (None, None, None):
            raise ValueError("variant: brings its own epsilon, delta_epsilon and step_size")
        if split != "long-tail" and head is not None and variant is None:
            raise ValueError(f'head: of split "long-tail" alone, got it beside {split!r}')
        if split != "balanced" and statistics == "ema":
            raise ValueError(
                f'statistics: "ema" is of split "balanced" alone, got it beside {split!r}'
            )
        counts = checked_counts(cls_num_list, filled=split == "long-tail")
        default_step, default_epsilon, default_span = _DEFAULTS[split]
        self.step_size = default_step if step_size is None else step_size
        self.epsilon = default_epsilon if epsilon is None else epsilon
        self.delta_epsilon = _span(
            "delta_epsilon", default_span if delta_epsilon is None else delta_epsilon
        )
        self.tau = tau
        self._check_variant()
        self._counts = counts
        self.register_buffer("counts", counts, persistent=False)
        if head is None:
            head = 0.4 if variant is None else VARIANTS[variant].head
        self.num_head = _head_size(head, len(counts))
        self._build()
        if statistics == "ema":
            self.register_buffer("mean_probability", torch.zeros(len(counts), dtype=torch.float32))
            self.register_buffer("seen", torch.zeros(len(counts), dtype=torch.bool))

    def rebuild(self) -> None:
        super().rebuild()
        if self.variant is not None:
            raise ValueError("variant: brings its own bounds, nothing else can be assigned")
        self._build()

    def _check_variant(self) -> None:
        """Raises ValueError for what is set beside a script that does not ask for it."""
        if self.variant is None:
            return
        for name, default in _NOT_OF_VARIANTS.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}: variant={self.variant!r} is a script that does not ask for it,"
                    f" expected {default!r}, got {getattr(self, name)!r}"
                )

    def _build(self) -> None:
        counts = self._counts
        most = (self.epsilon + max(self.delta_epsilon)) / self.step_size
        if most >= 2**31:
            raise ValueError(
                "step_size: expected fewer than 2**31 of them in epsilon + delta_epsilon, got "
                f"{self.step_size:g}, which are {most:g}"
            )
        self.register_table("offset", self.tau * torch.log(counts / counts.sum() + 1e-12))
        if self.split == "long-tail":
            old = self._buffers.get("steps")
            steps = self.long_tail_steps(counts).to(counts.device if old is None else old.device)
            self.register_buffer("steps", steps, persistent=False)

    def _has_parts(self) -> bool:
        # while the base is made nothing is known of it
        return vars(self).get("variant") is None and not vars(self).get("through_perturbation")

    @property
    def has_linear(self) -> bool:
        return not self.training or self._has_parts()

    def perturbation(self, logits: Tensor) -> Perturbation | None:
        return Perturbation(offset=self.table("offset", logits)) if self.tau else None

    def long_tail_steps(self, counts: Tensor) -> Tensor:
        """(C,) signed step counts from the training counts."""
        rank = torch.argsort(torch.argsort(counts, descending=True, stable=True))
        in_head = rank < self.num_head
        lowered, raised = self.delta_epsilon
        bound = self.epsilon + torch.where(
            in_head, lowered * counts / counts.max(), raised * counts.min() / counts
        )
        count = self.step_count(bound)
        return torch.where(in_head, -count, count)

    def step_count(self, bound: Tensor) -> Tensor:
        """K = ⌊ε/α⌋; the tiny margin keeps 0.4/0.01 at 40 where floating point says 39.999…"""
        return torch.floor(bound / self.step_size * (1 + 1e-6)).to(torch.int32)

    def balanced_steps(self, row_losses: Tensor, target: Target) -> Tensor:
        """(C,) signed step counts from the classes' mean probabilities, running ones updated.

        Args:
            row_losses: −log p of each row's class, before the learned perturbation.
            target: the labels, of the same shape; or two of each row, the first dimension of
                `row_losses`, each with its share of the means.
        """
        share: Tensor | None = None
        if not isinstance(target, Tensor):
            target, other, lam = target
            first = torch.as_tensor(lam, dtype=row_losses.dtype, device=target.device)
            first = first.expand(target.shape)
            share = torch.stack([first, 1 - first]).reshape(-1)
            target = torch.stack([target, other])
        labels = target.reshape(-1).long()
        ell = row_losses.reshape(-1)
        fit = ell.isfinite()
        labels = torch.where(fit & (labels != self.ignore_index), labels, -1)
        p = torch.exp(-ell.masked_fill(~fit, 0))
        return self.steps_of_means(*class_mean(p, labels, len(self.counts), share))

    def steps_of_means(self, mean: Tensor, count: Tensor) -> Tensor:
        """The same from the batch's mean probabilities (C,) of the classes, and their samples."""
        fit = mean.isfinite()
        mean, count = mean.nan_to_num(0, 0, 0), count * fit
        if self.statistics == "ema":
            total, count = self.all_sum(torch.stack([mean * count, count.to(mean.dtype)])).unbind(0)
            mean = total / count.where(count > 0, 1)
        present = count > 0
        known = present
        if self.statistics == "ema" and not recomputing():
            mean = mean.to(self.mean_probability.dtype)
            running = self.momentum * self.mean_probability + (1 - self.momentum) * mean
            running = torch.where(self.seen, running, mean)
            self.mean_probability.copy_(torch.where(present, running, self.mean_probability))
            self.seen.logical_or_(present)
        if self.statistics == "ema":
            mean, known = self.mean_probability, self.seen
        average = (mean * known).sum() / known.sum().clamp(min=1)
        gap = average - mean
        lowered, raised = self.delta_epsilon
        bound = self.epsilon + torch.where(gap < 0, lowered, raised) * gap.abs()
        return torch.sign(gap).to(torch.int32) * self.step_count(bound) * present

    def forward(
        self,
        input: Tensor,
        target: Target,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor:
        if not self.training:
            return super().forward(
                input,
                target,
                perturbation=perturbation,
                normalizer=normalizer,
                return_stats=return_stats,
            )
        try:
            tables = self.perturbation(input)
            if perturbation is not None:
                tables = chained(tables, perturbation)
        except Exception as error:
            refused(input, self.process_group, error)
            raise
        if self.variant is not None:
            if not isinstance(target, Tensor) or target.is_floating_point():
                raise ValueError("target: an official variant needs class indices, one per row")
            if perturbation is not None:
                raise ValueError("perturbation: an official variant takes none beside its own")
            if normalizer is not None:
                raise ValueError("normalizer: an official variant takes none")
            return official_cross_entropy(
                input,
                target,
                VARIANTS[self.variant],
                self.counts,
                self.num_head,
                keywords={**self.keywords(), "return_stats": return_stats},
            )
        loss: Tensor = functional.lpl_cross_entropy(
            input,
            target,
            self._steps_of(target),
            step_size=self.step_size,
            normalize=self.normalize,
            through_perturbation=self.through_perturbation,
            perturbation=tables,
            normalizer=normalizer,
            return_stats=return_stats,
            **self.keywords(),
        )
        return loss

    def linear(  # type: ignore[override]
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Target,
        linear_bias: Tensor | None = None,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
        chunk_memory: int | None = None,
        return_stats: bool = False,
    ) -> Any:
        """As that of `CrossEntropyLoss`; in training not of a variant, nor through the steps."""
        try:
            layer = self.layer(input, linear_weight, linear_bias, target)
            tables = self.linear_perturbation(layer, perturbation)
            if self.training:
                layer.check_labelled()
        except Exception as error:
            refused(input, self.process_group, error)
            raise
        keywords = {
            "linear_bias": linear_bias,
            "perturbation": tables,
            "normalizer": normalizer,
            "chunk_memory": chunk_memory,
            "return_stats": return_stats,
            **self.keywords(),
        }
        if not self.training:
            return functional.linear_cross_entropy(input, linear_weight, target, **keywords)
        for name in ("variant", "through_perturbation"):
            if getattr(self, name):
                raise NotImplementedError(
                    f"LPLLoss with {name}={getattr(self, name)!r} goes over all logits step by"
                    " step, it has no `linear`"
                )
        return functional.linear_lpl_cross_entropy(
            input,
            linear_weight,
            target,
            self._steps_of(target),
            step_size=self.step_size,
            normalize=self.normalize,
            **keywords,
        )

    def _steps_of(self, target: Target) -> Tensor | Callable[[Tensor], Tensor]:
        """The steps (C,), or what makes them from the losses of the rows."""
        if self.split == "long-tail":
            return self._buffers["steps"]  # type: ignore[return-value]
        return lambda row_losses: self.balanced_steps(row_losses, target)

    def extra_repr(self) -> str:
        if self.variant is not None:
            return f"variant={self.variant!r}, {super().extra_repr()}"
        return (
            f"split={self.split!r}, epsilon={self.epsilon}, delta_epsilon={self.delta_epsilon}, "
            f"step_size={self.step_size}, tau={self.tau}, {super().extra_repr()}"
        )


def _head_size(head: int | float, classes: int) -> int:
    expected = f"a share in [0, 1] or 0 to {classes} classes"
    size, share = whole_number(head), real_number(head)
    if share is None:
        raise TypeError(f"head: expected {expected}, got {shown(head)}")
    if not 0 <= share <= (1 if size is None else classes):
        raise ValueError(f"head: expected {expected}, got {shown(head)}")
    return round(share * classes) if size is None else size
