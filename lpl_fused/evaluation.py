"""How well rare and frequent classes are told apart, and what a loss does to each class.

Everything here judges *raw* logits: the perturbation (margin, offset, scale, δ) belongs to the
training loss and is left out at test time. Pass the model's output as it is, never what a loss made
of it; average-K classification takes its softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import (
    CLASSES,
    POSITIVE,
    Instance,
    Integer,
    Maybe,
    Number,
    Numbers,
    is_integer,
    shown,
)
from .class_stats import Counts, checked_counts

MANY_ABOVE = 100
FEW_BELOW = 20

_TENSOR = Instance(Tensor, "a tensor")
_BORDER = Number(infinite=True)
_SCORES = Numbers(True, 2, "shape (N, C)")
_ROW_LOSSES = Numbers(True, 1, "one loss per sample, shape (N,)")


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in [0, 1]; nan where there is nothing to average.

    Args:
        overall: share of the test examples that are right.
        balanced: mean of `per_class` over the classes that have test examples.
        many: mean of `per_class` over the classes with more than `many_above` training examples.
        medium: the same over the classes in between.
        few: the same over the classes with fewer than `few_below` training examples.
        per_class: `(C,)` float64; nan for a class without test examples.
    """

    overall: float
    balanced: float
    many: float
    medium: float
    few: float
    per_class: Tensor


def accuracy(
    input: Tensor,
    target: Tensor,
    cls_num_list: Counts,
    *,
    many_above: int = MANY_ABOVE,
    few_below: int = FEW_BELOW,
) -> Accuracy:
    """Overall, balanced, many-, medium- and few-shot accuracy of raw logits or predictions.

        acc_c    = |{i : y_i = c, ŷ_i = c}| / |{i : y_i = c}|
        balanced = mean_c acc_c
        many     = mean_{c : n_c > many_above} acc_c
        medium   = mean_{c : few_below ≤ n_c ≤ many_above} acc_c
        few      = mean_{c : n_c < few_below} acc_c

    The thresholds 100 and 20 are those of Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World" (2019); data sets with few images need smaller ones.

    Args:
        input: raw logits `(N, C)` of a floating dtype, or predicted classes `(N,)` of an integer
            dtype (their argmax, computed in pieces where `(N, C)` is too large to hold).
        target: true classes `(N,)`, integer.
        cls_num_list: training examples per class, n, `(C,)`.
        many_above: classes with more training examples are many-shot.
        few_below: classes with fewer training examples are few-shot.

    Returns:
        An `Accuracy`. Averages over no class, or over classes without test examples, are nan.

    Raises:
        TypeError: `input` is neither 2-d floating nor 1-d integer, or `target` is not integer.
        ValueError: lengths or the number of classes disagree, a target or prediction lies outside
            `[0, C)`, logits are nan, or `few_below` exceeds `many_above + 1` (a class would be
            both).

    Examples:
        >>> logits, target = torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 2])
        >>> found = lpl_fused.evaluation.accuracy(logits, target, torch.tensor([500, 50, 5]))
        >>> found.overall, found.many, found.medium, found.few
        (0.75, 1.0, 1.0, 0.0)
    """
    _TENSOR("input", input)
    target = CLASSES("target", target).long()
    counts = checked_counts(cls_num_list).to(target.device)
    num_classes = len(counts)
    check_borders(many_above, few_below)
    if input.ndim == 2 and input.is_floating_point():
        if input.shape[1] != num_classes:
            raise ValueError(
                f"input: expected logits of {num_classes} classes, as many as cls_num_list has, "
                f"got {tuple(input.shape)}"
            )
        predictions = answers(input)
    elif input.ndim == 1 and is_integer(input):
        predictions = input.long()
    else:
        raise TypeError(
            "input must be raw logits (N, C) of a floating dtype or predicted classes (N,) of an "
            f"integer dtype; got shape {tuple(input.shape)}, {input.dtype}"
        )
    check_labels(predictions, num_classes, "prediction")
    check_labels(target, num_classes, "target")
    _check_same_length(predictions, target, "input")

    return accuracy_of_counts(
        torch.bincount(target[predictions == target], minlength=num_classes),
        torch.bincount(target, minlength=num_classes),
        counts,
        many_above=many_above,
        few_below=few_below,
    )


