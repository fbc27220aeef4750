"""What was found of each class, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from ..atomic import replacing
from ..training.plots import mark_splits
from .classes import ROUNDING, Inspected

# heading, and how a number is written
_COLUMNS = {
    "train": ("training", "{:,.0f}"),
    "rows": ("rows", "{:,.0f}"),
    "accuracy": ("accuracy %", "{:.1f}"),
    "average_precision": ("AP %", "{:.1f}"),
    "loss": ("loss", "{:.3f}"),
    "perturbed_loss": ("perturbed", "{:.3f}"),
    "loss_variation": ("variation %", "{:+.1f}"),
    "steps": ("steps", "{:+.1f}"),
    "delta": ("own δ", "{:+.3f}"),
    "delta_norm": ("‖δ‖", "{:.3f}"),
    "offset": ("offset", "{:+.3f}"),
    "margin": ("margin", "{:.3f}"),
    "scale": ("scale", "{:.3f}"),
}
_PERCENT = ("accuracy", "average_precision", "loss_variation")
_LOWERED, _RAISED, _SAME = "#0072B2", "#D55E00", "0.5"


def groups_table(found: Inspected) -> Table:
    """How many classes are raised and lowered among the frequent and the rare, and mean numbers."""
    result = Table(title=_title(found), caption="means over classes")
    result.add_column("classes")
    for heading in ("number", "raised", "lowered"):
        result.add_column(heading, justify="right")
    names = [name for name in found.columns if name not in ("train", "rows")]
    for name in names:
        result.add_column(_COLUMNS[name][0], justify="right")
    borders = {
        "many": f"many-shot, > {found.many_above}",
        "medium": "medium-shot",
        "few": f"few-shot, < {found.few_below}",
        "all": "all",
    }
    for group, numbers in found.summary().items():
        counted = (str(numbers[name]) for name in ("classes", "raised", "lowered"))
        result.add_row(borders[group], *counted, *(_cell(name, numbers[name]) for name in names))
    return result


def classes_table(found: Inspected, top: int) -> Table:
    """The `top` classes whose loss is lowered most, and the `top` that are raised most."""
    chosen = extremes(found.variation, top)
    left_out = len(found.variation) - len(chosen)
    caption = f"{left_out:,} classes between them are left out" if left_out else None
    result = Table(title="classes by loss variation", caption=caption)
    for heading in ("class", "is", *(_COLUMNS[name][0] for name in found.columns)):
        result.add_column(heading, justify="right")
    for c in chosen:
        cells = (_cell(name, float(values[c])) for name, values in found.columns.items())
        result.add_row(str(c), direction(float(found.variation[c])), *cells)
    return result


def direction(variation: float) -> str:
    """What a class is, raised or lowered; "–" where nothing is known of it."""
    if variation != variation:
        return "–"
    return "raised" if variation > ROUNDING else "lowered" if variation < -ROUNDING else "same"


def extremes(variation: Tensor, top: int) -> list[int]:
    """The classes of the `top` lowest and the `top` highest numbers, from the lowest."""
    known = (~variation.isnan()).nonzero()[:, 0]
    order = known[variation[known].argsort(stable=True)].tolist()
    return order if len(order) <= 2 * top else [*order[:top], *order[len(order) - top :]]


def save_picture(found: Inspected, path: Path) -> None:
    """Write the PNG: by class frequency the loss variation, and the class's δ or its accuracy."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    variation = found.variation
    _by_frequency(left, found, variation)
    left.axhline(0, color="0.3", linewidth=0.8, zorder=0)
    left.set_yscale("symlog", linthresh=1.0)
    left.yaxis.set_major_formatter("{x:g}")
    left.set(ylabel="(l′ − l) / l", title="Relative loss variation")
    if "delta" in found.columns:
        _by_frequency(right, found, found.columns["delta"])
        right.axhline(0, color="0.3", linewidth=0.8, zorder=0)
        right.set(ylabel="δ of the class's own logit", title="Learned perturbation")
    else:
        name = next(n for n in ("accuracy", "average_precision") if n in found.columns)
        _by_frequency(right, found, 100 * found.columns[name])
        right.set(ylabel=_COLUMNS[name][0], title=_COLUMNS[name][0].removesuffix(" %").capitalize())
    figure.suptitle(_title(found))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _by_frequency(axes: Axes, found: Inspected, values: Tensor) -> None:
    """A dot for each class."""
    known = found.variation.isfinite() & values.isfinite()
    kinds = (
        ("raised", _RAISED, found.variation > ROUNDING),
        ("lowered", _LOWERED, found.variation < -ROUNDING),
        ("same", _SAME, found.variation.abs() <= ROUNDING),
    )
    train = found.columns["train"]
    for name, colour, of_kind in kinds:
        shown = known & of_kind & (train > 0)
        if shown.any():
            axes.plot(train[shown], values[shown], ".", color=colour, label=name, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xlabel("training examples of the class")
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(frameon=False)
        mark_splits(axes, found.few_below, found.many_above)


def _title(found: Inspected) -> str:
    of = f"seed {found.seed}" if found.rows is None else f"{found.rows:,} rows"
    options = "".join(f", {name}={value}" for name, value in found.options.items())
    return f"{found.loss}{options}: {len(found.variation):,} classes, {of} of {found.source}"


def _cell(name: str, value: float) -> str:
    if value != value:
        return "–"
    return _COLUMNS[name][1].format(100 * value if name in _PERCENT else value)


def as_json(found: Inspected) -> dict[str, object]:
    """Everything that is known, for `json.dumps` after `record.storable`."""
    columns = {name: values.tolist() for name, values in found.columns.items()}
    classes = [
        {
            "class": c,
            "is": direction(float(found.variation[c])),
            **{name: values[c] for name, values in columns.items()},
        }
        for c in range(len(found.variation))
    ]
    return {
        "format": 1,
        "source": found.source,
        "loss": found.loss,
        "options": dict(found.options),
        "seed": found.seed,
        "rows": found.rows,
        "many_above": found.many_above,
        "few_below": found.few_below,
        "summary": found.summary(),
        "classes": classes,
    }
