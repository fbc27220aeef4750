"""Multi-label losses: hand-checked numbers, equations, degenerate counts, LPL beneath them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from equations import DTYPES, assert_equation, close
from multilabel_cases import hard, missing, soft
from torch import Tensor

from lpl_fused import Asymmetric, BinaryPerturbation, Focal, Perturbation, losses
from lpl_fused import functional as LF
from lpl_fused.testing import device_of

pytestmark = pytest.mark.multilabel

# METHODS 2.4: N = 100, n = (60, 20, 5), Y = (1, 0, 1), u = (1, −1, 0.5)
COUNTS, SAMPLES = [60, 20, 5], 100
U, Y = torch.tensor([[1.0, -1.0, 0.5]]).double(), torch.tensor([[1.0, 0.0, 1.0]])
COCO = {"mu": 0.2, "neg_scale": 2.0, "init_bias": 0.05, "alpha": 0.1, "beta": 10.0}


def db(**keywords: object) -> losses.DistributionBalancedLoss:
    return losses.DistributionBalancedLoss(COUNTS, SAMPLES, **{**COCO, **keywords})


@pytest.mark.parametrize(
    ("keywords", "expected", "mean"),
    [
        ({"focal": False, "ntr_bias_div": True}, [0.101252, 0.040212, 0.552396], 0.231287),
        ({"ntr_bias_div": True}, [0.014431, 0.001011, 0.172365], 0.062603),
        ({}, None, 0.071414),
    ],
    ids=["without focal", "with focal", "undivided bias"],
)
def test_distribution_balanced_numbers(
    backend: str, keywords: dict[str, object], expected: list[float] | None, mean: float
) -> None:
    if expected is not None:
        close(db(reduction="none", backend=backend, **keywords)(U, Y)[0], expected)
    close(db(backend=backend, **keywords)(U, Y), mean)


def test_tables_of_the_numbers() -> None:
    loss = db(ntr_bias_div=True)
    close(loss.table("bias", U), [0.010137, -0.034657, -0.073611])
    inverse = loss.table("inverse_count", U)
    close(inverse / (Y.double() @ inverse), [0.076923, 0.230769, 0.923077])


def plain(u: Tensor, y: Tensor, weight: Tensor | float = 1.0, gamma: float = 0.0, **ntr) -> Tensor:  # type: ignore[no-untyped-def]
    """The family's equation, elementwise."""
    lam, bias, b = ntr.get("lam", 1.0), ntr.get("bias", 0.0), ntr.get("b", 1.0)
    z = u + bias
    ell = torch.where(y == 1, F.softplus(-z), F.softplus(lam * z))
    factor = -torch.expm1(-ell)
    value = b * factor**gamma * ell if gamma else b * ell
    return weight * torch.where(y == 1, value, value / lam)


