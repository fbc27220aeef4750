"""Multi-label losses on CUDA beyond the common suite: teams of every shape, logits and labels that
begin anywhere, what moments of the batch give and what they leave, launches and loads.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from typing import Any

import pytest
import torch
from cases import Draw
from multilabel_cases import binary_cases, binary_lpl_cases, hard, rebalance, soft
from test_cuda import DEVICE, ON_HOST, SHAPES, backend, use_shape
from torch import Tensor

from lpl_fused import Focal, reference, testing
from lpl_fused.backends.cuda.module import BinaryScratch
from lpl_fused.backends.native import BinaryOutputs, BinarySizes
from lpl_fused.problem import MEAN, NONE, SUM, BinaryOptions, BinaryProblem

__all__ = ["use_shape"]  # a fixture
pytestmark = pytest.mark.usefixtures("twice")

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
FORMS = {
    "hard": binary_cases()["hard"],
    "bool": binary_cases()["bool"],
    "soft": binary_cases()["soft"],
    "everything": binary_cases()["missing-everything"],
    "lpl": binary_lpl_cases()["hard"],
    "lpl-soft": binary_lpl_cases()["soft"],
    "lpl-everything": binary_lpl_cases()["missing-everything"],
    "lpl-far": binary_lpl_cases()["far"],
}


def asked(
    logits: Tensor, labels: Tensor, steps: Tensor | int | None = None, step_size: float = 0.1
) -> BinaryProblem:
    if steps is not None:
        steps = torch.as_tensor(steps).expand(logits.shape[1]).to(DEVICE, torch.int32).contiguous()
    options = BinaryOptions(step_size=0.0 if steps is None else step_size)
    return BinaryProblem(logits.to(DEVICE), labels.to(DEVICE), steps=steps, options=options)


def delta_error(problem: BinaryProblem) -> float:
    """Of δ, beside the largest of all."""
    found = backend.binary_perturbation(problem).double().cpu()
    exact = problem._replace(input=problem.input.cpu().double(), target=problem.target.cpu())
    assert problem.steps is not None
    truth = reference.sigmoid.learned_perturbation(exact._replace(steps=problem.steps.cpu()))
    return float((found - truth).abs().max() / truth.abs().max())


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_team_shapes(use_shape, shape: str, form: str) -> None:  # type: ignore[no-untyped-def]
    use_shape(*SHAPES[shape])
    for n, classes, dtype in ((5, 29, FP32), (70, 3, BF16), (40, 17, FP64)):
        testing.assert_within_budget(FORMS[form](Draw(n, classes, seed=3)), "cuda", dtype)


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
def test_no_result_depends_on_who_comes_first(use_shape, form: str) -> None:  # type: ignore[no-untyped-def]
    """A barrier that is missing would show: fibres in reverse order must give the same bits."""
    case = FORMS[form](Draw(70, 9, seed=4)).to(FP32)
    found = []
    for reverse in (False, True):
        use_shape(1, 8, True, reverse)
        found.append(testing.evaluate(case, "cuda"))
    one, other = found
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.grads["input"], other.grads["input"])


@pytest.mark.parametrize(
    "labels", [torch.bool, torch.float32, torch.bfloat16, torch.int64], ids=str
)
@pytest.mark.parametrize("dtype", [BF16, FP32, FP64], ids=str)
def test_logits_and_labels_that_begin_anywhere(dtype: torch.dtype, labels: torch.dtype) -> None:
    """Every distance from a 16-byte line, at odd strides: the same numbers, none beside the rows."""
    draw = Draw(3, 37, seed=1)
    values, y = draw.input().to(DEVICE, dtype), hard(draw).to(DEVICE, labels)
    expected = None
    starts = itertools.product((0, 1, 3, 7, 8), (0, 1, 5))
    for (start, first), stride in itertools.product(starts, (37, 41, 48)):
        logits = torch.full((start + 3 * stride,), 77.0, dtype=dtype, device=DEVICE)
        rows = torch.as_strided(logits, (3, 37), (stride, 1), start)
        rows.copy_(values)
        target = torch.as_strided(
            torch.ones(first + 3 * stride, dtype=labels, device=DEVICE), (3, 37), (stride, 1), first
        )
        target.copy_(y)
        for steps in (None, 3):
            problem = asked(rows, target, steps)
            made = backend.binary_forward(problem, True)
            assert torch.equal(rows, values)
            if steps is None and expected is None:
                expected = made.loss, made.grad
            if steps is None:
                torch.testing.assert_close(made.loss, expected[0], rtol=1e-6, atol=0)
                rtol = 2**-8 if dtype == BF16 else 1e-5
                torch.testing.assert_close(made.grad, expected[1], rtol=rtol, atol=1e-9)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
def test_losses_that_are_nothing_beside_others_keep_their_digits(dtype: torch.dtype) -> None:
    """Of logits far on their label's side, log(1 + e) is not log of what 1 + e was rounded to."""
    draw = Draw(40, 30, seed=2)
    y = hard(draw, 0.5)
    for far in (8.0, 16.0, 60.0):
        logits = torch.where(y == 1, far, -far) + draw.normal(40, 30)
        for labels in (y, y.bool()):
            case = testing.Case(logits, labels, multilabel=True)
            testing.assert_within_budget(case, "cuda", dtype)


