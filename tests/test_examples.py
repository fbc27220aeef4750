"""Every file of examples/ runs, and what it prints is so."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SHARED = "longtail"  # data of the others, no example
RANKS = {"ddp": 2, "fsdp": 2, "class_sharded": 2}  # as torchrun starts them
NEEDS = {
    "multi_label": ["torchmetrics"],
    "lightning_module": ["lightning"],
    "transformers_trainer": ["transformers", "accelerate"],
}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no source tree here")


def missing(name: str) -> list[str]:
    return [module for module in NEEDS.get(name, []) if importlib.util.find_spec(module) is None]


@functools.cache
def run_all() -> dict[str, tuple[bool, str]]:
    """(failed, what it printed) of each example."""
    names = sorted({path.stem for path in EXAMPLES.glob("*.py")} - {SHARED})
    programs = {
        name: (
            f"import runpy, sys; sys.argv = [{name!r}];"
            f" runpy.run_path({str(EXAMPLES / f'{name}.py')!r}, run_name='__main__')",
            RANKS.get(name, 1),
        )
        for name in names
        if not missing(name)
    }
    found = forked.run(programs, first=f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})")
    return {
        name: (any(each.status for each in ranks), "".join(each.printed for each in ranks))
        for name, ranks in found.items()
    }


def run(name: str) -> str:
    if missing(name):
        pytest.skip(f"not installed: {missing(name)}")
    failed, printed = run_all()[name]
    assert not failed, printed
    return printed


def table(name: str) -> dict[str, list[float]]:
    """The rows of percentages that an example prints."""
    rows = re.findall(r"^(\S.*?)((?:\s+[\d.]+%)+)$", run(name), re.MULTILINE)
    return {row: [float(number) for number in re.findall(r"[\d.]+", rest)] for row, rest in rows}


def number_after(text: str, words: str) -> float:
    return float(re.search(re.escape(words) + r"\s*([\d.]+(?:e-?\d+)?)", text)[1])  # type: ignore[index]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_is_short_says_what_it_shows_and_marks_what_changes(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 120
    if path.stem != SHARED:
        head = text.split('"""')[1]
        assert head.count("\n") <= 3 and "Shows: " in head
        assert re.search(rf"Run: .*examples/{path.name}", head)
        assert "# CHANGED" in text
        assert f"examples/{path.name})" in (ROOT / "docs" / "examples.md").read_text()
        assert f'("{path.stem}")' in Path(__file__).read_text(), "has no test"


MANY, MEDIUM, FEW, ALL = range(4)


def test_plain_loop() -> None:
    found = table("plain_loop")
    plain = found.pop("cross-entropy")
    assert set(found) == {"logit adjustment", "LPL"}
    for other in found.values():
        assert other[FEW] > plain[FEW] + 10
        assert other[ALL] > plain[ALL] + 3


def test_gradient_accumulation() -> None:
    printed = run("gradient_accumulation")
    assert number_after(printed, "means of means") > 0.1
    assert number_after(printed, "normalizer=") < 1e-5
    assert number_after(printed, "right,") > 15


def test_ldam_drw_resume() -> None:
    assert "the same bits: True" in run("ldam_drw_resume")
    found = table("ldam_drw_resume")
    assert found["LDAM-DRW"][FEW] > found["LDAM"][FEW] + 10


def test_multi_label() -> None:
    found = table("multi_label")
    plain = found.pop("BCE")
    assert set(found) == {"distribution-balanced", "… and LPL"}
    assert all(other[FEW] > plain[FEW] + 2 for other in found.values())


def test_segmentation() -> None:
    found = table("segmentation")
    plain = found.pop("cross-entropy")
    assert set(found) == {"logit adjustment", "Seesaw"}
    assert all(sum(other[3:]) > sum(plain[3:]) + 50 for other in found.values())  # rare classes


def test_mixup() -> None:
    found = table("mixup")
    for name in ("logit adjustment", "LPL"):
        assert found[name][FEW] > found["cross-entropy"][FEW] + 10
    pair, matrix = (number_after(run("mixup"), words) for words in ("and share", "matrix"))
    assert pair == pytest.approx(matrix, abs=1e-5)


def test_large_vocabulary() -> None:
    printed = run("large_vocabulary")
    assert number_after(printed, "of the last") < number_after(printed, "first step") - 1
    assert number_after(printed, "differs by") < 1e-4


def test_ddp() -> None:
    printed = run("ddp")
    own, known = (number_after(printed, words) for words in ("rank 0 saw:", "loss knows:"))
    assert known == pytest.approx(2 * own, rel=0.01)
    assert "the same on all ranks: True" in printed


def test_fsdp() -> None:
    printed = run("fsdp")
    whole, held = (number_after(printed, words) for words in ("weights: of", "rank 0 holds"))
    assert held == whole / 2
    assert "mean probabilities of 100 of 100 classes" in printed
    assert "the same on all ranks: True" in printed
    assert table("fsdp")["LPL"][ALL] > 40  # a single process: 47


def test_class_sharded() -> None:
    printed = run("class_sharded")
    first = number_after(printed, "all classes")
    assert first == pytest.approx(number_after(printed, "of shards"), abs=1e-4)
    assert first == pytest.approx(number_after(printed, "their logits"), abs=1e-4)
    assert number_after(printed, "differs by") < 1e-4
    assert number_after(printed, "the loss is") < first - 1


def test_lightning_module() -> None:
    found = table("lightning_module")
    assert found["LDAM-DRW"][FEW] > found["LDAM"][FEW] + 10


def test_transformers_trainer() -> None:
    found = table("transformers_trainer")
    assert found["logit adjustment"][1] > found["cross-entropy"][1] + 10
