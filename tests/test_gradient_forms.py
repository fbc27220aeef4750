"""`gradient=`: in the forward sweep, by statistics in the backward, or over the logits themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from multilabel_cases import binary_cases
from torch import Tensor

from lpl_fused import Perturbation, losses, testing
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE, load
from lpl_fused.problem import accumulate_dtype

CASES, LPL_CASES, BINARY_CASES = cross_entropy_cases(), lpl_cases(), binary_cases()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CHOSEN = [
    *("hard", "ignore", "smoothed", "mixed", "dense-weights", "ignore-none", "ignore-normalizer"),
    *("clip", "clip-p3", "clip-infinity", "logit-norm", "softcap"),
    *("penalty-phr", "clip-penalty", "masked-label"),
]
LEARNING = ["everything", "tables-mixed", "scale-learned", "rows-learned", "clip-everything"]


def known(names: list[str]) -> list[str]:
    assert all(name in CASES for name in names), [name for name in names if name not in CASES]
    return names


def of_form(case: testing.Case, form: str) -> testing.Case:
    return replace(case, keywords={**case.keywords, "gradient": form})


def upstream(loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


def ulps(backend: str, dtype: torch.dtype) -> float:
    # as in test_backends.py: Triton's interpreter truncates
    return 2.0 if backend == "triton" and dtype == torch.bfloat16 else 1.0


def fused(backend: str) -> None:
    if backend == REFERENCE:
        pytest.skip("the reference is differentiated by autograd, which has no forms")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["sweep", "statistics"])
@pytest.mark.parametrize("name", known(CHOSEN))
def test_either_form_is_right(backend: str, name: str, form: str, dtype: torch.dtype) -> None:
    fused(backend)
    if form == "sweep" and dtype == torch.float16:
        pytest.skip("refused")
    case = CASES[name](Draw(6, 37, seed=1))

    def run(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
        return testing.evaluate(of_form(case, form), backend, factors)

    testing.assert_within_budget(
        case, backend, dtype, upstream=upstream, ulps=ulps(backend, dtype), run=run
    )


@pytest.mark.parametrize("form", ["sweep", "statistics"])
@pytest.mark.parametrize("name", ["unique", "groups", "unique-normalizer"])
def test_so_it_is_of_a_learned_perturbation(backend: str, name: str, form: str) -> None:
    fused(backend)
    case = LPL_CASES[name](Draw(6, 9, seed=1))

    def run(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
        return testing.evaluate(of_form(case, form), backend, factors)

    testing.assert_within_budget(case, backend, torch.float32, upstream=upstream, run=run)


@pytest.mark.multilabel
@pytest.mark.parametrize("form", ["sweep", "statistics"])
@pytest.mark.parametrize("name", ["hard", "missing-none", "hard-everything", "hard-logit-weights"])
def test_so_it_is_of_labels(backend: str, name: str, form: str) -> None:
    fused(backend)
    case = BINARY_CASES[name](Draw(6, 9, seed=1))

    def run(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
        return testing.evaluate(of_form(case, form), backend, factors)

    testing.assert_within_budget(case, backend, torch.float32, upstream=upstream, run=run)


def in_place(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
    """testing.evaluate, the gradient over the logits."""
    keywords = dict(case.keywords)
    leaves = {"input": case.input.detach().clone().requires_grad_()}
    if case.learn:
        tables = {
            name: torch.as_tensor(
                getattr(keywords["perturbation"], name), dtype=accumulate_dtype(case.input.dtype)
            )
            .detach()
            .clone()
            .requires_grad_()
            for name in case.learn
        }
        keywords["perturbation"] = replace(keywords["perturbation"], **tables)
        leaves |= tables
    logits = leaves["input"] * 1
    loss = LF.cross_entropy(logits, case.target, gradient="inplace", backend=backend, **keywords)
    assert torch.equal(logits, leaves["input"])  # until the backward
    grads = torch.autograd.grad(loss, list(leaves.values()), factors.to(loss.dtype))
    assert torch.equal(logits, grads[0])
    return testing.Result(loss.detach(), dict(zip(leaves, grads, strict=True)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", known([*CHOSEN, *LEARNING]))
def test_over_the_logits(backend: str, name: str, dtype: torch.dtype) -> None:
    fused(backend)
    case = CASES[name](Draw(6, 37, seed=1))

    def run(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
        if backend == REFERENCE:
            return testing.evaluate(case, backend, factors)
        return in_place(case, backend, factors)

    testing.assert_within_budget(
        case, backend, dtype, upstream=upstream, ulps=ulps(backend, dtype), run=run
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [1, 33, 1025, 8142])
def test_over_rows_of_any_size(backend: str, classes: int, dtype: torch.dtype) -> None:
    """The same bits as beside the logits: none is read after its gradient was written."""
    fused(backend)
    for name in ("ignore", "smoothed", "clip-p3", "penalty-relu"):
        case = CASES[name](Draw(4, classes, seed=1)).rounded(dtype).to(torch.float32)
        case = replace(case, input=case.input.to(dtype))
        factors = upstream(torch.zeros(())).float()
        beside = testing.evaluate(of_form(case, "statistics"), backend, factors)
        over = in_place(case, backend, factors)
        assert torch.equal(over.grads["input"], beside.grads["input"]), name


def allocated(run: Callable[[], None]) -> int:
    """Bytes that are asked for, whatever becomes of them."""
    run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_no_memory_beside_the_logits(dtype: torch.dtype) -> None:
    """Loss and gradient together take a fraction of the logits' bytes; by sweep as many as these."""
    draw = Draw(64, 4096, seed=1)
    values, target = draw.input().to(dtype), draw.labels()
    logits = torch.nn.Identity()(values.clone().requires_grad_() * 1)
    size = logits.nbytes

    def run(form: str) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                logits.copy_(values)
            loss = LF.cross_entropy(logits, target, gradient=form, backend="cpp")
            (grad,) = torch.autograd.grad(loss, logits)
            assert (grad.data_ptr() == logits.data_ptr()) == (form == "inplace")

        return call

    assert allocated(run("inplace")) < size / 8
    assert size <= allocated(run("sweep")) < 1.2 * size
    assert size <= allocated(run("statistics")) < 1.2 * size


