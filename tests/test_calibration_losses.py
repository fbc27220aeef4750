"""CALS, MbLS and label-aware smoothing: losses for calibrated probabilities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from torch import Tensor

from lpl_fused import losses
from lpl_fused.class_stats import label_aware_smoothing

ROW, FIRST = torch.tensor([[2.0, 1.0, 0.0]]).double(), torch.tensor([0])
CE = 0.407606


def penalty_of(loss: torch.nn.Module, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The second term alone, and its gradient."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, target) - loss.base(logits, target)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_cals_numbers() -> None:
    loss = losses.CALSLoss(3, margin=1.0)
    torch.testing.assert_close(loss.excess(ROW), torch.tensor([[-1.0, 0.0, 1.0]]).double())
    value, grad = penalty_of(loss, ROW, FIRST)
    assert float(value) == pytest.approx(0.166667, abs=1e-6)
    torch.testing.assert_close(grad, torch.tensor([[0.333334, 0.0, -0.333334]]).double(), atol=1e-6, rtol=0)  # fmt: skip
    loss.multiplier.fill_(0.5)
    torch.testing.assert_close(loss.penalty(loss.excess(ROW)), torch.tensor([[-0.125, 0.0, 1.0]]).double())  # fmt: skip
    assert float(penalty_of(loss, ROW, FIRST)[0]) == pytest.approx(0.291667, abs=1e-6)
    slope = torch.tensor([0.0, 0.5, 1.5]).double()  # −P'/(m·C), its sum back on the largest logit
    expected = -slope / 3
    expected[0] += slope.sum() / 3
    torch.testing.assert_close(penalty_of(loss, ROW, FIRST)[1], expected[None])


def test_mbls_numbers(backend: str) -> None:
    base = losses.CrossEntropyLoss(backend=backend)
    loss = losses.MbLSLoss(alpha=0.1, margin=1.0, base=base)
    assert float(loss(ROW, FIRST)) == pytest.approx(0.440939, abs=1e-6)
    _, grad = penalty_of(loss, ROW, FIRST)
    torch.testing.assert_close(grad, torch.tensor([[0.1 / 3, 0.0, -0.1 / 3]]).double())


def penalty_by_hand(kind: str, h: float, lam: float, rho: float) -> float:
    if kind == "phr":
        return (max(0.0, lam + rho * h) ** 2 - lam**2) / (2 * rho)
    if h < 0:
        return lam * h / (1 - rho * h)
    cubic = rho**2 * h**3 / 6 if kind == "p2" else 0.0
    return lam * h + lam * rho * h**2 + cubic


@pytest.mark.parametrize("kind", ["phr", "p2", "p3"])
@pytest.mark.parametrize("normalize", [True, False])
def test_cals_is_the_equation(kind: str, normalize: bool) -> None:
    """Every entry by hand, and the closed-form gradient with the slope by differences."""
    draw = Draw(5, 4, seed=1)
    logits, target = draw.input(), draw.labels()
    loss = losses.CALSLoss(4, margin=1.5, penalty=kind, normalize=normalize)
    loss.multiplier.copy_(0.2 + draw.uniform(4))
    loss.rho.copy_(1 + draw.uniform(4))
    h = logits.max(1, keepdim=True).values - logits - 1.5
    h = h / 1.5 if normalize else h
    lam, rho = loss.multiplier.tolist(), loss.rho.tolist()
    by_hand = torch.tensor([[penalty_by_hand(kind, float(h[i, j]), lam[j], rho[j]) for j in range(4)] for i in range(5)]).double()  # fmt: skip
    value, grad = penalty_of(loss, logits, target)
    torch.testing.assert_close(value, by_hand.mean(), rtol=1e-6, atol=1e-7)
    step = 1e-6
    slope = torch.tensor([[(penalty_by_hand(kind, float(h[i, j]) + step, lam[j], rho[j]) - penalty_by_hand(kind, float(h[i, j]) - step, lam[j], rho[j])) / (2 * step) for j in range(4)] for i in range(5)], dtype=torch.float64)  # fmt: skip
    share = slope / (20 * (1.5 if normalize else 1))
    expected = -share
    expected[torch.arange(5), logits.argmax(1)] += share.sum(1)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-9)
    # what moves the multipliers is that slope: its mean over the rows
    loss.observe(logits)
    loss.update()
    torch.testing.assert_close(loss.multiplier, slope.clamp(1e-6).mean(0), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [lambda b: losses.MbLSLoss(0.5, 1.0, b), lambda b: losses.CALSLoss(4, b, margin=1.0)])  # fmt: skip
def test_penalty_reductions_and_shapes(make) -> None:  # type: ignore[no-untyped-def]
    """Ignored rows, whatever stands in them, count nothing; pixels are rows."""
    draw = Draw(7, 4, seed=2)
    logits, target = draw.input(), draw.labels()
    padded = torch.cat([logits, torch.full((2, 4), math.nan)])
    labels = F.pad(target, (0, 2), value=-100)
    rows = make(losses.CrossEntropyLoss(reduction="none"))(logits, target)
    expected = {"none": F.pad(rows, (0, 2)), "sum": rows.sum(), "mean": rows.mean()}
    for reduction, value in expected.items():
        loss = make(losses.CrossEntropyLoss(reduction=reduction))
        ours = padded.clone().requires_grad_()
        torch.testing.assert_close(loss(ours, labels), value)
        (grad,) = torch.autograd.grad(loss(ours, labels).sum(), ours)
        assert grad.isfinite().all() and (grad[7:] == 0).all()
    loss = make(losses.CrossEntropyLoss(reduction="none"))
    image = logits[:6].reshape(2, 3, 4).movedim(2, 1)
    torch.testing.assert_close(loss(image, target[:6].reshape(2, 3)), rows[:6].reshape(2, 3))
    torch.testing.assert_close(loss(logits[0], target[0]), rows[0])


class Unfused(losses.CrossEntropyLoss):
    """Of which the penalty knows nothing but that it is called."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input, target)


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("kind", ["relu", "phr", "p2", "p3"])
def test_fused_equals_unfused(backend: str, kind: str, reduction: str) -> None:
    """Class weights do not touch the penalty; nor does what stands in ignored rows."""
    draw = Draw(9, 5, seed=4)
    logits = torch.cat([draw.input().round(), torch.full((1, 5), math.nan)])  # ties
    target = F.pad(draw.ignoring(), (0, 1), value=-100)
    results = []
    for make in (losses.CrossEntropyLoss, Unfused):
        base = make(0.5 + torch.arange(5).double(), reduction=reduction, backend=backend)
        loss: torch.nn.Module = losses.MbLSLoss(0.5, 1.0, base)
        if kind != "relu":
            loss = losses.CALSLoss(5, base, margin=1.0, penalty=kind)
            loss.multiplier.copy_(torch.linspace(0.1, 0.6, 5))
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target)
        upstream = torch.linspace(0.5, 2.0, value.numel()).double().reshape(value.shape)
        results.append((value.detach(), torch.autograd.grad(value, leaf, upstream)[0]))
    for fused, unfused in zip(*results, strict=True):
        torch.testing.assert_close(fused, unfused, rtol=1e-10, atol=1e-13)


