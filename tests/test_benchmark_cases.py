"""What is timed: selections, names, data, least traffic."""

from __future__ import annotations

import pytest
import torch
from benchmark_conditions import CPU, KINDS

from benchmarks import run
from benchmarks.cases import COPY, FEATURES, Case, draw
from benchmarks.selections import TOKEN_SHAPES, all_cases, default_cases, lpl_cases


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_selections_hold_each_case_once(device: str) -> None:
    default, everything = default_cases(device), all_cases(device)
    assert len(set(default)) == len(default)
    assert len(set(everything)) == len(everything)
    assert set(default) | set(lpl_cases(device)) <= set(everything)
    classes = {case.classes for case in everything}
    assert classes >= {10, 100, 365, 1000, 8142, 21841, 32000, 50257, 128256, 151936, 262144}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_steps_of_lpl_stand_beside_plain_cross_entropy(device: str) -> None:
    options = run.parser().parse_args(["--lpl"])
    options.device = torch.device(device)  # the parser looks whether there is one
    chosen = run.selected(options)
    assert chosen == lpl_cases(device)
    unique = {c for c in chosen if c.shape not in TOKEN_SHAPES}
    assert {c.loss.labels for c in unique} == {"unique"}
    for shape in ("512x8142", "256x32000"):
        assert {c.loss.steps for c in unique if c.shape == shape} == {0, 5, 10, 50, 100}
    tokens = [c for c in chosen if c.shape in TOKEN_SHAPES]
    assert {c.loss.labels for c in tokens if c.loss.steps} == {"zipf", "unique"}
    assert all(c.plain in chosen or c.loss.labels == "unique" for c in tokens)


def test_a_loss_is_called_what_it_was_called() -> None:
    for name in (*KINDS, "ce-zipf", "ce-unique", "ce-one", "linear-ce-zipf", "lpl100"):
        assert Case.parse("4x8", "fp32", name).loss.name == name


LOGITS = 512 * 8142
LABELS = 512 * 8


@pytest.mark.parametrize(
    ("dtype", "loss", "mode", "expected"),
    [
        ("fp32", "ce", "forward", 4 * LOGITS + LABELS),
        ("fp32", "ce", "forward-no-grad", 4 * LOGITS + LABELS),
        ("fp32", "ce", "backward", 8 * LOGITS + LABELS),
        ("fp32", "ce", "both", 8 * LOGITS + LABELS),
        ("fp32", "smoothing", "both-leaf", 8 * LOGITS + LABELS),
        ("bf16", "ce", "both", 4 * LOGITS + LABELS),
        ("fp64", "ce", "both", 16 * LOGITS + LABELS),
        ("fp32", "la", "both", 8 * LOGITS + LABELS + 4 * 8142),
        ("bf16", "la", "both", 4 * LOGITS + LABELS + 4 * 8142),
        ("fp64", "la", "both", 16 * LOGITS + LABELS + 8 * 8142),
        ("fp32", "vs", "forward", 4 * LOGITS + LABELS + 8 * 8142),
        ("fp32", "ldam", "forward", 4 * LOGITS + LABELS + 4 * 8142),
        ("fp32", "lpl50", "both", 8 * LOGITS + LABELS + 4 * 8142),
        ("fp16", "lpl50-zipf", COPY, 4 * LOGITS),
        ("fp32", "la", COPY, 8 * LOGITS),
        ("bf16", "linear-ce", "forward", 2 * FEATURES * (512 + 8142) + LABELS),
        ("bf16", "linear-ce", "both", 4 * FEATURES * (512 + 8142) + LABELS),
        ("fp32", "linear-ce", COPY, 8 * FEATURES * (512 + 8142)),
    ],
)
def test_least_bytes(dtype: str, loss: str, mode: str, expected: int) -> None:
    assert Case.parse("512x8142", dtype, loss).least_bytes(mode) == expected


def test_a_case_has_the_same_data_every_time() -> None:
    case = Case.parse("32x50", "bf16", "lpl3-zipf")
    first, second = draw(case, CPU), draw(case, CPU)
    assert first.logits.dtype == torch.bfloat16
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.target, second.target)
    assert first.steps is not None
    assert set(first.steps.tolist()) == {-3, 3}
    assert first.upstream != 1


def test_zipf_labels_repeat_where_uniform_ones_do_not() -> None:
    uniform = draw(Case.parse("256x20000", "fp32", "ce"), CPU).target
    zipf = draw(Case.parse("256x20000", "fp32", "ce-zipf"), CPU).target
    assert len(uniform.unique()) > 240
    assert len(zipf.unique()) < 200
    assert zipf.bincount().argmax() < 5


def test_unique_labels_do_not_repeat() -> None:
    target = draw(Case.parse("60x64", "fp32", "lpl3-unique"), CPU).target
    assert len(target.unique()) == 60
    assert target.min() >= 0
    assert target.max() < 64
    assert target.diff().min() < 0  # in no order


def test_one_class_takes_all_rows() -> None:
    target = draw(Case.parse("60x64", "fp32", "lpl3-one"), CPU).target
    assert target.shape == (60,)
    assert len(target.unique()) == 1
    assert target.is_contiguous()


def test_features_and_weight_make_logits_of_the_usual_spread() -> None:
    batch = draw(Case.parse("64x1000", "bf16", "linear-ce"), CPU)
    assert batch.weight is not None
    assert [part.shape for part in batch.inputs] == [(64, FEATURES), (1000, FEATURES)]
    assert {part.dtype for part in batch.inputs} == {torch.bfloat16}
    logits = batch.logits.double() @ batch.weight.double().T
    assert float(logits.std()) == pytest.approx(2.0, rel=0.05)


def test_the_batch_of_tokens_is_unequal() -> None:
    """Frequent classes with dozens of rows, and most classes with one."""
    found = draw(Case.parse("1024x3200", "bf16", "ce-zipf"), CPU).target.bincount()
    present = found[found > 0]
    assert 40 < present.max() < 200
    assert (present == 1).float().mean() > 0.5
