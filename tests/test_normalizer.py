"""`normalizer`: sums that are divided by what the caller counted, so that upstream gradients stay 1."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import Draw

from lpl_fused import Perturbation, losses
from lpl_fused import functional as LF
from lpl_fused.backends import load
from lpl_fused.losses.lpl_official import VARIANTS

PAGE = Path(__file__).parents[1] / "docs" / "quick-start.md"


def accumulated(
    criterion,  # type: ignore[no-untyped-def]
    dtype: torch.dtype,
    **keywords: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of 12 rows of which some are ignored, in batches of 4."""
    draw = Draw(12, 9, seed=1)
    input, target = draw.input().to(dtype).requires_grad_(), draw.ignoring()
    total = torch.zeros((), dtype=torch.float64)
    for part in range(0, 12, 4):
        rows = slice(part, part + 4)
        loss = criterion(input[rows], target[rows], **keywords)
        loss.backward()
        total += loss.detach()
    assert input.grad is not None
    return total, input.grad


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_batches_add_up_to_the_mean_of_all(
    backend: str, dtype: torch.dtype, as_tensor: bool
) -> None:
    draw = Draw(12, 9, seed=1)
    input, target = draw.input().to(dtype).requires_grad_(), draw.ignoring()
    count = (target != -100).sum()
    loss, grad = accumulated(
        LF.cross_entropy,
        dtype,
        reduction="sum",
        normalizer=count if as_tensor else int(count),
        backend=backend,
    )
    exact = input.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, target)
    expected.backward()
    digits = max(4 * torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(grad.double(), exact.grad, rtol=digits, atol=digits / 100)


def test_the_gradient_of_the_sweep_is_the_gradient(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the normalizer: the upstream gradient is 1, nothing is scaled or made anew."""
    if backend == "reference":
        pytest.skip("the reference makes no gradient in the forward")
    factors, module = [], load(backend)
    rescale = module.rescale_

    def seen(problem, forward, upstream):  # type: ignore[no-untyped-def]
        factors.append(upstream.item())
        before = forward.grad.clone()
        found = rescale(problem, forward, upstream)
        assert torch.equal(found, before)
        return found

    monkeypatch.setattr(module, "rescale_", seen)
    for dtype in (torch.float32, torch.bfloat16):
        accumulated(
            LF.cross_entropy,
            dtype,
            reduction="sum",
            normalizer=torch.tensor(7),
            backend=backend,
        )
    assert factors == [1.0] * 6


def test_one_that_learns_is_left_to_the_reference() -> None:
    draw = Draw(6, 9, seed=1)
    input, target = draw.input().requires_grad_(), draw.labels()
    count = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    loss = LF.cross_entropy(input, target, reduction="sum", normalizer=count)
    total = F.cross_entropy(input, target, reduction="sum").detach()
    torch.testing.assert_close(torch.autograd.grad(loss, count)[0], -total / 25)


def test_one_that_changed_before_the_backward_is_noticed(backend: str) -> None:
    draw = Draw(6, 9, seed=1)
    input, target = draw.input().requires_grad_(), draw.labels()
    count = torch.tensor(5.0)
    loss = LF.cross_entropy(
        input.half(), target, reduction="sum", normalizer=count, backend=backend
    )
    count.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_steps_are_chosen_from_undivided_losses(backend: str) -> None:
    """And δ does not depend on the normalizer."""
    draw = Draw(6, 9, seed=1)
    input, target = draw.input(), draw.labels()
    seen = []

    def choose(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        return torch.full((9,), 3)

    def loss(**keywords: object) -> torch.Tensor:
        return LF.lpl_cross_entropy(
            input.requires_grad_(),
            target,
            choose,
            step_size=0.2,
            backend=backend,
            reduction="sum",
            **keywords,
        )

    torch.testing.assert_close(loss(normalizer=8.0), loss() / 8)
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_under_compile(backend: str, dtype: torch.dtype) -> None:
    """Nothing looks at its value: a graph without a break, for another value the same graph."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    draw = Draw(6, 9, seed=1)
    input, target = draw.input().to(dtype).requires_grad_(), draw.labels()
    offset = draw.normal(9).float()

    def loss(normalizer: torch.Tensor | float) -> torch.Tensor:
        return LF.cross_entropy(
            input,
            target,
            perturbation=Perturbation(offset=offset),
            reduction="sum",
            normalizer=normalizer,
            backend=backend,
        )

    compiled = torch.compile(loss, fullgraph=True)
    for value in (torch.tensor(3), torch.tensor(11)):
        found = compiled(value)
        torch.testing.assert_close(found, loss(value))
        one, other = (torch.autograd.grad(x, input)[0] for x in (compiled(value), loss(value)))
        torch.testing.assert_close(one, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # a graph of each number
    for number in (3, 11, 12.5):
        torch.testing.assert_close(compiled(number), loss(number))
    torch._dynamo.reset()


@pytest.mark.multilabel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_of_labels_under_compile(backend: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    draw = Draw(8, 9, seed=1)
    input, target = draw.input().to(dtype).requires_grad_(), draw.uniform(8, 9) < 0.3

    def loss(normalizer: torch.Tensor) -> torch.Tensor:
        return LF.binary_cross_entropy_with_logits(
            input, target, reduction="sum", normalizer=normalizer, backend=backend
        )

    compiled = torch.compile(loss, fullgraph=True)
    for value in (torch.tensor(3.0), torch.tensor(11.0)):
        torch.testing.assert_close(compiled(value), loss(value))
        one, other = (torch.autograd.grad(x, input)[0] for x in (compiled(value), loss(value)))
        torch.testing.assert_close(one, other)
    torch._dynamo.reset()


@pytest.mark.multilabel
def test_of_labels(backend: str) -> None:
    draw = Draw(8, 9, seed=1)
    input, target = draw.input().requires_grad_(), (draw.uniform(8, 9) < 0.3).double()
    weight = draw.uniform(8, 9)  # outside the kernels
    for keywords in ({}, {"weight": weight}, {"pos_weight": weight}):
        found = LF.binary_cross_entropy_with_logits(
            input, target, reduction="sum", normalizer=5, backend=backend, **keywords
        )
        expected = (
            F.binary_cross_entropy_with_logits(input, target, reduction="sum", **keywords) / 5
        )
        torch.testing.assert_close(found, expected)
        one, other = (torch.autograd.grad(x, input)[0] for x in (found, expected))
        torch.testing.assert_close(one, other)


COUNTS = [40, 20, 10, 8, 6, 5, 4, 3, 2]


@pytest.mark.parametrize(
    "criterion",
    [
        losses.CrossEntropyLoss(reduction="sum"),
        losses.LogitAdjustedLoss(COUNTS, reduction="sum"),
        losses.LPLLoss(COUNTS, reduction="sum"),
        losses.LPLLoss(COUNTS, split="balanced", reduction="sum").eval(),
        losses.ArcFaceLoss(s=8.0, m=0.2, reduction="sum"),
        losses.CDBLoss(9, reduction="sum"),
        losses.GCLLoss(COUNTS, reduction="sum").eval(),
        losses.SeesawLoss(9, reduction="sum").eval(),
        losses.SoftmaxEQLLoss(COUNTS, 0.1, reduction="sum").eval(),
        losses.MbLSLoss(0.3, 0.2, base=losses.CrossEntropyLoss(reduction="sum")),
        losses.MbLSLoss(0.3, 0.2, base=losses.LPLLoss(COUNTS, reduction="sum")),
        losses.CALSLoss(9, base=losses.LogitAdjustedLoss(COUNTS, reduction="sum"), margin=0.5),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_take_it_when_called(criterion: torch.nn.Module) -> None:
    draw = Draw(6, 9, seed=1)
    input, target = torch.tanh(draw.input()), draw.labels()
    torch.testing.assert_close(criterion(input, target, normalizer=4), criterion(input, target) / 4)


def test_modules_of_labels_take_it_when_called() -> None:
    draw = Draw(6, 9, seed=1)
    input, target = draw.input(), (draw.uniform(6, 9) < 0.3).double()
    plain = losses.MultiLabelLoss(reduction="sum")
    for criterion in (plain, losses.MultiLabelLPLLoss(COUNTS, base=plain)):
        torch.testing.assert_close(
            criterion(input, target, normalizer=4), criterion(input, target) / 4
        )


def test_modules_that_divide_by_themselves_refuse() -> None:
    draw = Draw(6, 9, seed=1)
    for criterion in (
        losses.CrossEntropyLoss(),
        losses.CDBLoss(9),
        losses.MbLSLoss(),
        losses.MbLSLoss(base=losses.LPLLoss(COUNTS)),
        losses.LPLLoss(COUNTS, variant=next(iter(VARIANTS)), reduction="sum"),
    ):
        with pytest.raises(ValueError, match="normalizer"):
            criterion(draw.input(), draw.labels(), normalizer=4)


def test_the_example_of_the_quick_start_is_one_batch() -> None:
    (code,) = re.findall(r"```python\n([^`]*normalizer=[^`]*)```", PAGE.read_text())
    draw = Draw(12, 9, seed=1)
    model = torch.nn.Linear(5, 9).double()
    features, target = draw.normal(12, 5), draw.ignoring()
    batches = list(zip(features.split(4), target.split(4), strict=True))
    names = {
        "LF": LF,
        "model": model,
        "batches": batches,
        "optimizer": torch.optim.SGD(model.parameters(), 0.0),
    }
    exec(code, names)
    found = model.weight.grad
    model.zero_grad()
    F.cross_entropy(model(features), target).backward()
    torch.testing.assert_close(found, model.weight.grad)
