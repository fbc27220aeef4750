"""What a comparison came to, as a table for the terminal."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..data import long_tail_counts
from . import published
from .record import Record, Summary
from .settings import RunSettings


def table(record: Record) -> Table:
    """The metric in percent and step time in milliseconds by loss, mean ± standard error.

    The best mean of every column of the metric is bold. It is that of raw logits after the last
    epoch.
    """
    data, settings = record.data_summary, record.settings
    title = (
        f"{settings.data}: {data['classes']:,} classes, {data['train_examples']:,} training "
        f"examples, {data['largest_class']:,} … {data['smallest_class']:,} per class"
    )
    where = record.environment["device"]
    if settings.device == "cpu":
        where += f", threads: {record.environment['threads']}"
    if settings.shard_classes:
        where += f", ranks: {record.environment.get('ranks')}"
    caption = (
        f"{record.kind.metric} in % on {data['test_examples']:,} test examples, from raw logits "
        f"after the last epoch; mean ± standard error over seeds; many-shot: > "
        f"{settings.many_above} training examples ({data['many_classes']} classes), few-shot: < "
        f"{settings.few_below} ({data['few_classes']}); {_judged(data)}time: median per training "
        f"step on {where}"
    )
    # With a balanced test set the balanced accuracy is the overall one.
    headings = record.kind.measures
    measures = [m for m in headings if m != "balanced" or not data["balanced_test"]]
    summaries = {
        loss: {measure: record.summary(loss, measure) for measure in measures}
        for loss in record.finished_losses()
    }
    best = {m: max(summary[m].mean for summary in summaries.values()) for m in measures}

    result = Table(title=title, caption=caption)
    result.add_column("loss")
    result.add_column("seeds", justify="right")
    for measure in measures:
        result.add_column(headings[measure], justify="right")
    result.add_column("step ms", justify="right")
    result.add_column("of it loss", justify="right")
    for loss, summary in summaries.items():
        cells = []
        for measure in measures:
            text = _percent(summary[measure])
            cells.append(f"[bold]{text}[/bold]" if summary[measure].mean == best[measure] else text)
        step, own = (record.summary(loss, measure).mean for measure in ("step_ms", "loss_ms"))
        seeds = str(len(record.of_loss(loss)))
        result.add_row(loss, seeds, *cells, f"{step:.2f}", f"{own:.2f}")
    return result


def _judged(data: dict[str, Any]) -> str:
    """Where not every class has a positive in the test: how many count."""
    if "judged_classes" not in data:
        return ""
    return (
        f"means over the {data['judged_classes']} classes with a positive in the test "
        f"({data['judged_many_classes']} many-, {data['judged_few_classes']} few-shot) of the last "
        "seed; "
    )


def _percent(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "–"
    text = f"{100 * summary.mean:.1f}"
    if math.isnan(summary.standard_error):
        return text
    return f"{text} ± {100 * summary.standard_error:.1f}"


def beside_published(record: Record) -> Group | None:
    """The errors of published data beside the published ones, and all that is not the same there.

    None where nothing is known of the data.
    """
    settings = record.settings
    if settings.data not in published.SIZES:
        return None
    options = settings.data_options
    found = None
    if options.get("profile", "exp") == "exp":
        found = published.ROWS.get((settings.data, options.get("imbalance", math.nan)))
    rows = found.rows if found else {}
    models = {rows[loss].model for loss in record.finished_losses() if loss in rows}
    differing = _differing(record, models)
    lines = ["top-1 error in %, here after the last epoch, mean ± standard error over seeds"]
    if found and models:
        lines.append(f"published: {found.source}")
    else:
        lines.append("no published error of these losses on these data is known here")
    if differing:
        schedule = published.SCHEDULES[settings.data].get(settings.schedule)
        that = "" if schedule is None else f", that of {schedule.source}"
        lines += [f"NOT the published training{that}:", *(f"  {one}" for one in differing)]
    result = Table(title="beside the published errors")
    for heading in ("loss", "here", "published"):
        result.add_column(heading, justify="left" if heading == "loss" else "right")
    for loss in record.finished_losses():
        accuracy = record.summary(loss, "overall")
        error = _percent(accuracy._replace(mean=1 - accuracy.mean))
        result.add_row(loss, error, f"{rows[loss].error:.2f}" if loss in rows else "–")
    return Group(result, *map(Text, lines))


def _differing(record: Record, models: set[str]) -> list[str]:
    """What is otherwise than in the published training: model, schedule, data."""
    settings, data = record.settings, record.data_summary
    told = []
    if settings.backbone not in models and models:
        told.append(f"backbone: {settings.backbone}, there {', '.join(sorted(models))}")
    schedule = published.SCHEDULES[settings.data].get(settings.schedule)
    if schedule is None:
        told.append("the schedule is our own")
    else:
        told += [
            f"{name.replace('_', ' ')}: {_shown(getattr(settings, name))}, there {_shown(value)}"
            for name, value in schedule.settings.items()
            if getattr(settings, name) != value and not (name == "backbone" and models)
        ]
        if schedule.otherwise:
            told.append(f"there {schedule.otherwise}")
    for (name, key), size in zip(
        (("classes", "classes"), ("training", "train_examples"), ("test", "test_examples")),
        _published_sizes(settings),
        strict=True,
    ):
        if data[key] != size:
            what = name if name == "classes" else f"{name} images"
            told.append(f"{what}: {data[key]:,}, in the published data {size:,}")
    return told


def _published_sizes(settings: RunSettings) -> tuple[int, int, int]:
    classes, train, test = published.SIZES[settings.data]
    if "imbalance" in settings.data_options:
        counts = long_tail_counts(
            classes,
            train // classes,
            settings.data_options["imbalance"],
            settings.data_options["profile"],
            rounding="down",
        )
        train = int(counts.sum())
    return classes, train, test


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
