"""CDB and the influence-balanced loss: weights by difficulty and by influence."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from torch import Tensor

from lpl_fused import Focal, losses
from lpl_fused.class_stats import difficulty_weights
from lpl_fused.evaluation import accuracy
from lpl_fused.sampling import difficulty_sampling_weights

DIFFICULTY = 1 - torch.tensor([0.9, 0.5, 0.1]).double()
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(1.0, [0.2, 1.0, 1.8]), (1.5, [0.076569, 0.856068, 2.067363]), (0, [1.0, 1.0, 1.0])],
)
def test_difficulty_weights(tau: float, expected: list[float]) -> None:
    weights = difficulty_weights(DIFFICULTY, tau)
    torch.testing.assert_close(weights, torch.tensor(expected).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("tau", "exponent", "at_start", "equal"),
    [("dynamic", 1.99848, 0.537883, 0.990196), ("dynamic-cifar", 0.99972, 0.5, 0.727186)],
)
def test_dynamic_exponents(tau: str, exponent: float, at_start: float, equal: float) -> None:
    """Found back from the weights: log(w_1/w_0)/log(d_1/d_0)."""

    def found(d: Tensor) -> float:
        w = difficulty_weights(d, tau)
        return float(torch.log(w[1] / w[0]) / torch.log(d[1] / d[0]))

    assert found(DIFFICULTY) == pytest.approx(exponent, abs=1e-5)
    # two difficulties apart by nothing that counts
    start, alike = torch.tensor([[1.0, 1 - 1e-9], [0.5, 0.5 - 1e-9]], dtype=torch.float64)
    assert found(start) == pytest.approx(at_start, abs=1e-6)
    assert found(alike) == pytest.approx(equal, abs=1e-5)


def test_perfect_classes() -> None:
    assert difficulty_weights(torch.tensor([0.0, 0.5]), 1.0).tolist() == [0.0, 2.0]
    assert difficulty_weights(torch.zeros(3), "dynamic").tolist() == [1.0, 1.0, 1.0]


def test_cdb_is_the_equation(backend: str) -> None:
    draw = Draw(14, 3, seed=1)
    logits, target = draw.input(), draw.ignoring()
    for normalization, phi in (("rows", "log"), ("weight", "log"), ("rows", Focal(1.0))):
        loss = losses.CDBLoss(3, 1.5, normalization=normalization, phi=phi, backend=backend)
        plain, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        torch.testing.assert_close(
            loss(ours, target), losses.CrossEntropyLoss(phi=phi)(logits, target)
        )
        loss.update(1 - DIFFICULTY)
        w = difficulty_weights(DIFFICULTY, 1.5)
        ell = F.cross_entropy(plain, target, reduction="none")
        if phi != "log":
            ell = (1 - torch.exp(-ell)) * ell
        rows = target != -100
        w = w[target[rows]]
        expected = (w * ell[rows]).sum() / (rows.sum() if normalization == "rows" else w.sum())
        value = loss(ours, target)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        (grad,), (expected_grad,) = (
            torch.autograd.grad(value, ours),
            torch.autograd.grad(expected, plain),
        )
        torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-15)


def test_cdb_takes_the_accuracy_of_the_evaluation() -> None:
    loss = losses.CDBLoss(2, 1.0)
    target = torch.tensor([0, 0, 0, 1])
    held_out = accuracy(torch.tensor([0, 0, 1, 0]), target, torch.tensor([5, 5]))
    loss.update(held_out.per_class, torch.bincount(target))
    torch.testing.assert_close(loss.difficulty, torch.tensor([1 / 3, 1]).double())
    torch.testing.assert_close(loss.weight, torch.tensor([0.5, 1.5]).double())
    missing = accuracy(torch.tensor([0]), torch.tensor([0]), torch.tensor([5, 5])).per_class
    for samples in (None, torch.tensor([1, 0])):
        with pytest.raises(ValueError, match="held-out samples of every class, none of 1"):
            loss.update(missing, samples)
    torch.testing.assert_close(loss.weight, torch.tensor([0.5, 1.5]).double())


def test_cdb_sampling() -> None:
    """A class is drawn with P ∝ d^τ, whatever its size."""
    target = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = difficulty_sampling_weights(target, DIFFICULTY, 1.0)
    mass = torch.zeros(3).double().index_add(0, target, weights)
    torch.testing.assert_close(mass / mass.sum(), DIFFICULTY / DIFFICULTY.sum())
    assert (weights[:6] == weights[0]).all()
    with pytest.raises(ValueError, match="target 3 is out of range"):
        difficulty_sampling_weights(torch.tensor([3]), DIFFICULTY)
    with pytest.raises(TypeError, match="float32"):
        difficulty_sampling_weights(torch.tensor([0.0]), DIFFICULTY)


COUNTS = [100, 10, 1]


def influence_by_hand(logits, target, norm, weight, detach):  # type: ignore[no-untyped-def]
    p = torch.softmax(logits, 1)
    distance = (p - F.one_hot(target, logits.shape[1])).abs().sum(1)
    factor = 1000 / (distance * norm + 1e-3)
    factor = factor.detach() if detach else factor
    return (factor * F.cross_entropy(logits, target, weight, reduction="none")).mean()


@pytest.mark.parametrize("detach", [False, True])
def test_influence_is_the_equation(backend: str, detach: bool) -> None:
    """Values and gradients, of the logits and of the features' norm."""
    draw = Draw(10, 3, seed=2)
    logits, target, norm = draw.input(), draw.labels(), 5 * draw.uniform(10)
    weight = 1 / torch.tensor(COUNTS).double()
    weight = 3 * weight / weight.sum()
    plain = [logits.clone().requires_grad_(), norm.clone().requires_grad_()]
    expected = influence_by_hand(plain[0], target, plain[1], weight, detach)
    ours = [
        torch.cat([logits, torch.full((1, 3), math.nan)]).requires_grad_(),
        torch.cat([norm, torch.tensor([math.nan])]).requires_grad_(),
    ]
    loss = losses.IBLoss(COUNTS, start_epoch=0, detach=detach, backend=backend)
    value = loss(ours[0], F.pad(target, (0, 1), value=-100), ours[1])
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    wanted = 1 if detach else 2
    grads = torch.autograd.grad(value, ours[:wanted])
    for grad, exact in zip(grads, torch.autograd.grad(expected, plain[:wanted]), strict=True):
        torch.testing.assert_close(grad[:-1], exact, rtol=1e-9, atol=1e-12)
        assert (grad[-1] == 0).all()


