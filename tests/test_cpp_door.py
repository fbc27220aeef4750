"""The door of the C++ backend: its kernels for parts of the columns, of every instruction set; and
gradients that are rescaled, bit by bit. What holds for every backend is in test_seam.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from seam import by_parts, cut, known_of
from seam import problem_of as problem_of_case
from torch import Tensor

from lpl_fused import testing
from lpl_fused.algebra import learned
from lpl_fused.algebra.parts import Kind, Rivals, Round
from lpl_fused.algebra.settle import begin
from lpl_fused.algebra.terms import Terms
from lpl_fused.backends import cpp
from lpl_fused.problem import (
    MEAN,
    NONE,
    BinaryOptions,
    BinaryProblem,
    Problem,
    accumulate_dtype,
)
from lpl_fused.reference import parts as reference_parts
from lpl_fused.reference import sigmoid as binary_reference
from lpl_fused.reference import softmax as reference
from lpl_fused.testing import Case, budget, error

pytestmark = pytest.mark.skipif(cpp.unavailable() is not None, reason="C++ backend not built")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CASES = {**cross_entropy_cases(), **lpl_cases()}
CLASSES = 2600  # three blocks of the kernels, the last in part


def problem_of(case: Case) -> Problem:
    return problem_of_case(replace(case, learn=()), "cpp", {})


def problems_of(case: Case, dtype: torch.dtype) -> tuple[Problem, Problem]:
    """A problem in a dtype, and in float64 with the same numbers."""
    exact = case.rounded(dtype)
    narrow = exact.to(dtype if dtype == torch.float64 else torch.float32)
    narrow = replace(narrow, input=narrow.input.to(dtype))
    return problem_of(narrow), problem_of(exact)


def by_autograd(problem: Problem, factor: Tensor) -> Tensor:
    """The gradient of the input by the reference."""
    input = problem.input.clone().requires_grad_()
    loss = reference.cross_entropy(problem._replace(input=input))
    return torch.autograd.grad(loss, input, factor.to(loss.dtype))[0]


def upstream(loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name",
    [
        *("ignore", "smoothed-by-class", "mixed-smoothed", "offset-of-minus-infinity"),
        *("dense-smoothed-focal2", "clip-p1.5", "clip-infinity", "clip-everything"),
        *("softcap-clip", "penalty-phr-ties", "clip-penalty", "rows-by-target"),
        *("everything", "unique", "unique-clip"),
    ],
)
def test_parts_of_several_blocks(name: str, dtype: torch.dtype, isa: str) -> None:
    classes = 1100 if name == "rows-by-target" else CLASSES
    case = CASES[name](Draw(5, classes, 4))
    if case.steps is not None:
        case = replace(case, learn=())
    run = by_parts(lambda width: cut(width, 3))
    testing.assert_within_budget(case, "cpp", dtype, upstream=upstream, run=run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_heads_than_are_listed(dtype: torch.dtype, isa: str) -> None:
    """The first of them are, and the powers are of all others."""
    case = Case(Draw(3, CLASSES, 6).input(), torch.tensor([5, 800, -100]))
    problem, _ = problems_of(case, dtype)
    for threshold in (-1.0, 0.0, 1e-3):
        known = begin(problem)._replace(threshold=torch.full((3,), threshold))
        found = cpp.reduce(problem, Round(Kind.RIVALS), known)
        truth = reference_parts.reduce(problem, Round(Kind.RIVALS), known)
        assert isinstance(found, Rivals)
        assert isinstance(truth, Rivals)
        assert torch.equal(found.listed, truth.listed)
        assert (found.listed[0] > learned.HEADS) == (threshold <= 0)
        assert torch.equal(found.columns, truth.columns)
        torch.testing.assert_close(found.logits, truth.logits)
        torch.testing.assert_close(found.powers, truth.powers, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.largest, truth.largest)


@pytest.mark.parametrize("kind", [Kind.SIZE, Kind.MASS, Kind.DETAIL, Kind.RIVALS])
def test_ignored_rows_and_no_columns_hold_what_no_columns_add_up_to(kind: Kind, isa: str) -> None:
    case = CASES["clip-penalty"](Draw(4, 37, 7))
    case = replace(
        case, input=torch.full_like(case.input, torch.nan), target=torch.full((4,), -100)
    )
    problem, _ = problems_of(case, torch.float32)
    known = begin(problem)._replace(threshold=torch.zeros(4))
    for asked in (problem, problem.columns(3, 3)):
        found = cpp.reduce(asked, Round(kind), known)
        truth = reference_parts.reduce(problem.columns(3, 3), Round(kind), known)
        for number in ("shift", "rest", "own", "peak", "top", "ties", "value", "push", "listed"):
            if hasattr(truth, number):
                assert torch.equal(getattr(found, number), getattr(truth, number)), number
    names = ["input"]
    upstream = torch.ones(4)
    grad = cpp.gradient(problem, begin(problem), upstream, names).input
    assert grad is not None
    assert torch.equal(grad, torch.zeros(4, 37))


def test_labels_out_of_range_are_told(isa: str) -> None:
    case = Case(Draw(3, 37, 8).input(), torch.tensor([1, 36, 2]))
    problem, _ = problems_of(case, torch.float32)
    part = problem.columns(0, 20)
    bad = part._replace(target=torch.tensor([1, 37, 2]))
    with pytest.raises(ValueError, match=r"target 37 is out of range: expected 0 <= target < 37"):
        cpp.reduce(bad, Round(Kind.MASS), begin(part))
    with pytest.raises(ValueError, match="target 37 is out of range"):
        cpp.gradient(bad, begin(part), torch.ones(3), ["input"])


def lpl(form: str, **keywords: object) -> Callable[[Draw], Case]:
    """A problem with steps."""

    def build(d: Draw) -> Case:
        case = CASES[form](d)
        return replace(case, keywords={**case.keywords, **keywords})

    return build


RESCALED = {
    **{
        name: CASES[name]
        for name in (
            *("hard", "ignore-zloss", "smoothed-weights", "mixed", "mixed-ignore", "dense"),
            *("hard-focal2", "smoothed-gce0.7", "dense-smoothed-focal2", "softcap", "scale"),
            *("clip", "clip-p3", "clip-infinity", "smoothed-logit-norm", "clip-everything"),
            *("penalty-relu-ties", "penalty-phr", "penalty-everything", "smoothed-sum"),
        )
    },
    "lpl-unique": lpl("unique"),
    "lpl-groups": lpl("groups"),
    "lpl-clip": lpl("unique-clip"),
}


def rescaled(problem: Problem, factor: float) -> Tensor:
    made = cpp.forward(problem, True)
    return cpp.rescale_(problem, made, torch.tensor(factor, dtype=made.loss.dtype))


def assert_rounded_once(value: Tensor, truth: Tensor, eager: Tensor) -> None:
    """Every entry is the nearest to a number as close to truth as is asked of float32, in which
    plain PyTorch gets `eager`."""
    typical = truth.abs() + truth.abs().mean(-1, keepdim=True)
    slack = budget(torch.float32, error(eager, truth)) * typical
    low, high = ((truth + side * slack).to(value.dtype) for side in (-1, 1))
    # the smallest numbers of float16 have fewer digits
    large = truth.abs() > (1e-4 if value.dtype == torch.float16 else 0)
    assert ((low <= value) & (value <= high))[large].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [23, 1100])
@pytest.mark.parametrize("name", RESCALED)
def test_a_rescaled_gradient_is_rounded_once(
    name: str, classes: int, dtype: torch.dtype, isa: str
) -> None:
    problem, exact = problems_of(RESCALED[name](Draw(6, classes, 10)), dtype)
    truth = by_autograd(exact, torch.tensor(3.0))
    eager = by_autograd(problem._replace(input=problem.input.float()), torch.tensor(3.0))
    assert_rounded_once(rescaled(problem, 3.0), truth, eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RESCALED)
def test_first_and_second_backward_are_the_same_bits(name: str, dtype: torch.dtype) -> None:
    problem, _ = problems_of(RESCALED[name](Draw(40, 1100, 11)), dtype)
    for factor in (1.0, -0.25, 3.0):
        assert torch.equal(rescaled(problem, factor), rescaled(problem, factor))
    made = cpp.forward(problem, True)
    assert made.grad is not None
    assert torch.equal(rescaled(problem, -0.25), made.grad * -0.25)


def test_a_factor_of_0_needs_no_rounding() -> None:
    problem, _ = problems_of(RESCALED["hard"](Draw(6, 23, 12)), torch.bfloat16)
    grad = cpp.forward(problem, True).grad
    assert grad is not None
    torch.testing.assert_close(rescaled(problem, 0.0), grad * 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [float("inf"), -float("inf"), float("nan")])
def test_a_factor_that_is_not_finite_is_left_to_who_knows_the_labels(
    factor: float, dtype: torch.dtype
) -> None:
    problem, _ = problems_of(RESCALED["hard"](Draw(6, 23, 12)), dtype)
    made = cpp.forward(problem, True)
    assert made.grad is not None
    before = made.grad.clone()
    assert cpp.rescale_(problem, made, torch.tensor(factor, dtype=made.loss.dtype)) is None
    assert torch.equal(made.grad, before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RESCALED)
def test_a_solved_gradient_for_an_upstream_of_every_row(name: str, dtype: torch.dtype) -> None:
    case = RESCALED[name](Draw(6, 37, 13))
    case = replace(case, keywords={**case.keywords, "reduction": "none"})
    problem, exact = problems_of(case, dtype)
    upstream = 0.5 + torch.rand(6, generator=torch.Generator().manual_seed(14)).to(
        accumulate_dtype(dtype)
    )
    truth = by_autograd(exact, upstream)
    made = cpp.forward(problem, True)
    solved = cpp.learned_gradient(problem, upstream)
    scaled = cpp.rescale_(problem, made, upstream)
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(scaled, solved)
    with mock.patch.object(reference, "target_cross_entropy", testing._by_log_softmax):
        eager = by_autograd(problem, upstream)
    cancels = problem.spread or problem.other is not None
    allowed = budget(dtype, error(eager, truth, cancels=cancels))
    assert error(solved, truth, cancels=cancels) <= allowed
    assert error(scaled, truth, cancels=cancels) <= allowed


@pytest.mark.parametrize("name", RESCALED)
def test_terms_of_the_shortcut_are_those_of_the_rounds(name: str, isa: str) -> None:
    """Up to the shift, by which two of them are in other units, and where they count."""
    problem, _ = problems_of(RESCALED[name](Draw(6, 37, 15)), torch.float64)
    made = cpp.forward(problem, False)
    if problem.steps is not None:
        assert made.terms is None
        return
    assert made.terms is not None
    found, truth = (
        Terms.of(rows) for rows in (made.terms, known_of("cpp", problem, [(0, 37)])[0].terms)
    )
    moved = torch.exp(found.shift - truth.shift)
    found = found._replace(
        shift=truth.shift,
        log_total=found.log_total + (found.shift - truth.shift),
        strength=found.strength / moved,
    )
    found = found._replace(along=found.along * found.bend)
    truth = truth._replace(along=truth.along * truth.bend)
    for field, value, expected in zip(Terms._fields, found, truth, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12, msg=field)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_chosen_from_the_losses(dtype: torch.dtype, smoothing: float) -> None:
    case = CASES["unique"](Draw(6, 37, 16))
    case = replace(case, keywords={**case.keywords, "label_smoothing": smoothing})
    problem, _ = problems_of(case, dtype)
    steps, seen = problem.steps, []
    assert steps is not None

    def choose(losses: Tensor) -> Tensor:
        seen.append(losses)
        return steps

    plain = problem._replace(steps=None)
    made, expected = cpp.forward(plain, True, choose), cpp.forward(problem, True)
    assert made.steps is steps
    assert made.grad is not None
    assert expected.grad is not None
    torch.testing.assert_close(made.loss, expected.loss)
    torch.testing.assert_close(made.grad, expected.grad)
    bare = plain.options._replace(reduction=NONE, label_smoothing=0.0)
    torch.testing.assert_close(seen[0], cpp.forward(plain._replace(options=bare), False).loss)


def binary(dtype: torch.dtype, steps: bool = False, classes: int = 1100) -> BinaryProblem:
    draw = Draw(6, classes, 17)
    logits = draw.input().to(dtype)
    target = (draw.uniform(6, classes) < 0.1).to(torch.float32)
    counts = torch.full((classes,), 3, dtype=torch.int32) if steps else None
    options = BinaryOptions(reduction=MEAN, step_size=0.2 if steps else 0.0)
    return BinaryProblem(logits, target, steps=counts, options=options)


@pytest.mark.parametrize("steps", [False, True], ids=["plain", "steps"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rescaled_gradients_of_the_sigmoid_link(dtype: torch.dtype, steps: bool, isa: str) -> None:
    problem = binary(dtype, steps)

    def rescaled(factor: float) -> Tensor:
        made = cpp.binary_forward(problem, True)
        return cpp.binary_rescale_(problem, made, torch.tensor(factor, dtype=made.loss.dtype))

    for factor in (1.0, 2.0, 3.0):
        assert torch.equal(rescaled(factor), rescaled(factor))
    made = cpp.binary_forward(problem, True)
    assert made.grad is not None
    assert torch.equal(rescaled(0.5), made.grad * 0.5)
    if dtype in (torch.bfloat16, torch.float16):
        truth, eager = (
            binary_by_autograd(problem, wide) for wide in (torch.float64, torch.float32)
        )
        assert_rounded_once(rescaled(3.0), truth, eager)


def binary_by_autograd(problem: BinaryProblem, dtype: torch.dtype) -> Tensor:
    """The gradient for an upstream of 3 by the reference."""
    input = problem.input.to(dtype).requires_grad_()
    asked = problem._replace(input=input, target=problem.target.to(dtype))
    loss = binary_reference.binary_cross_entropy(asked)
    return torch.autograd.grad(loss, input, torch.full_like(loss, 3.0))[0]
