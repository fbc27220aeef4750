"""The door of every backend: columns cut in parts, reduced, joined, settled, differentiated part by
part, are the whole."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from seam import (
    Made,
    by_parts,
    cut,
    door,
    from_the_first,
    in_pairs_from_the_last,
    known_of,
    problem_of,
)

from lpl_fused import Focal, LogitClip, MarginPenalty, Perturbation, testing
from lpl_fused.algebra import groups, statistics
from lpl_fused.algebra.parts import Kind, Mass
from lpl_fused.algebra.settle import begin, rounds
from lpl_fused.backends import load
from lpl_fused.problem import NotDifferentiable
from lpl_fused.reference import softmax as reference

pytestmark = pytest.mark.devices
CLASSES = 17
CASES = {
    **cross_entropy_cases(),
    **{f"lpl-{name}": build for name, build in lpl_cases().items()},
}
# what the rounds refuse: a gradient through the steps of the learned perturbation
ROUNDS = [name for name in CASES if "through" not in name]
# one for every form of target, norm, penalty and learned perturbation
FEW = [
    "hard", "ignore", "smoothed-by-class", "mixed-ignore", "dense-smoothed", "everything",
    "clip-p3", "clip-infinity", "clip-everything", "penalty-phr", "penalty-relu-ties", "lpl-unique",
    "lpl-groups-normalized",
]  # fmt: skip


def rows(backend: str) -> int:
    return 6 if backend == "triton" and "TRITON_INTERPRET" in os.environ else 24


def upstream(loss: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


def check(case: testing.Case, backend: str, run, dtype=torch.float32) -> None:  # type: ignore[no-untyped-def]
    if case.steps is not None:
        case = replace(case, learn=())  # functional/ hands δ over as rows where tables learn
    # the interpreter truncates to bfloat16
    truncates = backend == "triton" and "TRITON_INTERPRET" in os.environ
    ulps = 2.0 if truncates and dtype == torch.bfloat16 else 1.0
    testing.assert_within_budget(case, backend, dtype, upstream=upstream, ulps=ulps, run=run)


@pytest.mark.parametrize("case", ROUNDS)
def test_three_parts_are_the_whole(backend: str, case: str) -> None:
    problem = CASES[case](Draw(rows(backend), CLASSES, seed=7))
    check(problem, backend, by_parts(lambda width: cut(width, 3)))


@pytest.mark.parametrize("case", FEW)
@pytest.mark.parametrize("parts", [1, 2, 7])
def test_other_cuts_in_another_order(backend: str, case: str, parts: int) -> None:
    problem = CASES[case](Draw(rows(backend), CLASSES, seed=8))
    check(problem, backend, by_parts(lambda width: cut(width, parts), in_pairs_from_the_last))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["ignore", "dense-smoothed", "clip-everything", "lpl-groups"])
def test_dtypes(backend: str, case: str, dtype: torch.dtype) -> None:
    problem = CASES[case](Draw(rows(backend), CLASSES, seed=9))
    check(problem, backend, by_parts(lambda width: cut(width, 3)), dtype)


@pytest.mark.parametrize("case", ["hard", "clip-infinity", "penalty-relu-ties", "lpl-unique"])
def test_parts_of_one_column(backend: str, case: str) -> None:
    """One of them has the target alone."""
    problem = CASES[case](Draw(4, 5, seed=10))
    check(problem, backend, by_parts(lambda width: [(j, j + 1) for j in range(width)]))


def test_parts_of_nothing_but_masked_classes(backend: str) -> None:
    draw = Draw(6, CLASSES, seed=11)
    case = testing.Case(draw.input(), draw.labels(low=9))
    case.input[:, 3:8] = -torch.inf
    steps = torch.arange(CLASSES) % 5 - 2
    for problem in (
        case,
        replace(case, keywords={"norm": LogitClip(3.0)}),
        replace(case, keywords={"step_size": 0.3}, steps=steps),
    ):
        check(problem, backend, by_parts(lambda width: [(0, 3), (3, 8), (8, width)]))


def test_ties_in_different_parts(backend: str) -> None:
    """The maximum of a row, of a norm for p = inf and of a penalty, is where it is more than once."""
    draw = Draw(6, CLASSES, seed=12)
    input = draw.input().clamp(max=2.0)
    input[:, [1, 9, 16]] = 2.5
    for keywords in (
        {},
        {"norm": LogitClip(1.0, math.inf)},
        {"penalty": MarginPenalty("relu", margin=0.5)},
    ):
        case = testing.Case(input, draw.labels(), keywords)
        check(case, backend, by_parts(lambda width: cut(width, 7)))


@pytest.mark.parametrize("direction", [1, -1])
def test_heads_of_parts_that_are_none_of_the_whole(backend: str, direction: int) -> None:
    """More classes than are listed: heads, and a tail of which power sums do."""
    classes = 700
    draw = Draw(4, classes, seed=13)
    input = draw.input(1.0)
    input[:, 40] += 6  # all others of this part are little beside it
    input[:, 400:405] += 3
    steps = torch.full((classes,), 4 * direction)
    for labels in (torch.tensor([3, 401, 699, 250]), torch.tensor([3, 3, 699, 3])):
        case = testing.Case(input, labels, {"step_size": 0.2}, steps)
        for parts, join in ((3, from_the_first), (2, in_pairs_from_the_last)):
            check(case, backend, by_parts(lambda width, parts=parts: cut(width, parts), join))


def test_every_column_a_head(backend: str) -> None:
    """A part of few columns lists all of them, whatever the whole's threshold leaves of that."""
    classes = 520
    draw = Draw(4, classes, seed=14)
    steps = torch.full((classes,), 3)
    case = testing.Case(
        draw.input(0.1), torch.tensor([0, 130, 260, 519]), {"step_size": 0.2}, steps
    )
    runs = [(0, 4), (4, 130), (130, 131), (131, classes)]
    check(case, backend, by_parts(lambda _: runs))


