"""The two kinds of data, and what a comparison measures on each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional as LF
from ..average_precision import MeanAveragePrecision, mean_average_precision
from ..data import MULTI_LABEL, LabelSets, LongTailedData
from ..evaluation import Accuracy, accuracy, answers
from ..losses import LADELoss

Scores = Accuracy | MeanAveragePrecision

_GROUPS = {"many": "many-shot", "medium": "medium-shot", "few": "few-shot"}


class ClassLosses(NamedTuple):
    """Losses (n,) of single labels and the classes (n,) of these."""

    plain: Tensor
    perturbed: Tensor
    classes: Tensor


class Kind(ABC):
    """What is measured, how it is called, and which losses are compared unless others are named.

    `measures` are attributes of what `judge` gives, with their headings; `by_class` is the name of
    its `per_class` in the record, `class_metric` in pictures.
    """

    name: ClassVar[str]
    multi_label: ClassVar[bool]
    metric: ClassVar[str]
    class_metric: ClassVar[str]
    measures: ClassVar[Mapping[str, str]]
    by_class: ClassVar[str]
    default_losses: ClassVar[tuple[str, ...]]

    @property
    def reference(self) -> str:
        """The loss that others are compared with."""
        return self.default_losses[0]

    @abstractmethod
    def judge(self, logits: Tensor, data: LongTailedData, **borders: int) -> Scores:
        """The raw logits (M, C) of the test data, of single labels or the classes (M,) that they
        answer; `borders` as in `evaluation.accuracy`."""

    @abstractmethod
    def perturbing(self, criterion: Any) -> Any:
        """The part of a loss that perturbs logits, its reduction "none" from now on."""

    @abstractmethod
    def class_losses(
        self, criterion: nn.Module, logits: Tensor, target: Tensor, extra: list[Tensor]
    ) -> ClassLosses:
        """Losses of a batch without and with the perturbation of what `perturbing` gave."""


class SingleLabel(Kind):
    """Every example has one class."""

    name = "single-label"
    multi_label = False
    metric = "accuracy"
    class_metric = "Accuracy"
    measures: ClassVar = {"overall": "overall", "balanced": "balanced", **_GROUPS}
    by_class = "class_accuracy"
    default_losses = ("ce", "la", "ldam+drw", "vs", "lpl", "la+lpl")

    def judge(self, logits: Tensor, data: LongTailedData, **borders: int) -> Accuracy:
        assert isinstance(data.test_targets, Tensor)
        found = (answers(logits) if logits.dim() == 2 else logits).cpu()
        return accuracy(found, data.test_targets, data.cls_num_list, **borders)

    def perturbing(self, criterion: Any) -> Any:
        # Weights of rows, and terms that are added to a base, perturb no logits.
        criterion = getattr(criterion, "base", criterion)
        if isinstance(criterion, LADELoss):  # a mean for its users: its term couples the batch
            criterion.derived("reduction", "none")
        else:
            criterion.reduction = "none"
        return criterion

    def class_losses(
        self, criterion: nn.Module, logits: Tensor, target: Tensor, extra: list[Tensor]
    ) -> ClassLosses:
        # Losses of cosines see s·u where a plain model has u: the scale belongs to the logits.
        scale: Any = getattr(criterion, "s", 1.0)
        plain = LF.cross_entropy(scale * logits, target, reduction="none")
        return ClassLosses(plain, criterion(logits, target, *extra), target)


class MultiLabel(Kind):
    """An example has any number of classes."""

    name = "multi-label"
    multi_label = True
    metric = "mAP"
    class_metric = "Average precision"
    measures: ClassVar = {"overall": "overall", **_GROUPS}
    by_class = "class_average_precision"
    default_losses = ("bce", "focal-bce", "db", "ml-lpl")

    def judge(self, logits: Tensor, data: LongTailedData, **borders: int) -> MeanAveragePrecision:
        assert isinstance(data.test_targets, LabelSets)
        labels = data.test_targets.dense()
        return mean_average_precision(logits.cpu(), labels, data.cls_num_list, **borders)

    def perturbing(self, criterion: Any) -> Any:
        # LPL perturbs the logits of the base that it stands on, which reduces.
        getattr(criterion, "base", criterion).reduction = "none"
        return criterion

    def class_losses(
        self, criterion: nn.Module, logits: Tensor, target: Tensor, extra: list[Tensor]
    ) -> ClassLosses:
        # of the positives: a class's negatives are nearly all the data, whatever the class
        positive = target > 0
        scale: Any = getattr(criterion, "s", 1.0)
        plain = F.binary_cross_entropy_with_logits(scale * logits, target, reduction="none")
        perturbed = criterion(logits, target, *extra)
        return ClassLosses(plain[positive], perturbed[positive], positive.nonzero()[:, 1])


KINDS: Mapping[bool, Kind] = {kind.multi_label: kind for kind in (SingleLabel(), MultiLabel())}


def kind_of(data: str) -> Kind:
    """The kind of the data set of that name."""
    return KINDS[data in MULTI_LABEL]
