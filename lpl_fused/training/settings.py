"""The settings of a comparison: what is the same for every loss and seed in it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arguments import FLAG, NOT_NEGATIVE, POSITIVE, Check, Choice, Integer, Maybe, shown
from ..data import NAMES, check_options
from ..evaluation import FEW_BELOW, MANY_ABOVE
from .kinds import kind_of
from .recipes import RECIPES

# Keywords of `lpl_fused.data.load` by data set, with the defaults of a comparison.
_DATA_OPTIONS: dict[str, dict[str, Any]] = {
    "glyphs": {"num_classes": 500, "imbalance": 100.0, "profile": "exp", "largest": 200},
    "digits": {"imbalance": 100.0, "profile": "exp", "largest": 100},
    "tokens": {"num_classes": 10_000, "train_samples": 250_000},
    "tags": {"num_classes": 1000},
    "folder": {"path": None, "image_size": 32, "test_share": None, "skip_broken": False},
}
_TRAINING: dict[str, dict[str, Any]] = {
    # One thread: small steps gain little from more, and threads that wait for each other at every
    # operation make them four times slower once another program wants a core.
    "glyphs": {"epochs": 5, "batch_size": 256, "lr": 0.5, "threads": 1},
    # The largest class has 100 images, so the usual thresholds 100 and 20 would leave no many-shot.
    "digits": {
        "epochs": 100,
        "batch_size": 64,
        "lr": 0.1,
        "threads": 1,
        "many_above": 20,
        "few_below": 5,
    },
    "tokens": {"epochs": 3, "batch_size": 256, "lr": 1.0, "weight_decay": 1e-5, "threads": 1},
    "tags": {"epochs": 20, "batch_size": 128, "lr": 0.1, "weight_decay": 1e-2, "threads": 1},
    "folder": {"epochs": 30, "batch_size": 64, "lr": 0.05},
}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name}: expected a name, got {shown(value)}")
    return value


def names_and_values(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name}: expected names and values, got {shown(value)}")
    return value


_CHECKS: dict[str, Check] = {
    "epochs": Integer(least=1),
    # Batches of equal size hold at least 2 examples then, which batch normalisation needs.
    "batch_size": Integer(least=3),
    "lr": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "device": _text,
    "threads": Maybe(Integer(least=1, most=1024)),
    "backend": _text,
    "many_above": Integer(least=0),
    "few_below": Integer(least=0),
    "linear": FLAG,
    "shard_classes": FLAG,
    "data_options": names_and_values,
    "loss_options": names_and_values,
}


# what older records do not have, and is as its default there
_ADDED = frozenset({"linear", "shard_classes"})


class SettingsError(ValueError):
    """A comparison cannot be made as asked."""


@dataclass(frozen=True)
class RunSettings:
    """All that decides the outcome of a (loss, seed) pair beside the pair itself.

    Args:
        data: name of the data set.
        data_options: keywords of `lpl_fused.data.load`.
        epochs: passes over the training data.
        batch_size: examples per step.
        lr: first learning rate of the cosine schedule; of multi-label data, whose losses are means
            over the classes too, that of their sum over classes.
        weight_decay: of all parameters, beside the same loss.
        device: a torch device.
        threads: CPU threads; None is torch's own choice.
        backend: of the losses, see `lpl_fused.explain`.
        many_above: classes with more training examples are many-shot.
        few_below: classes with fewer training examples are few-shot.
        linear: the losses take the last layer in place of logits, which nobody holds.
        shard_classes: the ranks of torch.distributed have some of the classes each; `linear`, too.
        loss_options: keywords of single losses, `{loss: {keyword: value}}`.

    Raises:
        SettingsError: a number out of range or of another type; an option that the data or a loss
            does not have.
    """

    data: str
    data_options: dict[str, Any]
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 5e-4
    device: str = "cpu"
    threads: int | None = None
    backend: str = "auto"
    many_above: int = MANY_ABOVE
    few_below: int = FEW_BELOW
    linear: bool = False
    shard_classes: bool = False
    loss_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_values()
        if self.shard_classes:
            object.__setattr__(self, "linear", True)
        if self.few_below > self.many_above + 1:
            raise SettingsError(
                f"few_below: expected at most many_above + 1 = {self.many_above + 1}, so that no "
                f"class is both few- and many-shot, got {self.few_below}"
            )
        self.check_losses(self.loss_options)
        for name, options in self.loss_options.items():
            known = RECIPES[name].known_options()
            for option in options:
                if option not in known:
                    raise SettingsError(
                        f"loss {name!r} has no option {option!r}; it has "
                        f"{', '.join(known) or 'none'}"
                    )

    def _check_values(self) -> None:
        try:
            Choice(*NAMES)("data", self.data)
            for name, check in _CHECKS.items():
                object.__setattr__(self, name, check(name, getattr(self, name)))
            if self.data == "folder" and self.data_options.get("path") is None:
                raise SettingsError("path: expected a folder of images, got none")
            options = check_options(self.data, self.data_options)
            object.__setattr__(self, "data_options", options)
            for loss, options in self.loss_options.items():
                names_and_values(f"loss_options.{loss}", options)
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error

    @classmethod
    def for_data(cls, data: str, given: Mapping[str, Any]) -> RunSettings:
        """The defaults of `data` with the `given` fields on top (`data_options` one by one)."""
        try:
            options = {
                **_DATA_OPTIONS[Choice(*NAMES)("data", data)],
                **names_and_values("data_options", given.get("data_options", {})),
            }
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error
        return cls(data=data, **{**_TRAINING[data], **given, "data_options": options})

    def check_losses(self, losses: Iterable[str]) -> None:
        """Raise SettingsError where a loss is unknown, or not for data of this kind."""
        kind = kind_of(self.data)
        fitting = [n for n, recipe in RECIPES.items() if recipe.multi_label == kind.multi_label]
        for loss in losses:
            if loss not in RECIPES:
                raise SettingsError(f"loss: expected one of {', '.join(RECIPES)}, got {loss!r}")
            if loss not in fitting:
                raise SettingsError(
                    f"data {self.data!r} is {kind.name}, loss {loss!r} is not; losses that fit: "
                    f"{', '.join(fitting)}"
                )

    def check_unchanged(self, given: Mapping[str, Any]) -> None:
        """Raise SettingsError where a `given` field differs from what it is here."""
        for name, value in given.items():
            own = getattr(self, name)
            pairs = (
                [(f"{name}.{key}", own.get(key), item) for key, item in value.items()]
                if isinstance(value, Mapping)
                else [(name, own, value)]
            )
            for label, mine, other in pairs:
                if json.loads(json.dumps(mine)) != json.loads(json.dumps(other)):
                    raise SettingsError(
                        f"the run to resume has {label} {mine!r}, now {other!r} was given: "
                        "its results could not stand in one table"
                    )

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RunSettings:
        """The settings out of a run's JSON.

        Raises:
            SettingsError: fields are missing or unknown.
        """
        names = {item.name for item in dataclasses.fields(cls)}
        differing_names = (names ^ set(stored)) - (_ADDED - set(stored))
        if differing_names:
            differing = ", ".join(sorted(differing_names))
            raise SettingsError(f"settings of another version: {differing} missing or unknown")
        loss_options = {
            loss: {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in names_and_values(f"loss_options.{loss}", options).items()
            }
            for loss, options in names_and_values("loss_options", stored["loss_options"]).items()
        }
        return cls(**{**stored, "loss_options": loss_options})

    def to_json(self) -> dict[str, Any]:
        """The settings as they are read back from JSON (tuples become lists)."""
        stored: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return stored