def test_influence_by_hand() -> None:
    """‖p − e_y‖₁ = 2(1 − p_y): 0.669518 and 1.819938; no class weights, ‖h‖₁ = 2."""
    loss = losses.IBLoss(alpha=1.0, start_epoch=0, reduction="none")
    expected = [0.407606 / (2 * 0.669518 + 1e-3), 2.407606 / (2 * 1.819938 + 1e-3)]
    value = loss(LOGITS, LABELS, torch.tensor([2.0, 2.0]))
    torch.testing.assert_close(value, torch.tensor(expected), atol=2e-6, rtol=0)


def test_influence_starts_late() -> None:
    loss, norm = losses.IBLoss(COUNTS), torch.ones(2)
    expected = F.cross_entropy(LOGITS, LABELS)
    torch.testing.assert_close(loss(LOGITS, LABELS, norm), expected)
    loss.set_epoch(99)
    torch.testing.assert_close(loss(LOGITS, LABELS, norm), expected)
    loss.set_epoch(100)
    assert not torch.isclose(loss(LOGITS, LABELS, norm), expected)
    torch.testing.assert_close(loss.eval()(LOGITS, LABELS, norm), expected)


def test_bad_input() -> None:
    for make, message in (
        (lambda: losses.CDBLoss(0), "num_classes"),
        (lambda: losses.CDBLoss(3, "static"), "tau.*static"),
        (lambda: losses.CDBLoss(3, -1.0), "tau.*-1"),
        (lambda: losses.CDBLoss(3, normalization="batch"), "normalization.*batch"),
        (lambda: losses.CDBLoss(3).update(torch.zeros(2)), r"shape \(3,\), got \(2,\)"),
        (
            lambda: losses.CDBLoss(2).update(torch.tensor([0.5, 1.5])),
            r"accuracy.*\[0, 1\], got 0.5 to 1.5",
        ),
        (lambda: losses.IBLoss(alpha=0.0), "alpha.*> 0"),
        (lambda: losses.IBLoss(phi=Focal(2.0)), "compose.*phi"),
        (lambda: losses.IBLoss([1, -1]), "cls_num_list.*0 or >= 1"),
        (lambda: losses.IBLoss()(LOGITS, torch.softmax(LOGITS, 1), torch.ones(2)), "indices"),
        (lambda: losses.IBLoss()(LOGITS, LABELS, torch.ones(3)), "feature_norm.*(2,).*(3,)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
