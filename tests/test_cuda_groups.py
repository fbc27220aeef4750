"""The CUDA solver of classes with several rows: right wherever it says that it is, whatever the
steps; what it leaves, it says; and logits are read as often for 400 steps as for 4.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import Draw
from group_cases import case, check_delta, extremes, problem, problems, repeatable
from hypothesis import given
from test_cuda import (
    DEVICE,
    FELL_BACK,
    GROUP,
    ON_HOST,
    PERTURBED,
    SHAPES,
    SOLVED,
    UNCHANGED,
    backend,
    use_shape,
)
from torch import Tensor

from lpl_fused import LogitClip, Perturbation, testing
from lpl_fused.problem import NONE, Options, Problem

__all__ = ["use_shape"]  # a fixture
pytestmark = pytest.mark.usefixtures("twice")

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EXACT = 512  # kMostExact of csrc/cuda/groups.h: with more classes there is a tail


def on_device(asked: Problem, dtype: torch.dtype = FP32) -> Problem:
    assert asked.steps is not None
    return asked._replace(
        input=asked.input.to(DEVICE, dtype),
        target=asked.target.to(DEVICE),
        steps=asked.steps.to(DEVICE),
    )


def solve(asked: Problem, dtype: torch.dtype = FP32) -> tuple[Tensor, Tensor]:
    """(δ by row, outcome) in float32."""
    there = on_device(asked, dtype)
    delta, slot = backend.learned_perturbation(there)
    return delta[slot].cpu(), backend.outcomes(there).cpu()


@pytest.fixture(params=["beside", "before"])
def ordered(request: pytest.FixtureRequest) -> Iterator[str]:
    """When few rows are ordered by class: beside their statistics, which then do not know who shares
    its class, or before these."""
    if DEVICE != "cpu":
        pytest.skip("on a device their number decides")
    use_beside = ctypes.CDLL(backend._native().__file__).use_beside
    use_beside(request.param == "beside")
    yield request.param
    use_beside(True)


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("classes", [40, 700])
@pytest.mark.parametrize(
    ("spread", "ease", "normalize"),
    [(0.01, 8.0, False), (1.0, -8.0, True), (3.0, 0.0, False), (6.0, 8.0, True)],
)
def test_without_falling_back(classes: int, spread: float, ease: float, normalize: bool) -> None:
    """Both directions, easy and hard targets, nearly equal logits and a few that have all mass, with
    and without a tail; beside a row of its own, which the other solver has.
    """
    asked = problem([2, 5, 1], [10, -10, 3], classes, spread, ease, normalize=normalize)
    delta, found = solve(asked)
    check_delta(asked, delta)
    assert found.tolist() == torch.where(asked.target == 2, SOLVED, PERTURBED).tolist()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_what_training_asks_for(normalize: bool) -> None:
    """K = 50 steps of α = 0.1, 2,000 classes, some hundred of which are exact."""
    asked = problem([2, 7], [50, -50], 2000, 3.0, normalize=normalize)
    delta, found = solve(asked)
    check_delta(asked, delta)
    assert set(found.tolist()) == {PERTURBED}


@pytest.mark.parametrize(("rows", "classes"), [(150, 600), (70, 33_000)])
def test_more_rows_than_parts_of_columns(rows: int, classes: int) -> None:
    asked = problem([rows], [5], classes, 3.0)
    delta, found = solve(asked)
    assert set(found.tolist()) == {PERTURBED}
    check_delta(asked, delta)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_loss_and_gradient(dtype: torch.dtype) -> None:
    asked = problem([3, 2], [9, -9], 700)
    assert set(solve(asked, dtype)[1].tolist()) == {PERTURBED}
    testing.assert_within_budget(case(asked), "cuda", dtype)


def test_float64_has_no_tail() -> None:
    """What relaxation leaves would show at 1e-13: all classes are exact, or steps are plain."""
    for classes, expected in ((EXACT, PERTURBED), (EXACT + 1, GROUP)):
        asked = problem([3, 2], [9, -9], classes)
        assert set(solve(asked, FP64)[1].tolist()) == {expected}
        testing.assert_within_budget(case(asked), "cuda", FP64)


@pytest.mark.parametrize("part", ["tables", "softcap", "norm"])
def test_with_the_rest_of_the_algebra(part: str) -> None:
    """Rows without a label that counts beside them."""
    asked, draw = problem([4, 3], [5, -5], 600), Draw(7, 600, seed=1)
    target = asked.target.clone()
    target[torch.nonzero(target == 0)[0]] = -100
    asked = asked._replace(target=target)
    keywords: dict[str, Any] = {"weight": draw.uniform(600), "z_loss": 1e-2, "reduction": "mean"}
    if part == "tables":
        keywords["perturbation"] = Perturbation(
            scale=0.5 + draw.uniform(600),
            offset=draw.normal(600),
            margin=draw.uniform(600),
            temperature=1.3,
        )
    if part == "softcap":
        keywords["softcap"] = 5.0
    if part == "norm":
        keywords["norm"] = LogitClip(20.0)
    testing.assert_within_budget(case(asked, **keywords), "cuda")


@ON_HOST
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_team_shapes(use_shape, normalize: bool) -> None:  # type: ignore[no-untyped-def]
    asked = problem([2, 6], [6, -6], 600, normalize=normalize)
    for shape in SHAPES.values():
        use_shape(*shape)
        delta, found = solve(asked)
        assert set(found.tolist()) == {PERTURBED}
        check_delta(asked, delta)


@ON_HOST
def test_no_result_depends_on_who_comes_first(use_shape) -> None:  # type: ignore[no-untyped-def]
    """A barrier that is missing would show: fibres in reverse order must give the same bits."""
    for normalize, blocks in itertools.product((False, True), (1, 3)):
        asked = problem([2, 6], [9, -9], 600, 3.0, normalize=normalize)
        found = []
        for reverse in (False, True):
            use_shape(blocks, 4, True, reverse)
            found.append(solve(asked)[0])
        assert torch.equal(*found)


@ON_HOST
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_reads_do_not_grow_with_the_steps(normalize: bool, ordered: str) -> None:
    """Launches, and loads of 16-bit logits, of steps that are smaller the more they are."""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    seen = set()
    for steps in (4, 40, 400):
        options = {"step_size": 0.8 / steps, "normalize": normalize}
        asked = on_device(problem([2, 5], [steps, -steps], 600, **options), BF16)
        take_counts(counts)
        found = backend.outcomes(asked)
        take_counts(counts)
        assert set(found.tolist()) == {PERTURBED}
        seen.add(tuple(counts))
    (only,) = seen
    # twice by a row's statistics (a piece with heads once more where nobody knows that it has none),
    # twice by each round over the tail, once for δ
    assert only[1] <= (8.5 + (ordered == "beside")) * asked.input.numel()


def test_any_number_of_steps_is_solved() -> None:
    for steps, expected in ((0, UNCHANGED), (1, PERTURBED), (-2, PERTURBED), (3, PERTURBED)):
        asked = problem([3], [steps], 600)
        delta, found = solve(asked)
        assert set(found.tolist()) == {expected}
        check_delta(asked, delta)


def test_fallback_is_noticed_and_right() -> None:
    """A dose too large for the polynomials, in one group of three; one whose e^δ is no number."""
    asked = problem([3, 2, 2], [40, 3, 0], 700, 0.5, step_size=0.5)
    delta, found = solve(asked)
    check_delta(asked, delta)
    for label, expected in enumerate((FELL_BACK, PERTURBED, UNCHANGED)):
        assert set(found[asked.target == label].tolist()) == {expected}
    testing.assert_within_budget(case(asked), "cuda")
    asked = problem([3], [-3], 40, step_size=40.0)
    delta, found = solve(asked)
    check_delta(asked, delta)
    assert set(found.tolist()) == {FELL_BACK}


@pytest.mark.parametrize(
    ("sizes", "steps", "classes", "options"),
    [
        ([3, 2], [50, -50], 513, {"ease": 30.0, "seed": 799362, "step_size": 0.5}),
        ([3, 2], [-12, -12], 513, {"seed": 750647, "step_size": 3.0, "normalize": True}),
        ([2], [-50], 1500, {"seed": 859742, "step_size": 0.5, "normalize": True}),
    ],
)
def test_steps_that_lead_nowhere(
    sizes: list[int], steps: list[int], classes: int, options: dict[str, Any]
) -> None:
    """Masses of e^-10 of what they were: with the gains of the first round Z becomes negative."""
    asked = problem(sizes, steps, classes, 20.0, **options)
    delta, found = solve(asked)
    check_delta(asked, delta)
    assert FELL_BACK in found


@pytest.mark.usefixtures("ordered")
@pytest.mark.parametrize("classes", [150, 600])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_extremes(classes: int, normalize: bool) -> None:
    """Groups of labels 0 to 2 are solved, those with nan or without mass are nan, and no other."""
    asked = extremes(classes, normalize)
    target = asked.target
    _, found = solve(asked)
    assert set(found[target < 3].tolist()) == {PERTURBED}
    assert set(found[target >= 3].tolist()) == {GROUP}
    testing.assert_within_budget(case(asked), "cuda")


@pytest.mark.usefixtures("ordered")
def test_an_index_out_of_range_makes_its_class_nan_and_no_other() -> None:
    """Its rows share a δ, in which the row has its part; also where it comes first."""
    asked = on_device(problem([3, 3], [4, -4], 600))
    tables = torch.randn(2, 600, device=DEVICE)
    for place in range(3):
        row = torch.nonzero(asked.target == 0)[place, 0]
        index = torch.zeros(6, dtype=torch.int64, device=DEVICE)
        index[row] = 10**12
        losses = backend.forward(asked._replace(rows=tables, row_index=index), True).loss
        assert torch.equal(losses.isnan(), asked.target == 0)


@ON_HOST
@pytest.mark.parametrize(
    "labels",
    [
        [],
        [7],
        [-100],
        [7, 7],
        [7, 3],
        [-100] * 5,
        [-100, 7, -100, 7],
        [640, -1, 640],  # out of range
        [2] * 20,
        [*range(3, 12), 0, 640, -100, 0, *range(15, 20)],
        [k // 2 for k in range(41)],  # too many to be ordered beside
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP64], ids=str)
def test_when_rows_are_ordered_changes_none_alone_in_its_class(
    labels: list[int], dtype: torch.dtype
) -> None:
    """And the others by rounding. Statistics of rows, and a class without steps, beside."""
    use_beside = ctypes.CDLL(backend._native().__file__).use_beside
    draw, n = Draw(len(labels), 600, seed=4), len(labels)
    steps = torch.tensor([4, -4, 9, 0] * 150, dtype=torch.int32)
    target = torch.tensor(labels, dtype=torch.int64)
    logits = (2 * draw.normal(n, 600)).to(dtype)
    asked = Problem(logits, target, steps=steps, options=Options(reduction=NONE, step_size=0.1))
    found = []
    for beside in (False, True):
        use_beside(beside)
        try:
            forward = backend.forward(asked, False, return_stats=True)
            ones = torch.ones(n, dtype=forward.loss.dtype)
            grad = backend.learned_gradient(asked, ones, forward.state)
            found.append((forward.loss, *forward.statistics, grad, backend.outcomes(asked)))
        finally:
            use_beside(True)
    shares = torch.tensor([labels.count(label) > 1 for label in labels], dtype=torch.bool)
    for before, here in zip(*found, strict=True):
        torch.testing.assert_close(here[~shares], before[~shares], rtol=0, atol=0, equal_nan=True)
        rtol = {BF16: 1e-2, FP32: 2e-6}.get(here.dtype, 1e-12)
        torch.testing.assert_close(here, before, rtol=rtol, atol=1e-7, equal_nan=True)


def test_repeats_bit_for_bit() -> None:
    asked = problem([5, 30, 2], [20, -20, 5], 1200, 3.0)
    assert torch.equal(solve(asked)[0], solve(asked)[0])


@repeatable(150)
@given(asked=problems())
def test_whatever_is_asked(asked: Problem) -> None:
    """Solved or fallen back, δ is that of exact iteration."""
    check_delta(asked, solve(asked)[0])
