"""What trainers of other libraries call."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import losses
from lpl_fused.integrations import TransformersLoss, token_counts

COUNTS = [50, 20, 5, 1, 0, 3, 9]


def batch(rows: int = 4, length: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, length, len(COUNTS), generator=generator, dtype=torch.float64)
    labels = torch.randint(len(COUNTS), (rows, length), generator=generator)
    labels[0, 2:] = -100
    return logits, labels


def published(logits: Tensor, labels: Tensor, items: float) -> Tensor:
    """Σ over the labels that count of their cross-entropy, over `items`, written down directly."""
    terms = [
        -logits[row, position - 1].log_softmax(0)[labels[row, position]]
        for row in range(len(labels))
        for position in range(1, labels.shape[1])
        if labels[row, position] != -100
    ]
    return torch.stack(terms).sum() / items


@pytest.mark.parametrize("kind", [dict, OrderedDict, SimpleNamespace, tuple])
def test_a_token_is_predicted_by_the_position_before(kind: Any) -> None:
    logits, labels = batch()
    outputs = (logits, "cache") if kind is tuple else kind(logits=logits)
    loss = TransformersLoss(losses.CrossEntropyLoss(reduction="sum"))
    torch.testing.assert_close(loss(outputs, labels, 11), published(logits, labels, 11))
    labels_that_count = (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(loss(outputs, labels), published(logits, labels, labels_that_count))


@pytest.mark.parametrize("number", [int, float, torch.tensor], ids=lambda kind: kind.__name__)
def test_accumulated_batches_are_one_batch(number: Any) -> None:
    logits, labels = batch()
    items = number((labels[:, 1:] != -100).sum().item())
    loss = TransformersLoss(losses.LogitAdjustedLoss(COUNTS, reduction="sum"))
    gradients = []
    for cuts in ([4], [1, 3]):
        z = logits.clone().requires_grad_()
        for part, y in zip(z.split(cuts), labels.split(cuts), strict=True):
            loss({"logits": part}, y, items).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


def test_a_label_for_each_row_of_logits() -> None:
    logits, labels = batch()
    found = TransformersLoss(losses.CrossEntropyLoss(reduction="sum"), shift=False)(
        {"logits": logits}, labels
    )
    torch.testing.assert_close(found, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    one = TransformersLoss(losses.CrossEntropyLoss(reduction="sum"), shift=False)
    torch.testing.assert_close(
        one({"logits": logits[:, 0]}, labels[:, 0]), F.cross_entropy(logits[:, 0], labels[:, 0])
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.LPLLoss(COUNTS, reduction="sum"),
        lambda: losses.LPLLoss(COUNTS, split="balanced", statistics="ema", reduction="sum"),
        lambda: losses.SeesawLoss(len(COUNTS), reduction="sum"),
    ],
    ids=["lpl", "running means", "seesaw"],
)
def test_what_is_evaluated_is_no_training(make: Any) -> None:
    """The Trainer calls `eval()` of the model, not of the criterion, which is no part of it."""
    logits, labels = batch()
    criterion = make()
    loss = TransformersLoss(criterion)
    before = copy.deepcopy(criterion.state_dict())
    with torch.no_grad():
        found = loss({"logits": logits}, labels)
    assert criterion.training
    torch.testing.assert_close(criterion.state_dict(), before)
    expected = TransformersLoss(make().eval())({"logits": logits}, labels)
    torch.testing.assert_close(found, expected)
    trained = loss({"logits": logits.clone().requires_grad_()}, labels)
    assert trained != expected


def test_a_loss_that_learns_behind_a_frozen_model_trains() -> None:
    logits, labels = batch()
    criterion = losses.LPLLoss(COUNTS, reduction="sum")
    criterion.bias = torch.nn.Parameter(torch.zeros(len(COUNTS)))
    expected = TransformersLoss(criterion)({"logits": logits.clone().requires_grad_()}, labels)
    torch.testing.assert_close(
        TransformersLoss(criterion)({"logits": logits}, labels), expected.detach()
    )
    with torch.no_grad():
        assert TransformersLoss(criterion)({"logits": logits}, labels) != expected


@pytest.mark.parametrize(("empty", "expected"), [("zero", 0.0), ("nan", float("nan"))])
def test_nothing_but_padding(empty: str, expected: float) -> None:
    logits, labels = batch()
    loss = TransformersLoss(losses.CrossEntropyLoss(reduction="sum", empty=empty))
    found = loss({"logits": logits}, torch.full_like(labels, -100))
    torch.testing.assert_close(float(found), expected, equal_nan=True)


def test_labels_of_8_bits() -> None:
    """−253 is no class, though it is 3 in 8 bits; the last position of a row has it."""
    logits, labels = batch()
    labels = labels.clamp(min=0)
    assert (labels == 3).any()
    criterion = losses.CrossEntropyLoss(reduction="sum", ignore_index=3 - 256)
    expected = TransformersLoss(criterion)((logits,), labels)
    found = TransformersLoss(criterion)((logits,), labels.to(torch.uint8))
    torch.testing.assert_close(found, expected)


def test_ignored_labels_are_the_criterions() -> None:
    logits, labels = batch()
    other = labels.masked_fill(labels == -100, -1)
    expected = TransformersLoss(losses.CrossEntropyLoss(reduction="sum"))((logits,), labels)
    criterion = losses.CrossEntropyLoss(reduction="sum", ignore_index=-1)
    torch.testing.assert_close(TransformersLoss(criterion)((logits,), other), expected)


def test_logits_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels move instead: bfloat16 logits of a whole batch reach the loss as they lie."""
    logits, labels = batch()
    logits = logits.bfloat16()
    criterion = losses.CrossEntropyLoss(reduction="sum")
    seen = []
    criterion.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    TransformersLoss(criterion)({"logits": logits}, labels)
    assert [z.data_ptr() for z in seen] == [logits.data_ptr()]
    assert seen[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: TransformersLoss(losses.CrossEntropyLoss()), ValueError, 'reduction="sum".*got \'mean\''),
        (lambda: TransformersLoss(F.cross_entropy), TypeError, "expected a loss of lpl_fused"),
        (lambda: TransformersLoss(torch.nn.CrossEntropyLoss(reduction="sum")), TypeError, "takes a normalizer.*CrossEntropyLoss"),
        (lambda: TransformersLoss(losses.CrossEntropyLoss(reduction="sum"), shift=1), TypeError, "shift: expected"),
        (lambda: sum_loss()({"loss": None}, torch.zeros(2)), TypeError, "outputs: expected .* with logits"),
        (lambda: sum_loss()((), torch.zeros(2)), TypeError, "outputs: expected .* with logits"),
        (lambda: sum_loss()((torch.zeros(2, 3, 4),), torch.zeros(2, 4)), ValueError, r"shape \(2, 3\), got \(2, 4\)"),
        (lambda: sum_loss()((torch.zeros(2, 4),), torch.zeros(2)), ValueError, "shift: .*shift=False"),
        (lambda: sum_loss()((torch.zeros(2, 3, 4),), None), TypeError, "labels: expected a tensor, got None"),
        (lambda: token_counts([[1, 7]], 7), ValueError, "from 0 to 6, or -100, got 7 in row 0"),
        (lambda: token_counts([[0, 1], [0, -1]], 7), ValueError, "got -1 in row 1"),
        (lambda: token_counts([{"input_ids": [1]}], 7), TypeError, r"\"labels\" in row 0, got \['input_ids'\]"),
        (lambda: token_counts([[0.5, 1.0]], 7), TypeError, "sequences of token indices"),
        (lambda: token_counts([torch.tensor([True, False])], 7), TypeError, "sequences of token indices"),
        (lambda: token_counts(["12"], 7), TypeError, "sequences of token indices, got '12' as row 0"),
        (lambda: token_counts([1, 2], 7), TypeError, "sequences of token indices, got 1 as row 0"),
        (lambda: token_counts([[1]], 0), ValueError, "vocabulary_size"),
    ],
)  # fmt: skip
def test_bad_arguments(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def sum_loss() -> TransformersLoss:
    return TransformersLoss(losses.CrossEntropyLoss(reduction="sum"))


def test_tokens_of_every_kind_of_row() -> None:
    rows = [[0, 1, 1], np.array([5, 2, -100]), torch.tensor([[3, 4], [3, 6]]), {"labels": [4]}, []]
    assert token_counts(iter(rows), 8).tolist() == [0, 2, 1, 0, 1, 0, 1, 0]
    assert token_counts(rows, 8, shift=False).tolist() == [1, 2, 1, 2, 2, 1, 1, 0]
    assert token_counts([[1, 2]], 8, ignore_index=2).sum() == 0
    assert token_counts([], 3).tolist() == [0, 0, 0]


def test_another_default_device() -> None:
    rows = [[0, 1, 1], torch.tensor([5, 2, -100])]
    with torch.device("meta"):
        assert token_counts(rows, 6).tolist() == [0, 2, 1, 0, 0, 0]
