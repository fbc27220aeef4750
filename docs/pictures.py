"""Draws the pictures of these pages: `python -m docs.pictures`, all or those that are named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.style import NUMBER

HERE = Path(__file__).parent
RECORD = HERE.parent / "benchmarks" / "results" / "training" / "glyphs.json"

# of Okabe and Ito, as in benchmarks/style.py; black is always plain cross-entropy
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PINK = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73"),
    *("#0072B2", "#D55E00", "#CC79A7"),
)


def canvas(panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side."""
    figure = Figure(figsize=(7.4, 4) if panels == 1 else (11, 4), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def finish(figure: Figure, name: str) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / f"{name}.png", dpi=110)


def accuracy(name: str = "accuracy") -> None:
    """What `make train` found: accuracy by class frequency, of three of its losses."""
    record = json.loads(RECORD.read_text())
    shown = {
        "la+lpl": ("LPLLoss(counts, tau=1.0)", PINK, "D"),
        "la": ("LogitAdjustedLoss(counts)", BLUE, "s"),
        "ce": ("plain cross-entropy", BLACK, "o"),
    }
    figure, (axes,) = canvas()
    for loss, (label, colour, marker) in shown.items():
        runs = [run for run in record["results"] if run["loss"] == loss]
        size = torch.tensor([record["class_counts"][str(run["seed"])] for run in runs]).double()
        right = torch.tensor([run["class_accuracy"] for run in runs]).double()
        edges = torch.logspace(*(float(size[0].log10().aminmax()[i]) for i in (0, 1)), 11).double()
        place = torch.bucketize(size[0], edges[1:-1], right=True)
        full = [bin for bin in range(10) if bool((place == bin).any())]
        axes.plot(
            [float(size[0][place == bin].log().mean().exp()) for bin in full],
            [100 * float(right[:, place == bin].mean()) for bin in full],
            color=colour,
            marker=marker,
            markersize=5,
            label=label,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(NUMBER)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="training images of the class", ylabel="accuracy on new images (%)")
    axes.set_ylim(0, 100)
    axes.set_title("500 classes of letter shapes, 200 to 2 training images each", fontsize=11)
    axes.legend(loc="lower right", frameon=False)
    finish(figure, name)


PICTURES: dict[str, Callable[[str], None]] = {"accuracy": accuracy}


def main(names: list[str]) -> None:
    for name in names or PICTURES:
        PICTURES[name](name)


if __name__ == "__main__":
    main(sys.argv[1:])
