"""The loss modules: numbers, state, devices and dtypes, class statistics and schedules."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import Draw

from lpl_fused import class_stats, losses, schedules
from lpl_fused import functional as LF
from lpl_fused.linear import NormalizedLinear

COUNTS = [100, 10, 1]
LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
COSINES = torch.tensor([[0.6, 0.2, -0.1], [0.6, 0.2, -0.1]])
LABELS = torch.tensor([0, 2])

NUMBERS = {
    "cross entropy": (losses.CrossEntropyLoss, (), LOGITS, [0.407606, 2.407606]),
    "logit adjustment": (losses.LogitAdjustedLoss, (COUNTS,), LOGITS, [0.037432, 6.642602]),
    "balanced softmax": (losses.BalancedSoftmaxLoss, (COUNTS,), LOGITS, [0.037432, 6.642602]),
    "vector scaling": (losses.VSLoss, (COUNTS,), LOGITS, [0.023417, 6.628587]),
    "vector scaling, γ = 0": (losses.VSLoss, (COUNTS, 0.0), LOGITS, [0.037432, 6.642602]),
    "vector scaling, τ = 0": (losses.VSLoss, (COUNTS, 0.3, 0.0), LOGITS, [0.306551, 2.306551]),
    "cdt": (losses.CDTLoss, (COUNTS,), LOGITS, [0.306551, 2.306551]),
    "ldam": (losses.LDAMLoss, (COUNTS,), COSINES, [0.000705, 36.000006]),
    "focal": (losses.FocalLoss, (), LOGITS, [0.045678, 1.993605]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(backend: str, name: str) -> None:
    make, arguments, logits, expected = NUMBERS[name]
    loss = make(*arguments, reduction="none", backend=backend)
    torch.testing.assert_close(loss(logits, LABELS), torch.tensor(expected), atol=2e-6, rtol=2e-6)


def test_vector_scaling_gradient(backend: str) -> None:
    logits = LOGITS[1:].clone().requires_grad_()
    losses.VSLoss(COUNTS, backend=backend)(logits, LABELS[1:]).backward()
    expected = torch.tensor([[0.976855, 0.010937, -0.250857]])
    torch.testing.assert_close(logits.grad, expected, atol=2e-6, rtol=0)


def test_class_balanced_weights() -> None:
    weights = class_stats.effective_number_weights(COUNTS)
    expected = torch.tensor([0.027159, 0.270369, 2.702472])
    torch.testing.assert_close(weights, expected, atol=2e-6, rtol=0)
    loss = losses.ClassBalancedLoss(COUNTS)
    torch.testing.assert_close(loss(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, weights))
    assert torch.equal(class_stats.effective_number_weights([5, 50], beta=0.0), torch.ones(2))
    assert class_stats.effective_number_weights([5, 0])[1] == 0


def test_margins() -> None:
    margin = losses.LDAMLoss(COUNTS).table("margin", LOGITS)
    torch.testing.assert_close(margin, torch.tensor([0.158114, 0.281171, 0.5]), atol=1e-6, rtol=0)


def test_ldam_is_the_equation() -> None:
    """Scale on margin and logits alike, weighted mean over Σ w_y."""
    draw = Draw(12, 4, seed=1)
    counts, cosines, target = [50, 20, 5, 1], torch.tanh(draw.input()), draw.labels()
    loss = losses.LDAMLoss(counts, weight=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    m = torch.tensor(counts).double() ** -0.25
    m = 0.5 * m / m.max()
    z = 30 * (cosines - m[target][:, None] * F.one_hot(target, 4))
    expected = F.cross_entropy(z, target, torch.tensor([1.0, 2.0, 3.0, 4.0]).double())
    torch.testing.assert_close(loss(cosines, target), expected)


def test_logit_adjustment_in_float64_is_exact() -> None:
    draw = Draw(9, 3, seed=2)
    logits, target = draw.input(), draw.labels()
    pi = torch.tensor(COUNTS).double() / 111
    expected = F.cross_entropy(logits + torch.log(pi + 1e-12), target)
    torch.testing.assert_close(
        losses.LogitAdjustedLoss(COUNTS)(logits, target), expected, rtol=1e-13, atol=0
    )


def test_empty_classes() -> None:
    """Logit adjustment keeps a class without samples finite, balanced softmax masks it; whose
    equation has no value there, takes it as the rarest class that has any."""
    logits, target = LOGITS[:1], LABELS[:1]
    assert losses.LogitAdjustedLoss([5, 5, 0])(logits, target).isfinite()
    masked = losses.BalancedSoftmaxLoss([5, 5, 0])(logits, target)
    torch.testing.assert_close(masked, F.cross_entropy(logits[:, :2], target))
    for make in (losses.LDAMLoss, losses.VSLoss, losses.CDTLoss, losses.LPLLoss):
        rarest = make([5, 5, 5])(LOGITS[:1], target)
        assert torch.equal(make([5, 5, 0])(LOGITS[:1], target), rarest)
        with pytest.raises(ValueError, match=r"cls_num_list.*>= 1, got 0.5 for class 2"):
            make([5, 5, 0.5])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], "shape"),
        ([[1, 2]], "shape"),
        ([1, -2], "-2 for class 1"),
        ([1, float("nan")], "nan"),
        ([0, 0], "all 0"),
    ],
)
def test_bad_counts(counts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"cls_num_list.*{message}"):
        losses.LogitAdjustedLoss(counts)


@pytest.mark.parametrize(
    "keywords",
    [
        {"split": "head"},
        {"statistics": "global"},
        {"momentum": 1.0},
        {"step_size": 0.0},
        {"epsilon": -1.0},
        {"delta_epsilon": float("inf")},
        {"head": 4},
        {"head": 1.5},
        {"variant": "official"},
        {"variant": "official-fixed", "step_size": 0.1},
        {"reduction": "average"},
    ],
    ids=str,
)
def test_bad_lpl_settings(keywords: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected|brings its own"):
        losses.LPLLoss(COUNTS, **keywords)


def test_tables_follow_devices_but_keep_their_precision() -> None:
    loss = losses.LogitAdjustedLoss(COUNTS)
    before = loss.table("offset", LOGITS).clone()
    for change in (lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.to(torch.float64)):
        change(loss)
        assert torch.equal(loss.table("offset", LOGITS), before)
        assert loss.table("offset", LOGITS.double()).dtype == torch.float64
    assert loss.to("meta").table("offset", LOGITS).device.type == "meta"


def test_state_holds_only_what_evolves() -> None:
    assert set(losses.LogitAdjustedLoss(COUNTS).state_dict()) == set()
    assert set(losses.LPLLoss(COUNTS).state_dict()) == set()
    ema = losses.LPLLoss(COUNTS, split="balanced", statistics="ema")
    assert set(ema.state_dict()) == {"mean_probability", "seen"}


def test_reweighting_in_the_middle_of_training() -> None:
    """DRW: the weight is a buffer that may be assigned every epoch."""
    loss = losses.LDAMLoss(COUNTS)
    for epoch, expected in (
        (0, torch.ones(3)),
        (160, class_stats.effective_number_weights(COUNTS)),
    ):
        loss.weight = schedules.drw_weights(COUNTS, epoch, start_epoch=160)
        torch.testing.assert_close(loss.weight, expected)
        assert loss(COSINES, LABELS).isfinite()
    assert "weight" in loss.state_dict()


def test_long_tail_steps() -> None:
    """K_c = ⌊ε_c/α⌋ with ε_c ∝ n_c/n_max in the head, n_min/n_c in the tail; order does not matter."""
    counts = [int(5000 * 0.01 ** (i / 9)) for i in range(10)]
    loss = losses.LPLLoss(counts)
    assert loss.steps.tolist() == [-6, -3, -2, -1, 0, 1, 2, 3, 6, 10]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = losses.LPLLoss([counts[i] for i in order])
    assert torch.equal(shuffled.steps, loss.steps[order])
    fixed = losses.LPLLoss(counts, epsilon=0.4, delta_epsilon=0.0, step_size=0.01, head=3)
    assert fixed.steps.tolist() == [-40] * 3 + [40] * 7


def test_lpl_is_the_function(backend: str) -> None:
    draw = Draw(12, 10, seed=3)
    logits, target = draw.input().float(), draw.labels()
    counts = [1000, 500, 200, 100, 50, 20, 10, 5, 2, 1]
    loss = losses.LPLLoss(counts, tau=1.0, backend=backend)
    offset = torch.log(torch.tensor(counts).double() / sum(counts) + 1e-12).float()
    expected = LF.lpl_cross_entropy(
        logits + offset, target, loss.steps, step_size=0.15, normalize=True, backend=backend
    )
    torch.testing.assert_close(loss(logits, target), expected)


def balanced_by_hand(logits, target, epsilon, span, step_size):  # type: ignore[no-untyped-def]
    p = torch.softmax(logits.double(), 1).gather(1, target[:, None])[:, 0]
    means = {c: p[target == c].mean() for c in target.unique().tolist()}
    tau = torch.stack(list(means.values())).mean()
    steps = torch.zeros(logits.shape[1], dtype=torch.int32)
    for c, q in means.items():
        bound = epsilon + span * (tau - q).abs()
        steps[c] = int(torch.sign(tau - q)) * int(bound / step_size + 1e-4)
    return steps


def row_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return LF.cross_entropy(logits, target, ignore_index=255, reduction="none")


def test_balanced_split(backend: str) -> None:
    """τ is the mean over the classes of the batch: absent ones never enter it."""
    draw = Draw(30, 50, seed=4)
    logits, target = draw.input(), draw.labels() % 7
    loss = losses.LPLLoss([1] * 50, split="balanced", epsilon=0.1, delta_epsilon=0.8, step_size=0.05, backend=backend)  # fmt: skip
    expected = balanced_by_hand(logits, target, 0.1, 0.8, 0.05)
    assert torch.equal(loss.balanced_steps(row_losses(logits, target), target), expected)
    assert (expected[7:] == 0).all()
    assert (expected < 0).any()
    assert (expected > 0).any()
    value = LF.lpl_cross_entropy(logits, target, expected, step_size=0.05, normalize=True)
    torch.testing.assert_close(loss(logits, target), value)
    alone = torch.zeros_like(target)
    one_class = loss.balanced_steps(row_losses(logits, alone), alone)
    assert (one_class == 0).all()  # q̄ = q̄_c: nobody is above or below


def test_balanced_split_ignores_ignored_rows() -> None:
    draw = Draw(30, 6, seed=5)
    logits, target = draw.input(), draw.labels()
    loss = losses.LPLLoss([1] * 6, split="balanced", ignore_index=255)
    padded = torch.cat([target, torch.full((5,), 255)])
    garbage = torch.cat([logits, torch.full((5, 6), float("nan"), dtype=torch.float64)])
    steps = loss.balanced_steps(row_losses(logits, target), target)
    assert torch.equal(loss.balanced_steps(row_losses(garbage, padded), padded), steps)
    assert torch.equal(loss(garbage, padded), loss(logits, target))


def test_running_statistics_survive_save_and_load() -> None:
    """Bit-equal continuation from the middle of training."""
    torch.manual_seed(0)
    loss = losses.LPLLoss([1] * 8, split="balanced", statistics="ema", momentum=0.7)
    batches = [(d.input().float(), d.labels() % 5) for d in (Draw(12, 8, seed=s) for s in range(6))]
    for batch in batches[:3]:
        loss(*batch)
    assert not loss.seen[5:].any()
    state = copy.deepcopy(loss.state_dict())
    onward = [loss(*batch) for batch in batches[3:]]
    again = losses.LPLLoss([1] * 8, split="balanced", statistics="ema", momentum=0.7)
    again.load_state_dict(state)
    assert all(torch.equal(a, again(*b)) for a, b in zip(onward, batches[3:], strict=True))
    assert torch.equal(loss.mean_probability, again.mean_probability)


def test_running_statistics_start_at_the_first_batch() -> None:
    loss = losses.LPLLoss([1] * 4, split="balanced", statistics="ema", momentum=0.9)
    logits, target = torch.zeros(2, 4), torch.tensor([0, 1])
    loss(logits, target)
    torch.testing.assert_close(loss.mean_probability, torch.tensor([0.25, 0.25, 0, 0]))
    logits[0, 0] = 100.0
    loss(logits, target)
    torch.testing.assert_close(loss.mean_probability, torch.tensor([0.325, 0.25, 0, 0]))


def test_evaluation_mode_perturbs_nothing() -> None:
    draw = Draw(12, 3, seed=6)
    logits, target = draw.input(), draw.labels()
    loss = losses.LPLLoss(COUNTS, split="balanced", statistics="ema").eval()
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target))
    assert not loss.seen.any()
    adjusted = losses.LPLLoss(COUNTS, tau=1.0).eval()
    expected = losses.LogitAdjustedLoss(COUNTS)(logits, target)
    torch.testing.assert_close(adjusted(logits, target), expected)


def test_losses_train_a_model() -> None:
    """Every module in a real step: gradients reach the model, the loss falls."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 6), torch.randint(3, (64,))
    for make in (
        lambda: losses.CrossEntropyLoss(label_smoothing=0.1),
        lambda: losses.LogitAdjustedLoss(COUNTS),
        lambda: losses.LDAMLoss(COUNTS),
        lambda: losses.VSLoss(COUNTS),
        lambda: losses.FocalLoss(),
        lambda: losses.ClassBalancedLoss(COUNTS),
        lambda: losses.LPLLoss(COUNTS),
        lambda: losses.LPLLoss(COUNTS, split="balanced"),
        lambda: losses.LPLLoss(COUNTS, variant="official-la-long-tail"),
    ):
        torch.manual_seed(1)
        loss = make()
        model = (
            NormalizedLinear(6, 3) if isinstance(loss, losses.LDAMLoss) else torch.nn.Linear(6, 3)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        values = []
        for _ in range(30):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < values[0], loss


def test_normalized_linear() -> None:
    layer = NormalizedLinear(5, 4).double()
    x = torch.randn(3, 5).double()
    expected = (x / x.norm(dim=1, keepdim=True)) @ (
        layer.weight / layer.weight.norm(dim=1, keepdim=True)
    ).t()
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer(torch.zeros(2, 5).double()), torch.zeros(2, 4).double())
    assert torch.autograd.gradcheck(layer, x.requires_grad_())
    norms = NormalizedLinear(50, 40).weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(40))


