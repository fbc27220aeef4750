"""Which pictures the records are enough for, and the bars: who is faster than eager."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from . import curves, heatmap, style
from .cases import COPY
from .measure import BOTH
from .providers import EAGER, EAGER_CE, is_plain
from .records import OK, Record

_BAR = 0.22  # inches
_GAP = 0.7  # bars between two cases
_DPI = 130


def save(records: list[Record], folder: Path) -> list[Path]:
    """Writes the plots that the records are enough for, and names them."""
    both = [r for r in records if r.status == OK and r.mode == BOTH]
    copies = [r for r in records if r.status == OK and r.mode == COPY]
    figures = {}
    if heatmap.panels(both):
        figures["sweep.png"] = heatmap.over_rows_and_classes(both)
    elif any(_beside_eager(r) for r in both):
        figures["relative.png"] = relative(both)
    if curves.step_panels(both):
        figures["steps.png"] = curves.against_steps(both)
    if curves.class_panels(both):
        figures["classes.png"] = curves.against_classes(both, copies)
    if curves.class_panels(r for r in both if r.peak_bytes):
        figures["memory.png"] = curves.peaks_against_classes(both)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=_DPI)
    return [folder / name for name in figures]


def _beside_eager(record: Record) -> bool:
    rival = record.provider != EAGER.name and not is_plain(record.provider)
    return rival and record.ratio_to_eager is not None


def relative(both: Iterable[Record]) -> Figure:
    """Bars of time relative to eager by case and provider, with p20 to p80; left of 1 is faster."""
    known = [r for r in both if r.ratio_to_eager is not None]
    shown = [r for r in known if _beside_eager(r)]
    providers = style.in_order(r.provider for r in shown)
    by_case: dict[str, list[Record]] = {}
    for record in shown:
        by_case.setdefault(record.case, []).append(record)
    spans: dict[str, tuple[float, float]] = {}  # of a case's bars, from top to bottom
    place: dict[tuple[str, str], float] = {}
    bottom = 0.0
    for case, mine in by_case.items():
        for i, provider in enumerate(style.in_order(r.provider for r in mine)):
            place[case, provider] = bottom + i + 0.5
        spans[case] = bottom, bottom + len(mine)
        bottom = spans[case][1] + _GAP
    figure = Figure(figsize=(9, 1.6 + bottom * _BAR), layout="constrained")
    axes = figure.subplots()
    for provider in providers:
        mine = [r for r in shown if r.provider == provider]
        _bars(axes, mine, [place[r.case, provider] for r in mine])
    plain = [r for r in known if r.provider == EAGER_CE.name and r.case in spans]
    axes.vlines(
        [r.ratio_to_eager or 0.0 for r in plain],
        [spans[r.case][0] for r in plain],
        [spans[r.case][1] for r in plain],
        color=style.colour(EAGER_CE.name),
        linestyle=":",
        label=style.label(EAGER_CE.name),
        zorder=3,
    )
    axes.axvline(1, color=style.colour(EAGER.name), linewidth=1)
    axes.set_xscale("log")
    axes.set_xmargin(0.12)
    axes.autoscale(axis="x")
    axes.xaxis.set_major_formatter(style.NUMBER)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([sum(span) / 2 for span in spans.values()], list(spans))
    axes.set_ylim(bottom, -_GAP)
    axes.set_xlabel(
        "faster ←    forward + backward, time over eager PyTorch's for the same loss    → slower"
    )
    axes.grid(axis="x", alpha=0.3, which="both", linewidth=0.5)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _bars(axes: Axes, records: list[Record], places: list[float]) -> None:
    """One provider's bars, from 1 to its ratios, each with its number beyond the end."""
    ratios = [r.ratio_to_eager or 0.0 for r in records]
    colour, label = style.colour(records[0].provider), style.label(records[0].provider)
    lengths = [ratio - 1 for ratio in ratios]
    axes.barh(places, lengths, left=1, height=0.9, color=colour, label=label)
    for record, place, ratio in zip(records, places, ratios, strict=True):
        unit = ratio / (record.median_ms or 1.0)
        low, high = unit * (record.p20 or 0.0), unit * (record.p80 or 0.0)
        axes.plot([low, high], [place, place], color="0.3", linewidth=0.8)
        faster = ratio < 1
        axes.annotate(
            f"{ratio:.2g}" if ratio < 99.5 else f"{ratio:.0f}",
            (min(low, ratio) if faster else max(high, ratio), place),
            xytext=(-3 if faster else 3, 0),
            textcoords="offset points",
            ha="right" if faster else "left",
            va="center",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            zorder=4,
        )
