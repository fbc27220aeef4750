"""Multi-label losses: binary cross-entropy under class tables, and LPL beneath any of them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..arguments import (
    BELOW_ONE,
    CONSUMED,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    REAL,
    Choice,
    Integer,
    Maybe,
    Number,
    RealTensor,
    fixed,
    live,
    rebuilding,
    shown,
)
from ..class_stats import Counts, checked_counts, effective_number
from ..multilabel import MISSING, MultiLabel
from ..perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from ..phi import Asymmetric, BinaryPhi, Focal, checked_binary_phi
from ..precision import full_precision
from ..problem import accumulate_dtype
from .cross_entropy import BACKEND, GRADIENT, REDUCTION
from .lpl import LPLLoss
from .module import LossModule, Reducing, of_part

AnyPerturbation = Perturbation | BinaryPerturbation


class MultiLabelLoss(LossModule):
    """`torch.nn.BCEWithLogitsLoss` on the fused kernels, with φ and missing labels.

    The equation is that of `functional.binary_cross_entropy_with_logits`. Called
    `loss(logits, labels)`; with `perturbation=…` that comes after the loss's own. Cost: one sweep.

    Args:
        weight, pos_weight: as in `torch.nn.BCEWithLogitsLoss`; buffers.
        ignore_index, reduction, phi, gradient, backend: as in
            `functional.binary_cross_entropy_with_logits`.

    Every argument may be assigned later, as of `CrossEntropyLoss`.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]])
        >>> losses.MultiLabelLoss(reduction="none")(logits, labels)
        tensor([[0.4741, 0.3133]])
    """

    arguments: ClassVar = {
        "weight": live(Maybe(RealTensor())),
        "pos_weight": live(Maybe(RealTensor())),
        "ignore_index": live(MISSING),
        "reduction": REDUCTION,
        "phi": live(checked_binary_phi),
        "gradient": GRADIENT,
        "backend": BACKEND,
    }

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        pos_weight: Tensor | None = None,
        ignore_index: float | None = None,
        reduction: str = "mean",
        phi: BinaryPhi = "log",
        gradient: str = "auto",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.register_weight("weight", weight)
        self.register_weight("pos_weight", pos_weight)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.phi, self.gradient, self.backend = phi, gradient, backend

    def perturbation(self, logits: Tensor) -> AnyPerturbation | None:
        """The tables of this loss for these logits; None leaves them as they are."""
        return None

    def keywords(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        """What every call of a function of `functional` gets from this module."""
        return {
            "weight": self.weight,
            "pos_weight": self.pos_weight,
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "phi": self.phi,
            "gradient": self.gradient,
            "backend": self.backend,
        }

    def tables(
        self, logits: Tensor, perturbation: AnyPerturbation | None
    ) -> AnyPerturbation | None:
        own = self.perturbation(logits)
        if own is None or perturbation is None:
            return perturbation if own is None else own
        return BinaryPerturbation.of(own).then(perturbation)

    def beneath(
        self, logits: Tensor, labels: Tensor, perturbation: AnyPerturbation | None
    ) -> AnyPerturbation | None:
        """All that this loss does to the logits: what LPL on top of it finds there."""
        return self.tables(logits, perturbation)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        perturbation: AnyPerturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            input,
            target,
            perturbation=self.tables(input, perturbation),
            normalizer=normalizer,
            **self.keywords(input, target),
        )

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, phi={self.phi!r}"


class MultiLabelLDAMLoss(MultiLabelLoss):
    """LDAM for multi-label data, a baseline of Wu et al. (2020): z = s·(u − m_k·1[Y_ik = 1]).

        m_k = max_m·(n_k/n_min)^(−1/4)

    Cost: tables, one sweep.

    Args:
        cls_num_list: (C,) positive training samples per class.
        max_m: margin of the rarest class, default 0.5; s: scale, default 1 (raw logits).
        **keywords: of `MultiLabelLoss`.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 1.0]])
        >>> losses.MultiLabelLDAMLoss([100, 1], reduction="none")(logits, labels)
        tensor([[0.5367, 0.6931]])
    """

    arguments: ClassVar = {"cls_num_list": CONSUMED, "max_m": rebuilding(REAL), "s": live(POSITIVE)}

    def __init__(
        self, cls_num_list: Counts, max_m: float = 0.5, s: float = 1.0, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self._counts = checked_counts(cls_num_list, filled=True)
        self.s, self.max_m = s, max_m
        self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        counts = self._counts
        self.register_table("margin", self.max_m * (counts / counts.min()) ** -0.25)

    def perturbation(self, logits: Tensor) -> AnyPerturbation | None:
        return Perturbation(margin=self.table("margin", logits), temperature=1 / self.s)


class AsymmetricLoss(MultiLabelLoss):
    """Asymmetric loss (ASL; Ridnik et al., 2021): rare positives kept, easy negatives let go.

        L_ik = Y·(1 − p)^γ⁺·(−log p) + (1 − Y)·p_m^γ⁻·(−log(1 − p_m)),   p = σ(u_ik),
        p_m  = max(p − clip, 0)

    A negative whose probability is `clip` or less costs nothing and gets no gradient. The authors'
    code sums the losses (`reduction="sum"`), has `gamma_pos=1.0` and `detach=True` by default, and
    cuts log p at 1e-8, which is not done here. Cost: φ, one sweep.

    Args:
        gamma_pos: γ⁺ ≥ 0, default 0.0, the paper's.
        gamma_neg: γ⁻ ≥ 0, default 4.0, the paper's.
        clip: probability in [0, 1) taken off negatives, default 0.05, the paper's.
        detach: no gradient of the powers (the code's `disable_torch_grad_focal_loss`), default
            False: the gradient is that of the equation.
        **keywords: of `MultiLabelLoss`, but `phi`.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, -1.0, -4.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> losses.AsymmetricLoss(reduction="none")(logits, labels)
        tensor([[0.4741, 0.0006, 0.0000]])
    """

    arguments: ClassVar = {
        "gamma_pos": rebuilding(NOT_NEGATIVE),
        "gamma_neg": rebuilding(NOT_NEGATIVE),
        "clip": rebuilding(BELOW_ONE),
        "detach": rebuilding(FLAG),
        "phi": fixed(checked_binary_phi),
    }

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        *,
        detach: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(phi=Asymmetric(gamma_pos, gamma_neg, clip, detach), **keywords)
        self.gamma_pos, self.gamma_neg, self.clip, self.detach = gamma_pos, gamma_neg, clip, detach

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", Asymmetric(self.gamma_pos, self.gamma_neg, self.clip, self.detach))


WEIGHTINGS = ("rebalance", "inverse", "sqrt-inverse", "class-balanced")
WEIGHTING_MODES = ("by-class", "average-weight", "average-count", "min-count")
WEIGHT_NORMS = ("by-row", "by-batch")


class DistributionBalancedLoss(MultiLabelLoss):
    """Distribution-balanced loss (Wu, Huang, Liu, Wang, Lin, 2020) and the family of its parts:

        L_ik = b·w_ik·( Y·φ(softplus(−z)) + (1 − Y)·φ(softplus(λz))/λ ),   z = u + ν_k
        ν_k  = −κ·log(N/n_k − 1)                          negative-tolerant regularisation (NTR)
        w_ik = α + σ(β·(r_ik − μ)),  r_ik = (1/n_k)/Σ_{j: Y_ij=1} 1/n_j         re-balanced weights
        φ(ℓ) = (1 − e^(−ℓ))^γ·ℓ                                                         focal

    | name in the literature | weighting | ntr | focal |
    |---|---|---|---|
    | DB, DB-0FL | "rebalance" | True | True, False |
    | R-BCE, R-BCE-Focal | "rebalance" | False | False, True |
    | NTR, NTR-Focal | None | True | False, True |
    | CB-NTR, CB-Focal | "class-balanced" | True, False | True |
    | RW | "inverse", "sqrt-inverse" | False | False |

    The weight matrix is never formed: the kernel adds up 1/n over a row's labels. Counts that would
    give an infinite table are taken as the nearest that do not: n_k = 0 as 1, n_k = N as N − 1.
    Cost: tables, one sweep.

    Args:
        cls_num_list: (C,) positive training samples n_k per class.
        num_samples: N, training samples; at least every n_k, and 2.
        weighting: "rebalance"; "inverse" N/n_k; "sqrt-inverse" its root; "class-balanced"
            (1 − β')/(1 − β'^n_k); None.
        weighting_mode: what a weighting by class weighs. "by-class" (default): a logit by its
            class; else a row, by the mean weight of its positives ("average-weight", the authors'
            for class-balanced), the weight of their mean count ("average-count") or of their
            least ("min-count"); 1 where it has none.
        weight_norm: divide weights by the largest of their row, "by-row", or of the batch,
            "by-batch"; default None.
        ntr, focal: the parts.
        alpha, beta, mu: default 0.1, 10, 0.2, the authors' for COCO-MLT (VOC-MLT: mu 0.3).
        neg_scale: λ > 0, default 2.0 (COCO-MLT; VOC-MLT 5.0).
        init_bias: κ, default 0.05.
        ntr_bias_div: divide ν by λ, as the authors' code does and a later one calls a slip; default
            False.
        gamma: default 2.0. balance: b, default 2.0, with focal alone.
        cb_beta: β' in [0, 1), default 0.9, the authors'.
        **keywords: of `MultiLabelLoss`, but `phi`.

    Its own arguments are read-only, those of `MultiLabelLoss` may be assigned.

    Raises:
        ValueError: bad counts, weighting or numbers.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 1.0]])
        >>> losses.DistributionBalancedLoss([100, 5], 200, reduction="none")(logits, labels)
        tensor([[0.0377, 1.8690]])
    """

    arguments: ClassVar = {
        "cls_num_list": CONSUMED,
        "num_samples": fixed(Integer(least=2)),
        "weighting": fixed(Maybe(Choice(*WEIGHTINGS))),
        "weighting_mode": fixed(Choice(*WEIGHTING_MODES)),
        "weight_norm": fixed(Maybe(Choice(*WEIGHT_NORMS))),
        "ntr": fixed(FLAG),
        "focal": fixed(FLAG),
        "alpha": fixed(REAL),
        "beta": fixed(REAL),
        "mu": fixed(REAL),
        "neg_scale": fixed(POSITIVE),
        "init_bias": fixed(REAL),
        "ntr_bias_div": fixed(FLAG),
        "gamma": fixed(Number(least=0)),
        "balance": fixed(POSITIVE),
        "cb_beta": fixed(Number(least=0, below=1)),
        "phi": fixed(checked_binary_phi),
    }

    def __init__(
        self,
        cls_num_list: Counts,
        num_samples: int,
        *,
        weighting: str | None = "rebalance",
        weighting_mode: str = "by-class",
        weight_norm: str | None = None,
        ntr: bool = True,
        focal: bool = True,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        neg_scale: float = 2.0,
        init_bias: float = 0.05,
        ntr_bias_div: bool = False,
        gamma: float = 2.0,
        balance: float = 2.0,
        cb_beta: float = 0.9,
        **keywords: Any,
    ) -> None:
        super().__init__(phi=Focal(gamma) if focal else "log", **keywords)
        counts = checked_counts(cls_num_list)
        self.num_samples = num_samples
        if counts.max() > self.num_samples:
            raise ValueError(
                f"num_samples: expected at least 2 and every count, got {num_samples} beside a"
                f" count of {counts.max().item():g}"
            )
        self.weighting, self.weighting_mode, self.ntr = weighting, weighting_mode, ntr
        self.weight_norm, self.cb_beta, self.focal = weight_norm, cb_beta, focal
        self.alpha, self.beta, self.mu, self.gamma = alpha, beta, mu, gamma
        self.init_bias, self.ntr_bias_div = init_bias, ntr_bias_div
        if weighting_mode != "by-class" and weighting in ("rebalance", None):
            raise ValueError(f"weighting_mode: needs a weighting by class, got {weighting!r}")
        if weight_norm is not None and weighting is None:
            raise ValueError("weight_norm: needs a weighting, got None")
        neg_scale, balance = POSITIVE("neg_scale", neg_scale), POSITIVE("balance", balance)
        self.neg_scale = neg_scale if ntr else 1.0
        self.balance = balance if focal else 1.0
        counts = counts.clamp(1, self.num_samples - 1)
        self.register_table("inverse_count", 1 / counts)
        bias = -torch.log(self.num_samples / counts - 1) * self.init_bias
        self.register_table("bias", bias / neg_scale if ntr_bias_div else bias)
        self.register_table("class_weight", self._weight_of(counts))

    @property
    def numbers(self) -> dict[str, float]:
        """α, β and μ of the re-balanced weights."""
        return {"alpha": self.alpha, "beta": self.beta, "mu": self.mu}

    def _weight_of(self, counts: Tensor) -> Tensor:
        """The weight of classes with so many samples, by a weighting by class."""
        if self.weighting in ("rebalance", None):
            return torch.ones((), device="cpu")
        if self.weighting == "class-balanced":
            return 1 / effective_number(counts, self.cb_beta)
        ratio = self.num_samples / counts
        return ratio if self.weighting == "inverse" else ratio.sqrt()

    def perturbation(self, logits: Tensor) -> AnyPerturbation | None:
        if not self.ntr:
            return None
        moved = Perturbation(offset=self.table("bias", logits))
        # of negatives λ·(u + ν): its 1/λ is among the weights
        return BinaryPerturbation(
            moved, Perturbation(offset=moved.offset, temperature=1 / self.neg_scale)
        )

    def keywords(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        with full_precision(logits.device):
            return self._weighted_keywords(logits, labels)

    def _weighted_keywords(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        keywords = super().keywords(logits, labels)
        inverse = self.table("inverse_count", logits)
        own: Tensor | None = None
        if self.weighting == "rebalance":
            keywords["rebalance"] = RebalancedWeight(inverse, **self.numbers)
            own = (
                None if self.weight_norm is None else 1 / self._largest_rebalanced(labels, inverse)
            )
        elif self.weighting is not None:
            own = self._class_weights(labels, self.table("class_weight", logits), inverse)
        if own is not None:
            given = keywords["weight"]
            keywords["weight"] = own if given is None else own * given
        if self.balance != 1:
            factor = inverse.new_full((), self.balance)
            given = keywords["pos_weight"]
            keywords["pos_weight"] = factor if given is None else given * factor
        negative = self.balance / self.neg_scale
        if negative != 1:
            keywords["neg_weight"] = inverse.new_full((), negative)
        return keywords

    def _positives(self, labels: Tensor, like: Tensor) -> Tensor:
        """(…, C): the labels as numbers, 0 where they are missing."""
        y = labels.to(like.dtype)
        if self.ignore_index is None:
            return y
        return y.masked_fill((y == self.ignore_index) | y.isnan(), 0)

    def _class_weights(self, labels: Tensor, weight: Tensor, inverse_count: Tensor) -> Tensor:
        """(C,) or, by row, (…, 1): normalised weights of a weighting by class."""
        if self.weighting_mode != "by-class":
            y = self._positives(labels, weight)
            count, n = y.sum(-1), 1 / inverse_count
            some = count.where(count > 0, 1.0)  # what `where` leaves out has no gradient of nan
            if self.weighting_mode == "average-weight":
                weight = y @ weight / some
            elif self.weighting_mode == "average-count":
                weight = self._weight_of(y @ n / some)
            else:
                weight = self._weight_of(n.where(y > 0, math.inf).amin(-1))
            weight = weight.where(count > 0, 1.0)[..., None]
        return weight if self.weight_norm is None else weight / self._largest(weight)

    def _largest(self, weight: Tensor) -> Tensor:
        """(…, 1) or 0-dim: the largest of each row of weights, or of all; 1 if there are none."""
        if self.weight_norm == "by-row":
            return weight.amax(-1, keepdim=True)
        return weight.max() if weight.numel() else weight.new_ones(())

    def _largest_rebalanced(self, labels: Tensor, inverse_count: Tensor) -> Tensor:
        """(…, 1) or 0-dim: the largest re-balanced weight of each row, or of the batch."""
        alpha, beta, mu = self.numbers.values()
        # the weight is monotonic in the class's 1/n
        ends = torch.stack(inverse_count.aminmax())
        ratio = ends / (self._positives(labels, inverse_count) @ inverse_count)[..., None]
        return self._largest(alpha + torch.sigmoid(beta * (ratio - mu)))

    def extra_repr(self) -> str:
        parts = f"weighting={self.weighting!r}, weighting_mode={self.weighting_mode!r}"
        parts += f", weight_norm={self.weight_norm!r}, ntr={self.ntr}, neg_scale={self.neg_scale}"
        return f"{parts}, balance={self.balance}, {super().extra_repr()}"


def _multi_label(name: str, base: Any) -> MultiLabelLoss:
    """A base, as a check."""
    if not isinstance(base, MultiLabelLoss):
        raise TypeError(f"{name}: expected a MultiLabelLoss, got {shown(base)}")
    return base


class MultiLabelLPLLoss(MultiLabelLoss):
    """Multi-label LPL: each class's logits perturbed by a δ⁺ and a δ⁻ learned in every batch.

    The loss is `functional.lpl_binary_cross_entropy_with_logits`, on top of `base`: a
    `MultiLabelLoss`, say a `DistributionBalancedLoss`, whose tables come first (δ is added to the
    logits that it hands to the sigmoid, as LA+LPL adds it to adjusted logits). Which classes are
    raised or lowered, and how far, is chosen as in `LPLLoss`: split "long-tail" from counts of
    positives, "balanced" from q̄_k, the mean of σ(u_ik) over the class's positives in the batch
    (one more sweep). The authors published no multi-label code; this is our reading. Cost: that of
    `base`, and a sweep down the columns.

    In `eval()` mode there is no learned perturbation and no statistic is touched.

    `reduction`, `weight` and the other arguments of `MultiLabelLoss` are the base's, read and
    assigned there. The base may be such a loss itself: this one learns on what that one does.

    Args:
        cls_num_list: (C,) positive training samples per class.
        base: the loss beneath; default `MultiLabelLoss()`.
        normalize: steps of length α, closed form; False takes the plain gradient's.
        split, head, epsilon, delta_epsilon, step_size, statistics, momentum, data_group: of
            `LPLLoss`; running means leave out positives whose logit is not finite.
        **keywords: of `MultiLabelLoss`, for the default base alone.

    Raises:
        ValueError: as `LPLLoss`; keywords beside a base.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 1.0]])
        >>> criterion = losses.MultiLabelLPLLoss([100, 1], reduction="none")
        >>> criterion(logits, labels)
        tensor([[0.2204, 1.3133]])
        >>> criterion.eval()(logits, labels)  # binary cross-entropy
        tensor([[0.4741, 0.4741]])
    """

    arguments: ClassVar = {
        **{
            name: LPLLoss.arguments[name]
            for name in ("cls_num_list", "head", "split", "statistics", "epsilon", "delta_epsilon")
        },
        **{name: LPLLoss.arguments[name] for name in ("step_size", "momentum", "normalize")},
        "data_group": Reducing.arguments["data_group"],
        "base": live(_multi_label),
    }

    # the base's
    weight = of_part("weight")
    pos_weight = of_part("pos_weight")
    ignore_index = of_part("ignore_index")
    reduction = of_part("reduction")
    phi = of_part("phi")
    gradient = of_part("gradient")
    backend = of_part("backend")
    # of how the steps are chosen
    split = of_part("split", "bounds")
    epsilon = of_part("epsilon", "bounds")
    delta_epsilon = of_part("delta_epsilon", "bounds")
    step_size = of_part("step_size", "bounds")
    statistics = of_part("statistics", "bounds")
    momentum = of_part("momentum", "bounds")
    data_group = of_part("data_group", "bounds")

    def __init__(
        self,
        cls_num_list: Counts,
        base: MultiLabelLoss | None = None,
        *,
        normalize: bool = True,
        split: str = "long-tail",
        head: int | float | None = None,
        epsilon: float | None = None,
        delta_epsilon: float | tuple[float, float] | None = None,
        step_size: float | None = None,
        statistics: str = "batch",
        momentum: float = 0.9,
        data_group: Any = None,
        **keywords: Any,
    ) -> None:
        if base is not None and keywords:
            raise ValueError(f"{next(iter(keywords))}: give it to the base")
        LossModule.__init__(self)  # what MultiLabelLoss holds is the base's
        self.base = MultiLabelLoss(**keywords) if base is None else base
        self.bounds = LPLLoss(
            cls_num_list,
            split=split,
            head=head,
            epsilon=epsilon,
            delta_epsilon=delta_epsilon,
            step_size=step_size,
            statistics=statistics,
            momentum=momentum,
            data_group=data_group,
        )
        self.normalize = normalize

    def steps(self, input: Tensor, target: Tensor) -> Tensor:
        """(C,) signed step counts; running means of "balanced" are updated."""
        if self.bounds.split == "long-tail":
            return self.bounds.steps
        with torch.no_grad():
            MultiLabel(input, target)  # says what is wrong with them
            target = target.to(accumulate_dtype(input.dtype))
            if self.bounds.statistics == "ema":
                fit = input.isfinite()
                input, target = input.masked_fill(~fit, 0), target.masked_fill(~fit, 0)
            y = target.reshape(-1, input.shape[-1])
            present = (
                y > 0 if self.base.ignore_index is None else (y > 0) & (y != self.base.ignore_index)
            )
            # one step of length one leads to mean (σ(u) − 1)
            once = torch.ones(input.shape[-1], dtype=torch.int32, device=input.device)
            moved, _ = functional.lpl_binary_perturbation(
                input,
                target,
                once,
                step_size=1.0,
                ignore_index=self.base.ignore_index,
                backend=self.base.backend,
            )
            return self.bounds.steps_of_means(1 + moved, present.sum(0))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        perturbation: AnyPerturbation | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Tensor:
        if not self.training:
            return self.base(  # type: ignore[no-any-return]
                input, target, perturbation=perturbation, normalizer=normalizer
            )
        return functional.lpl_binary_cross_entropy_with_logits(
            input,
            target,
            self.steps(input, target),
            step_size=self.bounds.step_size,
            normalize=self.normalize,
            perturbation=self.base.beneath(input, target, perturbation),
            normalizer=normalizer,
            **self.base.keywords(input, target),
        )

    def perturbation(self, logits: Tensor) -> AnyPerturbation | None:
        return self.base.perturbation(logits)

    def keywords(self, logits: Tensor, labels: Tensor) -> dict[str, Any]:
        return self.base.keywords(logits, labels)

    def beneath(
        self, logits: Tensor, labels: Tensor, perturbation: AnyPerturbation | None
    ) -> AnyPerturbation | None:
        under = self.base.beneath(logits, labels, perturbation)
        if not self.training:
            return under
        sides = functional.lpl_binary_perturbation(
            logits,
            labels,
            self.steps(logits, labels),
            step_size=self.step_size,
            normalize=self.normalize,
            perturbation=under,
            ignore_index=self.ignore_index,
            backend=self.backend,
        )
        learned = BinaryPerturbation(*(Perturbation(offset=side) for side in sides))
        return BinaryPerturbation.of(under).then(learned)

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}"
