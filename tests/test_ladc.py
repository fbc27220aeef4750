"""LADC: features drawn for the tail from the calibrated statistics of the head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lpl_fused import Perturbation, functional
from lpl_fused.ladc import calibrated_features, tukey
from lpl_fused.linear import WeightScaling

SIZES = [3000, 2000, 1500, 2, 0, 1]  # three head classes, three of the tail, one of them empty


def problem(seed: int = 0, features: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.repeat_interleave(torch.arange(6), torch.tensor(SIZES))
    means = torch.tensor([[4, 1, 0], [0, 4, 1], [1, 0, 4], [4, 3, 0], [9, 9, 9], [0.5, 1, 5]])
    mix = torch.randn(6, 3, features, generator=generator)
    noise = torch.randn(len(target), 1, 3, generator=generator) @ mix[target]
    return means[target] + 0.3 * noise[:, 0], target


def expected_statistics(x: Tensor, target: Tensor, t: int, weighting: str, m: int, kappa: float):  # type: ignore[no-untyped-def]
    """Mean (over the seeds) and covariance of what a class t gets, in float64, plainly."""
    x = x.double()
    means = torch.stack([x[target == h].mean(0) for h in range(3)])
    own = x[target == t].mean(0)
    s = (means @ own) / (means.norm(dim=1) * own.norm())
    near = s.argsort(descending=True)[:m]
    omega = {
        "uniform": torch.ones(m).double(),
        "similarity": s[near],
        "label-aware": s[near] * torch.tensor(SIZES).double()[near],
    }[weighting]
    omega = omega * m / omega.sum()
    mean = (omega @ means[near] + kappa * own) / (m + kappa)
    covariance = sum(w * torch.cov(x[target == h].T) for w, h in zip(omega, near.tolist(), strict=True)) / m  # fmt: skip
    return mean, covariance


@pytest.mark.parametrize("weighting", ["uniform", "similarity", "label-aware"])
def test_drawn_features_have_the_calibrated_statistics(weighting: str) -> None:
    x, target = problem()
    drawn, labels = calibrated_features(
        x, target, 3, num_classes=6, weighting=weighting, generator=torch.Generator().manual_seed(1)
    )
    assert torch.bincount(labels, minlength=6).tolist() == [0, 0, 0, 2998, 0, 2999]
    mean, covariance = expected_statistics(x, target, 5, weighting, 2, 1.0)
    found = drawn[labels == 5].double()
    deviation = covariance.diagonal().sqrt()
    # 2999 draws: five standard errors of a mean and of a covariance
    assert ((found.mean(0) - mean).abs() < 5 * deviation / math.sqrt(2999)).all()
    bound = 5 * math.sqrt(2 / 2999) * deviation[:, None] * deviation
    assert ((torch.cov(found.T) - covariance).abs() < bound).all()


def test_the_mean_follows_every_seed() -> None:
    """Without spread of the head what is drawn is the mean itself: (Σωμ + κx)/(m + κ)."""
    x = torch.tensor([[4.0, 0], [4, 0], [0, 2], [0, 2], [1, 1], [3, 2]])
    target = torch.tensor([0, 0, 1, 1, 2, 2])
    x = torch.cat([x, x[:4].repeat(2, 1)])
    target = torch.cat([target, target[:4].repeat(2)])  # 6, 6 and 2 samples
    for kappa in (0.0, 1.0, 3.0):
        drawn, labels = calibrated_features(x, target, 2, weighting="uniform", instance_weight=kappa, jitter=0.0)  # fmt: skip
        seeds = torch.tensor([[1.0, 1], [1, 1], [3, 2], [3, 2]])  # each twice: 4 of 2 seeds
        expected = (torch.tensor([4.0, 2.0]) + kappa * seeds) / (2 + kappa)
        torch.testing.assert_close(drawn[drawn[:, 0].argsort()], expected)
        assert labels.tolist() == [2] * 4


def test_only_the_nearest_count() -> None:
    x, target = problem()
    drawn, labels = calibrated_features(x, target, 3, neighbours=1, jitter=0.0)
    mean, _ = expected_statistics(x, target, 3, "uniform", 1, 1.0)
    assert ((drawn[labels == 3].mean(0) - mean).abs() < 0.1).all()
    assert (expected_statistics(x, target, 3, "uniform", 2, 1.0)[0] - mean).abs().max() > 0.5


def test_spread_and_jitter() -> None:
    """The shared spread moves all entries together, as in TailCalib; the other does not."""
    x = torch.ones(2500, 3).cumsum(1)
    target = torch.tensor([0] * 2499 + [1])
    keywords = {"neighbours": 1, "generator": torch.Generator().manual_seed(2)}
    drawn, _ = calibrated_features(x, target, 1, spread=4.0, jitter=0.0, **keywords)
    moved = drawn - drawn.mean(0)
    torch.testing.assert_close(moved[:, :1].expand(-1, 3), moved, atol=1e-5, rtol=0)
    assert float(moved[:, 0].var()) == pytest.approx(4.0, rel=0.15)
    drawn, _ = calibrated_features(x, target, 1, spread=3.0, shared_spread=False, jitter=1.0, **keywords)  # fmt: skip
    torch.testing.assert_close(torch.cov(drawn.T), 4.0 * torch.eye(3), atol=0.6, rtol=0)


def test_features_fewer_or_more_than_samples() -> None:
    """A factor of rank min(n, A); half precision comes back as such; the same draws for a seed."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(9, 40, generator=generator)
    target = torch.tensor([0] * 5 + [1] * 3 + [2])
    draws = [calibrated_features(x, target, 2, generator=torch.Generator().manual_seed(4)) for _ in "ab"]  # fmt: skip
    assert torch.equal(draws[0][0], draws[1][0])
    assert draws[0][0].shape == (4, 40)
    low, _ = calibrated_features(x.bfloat16(), target, 2)
    assert low.dtype == torch.bfloat16 and low.isfinite().all()


