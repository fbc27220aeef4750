"""The solver of the learned perturbation against exact iteration in float64.

Its promise is one of backward stability: what it returns is what exact iteration gives for logits
and a step size that differ by the tolerance of the series (2e-7, in float64 1e-13) or by rounding,
whichever is more. How much such a difference matters is measured, by iterating from a few of them:
a large dose lets rivals diverge, and then it matters for every method.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Draw
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st

from lpl_fused import Focal, Perturbation, functional, testing
from lpl_fused.backends import cpp, load
from lpl_fused.problem import NotDifferentiable
from lpl_fused.testing import Case

TOLERANCE = {torch.float32: 2e-7, torch.float64: 1e-13}
LOGITS = 2_000_000  # the most that a case iterates over, so that the truth is quick
UNDERFLOW = 1e-34  # what is smaller, a float kernel may take for 0

pytestmark = pytest.mark.skipif(
    load("cpp").unavailable() is not None, reason=f"cpp: {load('cpp').unavailable()}"
)


def spread_of(input: torch.Tensor) -> torch.Tensor:
    finite = input.masked_fill(input.isinf(), 0)
    return (finite - finite.amax(1, keepdim=True)).abs() + finite.abs()


def neighbours(case: Case, dtype: torch.dtype) -> list[Case]:
    """The case with its logits and its step size off by what the solver is granted."""
    generator = torch.Generator().manual_seed(case.input.shape[1])
    step_size = case.keywords["step_size"]
    dose = step_size * int(case.steps.abs().max())
    eps = torch.finfo(dtype).eps
    found = []
    for sign in (1, -1, 1, -1):
        noise = 2 * torch.rand(case.input.shape, generator=generator, dtype=torch.float64) - 1
        off = TOLERANCE[dtype] + eps * (4 + spread_of(case.input))
        keywords = dict(case.keywords)
        keywords["step_size"] = step_size * (1 + sign * (1 + dose) * TOLERANCE[dtype])
        found.append(replace(case, input=case.input + noise * off, keywords=keywords))
    return found


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    small = truth.abs() < UNDERFLOW
    worst = value[small].abs().sum()  # nan where one is
    assert worst <= 10 * UNDERFLOW * (1 + int(small.sum())), (
        f"{worst} where there should be nothing"
    )
    return testing.error(value.masked_fill(small, 0), truth.masked_fill(small, 0))


def check(case: Case, dtype: torch.dtype) -> None:
    exact = case.rounded(dtype)
    truth = testing.evaluate(exact, "reference")
    others = [testing.evaluate(other, "reference") for other in neighbours(exact, dtype)]
    narrow = replace(exact.to(dtype), steps=exact.steps)
    found = testing.evaluate(narrow, "cpp")
    rounding = 16 * torch.finfo(dtype).eps
    for name, value in (("loss", found.loss), ("gradient", found.grads["input"])):
        exactly = truth.loss if name == "loss" else truth.grads["input"]
        granted = max(
            error(other.loss if name == "loss" else other.grads["input"], exactly)
            for other in others
        )
        actual = error(value, exactly)
        assert actual <= 4 * granted + rounding, (
            f"{name} in {dtype}: error {actual:.2e}, {granted:.2e} by perturbation of the problem"
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    classes = draw(
        st.one_of(st.integers(2, 300), st.sampled_from([1023, 1025, 8142, 50_257, 200_000]))
    )
    most_steps = draw(st.sampled_from([0, 1, 2, 7, 50, 200]))
    size = draw(st.sampled_from([1, 1, 2, 5, 30, 300]))
    step_size = draw(st.sampled_from([1e-4, 0.01, 0.1, 0.3, 1.0]))
    rows = max(1, min(3 * size, 300, LOGITS // (classes * max(1, most_steps))))
    random = Draw(rows, classes, seed=draw(st.integers(0, 10**6)))
    input = random.input(draw(st.sampled_from([0.01, 1.0, 3.0, 6.0, 30.0])))
    # groups of `size` rows, as far as the classes reach; size 1: every row its own class
    target = (torch.arange(rows) // size * 7919) % classes
    ease = draw(st.sampled_from([0.0, 10.0, -10.0, 60.0]))
    input.scatter_add_(1, target[:, None], torch.full((rows, 1), ease, dtype=torch.float64))
    if draw(st.booleans()):
        masked = (random.uniform(rows, classes) < 0.3).scatter(1, target[:, None], False)
        masked[:, -1] = False
        input = input.masked_fill(masked, -torch.inf)
    steps = random.steps(most_steps)
    keywords: dict[str, object] = {
        "step_size": step_size,
        "normalize": draw(st.booleans()),
        "reduction": "sum",
    }
    return Case(input, target, keywords, steps)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking iterates for minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_any_problem(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_gradient_through_the_steps(case: Case, dtype: torch.dtype) -> None:
    assume(case.target.unique().numel() == case.target.numel())
    case.keywords["through_perturbation"] = True
    try:
        check(case, dtype)
    except NotDifferentiable:
        # rows that are left to plain steps: "auto" takes the reference for them
        event("left to the reference")
        auto = testing.evaluate(case, "auto")
        torch.testing.assert_close(auto.grads, testing.evaluate(case, "reference").grads)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck_through_the_steps(normalize: bool) -> None:
    draw = Draw(4, 30, seed=4)
    target, steps = torch.tensor([3, 7, 8, -100]), draw.steps(9)
    perturbation = Perturbation(scale=0.5 + draw.uniform(30), offset=draw.normal(30))
    weight = draw.uniform(30)

    def loss(input: torch.Tensor) -> torch.Tensor:
        return functional.lpl_cross_entropy(
            input,
            target,
            steps,
            step_size=0.4,
            normalize=normalize,
            through_perturbation=True,
            perturbation=perturbation,
            phi=Focal(2.0),
            weight=weight,
            backend="cpp",
        )

    input = draw.input().requires_grad_()
    assert torch.autograd.gradcheck(loss, input)


def test_what_the_kernels_do_not_differentiate_through() -> None:
    draw = Draw(4, 6, seed=5)
    steps, unique = torch.full((6,), 3), torch.arange(4)
    asked = {
        "alone in their class": {"target": torch.tensor([0, 1, 1, 2])},
        "unsmoothed": {"label_smoothing": 0.1},
        "no softcap": {"softcap": 3.0},
        "learnable tables": {"perturbation": Perturbation(offset=draw.normal(6).requires_grad_())},
        "no float16": {"input": draw.input().half()},
    }
    for reason, keywords in asked.items():
        arguments = {"input": draw.input(), "target": unique, "steps": steps, "step_size": 0.3}
        arguments.update(keywords, through_perturbation=True)
        arguments["input"].requires_grad_()
        with pytest.raises(NotDifferentiable, match=reason):
            functional.lpl_cross_entropy(**arguments, backend="cpp")
        auto, plain = (
            torch.autograd.grad(
                functional.lpl_cross_entropy(**arguments, backend=b), arguments["input"]
            )
            for b in ("auto", "reference")
        )
        assert torch.equal(auto[0], plain[0]), reason


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_so_it_is_with_bfloat16(reduction: str) -> None:
    """Whose gradient may come otherwise than in the sweep: refused in the forward all the same."""
    input = Draw(4, 6, seed=6).input().bfloat16().requires_grad_()
    arguments = torch.tensor([0, 1, 1, 2]), torch.full((6,), 3)
    keywords = {"step_size": 0.3, "through_perturbation": True, "reduction": reduction}
    with pytest.raises(NotDifferentiable, match="alone in their class"):
        functional.lpl_cross_entropy(input, *arguments, backend="cpp", **keywords)
    for target in (arguments[0], torch.arange(4)):
        losses = [
            functional.lpl_cross_entropy(input, target, arguments[1], backend=b, **keywords)
            for b in ("auto", "reference")
        ]
        auto, plain = (torch.autograd.grad(loss.sum(), input)[0] for loss in losses)
        torch.testing.assert_close(auto, plain, rtol=2**-7, atol=1e-4)


def counted(case: Case) -> tuple[int, int]:
    """(rows solved, rows swept) by one forward."""
    before = dict(cpp.solver_rows)
    functional.lpl_cross_entropy(case.input, case.target, case.steps, **case.keywords)
    return tuple(cpp.solver_rows[name] - before[name] for name in ("solved", "swept"))  # type: ignore


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 6.0])
def test_usual_rows_are_solved(spread: float, normalize: bool) -> None:
    """K·α = 5, the range of the paper and beyond: nothing falls back."""
    draw = Draw(40, 8142, seed=1)
    steps = torch.full((8142,), 50, dtype=torch.int32)
    steps[::2] *= -1
    input, target = draw.input(spread).float(), torch.randperm(8142, generator=draw.generator)[:40]
    case = Case(input, target, {"step_size": 0.1, "normalize": normalize}, steps)
    assert counted(case) == (40, 0)


def test_rows_out_of_reach_are_swept_and_counted() -> None:
    """A dose of 200 leaves no class in the tail: plain steps, and the counter says so."""
    draw = Draw(5, 300, seed=2)
    steps = torch.full((300,), 200, dtype=torch.int32)
    case = Case(draw.input(0.1), torch.arange(5), {"step_size": 1.0, "reduction": "sum"}, steps)
    assert counted(replace(case, input=case.input.float())) == (0, 5)
    check(case, torch.float32)


def test_rows_that_do_not_move_are_not_counted() -> None:
    draw = Draw(4, 100, seed=3)
    input = draw.input().float()
    input[0, 1:] = -torch.inf  # no rival
    input[1, 5] = torch.nan
    steps = torch.full((100,), 3, dtype=torch.int32)
    steps[3] = 0
    case = Case(input, torch.tensor([0, 1, -100, 3]), {"step_size": 0.1}, steps)
    assert counted(case) == (0, 0)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("steps", [10, 50])
def test_large_classes_are_solved(steps: int, normalize: bool) -> None:
    """Rows that resemble each other, so that the tail moves, raised and lowered."""
    draw = Draw(200, 2000, seed=6)
    input = 2 * draw.normal(2, 2000).repeat_interleave(100, 0) + draw.input(1.0)
    target = (torch.arange(200) // 100).long()
    signed = torch.full((2000,), steps, dtype=torch.int32)
    signed[1] *= -1
    keywords = {"step_size": 0.1, "normalize": normalize, "reduction": "sum"}
    case = Case(input, target, keywords, signed)
    assert counted(replace(case, input=input.float())) == (200, 0)
    check(case, torch.float32)


@pytest.mark.parametrize("rows", [7, 70])
def test_rows_without_a_place(rows: int) -> None:
    """16-bit rows: exponentials of few are kept, those of many computed anew tile by tile."""
    draw = Draw(rows, 20_001, seed=7)
    input = draw.input(2.0).bfloat16()
    arguments = (torch.full((rows,), 12_345), torch.full((20_001,), -10, dtype=torch.int32))
    offset = draw.normal(20_001).float()

    def perturbation(input: torch.Tensor, backend: str) -> torch.Tensor:
        table = Perturbation(offset=offset.double() if input.dtype == torch.float64 else offset)
        keywords = {"step_size": 0.1, "perturbation": table, "backend": backend}
        return functional.lpl_perturbation(input, *arguments, **keywords)[1]

    found, truth = perturbation(input, "cpp"), perturbation(input.double(), "reference")
    torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=4e-7)


def test_as_many_threads_as_there_are() -> None:
    """The same bits, whoever shares the work on a large class."""
    draw = Draw(60, 9000, seed=8)
    target, steps = torch.arange(60) // 50, torch.full((9000,), 20, dtype=torch.int32)
    input, threads, found = draw.input(2.0).float(), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(functional.lpl_perturbation(input, target, steps, step_size=0.1)[1])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_nan_in_a_class_reaches_all_its_rows() -> None:
    draw = Draw(3, 100, seed=9)
    input = draw.input().float()
    input[1, 5] = torch.nan
    steps = torch.full((100,), 9, dtype=torch.int32)
    delta = functional.lpl_perturbation(input, torch.zeros(3).long(), steps, step_size=0.1)[1]
    assert delta.isnan().all()