def test_a_part_with_more_heads_than_are_listed_is_not_exact(backend: str) -> None:
    """No plausible number: loss and gradient are nan, and `exact` says so."""
    classes = 1100
    draw = Draw(2, classes, seed=15)
    case = testing.Case(
        draw.input(0.01).float(),
        torch.tensor([0, 700]),
        {"step_size": 40.0},
        torch.full((classes,), 30),
    ).on(testing.device_of(backend))
    problem = problem_of(case, backend, {})
    known, _ = known_of(backend, problem, cut(classes, 2))
    assert known.learned is not None
    assert known.loss is not None
    assert not known.learned.exact.any()
    assert known.loss.isnan().all()


def test_an_empty_part_is_neutral(backend: str) -> None:
    case = CASES["everything"](Draw(5, CLASSES, seed=16)).on(testing.device_of(backend))
    problem = problem_of(replace(case, learn=()), backend, {})
    one, none = problem.columns(0, CLASSES), problem.columns(4, 4)
    known = begin(one)
    for round in rounds(one):
        whole = door(backend).reduce(one, round, known)
        for joined in (
            whole.join(nothing := door(backend).reduce(none, round, known)),
            nothing.join(whole),
        ):
            for name, value in vars(joined).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(value, getattr(whole, name), equal_nan=True)
        known = door(backend).settle(one, round, whole, known)


def test_rounds_are_known_from_shapes_and_options() -> None:
    draw = Draw(4, CLASSES, seed=17)
    kinds = {
        "hard": [Kind.MASS],
        "dense": [Kind.MASS],
        "clip": [Kind.SIZE, Kind.MASS],
        "penalty-phr": [Kind.SIZE, Kind.MASS, Kind.DETAIL],
        "lpl-unique": [Kind.RIVALS] + [Kind.GROUP] * 3,
    }
    for name, expected in kinds.items():
        problem = problem_of(CASES[name](draw), "reference", {})
        assert [round.kind for round in rounds(problem)] == expected
    smoothed = testing.Case(
        draw.input(), draw.labels(), {"label_smoothing": 0.1, "phi": Focal(2.0), "step_size": 0.1},
        torch.ones(CLASSES, dtype=torch.int64),
    )  # fmt: skip
    problem = problem_of(smoothed, "reference", {})
    assert [round.kind for round in rounds(problem)][-2:] == [Kind.MASS, Kind.DETAIL]
    through = problem._replace(options=problem.options._replace(through=True))
    with pytest.raises(NotDifferentiable, match="through_perturbation"):
        rounds(through)


def test_the_shortcut_refuses_parts(backend: str) -> None:
    """A sweep over some of the classes is no loss."""
    if backend == "reference":
        pytest.skip("has no shortcut")
    draw = Draw(3, CLASSES, seed=18)
    case = testing.Case(draw.input().float(), draw.labels()).on(testing.device_of(backend))
    problem = problem_of(case, backend, {})
    for part in (problem.columns(0, 5), problem.columns(5, CLASSES)):
        for want_grad in (False, True):
            with pytest.raises((ValueError, RuntimeError), match="first|classes|part"):
                load(backend).forward(part, want_grad)