def test_balanced_training_set_gets_nothing() -> None:
    x, target = torch.rand(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    drawn, labels = calibrated_features(x, target, 2)
    assert drawn.shape == (0, 4) and labels.shape == (0,)


def test_tukey() -> None:
    torch.testing.assert_close(tukey(torch.tensor([0.0, 4.0]), 0.5), torch.tensor([0.0, 2.0]))
    with pytest.raises(ValueError, match=">= 0, got -1"):
        tukey(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="power"):
        tukey(torch.ones(1), 0.0)


def test_weight_scaling_is_a_table() -> None:
    layer, logits = WeightScaling(3), torch.randn(4, 3)
    target = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        layer.scale.copy_(torch.tensor([0.5, 1.0, 2.0]))
    fused = functional.cross_entropy(logits, target, perturbation=Perturbation(scale=layer.scale))
    (fused_grad,) = torch.autograd.grad(fused, layer.scale)
    plain = functional.cross_entropy(layer(logits), target)
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused_grad, torch.autograd.grad(plain, layer.scale)[0])


def test_bad_input() -> None:
    x, target = torch.rand(5, 4), torch.tensor([0, 0, 1, 1, 2])
    for keywords, message in (
        ({"num_head": 3}, ">= 2 samples"),
        ({"num_head": 0}, "num_head"),
        ({"num_head": 1, "neighbours": 2}, "neighbours"),
        ({"num_head": 2, "weighting": "rare"}, "weighting.*rare"),
        ({"num_head": 2, "spread": -1.0}, "spread"),
        ({"num_head": 2, "target": target[:3]}, r"\(n, A\) and \(n,\)"),
        ({"num_head": 2, "num_classes": 2}, "num_classes=2"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrated_features(**{"features": x, "target": target, **keywords})
    with pytest.raises(TypeError, match="int64"):
        calibrated_features(x.long(), target, 2)
