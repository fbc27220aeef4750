"""A gradient is rounded once, and a second backward gives the same bits."""

from __future__ import annotations

import os
import weakref
from dataclasses import replace

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from multilabel_cases import binary_cases, binary_lpl_cases

from lpl_fused import functional as LF
from lpl_fused import testing

pytestmark = pytest.mark.devices
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
CASES = {
    **cross_entropy_cases(),
    **{f"lpl-{name}": build for name, build in lpl_cases().items()},
}
BINARY = {
    **binary_cases(),
    **{f"lpl-{name}": build for name, build in binary_lpl_cases().items()},
}
NAMES = [
    "hard",
    "smoothed",
    "dense-weights",
    "everything",
    "clip",
    "penalty-phr",
    "lpl-unique",
    "lpl-groups",
]


def truncates(backend: str) -> bool:
    """Triton's interpreter makes bfloat16 by cutting bits off."""
    return backend == "triton" and "TRITON_INTERPRET" in os.environ


def loss_of(
    case: testing.Case, backend: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, its logits) in `dtype`, tables in float32."""
    case = replace(case, learn=())
    case = case.to(dtype if dtype == torch.float64 else torch.float32).on(
        testing.device_of(backend)
    )
    input = case.input.to(dtype).requires_grad_()
    if case.multilabel:
        return LF.binary_cross_entropy_with_logits(
            input, case.target, backend=backend, **case.keywords
        ), input
    if case.steps is None:
        return LF.cross_entropy(input, case.target, backend=backend, **case.keywords), input
    return LF.lpl_cross_entropy(
        input, case.target, case.steps, backend=backend, **case.keywords
    ), input


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_second_backward_gives_the_same_bits(backend: str, name: str, dtype: torch.dtype) -> None:
    case = CASES[name](Draw(5, 9, seed=1))
    loss, input = loss_of(case, backend, dtype)
    for factor in (1.0, 3.0, 0.25):
        upstream = torch.full_like(loss, factor)
        grads = [torch.autograd.grad(loss, input, upstream, retain_graph=True)[0] for _ in range(3)]
        for grad in grads[1:]:
            assert torch.equal(grad, grads[0])


def test_steps_that_were_chosen_give_the_same_bits(backend: str) -> None:
    """The first gradient may be made of the exponentials of the sweep that chose them."""
    draw = Draw(4, 700, seed=5)
    device = testing.device_of(backend)
    input = draw.input().float().to(device).requires_grad_()
    steps = torch.full((700,), 3, device=device)
    loss = LF.lpl_cross_entropy(
        input, draw.labels().to(device), lambda _: steps, step_size=0.1, backend=backend
    )
    grads = [torch.autograd.grad(loss, input, retain_graph=True)[0] for _ in range(3)]
    assert torch.equal(grads[1], grads[0])
    assert torch.equal(grads[2], grads[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_that_waits_keeps_no_logits_alive(backend: str, dtype: torch.dtype) -> None:
    """What is saved for the backward may be moved elsewhere by hooks."""
    leaf = Draw(6, 9, seed=6).input().to(dtype).to(testing.device_of(backend)).requires_grad_()
    logits = leaf * 1
    target = torch.arange(6, device=leaf.device)
    held = weakref.ref(logits)
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda saved: saved):
        loss = LF.cross_entropy(logits, target, label_smoothing=0.1, backend=backend)
    del logits
    assert held() is None
    loss.backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_rounded_once(backend: str, name: str, reduction: str) -> None:
    """Whatever the upstream gradient: rounded in the sweep and again after it, three in ten entries
    would not be the nearest."""
    case = CASES[name](Draw(12, 33, seed=2)).rounded(torch.bfloat16)
    case = replace(case, learn=(), keywords={**case.keywords, "reduction": reduction})
    loss, input = loss_of(case, backend, torch.bfloat16)
    generator = torch.Generator().manual_seed(3)
    for factor in (1.0, 3.0, 0.7, 2.0**-5, 1e-3):
        upstream = torch.full_like(loss, factor)
        if reduction == "none":
            upstream = upstream * (0.5 + torch.rand(loss.shape, generator=generator)).to(loss)
        (grad,) = torch.autograd.grad(loss, input, upstream, retain_graph=True)
        exact = testing.evaluate(case, "reference", upstream.double().cpu()).grads["input"]
        nearest_within(grad.cpu(), exact, truncates(backend))


@pytest.mark.multilabel
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", ["hard", "soft-rebalance", "lpl-hard"])
def test_multilabel_bfloat16_is_rounded_once(backend: str, name: str, reduction: str) -> None:
    case = BINARY[name](Draw(12, 33, seed=4)).rounded(torch.bfloat16)
    case = replace(case, keywords={**case.keywords, "reduction": reduction})
    run = testing.evaluate
    for factor in (1.0, 3.0, 0.7):
        upstream = torch.full((12, 33) if reduction == "none" else (), factor, dtype=torch.float64)
        narrow = replace(case.to(torch.float32), input=case.input.to(torch.bfloat16))
        grad = run(narrow, backend, upstream).grads["input"]
        exact = run(case, "reference", upstream).grads["input"]
        nearest_within(grad, exact, truncates(backend))


def nearest_within(grad: torch.Tensor, exact: torch.Tensor, truncates: bool) -> None:
    """Every entry is the number of bfloat16 that is nearest to what float32 makes of the truth."""
    mantissa, exponent = torch.frexp(exact)
    ulp = torch.ldexp(torch.ones_like(mantissa), exponent - 8)
    typical = exact.abs() + exact.abs().mean(-1, keepdim=True)
    allowed = (1.0 if truncates else 0.5) * ulp + 32 * torch.finfo(torch.float32).eps * typical
    wrong = (grad.double() - exact).abs() > allowed
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} are not the nearest"


@pytest.mark.parametrize("classes", [10, 64])
@pytest.mark.parametrize("z_loss", [1e-2, 1e-6])
def test_a_z_loss_keeps_its_digits_on_confident_rows(
    backend: str, z_loss: float, classes: int
) -> None:
    """All that a label with all mass is left with: not what remains of 1 + z_loss − 1."""
    logits = torch.full((2, classes), -60.0)
    logits[:, 3] = 1.0
    target = torch.tensor([3, 3])

    def gradient(dtype: torch.dtype, backend: str) -> torch.Tensor:
        device = testing.device_of(backend)
        input = logits.to(device, dtype).requires_grad_()
        loss = LF.cross_entropy(
            input, target.to(device), z_loss=z_loss, reduction="sum", backend=backend
        )
        return torch.autograd.grad(loss, input)[0][:, 3].double().cpu()

    exact = gradient(torch.float64, "reference")
    torch.testing.assert_close(gradient(torch.float32, backend), exact, rtol=1e-6, atol=0)
