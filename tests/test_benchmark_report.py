"""What is kept of a measurement, and what is shown of it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmark_conditions import CE, conditions
from matplotlib import image

from benchmarks import curves, device_tables, plots, records, report
from benchmarks.cases import COPY, Case, modes
from benchmarks.measure import measure
from benchmarks.providers import AUTO, EAGER, EAGER_CE
from benchmarks.records import Record

ROOT = Path(__file__).parent.parent


def test_plain_cross_entropy_stands_beside_a_perturbed_case() -> None:
    found = measure(Case.parse("16x20", "fp32", "la"), [EAGER], conditions())
    both = {r.provider: r for r in found if r.mode == "both"}
    assert both[EAGER_CE.name].ratio_to_eager_ce == 1
    ratio = both["eager"].ratio_to_eager_ce
    assert ratio == pytest.approx((both["eager"].median_ms or 0) / both[EAGER_CE.name].median_ms)
    assert both["eager"].grad_error is not None


def test_what_a_perturbation_costs_is_seen_beside_the_same_providers_plain_cross_entropy() -> None:
    for name in ("16x20 la", "16x20 bce-lpl5"):
        shape, loss = name.split()
        found = measure(Case.parse(shape, "fp32", loss), [EAGER, AUTO], conditions())
        both = {r.provider: r for r in found if r.mode == "both"}
        assert set(both) == {"eager", "auto", "eager-ce", "auto-ce"}
        own, plain = both["auto"], both["auto-ce"]
        assert own.ratio_to_own_ce == pytest.approx((own.median_ms or 0) / (plain.median_ms or 1))
        assert plain.ratio_to_own_ce is None
        shown = {column.heading: column for column in report.columns(found)}
        assert shown["× own CE"].cell({"both": own}) == report.digits(own.ratio_to_own_ce)
        assert shown["provider"].cell({"both": plain}) == "auto plain CE"
        assert "× own CE" in report.notes(found)
    plain_case = measure(Case.parse("16x20", "fp32", "ce"), [EAGER, AUTO], conditions())
    assert {r.provider for r in plain_case if r.mode == "both"} == {"eager", "auto"}
    assert "× own CE" not in report.notes(plain_case)


def test_steps_are_drawn_by_shape_and_labels() -> None:
    sweep = ("ce", "lpl1", "lpl2", "ce-unique", "lpl1-unique", "lpl2-unique", "lpl1-zipf")
    cases = [Case.parse("8x12", "fp32", loss) for loss in sweep]
    found = [r for case in cases for r in measure(case, [EAGER], conditions()) if r.mode == "both"]
    panels = curves.against_steps(found).axes
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
    assert status == {("eager", mode): "ok" if mode == "both" else "slow" for mode in modes("cpu")}


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


# --- redrawn from records ----------------------------------------------------------------------

KEPT = sorted(path.parent for path in (ROOT / "benchmarks/results").glob(f"*/{records.FILE}"))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_committed_records_are_redrawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / records.FILE, tmp_path)
    report.main([str(tmp_path)])
    shown = capsys.readouterr().out
    summary = (tmp_path / "README.md").read_text()
    for record in records.read(tmp_path / records.FILE):
        assert record.case in summary
        assert record.case in shown
    # a device's tables have a page of their own
    tables = {device_tables.FILE, device_tables.PAGE, device_tables.KERNELS}
    committed = {path.name for path in folder.iterdir()} - tables
    assert committed <= {path.name for path in tmp_path.iterdir()}
    # the figures that were committed are those that are shown
    rows = {line for line in (folder / "README.md").read_text().splitlines() if "| eager |" in line}
    assert rows
    assert rows <= set(summary.splitlines())


def test_records_of_before_have_no_peak_and_no_column_of_it() -> None:
    found = [
        replace(r, peak_bytes=None)
        for r in measure(CE, [EAGER], conditions())
        if not (r.mode or "").endswith("cold")
    ]
    headings = [column.heading for column in report.columns(found)]
    assert headings[:6] == ["provider", "fwd no-grad", "fwd", "bwd", "fwd+bwd", "+ leaf"]
    assert not any("peak" in heading or heading == "cold" for heading in headings)
    assert '"cold"' not in report.notes(found)


def test_a_line_without_a_new_field_is_read_as_null(tmp_path: Path) -> None:
    records.write(measure(CE, [EAGER], conditions()), tmp_path / records.FILE)
    lines = [json.loads(line) for line in (tmp_path / records.FILE).read_text().splitlines()]
    assert all("peak_bytes" in line for line in lines)
    for line in lines:
        del line["peak_bytes"]
    (tmp_path / records.FILE).write_text("\n".join(map(json.dumps, lines)))
    assert {r.peak_bytes for r in records.read(tmp_path / records.FILE)} == {None}


def test_a_folder_without_records_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert f"expected a folder with results.jsonl, got {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda line: "", "holds no records"),
        (lambda line: "<html>", "holds no records: "),
        (lambda line: "[1]", "line 1: expected a record"),
        (lambda line: "{}", "line 1: "),
        (lambda line: line[: len(line) // 2], "holds no records: "),
        (lambda line: line.replace('"rows": ', '"rows": "x", "row": '), "line 1: .*'row'"),
        (lambda line: re.sub(r'"rows": \d+', '"rows": "many"', line), "line 1: rows: got 'many'"),
        (lambda line: re.sub(r'"median_ms": [\d.]+', '"median_ms": []', line), "median_ms: got"),
    ],
)
def test_damaged_records_are_named_and_left_alone(
    spoil: Callable[[str], str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / records.FILE
    committed = sorted((ROOT / "benchmarks" / "results").glob(f"*/{records.FILE}"))[0]
    timed = next(line for line in committed.read_text().splitlines() if '"status": "ok"' in line)
    file.write_text(spoil(timed))
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path)])
    assert stopped.value.code == 2
    assert re.search(f"{file} .*{message}", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == [records.FILE]


def test_a_full_disk_keeps_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / records.FILE
    file.write_text("earlier")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        records.write([], file)
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]


def test_what_only_some_pages_need_is_said_where_it_is_needed() -> None:
    (one,) = (r for r in measure(CE, [EAGER], conditions()) if r.mode == "both")
    official = replace(one, provider="official", loss="lpl3", steps=3)
    assert "train_adv.py" not in report.notes([one])
    assert "train_adv.py" in report.notes([one, official])
    assert "CUDA graph" not in report.notes([one])
    hot = replace(one, mode="both-hot", device_type="cuda")
    assert "CUDA graph" in report.notes([hot])
    assert "hot" in [column.heading for column in report.columns([hot, replace(hot, mode="both")])]


def test_a_failed_mode_is_named() -> None:
    (one,) = (r for r in measure(CE, [EAGER], conditions()) if r.mode == "both")
    failed = replace(one, mode="both-hot", status="failed", reason="RuntimeError: captured")
    expected = "eager in 48x130 fp32 ce, hot, is failed: RuntimeError: captured"
    assert report.not_timed([one, failed]) == [expected]


# --- pictures against the number of classes ----------------------------------------------------


@pytest.fixture(scope="module")
def sweep() -> list[Record]:
    cases = [Case.parse(f"16x{c}", "fp32", loss) for loss in ("ce", "la") for c in (50, 400, 3000)]
    return [r for case in cases for r in measure(case, [EAGER], conditions())]


def test_time_stands_over_the_roofline_of_its_own_run(sweep: list[Record]) -> None:
    both = [r for r in sweep if r.mode == "both"]
    copies = {r.case: r for r in sweep if r.mode == COPY}
    panels = curves.against_classes(both, copies.values()).axes
    assert [axes.get_title() for axes in panels] == ["ce, 16 rows, fp32", "la, 16 rows, fp32"]
    for axes, loss in zip(panels, ("ce", "la"), strict=True):
        mine = [r for r in both if r.loss == loss and r.provider == "eager"]
        drawn = {line.get_label(): line.get_xydata() for line in axes.lines}
        floor = drawn["roofline: least traffic at a copy's rate"]
        expected = []
        for record in mine:
            copy = copies[record.case]
            share = record.what.least_bytes("both") / record.what.least_bytes(COPY)
            expected.append([record.classes, share * (copy.median_ms or 0.0)])
        assert floor.tolist() == pytest.approx(np.array(expected))
        times = axes.containers[0].lines[0].get_xydata()
        assert times.tolist() == [[r.classes, r.median_ms] for r in mine]


def test_a_linear_layer_has_no_roofline_of_traffic() -> None:
    (one,) = (r for r in measure(CE, [EAGER], conditions()) if r.mode == "both")
    linear = [replace(one, loss="linear-ce", classes=c, case=f"{c}") for c in (10, 20, 30)]
    copies = [replace(r, mode=COPY, provider=COPY) for r in linear]
    (axes,) = curves.against_classes(linear, copies).axes
    assert not any("roofline" in str(line.get_label()) for line in axes.lines)


def test_peaks_stand_over_the_gradients(sweep: list[Record]) -> None:
    both = [replace(r, peak_bytes=3 * r.what.logits_bytes) for r in sweep if r.mode == "both"]
    panels = curves.peaks_against_classes(both).axes
    assert len(panels) == 2
    for axes in panels:
        floor, eager = (line.get_xydata() for line in axes.lines)
        assert floor.tolist() == pytest.approx(
            np.array([[c, 16 * c * 4 / 2**20] for c in (50, 400, 3000)])
        )
        assert (eager[:, 1] / floor[:, 1]).tolist() == pytest.approx([3.0] * 3)


def test_pictures_are_drawn_where_the_records_are_enough(
    sweep: list[Record], tmp_path: Path
) -> None:
    sweep = [replace(r, peak_bytes=r.bytes) if r.mode == "both" else r for r in sweep]
    few = [r for r in sweep if r.classes < 3000]
    assert [path.name for path in plots.save(few, tmp_path)] == []
    unknown = [replace(r, peak_bytes=None) for r in sweep]
    assert [path.name for path in plots.save(unknown, tmp_path)] == ["classes.png"]
    assert [path.name for path in plots.save(sweep, tmp_path)] == ["classes.png", "memory.png"]
    for name in ("classes.png", "memory.png"):
        pixels = image.imread(tmp_path / name)[..., :3]
        assert 0.01 < (pixels < 0.9).any(axis=2).mean() < 0.6


def test_bars_stand_in_the_rows_of_their_case() -> None:
    (one,) = (r for r in measure(CE, [EAGER], conditions()) if r.mode == "both")
    shown = [
        replace(one, case=case, provider=provider, ratio_to_eager=ratio)
        for case, provider, ratio in (
            *(("a", "eager", 1.0), ("a", "cpp", 0.5), ("a", "official", 1234.0)),
            *(("b", "eager", 1.0), ("b", "cpp", 0.25)),
        )
    ]
    (axes,) = plots.relative(shown).axes
    bars = sorted((bar.get_y(), bar.get_width()) for bar in axes.patches)
    assert [width for _, width in bars] == [-0.5, 1233.0, -0.75]
    first, second = (tick for tick in axes.get_yticks())
    centres = [y + 0.45 for y, _ in bars]
    assert first == pytest.approx((centres[0] + centres[1]) / 2)
    assert second == pytest.approx(centres[2])
    assert {"0.5", "1234", "0.25"} <= {text.get_text() for text in axes.texts}
