"""Losses of ℓ∞-distance nets, and the schedules that go with them and others."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, LABELS, LOGITS, assert_equation, close, cross_entropy, own
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lpl_fused import GCE, MixedTarget, Perturbation, losses, schedules
from lpl_fused.losses.linf import certified_margins


def test_margins() -> None:
    close(certified_margins(LOGITS[0], LABELS[0], 1.0), [0.0, 0.5, 0.0])
    close(certified_margins(LOGITS, LABELS, 0.2)[0], [0.0, -1.5, -4.0])


@pytest.mark.parametrize(
    ("epsilon", "expected"), [(1.0, [0.540760, 1.240760]), (0.2, [0.040761, 1.240760])]
)
def test_mixture_numbers(backend: str, epsilon: float, expected: list[float]) -> None:
    loss = losses.LInfMixtureLoss(epsilon, reduction="none", backend=backend)
    close(loss(LOGITS, LABELS), expected)
    close(losses.LInfMixtureLoss(epsilon, backend=backend)(LOGITS, LABELS), sum(expected) / 2)


def margins(u: torch.Tensor, target: torch.Tensor, epsilon: float) -> torch.Tensor:
    m = 1 + (u - own(u, target)[:, None]) / (2 * epsilon)
    return torch.where(F.one_hot(target, u.shape[1]).bool(), 0.0, m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equations(dtype: torch.dtype) -> None:
    draw = Draw(40, 6, seed=1)
    target, logits = draw.labels(), draw.input()
    largest = margins(logits, target, 2.0).amax(1)
    assert (largest > 1).any()
    assert ((largest > 0) & (largest < 1)).any()
    assert (losses.LInfMixtureLoss(2.0).s == 1).all()
    assert_equation(
        lambda u: losses.LInfMixtureLoss(2.0, 0.3, scale=1.7, reduction="none")(u, target),
        lambda u: (
            margins(u, target, 2.0).amax(1).clamp(0, 1)
            + 0.3 * cross_entropy(torch.tensor(1.7).to(u) * u, target)
        ),
        logits,
        dtype,
    )
    assert_equation(
        lambda u: losses.LInfHingeLoss(2.0, reduction="none")(u, target),
        lambda u: (
            0.75 * margins(u, target, 2.0).relu().amax(1)
            + 0.25 * margins(u, target, 2.0).relu().mean(1)
        ),
        logits,
        dtype,
    )
    assert_equation(
        lambda u: losses.CosFaceLoss(1 / 4.0, 4.0, reduction="none")(u, target),
        lambda u: cross_entropy(margins(u, target, 2.0), target),
        logits,
        dtype,
    )


def test_gradients_by_hand(backend: str) -> None:
    """Hinge: ±1/(2εB) where 0 < M < 1; CE: λs(p − e)/B; ds: λ·mean Σ_j (p − e)_j g_j."""
    draw = Draw(30, 5, seed=2)
    logits, target = draw.input().requires_grad_(), draw.labels()
    loss = losses.LInfMixtureLoss(1.5, 0.3, scale=0.8, backend=backend)
    loss(logits, target).backward()
    with torch.no_grad():
        m = margins(logits, target, 1.5)
        largest, at = m.max(1)
        inside = ((largest > 0) & (largest < 1)).double()[:, None]
        hinge = inside * (F.one_hot(at, 5) - F.one_hot(target, 5)) / (3.0 * 30)
        s = loss.s.double()
        g = torch.softmax(s * logits, 1) - F.one_hot(target, 5)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if backend != "triton" else {"rtol": 1e-5, "atol": 1e-7}  # fmt: skip
    torch.testing.assert_close(logits.grad, hinge + 0.3 * s * g / 30, **tolerance)
    close(loss.s.grad[0], (0.3 * (g * logits.detach()).sum() / 30).float(), 1e-6)


def test_scale_learns_and_is_state() -> None:
    draw = Draw(30, 3, seed=3)
    logits = draw.input().float()
    loss = losses.LInfMixtureLoss(0.1)
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        loss(logits, logits.argmax(1)).backward()
        optimizer.step()
    assert loss.s > 1
    again = losses.LInfMixtureLoss(0.1)
    again.load_state_dict(loss.state_dict())
    target = draw.labels()
    assert torch.equal(again(logits, target), loss(logits, target))


@pytest.mark.parametrize("assign", [False, True])
def test_a_scale_of_no_dimension_as_it_was_saved_before(assign: bool) -> None:
    model = torch.nn.ModuleDict({"loss": losses.LInfMixtureLoss(0.1)})
    for saved in (torch.tensor(2.5), torch.nn.Parameter(torch.tensor(2.5))):
        state = {"loss.s": saved}
        model.load_state_dict(state, assign=assign)
        s = model["loss"].s
        assert s.shape == (1,) and s.item() == 2.5 and s.is_leaf and s.requires_grad
        assert state["loss.s"].shape == ()  # the caller's is left alone
        torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=r"loss\.s"):
        model.load_state_dict({"loss.s": torch.ones(2)})


def test_fsdp2_shards_the_scale(tmp_path: Path) -> None:
    draw = Draw(12, 3, seed=5)
    logits, target = draw.input().float(), draw.labels()
    plain, sharded = (losses.LInfMixtureLoss(0.1) for _ in range(2))
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        found = []
        for loss in (plain, sharded):
            optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
            for _ in range(3):
                optimizer.zero_grad()
                loss(logits, target).backward()
                optimizer.step()
            found.append(loss.s.detach())
        assert isinstance(found[1], DTensor)
        close(found[1].full_tensor(), found[0])
    finally:
        torch.distributed.destroy_process_group()


def test_weights_padding_and_what_goes_on_the_cross_entropy() -> None:
    draw = Draw(12, 4, seed=4)
    target, w, offset = draw.ignoring(), 0.5 + draw.uniform(4), draw.normal(4)
    seen = target != -100
    logits, label = draw.input().masked_fill(~seen[:, None], math.nan), target[seen]
    u = logits[seen]
    hinge = margins(u, label, 1.0).amax(1).clamp(0, 1)
    q = torch.exp(-cross_entropy(u + offset, label))
    expected = hinge + 0.1 * (1 - q**0.7) / 0.7
    leaf = logits.requires_grad_()
    loss = losses.LInfMixtureLoss(1.0, weight=w, phi=GCE(0.7))
    value = loss(leaf, target, perturbation=Perturbation(offset=offset))
    torch.testing.assert_close(value, (w[label] * expected).sum() / w[label].sum())
    value.backward()
    assert leaf.grad.isfinite().all()
    rows = losses.LInfHingeLoss(1.0, reduction="none")
    image = draw.input().reshape(3, 4, 4)
    flat = rows(image.reshape(12, 4), target)
    torch.testing.assert_close(rows(image.movedim(2, 1), target.reshape(3, 4)), flat.reshape(3, 4))
    assert rows(image[0, 0], torch.tensor(1)).shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.LInfMixtureLoss(0.0), "epsilon.*got 0"),
        (lambda: losses.LInfMixtureLoss(1.0, -1.0), "strength.*got -1"),
        (lambda: losses.LInfMixtureLoss(1.0, clip=0.0), "clip.*got 0"),
        (lambda: losses.LInfHingeLoss(1.0, 2.0), "mix.*got 2"),
        (lambda: losses.LInfHingeLoss(1.0)(LOGITS, LOGITS), "LInfHingeLoss needs class indices"),
        (lambda: losses.LInfHingeLoss(1.0)(LOGITS, LABELS, perturbation=Perturbation()), "takes none"),
        (lambda: losses.LInfMixtureLoss(1.0)(LOGITS, MixedTarget(LABELS, LABELS, 0.5)), "mixed"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_schedules() -> None:
    close(torch.tensor(schedules.geometric(8.0, 1000.0, 0.5)), 89.442719)
    close(torch.tensor(schedules.geometric(0.1, 0.0005, 0.5)), 0.007071)
    assert schedules.progress(50, 100, 1250) == 0
    assert schedules.progress(675, 100, 1250) == 0.5
    assert schedules.progress(1300, 100, 1250) == 1
    assert schedules.progress(0, 0, 0) == 1
    assert schedules.lp_exponent(0.0) == 8
    assert schedules.lp_exponent(1.0) == math.inf
    assert schedules.lp_exponent(1.0, last=50.0) == pytest.approx(50)
    assert [schedules.warm_up(5.0, epoch) for epoch in (0, 4, 9, 30)] == [0.5, 2.5, 5.0, 5.0]
    assert schedules.isda_strength(40, 160) == 0.125
    assert schedules.smooth_ramp(2.0, 0.25) == 0.5
    before, after = (schedules.smooth_ramp(2.0, 0.4 + d, 0.4) for d in (-1e-9, 1e-9))
    assert before == pytest.approx(after, abs=1e-7)
    slopes = [
        (schedules.smooth_ramp(2.0, at + 1e-6, 0.4) - schedules.smooth_ramp(2.0, at, 0.4)) / 1e-6
        for at in (0.4 - 2e-6, 0.4)
    ]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-4)
    assert schedules.smooth_ramp(2.0, 1.0, 0.4) == pytest.approx(2.0)
    assert schedules.smooth_ramp(2.0, 0.0, 0.4) == 0
