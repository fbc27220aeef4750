"""`lpl-fused`: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import copy
import errno
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_library
import torch
from PIL import Image
from rich.console import Console

from lpl_fused.cli import main
from lpl_fused.data import LabelSets, LongTailedData, load
from lpl_fused.training import RECIPES, Record, RunSettings, SettingsError, compare, train
from lpl_fused.training.kinds import KINDS
from lpl_fused.training.progress import Bar, Lines, progress
from lpl_fused.version import __version__

QUICK = ("train", "--data", "digits", "--epochs", "2")

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library instead of Python's, and an empty cache."""
    folder = tmp_path / "library"
    folder.mkdir()
    small_library.write(folder)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def small_data(library: Path) -> LongTailedData:
    return load("tags", num_classes=12)


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def untimed(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in ("step_ms", "loss_ms")} for r in results]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison of two losses with two seeds, to be left as it is."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(*QUICK, "--loss", "ce", "la+lpl", "--seeds", "0-1", "--output", folder) == 0
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison."""
    return Path(shutil.copytree(finished, tmp_path / "done"))


# what comes out


def test_record_holds_settings_versions_and_results(done: Path) -> None:
    record = read(done)
    assert record["settings"]["data"] == "digits"
    assert record["settings"]["data_options"]["imbalance"] == 100.0
    assert record["settings"]["epochs"] == 2
    assert record["environment"]["torch"] == torch.__version__
    assert record["environment"]["lpl_fused"] == __version__
    sizes = {name: record["data"][name] for name in ("classes", "train_examples", "imbalance")}
    assert sizes == {"classes": 10, "train_examples": 250, "imbalance": 100.0}
    assert (record["data"]["largest_class"], record["data"]["smallest_class"]) == (100, 1)
    assert sorted(record["class_counts"]["0"]) == [1, 2, 3, 5, 8, 13, 22, 36, 60, 100]

    pairs = [(result["loss"], result["seed"]) for result in record["results"]]
    assert pairs == [("ce", 0), ("la+lpl", 0), ("ce", 1), ("la+lpl", 1)]
    for result in record["results"]:
        assert 0 <= result["overall"] <= 1
        assert result["balanced"] == pytest.approx(np.mean(result["class_accuracy"]), abs=1e-4)
        assert result["overall"] == pytest.approx(result["balanced"]), "the test is balanced"
        assert 0 < result["loss_ms"] < result["step_ms"]
        assert len(result["loss_variation"]) == 10
        if result["loss"] == "ce":
            assert result["loss_variation"] == [0.0] * 10

    values = [result["few"] for result in record["results"] if result["loss"] == "ce"]
    summary = record["summary"]["ce"]["few"]
    assert summary["mean"] == pytest.approx(np.mean(values))
    assert summary["standard_error"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(2))


def test_plot_is_drawn(done: Path) -> None:
    with Image.open(done / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[0] >= 500
    assert pixels.shape[1] >= 1000
    panels = np.array_split(pixels, 2, axis=1)
    for panel in panels:
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 50
        assert (panel < 128).all(axis=2).mean() > 0.002, "no line, no text"


def test_table_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*QUICK, "--loss", "ce", "la", "--seeds", 0, "--output", tmp_path) == 0
    text = capsys.readouterr().out
    for word in (
        "overall",
        "many-shot",
        "medium-shot",
        "few-shot",
        "step ms",
        "ce",
        "la",
        "100 … 1",
    ):
        assert word in text
    assert str(tmp_path / "plot.png") in text


def test_table_of_an_unbalanced_test_shows_both_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, numbers in (("train", (9, 4)), ("test", (1, 3))):
        for name, number in zip(("blue", "red"), numbers, strict=True):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (8, 8), name).save(tmp_path / split / name / f"{i}.png")
    out = ("--seeds", 0, "--loss", "ce", "--epochs", 1, "--output", tmp_path / "out")
    assert run("train", "--data", "folder", "--path", tmp_path, *out) == 0
    text = capsys.readouterr().out
    assert "balanced" in text
    assert "–" in text, "no class has more than 100 images"


def test_same_seed_same_result(done: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert run(*QUICK, "--loss", "la+lpl", "ce", "--seeds", 1, 0, "--output", again) == 0
    first, second = (
        sorted(untimed(read(folder)["results"]), key=lambda r: (r["loss"], r["seed"]))
        for folder in (done, again)
    )
    assert first == second
    assert first[0]["overall"] != first[1]["overall"], "two seeds differ"


@pytest.mark.parametrize("loss", [name for name in RECIPES if not RECIPES[name].multi_label])
def test_every_loss_trains(loss: str) -> None:
    settings = RunSettings.for_data("digits", {"epochs": 5, "threads": 1})
    trained = train(load("digits", seed=0), loss, 0, settings)
    assert trained.scores.overall > 0.3, "no better than guessing"
    assert trained.loss_variation.isfinite().all()


@pytest.mark.parametrize("loss", [name for name in RECIPES if RECIPES[name].multi_label])
def test_every_multi_label_loss_trains(loss: str, small_data: LongTailedData) -> None:
    settings = RunSettings.for_data("tags", {"batch_size": 32})
    trained = train(small_data, loss, 0, settings)
    assert isinstance(small_data.test_targets, LabelSets)
    assert trained.scores.overall > 2 * small_data.test_targets.dense().mean(), "guessing"
    assert trained.loss_variation.isfinite().all()


def test_ldam_variation_is_that_of_its_margin() -> None:
    # a margin raises every loss; were the scale s part of it, confident classes would fall
    settings = RunSettings.for_data("digits", {"epochs": 30, "threads": 1})
    assert (train(load("digits", seed=0), "ldam", 0, settings).loss_variation > 0).all()


def test_folder_of_images_end_to_end(tmp_path: Path) -> None:
    for name, colour, number in (("blue", "blue", 12), ("red", "red", 6)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "data" / name / f"{i}.png")
    status = run(
        *("train", "--data", "folder", "--path", tmp_path / "data", "--loss", "ce", "--seeds", 0),
        *("--epochs", 30, "--few-below", 6, "--many-above", 10, "--output", tmp_path / "out"),
    )
    assert status == 0
    result = read(tmp_path / "out")["results"][0]
    assert result["overall"] == 1.0, "red and blue are told apart"
    assert result["medium"] is None, "no class in between: nan, which JSON writes as null"


def test_explain_names_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain") == 0
    text = capsys.readouterr().out
    for word in (f"lpl_fused {__version__}", torch.__version__, "backend=", "cpp", "reference"):
        assert word in text


def test_losses_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--list-losses") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    for line in lines:
        assert ("multi-label" in line) == RECIPES[line.split()[0]].multi_label


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lpl_fused", "--version"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"lpl_fused {__version__}")


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["train", "--data", "digits"], "train"), (["inspect", "x"], "inspect")],
)
def test_missing_package_names_the_extra(arguments: list[str], extra: str) -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        f"from lpl_fused.cli import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f'rich is missing: pip install "lpl_fused[{extra}]"')


# several labels

TAGS = ("train", "--data", "tags", "--classes", "12", "--epochs", "3")


def test_multi_label_end_to_end(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    borders = ("--many-above", 80, "--few-below", 30)
    assert run(*TAGS, *borders, "--loss", "bce", "db+lpl", "--seeds", "0-1", "--output", out) == 0
    text = " ".join(capsys.readouterr().out.split())
    record = read(out)
    counts, data = record["class_counts"]["1"], record["data"]
    assert f"means over the {data['judged_classes']} classes with a positive in the test" in text
    assert "mAP in %" in text
    assert "accuracy" not in text and "balanced" not in text
    assert data["judged_classes"] == 12
    assert data["judged_few_classes"] == sum(count < 30 for count in counts)
    assert data["labels_per_example"] == pytest.approx(
        sum(counts) / data["train_examples"], abs=0.01
    )
    pairs = [(result["loss"], result["seed"]) for result in record["results"]]
    assert pairs == [("bce", 0), ("db+lpl", 0), ("bce", 1), ("db+lpl", 1)]
    for result in record["results"]:
        by_class = np.array(result["class_average_precision"])
        counts = np.array(record["class_counts"][str(result["seed"])])
        assert result["overall"] == pytest.approx(by_class.mean(), abs=1e-4)
        assert result["many"] == pytest.approx(by_class[counts > 80].mean(), abs=1e-4)
        assert result["few"] == pytest.approx(by_class[counts < 30].mean(), abs=1e-4)
        assert "balanced" not in result and "class_accuracy" not in result
    assert set(record["summary"]["bce"]) == {
        "overall",
        "many",
        "medium",
        "few",
        "step_ms",
        "loss_ms",
    }
    with Image.open(out / "plot.png") as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_multi_label_resume(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert run(*TAGS, "--loss", "bce", "ml-lpl", "--seeds", "0-1", "--output", whole) == 0
    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", Counted(interrupt_at=3))
        assert run(*TAGS, "--loss", "bce", "ml-lpl", "--seeds", "0-1", "--output", parted) == 130
    counted = Counted()
    monkeypatch.setattr(compare, "train", counted)
    assert run("train", "--resume", parted / "run.json") == 0
    assert counted.pairs == [("ml-lpl", 1)]
    assert untimed(read(parted)["results"]) == untimed(read(whole)["results"])
    assert run("train", "--resume", parted / "run.json", "--loss", "ntr", "--seeds", 0) == 0
    assert counted.pairs[1:] == [("ntr", 0), ("ntr", 1)]


def test_default_losses_fit_the_kind(library: Path, tmp_path: Path) -> None:
    assert run(*TAGS, "--epochs", 1, "--seeds", 0, "--output", tmp_path / "out") == 0
    assert read(tmp_path / "out")["losses"] == ["bce", "focal-bce", "db", "ml-lpl"]
    for kind in KINDS.values():
        assert all(RECIPES[loss].multi_label == kind.multi_label for loss in kind.default_losses)


def test_many_multi_label_losses_are_drawn_as_bars(library: Path, tmp_path: Path) -> None:
    every = [name for name in RECIPES if RECIPES[name].multi_label]
    assert len(every) == 13
    out = ("--output", tmp_path / "out")
    assert run(*TAGS, "--epochs", 1, "--loss", *every, "--seeds", 0, *out) == 0
    with Image.open(tmp_path / "out" / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels.max(2) - pixels.min(2) > 40).mean() > 0.02, "no bars"


def test_resume_refuses_a_loss_of_the_other_kind(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / "run.json").read_bytes()
    assert run("train", "--resume", done / "run.json", "--loss", "bce") == 2
    error = capsys.readouterr().err
    assert re.search(
        "data 'digits' is single-label, loss 'bce' is not.* that fit: ce, .*la,", error
    )
    assert (done / "run.json").read_bytes() == before


# resume and interruption


class Counted:
    """`train`, noting what it is asked for; the run of number `interrupt_at` is interrupted."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.pairs: list[tuple[str, int]] = []
        self.interrupt_at = interrupt_at

    def __call__(self, data: Any, loss: str, seed: int, *rest: Any, **keywords: Any) -> Any:
        if len(self.pairs) == self.interrupt_at:
            raise KeyboardInterrupt
        self.pairs.append((loss, seed))
        return train(data, loss, seed, *rest, **keywords)


