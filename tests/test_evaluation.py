"""Accuracy by class frequency and the relative loss variation."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from lpl_fused import functional as LF
from lpl_fused import losses
from lpl_fused.evaluation import accuracy, relative_loss_variation


def test_agrees_with_torchmetrics_and_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 7, generator=generator)
    target = torch.randint(7, (2000,), generator=generator)
    logits[torch.arange(2000), target] += 1
    result = accuracy(logits, target, torch.full((7,), 50))
    expected = multiclass_accuracy(logits, target, num_classes=7, average="none")
    torch.testing.assert_close(result.per_class.float(), expected)
    micro = multiclass_accuracy(logits, target, num_classes=7, average="micro")
    assert result.overall == pytest.approx(float(micro))
    assert result.balanced == pytest.approx(balanced_accuracy_score(target, logits.argmax(1)))
    assert result.medium == pytest.approx(result.balanced)


def test_splits_by_the_number_of_training_examples() -> None:
    #                    many      medium       few
    counts = torch.tensor([101, 500, 100, 20, 19, 1])
    target = torch.arange(6).repeat_interleave(2)
    predictions = torch.tensor([0, 0, 1, 5, 2, 2, 3, 3, 4, 0, 0, 0])
    result = accuracy(predictions, target, counts)
    assert result.per_class.tolist() == [1, 0.5, 1, 1, 0.5, 0]
    assert (result.many, result.medium, result.few) == (0.75, 1.0, 0.25)
    assert result.overall == pytest.approx(8 / 12)

    moved = accuracy(predictions, target, counts, many_above=100, few_below=101)
    assert moved.few == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert math.isnan(moved.medium)


def test_classes_without_test_examples_are_left_out() -> None:
    target = torch.tensor([0, 0, 2])
    result = accuracy(torch.tensor([0, 1, 2]), target, torch.tensor([200, 50, 5]))
    assert result.per_class.isnan().tolist() == [False, True, False]
    assert (result.many, result.few, result.balanced) == (0.5, 1.0, 0.75)
    assert math.isnan(result.medium)


def test_no_test_example_at_all_gives_nan() -> None:
    result = accuracy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.ones(3))
    values = (result.overall, result.balanced, result.many, result.medium, result.few)
    assert all(math.isnan(value) for value in values)


def test_logits_and_their_argmax_give_the_same() -> None:
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    target = torch.arange(5).repeat(20)
    counts = [200, 120, 60, 10, 3]
    whole = accuracy(logits, target, torch.tensor(counts))
    assert torch.equal(
        whole.per_class, accuracy(logits.argmax(1), target, torch.tensor(counts)).per_class
    )


LABELS = torch.tensor([0, 1, 2])
COUNTS = torch.tensor([5, 5, 5])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (
            (torch.zeros(3, 4), LABELS, COUNTS),
            {},
            ValueError,
            r"input: expected logits of 3 classes, .* got \(3, 4\)",
        ),
        ((torch.zeros(4, 3), LABELS, COUNTS), {}, ValueError, "4 samples but target has 3"),
        ((torch.zeros(3), LABELS, COUNTS), {}, TypeError, r"got shape \(3,\), torch.float32"),
        ((torch.zeros(3, 3, 1), LABELS, COUNTS), {}, TypeError, "raw logits"),
        ((LABELS, LABELS.float(), COUNTS), {}, TypeError, "target: expected a tensor of integers"),
        ((LABELS, LABELS + 1, COUNTS), {}, ValueError, "target 3 is out of range for 3 classes"),
        ((LABELS - 1, LABELS, COUNTS), {}, ValueError, "prediction -1 is out of range"),
        (
            (LABELS, LABELS, COUNTS[None]),
            {},
            ValueError,
            "cls_num_list: expected one count per class",
        ),
        ((LABELS, LABELS, [5, -1, 3]), {}, ValueError, "cls_num_list: .*got -1 for class 1"),
        ((LABELS, LABELS, [5, math.nan, 3]), {}, ValueError, "cls_num_list: .*got nan for class 1"),
        ((LABELS, LABELS, COUNTS), {"many_above": 5, "few_below": 9}, ValueError, "few_below=9"),
    ],
)
def test_accuracy_errors(arguments, keywords, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        accuracy(*arguments, **keywords)


def test_variation_is_the_mean_of_ratios_per_class() -> None:
    loss = torch.tensor([1.0, 2.0, 4.0, 0.0, 0.0])
    perturbed = torch.tensor([1.5, 2.0, 1.0, 3.0, 3.0])
    target = torch.tensor([0, 0, 1, 1, 2])
    variation = relative_loss_variation(loss, perturbed, target, 4)
    assert variation[:2].tolist() == [0.25, -0.75]
    assert variation[2:].isnan().all(), "a class whose losses are all 0, and one that is absent"


def test_variation_of_a_perturbation_worked_out_by_hand() -> None:
    # u = [2, 1, 0], y = 0: l = 0.407606; one normalised step of 0.1 raises it to 0.451900,
    # lowers it to 0.366976
    logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    plain = LF.cross_entropy(logits, target, reduction="none")
    for direction, loss in ((1, 0.451900), (-1, 0.366976)):
        steps = torch.tensor([direction, 0, 0])
        perturbed = LF.lpl_cross_entropy(
            logits, target, steps, step_size=0.1, normalize=True, reduction="none"
        )
        variation = relative_loss_variation(plain, perturbed, target, 3)
        assert variation[0].item() == pytest.approx(loss / 0.407606 - 1, abs=1e-5)


def test_logit_adjustment_raises_the_rare_and_lowers_the_frequent() -> None:
    counts = torch.tensor([100, 10, 1])
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    target = torch.arange(3).repeat(20)
    plain = LF.cross_entropy(logits, target, reduction="none")
    adjusted = losses.LogitAdjustedLoss(counts, reduction="none")(logits, target)
    variation = relative_loss_variation(plain, adjusted, target, 3)
    assert variation[0] < 0 < variation[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(2), torch.ones(3), LABELS, 3), ValueError, "loss has 2 samples"),
        ((torch.ones(3), torch.ones(2), LABELS, 3), ValueError, "perturbed_loss has 2 samples"),
        (
            (torch.ones(3), torch.tensor(1.0), LABELS, 3),
            ValueError,
            "perturbed_loss: expected a tensor of floating",
        ),
        (
            (torch.ones(3).long(), torch.ones(3), LABELS, 3),
            TypeError,
            "loss: expected a tensor of floating",
        ),
        ((torch.ones(3), torch.ones(3), LABELS, 2), ValueError, "target 2 is out of range"),
    ],
)
def test_variation_errors(arguments, error, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        relative_loss_variation(*arguments)
