"""Losses that are a choice of φ, pruning by truncated GCE, and the binary forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, LABELS, LOGITS, assert_equation, close, cross_entropy

from lpl_fused import losses

NUMBERS = {
    "alpha 0.5": (losses.AlphaLoss, (0.5,), [0.503215, 10.107338]),
    "alpha 1": (losses.AlphaLoss, (1.0,), [0.407606, 2.407606]),
    "alpha 2": (losses.AlphaLoss, (2.0,), [0.368754, 1.399898]),
    "alpha 4": (losses.AlphaLoss, (4.0,), [0.351194, 1.114188]),
    "alpha inf": (losses.AlphaLoss, (math.inf,), [0.334759, 0.909969]),
    "gce": (losses.GCELoss, (), [0.354614, 1.163737]),
    "poly-1": (losses.Poly1Loss, (), [1.077124, 4.227545]),
    "z-loss": (losses.ZLoss, (), [0.408186, 2.408186]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(backend: str, name: str) -> None:
    make, arguments, expected = NUMBERS[name]
    close(make(*arguments, reduction="none", backend=backend)(LOGITS, LABELS), expected)


def test_gradients_by_hand(backend: str) -> None:
    logits = LOGITS[1:].clone().requires_grad_()
    losses.AlphaLoss(2.0, backend=backend)(logits, LABELS[1:]).backward()
    close(logits.grad, [[0.199606, 0.073431, -0.273037]])
    u = LOGITS[1:].double().requires_grad_()
    losses.ZLoss(0.1, backend=backend)(u, LABELS[1:]).backward()
    p, lse = torch.softmax(u.detach(), 1), torch.logsumexp(u.detach(), 1)
    expected = (1 + 0.2 * lse) * p - F.one_hot(LABELS[1:], 3)
    torch.testing.assert_close(u.grad, expected, rtol=1e-10, atol=0)


def test_poly1_against_optax() -> None:
    """optax's own test vector: dense targets."""
    logits = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]])
    target = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]])
    for epsilon, expected in ((0.0, 2.8990), (1.0, 3.7153), (2.0, 4.5317), (-1.0, 2.0827)):
        close(losses.Poly1Loss(epsilon)(logits, target), expected, 1e-4)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.99, 1.0, 1.01, 2.0, math.inf])
def test_alpha_equation(alpha: float) -> None:
    draw = Draw(20, 9, seed=1)
    kappa = 1 - 1 / alpha

    def phi(p: torch.Tensor) -> torch.Tensor:
        return -p.log() if kappa == 0 else (1 - p**kappa) / kappa

    target, soft = draw.labels(), draw.dense()
    assert_equation(
        lambda u: losses.AlphaLoss(alpha, reduction="none")(u, target),
        lambda u: phi(torch.softmax(u, 1).gather(1, target[:, None])[:, 0]),
        draw.input(),
        torch.float64,
    )
    assert_equation(
        lambda u: losses.AlphaLoss(alpha, reduction="none")(u, soft),
        lambda u: (soft * phi(torch.softmax(u, 1))).sum(1),
        draw.input(),
        torch.float64,
    )


