"""The fixed perturbation of the logits: the tables of one small algebra, for both links."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from torch import Tensor


@dataclass(frozen=True)
class Perturbation:
    """Class-level perturbation of logits u of shape (N, C):

        z[i, j] = (scale[j]·u[i, j] + offset[j] − margin[y_i]·1[j = y_i] + rows[r_i, j])
                  / temperature

    Every table is optional; none at all leaves the logits as they are. Tables may require grad
    (learnable temperature, learnable offsets): they then receive theirs.

    Args:
        scale: (C,), multiplies the logits of class j (CDT, VS loss).
        offset: (C,), added to the logits of class j (logit adjustment, balanced softmax).
        margin: (C,), taken from the logit of the target class alone (LDAM, CosFace). Needs class
            indices as the target.
        rows: (R, C), one row of additive logits per sample (ISDA, any fixed δ_y).
        row_index: which row a sample takes, an integer tensor of the target's shape, values in
            [0, R). Left out, a sample takes the row of its target class, and R must be C.
        temperature: number or 0-dim tensor, > 0; a scale s (LDAM's 30, CosFace's 64) is the
            temperature 1/s.

    Tables are kept in float32 (float64 beside float64 logits) whatever the dtype of the logits;
    shapes and dtypes are checked when the perturbation meets its logits.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> moved = lpl_fused.Perturbation(margin=torch.tensor([0.1, 0.2, 0.5]), temperature=0.5)
        >>> LF.cross_entropy(logits, target, perturbation=moved)
        tensor(5.1328)
    """

    scale: Tensor | None = None
    offset: Tensor | None = None
    margin: Tensor | None = None
    rows: Tensor | None = None
    row_index: Tensor | None = None
    temperature: float | Tensor = 1.0

    def then(self, other: Perturbation) -> Perturbation:
        """The one perturbation that does what `self` and after it `other` do.

        Raises:
            ValueError: both bring `rows`, and not both by target class: no one row would fit.
        """
        first, second = self, other
        both = first.rows is not None and second.rows is not None
        if both and (first.row_index is not None or second.row_index is not None):
            raise ValueError(
                "rows: both perturbations bring rows; expected at most one of them, or both"
                " without row_index"
            )
        index = first.row_index if first.row_index is not None else second.row_index
        temperature = first.temperature

        def scaled(table: Tensor | None) -> Tensor | None:
            return table if second.scale is None or table is None else table * second.scale

        def sum_of(before: Tensor | None, after: Tensor | None) -> Tensor | None:
            if after is None:
                return scaled(before)
            plain = isinstance(temperature, float) and temperature == 1
            after = after if plain else after * temperature
            before = scaled(before)
            return after if before is None else before + after

        return Perturbation(
            scale=second.scale if first.scale is None else scaled(first.scale),
            offset=sum_of(first.offset, second.offset),
            margin=sum_of(first.margin, second.margin),
            rows=sum_of(first.rows, second.rows),
            row_index=index,
            temperature=temperature * second.temperature,
        )


@dataclass(frozen=True)
class BinaryPerturbation:
    """Perturbation of multi-label logits u that depends on the label:

        z⁺[i, k] = positive(u)[i, k]   where Y_ik = 1
        z⁻[i, k] = negative(u)[i, k]   where Y_ik = 0

    A soft label Y weighs the loss of z⁺ by Y and that of z⁻ by 1 − Y. Each side is a `Perturbation`
    with `scale`, `offset` and `temperature`, all optional; None leaves its logits as they are. A
    `Perturbation` P given instead is the same on both sides, but for its `margin`, which is taken
    from positives alone.

    Args:
        positive: what positives undergo.
        negative: what negatives undergo.

    Examples:
        >>> logits, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
        >>> rare = lpl_fused.Perturbation(offset=torch.tensor([-1.0, -1.0]))
        >>> both = lpl_fused.BinaryPerturbation(positive=rare)  # negatives stay as they are
        >>> LF.binary_cross_entropy_with_logits(logits, labels, reduction="none", perturbation=both)
        tensor([[0.9741, 0.9741]])
    """

    positive: Perturbation | None = None
    negative: Perturbation | None = None

    @staticmethod
    def of(perturbation: Perturbation | BinaryPerturbation | None) -> BinaryPerturbation:
        """Both sides of a perturbation.

        Raises:
            TypeError: neither a Perturbation nor a BinaryPerturbation.
            ValueError: it has `rows`, or a `margin` on one side.
        """
        if perturbation is None:
            return BinaryPerturbation()
        if isinstance(perturbation, Perturbation):
            p = perturbation
            offset = p.offset
            if p.margin is not None:
                offset = -p.margin if offset is None else offset - p.margin
            both = BinaryPerturbation(
                replace(p, offset=offset, margin=None), replace(p, margin=None)
            )
            return BinaryPerturbation.of(both)
        if not isinstance(perturbation, BinaryPerturbation):
            raise TypeError(
                "perturbation: expected a Perturbation or a BinaryPerturbation, got"
                f" {perturbation!r}"
            )
        for name in ("positive", "negative"):
            side = getattr(perturbation, name)
            if side is None:
                continue
            if not isinstance(side, Perturbation):
                raise TypeError(f"{name}: expected a Perturbation, got {side!r}")
            if side.rows is not None or side.row_index is not None:
                raise ValueError("rows: a multi-label loss has no rows of offsets")
            if side.margin is not None:
                raise ValueError(f"margin: given within {name}; expected an offset there")
        return perturbation

    def then(self, other: Perturbation | BinaryPerturbation) -> BinaryPerturbation:
        """The one perturbation that does what `self` and after it `other` do."""
        first, second = BinaryPerturbation.of(self), BinaryPerturbation.of(other)
        return BinaryPerturbation(
            chained(first.positive, second.positive), chained(first.negative, second.negative)
        )


@dataclass(frozen=True)
class RebalancedWeight:
    """Row×class weights of the distribution-balanced loss (Wu et al., 2020), built in the kernel:

        r_ik = v_k / Σ_{j: Y_ij = 1} v_j        v = 1/n, n training samples per class
        w_ik = alpha + σ(beta·(r_ik − mu))

    They weigh positives and negatives alike. A row without positives has r = ∞, w = alpha + 1.
    Soft labels weigh the v_j of the sum; missing labels count nothing.

    Args:
        inverse_count: (C,), v: finite, ≥ 0.
        alpha, beta, mu: default 0.1, 10 and 0.2, the authors' for COCO-MLT (VOC-MLT: mu 0.3).

    Examples:
        >>> logits, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 1.0]])
        >>> weight = lpl_fused.RebalancedWeight(1 / torch.tensor([100.0, 5.0]))
        >>> LF.binary_cross_entropy_with_logits(logits, labels, reduction="none", rebalance=weight)
        tensor([[0.1322, 0.5212]])
    """

    inverse_count: Tensor
    alpha: float = 0.1
    beta: float = 10.0
    mu: float = 0.2


def chained(*perturbations: Perturbation | None) -> Perturbation | None:
    """All of them one after the other; None stands for one that does nothing."""
    given = [perturbation for perturbation in perturbations if perturbation is not None]
    return reduce(Perturbation.then, given) if given else None
