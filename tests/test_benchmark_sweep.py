"""A sweep over rows and classes: who takes part, what is timed, what its picture says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_conditions import CPU, conditions
from matplotlib import image

from benchmarks import heatmap, plots, run, selections
from benchmarks.cases import Case
from benchmarks.measure import measure
from benchmarks.providers import providers
from benchmarks.records import Record

SHAPES = [f"{n}x{c}" for n in (1, 2, 5) for c in (2, 3, 7)]


@pytest.fixture(scope="module")
def found() -> list[Record]:
    known = [providers()[name] for name in ("eager", "auto")]
    quick = replace(conditions(), modes=("both",))
    return [r for s in SHAPES for r in measure(Case.parse(s, "fp32", "ce"), known, quick)]


def test_every_size_of_problem_takes_part() -> None:
    shapes = {(case.rows, case.classes) for case in selections.sweep_cases("cpu")}
    assert {(1, 2), (1, 262144), (8192, 2), (8192, 32000), (512, 262144)} <= shapes
    assert (8192, 262144) not in shapes  # 8 GiB of logits
    assert {case.dtype_name for case in selections.sweep_cases("cuda")} == {"bf16"}


def test_the_option_chooses_what_is_timed() -> None:
    options = run.parser().parse_args(["--sweep", "--device", "cpu"])
    assert run.selected(options) == selections.sweep_cases("cpu")
    assert [p.name for p in run.contestants(options)] == ["eager", "compile", "auto"]
    assert run.modes_of(options) == ("both",)


def test_modes_are_chosen_by_name() -> None:
    def chosen(*arguments: str) -> tuple[str, ...]:
        return run.modes_of(run.parser().parse_args(["--device", "cpu", *arguments]))

    assert chosen("--modes", "forward") == ("forward", "both")
    assert "both-cold" in chosen()
    with pytest.raises(ValueError, match="expected some of forward-no-grad, .* got 'sideways'"):
        chosen("--modes", "sideways")


def test_only_what_was_asked_for_is_timed(found: list[Record]) -> None:
    assert {r.mode for r in found} == {"both", "copy"}
    assert {r.device_type for r in found} == {CPU.type}


def test_ratios_are_over_the_faster_rival(found: list[Record]) -> None:
    one = next(r for r in found if r.provider == "eager" and r.mode == "both")
    times = {"eager": 6.0, "compile": 4.0, "auto": 3.0, "reference": 1.0}
    made = [replace(one, provider=name, median_ms=ms) for name, ms in times.items()]
    assert heatmap.ratios(made) == {(one.rows, one.classes): 0.75}
    assert heatmap.ratios(made[:2]) == {}


def test_the_picture_is_drawn_from_enough_shapes(found: list[Record], tmp_path: Path) -> None:
    assert set(heatmap.ratios(r for r in found if r.mode == "both")) == {
        tuple(map(int, shape.split("x"))) for shape in SHAPES
    }
    # a ratio of 1 has no colour, and times shall not decide
    found = [
        replace(r, median_ms=ms, p20=ms, p80=ms)
        for r in found
        for ms in [0.5 if r.provider == "auto" else 1.0]
    ]
    names = [path.name for path in plots.save(found, tmp_path)]
    assert "sweep.png" in names
    assert "relative.png" not in names
    pixels = image.imread(tmp_path / "sweep.png")[..., :3]
    assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 0.05).mean() > 0.05
    fewer = [r for r in found if r.rows != 5]
    assert "sweep.png" not in [path.name for path in plots.save(fewer, tmp_path)]