def accuracy_of_counts(
    correct: Tensor, tested: Tensor, counts: Tensor, *, many_above: int, few_below: int
) -> Accuracy:
    """`accuracy` of how many test examples of each class are right, and how many there are.

    Not torchmetrics' `multiclass_accuracy`: it gives 0 for a class without examples, and builds a
    C×C table on the way (800 MB at 10,000 classes).
    """
    per_class = correct.double() / tested
    many, few = counts > many_above, counts < few_below
    return Accuracy(
        overall=float(correct.sum().double() / tested.sum()),
        balanced=float(per_class.nanmean()),
        many=float(per_class[many].nanmean()),
        medium=float(per_class[~many & ~few].nanmean()),
        few=float(per_class[few].nanmean()),
        per_class=per_class,
    )


def answers(logits: Tensor) -> Tensor:
    """The class of the highest of the raw logits `(N, C, …)`, `(N, …)`: what a model answers.

    Raises:
        ValueError: a logit is nan, which `argmax` would take for the highest.
    """
    highest = logits.max(dim=1)
    check_highest(highest.values)
    return highest.indices


def check_highest(values: Tensor) -> None:
    """Raise where the highest logit of a row is nan, as it is where any of them is."""
    if values.isnan().any():
        raise ValueError("input: expected numbers, got nan")


def relative_loss_variation(
    loss: Tensor, perturbed_loss: Tensor, target: Tensor, num_classes: int
) -> Tensor:
    """What a perturbation does to each class's loss, relative to the unperturbed loss.

        v_c = mean_{i : y_i = c, l_i > 0} (l'_i − l_i) / l_i

    Positive where the perturbation raises the loss of the class (as augmenting it would), negative
    where it lowers it. This is the diagnostic of Li et al., "Logit Perturbation" (AAAI 2022), whose
    code also skips the samples with `l_i = 0`.

    Args:
        loss: l, cross-entropy of the raw logits, `(N,)` floating, `reduction="none"`.
        perturbed_loss: l', the training loss of the same logits, `(N,)` floating,
            `reduction="none"`.
        target: classes `(N,)`, integer in `[0, C)`.
        num_classes: C.

    Returns:
        `(C,)` float64; nan for a class without a sample of positive loss.

    Raises:
        TypeError: a loss is not of a floating dtype, or `target` not of an integer one.
        ValueError: the three differ in length, a target lies outside `[0, C)`, a loss is nan, or an
            unperturbed one infinite: by which share it changes is unknown then.

    Examples:
        >>> target = torch.tensor([0, 0, 1])
        >>> lpl_fused.evaluation.relative_loss_variation(
        ...     torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.0, 6.0]), target, num_classes=2
        ... )
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """
    CLASSES("target", target)
    num_classes = Integer(least=1)("num_classes", num_classes)
    for name, values in (("loss", loss), ("perturbed_loss", perturbed_loss)):
        _ROW_LOSSES(name, values)
        _check_same_length(values, target, name)
    check_labels(target, num_classes, "target")
    sums, samples = variation_sums(loss, perturbed_loss, target, num_classes)
    return sums / samples