@pytest.mark.parametrize("labels", ["bool", "hard", "soft"])
@pytest.mark.parametrize("steps", [10, 50, -50])
def test_moments_give_the_steps_of_usual_batches(labels: str, steps: int) -> None:
    """Steps of 0.1 from usual logits need no plain step, however many; long ones do."""
    draw = Draw(400, 6, seed=4)
    y = hard(draw, 0.2)
    target = {"bool": y.bool(), "hard": y, "soft": 0.9 * y + 0.03}[labels]
    problem = asked(draw.input().float(), target.float() if labels != "bool" else target, steps)
    assert backend.steps_left(problem).tolist() == [0] * 6
    assert delta_error(problem) < 5e-7


def test_moments_say_what_they_leave() -> None:
    draw = Draw(70, 5, seed=4)
    y = hard(draw, 0.5)
    huge = asked(draw.input().float(), y.float(), torch.tensor([40, -40, 1, 0, 7]), 300.0)
    left = backend.steps_left(huge)
    assert left[0] > 0
    assert left[3] == 0
    exact = asked(draw.input(), y, torch.tensor([3, -2, 1, 0, 7]))
    assert backend.steps_left(exact).tolist() == [3, 2, 1, 0, 7]
    for problem in (huge, exact):
        assert delta_error(problem) < 1e-6


@pytest.mark.parametrize("n", [1, 31, 32, 33, 255, 257, 1100, 2300])
@pytest.mark.parametrize("steps", [50, -50])
def test_every_row_is_in_the_moments(n: int, steps: int) -> None:
    """Of masks, of chunks, of guesses from some rows: none too few, none twice."""
    draw = Draw(n, 3, seed=n)
    y = torch.where(draw.uniform(n, 3) < 0.3, draw.uniform(n, 3).round(), draw.uniform(n, 3))
    y[:, 0] = hard(draw, 0.3)[:, 0]
    for target in (y.float(), y.round().bool()):
        problem = asked(draw.input(3.0).float(), target, steps)
        assert delta_error(problem) < 5e-7