def members() -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    n = torch.tensor(COUNTS).double()
    bias, b = -0.05 * torch.log(SAMPLES / n - 1), 2.0
    cb = (1 - 0.9) / (1 - 0.9**n)
    return {
        "NTR": ({"weighting": None, "focal": False}, {"lam": 2.0, "bias": bias}),
        "NTR-Focal": ({"weighting": None}, {"lam": 2.0, "bias": bias, "gamma": 2.0, "b": b}),
        "focal": ({"weighting": None, "ntr": False, "balance": 0.25}, {"gamma": 2.0, "b": 0.25}),
        "RW": ({"weighting": "inverse", "ntr": False, "focal": False}, {"weight": SAMPLES / n}),
        "sqrt RW": (
            {"weighting": "sqrt-inverse", "ntr": False, "focal": False},
            {"weight": (SAMPLES / n).sqrt()},
        ),
        "CB-Focal": (
            {"weighting": "class-balanced", "ntr": False},
            {"weight": cb, "gamma": 2.0, "b": b},
        ),
        "CB-NTR": (
            {"weighting": "class-balanced", "focal": False},
            {"weight": cb, "lam": 2.0, "bias": bias},
        ),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", members())
def test_members_of_the_family(name: str, dtype: torch.dtype) -> None:
    keywords, parts = members()[name]
    y, logits = hard(Draw(9, 3, seed=2)), Draw(9, 3, seed=3).input()
    loss = db(reduction="none", **keywords)

    def equation(u: Tensor) -> Tensor:
        cast = {k: v.to(u.dtype) if isinstance(v, Tensor) else v for k, v in parts.items()}
        return plain(u, y.to(u.dtype), **cast)

    assert_equation(lambda u: loss(u, y), equation, logits, dtype)


# asymmetric loss


def asymmetric(u: Tensor, y: Tensor, positive: float, negative: float, clip: float, detach: bool) -> Tensor:  # fmt: skip
    """Elementwise, the sum of both sides."""
    p = torch.sigmoid(u)
    p_m = torch.where(p > clip, p - clip, 0.0)
    own, other = (1 - p) ** positive, torch.where(p_m > 0, p_m, 1e-30) ** negative
    if detach:
        own, other = own.detach(), other.detach()
    # −log(1 − p_m), as 1 − p_m = σ(−u) + clip
    against = torch.log1p(p_m / (torch.sigmoid(-u) + clip)) if clip else F.softplus(u)
    return y * own * F.softplus(-u) + (1 - y) * other * against


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("numbers", [(0.0, 4.0, 0.05), (1.0, 4.0, 0.05), (1.0, 0.5, 0.2), (0.0, 0.0, 0.1), (2.0, 3.0, 0.0)])  # fmt: skip
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_asymmetric_equation(
    backend: str, labels: str, detach: bool, numbers: tuple[float, float, float], dtype: torch.dtype
) -> None:
    draw, device = Draw(8, 5, seed=4), device_of(backend)
    y = (hard if labels == "hard" else soft)(draw).float().double()
    loss = losses.AsymmetricLoss(*numbers, detach=detach, reduction="none", backend=backend)
    assert_equation(
        lambda u: loss(u.to(device), y.to(device)).cpu(),
        lambda u: asymmetric(u, y.to(u), *numbers, detach),
        draw.input(),
        dtype,
    )


def test_asymmetric_numbers(backend: str) -> None:
    """By hand: p = σ(0) = 1/2, p_m = 0.45; a negative of p ≤ clip is free, whatever γ⁻."""
    u = torch.zeros(1, 2).to(device_of(backend))
    y = torch.tensor([[1.0, 0.0]]).to(u.device)
    loss = losses.AsymmetricLoss(1.0, reduction="none", backend=backend)
    close(loss(u, y).cpu(), [[0.5 * math.log(2), -(0.45**4) * math.log(0.55)]])
    u = torch.tensor([[-2.95, -40.0, -math.inf]]).to(u.device).requires_grad_()
    for negative in (0.0, 0.5, 4.0):
        loss = losses.AsymmetricLoss(0.0, negative, backend=backend, reduction="sum")
        value = loss(u, torch.zeros_like(u))
        assert value == 0
        assert (torch.autograd.grad(value, u)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asymmetric_far_out(backend: str, dtype: torch.dtype) -> None:
    """Beyond all exponentials: finite gradients, a loss that ends at −log clip; nan stays nan."""
    device = device_of(backend)
    u = torch.tensor([[200.0, 5000.0, -200.0, -5000.0, math.inf, math.nan]], dtype=dtype).to(device)
    for y in (0.0, 1.0):
        v = u.clone().requires_grad_()
        loss = losses.AsymmetricLoss(1.0, 2.0, reduction="none", backend=backend)
        value = loss(v, torch.full_like(v, y))
        (grad,) = torch.autograd.grad(value.sum(), v)
        expected = [0, 0, 200, 5000, 0] if y else [-(0.95**2) * math.log(0.05)] * 2 + [0, 0] + [-(0.95**2) * math.log(0.05)]  # fmt: skip
        close(value[0, :5].cpu(), expected)
        assert grad[0, :5].isfinite().all()
        assert value[0, 5].isnan()
        assert grad[0, 5].isnan()


def test_asymmetric_special_cases() -> None:
    """Without a clip and with equal powers it is the focal loss, with powers of 0 cross-entropy."""
    draw = Draw(6, 4, seed=5)
    logits, y = draw.input(), soft(draw)
    for gamma in (0.0, 2.0):
        found = losses.AsymmetricLoss(gamma, gamma, 0.0)(logits, y)
        assert torch.equal(found, losses.MultiLabelLoss(phi=Focal(gamma))(logits, y))
    loss = losses.AsymmetricLoss()
    assert loss.phi == Asymmetric()
    loss.gamma_neg, loss.detach = 3.0, True
    assert loss.phi == Asymmetric(0.0, 3.0, 0.05, True)
    u = logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda u: losses.AsymmetricLoss(1.0, 3.0, reduction="none")(u, y), (u,)
    )


def test_asymmetric_beneath_lpl() -> None:
    """δ is that of plain LPL, and the loss the asymmetric one at what is moved."""
    draw = Draw(7, 3, seed=6)
    logits, y = draw.input(), hard(draw)
    loss = losses.MultiLabelLPLLoss(COUNTS, losses.AsymmetricLoss(1.0, reduction="none"))
    moved = loss.steps(logits, y) * loss.step_size
    z = logits + torch.where(y == 1, -moved, moved)
    torch.testing.assert_close(loss(logits, y), asymmetric(z, y, 1.0, 4.0, 0.05, False))


def test_asymmetric_refusals() -> None:
    with pytest.raises(TypeError, match="phi: .*several labels"):
        losses.CrossEntropyLoss(phi=Asymmetric())  # type: ignore[arg-type]
    for keywords in ({"gamma_pos": -1.0}, {"gamma_neg": math.inf}, {"clip": 1.0}, {"detach": 1}):
        with pytest.raises((TypeError, ValueError), match=next(iter(keywords))):
            Asymmetric(**keywords)


LABELS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0]])