def test_resume_trains_only_what_is_missing(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(done)
    counted = Counted()
    monkeypatch.setattr(compare, "train", counted)
    assert run("train", "--resume", done / "run.json") == 0
    assert counted.pairs == []
    assert run("train", "--resume", done, "--loss", "vs", "--seeds", "1-2") == 0
    assert counted.pairs == [("vs", 0), ("vs", 1), ("ce", 2), ("la+lpl", 2), ("vs", 2)]
    after = read(done)
    assert after["results"][:4] == before["results"]
    assert after["settings"] == before["settings"]
    assert set(after["class_counts"]) == {"0", "1", "2"}


def test_interrupted_run_keeps_what_was_finished(
    done: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "inter rupted"  # the hint is pasted into a shell
    pairs = ("--loss", "ce", "la+lpl", "--seeds", "0-1")
    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", Counted(interrupt_at=3))
        assert run(*QUICK, *pairs, "--output", folder) == 130
    assert untimed(read(folder)["results"]) == untimed(read(done)["results"][:3])
    assert sorted(file.name for file in folder.iterdir()) == ["plot.png", "run.json"]

    printed = capsys.readouterr().out
    (hint,) = (line for line in printed.splitlines() if "lpl-fused train --resume" in line)
    assert main(shlex.split(hint[hint.index("lpl-fused") :])[1:]) == 0
    assert untimed(read(folder)["results"]) == untimed(read(done)["results"])


def test_interrupted_before_anything_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "train", Counted(interrupt_at=0))
    assert run(*QUICK, "--output", tmp_path / "none") == 130
    printed = capsys.readouterr().out
    assert "no run was finished" in printed
    assert "--resume" not in printed, "there is nothing to resume"
    assert list((tmp_path / "none").iterdir()) == []


def test_diverged_loss_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ("--loss", "ce", "vs", "la", "--set", "vs.gamma=-12", "--seeds", 0)
    assert run(*QUICK, *wild, "--output", tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert re.search("the vs loss of seed 0 is nan after epoch 1", printed.err)
    assert "many-shot" in printed.out
    record = read(tmp_path / "out")
    assert [result["loss"] for result in record["results"]] == ["ce", "la"]
    assert [(f["loss"], f["seed"]) for f in record["failures"]] == [("vs", 0)]


def test_a_loss_that_raises_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(data: Any, loss: str, *rest: Any, **keywords: Any) -> Any:
        if loss == "ce":
            raise ZeroDivisionError("by nought")
        return train(data, loss, *rest, **keywords)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", failing)
        assert run(*QUICK, "--loss", "ce", "la", "--seeds", 0, "--output", out) == 2
    printed = capsys.readouterr()
    assert "the ce loss of seed 0: ZeroDivisionError: by nought" in printed.err
    assert "failing" in printed.out, "where it happened"
    assert f"lpl-fused train --resume {out}" in printed.out
    assert [result["loss"] for result in read(out)["results"]] == ["la"]

    assert run("train", "--resume", out / "run.json") == 0, "what failed is tried again"
    record = read(out)
    assert [result["loss"] for result in record["results"]] == ["la", "ce"]
    assert record["failures"] == []


def test_many_losses_are_drawn_as_bars(tmp_path: Path) -> None:
    some = list(RECIPES)[:14]
    out = ("--output", tmp_path)
    assert run(*QUICK, "--epochs", 1, "--loss", *some, "--seeds", "0-1", *out) == 0
    with Image.open(tmp_path / "plot.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    coloured = (pixels.max(2) - pixels.min(2) > 40).mean()
    assert coloured > 0.1, "no bars"
    summary = read(tmp_path)["summary"]["ce"]["overall"]
    assert summary["standard_deviation"] == pytest.approx(math.sqrt(2) * summary["standard_error"])


def test_interrupted_save_leaves_the_earlier_record(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (done / "run.json").read_text()
    record = Record.load(done / "run.json")
    record.results.pop()

    def interrupted(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record.save(done / "run.json")
    assert (done / "run.json").read_text() == before
    assert sorted(file.name for file in done.iterdir()) == ["plot.png", "run.json"]


def test_resume_with_loss_options(tmp_path: Path) -> None:
    option = ("--set", "lpl.delta_epsilon=(0.3,0.6)", "lpl.head=3")
    out = ("--output", tmp_path)
    assert run(*QUICK, "--loss", "lpl", "--seeds", 0, *option, *out) == 0
    assert read(tmp_path)["settings"]["loss_options"] == {
        "lpl": {"delta_epsilon": [0.3, 0.6], "head": 3}
    }
    assert run("train", "--resume", tmp_path / "run.json", "--seeds", 1, *option) == 0
    assert len(read(tmp_path)["results"]) == 2


def test_changed_environment_is_told(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read(done)
    content["environment"]["torch"] = "1.0"
    (done / "run.json").write_text(json.dumps(content))
    assert run("train", "--resume", done / "run.json") == 0
    assert f"torch 1.0 → {torch.__version__}" in capsys.readouterr().out.replace("\n", " ")


# progress


def test_progress_is_lines_where_the_output_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*QUICK, "--loss", "ce", "la", "--seeds", "0-1", "--output", tmp_path / "o") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " done" in line]
    assert [line.partition(" done")[0] for line in lines] == [
        *("digits, seed 0: 0 %", "ce, seed 0: 0 %", "la, seed 0: 25 %"),
        *("digits, seed 1: 50 %", "ce, seed 1: 50 %", "la, seed 1: 75 %"),
    ]
    assert re.fullmatch(r"la, seed 1: 75 % done, about \d+ s left", lines[-1])


def test_a_long_run_has_a_line_a_minute() -> None:
    now = 0.0
    console = Console(file=io.StringIO(), width=40)
    lines = Lines(console, clock=lambda: now)
    lines.begin("digits")
    lines.total(1000)
    lines.begin("ce")
    for _ in range(500):
        now += 25.0
        lines.step()
    written = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert written[:3] == ["digits: 0 % done", "ce: 0 % done", "ce: 0 % done, about 7 h left"]
    assert len(written) == 2 + 500 // 3, "the third step is the first after a minute"
    assert written[-1] == "ce: 49 % done, about 3 h left"


@pytest.mark.parametrize(
    ("terminal", "kind"), [(True, Bar), (False, Lines)], ids=["terminal", "file"]
)
def test_progress_fits_the_output(terminal: bool, kind: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal)
    shown = progress(console)
    assert type(shown) is kind
    with shown:
        shown.total(2)
        shown.begin("la, seed 3")
        shown.step()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "la, seed 3" in text
    assert ("50 %" in text) == terminal, "the line was written before the step"


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "ce", "mse"), "--loss: expected one of ce, .*, la, .*, got 'mse'"),
        (("--set", "mse.tau=1"), "--loss: expected one of ce, .*, la, .*, got 'mse'"),
        (("--set", "la.gamma=1"), "loss 'la' has no option 'gamma'; it has tau, .*label_smoothing"),
        (
            ("--loss", "la", "--set", "la.tau=much"),
            "--set la.tau: expected a finite number, got 'much'",
        ),
        (
            ("--loss", "ib", "--set", "ib.z_loss=1"),
            "loss 'ib' with options {'z_loss': 1}: .*z_loss",
        ),
        (("--loss", "lpl", "--set", "lpl.split=odd"), "--set lpl.split: expected .* got 'odd'"),
        (("--data", "folder"), "--path: expected the folder of the data, got none"),
        (("--data", "folder", "--path", "/does/not/exist"), "/does/not/exist does not exist"),
        (
            ("--data", "tags", "--loss", "bce", "la"),
            "data 'tags' is multi-label, loss 'la' is not; losses that fit: bce, focal-bce, .*db",
        ),
        (
            ("--loss", "ce", "db"),
            "data 'digits' is single-label, loss 'db' is not; losses that fit: ce, ",
        ),
        (("--set", "db.mu=0.3"), "data 'digits' is single-label, loss 'db' is not"),
        (
            ("--data", "tags", "--set", "ntr.gamma=1"),
            "loss 'ntr' has no option 'gamma'; it has neg_scale",
        ),
        (
            ("--data", "tags", "--largest", "10"),
            "data 'tags' has no option --largest; it has --classes$",
        ),
        (
            ("--data", "tokens", "--imbalance", "10"),
            "'tokens' has no option --imbalance; it has --classes, --train-samples$",
        ),
        (
            ("--classes", "5"),
            "data 'digits' has no option --classes; it has --imbalance, --profile, --largest$",
        ),
        (("--imbalance", "1000"), r"--imbalance: expected 1 \(balanced\) to 100"),
        (("--imbalance", "nan"), "--imbalance: expected a finite number >= 1, got nan"),
        (("--largest", "0"), "--largest: expected an int >= 1, got 0"),
        (("--largest", "101"), "--largest: digits has 100 .*, got 101"),
        (("--epochs", "0"), "--epochs: expected an int >= 1, got 0"),
        (("--batch-size", "1"), "--batch-size: expected an int >= 3, got 1"),
        (("--lr", "nan"), "--lr: expected a finite number > 0, got nan"),
        (("--weight-decay", "-1"), "--weight-decay: expected a finite number >= 0, got -1.0"),
        (("--threads", "0"), r"--threads: expected an int in \[1, 1024\], got 0"),
        (("--threads", str(10**9)), "--threads: expected"),
        (("--many-above", "-3"), "--many-above: expected an int >= 0, got -3"),
        (("--few-below", "-3"), "--few-below: expected an int >= 0, got -3"),
        (("--many-above", "3", "--few-below", "9"), "--few-below: expected at most"),
        (("--loss", "ce", "--set", "la.tau=2"), "--set la.tau: .* compared .ce., got one of 'la'"),
        (("--output", ""), "--output: expected a folder, got ''"),
        (("--device", "meta"), "--device 'meta' with --backend 'auto' cannot run"),
        (("--data", "glyphs", "--classes", "1"), "--classes: expected an int >= 2 or all, got 1"),
        (("--data", "tokens", "--train-samples", "0"), "--train-samples: expected an int >= 1"),
        (("--data", "folder", "--path", "."), "holds no class folders with images"),
        (("--data", "folder", "--path", ".", "--image-size", "0"), "--image-size: expected an int"),
        *[
            (
                ("--data", "folder", "--path", ".", "--test-share", share),
                r"--test-share: expected a number in \(0, 1\), got",
            )
            for share in ("0", "1", "nan")
        ],
        (("--test-share", "0.5"), "data 'digits' has no option --test-share"),
        (("--skip-broken",), "data 'digits' has no option --skip-broken"),
        (
            ("--data", "cifar10-lt", "--path", ".", "--image-size", "32"),
            "data 'cifar10-lt' has no option --image-size; it has --imbalance, --profile, --largest, --path$",
        ),
        (("--loss", "ce", "--path", "."), "data 'digits' has no option --path"),
        (("--device", "gpu"), "--device 'gpu' with --backend 'auto' cannot run"),
        (("--backend", "cpu"), "--backend 'cpu' cannot run: --backend: expected one"),
        (("--resume", "absent.json"), "absent.json is not the record of a run: No such file"),
        (("--resume", ""), "is not the record of a run"),
        (("--resume", "."), "run.json is not the record of a run: No such file"),
        *[
            ((option, name), message)
            for name in ("x" * 5000, "a\0b", "/dev/null/x")
            for option, message in (("--output", "cannot be made"), ("--resume", "is not the rec"))
        ],
        (("--data", "folder", "--path", "x" * 5000), "does not exist"),
        (("--data", "folder", "--path", "a\0b"), "does not exist"),
    ],
)
def test_bad_input_is_named(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "--data", "digits", "--epochs", 1, "--device", "cpu", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lpl-fused train: error: ")
    assert len(error.splitlines()) == 1, "a message, no traceback"
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "3-1"), "the range '3-1' is empty"),
        (("--seeds", "one"), "expected a seed or FIRST-LAST, got 'one'"),
        (("--set", "tau=1"), "expected LOSS.OPTION=VALUE, got 'tau=1'"),
        (("--data", "cifar"), "invalid choice: 'cifar'"),
        (("--seeds", "-1"), "expected a seed or FIRST-LAST, got '-1'"),
        (("--seeds", "0-1000000000000"), "expected at most 10000 seeds below 2\\*\\*63"),
        (("--seeds", str(2**63)), "expected at most 10000 seeds below 2\\*\\*63"),
        (("--set", "la.tau={1, 2}"), "expected a number, a word or a tuple of them"),
        (("--epochs", "many"), "argument --epochs: invalid int value: 'many'"),
        (("--lr",), "argument --lr: expected one argument"),
        (("--loss",), "argument --loss: expected at least one argument"),
        (("--colour", "red"), r"unrecognized arguments: --colour red \(see lpl-fused train --help"),
    ],
)
def test_misspelt_options_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", *arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 1, "not the usage of all options"


