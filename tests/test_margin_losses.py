"""Margins on cosines, and perturbations one after the other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import (
    COSINES,
    COUNTS,
    DTYPES,
    LABELS,
    assert_equation,
    close,
    cross_entropy,
    own,
)

from lpl_fused import Focal, MixedTarget, Perturbation, class_stats, linear, losses
from lpl_fused.testing import device_of


def replaced(u: torch.Tensor, target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.where(F.one_hot(target, u.shape[1]).bool(), value[:, None], u)


def test_numbers(backend: str) -> None:
    keywords = {"reduction": "none", "backend": backend}
    close(losses.CosFaceLoss(**keywords)(COSINES, LABELS)[0], 0.693147)
    close(losses.ArcFaceLoss(**keywords)(COSINES, LABELS), [3.673142, 74.545961])
    expected = F.cross_entropy(
        30 * (COSINES - 0.35 * F.one_hot(LABELS, 3)), LABELS, reduction="none"
    )
    close(losses.AMSoftmaxLoss(**keywords)(COSINES, LABELS), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_angular_equations(dtype: torch.dtype) -> None:
    draw = Draw(24, 9, seed=1)
    cosines, target = torch.tanh(draw.input()), draw.labels()
    assert (own(cosines, target) < -math.cos(0.5)).any()  # both branches of ψ are met

    def arc(u: torch.Tensor) -> torch.Tensor:
        cosine = own(u, target)
        rotated = torch.cos(torch.arccos(cosine) + 0.5)
        psi = torch.where(cosine > math.cos(math.pi - 0.5), rotated, cosine - 0.5 * math.sin(0.5))
        return cross_entropy(16 * replaced(u, target, psi), target)

    # rounding to a 16-bit dtype can reach ±1, where arccos has no derivative
    inside = cosines.clamp(-0.99, 0.99)
    assert_equation(
        lambda u: losses.ArcFaceLoss(16.0, 0.5, reduction="none")(u, target), arc, inside, dtype
    )
    assert_equation(
        lambda u: losses.CosFaceLoss(16.0, 0.3, reduction="none")(u, target),
        lambda u: cross_entropy(16 * replaced(u, target, own(u, target) - 0.3), target),
        inside,
        dtype,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_margins_by_class(dtype: torch.dtype) -> None:
    """One margin per class: that of the label."""
    draw = Draw(24, 9, seed=4)
    cosines, target = torch.tanh(draw.input()).clamp(-0.99, 0.99), draw.labels()
    margins = class_stats.frequency_margins([300, 200, 90, 50, 20, 9, 5, 2, 1])
    m = margins[target]

    def arc(u: torch.Tensor) -> torch.Tensor:
        cosine, own_m = own(u, target), m.to(u)
        rotated = torch.cos(torch.arccos(cosine) + own_m)
        beyond = cosine - own_m * torch.sin(own_m)
        psi = torch.where(cosine > torch.cos(math.pi - own_m), rotated, beyond)
        return cross_entropy(16 * replaced(u, target, psi), target)

    for found, equation in (
        (losses.ArcFaceLoss(16.0, margins, reduction="none"), arc),
        (
            losses.CosFaceLoss(16.0, margins, reduction="none"),
            lambda u: cross_entropy(16 * replaced(u, target, own(u, target) - m.to(u)), target),
        ),
    ):
        assert_equation(lambda u, found=found: found(u, target), equation, cosines, dtype)


def test_margins_of_frequencies() -> None:
    counts = torch.tensor([1000.0, 100, 10, 1])
    found = class_stats.frequency_margins(counts, 0.1, 0.4, power=0.5)
    raw = counts.double() ** -0.5
    slope = 0.3 / (raw.max() - raw.min())
    torch.testing.assert_close(found, slope * (raw - raw.min()) + 0.1)
    assert class_stats.frequency_margins([7, 7]).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="least: .*largest=0.1, got 0.2"):
        class_stats.frequency_margins(counts, 0.2, 0.1)
    ldam = losses.LDAMLoss(counts, 0.5)
    assert found[0] < found[-1]
    assert ldam.table("margin", raw).argmax() == 3


def test_sub_centres() -> None:
    """A class's cosine is the largest of its directions', and these alone learn."""
    torch.manual_seed(0)
    layer = linear.NormalizedLinear(6, 4, sub_centers=3).double()
    x = torch.randn(5, 6).double()
    every = F.normalize(x, dim=1) @ F.normalize(layer.weight, dim=1).T
    cosines = layer(x)
    largest, nearest = every.reshape(5, 4, 3).max(2)
    torch.testing.assert_close(cosines, largest)
    target = torch.tensor([0, 3, 1, 0, 2])
    losses.ArcFaceLoss(16.0)(cosines, target).backward()
    used = torch.zeros(4, 3, dtype=torch.bool).index_put_((torch.arange(4).expand(5, 4), nearest), torch.tensor(True))  # fmt: skip
    assert torch.equal(layer.weight.grad.reshape(4, 3, 6).abs().sum(2) > 0, used)
    assert torch.autograd.gradcheck(
        lambda w, x: losses.ArcFaceLoss(4.0)(
            torch.func.functional_call(layer, {"weight": w}, (x,)), target
        ),
        (layer.weight, x.requires_grad_()),
    )
    assert "sub_centers=3" in repr(layer)
    assert "sub" not in repr(linear.NormalizedLinear(6, 4))
    with pytest.raises(ValueError, match="sub_centers"):
        linear.NormalizedLinear(6, 4, sub_centers=0)
    with pytest.raises(NotImplementedError, match="sub_centers=3.*no product"):
        layer.factors(x)


def test_arcface_gradient_of_the_target() -> None:
    """s·(p − e), the target's times cos m + sin m·cosθ/sinθ."""
    u = COSINES[1:].double().requires_grad_()
    losses.ArcFaceLoss(4.0, 0.5)(u, LABELS[1:]).backward()
    cosine = -0.1
    slope = math.cos(0.5) + math.sin(0.5) * cosine / math.sqrt(1 - cosine**2)
    z = 4 * torch.tensor([[0.6, 0.2, math.cos(math.acos(cosine) + 0.5)]]).double()
    expected = 4 * (torch.softmax(z, 1) - F.one_hot(LABELS[1:], 3))
    expected[0, 2] *= slope
    torch.testing.assert_close(u.grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arcface_where_the_sine_is_zero(dtype: torch.dtype) -> None:
    """θ = 0, θ = π and cosines that rounding pushed beyond: finite, and pulled the right way."""
    over = 1 + torch.finfo(dtype).eps
    u = torch.tensor([[1.0, 0.2], [-1.0, 0.2], [over, 0.2], [-over, 0.2]], dtype=dtype)
    u.requires_grad_()
    loss = losses.ArcFaceLoss(8.0)(u, torch.zeros(4, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite()
    assert u.grad.isfinite().all()
    assert (u.grad[:, 0] < 0).all()


def test_arcface_of_two_labels(backend: str) -> None:
    """Each label under its own margin, by its share; sub-centres; nothing that counts."""
    u = torch.tanh(Draw(6, 4, seed=3).input())
    first, other = torch.tensor([0, 1, 2, 3, -100, -100]), torch.tensor([1, 1, -100, 0, -100, 2])
    lam = torch.tensor([0.3, 0.6, 0.5, 1.0, 0.2, 0.0]).double()
    margins, keywords = torch.tensor([0.1, 0.2, 0.3, 0.4]), {"s": 8.0, "backend": backend}
    single = losses.ArcFaceLoss(m=margins, reduction="none", **keywords)
    device = device_of(backend)
    u, first, other, lam = (each.to(device) for each in (u, first, other, lam))
    target = MixedTarget(first, other, lam)
    counts = [lam * (first >= 0), (1 - lam) * (other >= 0)]
    expected = counts[0] * single(u, first) + counts[1] * single(u, other)
    torch.testing.assert_close(single(u, target), expected)
    mean = losses.ArcFaceLoss(m=margins, **keywords)
    torch.testing.assert_close(mean(u, target), expected.sum() / sum(counts).sum())
    assert mean(u, MixedTarget(first, first, 0.3)).allclose(mean(u, first))
    image = MixedTarget(first[None], other[None], lam[None])
    assert mean(u.T[None], image).allclose(mean(u, target))
    with pytest.raises(ValueError, match="normalizer"):
        mean(u, target, normalizer=3.0)
    nothing = torch.full_like(first, -100)
    mean.empty = "zero"
    assert mean(u, MixedTarget(nothing, nothing, 0.5)) == 0
    layer = linear.NormalizedLinear(3, 4, sub_centers=2).to(device)
    mean(layer(torch.randn(6, 3, device=device)), target).backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


def test_arcface_ignores_rows_and_keeps_shapes() -> None:
    cosines = COSINES.clone()
    cosines[1] = math.nan
    u = cosines.requires_grad_()
    loss = losses.ArcFaceLoss(ignore_index=-1)
    value = loss(u, torch.tensor([0, -1]))
    close(value, 3.673142)
    value.backward()
    assert torch.equal(u.grad[1], torch.zeros(3))
    none = losses.ArcFaceLoss(reduction="none")
    image = COSINES.t().reshape(1, 3, 2)
    close(none(image, LABELS[None]), [[3.673142, 74.545961]])
    close(none(COSINES[0], LABELS[0]), 3.673142)


def test_logit_adjusted_cosface() -> None:
    """A perturbation given to the call acts after the loss's own."""
    draw = Draw(12, 4, seed=2)
    cosines, target = torch.tanh(draw.input()), draw.labels()
    log_pi = torch.log(torch.tensor([0.7, 0.2, 0.08, 0.02]).double())
    for make, margin in ((losses.CosFaceLoss, 0.4), (losses.AMSoftmaxLoss, 0.35)):
        loss = make(s=5.0, phi=Focal(1.0))
        z = 5 * (cosines - margin * F.one_hot(target, 4)) + log_pi
        expected = losses.FocalLoss(1.0)(z, target)
        value = loss(cosines, target, perturbation=Perturbation(offset=log_pi))
        torch.testing.assert_close(value, expected)


def test_perturbations_compose() -> None:
    """`first.then(second)` is one after the other, in every combination of tables."""
    draw = Draw(10, 5, seed=3)
    logits, target = draw.input(), draw.labels()

    def tables(rows: bool) -> Perturbation:
        by_class = draw.normal(5, 5) if rows else None
        return Perturbation(draw.uniform(5), draw.normal(5), draw.uniform(5), by_class, None, 0.7)

    def applied(u: torch.Tensor, p: Perturbation) -> torch.Tensor:
        z = p.scale * u + p.offset - p.margin[target][:, None] * F.one_hot(target, 5)
        return (z if p.rows is None else z + p.rows[target]) / p.temperature

    plain = losses.CrossEntropyLoss(reduction="none")
    for first, second in ((True, True), (True, False), (False, True), (False, False)):
        one, two = tables(first), tables(second)
        expected = plain(applied(applied(logits, one), two), target)
        value = plain(logits, target, perturbation=one.then(two))
        torch.testing.assert_close(value, expected)
    only = Perturbation(offset=draw.normal(5))
    assert torch.equal(Perturbation().then(only).offset, only.offset)
    assert torch.equal(only.then(Perturbation()).offset, only.offset)
    indexed = Perturbation(rows=draw.normal(2, 5), row_index=target % 2)
    value = plain(logits, target, perturbation=indexed.then(Perturbation(scale=one.scale)))
    expected = plain((logits + indexed.rows[target % 2]) * one.scale, target)
    torch.testing.assert_close(value, expected)
    heat = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    value = plain(logits, target, perturbation=Perturbation(temperature=heat).then(two))
    (grad,) = torch.autograd.grad(value.sum(), heat)
    truth = plain(applied(logits / heat, two), target)
    torch.testing.assert_close(value, truth)
    torch.testing.assert_close(grad, torch.autograd.grad(truth.sum(), heat)[0])
    with pytest.raises(ValueError, match="both perturbations bring rows"):
        indexed.then(tables(True))


def test_a_perturbation_under_the_learned_one() -> None:
    draw = Draw(12, 3, seed=4)
    logits, target, offset = draw.input(), draw.labels(), Perturbation(offset=draw.normal(3))
    for keywords in ({}, {"tau": 1.0}, {"split": "balanced"}):
        loss = losses.LPLLoss(COUNTS, **keywords)
        expected = loss(logits + offset.offset, target)
        torch.testing.assert_close(loss(logits, target, perturbation=offset), expected)
        loss.eval()
        torch.testing.assert_close(
            loss(logits, target, perturbation=offset), loss(logits + offset.offset, target)
        )
    with pytest.raises(ValueError, match="official"):
        losses.LPLLoss(COUNTS, variant="official-fixed")(logits, target, perturbation=offset)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.CosFaceLoss(s=0.0), "s: .*got 0"),
        (lambda: losses.ArcFaceLoss(m=4.0), r"m: .*\[0, 3.14159\].*, got 4"),
        (lambda: losses.ArcFaceLoss(m=torch.tensor([0.5, 4.0])), r"m: .*\[0, 3.14159\]"),
        (lambda: losses.ArcFaceLoss(m=torch.tensor([0.5, 0.4]))(COSINES, LABELS), "2 classes"),
        (lambda: losses.CosFaceLoss(m=torch.tensor([0.5, 0.4]))(COSINES, LABELS), "margin"),
        (lambda: losses.ArcFaceLoss()(COSINES, torch.softmax(COSINES, 1)), "class probabilities"),
        (lambda: losses.ArcFaceLoss()(COSINES, MixedTarget(LABELS, LABELS + 9, 0.5)), "out of range"),
        (lambda: losses.ArcFaceLoss()(COSINES, MixedTarget(LABELS, LABELS[:1], 0.5)), "target.other: .*shape"),
        (lambda: losses.ArcFaceLoss()(COSINES, LABELS[:1]), "shape"),
        (lambda: losses.ArcFaceLoss()(COSINES, torch.tensor([0, 3])), "out of range"),
        (lambda: losses.CosFaceLoss()(COSINES, torch.softmax(COSINES, 1)), "margin"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
