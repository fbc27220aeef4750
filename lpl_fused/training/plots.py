"""What a comparison came to, as a picture: curves of a few losses, bars of many."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..atomic import replacing
from .record import Record

_BINS = 10
# Okabe and Ito's colours, told apart by colour-blind readers as well; then matplotlib's.
_COLOURS = (
    *("#000000", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00"),
    *("tab:brown", "tab:olive", "tab:gray", "tab:purple"),
)
_MARKERS = "os^Dv<>PX*h"
_BARS = {"overall": "#000000", "many": "#0072B2", "medium": "#009E73", "few": "#D55E00"}


def save_plot(record: Record, path: Path) -> None:
    """Write the PNG: by class frequency, or, for more losses than there are colours, by loss."""
    many = len(record.finished_losses()) > len(_COLOURS)
    with replacing(path) as temporary:
        (_bars if many else _curves)(record).savefig(
            temporary, format="png", dpi=110 if many else 130
        )


def _bars(record: Record) -> Figure:
    """Overall, many-, medium- and few-shot metric of every loss, the best overall on top."""
    losses = sorted(record.finished_losses(), key=lambda loss: record.summary(loss, "overall").mean)
    figure = Figure(figsize=(12, 1.6 + 0.21 * len(losses)), layout="constrained")
    panels = figure.subplots(1, len(_BARS), sharey=True)
    places = np.arange(len(losses))
    reference = record.kind.reference  # a line through its bars, where it was trained
    for axes, (measure, colour) in zip(panels, _BARS.items(), strict=True):
        summaries = [record.summary(loss, measure) for loss in losses]
        means = np.array([100 * summary.mean for summary in summaries])
        spread = np.array([100 * summary.standard_deviation for summary in summaries])
        axes.barh(places, means, xerr=spread, height=0.72, color=colour, alpha=0.55, ecolor="0.2")
        if reference in losses:
            axes.axvline(means[losses.index(reference)], color="0.2", linestyle=":", linewidth=1)
        axes.set_title(measure if measure == "overall" else f"{measure}-shot", fontsize=10)
        axes.set_xlim(0, _top(axes.get_xlim()[1]))
        axes.grid(axis="x", alpha=0.25)
        axes.tick_params(axis="x", top=True, labeltop=True, labelsize=8)
    panels[0].set_yticks(places, losses, fontsize=9)
    panels[0].set_ylim(-0.7, len(losses) - 0.3)
    seeds = sorted({len(record.of_loss(loss)) for loss in losses})
    figure.suptitle(
        f"{_described(record)}\n{record.kind.metric} in %, mean ± standard deviation over "
        f"{' or '.join(map(str, seeds))} seeds; dotted: {reference}",
        fontsize=11,
    )
    return figure


def _top(highest: float) -> float:
    """The end of an axis of percentages: 100, unless all of them stand at its foot."""
    return 100.0 if highest > 40 else 1.2 * highest


def _described(record: Record) -> str:
    data, settings = record.data_summary, record.settings
    return (
        f"{settings.data}: {data['classes']:,} classes, {data['largest_class']:,} … "
        f"{data['smallest_class']:,} training examples per class"
    )


def _curves(record: Record) -> Figure:
    """The metric and relative loss variation per class, by class frequency."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    kind = record.kind
    metric = kind.class_metric
    _by_frequency(left, record, kind.by_class, scale=100.0)
    left.set(ylabel=f"{metric} on test data (%)", title=f"{metric} by class frequency")
    left.set_ylim(0, _top(left.get_ylim()[1]))
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
    figure.suptitle(_described(record))
    return figure


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
    mark_splits(axes, record.settings.few_below, record.settings.many_above)


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


def mark_splits(axes: Axes, few_below: int, many_above: int) -> None:
    """Dashed lines where few- ends and many-shot begins, and the names of what they part."""
    low, high = axes.get_xlim()
    borders = (few_below - 0.5, many_above + 0.5)
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
