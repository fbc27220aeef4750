"""Rows of two labels whose logits move by label (margins, rows by class, the learned perturbation),
and the labels and shares of class probabilities, each against its equation in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from torch import Tensor

from lpl_fused import Focal, MarginPenalty, MixedTarget, Perturbation, losses
from lpl_fused import functional as LF
from lpl_fused.testing import budget, device_of, error

N, C = 14, 6
COUNTS = [50, 30, 20, 10, 5, 1]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
STEPS = torch.tensor([-4, 3, 0, 6, -1, 2])
STEP_SIZE = 0.2


def pair(draw: Draw) -> MixedTarget:
    """Classes with several rows in either place; labels that are ignored, of one and of both;
    shares of 0 and of 1; a row whose labels are the same."""
    first, other = draw.labels(), draw.labels()
    lam = draw.uniform(draw.n).float().double()  # what every dtype of tables holds
    first[0] = other[1] = first[2] = other[2] = -100
    lam[3], lam[4] = 0.0, 1.0
    other[5] = first[5]
    return MixedTarget(first, other, lam)


def labelled(target: MixedTarget) -> list[tuple[Tensor, Tensor]]:
    """(label, share) of both places; a share of 0 where nothing counts."""
    shares = (target.lam, 1 - target.lam)
    return [(label.clamp(min=0), share * (label >= 0)) for label, share in zip(target, shares, strict=False)]  # fmt: skip


def smoothed_loss(z: Tensor, label: Tensor, epsilon: float, weight: Tensor) -> Tensor:
    """Of logits z (N, C) and labels: (1 − ε)·w_y·ℓ_y + ε/C·Σ_j w_j·ℓ_j."""
    ell = torch.logsumexp(z, 1, keepdim=True) - z
    own = ell.gather(1, label[:, None])[:, 0] * weight[label]
    return (1 - epsilon) * own + epsilon * (ell * weight).mean(1)


def delta_of(z: Tensor, target: MixedTarget, normalize: bool) -> Tensor:
    """(C, C): K_c steps along Σ_i λ_ic·(softmax(z_i + δ_c) − e_c) / Σ_i λ_ic."""
    delta = torch.zeros(C, C, dtype=z.dtype)
    for c in range(C):
        share = sum(share * (label == c) for label, share in labelled(target)).to(z.dtype)
        for _ in range(int(STEPS[c].abs()) if share.sum() > 0 else 0):
            p = torch.softmax(z + delta[c], 1) - F.one_hot(torch.tensor(c), C)
            g = (share[:, None] * p).sum(0) / share.sum()
            if normalize:
                g = g / g.norm()
            moved = delta.clone()
            moved[c] = delta[c] + float(STEPS[c].sign()) * STEP_SIZE * g
            delta = moved
    return delta


def total(target: MixedTarget, z: Callable[[Tensor], Tensor], u: Tensor, reduction: str, epsilon: float, weight: Tensor) -> Tensor:  # fmt: skip
    """Σ over labels of share·L(z(label), label), as the reduction wants it."""
    value, norm = u.new_zeros(N), u.new_zeros(N)
    for label, share in labelled(target):
        share = share.to(u.dtype)
        value = value + share * smoothed_loss(z(label), label, epsilon, weight)
        norm = norm + share * weight[label]
    if reduction == "none":
        return value
    return value.sum() / norm.sum() if reduction == "mean" else value.sum()


def compare(found: Callable[[Tensor], Tensor], equation: Callable[[Tensor], Tensor], logits: Tensor, dtype: torch.dtype, backend: str) -> None:  # fmt: skip
    def solved(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.clone().requires_grad_()
        value = function(u)
        upstream = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
        (grad,) = torch.autograd.grad(value, u, upstream.to(value.device, value.dtype))
        return value.detach().cpu(), grad.cpu()

    wide = dtype if dtype == torch.float64 else torch.float32
    rounded = logits.to(dtype)
    truth, eager = solved(equation, rounded.double()), solved(equation, rounded.to(wide))
    results = solved(found, rounded.to(device_of(backend)))
    for name, value, plain, exactly in zip(
        ("loss", "gradient"), results, eager, truth, strict=True
    ):
        allowed = budget(value.dtype, error(plain, exactly, cancels=True))
        actual = error(value, exactly, cancels=True)
        assert actual <= allowed, f"error {actual:.2e} of the {name} exceeds {allowed:.2e}"


def on(backend: str, *values: Any) -> list[Any]:
    device = device_of(backend)
    moved = lambda value: value.to(device) if isinstance(value, Tensor) else value  # noqa: E731
    return [MixedTarget(*map(moved, v)) if isinstance(v, MixedTarget) else moved(v) for v in values]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_margins_and_rows_by_class(backend: str, reduction: str, dtype: torch.dtype) -> None:
    draw = Draw(N, C, seed=3)
    target, logits = pair(draw), draw.input()
    margin, rows, weight = (draw.uniform(*shape).float().double() for shape in ((C,), (C, C), (C,)))
    epsilon = 0.1 if reduction == "mean" else 0.0
    given, m, r, w = on(backend, target, margin, rows, weight)

    def found(u: Tensor) -> Tensor:
        tables = Perturbation(margin=m, rows=r, temperature=0.5)
        keywords = {"reduction": reduction, "label_smoothing": epsilon, "backend": backend}
        return LF.cross_entropy(u, given, w, perturbation=tables, **keywords)

    def equation(u: Tensor) -> Tensor:
        def z(label: Tensor) -> Tensor:
            return (u + (rows[label] - margin[label][:, None] * F.one_hot(label, C)).to(u)) / 0.5

        return total(target, z, u, reduction, epsilon, weight.to(u))

    compare(found, equation, logits, dtype, backend)


@pytest.mark.parametrize("normalize", [False, True], ids=["gradient", "unit"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_learned_perturbation(backend: str, dtype: torch.dtype, normalize: bool) -> None:
    draw = Draw(N, C, seed=4)
    target, logits = pair(draw), draw.input()
    offset, weight = draw.normal(C).float().double(), draw.uniform(C).float().double()
    reduction, epsilon = ("mean", 0.2) if normalize else ("none", 0.0)
    given, b, w, steps = on(backend, target, offset, weight, STEPS)

    def found(u: Tensor) -> Tensor:
        keywords = {"reduction": reduction, "label_smoothing": epsilon, "normalize": normalize}
        return LF.lpl_cross_entropy(
            u, given, steps, w, step_size=STEP_SIZE, perturbation=Perturbation(offset=b, temperature=0.5), backend=backend, **keywords
        )  # fmt: skip

    def equation(u: Tensor) -> Tensor:
        moved = (u + offset.to(u)) / 0.5
        delta = delta_of(moved.detach(), target, normalize)
        return total(
            target, lambda label: moved + delta[label], u, reduction, epsilon, weight.to(u)
        )

    compare(found, equation, logits, dtype, backend)


def test_through_the_steps(backend: str) -> None:
    draw = Draw(N, C, seed=5)
    target = pair(draw)
    given, steps = on(backend, target, STEPS)

    def found(u: Tensor) -> Tensor:
        keywords = {"step_size": STEP_SIZE, "normalize": True, "through_perturbation": True}
        return LF.lpl_cross_entropy(u, given, steps, backend=backend, **keywords)

    def equation(u: Tensor) -> Tensor:
        delta = delta_of(u, target, True)
        return total(target, lambda label: u + delta[label], u, "mean", 0.0, torch.ones(C).to(u))

    compare(found, equation, draw.input(), torch.float64, backend)


def test_gradcheck() -> None:
    draw = Draw(6, C, seed=6)
    target, u = pair(draw), draw.input().requires_grad_()
    margin = draw.uniform(C).requires_grad_()
    lam = target.lam.clone().clamp(0.1, 0.9).requires_grad_()
    steps = {"steps": STEPS, "step_size": STEP_SIZE, "through_perturbation": True}

    def with_margin(u: Tensor, margin: Tensor, lam: Tensor) -> Tensor:
        mixed = target._replace(lam=lam)
        return LF.cross_entropy(u, mixed, perturbation=Perturbation(margin=margin), reduction="none")  # fmt: skip

    assert torch.autograd.gradcheck(with_margin, (u, margin, lam))
    assert torch.autograd.gradcheck(lambda u: LF.lpl_cross_entropy(u, target, **steps), (u,))


def test_one_label_in_two_places() -> None:
    """A share of 1, or twice the same label, is the one label's loss."""
    draw = Draw(N, C, seed=7)
    logits, one, other = draw.input(), draw.labels(), draw.labels()
    for make in (losses.LDAMLoss, losses.LPLLoss, lambda n, **k: losses.LPLLoss(n, split="balanced", **k)):  # fmt: skip
        expected = make(COUNTS, reduction="none")(logits, one)
        for target in (
            MixedTarget(one, other, 1.0),
            MixedTarget(other, one, 0),
            MixedTarget(one, one, draw.uniform(N)),
        ):
            found = make(COUNTS, reduction="none")(logits, target)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_running_means_take_shares() -> None:
    draw = Draw(N, C, seed=8)
    logits, target = draw.input(), pair(draw)
    loss = losses.LPLLoss(COUNTS, split="balanced", statistics="ema")
    loss(logits, target)
    p = torch.softmax(logits, 1)
    for c in range(C):
        share = sum(share * (label == c) for label, share in labelled(target))
        if share.sum() > 0:
            mean = (share * p[:, c]).sum() / share.sum()
            torch.testing.assert_close(loss.mean_probability[c].double(), mean, rtol=1e-6, atol=0)


