"""Classes over many ranks: what some ranks find together is what one finds alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from cases import Draw, cross_entropy_cases, lpl_cases
from ranks import Ranks
from torch import Tensor

from benchmarks import collectives as sending
from benchmarks.collectives import watched
from lpl_fused import Focal, LogitClip, MarginPenalty, Perturbation, losses, testing
from lpl_fused import functional as LF
from lpl_fused.problem import TABLES
from lpl_fused.sharded import gather

CLASSES = 17
DOCS = Path(__file__).resolve().parent.parent / "docs"
CASES = {
    **cross_entropy_cases(),
    **{f"lpl-{name}": build for name, build in lpl_cases().items() if "through" not in name},
}
# the ranks' first columns: uneven, one without classes, one with a single one
CUTS = {1: [0], 2: [0, 5], 3: [0, 5, 5], 4: [0, 3, 4, 11]}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def here(group: Any, classes: int = CLASSES) -> slice:
    """This rank's columns."""
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    ends = [*CUTS[world], CLASSES]
    scaled = [end * classes // CLASSES for end in ends]
    return slice(scaled[rank], scaled[rank + 1])


def local(group: Any, input: Tensor) -> Tensor:
    return (
        input[here(group, len(input))]
        if input.dim() == 1
        else input[:, here(group, input.shape[1])]
    )


def of_all(group: Any, part: Tensor, dim: int) -> Tensor:
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, part, group)
    return torch.cat(parts, dim)


def sharded(
    group: Any, parts_of_tables: bool
) -> Callable[[testing.Case, str, Tensor], testing.Result]:
    """Loss and gradients as `testing.evaluate` has them, on all ranks of a group."""

    def run(case: testing.Case, backend: str, upstream: Tensor) -> testing.Result:
        classes = case.input.shape[0 if case.input.dim() == 1 else 1]
        mine = here(group, classes)
        input = local(group, case.input).detach().clone().requires_grad_()
        keywords = dict(case.keywords)
        leaves = {"input": input}
        target = case.target
        if isinstance(target, Tensor) and target.is_floating_point():
            target = local(group, target)
        perturbation = keywords.get("perturbation")
        if perturbation is not None:
            tables = {}
            for name in (*TABLES, "temperature"):
                value = getattr(perturbation, name)
                if value is None or (name == "temperature" and name not in case.learn):
                    continue
                wide = torch.as_tensor(
                    value, dtype=case.input.dtype if input.dtype == torch.float64 else torch.float32
                )
                dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
                if name != "temperature" and parts_of_tables:
                    wide = wide[..., mine]
                tables[name] = wide.detach().clone()
                if name in case.learn:
                    tables[name] = tables[name].to(dtype).requires_grad_()
                    leaves[name] = tables[name]
            index = perturbation.row_index
            if perturbation.rows is not None and index is None:
                index = case.target.clamp(min=0)  # type: ignore[union-attr]
            keywords["perturbation"] = replace(perturbation, row_index=index, **tables)
        if parts_of_tables:
            for name in ("weight", "label_smoothing"):
                if isinstance(keywords.get(name), Tensor) and keywords[name].dim():
                    keywords[name] = keywords[name][mine]
        keywords |= {"process_group": group, "backend": backend}
        if case.steps is None:
            loss = LF.cross_entropy(input, target, **keywords)
        else:
            steps = case.steps[mine] if parts_of_tables else case.steps
            loss = LF.lpl_cross_entropy(input, target, steps, **keywords)
        found = torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.dtype))
        grads = dict(zip(leaves, found, strict=True))
        grads["input"] = of_all(group, grads["input"], 0 if input.dim() == 1 else 1)
        for name in [name for name in TABLES if name in grads and parts_of_tables]:
            grads[name] = of_all(group, grads[name], -1)
        return testing.Result(loss.detach(), grads)

    return run


