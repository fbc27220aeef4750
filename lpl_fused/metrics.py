"""`evaluation` and `susceptibility` as torchmetrics `Metric`s, for training loops and trainers.

They reset, add up over batches and over the ranks of torch.distributed, take raw logits `(N, C)`
or `(N, C, …)` of any floating dtype, leave out rows with the label `ignore_index`, and refuse nan;
a batch that is refused counts nothing. What they keep does not grow with the number of samples, but
for `AverageKThreshold`. What torchmetrics has itself is not here: docs/evaluation.md says how to
use it beside these.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import functional, susceptibility
from .arguments import FLAG, POSITIVE, Choice, Integer, Maybe, Number, Numbers, shown
from .class_stats import Counts, checked_counts
from .evaluation import (
    FEW_BELOW,
    MANY_ABOVE,
    accuracy_of_counts,
    average_k_rank,
    average_k_sets,
    check_borders,
    check_labels,
    in_sets,
    largest_scores,
    threshold_below,
    variation_sums,
)
from .extras import needs_extra
from .precision import devices_alone
from .problem import is_ignored
from .susceptibility import Loss

with needs_extra():
    from torchmetrics import Metric

_LOGITS = Numbers(True, None, "logits of shape (N, C) or (N, C, …)")
_LABELS = Numbers(False, None, "classes of shape (N,) or (N, …)")
_LOSSES = Numbers(True, None, "one loss per sample")
_CLASSES = Integer(least=1)
_BINS = Integer(least=1)
_PIECE = 1 << 22  # numbers that are looked at in one go


def probabilities(input: Tensor) -> Tensor:
    """The softmax of raw logits `(N, C, …)` over their classes, in float32 at least.

    For metrics of torchmetrics itself, which do not see that a row is nan, and take logits that
    happen to lie in [0, 1] for probabilities (`torchmetrics.wrappers.LambdaInputTransformer`).

    Raises:
        TypeError: `input` is not of a floating dtype.
        ValueError: it has no classes, or the softmax of a row is nan (a logit is, or is +∞, or all
            are −∞).

    Examples:
        >>> lpl_fused.metrics.probabilities(torch.zeros(1, 2, dtype=torch.bfloat16))
        tensor([[0.5000, 0.5000]])
    """
    _check_logits(input)
    p = torch.softmax(input, 1, dtype=torch.promote_types(input.dtype, torch.float32))
    if p.isnan().any():
        raise ValueError("input: expected logits that have a softmax, got nan in it")
    return p


class _Judge(Metric):
    """What all have in common: no gradient, and updates that may be added to each other."""

    is_differentiable = False
    full_state_update = False
    rule: Tensor

    def _add_rule(self, *arguments: Any) -> None:
        """A state that differs where the arguments do.

        A `MetricCollection` gives metrics one state where theirs are equal after the first batch,
        by chance as well: all answers right, say, for the first and the fifth of `top_k`.
        """
        code = zlib.crc32(repr((type(self).__name__, arguments)).encode())
        self.add_state("rule", torch.tensor(list(code.to_bytes(4, "big"))), dist_reduce_fx="max")

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        """What is kept are counts and sums in float64, which stay so: 16 bits count to 2048."""
        return super()._apply(devices_alone(fn), exclude_state)

    def _add_sums(self, dtype: torch.dtype, shape: tuple[int, ...], *names: str) -> None:
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class _Answers(_Judge):
    """Counts the right answers of each class."""

    higher_is_better = True
    counts: Tensor
    correct: Tensor
    tested: Tensor
    nan_rows: Tensor

    def __init__(
        self, cls_num_list: Counts, top_k: int, ignore_index: int, nan: str, **keywords: Any
    ) -> None:
        super().__init__(**keywords)
        self.register_buffer("counts", checked_counts(cls_num_list), persistent=False)
        self.num_classes = len(self.counts)
        self.top_k = Integer(least=1, most=self.num_classes)("top_k", top_k)
        self.ignore_index = Integer()("ignore_index", ignore_index)
        self.nan = Choice("refuse", "wrong")("nan", nan)
        self._add_sums(torch.int64, (self.num_classes,), "correct", "tested")
        self._add_sums(torch.int64, (), "nan_rows")

    def _count(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a batch; gives the k highest classes `(n, k)` of its rows, and which are nan."""
        _check_batch(input, target, self.num_classes)
        kept = ~is_ignored(target, self.ignore_index)
        labels = target[kept].long()
        check_labels(labels, self.num_classes, "target")
        if self.top_k == 1:
            values, found = input.max(dim=1, keepdim=True)
        else:
            values, found = input.topk(self.top_k, dim=1)
        found = found.movedim(1, -1)[kept]
        nan = values[:, 0].isnan()[kept]  # nan is the highest, wherever it stands
        if self.nan == "refuse" and nan.any():
            raise ValueError(
                f"input: expected numbers, got {int(nan.sum())} rows with nan, which"
                ' nan="wrong" would count'
            )
        right = (found == labels[:, None]).any(1) & ~nan
        self.correct += torch.bincount(labels[right], minlength=self.num_classes)
        self.tested += torch.bincount(labels, minlength=self.num_classes)
        self.nan_rows += nan.sum()
        return found, nan


