"""ISDA: the estimator, the table of class pairs, the gradient into the classifier."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, LABELS, LOGITS, assert_equation, close, cross_entropy

from lpl_fused import Focal, Perturbation, losses, schedules
from lpl_fused.class_stats import present_classes

WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
FORMS = ["diagonal", "full"]


def estimated(loss: losses.ISDALoss, covariance: torch.Tensor) -> losses.ISDALoss:
    """`loss` with these covariances and so many samples seen that a batch changes nothing."""
    loss.covariance.copy_(covariance)
    loss.seen.fill_(1e30)
    return loss


@pytest.mark.parametrize("form", FORMS)
def test_numbers(backend: str, form: str) -> None:
    sigma = torch.tensor([0.5, 0.2])
    loss = losses.ISDALoss(3, 2, covariance=form, reduction="none", backend=backend)
    loss.covariance.copy_(sigma if form == "diagonal" else sigma.diag())
    rows = loss.rows(torch.tensor([0, 2]), WEIGHT)
    close(rows, [[0.0, 0.175, 0.5], [0.5, 0.175, 0.0]])
    estimates = copy.deepcopy(loss.covariance)
    loss.update = lambda *_: None  # type: ignore[method-assign]
    close(loss(LOGITS, LABELS, torch.zeros(2, 2), WEIGHT), [0.507640, 2.798539])
    assert torch.equal(loss.covariance, estimates)


def batches(draw: Draw, sizes: list[int], features: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    mixing = draw.normal(features, features)
    parts = []
    for size in sizes:
        x = draw.normal(size, features) @ mixing + 3 * draw.normal(features)
        parts.append((x, torch.randint(draw.classes, (size,), generator=draw.generator)))
    return parts


@pytest.mark.parametrize("form", FORMS)
def test_estimates_are_the_pooled_covariance(form: str) -> None:
    """Of all features ever seen, although batches drift; ignored rows, nan included, are none."""
    draw = Draw(1, 5, seed=1)
    seen = batches(draw, [7, 30, 1, 12, 40], 4)
    loss = losses.ISDALoss(6, 4, covariance=form, dtype=torch.float64, ignore_index=3)
    for x, y in seen:
        loss.update(x.masked_fill((y == 3)[:, None], math.nan), y)
    x, y = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
    for c in (0, 1, 2, 4):
        mine = x[y == c]
        centred = mine - mine.mean(0)
        expected = centred.t() @ centred / len(mine)
        assert loss.seen[c] == len(mine)
        torch.testing.assert_close(loss.mean[c], mine.mean(0), rtol=1e-10, atol=1e-12)
        expected = expected if form == "full" else expected.diag()
        torch.testing.assert_close(loss.covariance[c], expected, rtol=1e-10, atol=1e-12)
    for c in (3, 5):  # ignored, and never met
        assert loss.seen[c] == 0
        assert not loss.covariance[c].any()


def test_large_batches_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outer products are summed a few at a time; how many changes nothing."""
    (x, y), *_ = batches(Draw(1, 3, seed=2), [50], 4)
    whole = losses.ISDALoss(3, 4, covariance="full", dtype=torch.float64)
    whole.update(x, y)
    monkeypatch.setattr("lpl_fused.losses.isda._OUTER_ELEMENTS", 3 * 16)
    parts = losses.ISDALoss(3, 4, covariance="full", dtype=torch.float64)
    parts.update(x, y)
    assert torch.equal(whole.covariance, parts.covariance)