def upstream(loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


def walk(
    group: Any, cases: dict[str, testing.Case], backend: str, dtype: torch.dtype, parts: bool
) -> dict[str, str]:
    """What is wrong, by case. The first rank judges; the others do as it says."""
    run, wrong = sharded(group, parts), {}

    def lead(case: testing.Case, backend: str, factors: Tensor) -> testing.Result:
        dist.broadcast_object_list([(case, factors)], 0, group)
        return run(case, backend, factors)

    for name, case in cases.items():
        if case.steps is not None:
            case = replace(case, learn=())  # tables do not learn beside steps
        try:
            if dist.get_rank(group) == 0:
                testing.assert_within_budget(case, backend, dtype, upstream=upstream, run=lead)
            else:
                said: list[Any] = [None]
                dist.broadcast_object_list(said, 0, group)
                run(said[0][0], backend, said[0][1])
        except Exception as error:
            wrong[name] = repr(error)
    return wrong


@pytest.mark.parametrize(
    ("world", "parts"),
    [(2, True), (3, False), (4, True)],
    ids=["2-parts-of-tables", "3-whole-tables", "4-parts-of-tables"],
)
def test_what_ranks_find_is_what_one_finds(ranks: Ranks, world: int, parts: bool) -> None:
    cases = {name: build(Draw(24, CLASSES, seed=7)) for name, build in CASES.items()}
    assert len(cases) > 40
    wrong = ranks.run(world, walk, cases, "cpp", torch.float32, parts)
    assert not any(wrong), wrong


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(ranks: Ranks, dtype: torch.dtype) -> None:
    few = ["ignore", "dense-smoothed", "everything", "clip-everything", "lpl-groups", "lpl-unique"]
    cases = {name: CASES[name](Draw(24, CLASSES, seed=9)) for name in few}
    wrong = ranks.run(3, walk, cases, "cpp", dtype, False)
    assert not any(wrong), wrong


def test_the_reference(ranks: Ranks) -> None:
    few = ["ignore", "mixed-ignore", "clip-p3", "penalty-phr", "lpl-groups-normalized"]
    cases = {name: CASES[name](Draw(24, CLASSES, seed=10)) for name in few}
    assert ranks.run(2, walk, cases, "reference", torch.float32, True) == [{}] * 2


# -- what is sent --------------------------------------------------------------------------------


def sent_by(
    group: Any, input: Tensor, target: Any, steps: Any, keywords: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """The bytes of a forward's and of a backward's collectives."""
    mine = local(group, input).clone().requires_grad_()
    with watched() as forward:
        if steps is None:
            loss = LF.cross_entropy(mine, target, process_group=group, **keywords)
        else:
            loss = LF.lpl_cross_entropy(mine, target, steps, process_group=group, **keywords)
    with watched() as backward:
        loss.sum().backward()
    assert mine.grad is not None
    return [each.bytes for each in forward], [each.bytes for each in backward]


def test_collectives_of_table_losses(ranks: Ranks) -> None:
    """The agreement and one round; nothing in the backward of the logits."""
    draw = Draw(40, CLASSES, seed=11)
    tables = Perturbation(offset=draw.normal(CLASSES), margin=draw.uniform(CLASSES))
    for keywords in (
        {},
        {"reduction": "none"},
        {"perturbation": tables, "weight": draw.uniform(CLASSES) + 0.1},
        {"label_smoothing": 0.1, "z_loss": 1e-3},
    ):
        for forward, backward in ranks.run(3, sent_by, draw.input(), draw.labels(), None, keywords):
            assert len(forward) == 2
            assert forward[1] <= 40 * 5 * 8  # shift, rest, own; mass and pull of smoothed targets
            assert not backward
    for keywords, rounds in (
        ({"norm": LogitClip(3.0)}, 3),
        ({"phi": Focal(2.0), "label_smoothing": 0.1}, 3),
        ({"penalty": MarginPenalty("relu", 1.0)}, 4),
    ):
        for forward, backward in ranks.run(2, sent_by, draw.input(), draw.labels(), None, keywords):
            assert len(forward) == rounds
            assert not backward


def of_many(group: Any, cases: dict[str, testing.Case]) -> dict[str, str]:
    """What differs where ranks join some rows each, as many of them do."""
    wrong = {}
    for name, case in cases.items():
        run = sharded(group, parts_of_tables=True)
        plain = run(case, "cpp", torch.ones(()))
        with mock.patch.object(gather, "MANY", 2), watched() as sent:
            found = run(case, "cpp", torch.ones(()))
        if not sent or not plain.loss.equal(found.loss):
            wrong[name] = f"{plain.loss} {found.loss}"
        for key, grad in plain.grads.items():
            if not grad.equal(found.grads[key]):
                wrong[name] = key
    return wrong


def test_many_ranks_join_some_rows_each(ranks: Ranks) -> None:
    """The same bits, of rows that are no multiple of the ranks, and of fewer rows than ranks."""
    few = ["dense-smoothed", "everything", "clip-everything", "penalty-phr", "lpl-groups"]
    for rows in (25, 2):
        cases = {name: CASES[name](Draw(rows, CLASSES, seed=3)) for name in few}
        cases = {
            name: replace(case, learn=(), keywords={**case.keywords, "reduction": "sum"})
            for name, case in cases.items()
        }
        assert ranks.run(4, of_many, cases) == [{}] * 4


def bytes_heard(group: Any, input: Tensor, target: Tensor) -> list[int]:
    with mock.patch.object(gather, "MANY", 2), watched() as sent:
        LF.cross_entropy(local(group, input), target, process_group=group)
    return [each.bytes for each in sent]


def test_what_a_rank_hears_of_many(ranks: Ranks) -> None:
    """A rank's numbers once on the way to who joins them and once on the way back."""
    draw = Draw(40, CLASSES, seed=11)
    for agreement, there, back in ranks.run(4, bytes_heard, draw.input(), draw.labels()):
        assert agreement < 2048
        assert (there, 4 * back) == (40 * 3 * 8, 40 * 3 * 8)


@pytest.mark.parametrize("count", [1, 50])
def test_collectives_of_a_learned_perturbation(ranks: Ranks, count: int) -> None:
    """Whatever the steps: two where every class has one row, at most five where classes have
    several; bytes by what is listed, not by the most that may be."""
    classes, rows = 3000, 64
    draw = Draw(rows, classes, seed=12)
    steps, keywords = torch.full((classes,), count), {"step_size": 0.02}
    alone, several = torch.randperm(classes, generator=draw.generator)[:rows], draw.labels() % 9
    logits = draw.input(1.0).float()  # of float64 more than 512 classes are taken one by one
    for target, most in ((alone, 2), (several, 5)):
        for forward, backward in ranks.run(4, sent_by, logits, target, steps, keywords):
            assert 2 <= len(forward) <= most
            assert not backward
            # 512 places for heads in each row would be eight times as much in one message
            assert max(forward) <= rows * (5 + 8 + 19) * 8 + (16 * rows + 64) * 12


def counts(group: Any) -> dict[str, list[tuple[str, int]]]:
    found = {}
    for name, call in sending.calls(group).items():
        with watched() as sent:
            call().backward()
        found[name] = [(each.name, each.bytes) for each in sent]
    return found


@pytest.mark.skipif(not DOCS.exists(), reason="no source tree here")
def test_the_record_and_the_page_are_what_is_sent(ranks: Ranks) -> None:
    record = json.loads(sending.RECORD.read_text())
    for world in sending.RANKS:
        losses = record["ranks"][str(world)]["losses"]
        for name, sent in ranks.run(world, counts)[0].items():
            told = [(each["name"], each["bytes"]) for each in losses[name]]
            assert sent[1:] == told[1:], name
            # the agreement grows with what can be asked for
            assert told[0][1] <= sent[0][1] < 2048
    page = (DOCS / "scale.md").read_text()
    assert sending.tables(record) in page
    assert sending.predictions(record) in page


def test_steps_that_a_function_chooses(ranks: Ranks) -> None:
    draw = Draw(20, CLASSES, seed=13)
    found = ranks.run(
        2, sent_by, draw.input(), torch.arange(20) % CLASSES, chosen, {"step_size": 0.2}
    )
    assert {len(forward) for forward, _ in found} <= {4, 5, 6, 7}
    assert ranks.run(2, chooses, draw.input(), torch.arange(20) % CLASSES) == [True, True]


def chosen(losses: Tensor) -> Tensor:
    return torch.full((CLASSES,), 2 + int(losses.mean() > 0))


def chooses(group: Any, input: Tensor, target: Tensor) -> bool:
    """The function sees the losses of whole rows."""
    expected = LF.cross_entropy(input, target, reduction="none", backend="reference")
    seen = []

    def choose(losses: Tensor) -> Tensor:
        seen.append(losses)
        return chosen(losses)

    LF.lpl_cross_entropy(local(group, input), target, choose, step_size=0.1, process_group=group)
    (losses,) = seen
    torch.testing.assert_close(losses, expected)
    return True


# -- what sums do not settle ------------------------------------------------------------------------


def of_learned(
    group: Any, input: Tensor, target: Tensor, steps: Tensor, keywords: dict[str, Any]
) -> Any:
    """(loss, gradient, δ, collectives) of all columns."""
    mine = local(group, input).clone().requires_grad_()
    with watched() as forward:
        loss = LF.lpl_cross_entropy(
            mine, target, steps, process_group=group, reduction="none", **keywords
        )
    loss.sum().backward()
    classes, delta = LF.lpl_perturbation(
        mine.detach(), target, steps, process_group=group, **keywords
    )
    assert mine.grad is not None
    return (
        loss.detach(),
        of_all(group, mine.grad, 1),
        classes,
        of_all(group, delta, 1),
        len(forward),
    )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", ["alone", "several", "both"])
def test_rows_that_are_left_take_their_steps_one_by_one(
    ranks: Ranks, name: str, normalize: bool
) -> None:
    """Steps so far that no series holds: one collective more, and the same numbers."""
    classes = 1100
    draw = Draw(6, classes, seed=14)
    input = draw.input(0.3)
    labels = {
        "alone": [0, 700, 3, 1099, 5, -100],
        "several": [7, 7, 800, 800, 7, 7],
        "both": [7, 7, 1, 2, 2, 2],
    }
    target = torch.tensor(labels[name])
    steps = torch.full((classes,), 12)
    steps[::2] = -9
    steps[2] = 0
    keywords = {"step_size": 40.0, "normalize": normalize}
    expected = LF.lpl_cross_entropy(
        input, target, steps, reduction="none", backend="reference", **keywords
    )
    leaf = input.clone().requires_grad_()
    LF.lpl_cross_entropy(
        leaf, target, steps, reduction="none", backend="reference", **keywords
    ).sum().backward()
    known, delta = LF.lpl_perturbation(input, target, steps, backend="reference", **keywords)
    for loss, grad, found, moved, collectives in ranks.run(
        3, of_learned, input, target, steps, keywords
    ):
        assert collectives <= 7
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-7, atol=1e-12)
        assert found.equal(known)
        torch.testing.assert_close(moved, delta, rtol=1e-9, atol=1e-9)


def test_more_listed_classes_than_a_message_has_room_for(ranks: Ranks) -> None:
    """They come in one more."""
    classes = 2000
    draw = Draw(5, classes, seed=15)
    input = draw.input(0.05)
    input[:, ::9] += 4.0
    steps, keywords = torch.full((classes,), 6), {"step_size": 3.0}
    for target in (torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 0, 9, 9])):
        expected = LF.lpl_cross_entropy(
            input, target, steps, reduction="none", backend="reference", **keywords
        )
        for loss, *_, collectives in ranks.run(2, of_learned, input, target, steps, keywords):
            torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
            assert collectives > 2


