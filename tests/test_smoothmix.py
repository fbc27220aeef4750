"""SmoothMix: the loss with its gradient into the soft target, the attack, certification."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, LABELS, LOGITS, close
from torch import nn

from lpl_fused import certification, losses


def written(clean, mixed, lam, target, eta):  # type: ignore[no-untyped-def]
    """The equation as it stands in the docstring."""
    m, n, classes = clean.shape
    average = torch.softmax(clean, 2).mean(0)
    t = (1 - lam[:, None]) * average + lam[:, None] / classes
    divergence = (t * (t.log() - torch.log_softmax(mixed, 2))).sum(2)  # (m, N)
    kept = (average.argmax(1) == target).to(clean)
    plain = F.cross_entropy(clean.reshape(m * n, classes), target.repeat(m))
    return plain + eta * (kept * divergence).sum() / (m * n)


def test_divergence_by_hand() -> None:
    clean, mixed = LOGITS[None, :1], torch.tensor([[[1.0, 1.0, 0.0]]], requires_grad=True)
    lam = torch.tensor([0.25])
    loss = losses.SmoothMixLoss(1.0)
    value = loss(clean, mixed, lam, LABELS[:1])
    close(value - F.cross_entropy(LOGITS[:1], LABELS[:1]), 0.060074)
    value.backward()
    close(mixed.grad[0], [[-0.1599, 0.1554, 0.0045]], 5e-5)
    wrong = loss(clean, mixed, lam, torch.tensor([1]))  # argmax F̂ is class 0
    close(wrong, F.cross_entropy(LOGITS[:1], torch.tensor([1])))


def parts(seed: int, copies: int = 3, n: int = 10, classes: int = 5):  # type: ignore[no-untyped-def]
    draw = Draw(n, classes, seed)
    lam = draw.uniform(n) / 2
    lam[0] = 0.0
    clean = draw.normal(copies, n, classes)
    target = torch.where(draw.uniform(n) < 0.6, clean.mean(0).argmax(1), draw.labels())
    return clean, draw.normal(copies, n, classes), lam, target


@pytest.mark.parametrize("detach", [False, True])
def test_gradients(backend: str, detach: bool) -> None:
    """Into the mixed logits, and through the target into the clean ones unless it is detached."""
    clean, mixed, lam, target = parts(1)
    clean.requires_grad_()
    mixed.requires_grad_()
    loss = losses.SmoothMixLoss(2.0, detach_target=detach, backend=backend)
    value = loss(clean, mixed, lam, target)
    grads = torch.autograd.grad(value, (clean, mixed))
    truth = written(clean, mixed, lam, target, 2.0)
    expected = torch.autograd.grad(truth, (clean, mixed))
    through = expected[0]
    if detach:
        plain = F.cross_entropy(clean.reshape(30, 5), target.repeat(3))
        (through,) = torch.autograd.grad(plain, clean)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if backend != "triton" else {"rtol": 1e-5, "atol": 1e-6}  # fmt: skip
    torch.testing.assert_close(value, truth, **tolerance)
    torch.testing.assert_close(grads[0], through, **tolerance)
    torch.testing.assert_close(grads[1], expected[1], **tolerance)
    assert (expected[0] - through).abs().max() > 1e-3 or not detach


def test_gradient_through_the_target_by_hand() -> None:
    """Copy k: ((1 − λ)/m)·q^k ⊙ (G − ⟨q^k, G⟩), G = Σ_k log t − log p^k, beside that of the CE."""
    clean, mixed, lam, target = parts(2)
    clean.requires_grad_()
    (grad,) = torch.autograd.grad(losses.SmoothMixLoss(1.0)(clean, mixed, lam, target), clean)
    with torch.no_grad():
        q, log_p = torch.softmax(clean, 2), torch.log_softmax(mixed, 2)
        t = (1 - lam[:, None]) * q.mean(0) + lam[:, None] / 5
        kept = (q.mean(0).argmax(1) == target).double()
        slope = (t.log() - log_p).sum(0) * kept[:, None] / 30
        inner = (q * slope).sum(2, keepdim=True)
        through = (1 - lam[:, None]) / 3 * q * (slope - inner)
        expected = (q - F.one_hot(target, 5)) / 30 + through
    torch.testing.assert_close(grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, detach: bool) -> None:
    clean, mixed, lam, target = parts(3)
    u, v = (x.to(dtype).requires_grad_() for x in (clean, mixed))
    value = losses.SmoothMixLoss(1.0, detach_target=detach)(u, v, lam, target)
    grads = torch.autograd.grad(value, (u, v))
    assert [grad.dtype for grad in grads] == [dtype, dtype]
    exact = v.detach().double().requires_grad_()
    truth = written(u.detach().double(), exact, lam.to(value.dtype).double(), target, 1.0)
    (expected,) = torch.autograd.grad(truth, exact)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        value.double(), truth, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0
    )
    scale = float(expected.abs().max())
    torch.testing.assert_close(grads[1].double(), expected, rtol=eps, atol=8 * eps * scale)


def test_saturated_targets_stay_finite() -> None:
    """λ = 0 and F̂ one-hot: t·log t at 0."""
    clean = torch.tensor([[[300.0, 0.0, -300.0]]], requires_grad=True)
    mixed = torch.tensor([[[0.0, 1.0, 2.0]]], requires_grad=True)
    value = losses.SmoothMixLoss()(clean, mixed, torch.zeros(1), torch.tensor([0]))
    value.backward()
    assert value.isfinite()
    assert clean.grad.isfinite().all()
    assert mixed.grad.isfinite().all()


class Linear(nn.Module):
    """Images to logits, with a layer that tells training from evaluation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.flat = nn.BatchNorm2d(1), nn.Flatten()
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.flat(self.norm(x)))


