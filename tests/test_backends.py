"""One suite for all backends: every part of the algebra against float64 truth."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases

from lpl_fused import Perturbation, testing

pytestmark = [pytest.mark.devices, pytest.mark.usefixtures("twice")]
CASES = cross_entropy_cases()
LPL_CASES = lpl_cases()
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
CLASSES = 7  # a ragged vector
WIDE = 61  # a row that is no multiple of 16 bytes, and too wide to share vectors with others


def rows(backend: str) -> int:
    """Enough for the worst rounding not to be luck; fewer where every row is interpreted."""
    return 6 if backend == "triton" and "TRITON_INTERPRET" in os.environ else 24


def check(problem: testing.Case, backend: str, dtype: torch.dtype = torch.float32) -> None:
    # Triton's interpreter truncates to bfloat16, once for the gradient and once for the upstream
    truncates = backend == "triton" and "TRITON_INTERPRET" in os.environ
    ulps = 2.0 if truncates and dtype == torch.bfloat16 else 1.0
    testing.assert_within_budget(problem, backend, dtype, upstream=upstream, ulps=ulps)


def upstream(loss: torch.Tensor) -> torch.Tensor:
    """Random and never 1: the shortcut for 1 must not be what works."""
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_cross_entropy(backend: str, case: str, dtype: str) -> None:
    problem = CASES[case](Draw(rows(backend), CLASSES, seed=1))
    check(problem, backend, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LPL_CASES)
def test_lpl(backend: str, case: str, dtype: str) -> None:
    problem = LPL_CASES[case](Draw(rows(backend), CLASSES, seed=2))
    check(problem, backend, DTYPES[dtype])


@pytest.mark.parametrize("form", ["hard", "offset", "smoothed", "lpl"])
def test_mass_far_from_the_first_classes(backend: str, form: str) -> None:
    """A sweep may take its shift from the first classes; what comes later exceeds it without end."""
    draw = Draw(6, 2500, seed=5)
    input, target = draw.input(), torch.tensor([3, 2100, 2100, 2499, 0, 7])
    input[0, 2000] = 300
    # the target itself, unless it is smoothed: p − t there is another test's cancellation
    input[1, 2101 if form == "smoothed" else 2100] = 95
    input[2, :2048] = -torch.inf
    input[3, :1024] -= 500
    input[4, 1024:] += 45
    input[5, 2047] = 41
    keywords: dict[str, object] = {}
    if form == "offset":
        keywords["perturbation"] = Perturbation(offset=draw.normal(2500))
    if form == "smoothed":
        input[2, :2048] = -200  # no class with target mass at −inf: the loss would be infinite
        keywords["label_smoothing"] = 0.1
    steps = None
    if form == "lpl":
        keywords["step_size"] = 0.2
        steps = draw.steps()
    check(testing.Case(input, target, keywords, steps), backend)


@pytest.mark.parametrize("case", ["hard", "ignore", "dense-weights", "smoothed", "everything"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wider_rows(backend: str, case: str, dtype: str) -> None:
    problem = CASES[case](Draw(rows(backend), WIDE, seed=3))
    check(problem, backend, DTYPES[dtype])


# 1023 to 1025 surround the C++ block and a common Triton block; 8142 is iNaturalist 2018
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 1023, 1024, 1025, 8142])
def test_class_counts(backend: str, classes: int) -> None:
    for case in ("hard", "ignore", "smoothed", "offset", "clip", "penalty-relu-ties"):
        problem = CASES[case](Draw(3, classes, seed=classes))
        check(problem, backend)
    problem = LPL_CASES["groups-normalized"](Draw(3, classes, seed=classes))
    if classes > 1:
        check(problem, backend)


def side_by_side(problem: testing.Case) -> bool:
    """Whether rows of few classes share vectors in the C++ kernels (narrow_rows.h)."""
    labels = isinstance(problem.target, torch.Tensor) and not problem.target.is_floating_point()
    others = {"label_smoothing", "softcap", "norm", "penalty"} & problem.keywords.keys()
    return labels and problem.steps is None and not others


def test_every_instruction_set(isa: str) -> None:
    for name, build in [*CASES.items(), *LPL_CASES.items()]:
        sizes = [(rows("cpp"), CLASSES)]
        if side_by_side(build(Draw(2, CLASSES, seed=1))):
            # more rows than lanes, some left over; and rows too wide for that
            sizes += [(45, CLASSES), (8, WIDE)]
        for (n, classes), dtype in itertools.product(sizes, DTYPES.values()):
            try:
                check(build(Draw(n, classes, seed=1)), "cpp", dtype)
            except AssertionError as failed:
                raise AssertionError(f"{isa}, {name}, {n}x{classes}: {failed}") from failed
