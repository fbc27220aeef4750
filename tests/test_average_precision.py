"""Mean average precision against scikit-learn, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score

from lpl_fused.average_precision import mean_average_precision


def made(n: int, c: int, rate: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, c, generator=generator)
    return scores, (torch.rand(n, c, generator=generator) < rate).long()


def sklearn_per_class(scores: torch.Tensor, labels: torch.Tensor) -> list[float]:
    return [
        float(average_precision_score(labels[:, c].numpy(), scores[:, c].double().numpy()))
        if labels[:, c].any()
        else math.nan
        for c in range(labels.shape[1])
    ]


def assert_per_class(scores: torch.Tensor, labels: torch.Tensor) -> None:
    found = mean_average_precision(scores, labels, torch.ones(labels.shape[1])).per_class
    expected = torch.tensor(sklearn_per_class(scores, labels), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("n", "c", "rate"), [(1, 1, 0.9), (7, 5, 0.4), (101, 33, 0.03)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_agrees_with_scikit_learn(n: int, c: int, rate: float, dtype: torch.dtype) -> None:
    scores, labels = made(n, c, rate, seed=n)
    assert_per_class(scores.to(dtype), labels)


def test_ties_are_one_threshold() -> None:
    scores, labels = made(60, 9, 0.2, seed=1)
    assert_per_class((2 * scores).round(), labels)
    assert_per_class(torch.zeros_like(scores), labels)


def test_logits_that_a_sigmoid_cannot_tell_apart() -> None:
    scores, labels = made(60, 9, 0.2, seed=2)
    assert_per_class(1e4 + 100 * scores, labels)
    assert_per_class(-1e4 + 100 * scores, labels)
    scores[::7] = -math.inf
    order = scores.argsort(0).argsort(0).double()
    order[::7] = -1.0
    expected = mean_average_precision(order, labels, torch.ones(9)).per_class
    found = mean_average_precision(scores, labels, torch.ones(9)).per_class
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_labels_of_any_dtype(kind: torch.dtype) -> None:
    scores, labels = made(20, 4, 0.3, seed=3)
    counts = torch.ones(4)
    found = mean_average_precision(scores, labels.to(kind), counts)
    assert torch.equal(found.per_class, mean_average_precision(scores, labels, counts).per_class)


def test_groups_leave_out_classes_without_a_positive() -> None:
    scores, labels = made(50, 6, 0.3, seed=4)
    labels[:, [1, 4]] = 0
    counts = torch.tensor([101, 500, 100, 20, 19, 1])
    found = mean_average_precision(scores, labels, counts)
    ap = sklearn_per_class(scores, labels)
    assert [math.isnan(value) for value in found.per_class.tolist()] == [
        c in (1, 4) for c in range(6)
    ]
    assert found.overall == pytest.approx((ap[0] + ap[2] + ap[3] + ap[5]) / 4, rel=1e-5)
    assert found.many == pytest.approx(ap[0], rel=1e-5)
    assert found.medium == pytest.approx((ap[2] + ap[3]) / 2, rel=1e-5)
    assert found.few == pytest.approx(ap[5], rel=1e-5)
    moved = mean_average_precision(scores, labels, counts, many_above=19, few_below=2)
    assert moved.many == pytest.approx((ap[0] + ap[2] + ap[3]) / 3, rel=1e-5)
    assert math.isnan(moved.medium)


def test_no_positive_at_all() -> None:
    scores, labels = made(5, 3, 0.0, seed=5)
    found = mean_average_precision(scores, labels, torch.ones(3))
    assert math.isnan(found.overall)
    assert found.per_class.isnan().all()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"scores": torch.zeros(4, 3, dtype=torch.int64)},
            TypeError,
            "scores: expected a tensor of floating numbers, .* of torch.int64",
        ),
        (
            {"scores": torch.zeros(0, 3), "target": torch.zeros(0, 3)},
            ValueError,
            r"not empty, got \(0, 3\)",
        ),
        ({"scores": torch.zeros(4)}, ValueError, r"scores: .*shape \(N, C\), got shape \(4,\)"),
        ({"target": torch.zeros(4, 2)}, ValueError, r"target: expected the shape \(4, 3\)"),
        ({"target": torch.full((4, 3), 2)}, ValueError, "labels 0 and 1"),
        ({"target": torch.full((4, 3), math.nan)}, ValueError, "labels 0 and 1"),
        (
            {"cls_num_list": torch.ones(4)},
            ValueError,
            r"cls_num_list: expected shape \(3,\), got \(4,\)",
        ),
        ({"cls_num_list": [5, -1, 3]}, ValueError, "cls_num_list: .*got -1 for class 1"),
        ({"scores": torch.full((4, 3), math.nan)}, ValueError, "got nan"),
        ({"many_above": 5, "few_below": 7}, ValueError, "few_below=7, many_above=5"),
    ],
)
def test_what_is_refused(changed: dict[str, object], error: type[Exception], message: str) -> None:
    given = {
        "scores": torch.zeros(4, 3),
        "target": torch.zeros(4, 3),
        "cls_num_list": torch.ones(3),
    }
    with pytest.raises(error, match=message):
        mean_average_precision(**(given | changed))  # type: ignore[arg-type]
