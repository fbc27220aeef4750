"""Vector scaling by group: the label together with an attribute that must not decide."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..arguments import CONSUMED, POSITIVE, REAL, Choice, Maybe, RealTensor, fixed, live, rebuilding
from ..class_stats import Counts, checked_counts, count_tensor
from ..norm import FORMS
from ..perturbation import Perturbation
from ..problem import accumulate_dtype
from ..row_transforms import scale_and_margin
from ..tracing import readable
from .binary import BinaryLoss, binary_labels, checked_targets
from .cross_entropy import NO_SOFTCAP, CrossEntropyLoss
from .rows import blanked, class_indices, looked_up, reduced

_IOTAS = "log", "power", "none"
_DELTAS = "power", "none"


class GroupVSLoss(CrossEntropyLoss):
    """Group-sensitive vector scaling (Kini et al., 2021): L = CE(Δ_g·u − ι_g·e_y, y), g = g_i.

        Δ_g = (n_g/n_max)^γ           delta "power"
        ι_g = −τ·log(n_g/Σn)      iota "log"
        ι_g = (n_g/n_max)^{−γ}    iota "power"

    A group is usually a pair (label, background), worst-group accuracy the aim; group DRO on top
    takes `reduction="none"`. Cost: one more row sweep.

    Args:
        group_num_list: (G,) training samples per group, each ≥ 1.
        gamma: γ, default 0.3, the authors' code.
        tau: τ, default 1.0, the authors' code. "log" alone.
        iota: "log" (default) or "power"; the authors' code knows both; or "none", ι = 0.
        delta: "power" (default), or "none", Δ = 1: with iota "power" the authors' additive mode.
        form: "paper" (default): ι on the target's logit. "official": ι on all logits of the row as
            in the authors' code, where softmax does not see it.
        **keywords: of `CrossEntropyLoss`, `softcap` apart; `weight` is by class.

    Called `loss(logits, target, group)`, `group` indices of the target's shape.

    Raises:
        ValueError: bad counts, `iota`, `delta` or `form`; groups out of range (CPU; nan on CUDA); a
            target that is not class indices.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> group = torch.tensor([1])  # a rare one
        >>> losses.GroupVSLoss([90, 10])(logits, target, group)
        tensor(3.8268)
    """

    arguments: ClassVar = {
        "group_num_list": CONSUMED,
        "gamma": rebuilding(REAL),
        "tau": rebuilding(REAL),
        "iota": CONSUMED,
        "delta": CONSUMED,
        "form": live(Choice(*FORMS)),
        "softcap": NO_SOFTCAP,
    }

    def __init__(
        self,
        group_num_list: Counts,
        gamma: float = 0.3,
        tau: float = 1.0,
        *,
        iota: str = "log",
        delta: str = "power",
        form: str = "paper",
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(group_num_list, minimum=1, name="group_num_list")
        self.gamma, self.tau, self.form = gamma, tau, form
        self.iota_kind = Choice(*_IOTAS)("iota", iota)
        self.delta_kind = Choice(*_DELTAS)("delta", delta)
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        counts = self._counts
        gamma = self.gamma if self.delta_kind == "power" else 0.0
        self.register_table("delta", (counts / counts.max()) ** gamma)
        self.register_table("iota", group_offsets(counts, self.gamma, self.tau, self.iota_kind))

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        group: Tensor,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        label = class_indices(input, target, self)
        logits = blanked(input, target, self.ignore_index)
        scale = by_group(self.table("delta", input), label, group)
        iota = by_group(self.table("iota", input), label, group)
        if self.form == "official":
            iota = torch.zeros_like(iota)  # ι·1, which softmax cancels
        z = scale_and_margin(logits, scale, label, iota)
        return super().forward(z, target, perturbation=perturbation, normalizer=normalizer)


class BinaryVSLoss(BinaryLoss):
    """Binary vector scaling (Kini et al., 2021), one logit f, label y ∈ {0, 1}, ȳ = 2y − 1.

        "paper"      ℓ = log(1 + exp(s·(ι_y − Δ_y·ȳ·f))),  s = 1
        "official"   ℓ = BCE(s·(Δ_y·f − ι_y), y),          s = 30: ι lowers the negatives' loss
        L = ω_y·φ(ℓ),  Δ_y = (n_y/n_max)^γ,  ι_y = −τ·log(n_y/Σn)

    With counts of shape (2, G) all tables are by label and group (y, g). Cost: elementwise, plain
    PyTorch.

    Args:
        cls_num_list: (2,) training samples of label 0 and 1, or (2, G) of label and group, ≥ 1.
        gamma: γ, default 0.3; tau: τ, default 1.0; the defaults of `VSLoss`.
        s: scale > 0; default 1 or 30, by form.
        form: "paper" (default) or "official".
        weight: ω, of the shape of `cls_num_list`; the mean divides by Σ ω_y.
        **keywords: of `BinaryLoss`.

    Called `loss(logits, target)` or, with groups, `loss(logits, target, group)`; all of one shape,
    labels hard.

    Raises:
        ValueError: bad counts, form or scale; `group` left out or not wanted; soft labels (CPU;
            nan on CUDA).

    Examples:
        >>> logits, target = torch.tensor([2.0, -1.0]), torch.tensor([0, 1])
        >>> losses.BinaryVSLoss([90, 10], reduction="none")(logits, target)
        tensor([2.2203, 2.8778])
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "gamma": rebuilding(REAL),
        "tau": rebuilding(REAL),
        "s": live(POSITIVE),
        "form": fixed(Choice(*FORMS)),
        "weight": fixed(Maybe(RealTensor(None, "a tensor of the shape of cls_num_list"))),
    }

    weight: Tensor | None

    def __init__(
        self,
        cls_num_list: Counts,
        gamma: float = 0.3,
        tau: float = 1.0,
        *,
        s: float | None = None,
        form: str = "paper",
        weight: Tensor | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        given = count_tensor(cls_num_list, "cls_num_list")
        if given.dim() not in (1, 2) or given.shape[0] != 2:
            raise ValueError(
                f"cls_num_list: expected shape (2,) or (2, G), got {tuple(given.shape)}"
            )
        self.form = form
        self.register_weight("weight", weight)
        if weight is not None and weight.shape != given.shape:
            raise ValueError(
                f"weight: expected shape {tuple(given.shape)}, got {tuple(weight.shape)}"
            )
        self.s = (1.0 if form == "paper" else 30.0) if s is None else s
        self._counts = checked_counts(given.reshape(-1), filled=True).reshape(given.shape)
        self.groups = given.shape[1] if given.dim() == 2 else 0
        self.gamma, self.tau = gamma, tau
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        counts = self._counts
        self.register_table("delta", (counts / counts.max()) ** self.gamma)
        self.register_table("iota", group_offsets(counts, self.gamma, self.tau, "log"))

    def forward(self, input: Tensor, target: Tensor, group: Tensor | None = None) -> Tensor:
        if (group is None) != (self.groups == 0):
            wanted = f"indices below {self.groups}" if self.groups else "none, counts are (2,)"
            raise ValueError(f"group: expected {wanted}, got {group if group is None else 'some'}")
        target = checked_targets(input, target)
        label = binary_labels(target)
        f = input.to(accumulate_dtype(input.dtype))

        def chosen(table: Tensor) -> Tensor:
            if group is None:
                return looked_up(table, label)
            return torch.where(
                label == 1, by_group(table[1], label, group), by_group(table[0], label, group)
            )

        f = f.masked_fill(label != target, math.nan)
        sign = 2 * label.to(f.dtype) - 1
        iota, delta = chosen(self.table("iota", input)), chosen(self.table("delta", input))
        margin = iota if self.form == "paper" else sign * iota
        ell = -logsigmoid(self.s * (delta * sign * f - margin))
        weights = torch.ones_like(ell) if self.weight is None else chosen(self.weight.to(f.dtype))
        return reduced(self.phi_of(ell) * weights, weights, self.reduction)


def group_offsets(counts: Tensor, gamma: float, tau: float, iota: str) -> Tensor:
    if iota == "log":
        return -tau * torch.log(counts / counts.sum())
    if iota == "power":
        return (counts / counts.max()) ** -gamma
    return torch.zeros_like(counts)


def by_group(table: Tensor, label: Tensor, group: Tensor) -> Tensor:
    """table[group], nan on CUDA (no synchronisation) and an error on the CPU where out of range."""
    if not isinstance(group, Tensor) or group.shape != label.shape or group.is_floating_point():
        got = f"{group.dtype} of shape {tuple(group.shape)}" if isinstance(group, Tensor) else group
        raise ValueError(f"group: expected indices of shape {tuple(label.shape)}, got {got}")
    group = group.long()
    bad = (group < 0) | (group >= len(table))
    if readable(group) and bool(bad.any()):
        raise ValueError(
            f"group: expected indices in [0, {len(table)}), got {int(group[bad].reshape(-1)[0])}"
        )
    return looked_up(table, group.clamp(0, len(table) - 1)).masked_fill(bad, math.nan)
