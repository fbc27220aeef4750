"""The CUDA backend beyond the common suite: teams of every shape, rows that begin anywhere, labels out
of range, what the solver leaves. Without a GPU the kernels' bodies run on the host; what only a
device shows is marked gpu.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from seam import by_parts, cut
from seam import problem_of as whole

from lpl_fused import Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.algebra.known import Known
from lpl_fused.algebra.sweep import sweep
from lpl_fused.algebra.terms import Terms
from lpl_fused.backends import load
from lpl_fused.problem import MEAN, NONE, SUM, Options, Problem

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


IN_TWO = by_parts(lambda width: cut(width, 2))


def of_parts(form: str, n: int, classes: int) -> testing.Case:
    case = FORMS[form](Draw(n, classes, seed=11))
    return case if case.steps is None else replace(case, learn=())


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_team_shapes_of_parts(use_shape, shape: str, form: str) -> None:  # type: ignore[no-untyped-def]
    """Sums over some columns, a list of heads among them, and gradients from terms."""
    use_shape(*SHAPES[shape])
    for classes, dtype in ((29, torch.float32), (70, torch.bfloat16)):
        testing.assert_within_budget(of_parts(form, 5, classes), "cuda", dtype, run=IN_TWO)


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
def test_no_part_depends_on_who_comes_first(use_shape, form: str) -> None:  # type: ignore[no-untyped-def]
    case = of_parts(form, 3, 1300 if form == "lpl" else 45).to(torch.float32)
    upstream = torch.ones(3 if case.keywords.get("reduction") == "none" else ())
    for blocks in (1, 3):
        found = []
        for reverse in (False, True):
            use_shape(blocks, 4, True, reverse)
            found.append(IN_TWO(case, "cuda", upstream))
        one, other = found
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
    """A dose beyond the series is left to plain steps, which are exact."""
    made = problem(3000, 40.0, 8, 0.1)
    assert set(backend.outcomes(made).tolist()) == {FELL_BACK}
    case = testing.Case(made.input.double(), made.target, {"step_size": 40.0}, made.steps.long())  # type: ignore[union-attr]
    testing.assert_within_budget(case, "cuda")
    target = torch.tensor([0, 5, 5, -100], device=DEVICE)
    steps = torch.ones(3000, dtype=torch.int32, device=DEVICE)
    steps[0] = 0
    mixed = made._replace(target=target, steps=steps)
    assert backend.outcomes(mixed).tolist() == [UNCHANGED, PERTURBED, PERTURBED, UNCHANGED]


def test_exact_where_all_rivals_find_room() -> None:
    """Few classes take their steps one by one, whatever the dose."""
    assert set(backend.outcomes(problem(400, 40.0, 8, 0.1)).tolist()) == {SOLVED}


def test_repeats_bit_for_bit() -> None:
    for form in FORMS.values():
        case = form(Draw(5, 300, seed=8)).to(torch.float32)
        one, other = (testing.evaluate(case, "cuda") for _ in range(2))
        assert torch.equal(one.loss, other.loss)
        assert all(torch.equal(grad, other.grads[name]) for name, grad in one.grads.items())


def problem_of(form: str, dtype: torch.dtype, n: int = 12, classes: int = 300) -> Problem:
    """Of a bfloat16 gradient whose every way to another upstream is there."""
    draw = Draw(n, classes, seed=9)
    made = Problem(draw.input().to(DEVICE, dtype), draw.ignoring().to(DEVICE))
    if form == "weights":
        return made._replace(weight=draw.uniform(classes).float().to(DEVICE))
    if form == "steps":
        steps = draw.steps(20).int().to(DEVICE)
        return made._replace(steps=steps, options=Options(step_size=0.2))
    return made


@pytest.mark.parametrize("form", ["plain", "weights", "steps"])
def test_a_finished_gradient_by_any_factor(form: str) -> None:
    """By powers of two it is scaled, else made anew: the same as knowing the factor before."""
    asked = problem_of(form, torch.bfloat16)
    for factor in (0.0, 1.0, -0.25, 3.0, 1e-3, torch.inf, torch.nan):
        upstream = torch.tensor(factor, device=DEVICE)
        swept = backend.forward(asked, True)
        finished = swept.grad.clone()
        place = swept.grad.data_ptr()
        found = backend.rescale_(asked, swept, upstream)
        assert found.data_ptr() == place
        anew = factor in (3.0, 1e-3)
        if anew:
            rows = (upstream / swept.norm).expand(12)
            expected = (
                backend.learned_gradient(asked, rows)
                if form == "steps"
                else backend.gradient(asked, Known(swept.terms), rows, ["input"]).input
            )
        else:
            expected = finished * factor
            expected[asked.target == -100] = 0  # whatever comes from upstream
        # the factor may be rounded once more before than after
        torch.testing.assert_close(found, expected, rtol=2**-8, atol=0, equal_nan=True)
        if not anew:
            assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


@ON_HOST
@pytest.mark.parametrize("form", ["plain", "weights", "steps"])
def test_no_factor_changes_the_launches(form: str) -> None:
    """Which kernels have something to do the device decides: logits are read where a 16-bit
    gradient is made anew, and else nothing but the gradient."""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    asked = problem_of(form, torch.bfloat16)
    size, launches, loads = asked.input.numel(), set(), {}
    for factor in (1.0, 0.5, 3.0):
        swept = backend.forward(asked, True)
        take_counts(counts)
        backend.rescale_(asked, swept, torch.tensor(factor, device=DEVICE))
        take_counts(counts)
        launches.add(counts[0])
        loads[factor] = counts[1]
    assert len(launches) == 1
    assert loads[1.0] == 0
    assert size <= loads[0.5] < 1.1 * size
    assert size // 2 < loads[3.0]


@ON_HOST
@pytest.mark.parametrize("want_grad", [False, True])
def test_stats_cost_no_read(use_shape, want_grad: bool) -> None:  # type: ignore[no-untyped-def]
    """Of plain rows and of such as have everything; others, which have a kernel for less than
    that, are read once more."""
    use_shape(2, 4, True, False)
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    plain, weighed = (problem_of(form, torch.bfloat16) for form in ("plain", "weights"))
    table = torch.linspace(-1, 1, plain.classes, device=DEVICE)
    rows = plain._replace(rows=table[None], row_index=torch.zeros_like(plain.target))
    smoothed = plain._replace(options=plain.options._replace(label_smoothing=0.1))
    asked = {
        "plain": (plain, False),
        "weights": (weighed, False),
        "everything": (rows._replace(options=smoothed.options._replace(softcap=5.0)), False),
        "smoothed": (smoothed, True),
        "table": (plain._replace(offset=table), True),
    }
    for name, (problem, reads) in asked.items():
        found = []
        for return_stats in (False, True):
            take_counts(counts)
            backend.forward(problem, want_grad, return_stats=return_stats)
            take_counts(counts)
            found.append(tuple(counts))
        (launches, without), (more_launches, loads) = found
        assert (more_launches > launches) == reads, name
        # a row's own numbers are a few logits more
        more = (loads - without) / without
        assert 0.4 < more < 1.1 if reads else 0 < more < 0.05, name


def test_float_gradients_are_scaled() -> None:
    for dtype in (torch.float32, torch.float64):
        asked = problem_of("steps", dtype)
        swept = backend.forward(asked, True)
        upstream = torch.tensor(3.0, dtype=dtype, device=DEVICE)
        expected = swept.grad * upstream
        assert torch.equal(backend.rescale_(asked, swept, upstream), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["weights", "steps"])
def test_every_row_has_a_factor(form: str, dtype: torch.dtype) -> None:
    asked = problem_of(form, dtype)
    asked = asked._replace(options=asked.options._replace(reduction=NONE))
    factors = torch.linspace(-2, 3, 12, device=DEVICE)
    swept = backend.forward(asked, True)
    finished = swept.grad.clone()
    found = backend.rescale_(asked, swept, factors)
    if dtype == torch.float32:
        assert torch.equal(found, finished * factors[:, None])
    else:
        assert torch.equal(found, backend.learned_gradient(asked, factors))


def unshifted(terms: torch.Tensor) -> Terms:
    """The same numbers for a shift of 0: which shift a sweep takes is its own affair."""
    of = Terms.of(terms)
    return of._replace(
        shift=torch.zeros_like(of.shift),
        log_total=of.log_total + of.shift,
        strength=of.strength * torch.exp(-of.shift),
    )


@pytest.mark.parametrize("reduction", [MEAN, SUM])
@pytest.mark.parametrize("form", ["ignore", "clip-p3", "penalty-everything", "everything"])
def test_a_sweep_leaves_the_terms_of_the_rounds(
    form: str, reduction: int, request: pytest.FixtureRequest
) -> None:
    """With a gradient or without, by teams of one shape; rows that are ignored among them."""
    if DEVICE == "cpu":
        request.getfixturevalue("use_shape")(1, 4, True, False)
    case = cross_entropy_cases()[form](Draw(6, 41, seed=10)).to(torch.float32)
    asked = whole(replace(case, learn=()).on(DEVICE), "cuda", {})
    asked = asked._replace(options=asked.options._replace(reduction=reduction))
    expected = sweep(backend, [asked.columns(0, 41)])
    swept = backend.forward(asked, False)
    for name, one, other in zip(
        Terms._fields, unshifted(swept.terms), unshifted(expected.terms), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)
    narrow = asked._replace(input=asked.input.bfloat16())
    assert torch.equal(backend.forward(narrow, True).terms, backend.forward(narrow, False).terms)


@pytest.mark.parametrize("form", ["plain", "weights", "offset", "steps", "groups"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_upstream_is_divided_as_torch_does_it(form: str, dtype: torch.dtype) -> None:
    """One number for all rows over a norm is what each of them would be given, bit for bit; also one
    that is not finite, and a norm of 0."""
    asked = problem_of("steps" if form == "groups" else form, dtype)
    if form == "groups":
        asked = asked._replace(target=asked.target.where(asked.target < 0, asked.target % 2))
    if form == "offset":
        asked = asked._replace(offset=torch.linspace(-1, 1, 300, device=DEVICE))
    found = backend.forward(asked, False)
    for upstream, norm in ((0.7, 3.0), (1.0, 7.3), (torch.inf, 3.0), (1.0, 0.0)):
        of_all, over = (torch.tensor(number, device=DEVICE) for number in (upstream, norm))
        each = (of_all / over).expand(12)
        if asked.steps is not None:
            whole = backend.learned_gradient(asked, of_all, found.state, over)
            expected = backend.learned_gradient(asked, each, found.state)
        else:
            known = Known(found.terms)
            whole = backend.gradient(asked, known, of_all, ["input"], norm=over).input
            expected = backend.gradient(asked, known, each, ["input"]).input
        assert torch.equal(whole.isnan(), expected.isnan())
        assert torch.equal(whole.nan_to_num(7), expected.nan_to_num(7))


@ON_HOST
@pytest.mark.parametrize("form", ["plain", "weights", "all ignored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_of_few_plain_rows_the_last_adds_up_the_loss(
    use_shape,
    form: str,
    dtype: torch.dtype,  # type: ignore[no-untyped-def]
) -> None:
    """Whichever that is; with one launch less than of more rows, which give the same loss."""
    take_counts = ctypes.CDLL(backend._native().__file__).take_counts
    counts = (ctypes.c_long * 2)()
    few = problem_of("weights" if form == "weights" else "plain", dtype, n=6)
    if form == "all ignored":
        few = few._replace(target=few.target.fill_(-100))
    # ignored rows change no mean
    more = few._replace(
        input=torch.cat([few.input, few.input]),
        target=torch.cat([few.target, torch.full_like(few.target, -100)]),
    )
    for shape in SHAPES.values():
        use_shape(*shape)
        found = []
        for asked in (few, more):
            for want_grad in (False, True):
                take_counts(counts)
                loss = backend.forward(asked, want_grad).loss
                take_counts(counts)
                found.append((counts[0], loss))
        assert [launches for launches, _ in found] == [2 * 2] * 2 + [2 * 3] * 2
        for _, loss in found:
            torch.testing.assert_close(loss, found[0][1], rtol=1e-6, atol=0, equal_nan=True)
        assert found[0][1].isnan() == (form == "all ignored")