def smoothed_loss(model, x, y, noises):  # type: ignore[no-untyped-def]
    p = torch.stack([torch.softmax(model(x + noise), 1) for noise in noises]).mean(0)
    return -torch.log(p.gather(1, y[:, None])[:, 0])


def test_attack_raises_the_smoothed_loss_and_leaves_the_model() -> None:
    model = Linear()
    model.norm.eval()  # a layer that its owner froze stays frozen
    model.last.weight.requires_grad_(False)
    running = model.norm.running_mean.clone()
    x, y = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    noises = [0.25 * torch.randn_like(x) for _ in range(2)]
    clean, adversary = losses.smoothmix_attack(model, x, y, noises, steps=3, step_size=0.3)
    assert torch.equal(clean, x)
    assert not adversary.requires_grad
    assert adversary.min() >= 0
    assert adversary.max() <= 1
    assert model.training
    assert not model.norm.training
    assert torch.equal(model.norm.running_mean, running)
    assert all(p.grad is None for p in model.parameters())
    model.eval()
    assert (smoothed_loss(model, adversary, y, noises) > smoothed_loss(model, x, y, noises)).all()


def test_attack_steps_by_hand_and_bounds() -> None:
    """One step is α long along the gradient; balls around the input hold."""
    model = Linear().eval()
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 2])
    noises = [0.1 * torch.randn_like(x)]
    moving = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(smoothed_loss(model, moving, y, noises).sum(), moving)
    first = x + 0.2 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    _, adversary = losses.smoothmix_attack(model, x, y, noises, steps=1, step_size=0.2)
    torch.testing.assert_close(adversary, first)
    one_step, far = losses.smoothmix_attack(
        model, x, y, noises, steps=4, step_size=0.2, mix_step=1, max_norm=0.3, mix_norm=0.05
    )
    distance = (far - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(distance, torch.full((2,), 0.3))
    torch.testing.assert_close(one_step, x + (first - x) * (0.05 / 0.2))
    free, _ = losses.smoothmix_attack(model, x, y, noises, steps=2, step_size=0.2, mix_step=1)
    torch.testing.assert_close(free, first)


def test_inputs_are_mixed_by_sample() -> None:
    clean, adversary = torch.zeros(500, 1, 2, 2), torch.ones(500, 1, 2, 2)
    mixed, lam = losses.smoothmix_inputs(clean, adversary)
    torch.testing.assert_close(mixed, lam[:, None, None, None].expand(500, 1, 2, 2))
    assert lam.min() >= 0
    assert lam.max() <= 0.5
    assert lam.max() > 0.45


def test_nan_votes_for_nobody() -> None:
    """Of a model that fails everywhere, or on some draws, or for some classes."""
    x = torch.zeros(3)

    def model(failing: float) -> certification.SmoothedClassifier:
        def logits(noisy: torch.Tensor) -> torch.Tensor:
            found = torch.tensor([0.0, 1.0]).repeat(len(noisy), 1)
            found[: round(failing * len(noisy)), 1] = math.nan
            return found

        return certification.SmoothedClassifier(logits, 0.5, 2, batch_size=100)

    assert model(1.0).votes(x, 250).tolist() == [0, 0]
    assert model(1.0).certify(x, 100, 1000) == (certification.ABSTAIN, 0.0)
    assert model(1.0).predict(x, 1000) == certification.ABSTAIN
    assert model(0.3).votes(x, 200).tolist() == [0, 140]
    label, radius = model(0.3).certify(x, 100, 1000)
    assert label == 1
    close(torch.tensor(radius), certification.certified(700, 1000, 0.5), 1e-12)
    assert model(0.6).certify(x, 100, 1000).label == certification.ABSTAIN


def test_certificates() -> None:
    for votes, total, sigma, p, radius in (
        (100_000, 100_000, 0.5, 0.999931, 1.905728),
        (99_000, 100_000, 0.25, 0.988989, 0.572500),
        (990, 1000, 0.25, 0.976036, 0.494502),
    ):
        close(torch.tensor(certification.clopper_pearson_lower(votes, total, 0.001)), p, 1e-6)
        close(torch.tensor(certification.certified(votes, total, sigma)), radius, 2e-6)
    assert certification.certified(50_100, 100_000, 0.5) is None
    assert certification.certified(0, 10, 0.5) is None


@pytest.mark.parametrize("trials", [1, 7, 1000, 100_000])
def test_binomial_numbers_against_scipy(trials: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes in sorted({1, trials // 3 + 1, trials // 2 + 1, trials - 1, trials} - {0}):
        for p in (0.01, 0.3, 0.5, 0.9):
            found = certification.binomial_tail(successes, trials, p)
            assert found == pytest.approx(
                stats.binom.sf(successes - 1, trials, p), rel=1e-7, abs=1e-14
            )
        for alpha in (0.001, 0.05):
            found = certification.clopper_pearson_lower(successes, trials, alpha)
            exact = stats.beta.ppf(alpha, successes, trials - successes + 1)
            assert found == pytest.approx(exact, rel=1e-9)


def test_votes_and_abstention() -> None:
    """Two half-lines: far from the border the class is certain, on it nothing can be said."""

    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([-x[:, 0], x[:, 0]], 1)

    smoothed = certification.SmoothedClassifier(
        lambda x: F.pad(model(x), (0, 1), value=-9.0), 0.5, 3, 300, torch.Generator().manual_seed(0)
    )
    counts = smoothed.votes(torch.zeros(1), 1000)
    assert counts.sum() == 1000
    assert counts[2] == 0
    label, radius = smoothed.certify(torch.tensor([1.0]), n=2000)
    assert label == 1
    assert 0.8 < radius <= 1.0  # the border is 1 away
    assert smoothed.predict(torch.tensor([-1.0]), 2000) == 0
    border = torch.zeros(1)
    assert smoothed.certify(border, n=2000) == (certification.ABSTAIN, 0.0)
    assert smoothed.predict(border, 2000) == certification.ABSTAIN
    assert certification.voted(torch.tensor([60, 40]), 0.05) == certification.ABSTAIN
    assert certification.voted(torch.tensor([39, 61]), 0.05) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.SmoothMixLoss(-1.0), "eta.*got -1"),
        (lambda: losses.SmoothMixLoss()(LOGITS, LOGITS, LABELS, LABELS), r"\(m, N, C\)"),
        (lambda: losses.SmoothMixLoss()(LOGITS[None], LOGITS[None], torch.ones(3), LABELS), r"lam, target.*\(2,\)"),
        (lambda: losses.SmoothMixLoss()(LOGITS[None], LOGITS[None], torch.tensor([0.2, 1.1]), LABELS), r"lam: expected a number in \[0, 1\], got 1.1"),
        (lambda: losses.smoothmix_attack(None, LOGITS, LABELS, [LOGITS]), r"\[0, 1\]"),
        (lambda: losses.smoothmix_attack(None, LOGITS / 2, LABELS, [LOGITS], mix_step=4), "mix_step"),
        (lambda: losses.smoothmix_attack(None, LOGITS / 2, LABELS, []), "noises"),
        (lambda: certification.certified(3, 2, 0.5), r"votes: expected an int in \[0, 2\], got 3"),
        (lambda: certification.SmoothedClassifier(abs, 0.0, 2), "sigma.*got 0"),
        (lambda: certification.certified(2, 3, 0.5, math.inf), "alpha.*inf"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
