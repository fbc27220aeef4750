"""Counts of classes: every loss takes them in every form, with classes that have no samples; counting
opens no image."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from lpl_fused import losses, schedules
from lpl_fused.class_stats import checked_counts, class_counts, effective_number_weights
from lpl_fused.sampling import UniMix

COUNTS = [100, 10, 0, 3]
NEEDED = {"num_samples": 200, "threshold": 0.1}
KINDS = [
    kind
    for kind in map(vars(losses).get, losses.__all__)
    if inspect.isclass(kind)
    and issubclass(kind, nn.Module)
    and "cls_num_list" in inspect.signature(kind.__init__).parameters
    and kind is not losses.BinaryVSLoss  # two labels, not classes
]


def made(kind: Any, counts: Any) -> nn.Module:
    names = inspect.signature(kind.__init__).parameters
    return kind(counts, **{k: v for k, v in NEEDED.items() if k in names})  # type: ignore[no-any-return]


def value(loss: nn.Module) -> Tensor:
    """With no row of the class that has no samples."""
    torch.manual_seed(0)
    logits, target = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 3, 0, 1, 3])
    if isinstance(loss, losses.MultiLabelLoss):
        result = loss(logits, nn.functional.one_hot(target, 4).float())
    elif isinstance(loss, losses.IBLoss):
        loss.start_epoch = 0
        result = loss(logits, target, torch.ones(6))
    else:
        result = loss(logits, target)
    (grad,) = torch.autograd.grad(result, logits)
    assert grad.isfinite().all()
    return torch.cat([result.detach().reshape(1), grad.flatten()])


class Column:
    """As pandas' Series: numbers by a label each, in an order of their own."""

    def __init__(self, numbers: dict[Any, Any]) -> None:
        self.numbers, self.index = numbers, np.array(list(numbers))

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(list(self.numbers.values()), dtype)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.numbers.values())

    def __getitem__(self, label: Any) -> Any:
        return self.numbers[label]

    def items(self) -> Any:
        return self.numbers.items()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_without_samples_leaves_a_loss_finite(kind: Any) -> None:
    assert value(made(kind, COUNTS)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_every_form_are_the_same_counts(kind: Any) -> None:
    expected = value(made(kind, COUNTS))
    for counts in (
        torch.tensor(COUNTS),
        np.array(COUNTS),
        tuple(COUNTS),
        Counter({0: 100, 1: 10, 3: 3}),
        {np.int64(3): 3, 1: 10, 0: 100},
        Column({np.int64(3): 3, np.int64(0): 100, np.int64(1): 10, np.int64(2): 0}),
        Column({3: 3, 0: 100, 1: 10}),
    ):
        assert torch.equal(value(made(kind, counts)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_another_number_of_classes_are_refused(kind: Any) -> None:
    for counts in ([50, 20, 10], [50, 20, 10, 5, 2]):
        with pytest.raises(ValueError, match="expected"):
            value(made(kind, counts))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"cat": 3}, {-1: 2}, "abc", None, 3, [1, None], {0: "x"}, [0, 0], torch.ones(2, 2)],
)
def test_wrong_counts_are_refused_by_name(wrong: Any) -> None:
    for make in (*KINDS, UniMix, effective_number_weights):
        if make is losses.IBLoss and wrong is None:
            continue  # all classes weigh 1
        with pytest.raises((TypeError, ValueError), match="cls_num_list"):
            made(make, wrong) if inspect.isclass(make) else make(wrong)
    with pytest.raises((TypeError, ValueError), match="cls_num_list"):
        schedules.drw_weights(wrong, 0, 10)


class Images(Dataset[Any]):
    """Ten items, of which none may be opened."""

    def __init__(self, **labels: Any) -> None:
        vars(self).update(labels)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("an image was opened")


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 4]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (Images(targets=LABELS), [4, 3, 2, 0, 1]),
        (Images(labels=np.array(LABELS)), [4, 3, 2, 0, 1]),
        (Images(index=[(label, "file") for label in LABELS]), [4, 3, 2, 0, 1]),
        (Subset(Images(targets=LABELS), range(5)), [4, 1]),
        (Subset(Subset(Images(targets=LABELS), range(5, 10)), [0, 4]), [0, 1, 0, 0, 1]),
        (ConcatDataset([Images(targets=LABELS), Images(targets=[5])]), [4, 3, 2, 0, 1, 1]),
        (TensorDataset(torch.tensor([7, 7, 7]), torch.tensor([0, 1, 1])), [1, 2]),
        (range(3), [1, 1, 1]),
        (Column({7: 0, 9: 2, 1: 0}), [2, 0, 1]),
        (Images(targets=Column({7: 0, 9: 2, 1: 0})), [2, 0, 1]),
    ],
)
def test_data_sets_are_counted_by_their_labels(data: Any, expected: list[int]) -> None:
    assert class_counts(data).tolist() == expected


