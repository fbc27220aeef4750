"""The pictures: who is faster than eager and by how much, and what a step of LPL costs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .cases import COPY
from .measure import BOTH
from .providers import COMPILE, EAGER, EAGER_CE
from .records import OK, Record

# Okabe and Ito's colours, told apart by colour-blind readers as well
_COLOURS = {
    EAGER.name: "#000000",
    COMPILE.name: "#E69F00",
    "reference": "#999999",
    "cpp": "#0072B2",
    "triton": "#009E73",
    "cuda": "#56B4E9",
    EAGER_CE.name: "#CC79A7",
}
_OTHER = "#D55E00"
_NUMBER = FuncFormatter(lambda value, _: f"{value:g}")
_BAR = 0.26  # inches
_LABELS = {
    EAGER_CE.name: "eager, plain CE",
    "cpp": "lpl_fused cpp",
    "triton": "lpl_fused triton",
    "cuda": "lpl_fused cuda",
    "reference": "lpl_fused reference",
    COMPILE.name: "torch.compile",
}


def save(records: list[Record], folder: Path) -> list[Path]:
    """Writes the plots that the records are enough for, and names them."""
    both = [r for r in records if r.status == OK and r.mode == BOTH]
    written = []
    if any(r.provider != EAGER.name and r.ratio_to_eager is not None for r in both):
        written.append(folder / "relative.png")
        relative(both).savefig(written[-1], dpi=130)
    if _sweeps(both):
        written.append(folder / "steps.png")
        against_steps(both).savefig(written[-1], dpi=130)
    return written


def relative(both: Iterable[Record]) -> Figure:
    """Bars of time relative to eager by case and provider, with p20 to p80; left of 1 is faster."""
    known = [r for r in both if r.ratio_to_eager is not None]
    shown = [r for r in known if r.provider not in (EAGER.name, EAGER_CE.name)]
    plain = [r for r in known if r.provider == EAGER_CE.name]
    cases = list(dict.fromkeys(r.case for r in shown))
    providers = _in_order({r.provider for r in shown})
    height = 1.8 + len(cases) * (len(providers) + 0.7) * _BAR
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(providers)
    for i, provider in enumerate(providers):
        mine = [r for r in shown if r.provider == provider]
        offset = (i - (len(providers) - 1) / 2) * width
        _bars(axes, mine, [cases.index(r.case) + offset for r in mine], width)
    places = [cases.index(r.case) for r in plain]
    axes.vlines(
        [r.ratio_to_eager or 0.0 for r in plain],
        [place - 0.45 for place in places],
        [place + 0.45 for place in places],
        color=_COLOURS[EAGER_CE.name],
        linestyle=":",
        label=_LABELS[EAGER_CE.name],
        zorder=3,
    )
    axes.axvline(1, color=_COLOURS[EAGER.name], linewidth=1)
    axes.set_xscale("log")
    axes.set_xmargin(0.12)
    axes.autoscale(axis="x")
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlabel(
        "faster ←    forward + backward, time over eager PyTorch's for the same loss    → slower"
    )
    axes.grid(axis="x", alpha=0.3, which="both", linewidth=0.5)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _bars(axes: Axes, records: list[Record], places: list[float], width: float) -> None:
    """One provider's bars, from 1 to its ratios, each with its number beyond the end."""
    ratios = [r.ratio_to_eager or 0.0 for r in records]
    colour = _COLOURS.get(records[0].provider, _OTHER)
    label = _LABELS.get(records[0].provider, records[0].provider)
    lengths = [ratio - 1 for ratio in ratios]
    axes.barh(places, lengths, left=1, height=width, color=colour, label=label)
    for record, place, ratio in zip(records, places, ratios, strict=True):
        unit = ratio / (record.median_ms or 1.0)
        low, high = unit * (record.p20 or 0.0), unit * (record.p80 or 0.0)
        axes.plot([low, high], [place, place], color="0.3", linewidth=0.8)
        faster = ratio < 1
        axes.annotate(
            f"{ratio:.2g}",
            (min(low, ratio) if faster else max(high, ratio), place),
            xytext=(-3 if faster else 3, 0),
            textcoords="offset points",
            ha="right" if faster else "left",
            va="center",
            fontsize=7,
        )


def against_steps(both: Iterable[Record]) -> Figure:
    """Time against the number of LPL steps, plain cross-entropy standing at K = 0."""
    both = list(both)
    panels = _sweeps(both)
    figure = Figure(figsize=(1.5 + 5.5 * len(panels), 4.6), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _steps_panel(axes, [r for r in both if _panel(r) == panel and (r.steps or _is_plain(r))])
        rows, classes, dtype, labels = panel
        axes.set_title(f"{rows}×{classes} {dtype}, {labels} labels")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _panel(record: Record) -> tuple[int, int, str, str]:
    return record.rows, record.classes, record.dtype, record.labels


def _is_plain(record: Record) -> bool:
    return record.loss.partition("-")[0] == "ce"


def _sweeps(both: Iterable[Record]) -> list[tuple[int, int, str, str]]:
    """The panels that are known at more than one K."""
    steps: dict[tuple[int, int, str, str], set[int]] = {}
    for record in both:
        if record.steps:
            steps.setdefault(_panel(record), set()).add(record.steps)
    return [panel for panel, known in steps.items() if len(known) > 1]


def _steps_panel(axes: Axes, records: list[Record]) -> None:
    for provider in _in_order({r.provider for r in records} - {COPY, EAGER_CE.name}):
        points = sorted((r for r in records if r.provider == provider), key=lambda r: r.steps)
        times = [r.median_ms or 0.0 for r in points]
        low = [t - (r.p20 or t) for t, r in zip(times, points, strict=True)]
        high = [(r.p80 or t) - t for t, r in zip(times, points, strict=True)]
        axes.errorbar(
            [r.steps for r in points],
            times,
            yerr=(low, high),
            marker="o",
            markersize=4,
            capsize=2,
            color=_COLOURS.get(provider, _OTHER),
            label=_LABELS.get(provider, provider),
        )
    plain = [r.median_ms for r in records if _is_plain(r) and r.provider == EAGER.name]
    if plain and plain[0] is not None:
        colour, label = _COLOURS[EAGER_CE.name], _LABELS[EAGER_CE.name]
        axes.axhline(plain[0], color=colour, linestyle=":", linewidth=1.5, label=label)
    ticks = sorted({r.steps for r in records})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(ticks, [f"{k}" if k else "0: plain CE" for k in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(left=-0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_NUMBER)
    axes.set_xlabel("K, steps of the learned perturbation")
    axes.set_ylabel("forward + backward (ms)")
    axes.grid(alpha=0.3, linewidth=0.5)


def _in_order(providers: set[str]) -> list[str]:
    """Providers in the order of the legend; unknown ones last."""
    return [p for p in _COLOURS if p in providers] + sorted(providers - set(_COLOURS))
