"""Bayias with UniMix, and LADE: losses by the prior of training and test."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw

from lpl_fused import MixedTarget, losses
from lpl_fused import functional as LF
from lpl_fused.sampling import UniMix

COUNTS = [100, 10, 1]
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_bayias_numbers(backend: str) -> None:
    loss = losses.BayiasLoss(COUNTS, reduction="none", backend=backend)
    expected = torch.tensor([0.037432, 6.642602])
    torch.testing.assert_close(loss(LOGITS, LABELS), expected, atol=2e-6, rtol=2e-6)


def test_bayias_is_the_equation(backend: str) -> None:
    """With a test prior, on a mixed target; gradient softmax(z) − λe₁ − (1 − λ)e₂."""
    draw = Draw(9, 3, seed=1)
    logits, target, prior = draw.input(), draw.mixed(), [2.0, 1.0, 5.0]
    loss = losses.BayiasLoss(COUNTS, prior, reduction="sum", backend=backend)
    z = logits + torch.log(torch.tensor(COUNTS).double() / 111) - torch.log(torch.tensor(prior).double() / 8)  # fmt: skip
    share = target.lam[:, None]
    t = share * F.one_hot(target.target, 3) + (1 - share) * F.one_hot(target.other, 3)
    ours = logits.clone().requires_grad_()
    value = loss(ours, target)
    torch.testing.assert_close(value, -(t * F.log_softmax(z, 1)).sum(), rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(value, ours)
    torch.testing.assert_close(grad, torch.softmax(z, 1) - t, rtol=1e-10, atol=1e-13)


def test_unimix_pair(backend: str) -> None:
    target = MixedTarget(LABELS[:1], LABELS[1:], 0.7)
    value = LF.cross_entropy(LOGITS[:1], target, backend=backend)
    torch.testing.assert_close(value, torch.tensor(1.007606), atol=2e-6, rtol=0)


def test_unimix_shares_prefer_the_rare() -> None:
    """With α → ∞ Beta is ½, so that λ* can be read off: n_j/(n_i + n_j)."""
    torch.manual_seed(0)
    target = torch.arange(64) % 2 * 2  # classes of 100 samples and of 1
    x = torch.randn(64, 3, 2, dtype=torch.float64)
    mixed, (own, other, lam) = UniMix(COUNTS, alpha=1e12, tau=0.0)(x, target)
    assert torch.equal(own, target)
    expected = torch.tensor([[0.5, 1 / 101], [100 / 101, 0.5]])[own // 2, other // 2]
    distance = (lam - 0.5 - expected + 0.5) % 1 - 0.5  # on the circle: 1 is next to 0
    torch.testing.assert_close(distance, torch.zeros(64).double(), atol=1e-5, rtol=0)
    # each result lies on the line to a sample of the partner's class
    share = lam[:, None, None]
    partner = (mixed[:, None] - share[:, None] * x[:, None] - (1 - share[:, None]) * x[None]).abs().amax((2, 3))  # fmt: skip
    assert (partner.min(1).values < 1e-9).all()
    assert torch.equal(target[partner.argmin(1)], other)


def test_unimix_partners() -> None:
    """One of each class, τ = −0.5: P = n^τ/Σ = .0706, .2233, .7061."""
    torch.manual_seed(1)
    drawn = torch.zeros(3)
    mix = UniMix(COUNTS, tau=-0.5)
    for _ in range(4000):
        drawn += torch.bincount(mix.draw(torch.arange(3))[0], minlength=3)
    share = drawn / drawn.sum()  # 12,000 draws: standard error below 0.005
    torch.testing.assert_close(share, torch.tensor([0.0706, 0.2233, 0.7061]), atol=0.015, rtol=0)


def test_unimix_without_preferences_is_mixup() -> None:
    """α = 1, τ = 0: λ uniform, whatever the classes; partners alike."""
    torch.manual_seed(2)
    target = torch.arange(6000) % 3
    _, mixed = UniMix(COUNTS, alpha=1.0, tau=0.0)(torch.zeros(6000, 1), target)
    for own in range(3):
        lam = mixed.lam[target == own].double().sort().values
        worst = (lam - (torch.arange(2000) + 0.5) / 2000).abs().max()
        assert worst < 1.95 / math.sqrt(2000)  # Kolmogorov–Smirnov, 0.1 %
    assert torch.bincount(mixed.other).min() > 1800


def test_unimix_of_no_row_and_of_any_tau() -> None:
    mixed, target = UniMix(COUNTS)(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert mixed.shape == (0, 3) and all(part.shape == (0,) for part in target)
    labels = torch.tensor([0, 0, 1])  # of the more frequent classes alone
    for tau in (1000.0, -1000.0):  # no n^τ is a number
        chosen = UniMix([1000, 2, 1], tau=tau)(torch.zeros(3, 1), labels)[1].other
        assert (chosen == (0 if tau > 0 else 1)).all()


def test_unimix_trains_with_bayias() -> None:
    x = torch.randn(8, 3, dtype=torch.bfloat16, requires_grad=True)
    mixed, target = UniMix(COUNTS).half()(x, torch.arange(8) % 3)  # its counts stay float64
    assert mixed.dtype == torch.bfloat16 and target.lam.dtype == torch.float32
    assert UniMix(COUNTS)(x.double(), torch.arange(8) % 3)[1].lam.dtype == torch.float64
    losses.BayiasLoss(COUNTS)(mixed, target).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_bad_unimix() -> None:
    x, y, mix = torch.zeros(2, 3), torch.tensor([0, 1]), UniMix(COUNTS)
    for call, message in (
        (lambda: UniMix(COUNTS, alpha=-1.0), "alpha"),
        (lambda: UniMix(COUNTS, tau=math.inf), "tau"),
        (lambda: UniMix([1, -1, 1]), "cls_num_list.*0 or >= 1"),
        (lambda: mix(x, y[:1]), "one class per sample, 2"),
        (lambda: mix(x, y + 2), "target 3 is out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="input.*int64"):
        mix(y, y)
    with pytest.raises(TypeError, match="target.*float32"):
        mix(x, y.float())


def test_lade_numbers() -> None:
    """B = C = 2, π = [.75, .25]: the regulariser and its gradient."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    value = losses.LADELoss([3, 1]).lader(logits, torch.tensor([0, 1]))
    (grad,) = torch.autograd.grad(value, logits)
    assert value.item() == pytest.approx(-0.356928, abs=1e-6)
    expected = torch.tensor([[-0.0685, 0.0849], [0.2507, -0.0192]]).double()
    torch.testing.assert_close(grad, expected, atol=5e-5, rtol=0)