def test_penalty_beside_another_loss() -> None:
    """The penalty is on the raw logits, whatever the base makes of them; any target form."""
    counts, draw = [50, 20, 5, 1], Draw(6, 4, seed=3)
    logits = draw.input()
    bases = (
        losses.LogitAdjustedLoss(counts),
        losses.LDAMLoss(counts),
        losses.LPLLoss(counts),
    )
    for base in bases:
        target = draw.labels()
        plain = losses.MbLSLoss(0.5, 1.0)
        expected = base(logits, target) + plain(logits, target) - F.cross_entropy(logits, target)
        torch.testing.assert_close(losses.MbLSLoss(0.5, 1.0, base)(logits, target), expected)
    for target in (draw.mixed(), draw.dense()):
        expected = plain(logits, draw.labels())
        value = plain(logits, target) - losses.CrossEntropyLoss()(logits, target)
        excess = (logits.amax(1, keepdim=True) - logits - 1.0).clamp(min=0)
        torch.testing.assert_close(value, 0.5 * excess.mean())


def test_multipliers_over_epochs() -> None:
    """λ ← mean P' within its bounds; ρ grows where the violation does not fall by a tenth."""
    loss = losses.CALSLoss(3, margin=1.0, rho_every=2)
    assert loss.multiplier.tolist() == [1e-6] * 3 and loss.rho.tolist() == [1.0] * 3
    loss.observe(ROW[:, :, None])
    loss.observe(torch.cat([ROW, ROW]))
    loss.update()  # h = [−1, 0, 1] in all three rows, P' = max(0, 1e-6 + h)
    torch.testing.assert_close(loss.multiplier, torch.tensor([1e-6, 1e-6, 1 + 1e-6]).double())
    torch.testing.assert_close(loss.last_violation, torch.tensor([-1.0, 0.0, 1.0]).double())
    assert loss.rho.tolist() == [1.0] * 3
    loss.observe(ROW)
    loss.update()  # every second epoch: 1 > 0.9·1, but not 0 > 0.9·0 nor −1 > 0
    torch.testing.assert_close(loss.multiplier, torch.tensor([1e-6, 1e-6, 2 + 1e-6]).double())
    assert loss.rho.tolist() == [1.0, 1.0, 1.2]
    loss.observe(ROW)
    loss.update()
    loss.observe(0.9 * ROW)  # h_2 = 0.8 < 0.9, h_1 = −0.1
    loss.update()
    assert loss.rho.tolist() == [1.0, 1.0, 1.2]
    for _ in range(40):
        loss.observe(ROW)
        loss.update()
    assert loss.rho.tolist() == [1.0, 1.0, 10.0]
    with pytest.raises(RuntimeError, match="observe"):
        loss.update()


