"""Vector scaling by group, and its binary form."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import (
    DTYPES,
    LABELS,
    LOGITS,
    assert_equation,
    close,
    cross_entropy,
)

from lpl_fused import losses

# Groups g = (label, background); Δ_g = (n_g/n_max)^γ, ι_g = −τ·log π_g.
GROUPS = [700, 30, 250, 20]


@pytest.mark.parametrize("kind", ["power", "none"])
@pytest.mark.parametrize("iota", ["log", "power", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_scaling_is_the_equation(dtype: torch.dtype, iota: str, kind: str) -> None:
    draw = Draw(24, 3, seed=5)
    target, group = draw.labels(), torch.randint(4, (24,), generator=draw.generator)
    n = torch.tensor(GROUPS).double()
    delta = (n / n.max()) ** 0.3
    offsets = {"log": -0.8 * torch.log(n / n.sum()), "power": 1 / delta, "none": 0 * n}[iota]
    delta = torch.ones_like(delta) if kind == "none" else delta
    loss = losses.GroupVSLoss(GROUPS, 0.3, 0.8, iota=iota, delta=kind, reduction="none")
    assert_equation(
        lambda u: loss(u, target, group),
        lambda u: cross_entropy(
            delta.to(u)[group][:, None] * u - offsets.to(u)[group][:, None] * F.one_hot(target, 3),
            target,
        ),
        draw.input(),
        dtype,
    )


def test_official_group_scaling_cancels_its_offset() -> None:
    draw = Draw(24, 2, seed=6)
    logits, target, group = draw.input(), draw.labels(), draw.labels() * 2
    official = losses.GroupVSLoss(GROUPS, form="official")(logits, target, group)
    scaled = losses.GroupVSLoss(GROUPS, iota="none")(logits, target, group)
    torch.testing.assert_close(official, scaled)
    assert losses.GroupVSLoss(GROUPS)(logits, target, group) > official


def test_binary_scaling_is_the_equation() -> None:
    draw = Draw(40, 1, seed=7)
    f, y = draw.input()[:, 0], (draw.uniform(40) < 0.5).long()
    n = torch.tensor([900.0, 100.0]).double()
    delta, iota = (n / n.max()) ** 0.3, -torch.log(n / n.sum())
    margin = torch.log1p(torch.exp(iota[y] - delta[y] * (2 * y - 1) * f))
    close(losses.BinaryVSLoss([900, 100], reduction="none")(f, y), margin, 1e-12)
    official = F.binary_cross_entropy_with_logits(
        30 * (f * delta[y] - iota[y]), y.double(), reduction="none"
    )
    value = losses.BinaryVSLoss([900, 100], form="official", reduction="none")(f, y)
    close(value, official, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_scaling_by_group(dtype: torch.dtype) -> None:
    draw = Draw(40, 1, seed=8)
    f, y = draw.input(), (draw.uniform(40, 1) < 0.5).long()
    group = (draw.uniform(40, 1) < 0.5).long()
    n = torch.tensor([[700.0, 30.0], [20.0, 250.0]]).double()
    weight = 1 / n
    delta, iota = (n / n.max()) ** 0.3, -torch.log(n / n.sum())
    loss = losses.BinaryVSLoss(n, weight=weight)
    u = f.to(dtype).requires_grad_()
    value = loss(u, y, group)
    (grad,) = torch.autograd.grad(value, u)
    exact = u.detach().double().requires_grad_()
    ell = F.softplus(iota[y, group] - delta[y, group] * (2 * y - 1) * exact, threshold=700)
    truth = (weight[y, group] * ell).sum() / weight[y, group].sum()
    (expected,) = torch.autograd.grad(truth, exact)
    eps = torch.finfo(dtype).eps
    wide = max(8 * torch.finfo(torch.float32).eps, 0) if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(value.double(), truth, rtol=wide, atol=0)
    torch.testing.assert_close(
        grad.double(), expected, rtol=eps + wide, atol=float(expected.abs().max()) * eps
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.GroupVSLoss([3, 0]), "group_num_list"),
        (lambda: losses.GroupVSLoss(GROUPS, iota="la"), "iota.*'la'"),
        (lambda: losses.GroupVSLoss(GROUPS, form="code"), "form.*'code'"),
        (lambda: losses.GroupVSLoss(GROUPS)(LOGITS, LABELS, torch.tensor([0, 4])), r"\[0, 4\), got 4"),
        (lambda: losses.GroupVSLoss(GROUPS)(LOGITS, LABELS, LABELS[:1]), r"group.*shape \(2,\)"),
        (lambda: losses.BinaryVSLoss([1, 2, 3]), r"shape \(2,\) or \(2, G\)"),
        (lambda: losses.BinaryVSLoss([5, 1])(LOGITS[0], LOGITS[0].sigmoid()), "hard labels"),
        (lambda: losses.BinaryVSLoss([5, 1])(LABELS.float(), LABELS / 2, LABELS), "group"),
        (lambda: losses.BinaryVSLoss([[5, 1], [2, 1]])(LABELS.float(), LABELS // 2), "group.*indices below 2"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
