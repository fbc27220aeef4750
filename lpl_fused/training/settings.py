"""The settings of a comparison: what is the same for every loss and seed in it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..arguments import FLAG, NOT_NEGATIVE, POSITIVE, Check, Choice, Integer, Maybe, Number, shown
from ..data import COLOURED, IMAGES, NAMES, check_options
from ..evaluation import FEW_BELOW, MANY_ABOVE
from .kinds import kind_of
from .models import BACKBONES, SMALL, TORCHVISION
from .published import SCHEDULES
from .recipes import RECIPES

# Keywords of `lpl_fused.data.load` by data set, with the defaults of a comparison.
_DATA_OPTIONS: dict[str, dict[str, Any]] = {
    "glyphs": {"num_classes": 500, "imbalance": 100.0, "profile": "exp", "largest": 200},
    "digits": {"imbalance": 100.0, "profile": "exp", "largest": 100},
    "tokens": {"num_classes": 10_000, "train_samples": 250_000},
    "tags": {"num_classes": 1000},
    "folder": {"path": None, "image_size": 32, "test_share": None, "skip_broken": False},
    **{
        name: {"path": None, "image_size": 224, "skip_broken": False}
        for name in ("inat2018", "imagenet-lt", "places-lt")
    },
    **{
        name: {"path": None, "imbalance": 100.0, "profile": "exp", "largest": None}
        for name in ("cifar10-lt", "cifar100-lt")
    },
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
OWN = "own"


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name}: expected a name, got {shown(value)}")
    return value


def _epochs(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}: expected epochs, got {shown(value)}")
    found = tuple(Integer(least=1)(name, epoch) for epoch in value)
    if list(found) != sorted(set(found)):
        raise ValueError(f"{name}: expected epochs that rise, got {shown(value)}")
    return found


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
    "schedule": _text,
    "backbone": Choice(*BACKBONES),
    "lr_steps": _epochs,
    "lr_decay": Number(above=0, most=1),
    "warm_up": Integer(least=0),
    "nesterov": FLAG,
    "augment": FLAG,
    "data_options": names_and_values,
    "loss_options": names_and_values,
}


# what older records do not have, and is as its default there
_ADDED = frozenset(
    {
        *("linear", "shard_classes", "schedule", "backbone", "lr_steps", "lr_decay", "warm_up"),
        *("nesterov", "augment"),
    }
)


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
        lr: first learning rate; of multi-label data, whose losses are means over the classes too,
            that of their sum over classes.
        weight_decay: of all parameters, beside the same loss.
        device: a torch device.
        threads: CPU threads; None is torch's own choice.
        backend: of the losses, see `lpl_fused.explain`.
        many_above: classes with more training examples are many-shot.
        few_below: classes with fewer training examples are few-shot.
        linear: the losses take the last layer in place of logits, which nobody holds.
        shard_classes: the ranks of torch.distributed have some of the classes each; `linear`, too.
        schedule: the one of `published.SCHEDULES` that the defaults came from, or "own".
        backbone: a name in `models.BACKBONES`.
        lr_steps: epochs from which on the learning rate is `lr_decay` times what it was before;
            none: it falls as a cosine.
        lr_decay: see there.
        warm_up: epochs in which the learning rate rises to `lr`.
        nesterov: Nesterov's momentum.
        augment: training images are cropped and mirrored at random.
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
    schedule: str = OWN
    backbone: str = SMALL
    lr_steps: tuple[int, ...] = ()
    lr_decay: float = 0.1
    warm_up: int = 0
    nesterov: bool = True
    augment: bool = False
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
        for name, used, fitting in (
            ("backbone", self.backbone != SMALL, IMAGES),
            ("backbone", self.backbone in TORCHVISION, COLOURED),
            ("augment", self.augment, IMAGES),
        ):
            if used and self.data not in fitting:
                raise SettingsError(
                    f"{name}: {getattr(self, name)} is for data of "
                    f"{', '.join(n for n in NAMES if n in fitting)}, not for {self.data!r}"
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
            Choice(*schedules_of(self.data))("schedule", self.schedule)
            if self.data in COLOURED and self.data_options.get("path") is None:
                raise SettingsError("path: expected the folder of the data, got none")
            options = check_options(self.data, self.data_options)
            object.__setattr__(self, "data_options", options)
            for loss, options in self.loss_options.items():
                names_and_values(f"loss_options.{loss}", options)
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error

    @classmethod
    def for_data(cls, data: str, given: Mapping[str, Any]) -> RunSettings:
        """The defaults of `data` with the `given` fields on top (`data_options` one by one).

        Published data have the defaults of a published schedule, the first of theirs unless another
        is given; of a backbone that is not installed they fall back on the small one.
        """
        try:
            known = schedules_of(Choice(*NAMES)("data", data))
            schedule = Choice(*known)("schedule", given.get("schedule", known[0]))
            options = {
                **_DATA_OPTIONS[Choice(*NAMES)("data", data)],
                **names_and_values("data_options", given.get("data_options", {})),
            }
        except (TypeError, ValueError) as error:
            raise SettingsError(str(error)) from error
        if schedule == OWN:
            defaults = _TRAINING.get(data, _TRAINING["folder"])
        else:
            defaults = {**SCHEDULES[data][schedule].settings, "schedule": schedule}
        if "backbone" not in given and defaults.get("backbone") in TORCHVISION:
            defaults = {**defaults, "backbone": _installed(defaults["backbone"])}
        return cls(data=data, **{**defaults, **given, "data_options": options})

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


def schedules_of(data: str) -> tuple[str, ...]:
    """The schedules of a data set, its default first."""
    return (*SCHEDULES.get(data, {}), OWN)


def _installed(backbone: str) -> str:
    """A backbone of torchvision, or, without it, the small one."""
    if importlib.util.find_spec("torchvision") is not None:
        return backbone
    warnings.warn(
        f"torchvision is missing, so the small model is trained in the place of {backbone}: pip "
        'install "lpl_fused[vision]"',
        stacklevel=3,
    )
    return SMALL
