"""What evolves counts once under checkpointing; products within a loss keep their digits whatever
autocast and 16 bits do around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lpl_fused import losses
from lpl_fused.linear import NormalizedLinear

N, C = 8, 10
LABELS = torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(2))
GROUPS, FEATURES = (
    torch.arange(N) % 2,
    torch.randn(N, 3, generator=torch.Generator().manual_seed(3)),
)
WEIGHT = torch.randn(C, 3, generator=torch.Generator().manual_seed(4))
EMA: dict[str, Any] = {"split": "balanced", "statistics": "ema"}
Call = Callable[[Any, Tensor], Tensor]
LOSSES: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "seesaw": (lambda: losses.SeesawLoss(C), lambda loss, u: loss(u, LABELS)),
    "eqlv2": (lambda: losses.EQLv2Loss(C), lambda loss, u: loss(u, LABELS)),
    "absgd": (lambda: losses.ABSGDLoss(), lambda loss, u: loss(u, LABELS)),
    "dro": (lambda: losses.GroupDROLoss([5, 5]), lambda loss, u: loss(u, LABELS, GROUPS)),
    "dro, cvar": (
        lambda: losses.GroupDROLoss([5, 5], cvar=0.5),
        lambda loss, u: loss(u, LABELS, GROUPS),
    ),
    "lpl": (lambda: losses.LPLLoss([1] * C, **EMA), lambda loss, u: loss(u, LABELS)),
    "multi-label lpl": (
        lambda: losses.MultiLabelLPLLoss([1] * C, **EMA),
        lambda loss, u: loss(u, nn.functional.one_hot(LABELS, C).float()),
    ),
    "isda": (
        lambda: losses.ISDALoss(C, 3),
        lambda loss, u: loss(u, LABELS, FEATURES, WEIGHT),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_checkpointed_step_counts_once(name: str) -> None:
    make, call = LOSSES[name]
    found = []
    for wrapped in (False, True):
        loss = make()
        for step in range(3):
            x = torch.randn(N, C, generator=torch.Generator().manual_seed(step))
            x.requires_grad_()
            matrix = torch.eye(C, requires_grad=True)

            def segment(x: Tensor, loss: nn.Module = loss, matrix: Tensor = matrix) -> Tensor:
                return call(loss, x @ matrix)  # run again, as its backward wants x

            value = checkpoint(segment, x, use_reentrant=False) if wrapped else segment(x)
            value.backward()
        state = {k: v for k, v in loss.state_dict().items() if isinstance(v, Tensor)}
        found.append((state, value.detach(), x.grad))
    assert found[0][0]
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "keywords",
    [
        {"weighting": "inverse", "weighting_mode": "average-count"},
        {"weighting": "inverse", "weighting_mode": "average-weight"},
        {"weighting": "class-balanced", "weighting_mode": "average-weight"},
        {"weight_norm": "by-row"},
    ],
)
def test_distribution_balanced_weights_do_not_follow_autocast(
    dtype: torch.dtype, keywords: dict[str, Any]
) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    loss = losses.DistributionBalancedLoss([200_000, 70_000, 30, 3, 1000], 300_000, **keywords)
    plain = loss(logits, labels)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(loss(logits, labels), plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_isda_keeps_the_digits_of_rows_that_share_a_mean(mean: float) -> None:
    made = torch.Generator().manual_seed(0)
    loss = losses.ISDALoss(5, 64)
    loss.update(torch.randn(200, 64, generator=made), torch.randint(5, (200,), generator=made))
    weight = (torch.randn(5, 64, generator=made) * 0.05 + mean).requires_grad_()
    came = loss.rows(torch.arange(5), weight)
    double = weight.detach().double().requires_grad_()
    sigma = loss.covariance.double()
    truth = torch.stack([((double - double[c]) ** 2 * sigma[c]).sum(1) for c in range(5)]) / 4
    assert (came.double() - truth).abs().max() < 1e-6 * truth.max()
    grads = [
        torch.autograd.grad((rows**2).sum(), w)[0] for rows, w in ((came, weight), (truth, double))
    ]
    assert (grads[0].double() - grads[1]).abs().max() < 1e-5 * grads[1].abs().max()


@pytest.mark.parametrize("mixed", [False, True])
def test_cosines_of_16_bits_neither_overflow_nor_divide_by_0(mixed: bool) -> None:
    layer = NormalizedLinear(4, 3)
    layer = layer if mixed else layer.half()
    context = torch.autocast("cpu", dtype=torch.float16) if mixed else contextlib.nullcontext()
    with context, torch.no_grad():
        zero, short, long = (
            layer(torch.full((1, 4), size, dtype=torch.float16)) for size in (0.0, 1.0, 60000.0)
        )
    assert torch.equal(zero, torch.zeros_like(zero))
    torch.testing.assert_close(long, short, rtol=0, atol=2e-3)
