"""ABSGD and group DRO: weights that follow the losses of the batch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from hypothesis import given, settings
from hypothesis import strategies as st

from lpl_fused import Focal, losses

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("lam", "weights", "expected"),
    [
        (0.5, [0.017986, 0.982014], 2.371634),
        (1.0, [0.119203, 0.880797], 2.169200),
        (-1.0, [0.880797, 0.119203], 0.646012),
    ],
)
def test_absgd_numbers(backend: str, lam: float, weights: list[float], expected: float) -> None:
    logits = LOGITS.clone().requires_grad_()
    rows = losses.CrossEntropyLoss(reduction="none", backend=backend)
    value = losses.ABSGDLoss(lam, rows, gamma=1.0)(logits, LABELS)
    value.backward()
    torch.testing.assert_close(value, torch.tensor(expected), atol=2e-6, rtol=0)
    p = torch.softmax(LOGITS, 1) - F.one_hot(LABELS, 3)
    torch.testing.assert_close(logits.grad, p * torch.tensor(weights)[:, None], atol=2e-6, rtol=0)


@pytest.mark.parametrize("lam", [0.7, -0.7])
@pytest.mark.parametrize("bias_correction", [False, True])
@pytest.mark.parametrize("add_mean", [False, True])
def test_absgd_is_the_equation(lam: float, bias_correction: bool, add_mean: bool) -> None:
    """U over three batches, written with plain exponentials in float64."""
    gamma, scale, u = 0.4, 0.5, 0.0
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5]).double()
    loss = losses.ABSGDLoss(
        lam,
        losses.CrossEntropyLoss(weight, reduction="none"),
        gamma=gamma,
        scale=scale,
        bias_correction=bias_correction,
        add_mean=add_mean,
    )
    for t in range(1, 4):
        draw = Draw(11, 4, seed=t)
        logits, target = draw.input(), draw.ignoring()
        rows = target != -100
        plain = logits.clone().requires_grad_()
        ell = F.cross_entropy(plain, target, weight, reduction="none")
        e = torch.exp(ell.detach()[rows] / lam)
        u = (1 - gamma) * u + gamma * scale * float(e.mean())
        corrected = u / (1 - (1 - gamma) ** t) if bias_correction else u
        p = e / (corrected * len(e)) + (1 / len(e) if add_mean else 0)
        expected = (p * ell[rows]).sum()
        ours = logits.clone().requires_grad_()
        value = loss(ours, target)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        (expected_grad,) = torch.autograd.grad(expected, plain)
        (grad,) = torch.autograd.grad(value, ours)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-15)
        torch.testing.assert_close(loss.log_u, torch.tensor(math.log(u)).double())


def test_absgd_starts_with_large_weights() -> None:
    """U starts at 0: Σp of the first batch is 1/(γ·a), 2.222 for the authors' numbers."""
    for correct, expected in ((False, 1 / (0.9 * 0.5)), (True, 1 / 0.5)):
        loss = losses.ABSGDLoss(1.0, gamma=0.9, scale=0.5, bias_correction=correct)
        logits = torch.zeros(6, 3, dtype=torch.float64)  # equal losses: L = Σp·ℓ
        value = loss(logits, torch.arange(6) % 3)
        torch.testing.assert_close(value / math.log(3), torch.tensor(expected).double())


def test_absgd_does_not_overflow() -> None:
    """exp(ℓ/λ) is beyond float32 from ℓ/λ = 88 on, and beyond float64 from 709."""
    logits = torch.tensor([[0.0, 900.0], [0.0, 1.0], [3.0, 0.0]], requires_grad=True)
    target = torch.tensor([0, 0, 0])
    for lam, heaviest in ((0.1, 0), (-0.1, 2)):
        loss = losses.ABSGDLoss(lam, gamma=1.0)
        (grad,) = torch.autograd.grad(loss(logits, target), logits)
        assert grad.isfinite().all() and loss.log_u.isfinite()
        assert grad.abs().sum(1).argmax() == heaviest


def test_absgd_has_a_plain_first_stage_and_a_plain_evaluation() -> None:
    expected = F.cross_entropy(LOGITS, LABELS)
    loss = losses.ABSGDLoss(1.0, start_epoch=2)
    for epoch in (0, 1):
        loss.set_epoch(epoch)
        torch.testing.assert_close(loss(LOGITS, LABELS), expected)
    assert loss.log_u == -math.inf
    loss.set_epoch(2)
    assert not torch.isclose(loss(LOGITS, LABELS), expected)
    before = loss.log_u.clone()
    torch.testing.assert_close(loss.eval()(LOGITS, LABELS), expected)
    assert torch.equal(loss.log_u, before)
    plain = losses.ABSGDLoss(None)
    torch.testing.assert_close(plain(LOGITS, LABELS), expected)
    assert plain.log_u == -math.inf


