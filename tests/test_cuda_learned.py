"""LPL on CUDA of rows alone in their class: statistics, steps, gradient. What its numbers keep at the
edges, which rows are left to plain steps, and what it costs: launches, and loads of logits.
"""

from __future__ import annotations

import ctypes
import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import Draw
from test_cuda import DEVICE, FELL_BACK, ON_HOST, SHAPES, SOLVED, UNCHANGED, backend, use_shape
from torch import Tensor

from lpl_fused import LogitClip, Perturbation, testing
from lpl_fused.backends.buffers import new
from lpl_fused.backends.cuda import memory
from lpl_fused.backends.native import DTYPES
from lpl_fused.problem import MEAN, SUM, Options, Problem

__all__ = ["use_shape"]  # a fixture
pytestmark = pytest.mark.usefixtures("twice")

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
SHORT, LONG = 4, 8  # terms of the series, of csrc/cuda/learned_row.h
MOST_HEADS = 512


def asked(
    logits: Tensor, steps: Tensor | int, step_size: float = 0.1, normalize: bool = False
) -> Problem:
    """Row i of class i."""
    n, classes = logits.shape
    each = torch.as_tensor(steps).expand(classes).to(torch.int32).contiguous()
    return Problem(
        logits.to(DEVICE),
        torch.arange(n, device=DEVICE),
        steps=each.to(DEVICE),
        options=Options(reduction=SUM, step_size=step_size, normalize=normalize),
    )


def numbers(problem: Problem) -> tuple[list[int], list[int]]:
    """(terms of the series, heads) of each row."""
    (state,) = backend.forward(problem, False).state
    n, each = problem.input.shape[0], backend._native().learned_bytes(DTYPES[problem.input.dtype])
    rows = state[: n * each].view(torch.int32).view(n, -1)  # what comes first
    order, heads, _, _ = rows[:, -4:].unbind(1)
    return order.tolist(), heads.tolist()


def differentiated(problem: Problem) -> tuple[Tensor, Tensor]:
    """(loss, gradient) by statistics."""
    found = backend.forward(problem, False)
    upstream = torch.ones((), dtype=found.loss.dtype, device=DEVICE).expand(problem.input.shape[0])
    return found.loss, backend.learned_gradient(problem, upstream, found.state)


def case_of(problem: Problem, **keywords: Any) -> testing.Case:
    options = problem.options
    assert problem.steps is not None
    given = {"step_size": options.step_size, "normalize": options.normalize, "reduction": "sum"}
    return testing.Case(
        problem.input.double(), problem.target, given | keywords, problem.steps.long()
    )


def with_heads(count: int, rows: int = 2, classes: int = 2000) -> Tensor:
    """Rows of so many equal heads, here and there; of none all rivals are equal."""
    draw = Draw(rows, classes, seed=count)
    logits = torch.zeros(rows, classes, dtype=FP64)
    if count:
        logits = 0.01 * draw.normal(rows, classes) - 14
        for row in logits:
            places = torch.randperm(classes - rows, generator=draw.generator)[:count] + rows
            row[places] += 14
    return logits.float()


@pytest.fixture
def wide(request: pytest.FixtureRequest) -> None:
    """Teams as large as a device's: by the largest rivals of their threads the mass is bounded."""
    if DEVICE == "cpu":
        request.getfixturevalue("use_shape")(2, 32, True, False)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("count", [0, 1, 128, 129, 511])
def test_repeats_bit_for_bit_however_many_heads(count: int, normalize: bool) -> None:
    """Up to 128 heads are held in registers, all others in memory."""
    problem = asked(with_heads(count), torch.tensor([20, -20] * 1000), normalize=normalize)
    assert numbers(problem)[1] == [count, count]
    first = differentiated(problem)
    for _ in range(100):
        assert all(map(torch.equal, first, differentiated(problem)))
    testing.assert_within_budget(case_of(problem), "cuda")


@ON_HOST
@pytest.mark.parametrize("count", [0, 40, 511])
def test_no_shape_of_a_team_changes_who_is_exact(use_shape, count: int) -> None:  # type: ignore[no-untyped-def]
    problem = asked(with_heads(count, classes=700), torch.tensor([20, -20] * 350))
    for shape in SHAPES.values():
        use_shape(*shape)
        assert numbers(problem)[1] == [count, count]
        testing.assert_within_budget(case_of(problem), "cuda")


@pytest.mark.parametrize("classes", [300, MOST_HEADS, MOST_HEADS + 1])
def test_where_all_rivals_find_room_none_is_of_the_tail(classes: int) -> None:
    problem = asked(Draw(2, classes, seed=1).normal(2, classes).float(), 30, step_size=0.5)
    assert (numbers(problem)[1] == [classes - 1] * 2) == (classes <= MOST_HEADS)
    if classes <= MOST_HEADS:
        assert set(backend.outcomes(problem).tolist()) == {SOLVED}
    testing.assert_within_budget(case_of(problem), "cuda")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("steps", [50, -50, 0])
