"""What a comparison came to, as a table for the terminal."""

from __future__ import annotations

import math

from rich.table import Table

from .record import Record, Summary

_COLUMNS = {
    "overall": "overall",
    "balanced": "balanced",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
}


def table(record: Record) -> Table:
    """Accuracy in percent and step time in milliseconds by loss, mean ± standard error over seeds.

    The best mean of every accuracy column is bold. Accuracies are those of raw logits after the
    last epoch.
    """
    data, settings = record.data_summary, record.settings
    title = (
        f"{settings.data}: {data['classes']:,} classes, {data['train_examples']:,} training "
        f"examples, {data['largest_class']:,} … {data['smallest_class']:,} per class"
    )
    where = record.environment["device"]
    if settings.device == "cpu":
        where += f", threads: {record.environment['threads']}"
    caption = (
        f"accuracy in % on {data['test_examples']:,} test examples, from raw logits after the last "
        f"epoch; mean ± standard error over seeds; many-shot: > {settings.many_above} training "
        f"examples ({data['many_classes']} classes), few-shot: < {settings.few_below} "
        f"({data['few_classes']}); time: median per training step on {where}"
    )
    # With a balanced test set the balanced accuracy is the overall one.
    measures = [m for m in _COLUMNS if m != "balanced" or not data["balanced_test"]]
    summaries = {
        loss: {measure: record.summary(loss, measure) for measure in measures}
        for loss in record.finished_losses()
    }
    best = {m: max(summary[m].mean for summary in summaries.values()) for m in measures}

    result = Table(title=title, caption=caption)
    result.add_column("loss")
    result.add_column("seeds", justify="right")
    for measure in measures:
        result.add_column(_COLUMNS[measure], justify="right")
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


def _percent(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "–"
    text = f"{100 * summary.mean:.1f}"
    if math.isnan(summary.standard_error):
        return text
    return f"{text} ± {100 * summary.standard_error:.1f}"