def test_a_finished_run_is_not_overwritten(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "run.json").read_bytes()
    assert run(*QUICK, "--output", done) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (done / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--epochs", "3"), "the run to resume has --epochs 2, now 3 was given"),
        (("--imbalance", "50"), "has --imbalance 100.0, now 50.0 was given"),
        (("--set", "la.tau=2"), "has --set la None, now {'tau': 2} was given"),
        (("--output", "elsewhere"), "--output: a resumed run is written where it was"),
    ],
)
def test_resume_refuses_other_settings(
    changed: tuple[str, ...],
    message: str,
    done: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("train", "--resume", done / "run.json", *changed) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", '"run"', '{"format": 0}', "[" * 100_000, "9" * 5000),
        '{"format": 1, "settings": {"data": "digits"}}',
    ],
)
def test_foreign_json_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SettingsError, match=r"run\.json is not the record of a run"):
        Record.load(tmp_path / "run.json")


def test_what_is_no_text_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "run.json", tmp_path, tmp_path / "absent.json"):
        with pytest.raises(SettingsError, match="is not the record of a run"):
            Record.load(path)


def changed(content: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A copy with another value; Ellipsis takes it out."""
    content = copy.deepcopy(content)
    *path, last = (int(part) if part.isdigit() else part for part in where.split("/"))
    place: Any = content
    for part in path:
        place = place[str(part) if isinstance(place, dict) else part]
    last = str(last) if isinstance(place, dict) else last
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


EDITS = [
    *[(name, value) for name in ("losses", "seeds", "results") for value in (None, "ce", {}, [[]])],
    *[(name, 7) for name in ("settings", "environment", "data", "class_counts")],
    *[(name, ...) for name in ("settings", "losses", "results", "data", "environment")],
    *[("format", value) for value in (0, 2, "1", None)],
    *[("note", "mine"), ("losses", ["ce", "zzz"]), ("losses", ["ce", "ce"]), ("losses", ["db"])],
    *[("seeds", value) for value in ([0], ["x"], [0, 0, 1], [-1], [1.0, 0], [2**63])],
    *[("class_counts/0", value) for value in (None, [], [1, 2], ["a"] * 10, [-1] * 10, [0] * 10)],
    *[("class_counts/0", ...), ("class_counts", {"x": [1]})],
    *[("settings/data", value) for value in ("cifar", None, "tags", "folder", [])],
    *[("settings/epochs", value) for value in ("2", 0, 2.5, None, True, 2**70)],
    *[("settings/lr", value) for value in ("x", 0, None)],
    *[("settings/device", 3), ("settings/backend", None), ("settings/threads", "all")],
    *[("settings/epochs", ...), ("settings/extra", 1), ("settings/few_below", 10**6)],
    *[("settings/data_options", value) for value in ([], {"imbalance": "x"}, {"classes": 3}, None)],
    *[("settings/loss_options", value) for value in ([], {"la": 3}, {"la": {"x": 1}}, {"q": {}})],
    *[("results/0", value) for value in (None, [], {}, "x")],
    *[("results/0/loss", value) for value in ("la", None, [], "zzz", ...)],
    *[("results/0/seed", value) for value in (7, "0", None, [], 1)],
    *[("results/1/overall", value) for value in ("high", [], True, {})],
    *[("results/1/class_accuracy", value) for value in (None, [], [0.5] * 9, ["x"] * 10, 1, ...)],
    *[("results/1/loss_variation", value) for value in ([0.5] * 11, {}, ...)],
    *[("data/classes", value) for value in (None, "10", -1, ...)],
    *[("data/balanced_test", 1), ("environment/device", ...), ("environment/threads", ...)],
]


@pytest.mark.parametrize(("where", "value"), EDITS, ids=[f"{w}={v}"[:40] for w, v in EDITS])
def test_an_edited_record_is_refused_in_one_line(
    where: str, value: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(changed(read(finished), where, value)))
    before = path.read_bytes()
    assert run("train", "--resume", path, "--loss", "vs") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"lpl-fused train: error: {path} is not the record of a run: ")
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_record_of_another_name_is_not_written_beside(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / "run.json").read_bytes()
    (done / "run.json").rename(done / "older.json")
    assert run("train", "--resume", done / "older.json", "--loss", "vs") == 2
    assert "expected a run.json" in capsys.readouterr().err
    assert (done / "older.json").read_bytes() == before


def test_records_in_the_repository_are_read() -> None:
    found = sorted((Path(__file__).parents[1] / "benchmarks/results/training").glob("*.json"))
    assert found
    for path in found:
        assert Record.load(path).results


def test_numbers_that_json_has_not_are_kept(done: Path) -> None:
    record = Record.load(done / "run.json")
    record.settings.loss_options["lpl"] = {"epsilon": math.inf, "variant": None}
    record.results[0]["loss_variation"][:3] = [math.inf, -math.inf, math.nan]
    record.save(done / "run.json")
    json.loads((done / "run.json").read_text(), parse_constant=pytest.fail)
    again = Record.load(done / "run.json")
    assert again.settings.loss_options == {"lpl": {"epsilon": math.inf, "variant": None}}
    assert again.settings.threads == record.settings.threads
    assert str(again.results) == str(record.results)


def test_other_data_than_those_of_the_finished_runs_are_told(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = read(done)
    content["class_counts"]["0"].reverse()
    (done / "run.json").write_text(json.dumps(content))
    before = (done / "run.json").read_bytes()
    assert run("train", "--resume", done / "run.json", "--loss", "vs") == 2
    assert "the data are not those of the finished runs: seed 0 had" in capsys.readouterr().err
    assert (done / "run.json").read_bytes() == before


# a full disk, two runs at once, broken data


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_what_was_there(
    call: str, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in done.iterdir()}

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert run("train", "--resume", done / "run.json", "--loss", "vs", "--seeds", 0) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 2, printed.err
    for line, name in zip(lines, ("plot.png", "run.json"), strict=True):
        assert line == (
            f"lpl-fused train: error: {done / name} cannot be written: No space left on device;"
            " it is as it was before"
        )
    assert "vs" in printed.out, "what was trained is in the table at least"
    assert {file.name: file.read_bytes() for file in done.iterdir()} == before
    assert run("train", "--resume", done / "run.json", "--loss", "vs", "--seeds", 0) == 0


def test_a_limit_on_files_is_a_full_disk(tmp_path: Path) -> None:
    """Without a patch: a process that may write no more than a few bytes."""
    code = (
        "import resource, signal, sys; from lpl_fused.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import matplotlib.font_manager\n"  # writes its cache
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        f"sys.exit(main({[*QUICK, '--loss', 'ce', '--seeds', '0', '--output', str(tmp_path / 'o')]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"{tmp_path / 'o' / 'run.json'} cannot be written: File too large" in done.stderr
    assert list((tmp_path / "o").iterdir()) == []


def test_two_runs_in_one_folder(
    tmp_path: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is told; a killed run leaves no lock, and what it had finished is resumed to the
    bit."""
    folder = tmp_path / "shared"
    code = (
        "import sys, time; from lpl_fused.cli import main; from lpl_fused.training import compare\n"
        "train, calls = compare.train, []\n"
        "def stuck(*a, **k):\n"
        "    calls.append(a)\n"
        "    if len(calls) == 3:\n"
        "        print('stuck', flush=True); time.sleep(600)\n"
        "    return train(*a, **k)\n"
        "compare.train = stuck\n"
        "main(sys.argv[1:])"
    )
    pairs = ("--loss", "ce", "la+lpl", "--seeds", "0-1")
    command = [sys.executable, "-c", code, *QUICK, *pairs, "--output", str(folder)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert any("stuck" in line for line in first.stdout)
        before = (folder / "run.json").read_bytes()
        assert run("train", "--resume", folder / "run.json") == 2
        assert f"{folder} is in use: another run is writing there" in capsys.readouterr().err
        assert run(*QUICK, "--loss", "ce", "--output", folder) == 2
        assert (folder / "run.json").read_bytes() == before
    finally:
        first.kill()
        first.wait()
    assert len(read(folder)["results"]) == 2
    assert run("train", "--resume", folder / "run.json") == 0
    assert untimed(read(folder)["results"]) == untimed(read(done)["results"])


def test_a_run_that_was_faster_is_not_overwritten(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another run finished in the folder while this one loaded its data."""
    folder = tmp_path / "raced"

    def slowly(*arguments: Any, **keywords: Any) -> LongTailedData:
        if not folder.exists():
            shutil.copytree(done, folder)
        return load(*arguments, **keywords)

    monkeypatch.setattr(compare, "load", slowly)
    assert run(*QUICK, "--loss", "ce", "--seeds", 0, "--output", folder) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (folder / "run.json").read_bytes() == (done / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("mine"), "--output: expected a folder, got the file"),
        (lambda path: (path.mkdir(), (path / "plot.png").write_text("mine")), "holds a plot.png"),
        (lambda path: path.symlink_to("out"), "cannot be made"),
    ],
)
def test_an_output_that_cannot_be_is_named(
    make: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "out")
    assert run(*QUICK, "--loss", "ce", "--seeds", 0, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1, error


def test_a_broken_image_is_told_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, number in (("blue", 6), ("red", 5)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(number):
            Image.new("RGB", (8, 8), name).save(tmp_path / "data" / name / f"{i}.png")
    for i in (1, 3):
        (tmp_path / "data" / "red" / f"{i}.png").write_bytes(b"broken")
    folder = ("train", "--data", "folder", "--path", tmp_path / "data", "--image-size", 8)
    folder = (*folder, "--loss", "ce", "--seeds", 0, "--epochs", 1, "--output", tmp_path / "out")
    assert run(*folder) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "has 2 faults (--skip-broken leaves them out)" in lines[0]
    assert len(lines) == 3
    assert not (tmp_path / "out").exists()
    assert run(*folder, "--skip-broken") == 0
    assert "left out, seed 0: 2" in capsys.readouterr().out
    record = read(tmp_path / "out")
    assert record["data"]["left_out"] == 2
    assert record["settings"]["data_options"]["skip_broken"] is True


def test_a_damaged_cache_is_told_in_one_line(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--loss", "bce", "--seeds", 0, "--epochs", 1)
    assert run(*TAGS, *out, "--output", tmp_path / "first") == 0
    (cache,) = (tmp_path / "cache" / "lpl_fused").iterdir()
    cache.write_bytes(cache.read_bytes()[:1000])
    capsys.readouterr()
    # pytest makes errors of the package's warnings
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(*TAGS, *out, "--output", tmp_path / "second") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lpl-fused train: warning: {cache} is unreadable (BadZipFile")
    assert untimed(read(tmp_path / "second")["results"]) == untimed(
        read(tmp_path / "first")["results"]
    )
