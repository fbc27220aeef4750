"""Rows of offsets made for every sample: Seesaw from counts and scores, GCL and BLV drawn."""

from __future__ import annotations

import copy

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

from lpl_fused import losses


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
        (lambda: losses.GCLLoss([5, -1]), "cls_num_list"),
        (lambda: losses.GCLLoss(COUNTS, m=0.1)(COSINES, COSINES.softmax(1)), "margin"),
        (lambda: losses.BLVLoss(COUNTS, -1.0), "sigma.*got -1"),
        (lambda: losses.SeesawLoss(0), "num_classes.*got 0"),
        (lambda: losses.SeesawLoss(3, eps=0.0), "eps.*got 0"),
        (lambda: losses.SeesawLoss(4)(LOGITS, LABELS), r"expected 4 classes, got shape \(2, 3\)"),
        (lambda: losses.SeesawLoss(3)(LOGITS, LOGITS.softmax(1)), "SeesawLoss needs class indices"),
    ],
)  # fmt: skip
def test_bad_input(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