@pytest.mark.parametrize("spread", [0.05, 2.0, 4.0])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16, FP64], ids=str)
def test_the_series_has_as_many_terms_as_the_dose_wants(
    dtype: torch.dtype, spread: float, steps: int
) -> None:
    logits = spread * Draw(2, 3000, seed=2).normal(2, 3000)
    problem = asked(logits.to(dtype), steps)
    order, heads = numbers(problem)
    # a tail of thousands of small rivals is short of terms where some middling ones are in it
    if spread < 1 or steps == 0:
        assert set(order) == {10 if dtype == FP64 else SHORT}
    assert max(heads) < 400
    assert set(backend.outcomes(problem).tolist()) == {SOLVED if steps else UNCHANGED}
    testing.assert_within_budget(case_of(problem), "cuda", dtype)


def test_rivals_of_middling_size_want_more_terms() -> None:
    """A thousand equal rivals, each just too small for a head, and a dose of 20."""
    logits = 0.01 * Draw(2, 1000, seed=3).normal(2, 1000).float()
    problem = asked(logits, 200)
    assert numbers(problem)[0] == [LONG] * 2
    assert set(backend.outcomes(problem).tolist()) == {SOLVED}
    testing.assert_within_budget(case_of(problem), "cuda")


@pytest.mark.parametrize("offset", [100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("step_size", [0.1, 40.0], ids=["series", "plain-steps"])
def test_a_common_offset_costs_no_digits(offset: float, normalize: bool, step_size: float) -> None:
    """Logits in steps of 2^-9, which their sum with the offset holds."""
    logits = (2 * Draw(4, 3000, seed=4).normal(4, 3000) * 512).round().div(512).float()
    steps = torch.tensor([8, -8] * 1500)
    here = asked(logits, steps, step_size, normalize)
    there = here._replace(input=(logits + offset).to(DEVICE))
    assert torch.equal(there.input.cpu() - offset, logits)
    for one, other in zip(differentiated(here), differentiated(there), strict=True):
        # e^(z·log₂e − level): rounded where it is about 2^3 bits from the largest
        torch.testing.assert_close(one, other, rtol=4e-6, atol=1e-12)


@pytest.mark.parametrize("table", [False, True], ids=["plain", "offset"])
@pytest.mark.parametrize("steps", [0, 20, -20])
def test_a_label_of_nearly_all_mass(steps: int, table: bool) -> None:
    """1 − p_y = 1e-7, and less than a float holds beside 1: loss and gradient have their digits."""
    classes = 3000
    logits = Draw(2, classes, seed=5).normal(2, classes)
    for row, rest in ((0, 1e-7), (1, 1e-12)):
        others = torch.cat([logits[row, :row], logits[row, row + 1 :]])
        logits[row, row] = torch.logsumexp(others, 0) - torch.log(torch.tensor(rest))
    problem = asked(logits.float(), steps)
    keywords: dict[str, Any] = {}
    if table:
        keywords["perturbation"] = Perturbation(offset=Draw(2, classes, seed=6).normal(classes))
    case = case_of(problem, **keywords)
    truth = testing.evaluate(case.rounded(FP32), "reference")
    found = testing.evaluate(case.to(FP32), "cuda")
    torch.testing.assert_close(found.loss.double(), truth.loss, rtol=5e-6, atol=0)
    torch.testing.assert_close(
        found.grads["input"].double(), truth.grads["input"], rtol=2e-5, atol=1e-37
    )


@pytest.mark.parametrize("which", [[], [1], [0, 1, 2, 3, 4, 5, 6]], ids=["none", "one", "all"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_rows_that_are_left_take_plain_steps(
    which: list[int], normalize: bool, dtype: torch.dtype
) -> None:
    """More of them than have memory at a time; beside rows that are solved."""
    steps = torch.tensor([3, -3] * 350)
    steps[which] = 300
    logits = 0.5 * Draw(7, 700, seed=7).normal(7, 700)
    problem = asked(logits.to(dtype), steps, 1.0, normalize)
    expected = [FELL_BACK if row in which else SOLVED for row in range(7)]
    assert backend.outcomes(problem).tolist() == expected
    testing.assert_within_budget(case_of(problem), "cuda", dtype)


@pytest.mark.parametrize("part", ["offset", "tables", "softcap", "norm", "rows"])
@pytest.mark.parametrize("step_size", [0.1, 40.0], ids=["series", "plain-steps"])
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
def test_with_the_rest_of_the_algebra(part: str, step_size: float, dtype: torch.dtype) -> None:
    """A row that is ignored and one of a class without steps beside the others."""
    draw = Draw(5, 900, seed=8)
    steps = torch.tensor([6, -6, 0, 3, 4] + [1] * 895)
    problem = asked(draw.normal(5, 900).float(), steps, step_size)
    target = problem.target.clone()
    target[3] = -100
    keywords: dict[str, Any] = {"weight": draw.uniform(900), "z_loss": 1e-2, "reduction": "mean"}
    if part == "offset":
        keywords["perturbation"] = Perturbation(offset=draw.normal(900))
    if part == "tables":
        keywords["perturbation"] = Perturbation(
            scale=0.5 + draw.uniform(900),
            offset=draw.normal(900),
            margin=draw.uniform(900),
            temperature=1.3,
        )
    if part == "rows":
        keywords["perturbation"] = Perturbation(
            rows=draw.normal(4, 900), row_index=torch.tensor([3, 1, 0, 2, 1])
        )
    if part == "softcap":
        keywords["softcap"] = 5.0
    if part == "norm":
        keywords["norm"] = LogitClip(20.0)
    case = replace(case_of(problem, **keywords), target=target.cpu())
    testing.assert_within_budget(case, "cuda", dtype)


def test_rows_without_rivals_or_with_nan() -> None:
    logits = Draw(6, 700, seed=9).normal(6, 700).float()
    logits[1, 2:] = logits[1, 0] = -torch.inf  # no rivals
    logits[2, 9] = torch.nan
    logits[3, 3] = -torch.inf  # a label that is masked
    logits[4, 7] = torch.inf
    logits[5, 100:] = -torch.inf
    problem = asked(logits, 5)
    problem = problem._replace(options=problem.options._replace(reduction=0))
    loss, grad = differentiated(problem)
    assert loss.isfinite().tolist() == [True, True, False, False, False, True]
    assert float(loss[1]) == 0
    assert not grad[1].any()
    assert loss[2].isnan()
    assert loss[3] == torch.inf
    assert not grad[5, 100:].any()
    kept = asked(logits[[0, 5]], 5)
    kept = kept._replace(target=torch.tensor([0, 5], device=DEVICE))
    testing.assert_within_budget(replace(case_of(kept), target=kept.target), "cuda")


@ON_HOST
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("steps", [5, 500])
def test_what_it_costs(steps: int) -> None:
    """A row is read once, in the backward once more, whatever the number of steps. On chip it is
    looked at for its largest rival, then for heads, then for its exponentials."""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    logits = Draw(6, 2000, seed=10).normal(6, 2000).bfloat16()
    problem = asked(logits, steps, 0.5 / steps)
    problem = problem._replace(options=problem.options._replace(reduction=MEAN))
    take_counts(counts)
    found = backend.forward(problem, False)
    take_counts(counts)
    size = logits.numel()
    # `twice` runs all twice
    assert counts[1] <= 2 * 4 * size
    forward = counts[0]
    upstream = torch.ones((), device=DEVICE).expand(6)
    backend.learned_gradient(problem, upstream, found.state)
    take_counts(counts)
    assert counts[1] <= 2 * 1.05 * size
    assert (forward, counts[0]) == (2 * 7, 2 * 1)


@ON_HOST
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (5, 9), (7, 700), (12, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nobody_writes_between_the_parts_of_the_state(
    n: int, classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one memory, whose guards are around all of it."""
    problem = asked(Draw(n, classes, seed=n).normal(n, classes).to(dtype), 9)
    problem = problem._replace(target=torch.arange(n) // 3 % classes)
    layout = memory.of_learned(problem, False).state
    made: list[Tensor] = []

    def marked(asked: Problem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        found = new(asked, *shape, dtype=dtype)
        if shape == (layout.size,):
            made.append(found.fill_(0xA5))
        return found

    monkeypatch.setattr(backend, "new", marked)
    found = backend.forward(problem, False)
    backend.learned_gradient(problem, torch.ones(n, dtype=dtype), found.state)
    assert made
    begins = [begin for _, begin, _ in layout.places]
    ends = [begin + size for _, begin, size in layout.places]
    for held in made:
        for end, begin in zip(ends, [*begins[1:], layout.size], strict=True):
            assert end <= begin
            assert (held[end:begin] == 0xA5).all()


@ON_HOST
def test_of_one_row_no_class_has_several() -> None:
    """Whose kernels are then not launched."""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    problem = asked(Draw(1, 700, seed=12).normal(1, 700).float(), 9)
    problem = problem._replace(options=problem.options._replace(reduction=MEAN))
    take_counts(counts)
    found = backend.forward(problem, False)
    take_counts(counts)
    forward = counts[0]
    backend.learned_gradient(problem, torch.ones(1, device=DEVICE), found.state)
    take_counts(counts)
    assert (forward, counts[0]) == (2 * 3, 2 * 1)


@ON_HOST
def test_no_result_depends_on_who_comes_first(use_shape) -> None:  # type: ignore[no-untyped-def]
    """A barrier that is missing would show: fibres in reverse order must give the same bits."""
    logits = 2 * Draw(4, 1100, seed=11).normal(4, 1100).float()
    logits[3] *= 0.01
    for normalize, blocks in itertools.product((False, True), (1, 3)):
        problem = asked(logits, torch.tensor([9, -9, 0, 9] * 275), 20.0, normalize)
        found = []
        for reverse in (False, True):
            use_shape(blocks, 4, True, reverse)
            found.append(differentiated(problem))
        assert all(map(torch.equal, *found))


def test_there_is_room_for_every_flag() -> None:
    text = (Path(__file__).parents[1] / "csrc" / "cuda" / "call.h").read_text()
    found = re.search(r"\bkFlags = (\d+)\n", text)
    assert found
    assert int(found[1]) == memory.FLAGS
