"""The CUDA backend beyond the common suite: teams of every shape, rows that begin anywhere, labels out
of range, what the solver leaves. Without a GPU the kernels' bodies run on the host; what only a
device shows is marked gpu.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases

from lpl_fused import Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.backends import load
from lpl_fused.problem import MEAN, Options, Problem

backend = load("cuda")
if backend.unavailable() is not None:
    pytest.skip(f"cuda: {backend.unavailable()}", allow_module_level=True)
DEVICE = backend._native().device
pytestmark = pytest.mark.usefixtures("twice")
ON_HOST = pytest.mark.skipif(DEVICE != "cpu", reason="the host's teams are tests' own")
SOLVED, UNCHANGED, PERTURBED, GROUP, FELL_BACK = range(5)  # Outcome of csrc/cuda/call.h


@pytest.fixture
def use_shape() -> Iterator[object]:
    """Sets (blocks, threads of a block, rows staged, fibres in reverse order) of the host's teams."""
    function = ctypes.CDLL(backend._native().__file__).use_shape
    yield function
    function(2, 4, True, False)


SHAPES = {
    "one-thread-pair": (1, 2, True, False),
    "block": (1, 8, True, False),
    "not-staged": (1, 4, False, False),
    "cluster": (4, 2, True, False),
    "reversed": (2, 4, True, True),
}
FORMS = {
    "hard": cross_entropy_cases()["ignore"],
    "everything": cross_entropy_cases()["penalty-everything"],
    "dense": cross_entropy_cases()["dense-weights"],
    "lpl": lpl_cases()["unique"],
    "lpl-groups": lpl_cases()["groups-normalized"],
    "lpl-smoothed": lpl_cases()["smoothed-focal-weights"],
}


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_team_shapes(use_shape, shape: str, form: str) -> None:  # type: ignore[no-untyped-def]
    use_shape(*SHAPES[shape])
    for classes, dtype in ((29, torch.float32), (70, torch.bfloat16)):
        testing.assert_within_budget(FORMS[form](Draw(5, classes, seed=3)), "cuda", dtype)


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
def test_no_result_depends_on_who_comes_first(use_shape, form: str) -> None:  # type: ignore[no-untyped-def]
    """A barrier that is missing would show: fibres in reverse order must give the same bits."""
    case = FORMS[form](Draw(6, 45, seed=4)).to(torch.float32)
    found = []
    for blocks, reverse in itertools.product((1, 3), (False, True)):
        use_shape(blocks, 4, True, reverse)
        found.append(testing.evaluate(case, "cuda"))
    for one, other in (found[:2], found[2:]):
        assert torch.equal(one.loss, other.loss)
        for name, grad in one.grads.items():
            assert torch.equal(grad, other.grads[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("table", [False, True])
def test_rows_that_begin_anywhere(dtype: torch.dtype, table: bool) -> None:
    """Every distance from a 16-byte line, at odd strides: the same numbers, none beside the row."""
    draw = Draw(3, 37, seed=1)
    values, target = draw.input().to(DEVICE, dtype), draw.labels().to(DEVICE)
    offset = draw.normal(37).to(DEVICE, torch.float64 if dtype == torch.float64 else torch.float32)
    keywords = {"perturbation": Perturbation(offset=offset)} if table else {}
    expected = None
    for start, stride in itertools.product(range(9), (37, 41, 48)):
        memory = torch.full((start + 3 * stride,), 77.0, dtype=dtype, device=DEVICE)
        rows = torch.as_strided(memory, (3, 37), (stride, 1), start)
        rows.copy_(values)
        input = rows.detach().requires_grad_()
        loss = LF.cross_entropy(input, target, backend="cuda", **keywords)
        (grad,) = torch.autograd.grad(loss, input)
        assert torch.equal(rows, values)
        if expected is None:
            expected = loss, grad
        torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            grad, expected[1], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-9
        )


@pytest.mark.parametrize("form", ["plain", "weight", "mixed", "rows", "lpl"])
@pytest.mark.parametrize("bad", [40, 10**12, -1, -(2**40)])
def test_out_of_range_poisons_its_row_alone(form: str, bad: int) -> None:
    """No synchronisation, so no exception: nan in the row, and never a wrong address."""
    from lpl_fused import MixedTarget

    draw = Draw(6, 40, seed=2)
    input = draw.input().float().to(DEVICE).requires_grad_()
    labels = torch.arange(6)
    labels[2] = bad
    labels = labels.to(DEVICE)
    keywords: dict[str, object] = {"backend": "cuda", "reduction": "none"}
    if form == "weight":
        keywords["weight"] = torch.ones(40, device=DEVICE)
    if form == "rows":
        rows = torch.randn(3, 40, device=DEVICE)
        index = torch.tensor([0, 1, bad, 2, 1, 0], device=DEVICE)
        keywords["perturbation"] = Perturbation(rows=rows, row_index=index)
        labels = torch.arange(6, device=DEVICE)
    if form == "lpl":
        steps = torch.full((40,), 3, device=DEVICE)
        loss = LF.lpl_cross_entropy(input, labels, steps, step_size=0.1, **keywords)  # type: ignore[arg-type]
    else:
        target = (
            MixedTarget(torch.arange(6, device=DEVICE), labels, 0.25) if form == "mixed" else labels
        )
        loss = LF.cross_entropy(input, target, **keywords)  # type: ignore[arg-type]
    (grad,) = torch.autograd.grad(loss.sum(), input)
    others = torch.arange(6) != 2
    assert loss[2].isnan()
    assert loss[others].isfinite().all()
    assert grad[2].isnan().any()
    assert grad[others].isfinite().all()


def problem(classes: int, step_size: float, steps: int, spread: float = 1.0, n: int = 4) -> Problem:
    draw = Draw(n, classes, seed=6)
    return Problem(
        draw.input(spread).float().to(DEVICE),
        torch.arange(n, device=DEVICE),
        steps=torch.full((classes,), steps, dtype=torch.int32, device=DEVICE),
        options=Options(reduction=MEAN, step_size=step_size),
    )


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [50, -50])
@pytest.mark.parametrize("normalize", [False, True])
def test_solver_takes_what_training_asks_for(spread: float, steps: int, normalize: bool) -> None:
    """K = 50 steps of α = 0.1 at 2,000 classes: solved within its bound, and as exact as asked."""
    made = problem(2000, 0.1, steps, spread)
    made = made._replace(options=made.options._replace(normalize=normalize))
    assert set(backend.outcomes(made).tolist()) == {SOLVED}
    case = testing.Case(
        made.input.double(), made.target, {"step_size": 0.1, "normalize": normalize},
        made.steps.long(),  # type: ignore[union-attr]
    )  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        testing.assert_within_budget(case, "cuda", dtype)


