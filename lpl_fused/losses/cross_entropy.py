"""Cross-entropy as a module: the base of every loss that is a choice of tables."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .. import functional
from ..arguments import (
    CLASS_WEIGHTS,
    NOT_NEGATIVE,
    OFF_OR_NOT_NEGATIVE,
    SHARE,
    Choice,
    Either,
    Integer,
    Maybe,
    Number,
    Off,
    RealTensor,
    fixed,
    live,
    rebuilding,
)
from ..backends import BACKENDS, REFERENCE
from ..norm import Norm, checked_norm
from ..ops.dispatch import FORMS
from ..perturbation import Perturbation, chained
from ..phi import Focal, Phi, checked_phi
from ..problem import REDUCTIONS
from ..sharded import PartOfLayer, group_of, refused
from ..validation import EMPTY, Projected, Target
from .module import LossModule


def _checked_group(name: str, value: Any) -> Any:
    group_of(value)
    return value


REDUCTION = live(Choice(*REDUCTIONS))
GRADIENT = live(Choice(*FORMS))
NO_SOFTCAP = fixed(Off(Number(least=0, most=0)))  # of what looks at the logits themselves
BACKEND = live(Choice("auto", *BACKENDS, REFERENCE))
SMOOTHING = Either(SHARE, RealTensor(1, "a tensor (C,), one number in [0, 1] per class"))


class CrossEntropyLoss(LossModule):
    """`torch.nn.CrossEntropyLoss` on the fused kernels, with φ, z-loss, softcap and norm.

    The equation is that of `functional.cross_entropy`. Cost: plain cross-entropy, one read of the
    logits and one write of their gradient.

    Args:
        weight: (C,) class weights; a buffer, may be assigned at any time (DRW does).
        ignore_index, reduction, empty, label_smoothing, phi, z_loss, softcap, norm, gradient,
            backend: as in `functional.cross_entropy`. Losses that look at the logits themselves
            refuse a `softcap` by name.
        process_group: the ranks that have some of the classes each, as in
            `functional.cross_entropy`; counts and tables of the loss are those of all classes. For
            losses that are a choice of tables and keywords, and for `LPLLoss`. (Ranks that have
            other rows are `data_group`, of losses whose state they share.)

    Every argument may be assigned later, and acts on the next call as if it had been given here.

    Called with `perturbation=…` it applies those tables after its own (logit-adjusted CosFace,
    say); see `Perturbation.then`. Called with `normalizer=…`, beside reduction "sum", it divides by
    that: see `functional.cross_entropy`. Called with `return_stats=True` it gives (loss,
    `lpl_fused.RowStatistics`). `linear` takes features and a classifier's weight in place
    of logits; losses that look at these refuse it by name.

    Shapes: logits (C,), (N, C) or (N, C, d1, …); targets as in `functional.cross_entropy`.

    Raises:
        TypeError, ValueError: a bad argument, or one assigned later: the message names it.
        AttributeError: assigned to what a loss that builds on this one holds fixed.

    Examples:
        >>> logits = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
        >>> loss = losses.CrossEntropyLoss()(logits, torch.tensor([2]))
        >>> loss.backward()
        >>> logits.grad
        tensor([[ 0.6652,  0.2447, -0.9100]])
    """

    arguments: ClassVar = {
        "weight": live(CLASS_WEIGHTS),
        "ignore_index": live(Integer()),
        "reduction": REDUCTION,
        "empty": live(EMPTY),
        "label_smoothing": live(SMOOTHING),
        "phi": live(checked_phi),
        "z_loss": live(OFF_OR_NOT_NEGATIVE),
        "softcap": live(OFF_OR_NOT_NEGATIVE),
        "norm": live(checked_norm),
        "gradient": GRADIENT,
        "backend": BACKEND,
        "process_group": rebuilding(Maybe(_checked_group)),
    }

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        empty: str = "nan",
        label_smoothing: float = 0.0,
        phi: Phi = "log",
        z_loss: float = 0.0,
        softcap: float = 0.0,
        norm: Norm | None = None,
        gradient: str = "auto",
        backend: str = "auto",
        process_group: Any = None,
    ) -> None:
        super().__init__()
        self.process_group = process_group
        self.check_group()
        self.register_weight("weight", weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.empty = empty
        self.label_smoothing = label_smoothing
        self.phi = phi
        self.z_loss = z_loss
        self.softcap = softcap
        self.norm = norm
        self.gradient = gradient
        self.backend = backend

    def rebuild(self) -> None:
        super().rebuild()
        self.check_group()

    def check_group(self) -> None:
        """Raises ValueError where ranks have some of the classes each, and the loss wants all."""
        if self.process_group is not None and not self._has_parts():
            raise ValueError(
                f"process_group: {type(self).__name__} looks at the logits of all classes"
            )

    def _has_parts(self) -> bool:
        """Whether the loss of some of the classes is a part of that of all."""
        return type(self).forward is CrossEntropyLoss.forward

    def perturbation(self, logits: Tensor) -> Perturbation | None:
        """The tables of this loss for these logits; None leaves them as they are."""
        return None

    def keywords(self) -> dict[str, Any]:
        """What every call of a function of `functional` gets from this module."""
        beside = {} if self.process_group is None else {"process_group": self.process_group}
        return {
            **beside,
            "weight": self._buffers["weight"],  # as an attribute it is looked for elsewhere first
            "ignore_index": self.ignore_index,
            "reduction": self.reduction,
            "empty": self.empty,
            "label_smoothing": self.label_smoothing,
            "phi": self.phi,
            "z_loss": self.z_loss,
            "softcap": self.softcap,
            "norm": self.norm,
            "gradient": self.gradient,
            "backend": self.backend,
        }

    def forward(
        self,
        input: Tensor,
        target: Target,
        *,
        perturbation: Perturbation | None = None,
        normalizer: float | Tensor | None = None,
        return_stats: bool = False,
    ) -> Tensor:  # with return_stats (loss, RowStatistics); who calls a module gets Any
        try:
            tables = self.perturbation(input)
            if perturbation is not None:
                tables = chained(tables, perturbation)
        except Exception as error:
            refused(input, self.process_group, error)
            raise
        keywords = self.keywords()
        keywords["perturbation"] = tables
        if normalizer is not None:
            keywords["normalizer"] = normalizer
        if return_stats:
            keywords["return_stats"] = True
        loss: Tensor = functional.cross_entropy(input, target, **keywords)
        return loss

    @property
    def has_linear(self) -> bool:
        return self._has_parts()

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
        """The loss of the logits input·linear_weightᵀ + linear_bias, which nobody holds: they come
        in chunks, see `functional.linear_cross_entropy`, which says what shapes there are.

        Raises:
            NotImplementedError: a loss that builds on this one and looks at the logits themselves.
        """
        if type(self).forward is not CrossEntropyLoss.forward:
            return super().linear(input, linear_weight, target, linear_bias)
        try:
            layer = self.layer(input, linear_weight, linear_bias, target)
            tables = self.linear_perturbation(layer, perturbation)
        except Exception as error:
            refused(input, self.process_group, error)
            raise
        return functional.linear_cross_entropy(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            perturbation=tables,
            normalizer=normalizer,
            chunk_memory=chunk_memory,
            return_stats=return_stats,
            **self.keywords(),
        )

    def layer(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, target: Target
    ) -> Projected:
        """The layer that makes the logits, which may be of some of the classes."""
        kind = Projected if self.process_group is None else PartOfLayer
        return kind(input, weight, bias, target)

    def linear_perturbation(
        self, layer: Projected, after: Perturbation | None = None
    ) -> Perturbation | None:
        """The tables of this loss for a layer's logits, and those that come after them."""
        return chained(self.perturbation(layer.logits), after)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, ignore_index={self.ignore_index}, phi={self.phi!r}"


class FocalLoss(CrossEntropyLoss):
    """Focal loss (Lin et al., 2017): L = w_y·(1 − p_y)^γ·(−log p_y).

    Cost: φ, that of plain cross-entropy.

    Args:
        gamma: ≥ 0, default 2.0, the paper's; 0 is cross-entropy.
        **keywords: of `CrossEntropyLoss`. With `weight=effective_number_weights(…)` it is the
            class-balanced focal loss.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.FocalLoss(gamma=2.0)(logits, target)  # cross-entropy: 2.4076
        tensor(1.9936)
    """

    arguments: ClassVar = {"gamma": rebuilding(NOT_NEGATIVE), "phi": fixed(checked_phi)}

    def __init__(self, gamma: float = 2.0, **keywords: Any) -> None:
        super().__init__(phi=Focal(gamma), **keywords)
        self.gamma = gamma

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", Focal(self.gamma))
