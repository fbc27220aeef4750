"""The benchmark package: what it writes, whom it lets in, what it counts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from matplotlib import image
from rich.console import Console

from benchmarks import correctness, plots, records, run
from benchmarks.cases import (
    COPY,
    MODES,
    TOKEN_SHAPES,
    Case,
    all_cases,
    default_cases,
    draw,
    lpl_cases,
)
from benchmarks.measure import Conditions, admit, measure
from benchmarks.providers import COMPILE, EAGER, EAGER_CE, Provider, providers
from benchmarks.timing import CpuSampler

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
CE = Case.parse("48x130", "fp32", "ce")
MULTILABEL = ("bce", "db", "bce-lpl3")
KINDS = ("ce", "la", "vs", "ldam", "smoothing", "lpl3", "lpl3-zipf", "lpl3-unique", *MULTILABEL)


def conditions(patience: float = 1.0) -> Conditions:
    """One thread, as few samples as there may be."""
    return Conditions(CPU, CpuSampler(1), records.environment(CPU, 1), 0.001, patience)


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a smoke run."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--threads", "1"]
    done = subprocess.run(
        [*command, "--device", "cpu", "--output", str(folder)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_quick_run_writes_every_record(quick: tuple[Path, str]) -> None:
    lines = [json.loads(line) for line in (quick[0] / "results.jsonl").read_text().splitlines()]
    for line in lines:
        assert tuple(line) == records.FIELDS
        if line["status"] != "ok":
            assert line["reason"]
            continue
        assert 0 < line["p20"] <= line["median_ms"] <= line["p80"]
        assert line["samples"] >= 3
        assert line["gb_per_s"] == pytest.approx(line["bytes"] / line["median_ms"] / 1e6)
        assert line["torch"] == torch.__version__
        assert line["threads"] == 1
    seen = {(line["case"], line["provider"], line["mode"]) for line in lines}
    for case in ("64x100 fp32 ce", "64x100 fp32 lpl5"):
        assert {(case, "eager", "both"), (case, "reference", "both"), (case, COPY, COPY)} <= seen
    assert {mode for _, provider, mode in seen if provider == "eager"} == set(MODES)
    baseline = [line for line in lines if (line["provider"], line["mode"]) == ("eager", "both")]
    assert {line["ratio_to_eager"] for line in baseline} == {1.0}
    copies = [line for line in lines if line["mode"] == COPY]
    assert [line["percent_of_copy"] for line in copies] == pytest.approx([100.0] * len(copies))


def test_interpreted_triton_is_named_but_not_timed(quick: tuple[Path, str]) -> None:
    found = [r for r in records.read(quick[0] / "results.jsonl") if r.provider == "triton"]
    assert found
    assert {(r.status, r.median_ms) for r in found} == {("absent", None)}
    assert "triton is absent" in quick[1]


def test_quick_run_draws_plots_that_are_not_blank(quick: tuple[Path, str]) -> None:
    for name in ("relative.png", "steps.png"):
        pixels = image.imread(quick[0] / name)[..., :3]
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 500
        inked = (pixels < 0.9).any(axis=2)
        assert 0.01 < inked.mean() < 0.6
        # colour, not axes alone
        assert ((pixels.max(axis=2) - pixels.min(axis=2)) > 0.3).mean() > 0.0005


def test_table_and_summary_show_every_case_and_provider(quick: tuple[Path, str]) -> None:
    summary = (quick[0] / "README.md").read_text()
    for text in (quick[1], summary):
        for case in run.cases.quick_cases():
            assert case.name in text
        for provider in ("eager", "reference", "eager plain CE", "copy of logits"):
            assert provider in text
    assert "(results.jsonl)" in summary
    assert "(relative.png)" in summary


def test_results_name_neither_machine_nor_folder(quick: tuple[Path, str]) -> None:
    for name in ("results.jsonl", "README.md"):
        text = (quick[0] / name).read_text()
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
        assert str(ROOT) not in text
        assert str(Path.home()) + "/" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "512"], "shape: expected rows x classes"),
        (["--dtypes", "int8"], "dtype: expected one of fp64"),
        (["--losses", "lpl0"], "loss: expected ce, la"),
        (["--shapes", "9x8", "--losses", "ce-unique"], "shape: expected a class for every row"),
        (
            ["--losses", "lpl5-rare"],
            "then -zipf, -unique or nothing; or bce, db or bce-lplK, got 'lpl5-rare'",
        ),
        (["--losses", "arcface"], "loss: expected ce, la"),
        (["--providers", "jax"], "providers: expected some of eager"),
    ],
)
def test_bad_options_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_eager_takes_part_whoever_is_asked_for() -> None:
    options = run.parser().parse_args(["--providers", "reference"])
    assert [p.name for p in run.contestants(options)] == ["eager", "reference"]


# --- the cases ---------------------------------------------------------------------------------


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
    options = run.parser().parse_args(["--lpl", "--device", device])
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
    for name in (*KINDS, "ce-zipf", "ce-unique", "lpl100"):
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


def test_the_batch_of_tokens_is_unequal() -> None:
    """Frequent classes with dozens of rows, and most classes with one."""
    found = draw(Case.parse("1024x3200", "bf16", "ce-zipf"), CPU).target.bincount()
    present = found[found > 0]
    assert 40 < present.max() < 200
    assert (present == 1).float().mean() > 0.5


# --- who is let in -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", KINDS)
def test_eager_and_every_backend_are_right(dtype: str, loss: str) -> None:
    case = Case.parse("48x130", dtype, loss)
    others = [p for p in providers().values() if p != COMPILE]
    found = {e.name: e.status for e in admit(case, draw(case, CPU), others, "cpu")}
    assert set(found.values()) <= {"ok", "absent"}, found
    assert found["eager"] == found["reference"] == "ok"


def _plain(u: torch.Tensor, batch: object) -> torch.Tensor:
    return F.cross_entropy(u, batch.target)  # type: ignore[attr-defined]


class _ForgetsUpstream(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, target):  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            inner = u.detach().requires_grad_()
            loss = F.cross_entropy(inner, target)
        ctx.grad = torch.autograd.grad(loss, inner)[0]
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return ctx.grad, None


def _raises(u: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel in /home/somebody/lib/kernel.so\nsecond line")


WRONG = {
    "off by a thousandth": lambda case, batch: lambda u: 1.001 * _plain(u, batch),
    "wrong gradient alone": lambda case, batch: (
        lambda u: _plain(u, batch) + (u.sum() - u.sum().detach()) * 1e-4
    ),
    "forgets the upstream": lambda case, batch: lambda u: _ForgetsUpstream.apply(u, batch.target),
    "nan": lambda case, batch: lambda u: _plain(u, batch) * float("nan"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_provider_is_reported_and_not_timed(fault: str) -> None:
    found = measure(CE, [EAGER, Provider("wrong", WRONG[fault])], conditions())
    mine = [r for r in found if r.provider == "wrong"]
    assert [(r.status, r.mode, r.median_ms) for r in mine] == [("wrong", None, None)]
    assert mine[0].reason is not None
    assert "error" in mine[0].reason
    assert {r.mode for r in found if r.provider == "eager"} == set(MODES)


def test_a_provider_that_raises_is_reported_without_paths() -> None:
    provider = Provider("broken", lambda case, batch: _raises)
    found = list(admit(CE, draw(CE, CPU), [EAGER, provider], "cpu"))[1]
    assert (found.name, found.status, found.criterion) == ("broken", "failed", None)
    assert found.reason == "RuntimeError: no kernel in kernel.so"


def test_a_case_too_large_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_or_fail(case: Case, *rest: object) -> list[records.Record]:
        if case.rows > 48:
            raise torch.OutOfMemoryError("too large")
        return measure(case, [EAGER], conditions())

    monkeypatch.setattr(run, "measure", measure_or_fail)
    large = Case.parse("96x130", "fp32", "ce")
    found = run.measure_all([large, CE], [EAGER], conditions(), Console(quiet=True), len)
    assert [r.reason for r in found if r.case == large.name] == ["the device is out of memory"]
    assert {r.mode for r in found if r.case == CE.name} >= set(MODES)


def test_a_wrong_baseline_gives_no_ratios() -> None:
    wrong = replace(EAGER, criterion=lambda case, batch: lambda u: 2 * _plain(u, batch))
    found = measure(CE, [wrong, providers()["reference"]], conditions())
    assert {r.status for r in found if r.provider == "eager"} == {"wrong"}
    timed = [r for r in found if r.provider == "reference"]
    assert {(r.status, r.ratio_to_eager) for r in timed} == {("ok", None)}


@pytest.mark.parametrize("loss", MULTILABEL)
def test_multilabel_truth_in_chunks_is_the_truth(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case.parse("48x20", "fp32", loss)
    batch = draw(case, CPU)
    whole = correctness.truth(case, batch)
    monkeypatch.setattr(correctness, "_CHUNK", 150)
    parts = correctness.truth(case, batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-18)


def test_truth_in_chunks_is_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.parse("48x20", "fp32", "lpl3-zipf")
    batch = draw(case, CPU)
    whole = correctness.truth(case, batch)
    monkeypatch.setattr(correctness, "_CHUNK", 100)
    chunks = [batch.target[i].tolist() for i in correctness.whole_classes(batch.target, 5)]
    parts = correctness.truth(case, batch)
    assert len(chunks) > 2
    assert sum(map(len, chunks)) == 48
    assert sum(len(set(chunk)) for chunk in chunks) == len(batch.target.unique())
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-18)


# --- what is kept ------------------------------------------------------------------------------


def test_plain_cross_entropy_stands_beside_a_perturbed_case() -> None:
    found = measure(Case.parse("16x20", "fp32", "la"), [EAGER], conditions())
    both = {r.provider: r for r in found if r.mode == "both"}
    assert both[EAGER_CE.name].ratio_to_eager_ce == 1
    ratio = both["eager"].ratio_to_eager_ce
    assert ratio == pytest.approx((both["eager"].median_ms or 0) / both[EAGER_CE.name].median_ms)
    assert both["eager"].grad_error is not None


def test_steps_are_drawn_by_shape_and_labels() -> None:
    sweep = ("ce", "lpl1", "lpl2", "ce-unique", "lpl1-unique", "lpl2-unique", "lpl1-zipf")
    cases = [Case.parse("8x12", "fp32", loss) for loss in sweep]
    found = [r for case in cases for r in measure(case, [EAGER], conditions()) if r.mode == "both"]
    panels = plots.against_steps(found).axes
    assert [axes.get_title() for axes in panels] == [
        "8×12 fp32, uniform labels",
        "8×12 fp32, unique labels",
    ]
    for axes in panels:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0: plain CE", "1", "2"]


def test_who_is_too_slow_is_timed_in_one_mode() -> None:
    found = measure(CE, [EAGER], conditions(patience=0.0))
    status = {(r.provider, r.mode): r.status for r in found}
    assert status.pop((COPY, COPY)) == "ok"
    assert status == {("eager", mode): "ok" if mode == "both" else "slow" for mode in MODES}


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    found = measure(CE, [EAGER], conditions())
    records.write(found, tmp_path / "r.jsonl")
    assert records.read(tmp_path / "r.jsonl") == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /usr/lib/a-b/x.so: no", "cannot open x.so: no"),
        ("n/a, 3/4, and/or", "n/a, 3/4, and/or"),
        ("('/tmp/a/b.py')", "('b.py')"),
    ],
)
def test_paths_are_left_out(text: str, expected: str) -> None:
    assert records.without_paths(text) == expected


@pytest.mark.gpu
def test_quick_run_on_a_gpu(tmp_path: Path) -> None:
    run.main(["--quick", "--device", "cuda", "--output", str(tmp_path)])
    found = records.read(tmp_path / "results.jsonl")
    assert {r.clock for r in found if r.status == "ok"} == {"device"}
    assert {r.status for r in found if r.provider == "triton"} == {"ok"}
    assert {r.mode for r in found if r.provider == "triton"} == set(MODES)
