"""What a loss does to each class: found from logits and labels, or taken from a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional as LF
from ..class_stats import checked_counts
from ..evaluation import answers, variation_sums
from ..losses import LPLLoss
from ..training.hooks import Hook
from ..training.kinds import KINDS
from ..training.recipes import RECIPES, Facts, Recipe
from ..training.record import Record
from .files import InspectError, Saved

# A loss that changes by less is the same: its two values were rounded differently.
ROUNDING = 1e-5
_TABLES = ("offset", "margin", "scale")


@dataclass(frozen=True)
class Inspected:
    """Numbers of each class.

    Args:
        source: the file.
        loss: its name in `RECIPES`.
        options: of the loss, where they were given.
        seed: of the recorded run; None: these are saved logits.
        rows: how many were looked at, or None.
        columns: name → (C,) float64. "train" (training examples) and "loss_variation" always; of a
            record "accuracy" or "average_precision"; from logits "rows", "accuracy", "loss" and
            "perturbed_loss" (means over the rows), tables of the loss ("offset", "margin",
            "scale"), and of LPL, as means over the batches that have the class, "steps", "delta"
            (δ_c of the class's own logit) and "delta_norm" (‖δ_c‖₂).
        many_above, few_below: the borders of many- and few-shot classes.
    """

    source: str
    loss: str
    options: Mapping[str, Any]
    seed: int | None
    rows: int | None
    columns: dict[str, Tensor]
    many_above: int
    few_below: int

    @property
    def variation(self) -> Tensor:
        return self.columns["loss_variation"]

    def groups(self) -> dict[str, Tensor]:
        """(C,) bool: which classes are many-, medium-, few-shot; and all."""
        train = self.columns["train"]
        many, few = train > self.many_above, train < self.few_below
        return {
            "many": many,
            "medium": ~many & ~few,
            "few": few,
            "all": torch.ones_like(many),
        }

    def summary(self) -> dict[str, dict[str, float]]:
        """Of each group: its classes, how many are raised and lowered, means of the rest."""
        found = {}
        for name, group in self.groups().items():
            variation = self.variation[group]
            found[name] = {
                "classes": int(group.sum()),
                "raised": int((variation > ROUNDING).sum()),
                "lowered": int((variation < -ROUNDING).sum()),
                **{
                    column: float(values[group].nanmean())
                    for column, values in self.columns.items()
                    if column not in ("train", "rows")
                },
            }
        return found


def losses_of_logits() -> list[str]:
    """The names of losses that need logits and labels alone."""
    return [name for name, recipe in RECIPES.items() if _needs_logits_alone(recipe)]


def _needs_logits_alone(recipe: Recipe) -> bool:
    return (
        not recipe.multi_label
        and recipe.held_out == 0
        and all(hook.arguments is Hook.arguments and hook.mix is Hook.mix for hook in recipe.hooks)
    )


def of_logits(
    saved: Saved,
    loss: str,
    options: Mapping[str, Any],
    *,
    batch_size: int,
    ignore_index: int,
    many_above: int,
    few_below: int,
    on_batch: Callable[[], None] = lambda: None,
) -> Inspected:
    """One sweep over the logits, in batches: LPL's δ is that of a class in a batch.

    Raises:
        InspectError: a loss that needs more than logits and labels, an option that it has not;
            numbers that are none; no row that counts.
    """
    recipe = _recipe(loss, options)
    counts = _counts(saved, batch_size, ignore_index)
    facts = Facts(
        cls_num_list=counts,
        num_samples=int(counts.sum()),
        num_features=1,
        epochs=1,
        few_below=few_below,
        many_above=many_above,
    )
    try:
        criterion = KINDS[False].perturbing(recipe.build(facts, options))
    except (TypeError, ValueError) as error:
        raise InspectError(f"loss {loss!r}: {error}") from error
    torch.manual_seed(0)  # of losses that draw noise
    sums = _Sums(saved.num_classes)
    first = 0
    with torch.no_grad():
        for logits, labels in saved.batches(batch_size, ignore_index):
            counted = (labels != ignore_index).nonzero()[:, 0]
            if len(counted):
                logits, labels = logits[counted], labels[counted]
                if recipe.cosine_head and logits.abs().max() > 1 + 1e-3:
                    raise InspectError(
                        f"{saved.path}: {loss!r} expects cosines as logits, in [-1, 1], got"
                        f" {float(logits.abs().max()):.3g} in rows {first} to"
                        f" {first + int(counted[-1])}"
                    )
                plain = LF.cross_entropy(logits, labels, reduction="none")
                if not plain.isfinite().all():
                    row = first + int(counted[(~plain.isfinite()).nonzero()[0]])
                    raise InspectError(
                        f"{saved.path}: the cross-entropy of row {row} is no finite number: the"
                        " logit of its class is -inf, or one is inf"
                    )
                sums.add(criterion, logits, labels)
            first += batch_size
            on_batch()
    columns = sums.columns(criterion, counts)
    rows = int(columns["rows"].sum())
    if rows == 0:
        raise InspectError(f"{saved.path}: all labels are --ignore-index {ignore_index}")
    return Inspected(
        str(saved.path), loss, dict(options), None, rows, columns, many_above, few_below
    )


def of_record(source: str, record: Record, loss: str | None, seed: int | None) -> Inspected:
    """What a recorded training says of one loss and seed, by default the last of its losses that is
    not the reference, and the first seed.

    Raises:
        InspectError: the record has no such run.
    """
    finished = record.finished_losses()
    if loss is None:
        others = [name for name in finished if name != record.kind.reference]
        loss = (others or finished or [""])[-1]
    seeds = [run["seed"] for run in record.of_loss(loss)]
    if not seeds:
        raise InspectError(
            f"{source}: no finished run of loss {loss!r}; it has {', '.join(finished) or 'none'}"
        )
    if seed is None:
        seed = seeds[0]
    if seed not in seeds:
        raise InspectError(
            f"{source}: no finished run of loss {loss!r} with seed {seed}; it has seeds"
            f" {', '.join(map(str, seeds))}"
        )
    by_class = record.kind.by_class
    run = next(run for run in record.of_loss(loss) if run["seed"] == seed)
    columns = {
        "train": record.class_counts[seed],
        by_class.removeprefix("class_"): run[by_class],
        "loss_variation": run["loss_variation"],
    }
    return Inspected(
        source,
        loss,
        record.settings.loss_options.get(loss, {}),
        seed,
        None,
        {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()},
        record.settings.many_above,
        record.settings.few_below,
    )


def _recipe(loss: str, options: Mapping[str, Any]) -> Recipe:
    fitting = losses_of_logits()
    if loss not in fitting:
        what = "needs more than logits and labels" if loss in RECIPES else "is none"
        raise InspectError(f"loss {loss!r} {what}; of these one can be asked: {', '.join(fitting)}")
    known = RECIPES[loss].known_options()
    for option in options:
        if option not in known:
            raise InspectError(
                f"--set {loss}.{option}: no option of the loss; it has {', '.join(known) or 'none'}"
            )
    return RECIPES[loss]


def _counts(saved: Saved, batch_size: int, ignore_index: int) -> Tensor:
    """(C,) training examples: those of the file, or else how often each label comes."""
    if saved.counts is not None:
        try:
            return checked_counts(saved.counts, name="--counts")
        except (TypeError, ValueError) as error:
            raise InspectError(f"{saved.path}: {error}") from error
    counts = torch.zeros(saved.num_classes, dtype=torch.int64)
    for labels in saved.label_pieces(max(batch_size, 1 << 16), ignore_index):
        counts += torch.bincount(labels[labels != ignore_index], minlength=saved.num_classes)
    if not counts.any():
        raise InspectError(f"{saved.path}: all labels are --ignore-index {ignore_index}")
    return counts


class _Sums:
    """What is added up over the batches, class by class."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.sums: dict[str, Tensor] = {}

    def _of(self, name: str) -> Tensor:
        return self.sums.setdefault(name, torch.zeros(self.num_classes, dtype=torch.float64))

    def _add(self, name: str, classes: Tensor, values: Tensor | float) -> None:
        values = torch.as_tensor(values, dtype=torch.float64).expand(classes.shape)
        self._of(name).index_add_(0, classes, values)

    def add(self, criterion: Any, logits: Tensor, labels: Tensor) -> None:
        learned = isinstance(criterion, LPLLoss) and criterion.variant is None
        steps = _steps(criterion, logits, labels) if learned else None
        plain, perturbed, _ = KINDS[False].class_losses(
            _fixed(criterion, steps), logits, labels, []
        )
        variation, samples = variation_sums(plain, perturbed, labels, self.num_classes)
        self._of("variation").add_(variation)
        self._of("samples").add_(samples)
        self._add("rows", labels, 1.0)
        self._add("correct", labels, (answers(logits) == labels).double())
        self._add("loss", labels, plain.double())
        self._add("perturbed_loss", labels, perturbed.double())
        if steps is not None:
            classes, delta = LF.lpl_perturbation(
                logits,
                labels,
                steps,
                **_how(criterion, logits),
                **_bounds(criterion),
                backend=criterion.backend,
            )
            own = delta.gather(1, classes[:, None])[:, 0]
            self._add("batches", classes, 1.0)
            self._add("steps", classes, steps[classes].double())
            self._add("delta", classes, own.double())
            self._add("delta_norm", classes, delta.double().norm(dim=1))

    def columns(self, criterion: Any, counts: Tensor) -> dict[str, Tensor]:
        rows = self._of("rows")
        found = {
            "train": counts.double(),
            "rows": rows,
            "accuracy": self._of("correct") / rows,
            "loss": self._of("loss") / rows,
            "perturbed_loss": self._of("perturbed_loss") / rows,
            "loss_variation": self._of("variation") / self._of("samples"),
        }
        tables = getattr(criterion, "perturbation", lambda logits: None)
        perturbation = tables(torch.zeros(1, self.num_classes))
        for name in _TABLES:
            table = getattr(perturbation, name, None)
            if table is not None:
                found[name] = table.detach().double().expand(self.num_classes)
        if "batches" in self.sums:
            for name in ("steps", "delta", "delta_norm"):
                found[name] = self._of(name) / self._of("batches")
        return found


def _how(criterion: LPLLoss, logits: Tensor) -> dict[str, Any]:
    return {
        "step_size": criterion.step_size,
        "normalize": criterion.normalize,
        "perturbation": criterion.perturbation(logits),
    }


def _bounds(criterion: LPLLoss) -> dict[str, Any]:
    """What is done to the logits before."""
    return {"softcap": criterion.softcap, "norm": criterion.norm}


def _steps(criterion: LPLLoss, logits: Tensor, labels: Tensor) -> Tensor:
    """(C,) of this batch; asked for once, as running means learn from being asked."""
    if criterion.split == "long-tail":
        return criterion.steps
    tables = criterion.perturbation(logits)
    moved = LF.cross_entropy(
        logits, labels, perturbation=tables, reduction="none", **_bounds(criterion)
    )
    return criterion.balanced_steps(moved, labels)


def _fixed(criterion: Any, steps: Tensor | None) -> Any:
    """The loss at these steps."""
    if steps is None:
        return criterion
    return lambda logits, labels: LF.lpl_cross_entropy(
        logits, labels, steps, **_how(criterion, logits), **criterion.keywords()
    )
