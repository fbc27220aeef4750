"""LogitClip and LogitNorm: numbers, gradients through the norm, what goes on top."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, LABELS, LOGITS, assert_equation, close, cross_entropy

from lpl_fused import (
    GCE,
    Alpha,
    Focal,
    LogitClip,
    LogitNorm,
    Perturbation,
    losses,
    row_transforms,
)
from lpl_fused import functional as LF
from lpl_fused.norm import Norm


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({}, [0.716985, 1.611412]),
        ({"tau": 1.5}, [0.572507, 1.914148]),
        ({"tau": 3.0}, [0.407606, 2.407606]),
        ({"form": "official"}, [0.716985, 1.611412]),
        ({"tau": 1.5, "form": "official"}, [None, 1.426168]),
        ({"p": 3.0}, [None, 1.654966]),
    ],
    ids=str,
)
def test_logit_clip_numbers(
    backend: str, keywords: dict[str, object], expected: list[float | None]
) -> None:
    loss = losses.LogitClipLoss(**keywords, reduction="none", backend=backend)(LOGITS, LABELS)
    for value, number in zip(loss, expected, strict=True):
        if number is not None:
            close(value, number)


def test_logit_clip_gradient_by_hand() -> None:
    logits = LOGITS[1:].clone().requires_grad_()
    losses.LogitClipLoss()(logits, LABELS[1:]).backward()
    close(logits.grad, [[-0.012175, 0.024350, -0.357947]])


def test_official_clip_is_discontinuous() -> None:
    """Threshold τ, radius 1/τ: a norm of 1.49 stays, one of 1.51 becomes 1/1.5; 0.5 expands."""
    rows = torch.tensor([[1.49, 0.0], [1.51, 0.0]])
    clipped = row_transforms.logit_clip(rows, 1.5, form="official")
    close(clipped[:, 0], [1.49, 1 / 1.5])
    close(row_transforms.logit_clip(torch.tensor([0.6, 0.0]), 0.5, form="official")[0], 2.0)


def closed_form(u: torch.Tensor, target: torch.Tensor, tau: float, p: float) -> torch.Tensor:
    """(τ/n)(g − ∇n·(û·g)) where ‖u‖_p = n > τ, else g."""
    n = torch.linalg.vector_norm(u, p, dim=1, keepdim=True)
    clipped = torch.where(n > tau, u * tau / n, u)
    g = torch.softmax(clipped, 1) - F.one_hot(target, u.shape[1])
    if math.isinf(p):
        slope = F.one_hot(u.abs().argmax(1), u.shape[1]) * u.sign()
    else:
        slope = u.sign() * (u.abs() / n) ** (p - 1)
    through = tau / n * (g - slope * (u / n * g).sum(1, keepdim=True))
    return torch.where(n > tau, through, g)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("tau", [0.7, 4.0])
def test_logit_clip_gradient(p: float, tau: float) -> None:
    draw = Draw(16, 7, seed=1)
    logits, target = draw.input().requires_grad_(), draw.labels()
    losses.LogitClipLoss(tau, p, reduction="sum")(logits, target).backward()
    expected = closed_form(logits.detach(), target, tau, p)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equations_in_every_dtype(dtype: torch.dtype) -> None:
    draw = Draw(20, 9, seed=2)
    logits, target = draw.input(), draw.labels()

    def norm(u: torch.Tensor) -> torch.Tensor:
        return u.square().sum(1, keepdim=True).sqrt()

    assert_equation(
        lambda u: losses.LogitClipLoss(3.0, reduction="none")(u, target),
        lambda u: cross_entropy(torch.where(norm(u) > 3, u * 3 / norm(u), u), target),
        logits,
        dtype,
    )
    assert_equation(
        lambda u: losses.LogitNormLoss(0.3, reduction="none")(u, target),
        lambda u: cross_entropy(u / ((norm(u) + 1e-7) * 0.3), target),
        logits,
        dtype,
    )


def test_logit_norm_number(backend: str) -> None:
    close(losses.LogitNormLoss(backend=backend)(LOGITS[1:], LABELS[1:]), 22.360694)


def test_losses_are_bounded() -> None:
    """p = ∞: log(1 + (C − 1)e^{2τ}); p = 2: log(1 + (C − 1)e^{√2·τ})."""
    draw = Draw(200, 10, seed=3)
    logits, target = 50 * draw.input(), draw.labels()
    for p, factor in ((math.inf, 2.0), (2.0, math.sqrt(2))):
        value = losses.LogitClipLoss(1.5, p, reduction="none")(logits, target)
        assert value.max() <= math.log1p(9 * math.exp(factor * 1.5))
    worst = torch.tensor([[-9.0, *[9.0] * 9]]).double()
    value = losses.LogitClipLoss(1.5, math.inf)(worst, torch.tensor([0]))
    torch.testing.assert_close(value.item(), math.log1p(9 * math.exp(3.0)))  # attained


@pytest.mark.parametrize("p", [1.5, 2.0, 100.0, math.inf])
def test_extreme_rows(backend: str, p: float) -> None:
    """Zero rows are left alone; huge ones do not overflow in any power."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [3e30, -1e30, 2e20], [1e-30, 0.0, 0.0]])
    logits.requires_grad_()
    for make in (lambda **k: losses.LogitClipLoss(1.0, p, **k), losses.LogitNormLoss):
        loss = make(backend=backend)
        (grad,) = torch.autograd.grad(loss(logits, torch.tensor([0, 1, 2])), logits)
        assert grad.isfinite().all()
    clipped = row_transforms.logit_clip(logits.detach(), 1.0, p)
    assert torch.equal(clipped[0], torch.zeros(3))
    torch.testing.assert_close(torch.linalg.vector_norm(clipped[1], p), torch.tensor(1.0))