def test_delta_for_inspection() -> None:
    draw = Draw(N, C, seed=9)
    logits, target = draw.input(), pair(draw)
    for normalize in (False, True):
        classes, delta = LF.lpl_perturbation(
            logits, target, STEPS, step_size=STEP_SIZE, normalize=normalize
        )
        present = torch.cat([label[share > 0] for label, share in labelled(target)]).unique()
        assert torch.equal(classes, present)
        torch.testing.assert_close(delta, delta_of(logits, target, normalize)[classes])


def test_a_label_without_a_share_hides_its_loss(backend: str) -> None:
    u = torch.tensor([[0.5, 0.0, -math.inf]] * 2).to(device_of(backend)).requires_grad_()
    target = MixedTarget(torch.tensor([0, 2]), torch.tensor([2, 1]), torch.tensor([1.0, 0.0]))
    (target,) = on(backend, target)
    margin = Perturbation(margin=torch.ones(3, device=u.device))
    for loss in (
        LF.cross_entropy(u, target, perturbation=margin, backend=backend),
        LF.lpl_cross_entropy(u, target, torch.ones(3, device=u.device).int(), step_size=0.1, backend=backend),
    ):  # fmt: skip
        assert loss.isfinite()
        assert torch.autograd.grad(loss, u)[0].isfinite().all()


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_counts(backend: str, rows: int) -> None:
    """No rows, or rows of ignored labels that hold anything: a mean of nan, as torch's, a sum of 0,
    no gradient."""
    label = torch.full((rows,), -100)
    target, margin, steps = on(backend, MixedTarget(label, label, 0.3), torch.ones(C), STEPS)
    for reduction, expected in (("mean", math.nan), ("sum", 0.0)):
        u = torch.full((rows, C), math.nan, device=device_of(backend)).requires_grad_()
        keywords = {"reduction": reduction, "backend": backend}
        for loss in (
            LF.cross_entropy(u, target, perturbation=Perturbation(margin=margin), **keywords),
            LF.lpl_cross_entropy(u, target, steps, step_size=0.1, **keywords),
        ):
            torch.testing.assert_close(loss.item(), expected, equal_nan=True)
            assert (torch.autograd.grad(loss, u)[0] == 0).all()


