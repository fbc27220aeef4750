"""Mean average precision of multi-label scores, by how frequent the classes are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Numbers, RealTensor
from .class_stats import Counts, checked_counts
from .evaluation import FEW_BELOW, MANY_ABOVE, check_borders
from .extras import needs_extra


@dataclass(frozen=True)
class MeanAveragePrecision:
    """Averages of `per_class` in [0, 1]; nan where there is nothing to average.

    Args:
        overall: over the classes that have a positive in the test.
        many: over those of them with more than `many_above` positive training examples.
        medium: over those in between.
        few: over those with fewer than `few_below`.
        per_class: `(C,)` float64 average precision; nan for a class without a positive in the test.
    """

    overall: float
    many: float
    medium: float
    few: float
    per_class: Tensor


def mean_average_precision(
    scores: Tensor,
    target: Tensor,
    cls_num_list: Counts,
    *,
    many_above: int = MANY_ABOVE,
    few_below: int = FEW_BELOW,
) -> MeanAveragePrecision:
    """Overall, many-, medium- and few-shot mean average precision (mAP) of raw logits.

        AP_c = Σ_k (R_k − R_{k−1})·P_k    over the distinct scores of class c, from the highest
        mAP  = mean_{c : Σ_i Y_ic > 0} AP_c

    P_k and R_k are precision and recall of the examples that score at least the k-th. AP_c is the
    `MultilabelAveragePrecision` of torchmetrics and `average_precision_score` of scikit-learn,
    without interpolation. A class without positives in the test has none and is left out.

    Args:
        scores: raw logits or probabilities `(N, C)` of a floating dtype; their order by class alone
            matters.
        target: multi-hot labels `(N, C)`, 0 or 1, of any dtype.
        cls_num_list: positive training examples per class, `(C,)`.
        many_above, few_below: as in `evaluation.accuracy`.

    Raises:
        ModuleNotFoundError: torchmetrics is missing, of the extra "metrics".
        TypeError: scores that are not floating.
        ValueError: shapes that disagree, no example, nan among the scores, other labels than 0
            and 1, or `few_below` above `many_above + 1`.

    Examples:
        >>> scores = torch.tensor([[3.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
        >>> labels = torch.tensor([[1, 0], [0, 1], [1, 1]])
        >>> lpl_fused.average_precision.mean_average_precision(scores, labels, [500, 5]).per_class
        tensor([1., 1.], dtype=torch.float64)
    """
    with needs_extra():
        from torchmetrics.functional.classification import binary_average_precision

    Numbers(True, 2, "shape (N, C)")("scores", scores)
    RealTensor(2, "a tensor of labels 0 and 1, shape (N, C)")("target", target)
    counts = checked_counts(cls_num_list).to(scores.device)
    _check(scores, target, counts, many_above, few_below)
    labels, ranks = target.long(), _ranks(scores)
    # class by class: MultilabelAveragePrecision, which does the same, wants two labels at least
    ap = [
        float(binary_average_precision(of_class, own)) if own.any() else torch.nan
        for of_class, own in zip(ranks.unbind(1), labels.unbind(1), strict=True)
    ]
    per_class = torch.tensor(ap, dtype=torch.float64, device=scores.device)
    many, few = counts > many_above, counts < few_below
    return MeanAveragePrecision(
        overall=float(per_class.nanmean()),
        many=float(per_class[many].nanmean()),
        medium=float(per_class[~many & ~few].nanmean()),
        few=float(per_class[few].nanmean()),
        per_class=per_class,
    )


def _ranks(scores: Tensor) -> Tensor:
    """(N, C) numbers in (0, 1) in the order of each class's scores, equal where these are.

    torchmetrics takes the sigmoid of scores beyond [0, 1], which is 1 for all large logits.
    """
    ordered, order = scores.sort(dim=0)
    step = torch.ones_like(order)
    step[1:] = (ordered[1:] != ordered[:-1]).long()
    ranks = torch.empty_like(order).scatter_(0, order, step.cumsum(0))
    return ranks.double() / (len(scores) + 1)


def _check(scores: Tensor, target: Tensor, counts: Tensor, many_above: int, few_below: int) -> None:
    check_borders(many_above, few_below)
    if scores.numel() == 0:
        raise ValueError(f"scores: expected shape (N, C), not empty, got {tuple(scores.shape)}")
    if target.shape != scores.shape:
        raise ValueError(
            f"target: expected the shape {tuple(scores.shape)} of the scores, "
            f"got {tuple(target.shape)}"
        )
    if counts.shape != scores.shape[1:]:
        raise ValueError(
            f"cls_num_list: expected shape ({scores.shape[1]},), got {tuple(counts.shape)}"
        )
    if scores.isnan().any():
        raise ValueError("scores: expected numbers, got nan")
    if ((target != 0) & (target != 1)).any():
        raise ValueError("target: expected labels 0 and 1")