def variation_sums(
    loss: Tensor, perturbed_loss: Tensor, target: Tensor, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Σ (l'_i − l_i) / l_i of each class, `(C,)` float64, and of how many samples."""
    if not loss.isfinite().all():
        raise ValueError("loss: expected finite losses, got nan or an infinite one")
    if perturbed_loss.isnan().any():
        raise ValueError("perturbed_loss: expected losses, got nan")
    counted = loss > 0
    before, after = loss[counted].double(), perturbed_loss[counted].double()
    classes = target[counted].long()
    # index_add rather than bincount(weights=…), which has no deterministic CUDA implementation.
    sums = before.new_zeros(num_classes).index_add(0, classes, (after - before) / before)
    return sums, torch.bincount(classes, minlength=num_classes)


def average_k_threshold(
    scores: Tensor | Iterable[Tensor], k: float, *, num_samples: int | None = None
) -> Tensor:
    """λ, above which the scores of n held-out samples are K per sample on average.

        λ = the midpoint of the ⌊n·K⌋-th and the next of the n·C scores, from the largest

    Average-K classification (Lorieul, Joly, Shasha, 2021) answers with {y : p_y ≥ λ}, which among
    all sets of K classes on average misses least. Only the ⌊n·K⌋ + 1 largest scores seen so far are
    kept, whatever C; nothing else is sorted. The midpoint is our choice. Equal scores at λ are all
    included, so that sets may be larger than K on average: `average_k_accuracy` says how large.

    Args:
        scores: probabilities `(n, C)`, or an iterable of such pieces `(n_i, C)`, for instance
            `(torch.softmax(model(x), 1) for x, _ in loader)`, the same kind that is predicted with.
            A model trained with logit adjustment has, for data distributed as in training,
            `torch.softmax(model(x) + log_prior, 1)`.
        k: K in (0, C], need not be whole.
        num_samples: n, needed where `scores` is an iterable without a length known beforehand.

    Returns:
        0-dim, of the dtype of the scores, at least float32. For K = C it is −∞.

    Raises:
        TypeError: scores that are not floating; no `num_samples` for an iterable.
        ValueError: bad shapes, nan, K out of range or n·K < 1, more or fewer samples than
            `num_samples`.

    Examples:
        >>> p = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]])
        >>> lpl_fused.evaluation.average_k_threshold(p, k=2)
        tensor(0.2250)
    """
    k = POSITIVE("k", k)
    num_samples = Maybe(Integer(least=0))("num_samples", num_samples)
    if isinstance(scores, Tensor):
        _check_scores(scores)
        scores = scores.split(256)
    elif not isinstance(scores, Iterable) or isinstance(scores, (str, bytes, Mapping)):
        raise TypeError(f"scores: expected a tensor or pieces of one, got {shown(scores)}")
    if isinstance(scores, (list, tuple)):
        num_samples = sum(len(piece) for piece in scores)
    elif num_samples is None:
        raise TypeError("num_samples: expected the number of samples behind an iterable, got None")
    rank = average_k_rank(num_samples, k)
    seen, best = 0, torch.empty(0)
    for piece in scores:
        _check_scores(piece)
        if k > piece.shape[1]:
            raise ValueError(f"k: expected at most C={piece.shape[1]}, got {k}")
        best = largest_scores(best if seen else None, piece, rank)
        seen += len(piece)
    if seen != num_samples:
        raise ValueError(f"num_samples: expected {num_samples} rows of scores, got {seen}")
    return threshold_below(best, rank)


def average_k_rank(num_samples: int, k: float) -> int:
    """⌊n·K⌋, how many of the scores lie above λ."""
    rank = int(num_samples * k * (1 + 1e-12))  # 100·0.29 is 28.999… in floating point
    if rank < 1:
        raise ValueError(f"k: expected n·K >= 1, got K={k} for n={num_samples} samples")
    return rank


def largest_scores(best: Tensor | None, scores: Tensor, rank: int) -> Tensor:
    """The rank + 1 largest of both, or as many as there are, sorted; `best` is what this gave."""
    values = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten()
    if best is not None:
        if len(best) > rank:
            values = values[values > best[-1]]  # best is sorted: the rest cannot enter
        values = torch.cat([best, values])
    return values.topk(min(rank + 1, len(values))).values


def threshold_below(best: Tensor, rank: int) -> Tensor:
    """λ, between the rank-th and the next of sorted scores; −∞ where there is no next."""
    if len(best) == rank:
        return best.new_tensor(-torch.inf)
    above, below = best[rank - 1], best[rank]
    middle = below + (above - below) / 2
    return torch.where(middle > below, middle, above)  # neighbours have no number between them


def average_k_sets(scores: Tensor, threshold: Tensor | float, *, min_size: int = 0) -> Tensor:
    """The answers {y : p_y ≥ λ} of average-K classification, `(N, C)` bool.

    Args:
        scores: `(N, C)`, of the kind and dtype that gave the threshold.
        threshold: λ, see `average_k_threshold`.
        min_size: that many of the highest scores belong to every answer, which may be empty
            otherwise.

    Raises:
        TypeError, ValueError: scores that are not floating, not `(N, C)` or nan; `min_size` not in
            `[0, C]`.

    Examples:
        >>> p = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]])
        >>> lpl_fused.evaluation.average_k_sets(p, 0.225)
        tensor([[ True, False, False],
                [ True,  True,  True],
                [ True,  True, False]])
    """
    _check_scores(scores)
    min_size = Integer(least=0, most=scores.shape[1])("min_size", min_size)
    if not isinstance(threshold, Tensor):
        threshold = _BORDER("threshold", threshold)
    elif threshold.dim() or not threshold.is_floating_point():
        raise ValueError(f"threshold: expected {_BORDER}, got {shown(threshold)}")
    # in the precision of λ: compared in bfloat16, λ itself would be rounded
    sets = scores.to(torch.promote_types(scores.dtype, torch.float32)) >= threshold
    if min_size:
        sets.scatter_(1, scores.topk(min_size, dim=1).indices, True)
    return sets


@dataclass(frozen=True)
class AverageK:
    """How sets of classes answer.

    Args:
        accuracy: share of samples whose class is in their set; of probability mass, where the
            target is class probabilities.
        mean_size: classes per set.
        empty: share of empty sets.
    """

    accuracy: float
    mean_size: float
    empty: float


def average_k_accuracy(
    scores: Tensor, target: Tensor, threshold: Tensor | float, *, min_size: int = 0
) -> AverageK:
    """Average-K accuracy of `average_k_sets` and the size that its sets really have.

    Args:
        scores, threshold, min_size: as in `average_k_sets`.
        target: true classes `(N,)`, integer; or true class probabilities `(N, C)`, floating.

    Raises:
        TypeError, ValueError: as `average_k_sets`; a target of another shape or out of range.

    Examples:
        >>> p = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]])
        >>> lpl_fused.evaluation.average_k_accuracy(p, torch.tensor([0, 2, 1]), 0.225)
        AverageK(accuracy=1.0, mean_size=2.0, empty=0.0)
    """
    sets = average_k_sets(scores, threshold, min_size=min_size)
    _TENSOR("target", target)
    if target.is_floating_point():
        if target.shape != scores.shape:
            raise ValueError(
                f"target has shape {tuple(target.shape)} but the scores {tuple(scores.shape)}"
            )
        hit = (target.double() * sets).sum(1)
    else:
        check_labels(target, scores.shape[1], "target")
        _check_same_length(scores, target, "scores")
        hit = in_sets(sets, target)
    sizes = sets.sum(1).double()
    return AverageK(float(hit.mean()), float(sizes.mean()), float((sizes == 0).double().mean()))


def in_sets(sets: Tensor, target: Tensor) -> Tensor:
    """`(N,)` float64: 1 where the set of a sample, a row of `(N, C)` bool, has its class."""
    return sets.gather(1, target.long()[:, None])[:, 0].double()


def _check_scores(scores: Tensor) -> None:
    _SCORES("scores", scores)
    if scores.isnan().any():
        raise ValueError("scores: expected numbers, got nan")


def check_borders(many_above: float, few_below: float) -> None:
    """Raise where a class could be both few- and many-shot, or a border is no number."""
    if _BORDER("few_below", few_below) > _BORDER("many_above", many_above) + 1:
        raise ValueError(
            "few_below: expected at most many_above + 1, so that no class is both few- and "
            f"many-shot, got few_below={few_below}, many_above={many_above}"
        )


def check_labels(labels: Tensor, num_classes: int, name: str) -> None:
    """Raise where one is no class."""
    labels = CLASSES(name, labels).long()
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"{name} {int(outside[0])} is out of range for {num_classes} classes")


def _check_same_length(values: Tensor, target: Tensor, name: str) -> None:
    if len(values) != len(target):
        raise ValueError(f"{name} has {len(values)} samples but target has {len(target)}")
