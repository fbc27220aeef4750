"""Metrics: batches and ranks add up to the whole, and nothing that is no number wins."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.wrappers import LambdaInputTransformer

from lpl_fused import evaluation, metrics, susceptibility

C, N = 7, 90
COUNTS = [500, 200, 80, 60, 20, 19, 3]
K = 2.5


def batch(n: int = N, seed: int = 0, classes: int = C) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes - 1, (n,), generator=generator)  # the last class has no row
    logits = 2 * torch.randn(n, classes, generator=generator)
    logits[torch.arange(n), target] += 2
    return logits, target


LOGITS, TARGET = batch()
P = LOGITS.softmax(1)
LAMBDA = evaluation.average_k_threshold(P, K)


def variation_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    plain = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    return plain, plain * (1 + target), target


MADE: dict[str, Any] = {
    "accuracy": lambda **k: metrics.LongTailedAccuracy(COUNTS, **k),
    "top 3": lambda **k: metrics.LongTailedAccuracy(COUNTS, top_k=3, **k),
    "report": lambda **k: metrics.ClassReport(COUNTS, **k),
    "calibration": lambda **k: metrics.ClasswiseCalibrationError(C, average=False, **k),
    "threshold": lambda **k: metrics.AverageKThreshold(K, **k),
    "threshold of few": lambda **k: metrics.AverageKThreshold(K, max_samples=2 * N, **k),
    "sets": lambda **k: metrics.AverageKAccuracy(LAMBDA, min_size=1, **k),
    "variation": lambda **k: metrics.LossVariation(C, **k),
}
OF_LOGITS = [name for name in MADE if name != "variation"]
every = pytest.mark.parametrize("name", MADE)


def given(name: str, logits: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    return variation_losses(logits, target) if name == "variation" else (logits, target)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    else:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def whole(name: str) -> Any:
    metric = MADE[name]()
    metric.update(*given(name, LOGITS, TARGET))
    return metric.compute()


# what they say is what the functions say


def test_accuracy_is_that_of_evaluation() -> None:
    expected = evaluation.accuracy(LOGITS, TARGET, torch.tensor(COUNTS))
    found = whole("accuracy")
    assert list(found) == ["overall", "balanced", "many", "medium", "few"]
    for name, value in found.items():
        assert value.dim() == 0 and float(value) == getattr(expected, name)
    report = whole("report")
    torch.testing.assert_close(report["accuracy"], expected.per_class, rtol=0, atol=0, equal_nan=True)  # fmt: skip
    assert report["train"].tolist() == COUNTS
    moved = metrics.LongTailedAccuracy(COUNTS, many_above=300, few_below=100)
    moved.update(LOGITS, TARGET)
    expected = evaluation.accuracy(LOGITS, TARGET, torch.tensor(COUNTS), many_above=300, few_below=100)  # fmt: skip
    assert float(moved.compute()["few"]) == expected.few != float(found["few"])


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_and_the_report_are_torchmetrics_own(k: int) -> None:
    metric = metrics.LongTailedAccuracy(COUNTS, top_k=k)
    expected = MulticlassAccuracy(C, top_k=k, average="micro")
    assert float(metric(LOGITS, TARGET)["overall"]) == pytest.approx(float(expected(LOGITS, TARGET)))  # fmt: skip
    report, tested = whole("report"), torch.arange(C) < C - 1
    for name, other in (("precision", MulticlassPrecision), ("f1", MulticlassF1Score)):
        theirs = other(C, average=None)(LOGITS, TARGET)
        torch.testing.assert_close(report[name][tested].float(), theirs[tested])
    assert report["accuracy"].isnan().tolist() == (~tested).tolist()
    assert report["answered"].sum() == report["tested"].sum() == N


@pytest.mark.parametrize("bins", [1, 2, 15, 40])
def test_classwise_calibration_is_that_of_each_class_against_the_rest(bins: int) -> None:
    found = metrics.ClasswiseCalibrationError(C, n_bins=bins, average=False)(LOGITS, TARGET)
    for c in range(C):
        theirs = BinaryCalibrationError(n_bins=bins)(P[:, c], (c == TARGET).long())
        assert float(found[c]) == pytest.approx(float(theirs), abs=1e-6)
    mean = metrics.ClasswiseCalibrationError(C, n_bins=bins)(LOGITS, TARGET)
    assert float(mean) == pytest.approx(float(found.mean()))


def test_certain_rows_and_borders_of_bins() -> None:
    """p = 1 belongs to the last bin, p = ½ to the upper of two."""
    certain = torch.tensor([[0.0, -math.inf], [0.0, -math.inf], [0.0, 0.0]])
    metric = metrics.ClasswiseCalibrationError(2, n_bins=2, average=False)
    found = metric(certain, torch.tensor([0, 1, 0]))
    # class 0: three in the upper bin say 2.5, and 2 are; class 1: two say 0, and one is; one says ½
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0 + 0.5], dtype=torch.float64) / 3)


def test_average_k_is_that_of_evaluation() -> None:
    for name in ("threshold", "threshold of few"):
        assert torch.equal(whole(name), LAMBDA)
    expected = evaluation.average_k_accuracy(P, TARGET, LAMBDA, min_size=1)
    found = {name: float(value) for name, value in whole("sets").items()}
    assert found == {name: getattr(expected, name) for name in ("accuracy", "mean_size", "empty")}
    assert metrics.AverageKThreshold(C)(LOGITS, TARGET) == -math.inf


def test_variation_is_that_of_evaluation() -> None:
    losses = variation_losses(LOGITS, TARGET)
    expected = evaluation.relative_loss_variation(*losses, C)
    torch.testing.assert_close(whole("variation"), expected, equal_nan=True)
    torch.testing.assert_close(expected[: C - 1], torch.arange(C - 1).double(), rtol=1e-6, atol=1e-6)  # fmt: skip


# batches, ranks, state


@every
@pytest.mark.parametrize("forward", [False, True])
def test_pieces_add_up_and_reset_forgets(name: str, forward: bool) -> None:
    metric = MADE[name]()
    for _ in range(2):
        for size, logits, target in zip(
            (40, 0, 1, 49),
            LOGITS.split([40, 0, 1, 49]),
            TARGET.split([40, 0, 1, 49]),
            strict=True,
        ):
            arguments = given(name, logits, target)
            if forward and size:
                alone = MADE[name]()
                alone.update(*arguments)
                assert_same(metric(*arguments), alone.compute())
            else:
                metric.update(*arguments)
        assert_same(metric.compute(), whole(name))
        metric.reset()


@every
def test_small_pieces_within_a_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PIECE", 2 * C)
    assert_same(MADE[name]()(*given(name, LOGITS, TARGET)), whole(name))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    own = Ranks(most=2)
    yield own
    own.close()


def on_rank(group: Any, sizes: list[int]) -> dict[str, Any]:
    rank = torch.distributed.get_rank(group)
    logits, target = LOGITS.split(sizes)[rank], TARGET.split(sizes)[rank]
    found = {}
    for name, make in MADE.items():
        metric = make(process_group=group)
        for part in torch.arange(len(target)).split(17):
            metric.update(*given(name, logits[part], target[part]))
        found[name] = metric.compute()
        # what it holds is its own again
        rows = getattr(metric, "rows", None)
        assert rows is None or int(rows) == len(target)
    model = nn.Linear(3, C)
    nn.init.ones_(model.weight)
    probe = metrics.Susceptibility(C, process_group=group)
    probe.update(model, torch.optim.SGD(model.parameters(), 0.1), torch.ones(4, 3))
    return {**found, "susceptibility": probe.compute()}


@pytest.mark.parametrize("sizes", [[45, 45], [70, 20], [90, 0]])
def test_two_ranks_are_one(ranks: Ranks, sizes: list[int]) -> None:
    first, second = ranks.run(2, on_rank, sizes)
    for name in MADE:
        assert_same(first[name], whole(name))
    assert_same(first, second)


@every
def test_state_is_saved_moved_and_copied(name: str) -> None:
    metric = MADE[name]()
    metric.persistent(True)
    metric.update(*given(name, LOGITS[:40], TARGET[:40]))
    again = MADE[name]()
    again.persistent(True)
    again.load_state_dict(copy.deepcopy(metric.state_dict()))
    metric.reset()
    for other in (again, again.clone(), pickle.loads(pickle.dumps(again)), copy.deepcopy(again).to("cpu")):  # fmt: skip
        other.update(*given(name, LOGITS[40:], TARGET[40:]))
        assert_same(other.compute(), whole(name))


@every
@pytest.mark.parametrize(
    "ask",
    [
        lambda module: module[0].set_dtype(torch.float16),
        lambda module: module.half(),
        lambda module: module.to(torch.bfloat16),  # Lightning's "bf16-true"
    ],
    ids=["set_dtype", "half", "to"],
)
def test_counts_are_counts_whatever_dtype_is_asked_for(name: str, ask: Any) -> None:
    module = torch.nn.Sequential(MADE[name]())
    ask(module)
    module[0].update(*given(name, LOGITS, TARGET))
    assert_same(module[0].compute(), whole(name))
    module[0].reset()
    module[0].update(*given(name, LOGITS, TARGET))
    assert_same(module[0].compute(), whole(name))


def test_a_collection_keeps_apart_what_is_alike_by_chance() -> None:
    """After the first batch, all right, the states of both are equal."""
    right = 9 * torch.eye(C)[TARGET]
    collection = MetricCollection(
        {
            "top1": metrics.LongTailedAccuracy(COUNTS),
            "top3": metrics.LongTailedAccuracy(COUNTS, top_k=3),
            "few": metrics.LongTailedAccuracy(COUNTS, few_below=1),
            "none left out": metrics.LongTailedAccuracy(COUNTS, ignore_index=0),
            "low": metrics.AverageKAccuracy(1e-6),
            "high": metrics.AverageKAccuracy(2e-6),
            "report": metrics.ClassReport(COUNTS),
            "ece": MulticlassCalibrationError(C, n_bins=15),
        }
    )
    first = TARGET != 0
    collection.update(right[first], TARGET[first])
    groups = {frozenset(names) for names in collection.compute_groups.values()}
    assert frozenset({"top1", "few"}) in groups and len(groups) == 7
    collection.update(LOGITS, TARGET)
    found = collection.compute()
    alone = metrics.LongTailedAccuracy(COUNTS, top_k=3)
    alone.update(right[first], TARGET[first])
    alone.update(LOGITS, TARGET)
    assert float(found["top3_overall"]) == float(alone.compute()["overall"])
    assert float(found["top1_overall"]) < float(found["top3_overall"])


# shapes, dtypes, labels that are left out


@pytest.mark.parametrize("name", OF_LOGITS)
def test_images_are_their_pixels(name: str) -> None:
    logits = LOGITS.view(3, 5, 6, C).movedim(-1, 1)
    target = TARGET.view(3, 5, 6)
    assert not logits.is_contiguous()
    for form in (logits, logits.contiguous()):
        assert_same(MADE[name]()(form, target), whole(name))
    assert_same(MADE[name]()(logits.flatten(2), target.flatten(1)), whole(name))


@every
def test_labels_of_8_bits(name: str) -> None:
    """−255 is no class, though it is 1 in 8 bits."""
    arguments = given(name, LOGITS, TARGET)
    narrow = (*arguments[:-1], TARGET.to(torch.uint8))
    assert_same(MADE[name](ignore_index=1 - 256)(*narrow), whole(name))


@every
@pytest.mark.parametrize("label", [-100, 255, 0])
def test_ignored_rows_count_nothing_nan_or_not(name: str, label: int) -> None:
    kept = torch.arange(N) % 3 != 0
    if label == 0:
        kept &= TARGET != 0
    logits = LOGITS.clone()
    logits[~kept] = math.nan
    expected = MADE[name]()(*given(name, LOGITS[kept], TARGET[kept]))
    arguments = list(given(name, logits, TARGET))
    arguments[-1] = TARGET.masked_fill(~kept, label)
    assert_same(MADE[name](ignore_index=label)(*arguments), expected)


@every
def test_nothing_but_ignored_rows_is_nan(name: str) -> None:
    metric = MADE[name]()
    arguments = list(given(name, LOGITS, TARGET))
    arguments[-1] = torch.full_like(TARGET, -100)
    metric.update(*arguments)
    if name.startswith("threshold"):
        with pytest.raises(ValueError, match="n·K >= 1"):
            metric.compute()
        return
    found = metric.compute()
    values = found.values() if isinstance(found, dict) else [found]
    assert all(v.isnan().all() for v in values if v.is_floating_point() and v.tolist() != COUNTS)


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_all_floating_dtypes(name: str, dtype: torch.dtype) -> None:
    """As of the same numbers in float32, in which the softmax is taken at least."""
    logits = LOGITS.bfloat16().to(dtype)
    found = MADE[name]()(logits, TARGET.to(torch.int32))
    expected = MADE[name]()(logits.float(), TARGET)
    if dtype == torch.float64:
        return torch.testing.assert_close(found, expected, equal_nan=True)
    assert_same(found, expected)
    return None


# what is no number


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize("piece", [2 * C, 1 << 20])
def test_nan_is_refused_and_leaves_the_state_alone(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_PIECE", piece)
    logits = LOGITS.clone()
    logits[5, 2] = math.nan
    metric = MADE[name]()
    metric.update(LOGITS, TARGET)
    with pytest.raises(ValueError, match=r"^input: expected .* nan"):
        metric.update(logits, TARGET)
    assert_same(metric.compute(), whole(name))


@pytest.mark.parametrize("top_k", [1, 3])
def test_nan_counted_is_wrong_even_where_it_is_the_class(top_k: int) -> None:
    logits = 9 * torch.eye(C)[TARGET]
    logits[torch.arange(4), TARGET[:4]] = math.nan
    logits[4] = math.nan
    metric = metrics.LongTailedAccuracy(COUNTS, top_k=top_k, nan="wrong")
    found = metric(logits, TARGET)
    assert float(found["overall"]) == pytest.approx((N - 5) / N)
    assert int(found["nan_rows"]) == 5
    report = metrics.ClassReport(COUNTS, nan="wrong")(logits, TARGET)
    assert report["answered"].sum() == N - 5
    assert (report["precision"][: C - 1] == 1).all() and report["accuracy"].nanmean() < 1


def test_nan_wins_nothing_in_evaluation() -> None:
    logits = LOGITS.clone()
    logits[0, 3] = math.nan
    with pytest.raises(ValueError, match="input: expected numbers, got nan"):
        evaluation.accuracy(logits, TARGET, torch.tensor(COUNTS))
    for position, name in ((0, "loss"), (1, "perturbed_loss")):
        losses = list(variation_losses(LOGITS, TARGET))
        losses[position] = losses[position].clone()
        losses[position][3] = math.nan
        with pytest.raises(ValueError, match=f"^{name}: .*nan"):
            evaluation.relative_loss_variation(*losses, C)
        with pytest.raises(ValueError, match=f"^{name}: .*nan"):
            metrics.LossVariation(C).update(*losses)


def test_torchmetrics_own_do_not_see_nan_and_the_transformer_does() -> None:
    """What docs/evaluation.md says of them."""
    logits = LOGITS.clone()
    logits[0, 3] = math.nan
    theirs = MulticlassCalibrationError(C, n_bins=15)
    assert theirs(logits, TARGET).isfinite()
    seeing = LambdaInputTransformer(theirs, metrics.probabilities)
    with pytest.raises(ValueError, match="nan"):
        seeing.update(logits, TARGET)
    seeing.reset()
    small = torch.rand(N, C)  # logits that look like probabilities
    expected = theirs.clone()(small.softmax(1), TARGET)
    assert float(seeing(small, TARGET)) == float(expected)


@pytest.mark.parametrize("name", OF_LOGITS)
@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (LOGITS.long(), TARGET, TypeError, "^input: expected a tensor of floating"),
        (LOGITS, TARGET.float(), TypeError, "^target: expected a tensor of integers"),
        (LOGITS[0], TARGET[:1], ValueError, "^input: expected .*logits of shape"),
        (LOGITS, TARGET[1:], ValueError, "^target: expected a class for each row"),
        (LOGITS.view(9, 10, C), TARGET.view(9, 10), ValueError, "^(input|target): expected"),
        (LOGITS, TARGET + 2, ValueError, "target 7 is out of range for 7 classes"),
        (LOGITS, TARGET - 1, ValueError, "target -1 is out of range"),
        (LOGITS[:, :2], TARGET % 2, ValueError, "^(input: expected logits of 7 classes|k: expected)"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(name, logits, target, error, message) -> None:  # type: ignore[no-untyped-def]
    if name == "sets" and logits.shape[-1] == 2:
        return  # sets of two classes are as good as any
    with pytest.raises(error, match=message):
        MADE[name]().update(logits, target)


def test_more_rows_than_said() -> None:
    metric = metrics.AverageKThreshold(K, max_samples=N)
    metric.update(LOGITS, TARGET)
    with pytest.raises(ValueError, match=f"^max_samples: .*{N + 1}"):
        metric.update(LOGITS[:1], TARGET[:1])


def test_few_scores_are_kept() -> None:
    metric = metrics.AverageKThreshold(1, max_samples=N)
    for part in torch.arange(N).split(7):
        metric.update(LOGITS[part], TARGET[part])
        assert len(metric.best[0]) <= N + 2
    assert torch.equal(metric.compute(), evaluation.average_k_threshold(P, 1))


def test_susceptibility_is_the_mean_of_its_probes() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, C)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plain, metric = susceptibility.Susceptibility(C, seed=4), metrics.Susceptibility(C, seed=4)
    assert isinstance(metric, Metric)
    for _ in range(2):
        for seed, forward in ((0, False), (1, True), (2, False)):
            x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
            r = plain.probe(model, optimizer, x)
            found = metric(model, optimizer, x) if forward else metric.update(model, optimizer, x)
            assert not forward or float(found) == r
        assert float(metric.compute()) == pytest.approx(plain.zeta, rel=1e-12)
        metric.reset()  # and the labels from the beginning
        plain = susceptibility.Susceptibility(C, seed=4)
