"""What every loss composes with: equations in plain PyTorch, and the table of what is refused.

Equations see rows (M, C) in any floating dtype; `test_composition` runs them in float64 for the
truth and in the dtype of the loss for what rounding costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot

from lpl_fused import GCE, Alpha, Focal, Perturbation, Poly1, class_stats, losses
from lpl_fused.phi import Phi
from lpl_fused.validation import Target

C, A, G = 5, 3, 3
COUNTS = [50, 20, 10, 5, 1]
GROUP_COUNTS = [40, 30, 16]
PRIOR = torch.tensor(COUNTS).double() / sum(COUNTS)


@dataclass
class Call:
    """A loss called once: rows of logits, float64, and everything that a caller may choose."""

    logits: Tensor  # (M, C)
    target: Target  # of rows: (M,), a MixedTarget of (M,), or (M, C)
    keywords: dict[str, Any]  # of the loss that were chosen, the others are their defaults
    perturbation: Perturbation | None = None
    shape: str = "rows"  # or "single", one row (C,), or "grid", (N, C, 2)
    dtype: torch.dtype = torch.float64
    base: str = "ce"  # what ABSGD, group DRO, MbLS and CALS stand on
    seed: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        return self.keywords.get(name, default)

    @property
    def hard(self) -> bool:
        return isinstance(self.target, Tensor) and not self.target.is_floating_point()

    @property
    def dense(self) -> bool:
        return isinstance(self.target, Tensor) and self.target.is_floating_point()

    @property
    def ignore_index(self) -> int:
        return int(self.get("ignore_index", -100))

    def counted(self) -> Tensor:
        """(M,) the rows that count."""
        if self.dense:
            return torch.ones(len(self.logits), dtype=torch.bool)
        labels = [self.target] if self.hard else [self.target[0], self.target[1]]
        return torch.stack([label != self.ignore_index for label in labels]).any(0)

    def labels(self) -> list[tuple[Tensor, Tensor]]:
        """The labels of rows, one or two, and the share of each; ignored where it has none."""
        if self.hard:
            return [(self.target, torch.ones(len(self.logits), dtype=torch.float64))]
        first, second, lam = self.target
        pairs = [(first, lam.double()), (second, 1 - lam.double())]
        return [(label.masked_fill(part == 0, self.ignore_index), part) for label, part in pairs]

    def label(self) -> Tensor:
        """(M,) the class of each row, 0 where it is ignored."""
        assert isinstance(self.target, Tensor)
        return self.target.masked_fill(~self.counted(), 0)


# one row of the algebra after the other


def phi_of(ell: Tensor, phi: Phi) -> Tensor:
    rest = -torch.expm1(-ell)
    if isinstance(phi, Alpha):
        kappa = 1 - 1 / phi.alpha
        return -torch.expm1(-kappa * ell) / kappa
    if isinstance(phi, GCE):
        return -torch.expm1(-phi.q * ell) / phi.q
    if isinstance(phi, Focal):
        return rest**phi.gamma * ell
    return ell + phi.epsilon * rest if isinstance(phi, Poly1) else ell


def every_cross_entropy(z: Tensor) -> Tensor:
    """(M, C) −log softmax(z)_j = log(1 + Σ_{k≠j} e^{z_k − z_j}), with all digits."""
    rivals = (z[:, None, :] - z[:, :, None]).masked_fill(torch.eye(z.shape[1]).bool(), -math.inf)
    return -logsigmoid(-torch.logsumexp(rivals, 2))


def distribution(call: Call, smoothing: float | Tensor) -> tuple[Tensor, Tensor]:
    """(t (M, C), share (M, C)): the target with and without its smoothing; 0 where ignored."""
    if call.dense:
        t = call.target.double()
        return (1 - smoothing) * t + smoothing / C, t
    if isinstance(smoothing, Tensor):
        smoothing = smoothing.double()
    pairs = [(call.target, 1.0)]
    if not call.hard:
        first, second, lam = call.target
        pairs = [(first, lam.double()[:, None]), (second, 1 - lam.double()[:, None])]
    t = share = torch.zeros(len(call.logits), C, dtype=torch.float64)
    for label, part in pairs:
        kept = label != call.ignore_index
        label = label.masked_fill(~kept, 0)
        epsilon = smoothing[label][:, None] if isinstance(smoothing, Tensor) else smoothing
        hot = one_hot(label, C).double() * kept[:, None]
        t = t + part * ((1 - epsilon) * hot + epsilon / C * kept.double()[:, None])
        share = share + part * hot
    return t, share


def perturbed(call: Call, z: Tensor) -> Tensor:
    p = call.perturbation
    if p is None:
        return z
    z = p.scale.to(z) * z + p.offset.to(z)
    if p.margin is not None:
        z = z - p.margin.to(z) * one_hot(call.label(), C)
    return z / p.temperature


def row_losses(call: Call, z: Tensor, **changed: Any) -> tuple[Tensor, Tensor]:
    """(losses, weights), both (M,), of the algebra at z; "mean" divides by the weights' sum."""
    keywords = {**call.keywords, **changed}
    t, share = distribution(call, keywords.get("label_smoothing", 0.0))
    weight = keywords.get("weight")
    weight = torch.ones(C, dtype=torch.float64) if weight is None else weight.double()
    value = phi_of(every_cross_entropy(z), keywords.get("phi", "log"))
    value = value + keywords.get("z_loss", 0.0) * torch.logsumexp(z, 1, keepdim=True) ** 2
    loss = torch.where(t == 0, 0.0, (t * weight).to(z) * value).sum(1)
    return loss, torch.ones_like(loss) if call.dense else (share * weight).sum(1).to(z)


