"""lse, entropy and correctness of rows beside their loss: the truth in float64, on every backend, by
logits, chunks of a layer, and ranks."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from typing import Any

import linear_cases as cases
import pytest
import torch
import torch.distributed as dist
from cases import Draw, cross_entropy_cases, lpl_cases
from linear_cases import HAVE, REFUSE
from ranks import Ranks
from torch import Tensor

from benchmarks import instructions
from lpl_fused import LogitNorm, MixedTarget, Perturbation, RowStatistics, losses
from lpl_fused import functional as LF
from lpl_fused.algebra import statistics as algebra
from lpl_fused.backends import cpp
from lpl_fused.functional import keywords
from lpl_fused.problem import Problem
from lpl_fused.testing import Case

N, C, D = 12, 23, 5
# tables, targets, norms and steps, each once and all at once
NAMES = (
    *("hard", "ignore", "smoothed", "mixed", "mixed-ignore", "dense", "ignore-none"),
    *("softcap", "everything", "dense-weights", "clip", "logit-norm", "rows"),
)
CASES = {name: build for name, build in cross_entropy_cases().items() if name in NAMES}
LPL = {f"lpl-{name}": build for name, build in lpl_cases().items() if "through" not in name}
LPL = dict(list(LPL.items())[::3])
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
# every case in one dtype, the first and the last in all
TYPED = {(name, DTYPES[k % 3]) for k, name in enumerate([*CASES, *LPL])}
TYPED |= set(itertools.product(("hard", "everything", next(iter(LPL))), DTYPES))
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    # sums in float32 of logits that are what they are
    torch.bfloat16: {"rtol": 2e-6, "atol": 2e-6},
}


def called(case: Case, input: Tensor, **more: Any) -> tuple[Tensor, RowStatistics]:
    given = {**case.keywords, **more, "return_stats": True}
    found: Any
    if case.steps is None:
        found = LF.cross_entropy(input, case.target, **given)
    else:
        found = LF.lpl_cross_entropy(input, case.target, case.steps, **given)
    return found


def same(found: RowStatistics, truth: RowStatistics, dtype: torch.dtype, said: str = "") -> None:
    assert isinstance(found, RowStatistics)
    for name in ("lse", "entropy"):
        one, other = getattr(found, name), getattr(truth, name)
        assert one.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not one.requires_grad
        torch.testing.assert_close(
            one.double(), other.double(), equal_nan=True, **TOLERANCE[dtype],
            msg=lambda m, n=name: f"{said} {n}: {m}",
        )  # fmt: skip
    assert found.correct.dtype == torch.bool
    assert found.correct.equal(truth.correct), said


def by_hand(z: Tensor, u: Tensor, target: Tensor) -> RowStatistics:
    p = torch.distributions.Categorical(logits=z.double())
    ignored = target == -100
    return RowStatistics(
        z.double().logsumexp(1).masked_fill(ignored, 0),
        p.entropy().masked_fill(ignored, 0),
        (u.argmax(1) == target) & ~ignored,
    )


def test_by_hand(backend: str) -> None:
    draw = Draw(N, C, seed=1)
    input, target, tables = draw.input(), draw.ignoring(), draw.tables()
    target[1] = input[1].argmax()
    _, found = LF.cross_entropy(input, target, return_stats=True, backend=backend)
    same(found, by_hand(input, input, target), torch.float64)
    torch.testing.assert_close(found.z_loss, found.lse**2)
    moved = Perturbation(scale=tables.scale, offset=tables.offset)
    _, found = LF.cross_entropy(
        input, target, perturbation=moved, return_stats=True, backend=backend
    )
    z = input * tables.scale + tables.offset
    same(found, by_hand(z, input, target), torch.float64)  # one predicts by the raw logits
    steps = draw.steps()
    classes, delta = LF.lpl_perturbation(input, target, steps, step_size=0.2)
    _, found = LF.lpl_cross_entropy(
        input, target, steps, step_size=0.2, return_stats=True, backend=backend
    )
    own = torch.zeros_like(input)
    for row, label in enumerate(target):
        if label >= 0:
            own[row] = delta[classes == label][0]
    same(found, by_hand(input + own, input, target), torch.float64)


@pytest.mark.parametrize(("name", "dtype"), sorted(TYPED, key=str))
def test_against_the_truth(name: str, dtype: torch.dtype, backend: str) -> None:
    case = {**CASES, **LPL}[name](Draw(N, C, seed=2)).rounded(dtype)
    _, truth = called(case.to(torch.float64), case.input.double(), backend="reference")
    narrow = case.to(dtype)
    if dtype == torch.bfloat16:
        narrow = case.to(torch.float32)
    input = case.input.to(dtype).requires_grad_()
    loss, found = called(narrow, input, backend=backend)
    same(found, truth, dtype, name)
    plain = narrow.keywords | {"backend": backend}
    again = input.detach().clone().requires_grad_()
    if case.steps is None:
        without: Any = LF.cross_entropy(again, narrow.target, **plain)
    else:
        without = LF.lpl_cross_entropy(again, narrow.target, narrow.steps, **plain)
    assert loss.equal(without)
    grads = [torch.autograd.grad(x.sum(), leaf)[0] for x, leaf in ((loss, input), (without, again))]
    assert grads[0].equal(grads[1])


@pytest.mark.parametrize("classes", [1, C, 300, 3001])
def test_ties(backend: str, classes: int) -> None:
    """Of equal logits the first is predicted, in whichever block it lies."""
    draw = Draw(N, classes, seed=3)
    input = draw.input().round()
    for target in (draw.labels(), input.argmax(1), input.flip(1).argmax(1)):
        _, found = LF.cross_entropy(input, target, return_stats=True, backend=backend)
        same(found, by_hand(input, input, target), torch.float64)


@pytest.mark.parametrize(
    ("dtype", "normalize"),
    [(torch.float64, False), (torch.float32, False), (torch.float32, True), (torch.bfloat16, True)],
    ids=str,
)
def test_learned_perturbation_of_many_classes(
    backend: str, dtype: torch.dtype, normalize: bool
) -> None:
    """Rows alone in their class, with heads and without, by a short and a long series; such as
    share it; such as take no steps, or plain ones; such as are ignored, or have no softmax."""
    draw = Draw(20, 1500, seed=15)
    input = draw.input()
    input[:4] *= 0.2  # no heads
    input[4, :700] += 3
    input[5, ::7] = -math.inf
    input[6, 3], input[7] = math.nan, -math.inf
    target = torch.arange(20) * 70
    target[10:14], target[14:16], target[16] = target[10], target[14], -100
    target[17] = input[17].argmax()
    input = input.to(dtype)
    steps = torch.full((1500,), 12, dtype=torch.int32)
    steps[target[2]], steps[target[3]], steps[target[9]] = 0, -9, 40
    given: dict[str, Any] = {"normalize": normalize, "return_stats": True, "reduction": "none"}
    for step_size in (0.02, 0.3, 3.0):
        given["step_size"] = step_size
        _, truth = LF.lpl_cross_entropy(input.double(), target, steps, backend="reference", **given)
        _, found = LF.lpl_cross_entropy(input, target, steps, backend=backend, **given)
        same(found, truth, dtype, f"{step_size}")


@pytest.mark.parametrize("kind", ["few", "alone", "smoothed", "normalized"])
def test_learned_perturbation_beside_logits_far_from_0(backend: str, kind: str) -> None:
    """Where z + δ were rounded as z is the entropy would lose a thousandth."""
    offset = torch.tensor([1e4, -1e4, 100.0, -100.0, 0.0]).double()[torch.arange(24) % 5, None]
    input = (Draw(24, 41, seed=22).input() + offset).float()
    target = torch.arange(24) % (6 if kind in ("few", "normalized") else 24)
    steps = torch.arange(41) % 7 - 3
    steps[0] = 3
    given: dict[str, Any] = {"step_size": 0.5, "reduction": "none", "return_stats": True}
    if kind == "smoothed":
        given["label_smoothing"] = 0.1
    given["normalize"] = kind == "normalized"
    centred = input.double() - offset
    _, truth = LF.lpl_cross_entropy(centred, target, steps, backend="reference", **given)
    _, found = LF.lpl_cross_entropy(input, target, steps, backend=backend, **given)
    same(found, truth._replace(lse=truth.lse + offset[:, 0]), torch.float32)


@pytest.mark.parametrize("classes", [48, 3001])
def test_rows_that_rise(backend: str, classes: int) -> None:
    """Sums are carried from one maximum to the next."""
    slope = torch.linspace(-300, 300, classes, dtype=torch.float64)
    flat, hole = torch.full_like(slope, -300.0), slope.clone()
    hole[: classes // 2] = -math.inf
    late = torch.full_like(slope, -math.inf)
    late[-1] = 3
    input = torch.stack([slope, slope / 30, -slope, slope / 300, flat, hole, hole.flip(0), late])
    for target in (torch.full((8,), classes - 1), torch.zeros(8, dtype=torch.int64)):
        # plain PyTorch has fewer digits
        for dtype in (torch.float64, torch.float32)[: 1 if backend == "reference" else 2]:
            z = input.to(dtype)
            _, found = LF.cross_entropy(
                z, target, return_stats=True, reduction="none", backend=backend
            )
            same(found, by_hand(z, z, target), dtype)


def test_rows_without_a_softmax(backend: str) -> None:
    inf, nan = math.inf, math.nan
    input = torch.tensor(
        [[nan, 1.0, 0.0], [inf, 1.0, 0.0], [-inf, -inf, -inf], [-inf, 2.0, -inf], [nan, inf, 0.0]]
    )
    target = torch.tensor([0, 0, 0, 1, -100])
    _, found = LF.cross_entropy(input, target, reduction="none", return_stats=True, backend=backend)
    same(
        found,
        RowStatistics(
            torch.tensor([nan, nan, -inf, 2.0, 0.0]),
            torch.tensor([nan, nan, nan, 0.0, 0.0]),
            torch.tensor([False, False, False, True, False]),
        ),
        torch.float32,
    )


@pytest.mark.parametrize("classes", [1, 5, 700])
def test_nothing_but_minus_infinity_under_a_softcap(backend: str, classes: int) -> None:
    """It is a softmax of equals then, whose first is predicted."""
    input, target = torch.full((3, classes), -math.inf), torch.tensor([0, classes - 1, 0])
    input[2, -1] = 0
    _, found = LF.cross_entropy(input, target, softcap=20.0, return_stats=True, backend=backend)
    same(found, by_hand(20 * torch.tanh(input / 20), input, target), torch.float32)


def test_who_is_right(backend: str) -> None:
    """Ties, mixed targets and class probabilities."""
    input = torch.tensor([[1.0, 1.0, 0.0]] * 4)
    labels, others = torch.tensor([0, 1, 0, -100]), torch.tensor([1, 0, 2, 0])

    def right(target: Any) -> list[bool]:
        _, found = LF.cross_entropy(input, target, return_stats=True, backend=backend)
        return found.correct.tolist()  # type: ignore[no-any-return]

    assert right(labels) == [True, False, True, False]
    assert right(MixedTarget(labels, others, 0.5)) == [True, False, True, True]
    assert right(MixedTarget(labels, others, 0.4)) == [False, True, False, True]
    dense = torch.tensor([[0.4, 0.4, 0.2], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert right(dense) == [True, False, False, True]
    # the probabilities as they are given: float64 tells these apart, and a weight changes nothing
    close = torch.tensor([[0.5, 0.5 + 1e-12, 0.0]], dtype=torch.float64).expand(4, 3)
    assert right(close) == [False] * 4
    few = {"weight": torch.tensor([0.1, 1.0, 1.0]), "softcap": 2.0}
    input = torch.tensor([[math.inf, 1.0, 0.0]] * 4)  # that a cap makes finite
    _, found = LF.cross_entropy(input, dense, return_stats=True, backend=backend, **few)
    assert found.correct.tolist() == [True, False, False, True]
    assert found.lse.isfinite().all()


def test_shapes() -> None:
    draw = Draw(1, 5, seed=4)
    input = draw.normal(2, 5, 3, 4)
    target = input.argmax(1)
    _, found = LF.cross_entropy(input, target, return_stats=True)
    assert all(part.shape == target.shape for part in (*found, found.z_loss))
    assert found.correct.all()
    torch.testing.assert_close(found.lse, input.logsumexp(1))
    _, found = LF.cross_entropy(input[0, :, 0, 0], target[0, 0, 0], return_stats=True)
    assert found.lse.shape == ()
    none = torch.zeros(0, 5)
    _, found = LF.cross_entropy(none, torch.zeros(0, dtype=torch.int64), return_stats=True)
    assert found.entropy.shape == (0,)


@pytest.mark.parametrize(("rows", "grads"), [(None, False), (5, True), (2, True)])
def test_chunks_of_a_layer(rows: int | None, grads: bool, backend: str) -> None:
    draw = Draw(N, C, seed=5)
    hidden, weight, bias = draw.normal(N, D), draw.normal(C, D), draw.normal(C)
    tables = Perturbation(offset=draw.normal(C), temperature=0.5)
    target = torch.tensor([3, 3, 3, 7, -100, 1, 2, 7, 3, 3, 9, 3])  # one class is larger than 5
    memory = None if rows is None else rows * C * 8
    logits, steps = hidden @ weight.t() + bias, draw.steps()
    for linear, plain, first in (
        (LF.linear_cross_entropy, LF.cross_entropy, ()),
        (LF.linear_lpl_cross_entropy, LF.lpl_cross_entropy, (steps,)),
    ):
        more: dict[str, Any] = {"perturbation": tables, "norm": LogitNorm(0.3)}
        if first:
            more["step_size"] = 0.1
        _, truth = plain(logits, target, *first, backend="reference", return_stats=True, **more)  # type: ignore[operator]
        more |= {"linear_bias": bias, "chunk_memory": memory, "backend": backend}
        leaf = weight.clone().requires_grad_(grads)
        loss, found = linear(hidden, leaf, target, *first, return_stats=True, **more)  # type: ignore[operator]
        same(found, truth, torch.float64)
        without = linear(hidden, leaf, target, *first, **more)  # type: ignore[operator]
        assert loss.equal(without)
        if grads:
            one, two = (torch.autograd.grad(value, leaf)[0] for value in (loss, without))
            assert one.equal(two)


@pytest.mark.parametrize("form", ["sweep", "statistics", "inplace"])
def test_every_form_of_the_gradient(form: str) -> None:
    draw = Draw(N, C, seed=6)
    leaf = draw.input().float().requires_grad_()
    target = draw.labels()
    logits = leaf * 1
    loss, found = LF.cross_entropy(logits, target, gradient=form, return_stats=True, backend="cpp")
    loss.backward()
    assert leaf.grad is not None
    plain = leaf.detach().requires_grad_()
    expected = torch.nn.functional.cross_entropy(plain, target)
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(expected, plain)[0])
    same(found, by_hand(leaf, leaf, target), torch.float32)


@pytest.mark.parametrize("learned", [False, True])
def test_compiled(learned: bool) -> None:
    draw = Draw(N, C, seed=7)
    input, target, steps = draw.input().float(), draw.labels(), draw.steps()
    hidden, weight = draw.normal(N, D).float(), draw.normal(C, D).float()

    def run(input: Tensor, weight: Tensor) -> list[Tensor]:
        if learned:
            one = LF.lpl_cross_entropy(input, target, steps, step_size=0.1, return_stats=True)
            two = LF.linear_lpl_cross_entropy(
                hidden, weight, target, steps, step_size=0.1, return_stats=True
            )
        else:
            one = LF.cross_entropy(input, target, return_stats=True)
            two = LF.linear_cross_entropy(hidden, weight, target, return_stats=True)
        return [one[0] + two[0], *one[1], *two[1]]

    leaves = [input.requires_grad_(), weight.requires_grad_()]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected, found = run(*leaves), compiled(*leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    grads = [torch.autograd.grad(made[0], leaves) for made in (found, expected)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_autocast() -> None:
    draw = Draw(N, C, seed=8)
    hidden, weight, target = draw.normal(N, D).float(), draw.normal(C, D).float(), draw.labels()
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, weight)
        _, found = LF.cross_entropy(logits, target, return_stats=True)
        _, of_layer = LF.linear_cross_entropy(hidden, weight, target, return_stats=True)
    same(found, by_hand(logits, logits, target), torch.bfloat16)
    torch.testing.assert_close(of_layer.lse, found.lse, rtol=1e-2, atol=1e-2)


def test_through_the_steps_and_chosen_steps() -> None:
    draw = Draw(N, C, seed=9)
    input, target, steps = draw.input().requires_grad_(), draw.labels(), draw.steps()
    given: dict[str, Any] = {"step_size": 0.1, "return_stats": True}
    _, truth = LF.lpl_cross_entropy(input, target, steps, backend="reference", **given)
    _, found = LF.lpl_cross_entropy(input, target, steps, through_perturbation=True, **given)
    same(found, truth, torch.float64)
    calls = []

    def choose(losses: Tensor) -> Tensor:
        calls.append(losses)
        return steps

    _, found = LF.lpl_cross_entropy(input, target, choose, **given)
    same(found, truth, torch.float64)
    assert len(calls) == 1


@pytest.mark.parametrize("name", HAVE)
def test_losses_give_them_when_called_so(name: str) -> None:
    draw = Draw(N, cases.C, seed=10)
    hidden, weight = draw.normal(N, D), draw.normal(cases.C, D)
    input, target, criterion = hidden @ weight.t(), draw.ignoring(), HAVE[name]()
    other = copy.deepcopy(criterion)
    loss, found = criterion(input, target, return_stats=True)
    assert loss.equal(other(input, target))
    assert found.correct.equal((input.argmax(1) == target) & (target != -100))
    loss, of_layer = copy.deepcopy(other).linear(hidden, weight, target, return_stats=True)
    torch.testing.assert_close(loss, copy.deepcopy(other).linear(hidden, weight, target))
    same(of_layer, other(input, target, return_stats=True)[1], torch.float64)


@pytest.mark.parametrize("name", ["lpl-variant", "lpl-through"])
def test_losses_without_a_linear_form_give_them(name: str) -> None:
    draw = Draw(N, cases.C, seed=11)
    input, target, criterion = draw.input(), draw.ignoring(), REFUSE[name]()
    loss, found = criterion(input, target, return_stats=True)
    assert loss.equal(criterion(input, target))
    assert found.correct.equal((input.argmax(1) == target) & (target != -100))


def test_others_refuse_by_name() -> None:
    draw = Draw(N, cases.C, seed=11)
    input, target = draw.input(), draw.labels()
    for name, make in REFUSE.items():
        if name not in ("lpl-variant", "lpl-through"):
            with pytest.raises((TypeError, NotImplementedError), match="return_stats"):
                make()(input, target, return_stats=True)
    with pytest.raises(NotImplementedError, match="return_stats: SeesawLoss"):
        losses.MbLSLoss(base=losses.SeesawLoss(cases.C))(input, target, return_stats=True)
    mixed = MixedTarget(target, target.flip(0), 0.3)
    for loss in (losses.LDAMLoss(cases.COUNTS), losses.LPLLoss(cases.COUNTS)):
        with pytest.raises(ValueError, match=r"return_stats: .* two softmaxes"):
            loss(input, mixed, return_stats=True)
    with pytest.raises(TypeError, match="return_stats"):
        LF.cross_entropy(input, target, return_stats="lse")  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (LF.cross_entropy, keywords.CrossEntropyKeywords),
        (LF.lpl_cross_entropy, keywords.LPLKeywords),
        (LF.linear_cross_entropy, keywords.LinearKeywords),
        (LF.linear_lpl_cross_entropy, keywords.LinearLPLKeywords),
    ],
)
def test_typed_keywords_are_those_of_the_function(function: Any, kind: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert names - {"return_stats", "step_size"} == set(kind.__annotations__) | set(
        inspect.get_annotations(keywords.Keywords)
    ) | (set(inspect.get_annotations(keywords.CrossEntropyKeywords)) & names)


@pytest.mark.skipif(cpp.unavailable() is not None, reason="C++ backend not built")
@pytest.mark.parametrize("learns", [True, False])
def test_cpp_sweeps_once(learns: bool) -> None:
    """The statistics come from the calls that there are without them."""
    draw = Draw(N, C, seed=12)
    steps, tables = draw.steps(), Perturbation(offset=draw.normal(C), margin=draw.normal(C).abs())
    input, hidden = draw.input().requires_grad_(learns), draw.normal(N, D).requires_grad_(learns)
    weight, target, dense = draw.normal(C, D), draw.ignoring(), torch.softmax(draw.normal(N, C), 1)

    def all_of_them(**wanted: bool) -> None:
        more: dict[str, Any] = {"backend": "cpp", **wanted}
        for reduction in ("mean", "sum", "none"):
            more["reduction"] = reduction
            LF.cross_entropy(input, target, **more)
            LF.cross_entropy(input, target, perturbation=tables, norm=LogitNorm(0.3), **more)
            LF.cross_entropy(input, target, label_smoothing=0.1, **more)
            LF.cross_entropy(input, dense, phi="log", z_loss=0.1, softcap=3.0, **more)
            LF.linear_cross_entropy(hidden, weight, target, perturbation=tables, **more)
            LF.lpl_cross_entropy(input, target, steps, step_size=0.1, **more)
            LF.linear_lpl_cross_entropy(hidden, weight, target, steps, step_size=0.1, **more)

    names = []
    for wanted in (False, True):
        with instructions.recorded() as recorder:
            all_of_them(return_stats=wanted)
        names.append([name for name, _ in recorder.calls])
    assert names[0] == names[1]
    assert "reduce" not in names[0]


def _on_a_rank(group: Any) -> list[str]:
    return _of_a_rank(group, False) + _of_a_rank(group, True)


def _of_a_rank(group: Any, learned: bool) -> list[str]:
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    mine = [slice(0, 9), slice(9, 9), slice(9, C)][rank] if world == 3 else slice(0, C)
    draw = Draw(N, C, seed=13)
    hidden, weight, offset = draw.normal(N, D), draw.normal(C, D), draw.normal(C)
    target, steps = draw.ignoring(), draw.steps()
    first: Any = (steps,) if learned else ()
    more: dict[str, Any] = {"perturbation": Perturbation(offset=offset), "return_stats": True}
    if learned:
        more["step_size"] = 0.1
    plain: Any = LF.lpl_cross_entropy if learned else LF.cross_entropy
    linear: Any = LF.linear_lpl_cross_entropy if learned else LF.linear_cross_entropy
    logits = hidden @ weight.t()
    loss, truth = plain(logits, target, *first, backend="reference", **more)
    wrong = []
    part = weight[mine].clone().requires_grad_()
    more["process_group"] = group
    found = {
        "logits": plain((hidden @ part.t()), target, *first, **more),
        "layer": linear(hidden, part, target, *first, **more, chunk_memory=5 * C * 8),
    }
    if not learned:
        dense = torch.softmax(draw.normal(N, C), 1)
        _, of_dense = plain(logits, dense, backend="reference", return_stats=True)
        _, shared = plain(logits[:, mine], dense[:, mine], process_group=group, return_stats=True)
        wrong += [] if shared.correct.equal(of_dense.correct) else ["dense"]
    for name, (value, numbers) in found.items():
        torch.testing.assert_close(value.detach(), loss, msg=lambda m, n=name: f"{n}: {m}")
        same(numbers, truth, torch.float64, name)
        value.backward()
    return wrong


def test_over_ranks() -> None:
    ranks = Ranks(3)
    try:
        assert ranks.run(3, _on_a_rank) == [[], [], []]
    finally:
        ranks.close()


def test_parts_join_in_any_order() -> None:
    draw = Draw(N, C, seed=14)
    problem = Problem(draw.input().round(), draw.labels())
    from lpl_fused.reference import parts as door

    whole = algebra.statistics(door.reduce, [problem])
    for cuts in ([0, 5, C], [0, 1, 2, 20, C]):
        pieces = [problem.columns(a, b) for a, b in itertools.pairwise(cuts)]
        for order in (pieces, pieces[::-1]):
            found = algebra.statistics(door.reduce, order, whole=problem)
            same(found, whole, torch.float64)