class LongTailedAccuracy(_Answers):
    """Overall, balanced, many-, medium- and few-shot accuracy: `evaluation.accuracy` as a Metric.

    `compute` gives 0-dim tensors by name: "overall", "balanced", "many", "medium", "few", nan where
    no class has a sample; beside nan="wrong" also "nan_rows", how many there were. Without class
    frequencies torchmetrics' `MulticlassAccuracy` says as much.

    Args:
        cls_num_list: training examples per class, `(C,)`.
        many_above: classes with more training examples are many-shot.
        few_below: classes with fewer training examples are few-shot.
        top_k: a row is right where its class is among the k highest. Ties are broken as torch's
            `topk` does.
        ignore_index: rows with this label count nothing, nan or not.
        nan: "refuse", or "wrong": a row with a nan logit answers wrongly whatever its class.
        **keywords: of `torchmetrics.Metric`, `process_group` for instance.

    Raises:
        ModuleNotFoundError: torchmetrics is missing, of the extra "metrics".
        TypeError, ValueError: bad arguments; of `update` logits that are not `(N, C, …)` floating,
            or nan, labels of another shape or outside `[0, C)`.

    Examples:
        >>> metric = lpl_fused.metrics.LongTailedAccuracy([500, 50, 5])
        >>> metric.update(torch.eye(3)[[0, 0]], torch.tensor([0, 1]))
        >>> metric.update(torch.eye(3)[[1, 2]], torch.tensor([1, 2]))
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'overall': 0.75, 'balanced': 0.833..., 'many': 1.0, 'medium': 0.5, 'few': 1.0}
    """

    def __init__(
        self,
        cls_num_list: Counts,
        *,
        many_above: int = MANY_ABOVE,
        few_below: int = FEW_BELOW,
        top_k: int = 1,
        ignore_index: int = -100,
        nan: str = "refuse",
        **keywords: Any,
    ) -> None:
        super().__init__(cls_num_list, top_k, ignore_index, nan, **keywords)
        check_borders(many_above, few_below)
        self.many_above, self.few_below = many_above, few_below
        # the borders change nothing that is added up, but what it is added up to
        self._add_rule(self.top_k, self.ignore_index, self.nan)

    def update(self, input: Tensor, target: Tensor) -> None:
        self._count(input, target)

    def compute(self) -> dict[str, Tensor]:
        found = accuracy_of_counts(
            self.correct,
            self.tested,
            self.counts,
            many_above=self.many_above,
            few_below=self.few_below,
        )
        names = ("overall", "balanced", "many", "medium", "few")
        result = {name: self._number(getattr(found, name)) for name in names}
        return result | ({"nan_rows": self.nan_rows.clone()} if self.nan == "wrong" else {})

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.correct.device)