def test_alpha_half_is_the_exponential_of_differences() -> None:
    draw = Draw(8, 5, seed=2)
    u, target = draw.input(), draw.labels()
    gaps = torch.exp(u - u.gather(1, target[:, None])).scatter(1, target[:, None], 0.0)
    value = losses.AlphaLoss(0.5, reduction="none")(u, target)
    torch.testing.assert_close(value, gaps.sum(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 8 / 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_t5x_is_a_divergence(dtype: torch.dtype, epsilon: float) -> None:
    draw = Draw(20, 9, seed=8)
    target = draw.labels()
    hot = F.one_hot(target, 9).double()
    t = (1 - epsilon) * hot + epsilon / 8 * (1 - hot)

    def equation(u: torch.Tensor) -> torch.Tensor:
        divergence = torch.special.xlogy(t, t).to(u) - t.to(u) * torch.log_softmax(u, 1)
        return divergence.sum(1) + 0.01 * torch.logsumexp(u, 1) ** 2

    loss = losses.T5XCrossEntropyLoss(epsilon, 0.01, reduction="none")
    assert_equation(lambda u: loss(u, target), equation, draw.input(), dtype)


def test_t5x_costs_nothing_where_it_is_right() -> None:
    logits = torch.log(torch.tensor([[0.9, 0.05, 0.05], [0.9, 0.05, 0.05]])).double()
    loss = losses.T5XCrossEntropyLoss(0.1, ignore_index=1)
    torch.testing.assert_close(loss(logits, torch.tensor([0, 1])).item(), 0.0, atol=1e-7, rtol=0)
    one = losses.T5XCrossEntropyLoss()(logits[:, :1], torch.tensor([0, 0]))
    assert one == 0


def test_truncated_gce_prunes() -> None:
    loss = losses.TruncatedGCELoss(4, reduction="none")
    bound = (1 - 0.5**0.7) / 0.7
    index = torch.tensor([3, 1])
    close(loss(LOGITS, LABELS, index), [0.354614 - bound, 1.163737 - bound])
    loss.update(LOGITS, LABELS, index)
    assert loss.kept.tolist() == [True, False, True, True]
    close(loss(LOGITS, LABELS, index), [0.354614 - bound, 0.0])
    loss.reduction = "mean"  # divides by pruned rows too
    close(loss(LOGITS, LABELS, index), (0.354614 - bound) / 2)
    loss.update(LOGITS.flip(1), torch.tensor([-100, -100]), index)  # says nothing about them
    assert loss.kept.tolist() == [True, False, True, True]
    loss.update(LOGITS.flip(1), LABELS, index)
    assert loss.kept.tolist() == [True, True, True, False]


@pytest.mark.parametrize("q", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_truncated_gce_equation(dtype: torch.dtype, q: float) -> None:
    draw = Draw(20, 9, seed=3)
    target, index = draw.labels(), torch.randperm(20)
    loss = losses.TruncatedGCELoss(20, q, 0.2, reduction="none", ignore_index=0)
    loss.update(draw.input(), target, index)
    kept = loss.kept[index] & (target != 0)
    assert 0 < kept.sum() < (target != 0).sum()

    def equation(u: torch.Tensor) -> torch.Tensor:
        p = torch.exp(-cross_entropy(u, target))
        value = torch.log(0.2 / p) if q == 0 else (0.2**q - p**q) / q
        return torch.where(kept, value, 0.0)

    assert_equation(lambda u: loss(u, target, index), equation, draw.input(), dtype)


def test_truncated_gce_weights_and_padding() -> None:
    draw = Draw(12, 4, seed=4)
    logits, target, weight = draw.input(), draw.ignoring(), 0.5 + draw.uniform(4)
    loss = losses.TruncatedGCELoss(12, weight=weight)
    seen = target != -100
    w = weight[target.clamp(min=0)] * seen
    p = torch.softmax(logits, 1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    expected = (w * (0.5**0.7 - p**0.7) / 0.7).sum() / w.sum()
    garbage = logits.masked_fill(~seen[:, None], math.nan).requires_grad_()
    value = loss(garbage, target, torch.arange(12))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert garbage.grad.isfinite().all()


def test_truncated_gce_survives_save_and_load() -> None:
    draw = Draw(12, 4, seed=5)
    batches = [(draw.input(), draw.labels(), torch.arange(12)) for _ in range(3)]
    loss = losses.TruncatedGCELoss(12)
    loss.update(*batches[0])
    again = losses.TruncatedGCELoss(12)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert torch.equal(again.kept, loss.kept)
    assert not loss.kept.all()
    assert all(torch.equal(loss(*batch), again(*batch)) for batch in batches)


def test_binary_alpha_numbers() -> None:
    """α = 1/2: e^{−z}, α = 1: softplus(−z), α = ∞: σ(−z), z the signed logit."""
    draw = Draw(30, 1, seed=6)
    f, y = draw.input()[:, 0], draw.labels() * 0 + (draw.uniform(30) < 0.5)
    z = f * (2 * y - 1)
    for alpha, expected in ((0.5, torch.exp(-z)), (1.0, F.softplus(-z)), (math.inf, torch.sigmoid(-z))):  # fmt: skip
        value = losses.BinaryAlphaLoss(alpha, reduction="none")(f, y)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_alpha_gradient(dtype: torch.dtype, alpha: float) -> None:
    """d/dz = −σ(z)^κ·(1 − σ(z)); soft targets mix both sides; the two-class softmax agrees."""
    draw = Draw(30, 1, seed=7)
    kappa = 1 - 1 / alpha
    t = draw.uniform(30, 1)
    t[:5], t[5:10] = 0.0, 1.0
    loss = losses.BinaryAlphaLoss(alpha, reduction="sum")
    f = draw.input().to(dtype).requires_grad_()
    (grad,) = torch.autograd.grad(loss(f, t), f)
    p, q = torch.sigmoid(f.detach().double()), torch.sigmoid(-f.detach().double())
    expected = (1 - t) * q**kappa * p - t * p**kappa * q
    torch.testing.assert_close(grad.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-7)
    if dtype == torch.float64:
        two = torch.cat([torch.zeros_like(f), f], 1)
        pair = losses.AlphaLoss(alpha, reduction="sum")(two, torch.cat([1 - t, t], 1))
        torch.testing.assert_close(loss(f, t), pair)


def test_binary_alpha_far_out() -> None:
    """No overflow, no lost gradient: a wrong answer at 60 nats still pulls."""
    f = torch.tensor([60.0, -60.0, 500.0], requires_grad=True)
    value = losses.BinaryAlphaLoss(1.0, reduction="none")(f, torch.tensor([0.0, 1.0, 1.0]))
    close(value, [60.0, 60.0, 0.0])
    (grad,) = torch.autograd.grad(value.sum(), f)
    close(grad, [1.0, -1.0, 0.0])


def test_binary_labels_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: what is no label makes nan."""
    monkeypatch.setattr("lpl_fused.losses.binary.readable", lambda _: False)
    f, t = torch.zeros(3), torch.tensor([0.0, 1.0, 1.5])
    for make in (losses.BinaryAlphaLoss, lambda **k: losses.BinaryVSLoss([5, 1], **k)):
        assert make(reduction="none")(f, t).isnan().tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.AlphaLoss(0.0), r"alpha: .* in \(0, inf\]"),
        (lambda: losses.GCELoss(1.5), "q: .*got 1.5"),
        (lambda: losses.Poly1Loss(math.nan), "finite"),
        (lambda: losses.ZLoss(-1.0), "strength"),
        (lambda: losses.T5XCrossEntropyLoss(0.7)(LOGITS, LABELS), r"label_smoothing.*\[0, 2/3\], got 0.7"),
        (lambda: losses.T5XCrossEntropyLoss()(LOGITS, LOGITS), "T5XCrossEntropyLoss needs class indices"),
        (lambda: losses.TruncatedGCELoss(0), "num_samples.*got 0"),
        (lambda: losses.TruncatedGCELoss(4, k=1.0), "k: .*got 1"),
        (lambda: losses.TruncatedGCELoss(4, label_smoothing=0.1), "label_smoothing"),
        (lambda: losses.TruncatedGCELoss(4)(LOGITS, LABELS, LABELS[:1]), r"index.*shape \(2,\)"),
        (lambda: losses.TruncatedGCELoss(4)(LOGITS, LABELS, torch.tensor([0, 4])), r"index.*\[0, 4\), got 4"),
        (lambda: losses.TruncatedGCELoss(4).update(LOGITS, LABELS, torch.tensor([0, -1])), r"index.*got -1"),
        (lambda: losses.TruncatedGCELoss(4)(LOGITS, LOGITS, LABELS), "TruncatedGCELoss needs class indices"),
        (lambda: losses.BinaryAlphaLoss()(LOGITS, LABELS), r"target.*shape \(2, 3\)"),
        (lambda: losses.BinaryAlphaLoss()(LOGITS, LOGITS), r"target.*\[0, 1\]"),
        (lambda: losses.BinaryAlphaLoss(reduction="avg"), "reduction.*'avg'"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
