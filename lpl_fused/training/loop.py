"""Training of one model with one loss and one seed: the same for every loss but the loss."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..arguments import Choice, Instance, Integer, Maybe, function
from ..data import ImageFiles, LabelSets, LongTailedData
from ..data.labels import class_counts
from ..distributed import checked_group
from ..evaluation import relative_loss_variation
from .batches import all_batches, batches, subset
from .heads import answers, class_losses, keep_own_classes, share_classes
from .heads import loss as linear_loss
from .hooks import Batch, Hook, Run, hold_out, parts
from .kinds import KINDS, Scores
from .models import build_model
from .ranks import Ranks
from .recipes import RECIPES, Facts
from .settings import RunSettings

MOMENTUM = 0.9
_WARM_UP_STEPS = 3  # left out of the measured step time: allocation, kernel builds


class DivergedError(ArithmeticError):
    """A training loss is no longer finite."""


@dataclass(frozen=True)
class Trained:
    """What one training run came to, after its last epoch.

    Args:
        scores: accuracy or mean average precision on the test data, from raw logits.
        loss_variation: `(C,)`, relative loss variation per class on the training data.
        step_ms: median time of a training step (forward, loss, backward, update).
        loss_ms: median time of the loss within it, forward and backward to the logits; beside
            `linear` the last layer is part of it.
        train_loss: of each epoch, the mean over its batches.
    """

    scores: Scores
    loss_variation: Tensor
    step_ms: float
    loss_ms: float
    train_loss: tuple[float, ...] = ()


class Prepared(NamedTuple):
    """What `prepare` makes."""

    model: nn.Module
    run: Run
    hooks: list[Hook]


def steps_per_epoch(data: LongTailedData, settings: RunSettings) -> int:
    """Number of batches in an epoch: as few as hold all examples, of equal size to within one."""
    Instance(LongTailedData, "data of `load`")("data", data)
    Instance(RunSettings, "a RunSettings")("settings", settings)
    return math.ceil(len(data.train_targets) / settings.batch_size)


def prepare(
    data: LongTailedData, loss: str, seed: int, settings: RunSettings, process_group: Any = None
) -> Prepared:
    """Model, loss and hooks of a run, and nothing trained yet.

    Raises:
        KeyError: unknown loss.
        TypeError, ValueError: an option that the loss refuses, or data that it cannot be used on;
            a loss that needs logits, beside `linear`.
    """
    recipe = RECIPES[loss]
    device = torch.device(settings.device)
    torch.manual_seed(seed)
    model = build_model(data, cosine_head=recipe.cosine_head, backbone=settings.backbone)
    model = model.to(device)
    if recipe.uniform_bias:
        share = float(data.cls_num_list.sum()) / (len(data.train_targets) * data.num_classes)
        nn.init.constant_(parts(model)[1].bias, -math.log(max(1.0, 1 / share - 1)))  # type: ignore[arg-type]
    held_out, targets = _hold_out(data.train_targets, recipe.held_out, seed)
    counts = class_counts(targets, data.num_classes).to(device)
    facts = Facts(
        cls_num_list=counts,
        num_samples=len(targets),
        num_features=parts(model)[1].in_features,  # type: ignore[arg-type]
        epochs=settings.epochs,
        few_below=settings.few_below,
        many_above=settings.many_above,
        backend=settings.backend,
    )
    criterion = recipe.build(facts, settings.loss_options.get(loss, {})).to(device)
    if settings.linear:
        recipe.check_linear(criterion)
    if process_group is not None:
        # the whole head was made first, so that a seed means the same on any number of ranks
        keep_own_classes(parts(model)[1], process_group)
        share_classes(criterion, process_group)
    run = Run(
        criterion=criterion,
        epochs=settings.epochs,
        cls_num_list=counts,
        inputs=subset(data.train_inputs, ~held_out).to(device),
        targets=targets.to(device),
        held_out=subset(data.train_inputs, held_out).to(device),
        predict=lambda inputs: torch.cat(list(_predicted(model, inputs))),
        answers=lambda inputs: answers(_predicted(model, inputs), process_group),
        few_below=settings.few_below,
        many_above=settings.many_above,
    )
    return Prepared(model, run, [hook(run) for hook in recipe.hooks])


def _hold_out(
    targets: Tensor | LabelSets, share: float, seed: int
) -> tuple[Tensor, Tensor | LabelSets]:
    """A bool per sample: whether it is held out; and the targets of the others."""
    if share == 0:
        return torch.zeros(len(targets), dtype=torch.bool), targets
    assert isinstance(targets, Tensor)
    held_out = hold_out(targets, share, seed)
    return held_out, targets[~held_out]


def train(
    data: LongTailedData,
    loss: str,
    seed: int,
    settings: RunSettings,
    on_step: Callable[[], None] = lambda: None,
    process_group: Any = None,
) -> Trained:
    """Train a model with SGD (momentum 0.9) and evaluate it.

    Args:
        data: what to learn; the loss gets its `cls_num_list`.
        loss: a name in `RECIPES`.
        seed: of the model's initialisation and of the order of the examples.
        settings: the same for every loss of a comparison.
        on_step: called after every step.
        process_group: ranks of torch.distributed that have some classes of the last layer each, and
            all the same data, beside `settings.linear`. What comes out is the same on all of them.

    Raises:
        TypeError, ValueError: unknown loss; as `prepare`.
        DivergedError: the loss is no longer finite.
    """
    function("on_step", on_step)
    Instance(LongTailedData, "data of `load`")("data", data)
    Choice(*RECIPES)("loss", loss)
    seed = Integer()("seed", seed)
    Instance(RunSettings, "a RunSettings")("settings", settings)
    process_group = Maybe(checked_group)("process_group", process_group)
    if process_group is not None and not settings.linear:
        raise ValueError("process_group: expected settings with linear=True beside it")
    device, ranks = torch.device(settings.device), Ranks(process_group)
    beside = () if process_group is None else (process_group,)
    model, run, hooks = prepare(data, loss, seed, settings, *beside)
    body, head = parts(model)
    # One learning rate for any number of classes: a multi-label loss is 1/C of a sum over them.
    terms = data.num_classes if data.multi_label else 1
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.lr * terms,
        momentum=MOMENTUM,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay / terms,
    )
    # of all the data, so that a loss that holds some out takes as many steps as the others
    steps = steps_per_epoch(data, settings)
    scheduler = _schedule(optimizer, settings, steps)
    order = torch.Generator().manual_seed(seed)
    timer = _StepTimer(device)
    train_loss = []

    model.train()
    for epoch in range(settings.epochs):
        for hook in hooks:
            hook.before_epoch(epoch)
        total = torch.zeros((), dtype=torch.float64, device=device)
        numbers = _order(run, hooks, order).tensor_split(steps)
        for index, inputs in batches(run.inputs, numbers, order if settings.augment else None):
            timer.mark()
            target = run.targets[index]
            for hook in hooks:
                inputs, target = hook.mix(inputs, target)  # type: ignore[assignment]
            features = body(inputs)
            outputs = [features] if settings.linear else [features, head(features)]
            optimizer.zero_grad()
            # The graph is cut before the loss, so that its part of the step can be timed.
            leaves = [part.detach().requires_grad_() for part in outputs]
            batch = Batch(index, target, leaves[0], head.weight)  # type: ignore[arg-type]
            timer.mark()
            if settings.linear:
                value = linear_loss(run.criterion, head, leaves[0], target)
            else:
                value = run.criterion(leaves[1], target, *_arguments(hooks, batch))
            value.backward()
            timer.mark()
            reached = [  # most losses do not look at the features beside the logits
                (part, leaf.grad)
                for part, leaf in zip(outputs, leaves, strict=True)
                if leaf.grad is not None
            ]
            torch.autograd.backward([part for part, _ in reached], [grad for _, grad in reached])
            optimizer.step()
            scheduler.step()
            timer.mark()
            total += value.detach()
            on_step()
        train_loss.append(float(total) / steps)
        ranks.equalise(body)
        if not math.isfinite(value.item()):
            raise DivergedError(
                f"the {loss} loss of seed {seed} is {value.item()} after epoch {epoch + 1}; "
                f"the learning rate {settings.lr} may be too high"
            )
        for hook in hooks:
            hook.after_epoch(epoch)

    step_ms, loss_ms = timer.medians()
    return Trained(
        scores=KINDS[data.multi_label].judge(
            run.answers(data.test_inputs) if settings.linear else run.predict(data.test_inputs),
            data,
            many_above=settings.many_above,
            few_below=settings.few_below,
        ),
        loss_variation=_loss_variation(model, run, hooks, settings, process_group),
        step_ms=step_ms,
        loss_ms=loss_ms,
        train_loss=tuple(train_loss),
    )


def _schedule(
    optimizer: torch.optim.Optimizer, settings: RunSettings, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of every step: a cosine, or steps after epochs; before it a warm-up."""
    if not settings.lr_steps and not settings.warm_up:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)

    def share(step: int) -> float:
        epoch = step // steps
        if epoch < settings.warm_up:  # the same within an epoch, as in the code of LDAM
            return (epoch + 1) / settings.warm_up
        if settings.lr_steps:
            return settings.lr_decay ** sum(epoch >= border for border in settings.lr_steps)
        falling = max(1, (settings.epochs - settings.warm_up) * steps)
        done = (step - settings.warm_up * steps) / falling
        return (1 + math.cos(math.pi * done)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _order(run: Run, hooks: Sequence[Hook], generator: torch.Generator) -> Tensor:
    """The numbers of an epoch's samples: each once, or drawn by a hook's weights."""
    for hook in hooks:
        weights = hook.sample_weights()
        if weights is not None:
            return torch.multinomial(
                weights, len(run.targets), replacement=True, generator=generator
            )
    return torch.randperm(len(run.targets), generator=generator)


def _arguments(hooks: Sequence[Hook], batch: Batch) -> list[Tensor]:
    return [argument for hook in hooks for argument in hook.arguments(batch)]


@torch.no_grad()
def _predicted(model: nn.Module, inputs: Tensor | ImageFiles) -> Iterator[Tensor]:
    """Raw logits in evaluation mode, rows after rows; the model is left in the mode it had."""
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for part in all_batches(inputs):
            yield model(part.to(device))
    finally:
        model.train(mode)


@torch.no_grad()
def _loss_variation(
    model: nn.Module, run: Run, hooks: Sequence[Hook], settings: RunSettings, process_group: Any
) -> Tensor:
    """Relative loss variation per class `(C,)` over the training data.

    In batches of the training's size, since a learned perturbation is that of a class *in a batch*,
    and with the criterion in training mode, since it learns none in `eval()`. Of a loss that stands
    on a base it is the base's: weights of rows, and terms that are added, perturb no logits.
    """
    model.eval()
    body, head = parts(model)
    kind = KINDS[isinstance(run.targets, LabelSets)]
    criterion = kind.perturbing(run.criterion)
    count = len(run.targets)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    found = []
    numbers = order.tensor_split(math.ceil(count / settings.batch_size))
    for index, inputs in batches(run.inputs, numbers):
        features, target = body(inputs), run.targets[index]
        if settings.linear:
            assert isinstance(target, Tensor)
            found.append(class_losses(criterion, head, features, target, process_group))
            continue
        logits = head(features)
        batch = Batch(index, target, features, head.weight)  # type: ignore[arg-type]
        extra = _arguments(hooks, batch) if criterion is run.criterion else []
        found.append(kind.class_losses(criterion, logits, target, extra))
    plain, perturbed, classes = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return relative_loss_variation(plain, perturbed, classes, len(run.cls_num_list))


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
