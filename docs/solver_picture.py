"""Draws solver.png for solver.md: `python -m docs.solver_picture`, with a C++ compiler."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from tests import counting

CLASSES, STD = 8142, 3.0
STEPS, STEP_SIZE = 50, 0.1
COUNTED_STEPS = (1, 2, 5, 10, 20, 50, 100)
COUNTED_ROWS, GROUP = 32, 16

# of Okabe and Ito, as in benchmarks/plots.py
_HEAD, _MIDDLING, _TINY = "#D55E00", "#E69F00", "#0072B2"
_NUMBER = FuncFormatter(lambda value, _: f"{value:g}")


def thresholds(dose: float, tolerance: float = 2e-7) -> tuple[float, float]:
    """(tiny, middling) of q, as series_thresholds in csrc/series.h gives them for float32."""
    worst = tolerance / (2 * (1 + dose / 6))
    tiny, middling = (0.999 * worst ** (1 / order) / dose for order in (5, 10))
    return tiny, middling


def rivals(axes: Axes) -> None:
    """A row's rivals, the largest first, and how many are of which kind."""
    logits = torch.randn(CLASSES - 1, generator=torch.Generator().manual_seed(1)) * STD
    q = logits.double().softmax(0).sort(descending=True).values
    tiny, middling = thresholds(STEPS * STEP_SIZE)
    ends = [0, int((q > middling).sum()), int((q > tiny).sum()), len(q)]
    rank = torch.arange(1, len(q) + 1)
    kinds = (
        (_HEAD, "head, step by step"),
        (_MIDDLING, "middling, 10 terms"),
        (_TINY, "tiny, 5 terms"),
    )
    for (colour, label), start, end in zip(kinds, ends[:-1], ends[1:], strict=True):
        axes.plot(
            rank[start:end],
            q[start:end],
            marker="o",
            markersize=3.5,
            linestyle="",
            color=colour,
            label=f"{end - start:,}: {label}",
        )
    for cut in (middling, tiny):
        axes.axhline(cut, color="0.3", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"q = {cut:.2g}",
            (len(q), cut),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.set_xlabel("rank of the rival")
    axes.set_ylabel("q, its share of the rivals' mass")
    axes.set_title(f"One row of {CLASSES:,} classes, K = {STEPS}, α = {STEP_SIZE}", fontsize=11)
    axes.legend(loc="lower left", frameon=False)


def cost(axes: Axes) -> None:
    """Exponentials per logit against K, counted."""
    with tempfile.TemporaryDirectory() as folder:
        program = counting.build(Path(folder))

        def per_logit(group: int = 1, sweep: bool = False) -> list[float]:
            return [
                counting.count(
                    program, COUNTED_ROWS, CLASSES, steps, rows_per_class=group, sweep=sweep
                ).per_logit
                for steps in COUNTED_STEPS
            ]

        lines = (
            ("plain sweeps", "0.3", per_logit(sweep=True)),
            (f"groups of {GROUP} rows", "#009E73", per_logit(GROUP)),
            ("a row alone in its class", _TINY, per_logit()),
        )
    for label, colour, values in lines:
        axes.plot(COUNTED_STEPS, values, marker="o", markersize=4, color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(COUNTED_STEPS)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_NUMBER)
        axis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.8, 130)
    axes.set_xlabel("K, steps of the learned perturbation")
    axes.set_ylabel("exponentials per logit")
    axes.set_title(f"Counted, {CLASSES:,} classes, loss and gradient", fontsize=11)
    axes.legend(loc="upper left", frameon=False)


def main() -> None:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rivals(left)
    cost(right)
    for axes in (left, right):
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
    figure.savefig(Path(__file__).with_name("solver.png"), dpi=130)


if __name__ == "__main__":
    main()