def test_statistics_leave_no_gradient_until_the_backward() -> None:
    draw = Draw(64, 4096, seed=1)
    input, target = draw.input().float().requires_grad_(), draw.labels()

    def run(form: str) -> Callable[[], None]:
        return lambda: LF.cross_entropy(input, target, gradient=form, backend="cpp")

    assert allocated(run("statistics")) < input.nbytes / 8
    assert allocated(run("sweep")) >= input.nbytes


def logits_of(hidden: Tensor) -> Tensor:
    return hidden @ torch.linspace(-1, 1, 5 * 9).reshape(5, 9)


def test_reshaped_logits_of_a_model_are_fine(backend: str) -> None:
    fused(backend)
    draw = Draw(6, 9, seed=1)
    hidden, target = draw.normal(2, 3, 5).float().requires_grad_(), draw.labels()
    loss = LF.cross_entropy(
        logits_of(hidden).view(-1, 9), target, gradient="inplace", backend=backend
    )
    (found,) = torch.autograd.grad(loss, hidden)
    loss = LF.cross_entropy(logits_of(hidden).view(-1, 9), target, backend=backend)
    torch.testing.assert_close(found, torch.autograd.grad(loss, hidden)[0])


def wide(draw: Draw) -> Tensor:
    return draw.normal(6, 12).float().requires_grad_() * 1


