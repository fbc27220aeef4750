"""Average-K classification: its threshold, its sets, how they score."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from cases import Draw
from hypothesis import given, settings
from hypothesis import strategies as st

from lpl_fused.evaluation import average_k_accuracy, average_k_sets, average_k_threshold

P = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.35, 0.25], [0.5, 0.3, 0.2]]).double()


def test_numbers() -> None:
    """λ = .225, sets of 1, 3 and 2; errors .1 and, for the top 2, 1/6."""
    threshold = average_k_threshold(P, 2)
    assert float(threshold) == pytest.approx(0.225)
    assert average_k_sets(P, threshold).sum(1).tolist() == [1, 3, 2]
    found = average_k_accuracy(P, P, threshold)
    assert found.accuracy == pytest.approx(0.9)
    assert found.mean_size == 2 and found.empty == 0
    top = P.topk(2, 1).values.sum(1).mean()
    assert 1 - float(top) == pytest.approx(1 / 6)
    # the gain is what the sets gain above λ and save below it
    ranked = P.sort(1, descending=True).values - threshold
    gain = (ranked[:, 2:].clamp(min=0).sum(1) - ranked[:, :2].clamp(max=0).sum(1)).mean()
    assert found.accuracy - float(top) == pytest.approx(float(gain))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 30),
    classes=st.integers(2, 40),
    seed=st.integers(0, 10**6),
    share=st.floats(0.01, 0.99),
    pieces=st.integers(1, 5),
)
def test_threshold_is_that_of_sorting_everything(
    n: int, classes: int, seed: int, share: float, pieces: int
) -> None:
    p = torch.softmax(Draw(n, classes, seed).input(), 1)
    k = share * classes
    rank = math.floor(n * k * (1 + 1e-12))
    if rank < 1:
        with pytest.raises(ValueError, match="n·K >= 1"):
            average_k_threshold(p, k)
        return
    ordered = p.flatten().sort(descending=True).values
    expected = (ordered[rank - 1] + ordered[rank]) / 2
    found = average_k_threshold(p, k)
    torch.testing.assert_close(found, expected, rtol=1e-15, atol=0)
    assert int(average_k_sets(p, found).sum()) == rank
    parts = p.chunk(pieces)

    def stream() -> Iterator[torch.Tensor]:
        yield from parts

    assert torch.equal(average_k_threshold(list(parts), k), found)
    assert torch.equal(average_k_threshold(stream(), k, num_samples=n), found)


def test_many_classes_keep_few_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is selected from never holds much more than n·K scores and a piece of 256 rows."""
    largest = 0
    topk = torch.Tensor.topk

    def counted(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
        nonlocal largest
        largest = max(largest, self.numel())
        return topk(self, *arguments, **keywords)

    monkeypatch.setattr(torch.Tensor, "topk", counted)
    p = torch.softmax(3 * torch.randn(2048, 500, generator=torch.Generator().manual_seed(0)), 1)
    average_k_threshold(p, 3)
    assert largest <= 2048 * 3 + 1 + 256 * 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_threshold_separates_neighbouring_numbers(dtype: torch.dtype) -> None:
    """Between two adjacent floats there is no midpoint: the set size must not suffer."""
    low = torch.tensor(0.25, dtype=torch.float32)
    high = torch.nextafter(low, torch.tensor(1.0))
    for a, b in ((high, low), (torch.nextafter(high, torch.tensor(1.0)), high)):
        scores = torch.stack([a, b])[None]
        assert average_k_sets(scores, average_k_threshold(scores, 1)).tolist() == [[True, False]]
    p = torch.softmax(Draw(40, 9, 0).input(), 1).to(dtype)
    threshold = average_k_threshold(p, 2.5)
    assert threshold.dtype == torch.promote_types(dtype, torch.float32)
    ordered = p.double().flatten().sort(descending=True).values
    size = int(average_k_sets(p, threshold).sum())
    assert size == 100 or (size > 100 and ordered[99] == ordered[100])


def test_ties_and_limits() -> None:
    even = torch.full((4, 5), 0.2)
    assert average_k_accuracy(even, torch.zeros(4).long(), average_k_threshold(even, 2)).mean_size == 5  # fmt: skip
    assert average_k_threshold(P, 3) == -math.inf
    assert average_k_sets(P, average_k_threshold(P, 3)).all()
    tens = torch.rand(100, 3)
    assert int(average_k_sets(tens, average_k_threshold(tens, 0.29)).sum()) == 29


def test_empty_sets_and_their_cure() -> None:
    flat = torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.06, 0.04]])
    target = torch.tensor([0, 1])
    found = average_k_accuracy(flat, target, 0.5)
    assert (found.accuracy, found.mean_size, found.empty) == (0.0, 0.5, 0.5)
    found = average_k_accuracy(flat, target, 0.5, min_size=1)
    assert (found.accuracy, found.mean_size, found.empty) == (0.5, 1.0, 0.0)
    assert average_k_sets(flat, 0.5, min_size=3).all()


def test_bad_input() -> None:
    threshold, labels = torch.tensor(0.2), torch.tensor([0, 1, 2])
    for call, message in (
        (lambda: average_k_threshold(P, 4), "at most C=3, got 4"),
        (lambda: average_k_threshold(P, 0.1), "n·K >= 1"),
        (lambda: average_k_threshold(P[0], 1), r"\(N, C\)"),
        (lambda: average_k_threshold(P.masked_fill(P > 0.8, math.nan), 1), "nan"),
        (lambda: average_k_threshold(iter([P]), 1, num_samples=4), "4 rows of scores, got 3"),
        (
            lambda: average_k_sets(P, threshold, min_size=4),
            r"min_size: expected an int in \[0, 3\], got 4",
        ),
        (lambda: average_k_accuracy(P, labels + 1, threshold), "target 3 is out of range"),
        (lambda: average_k_accuracy(P, labels[:2], threshold), "2"),
        (lambda: average_k_accuracy(P, P[:2], threshold), r"\(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="num_samples"):
        average_k_threshold(iter([P]), 1)
    with pytest.raises(TypeError, match="int64"):
        average_k_threshold(torch.ones(2, 2).long(), 1)
