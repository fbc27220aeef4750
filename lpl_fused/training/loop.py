"""Training of one model with one loss and one seed: the same for every loss but the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import functional as LF
from ..data import LongTailedData
from ..evaluation import Accuracy, accuracy, relative_loss_variation
from ..losses import CrossEntropyLoss
from .models import build_model
from .recipes import RECIPES
from .settings import RunSettings

MOMENTUM = 0.9
_EVALUATION_BATCH = 1024
_WARM_UP_STEPS = 3  # left out of the measured step time: allocation, kernel builds


class DivergedError(ArithmeticError):
    """A training loss is no longer finite."""


@dataclass(frozen=True)
class Trained:
    """What one training run came to, after its last epoch.

    Args:
        accuracy: on the test data, from raw logits.
        loss_variation: `(C,)`, relative loss variation per class on the training data.
        step_ms: median time of a training step (forward, loss, backward, update).
        loss_ms: median time of the loss within it, forward and backward to the logits.
    """

    accuracy: Accuracy
    loss_variation: Tensor
    step_ms: float
    loss_ms: float


def steps_per_epoch(data: LongTailedData, settings: RunSettings) -> int:
    """Number of batches in an epoch: as few as hold all examples, of equal size to within one."""
    return math.ceil(len(data.train_targets) / settings.batch_size)


def train(
    data: LongTailedData,
    loss: str,
    seed: int,
    settings: RunSettings,
    on_step: Callable[[], None] = lambda: None,
) -> Trained:
    """Train a small model with SGD (Nesterov momentum 0.9, cosine learning rate) and evaluate it.

    Args:
        data: what to learn; the loss gets its `cls_num_list`.
        loss: a name in `RECIPES`.
        seed: of the model's initialisation and of the order of the examples.
        settings: the same for every loss of a comparison.
        on_step: called after every step.

    Raises:
        KeyError: unknown loss.
        DivergedError: the loss is no longer finite.
    """
    recipe = RECIPES[loss]
    device = torch.device(settings.device)
    torch.manual_seed(seed)
    model = build_model(data, cosine_head=recipe.cosine_head).to(device)
    counts = data.cls_num_list.to(device)
    criterion = recipe.build(counts, settings.loss_options.get(loss, {}), settings.backend)
    criterion.to(device)
    inputs, targets = data.train_inputs.to(device), data.train_targets.to(device)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=settings.weight_decay,
    )
    batches = steps_per_epoch(data, settings)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
    order = torch.Generator().manual_seed(seed)
    timer = _StepTimer(device)

    model.train()
    for epoch in range(settings.epochs):
        if recipe.deferred:
            criterion.weight = recipe.class_weights(counts, epoch, settings.epochs)
        for batch in torch.randperm(len(targets), generator=order).tensor_split(batches):
            batch = batch.to(device)
            timer.mark()
            logits = model(inputs[batch])
            # The graph is cut at the logits, so that the loss's part of the step can be timed.
            leaf = logits.detach().requires_grad_()
            timer.mark()
            value = criterion(leaf, targets[batch])
            value.backward()
            timer.mark()
            optimizer.zero_grad()
            logits.backward(leaf.grad)
            optimizer.step()
            scheduler.step()
            timer.mark()
            on_step()
        if not math.isfinite(value.item()):
            raise DivergedError(
                f"the {loss} loss of seed {seed} is {value.item()} after epoch {epoch + 1}; "
                f"the learning rate {settings.lr} may be too high"
            )

    model.eval()
    step_ms, loss_ms = timer.medians()
    return Trained(
        accuracy=_evaluate(model, data, settings),
        loss_variation=_loss_variation(model, criterion, data, settings),
        step_ms=step_ms,
        loss_ms=loss_ms,
    )


@torch.no_grad()
def _evaluate(model: nn.Module, data: LongTailedData, settings: RunSettings) -> Accuracy:
    predictions = [
        model(inputs.to(settings.device)).argmax(dim=1).cpu()
        for inputs in data.test_inputs.split(_EVALUATION_BATCH)
    ]
    return accuracy(
        torch.cat(predictions),
        data.test_targets,
        data.cls_num_list,
        many_above=settings.many_above,
        few_below=settings.few_below,
    )


@torch.no_grad()
def _loss_variation(
    model: nn.Module, criterion: CrossEntropyLoss, data: LongTailedData, settings: RunSettings
) -> Tensor:
    """Relative loss variation per class `(C,)` over the training data.

    In batches of the training's size, since a learned perturbation is that of a class *in a batch*,
    and with the criterion in training mode, since it learns none in `eval()`.
    """
    criterion.reduction = "none"
    # Losses of cosines see s·u where a plain model has u: the scale belongs to the logits.
    scale = getattr(criterion, "s", 1.0)
    order = torch.randperm(len(data.train_targets), generator=torch.Generator().manual_seed(0))
    plain, perturbed = [], []
    for batch in order.tensor_split(steps_per_epoch(data, settings)):
        logits = model(data.train_inputs[batch].to(settings.device))
        target = data.train_targets[batch].to(settings.device)
        plain.append(LF.cross_entropy(scale * logits, target, reduction="none").cpu())
        perturbed.append(criterion(logits, target).cpu())
    return relative_loss_variation(
        torch.cat(plain), torch.cat(perturbed), data.train_targets[order], data.num_classes
    )


class _StepTimer:
    """Marks the four borders of a step: start, loss start, loss end, end."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []

    def mark(self) -> None:
        if self._on_gpu:  # an event, not a clock: nothing waits for the GPU within a step
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
        else:
            self._seconds.append(time.perf_counter())

    def medians(self) -> tuple[float, float]:
        """Median milliseconds of the whole step and of the loss within it."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._median(0, 3), self._median(1, 2)

    def _median(self, border: int, later: int) -> float:
        if self._on_gpu:
            pairs = zip(self._events[border::4], self._events[later::4], strict=True)
            durations: list[float] = [start.elapsed_time(end) for start, end in pairs]
        else:
            times = zip(self._seconds[border::4], self._seconds[later::4], strict=True)
            durations = [1e3 * (end - start) for start, end in times]
        return statistics.median(durations[_WARM_UP_STEPS:] or durations)
