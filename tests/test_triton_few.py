"""A learned perturbation of few logits on Triton: all classes take plain steps, in three launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Draw
from group_cases import case, extremes, problem
from torch import Tensor

from lpl_fused import Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.backends import load, reason_against
from lpl_fused.problem import MEAN, NONE, SUM, Options, Problem
from lpl_fused.reference.softmax import row_statistics

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton_memory import check, watched

from lpl_fused.backends.triton import arguments, learned

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
backend = load("triton")


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize(
    ("sizes", "classes"),
    [
        pytest.param([1], 9, id="one row"),
        pytest.param([1, 1], 2, id="two rows of two classes"),
        pytest.param([9], 9, id="one class of all rows"),
        pytest.param([1, 2, 3, 9], 400, id="in registers and not"),
        pytest.param([1, 2], 2049, id="more than a block"),
    ],
)
def test_whatever_the_classes(sizes: list[int], classes: int, normalize: bool) -> None:
    steps = [3, -4, 2, -2][: min(len(sizes), classes)]
    asked = problem(sizes, steps, classes, normalize=normalize)
    assert learned.how(asked._replace(input=asked.input.float())).few is not None
    check(case(asked))


@pytest.mark.parametrize("dtype", [FP64, BF16, FP16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check(case(problem([1, 4, 3], [5, -5, 0], 300)), dtype)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_extremes(normalize: bool) -> None:
    """Those with nan or without mass are nan, and no other."""
    check(case(extremes(60, normalize)))


def test_tables_weights_and_rows_that_do_not_count() -> None:
    asked, draw = problem([4, 3, 1], [5, -5, 2], 80), Draw(8, 80, seed=1)
    target = asked.target.clone()
    target[torch.nonzero(target == 0)[0]] = -100
    perturbation = Perturbation(
        scale=0.5 + draw.uniform(80),
        offset=draw.normal(80),
        margin=draw.uniform(80),
        temperature=1.3,
    )
    keywords = {"weight": draw.uniform(80), "sample_weight": draw.uniform(8), "z_loss": 1e-2}
    asked = asked._replace(target=target)
    check(case(asked, reduction="mean", perturbation=perturbation, **keywords))


def narrow(reduction: int, **parts: Any) -> Problem:
    """Rows with a class of their own, with one of three, without steps, ignored, out of range."""
    draw = Draw(8, 40, seed=2)
    target = torch.tensor([3, 7, 7, -100, 7, 5, 40, -100])
    steps = torch.full((40,), 3, dtype=torch.int32)
    steps[5] = 0
    options = Options(reduction=reduction, step_size=0.2)
    return Problem(draw.input().float(), target, steps=steps, options=options, **parts)


@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_by_the_forwards_state_as_anew(reduction: int) -> None:
    """The same bits, with an upstream of each row or one for all, however often; nan is the row
    whose label is out of range, 0 are those that are ignored."""
    asked = narrow(reduction)
    upstream = torch.rand(8) + 0.5 if reduction == NONE else torch.tensor(0.3)
    with watched():
        loss, norm, _, _, _, state, _ = backend.forward(asked, False)
        anew = backend.learned_gradient(asked, upstream, norm=norm)
        for _ in range(3):
            found = backend.learned_gradient(asked, upstream, state, norm)
            torch.testing.assert_close(found, anew, rtol=0, atol=0, equal_nan=True)
    bad, ignored = asked.target == 40, asked.target == -100
    if reduction == NONE:
        assert torch.equal(loss.isnan(), bad)
        assert torch.equal(loss == 0, ignored)
        assert torch.equal(found.isnan().all(1), bad)
    assert found[~bad].isfinite().all() or reduction != NONE
    assert not found[ignored].any()


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_counts(n: int) -> None:
    """No rows, and rows that are all ignored."""
    input = torch.randn(n, 9, requires_grad=True)
    target, steps = torch.full((n,), -100), torch.full((9,), 2, dtype=torch.int32)
    for reduction in ("none", "sum", "mean"):
        found = {}
        for name in ("reference", "triton"):
            loss = LF.lpl_cross_entropy(
                input, target, steps, step_size=0.1, reduction=reduction, backend=name
            )
            found[name] = loss, *torch.autograd.grad(loss.sum(), input)
        for one, other in zip(*found.values(), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("given", [5, torch.tensor(5.0)], ids=["number", "tensor"])
def test_a_normalizer(given: Any) -> None:
    asked = narrow(SUM)
    fine = asked.target != 40
    input, target = asked.input[fine].requires_grad_(), asked.target[fine]
    found = {}
    for name in ("reference", "triton"):
        loss = LF.lpl_cross_entropy(
            input, target, asked.steps, step_size=0.2, reduction="sum", normalizer=given,
            backend=name,
        )  # fmt: skip
        found[name] = loss, *torch.autograd.grad(loss * 3, input)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.0])
def test_a_sweep_of_16_bits_under_another_upstream(factor: float) -> None:
    """Scaled where that is exact, else made anew: the bits of the gradient by a state."""
    asked = narrow(MEAN)
    fine = asked.target != 40
    asked = asked._replace(input=asked.input[fine].bfloat16(), target=asked.target[fine])
    upstream = torch.tensor(factor)
    with watched():
        swept = backend.forward(asked, True)
        scaled = backend.rescale_(asked, swept, upstream)
        _, norm, *_, state, _ = backend.forward(asked, False)
        found = backend.learned_gradient(asked, upstream, state, norm)
    assert torch.equal(scaled, found)


def test_statistics_of_rows() -> None:
    asked = problem([3, 5, 1], [10, -10, 3], 100)
    offset = torch.tensor([1e4, -1e4, 0.0]).double()[torch.arange(9) % 3, None]
    input = (asked.input + offset).float()
    truth = row_statistics(asked._replace(input=input.double() - offset))
    with watched():
        left = backend.forward(asked._replace(input=input), False, return_stats=True)
    alone = backend.forward(asked._replace(input=input), False)
    assert torch.equal(left.loss, alone.loss)
    found = left.statistics
    assert found is not None
    eps = torch.finfo(FP32).eps
    torch.testing.assert_close(found.lse.double(), truth.lse + offset[:, 0], rtol=eps, atol=2e-6)
    torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=2e-6, atol=2e-6)
    assert torch.equal(found.correct, truth.correct)


def test_rows_far_from_0_keep_their_digits() -> None:
    asked = problem([1, 3, 2], [8, -8, 5], 60)
    offset = torch.tensor([1e4, -1e4, 100.0, -100.0, 1e4, 0.0]).double()[:, None]
    check(case(asked._replace(input=(asked.input.float() + offset).float().double())))


def test_a_subclass_of_tensor_is_of_a_form_as_others() -> None:
    """What is known of a form, and its plans, are not made anew with every call."""

    class Named(Tensor):
        pass

    input, labels = torch.zeros(4, 9), torch.zeros(4, dtype=torch.int64)
    asked = Problem(input, labels, steps=torch.ones(9).int(), options=Options(step_size=0.1))
    named = asked._replace(input=input.as_subclass(Named))
    assert learned.how(named) is learned.how(asked)
    assert arguments.form_of(named) is arguments.form_of(asked)


def test_where_logits_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """By shapes alone; not where the solver does not know the loss."""

    def how(n: int, classes: int, dtype: torch.dtype = FP32, **options: Any) -> learned.How:
        input, target = torch.empty(n, classes, dtype=dtype), torch.zeros(n, dtype=torch.int64)
        steps = torch.ones(classes, dtype=torch.int32)
        asked = Problem(input, target, steps=steps, options=Options(step_size=0.1, **options))
        return learned.how(asked)

    def few(*shape: Any, **options: Any) -> bool:
        return how(*shape, **options).few is not None

    def groups(*shape: Any) -> bool:
        return how(*shape).groups is not None

    assert few(1, learned.FEW_LOGITS)
    assert not few(1, learned.FEW_LOGITS + 1)
    assert few(64, learned.FEW_LOGITS // 64, FP64)
    assert not few(65, learned.FEW_LOGITS // 64, FP64)
    assert not few(4, 9, label_smoothing=0.1)
    # what are so many rows that they are sorted is solved
    many = arguments.MOST_COMPARED
    assert few(many, 5)
    assert not few(many + 1, 5)
    assert groups(many + 1, 5)
    assert not groups(many, 5)
    monkeypatch.setattr(arguments, "MOST_COMPARED", 3)
    monkeypatch.setattr(learned, "MOST_COMPARED", 3)
    assert not few(5, 9)


def test_as_many_programs_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, whoever has which class."""
    asked = narrow(NONE)
    expected = backend.learned_gradient(asked, torch.ones(8))
    for programs in (1, 3):
        monkeypatch.setattr(learned, "MOST_PLAIN", programs)
        found: Tensor = backend.learned_gradient(asked, torch.ones(8))
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_columns_of_wider_rows() -> None:
    """Rows that begin anywhere in a line of memory."""
    asked = problem([2, 1, 3], [4, -3, 2], 50)
    wide = torch.randn(6, 57, dtype=FP64)
    wide[:, 3:53] = asked.input
    for dtype in (FP32, BF16):
        of_dtype = wide.to(dtype)
        view, whole = of_dtype[:, 3:53], of_dtype[:, 3:53].contiguous()
        found = [backend.forward(asked._replace(input=u), True) for u in (view, whole)]
        assert torch.equal(found[0].loss, found[1].loss)
        assert torch.equal(found[0].grad, found[1].grad)
        error = testing.error(found[0].grad, backend.forward(asked, True).grad)
        assert error < (1e-5 if dtype == FP32 else 3e-2)