# -- shapes ------------------------------------------------------------------------------------------


def of_shapes(group: Any) -> None:
    """Batches of no row and of one, single rows, grids; ranks that have all classes or none."""
    draw = Draw(6, CLASSES, seed=16)
    grid = draw.normal(3, CLASSES, 2, 4)
    calls = (
        (draw.input()[:0], torch.empty(0, dtype=torch.int64)),
        (draw.input()[:1], torch.tensor([16])),
        (draw.input()[0], torch.tensor(5)),
        (grid, draw.labels().repeat(4).reshape(3, 2, 4)),
        (grid, torch.full((3, 2, 4), -100)),
    )
    steps = torch.arange(CLASSES) % 5 - 2
    for input, target in calls:
        dim = 0 if input.dim() == 1 else 1
        mine = local(group, input).clone().requires_grad_()
        whole = input.clone().requires_grad_()
        for reduction in ("mean", "sum", "none"):
            for extra in ((), (steps,)):
                call: Any = LF.lpl_cross_entropy if extra else LF.cross_entropy
                keywords: dict[str, Any] = {"step_size": 0.3} if extra else {}
                keywords["reduction"] = reduction
                found = call(mine, target, *extra, process_group=group, **keywords)
                expected = call(whole, target, *extra, backend="reference", **keywords)
                torch.testing.assert_close(found, expected, equal_nan=True)
                up = torch.linspace(0.5, 1.5, expected.numel()).to(expected).reshape(expected.shape)
                (grad,) = torch.autograd.grad(found, mine, up)
                (of_whole,) = torch.autograd.grad(expected, whole, up)
                torch.testing.assert_close(of_all(group, grad, dim), of_whole, equal_nan=True)