def effective(n: float) -> float:
    return (1 - 0.9) / (1 - 0.9**n)


@pytest.mark.parametrize(
    ("weighting", "mode", "first", "last"),
    [
        ("inverse", "average-weight", (100 / 60 + 100 / 5) / 2, 100 / 20),
        ("inverse", "min-count", 100 / 5, 100 / 20),
        ("sqrt-inverse", "average-count", (100 / 32.5) ** 0.5, (100 / 20) ** 0.5),
        ("class-balanced", "average-weight", (effective(60) + effective(5)) / 2, effective(20)),
        ("class-balanced", "average-count", effective(32.5), effective(20)),
        ("class-balanced", "min-count", effective(5), effective(20)),
    ],
)
def test_weights_of_rows(weighting: str, mode: str, first: float, last: float) -> None:
    """From their positives; a row without them has 1, and missing labels are none."""
    y = LABELS.clone()
    y[1, 2] = -1
    parts = {"weighting": weighting, "weighting_mode": mode, "ntr": False, "focal": False}
    loss = db(ignore_index=-1, reduction="none", **parts)
    u = Draw(3, 3, seed=1).input()
    weight = torch.tensor([[first], [1.0], [last]]).double().expand(3, 3).clone()
    weight[1, 2] = 0
    target = y.clamp(min=0).double()
    close(loss(u, y), F.binary_cross_entropy_with_logits(u, target, weight, reduction="none"))


@pytest.mark.parametrize("norm", losses.multilabel.WEIGHT_NORMS)
@pytest.mark.parametrize("beta", [10.0, -3.0])
@pytest.mark.parametrize(
    "parts",
    [
        {"weighting": "rebalance"},
        {"weighting": "inverse"},
        {"weighting": "class-balanced", "weighting_mode": "min-count"},
    ],
    ids=lambda parts: parts["weighting"],
)
def test_normalised_weights(parts: dict[str, str], beta: float, norm: str) -> None:
    """The weights that the loss has without, divided by the largest of their row or batch."""
    u = torch.zeros(3, 3, dtype=torch.float64)
    keywords = {"ntr": False, "focal": False, "beta": beta, "reduction": "none", **parts}
    weight = db(**keywords)(u, LABELS)
    largest = weight.amax(1, keepdim=True) if norm == "by-row" else weight.max()
    found = db(weight_norm=norm, **keywords)(u, LABELS)
    close(found, weight / largest * math.log(2))
    given = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    close(db(weight_norm=norm, weight=given, **keywords)(u, LABELS), found * given)


@pytest.mark.parametrize("weighting", [*losses.multilabel.WEIGHTINGS, None])
def test_degenerate_counts(weighting: str | None) -> None:
    """No sample, all samples; rows without positives, batches without positives of a class."""
    loss = losses.DistributionBalancedLoss([0, 50, 100, 7], 100, weighting=weighting)
    u = Draw(6, 4, seed=1).input().requires_grad_()
    for y in (torch.zeros(6, 4), torch.ones(6, 4), hard(Draw(6, 4, seed=4))):
        value = loss(u, y)
        assert value.isfinite()
        assert torch.autograd.grad(value, u)[0].isfinite().all()


@pytest.mark.parametrize(
    ("match", "keywords"),
    [
        ("num_samples: expected at least 2 and every count, got 50", {"num_samples": 50}),
        ('weighting: expected "rebalance"', {"weighting": "none"}),
        ('weighting_mode: expected "by-class"', {"weighting_mode": "average"}),
        ("weighting_mode: needs a weighting by class", {"weighting_mode": "min-count"}),
        ('weight_norm: expected "by-row"', {"weight_norm": True}),
        ("weight_norm: needs a weighting", {"weight_norm": "by-row", "weighting": None}),
        ("neg_scale: expected", {"neg_scale": 0.0}),
        ("balance: expected", {"balance": -1.0}),
        ("cb_beta: expected", {"weighting": "class-balanced", "cb_beta": 1.0}),
        ("reduction: expected", {"reduction": "max"}),
    ],
)
def test_bad_input(match: str, keywords: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=match):
        losses.DistributionBalancedLoss(
            COUNTS,
            **{"num_samples": SAMPLES, **keywords},  # type: ignore[arg-type]
        )


def test_multilabel_ldam() -> None:
    d = Draw(7, 3, seed=5)
    u, y, n = d.input(), hard(d), torch.tensor(COUNTS).double()
    margin = 0.5 * (n / 5) ** -0.25
    loss = losses.MultiLabelLDAMLoss(COUNTS, s=3.0)
    close(loss(u, y), F.binary_cross_entropy_with_logits(3 * (u - margin * y), y))


