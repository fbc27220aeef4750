"""Features for rare classes, drawn from the calibrated distributions of similar frequent ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .arguments import CLASSES, FLAG, GENERATOR, NOT_NEGATIVE, POSITIVE, Choice, Integer, Numbers
from .class_stats import class_counts
from .precision import full_precision

_WEIGHTINGS = ("uniform", "similarity", "label-aware")


def tukey(features: Tensor, power: float = 0.9) -> Tensor:
    """Tukey's ladder of powers, x^power elementwise: makes features after a ReLU less skewed.

    For training and test features alike, before `calibrated_features` and the classifier.

    Args:
        features: floating, ≥ 0.
        power: > 0, default 0.9, that of TailCalib (Distribution Calibration: 0.5).

    Raises:
        ValueError: a negative feature, or `power` not positive.

    Examples:
        >>> lpl_fused.ladc.tukey(torch.tensor([0.0, 1.0, 4.0]), power=0.5)
        tensor([0., 1., 2.])
    """
    power = POSITIVE("power", power)
    Numbers(True)("features", features)
    if (features < 0).any():
        raise ValueError(f"features: expected numbers >= 0, got {float(features.min())}")
    return features**power


def calibrated_features(
    features: Tensor,
    target: Tensor,
    num_head: int,
    *,
    num_classes: int | None = None,
    neighbours: int = 2,
    weighting: str = "label-aware",
    instance_weight: float = 1.0,
    spread: float = 0.0,
    shared_spread: bool = True,
    jitter: float = 1e-4,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Features for the tail by label-aware distribution calibration (LADC; Wang et al., 2021).

    The paper gives no equations that we know and there is no code: this form, its free parameters
    and their defaults are ours, after Distribution Calibration and TailCalib. With μ_c and Σ_c mean
    and unbiased covariance of class c, and H the `neighbours` head classes of largest
    cos(μ_t, μ_h), a tail class t gets n_max − n_t features, each seeded by one of its own, x (all
    seed equally often, up to one):

        mean        (Σ_{h∈H} ω_h μ_h + κ·x) / (m + κ)
        covariance  Σ_{h∈H} ω_h Σ_h / m + spread·(11ᵀ or I) + jitter·I
        ω_h ∝ 1 "uniform",  s_h "similarity",  n_h·s_h "label-aware";  Σω = m;  s = max(cos, 0)

    Train the classifier on these beside the real ones (`losses.CrossEntropyLoss`,
    `linear.WeightScaling`); every tail class then has n_max. Infinitely many features without
    drawing any are ISDA's `Perturbation(rows=…)`. No A×A covariance is formed for a draw: normal
    numbers go through the triangular factors of the head's centred features.

    Args:
        features: (n, A) floating, of the frozen first stage, as the classifier gets them
            (normalised, `tukey`).
        target: (n,) their classes, integer.
        num_head: most frequent classes that form the head; the others with any sample are the tail.
        num_classes: C; left out, the largest class + 1.
        neighbours: m ≥ 1, at most `num_head`.
        weighting: of ω.
        instance_weight: κ ≥ 0; 0 forgets x.
        spread: ≥ 0, added to every entry of the covariance, as TailCalib does, or, without
            `shared_spread`, to its diagonal.
        jitter: ≥ 0, added to the diagonal.
        generator: of the draws, on the device of `features`; default torch's global one.

    Returns:
        generated (M, A), of the dtype of `features`, and their classes (M,) int64, ascending.

    Raises:
        TypeError: dtypes other than these.
        ValueError: shapes or numbers out of range; a head class with fewer than 2 samples.

    Examples:
        >>> features, target = torch.rand(9, 4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
        >>> new, labels = lpl_fused.ladc.calibrated_features(features, target, num_head=2)
        >>> labels  # class 2 now has as many as class 0
        tensor([2, 2])
    """
    Numbers(True, 2, "shape (n, A)")("features", features)
    CLASSES("target", target)
    shared_spread = FLAG("shared_spread", shared_spread)
    GENERATOR("generator", generator)
    if target.shape != features.shape[:1]:
        raise ValueError(
            f"features, target: expected shapes (n, A) and (n,), got {tuple(features.shape)} and "
            f"{tuple(target.shape)}"
        )
    counts = class_counts(target, num_classes)
    neighbours, num_head = Integer()("neighbours", neighbours), Integer()("num_head", num_head)
    if not 1 <= neighbours <= num_head <= len(counts):
        raise ValueError(
            f"neighbours, num_head: expected 1 <= neighbours <= num_head <= {len(counts)} classes,"
            f" got {neighbours}, {num_head}"
        )
    Choice(*_WEIGHTINGS)("weighting", weighting)
    instance_weight = NOT_NEGATIVE("instance_weight", instance_weight)
    spread, jitter = NOT_NEGATIVE("spread", spread), NOT_NEGATIVE("jitter", jitter)
    order = torch.argsort(counts, descending=True, stable=True)
    head, tail = order[:num_head], order[num_head:]
    if counts[head].min() < 2:
        raise ValueError(f"num_head: expected head classes with >= 2 samples, got {num_head}")

    with full_precision(features.device):
        x = features.to(torch.promote_types(features.dtype, torch.float32))
        means = torch.stack([x[target == h].mean(0) for h in head])  # (num_head, A)
        factors: dict[int, Tensor] = {}

        def factor(h: int) -> Tensor:
            """F (min(n_h, A), A) with FᵀF = Σ_h."""
            if h not in factors:
                own = x[target == head[h]]
                upper = torch.linalg.qr(own - means[h], mode="r").R
                factors[h] = upper / math.sqrt(len(own) - 1)
            return factors[h]

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=x.dtype, device=x.device)

        generated, labels = [x[:0]], [target[:0].long()]
        for t in tail[counts[tail] > 0].sort().values.tolist():
            own = x[target == t]
            size = int(counts.max()) - len(own)
            similarity = nn.functional.cosine_similarity(own.mean(0)[None], means)
            near = similarity.topk(neighbours).indices
            omega = torch.ones_like(similarity[near])
            if weighting != "uniform":
                omega = similarity[near].clamp(min=torch.finfo(x.dtype).eps)
            if weighting == "label-aware":
                omega = omega * counts[head][near]
            omega = omega * (neighbours / omega.sum())
            seeds = torch.randperm(len(own), generator=generator, device=x.device)
            seeds = seeds[torch.arange(size, device=x.device) % len(own)]
            drawn = (omega @ means[near] + instance_weight * own[seeds]) / (
                neighbours + instance_weight
            )
            for share, h in zip((omega / neighbours).sqrt(), near.tolist(), strict=True):
                drawn = drawn + share * (normal(size, len(factor(h))) @ factor(h))
            width = 1 if shared_spread else x.shape[1]  # one number for all entries is 11ᵀ
            drawn = drawn + math.sqrt(spread) * normal(size, width)
            drawn = drawn + math.sqrt(jitter) * normal(size, x.shape[1])
            generated.append(drawn)
            labels.append(torch.full((size,), t, device=x.device))
        return torch.cat(generated).to(features.dtype), torch.cat(labels)
