"""A layer whose classes are on several ranks: what they find together is what one finds alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import Draw
from ranks import Ranks
from test_sharded import error_of, here, of_all
from torch import Tensor

from benchmarks.collectives import watched
from lpl_fused import Focal, LogitClip, MixedTarget, Perturbation
from lpl_fused import functional as LF

N, CLASSES, D = 30, 17, 6


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = Draw(N, CLASSES, seed=31)
    target = draw.labels()
    target[::7] = -100
    features, weight = draw.normal(N, D), draw.normal(CLASSES, D)
    return features.to(dtype), weight.to(dtype), draw.normal(CLASSES).to(dtype), target


def tables() -> Perturbation:
    draw = Draw(N, CLASSES, seed=32)
    return Perturbation(offset=draw.normal(CLASSES), margin=draw.uniform(CLASSES), temperature=0.8)


KEYWORDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum", "normalizer": 7.0},
    "none": {"reduction": "none"},
    "statistics": {"gradient": "statistics"},
    "tables": {"perturbation": tables(), "weight": torch.linspace(0.1, 2, CLASSES)},
    "smoothed": {"label_smoothing": 0.1, "phi": Focal(2.0)},
    "clipped": {"norm": LogitClip(2.0), "z_loss": 1e-3},
    "lpl": {"steps": torch.arange(CLASSES) % 5 - 2, "step_size": 0.2},
    "lpl-none": {"steps": torch.arange(CLASSES) % 5 - 2, "step_size": 0.2, "reduction": "none"},
    "lpl-normalized": {"steps": torch.full((CLASSES,), 4), "step_size": 0.3, "normalize": True},
    "lpl-few": {"steps": torch.full((CLASSES,), 4), "step_size": 0.3, "labels": 2},
}


def call(arguments: tuple[Tensor, ...], keywords: dict[str, Any], **more: Any) -> Tensor:
    features, weight, bias, target = arguments
    keywords = {**keywords, **more, "linear_bias": bias}
    if labels := keywords.pop("labels", 0):
        target = target % labels
    if "steps" in keywords:
        return LF.linear_lpl_cross_entropy(features, weight, target, **keywords)
    return LF.linear_cross_entropy(features, weight, target, **keywords)


def same(group: Any, name: str, dtype: torch.dtype, memory: int | None) -> None:
    keywords, mine = KEYWORDS[name], here(group)
    features, weight, bias, target = layer(dtype)
    whole = [part.clone().requires_grad_() for part in (features, weight, bias)]
    parts = [features.clone(), weight[mine].clone(), bias[mine].clone()]
    parts = [part.requires_grad_() for part in parts]
    truth = [part.detach().double().requires_grad_() for part in whole]
    exact = call((*truth, target), {**keywords, "gradient": "auto"}, backend="reference")
    expected = call((*whole, target), keywords)
    found = call((*parts, target), keywords, process_group=group, chunk_memory=memory)
    up = torch.linspace(0.5, 1.5, exact.numel()).to(exact).reshape(exact.shape)
    of_truth = torch.autograd.grad(exact, truth, up)
    of_whole = torch.autograd.grad(expected, whole, up.to(expected.dtype))
    of_parts = list(torch.autograd.grad(found, parts, up.to(found.dtype)))
    of_parts[1:] = [of_all(group, grad, 0) for grad in of_parts[1:]]
    eps = torch.finfo(dtype).eps
    pairs = zip((found, *of_parts), (expected, *of_whole), (exact, *of_truth), strict=True)
    for value, plain, true in pairs:
        assert value.dtype == plain.dtype
        scale = float(true.abs().max())
        error = float((value.double() - true).abs().max())
        # as far off as the layer and its loss on one rank, or some roundings
        off = float((plain.double() - true).abs().max())
        assert error <= max(2 * off, 4 * eps * scale), (name, error, off, scale)


@pytest.mark.parametrize("memory", [None, 400], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("name", KEYWORDS)
def test_what_ranks_find_is_what_one_finds(ranks: Ranks, name: str, memory: int | None) -> None:
    ranks.run(3, same, name, torch.float64, memory)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(ranks: Ranks, dtype: torch.dtype, world: int) -> None:
    for name in ("plain", "none", "tables", "lpl"):
        ranks.run(world, same, name, dtype, 500)


def of_others(group: Any) -> None:
    """What learns, what is frozen, tokens in a grid, mixed targets, class probabilities."""
    mine = here(group)
    features, weight, _, target = layer()
    offset = torch.zeros(CLASSES, dtype=torch.float64, requires_grad=True)
    part = torch.zeros(mine.stop - mine.start, dtype=torch.float64, requires_grad=True)
    whole_loss = LF.linear_cross_entropy(
        features, weight, target, perturbation=Perturbation(offset=offset)
    )
    (expected,) = torch.autograd.grad(whole_loss, offset)
    for table, slice_ in ((offset, slice(None)), (part, mine)):
        loss = LF.linear_cross_entropy(
            features,
            weight[mine],
            target,
            perturbation=Perturbation(offset=table),
            process_group=group,
            chunk_memory=300,
        )
        (grad,) = torch.autograd.grad(loss, table)
        torch.testing.assert_close(grad, expected[slice_])
    # nothing that is frozen gets a gradient, or a word from other ranks
    frozen = weight[mine].clone().requires_grad_()
    loss = LF.linear_cross_entropy(features, frozen, target, process_group=group)
    with watched() as sent:
        loss.backward()
    assert not sent
    assert frozen.grad is not None
    grid, labels = features.reshape(5, 6, D), target.reshape(5, 6)
    lam = torch.full((5, 6), 0.3, dtype=torch.float64)
    mixed = MixedTarget(labels, labels.flip(0), lam)
    dense = torch.softmax(Draw(N, CLASSES, seed=33).normal(5, 6, CLASSES), -1)
    for goal, local_goal in ((labels, labels), (mixed, mixed), (dense, dense[..., mine])):
        for reduction in ("mean", "none"):
            expected_loss = LF.linear_cross_entropy(grid, weight, goal, reduction=reduction)
            found = LF.linear_cross_entropy(
                grid, weight[mine], local_goal, reduction=reduction, process_group=group
            )
            torch.testing.assert_close(found, expected_loss)
    nothing = LF.linear_cross_entropy(
        features[:0], weight[mine], target[:0], reduction="sum", process_group=group
    )
    assert nothing.item() == 0


def test_others(ranks: Ranks) -> None:
    ranks.run(3, of_others)


def of_chosen(group: Any) -> None:
    features, weight, _, target = layer()
    seen: list[Tensor] = []

    def choose(losses: Tensor) -> Tensor:
        seen.append(losses)
        return torch.full((CLASSES,), 3)

    arguments = {"step_size": 0.2, "normalize": True}
    expected = LF.linear_lpl_cross_entropy(features, weight, target, choose, **arguments)
    found = LF.linear_lpl_cross_entropy(
        features, weight[here(group)], target, choose, process_group=group, **arguments
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(seen[0], seen[1])


def test_steps_that_a_function_chooses(ranks: Ranks) -> None:
    ranks.run(2, of_chosen)


def collectives(group: Any, memory: int) -> tuple[int, int]:
    features, weight, _, target = layer()
    features.requires_grad_()
    with watched() as forward:
        loss = LF.linear_cross_entropy(
            features, weight[here(group)], target, process_group=group, chunk_memory=memory
        )
    with watched() as backward:
        loss.backward()
    return len(forward), len(backward)


def test_collectives(ranks: Ranks) -> None:
    """The agreement and one for each chunk; in the backward one for the features."""
    assert ranks.run(2, collectives, 1 << 20) == [(2, 1)] * 2
    rows = 25  # that count
    # the widest rank has 12 classes of 8 bytes
    assert ranks.run(2, collectives, 5 * 12 * 8) == [(1 + rows // 5, 1)] * 2


def refused(group: Any, name: str) -> str:
    features, weight, _, target = layer()
    rank, mine = dist.get_rank(group), here(group)
    keywords: dict[str, Any] = {"process_group": group}
    weight = weight[mine]
    if name == "features":
        features, weight = (features[:, :-1], weight[:, :-1]) if rank else (features, weight)
    elif name == "memory":
        keywords["chunk_memory"] = 500 + rank
    elif name == "one rank's memory":
        keywords["chunk_memory"] = 500 if rank else 0
    elif name == "weight":
        weight = weight[:, :-1] if rank else weight
    elif name == "grad":
        weight = weight.requires_grad_(rank == 0)
    elif name == "function" and rank:
        return error_of(lambda: LF.cross_entropy(features @ weight.t(), target, **keywords))
    elif name == "reference":
        keywords["backend"] = "reference"
    return error_of(lambda: LF.linear_cross_entropy(features, weight, target, **keywords))


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "features": "number of features must be the same",
        "memory": "chunk_memory must be the same.*500 on rank 0, 501 on rank 1",
        "one rank's memory": "chunk_memory: expected an int >= 1 or None, got 0",
        "weight": "linear_weight: expected shape",
        "grad": "linear_weight: requires grad or not",
        "function": "function must be the same.*linear_cross_entropy on rank 0, cross_entropy on",
        "reference": "needs a fused backend",
    }.items(),
)
def test_one_clear_error_on_every_rank(ranks: Ranks, name: str, words: str) -> None:
    for message in ranks.run(2, refused, name):
        assert re.search(words, message), message
