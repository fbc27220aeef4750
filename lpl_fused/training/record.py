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

from ..atomic import replacing
from ..data import LongTailedData
from ..data.labels import LabelSets, class_counts
from ..version import __version__
from .kinds import Kind, kind_of
from .loop import DivergedError, Trained
from .settings import RunSettings, SettingsError

FORMAT = 1
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
            the `TIMES`, and by class what the kind calls it and `loss_variation`. nan where there
            was nothing to measure.
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
        """Note the class counts of `seed` and, once, the sizes."""
        counts = data.cls_num_list
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
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(_nan_to_none(content), allow_nan=False), "utf-8")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record back.

        Raises:
            SettingsError: the file is missing, is no record, or is one of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found = content["format"]
            if found != FORMAT:
                raise ValueError(f"its format is {found}, this version reads {FORMAT}")
            return cls(
                settings=RunSettings.from_json(content["settings"]),
                losses=content["losses"],
                seeds=content["seeds"],
                class_counts={int(k): v for k, v in content["class_counts"].items()},
                results=[_none_to_nan(result) for result in content["results"]],
                data_summary=content["data"],
                environment=content["environment"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path} is not the record of a run: {error}") from error


def _described(loss: str, seed: int, error: Exception) -> str:
    return f"the {loss} loss of seed {seed}: {type(error).__name__}: {error}"


def environment(settings: RunSettings) -> dict[str, Any]:
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
    }


def _nan_to_none(value: Any) -> Any:
    """nan is no JSON: null stands for it."""
    if isinstance(value, dict):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _none_to_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_to_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_none_to_nan(item) for item in value]
    return math.nan if value is None else value
