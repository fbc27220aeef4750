"""What losses ask of the training loop beside a call with logits and target.

A recipe names the hooks of its loss; the loop knows hooks alone, and no loss by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..class_stats import class_mean
from ..data import ImageFiles, LabelSets
from ..sampling import UniMix, difficulty_sampling_weights
from ..schedules import drw_weights, isda_strength
from ..validation import Target

# The reference schedules re-weight from epoch 160 of 200 (Cao et al. 2019).
DEFERRED_UNTIL = 0.8
# Zhang and Sabuncu prune from epoch 40 of 120 on, every 10th epoch.
_PRUNED_FROM, _PRUNED_EVERY = 1 / 3, 1 / 12


@dataclass(frozen=True)
class Batch:
    """A batch on its way through the model.

    Args:
        index: (N,) the numbers of the samples in the training data.
        target: their labels, mixed or not.
        features: (N, A), what the classifier sees.
        classifier_weight: (C, A).
    """

    index: Tensor
    target: Target
    features: Tensor
    classifier_weight: Tensor


@dataclass
class Run:
    """A loss in training, as its hooks see it.

    Args:
        criterion: the loss.
        epochs: how many there will be.
        cls_num_list: (C,) samples per class in `inputs`.
        inputs, targets: the training data, without what is held out.
        held_out: inputs kept out of training; empty unless the recipe asks for some.
        predict: inputs to raw logits, by the model in evaluation mode, without gradient; where a
            rank has some of the classes, to theirs.
        answers: inputs to the classes of the largest logits, likewise, of all classes.
        few_below, many_above: the borders of few- and many-shot classes.
    """

    criterion: Any
    epochs: int
    cls_num_list: Tensor
    inputs: Tensor | ImageFiles
    targets: Tensor | LabelSets
    held_out: Tensor | ImageFiles
    predict: Callable[[Tensor | ImageFiles], Tensor]
    answers: Callable[[Tensor | ImageFiles], Tensor]
    few_below: int
    many_above: int

    @property
    def labels(self) -> Tensor:
        """(n,) the targets of single-label data."""
        assert isinstance(self.targets, Tensor)
        return self.targets

    def class_accuracy(self) -> Tensor:
        """(C,) accuracy on the training data itself."""
        right = (self.answers(self.inputs) == self.labels).double()
        return class_mean(right, self.labels, len(self.cls_num_list))[0]


class Hook:
    """Does nothing; every hook overrides what its loss needs.

    One is made for every run, so that it may hold state. `of_logits`: it shows some to the loss.
    """

    of_logits: ClassVar[bool] = False

    def __init__(self, run: Run) -> None:
        self.run = run

    def before_epoch(self, epoch: int) -> None:
        """Called with the number of the epoch that begins, from 0."""

    def after_epoch(self, epoch: int) -> None:
        """Called with the number of the epoch that ended, from 0."""

    def sample_weights(self) -> Tensor | None:
        """(n,) weights by which this epoch's samples are drawn; None: each once."""
        return None

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Target]:
        """The batch that the model is trained on instead."""
        return inputs, target

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the loss is called with after logits and target."""
        return ()


class DeferredWeights(Hook):
    """Class-balanced weights after four fifths of the epochs (DRW)."""

    def before_epoch(self, epoch: int) -> None:
        counts = self.run.cls_num_list
        weights = drw_weights(counts, epoch, start_epoch=int(DEFERRED_UNTIL * self.run.epochs))
        self.run.criterion.weight = weights.to(counts.device)


class Stages(Hook):
    """Tells the loss which epoch begins (`DeferredStart`)."""

    def before_epoch(self, epoch: int) -> None:
        self.run.criterion.set_epoch(epoch)


class Mixed(Hook):
    """UniMix in every batch; images alone can be mixed."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if run.inputs.ndim != 4:
            raise ValueError("UniMix mixes images, and these inputs are none")
        self.unimix = UniMix(run.cls_num_list).to(run.inputs.device)

    def mix(self, inputs: Tensor, target: Tensor) -> tuple[Tensor, Target]:
        mixed: tuple[Tensor, Target] = self.unimix(inputs.float(), target)
        return mixed


class DifficultyWeights(Hook):
    """CDB-W: weights from the classes' accuracies after every epoch.

    On the training data: classes of one or two samples leave none to hold out, as the authors do.
    """

    def after_epoch(self, epoch: int) -> None:
        self.run.criterion.update(self.run.class_accuracy())


class DifficultySampling(Hook):
    """CDB-S: difficult classes are drawn more often; accuracies as `DifficultyWeights`."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.difficulty = torch.ones(len(run.cls_num_list), dtype=torch.float64)

    def after_epoch(self, epoch: int) -> None:
        self.difficulty = (1 - self.run.class_accuracy()).cpu()

    def sample_weights(self) -> Tensor:
        return difficulty_sampling_weights(self.run.labels.cpu(), self.difficulty)


class ShotGroups(Hook):
    """The group of a sample is whether its class is few-, medium- or many-shot."""

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        groups = shot_groups(self.run.cls_num_list, self.run.few_below, self.run.many_above)
        assert isinstance(batch.target, Tensor)
        return (groups[batch.target],)


class ClassGroups(Hook):
    """The group of a sample is its class."""

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        assert isinstance(batch.target, Tensor)
        return (batch.target,)


class FeatureNorm(Hook):
    """‖h‖₁ of the features (IB)."""

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.features.abs().sum(1),)


class FeaturePairs(Hook):
    """Features and classifier (ISDA), and a strength that grows with the epochs."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.strength = run.criterion.strength

    def before_epoch(self, epoch: int) -> None:
        self.run.criterion.strength = isda_strength(epoch, self.run.epochs, self.strength)

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch.features, batch.classifier_weight


class Pruned(Hook):
    """Sample numbers (truncated GCE), and a sweep over the training data now and then."""

    of_logits = True

    def before_epoch(self, epoch: int) -> None:
        start = max(1, round(_PRUNED_FROM * self.run.epochs))
        every = max(1, round(_PRUNED_EVERY * self.run.epochs))
        if epoch >= start and (epoch - start) % every == 0:
            labels = self.run.labels
            numbers = torch.arange(len(labels), device=labels.device)
            self.run.criterion.update(self.run.predict(self.run.inputs), labels, numbers)

    def arguments(self, batch: Batch) -> tuple[Tensor, ...]:
        return (batch.index,)


class Observed(Hook):
    """Held-out logits after every epoch (CALS)."""

    of_logits = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if len(run.held_out) == 0:
            raise ValueError("it learns on samples that are held out, and no class has enough")

    def after_epoch(self, epoch: int) -> None:
        self.run.criterion.observe(self.run.predict(self.run.held_out))
        self.run.criterion.update()


def shot_groups(cls_num_list: Tensor, few_below: int, many_above: int) -> Tensor:
    """(C,) the group of each class: few-, medium-, many-shot, numbered without gaps from 0."""
    shot = (cls_num_list >= few_below).long() + (cls_num_list > many_above).long()
    groups: Tensor = torch.unique(shot, return_inverse=True)[1]
    return groups


def hold_out(targets: Tensor, share: float, seed: int) -> Tensor:
    """A bool per sample: the ⌊share·n_c⌋ of every class that are kept out of training."""
    held = torch.zeros(len(targets), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for members in ((targets == label).nonzero()[:, 0] for label in targets.unique()):
        chosen = torch.randperm(len(members), generator=generator)[: int(share * len(members))]
        held[members[chosen]] = True
    return held


def parts(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Features and classifier of `build_model`'s model."""
    assert isinstance(model, nn.Sequential)
    body, head = model
    return body, head
