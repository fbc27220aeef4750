"""Equalisation losses: who is spared, how gradients are accumulated."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import COUNTS, DTYPES, LABELS, LOGITS, assert_equation, close, cross_entropy

from lpl_fused import GCE, Perturbation, losses


def test_softmax_equalization_numbers(backend: str) -> None:
    """Class 2 is dropped, except for its own samples."""
    loss = losses.SoftmaxEQLLoss(COUNTS, 0.05, 1.0, reduction="none", backend=backend)
    close(loss(LOGITS, LABELS), [0.313262, 2.407606])
    close(loss.eval()(LOGITS, LABELS), [0.407606, 2.407606])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softmax_equalization_is_the_equation(dtype: torch.dtype) -> None:
    draw = Draw(24, 6, seed=1)
    target = draw.labels()
    rare = torch.tensor([False, False, True, False, True, True])
    loss = losses.SoftmaxEQLLoss([500, 400, 20, 300, 8, 1], 0.1, 0.6, reduction="none")
    assert torch.equal(loss.rare, rare)
    torch.manual_seed(7)
    beta = torch.rand(24, 6) < 0.6
    w = 1 - (beta & rare).double() * (1 - F.one_hot(target, 6))
    assert 0 < (w == 0).sum() < (rare[None] & (F.one_hot(target, 6) == 0)).sum()

    def seeded(u: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        return loss(u, target)

    assert_equation(
        seeded, lambda u: cross_entropy(u + torch.log(w).to(u), target), draw.input(), dtype
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equalization_is_the_equation(dtype: torch.dtype) -> None:
    draw = Draw(24, 4, seed=2)
    target = draw.labels()
    kept = torch.tensor([1.0, 1.0, 0.0, 1.0]).double()

    def equation(u: torch.Tensor) -> torch.Tensor:
        hot = F.one_hot(target, 4).to(u)
        weight = hot + kept.to(u) * (1 - hot)
        return -(weight * F.logsigmoid(u * (2 * hot - 1))).sum(1)

    loss = losses.EQLLoss([5000, 900, 2, 50], reduction="none")
    assert_equation(lambda u: loss(u, target), equation, draw.input(), dtype)


def test_second_version_weights() -> None:
    """g = 0.5: negatives 0.0266, positives 4.8936; before the first batch all are 1."""
    loss = losses.EQLv2Loss(3)
    positive, negative = loss.weights()
    assert positive.tolist() == negative.tolist() == [1.0, 1.0, 1.0]
    loss.positive.fill_(0.5)
    loss.negative.fill_(1.0)
    positive, negative = loss.weights()
    close(negative, [0.0266] * 3, 1e-4)
    close(positive, [4.8936] * 3, 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_second_version_accumulates_weighted_gradients(dtype: torch.dtype) -> None:
    """The sums are |gradient| of the very loss, split by label, one batch behind its weights."""
    draw = Draw(16, 4, seed=3)
    loss = losses.EQLv2Loss(4, mu=0.4, reduction="sum")
    positive, negative = torch.zeros(4).double(), torch.zeros(4).double()
    for step in range(4):
        u = draw.input().to(dtype).requires_grad_()
        target = draw.ignoring()
        (grad,) = torch.autograd.grad(loss(u, target), u)
        exact = u.detach().double().requires_grad_()
        hot = F.one_hot(target.clamp(min=0), 4).double()
        f = torch.sigmoid(12 * (positive / (negative + 1e-10) - 0.4)) if step else 1.0
        weight = hot * (1 + 4 * (1 - f)) + (1 - hot) * f
        weight = weight * (target != -100)[:, None]
        truth = -(weight * F.logsigmoid(exact * (2 * hot - 1))).sum()
        (expected,) = torch.autograd.grad(truth, exact)
        eps = torch.finfo(dtype).eps
        eps = eps if dtype == torch.float64 else eps + 8 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(grad.double(), expected, rtol=16 * eps, atol=16 * eps)
        positive += (expected * hot).abs().sum(0)
        negative += (expected * (1 - hot)).abs().sum(0)
        wide = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(loss.positive, positive, rtol=wide, atol=0)
        torch.testing.assert_close(loss.negative, negative, rtol=wide, atol=0)


def test_second_version_survives_save_and_load() -> None:
    draw = Draw(12, 4, seed=4)
    batches = [(draw.input().float(), draw.labels()) for _ in range(6)]
    loss = losses.EQLv2Loss(4)
    for batch in batches[:3]:
        loss(*batch)
    again = losses.EQLv2Loss(4)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert all(torch.equal(loss(*batch), again(*batch)) for batch in batches[3:])
    assert torch.equal(loss.negative, again.negative)
    before = loss.negative.clone()
    loss.eval()(*batches[0])
    assert torch.equal(loss.negative, before)
    assert loss.half().negative.dtype == torch.float64
    assert losses.EQLv2Loss(4).to("meta").positive.device.type == "meta"


def test_one_vs_rest_takes_tables_phi_and_shapes() -> None:
    draw = Draw(12, 3, seed=5)
    logits, target = draw.input(), draw.ignoring()
    tables = Perturbation(scale=draw.uniform(3), offset=draw.normal(3), temperature=0.5)
    loss = losses.EQLLoss(COUNTS, 0.05, phi=GCE(0.7))
    value = loss(logits, target, perturbation=tables)
    seen = target != -100
    z = (2 * (tables.scale * logits + tables.offset))[seen]
    hot = F.one_hot(target[seen], 3).double()
    weight = hot + (1 - hot) * torch.tensor([1.0, 1.0, 0.0]).double()
    phi = (1 - torch.sigmoid(z * (2 * hot - 1)) ** 0.7) / 0.7
    torch.testing.assert_close(value, (weight * phi).sum() / seen.sum())
    w = 0.5 + draw.uniform(3)
    weighted = losses.EQLLoss(COUNTS, 0.05, phi=GCE(0.7), weight=w)
    share = w[target[seen]] / w[target[seen]].sum()
    expected = (share[:, None] * weight * phi).sum()
    torch.testing.assert_close(weighted(logits, target, perturbation=tables), expected)
    none = losses.EQLLoss(COUNTS, 0.05, reduction="none")
    flat, image = none(logits, target), logits.reshape(3, 4, 3).movedim(2, 1)
    torch.testing.assert_close(none(image, target.reshape(3, 4)), flat.reshape(3, 4))
    garbage = logits.masked_fill(~seen[:, None], math.nan).requires_grad_()
    loss(garbage, target).backward()
    assert garbage.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.SoftmaxEQLLoss(COUNTS, 0.0), "threshold.*got 0"),
        (lambda: losses.SoftmaxEQLLoss(COUNTS, 0.1, 1.5), "gamma.*got 1.5"),
        (lambda: losses.SoftmaxEQLLoss([5, 5], 0.1)(LOGITS, LABELS), "expected 2 classes"),
        (lambda: losses.SoftmaxEQLLoss(COUNTS, 0.1)(LOGITS, LOGITS), "SoftmaxEQLLoss needs class indices"),
        (lambda: losses.EQLLoss([1, -1]), "cls_num_list"),
        (lambda: losses.EQLLoss(COUNTS, reduction="avg"), "reduction.*'avg'"),
        (lambda: losses.EQLv2Loss(0), "num_classes.*got 0"),
        (lambda: losses.EQLv2Loss(4)(LOGITS, LABELS), r"expected 4 classes, got shape \(2, 3\)"),
        (lambda: losses.EQLv2Loss(3)(LOGITS, LABELS + 1), "out of range"),
        (lambda: losses.EQLv2Loss(3)(LOGITS, LABELS[:1]), "shape"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