def test_absgd_may_have_another_lambda_first() -> None:
    loss = losses.ABSGDLoss(-1.0, gamma=1.0, first_lam=0.5, start_epoch=1)
    torch.testing.assert_close(loss(LOGITS, LABELS), torch.tensor(2.371634), atol=2e-6, rtol=0)
    loss.set_epoch(1)
    torch.testing.assert_close(loss(LOGITS, LABELS), torch.tensor(0.646012), atol=2e-6, rtol=0)


def test_absgd_skips_a_batch_without_rows() -> None:
    loss = losses.ABSGDLoss(1.0, gamma=0.5)
    loss(LOGITS, LABELS)
    before = loss.log_u.clone()
    logits = torch.full((2, 3), math.nan, requires_grad=True)
    value = loss(logits, torch.tensor([-100, -100]))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()
    assert torch.equal(loss.log_u, before) and loss.batches == 1


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    base=st.sampled_from(["la", "ldam", "focal", "lpl", "smooth", "margins"]),
    lam=st.sampled_from([-2.0, 0.3, 1.0]),
)
def test_absgd_takes_any_base(seed: int, base: str, lam: float) -> None:
    """γ = a = 1: softmax(ℓ/λ) of whatever row losses the base has, and its gradients."""
    counts = [100, 20, 5, 1, 1]
    made = {
        "la": lambda: losses.LogitAdjustedLoss(counts, reduction="none"),
        "ldam": lambda: losses.LDAMLoss(counts, s=3.0, reduction="none"),
        "focal": lambda: losses.CrossEntropyLoss(phi=Focal(1.5), reduction="none"),
        "lpl": lambda: losses.LPLLoss(counts, reduction="none"),
        "margins": lambda: losses.MbLSLoss(0.5, 1.0, losses.CrossEntropyLoss(reduction="none")),
        "smooth": lambda: losses.CrossEntropyLoss(label_smoothing=0.2, reduction="none"),
    }[base]
    draw = Draw(9, 5, seed=seed)
    logits, target = draw.input().requires_grad_(), draw.ignoring()
    rows = made()(logits, target)
    p = torch.softmax(rows.detach()[target != -100] / lam, 0)
    expected = (p * rows[target != -100]).sum()
    value = losses.ABSGDLoss(lam, made(), gamma=1.0)(logits, target)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    (grad,) = torch.autograd.grad(value, logits)
    (expected_grad,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-13)


def test_absgd_takes_mixed_and_dense_targets() -> None:
    draw = Draw(8, 4, seed=3)
    logits = draw.input()
    for target in (draw.mixed(), draw.dense()):
        ell = losses.CrossEntropyLoss(reduction="none")(logits, target)
        expected = (torch.softmax(ell, 0) * ell).sum()
        torch.testing.assert_close(losses.ABSGDLoss(1.0, gamma=1.0)(logits, target), expected)
    draw = Draw(2, 4, seed=4)
    image, labels = draw.normal(2, 4, 3, 5), torch.randint(4, (2, 3, 5))
    ell = F.cross_entropy(image, labels, reduction="none")
    expected = (torch.softmax(ell.flatten(), 0) * ell.flatten()).sum()
    torch.testing.assert_close(losses.ABSGDLoss(1.0, gamma=1.0)(image, labels), expected)


COUNTS = [60, 30, 10]


def groups_by_hand(logits, target, group, q, step_size, bonus):  # type: ignore[no-untyped-def]
    """Σ_g q_g ℓ_g and the new q, group by group."""
    ell = F.cross_entropy(logits, target, reduction="none")
    mean = [ell[group == g].mean() if (group == g).any() else ell.sum() * 0 for g in range(3)]
    mean = torch.stack(mean)
    q = q * torch.exp(step_size * (mean.detach() + bonus))
    q = q / q.sum()
    return (q * mean).sum(), q


def test_group_dro_is_the_equation(backend: str) -> None:
    """Three batches, the last without group 1; ignored rows belong to nobody."""
    rows = losses.CrossEntropyLoss(reduction="none", backend=backend)
    loss = losses.GroupDROLoss(COUNTS, rows, step_size=0.3, adjustment=2.0)
    bonus = 2.0 / torch.tensor(COUNTS).double().sqrt()
    q = torch.full((3,), 1 / 3, dtype=torch.float64)
    for seed in range(3):
        draw = Draw(12, 4, seed=seed)
        logits, target = draw.input(), draw.labels()
        group = torch.arange(12) % 3 if seed < 2 else torch.arange(12) % 2 * 2
        plain = logits.clone().requires_grad_()
        expected, q = groups_by_hand(plain, target, group, q, 0.3, bonus)
        ours = torch.cat([logits, torch.full((1, 4), math.nan)]).requires_grad_()
        padded, group = F.pad(target, (0, 1), value=-100), F.pad(group, (0, 1), value=77)
        value = loss(ours, padded, group)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss.q, q, rtol=1e-12, atol=0)
        (expected_grad,) = torch.autograd.grad(expected, plain)
        (grad,) = torch.autograd.grad(value, ours)
        torch.testing.assert_close(grad[:-1], expected_grad, rtol=1e-11, atol=1e-15)
        assert (grad[-1] == 0).all()