def of_another_default_device(group: Any) -> None:
    draw = Draw(6, CLASSES, seed=19)
    input, target, steps = draw.input(), draw.labels(), torch.arange(CLASSES) % 5 - 2
    calls: tuple[Callable[..., Tensor], ...] = (
        LF.cross_entropy,
        lambda z, y, **more: LF.lpl_cross_entropy(z, y, steps, step_size=0.3, **more),
        lambda z, y, **more: LF.lpl_cross_entropy(z, y, lambda _: steps, step_size=0.3, **more),
    )
    for call in calls:
        expected = call(input, target)
        with torch.device("meta"):
            found = call(local(group, input), target, process_group=group)
        torch.testing.assert_close(found, expected)


def test_another_default_device(ranks: Ranks) -> None:
    """It is none of what ranks tell each other."""
    ranks.run(2, of_another_default_device)


def test_shapes(ranks: Ranks) -> None:
    ranks.run(3, of_shapes)


def of_one_rank_with_all(group: Any) -> None:
    draw = Draw(6, CLASSES, seed=17)
    input = draw.input()
    mine = (input if dist.get_rank(group) == 1 else input[:, :0]).clone().requires_grad_()
    scale = torch.ones(CLASSES, dtype=torch.float64, requires_grad=True)
    target = draw.labels()
    for tables in (Perturbation(scale=scale), Perturbation(scale=scale[: mine.shape[1]])):
        loss = LF.cross_entropy(mine, target, process_group=group, perturbation=tables)
        torch.testing.assert_close(loss, LF.cross_entropy(input, target))
        grad, of_scale = torch.autograd.grad(loss, (mine, scale), allow_unused=True)
        assert grad.shape == mine.shape
        assert of_scale is not None


