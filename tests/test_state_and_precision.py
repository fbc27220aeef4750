"""Products within a loss keep their digits whatever autocast and 16 bits do around it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from lpl_fused import losses
from lpl_fused.ladc import calibrated_features
from lpl_fused.linear import NormalizedLinear
from lpl_fused.row_transforms import arc_margin


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_calibrated_features_do_not_follow_autocast(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(0)
    target = torch.tensor([0] * 9 + [1] * 7 + [2] * 2)
    features = torch.randn(len(target), 4, generator=made) + 3
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    plain = calibrated_features(features, target, 2, generator=draws[0])
    with torch.autocast("cpu", dtype=dtype):
        found = calibrated_features(features, target, 2, generator=draws[1])
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)


def test_cosines_near_1_keep_the_digits_of_the_plain_formula() -> None:
    cosine = torch.cat([1 - 2.0 ** -torch.arange(1.0, 25.0), torch.ones(1)])
    label = torch.zeros(len(cosine), dtype=torch.int64)
    rows = torch.stack([cosine, torch.zeros_like(cosine)], 1)
    came = arc_margin(rows, label, 0.5)[:, 0].double()
    truth = torch.cos(torch.acos(cosine.double()) + 0.5)
    plain = torch.cos(torch.acos(cosine) + 0.5).double()
    error, allowed = (came - truth).abs(), (plain - truth).abs()
    assert (error <= allowed.clamp(min=torch.finfo(torch.float32).eps)).all()
    rows[-1] = 1 + 1e-6  # rounding may leave that
    rows.requires_grad_()
    arc_margin(rows, label, 0.5).sum().backward()
    assert rows.grad.isfinite().all()