def reduced(call: Call, loss: Tensor, weights: Tensor) -> Tensor:
    reduction = call.get("reduction", "mean")
    if reduction == "none":
        return loss
    return loss.sum() / weights.sum() if reduction == "mean" else loss.sum()


def by_label(call: Call, of: Callable[[Call], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(losses, weights) of rows of which each label is a row of its own, with its share."""
    found = [(of(replace(call, target=label)), part) for label, part in call.labels()]
    loss = sum(part.to(loss) * loss for (loss, _), part in found)
    weights = sum(part.to(weights) * weights for (_, weights), part in found)
    return loss, weights


def composed(call: Call, z: Tensor, **changed: Any) -> Tensor:
    return reduced(call, *row_losses(call, perturbed(call, z), **changed))


# the losses


def hot(call: Call) -> Tensor:
    return one_hot(call.label(), C)


def class_weights(call: Call, like: Tensor) -> Tensor:
    """(M,) w_y, 0 where ignored."""
    weight = call.get("weight", None)
    weight = torch.ones(C) if weight is None else weight
    return weight.to(like)[call.label()] * call.counted()


def noise(call: Call, u: Tensor, sigma: float) -> Tensor:
    torch.manual_seed(call.seed)
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    return (sigma * torch.randn(u.shape, dtype=wide)).abs().clamp(max=1).to(u)


def margins(values: Tensor | float, s: float) -> Callable[[Call, Tensor], Tensor]:
    def equation(call: Call, u: Tensor) -> Tensor:
        m = torch.as_tensor(values, dtype=torch.float64).to(u)

        def of_one(one: Call) -> tuple[Tensor, Tensor]:
            return row_losses(one, perturbed(one, s * (u - m * hot(one))))

        return reduced(call, *by_label(call, of_one))

    return equation


def ldam_margins() -> Tensor:
    values = torch.tensor(COUNTS).double() ** -0.25
    return 0.5 * values / values.max()


def arc(call: Call, u: Tensor) -> Tensor:
    def of_one(one: Call) -> tuple[Tensor, Tensor]:
        angle = torch.where(hot(one).bool(), torch.acos(u), 0.0)
        rotated = torch.where(hot(one).bool(), torch.cos(angle + 0.2), u)
        return row_losses(one, perturbed(one, 8.0 * rotated))

    return reduced(call, *by_label(call, of_one))


def lade(call: Call, u: Tensor) -> Tensor:
    counted, label, prior = call.counted(), call.label(), PRIOR.to(u)
    regulariser = u.new_zeros(())
    for c in range(C):
        rows = counted & (label == c)
        own = u[rows, c].mean() if rows.any() else 0.0
        s = torch.logsumexp(u[counted, c], 0) - math.log(float(PRIOR[c]) * C * int(counted.sum()))
        regulariser = regulariser - prior[c] * (own - s - 0.1 * s**2)
    return composed(call, u + torch.log(PRIOR + 1e-9).to(u)) + 0.1 * regulariser


def truncated(call: Call, u: Tensor) -> Tensor:
    kept = torch.arange(len(u)) % 3 != 1
    value, weights = row_losses(call, perturbed(call, u), phi=GCE(0.7))
    value = torch.where(kept, value - weights * (1 - 0.5**0.7) / 0.7, 0.0)
    return reduced(call, value, weights)


def t5x(call: Call, u: Tensor) -> Tensor:
    epsilon, z = call.get("label_smoothing", 0.0), perturbed(call, u)
    t = hot(call) * (1 - epsilon) + (1 - hot(call)) * epsilon / (C - 1)
    value = (t * every_cross_entropy(z)).sum(1) - torch.special.entr(t.to(u)).sum(1)
    value = value + call.get("z_loss", 0.0) * torch.logsumexp(z, 1) ** 2
    counted = call.counted().to(u)
    return reduced(call, value * counted, counted)


def learned(call: Call, z: Tensor, steps: Tensor, step_size: float) -> Tensor:
    """(C, C) δ by normalised steps of each class, of all rows that have a share of it."""
    delta = torch.zeros(C, C).to(z)
    for c in range(C):
        share = sum(part * (label == c) * (c != call.ignore_index) for label, part in call.labels())
        rows = share > 0
        for _ in range(int(steps[c].abs()) if rows.any() else 0):
            p = torch.softmax((z + delta[c])[rows].detach(), 1)
            rivals = (share[rows].to(p)[:, None] * p).sum(0) / share[rows].to(p).sum()
            rivals = torch.where(torch.arange(C) == c, 0.0, rivals)
            g = torch.where(torch.arange(C) == c, -rivals.sum(), rivals)
            delta[c] += float(steps[c].sign()) * step_size * g / torch.linalg.vector_norm(g)
    return delta


def under(call: Call, z: Tensor, delta: Tensor, **changed: Any) -> tuple[Tensor, Tensor]:
    return by_label(call, lambda one: row_losses(one, z + delta[one.label()], **changed))


def lpl(call: Call, u: Tensor, **changed: Any) -> tuple[Tensor, Tensor]:
    """Long-tail split, head 0.4: two of five classes lowered, the others raised; τ = 1."""
    n = torch.tensor(COUNTS).double()
    bound = torch.where(n >= 20, 0.9 * n / n.max(), 1.5 * n.min() / n)
    steps = torch.where(n >= 20, -1, 1) * torch.floor(bound / 0.15 * (1 + 1e-6)).int()
    z = perturbed(call, u + torch.log(PRIOR + 1e-12).to(u))
    return under(call, z, learned(call, z, steps, 0.15), **changed)


def lpl_balanced(call: Call, u: Tensor) -> Tensor:
    z = perturbed(call, u)
    p = torch.exp(-every_cross_entropy(z)).detach()
    mean = {}
    for c in range(C):
        share = sum(part * (label == c) * (c != call.ignore_index) for label, part in call.labels())
        if (rows := share > 0).any():
            mean[c] = (share[rows].to(p) * p[rows, c]).sum() / share[rows].to(p).sum()
    average = sum(mean.values()) / len(mean)
    steps = torch.tensor([float(torch.sign(average - mean.get(c, average))) for c in range(C)])
    return reduced(call, *under(call, z, learned(call, z, 6 * steps.int(), 0.05)))


def official_fixed(call: Call, u: Tensor) -> Tensor:
    """20 steps of 0.005 over the norm of the label's column; q̄ of absent classes is 0."""
    y, counted = call.label(), call.counted()
    present = [c for c in range(C) if (counted & (y == c)).any()]
    delta = torch.zeros_like(u)
    for _ in range(20):
        p = torch.softmax((u + delta).detach(), 1)
        g = torch.stack([p[counted & (y == c)].mean(0) - one_hot(torch.tensor(c), C) for c in present])  # fmt: skip
        quality = torch.zeros(C).to(u)
        quality[present] = 1 + g[range(len(present)), present]
        for row, c in enumerate(present):
            sign = torch.sign(quality.mean() - quality[c])
            step = 0.005 * sign * g[row] / torch.linalg.vector_norm(g[:, c])
            delta = torch.where((counted & (y == c))[:, None], delta + step, delta)
    return reduced(call, *row_losses(call, u + delta))


def over_base(call: Call, u: Tensor) -> tuple[Tensor, Tensor]:
    """(losses, weights) of the rows of `call.base`."""
    if call.base == "lpl":
        return lpl(call, u)
    z = u if call.base == "ce" else u + torch.log(PRIOR + 1e-12).to(u)
    return row_losses(call, perturbed(call, z))


def absgd(call: Call, u: Tensor) -> Tensor:
    loss, _ = over_base(call, u)
    counted = call.counted()
    power = torch.exp(loss.detach() / 2.0) * counted
    return (power / (0.9 * power.sum()) * loss).sum()


def group_dro(call: Call, u: Tensor) -> Tensor:
    loss, _ = over_base(call, u)
    rows = [call.counted() & (call.extra["group"] == g) for g in range(G)]
    means = torch.stack([loss[r].mean() if r.any() else loss.sum() * 0 for r in rows])
    return (torch.softmax(0.3 * means.detach(), 0) * means).sum()


def with_penalty(of: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    def equation(call: Call, u: Tensor) -> Tensor:
        loss, weights = over_base(call, u)
        counted = call.counted()
        penalty = of(u.amax(1, keepdim=True) - u).mean(1) * counted
        if call.get("reduction", "mean") == "mean":
            return loss.sum() / weights.sum() + penalty.sum() / counted.sum()
        return reduced(call, loss + penalty, weights)

    return equation


def phr(distance: Tensor) -> Tensor:
    lam, h = 1e-6, distance - 1.0
    return ((lam + h).clamp(min=0) ** 2 - lam**2) / 2


def cdb(call: Call, u: Tensor) -> Tensor:
    weight = class_stats.difficulty_weights(DIFFICULTY, 1.5)
    loss, _ = row_losses(call, perturbed(call, u), weight=weight)
    return reduced(call, loss, call.counted())


def influence(call: Call, u: Tensor) -> Tensor:
    loss, _ = row_losses(call, perturbed(call, u), weight=torch.ones(C, dtype=torch.float64))
    weight = 1 / torch.tensor(COUNTS).to(u)
    weight = (weight / weight.mean())[call.label()]
    factor = 1000 / (-2 * torch.expm1(-loss) * call.extra["feature_norm"].to(u) + 1e-3)
    given = class_weights(call, u)
    return reduced(call, given * weight * factor * loss * call.counted(), call.counted())


def clipped(call: Call, u: Tensor) -> Tensor:
    return composed(call, u * (1.5 / torch.linalg.vector_norm(u, dim=1, keepdim=True)).clamp(max=1))


def normed(call: Call, u: Tensor) -> Tensor:
    return composed(call, u / ((torch.linalg.vector_norm(u, dim=1, keepdim=True) + 1e-7) * 0.3))


def group_vs(call: Call, u: Tensor) -> Tensor:
    n = torch.tensor(GROUP_COUNTS).to(u)
    group = call.extra["group"]
    scale, iota = (n / n.max()) ** 0.3, -torch.log(n / n.sum())
    return composed(call, scale[group][:, None] * u - iota[group][:, None] * hot(call))


def gcl(call: Call, u: Tensor) -> Tensor:
    logs = torch.log(torch.tensor(COUNTS).double())
    rare = (logs.max() - logs) / (logs.max() - logs).max()
    return composed(call, 8.0 * (u - 0.5 * rare.to(u) * noise(call, u, 1 / 3)))


def blv(call: Call, u: Tensor) -> Tensor:
    rare = -torch.log(PRIOR)
    return composed(call, u + noise(call, u, 4.0) * (rare / rare.max()).to(u))


def seesaw(call: Call, u: Tensor) -> Tensor:
    y = call.label()
    seen = torch.bincount(y[call.counted()], minlength=C).clamp(min=1).to(u)
    p = torch.softmax(u.detach(), 1)
    mitigation = (seen / seen[y][:, None]).clamp(max=1) ** 0.8
    own = p.gather(1, y[:, None]).clamp(min=1e-2)
    return composed(call, u + torch.log(mitigation * (p / own).clamp(min=1) ** 2))


def softmax_eql(call: Call, u: Tensor) -> Tensor:
    torch.manual_seed(call.seed)
    dropped = (torch.rand(u.shape) < 0.9) & (PRIOR < 0.1) & ~hot(call).bool()
    return composed(call, u.masked_fill(dropped, -1e4))


def one_vs_rest(negative: Tensor) -> Callable[[Call, Tensor], Tensor]:
    def equation(call: Call, u: Tensor) -> Tensor:
        z, phi = perturbed(call, u), call.get("phi", "log")
        own, others = phi_of(-logsigmoid(z), phi), phi_of(-logsigmoid(-z), phi)
        value = torch.where(hot(call).bool(), own, negative.to(u) * others).sum(1)
        weights = class_weights(call, u)
        return reduced(call, weights * value, weights)

    return equation


def isda(call: Call, u: Tensor) -> Tensor:
    x, w, y = (call.extra[name] for name in ("features", "classifier_weight", "label"))
    x, w = x.to(u), w.to(u)
    rows = torch.zeros_like(u)
    for i in range(len(u)):
        same = x[call.counted() & (y == y[i])]
        if len(same):
            variance = ((same - same.mean(0)) ** 2).mean(0)
            rows[i] = 0.25 * ((w - w[y[i]]) ** 2 * variance).sum(1)
    return composed(call, u + rows)


def certified(call: Call, u: Tensor) -> Tensor:
    own = u.gather(1, call.label()[:, None])
    return torch.where(hot(call).bool(), 0.0, 1 + (u - own) / 2)


def hinge(call: Call, u: Tensor) -> Tensor:
    positive, weights = certified(call, u).clamp(min=0), class_weights(call, u)
    return reduced(call, weights * (0.75 * positive.amax(1) + 0.25 * positive.mean(1)), weights)


def mixture(call: Call, u: Tensor) -> Tensor:
    weights = class_weights(call, u)
    clipped = reduced(call, weights * certified(call, u).amax(1).clamp(0, 1), weights)
    return clipped + 0.1 * composed(call, 1.5 * u)


# the table


@dataclass(frozen=True)
class Entry:
    """A loss and its equation.

    Args:
        make: the module, from the keywords that were chosen.
        equation: what it comes to.
        refuses: feature → what the message must name. Features are keywords of the loss,
            "perturbation", a target "mixed" or "dense", a reduction, "smoothing by class".
        further: names of `Call.extra` that the loss is called with.
        cosines: the logits are cosines.
    """

    make: Callable[[Call], nn.Module]
    equation: Callable[[Call, Tensor], Tensor]
    refuses: Mapping[str, str] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    cosines: bool = False


def plain(
    loss: Callable[..., nn.Module], *arguments: Any, **own: Any
) -> Callable[[Call], nn.Module]:
    return lambda call: loss(*arguments, **own, **call.keywords)


def based(
    loss: Callable[..., nn.Module], *arguments: Any, **own: Any
) -> Callable[[Call], nn.Module]:
    def make(call: Call) -> nn.Module:
        kinds: dict[str, Callable[..., nn.Module]] = {
            "ce": losses.CrossEntropyLoss,
            "la": lambda **k: losses.LogitAdjustedLoss(COUNTS, **k),
            "lpl": lambda **k: losses.LPLLoss(COUNTS, tau=1.0, **k),
        }
        return loss(*arguments, base=kinds[call.base](**call.keywords), **own)

    return make


def pruning(call: Call) -> nn.Module:
    loss = losses.TruncatedGCELoss(len(call.logits), **call.keywords)
    loss.kept[1::3] = False
    return loss


def difficult(call: Call) -> nn.Module:
    loss = losses.CDBLoss(C, 1.5, **call.keywords)
    loss.update(1 - DIFFICULTY)
    return loss


def offset(values: Tensor) -> Callable[[Call, Tensor], Tensor]:
    return lambda call, u: composed(call, u + values.to(u))


INDICES = {"mixed": "target", "dense": "target"}
MARGIN, TWO_AT_MOST = {"dense": "margin"}, {"dense": "target"}
OWN_PHI, OWN_WEIGHT = {"phi": "phi"}, {"weight": "weight"}
SMOOTHING = {"label_smoothing": "label_smoothing", "smoothing by class": "label_smoothing"}
ROWS_ALONE = {"mean": 'reduction="none"', "sum": 'reduction="none"'}
UNPERTURBED = {"perturbation": "perturbation"}
SCALE = (torch.tensor(COUNTS).double() / 50) ** 0.3
DIFFICULTY = torch.tensor([0.125, 0.25, 0.5, 0.75, 0.875])
LA = torch.log(PRIOR + 1e-12)

ENTRIES: dict[str, Entry] = {
    "CrossEntropyLoss": Entry(plain(losses.CrossEntropyLoss), composed),
    "FocalLoss": Entry(
        plain(losses.FocalLoss), lambda call, u: composed(call, u, phi=Focal(2.0)), OWN_PHI
    ),
    "ClassBalancedLoss": Entry(
        plain(losses.ClassBalancedLoss, COUNTS),
        lambda call, u: composed(call, u, weight=class_stats.effective_number_weights(COUNTS)),
        OWN_WEIGHT,
    ),
    "LogitAdjustedLoss": Entry(plain(losses.LogitAdjustedLoss, COUNTS), offset(LA)),
    "BalancedSoftmaxLoss": Entry(
        plain(losses.BalancedSoftmaxLoss, COUNTS), offset(torch.log(PRIOR * sum(COUNTS)))
    ),
    "BayiasLoss": Entry(plain(losses.BayiasLoss, COUNTS), offset(torch.log(PRIOR * C))),
    "LADELoss": Entry(
        plain(losses.LADELoss, COUNTS),
        lade,
        {**INDICES, "none": "reduction", "sum": "reduction"},
    ),
    "LDAMLoss": Entry(
        plain(losses.LDAMLoss, COUNTS, s=8.0), margins(ldam_margins(), 8.0), MARGIN, cosines=True
    ),
    "CosFaceLoss": Entry(
        plain(losses.CosFaceLoss, 8.0, 0.2),
        margins(0.2, 8.0),
        MARGIN,
        cosines=True,
    ),
    "AMSoftmaxLoss": Entry(
        plain(losses.AMSoftmaxLoss, 8.0),
        margins(0.35, 8.0),
        MARGIN,
        cosines=True,
    ),
    "ArcFaceLoss": Entry(plain(losses.ArcFaceLoss, 8.0, 0.2), arc, TWO_AT_MOST, cosines=True),
    "CDTLoss": Entry(
        plain(losses.CDTLoss, COUNTS), lambda call, u: composed(call, SCALE.to(u) * u)
    ),
    "VSLoss": Entry(
        plain(losses.VSLoss, COUNTS),
        lambda call, u: composed(call, SCALE.to(u) * u + torch.log(PRIOR).to(u)),
    ),
    "AlphaLoss": Entry(
        plain(losses.AlphaLoss, 0.5), lambda call, u: composed(call, u, phi=Alpha(0.5)), OWN_PHI
    ),
    "GCELoss": Entry(
        plain(losses.GCELoss), lambda call, u: composed(call, u, phi=GCE(0.7)), OWN_PHI
    ),
    "TruncatedGCELoss": Entry(pruning, truncated, {**INDICES, **OWN_PHI, **SMOOTHING}, ("index",)),
    "Poly1Loss": Entry(
        plain(losses.Poly1Loss), lambda call, u: composed(call, u, phi=Poly1(2.0)), OWN_PHI
    ),
    "ZLoss": Entry(
        plain(losses.ZLoss, 0.01),
        lambda call, u: composed(call, u, z_loss=0.01),
        {"z_loss": "z_loss"},
    ),
    "T5XCrossEntropyLoss": Entry(
        plain(losses.T5XCrossEntropyLoss),
        t5x,
        {**INDICES, **OWN_PHI, **OWN_WEIGHT, "smoothing by class": "label_smoothing"},
    ),
    "LPLLoss": Entry(
        plain(losses.LPLLoss, COUNTS, tau=1.0),
        lambda call, u: reduced(call, *lpl(call, u)),
        TWO_AT_MOST,
    ),
    "LPLLoss, balanced": Entry(
        plain(
            losses.LPLLoss, COUNTS, split="balanced", epsilon=0.3, delta_epsilon=0.0, step_size=0.05
        ),
        lpl_balanced,
        TWO_AT_MOST,
    ),
    "LPLLoss, official": Entry(
        plain(losses.LPLLoss, COUNTS, variant="official-fixed"),
        official_fixed,
        {**INDICES, **UNPERTURBED},
    ),
    "CDBLoss": Entry(difficult, cdb, OWN_WEIGHT),
    "LabelAwareSmoothingLoss": Entry(
        plain(losses.LabelAwareSmoothingLoss, COUNTS),
        lambda call, u: composed(
            call, u, label_smoothing=class_stats.label_aware_smoothing(COUNTS)
        ),
        {**SMOOTHING, "dense": "label_smoothing"},
    ),
    "IBLoss": Entry(
        plain(losses.IBLoss, COUNTS, start_epoch=0),
        influence,
        {**INDICES, **OWN_PHI, **SMOOTHING, "z_loss": "z_loss"},
        ("feature_norm",),
    ),
    "ABSGDLoss": Entry(based(losses.ABSGDLoss, 2.0), absgd, ROWS_ALONE),
    "GroupDROLoss": Entry(
        based(losses.GroupDROLoss, GROUP_COUNTS, step_size=0.3), group_dro, ROWS_ALONE, ("group",)
    ),
    "MbLSLoss": Entry(
        based(losses.MbLSLoss, 0.1, 0.5),
        with_penalty(lambda distance: 0.1 * torch.relu(distance - 0.5)),
        UNPERTURBED,
    ),
    "CALSLoss": Entry(based(losses.CALSLoss, C, margin=1.0), with_penalty(phr), UNPERTURBED),
    "LogitClipLoss": Entry(plain(losses.LogitClipLoss, 1.5), clipped),
    "LogitNormLoss": Entry(plain(losses.LogitNormLoss, 0.3), normed),
    "GroupVSLoss": Entry(plain(losses.GroupVSLoss, GROUP_COUNTS), group_vs, INDICES, ("group",)),
    "GCLLoss": Entry(plain(losses.GCLLoss, COUNTS, s=8.0), gcl, cosines=True),
    "BLVLoss": Entry(plain(losses.BLVLoss, COUNTS), blv),
    "SeesawLoss": Entry(plain(losses.SeesawLoss, C), seesaw, INDICES),
    "SoftmaxEQLLoss": Entry(
        plain(losses.SoftmaxEQLLoss, COUNTS, 0.1),
        softmax_eql,
        {**INDICES, **SMOOTHING},
    ),
    "EQLLoss": Entry(
        plain(losses.EQLLoss, COUNTS, 0.1),
        one_vs_rest((PRIOR >= 0.1).double()),
        {**INDICES, **SMOOTHING, "z_loss": "z_loss"},
    ),
    "EQLv2Loss": Entry(
        plain(losses.EQLv2Loss, C),
        one_vs_rest(torch.ones(C)),
        {**INDICES, **SMOOTHING, "z_loss": "z_loss"},
    ),
    "ISDALoss": Entry(
        lambda call: losses.ISDALoss(C, A, dtype=call.extra["features"].dtype, **call.keywords),
        isda,
        INDICES,
        ("features", "classifier_weight"),
    ),
    "LInfHingeLoss": Entry(
        plain(losses.LInfHingeLoss, 1.0),
        hinge,
        {**INDICES, **OWN_PHI, **SMOOTHING, **UNPERTURBED, "z_loss": "z_loss"},
    ),
    "LInfMixtureLoss": Entry(plain(losses.LInfMixtureLoss, 1.0, scale=1.5), mixture, INDICES),
}

# Losses of other arguments than logits and a class, and the keywords that they take.
ELSEWHERE = {
    "BinaryAlphaLoss": {"reduction"},
    "BinaryVSLoss": {"reduction", "phi", "weight"},
    "SmoothMixLoss": {"backend"},
}
