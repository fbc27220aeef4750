"""The solver of rows that have their class for themselves: right wherever it says that it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from cases import Draw

from lpl_fused import Focal, Perturbation, reference, testing
from lpl_fused.backends import load, reason_against
from lpl_fused.problem import NONE, Options, Problem

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton_memory import check, watched

from lpl_fused.backends.kernels import solver
from lpl_fused.backends.kernels.arguments import FELL_BACK, GROUP, SOLVED, Upstream, Wanted
from lpl_fused.backends.kernels.launch import moved_meta
from lpl_fused.backends.triton import learned

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

backend = load("triton")


@pytest.fixture(autouse=True)
def few_logits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "FEW_LOGITS", 0)


def rows(
    draw: Draw, spread: float, steps: list[int], dtype: torch.dtype = FP64, **options: Any
) -> Problem:
    """A row for each step count, with targets from the easiest to the hardest."""
    n, target = draw.n, torch.arange(draw.n)
    logits = draw.input(spread)
    ranked = logits.sort(1)[0]
    place = torch.linspace(draw.classes - 1, 0, n).long()
    logits[target, target] = ranked[target, place]
    counts = torch.zeros(draw.classes, dtype=torch.int32)
    counts[:n] = torch.tensor(steps)
    options.setdefault("step_size", 0.1)
    return Problem(
        logits.to(dtype), target, steps=counts, options=Options(reduction=NONE, **options)
    )


def case(problem: Problem, **keywords: object) -> testing.Case:
    """The same as a call."""
    step_size, normalize = problem.options.step_size, problem.options.normalize
    keywords = {"step_size": step_size, "normalize": normalize, "reduction": "none"} | keywords
    return testing.Case(problem.input, problem.target, keywords, problem.steps)


@contextmanager
def launched_with(block: int, head: int, order: int) -> Iterator[None]:
    """The solver with launch parameters that make it meet its limits at few classes."""

    def meta(problem: Problem) -> dict[str, Any]:
        one = problem.input.shape[1] <= block
        return {"BLOCK": block, "ONE_BLOCK": one, "HEAD": head, "ORDER": order, "num_warps": 1}

    with mock.patch.object(learned, "solver_meta", meta):
        yield


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize(
    ("classes", "spread"),
    [(2, 1.0), (3, 30.0), (600, 0.01), (700, 1.0), (3000, 3.0), (2000, 30.0)],
)
def test_without_falling_back(classes: int, spread: float, normalize: bool) -> None:
    """Each direction, easy and hard targets, nearly equal logits and a few that have all mass."""
    steps = [7, -5, 0, 6][: min(4, classes)]
    asked = rows(Draw(len(steps), classes, seed=classes), spread, steps, normalize=normalize)
    check(case(asked))
    assert backend.fallbacks(asked._replace(input=asked.input.float())) == 0


@pytest.mark.parametrize("dtype", [FP64, BF16, FP16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check(case(rows(Draw(2, 700, seed=3), 2.0, [5, -5])), dtype)


@pytest.mark.parametrize("steps", [200, -60])
def test_many_steps(steps: int) -> None:
    asked = rows(Draw(1, 600, seed=0), 2.0, [steps])
    check(case(asked))
    assert backend.fallbacks(asked._replace(input=asked.input.float())) == 0


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("resident", [True, False], ids=["in registers", "swept"])
def test_fallback(resident: bool, normalize: bool) -> None:
    """A dose too large for the series is noticed, counted, and given by plain steps."""
    asked = rows(Draw(3, 700, seed=1), 1.0, [3, 0, -2], step_size=70.0, normalize=normalize)
    block = 1024 if resident else 128
    meta = {"BLOCK": block, "ROWS": 1, "num_warps": 1}
    with mock.patch.object(learned, "plain_meta", return_value=meta):
        assert backend.fallbacks(asked) > 0
        check(case(asked), FP64)


def test_each_row_for_itself() -> None:
    """Solved rows, a group, ignored rows and fallen ones in one batch."""
    draw = Draw(8, 700, seed=5)
    asked = rows(draw, 1.0, [4, -3, 2, 5, 0, 0, -4, 3], step_size=2000.0)
    # the larger their spread, the fewer rivals take part in what the target leaves
    logits = asked.input.clone()
    logits[0, 0] = 25
    target = asked.target.clone()
    target[2:4] = 3
    target[5] = -100
    asked = asked._replace(input=logits, target=target)
    _, outcome = learned.with_learned(asked)
    assert outcome.tolist() == [
        SOLVED,
        FELL_BACK,
        GROUP,
        GROUP,
        SOLVED,
        SOLVED,
        FELL_BACK,
        FELL_BACK,
    ]
    check(case(asked, reduction="mean"), FP64)


@pytest.mark.parametrize(
    ("head", "order", "dtype"),
    [(16, 2, FP64), (16, 5, FP64), (64, 8, FP64), (16, 3, FP32)],
    ids=str,
)
def test_what_is_solved_is_exact(head: int, order: int, dtype: torch.dtype) -> None:
    """The error promise where it matters: few terms, little room, doses from tiny to huge."""
    kinds = []
    for seed in range(14):
        draw = Draw(2, 150, seed)
        spread, size = (1.0, 4.0, 0.01, 20.0)[seed % 4], 10 ** (0.5 * seed - 5)
        asked = rows(draw, spread, [2, -2], dtype, step_size=size, normalize=seed % 3 == 2)
        losses, grad = asked.input[:, 0] * 0, asked.input * 0
        with launched_with(32, head, order), watched():
            how = learned.how(asked)
            saved = learned.Saved.within(how, *learned.new_saved(asked, how))
            arguments = learned.solve(asked, saved, losses)
            learned.finish(asked, arguments, saved, Wanted(losses=losses), Upstream())
            learned.gradient(asked, arguments, saved, Upstream(), grad)
        outcome = saved.rows.outcome
        solved = outcome == SOLVED
        truth = testing.evaluate(case(asked).to(FP64), "reference")
        plain = testing.evaluate(case(asked), "reference")
        for found, eager, exact in (
            (losses, plain.loss, truth.loss),
            (grad, plain.grads["input"], truth.grads["input"]),
        ):
            allowed = testing.budget(dtype, testing.error(eager[solved], exact[solved]))
            assert testing.error(found[solved], exact[solved]) <= allowed
        kinds += outcome.tolist()
    assert {SOLVED, FELL_BACK} == set(kinds)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_a_head_of_the_last_blocks(normalize: bool) -> None:
    """Logits that rise from block to block: what would be the head of all blocks so far is the
    tail's in the end, and is not listed."""
    asked = rows(Draw(2, 300, seed=2), 1.0, [3, -3], step_size=0.2, normalize=normalize)
    column = torch.arange(300)
    rising = torch.where(column % 32 < 6, column // 32, -10)
    asked = asked._replace(input=asked.input / 10 + rising)
    with launched_with(32, 64, 8), watched() as traffic:
        assert backend.fallbacks(asked) == 0
        listed = traffic.stored["weigh_rivals", "state.heads"]
        check(case(asked), FP64)
    assert 2 * 10 * 4 <= listed <= 2 * 20 * 4


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("classes", [640, 656, 701])
def test_blocks_of_several_tiles(
    classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that end in any tile of a block, or begin anywhere; heads in most of them; δ."""
    monkeypatch.setattr(solver, "TILE", solver.tl.constexpr(32))
    monkeypatch.setattr(
        learned, "moved_meta", lambda problem, made: moved_meta(problem, made) | {"BLOCK": 128}
    )
    asked = rows(Draw(4, classes, seed=classes), 3.0, [6, -4, 0, 3])
    check(case(asked), dtype)
    with watched():
        delta, _ = backend.learned_perturbation(asked)
    assert testing.error(delta, reference.learned_perturbation(asked)[0]) < 1e-12


def test_delta() -> None:
    """δ itself, of all rows: solved, left, without steps, ignored."""
    asked = rows(Draw(6, 700, seed=4), 2.0, [5, -5, 0, 3, 2, -2], normalize=True)
    target = asked.target.clone()
    target[3], target[5] = 1, -100
    asked = asked._replace(target=target)
    with watched():
        delta, slot = backend.learned_perturbation(asked)
    truth, leader = reference.learned_perturbation(asked)
    assert torch.equal(slot, leader)
    assert testing.error(delta, truth) < 1e-12
    assert (
        testing.error(
            backend.learned_perturbation(asked._replace(input=asked.input.float()))[0], truth
        )
        < 1e-5
    )


@pytest.mark.parametrize(
    "keywords",
    [
        {"phi": Focal(2.0), "weight": True, "sample_weight": True},
        {"z_loss": 1e-2, "softcap": 8.0},
        {"label_smoothing": 0.1},
    ],
    ids=lambda keywords: "-".join(keywords),
)
def test_losses_of_solved_rows(keywords: dict[str, object]) -> None:
    draw = Draw(2, 600, seed=6)
    asked = rows(draw, 2.0, [3, -3])
    numbers = {"weight": draw.uniform(600), "sample_weight": draw.uniform(2)}
    given = {name: numbers.get(name, value) for name, value in keywords.items()}
    given["perturbation"] = Perturbation(scale=0.5 + draw.uniform(600), margin=draw.uniform(600))
    check(case(asked, **given))


def test_extremes() -> None:
    """Masked rivals, masked targets, nothing but the target, nothing at all, nan, far offsets."""
    asked = rows(Draw(9, 600, seed=7), 2.0, [3, -3, 4, -4, 3, 3, -3, 2, -2])
    logits = asked.input
    logits[0, 100:] = -torch.inf
    logits[1, 1] = -torch.inf
    logits[2, torch.arange(600) != 2] = -torch.inf
    logits[3] = -torch.inf
    logits[4, 30] = torch.nan
    logits[5] += 5000
    logits[6, 6] = 500  # e^500: no rival is felt
    logits[7, 7] = -500
    logits[8, 8], logits[8, 9:] = -300, -torch.inf
    check(case(asked))
    assert backend.fallbacks(asked) == 0


def test_one_class() -> None:
    asked = Problem(
        torch.tensor([[-200.0], [3.0]]),
        torch.tensor([0, -100]),
        steps=torch.tensor([5], dtype=torch.int32),
        options=Options(reduction=NONE, step_size=0.1),
    )
    check(case(asked._replace(input=asked.input.double())))
    assert backend.fallbacks(asked) == 0
