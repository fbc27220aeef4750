"""What a step of the learned perturbation costs, in exponentials: next to none, whatever K."""

from __future__ import annotations

from pathlib import Path

import counting
import pytest

CLASSES = 8142
ROWS = 16

pytestmark = pytest.mark.skipif(counting.compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counting.build(tmp_path_factory.mktemp("count"))


def test_plain_cross_entropy_takes_one_exponential_per_logit(program: Path) -> None:
    """And one per row and block of columns, where the shift moves: the target's and the sum's."""
    assert 1 <= counting.count(program, ROWS, CLASSES, 0).per_logit < 1.01


@pytest.mark.parametrize("rows_per_class", [1, ROWS])
@pytest.mark.parametrize("steps", [5, 20])
def test_plain_steps_take_one_more_each(program: Path, steps: int, rows_per_class: int) -> None:
    """What the solver saves, and that the count sees it."""
    found = counting.count(program, ROWS, CLASSES, steps, rows_per_class=rows_per_class, sweep=True)
    assert steps + 1 <= found.per_logit < 1.01 * (steps + 1)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("steps", [1, 5, 10, 50, 100])
def test_a_row_alone_takes_at_most_two(program: Path, steps: int, normalize: bool) -> None:
    """One for the logit, and in every step one for each of the few rivals of the head."""
    found = counting.count(program, ROWS, CLASSES, steps, normalize=normalize)
    assert found.solved == ROWS
    assert 1 <= found.per_logit < 1.5


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_a_row_of_a_group_takes_two(program: Path, steps: int) -> None:
    """One for the group's δ and one for the loss under it; exact classes one a step, together."""
    found = counting.count(program, ROWS, CLASSES, steps, rows_per_class=ROWS)
    assert found.solved == ROWS
    assert 2 <= found.per_logit < 2.1
