"""The pictures of one quantity against another: time against LPL's steps, time and peak memory
against the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from . import style
from .cases import COPY
from .providers import EAGER, EAGER_CE, is_plain
from .records import Record

_COLUMNS = 3  # panels side by side at most
_ENOUGH = 3  # class counts that make a curve
_FLOOR = {"color": "0.45", "linestyle": "--", "linewidth": 1.5, "zorder": 3}
_MIB = 2**20

Panel = tuple[str, int, str]  # loss, rows, dtype


def against_steps(both: Iterable[Record]) -> Figure:
    """Time against the number of LPL steps, plain cross-entropy standing at K = 0."""
    both = list(both)
    panels = step_panels(both)
    figure, grid = _grid(len(panels))
    for axes, panel in zip(grid, panels, strict=True):
        _steps(axes, [r for r in both if _of_steps(r) == panel and (r.steps or _is_plain(r))])
        rows, classes, dtype, labels = panel
        axes.set_title(f"{rows}×{classes} {dtype}, {labels} labels")
    _legend(figure, grid)
    return figure


def step_panels(both: Iterable[Record]) -> list[tuple[int, int, str, str]]:
    """Rows, classes, dtype and labels that are known at more than one K."""
    steps: dict[tuple[int, int, str, str], set[int]] = {}
    for record in both:
        if record.steps:
            steps.setdefault(_of_steps(record), set()).add(record.steps)
    return [panel for panel, known in steps.items() if len(known) > 1]


def _of_steps(record: Record) -> tuple[int, int, str, str]:
    return record.rows, record.classes, record.dtype, record.labels


def _is_plain(record: Record) -> bool:
    return record.loss.partition("-")[0] == "ce"


def _steps(axes: Axes, records: list[Record]) -> None:
    _times(axes, records, lambda r: r.steps)
    plain = [r.median_ms for r in records if _is_plain(r) and r.provider == EAGER.name]
    if plain and plain[0] is not None:
        colour, label = style.colour(EAGER_CE.name), style.label(EAGER_CE.name)
        axes.axhline(plain[0], color=colour, linestyle=":", linewidth=1.5, label=label)
    ticks = sorted({r.steps for r in records})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [f"{k}" if k else "0: plain CE" for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.5, 1.3 * ticks[-1])
    axes.set_xlabel("K, steps of the learned perturbation")
    _log_ordinate(axes, "forward + backward (ms)")


def class_panels(records: Iterable[Record]) -> list[Panel]:
    """Losses, rows and dtypes that are known at `_ENOUGH` numbers of classes."""
    classes: dict[Panel, set[int]] = {}
    for record in records:
        classes.setdefault(_of_classes(record), set()).add(record.classes)
    return [panel for panel, known in classes.items() if len(known) >= _ENOUGH]


def _of_classes(record: Record) -> Panel:
    return record.loss, record.rows, record.dtype


def against_classes(both: Iterable[Record], copies: Iterable[Record]) -> Figure:
    """Time against the number of classes, over the time that the least traffic takes at the rate
    of a copy of the logits in the same run. A linear layer is bound by its products, not by that.
    """
    both, rates = list(both), {r.case: r.gb_per_s for r in copies}

    def floor(record: Record) -> float | None:
        rate = None if record.what.loss.linear else rates.get(record.case)
        return None if rate is None or record.bytes is None else record.bytes / rate / 1e6

    def draw(axes: Axes, mine: list[Record]) -> None:
        _times(axes, mine, lambda r: r.classes)
        _log_ordinate(axes, "forward + backward (ms)")

    return _over_classes(both, draw, floor, "roofline: least traffic at a copy's rate")


def peaks_against_classes(both: Iterable[Record]) -> Figure:
    """Peak memory beyond the inputs against the number of classes, over that of the gradients."""

    def draw(axes: Axes, mine: list[Record]) -> None:
        for provider in style.in_order(r.provider for r in mine if not is_plain(r.provider)):
            points = sorted((r for r in mine if r.provider == provider), key=lambda r: r.classes)
            x, y = [r.classes for r in points], [(r.peak_bytes or 0) / _MIB for r in points]
            axes.plot(x, y, markersize=4, **_look(provider))  # type: ignore[arg-type]
        _log_ordinate(axes, "peak memory beyond the inputs (MiB)")

    def floor(record: Record) -> float:
        return record.what.input_bytes / _MIB

    known = [r for r in both if r.peak_bytes]
    return _over_classes(known, draw, floor, "the gradients alone")


def _over_classes(
    records: list[Record],
    draw: Callable[[Axes, list[Record]], None],
    floor: Callable[[Record], float | None],
    floor_label: str,
) -> Figure:
    panels = class_panels(records)
    figure, grid = _grid(len(panels))
    for axes, panel in zip(grid, panels, strict=True):
        mine = [r for r in records if _of_classes(r) == panel]
        lowest = {r.classes: value for r in mine if (value := floor(r)) is not None}
        if lowest:
            ticks = sorted(lowest)
            axes.plot(ticks, [lowest[c] for c in ticks], label=floor_label, **_FLOOR)  # type: ignore[arg-type]
        draw(axes, mine)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(style.NUMBER)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("classes")
        loss, rows, dtype = panel
        axes.set_title(f"{loss}, {rows} rows, {dtype}")
    _legend(figure, grid)
    return figure


def _times(axes: Axes, records: list[Record], place: Callable[[Record], int]) -> None:
    """Medians of every provider with p20 to p80."""
    shown = (r.provider for r in records if r.provider != COPY and not is_plain(r.provider))
    for provider in style.in_order(shown):
        points = sorted((r for r in records if r.provider == provider), key=place)
        times = [r.median_ms or 0.0 for r in points]
        low = [t - (r.p20 or t) for t, r in zip(times, points, strict=True)]
        high = [(r.p80 or t) - t for t, r in zip(times, points, strict=True)]
        x = [place(r) for r in points]
        look = _look(provider)
        axes.errorbar(x, times, yerr=(low, high), markersize=4, capsize=2, **look)  # type: ignore[arg-type]


def _look(provider: str) -> dict[str, str]:
    colour, label = style.colour(provider), style.label(provider)
    return {"color": colour, "label": label, "marker": style.marker(provider)}


def _log_ordinate(axes: Axes, label: str) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(style.NUMBER)
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # of short axes alone
    axes.set_ylabel(label)
    axes.grid(alpha=0.3, linewidth=0.5)


def _side_by_side(panels: int) -> int:
    return 2 if panels == 4 else min(panels, _COLUMNS)


def _grid(panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with as many panels, some of them side by side."""
    columns = _side_by_side(panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(1.5 + 5.0 * columns, 0.8 + 4.0 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[panels:]:
        axes.remove()
    return figure, grid[:panels]


def _legend(figure: Figure, grid: list[Axes]) -> None:
    """One legend for all panels, each name once."""
    known: dict[str, Artist] = {}
    for axes in grid:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(known.values()),
        list(known),
        loc="outside upper center",
        ncols=2 * _side_by_side(len(grid)),
        frameon=False,
    )
