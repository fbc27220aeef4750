"""Writes without_logits.md from what the suite tests: `python -m docs.without_logits`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpl_fused import functional, losses
from tests.linear_cases import HAVE, REFUSE

PAGE = Path(__file__).with_name("without_logits.md")
START = """# Which losses go where

* **`linear`**: of features and a classifier, without logits (`criterion.linear(…)`,
  `functional.linear_…`): [classes that do not fit](scale.md).
* **`process_group`**: with classes over many ranks: the same page.
* **`return_stats`**: lse, entropy and correctness of rows beside the loss:
  [evaluation](evaluation.md#beside-the-loss).
* **`through_perturbation`**: the gradient goes through LPL's steps.

✓ is equal to the loss of all logits in one place; – is refused, by an error that says so. Marks are
tests (`tests/test_linear_losses.py`, `test_sharded_losses.py`, `test_row_statistics.py`), and this
page is written from their table (`python -m docs.without_logits`).

"""
END = """
* With two labels of a row (`MixedTarget`) all marks hold, of LPL and margins, too, with these left
  out: `return_stats` where the labels move the logits; and, in `linear` and `process_group`, a
  penalty there (`MbLSLoss` over margins, say).
* What goes through the steps goes neither with `linear` nor with `process_group`.
* `MbLSLoss` and `CALSLoss` go where their base does, which has to be a choice of tables and
  keywords.
* A variant of `LPLLoss` is its authors' script, whose steps are what they are.
"""
COLUMNS = ("linear", "process_group", "return_stats", "through_perturbation")


def row(name: str, marks: list[bool]) -> str:
    return " | ".join([f"| {name}", *("✓" if mark else "–" for mark in marks)]) + " |"


def of_function(function: Callable[..., Any]) -> list[bool]:
    parameters = inspect.signature(function).parameters
    linear = hasattr(functional, f"linear_{function.__name__}")
    return [linear, *(name in parameters for name in COLUMNS[1:])]


def of_loss(kind: type, linear: bool) -> list[bool]:
    return_stats = "return_stats" in inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    steps = "through_perturbation" in inspect.signature(kind).parameters
    return [linear, linear, return_stats, steps]


def page() -> str:
    having, refusing = ({type(make()) for make in made.values()} for made in (HAVE, REFUSE))
    lines = [" | ".join(["| ", *(f"`{name}`" for name in COLUMNS)]) + " |"]
    lines.append("|---" + "|:-:" * len(COLUMNS) + "|")
    for name in ("cross_entropy", "lpl_cross_entropy", "binary_cross_entropy_with_logits"):
        lines.append(row(f"`functional.{name}`", of_function(getattr(functional, name))))
    for name in losses.__all__:
        kind = getattr(losses, name)
        if kind in having | refusing:
            lines.append(row(f"`{name}`", of_loss(kind, kind in having)))
        if kind is losses.LPLLoss:
            lines.append(row(f"`{name}`, a variant", [False, False, True, False]))
    return START + "\n".join(lines) + "\n" + END


if __name__ == "__main__":
    PAGE.write_text(page())