def test_decay_forgets() -> None:
    """M is multiplied by the decay before each update of its class, and only of its class."""
    loss = losses.ISDALoss(2, 1, decay=0.5, dtype=torch.float64)
    zero, one = torch.zeros(4, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    loss.update(torch.zeros(4, 1).double(), zero)
    loss.update(torch.ones(2, 1).double(), one)
    loss.update(torch.ones(4, 1).double(), zero)
    assert loss.seen.tolist() == [6.0, 2.0]
    w = 4 / 6
    torch.testing.assert_close(loss.mean[:, 0], torch.tensor([w, 1.0]).double())
    torch.testing.assert_close(loss.covariance[:, 0], torch.tensor([w * (1 - w), 0.0]).double())


def equation(
    u: torch.Tensor, weight: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor, lam: float
) -> torch.Tensor:
    gap = weight[None] - weight[target][:, None]
    sigma = sigma if sigma.dim() == 3 else torch.diag_embed(sigma)
    rows = 0.5 * lam * torch.einsum("nja,nab,njb->nj", gap, sigma[target], gap)
    return cross_entropy(u + rows, target)


def covariances(draw: Draw, features: int, form: str) -> torch.Tensor:
    if form == "diagonal":
        return draw.uniform(draw.classes, features)
    root = draw.normal(draw.classes, features, features)
    return root @ root.mT / features


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_is_the_equation(dtype: torch.dtype, form: str) -> None:
    draw = Draw(24, 7, seed=3)
    target, sigma = draw.labels(), covariances(draw, 5, form)
    # products of 5 terms that 16-bit dtypes hold exactly, so that all see the same classifier
    weight = (4 * draw.normal(7, 5)).round() / 8
    wide = dtype if dtype == torch.float64 else torch.float32
    loss = losses.ISDALoss(7, 5, 0.7, covariance=form, dtype=wide, reduction="none")
    estimated(loss, sigma.to(wide))
    exact = loss.covariance.double()
    assert_equation(
        lambda u: loss(u, target, torch.zeros(24, 5), weight.to(dtype)),
        lambda u: equation(u, weight.to(u), exact.to(u), target, 0.7),
        draw.input(),
        dtype,
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradient_into_the_classifier(backend: str, form: str) -> None:
    """Against autograd of the equation, and the closed form with its term of class pairs."""
    draw = Draw(20, 6, seed=4)
    target, sigma = draw.labels() % 4, covariances(draw, 5, form)
    features, bias = draw.normal(20, 5).requires_grad_(), draw.normal(6)
    weight = draw.normal(6, 5).requires_grad_()
    loss = losses.ISDALoss(6, 5, 0.7, covariance=form, dtype=torch.float64, backend=backend)
    estimated(loss, sigma)
    value = loss(F.linear(features, weight, bias), target, features, weight)
    grads = torch.autograd.grad(value, (weight, features))
    truth = equation(F.linear(features, weight, bias), weight, sigma, target, 0.7).mean()
    torch.testing.assert_close(value, truth, rtol=1e-10, atol=0)
    expected = torch.autograd.grad(truth, (weight, features))
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if backend != "triton" else {"rtol": 1e-5, "atol": 1e-6}  # fmt: skip
    torch.testing.assert_close(grads, expected, **tolerance)

    with torch.no_grad():
        gap = weight[None] - weight[target][:, None]  # (N, C, A): w_j − w_y
        full = sigma if form == "full" else torch.diag_embed(sigma)
        pulled = torch.einsum("nab,njb->nja", full[target], gap)
        rows = 0.35 * (pulled * gap).sum(2)
        p = torch.softmax(F.linear(features, weight, bias) + rows, 1)
        g = (p - F.one_hot(target, 6)) / 20
        by_hand = g.t() @ features + 0.7 * torch.einsum("nj,nja->ja", g, pulled)
        by_hand.index_add_(0, target, -0.7 * torch.einsum("nj,nja->na", g, pulled))
        torch.testing.assert_close(grads[0], by_hand, **tolerance)
        torch.testing.assert_close(grads[1], g @ weight, **tolerance)


def test_only_classes_present_get_rows() -> None:
    target = torch.tensor([7, -100, 2, 7, 900])
    classes, slot = present_classes(target, 900)
    assert classes.tolist() == [2, 7]
    assert slot.tolist() == [1, 0, 0, 1, 0]
    nobody, slot = present_classes(torch.tensor([-100]), 5)
    assert nobody.tolist() == [0]
    assert slot.tolist() == [0]


def test_update_comes_first_and_evaluation_does_nothing() -> None:
    draw = Draw(12, 3, seed=5)
    features, target, weight = draw.normal(12, 4), draw.labels(), draw.normal(3, 4)
    logits = features @ weight.t()
    loss = losses.ISDALoss(3, 4, dtype=torch.float64).eval()
    torch.testing.assert_close(
        loss(logits, target, features, weight), F.cross_entropy(logits, target)
    )
    assert not loss.seen.any()
    loss.train()
    value = loss(logits, target, features, weight)
    sigma = torch.stack([features[target == c].var(0, correction=0) for c in range(3)])
    torch.testing.assert_close(value, equation(logits, weight, sigma, target, 0.5).mean())
    loss.strength = schedules.isda_strength(0, 10)
    value = loss(logits, target, features, weight)
    torch.testing.assert_close(value, F.cross_entropy(logits, target))


def test_goes_with_adjustment_weights_phi_shapes_and_padding() -> None:
    draw = Draw(12, 4, seed=6)
    features, target, weight = draw.normal(12, 3), draw.ignoring(), draw.normal(4, 3)
    seen = target != -100
    logits, offset, w = draw.input(), draw.normal(4), 0.5 + draw.uniform(4)
    sigma = draw.uniform(4, 3)

    def loss(**keywords: object) -> losses.ISDALoss:
        module = losses.ISDALoss(4, 3, dtype=torch.float64, weight=w, phi=Focal(2.0), **keywords)
        return estimated(module, sigma)

    value = loss()(logits, target, features, weight, perturbation=Perturbation(offset=offset))
    label = target[seen]
    ell = equation(logits[seen] + offset, weight, sigma, label, 0.5)
    focal = (1 - torch.exp(-ell)) ** 2 * ell
    torch.testing.assert_close(value, (w[label] * focal).sum() / w[label].sum())
    rows = loss(reduction="none")(logits, target, features, weight)
    image = loss(reduction="none")(
        logits.reshape(3, 4, 4).movedim(2, 1),
        target.reshape(3, 4),
        features.reshape(3, 4, 3).movedim(2, 1),
        weight,
    )
    torch.testing.assert_close(image, rows.reshape(3, 4))


@pytest.mark.parametrize("form", FORMS)
def test_survives_save_and_load(form: str) -> None:
    """Bit-equal continuation from the middle of training."""
    draw = Draw(16, 5, seed=7)
    weight = draw.normal(5, 4).float()
    parts = [(x.float(), y) for x, y in batches(draw, [16] * 6, 4)]

    def step(loss: losses.ISDALoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(x @ weight.t(), y, x, weight)

    loss = losses.ISDALoss(5, 4, covariance=form, decay=0.9)
    for part in parts[:3]:
        step(loss, *part)
    again = losses.ISDALoss(5, 4, covariance=form, decay=0.9)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert all(torch.equal(step(loss, *part), step(again, *part)) for part in parts[3:])
    assert all(torch.equal(a, b) for a, b in zip(loss.buffers(), again.buffers(), strict=True))
    assert loss.half().covariance.dtype == torch.float32
    assert losses.ISDALoss(5, 4).to("meta").covariance.device.type == "meta"


def test_autocast_does_not_touch_the_table() -> None:
    draw = Draw(8, 4, seed=8)
    weight, target = draw.normal(4, 3).float(), draw.labels()
    loss = estimated(losses.ISDALoss(4, 3), draw.uniform(4, 3).float())
    arguments = (draw.input().float(), target, torch.zeros(8, 3), weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*arguments)
    assert torch.equal(inside, loss(*arguments))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.ISDALoss(0, 2), "num_classes: .*>= 1, got 0"),
        (lambda: losses.ISDALoss(3, 2, covariance="low-rank"), "covariance.*'low-rank'"),
        (lambda: losses.ISDALoss(3, 2, decay=0.0), "decay.*got 0"),
        (lambda: losses.ISDALoss(3, 2, -1.0), "strength.*got -1"),
        (lambda: losses.ISDALoss(3, 2)(LOGITS, LABELS, torch.zeros(2, 5), WEIGHT), r"features.*2 rows of 2.*\(2, 5\)"),
        (lambda: losses.ISDALoss(3, 2)(LOGITS, LABELS, torch.zeros(2, 2), WEIGHT[:2]), r"classifier_weight.*\(3, 2\).*\(2, 2\)"),
        (lambda: losses.ISDALoss(4, 2)(LOGITS, LABELS, torch.zeros(2, 2), WEIGHT), "expected 4 classes"),
        (lambda: losses.ISDALoss(3, 2)(LOGITS, LOGITS, torch.zeros(2, 2), WEIGHT), "ISDALoss needs class indices"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