class ClassReport(_Answers):
    """What became of each class, `(C,)` tensors by name, in the order of the classes.

        "train"       training examples, n_c
        "tested"      test examples
        "answered"    rows that were taken for the class
        "accuracy"    of its test examples the share that was right (recall)
        "precision"   of the rows that were taken for it the share that was right
        "f1"          the harmonic mean of both, 2·right/(tested + answered)

    A share of nothing is nan, not 0: a class without test examples has no accuracy. (torchmetrics'
    precision, recall and F1 say 0, and build a C×C table on the way.)

    Args:
        cls_num_list, ignore_index, nan, **keywords: as in `LongTailedAccuracy`. A row of nan logits
            that counts as wrong was taken for no class.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: as `LongTailedAccuracy`.

    Examples:
        >>> metric = lpl_fused.metrics.ClassReport([500, 50, 5])
        >>> report = metric(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))
        >>> report["accuracy"], report["precision"]
        (tensor([1.0000, 0.5000,    nan], dtype=torch.float64), tensor([0.5000, 1.0000,    nan], dtype=torch.float64))
    """  # noqa: E501

    answered: Tensor

    def __init__(
        self,
        cls_num_list: Counts,
        *,
        ignore_index: int = -100,
        nan: str = "refuse",
        **keywords: Any,
    ) -> None:
        super().__init__(cls_num_list, 1, ignore_index, nan, **keywords)
        self._add_sums(torch.int64, (self.num_classes,), "answered")
        self._add_rule(self.ignore_index, self.nan)

    def update(self, input: Tensor, target: Tensor) -> None:
        found, nan = self._count(input, target)
        self.answered += torch.bincount(found[~nan, 0], minlength=self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        correct = self.correct.double()
        return {
            "train": self.counts.clone(),
            "tested": self.tested.clone(),
            "answered": self.answered.clone(),
            "accuracy": correct / self.tested,
            "precision": correct / self.answered,
            "f1": 2 * correct / (self.tested + self.answered),
        }


class ClasswiseCalibrationError(_Judge):
    """Class-wise expected calibration error of raw logits (Kull et al., 2019).

        ECE_c = Σ_b |B_bc|/n · |mean_{i∈B_bc} p_ic − share_{i∈B_bc} of y_i = c|
        cw-ECE = mean_c ECE_c

    p is the softmax, B_bc the rows whose p_ic lies in [b/B, (b+1)/B), the last bin closed. The ECE
    of the answers alone, which hides what happens to rare classes, is torchmetrics'
    `MulticlassCalibrationError`. What is kept are C×B numbers, whatever the number of rows.

    Args:
        num_classes: C.
        n_bins: B; default the usual 15.
        average: True: the mean over classes, 0-dim; False: `(C,)`, one number per class.
        ignore_index, **keywords: as in `LongTailedAccuracy`.

    `compute` is float64, nan before the first row.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: as `LongTailedAccuracy`; rows without a softmax,
            as `probabilities`.

    Examples:
        >>> metric = lpl_fused.metrics.ClasswiseCalibrationError(num_classes=2)
        >>> logits = torch.tensor([[0.8, 0.2], [0.8, 0.2]]).log()
        >>> float(metric(logits, torch.tensor([0, 1])))  # says 0.8 where a half is right
        0.30...
    """

    higher_is_better = False
    rows: Tensor
    confidence: Tensor
    right: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        n_bins: int = 15,
        average: bool = True,
        ignore_index: int = -100,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.num_classes = _CLASSES("num_classes", num_classes)
        self.n_bins = _BINS("n_bins", n_bins)
        self.average = FLAG("average", average)
        self.ignore_index = Integer()("ignore_index", ignore_index)
        shape = (self.num_classes, self.n_bins)
        self._add_sums(torch.float64, shape, "confidence", "right")
        self._add_sums(torch.int64, (), "rows")
        self._add_rule(self.ignore_index)

    def update(self, input: Tensor, target: Tensor) -> None:
        _check_batch(input, target, self.num_classes)
        confidence, right = torch.zeros_like(self.confidence), torch.zeros_like(self.right)
        rows = 0
        for logits, labels in _rows(input, target, self.num_classes, self.ignore_index):
            p = probabilities(logits)
            edges = torch.linspace(0, 1, self.n_bins + 1, dtype=p.dtype, device=p.device)
            bins = torch.bucketize(p, edges[1:-1], right=True)
            cells = bins + self.n_bins * torch.arange(self.num_classes, device=p.device)
            of_label = cells.gather(1, labels[:, None])[:, 0]
            confidence.view(-1).index_add_(0, cells.reshape(-1), p.reshape(-1).double())
            right.view(-1).index_add_(0, of_label, torch.ones_like(of_label, dtype=right.dtype))
            rows += len(labels)
        self.confidence += confidence
        self.right += right
        self.rows += rows

    def compute(self) -> Tensor:
        of_class = (self.confidence - self.right).abs().sum(1) / self.rows
        return of_class.mean() if self.average else of_class


class AverageKThreshold(_Judge):
    """λ of average-K classification: `evaluation.average_k_threshold` of softmax(logits), a Metric.

    It keeps the n·K + 1 largest probabilities, n the `max_samples`, on each rank; or all of them
    where `max_samples` is left out.

    Args:
        k: K > 0, need not be whole, at most C.
        max_samples: no more rows than that will come, those of all ranks together.
        ignore_index, **keywords: as in `LongTailedAccuracy`.

    `compute` is 0-dim float32; probabilities are rounded to it, here and in `AverageKAccuracy`.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: as `ClasswiseCalibrationError`; k above C, more
            rows than `max_samples`, or n·K < 1.

    Examples:
        >>> p = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]])
        >>> lpl_fused.metrics.AverageKThreshold(2)(p.log(), torch.tensor([0, 2, 1]))
        tensor(0.2250)
    """

    best: list[Tensor] | Tensor  # a tensor where it is that of all ranks
    rows: Tensor

    def __init__(
        self,
        k: float,
        *,
        max_samples: int | None = None,
        ignore_index: int = -100,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.k = POSITIVE("k", k)
        self.max_samples = Maybe(Integer(least=1))("max_samples", max_samples)
        self.ignore_index = Integer()("ignore_index", ignore_index)
        self.add_state("best", [], dist_reduce_fx="cat")
        self._add_sums(torch.int64, (), "rows")
        self._add_rule(self.k, self.max_samples, self.ignore_index)

    def update(self, input: Tensor, target: Tensor) -> None:
        classes = _check_batch(input, target)
        if self.k > classes:
            raise ValueError(f"k: expected at most C={classes}, got {self.k}")
        rows, best = int(self.rows), list(self.best)
        for logits, labels in _rows(input, target, classes, self.ignore_index):
            rows += len(labels)
            self._check_rows(rows)
            p = probabilities(logits).float()
            if self.max_samples is None:
                best.append(p.flatten())
            else:
                kept = torch.cat(best) if best else None
                best = [largest_scores(kept, p, int(self.max_samples * self.k) + 1)]
        self.rows.fill_(rows)
        self.best = best

    def compute(self) -> Tensor:
        self._check_rows(int(self.rows))
        rank = average_k_rank(int(self.rows), self.k)
        best = self.best if isinstance(self.best, Tensor) else torch.cat(self.best)
        return threshold_below(largest_scores(None, best, rank), rank)

    def _check_rows(self, rows: int) -> None:
        if self.max_samples is not None and rows > self.max_samples:
            raise ValueError(
                f"max_samples: expected as many as come, {rows} by now, got {self.max_samples}"
            )


class AverageKAccuracy(_Judge):
    """How sets of classes answer: `evaluation.average_k_accuracy` of softmax(logits) as a Metric.

    `compute` gives 0-dim tensors by name: "accuracy", "mean_size", "empty".

    Args:
        threshold: λ, from held-out rows, see `AverageKThreshold`.
        min_size: that many of the highest classes belong to every answer.
        ignore_index, **keywords: as in `LongTailedAccuracy`.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: as `ClasswiseCalibrationError`.

    Examples:
        >>> p = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]])
        >>> found = lpl_fused.metrics.AverageKAccuracy(0.225)(p.log(), torch.tensor([0, 2, 1]))
        >>> {name: float(value) for name, value in found.items()}
        {'accuracy': 1.0, 'mean_size': 2.0, 'empty': 0.0}
    """

    higher_is_better = True
    hits: Tensor
    sizes: Tensor
    empty: Tensor
    rows: Tensor

    def __init__(
        self,
        threshold: Tensor | float,
        *,
        min_size: int = 0,
        ignore_index: int = -100,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.threshold = Number(infinite=True)("threshold", threshold)
        self.min_size = Integer(least=0)("min_size", min_size)
        self.ignore_index = Integer()("ignore_index", ignore_index)
        self._add_sums(torch.int64, (), "hits", "sizes", "empty", "rows")
        self._add_rule(self.threshold, self.min_size, self.ignore_index)

    def update(self, input: Tensor, target: Tensor) -> None:
        classes = _check_batch(input, target)
        sums = torch.zeros(4, dtype=torch.int64, device=self.rows.device)
        for logits, labels in _rows(input, target, classes, self.ignore_index):
            p = probabilities(logits).float()
            sets = average_k_sets(p, self.threshold, min_size=self.min_size)
            sizes, hits = sets.sum(1), in_sets(sets, labels).sum().long()
            rows = torch.full_like(hits, len(labels))
            sums += torch.stack([hits, sizes.sum(), (sizes == 0).sum(), rows])
        for name, value in zip(("hits", "sizes", "empty", "rows"), sums, strict=True):
            getattr(self, name).add_(value)

    def compute(self) -> dict[str, Tensor]:
        sums = {"accuracy": self.hits, "mean_size": self.sizes, "empty": self.empty}
        return {name: value.double() / self.rows for name, value in sums.items()}


class LossVariation(_Judge):
    """What a perturbation does to each class: `evaluation.relative_loss_variation` as a Metric.

    `compute` is `(C,)` float64: above 0 where the perturbation raises the loss of the class, nan
    for a class without a sample of positive loss.

    Args:
        num_classes: C.
        ignore_index, **keywords: as in `LongTailedAccuracy`. `update` takes the two losses, each
            with `reduction="none"`, and the target, all of one shape.

    Raises:
        ModuleNotFoundError, TypeError, ValueError: as `LongTailedAccuracy`; losses that are nan, or
            infinite without the perturbation.

    Examples:
        >>> metric = lpl_fused.metrics.LossVariation(num_classes=2)
        >>> plain, perturbed = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 1.0, 6.0])
        >>> metric(plain, perturbed, torch.tensor([0, 0, 1]))
        tensor([-0.5000,  0.5000], dtype=torch.float64)
    """

    sums: Tensor
    samples: Tensor

    def __init__(self, num_classes: int, *, ignore_index: int = -100, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.num_classes = _CLASSES("num_classes", num_classes)
        self.ignore_index = Integer()("ignore_index", ignore_index)
        self._add_sums(torch.float64, (self.num_classes,), "sums")
        self._add_sums(torch.int64, (self.num_classes,), "samples")
        self._add_rule(self.ignore_index)

    def update(self, loss: Tensor, perturbed_loss: Tensor, target: Tensor) -> None:
        _LABELS("target", target)
        for name, values in (("loss", loss), ("perturbed_loss", perturbed_loss)):
            _LOSSES(name, values)
            if values.shape != target.shape:
                raise ValueError(
                    f"{name}: expected the shape {tuple(target.shape)} of the target, got"
                    f" {tuple(values.shape)}"
                )
        kept = ~is_ignored(target, self.ignore_index)
        loss, perturbed_loss, target = loss[kept], perturbed_loss[kept], target[kept]
        check_labels(target, self.num_classes, "target")
        sums, samples = variation_sums(loss, perturbed_loss, target, self.num_classes)
        self.sums += sums
        self.samples += samples

    def compute(self) -> Tensor:
        return self.sums / self.samples


class Susceptibility(_Judge):
    """ζ, how fast a model would memorise noise: `susceptibility.Susceptibility` as a Metric.

    `update(model, optimizer, input)` probes with a batch and leaves the model as it was; `compute`
    is the mean of r over the probes, 0-dim float64. `forward` gives the r of its batch. With
    torch.distributed every rank must update as often as the others.

    Args:
        num_classes, loss, seed: as in `susceptibility.Susceptibility`.
        **keywords: of `torchmetrics.Metric`.

    Raises:
        ModuleNotFoundError: torchmetrics is missing, of the extra "metrics".
        TypeError, ValueError: as `susceptibility.Susceptibility`.

    Examples:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> memory = lpl_fused.metrics.Susceptibility(num_classes=3)
        >>> for epoch in range(2):
        ...     memory.update(model, optimizer, torch.randn(8, 4))
        >>> bool(memory.compute() > 0)
        True
    """

    higher_is_better = False
    total: Tensor
    probes: Tensor

    def __init__(
        self,
        num_classes: int,
        loss: Loss = functional.cross_entropy,
        *,
        seed: int = 0,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        self.tracker = susceptibility.Susceptibility(num_classes, loss, seed=seed)
        self._add_sums(torch.float64, (), "total")
        self._add_sums(torch.int64, (), "probes")

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        input: Any,
        *,
        batch_size: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        # the tracker counts what it drew, whatever becomes of the states meanwhile
        self.total += self.tracker.probe(
            model, optimizer, input, batch_size=batch_size, scaler=scaler
        )
        self.probes += 1

    def compute(self) -> Tensor:
        return self.total / self.probes

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        """`update`, and r; torchmetrics' own would reset in between, and draw the same labels."""
        self.update(*arguments, **keywords)
        return self.tracker.last.clone()

    def reset(self) -> None:
        super().reset()
        for buffer in self.tracker.buffers(recurse=False):
            buffer.zero_()


def _check_logits(input: Tensor) -> None:
    _LOGITS("input", input)
    if input.dim() < 2 or input.shape[1] == 0:
        raise ValueError(f"input: expected {_LOGITS}, got shape {tuple(input.shape)}")


def _check_batch(input: Tensor, target: Tensor, num_classes: int | None = None) -> int:
    """C; raise where the two do not fit each other, or C is not `num_classes`."""
    _check_logits(input)
    _LABELS("target", target)
    classes = input.shape[1]
    if num_classes is not None and classes != num_classes:
        raise ValueError(
            f"input: expected logits of {num_classes} classes, got shape {tuple(input.shape)}"
        )
    if target.shape != input.shape[:1] + input.shape[2:]:
        raise ValueError(
            f"target: expected a class for each row of the input, {tuple(input.shape)}, got"
            f" {shown(target)}"
        )
    return classes


def _rows(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, C) and labels (n,) of the rows that count, in pieces that fit into memory."""
    step = max(1, _PIECE // max(1, input[:1].numel()))
    for part, labels in zip(input.split(step), target.split(step), strict=True):
        kept = ~is_ignored(labels, ignore_index)
        labels = labels[kept].long()
        check_labels(labels, num_classes, "target")
        yield part.movedim(1, -1)[kept], labels