def test_rho_may_rest() -> None:
    loss = losses.CALSLoss(3, margin=1.0, rho_every=0)
    for _ in range(3):
        loss.observe(ROW)
        loss.update()
    assert loss.rho.tolist() == [1.0] * 3


COUNTS = [100, 10, 1]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("concave", [0.3, 0.042694, 0.0]),
        ("linear", [0.3, 0.3 * 9 / 99, 0.0]),
        ("convex", [0.3, 0.3 * (1 + math.sin(1.5 * math.pi + 9 * math.pi / 198)), 0.0]),
        ("exp", [0.3, 0.3 * (9 / 99) ** 2, 0.0]),
    ],
)
def test_smoothing_by_class(shape: str, expected: list[float]) -> None:
    found = label_aware_smoothing(COUNTS, shape=shape, power=2.0)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=2e-6, rtol=0)
    raised = label_aware_smoothing(COUNTS, 0.4, 0.1, shape=shape, power=2.0)
    torch.testing.assert_close(raised, 0.1 + found)
    assert label_aware_smoothing([5, 5], 0.4, 0.1).tolist() == [0.4, 0.4]


def test_label_aware_smoothing_is_the_equation(backend: str) -> None:
    draw = Draw(8, 3, seed=4)
    logits, target = draw.input(), draw.labels()
    loss = losses.LabelAwareSmoothingLoss(COUNTS, 0.4, 0.1, backend=backend)
    plain, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    epsilon = label_aware_smoothing(COUNTS, 0.4, 0.1)[target]
    log_p = F.log_softmax(plain, 1)
    own = -log_p.gather(1, target[:, None])[:, 0]
    expected = ((1 - epsilon) * own - epsilon * log_p.mean(1)).mean()
    value = loss(ours, target)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(v, x)[0] for v, x in ((value, ours), (expected, plain))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)
    with pytest.raises(ValueError, match="label_smoothing"):
        loss(logits, torch.softmax(logits, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.MbLSLoss(-0.1), "alpha.*>= 0"),
        (lambda: losses.MbLSLoss(margin=0.0), "margin.*> 0"),
        (lambda: losses.MbLSLoss(base=torch.nn.Identity()), "base.*reduction"),
        (lambda: losses.CALSLoss(3, penalty="relu"), "penalty.*phr.*relu"),
        (lambda: losses.CALSLoss(3, multiplier_bounds=(0.0, 1.0)), "multiplier_bounds"),
        (lambda: losses.CALSLoss(3, rho_bounds=(2.0, 1.0)), "rho_bounds"),
        (lambda: losses.CALSLoss(0), "num_classes"),
        (lambda: losses.CALSLoss(4)(ROW, FIRST), "expected 4 classes, got 3"),
        (lambda: losses.CALSLoss(4).observe(ROW), "expected 4 classes, got 3"),
        (lambda: losses.LabelAwareSmoothingLoss(COUNTS, 1.5), "head.*1.5"),
        (lambda: losses.LabelAwareSmoothingLoss(COUNTS, shape="cubic"), "shape.*cubic"),
        (lambda: losses.LabelAwareSmoothingLoss(COUNTS, power=0.0), "power"),
    ],
)
def test_bad_settings(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()