def test_a_guess_that_is_wrong_costs_no_digits() -> None:
    """The rows that the guess looks at are nothing like all others."""
    draw = Draw(1200, 4, seed=5)
    logits = draw.input() + 4
    logits[:: 1200 // 256] -= 12
    for steps in (50, -50):
        problem = asked(logits.float(), hard(draw, 0.3).float(), steps, 0.2)
        assert delta_error(problem) < 5e-7


def test_logits_that_are_no_numbers() -> None:
    """A nan stays in its class and on its side; what counts nothing may be infinite."""
    draw = Draw(40, 6, seed=6)
    y = hard(draw, 0.5)
    y[:, 2] = 0
    logits = draw.input()
    y[3, 1], y[4, 4] = 1, 0
    logits[y == 1] = torch.where(draw.uniform(40, 6)[y == 1] < 0.2, math.inf, logits[y == 1])
    logits[3, 1] = logits[4, 4] = math.nan
    for target in (y.bool(), y.float()):
        problem = asked(logits.float(), target, 8)
        delta = backend.binary_perturbation(problem).cpu()
        exact = problem._replace(input=problem.input.cpu().double(), target=target.double())
        truth = reference.sigmoid.learned_perturbation(exact._replace(steps=problem.steps.cpu()))
        torch.testing.assert_close(delta.double(), truth, rtol=1e-5, atol=1e-6, equal_nan=True)
        assert delta.isnan().nonzero().tolist() == [[0, 1], [1, 4]]
        assert delta[0, 2] == 0


def test_results_repeat_bit_for_bit() -> None:
    for form in FORMS.values():
        case = form(Draw(40, 30, seed=8)).to(FP32)
        one, other = (testing.evaluate(case, "cuda") for _ in range(2))
        assert torch.equal(one.loss, other.loss)
        assert torch.equal(one.grads["input"], other.grads["input"])


def problem_of(form: str, dtype: torch.dtype = BF16, n: int = 40, classes: int = 64) -> Any:
    draw = Draw(n, classes, seed=9)
    target = hard(draw).to(dtype)
    made = asked(draw.input().to(dtype), target.bool() if form == "bool" else target)
    if form == "steps":
        return asked(made.input, made.target, draw.steps(20), 0.2)
    if form == "weights":
        weights = rebalance(draw)
        options = made.options._replace(
            alpha=weights.alpha, beta=weights.beta, mu=weights.mu, missing=True, ignored=-1.0
        )
        inverse = weights.inverse_count.float().to(DEVICE)
        return made._replace(inverse_count=inverse, options=options)
    return made


@pytest.mark.parametrize("form", ["plain", "bool", "weights", "steps"])
def test_a_finished_gradient_by_any_factor(form: str) -> None:
    """By powers of two it is scaled, else made anew: the same as knowing the factor before."""
    problem = problem_of(form)
    for factor, state in itertools.product(
        (0.0, 1.0, -0.25, 3.0, 1e-3, torch.inf, torch.nan), (True, False)
    ):
        upstream = torch.tensor(factor, device=DEVICE)
        swept = backend.binary_forward(problem, True)
        finished, place = swept.grad.clone(), swept.grad.data_ptr()
        found = backend.binary_rescale_(
            problem, swept if state else swept._replace(state=()), upstream
        )
        assert found.data_ptr() == place
        anew = factor in (3.0, 1e-3)
        expected = finished * factor
        if problem.options.missing:
            expected[problem.target == -1] = 0  # whatever comes from upstream
        if anew:
            expected = backend.binary_gradient(problem, upstream / swept.norm)
        torch.testing.assert_close(found, expected, rtol=2**-8, atol=0, equal_nan=True)
        if not anew:
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def test_float_gradients_are_scaled() -> None:
    for dtype in (FP32, FP64):
        problem = problem_of("steps", dtype)
        swept = backend.binary_forward(problem, True)
        upstream = torch.tensor(3.0, dtype=dtype, device=DEVICE)
        expected = swept.grad * upstream
        assert torch.equal(backend.binary_rescale_(problem, swept, upstream), expected)


def counted(take_counts: Any, counts: Any, run: Any) -> tuple[int, int]:
    take_counts(counts)
    run()
    take_counts(counts)
    return counts[0], counts[1]


@pytest.fixture
def count() -> Any:
    """count(run): (launches, loads of 16-bit numbers)"""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    return lambda run: counted(take_counts, counts, run)


@ON_HOST
@pytest.mark.counts
def test_logits_and_labels_are_read_once(count: Any) -> None:
    for form, each in (("plain", 2), ("bool", 1)):  # labels of 16 bits are loaded as logits are
        problem = problem_of(form)
        size = problem.input.numel()
        assert count(lambda p=problem: backend.binary_forward(p, True)) == (2, each * size)
        upstream = problem.input.float()
        found = count(lambda p=problem, u=upstream: backend.binary_gradient(p, u))
        assert found == (1, each * size)


@ON_HOST
@pytest.mark.counts
def test_neither_steps_nor_data_change_the_launches(count: Any) -> None:
    """δ is three kernels, whatever K: the logits read once, and again by the sweep."""
    draw = Draw(96, 32, seed=3)
    launches, loads = set(), []
    for steps, spread in itertools.product((1, 10, 50, -50), (0.1, 2.0)):
        logits = draw.input(spread).to(BF16)
        problem = asked(logits, hard(draw, 0.2).bool(), steps, 0.1)
        assert backend.steps_left(problem).max() == 0
        found = count(lambda p=problem: backend.binary_forward(p, True))
        launches.add(found[0])
        loads.append(found[1] / logits.numel())
    assert launches == {5}
    # guess (of so few rows all), moments, sweep; positives are looked at twice by the first two
    assert max(loads) < 4
    far = asked(draw.input(20.0).to(BF16), hard(draw, 0.5).bool(), 30, 5.0)
    assert backend.steps_left(far).max() > 0
    assert count(lambda: backend.binary_forward(far, True))[0] == 5
    assert count(lambda: backend.binary_perturbation(far))[0] == 3


@ON_HOST
@pytest.mark.counts
@pytest.mark.parametrize("form", ["plain", "weights", "steps"])
def test_no_factor_changes_the_launches(count: Any, form: str) -> None:
    problem = problem_of(form)
    size, launches, loads = problem.input.numel(), set(), {}
    for factor in (1.0, 0.5, 3.0):
        swept = backend.binary_forward(problem, True)
        upstream = torch.tensor(factor, device=DEVICE)
        found = count(lambda s=swept, u=upstream: backend.binary_rescale_(problem, s, u))
        launches.add(found[0])
        loads[factor] = found[1]
    assert len(launches) == 1
    assert loads[1.0] == 0
    assert loads[0.5] == size
    assert loads[3.0] >= 2 * size


@pytest.mark.parametrize("reduction", [MEAN, SUM, NONE])
@pytest.mark.parametrize("form", ["plain", "bool", "weights", "steps"])
def test_no_gradient_changes_no_loss(form: str, reduction: int) -> None:
    problem = problem_of(form)
    problem = problem._replace(options=problem.options._replace(reduction=reduction))
    one, other = (backend.binary_forward(problem, want) for want in (True, False))
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(one.norm, other.norm)


def test_soft_labels_outside_of_0_and_1() -> None:
    """As torch has them: linear in the label."""
    draw = Draw(9, 7, seed=12)
    y = 3 * draw.normal(9, 7)
    for keywords in ({}, {"phi": Focal(2.0)}):
        case = testing.Case(draw.input(), y, dict(keywords), multilabel=True)
        testing.assert_within_budget(case, "cuda")


def test_rows_that_are_too_far_apart() -> None:
    """Are refused before anything is read."""
    problem = problem_of("plain")
    sizes = BinarySizes.of(problem)._replace(row_stride=1 << 31)
    outputs = BinaryOutputs(grad=problem.input.clone(), upstream=problem.input.new_ones(()).float())
    with pytest.raises(RuntimeError, match="2147483648 elements are too far apart"):
        backend._native().binary_cross_entropy(problem, sizes, outputs, BinaryScratch(), 0)


def test_soft_labels_take_the_dear_way_alone() -> None:
    """One label of a batch between 0 and 1, under δ: its neighbours are as if it were not."""
    draw = Draw(16, 5, seed=13)
    y = hard(draw, 0.4)
    y[7, 2] = 0.25
    for target in (y, soft(draw)):
        case = testing.Case(
            draw.input(), target, {"step_size": 0.2}, draw.steps(6), multilabel=True
        )
        for dtype in (BF16, FP32):
            testing.assert_within_budget(case, "cuda", dtype)