def test_parts_of_a_random_split_add_up() -> None:
    parts = random_split(Images(targets=LABELS), [6, 4])
    assert sum(class_counts(part, 5) for part in parts).tolist() == [4, 3, 2, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        Images(),
        Subset(Images(), range(3)),
        TensorDataset(torch.zeros(3, 2)),
        TensorDataset(torch.zeros(3, 2), torch.zeros(3, 2)),
        object(),
        b"abc",
        {0: 1},
        iter([0, 1]),
    ],
)
def test_a_data_set_without_labels_is_refused_at_once(data: Any) -> None:
    with pytest.raises(TypeError, match="labels: expected"):
        class_counts(data)


def test_categories_with_gaps_need_a_mapping(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    content = {
        "categories": [{"id": 1}, {"id": 4}, {"id": 9}],
        "annotations": [{"category_id": k} for k in (1, 9, 9, 4, 9)],
    }
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="class_of: .*1, 4, 9"):
        class_counts(path)
    mapping = {1: 0, 4: 1, 9: 2}
    assert class_counts(path, class_of=mapping).tolist() == [1, 1, 3]
    assert class_counts(path, 4, class_of=mapping).tolist() == [1, 1, 3, 0]
    with pytest.raises(ValueError, match="class_of: .*none for 9"):
        class_counts(path, class_of={1: 0, 4: 1})
    content["categories"] = [{"id": k} for k in range(10)]
    path.write_text(json.dumps(content))
    assert class_counts(path).tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 3]
    for wrong in (3, [1], {1: "x", 4: 1, 9: 2}, {1: -1, 4: 1, 9: 2}, {1: 0.5, 4: 1, 9: 2}):
        with pytest.raises((TypeError, ValueError), match="class_of: expected"):
            class_counts(path, class_of=wrong)  # type: ignore[arg-type]


def test_gaps_without_a_list_of_categories_need_a_mapping_or_a_number(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"

    def write(*labels: Any) -> None:
        path.write_text(json.dumps({"annotations": [{"category_id": k} for k in labels]}))

    write(1, 3, 3, 2)  # COCO starts at 1: no class 0 was meant
    for gaps in ((1, 3, 3, 2), (0, 2, 2), (90,)):
        write(*gaps)
        with pytest.raises(ValueError, match=r"class_of: .* or num_classes, if they are class ind"):
            class_counts(path)
        mapping = {label: index for index, label in enumerate(sorted(set(gaps)))}
        assert class_counts(path, class_of=mapping).tolist() == [
            gaps.count(label) for label in sorted(set(gaps))
        ]
    write(0, 2, 2)
    assert class_counts(path, 4).tolist() == [1, 0, 2, 0]
    write(1, 3, 3, 2)
    with pytest.raises(ValueError, match="below num_classes=3"):
        class_counts(path, 3)
    write(0, 1, 1)
    assert class_counts(path).tolist() == [1, 2]
    write(0, "dog")
    with pytest.raises(ValueError, match="labels: expected integer category ids, got 'dog'"):
        class_counts(path)


def test_classes_without_samples_are_those_of_the_categories(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    content = {"categories": [{"id": k} for k in range(4)], "annotations": [{"category_id": 1}]}
    path.write_text(json.dumps(content))
    assert class_counts(path).tolist() == [0, 1, 0, 0]
    assert class_counts(path, 6).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", '{"annotations": 3}', '{"annotations": [{"id": 1}]}', "[" * 10**5]
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="labels: expected an annotation file .*annotations.json"):
        class_counts(path)


def test_labels_are_not_smoothed_over_masked_classes() -> None:
    """Where a loss masks classes out a share of a label there would be an infinite loss."""
    counts = [50, 20, 10, 5, 0]
    with pytest.raises(ValueError, match="label_smoothing: expected 0 beside classes without"):
        losses.BalancedSoftmaxLoss(counts, label_smoothing=0.1)
    criterion = losses.BalancedSoftmaxLoss(counts)
    with pytest.raises(ValueError, match="label_smoothing"):
        criterion.label_smoothing = torch.full((5,), 0.1)
    assert criterion.label_smoothing == 0
    assert losses.BalancedSoftmaxLoss([5, 4, 3, 2, 1], label_smoothing=0.1).label_smoothing == 0.1
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.SoftmaxEQLLoss(counts, 0.1, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_floats_in_a_list_keep_their_digits(dtype: torch.dtype) -> None:
    """bfloat16 is the default where Lightning trains in "bf16-true"."""
    counts, prior = [1234.0, 57.0, 3.0], [0.7, 0.2, 0.1]
    torch.set_default_dtype(dtype)
    try:
        found = checked_counts(counts)
        loss = losses.BayiasLoss(counts, test_prior=prior)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.tolist() == counts
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    exact = torch.tensor(counts, dtype=torch.float64) / torch.tensor(prior, dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits + exact.log(), torch.tensor([2]))
    torch.testing.assert_close(loss(logits, torch.tensor([2])), expected, rtol=1e-14, atol=0)


def test_another_default_device() -> None:
    with torch.device("meta"):
        assert class_counts([1, 7, 7], class_of={1: 0, 7: 1}).tolist() == [1, 2]
