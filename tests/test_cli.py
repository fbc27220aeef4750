"""`lpl-fused`: what it writes, what it repeats, what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_library
import torch
from PIL import Image

from lpl_fused.cli import main
from lpl_fused.data import LabelSets, LongTailedData, load
from lpl_fused.training import RECIPES, Record, RunSettings, SettingsError, compare, train
from lpl_fused.training.kinds import KINDS
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


def test_missing_package_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from lpl_fused.cli import main; sys.exit(main(['train', '--data', 'digits']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("rich is missing: pip install lpl_fused[train]")


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
    assert len(every) == 12
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
    assert run("train", "--resume", done / "run.json", "--loss", "vs", "--seeds", "1-2") == 0
    assert counted.pairs == [("vs", 0), ("vs", 1), ("ce", 2), ("la+lpl", 2), ("vs", 2)]
    after = read(done)
    assert after["results"][:4] == before["results"]
    assert after["settings"] == before["settings"]
    assert set(after["class_counts"]) == {"0", "1", "2"}


def test_interrupted_run_keeps_what_was_finished(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "interrupted"
    pairs = ("--loss", "ce", "la+lpl", "--seeds", "0-1")
    with monkeypatch.context() as patch:
        patch.setattr(compare, "train", Counted(interrupt_at=3))
        assert run(*QUICK, *pairs, "--output", folder) == 130
    assert untimed(read(folder)["results"]) == untimed(read(done)["results"][:3])
    assert sorted(file.name for file in folder.iterdir()) == ["plot.png", "run.json"]

    assert run("train", "--resume", folder / "run.json") == 0
    assert untimed(read(folder)["results"]) == untimed(read(done)["results"])


def test_interrupted_before_anything_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "train", Counted(interrupt_at=0))
    assert run(*QUICK, "--output", tmp_path / "none") == 130
    assert "no run was finished" in capsys.readouterr().out
    assert list((tmp_path / "none").iterdir()) == []


def test_diverged_loss_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ("--loss", "ce", "vs", "la", "--set", "vs.gamma=-30", "--seeds", 0)
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


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "ce", "mse"), "loss must be one of ce, .*, la, .*; got 'mse'"),
        (("--set", "mse.tau=1"), "loss must be one of ce, .*, la, .*; got 'mse'"),
        (("--set", "la.gamma=1"), "loss 'la' has no option 'gamma'; it has tau, label_smoothing"),
        (("--loss", "la", "--set", "la.tau=much"), "loss 'la' with options {'tau': 'much'}"),
        (("--loss", "lpl", "--set", "lpl.split=odd"), "split: expected .* got 'odd'"),
        (("--data", "folder"), "data 'folder' needs the path"),
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
            "data 'tags' has no option 'largest'; it has num_classes",
        ),
        (("--data", "tokens", "--imbalance", "10"), "'tokens' has no option 'imbalance'"),
        (("--classes", "5"), "data 'digits' has no option 'num_classes'"),
        (("--imbalance", "1000"), "imbalance must lie between 1 .* and 100"),
        (("--largest", "0"), "imbalance must lie between 1"),
        (("--epochs", "0"), "epochs: expected at least 1, got 0"),
        (("--batch-size", "1"), "batch_size: expected at least 3, got 1"),
        (("--lr", "nan"), "lr: expected a finite number > 0, got nan"),
        (("--weight-decay", "-1"), "weight_decay: expected a finite number >= 0, got -1.0"),
        (("--threads", "0"), "threads: expected at least 1, got 0"),
        (("--many-above", "3", "--few-below", "9"), "few_below"),
        (("--device", "gpu"), "device 'gpu' with backend 'auto' cannot run"),
        (("--backend", "cpu"), "device 'cpu' with backend 'cpu' cannot run: backend: expected one"),
        (("--resume", "absent.json"), "absent.json is not the record of a run"),
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
    ],
)
def test_misspelt_options_are_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("train", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "run.json").read_bytes()
    assert run(*QUICK, "--output", done) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (done / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--epochs", "3"), "the run to resume has epochs 2, now 3 was given"),
        (("--imbalance", "50"), "has data_options.imbalance 100.0, now 50.0 was given"),
        (("--set", "la.tau=2"), "has loss_options.la None, now {'tau': 2} was given"),
        (("--output", "elsewhere"), "leave the output out"),
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
    "text", ["", "[]", "{}", '{"format": 0}', '{"format": 1, "settings": {"data": "digits"}}']
)
def test_foreign_json_is_no_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SettingsError, match=r"run\.json is not the record of a run"):
        Record.load(tmp_path / "run.json")
