"""What is kept of a measurement, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_conditions import CE, conditions

from benchmarks import plots, records
from benchmarks.cases import COPY, Case, modes
from benchmarks.measure import measure
from benchmarks.providers import EAGER, EAGER_CE


def test_plain_cross_entropy_stands_beside_a_perturbed_case() -> None:
    found = measure(Case.parse("16x20", "fp32", "la"), [EAGER], conditions())
    both = {r.provider: r for r in found if r.mode == "both"}
    assert both[EAGER_CE.name].ratio_to_eager_ce == 1
    ratio = both["eager"].ratio_to_eager_ce
    assert ratio == pytest.approx((both["eager"].median_ms or 0) / both[EAGER_CE.name].median_ms)
    assert both["eager"].grad_error is not None


def test_steps_are_drawn_by_shape_and_labels() -> None:
    sweep = ("ce", "lpl1", "lpl2", "ce-unique", "lpl1-unique", "lpl2-unique", "lpl1-zipf")
    cases = [Case.parse("8x12", "fp32", loss) for loss in sweep]
    found = [r for case in cases for r in measure(case, [EAGER], conditions()) if r.mode == "both"]
    panels = plots.against_steps(found).axes
    assert [axes.get_title() for axes in panels] == [
        "8×12 fp32, uniform labels",
        "8×12 fp32, unique labels",
    ]
    for axes in panels:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0: plain CE", "1", "2"]


def test_who_is_too_slow_is_timed_in_one_mode() -> None:
    found = measure(CE, [EAGER], conditions(patience=0.0))
    status = {(r.provider, r.mode): r.status for r in found}
    assert status.pop((COPY, COPY)) == "ok"
    assert status == {("eager", mode): "ok" if mode == "both" else "slow" for mode in modes("cpu")}


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = measure(CE, [EAGER], conditions())
    records.write(found, tmp_path / "r.jsonl")
    assert records.read(tmp_path / "r.jsonl") == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /usr/lib/a-b/x.so: no", "cannot open x.so: no"),
        ("n/a, 3/4, and/or", "n/a, 3/4, and/or"),
        ("('/tmp/a/b.py')", "('b.py')"),
    ],
)
def test_paths_are_left_out(text: str, expected: str) -> None:
    assert records.without_paths(text) == expected
