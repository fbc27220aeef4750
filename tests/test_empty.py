"""A mean over nothing: nan, as in torch, or 0 with gradients of 0, by the caller's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import Draw
from compositions import COUNTS
from every_loss import SUBJECTS, Subject, nothing_counts
from ranks import Ranks
from torch import Tensor

from lpl_fused import MarginPenalty, MixedTarget, losses
from lpl_fused import functional as LF
from lpl_fused.losses.cross_entropy import CrossEntropyLoss

N, C, D = 6, 9, 4
DRAW = Draw(N, C, seed=5)
IGNORED = torch.full((N,), -100)
STEPS = DRAW.steps()
NOTHING, ZEROS = torch.zeros(N), torch.zeros(C)
# targets and keywords of which nothing counts
EMPTY: dict[str, tuple[Any, dict[str, Any]]] = {
    "labels": (IGNORED, {}),
    "smoothed": (IGNORED, {"label_smoothing": 0.1, "z_loss": 1e-2}),
    "mixed": (MixedTarget(IGNORED, IGNORED, 0.3), {}),
    "class weights of 0": (DRAW.labels(), {"weight": ZEROS}),
    "sample weights of 0": (DRAW.labels(), {"sample_weight": NOTHING}),
    "dense, weights of 0": (DRAW.dense(), {"sample_weight": NOTHING}),
    "penalty": (IGNORED, {"penalty": MarginPenalty(margin=1.0, strength=0.5)}),
}


def functions(name: str) -> Iterator[tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]]:
    """(name, loss of leaves and target, leaves)."""
    input, hidden = DRAW.input().float(), DRAW.normal(N, D).float()
    weight, bias = DRAW.normal(C, D).float(), DRAW.normal(C).float()

    def linear(hidden: Tensor, layer: Tensor, bias: Tensor, target: Any, **more: Any) -> Tensor:
        return LF.linear_cross_entropy(hidden, layer, target, linear_bias=bias, **more)

    yield "logits", LF.cross_entropy, (input,)
    yield "layer", linear, (hidden, weight, bias)
    if name == "mixed" or "dense" in name or "penalty" in name:
        return

    def lpl(input: Tensor, target: Tensor, **more: Any) -> Tensor:
        return LF.lpl_cross_entropy(input, target, STEPS, step_size=0.1, **more)

    def lpl_of_layer(hidden: Tensor, layer: Tensor, bias: Tensor, target: Any, **k: Any) -> Tensor:
        more = {"linear_bias": bias, "step_size": 0.1, **k}
        return LF.linear_lpl_cross_entropy(hidden, layer, target, STEPS, **more)

    yield "lpl", lpl, (input,)
    yield "lpl of a layer", lpl_of_layer, (hidden, weight, bias)


@pytest.mark.parametrize("name", EMPTY)
def test_a_mean_over_nothing(name: str, backend: str) -> None:
    target, keywords = EMPTY[name]
    for which, function, parts in functions(name):
        leaves = [part.clone().requires_grad_() for part in parts]
        plain = function(*leaves, target, backend=backend, **keywords)
        assert plain.isnan(), which
        loss = function(*leaves, target, backend=backend, empty="zero", **keywords)
        assert loss == 0, which
        for leaf, grad in zip(leaves, torch.autograd.grad(2 * loss, leaves), strict=True):
            assert grad.shape == leaf.shape
            assert (grad == 0).all(), which


@pytest.mark.parametrize("penalty", [None, MarginPenalty(margin=1.0, strength=0.5)])
def test_a_mean_over_something_is_what_it_was(backend: str, penalty: MarginPenalty | None) -> None:
    target, weight, shares = DRAW.ignoring(), DRAW.uniform(C), DRAW.uniform(N)
    keywords = {"weight": weight.float(), "sample_weight": shares.float(), "penalty": penalty}
    for which, function, parts in functions("penalty"):
        found = []
        for empty in ("nan", "zero"):
            leaves = [part.clone().requires_grad_() for part in parts]
            loss = function(*leaves, target, backend=backend, empty=empty, **keywords)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(found[1], found[0], msg=lambda m, w=which: f"{w}: {m}")


def test_no_rows_at_all() -> None:
    input = torch.zeros(0, C, requires_grad=True)
    loss = LF.cross_entropy(input, torch.zeros(0, dtype=torch.int64), empty="zero")
    assert loss == 0
    loss.backward()
    assert input.grad is not None


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_what_is_no_mean_stays(reduction: str) -> None:
    input, target = DRAW.input().float(), DRAW.ignoring()
    found = [
        LF.cross_entropy(input, target, reduction=reduction, empty=empty)
        for empty in ("nan", "zero")
    ]
    assert found[0].equal(found[1])


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match='empty: expected "nan" or "zero"'):
        LF.cross_entropy(DRAW.input(), IGNORED, empty="inf")
    with pytest.raises(ValueError, match="empty"):
        losses.CrossEntropyLoss(empty="0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty"):
        losses.LADELoss(COUNTS, empty="zero")


def of_cross_entropy() -> dict[str, Subject]:
    made = {name: subject.make() for name, subject in SUBJECTS.items()}
    return {
        name: SUBJECTS[name]
        for name, loss in made.items()
        if isinstance(loss, CrossEntropyLoss) and not isinstance(loss, losses.LADELoss)
    }


@pytest.mark.parametrize("name", of_cross_entropy())
def test_of_every_loss_of_the_family(name: str) -> None:
    subject = SUBJECTS[name]
    loss = subject.make()
    loss.reduction, loss.empty = "mean", "zero"  # type: ignore[assignment]
    found = subject.step(loss, nothing_counts(subject.batch(0)))
    assert found["loss"] == 0
    for key, value in found.items():
        if key.startswith("grad") or key in ("logits", "logit"):
            assert (value == 0).all(), key


@pytest.mark.parametrize("name", ["MbLSLoss", "CALSLoss"])
@pytest.mark.parametrize("fused", [True, False])
def test_a_base_says_it_for_its_wrapper(name: str, fused: bool) -> None:
    base: Any = losses.CrossEntropyLoss(empty="zero")
    if not fused:
        base = losses.TruncatedGCELoss(5, empty="zero")
        base.forward = lambda input, target: LF.cross_entropy(input, target, empty="zero")
    wrapped = {"MbLSLoss": losses.MbLSLoss(base=base), "CALSLoss": losses.CALSLoss(C, base)}[name]
    input = DRAW.input().float().requires_grad_()
    loss = wrapped(input, IGNORED)
    assert loss == 0
    assert (torch.autograd.grad(loss, input)[0] == 0).all()


def test_a_base_says_it_for_absgd() -> None:
    base = losses.CrossEntropyLoss(empty="zero", reduction="none")
    input = DRAW.input().float().requires_grad_()
    loss = losses.ABSGDLoss(None, base)(input, IGNORED)
    assert loss == 0
    assert (torch.autograd.grad(loss, input)[0] == 0).all()


def _on_a_rank(group: Any, target: Tensor, class_weight: Tensor | None) -> list[Tensor]:
    rank, world = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    mine = slice(rank * C // world, (rank + 1) * C // world)
    input = DRAW.input().float()[:, mine].requires_grad_()
    hidden = DRAW.normal(N, D).float().requires_grad_()
    weight = DRAW.normal(C, D).float()[mine].requires_grad_()
    own = None if class_weight is None else class_weight[mine]
    more: dict[str, Any] = {"weight": own, "empty": "zero", "process_group": group}
    steps = STEPS[mine]
    of_logits = [
        LF.cross_entropy(input, target, **more),
        LF.lpl_cross_entropy(input, target, steps, step_size=0.1, **more),
    ]
    of_layer = [
        LF.linear_cross_entropy(hidden, weight, target, **more),
        LF.linear_lpl_cross_entropy(hidden, weight, target, steps, step_size=0.1, **more),
    ]
    found = [loss.detach() for loss in (*of_logits, *of_layer)]
    for loss in of_logits:
        found.append(torch.autograd.grad(loss, input)[0].abs().sum())
    for loss in of_layer:
        found += [grad.abs().sum() for grad in torch.autograd.grad(loss, (hidden, weight))]
    return found


def _differ(group: Any) -> str:
    empty = "zero" if torch.distributed.get_rank(group) else "nan"
    input = torch.zeros(2, 3)
    try:
        LF.cross_entropy(input, torch.zeros(2, dtype=torch.int64), empty=empty, process_group=group)
    except ValueError as error:
        return str(error)
    return ""


def test_over_ranks() -> None:
    ranks = Ranks(2)
    try:
        for target, weight in ((IGNORED, None), (DRAW.labels(), ZEROS)):
            for found in ranks.run(2, _on_a_rank, target, weight):
                assert all(value == 0 for value in found)
        for said in ranks.run(2, _differ):
            assert "empty must be the same on all ranks" in said
            assert "'zero' on rank 1" in said
    finally:
        ranks.close()