def lade_by_hand(logits, target, pi, weight, regularizer):  # type: ignore[no-untyped-def]
    """Class by class, as the equation is written."""
    total, size = logits.sum() * 0, len(target)
    for c, prior in enumerate(pi.tolist()):
        own = logits[target == c, c]
        mean = own.mean() if len(own) else total * 0
        s = torch.logsumexp(logits[:, c] - math.log(prior) + math.log(1 / len(pi)), 0) - math.log(size)  # fmt: skip
        total = total - prior * (mean - s - regularizer * s**2)
    return F.cross_entropy(logits + torch.log(pi + 1e-9), target) + weight * total


def test_lade_is_the_equation(backend: str) -> None:
    """Class 2 is absent; ignored rows, nan included, count nothing."""
    draw = Draw(7, 4, seed=2)
    logits, target = draw.input(), torch.tensor([0, 1, 3, 0, 0, 1, 3])
    counts = [50, 30, 15, 5]
    plain = logits.clone().requires_grad_()
    expected = lade_by_hand(plain, target, torch.tensor(counts).double() / 100, 0.05, 0.5)
    (exact,) = torch.autograd.grad(expected, plain)
    loss = losses.LADELoss(counts, 0.05, 0.5, backend=backend)
    ours = torch.cat([logits, torch.full((2, 4), math.nan)]).requires_grad_()
    value = loss(ours, F.pad(target, (0, 2), value=-100))
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=0)
    (grad,) = torch.autograd.grad(value, ours)
    torch.testing.assert_close(grad[:7], exact, rtol=1e-9, atol=1e-12)
    assert (grad[7:] == 0).all()
    image = logits[:6].reshape(2, 3, 4).movedim(2, 1)
    torch.testing.assert_close(loss(image, target[:6].reshape(2, 3)), loss(logits[:6], target[:6]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.BayiasLoss([1, -1]), "cls_num_list.*0 or >= 1"),
        (lambda: losses.BayiasLoss(COUNTS, [1, 1]), "test_prior: expected 3 numbers > 0"),
        (lambda: losses.BayiasLoss(COUNTS, [1, 1, 0]), "test_prior: expected 3 numbers > 0"),
        (lambda: losses.LADELoss(COUNTS, reduction="none"), 'reduction: expected "mean"'),
        (lambda: losses.LADELoss(COUNTS, -1.0), "lader_weight"),
        (lambda: losses.LADELoss(COUNTS, 0.1, math.inf), "regularizer"),
        (
            lambda: losses.LADELoss(COUNTS)(LOGITS, (LABELS, LABELS, 0.5)),
            "LADELoss needs class indices",
        ),
    ],
)
def test_bad_settings(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
