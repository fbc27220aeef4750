"""Margins on cosines, noisy margins, vector scaling by group, Seesaw."""

from __future__ import annotations

import copy
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
    LOGITS,
    assert_equation,
    close,
    cross_entropy,
    own,
)

from lpl_fused import Focal, MixedTarget, Perturbation, losses


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


# Groups g = (label, background); Δ_g = (n_g/n_max)^γ, ι_g = −τ·log π_g.
GROUPS = [700, 30, 250, 20]


@pytest.mark.parametrize("iota", ["log", "power", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_group_scaling_is_the_equation(dtype: torch.dtype, iota: str) -> None:
    draw = Draw(24, 3, seed=5)
    target, group = draw.labels(), torch.randint(4, (24,), generator=draw.generator)
    n = torch.tensor(GROUPS).double()
    delta = (n / n.max()) ** 0.3
    offsets = {"log": -0.8 * torch.log(n / n.sum()), "power": 1 / delta, "none": 0 * n}[iota]
    loss = losses.GroupVSLoss(GROUPS, 0.3, 0.8, iota=iota, reduction="none")
    assert_equation(
        lambda u: loss(u, target, group),
        lambda u: cross_entropy(
            delta.to(u)[group][:, None] * u - offsets.to(u)[group][:, None] * F.one_hot(target, 3),
            target,
        ),
        draw.input(),
        dtype,
    )


def test_official_group_scaling_cancels_its_offset() -> None:
    draw = Draw(24, 2, seed=6)
    logits, target, group = draw.input(), draw.labels(), draw.labels() * 2
    official = losses.GroupVSLoss(GROUPS, form="official")(logits, target, group)
    scaled = losses.GroupVSLoss(GROUPS, iota="none")(logits, target, group)
    torch.testing.assert_close(official, scaled)
    assert losses.GroupVSLoss(GROUPS)(logits, target, group) > official


def test_binary_scaling_is_the_equation() -> None:
    draw = Draw(40, 1, seed=7)
    f, y = draw.input()[:, 0], (draw.uniform(40) < 0.5).long()
    n = torch.tensor([900.0, 100.0]).double()
    delta, iota = (n / n.max()) ** 0.3, -torch.log(n / n.sum())
    margin = torch.log1p(torch.exp(iota[y] - delta[y] * (2 * y - 1) * f))
    close(losses.BinaryVSLoss([900, 100], reduction="none")(f, y), margin, 1e-12)
    official = F.binary_cross_entropy_with_logits(
        30 * (f * delta[y] - iota[y]), y.double(), reduction="none"
    )
    value = losses.BinaryVSLoss([900, 100], form="official", reduction="none")(f, y)
    close(value, official, 1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_scaling_by_group(dtype: torch.dtype) -> None:
    draw = Draw(40, 1, seed=8)
    f, y = draw.input(), (draw.uniform(40, 1) < 0.5).long()
    group = (draw.uniform(40, 1) < 0.5).long()
    n = torch.tensor([[700.0, 30.0], [20.0, 250.0]]).double()
    weight = 1 / n
    delta, iota = (n / n.max()) ** 0.3, -torch.log(n / n.sum())
    loss = losses.BinaryVSLoss(n, weight=weight)
    u = f.to(dtype).requires_grad_()
    value = loss(u, y, group)
    (grad,) = torch.autograd.grad(value, u)
    exact = u.detach().double().requires_grad_()
    ell = F.softplus(iota[y, group] - delta[y, group] * (2 * y - 1) * exact, threshold=700)
    truth = (weight[y, group] * ell).sum() / weight[y, group].sum()
    (expected,) = torch.autograd.grad(truth, exact)
    eps = torch.finfo(dtype).eps
    wide = max(8 * torch.finfo(torch.float32).eps, 0) if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(value.double(), truth, rtol=wide, atol=0)
    torch.testing.assert_close(
        grad.double(), expected, rtol=eps + wide, atol=float(expected.abs().max()) * eps
    )


def test_seesaw_numbers(backend: str) -> None:
    loss = losses.SeesawLoss(3, reduction="none", backend=backend).eval()
    loss.seen.copy_(torch.tensor(COUNTS))
    close(loss(LOGITS, LABELS), [0.059876, 6.050946])
    assert loss.seen.tolist() == COUNTS  # evaluation counts nothing


@pytest.mark.parametrize(("p", "q"), [(0.8, 2.0), (0.8, 0.0), (0.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_seesaw_is_the_equation(dtype: torch.dtype, p: float, q: float) -> None:
    draw = Draw(24, 5, seed=9)
    target = draw.labels()
    seen = torch.tensor([1000.0, 50.0, 0.0, 7.0, 0.0]).double()

    def equation(u: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            n = (seen + torch.bincount(target, minlength=5)).clamp(min=1).to(u)
            mitigation = torch.where(n < n[target][:, None], (n / n[target][:, None]) ** p, 1.0)
            prob = torch.softmax(u, 1)
            ratio = prob / own(prob, target).clamp(min=1e-2)[:, None]
            compensation = torch.where(ratio > 1, ratio**q, 1.0)
        return cross_entropy(u + torch.log(mitigation * compensation), target)

    def loss(u: torch.Tensor) -> torch.Tensor:
        module = losses.SeesawLoss(5, p, q, reduction="none")
        module.seen.copy_(seen)
        return module(u, target)

    assert_equation(loss, equation, 2 * draw.input(), dtype)


def test_seesaw_counts_what_it_sees_and_survives_save_and_load() -> None:
    draw = Draw(12, 4, seed=10)
    batches = [(draw.input().float(), draw.ignoring()) for _ in range(6)]
    loss = losses.SeesawLoss(4)
    for batch in batches[:3]:
        loss(*batch)
    labels = torch.cat([target for _, target in batches[:3]])
    assert torch.equal(loss.seen, torch.bincount(labels[labels >= 0], minlength=4).double())
    again = losses.SeesawLoss(4)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    for batch in batches[3:]:
        assert torch.equal(loss(*batch), again(*batch))
    assert torch.equal(loss.seen, again.seen)
    assert loss.half().seen.dtype == torch.float64
    assert losses.SeesawLoss(4).to("meta").seen.device.type == "meta"


def test_noise_is_the_equation() -> None:
    """The same draw, written out; nothing is drawn in evaluation."""
    draw = Draw(12, 3, seed=11)
    cosines, target = torch.tanh(draw.input()), draw.labels()
    n = torch.tensor(COUNTS).double()
    rarity = (n.max().log() - n.log()) / (n.max() / n.min()).log()
    gcl = losses.GCLLoss(COUNTS, m=0.1, reduction="none")
    blv = losses.BLVLoss(COUNTS, reduction="none")
    frequency = torch.log(n.sum() / n)
    torch.manual_seed(3)
    noise = (torch.randn(12, 3, dtype=torch.float64) / 3).abs().clamp(max=1)
    z = 30 * (cosines - 0.5 * noise * rarity - 0.1 * F.one_hot(target, 3))
    torch.manual_seed(3)
    torch.testing.assert_close(gcl(cosines, target), cross_entropy(z, target))
    torch.manual_seed(3)
    noise = (4 * torch.randn(12, 3, dtype=torch.float64)).abs().clamp(max=1)
    assert (noise == 1).any()
    z = cosines + noise * frequency / frequency.max()
    torch.manual_seed(3)
    torch.testing.assert_close(blv(cosines, target), cross_entropy(z, target))
    z = 30 * (cosines - 0.1 * F.one_hot(target, 3))
    torch.testing.assert_close(gcl.eval()(cosines, target), cross_entropy(z, target))
    torch.testing.assert_close(blv.eval()(cosines, target), cross_entropy(cosines, target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_in_every_dtype(dtype: torch.dtype) -> None:
    draw = Draw(12, 3, seed=12)
    cosines, target = torch.tanh(draw.input()), draw.labels()
    n = torch.tensor(COUNTS).double()
    table = -0.5 * (n.max().log() - n.log()) / (n.max() / n.min()).log()
    loss = losses.GCLLoss(COUNTS, s=4.0, reduction="none")
    drawn = torch.float64 if dtype == torch.float64 else torch.float32
    torch.manual_seed(5)
    noise = (torch.randn(12, 3, dtype=drawn) / 3).abs().clamp(max=1).double()

    def seeded(u: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        return loss(u, target)

    assert_equation(
        seeded,
        lambda u: cross_entropy(4 * (u + (noise * table).to(u)), target),
        cosines,
        dtype,
    )


def test_noise_goes_with_soft_targets_shapes_and_equal_counts() -> None:
    draw = Draw(12, 3, seed=13)
    logits = draw.input()
    for target in (draw.mixed(), draw.dense(), draw.ignoring()):
        torch.manual_seed(0)
        value = losses.BLVLoss([5, 5, 5])(logits, target)
        assert value.isfinite()
    image = logits.reshape(3, 4, 3).movedim(2, 1)
    target = draw.labels()
    loss = losses.BLVLoss(COUNTS, reduction="none")
    torch.manual_seed(1)
    flat = loss(logits, target)
    torch.manual_seed(1)
    torch.testing.assert_close(loss(image, target.reshape(3, 4)), flat.reshape(3, 4))
    assert loss(logits[0], target[0]).shape == ()
    plain = losses.GCLLoss([5, 5, 5], reduction="none")(logits, target)
    torch.testing.assert_close(plain, cross_entropy(30 * logits, target))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.CosFaceLoss(s=0.0), "s: .*got 0"),
        (lambda: losses.ArcFaceLoss(m=4.0), r"m: .*\[0, pi\], got 4"),
        (lambda: losses.ArcFaceLoss()(COSINES, torch.softmax(COSINES, 1)), "class probabilities"),
        (lambda: losses.ArcFaceLoss()(COSINES, MixedTarget(LABELS, LABELS, 0.5)), "ArcFaceLoss.*mixed"),
        (lambda: losses.ArcFaceLoss()(COSINES, LABELS[:1]), "shape"),
        (lambda: losses.ArcFaceLoss()(COSINES, torch.tensor([0, 3])), "out of range"),
        (lambda: losses.CosFaceLoss()(COSINES, MixedTarget(LABELS, LABELS, 0.5)), "margin"),
        (lambda: losses.GCLLoss([5, 0]), "cls_num_list"),
        (lambda: losses.GCLLoss(COUNTS, m=0.1)(COSINES, COSINES.softmax(1)), "margin"),
        (lambda: losses.BLVLoss(COUNTS, -1.0), "sigma.*got -1"),
        (lambda: losses.SeesawLoss(0), "num_classes.*got 0"),
        (lambda: losses.SeesawLoss(3, eps=0.0), "eps.*got 0"),
        (lambda: losses.SeesawLoss(4)(LOGITS, LABELS), r"expected 4 classes, got shape \(2, 3\)"),
        (lambda: losses.SeesawLoss(3)(LOGITS, LOGITS.softmax(1)), "SeesawLoss needs class indices"),
        (lambda: losses.GroupVSLoss([3, 0]), "cls_num_list"),
        (lambda: losses.GroupVSLoss(GROUPS, iota="la"), "iota.*'la'"),
        (lambda: losses.GroupVSLoss(GROUPS, form="code"), "form.*'code'"),
        (lambda: losses.GroupVSLoss(GROUPS)(LOGITS, LABELS, torch.tensor([0, 4])), r"\[0, 4\), got 4"),
        (lambda: losses.GroupVSLoss(GROUPS)(LOGITS, LABELS, LABELS[:1]), r"group.*shape \(2,\)"),
        (lambda: losses.BinaryVSLoss([1, 2, 3]), r"shape \(2,\) or \(2, G\)"),
        (lambda: losses.BinaryVSLoss([5, 1])(LOGITS[0], LOGITS[0].sigmoid()), "hard labels"),
        (lambda: losses.BinaryVSLoss([5, 1])(LABELS.float(), LABELS / 2, LABELS), "group"),
        (lambda: losses.BinaryVSLoss([[5, 1], [2, 1]])(LABELS.float(), LABELS // 2), "group.*indices below 2"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
