"""The benchmark's command: what it writes, what it is asked for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import image

from benchmarks import device_cost, device_tables, end_to_end, records, run, selections
from benchmarks.cases import COPY, modes

ROOT = Path(__file__).parent.parent


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
    assert {mode for _, provider, mode in seen if provider == "eager"} == set(modes("cpu"))
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
        for case in selections.quick_cases():
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
            "then -zipf, -unique, -one or nothing; or bce, db or bce-lplK, got 'lpl5-rare'",
        ),
        (["--losses", "arcface"], "loss: expected ce, la"),
        (["--providers", "jax"], "providers: expected some of eager"),
        (["--modes", "sideways"], "modes: expected some of forward"),
        (["--threads", "0"], "argument --threads: expected an int in [1, 1024], got '0'"),
        (["--threads", "two"], "argument --threads: expected an int in [1, 1024], got 'two'"),
        (["--budget", "nan"], "argument --budget: expected a finite number > 0, got 'nan'"),
        (["--budget", "0"], "argument --budget: expected a finite number > 0, got '0'"),
        (["--patience", "-1"], "argument --patience: expected a number in (0, inf], got '-1'"),
        (["--device", "gpu"], "argument --device: 'gpu' cannot be used"),
        (["--device", "meta"], "argument --device: 'meta' cannot be used: expected cpu or cuda"),
        (["--device", "cuda:99"], "argument --device: 'cuda:99' cannot be used"),
        (["--tests", "absent.xml"], "expected a report of pytest --junitxml, got absent.xml"),
        (["--quick", "--output", __file__], f"cannot be written: {__file__}: File exists"),
    ],
)
def test_bad_options_are_explained(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (end_to_end, ["--threads", "0"], "argument --threads: expected"),
        (end_to_end, ["--losses", "arcface"], "loss: expected ce, la"),
        (end_to_end, ["--data", "tags"], "invalid choice: 'tags'"),
        (end_to_end, ["--device", "gpu"], "argument --device: 'gpu' cannot be used"),
        (device_cost, ["--kernel", "("], "argument --kernel: expected a regular expression"),
        (device_cost, ["--object", "absent.o"], "--object: absent.o is no file"),
        (device_tables, ["--only", "*"], "argument --only: expected a regular expression"),
        (device_tables, ["--seconds", "nan"], "argument --seconds: expected a finite number"),
    ],
)
def test_bad_options_of_other_commands_are_explained(
    command: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_published_algorithm_takes_part_where_it_is_named() -> None:
    default = run.contestants(run.parser().parse_args([]))
    assert {"eager", "compile", "cpp", "liger", "torch-linear"} <= {p.name for p in default}
    assert "official" not in {p.name for p in default}
    named = run.contestants(run.parser().parse_args(["--providers", "official"]))
    assert [p.name for p in named] == ["eager", "official"]


def test_eager_takes_part_whoever_is_asked_for() -> None:
    options = run.parser().parse_args(["--providers", "reference"])
    assert [p.name for p in run.contestants(options)] == ["eager", "reference"]


@pytest.mark.gpu
def test_quick_run_on_a_gpu(tmp_path: Path) -> None:
    run.main(["--quick", "--device", "cuda", "--output", str(tmp_path)])
    found = records.read(tmp_path / "results.jsonl")
    clocks = {(r.mode == "both-wall", r.clock) for r in found if r.status == "ok"}
    assert clocks == {(True, "wall"), (False, "device")}
    assert {r.status for r in found if r.provider == "triton"} == {"ok"}
    assert {r.mode for r in found if r.provider == "triton"} == set(modes("cuda"))