def test_class_counts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    expected = torch.tensor([2, 0, 1])
    labels = [0, 2, 0]
    annotations = tmp_path / "train.json"
    annotations.write_text(
        json.dumps(
            {
                "annotations": [{"category_id": c} for c in labels],
                "categories": [{"id": c} for c in range(3)],
            }
        )
    )
    for source in (
        labels,
        torch.tensor(labels),
        SimpleNamespace(targets=labels),
        SimpleNamespace(labels=torch.tensor(labels)),
        SimpleNamespace(index=[(c, "a.jpg") for c in labels]),
        annotations,
    ):
        assert torch.equal(class_stats.class_counts(source), expected)
    assert class_stats.class_counts(labels, num_classes=5).tolist() == [2, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="below num_classes=2, got 2"):
        class_stats.class_counts(labels, num_classes=2)
    with pytest.raises(ValueError, match="-1"):
        class_stats.class_counts([0, -1])
    with pytest.raises(TypeError, match="float"):
        class_stats.class_counts([0.5])
    with pytest.raises(TypeError, match="targets"):
        class_stats.class_counts(object())


def test_drw_schedule() -> None:
    assert torch.equal(schedules.drw_weights(COUNTS, 0, start_epoch=5), torch.ones(3))
    assert torch.equal(schedules.drw_weights(COUNTS, 4, start_epoch=5), torch.ones(3))
    late = schedules.drw_weights(COUNTS, 5, start_epoch=5)
    torch.testing.assert_close(late, class_stats.effective_number_weights(COUNTS, 0.9999))
    torch.testing.assert_close(late.sum(), torch.tensor(3.0))
