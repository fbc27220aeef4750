"""The solver of classes with several rows: right wherever it says that it is, whatever the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from cases import Draw
from group_cases import case, check_delta, extremes, problem, repeatable
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lpl_fused import Perturbation
from lpl_fused.backends import load, reason_against
from lpl_fused.problem import MEAN, NONE, SUM, Problem
from lpl_fused.reference.softmax import row_statistics

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton_memory import Operations, check, host_alone, watched

from lpl_fused.backends.kernels.arguments import (
    FELL_BACK,
    GROUP,
    PERTURBED,
    SOLVED,
    Groups,
)
from lpl_fused.backends.kernels.launch import GroupMeta
from lpl_fused.backends.triton import arguments, launching, learned
from lpl_fused.backends.triton.arguments import arguments_of, group_rows

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64

CLASSES = 100
backend = load("triton")


@pytest.fixture(autouse=True)
def few_logits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "FEW_LOGITS", 0)


def solve(asked: Problem) -> tuple[Tensor, Tensor]:
    """(δ by row, outcome) in float32."""
    narrow = asked._replace(input=asked.input.float())
    arguments, outcome = learned.with_learned(narrow)
    return arguments.delta[arguments.slot], outcome


def outcome(asked: Problem) -> Tensor:
    return solve(asked)[1]


@contextmanager
def outcomes() -> Iterator[list[Tensor]]:
    """The outcome of every problem that is solved meanwhile, and of every gradient."""
    found: list[Tensor] = []
    take_steps, gradient = learned.take_steps, learned.gradient

    def stepped(problem: Any, arguments: Any, saved: Any, *others: Any) -> None:
        take_steps(problem, arguments, saved, *others)
        found.append(saved.rows.outcome)

    def differentiated(problem: Any, arguments: Any, saved: Any, *others: Any) -> None:
        gradient(problem, arguments, saved, *others)
        found.append(saved.rows.outcome)

    with (
        mock.patch.object(learned, "take_steps", stepped),
        mock.patch.object(learned, "gradient", differentiated),
        mock.patch.object(launching, "_direct", return_value=False),  # no plan goes past it
    ):
        yield found


@contextmanager
def launched_with(
    head: int = 32, block: int = 64, rows: int = 2, step_rows: int = 4, worth: bool = True
) -> Iterator[None]:
    """Several chunks, several tiles, and few exact classes at few classes; no resident steps.

    What is interpreted costs by the block and not by the column, so `CLASSES` are the fewest that
    still have a tail (more than `head`), two chunks, two blocks of weigh_rows and a ragged last one.
    """

    def meta(problem: Problem) -> GroupMeta:
        tile = {"num_warps": 1, "ROWS": rows, "BLOCK": block, "HEAD": head, "NODES": 8}
        stepping = {**tile, "NORMALIZE": problem.options.normalize}
        stepping |= {"STEP_ROWS": step_rows, "FEW": 4, "MANY": 2 * step_rows}
        rounds = 3 if problem.input.shape[1] > head else 1
        return GroupMeta(
            rounds, head, 8, block, stepping, {**stepping, "VERDICTS": step_rows}, tile
        )

    plain = {"ROWS": 1, "BLOCK": 512, "num_warps": 1}
    with mock.patch.object(learned, "group_meta", meta):
        if not worth:
            yield
            return
        with mock.patch.object(learned, "plain_meta", return_value=plain):
            yield


@pytest.mark.parametrize(
    ("spread", "ease", "normalize"),
    [(0.01, 8.0, False), (1.0, -8.0, True), (3.0, 0.0, False), (6.0, 8.0, True)],
)
def test_without_falling_back(spread: float, ease: float, normalize: bool) -> None:
    """Both directions, easy and hard targets, nearly equal logits and a few that have all mass;
    beside a row of its own, which the other solver has.
    """
    asked = problem([2, 5, 1], [10, -10, 3], 200, spread, ease, normalize=normalize)
    with launched_with(block=128), watched():
        delta, found = solve(asked)
    check_delta(asked, delta)
    assert found.tolist() == torch.where(asked.target == 2, SOLVED, PERTURBED).tolist()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_a_large_group(normalize: bool) -> None:
    """More rows than tiles hold: five to read and three to step, both with a ragged last one."""
    asked = problem([75], [9], 130, 3.0, normalize=normalize)
    with launched_with(block=256, rows=16, step_rows=32), watched():
        delta, found = solve(asked)
    assert set(found.tolist()) == {PERTURBED}
    check_delta(asked, delta)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_narrow_logits(dtype: torch.dtype) -> None:
    asked = problem([3, 2], [5, -5], CLASSES)
    with launched_with(), outcomes() as found:
        check(case(asked), dtype)
    assert set(found[0].tolist()) == {PERTURBED}


def test_float64_takes_plain_steps() -> None:
    """What the relaxation leaves would show at 1e-13."""
    asked = problem([3], [4], CLASSES)
    with launched_with():
        _, found = learned.with_learned(asked)
        check(case(asked), FP64)
    assert found.tolist() == [GROUP] * 3


def test_as_it_is_launched() -> None:
    """The launch parameters of the backend; few classes, all exact, and enough for a tail."""
    for classes in (200, 600):
        asked = problem([9], [-6], classes, 3.0)
        delta, found = solve(asked)
        assert set(found.tolist()) == {PERTURBED}
        check_delta(asked, delta)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_row_stats(normalize: bool) -> None:
    """Of those that are solved together and beside them, however far from 0."""
    asked = problem([3, 5, 1], [10, -10, 3], CLASSES, normalize=normalize)
    offset = torch.tensor([1e4, -1e4, 0.0]).double()[torch.arange(9) % 3, None]
    input = (asked.input + offset).float()
    truth = row_statistics(asked._replace(input=input.double() - offset))
    with launched_with(), outcomes() as seen:
        found = backend.forward(asked._replace(input=input), False, return_stats=True).statistics
    assert PERTURBED in seen[0].tolist()
    assert found is not None
    eps = torch.finfo(torch.float32).eps
    lse = truth.lse + offset[:, 0]
    torch.testing.assert_close(found.lse.double(), lse, rtol=eps, atol=2e-6)
    torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=2e-6, atol=2e-6)


def test_few_steps_are_taken_plainly() -> None:
    """In registers 16 steps cost less than the solver, and 17 do not; swept 2 do."""
    for sizes, steps, classes, expected in (
        ([2], 16, 300, GROUP),
        ([2], 17, 300, PERTURBED),
        ([9], -2, 300, GROUP),
        ([9], -3, 300, PERTURBED),
    ):
        assert set(outcome(problem(sizes, [steps], classes)).tolist()) == {expected}


@pytest.mark.parametrize("programs", [1, 3])
def test_as_many_programs_as_there_are(programs: int) -> None:
    """The same bits, whoever has which piece of the work."""
    asked = problem([2, 4], [4, -4], CLASSES)
    asked = asked._replace(input=asked.input.float())
    with launched_with(), outcomes() as found:
        expected = backend.learned_perturbation(asked)[0]
        assert set(found[0].tolist()) == {PERTURBED}
        with mock.patch.object(learned, "PROGRAMS", programs):
            assert torch.equal(backend.learned_perturbation(asked)[0], expected)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_extremes(normalize: bool) -> None:
    """Groups of labels 0 to 2 are solved, those with nan or without mass are nan, and no other."""
    asked = extremes(CLASSES, normalize)
    target = asked.target
    with launched_with(), outcomes() as found:
        check(case(asked))
    assert len(found) == 2  # in the backward, too
    assert FELL_BACK not in found[0][target < 3]
    assert set(found[0][target >= 3].tolist()) == {GROUP}


def test_tables_and_rows_that_do_not_count() -> None:
    asked = problem([4, 3], [5, -5], CLASSES)
    draw = Draw(7, CLASSES, seed=1)
    target = asked.target.clone()
    target[torch.nonzero(target == 0)[0]] = -100
    asked = asked._replace(target=target)
    perturbation = Perturbation(
        scale=0.5 + draw.uniform(CLASSES),
        offset=draw.normal(CLASSES),
        margin=draw.uniform(CLASSES),
        temperature=1.3,
    )
    keywords = {"perturbation": perturbation, "weight": draw.uniform(CLASSES)}
    with launched_with(), outcomes() as found:
        check(case(asked, z_loss=1e-2, reduction="mean", **keywords))
    assert set(found[0][target >= 0].tolist()) == {PERTURBED}


def test_a_label_out_of_range_is_nan_and_never_followed() -> None:
    asked = problem([4, 3], [5, -5], CLASSES)
    strange = asked.target.clone()
    strange[torch.nonzero(strange == 0)[:2, 0]] = 2**40
    asked = asked._replace(input=asked.input.float(), target=strange)
    with launched_with(), watched(), outcomes() as found:
        losses, *_ = backend.forward(asked, True)
        delta, slot = backend.learned_perturbation(asked)
    assert torch.equal(losses.isnan(), strange == 2**40)
    fine = strange != 2**40
    assert set(found[0][fine].tolist()) == {PERTURBED}
    check_delta(
        asked._replace(input=asked.input.double()[fine], target=strange[fine]), delta[slot[fine]]
    )


def test_fallback_is_noticed_counted_and_right() -> None:
    """A dose too large for so few exact classes, in one group of three."""
    asked = problem([3, 2, 2], [24, 3, 0], 150, 0.5, step_size=1.0)
    with launched_with(block=256):
        delta, found = solve(asked)
        check_delta(asked, delta)
        assert set(found[asked.target == 0].tolist()) == {FELL_BACK}
        assert set(found[asked.target == 1].tolist()) == {PERTURBED}
        assert set(found[asked.target == 2].tolist()) == {SOLVED}
        assert backend.fallbacks(asked._replace(input=asked.input.float())) == 3


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    steps = draw(st.sampled_from([1, 2, 7, 9, 12]))
    sizes = draw(st.sampled_from([[2], [3, 2], [9], [2, 4, 2]]))
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    return problem(
        sizes,
        [sign * steps for sign in signs],
        draw(st.sampled_from([40, 70, 150])),
        draw(st.sampled_from([0.01, 1.0, 3.0, 6.0, 20.0])),
        draw(st.sampled_from([0.0, 10.0, -10.0])),
        draw(st.integers(0, 10**6)),
        step_size=draw(st.sampled_from([1e-3, 0.1, 0.5, 3.0])),
        normalize=draw(st.booleans()),
    )


@repeatable(12)
@given(asked=problems())
def test_whatever_is_asked(asked: Problem) -> None:
    """Solved or fallen back, δ is that of exact iteration."""
    with launched_with(block=128):
        delta, _ = solve(asked)
    check_delta(asked, delta)


@pytest.mark.parametrize("n", [1, 5, 16, 40, 300])
def test_rows_by_class(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By comparing all with all, and by a sort: the same classes, each one's rows in their order,
    one class behind the other."""
    draw = Draw(n, 7, seed=n)
    target = draw.labels()
    target[:: n // 3 + 1] = -100
    target[n // 2] = 7
    steps = torch.full((7,), 3, dtype=torch.int32)
    asked = Problem(draw.input().float(), target, steps=steps)

    def found() -> Groups:
        tickets = torch.tensor([0, 7], dtype=torch.int32)
        groups = Groups(*torch.full((4, n), -1), tickets)
        group_rows(asked, arguments_of(asked), groups, None, 0)
        return groups

    with watched():
        compared = found()
    monkeypatch.setattr(arguments, "MOST_COMPARED", 0)
    for groups in (compared, found()):
        for row in range(n):
            members = torch.nonzero(target == target[row]).flatten()
            begin = int(groups.begin[row])
            assert groups.slot[row] == members[0]
            assert groups.count[row] == len(members)
            assert torch.equal(groups.order[begin : begin + len(members)], members)
        assert not groups.tickets.any()


def launched_by(run: Callable[[], object]) -> list[str]:
    found: list[str] = []
    launched = launching.launch

    def noted(kernel: Any, *others: Any, **meta: Any) -> None:
        found.append(kernel.fn.__name__)
        launched(kernel, *others, **meta)

    with (
        mock.patch.object(launching, "launch", noted),
        mock.patch.object(launching, "_direct", return_value=False),  # no plan goes past it
    ):
        run()
    return found


SOLVING = ["split_columns", *["move_tail"] * 3]


def launched_both_ways(asked: Problem) -> tuple[list[str], list[str]]:
    """By a forward, and by a backward."""
    forward = launched_by(lambda: backend.forward(asked, False))
    state, upstream = backend.forward(asked, False).state, torch.ones(()).expand(len(asked.input))
    return forward, launched_by(lambda: backend.learned_gradient(asked, upstream, state))


def test_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most eight where classes may have several rows, at most four where not; more where rows
    are too many for each to find its class, and where gradients are large."""
    asked = problem([3, 2, 1], [24, -5, 3], 600)
    asked = asked._replace(input=asked.input.bfloat16())
    one = asked._replace(input=asked.input[:1], target=asked.target[:1])
    double = asked._replace(input=asked.input.double())
    rows, last = ["weigh_rivals", "step_rows"], ["plain_steps"]
    assert launched_both_ways(asked) == ([*rows, *SOLVING, *last], ["move_all"])
    for alone in (one, double):
        assert launched_both_ways(alone) == ([*rows, *last], ["move_all"])
    monkeypatch.setattr(learned, "FINDING", 5)
    monkeypatch.setattr(learned, "ONE_LAUNCH", 0)
    apart = ["move_rows", "move_groups", "plain_steps"]
    assert launched_both_ways(asked) == (["group_rows", *rows, *SOLVING, *last], apart)
    assert launched_both_ways(one) == ([*rows, *last], ["move_rows", "plain_steps"])


def test_launches_of_few_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem([3, 2, 1], [24, -5, 3], 600)
    monkeypatch.setattr(learned, "FEW_LOGITS", 6 * 600)
    for dtype in (FP32, BF16, FP64):
        found = launched_both_ways(asked._replace(input=asked.input.to(dtype)))
        assert found == (["group_rows", "plain_steps"], ["gradient_rows"])


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_the_same_bits_in_fewer_launches(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever groups rows, lists classes and writes gradients."""
    asked = problem([4, 3, 1, 3], [24, 3, 3, 0], 150, 0.5, step_size=1.0, normalize=normalize)
    target = asked.target.clone()
    target[torch.nonzero(target == 3)[:2, 0]] = torch.tensor([-100, 150])
    asked = asked._replace(input=asked.input.float(), target=target)
    upstream = torch.rand(11) + 0.5

    def found() -> tuple[Tensor, Tensor]:
        loss, *_, state, _ = backend.forward(asked, False)
        return loss, backend.learned_gradient(asked, upstream, state)

    with launched_with(block=128), watched(), outcomes() as seen:
        expected = found()
        monkeypatch.setattr(learned, "FINDING", 0)
        monkeypatch.setattr(learned, "ONE_LAUNCH", 0)
        apart = found()
    for one, other in zip(apart, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    assert {SOLVED, PERTURBED} | (set() if normalize else {FELL_BACK}) <= set(seen[0].tolist())


@pytest.mark.counts
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_operations_of_torch(reduction: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None."""
    host_alone(monkeypatch)
    asked = problem([3, 2, 1], [24, -5, 3], 600)
    options = asked.options._replace(reduction=reduction)
    asked = asked._replace(input=asked.input.bfloat16(), options=options)
    with Operations() as forward:
        state = backend.forward(asked, False).state
    assert not forward.names
    upstream = torch.ones(()).expand(6)
    with Operations() as backward:
        backend.learned_gradient(asked, upstream, state)
    assert not backward.names


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_a_gradient_by_the_forwards_state(normalize: bool) -> None:
    """The same bits as of steps that are taken anew; once more, the same."""
    asked = problem([3, 2, 1], [24, -5, 3], 600, 2.0, normalize=normalize)
    asked = asked._replace(input=asked.input.float())
    upstream = torch.rand(6) + 0.5
    with outcomes() as found:
        state = backend.forward(asked, False).state
        anew = backend.learned_gradient(asked, upstream)
        for _ in range(2):
            assert torch.equal(backend.learned_gradient(asked, upstream, state), anew)
    for one in found[2:]:
        assert torch.equal(one, found[0])
    assert PERTURBED in found[0]
