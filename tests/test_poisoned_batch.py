"""One bad batch must not ruin a training: what evolves takes up finite rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lpl_fused import LogitClip, losses

N, C = 6, 5
_made = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, C, generator=_made)
LABELS, GROUPS = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 0, 1, 1, 0, 1])
FEATURES, WEIGHT = torch.randn(N, 3, generator=_made), torch.randn(C, 3, generator=_made)
EMA: dict[str, Any] = {"split": "balanced", "statistics": "ema", "delta_epsilon": 3.0}
Call = Callable[[Any, Tensor], Tensor]
LOSSES: dict[str, tuple[Callable[[], nn.Module], Call]] = {
    "absgd": (lambda: losses.ABSGDLoss(), lambda loss, u: loss(u, LABELS)),
    "absgd, noise": (lambda: losses.ABSGDLoss(-1.0), lambda loss, u: loss(u, LABELS)),
    "dro": (lambda: losses.GroupDROLoss([5, 5]), lambda loss, u: loss(u, LABELS, GROUPS)),
    "dro, cvar": (
        lambda: losses.GroupDROLoss([5, 5], cvar=0.5),
        lambda loss, u: loss(u, LABELS, GROUPS),
    ),
    "lpl": (lambda: losses.LPLLoss([5, 4, 3, 2, 1], **EMA), lambda loss, u: loss(u, LABELS)),
    "multi-label lpl": (
        lambda: losses.MultiLabelLPLLoss([5, 4, 3, 2, 1], **EMA),
        lambda loss, u: loss(u, nn.functional.one_hot(LABELS, C).float()),
    ),
    "eqlv2": (lambda: losses.EQLv2Loss(C), lambda loss, u: loss(u, LABELS)),
    "seesaw": (lambda: losses.SeesawLoss(C), lambda loss, u: loss(u, LABELS)),
}


def states(loss: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in loss.state_dict().items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_a_training_recovers_from_a_bad_batch(name: str, bad: float) -> None:
    make, call = LOSSES[name]
    hurt, whole = make(), make()
    poisoned = LOGITS.clone()
    poisoned[1, 1] = bad
    call(hurt, poisoned)
    assert all(not value.isnan().any() for value in states(hurt).values())
    came, expected = [[call(loss, LOGITS) for _ in range(60)][-1] for loss in (hurt, whole)]
    torch.testing.assert_close(came, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("name", ["absgd", "dro", "lpl", "eqlv2"])
def test_a_bad_row_leaves_the_state_that_the_others_leave(name: str) -> None:
    make, _ = LOSSES[name]
    hurt, others = make(), make()
    poisoned = LOGITS.clone()
    poisoned[5] = math.nan  # of class 0, which another row has, too
    group = (GROUPS,) if name == "dro" else ()
    value = hurt(poisoned, LABELS, *group)
    assert not value.isfinite()  # nothing is hidden in the loss of that batch
    others(LOGITS[:5], LABELS[:5], *(part[:5] for part in group))
    for key, state in states(others).items():
        torch.testing.assert_close(states(hurt)[key], state, msg=key)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_isda_leaves_out_features_that_are_not_finite(covariance: str) -> None:
    hurt, others = (losses.ISDALoss(C, 3, covariance=covariance) for _ in range(2))
    broken = FEATURES.clone()
    broken[5, 0] = math.inf
    hurt(LOGITS, LABELS, broken, WEIGHT)
    others(LOGITS[:5], LABELS[:5], FEATURES[:5], WEIGHT)
    for key, state in states(others).items():
        torch.testing.assert_close(states(hurt)[key], state, msg=key)


def test_cals_leaves_out_held_out_rows_that_are_not_finite() -> None:
    hurt, others = losses.CALSLoss(C, margin=0.5), losses.CALSLoss(C, margin=0.5)
    poisoned = LOGITS.clone()
    poisoned[5, 2] = math.nan
    hurt.observe(poisoned)
    others.observe(LOGITS[:5])
    for loss in (hurt, others):
        loss.update()
    for key, state in states(others).items():
        torch.testing.assert_close(states(hurt)[key], state, msg=key)


def test_truncated_gce_prunes_no_sample_for_a_nan() -> None:
    loss = losses.TruncatedGCELoss(N, k=0.01)
    loss.update(torch.full((N, C), math.nan), LABELS, torch.arange(N))
    assert loss.kept.all()
    loss.update(LOGITS - 50 * nn.functional.one_hot(LABELS, C), LABELS, torch.arange(N))
    assert not loss.kept.any()


def test_truncated_gce_prunes_by_the_logits_that_its_loss_sees() -> None:
    loss = losses.TruncatedGCELoss(2, norm=LogitClip(0.5))
    logits = torch.tensor([[9.0, 0, 0], [0, 1.0, 0]])
    loss.update(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    clipped = logits * (0.5 / logits.norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.equal(loss.kept, clipped.softmax(1)[:, 0] > 0.5)


def test_a_state_with_a_weight_that_came_later_is_loaded() -> None:
    loss = losses.LDAMLoss([5, 4, 3, 2, 1])
    loss.weight = torch.arange(1.0, 6.0)
    fresh = losses.LDAMLoss([5, 4, 3, 2, 1])
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(fresh(LOGITS, LABELS), loss(LOGITS, LABELS))
