"""The C++ kernels take no more instructions than on record: a regression that no noise can move."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.cases import Case
from lpl_fused.backends import cpp

SMALL = Case.parse("8x50", "fp32", "lpl5")

needs_counts = pytest.mark.skipif(
    instructions.unavailable() is not None, reason=instructions.unavailable() or ""
)


@needs_counts
def test_no_case_takes_five_per_cent_more_than_on_record() -> None:
    known = instructions.baseline()
    if not known:
        pytest.skip(f"no counts on record for {instructions.build()}")
    counts = instructions.count(instructions.CASES)
    assert set(counts) == set(known), "count and record all: python -m benchmarks.instructions"
    assert not instructions.grown(counts, known)


@needs_counts
def test_a_count_is_repeatable_and_tells_cases_apart() -> None:
    cases = [SMALL, SMALL.plain, Case.parse("8x50", "fp32", "bce")]
    first = instructions.count(cases)
    assert first == pytest.approx(instructions.count(cases), rel=0.01)
    assert first[SMALL.name] > 1.5 * first[SMALL.plain.name] > 0
    assert instructions.count(cases[:1])[SMALL.name] == pytest.approx(first[SMALL.name], rel=0.01)


@pytest.mark.skipif(cpp.unavailable() is not None, reason="C++ backend not built")
def test_recorded_calls_are_those_of_the_backend() -> None:
    names = [name for name, _ in instructions.calls_of(SMALL)]
    assert names == ["cross_entropy", "scale_rows"]
    assert cpp._native().__name__ == "lpl_fused._cpu"  # the recorder is gone


def test_growth_is_told_from_noise() -> None:
    known = {"a": 10.0, "b": 10.0, "c": 10.0}
    counts = {"a": 10.4, "b": 10.6, "c": 5.0, "new": 1.0}
    assert instructions.grown(counts, known) == {"b": pytest.approx(1.06)}


@pytest.mark.skipif(cpp.unavailable() is not None, reason="C++ backend not built")
def test_records_belong_to_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = {"another compiler, avx2": {"a": 1.0}}
    monkeypatch.setattr(instructions, "BASELINE", tmp_path / "instructions.json")
    instructions.BASELINE.write_text(json.dumps(other))
    assert instructions.baseline() == {}
    instructions.record({"a": 2.0})
    assert instructions.baseline() == {"a": 2.0}
    assert json.loads(instructions.BASELINE.read_text()) == {
        **other,
        instructions.build(): {"a": 2.0},
    }
