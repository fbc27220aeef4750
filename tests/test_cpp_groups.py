"""The C++ solver of classes with several rows: right wherever it does not fall back, whatever the
steps.
"""

from __future__ import annotations

import pytest
from group_cases import case, check_delta, extremes, problem, problems, repeatable
from hypothesis import given
from torch import Tensor

from lpl_fused import testing
from lpl_fused.backends import cpp, load
from lpl_fused.problem import Problem

pytestmark = pytest.mark.skipif(
    load("cpp").unavailable() is not None, reason=f"cpp: {load('cpp').unavailable()}"
)


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


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_extremes(normalize: bool) -> None:
    """Groups that take four steps are solved; those with nan or without mass are nan, no other."""
    asked = extremes(600, normalize)
    assert solve(asked)[1] == {"solved": int((asked.target < 2).sum()), "swept": 0}
    testing.assert_within_budget(case(asked), "cpp")


@repeatable(300)
@given(asked=problems())
def test_whatever_is_asked(asked: Problem) -> None:
    """Solved or fallen back, δ is that of exact iteration."""
    check_delta(asked, solve(asked)[0])
