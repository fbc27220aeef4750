"""What a comparison came to: a table for the terminal and a plot."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.table import Table

from .record import Record, Summary

_BINS = 10
# Okabe and Ito's colours, told apart by colour-blind readers as well; then matplotlib's.
_COLOURS = (
    *("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00"),
    *("tab:brown", "tab:olive", "tab:gray", "tab:purple"),
)
_MARKERS = "os^Dv<>PX*h"
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


def save_plot(record: Record, path: Path) -> None:
    """Write the PNG: accuracy and relative loss variation per class, by class frequency."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _by_frequency(left, record, "class_accuracy", scale=100.0)
    left.set(ylabel="accuracy on test data (%)", ylim=(0, 100), title="Accuracy by class frequency")
    _by_frequency(right, record, "loss_variation", scale=1.0)
    right.axhline(0, color="0.3", linewidth=0.8, zorder=0)
    right.set_yscale("symlog", linthresh=1.0)
    # A loss cannot fall by more than the whole of it; above, room for the names of the splits.
    right.set_ylim(-1.3, 3 * max(1.0, right.get_ylim()[1]))
    right.yaxis.set_major_formatter("{x:g}")
    right.set(
        ylabel="(l′ − l) / l on training data", title="Relative loss variation by class frequency"
    )
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False
    )
    data, settings = record.data_summary, record.settings
    figure.suptitle(
        f"{settings.data}: {data['classes']:,} classes, {data['largest_class']:,} … "
        f"{data['smallest_class']:,} training examples per class"
    )
    figure.savefig(path, dpi=130)


def _by_frequency(axes: Axes, record: Record, measure: str, scale: float) -> None:
    """One line per loss over bins of the class frequency, mean ± standard error over seeds."""
    edges = _bin_edges(record)
    styles = zip(itertools.cycle(_MARKERS), itertools.cycle(_COLOURS), strict=False)
    for loss, (marker, colour) in zip(record.finished_losses(), styles, strict=False):
        runs = record.of_loss(loss)
        centres, means, errors = _binned(record, runs, measure, edges)
        axes.plot(centres, scale * means, marker=marker, color=colour, label=loss, markersize=5)
        axes.fill_between(
            centres,
            scale * (means - errors),
            scale * (means + errors),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xscale("log")
    axes.set_xlabel("training examples of the class")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.25)
    _mark_splits(axes, record)


def _bin_edges(record: Record) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Borders of bins evenly spaced in the logarithm of the class frequency."""
    counts = np.concatenate([np.asarray(c) for c in record.class_counts.values()])
    low, high = counts.min() - 0.5, counts.max() + 0.5
    return np.geomspace(low, high, _BINS + 1)


def _binned(
    record: Record,
    runs: list[dict[str, Any]],
    measure: str,
    edges: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean class frequency, mean of `measure` and its standard error over seeds, by bin."""
    centres, means, errors = [], [], []
    for low, high in itertools.pairwise(edges):
        frequencies, by_seed = [], []
        for run in runs:
            counts = np.asarray(record.class_counts[run["seed"]])
            values = np.asarray(run[measure])
            inside = (counts >= low) & (counts < high) & np.isfinite(values)
            if inside.any():
                frequencies.append(counts[inside].mean())
                by_seed.append(values[inside].mean())
        if by_seed:
            centres.append(np.mean(frequencies))
            means.append(np.mean(by_seed))
            spread = np.std(by_seed, ddof=1) if len(by_seed) > 1 else 0.0
            errors.append(spread / math.sqrt(len(by_seed)))
    return np.array(centres), np.array(means), np.array(errors)


def _mark_splits(axes: Axes, record: Record) -> None:
    """Dashed lines where few- ends and many-shot begins, and the names of what they part."""
    low, high = axes.get_xlim()
    borders = (record.settings.few_below - 0.5, record.settings.many_above + 0.5)
    for border in borders:
        if low < border < high:
            axes.axvline(border, color="0.5", linestyle="--", linewidth=0.8, zorder=0)
    ends = np.clip((low, *borders, high), low, high)
    for name, (left, right) in zip(
        ("few", "medium", "many"), itertools.pairwise(ends), strict=True
    ):
        if right > left * 1.05:
            axes.text(
                math.sqrt(left * right),
                0.985,
                f"{name}-shot",
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="top",
                fontsize=8,
                color="0.35",
            )
    axes.set_xlim(low, high)
