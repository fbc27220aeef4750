"""The C++ solver of classes with several rows, and its exact steps of few classes (csrc/cpu/
exact_steps.h): right wherever they do not fall back, whatever the steps.
"""

from __future__ import annotations

import pytest
import torch
from group_cases import FP32, FP64, case, check_delta, extremes, problem, problems, repeatable
from hypothesis import given
from torch import Tensor

from lpl_fused import reference, testing
from lpl_fused.backends import cpp, load
from lpl_fused.problem import Problem

pytestmark = pytest.mark.skipif(
    load("cpp").unavailable() is not None, reason=f"cpp: {load('cpp').unavailable()}"
)

FEW = 1024  # classes, up to which every one of them is exact


def solve(asked: Problem) -> tuple[Tensor, dict[str, int]]:
    """(δ by row, rows by outcome) in float32."""
    before = dict(cpp.solver_rows)
    delta, slot = cpp.learned_perturbation(asked._replace(input=asked.input.float()))
    return delta[slot], {name: cpp.solver_rows[name] - count for name, count in before.items()}


@pytest.mark.parametrize(
    ("sizes", "steps", "classes", "keywords"),
    [
        # exact classes lose all their mass: what is left of 1 beside them is rounding
        ([9], [-100], 3, {"spread": 3.0, "ease": 10.0, "seed": 984917, "step_size": 3.0}),
        ([3, 2], [-100, -100], 3, {"spread": 20.0, "seed": 298748, "step_size": 0.5}),
        ([40], [-100], 3, {"spread": 6.0, "ease": -10.0, "seed": 906107, "step_size": 3.0}),
        # gradients hardly longer than the floor below which they have no direction
        ([9], [12], 3, {"spread": 1.0, "ease": 30.0, "seed": 328825, "step_size": 0.02}),
        ([40], [-50], 3, {"spread": 3.0, "ease": 30.0, "seed": 949032, "step_size": 0.5}),
    ],
)
def test_normalised_steps_to_the_end(
    sizes: list[int], steps: list[int], classes: int, keywords: dict[str, float]
) -> None:
    asked = problem(sizes, steps, classes, normalize=True, **keywords)
    delta, rows = solve(asked)
    assert rows == {"solved": sum(sizes), "swept": 0}
    check_delta(asked, delta)


@pytest.mark.parametrize(
    ("steps", "classes", "ease", "seed"), [(50, 513, 30.0, 799362), (100, 70, 10.0, 781986)]
)
def test_gains_found_for_another_way(steps: int, classes: int, ease: float, seed: int) -> None:
    """Steps by the first gains lead so far that the rows' ways differ by orders of magnitude."""
    asked = problem([3, 2], [steps, -steps], classes, 20.0, ease, seed, step_size=0.5)
    check_delta(asked, solve(asked)[0])


@pytest.mark.parametrize("classes", [600, 1100], ids=["exact", "solver"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_extremes(normalize: bool, classes: int) -> None:
    """Groups with nan or without mass are nan, no other; three steps are too few for the solver."""
    asked = extremes(classes, normalize)
    finite = asked.target < (3 if classes <= FEW else 2)
    swept = int((asked.target > 2).sum()) if classes <= FEW else 0
    assert solve(asked)[1] == {"solved": int(finite.sum()), "swept": swept}
    testing.assert_within_budget(case(asked), "cpp")


@repeatable(200)
@given(asked=problems())
def test_few_classes(asked: Problem) -> None:
    """Exact or fallen back, δ is that of exact iteration."""
    check_delta(asked, solve(asked)[0])


@repeatable(100)
@given(asked=problems((1025, 1500, 2100), most=30))
def test_many_classes(asked: Problem) -> None:
    """Solved or fallen back, δ is that of exact iteration."""
    check_delta(asked, solve(asked)[0])


@pytest.mark.parametrize("classes", [3, 17, 1024, 1025, 5000])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_float64_has_all_digits(normalize: bool, classes: int) -> None:
    asked = problem([2, 5, 3], [1, -9, 40], classes, normalize=normalize)
    truth, slot = reference.learned_perturbation(asked)
    before = dict(cpp.solver_rows)
    delta, _ = cpp.learned_perturbation(asked)
    solved = {name: cpp.solver_rows[name] - count for name, count in before.items()}
    assert solved == {"solved": 8, "swept": 0}  # one step is a plain one
    torch.testing.assert_close(delta[slot], truth[slot], rtol=0, atol=1e-12)


def test_many_rows_of_few_classes() -> None:
    """A matrix that no cache holds, of which threads had better share the passes; to either side."""
    for rows in (655, 656):
        asked = problem([rows], [5], 100)
        delta, counts = solve(asked)
        assert counts == {"solved": rows, "swept": 0}
        check_delta(asked, delta)


@pytest.mark.parametrize("dtype", [FP32, torch.bfloat16, FP64], ids=str)
def test_whatever_threads_there_are(dtype: torch.dtype) -> None:
    """To the bit, on both sides of every border."""
    sizes = [2, 90, 1, 3, 700, 1, 4]
    for classes in (100, 1100):
        asked = problem(sizes, [10, -10, 5, 3, 7, 2, -4], classes)
        asked = asked._replace(input=asked.input.to(dtype))
        found, threads = [], torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(cpp.learned_perturbation(asked)[0])
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
