"""One suite for all backends: every part of the multi-label algebra against float64 truth."""

from __future__ import annotations

import pytest
import torch
from cases import Draw
from multilabel_cases import binary_cases, binary_lpl_cases, few_positives_cases, hard
from test_backends import CLASSES, DTYPES, WIDE, check, rows

from lpl_fused.backends import load
from lpl_fused.testing import Case, evaluate

pytestmark = [
    pytest.mark.multilabel,
    pytest.mark.devices,
    pytest.mark.usefixtures("twice"),
]

CASES, LPL_CASES = binary_cases(), binary_lpl_cases()
FEW_POSITIVES = few_positives_cases()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_binary_cross_entropy(backend: str, case: str, dtype: str) -> None:
    check(CASES[case](Draw(rows(backend), CLASSES, seed=1)), backend, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LPL_CASES)
def test_lpl(backend: str, case: str, dtype: str) -> None:
    check(LPL_CASES[case](Draw(rows(backend), CLASSES, seed=2)), backend, DTYPES[dtype])


@pytest.mark.parametrize("case", ["hard", "missing", "soft-everything", "hard-rebalance"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wider_rows(backend: str, case: str, dtype: str) -> None:
    check(CASES[case](Draw(rows(backend), WIDE, seed=3)), backend, DTYPES[dtype])


# around the C++ block of 1024 and its tiles of columns, and a common Triton block
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 65, 1023, 1024, 1025, 2500])
def test_class_counts(backend: str, classes: int) -> None:
    for case in ("hard", "missing", "soft", "hard-everything"):
        check(CASES[case](Draw(3, classes, seed=classes)), backend)
    for case in ("hard", "missing-everything"):
        check(LPL_CASES[case](Draw(3, classes, seed=classes)), backend)


# few enough positives that kernels may take each by itself, in rows that share a block or fill many
@pytest.mark.parametrize("classes", [20, 300, 2500])
@pytest.mark.parametrize("case", FEW_POSITIVES)
def test_few_positives(backend: str, case: str, classes: int) -> None:
    if backend == "triton":
        classes = min(classes, 1100)  # three of its widest tiles, the last one ragged
    draw = Draw(rows(backend), classes, seed=classes)
    for dtype in DTYPES.values():
        check(FEW_POSITIVES[case](draw), backend, dtype)


@pytest.mark.parametrize("n", [1, 33, 200, 300])
@pytest.mark.parametrize("case", ["hard", "missing", "soft", "many-small-steps", "far"])
def test_columns_of_many_rows(backend: str, n: int, case: str) -> None:
    """δ is a mean over the batch: sums of many rows, in blocks, must keep their digits."""
    check(LPL_CASES[case](Draw(n, 9, seed=n)), backend)


@pytest.mark.counts
@pytest.mark.parametrize("density", [0.02, 0.5])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_moments_solve_usual_batches(labels: str, density: float) -> None:
    """Steps of 0.1 from any start need no plain step, however many; long ones do."""
    if load("cpp").unavailable():
        pytest.skip(str(load("cpp").unavailable()))
    draw = Draw(70, 40, seed=4)
    y = hard(draw, density)
    target = y if labels == "hard" else 0.9 * y + 0.03
    count = load("cpp").solver_columns

    def taken(steps: int, dtype: torch.dtype, step_size: float = 0.1) -> tuple[int, int]:
        before = dict(count)
        signs = torch.where(draw.uniform(40) < 0.5, -1, 1)
        case = Case(draw.input(), target, {"step_size": step_size}, steps * signs, multilabel=True)
        evaluate(case.to(dtype), "cpp")
        return count["solved"] - before["solved"], count["swept"] - before["swept"]

    assert taken(10, torch.float32) == taken(10, torch.bfloat16) == (40, 0)
    assert taken(10, torch.float64) == (0, 40)
    assert taken(50, torch.float32) == (40, 0)
    assert taken(3, torch.float32, 5.0) == (0, 40)


def test_every_instruction_set(isa: str) -> None:
    for name, build in [*CASES.items(), *LPL_CASES.items()]:
        for dtype in DTYPES.values():
            try:
                check(build(Draw(rows("cpp"), 21, seed=1)), "cpp", dtype)
            except AssertionError as failed:
                raise AssertionError(f"{isa}, {name}: {failed}") from failed


def test_error_budget_can_fail() -> None:
    """A gradient of the positives alone that is off by a part in 10⁵ does not pass."""
    from lpl_fused import testing

    case = CASES["hard"](Draw(24, 7, seed=1))
    found = testing.evaluate(case.to(torch.float32), "reference").grads["input"]
    truth = testing.evaluate(case.rounded(torch.float32), "reference").grads["input"]
    assert testing.error(found, truth) < 1e-6
    wrong = torch.where(case.target == 1, found * (1 + 1e-5), found)
    assert testing.error(wrong, truth) > 3e-6