def test_group_dro_update_by_hand() -> None:
    """Losses log 3 and 2 + log 3 nats above: q ∝ exp(η·ℓ)."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]).double()
    loss = losses.GroupDROLoss([1, 1], step_size=0.01)
    loss(logits, torch.tensor([0, 1]), torch.tensor([0, 1]))
    torch.testing.assert_close(loss.q, torch.tensor([0.5, 0.5]).double())
    loss(LOGITS.double(), LABELS, torch.tensor([0, 1]))
    expected = torch.softmax(0.01 * torch.tensor([0.407606, 2.407606]).double(), 0)
    torch.testing.assert_close(loss.q, expected, atol=1e-8, rtol=0)


def test_group_dro_never_loses_a_group() -> None:
    """In float32 a weight that once was 0 would stay 0."""
    loss = losses.GroupDROLoss([1, 1], step_size=1.0)
    hard = torch.tensor([[0.0, 2000.0], [0.0, 0.0]])
    labels, group = torch.tensor([0, 0]), torch.tensor([0, 1])
    loss(hard, labels, group)
    assert loss.q[1] == 0 and loss.log_q.isfinite().all()
    loss(hard.flip(0), labels, group)
    loss(hard.flip(0), labels, group)
    assert loss.q[1] == 1


def test_group_cvar() -> None:
    """The worst 20 % of the data by running loss: group 2 (10 %) and half of group 1 (30 %)."""
    loss = losses.GroupDROLoss(COUNTS, cvar=0.2, momentum=0.1)
    logits = torch.zeros(3, 3).double()
    logits[1, 0], logits[2, 0] = 1.0, 2.0
    target, group = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])
    value = loss(logits, target, group)
    torch.testing.assert_close(loss.q, torch.tensor([0.0, 0.5, 0.5]).double())
    ell = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(value, (ell[1] + ell[2]) / 2)
    torch.testing.assert_close(loss.running_loss, ell)
    loss(torch.zeros(1, 3).double(), target[:1], torch.tensor([2]))
    new = torch.stack([ell[0], ell[1], 0.9 * ell[2] + 0.1 * math.log(3)])
    torch.testing.assert_close(loss.running_loss, new)
    torch.testing.assert_close(losses.GroupDROLoss(COUNTS, cvar=1.0).q.sum(), torch.tensor(1.0).double())  # fmt: skip


def test_group_dro_evaluates_without_learning() -> None:
    for keywords in ({}, {"cvar": 0.5}):
        loss = losses.GroupDROLoss([1, 1], **keywords)
        group = torch.tensor([0, 1])
        loss(LOGITS, LABELS, group)
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        loss.eval()(LOGITS.flip(1), LABELS, group)
        assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.ABSGDLoss(0.0), "lam.*other than 0, got 0"),
        (lambda: losses.ABSGDLoss(math.nan), "lam.*nan"),
        (lambda: losses.ABSGDLoss(first_lam=0.0), "first_lam.*got 0"),
        (lambda: losses.ABSGDLoss(gamma=0.0), r"gamma.*\(0, 1\]"),
        (lambda: losses.ABSGDLoss(scale=-1.0), "scale.*> 0"),
        (lambda: losses.ABSGDLoss(start_epoch=-1), "start_epoch.*-1"),
        (lambda: losses.ABSGDLoss(base=losses.CrossEntropyLoss()), 'base.*reduction="none"'),
        (lambda: losses.ABSGDLoss(base=torch.nn.Identity()), 'base.*reduction="none"'),
        (lambda: losses.GroupDROLoss([1, 0]), "group_counts.*>= 1, got 0"),
        (lambda: losses.GroupDROLoss([1, 1], cvar=0.0), r"cvar.*\(0, 1\]"),
        (lambda: losses.GroupDROLoss([1, 1], momentum=2.0), r"momentum.*\(0, 1\]"),
        (lambda: losses.GroupDROLoss([1, 1], step_size=-1.0), "step_size.*>= 0"),
    ],
)
def test_bad_settings(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_groups() -> None:
    loss = losses.GroupDROLoss([1, 1])
    with pytest.raises(ValueError, match="group 2 is out of range"):
        loss(LOGITS, LABELS, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="group: expected one per loss, shape .2,.*got .1,"):
        loss(LOGITS, LABELS, torch.tensor([0]))
    with pytest.raises(TypeError, match="group: expected integers, got torch.float32"):
        loss(LOGITS, LABELS, torch.zeros(2))