def test_penalties_count_once() -> None:
    draw = Draw(N, C, seed=10)
    logits, target = draw.input(), pair(draw)
    penalty = MarginPenalty(margin=1.0)
    ldam = losses.LDAMLoss(COUNTS)
    for reduction in ("none", "mean", "sum"):
        keywords = {"reduction": reduction, "perturbation": ldam.perturbation(logits)}
        found = LF.cross_entropy(logits, target, penalty=penalty, **keywords)
        alone = LF.cross_entropy(logits, target, penalty=penalty, reduction=reduction)
        alone = alone - LF.cross_entropy(logits, target, reduction=reduction)
        torch.testing.assert_close(found, LF.cross_entropy(logits, target, **keywords) + alone)
    based = losses.MbLSLoss(0.1, 1.0, base=losses.LDAMLoss(COUNTS))(logits, target)
    assert based > ldam(logits, target)


def test_images_and_compiled() -> None:
    draw = Draw(12, C, seed=11)
    logits, target = draw.input(), pair(draw)
    image = logits.reshape(3, 4, C).movedim(-1, 1)
    squares = MixedTarget(*(part.reshape(3, 4) for part in target))
    for loss in (losses.LPLLoss(COUNTS, phi=Focal(1.0)), losses.LDAMLoss(COUNTS), losses.LPLLoss(COUNTS, split="balanced")):  # fmt: skip
        torch.testing.assert_close(loss(image, squares), loss(logits, target))
        u = logits.clone().requires_grad_()
        value = torch.compile(loss, backend="aot_eager")(u, target)
        (grad,) = torch.autograd.grad(value, u)
        v = logits.clone().requires_grad_()
        plain = loss(v, target)
        torch.testing.assert_close(value, plain)
        torch.testing.assert_close(grad, torch.autograd.grad(plain, v)[0])


