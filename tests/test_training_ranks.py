"""`lpl-fused train` on the ranks that torchrun starts: what one process finds, written once; what is
wrong on one rank ends all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import Ended

FIRST = """
import sys
from unittest import mock
from lpl_fused.cli import main
from lpl_fused.data import DataError
from lpl_fused.training import compare, loop
"""
MAIN = "sys.exit(main({arguments!r}))"
LOSSES = ("ce", "ldam", "lpl")
QUICK = ("train", "--data", "digits", "--epochs", "2", "--seeds", "0")
SHARDED = (*QUICK, "--shard-classes")

# of one rank alone
FAULTS = {
    "its data": """
def load(*arguments, **keywords):
    raise DataError(f"rank {rank} finds no data")
if rank == 1:
    compare.load = load
""",
    "a step": """
def fails(*arguments):
    raise RuntimeError(f"rank {rank} has no memory")
if rank == 1:
    loop.linear_loss = fails
""",
    "death": """
import os
def dies(*arguments):
    os._exit(9)
if rank == 1:
    loop.linear_loss = dies
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ended(folder: Path) -> dict[str, list[Ended]]:
    """All programs, by name; they leave folders of that name."""

    def asked(name: str, arguments: tuple[str, ...], world: int = 2) -> tuple[str, int]:
        given = [*arguments, "--output", str(folder / name)]
        return MAIN.format(arguments=given), world

    several = ("--loss", *LOSSES)
    programs = {
        "alone": asked("alone", (*QUICK, *several, "--linear"), 1),
        "shared": asked("shared", (*SHARDED, *several)),
        "resumed": (
            MAIN.format(arguments=["train", "--resume", str(folder / "shared"), "--loss", "la"]),
            2,
        ),
        "not sharded": asked("not sharded", (*QUICK, "--loss", "ce")),
        "logits": asked("logits", (*SHARDED, "--loss", "ce", "arcface")),
        "shown logits": asked("shown logits", (*QUICK, "--linear", "--loss", "cals"), 1),
        "reference": asked("reference", (*SHARDED, "--loss", "ce", "--backend", "reference")),
        "tags": asked("tags", ("train", "--data", "tags", "--linear"), 1),
        "diverged": asked("diverged", (*SHARDED, "--lr", "1e30", "--loss", "ce")),
    }
    for fault, code in FAULTS.items():
        call, world = asked(fault, (*SHARDED, "--loss", "ce"))
        programs[fault] = code + call, world
    return forked.run(programs, FIRST)


def results(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / name / "run.json").read_text())["results"]
    return found


def test_ranks_train_as_one_does(folder: Path, ended: dict[str, list[Ended]]) -> None:
    (alone,), (first, second) = ended["alone"], ended["shared"]
    assert alone.status == first.status == second.status == 0, first.printed + second.printed
    assert "ranks: 2" in first.printed and "written:" in first.printed
    assert second.printed == ""
    shared = results(folder, "shared")[: len(LOSSES)]
    pairs = list(zip(results(folder, "alone"), shared, strict=True))
    assert [one["loss"] for one, _ in pairs] == list(LOSSES)
    for one, two in pairs:
        assert len(one["train_loss"]) == 2
        assert one["train_loss"][1] < one["train_loss"][0]
        # sums over classes in another order; 8 steps on, in float32
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4), one["loss"]
        assert two["class_accuracy"] == pytest.approx(one["class_accuracy"], abs=0.02)
        assert two["loss_variation"] == pytest.approx(one["loss_variation"], rel=0.02, abs=0.02)


def test_a_run_is_resumed(folder: Path, ended: dict[str, list[Ended]]) -> None:
    first, second = ended["resumed"]
    assert first.status == second.status == 0, first.printed + second.printed
    assert second.printed == ""
    found = results(folder, "shared")
    assert [result["loss"] for result in found] == [*LOSSES, "la"]
    record = json.loads((folder / "shared" / "run.json").read_text())
    assert record["environment"]["ranks"] == 2
    assert record["settings"]["shard_classes"] and record["settings"]["linear"]


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "not sharded": "--shard-classes: torchrun started 2 processes",
        "logits": "loss 'arcface': --linear: ArcFaceLoss looks at the logits themselves",
        "shown logits": "loss 'cals': --linear: CALSLoss is shown logits during training",
        "reference": "--linear: the reference makes all logits",
        "tags": "--linear: is for data of single labels",
    }.items(),
)
def test_refused_before_training(
    folder: Path, ended: dict[str, list[Ended]], name: str, words: str
) -> None:
    first, *others = ended[name]
    assert first.status == 2
    assert f"error: {words}" in first.printed
    assert first.printed.count("error") == 1
    assert not (folder / name).exists()
    assert others in ([], [Ended(2, "")])


def test_a_loss_that_diverges_is_noted_once(folder: Path, ended: dict[str, list[Ended]]) -> None:
    first, second = ended["diverged"]
    assert (first.status, second.status) == (2, 2)
    assert "the ce loss of seed 0 is" in first.printed
    assert second.printed == ""
    (failure,) = json.loads((folder / "diverged" / "run.json").read_text())["failures"]
    assert failure["loss"] == "ce"


def test_data_that_one_rank_has_not(folder: Path, ended: dict[str, list[Ended]]) -> None:
    first, second = ended["its data"]
    assert first == Ended(2, first.printed)
    assert "error" not in first.printed
    assert second.status == 2
    assert "error: rank 1 finds no data" in second.printed
    assert not (folder / "its data").exists()


@pytest.mark.parametrize("fault", ["a step", "death"])
def test_a_rank_that_fails_ends_the_others(ended: dict[str, list[Ended]], fault: str) -> None:
    first, second = ended[fault]
    assert first.status != 0 and second.status != 0
    assert "Connection closed by peer" in first.printed or "connection" in first.printed.lower()
    if fault == "a step":
        assert "RuntimeError: rank 1 has no memory" in second.printed