def test_parts_join_exactly_where_nothing_is_rounded() -> None:
    shift = torch.tensor([0.0, 1.0]).double()
    zero = torch.zeros(2, dtype=torch.float64)
    part = Mass(shift, zero + 2, shift, zero, zero, zero, zero, zero, zero, zero)
    both = part.join(replace(part, shift=shift + 3))
    torch.testing.assert_close(both.rest, 2 + 2 * torch.exp(zero - 3))
    assert both.shift.equal(shift + 3)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_rows_alone_in_their_class_are_left_out(
    backend: str, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sums of classes with several rows, where they are most: the same bits."""
    n, classes = 9, 600
    target = torch.tensor([3, 9, 3, 1, 0, 2, 9, -100, 5])
    case = testing.Case(
        Draw(n, classes, seed=41).input().float(),
        target,
        keywords={"step_size": 0.1, "normalize": normalize},
        steps=torch.full((classes,), 6),
    ).on(testing.device_of(backend))
    case.input[3, 1], case.input[4] = torch.nan, -torch.inf
    problem = problem_of(case, backend, {})
    seen = []
    sums = groups._sums

    def watching(*arguments: Any) -> groups.Tail:
        seen.append(arguments[0].input.shape[0])
        return sums(*arguments)

    monkeypatch.setattr(groups, "_sums", watching)
    found = []
    for of_some in (True, False):
        if not of_some:
            monkeypatch.setattr(groups, "reduce", watching)
        known, _ = known_of(backend, problem, cut(classes, 3))
        assert known.learned is not None
        assert known.loss is not None
        found.append([known.loss, *known.learned[:-3]])
        # triton's kernels have sums of their own
        assert set(seen) <= ({4} if of_some else {n})
        assert seen or backend == "triton"
        seen.clear()
    for some, all_ in zip(*found, strict=True):
        torch.testing.assert_close(some, all_, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("target", [[5] * 64, [5] * 33 + [6] * 31], ids=["one", "two"])
def test_a_large_class_makes_few_numbers_of_a_logit(normalize: bool, target: list[int]) -> None:
    """What its rows have in common is made once, whatever the number of nodes: of each logit there
    are but what its share is made of, and what becomes of it without the exact classes."""
    n, classes = len(target), 4096
    case = testing.Case(
        Draw(n, classes, seed=43).input().float(),
        torch.tensor(target),
        keywords={"step_size": 0.1, "normalize": normalize},
        steps=torch.full((classes,), 12),
    )
    problem = problem_of(case, "cpp", {})
    made = []
    reduce = groups.reduce

    def counting(*arguments: Any) -> groups.Tail:
        with Made() as numbers:
            found = reduce(*arguments)
        made.append(numbers.count)
        return found

    with mock.patch.object(groups, "reduce", counting):
        known, _ = known_of("cpp", problem, cut(classes, 1))
    assert known.learned is not None and known.learned.exact.all()
    assert len(made) == groups.TURNS
    assert max(made) <= (4 if len(set(target)) == 1 else 6) * n * classes


def test_an_offset_of_all_logits_leaves_the_digits(backend: str) -> None:
    for offset in (1e4, -1e4, 100.0):
        draw = Draw(5, CLASSES, seed=19)
        input = (draw.input().float() + offset).double()  # held exactly by float32
        input[0, 2] += 17  # p_y = 1 − 1e-7
        labels = torch.tensor([2, 4, 16, 0, 8])
        for case in (
            testing.Case(
                input, labels, {"perturbation": Perturbation(scale=torch.ones(CLASSES).double())}
            ),
            testing.Case(input, labels, {"step_size": 0.3}, torch.full((CLASSES,), 3)),
        ):
            check(case, backend, by_parts(lambda width: cut(width, 3)))


@pytest.mark.parametrize("offset", [100.0, -100.0, 1e4, -1e4])
def test_delta_keeps_its_digits_beside_an_offset(backend: str, offset: float) -> None:
    """Where plain PyTorch rounds z + δ as it rounds z: a thousandth at 1e4."""
    draw = Draw(6, CLASSES, seed=20)
    input = (draw.input().float() + offset).double()  # held exactly by float32
    steps = torch.arange(CLASSES) % 5 - 2
    each, few = torch.tensor([2, 4, 16, 0, 8, 7]), torch.tensor([2, 4, 2, 2, 4, -100])
    for labels, keywords in (
        (each, {}),
        (few, {"normalize": True}),
        (few, {"label_smoothing": 0.1}),
        (each, {"label_smoothing": 0.2, "phi": Focal(2.0)}),
    ):
        keywords = {"step_size": 0.7, "reduction": "none", **keywords}
        case = testing.Case(input, labels, keywords, steps)
        factors = upstream(torch.empty(len(labels)))
        truth = testing.evaluate(case, "reference", factors)
        run = by_parts(lambda width: cut(width, 3))
        found = run(case.to(torch.float32), backend, factors)
        pairs = [(found.loss, truth.loss), (found.grads["input"], truth.grads["input"])]
        for value, exact in pairs:
            off = (value.cpu().double() - exact).abs().max() / exact.abs().max()
            assert off <= 1e-6, (keywords, float(off))


@pytest.mark.parametrize("offset", [100.0, -100.0, 1e4, -1e4])
def test_statistics_under_delta_keep_their_digits_beside_an_offset(
    backend: str, offset: float
) -> None:
    draw = Draw(6, CLASSES, seed=20)
    input = (draw.input().float() + offset).double()  # held exactly by float32
    keywords = {"step_size": 0.7, "reduction": "none"}
    case = testing.Case(input, torch.tensor([2, 4, 2, 2, 4, 7]), keywords, torch.arange(CLASSES))
    truth = reference.row_statistics(problem_of(case, "reference", {}))
    narrow = case.to(torch.float32).on(testing.device_of(backend))
    problem = problem_of(narrow, backend, {})
    known, problems = known_of(backend, problem, cut(CLASSES, 3))
    found = statistics.statistics(door(backend).reduce, problems, known, whole=problem)
    torch.testing.assert_close(found.entropy.cpu().double(), truth.entropy, rtol=2e-6, atol=0)
    torch.testing.assert_close(found.lse.cpu().double(), truth.lse, rtol=1e-7, atol=0)