def test_refusals() -> None:
    logits, label = torch.zeros(2, 3), torch.tensor([0, 1])
    mixed, soft = MixedTarget(label, label, 0.5), torch.full((2, 3), 1 / 3)
    ldam, lpl = losses.LDAMLoss([3, 2, 1]), losses.LPLLoss([3, 2, 1])
    for loss, name in ((ldam, "margin"), (lpl, "target")):
        with pytest.raises(ValueError, match=f"{name}: .*of_probabilities"):
            loss(logits, soft)
        loss.gradient = "inplace"
        with pytest.raises(ValueError, match="inplace"):
            loss(logits.clone().requires_grad_() * 1, mixed)
    with pytest.raises(ValueError, match="out of range"):
        ldam.__class__([3, 2, 1])(logits, MixedTarget(label, label + 2, 1.0))
    with pytest.raises(ValueError, match="sweep.*through_perturbation"):
        losses.LPLLoss([3, 2, 1], through_perturbation=True, gradient="sweep")(logits, mixed)


# labels and shares of class probabilities


def as_timm_mixes(first: Tensor, other: Tensor, lam: Tensor, smoothing: float) -> Tensor:
    """timm's mixup_target: smoothed one-hot rows, mixed."""
    off = smoothing / C
    one, two = (F.one_hot(y, C).double() * (1 - smoothing) + off for y in (first, other))
    return one * lam[:, None] + two * (1 - lam[:, None])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_labels_of_probabilities(smoothing: float, dtype: torch.dtype) -> None:
    draw = Draw(50, C, seed=12)
    first, other, lam = draw.labels(), draw.labels(), draw.uniform(50)
    lam[:2] = torch.tensor([0.0, 1.0])
    dense = as_timm_mixes(first, other, lam, smoothing)
    found = MixedTarget.of_probabilities(dense.to(dtype), label_smoothing=smoothing)
    assert isinstance(found, MixedTarget)
    back = as_timm_mixes(found.target, found.other, found.lam.double(), smoothing)
    torch.testing.assert_close(back, dense, rtol=0, atol=8 * torch.finfo(dtype).eps)
    if dtype == torch.float64:
        # the loss of labels that are smoothed by the loss is that of smoothed probabilities
        logits = draw.input()
        loss = LF.cross_entropy(logits, found, label_smoothing=smoothing)
        torch.testing.assert_close(loss, LF.cross_entropy(logits, dense))
        picture = dense.reshape(5, 10, C).movedim(-1, 1)
        shares = MixedTarget.of_probabilities(picture, label_smoothing=smoothing).lam
        assert torch.equal(shares.reshape(-1), found.lam)
        one = MixedTarget.of_probabilities(dense[7], label_smoothing=smoothing)
        assert torch.equal(one.lam, found.lam[7])


@pytest.mark.parametrize(
    ("rows", "keywords", "kind", "message"),
    [
        ([[0.5, 0.3, 0.2]], {}, ValueError, "at most two classes.*1 of 1"),
        ([[0.5, 0.4, 0.0]], {}, ValueError, "sum to 1"),
        ([[1.5, -0.5, 0.0]], {}, ValueError, "probabilities"),
        ([[math.nan, 0.5, 0.5]], {}, ValueError, "probabilities"),
        ([[0.7, 0.2, 0.1]] * 2, {}, ValueError, "label_smoothing=0;.*2 of 2"),
        ([[1.0, 0.0, 0.0]], {"label_smoothing": 0.3}, ValueError, "label_smoothing=0.3"),
        ([[1.0, 0.0, 0.0]], {"label_smoothing": 1.0}, ValueError, "label_smoothing: .*got 1"),
        ([[1.0]], {}, ValueError, r"two classes or more, got \(1, 1\)"),
        ([[1, 0, 0]], {}, TypeError, "floating"),
    ],
)  # fmt: skip
def test_probabilities_that_name_more(rows, keywords, kind, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(kind, match=message):
        MixedTarget.of_probabilities(torch.tensor(rows), **keywords)
    if kind is ValueError and "label_smoothing" not in message and len(rows[0]) == 3:
        # who does not look at numbers gets a share of nan
        wrong = torch.compile(MixedTarget.of_probabilities, backend="eager")(torch.tensor(rows))
        assert wrong.lam.isnan().all()