def test_one_rank_has_all_classes(ranks: Ranks) -> None:
    ranks.run(2, of_one_rank_with_all)


# -- autograd ------------------------------------------------------------------------------------------


def of_autograd(group: Any) -> None:
    draw = Draw(6, CLASSES, seed=18)
    input, target = draw.input().float(), draw.labels()
    keywords: dict[str, Any] = {"process_group": group}
    mine = local(group, input).clone().requires_grad_()
    loss = LF.cross_entropy(mine, target, **keywords)
    first = torch.autograd.grad(loss, mine, torch.tensor(0.3), retain_graph=True)[0]
    assert first.equal(torch.autograd.grad(loss, mine, torch.tensor(0.3), retain_graph=True)[0])
    (grad,) = torch.autograd.grad(loss, mine, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()
    # nothing is kept, nothing asked for, where no gradient is wanted
    assert not LF.cross_entropy(mine.detach(), target, **keywords).requires_grad
    with torch.no_grad():
        assert not LF.cross_entropy(mine, target, **keywords).requires_grad
    # over the logits, which must be nobody's parameter
    product = mine * 1.0
    LF.cross_entropy(product, target, gradient="inplace", **keywords).backward()
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad, torch.autograd.grad(loss, mine)[0])
    # a frozen rank's logits still get no gradient of others; checkpoints find the same again
    mine.grad = None
    again = torch.utils.checkpoint.checkpoint(
        lambda x: LF.cross_entropy(x, target, **keywords), mine, use_reentrant=False
    )
    again.backward(torch.tensor(0.3))
    assert mine.grad.equal(first)
    # ignored rows hear of no upstream
    target[2] = -100
    up = torch.ones(6)
    up[2], up[3] = torch.nan, torch.inf
    rows = LF.cross_entropy(mine, target, reduction="none", **keywords)
    (grad,) = torch.autograd.grad(rows, mine, up)
    assert not grad[2].any()
    assert grad[[0, 1, 4, 5]].isfinite().all()