REFUSED = {
    "a leaf": (lambda d: d.input().requires_grad_(), "leaf that requires grad is a parameter"),
    "no grad wanted": (lambda d: d.input(), "require no grad"),
    "a view of a leaf": (lambda d: d.input().requires_grad_().view(6, 9), "view of a leaf"),
    "columns of more": (lambda d: wide(d)[:, :9], "memory is theirs alone"),
    "rows of more": (lambda d: (d.input().requires_grad_() * 1)[:5], "part of a larger"),
    "one row for all": (
        lambda d: (d.normal(1, 9).requires_grad_() * 1).expand(6, 9),
        "memory is theirs alone",
    ),
    "transposed": (lambda d: (d.normal(9, 6).requires_grad_() * 1).T, "memory is theirs alone"),
    "more than rows": (
        lambda d: d.normal(6, 9, 2).requires_grad_() * 1,
        "in rows",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_logits_that_are_not_ours_are_refused(name: str) -> None:
    make, message = REFUSED[name]
    input = make(Draw(6, 9, seed=1))
    target = torch.zeros(input.shape[:1] + input.shape[2:], dtype=torch.int64)
    before = input.detach().clone()
    with pytest.raises(ValueError, match=message):
        LF.cross_entropy(input, target, gradient="inplace")
    assert torch.equal(input, before)


def test_where_nobody_asks_for_gradients_nothing_is_written() -> None:
    draw = Draw(6, 9, seed=1)
    input, target = draw.input(), draw.labels()
    criterion = losses.CrossEntropyLoss(gradient="inplace")
    before = input.clone()
    with torch.no_grad():
        torch.testing.assert_close(criterion(input, target), LF.cross_entropy(input, target))
    assert torch.equal(input, before)


def test_what_cannot_be_chosen() -> None:
    draw = Draw(6, 9, seed=1)
    leaf, target, steps = draw.input().requires_grad_(), draw.labels(), draw.steps()
    logits = leaf * 1
    table = Perturbation(offset=draw.normal(9).requires_grad_())
    for message, run in {
        "expected one of 'auto', 'sweep', 'statistics', 'inplace'.*'x'": lambda: LF.cross_entropy(
            logits, target, gradient="x"
        ),
        "fused backends": lambda: LF.cross_entropy(
            logits, target, gradient="statistics", backend="reference"
        ),
        "fused backends; the reference, which runs": lambda: LF.cross_entropy(
            logits, target, draw.normal(9).requires_grad_(), gradient="sweep"
        ),
        "float16": lambda: LF.cross_entropy(logits.half(), target, gradient="sweep"),
        "tables": lambda: LF.cross_entropy(logits, target, perturbation=table, gradient="sweep"),
        "learned perturbation": lambda: LF.lpl_cross_entropy(
            logits, target, steps, step_size=0.1, gradient="inplace"
        ),
        "through_perturbation": lambda: LF.lpl_cross_entropy(
            logits, target, steps, step_size=0.1, through_perturbation=True, gradient="sweep"
        ),
        "expected one of 'auto', 'sweep', 'statistics', got": (
            lambda: LF.binary_cross_entropy_with_logits(logits, logits, gradient="inplace")
        ),
    }.items():
        with pytest.raises(ValueError, match=f"gradient.*{message}|{message}"):
            run()


def test_others_who_saved_the_logits_get_an_error() -> None:
    draw = Draw(6, 9, seed=1)
    leaf, target = draw.input().requires_grad_(), draw.labels()

    def parts() -> tuple[Tensor, Tensor]:
        logits = leaf * 1
        return LF.cross_entropy(logits, target, gradient="inplace"), (logits * logits).sum()

    (loss, squares), inputs = parts(), [leaf]
    torch.autograd.grad(loss, inputs, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(squares, inputs)
    # the other way round it is well
    loss, squares = parts()
    second = torch.autograd.grad(squares, inputs, retain_graph=True)[0]
    first = torch.autograd.grad(loss, inputs)[0]
    expected = leaf.detach().clone().requires_grad_()
    total = LF.cross_entropy(expected, target) + (expected * expected).sum()
    torch.testing.assert_close(first + second, torch.autograd.grad(total, expected)[0])


def test_two_losses_over_the_same_logits_are_noticed() -> None:
    draw = Draw(6, 9, seed=1)
    leaf, target = draw.input().requires_grad_(), draw.labels()
    logits = leaf * 1
    loss = LF.cross_entropy(logits, target, gradient="inplace")
    loss = loss + LF.cross_entropy(logits, target.roll(1), gradient="inplace")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_and_a_graph_of_the_gradient_are_refused(backend: str) -> None:
    fused(backend)
    draw = Draw(6, 9, seed=1)
    leaf, target = draw.input().requires_grad_(), draw.labels()
    logits = leaf * 1
    loss = LF.cross_entropy(logits, target, gradient="inplace", backend=backend)
    with pytest.raises(RuntimeError, match="create_graph"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    assert torch.equal(logits, leaf)  # as they were
    torch.autograd.grad(loss, leaf, retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward"):
        torch.autograd.grad(loss, leaf)


def test_not_under_compile() -> None:
    torch._dynamo.reset()
    draw = Draw(6, 9, seed=1)
    leaf, target = draw.input().requires_grad_(), draw.labels()

    @torch.compile
    def step(leaf: Tensor) -> Tensor:
        return LF.cross_entropy(leaf * 1, target, gradient="inplace", backend="cpp")

    with pytest.raises(Exception, match="somebody traces"):
        step(leaf)
    torch._dynamo.reset()


def test_auto_is_what_the_documentation_says(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep for scalars of 32 bits and more and for bfloat16, else statistics."""
    fused(backend)
    module = load(backend)
    forward, wanted = module.forward, []

    def seen(problem, want_grad, choose=None, **more):  # type: ignore[no-untyped-def]
        wanted.append(want_grad)
        return forward(problem, want_grad, choose, **more)

    monkeypatch.setattr(module, "forward", seen)
    draw = Draw(6, 9, seed=1)
    target, table = draw.labels(), Perturbation(offset=draw.normal(9).float().requires_grad_())
    cpp = backend == "cpp"
    for dtype, reduction, perturbation, expected in (
        (torch.float32, "mean", None, True),
        (torch.float64, "sum", None, True),
        (torch.bfloat16, "mean", None, True),
        (torch.float16, "mean", None, False),
        (torch.float32, "none", None, cpp),
        (torch.bfloat16, "none", None, False),
        (torch.float32, "mean", table, False),
        (torch.float32, "mean", Perturbation(offset=torch.zeros(9)), backend != "cuda"),
        (torch.float32, "mean", Perturbation(margin=torch.zeros(9)), True),
    ):
        input = draw.input().to(dtype).requires_grad_()
        LF.cross_entropy(
            input, target, perturbation=perturbation, reduction=reduction, backend=backend
        )
        assert wanted.pop() is expected, (dtype, reduction)
