"""Writes combinations.md from what the suite tests: `python -m docs.combinations`."""

from __future__ import annotations

from pathlib import Path

from tests.compositions import ENTRIES, Entry

PAGE = Path(__file__).with_name("combinations.md")
# what a reader may ask for, and what the suite calls it
FEATURES = {
    "two labels (mixup)": "mixed",
    "class probabilities": "dense",
    "label smoothing": "label_smoothing",
    "… by class": "smoothing by class",
    "φ": "phi",
    "class weights": "weight",
    "z-loss": "z_loss",
    "`perturbation=`": "perturbation",
    '`reduction="none"`': "none",
}
START = """# What goes with what

Every loss takes class indices, `ignore_index`, rows (C,), (N, C) or (N, C, d1, …), and every
dtype. ✓ is combined, with the numbers of the equation; – is refused, by an error that names the
argument. Each mark is a test (`tests/test_composition.py`), and this page is written from its
table (`python -m docs.combinations`).

"""
END = """
* Class probabilities go neither with smoothing by class nor with an `ignore_index` of 0 or more,
  whatever the loss.
* `SoftmaxEQLLoss` is infinite with smoothing, where it drops a class that has a share of the
  target.
* φ, class weights, smoothing or z-loss are refused where they are what the loss is made of.
* {bases} stand on another loss, whose marks hold as well; the first two want `reduction="none"`
  of it.
* `BinaryAlphaLoss`, `BinaryVSLoss` (one logit), `SmoothMixLoss` (two kinds of logits) and the
  losses for [several labels](losses/multi-label.md) take what their docstrings say.
* Which of them go without logits: [classes that do not fit](scale.md). What compiling, resuming,
  ranks and autocast do to them: [losses under transforms](losses_and_transforms.md).
"""


def row(name: str, entry: Entry) -> str:
    marks = ["–" if feature in entry.refuses else "✓" for feature in FEATURES.values()]
    kind, _, form = name.partition(", ")
    also = "" if not entry.further else ", ".join(f"`{given}`" for given in entry.further)
    return " | ".join([f"| `{kind}`{form and ', ' + form}", *marks, f"{also} |"])


def page() -> str:
    head = " | ".join(["| loss", *FEATURES, "called with |"])
    bases = [f"`{name}`" for name, e in ENTRIES.items() if e.make.__qualname__.startswith("based")]
    lines = [head, "|---" + "|:-:" * len(FEATURES) + "|---|"]
    lines += [row(name, entry) for name, entry in ENTRIES.items()]
    end = END.format(bases=", ".join(bases[:-1]) + f" and {bases[-1]}")
    return START + "\n".join(lines) + "\n" + end


if __name__ == "__main__":
    PAGE.write_text(page())
