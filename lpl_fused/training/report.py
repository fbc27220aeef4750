"""What a comparison came to, as a table for the terminal."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from .record import Record, Summary


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