def test_autograd(ranks: Ranks) -> None:
    ranks.run(2, of_autograd)


def bits(group: Any, input: Tensor, target: Tensor, steps: Tensor) -> list[bytes]:
    mine = local(group, input).clone().requires_grad_()
    loss = LF.lpl_cross_entropy(mine, target, steps, step_size=0.2, process_group=group)
    (grad,) = torch.autograd.grad(loss, mine)
    return [loss.detach().numpy().tobytes(), grad.numpy().tobytes()]


def test_repeats_give_the_same_bits(ranks: Ranks) -> None:
    draw = Draw(12, 600, seed=19)
    steps = torch.arange(600) % 9 - 4
    arguments = draw.input().float(), draw.labels() % 5, steps
    first = ranks.run(4, bits, *arguments)
    assert len({loss for loss, _ in first}) == 1  # on all ranks
    for _ in range(9):
        assert ranks.run(4, bits, *arguments) == first


# -- what is refused, on all ranks alike -----------------------------------------------------------------


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    raise AssertionError("no error")


def said(group: Any, name: str) -> str:
    """The error of a bad call, in words."""
    rank, draw = dist.get_rank(group), Draw(6, CLASSES, seed=20)
    input, target = local(group, draw.input()), draw.labels()
    keywords: dict[str, Any] = {"process_group": group}
    steps: Any = None
    mine = here(group)
    if name == "rows":
        input, target = (input, target) if rank else (input[:4], target[:4])
    elif name == "dtype":
        input = input.float() if rank else input
    elif name == "options":
        keywords["z_loss"] = 0.5 * rank
    elif name == "reduction":
        keywords["reduction"] = ("sum", "mean")[rank]
    elif name == "labels":
        target = (target + rank) % CLASSES
    elif name == "range":
        target = target + CLASSES
    elif name == "backend":
        keywords["backend"] = ("reference", "cpp")[rank]
    elif name == "meta":
        input = input if rank else input.to("meta")
        target = target if rank else target.to("meta")
    elif name == "choice":
        steps = fails_on_one(rank, error=True)
    elif name == "other choice":
        steps = fails_on_one(rank, error=False)
    elif name == "one rank's argument":
        keywords["phi"] = "log" if rank else "lag"
    elif name == "given or not":
        keywords["weight"] = torch.ones(CLASSES) if rank else None
    elif name == "table":
        keywords["weight"] = torch.ones(CLASSES - 1) if rank else torch.ones(CLASSES)
    elif name == "whole and part":
        length = CLASSES if rank else mine.stop - mine.start
        keywords["perturbation"] = Perturbation(offset=torch.zeros(length))
    elif name == "no classes":
        input = input[:, :0]
    elif name == "function":
        steps = torch.ones(CLASSES, dtype=torch.int64) if rank else None
    elif name == "requires grad":
        input = input.requires_grad_(rank == 0)
    elif name == "sweep":
        keywords["gradient"] = "sweep"
    elif name == "through":
        steps = torch.ones(CLASSES, dtype=torch.int64)
        keywords["through_perturbation"] = True
    elif name == "learnable weight":
        keywords["weight"] = torch.ones(CLASSES, requires_grad=True)
    elif name == "rows by class":
        keywords["perturbation"] = Perturbation(rows=torch.zeros(CLASSES, CLASSES))
    elif name == "torch.func":
        return error_of(lambda: torch.func.grad(LF.cross_entropy)(input, target, **keywords))
    if steps is None:
        return error_of(lambda: LF.cross_entropy(input, target, **keywords))
    return error_of(lambda: LF.lpl_cross_entropy(input, target, steps, step_size=0.1, **keywords))


