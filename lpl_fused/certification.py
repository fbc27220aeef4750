"""Certified radii of smoothed classifiers by sampling, without scipy.

The smoothed classifier G(x) = argmax_c P(argmax f(x + ε) = c), ε ~ N(0, σ²I), of Cohen, Rosenfeld
and Kolter (2019), which SmoothMix trains for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import GENERATOR, POSITIVE, REAL, Integer, Number, Numbers, function, shown

ABSTAIN = -1
_COUNT, _TRIALS = Integer(least=0), Integer(least=1)
_ALPHA = Number(above=0, most=0.5)
_SIGNIFICANCE = Number(above=0, most=1)
_MOST_TERMS = 100_000  # of the continued fraction; 10⁹ votes take some 4,000


class Certificate(NamedTuple):
    """The class of the smoothed classifier, or ABSTAIN, and the ℓ₂ radius it holds within."""

    label: int
    radius: float


@dataclass(frozen=True)
class SmoothedClassifier:
    """The smoothed classifier of a model, by Monte Carlo.

    Args:
        model: maps (B, …) to logits (B, C); put it into evaluation mode first.
        sigma: σ > 0, the deviation of the noise.
        num_classes: C.
        batch_size: noisy copies per call of the model, default 1000.
        generator: of the noise; None is torch's default.

    Raises:
        ValueError: `sigma` not positive.

    Examples:
        >>> model = torch.nn.Linear(4, 3).eval()
        >>> smoothed = lpl_fused.certification.SmoothedClassifier(model, sigma=0.25, num_classes=3)
        >>> smoothed.votes(torch.rand(4), 100).sum()
        tensor(100)
        >>> label, radius = smoothed.certify(torch.rand(4), n0=10, n=100)
    """

    model: Callable[[Tensor], Tensor]
    sigma: float
    num_classes: int
    batch_size: int = 1000
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        function("model", self.model)
        GENERATOR("generator", self.generator)
        POSITIVE("sigma", self.sigma)
        Integer(least=1)("num_classes", self.num_classes)
        Integer(least=1)("batch_size", self.batch_size)

    @torch.no_grad()
    def votes(self, x: Tensor, num: int) -> Tensor:
        """(C,) int64: how often each class won among `num` draws of N(x, σ²I).

        A draw whose logits hold a nan votes for nobody: the votes are then fewer than `num`.

        Args:
            x: one input, without a batch dimension.
        """
        Numbers(True)("x", x)
        num = _COUNT("num", num)
        counts = torch.zeros(self.num_classes, dtype=torch.int64, device=x.device)
        for start in range(0, num, self.batch_size):
            shape = (min(self.batch_size, num - start), *x.shape)
            noise = torch.randn(shape, generator=self.generator, dtype=x.dtype, device=x.device)
            logits = self.model(x + self.sigma * noise)
            if logits.shape != (len(noise), self.num_classes):
                raise ValueError(
                    f"model: expected logits {(len(noise), self.num_classes)}, got"
                    f" {tuple(logits.shape)}"
                )
            winner = logits.argmax(1)[~logits.isnan().any(1)]
            counts += torch.bincount(winner, minlength=self.num_classes)
        return counts

    def certify(
        self, x: Tensor, n0: int = 100, n: int = 100_000, alpha: float = 0.001
    ) -> Certificate:
        """Certifies one input: n0 votes choose the class, n further ones bound its probability.

        Args:
            n0, n, alpha: defaults 100, 100,000 and 0.001, Cohen's and SmoothMix's.
        """
        n0, n, alpha = _TRIALS("n0", n0), _TRIALS("n", n), _ALPHA("alpha", alpha)
        label = int(self.votes(x, n0).argmax())
        radius = certified(int(self.votes(x, n)[label]), n, self.sigma, alpha)
        return Certificate(ABSTAIN, 0.0) if radius is None else Certificate(label, radius)

    def predict(self, x: Tensor, n: int = 100_000, alpha: float = 0.001) -> int:
        """The class of one input from n votes, or ABSTAIN; see `voted`."""
        _SIGNIFICANCE("alpha", alpha)
        return voted(self.votes(x, _TRIALS("n", n)), alpha)


def certified(votes: int, total: int, sigma: float, alpha: float = 0.001) -> float | None:
    """The radius σ·Φ⁻¹(p_A) that `votes` of `total` for a class certify; None is abstention.

    p_A is the lower Clopper-Pearson bound of confidence 1 − α; below ½ nothing is certified.

    Raises:
        ValueError: numbers out of range.

    Examples:
        >>> round(lpl_fused.certification.certified(votes=990, total=1000, sigma=0.25), 4)
        0.4945
        >>> lpl_fused.certification.certified(votes=50_100, total=100_000, sigma=0.25) is None
        True
    """
    sigma = POSITIVE("sigma", sigma)
    total = _TRIALS("total", total)
    votes = Integer(least=0, most=total)("votes", votes)
    p = clopper_pearson_lower(votes, total, alpha)
    return None if p < 0.5 else sigma * NormalDist().inv_cdf(p)


def voted(counts: Tensor, alpha: float = 0.001) -> int:
    """The class with most of the votes `counts` (C,), or ABSTAIN where the second may be as likely.

    Abstains if the two-sided binomial test of the two largest counts has p > α.

    Examples:
        >>> lpl_fused.certification.voted(torch.tensor([90, 10, 0]))
        0
    """
    alpha = _SIGNIFICANCE("alpha", alpha)
    Numbers(False, 1, "the votes of at least two classes")("counts", counts)
    if len(counts) < 2 or counts.min() < 0:
        raise ValueError(f"counts: expected votes of at least two classes, got {shown(counts)}")
    (most, second), order = torch.topk(counts, 2)
    p = min(1.0, 2 * binomial_tail(int(most), int(most + second), 0.5))
    return ABSTAIN if p > alpha else int(order[0])


def clopper_pearson_lower(successes: int, trials: int, alpha: float) -> float:
    """The p at which P(Binomial(trials, p) ≥ successes) = α: lower bound of confidence 1 − α.

    Raises:
        ValueError: not 0 ≤ successes ≤ trials, trials ≥ 1, 0 < α ≤ 1/2: above it the bound would
            lie above the share of successes.

    Examples:
        >>> round(lpl_fused.certification.clopper_pearson_lower(990, 1000, alpha=0.001), 4)
        0.976
    """
    trials = _TRIALS("trials", trials)
    successes = Integer(least=0, most=trials)("successes", successes)
    alpha = _ALPHA("alpha", alpha)
    if successes == 0:
        return 0.0
    if successes == trials:
        return math.exp(math.log(alpha) / trials)
    low, high = 0.0, successes / trials
    while (middle := (low + high) / 2) not in (low, high):
        if binomial_tail(successes, trials, middle) < alpha:
            low = middle
        else:
            high = middle
    return low


def binomial_tail(successes: int, trials: int, p: float) -> float:
    """P(Binomial(n, p) ≥ k), the regularised incomplete beta function I_p(k, n − k + 1).

    Examples:
        >>> round(lpl_fused.certification.binomial_tail(8, 10, p=0.5), 4)
        0.0547
    """
    successes, trials = Integer()("successes", successes), _COUNT("trials", trials)
    p = REAL("p", p)
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    if p <= 0 or p >= 1:
        return float(p >= 1)
    a, b = float(successes), float(trials - successes + 1)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(p) + b * math.log1p(-p)
    front = math.exp(log_front)
    # the continued fraction converges fast below the mean, and the tails mirror each other
    if p < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, p) / a
    return 1 - front * _beta_fraction(b, a, 1 - p) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I_x(a, b), from the front (modified Lentz)."""
    tiny = 1e-300

    def away_from_zero(value: float) -> float:
        return value if abs(value) > tiny else tiny

    numerator = 1.0
    denominator = 1 / away_from_zero(1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1 / away_from_zero(1 + term * denominator)
            numerator = away_from_zero(1 + term / numerator)
            change = numerator * denominator
            value *= change
        if abs(change - 1) < 1e-15:
            return value
    raise ArithmeticError(f"incomplete beta function of ({a}, {b}, {x}) did not converge")
