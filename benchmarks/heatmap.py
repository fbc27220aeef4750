"""The picture of a sweep: where this library is faster than PyTorch, by rows and classes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .providers import AUTO, COMPILE, EAGER
from .records import Record

_RIVALS = (EAGER.name, COMPILE.name)
_ENOUGH = 3  # row counts and class counts that make a picture
_MOST = 8.0  # times faster or slower, beyond which colours stay as they are

Panel = tuple[str, str]  # loss, dtype


def panels(both: Iterable[Record]) -> list[Panel]:
    """Losses and dtypes that are known at many numbers of rows and of classes, and most pairs."""
    shapes: dict[Panel, set[tuple[int, int]]] = {}
    for r in both:
        if r.provider == AUTO.name:
            shapes.setdefault((r.loss, r.dtype), set()).add((r.rows, r.classes))
    return [panel for panel, known in shapes.items() if _fills_a_grid(known)]


def _fills_a_grid(shapes: set[tuple[int, int]]) -> bool:
    rows, classes = ({shape[i] for shape in shapes} for i in (0, 1))
    enough = min(len(rows), len(classes)) >= _ENOUGH
    return enough and 2 * len(shapes) > len(rows) * len(classes)


def over_rows_and_classes(both: Iterable[Record]) -> Figure:
    """Our time over the faster one of eager and torch.compile: blue where we are faster."""
    both = list(both)
    shown = panels(both)
    height = 0.55 * max(len({r.rows for r in both}), 4) + 1.6
    figure = Figure(figsize=(10, height * len(shown)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        _cells(axes, [r for r in both if (r.loss, r.dtype) == panel])
        axes.set_title(
            f"{panel[0]} {panel[1]}: time of forward + backward over that of eager or "
            "torch.compile, whichever is faster"
        )
    return figure


def ratios(records: Iterable[Record]) -> dict[tuple[int, int], float]:
    """By rows and classes."""
    times: dict[tuple[int, int], dict[str, float]] = {}
    for record in records:
        if record.median_ms is not None:
            times.setdefault((record.rows, record.classes), {})[record.provider] = record.median_ms
    found = {}
    for shape, taken in times.items():
        rivals = [taken[name] for name in _RIVALS if name in taken]
        if rivals and AUTO.name in taken:
            found[shape] = taken[AUTO.name] / min(rivals)
    return found


def _cells(axes: Axes, records: list[Record]) -> None:
    known = ratios(records)
    rows, classes = (sorted({shape[i] for shape in known}) for i in (0, 1))
    values = np.full((len(rows), len(classes)), np.nan)
    for (n, c), ratio in known.items():
        values[rows.index(n), classes.index(c)] = ratio
    norm = LogNorm(1 / _MOST, _MOST, clip=True)
    axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
    for (n, c), ratio in known.items():
        place = classes.index(c), rows.index(n)
        dark = not 0.3 < ratio < 3.5
        axes.annotate(
            f"{ratio:.2f}", place, ha="center", va="center", color="white" if dark else "black"
        )
    axes.set_xticks(range(len(classes)), [str(c) for c in classes])
    axes.set_yticks(range(len(rows)), [str(n) for n in rows])
    axes.set_xlabel("classes")
    axes.set_ylabel("rows")