def fails_on_one(rank: int, error: bool) -> Callable[[Tensor], Tensor]:
    def choose(losses: Tensor) -> Tensor:
        if rank and error:
            raise RuntimeError("no choice")
        return torch.full((CLASSES,), 1 + rank)

    return choose


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "rows": "rows of input must be the same on all ranks, but differs: 4 on rank 0, 6 on rank 1",
        "dtype": "dtype of input.*torch.float64 on rank 0, torch.float32 on rank 1",
        "options": "z_loss must be the same on all ranks, but differs: 0.0 on rank 0, 0.5 on rank 1",
        "reduction": "reduction must be the same.*'sum' on rank 0, 'mean' on rank 1",
        "labels": "target .its numbers. must be the same",
        "range": "target .* is out of range: expected 0 <= target < 17",
        "one rank's argument": "phi",
        "backend": "backend must be the same.*'reference' on rank 0, 'cpp' on rank 1",
        "meta": "meta",
        "choice": "no choice",
        "other choice": "steps: what the function chose on rank 1 is not as on rank 0",
        "given or not": "weight: given or not must be the same.*False on rank 0, True on rank 1",
        "table": "weight: expected all 17 classes on every rank, or .* 5 on rank 0, which has 17",
        "whole and part": "offset: expected all 17 classes",
        "no classes": "at least one class on some rank",
        "function": "function must be the same.*cross_entropy on rank 0, lpl_cross_entropy on rank 1",
        "requires grad": "input: requires grad or not must be the same",
        "sweep": "gradient: .sweep.",
        "through": "through_perturbation: not beside process_group",
        "learnable weight": "weight: requires grad",
        "rows by class": "rows: beside process_group they need a row_index",
        "torch.func": "torch.func",
    }.items(),
)
def test_one_clear_error_on_every_rank(ranks: Ranks, name: str, words: str) -> None:
    for message in ranks.run(2, said, name):
        assert re.search(words, message), message


def outside(group: Any) -> str:
    """What new_group gives to who is no member."""
    other = dist.GroupMember.NON_GROUP_MEMBER
    arguments = torch.zeros(2, 3), torch.tensor([0, 1])
    return error_of(lambda: LF.cross_entropy(*arguments, process_group=other))


def test_a_group_without_this_rank(ranks: Ranks) -> None:
    for rank, message in enumerate(ranks.run(2, outside)):
        assert f"rank {rank} is not in this group" in message


def test_what_is_no_group(ranks: Ranks) -> None:
    with pytest.raises(TypeError, match="expected a ProcessGroup"):
        LF.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), process_group=object())
    for message in ranks.run(1, no_group):
        assert "expected a ProcessGroup" in message


def no_group(group: Any) -> str:
    arguments = torch.zeros(2, 3), torch.tensor([0, 1])
    return error_of(lambda: LF.cross_entropy(*arguments, process_group="world"))


def alone(group: Any) -> bool:
    """A group of one is as none."""
    draw = Draw(6, CLASSES, seed=21)
    input, target = draw.input().float(), draw.labels()
    with watched() as sent:
        found = LF.cross_entropy(input, target, process_group=group)
    assert not sent
    return found.equal(LF.cross_entropy(input, target))


def test_a_group_of_one(ranks: Ranks) -> None:
    assert ranks.run(1, alone) == [True]


# -- DTensor ---------------------------------------------------------------------------------------------


