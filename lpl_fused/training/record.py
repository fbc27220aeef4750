"""The JSON of a comparison: settings, environment, class counts and every finished run."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..arguments import FLAG, Integer, Number, shown
from ..atomic import replacing
from ..data import LongTailedData
from ..data.labels import LabelSets, class_counts
from ..version import __version__
from .kinds import Kind, kind_of
from .loop import DivergedError, Trained
from .settings import RunSettings, SettingsError, names_and_values

FORMAT = 1
SEED = Integer(least=0)
TIMES = ("step_ms", "loss_ms")


class Summary(NamedTuple):
    """Mean over the seeds, its standard error, and how they scatter (nan for a single seed)."""

    mean: float
    standard_error: float
    standard_deviation: float


@dataclass
class Record:
    """Results of (loss, seed) pairs under the same settings.

    Args:
        settings: of all the runs.
        losses, seeds: all that are wanted, finished or not.
        class_counts: training examples per class, by seed.
        results: one per finished run, in order: `loss`, `seed`, the measures of the data's kind,
            the `TIMES`, by class what the kind calls it and `loss_variation`, and by epoch
            `train_loss`, which older ones lack. nan where there was nothing to measure.
        data_summary: sizes of the data and of the many, medium and few splits; of multi-label data
            also how many classes have a positive in the test.
        environment: versions and machine of the runs, see `environment`.
        failures: `loss`, `seed` and `error` of the runs that failed when last tried.
    """

    settings: RunSettings
    losses: list[str]
    seeds: list[int]
    class_counts: dict[int, list[int]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    data_summary: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        """What is measured."""
        return kind_of(self.settings.data)

    def extend(self, losses: Iterable[str], seeds: Iterable[int]) -> None:
        """Want these losses and seeds as well."""
        self.losses = list(dict.fromkeys([*self.losses, *losses]))
        self.seeds = list(dict.fromkeys([*self.seeds, *seeds]))

    def missing_losses(self, seed: int) -> list[str]:
        """The losses wanted that are not finished with this seed."""
        done = {result["loss"] for result in self.results if result["seed"] == seed}
        return [loss for loss in self.losses if loss not in done]

    def of_loss(self, loss: str) -> list[dict[str, Any]]:
        """The finished runs of one loss."""
        return [result for result in self.results if result["loss"] == loss]

    def finished_losses(self) -> list[str]:
        """The losses with finished runs, in order of appearance."""
        return list(dict.fromkeys(result["loss"] for result in self.results))

    def describe_data(self, data: LongTailedData, seed: int) -> None:
        """Note the class counts of `seed` and the sizes.

        Raises:
            SettingsError: the counts were others when runs of that seed were finished.
        """
        counts = data.cls_num_list
        if self.class_counts.get(seed, counts.tolist()) != counts.tolist():
            raise SettingsError(
                f"the data are not those of the finished runs: seed {seed} had "
                f"{shown(self.class_counts[seed])} examples per class, now {shown(counts.tolist())}"
            )
        self.class_counts[seed] = counts.tolist()
        test_counts = class_counts(data.test_targets, data.num_classes)
        many, few = counts > self.settings.many_above, counts < self.settings.few_below
        self.data_summary = {
            "classes": data.num_classes,
            "train_examples": len(data.train_targets),
            "test_examples": len(data.test_targets),
            "largest_class": int(counts.max()),
            "smallest_class": int(counts.min()),
            "imbalance": round(float(counts.max() / counts.min()), 2),
            "many_classes": int(many.sum()),
            "medium_classes": int((~many & ~few).sum()),
            "few_classes": int(few.sum()),
            "balanced_test": bool((test_counts == test_counts[0]).all()),
        }
        if data.left_out:
            self.data_summary["left_out"] = len(data.left_out)
        if isinstance(data.train_targets, LabelSets):
            judged = test_counts > 0
            self.data_summary |= {
                "labels_per_example": round(float(counts.sum()) / len(data.train_targets), 2),
                "judged_classes": int(judged.sum()),
                "judged_many_classes": int((judged & many).sum()),
                "judged_few_classes": int((judged & few).sum()),
            }

    def add(self, loss: str, seed: int, trained: Trained) -> None:
        """Append a finished run."""
        scores = trained.scores
        self.results.append(
            {
                "loss": loss,
                "seed": seed,
                **{measure: getattr(scores, measure) for measure in self.kind.measures},
                "step_ms": round(trained.step_ms, 4),
                "loss_ms": round(trained.loss_ms, 4),
                self.kind.by_class: [round(value, 5) for value in scores.per_class.tolist()],
                "loss_variation": [round(value, 5) for value in trained.loss_variation.tolist()],
                "train_loss": [round(value, 6) for value in trained.train_loss],
            }
        )

    def add_failure(self, loss: str, seed: int, error: Exception) -> None:
        """Note a run that failed; it stays missing."""
        text = str(error) if isinstance(error, DivergedError) else _described(loss, seed, error)
        self.failures.append({"loss": loss, "seed": seed, "error": text})

    def summary(self, loss: str, measure: str) -> Summary:
        """Mean of a measure over the seeds, its standard error s/√n, and s."""
        values = torch.tensor([run[measure] for run in self.of_loss(loss)], dtype=torch.float64)
        deviation = float(values.std()) if len(values) > 1 else math.nan
        return Summary(float(values.mean()), deviation / len(values) ** 0.5, deviation)

    def save(self, path: Path) -> None:
        """Write the JSON; interrupted, it leaves the earlier one."""
        content = {
            "format": FORMAT,
            "settings": self.settings.to_json(),
            "losses": self.losses,
            "seeds": self.seeds,
            "environment": self.environment,
            "data": self.data_summary,
            "class_counts": self.class_counts,
            "summary": {
                loss: {
                    measure: self.summary(loss, measure)._asdict()
                    for measure in (*self.kind.measures, *TIMES)
                }
                for loss in self.finished_losses()
            },
            "failures": self.failures,
            "results": self.results,
        }
        text = json.dumps(storable(content), allow_nan=False)
        with replacing(path) as temporary:
            temporary.write_text(text, "utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record back.

        Raises:
            SettingsError: the file is missing, is no record, is one of another version, or was
                changed so that it no longer is what a comparison writes.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise TypeError(f"expected an object, got {shown(content)}")
            found = content.get("format")
            if found != FORMAT:
                raise ValueError(f"its format is {found}, this version reads {FORMAT}")
            # the summary is made anew, and older records have no failures
            differing = (_FIELDS ^ set(content)) - {"summary", "failures"}
            if differing:
                raise ValueError(f"missing or unknown: {', '.join(sorted(differing))}")
            settings = names_and_values("settings", content["settings"])
            record = cls(
                settings=RunSettings.from_json(_restored(settings, null=None)),
                losses=_list("losses", content["losses"]),
                seeds=_list("seeds", content["seeds"]),
                class_counts=_counts(content["class_counts"]),
                results=_list("results", _restored(content["results"], null=math.nan)),
                data_summary=names_and_values("data", content["data"]),
                environment=names_and_values("environment", content["environment"]),
            )
            record.check()
            return record
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SettingsError(f"{path} is not the record of a run: {reason}") from error

    def check(self) -> None:
        """Raise TypeError or ValueError where something is not what a comparison writes."""
        for name, wanted in (("losses", self.losses), ("seeds", self.seeds)):
            if len(set(map(str, wanted))) != len(wanted):
                raise ValueError(f"{name}: expected each once, got {shown(wanted)}")
        for seed in self.seeds:
            SEED("seeds", seed)
        self.settings.check_losses(self.losses)
        pairs = set()
        for number, result in enumerate(self.results):
            where = f"results[{number}]"
            names_and_values(where, result)
            pair = result.get("loss"), result.get("seed")
            if pair[0] not in self.losses or pair[1] not in self.seeds or pair in pairs:
                raise ValueError(f"{where}: expected a loss and seed of the run, once, got {pair}")
            pairs.add(pair)
            classes = len(self.class_counts.get(result["seed"], ()))
            for name in (*self.kind.measures, *TIMES):
                _NUMBER(f"{where}.{name}", result.get(name))
            for name in (self.kind.by_class, "loss_variation"):
                values = _list(f"{where}.{name}", result.get(name))
                if len(values) != classes:
                    raise ValueError(
                        f"{where}.{name}: expected one number for each of {classes} classes, got "
                        f"{len(values)}"
                    )
                for value in values:
                    _NUMBER(f"{where}.{name}", value)
            for value in _list(f"{where}.train_loss", result.get("train_loss", [])):
                _NUMBER(f"{where}.train_loss", value)
        if self.results:
            for name in _SIZES:
                _COUNT(f"data.{name}", self.data_summary.get(name))
            FLAG("data.balanced_test", self.data_summary.get("balanced_test"))
            for name in ("device", "threads"):
                if name not in self.environment:
                    raise ValueError(f"environment.{name}: expected what it was, got nothing")


_FIELDS = {
    *("format", "settings", "losses", "seeds", "environment", "data", "class_counts", "results"),
}
_SIZES = (
    *("classes", "train_examples", "test_examples", "largest_class", "smallest_class"),
    *("many_classes", "medium_classes", "few_classes"),
)
_COUNT, _POSITIVE_COUNT = Integer(least=0), Integer(least=1)
_NUMBER = Number(infinite=True, nan=True)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{name}: expected a list, got {shown(value)}")
    return value


def _counts(stored: Any) -> dict[int, list[int]]:
    """The class counts by seed."""
    counts = {}
    for seed, of_classes in names_and_values("class_counts", stored).items():
        where = f"class_counts.{seed}"
        counts[int(seed)] = [_POSITIVE_COUNT(where, n) for n in _list(where, of_classes)]
    return counts


def _described(loss: str, seed: int, error: Exception) -> str:
    return f"the {loss} loss of seed {seed}: {type(error).__name__}: {error}"


def environment(settings: RunSettings, ranks: int = 1) -> dict[str, Any]:
    """Versions and machine, as far as they bear on results and times."""
    device = torch.device(settings.device)
    on_gpu = device.type == "cuda"
    return {
        "lpl_fused": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "threads": settings.threads or torch.get_num_threads(),
        **({"ranks": ranks} if settings.shard_classes else {}),
    }


# what JSON has no numbers for
_WORDS = {"Infinity": math.inf, "-Infinity": -math.inf}


def storable(value: Any) -> Any:
    """nan and the infinities are no JSON: null and words stand for them."""
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable(item) for item in value]
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return next((word for word, number in _WORDS.items() if number == value), None)


def _restored(value: Any, null: float | None) -> Any:
    if isinstance(value, dict):
        return {key: _restored(item, null) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item, null) for item in value]
    if isinstance(value, str):
        return _WORDS.get(value, value)
    return null if value is None else value