NORMS = [LogitClip(1.5, p) for p in (1.0, 1.5, 2.0, 3.0, math.inf)] + [
    LogitClip(0.5, form="official"),
    LogitNorm(0.3),
]


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_gradient_by_differences(backend: str, norm: Norm) -> None:
    draw = Draw(2, 4, seed=7)  # rows know nothing of one another
    logits, target = draw.input().requires_grad_(), draw.labels()
    assert torch.autograd.gradcheck(
        lambda u: LF.cross_entropy(u, target, norm=norm, reduction="none", backend=backend),
        logits,
        nondet_tol=0.0,
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_masked_classes_stay_masked_and_do_not_count(backend: str, norm: Norm) -> None:
    """As if the row had fewer classes; garbage in an ignored row reaches nothing."""
    draw = Draw(4, 5, seed=8)
    few, target = draw.input(), draw.labels() % 5
    masked = torch.full((5, 7), -math.inf, dtype=torch.float64)
    columns = torch.tensor([0, 2, 3, 5, 6])
    masked[:4, columns] = few
    masked[4] = math.nan
    labels = F.pad(columns[target], (0, 1), value=-100)
    few.requires_grad_(), masked.requires_grad_()
    expected = LF.cross_entropy(few, target, norm=norm, backend="reference")
    value = LF.cross_entropy(masked, labels, norm=norm, backend=backend)
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, masked)
    (right,) = torch.autograd.grad(expected, few)
    torch.testing.assert_close(grad[:4, columns], right)
    assert (grad[:, [1, 4]] == 0).all() and (grad[4] == 0).all()


def test_ties_share_the_gradient_of_the_largest(backend: str) -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, 2.0]]).double().requires_grad_()
    found = []
    for name in (backend, "reference"):
        norm = LogitClip(1.0, math.inf)
        loss = LF.cross_entropy(logits, torch.tensor([2]), norm=norm, backend=name)
        found += torch.autograd.grad(loss, logits)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    u = (logits / 2).detach()
    g = torch.softmax(u, 1) - F.one_hot(torch.tensor([2]), 4)
    share = (u * g).sum() / 3
    expected = (g - share * torch.tensor([[1.0, -1.0, 0.0, 1.0]])) / 2
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("phi", ["log", GCE(0.7), Alpha(0.5), Focal(2.0)], ids=str)
def test_everything_goes_on_top(phi: object) -> None:
    draw = Draw(12, 5, seed=4)
    logits, weight = draw.input(), 0.5 + draw.uniform(5)
    offset = Perturbation(offset=draw.normal(5))
    clipped = row_transforms.logit_clip(logits, 1.5)
    plain = losses.CrossEntropyLoss(weight, phi=phi, label_smoothing=0.1)
    clip = losses.LogitClipLoss(1.5, weight=weight, phi=phi, label_smoothing=0.1)
    for target in (draw.labels(), draw.ignoring(), draw.mixed(), draw.dense()):
        value = clip(logits, target, perturbation=offset)
        torch.testing.assert_close(value, plain(clipped, target, perturbation=offset))


def test_clip_before_the_learned_perturbation() -> None:
    draw = Draw(12, 3, seed=5)
    logits, target = draw.input().requires_grad_(), draw.labels()
    lpl = losses.LPLLoss([100, 10, 1])
    value = lpl(row_transforms.logit_clip(logits, 1.0), target)
    value.backward()
    assert logits.grad.isfinite().all()
    assert value != lpl(logits, target)


def test_other_shapes_and_padding() -> None:
    draw = Draw(12, 5, seed=6)
    rows, target = draw.input(), draw.labels()
    loss = losses.LogitClipLoss(reduction="none")
    flat = loss(rows, target)
    image = rows.reshape(3, 4, 5).movedim(2, 1)
    torch.testing.assert_close(loss(image, target.reshape(3, 4)), flat.reshape(3, 4))
    torch.testing.assert_close(loss(rows[0], target[0]), flat[0])
    padded = torch.cat([rows, torch.full((2, 5), math.nan, dtype=rows.dtype)]).requires_grad_()
    labels = torch.cat([target, torch.tensor([-100, -100])])
    for make in (losses.LogitClipLoss, losses.LogitNormLoss):
        loss = make()
        value = loss(padded, labels)
        torch.testing.assert_close(value, loss(rows, target))
        (grad,) = torch.autograd.grad(value, padded)
        assert torch.equal(grad[12:], torch.zeros_like(grad[12:]))
        assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.LogitClipLoss(0.0), "tau.*> 0, got 0"),
        (lambda: losses.LogitClipLoss(math.inf), "tau.*finite"),
        (lambda: losses.LogitClipLoss(p=0.5), r"p: .*\[1, inf\], got 0.5"),
        (lambda: losses.LogitClipLoss(form="code"), "form.*got 'code'"),
        (lambda: losses.LogitNormLoss(-1.0), "tau.*got -1"),
    ],
)
def test_bad_numbers(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_targets() -> None:
    loss = losses.LogitClipLoss()
    with pytest.raises(ValueError, match="shape"):
        loss(LOGITS, LABELS[:1])
    with pytest.raises(ValueError, match="out of range"):
        loss(LOGITS, torch.tensor([0, 3]))
    with pytest.raises(TypeError, match="floating|float64, float32"):
        loss(LOGITS.long(), LABELS)
    soft, margin = torch.full_like(LOGITS, 1 / 3), Perturbation(margin=torch.ones(3))
    with pytest.raises(ValueError, match="margin"):
        loss(LOGITS, soft, perturbation=margin)