def of_dtensor(group: Any) -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = DeviceMesh.from_group(group, "cpu")
    draw = Draw(6, CLASSES, seed=22)
    input, target, offset = draw.input(), draw.labels(), draw.normal(CLASSES)
    steps = torch.arange(CLASSES) % 5 - 2
    for keywords, tables in (
        ({}, None),
        ({"reduction": "none"}, None),
        ({"weight": offset.exp()}, Perturbation(offset=offset, temperature=0.7)),
    ):
        for call, extra in ((LF.cross_entropy, ()), (LF.lpl_cross_entropy, (steps,))):
            more: dict[str, Any] = {"step_size": 0.2} if extra else {}
            whole = input.clone().requires_grad_()
            expected = call(whole, target, *extra, perturbation=tables, **keywords, **more)
            expected.sum().backward()
            leaf = distribute_tensor(input, mesh, [Shard(1)]).requires_grad_()
            spread = tables and replace(tables, offset=distribute_tensor(offset, mesh, [Shard(0)]))
            labels = distribute_tensor(target, mesh, [Replicate()])
            loss = call(leaf, labels, *extra, perturbation=spread, **keywords, **more)
            assert isinstance(loss, DTensor)
            torch.testing.assert_close(loss.to_local(), expected)
            loss.sum().backward()
            assert isinstance(leaf.grad, DTensor)
            torch.testing.assert_close(leaf.grad.full_tensor(), whole.grad)
    leaf = distribute_tensor(input, mesh, [Shard(1)])
    for make in (losses.LDAMLoss, losses.LPLLoss):
        criterion = make(list(range(CLASSES, 0, -1)))
        torch.testing.assert_close(criterion(leaf, target).to_local(), criterion(input, target))
    margin = losses.CosFaceLoss(8.0, 0.2)
    torch.testing.assert_close(margin(leaf, target).to_local(), margin(input, target))
    with pytest.raises(ValueError, match="classes are sharded"):
        LF.cross_entropy(distribute_tensor(input, mesh, [Shard(0)]), target)
    with pytest.raises(ValueError, match="classes are sharded"):
        LF.cross_entropy(distribute_tensor(input, mesh, [Replicate()]), target)
    whole = distribute_tensor(torch.ones(6, CLASSES), mesh, [Replicate()])
    for name, refused in (
        ("input", lambda: LF.binary_cross_entropy_with_logits(whole, torch.ones(6, CLASSES))),
        ("target", lambda: LF.binary_cross_entropy_with_logits(input, whole)),
        ("target", lambda: LF.cross_entropy(input, labels)),
        ("weight", lambda: LF.cross_entropy(input, target, whole[0])),
    ):
        with pytest.raises(TypeError, match=f"^{name}: a DTensor is not supported"):
            refused()


def test_dtensors_need_no_word(ranks: Ranks) -> None:
    ranks.run(3, of_dtensor)


# -- torch.compile, and ranks that die ---------------------------------------------------------------------


def of_compile(group: Any) -> None:
    """What is compiled around it breaks there, and is right."""
    draw = Draw(6, CLASSES, seed=23)
    mine, target = local(group, draw.input()), draw.labels()

    def step(x: Tensor) -> Tensor:
        return LF.cross_entropy(x * 2, target, process_group=group) * 3

    compiled = torch.compile(step, backend="aot_eager")
    leaf = mine.clone().requires_grad_()
    again = mine.clone().requires_grad_()
    step(leaf).backward()
    compiled(again).backward()
    assert again.grad is not None
    assert again.grad.equal(leaf.grad)


def test_compiled_around(ranks: Ranks) -> None:
    ranks.run(2, of_compile)


def dies(group: Any) -> str:
    draw = Draw(6, CLASSES, seed=24)
    if dist.get_rank(group) == 1:
        return "gone"  # does not come, as after an error of its own
    mine, target = local(group, draw.input()), draw.labels()
    return error_of(lambda: LF.cross_entropy(mine, target, process_group=group))


def test_a_rank_that_does_not_come() -> None:
    """The others end in an error within the group's timeout."""
    ranks = Ranks(2, timeout=3)
    try:
        message, _ = ranks.run(2, dies)
        assert re.search("[Tt]imed? ?out", message), message
    finally:
        ranks.close()