def test_solver_says_what_it_leaves() -> None:
    """A dose beyond the series is left to plain steps, which are exact; so are shared classes."""
    made = problem(3000, 40.0, 8, 0.1)
    assert set(backend.outcomes(made).tolist()) == {FELL_BACK}
    case = testing.Case(made.input.double(), made.target, {"step_size": 40.0}, made.steps.long())  # type: ignore[union-attr]
    testing.assert_within_budget(case, "cuda")
    target = torch.tensor([0, 5, 5, -100], device=DEVICE)
    steps = torch.ones(3000, dtype=torch.int32, device=DEVICE)
    steps[0] = 0
    mixed = made._replace(target=target, steps=steps)
    assert backend.outcomes(mixed).tolist() == [UNCHANGED, GROUP, GROUP, UNCHANGED]


def test_exact_where_all_rivals_find_room() -> None:
    """Few classes take their steps one by one, whatever the dose."""
    assert set(backend.outcomes(problem(400, 40.0, 8, 0.1)).tolist()) == {SOLVED}


def test_repeats_bit_for_bit() -> None:
    for form in FORMS.values():
        case = form(Draw(5, 300, seed=8)).to(torch.float32)
        one, other = (testing.evaluate(case, "cuda") for _ in range(2))
        assert torch.equal(one.loss, other.loss)
        assert all(torch.equal(grad, other.grads[name]) for name, grad in one.grads.items())


def test_no_multilabel_losses() -> None:
    logits, labels = torch.zeros(2, 3, device=DEVICE), torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="no kernels for multi-label losses"):
        LF.binary_cross_entropy_with_logits(logits, labels, backend="cuda")
    assert LF.binary_cross_entropy_with_logits(logits, labels).isfinite()
