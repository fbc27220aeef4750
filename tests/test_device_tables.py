"""The GPU tables, but for the GPU: what is run, kept and shown."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_conditions import CPU

from benchmarks import device_tables, kernel_forms, records
from benchmarks.cases import COPY, Case
from benchmarks.device_tables import ENTRIES, ONE, OURS, RANDOM, Entry, KernelTime, Measured, Run
from benchmarks.providers import Provider, providers
from benchmarks.suite import Suite

CE = Case.parse("48x130", "fp32", "ce")
ENVIRONMENT = {**vars(records.environment(CPU, 1)), "driver": "1.2", "git": "abc"}


def measured(case: str, provider: str, upstream: str, us: float | None, **others: Any) -> Measured:
    fields: dict[str, Any] = {"status": records.OK, "device_us": us, "clock": "graph", **others}
    return Measured(case=case, provider=provider, upstream=upstream, **ENVIRONMENT, **fields)


def test_every_entry_has_providers_that_solve_it() -> None:
    known = device_tables._known()
    for entry in ENTRIES:
        assert entry.timed
        for name in entry.timed:
            if name not in OURS:
                assert known[name].solves(entry.case), (entry.case.name, name)


def test_the_most_important_cases_come_first() -> None:
    names = [entry.case.name for entry in ENTRIES]
    assert names[:2] == ["8192x32000 bf16 ce", "8192x32000 bf16 lpl50-unique"]
    # what compiles for longest comes behind all that is timed otherwise
    first = next(k for k, entry in enumerate(ENTRIES) if "compile" in entry.timed)
    assert all("compile" in entry.timed or entry.case.loss.linear for entry in ENTRIES[first:])
    assert {entry.case.name for entry in ENTRIES[first:]} - set(names[:first]) == {
        "8192x32000 bf16 linear-ce"
    }


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Run]:
    """A run with a clock that a CPU has."""

    def flushed(run: Callable[[], object], flush: object, calls: int) -> list[float]:
        start = time.perf_counter()
        run()
        return [1e6 * (time.perf_counter() - start)] * 3

    monkeypatch.setattr(device_tables, "Flush", lambda: None)
    monkeypatch.setattr(device_tables, "flushed", flushed)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(
        device_tables, "kernel_times", lambda criterion, batch: {"forward": (1, 5.0)}
    )

    def made(entries: list[Entry], seconds: float = 100.0) -> Run:
        run = Run(tmp_path, seconds, "abc123", entries, device="cpu")
        run.measure()
        return run

    return made


def test_everybody_is_checked_timed_and_kept(on_cpu: Callable[..., Run], tmp_path: Path) -> None:
    run = on_cpu([Entry(CE, (*OURS, "eager", "cpp", "quack"))])
    lines = [json.loads(line) for line in (tmp_path / device_tables.FILE).read_text().splitlines()]
    assert lines == [json.loads(json.dumps(vars(found))) for found in run.found]
    timed = {(line["provider"], line["upstream"]) for line in lines if line["status"] == "ok"}
    assert timed == {(COPY, ""), *((name, u) for name in ("eager", "cpp") for u in (ONE, RANDOM))}
    for line in lines:
        assert line["git"] == "abc123"
        if line["status"] == "ok" and line["provider"] != COPY:
            assert 0 <= line["grad_error"] < 1e-3
            assert line["device_us"] > 0
            assert line["percent_of_copy"] > 0
        elif line["provider"] != COPY:
            assert line["reason"]
    page = (tmp_path / device_tables.PAGE).read_text()
    assert "commit abc123" in page
    assert "| 48x130 fp32 ce |" in page
    assert "quack in 48x130 fp32 ce is absent: runs on a GPU, not on cpu" in page


def test_a_wrong_result_is_not_timed(
    on_cpu: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(case: Case, batch: Any) -> Callable[..., torch.Tensor]:
        return lambda u: 2 * torch.nn.functional.cross_entropy(u, batch.target)

    known = {**providers(), "triton": Provider("triton", wrong)}
    monkeypatch.setattr(device_tables, "providers", lambda: known)
    run = on_cpu([Entry(CE, ("triton",))])
    (found,) = [r for r in run.found if r.provider == "triton"]
    assert (found.status, found.device_us) == (records.WRONG, None)
    assert run.kernels == []
    # eager, the measure of others, was not asked for
    assert {r.provider for r in run.found} == {COPY, "triton"}


def test_a_run_ends_in_time_and_says_what_it_left(
    on_cpu: Callable[..., Run], tmp_path: Path
) -> None:
    run = on_cpu([Entry(CE, ("eager",))], seconds=0)
    assert run.found == []
    assert run.left == [CE.name]
    assert "Nothing was measured" in (tmp_path / device_tables.PAGE).read_text()


def test_a_case_that_fails_costs_no_other(
    on_cpu: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    draw = device_tables.draw

    def out_of_memory(case: Case, device: torch.device) -> Any:
        if case.rows == 7:
            raise RuntimeError("no memory left\nfor this")
        return draw(case, device)

    monkeypatch.setattr(device_tables, "draw", out_of_memory)
    other = Case.parse("7x9", "fp32", "ce")
    run = on_cpu([Entry(other, ("eager",)), Entry(CE, ("eager",))])
    assert {r.case for r in run.found} == {CE.name}
    assert (
        "* 7x9 fp32 ce: RuntimeError: no memory left" in (tmp_path / device_tables.PAGE).read_text()
    )


def test_the_page_has_ratios_kernels_and_their_predictions() -> None:
    main = "8192x32000 bf16"
    found = [
        measured(f"{main} ce", COPY, "", 250.0),
        measured(f"{main} ce", "quack", ONE, 500.0),
        measured(f"{main} ce", "cuda", ONE, 260.0, percent_of_copy=96.2, wall_us=300.0),
        measured(f"{main} ce", "cuda", RANDOM, 390.0, clock="events", peak_of_logits=1.0),
        measured(f"{main} lpl50-unique", "cuda", RANDOM, 780.0),
    ]
    kernels = [
        KernelTime(f"{main} ce", "cuda", ONE, "row_kernel<A>", 1, 260.0, 255.0, "CUDA sm_90, nvcc")
    ]
    tests = Suite(passed=3, failed=0, skipped=1, seconds=60.0, backends={}, failures=[], reasons={})
    page = device_tables.page(found, kernels, ["8192x128256 bf16 ce"], ["a note"], tests)
    assert "3 passed, 0 failed, 1 skipped" in page
    assert "| 8192x32000 bf16 ce | 250 | 500 (–) · – | 260 (96.2) · 390* (–) |" in page
    assert "| cuda CE over QuACK, 8192x32000 bf16 | 0.52 | – |" in page
    assert "| cuda LPL K = 50 over cuda's CE | – | 2.00 |" in page
    assert "| row_kernel<A> | 1 | 260 | 255 |" in page
    assert "* predicted from CUDA sm_90, nvcc" in page
    assert "* 8192x128256 bf16 ce: no time was left" in page
    assert "* a note" in page
    assert not re.search(r"\bNone\b", page)


def test_predictions_come_from_the_record_by_form_and_kernel() -> None:
    case = Case.parse("8192x32000", "bf16", "la")
    numbers = [10.0, 1.0, 4.0, 6.0, 32, 8, 256]
    name = "_ZN3lpl10row_kernelINS_7RowBodyI13__nv_bfloat16Lb1EEEEEvNS_4CallEib"
    known = {
        "CUDA sm_90, nvcc 1": {"row_kernel<RowBody<__nv_bfloat16, true> >": numbers},
        "Triton sm_90, triton 1": {
            "one table (logit adjustment) | bf16 | forward | forward": numbers
        },
    }
    expected = 1e6 * 4 * 8192 * 32000 / 4e12
    shown = "void lpl::(anonymous namespace)::row_kernel<lpl::RowBody<__nv_bfloat16, true>>(int)"
    for kernel, provider in ((name, "cuda"), (shown, "cuda"), ("forward", "triton")):
        found = device_tables.predicted(kernel, provider, case, known, 4e12)
        assert found is not None
        assert found[0] == pytest.approx(expected)
    assert device_tables.predicted("elementwise", "cuda", case, known, 4e12) is None
    for loss in ("lpl10-zipf", "lpl50-unique", "bce-lpl10"):
        what = device_tables.form_of(Case.parse("80x90", "bf16", loss))
        assert what in {*kernel_forms.CUDA, "BCE, LPL, 10 steps"}


def test_without_a_device_or_a_folder_the_command_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for arguments, message in (
        (["--out", str(tmp_path), "--only", "nothing"], "expected some case to have 'nothing'"),
        (["--out", str(tmp_path)], "no CUDA device"),
    ):
        if torch.cuda.is_available() and message == "no CUDA device":
            continue
        with pytest.raises(SystemExit):
            device_tables.main(arguments)
        assert message in capsys.readouterr().err
    device_tables.main(["--list", "--only", "bce$"])
    assert capsys.readouterr().out == "4096x9605 bf16 bce\n" * 2