def test_lpl_numbers() -> None:
    """METHODS 1.8, by bounds: K = 3 steps of 0.1."""
    u, one = torch.tensor([[0.5]]).double(), torch.ones(1, 1)
    for head, expected in ((0, 0.598139), (1, 0.371101)):
        loss = losses.MultiLabelLPLLoss(
            [10], head=head, epsilon=0.3, delta_epsilon=0.0, step_size=0.1
        )
        close(loss(u, one), expected)
        close(loss.eval()(u, one), F.softplus(torch.tensor(-0.5)).item())


def test_lpl_bounds_are_those_of_the_single_label_loss() -> None:
    counts = [100, 50, 20, 5, 1]
    loss = losses.MultiLabelLPLLoss(counts, head=2)
    d = Draw(6, 5, seed=1)
    assert torch.equal(loss.steps(d.input(), hard(d)), losses.LPLLoss(counts, head=2).steps)


def test_lpl_on_top_of_distribution_balanced(backend: str) -> None:
    d = Draw(12, 3, seed=1)
    u, y = d.input().requires_grad_(), missing(d)
    base = db(ignore_index=-1, backend=backend)
    loss = losses.MultiLabelLPLLoss(COUNTS, base, head=1, normalize=False, step_size=0.2,
                                    epsilon=1.0)  # fmt: skip
    delta = LF.lpl_binary_perturbation(
        u.detach(),
        y,
        loss.bounds.steps,
        step_size=0.2,
        perturbation=base.perturbation(u),
        ignore_index=-1,
    )
    moved = BinaryPerturbation(*(Perturbation(offset=part) for part in delta))
    found, expected = loss(u, y), base(u, y, perturbation=moved)
    close(found, expected, 1e-12)
    one, other = (torch.autograd.grad(value, u)[0] for value in (found, expected))
    torch.testing.assert_close(one, other)
    assert torch.equal(loss.eval()(u, y), base(u, y))


@pytest.mark.parametrize("statistics", ["batch", "ema"])
def test_balanced_split(backend: str, statistics: str) -> None:
    """Classes whose positives are below the average are raised; classes without any, untouched."""
    d = Draw(20, 4, seed=3)
    u, y = d.input(), hard(d)
    u[:, 1] += 6 * (2 * y[:, 1] - 1)
    y[:, 2] = 0
    loss = losses.MultiLabelLPLLoss(
        [1] * 4, losses.MultiLabelLoss(backend=backend), split="balanced", statistics=statistics
    )
    steps = loss.steps(u, y)
    mean = (torch.sigmoid(u) * y).sum(0) / y.sum(0)
    average = mean[y.sum(0) > 0].mean()
    assert steps[0] == steps[2] == 0
    expected = torch.sign(average - mean)
    assert torch.equal(steps[[1, 3]].sign(), expected[[1, 3]].int())
    assert loss(u, y).isfinite()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()(u, y)
    assert (len(before) > 0) == (statistics == "ema")
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_keywords_go_to_the_base() -> None:
    with pytest.raises(ValueError, match="reduction: give it to the base"):
        losses.MultiLabelLPLLoss(COUNTS, db(), reduction="sum")
    assert losses.MultiLabelLPLLoss(COUNTS, reduction="none")(U, Y).shape == U.shape
    assert math.isfinite(losses.MultiLabelLPLLoss(COUNTS)(U, Y))


def test_equalization_v2_is_a_choice_of_weights(backend: str) -> None:
    d = Draw(8, 5, seed=6)
    u, label = d.input(), d.labels()
    eql = losses.EQLv2Loss(5).eval()
    eql.positive.copy_(d.uniform(5))
    eql.negative.copy_(d.uniform(5))
    positive, negative = eql.weights()
    y = F.one_hot(label, 5)
    found = LF.binary_cross_entropy_with_logits(
        u, y, pos_weight=positive, neg_weight=negative, reduction="sum", backend=backend
    )
    close(found / 8, eql(u, label))


def test_binary_vector_scaling_is_a_choice_of_tables(backend: str) -> None:
    d = Draw(16, 1, seed=7)
    u, y = d.input(), (d.uniform(16, 1) < 0.4).long()
    vs = losses.BinaryVSLoss([90, 10], form="official", reduction="none")
    delta, iota = vs.table("delta", u), vs.table("iota", u)
    sides = (
        Perturbation(scale=delta[k : k + 1], offset=-iota[k : k + 1], temperature=1 / vs.s)
        for k in (1, 0)
    )
    found = LF.binary_cross_entropy_with_logits(
        u, y, perturbation=BinaryPerturbation(*sides), reduction="none", backend=backend
    )
    close(found, vs(u, y), 1e-6)
