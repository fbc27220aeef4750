"""Facts about classes that losses are built from: counts, weights, mean probabilities."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from .arguments import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Choice,
    Integer,
    Maybe,
    real_number,
    shown,
    whole_number,
)
from .problem import is_ignored
from .tracing import readable

_INDEX = Integer(least=0)
# a list, a tensor or an array, one number per class; or a Counter or dict of class indices
Counts = Sequence[float] | Mapping[int, float] | Tensor | Any


def checked_counts(
    cls_num_list: Counts,
    *,
    minimum: float = 0,
    filled: bool = False,
    name: str = "cls_num_list",
) -> Tensor:
    """`cls_num_list` as a float64 tensor (C,); `name` is what messages call it.

    A Counter, a dict or what pandas' `value_counts` gives has a count for each class index; those
    below the largest that it lacks are 0.

    Classes without samples: an equation that has a value at n = 0 takes them as they are. For those
    that have none, `filled` takes them as if they had as many as the rarest class that has any,
    which leaves the extremes of the counts, and so the tables of all other classes, alone.

    Raises:
        TypeError: no counts at all.
        ValueError: not one number per class, or a count that is not finite or below `minimum`
            (beside `filled`: neither 0 nor at least 1).

    Examples:
        >>> lpl_fused.class_stats.checked_counts({0: 100, 2: 5})
        tensor([100.,   0.,   5.], dtype=torch.float64)
        >>> lpl_fused.class_stats.checked_counts([100, 0, 5], filled=True)
        tensor([100.,   5.,   5.], dtype=torch.float64)
    """
    counts = count_tensor(cls_num_list, name).detach().to("cpu", torch.float64)
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(
            f"{name}: expected one count per class, shape (C,), got {tuple(counts.shape)}"
        )
    low = ((counts < 1) & (counts != 0)) if filled else (counts < minimum)
    bad = ~torch.isfinite(counts) | low
    if bad.any():
        index = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}: expected finite counts{' 0 or' if filled else ''}"
            f" >= {1 if filled else minimum:g}"
            f", got {counts[index].item():g}"
            f" for class {index}"
        )
    if counts.sum() == 0:
        raise ValueError(f"{name}: expected at least one class with samples, got all 0")
    if filled:
        counts = torch.where(counts == 0, counts[counts > 0].min(), counts)
    return counts


def count_tensor(counts: Counts, name: str) -> Tensor:
    """Counts of any kind as a real tensor."""
    expected = "one count per class, as a list, array, tensor, Counter or dict of class indices"
    if hasattr(counts, "items") and hasattr(counts, "index") and not isinstance(counts, Mapping):
        counts = dict(counts.items())  # of pandas' value_counts, whose order is not the classes'
    if isinstance(counts, Mapping):
        indices = [whole_number(key) for key in counts]
        if not indices or any(index is None or not 0 <= index < 1 << 31 for index in indices):
            raise ValueError(f"{name}: expected {expected}, got {shown(counts)}")
        listed = [0] * (max(index for index in indices if index is not None) + 1)
        for index, count in zip(indices, counts.values(), strict=True):
            assert index is not None
            listed[index] = count
        counts = listed
    return real_tensor(counts, name, expected)


def real_tensor(values: Any, name: str, expected: str) -> Tensor:
    """Numbers of any kind as a tensor, bools and complex ones refused."""
    if isinstance(values, (str, bytes)) or not (
        isinstance(values, (Tensor, list, tuple, range)) or hasattr(values, "__array__")
    ):
        raise TypeError(f"{name}: expected {expected}, got {shown(values)}")
    try:
        found = on_cpu(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected {expected}, got {shown(values)}") from error
    if found.is_complex() or found.dtype == torch.bool or found.is_meta:
        got = "a tensor on meta, without numbers" if found.is_meta else found.dtype
        raise TypeError(f"{name}: expected {expected}, got {got}")
    return found


def on_cpu(values: Any) -> Tensor:
    """Numbers as a tensor: a tensor as it is, others on the CPU, whatever device is the default
    (a model that is made on "meta" has its losses' tables). Python's floats are float64, whatever
    dtype is the default, which bfloat16 would be under Lightning's "bf16-true"."""
    if isinstance(values, Tensor):
        return values
    # an array says itself what it holds: torch would ask a column of a table for its row 0
    array = getattr(values, "__array__", None)
    found = torch.as_tensor(values if array is None else array(), device="cpu")
    if array is None and found.is_floating_point():
        return torch.as_tensor(values, dtype=torch.float64, device="cpu")
    return found


def class_counts(
    labels: Any, num_classes: int | None = None, *, class_of: Mapping[int, int] | None = None
) -> Tensor:
    """Training images per class, (C,) int64, ready to be a loss's `cls_num_list`.

    Args:
        labels: class indices as a tensor, list or array; or a data set with `targets`, `labels` or
            (torchvision's INaturalist) `index`; a `Subset`, `random_split` or `ConcatDataset` of
            such; a `TensorDataset` of inputs and labels; or the path of an iNaturalist / COCO
            annotation JSON file, whose `annotations[*].category_id` are counted. No image is
            opened. (Of several labels per row, a matrix (N, C) of 0 and 1, the counts are its sums,
            `labels.sum(0)`.)
        num_classes: C; left out, the number of categories that a file lists, or else the highest
            label + 1.
        class_of: which class each label is, where labels are no class indices: COCO's categories
            start at 1 and have gaps.

    Raises:
        TypeError: no labels found in what was given.
        ValueError: a negative label, one not below `num_classes`, one that `class_of` lacks; a file
            of another kind; an annotation file whose categories, or, where it lists none and
            `num_classes` is left out, whose labels are not 0, 1, 2, … without `class_of`.

    Examples:
        >>> lpl_fused.class_stats.class_counts([0, 0, 2, 0])
        tensor([3, 0, 1])
        >>> dataset = torch.utils.data.TensorDataset(torch.rand(3, 8), torch.tensor([1, 1, 0]))
        >>> lpl_fused.class_stats.class_counts(dataset, num_classes=3)
        tensor([1, 2, 0])
    """
    num_classes = Maybe(Integer(least=1))("num_classes", num_classes)
    if isinstance(labels, (str, PathLike)):
        labels, known = _annotated(labels)
        found = known or sorted(set(labels))
        # without a list of categories nobody knows whether a gap is a class without samples
        gaps = found != list(range(len(found))) and (known or num_classes is None)
        if class_of is None and gaps:
            raise ValueError(
                "class_of: expected a mapping from category ids to class indices, as these are not"
                f" 0 to {len(found) - 1} but {shown(found)}; for instance"
                " {id: index for index, id in enumerate(sorted(ids))}"
                f"{'' if known else ', or num_classes, if they are class indices'}, got None"
            )
        if class_of is None and known and num_classes is None:
            num_classes = len(known)
    indices = _labels_of(labels)
    if class_of is not None:
        _check_mapping(class_of)
        values, where = indices.unique(return_inverse=True)
        missing = [value for value in values.tolist() if value not in class_of]
        if missing:
            raise ValueError(f"class_of: expected a class for every label, none for {missing[0]}")
        classes = [class_of[value] for value in values.tolist()]
        indices = torch.tensor(classes, dtype=torch.int64, device=where.device)[where]
    if indices.numel() and int(indices.min()) < 0:
        raise ValueError(f"labels: expected class indices >= 0, got {int(indices.min())}")
    counts = torch.bincount(indices, minlength=num_classes or 0)
    if num_classes is not None and counts.numel() > num_classes:
        raise ValueError(
            f"labels: expected class indices below num_classes={num_classes}"
            f", got {counts.numel() - 1}"
        )
    return counts


def _check_mapping(class_of: Any) -> None:
    if not isinstance(class_of, Mapping):
        raise TypeError(f"class_of: expected a mapping of labels to classes, got {shown(class_of)}")
    for value in class_of.values():
        _INDEX("class_of", value)


def _annotated(path: str | PathLike[str]) -> tuple[list[int], list[int]]:
    """The category of each annotation of a file, and the categories that it lists, sorted."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        labels = [entry["category_id"] for entry in content["annotations"]]
        known = sorted(entry["id"] for entry in content.get("categories", ()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"labels: expected an annotation file with annotations[*].category_id, got {path}:"
            f" {type(error).__name__}: {error}"
        ) from error
    for number in (*labels, *known):
        if whole_number(number) is None:
            raise ValueError(
                f"labels: expected integer category ids, got {shown(number)} in {path}"
            )
    return labels, known


def _labels_of(labels: Any) -> Tensor:
    """(n,) int64: the labels of what `class_counts` takes."""
    if isinstance(labels, Subset):
        return _labels_of(labels.dataset)[torch.as_tensor(labels.indices, device="cpu").long()]
    if isinstance(labels, ConcatDataset):
        return torch.cat([_labels_of(part) for part in labels.datasets])
    given = labels
    if isinstance(labels, TensorDataset):
        *inputs, labels = labels.tensors
        if not inputs or labels.dim() != 1:
            labels = None
    elif not isinstance(labels, (Tensor, list, tuple, range)):
        if hasattr(labels, "targets"):
            labels = labels.targets
        elif hasattr(labels, "labels"):
            labels = labels.labels
        elif isinstance(getattr(labels, "index", None), list):
            labels = [label for label, _ in labels.index]
    # what merely has __getitem__ is asked for nothing: to open every image may take hours
    indices = None
    if isinstance(labels, (Tensor, list, tuple, range)) or hasattr(labels, "__array__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            indices = on_cpu(labels)
    if indices is None:
        raise TypeError(
            "labels: expected class indices, a data set with .targets, .labels or .index, or the"
            f" path of an annotation file, got {type(given).__name__}; of another data set pass the"
            " labels, [label for _, label in dataset]"
        )
    if (indices.is_floating_point() or indices.is_complex()) and indices.numel():
        raise TypeError(f"labels: expected integers, got {indices.dtype}")
    return indices.reshape(-1).long()


def effective_number(counts: Tensor, beta: float) -> Tensor:
    """(1 − β^n)/(1 − β) of each count n (Cui et al.), without cancellation as β → 1.

    Examples:
        >>> lpl_fused.class_stats.effective_number(torch.tensor([100.0, 10.0, 1.0]), beta=0.9)
        tensor([9.9997, 6.5132, 1.0000])
    """
    if beta == 0:
        return torch.ones_like(counts)
    return -torch.expm1(counts * math.log(beta)) / (1 - beta)


def effective_number_weights(cls_num_list: Counts, beta: float = 0.9999) -> Tensor:
    """Class-balanced weights (Cui et al.), (C,) float32: w_c ∝ (1 − β)/(1 − β^{n_c}), Σ w = C.

    Args:
        cls_num_list: (C,) training samples per class. A class without any gets weight 0.
        beta: in [0, 1); 0 weighs all alike, towards 1 it becomes 1/n_c. Default the paper's.

    Raises:
        ValueError: `beta` outside [0, 1); bad counts.

    Examples:
        >>> lpl_fused.class_stats.effective_number_weights([100, 10, 1], beta=0.9)
        tensor([0.2393, 0.3674, 2.3932])
    """
    beta = BELOW_ONE("beta", beta)
    counts = checked_counts(cls_num_list)
    weights = torch.where(counts > 0, 1 / effective_number(counts, beta), 0.0)
    return (weights * (len(counts) / weights.sum())).float()


def difficulty_weights(difficulty: Tensor, tau: float | str = "dynamic") -> Tensor:
    """Class weights of CDB (Sinha et al., 2020), (C,) float64: w_c ∝ d_c^τ, Σ w = C.

    Args:
        difficulty: (C,) d_c = 1 − accuracy of class c, in [0, 1]. A class that is always right gets
            weight 0; where all are, all weigh 1 (ours: the authors' code divides 0 by 0).
        tau: τ ≥ 0, or, with b = (1 − min d)/(1 − max d + 0.01), "dynamic": τ = 2σ(b − 1), the
            authors' ImageNet-LT code, 1 where all classes are equally hard; "dynamic-cifar":
            τ = σ(b), their CIFAR code.

    Raises:
        ValueError: bad shape, difficulty outside [0, 1] or nan, bad `tau`.

    Examples:
        >>> lpl_fused.class_stats.difficulty_weights(torch.tensor([0.1, 0.5, 0.9]), tau=1.0)
        tensor([0.2000, 1.0000, 1.8000], dtype=torch.float64)
    """
    d = real_tensor(difficulty, "difficulty", "one number per class").double()
    if d.dim() != 1 or d.numel() == 0:
        raise ValueError(f"difficulty: expected shape (C,), got {tuple(d.shape)}")
    if not ((d >= 0) & (d <= 1)).all():
        raise ValueError(
            f"difficulty: expected numbers in [0, 1], got {float(d.min())} to {float(d.max())}"
        )
    tau = checked_tau("tau", tau)
    contrast = (1 - d.min()) / (1 - d.max() + 0.01)
    if tau == "dynamic":
        exponent = 2 * torch.sigmoid(contrast - 1)
    elif tau == "dynamic-cifar":
        exponent = torch.sigmoid(contrast)
    else:
        exponent = torch.tensor(tau, dtype=d.dtype, device=d.device)
    weights = d**exponent
    if not weights.any():
        return torch.ones_like(weights)
    return weights * (len(weights) / weights.sum())


def checked_tau(name: str, tau: Any) -> float | str:
    """τ of `difficulty_weights`, as a check."""
    expected = 'a finite number >= 0, "dynamic" or "dynamic-cifar"'
    if isinstance(tau, str) and tau in ("dynamic", "dynamic-cifar"):
        return tau
    number = real_number(tau)
    if number is None and not isinstance(tau, str):
        raise TypeError(f"{name}: expected {expected}, got {shown(tau)}")
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"{name}: expected {expected}, got {shown(tau)}")
    return number


def label_aware_smoothing(
    cls_num_list: Counts,
    head: float = 0.3,
    tail: float = 0.0,
    *,
    shape: str = "concave",
    power: float = 1.0,
) -> Tensor:
    """Smoothing per class (MiSLAS; Zhong et al., 2021), (C,) float64, for `label_smoothing`.

        r_c = (n_c − n_min)/(n_max − n_min),   ε_c = tail + (head − tail)·f(r_c)
        f = sin(πr/2) "concave",  r "linear",  1 − cos(πr/2) "convex",  r^power "exp"

    Args:
        cls_num_list: (C,) training samples per class; all equal, all get `head`.
        head: ε of the most frequent class, in [0, 1]; default 0.3, the authors' CIFAR-10-LT
            (CIFAR-100-LT: 0.4).
        tail: ε of the rarest class, in [0, 1]; default 0.0 (0.1).
        shape: of f. Default the authors'.
        power: > 0, of "exp" alone.

    Raises:
        ValueError: bad counts, numbers or `shape`.

    Examples:
        >>> lpl_fused.class_stats.label_aware_smoothing([100, 10, 1], head=0.3, tail=0.0)
        tensor([0.3000, 0.0427, 0.0000], dtype=torch.float64)
    """
    head, tail, power = SHARE("head", head), SHARE("tail", tail), POSITIVE("power", power)
    counts = checked_counts(cls_num_list)
    low, high = counts.min(), counts.max()
    r = (counts - low) / (high - low) if high > low else torch.ones_like(counts)
    curves = {
        "concave": torch.sin(math.pi / 2 * r),
        "linear": r,
        "convex": 1 - torch.cos(math.pi / 2 * r),
        "exp": r**power,
    }
    return tail + (head - tail) * curves[Choice(*curves)("shape", shape)]


def frequency_margins(
    cls_num_list: Counts, least: float = 0.05, largest: float = 0.5, *, power: float = 0.25
) -> Tensor:
    """A margin per class, (C,) float64, for `m` of `ArcFaceLoss` and `CosFaceLoss` (Ha et al.
    2020, arXiv 2010.05350): m_c = a·n_c^(−power) + b, with a and b such that the rarest class has
    `largest`, the most frequent one `least`.

    Args:
        cls_num_list: (C,) training samples per class; 0: see `checked_counts`. All equal, all get
            `largest`.
        least, largest: ≥ 0, in this order; default 0.05 and 0.5, those of the authors' code.
        power: > 0, default 0.25, the authors'; LDAM's, too.

    Raises:
        ValueError: bad counts or numbers.

    Examples:
        >>> lpl_fused.class_stats.frequency_margins([100, 10, 1])
        tensor([0.0500, 0.2120, 0.5000], dtype=torch.float64)
    """
    least, largest = NOT_NEGATIVE("least", least), NOT_NEGATIVE("largest", largest)
    if least > largest:
        raise ValueError(f"least: expected at most largest={largest:g}, got {least:g}")
    rarity = checked_counts(cls_num_list, filled=True) ** -POSITIVE("power", power)
    low, high = rarity.min(), rarity.max()
    r = (rarity - low) / (high - low) if high > low else torch.ones_like(rarity)
    return least + (largest - least) * r


def class_mean(
    values: Tensor, target: Tensor, num_classes: int, share: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of `values` over the samples of each class, and how many there were.

    Args:
        values: (N,) floating.
        target: (N,) class indices; others than 0 to C − 1 (ignored ones) are left out.
        num_classes: C.
        share: (N,), how much of a sample each is; default 1.

    Returns:
        mean: (C,), 0 for classes without samples.
        count: (C,) of the same dtype.

    Examples:
        >>> values, target = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 2])
        >>> lpl_fused.class_stats.class_mean(values, target, num_classes=3)
        (tensor([1.5000, 0.0000, 4.0000]), tensor([2., 0., 1.]))
    """
    target = target.long()
    present = (target >= 0) & (target < num_classes)
    index = torch.where(present, target, num_classes)
    zeros = values.new_zeros(num_classes + 1)
    share = torch.ones_like(values) if share is None else share.to(values.dtype)
    count = zeros.index_add(0, index, share)[:num_classes]
    total = zeros.index_add(0, index, values * share)[:num_classes]
    return total / count.where(count > 0, 1), count


def present_classes(
    target: Tensor, num_classes: int, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """The classes of a batch, and for each sample where its class stands among them.

    Without a host synchronisation the number of distinct classes is unknown: on CUDA, and under
    torch.compile, the list is filled up to min(N, C) entries with class 0; no sample points there.

    Args:
        target: (N,) class indices; `ignore_index`, and what is no class, points to entry 0.

    Returns:
        classes: (R,) int64, ascending in front of the fill.
        slot: (N,) int64, in [0, R).

    Examples:
        >>> lpl_fused.class_stats.present_classes(torch.tensor([4, 1, 4]), num_classes=5)
        (tensor([1, 4]), tensor([1, 0, 1]))
    """
    target = target.long()
    counted = ~is_ignored(target, ignore_index) & (target >= 0) & (target < num_classes)
    label = torch.where(counted, target, num_classes)
    present = torch.zeros(num_classes + 1, dtype=torch.bool, device=target.device)
    present = present.scatter(0, label, torch.ones_like(counted))[:num_classes]
    rank = present.cumsum(0) - 1
    size = min(len(target), num_classes)
    every = torch.arange(num_classes, device=target.device)
    classes = label.new_zeros(size + 1).scatter(0, torch.where(present, rank, size), every)[:size]
    if readable(target):
        classes = classes[: max(1, int(present.sum()))]
    slot = torch.where(counted, rank[label.clamp(max=num_classes - 1)], 0)
    return classes, slot
