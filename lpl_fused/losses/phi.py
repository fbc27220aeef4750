"""Losses that are a choice of φ, of smoothing, or penalise logsumexp."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import functional
from ..arguments import (
    CLASS_WEIGHTS,
    CONSUMED,
    NOT_NEGATIVE,
    REAL,
    SHARE,
    Choice,
    Integer,
    Number,
    fixed,
    is_integer,
    live,
    rebuilding,
    shown,
)
from ..norm import checked_norm
from ..perturbation import Perturbation
from ..phi import GCE, Alpha, Poly1, checked_phi
from ..problem import is_ignored
from ..row_transforms import class_dim
from ..tracing import readable
from .cross_entropy import CrossEntropyLoss
from .module import Reducing
from .rows import class_indices, looked_up, reduced, row_weights


class AlphaLoss(CrossEntropyLoss):
    """α-loss (Sypherd et al., 2022): L = Σ_j t_j·(1 − p_j^κ)/κ, κ = 1 − 1/α, for one-hot t φ(ℓ_y).

    α = 1 is cross-entropy, α = ∞ is 1 − p_y. The authors' networks end in a sigmoid before this
    softmax; nothing here does. Two classes with one logit: `BinaryAlphaLoss`. Cost: that of plain
    cross-entropy.

    Args:
        alpha: α in (0, ∞]; > 1 resists label noise, < 1 stresses rare classes. Default 2.0, from
            the middle of the authors' grid of 0.8 to 4.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: `alpha` is not positive.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.AlphaLoss(alpha=2.0)(logits, target)  # cross-entropy: 2.4076
        tensor(1.3999)
    """

    arguments: ClassVar = {
        "alpha": rebuilding(Number(above=0, infinite=True)),
        "phi": fixed(checked_phi),
    }

    def __init__(self, alpha: float = 2.0, **keywords: Any) -> None:
        super().__init__(phi=Alpha(alpha), **keywords)
        self.alpha = alpha

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", Alpha(self.alpha))


class GCELoss(CrossEntropyLoss):
    """Generalised cross-entropy (Zhang & Sabuncu, 2018): L = (1 − p_y^q)/q.

    Cost: that of plain cross-entropy.

    Args:
        q: in [0, 1], default 0.7, the paper's.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: `q` outside [0, 1].

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.GCELoss(q=0.7)(logits, target)  # cross-entropy: 2.4076
        tensor(1.1637)
    """

    arguments: ClassVar = {"q": rebuilding(SHARE), "phi": fixed(checked_phi)}

    def __init__(self, q: float = 0.7, **keywords: Any) -> None:
        super().__init__(phi=GCE(q), **keywords)
        self.q = q

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", GCE(self.q))


class TruncatedGCELoss(Reducing, CrossEntropyLoss):
    """Truncated GCE (Zhang & Sabuncu, 2018): L_i = v_i·(φ(ℓ_i) − φ(−log k)), φ = (1 − p^q)/q.

    v_i ∈ {0, 1} says whether training sample i is kept: all are at first, `update` keeps those with
    p_y > k. The mean divides by all rows (Σ w_y), pruned ones included, as the authors' code does.
    Cost: that of plain cross-entropy, and of one more where `update` is called.

    State: `kept` (num_samples,). With torch.distributed `update` is collective and leaves all ranks
    with the same `kept`; see `Reducing`.

    Args:
        num_samples: of the training set.
        q: in [0, 1], default 0.7, the paper's; 0 is the truncated log loss.
        k: in (0, 1), default 0.5, the paper's.
        **keywords: `data_group`, and those of `CrossEntropyLoss`; `label_smoothing` must stay 0.

    Called `loss(logits, target, index)`, `index` the sample numbers, of the target's shape.

    Raises:
        ValueError: bad numbers; when called, a target that is not class indices or, on the CPU,
            sample numbers out of range (a device assertion on CUDA).

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]] * 2), torch.tensor([0, 2])
        >>> index = torch.tensor([7, 3])  # which training samples these are
        >>> criterion = losses.TruncatedGCELoss(num_samples=10, k=0.5)
        >>> criterion.update(logits, target, index)
        >>> criterion.kept[index]
        tensor([ True, False])
        >>> criterion(logits, target, index)
        tensor(-0.0973)
    """

    arguments: ClassVar = {
        "num_samples": CONSUMED,
        "q": rebuilding(SHARE),
        "k": live(Number(above=0, below=1)),
        "phi": fixed(checked_phi),
        "label_smoothing": fixed(Number(least=0, most=0)),
    }

    kept: Tensor

    def __init__(self, num_samples: int, q: float = 0.7, k: float = 0.5, **keywords: Any) -> None:
        super().__init__(phi=GCE(q), **keywords)
        num_samples = Integer(least=1)("num_samples", num_samples)
        self.q, self.k = q, k
        self.register_buffer("kept", torch.ones(num_samples, dtype=torch.bool))

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", GCE(self.q))

    @property
    def bound(self) -> float:
        """φ(−log k), what the loss of a row is truncated at."""
        p = torch.tensor(self.k, dtype=torch.float64, device="cpu")
        return float(-p.log() if self.q == 0 else (1 - p**self.q) / self.q)

    def _indices(self, target: Tensor, index: Tensor) -> Tensor:
        if not isinstance(index, Tensor) or not is_integer(index) or index.shape != target.shape:
            raise ValueError(
                f"index: expected sample numbers of shape {tuple(target.shape)}, got {shown(index)}"
            )
        index = index.long()
        bad = (index < 0) | (index >= len(self.kept))
        if readable(index) and bool(bad.any()):
            raise ValueError(
                f"index: expected sample numbers in [0, {len(self.kept)})"
                f", got {int(index[bad].reshape(-1)[0])}"
            )
        return index

    @torch.no_grad()
    def update(
        self, input: Tensor, target: Tensor, index: Tensor, perturbation: Perturbation | None = None
    ) -> None:
        """Keeps those of the given samples with ℓ_i < −log k, prunes the others; of a sample whose
        ℓ is not finite nothing changes.

        The authors sweep the training set from epoch 40 on, every 10th epoch, with the best model.
        """
        label = class_indices(input, target, self)
        value = functional.cross_entropy(
            input,
            target,
            perturbation=perturbation,
            ignore_index=self.ignore_index,
            reduction="none",
            softcap=self.softcap,
            norm=self.norm,
            backend=self.backend,
        )
        numbers = self._indices(label, index)
        unknown = is_ignored(target, self.ignore_index) | ~value.isfinite()
        fresh = torch.where(unknown, self.kept[numbers], value < -math.log(self.k))
        numbers, fresh = numbers.flatten(), fresh.flatten()
        self.kept[self.joined_rows(numbers)] = self.joined_rows(fresh)

    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        target: Tensor,
        index: Tensor,
        *,
        perturbation: Perturbation | None = None,
    ) -> Tensor:
        label = class_indices(input, target, self)
        kept = looked_up(self.kept, self._indices(label, index))
        value = functional.cross_entropy(
            input, target, perturbation=perturbation, **{**self.keywords(), "reduction": "none"}
        )
        weights = row_weights(target, label, value, self)
        value = torch.where(kept, value - weights * self.bound, 0.0)
        return reduced(value, weights, self.reduction, self.empty)


class Poly1Loss(CrossEntropyLoss):
    """Poly-1 (Leng et al., 2022): L = ℓ + ε·(1 − p_y).

    Cost: that of plain cross-entropy.

    Args:
        epsilon: finite; default 2.0, the paper's for ImageNet.
        **keywords: of `CrossEntropyLoss`.

    Raises:
        ValueError: `epsilon` is not finite.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.Poly1Loss(epsilon=2.0)(logits, target)  # cross-entropy: 2.4076
        tensor(4.2275)
    """

    arguments: ClassVar = {"epsilon": rebuilding(REAL), "phi": fixed(checked_phi)}

    def __init__(self, epsilon: float = 2.0, **keywords: Any) -> None:
        super().__init__(phi=Poly1(epsilon), **keywords)
        self.epsilon = epsilon

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("phi", Poly1(self.epsilon))


class ZLoss(CrossEntropyLoss):
    """z-loss (Chowdhery et al., 2022): L = ℓ + λ·logsumexp(u)², keeps softmax normalised.

    Cost: that of plain cross-entropy.

    Args:
        strength: λ ≥ 0, default 1e-4, PaLM's.
        **keywords: of `CrossEntropyLoss`, `z_loss` apart.

    Raises:
        ValueError: λ negative or not finite.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> losses.ZLoss(strength=1e-4)(logits, target)  # cross-entropy: 2.4076
        tensor(2.4082)
    """

    arguments: ClassVar = {"strength": rebuilding(NOT_NEGATIVE), "z_loss": fixed(NOT_NEGATIVE)}

    def __init__(self, strength: float = 1e-4, **keywords: Any) -> None:
        strength = NOT_NEGATIVE("strength", strength)
        super().__init__(z_loss=strength, **keywords)
        self.strength = strength

    def rebuild(self) -> None:
        super().rebuild()
        self.derived("z_loss", self.strength)


class T5XCrossEntropyLoss(CrossEntropyLoss):
    """Cross-entropy as T5X smooths it: L = KL(t ‖ softmax(u)) + λ·logsumexp(u)².

    t_y = 1 − ε, t_j = ε/(C − 1) for j ≠ y, where torch's smoothing has t_j = ε/C for all j; and the
    entropy of t is taken off, so that a perfect prediction costs nothing. Cost: that of plain
    cross-entropy.

    Args:
        label_smoothing: ε in [0, (C − 1)/C], default 0.0.
        z_loss: λ ≥ 0, default 0.0; 1e-4 is PaLM's.
        softcap, ignore_index, reduction, empty, backend: of `CrossEntropyLoss`.

    Raises:
        TypeError: `label_smoothing` is a tensor.
        ValueError: when called, ε or λ out of range, or a target that is not class indices.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
        >>> losses.T5XCrossEntropyLoss(label_smoothing=0.1)(logits, target)
        tensor(0.1632)
    """

    arguments: ClassVar = {
        "label_smoothing": live(SHARE),
        "weight": fixed(CLASS_WEIGHTS),
        "phi": fixed(checked_phi),
        "norm": fixed(checked_norm),
        "gradient": fixed(Choice("auto")),
    }

    def __init__(
        self,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        *,
        softcap: float = 0.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        empty: str = "nan",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            reduction=reduction,
            empty=empty,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            softcap=softcap,
            backend=backend,
        )

    def forward(  # type: ignore[override]
        self, input: Tensor, target: Tensor, *, perturbation: Perturbation | None = None
    ) -> Tensor:
        label = class_indices(input, target, self)
        rivals = input.shape[class_dim(input)] - 1
        epsilon = self.label_smoothing
        if epsilon * (rivals + 1) > rivals:
            raise ValueError(
                f"label_smoothing: expected a number in [0, {rivals}/{rivals + 1}], got {epsilon}"
            )
        smoothing = epsilon * (rivals + 1) / max(rivals, 1)  # torch's, of the same t
        keywords = {**self.keywords(), "label_smoothing": smoothing, "reduction": "none"}
        value = functional.cross_entropy(input, target, perturbation=perturbation, **keywords)
        weights = row_weights(target, label, value, self)
        entropy = 0.0
        if epsilon > 0:
            entropy = -(1 - epsilon) * math.log1p(-epsilon) - epsilon * math.log(epsilon / rivals)
        return reduced(value - weights * entropy, weights, self.reduction, self.empty)
