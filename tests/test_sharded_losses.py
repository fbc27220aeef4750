"""Losses whose classes are on several ranks: every one is as on one rank, or refuses by name."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from linear_cases import HAVE, REFUSE, C, D
from ranks import Ranks, alone
from test_sharded import error_of, of_all
from torch import Tensor, nn

from lpl_fused import losses

N = 18
# without the group: what can not have it from its constructor, or only in `eval()`
LEFT_OUT = {"lpl-eval": "the authors' script in training"}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def here(group: Any) -> slice:
    """This rank's of 5 classes; the second has none."""
    ends = {2: [0, 2, C], 3: [0, 2, 2, C]}[dist.get_world_size(group)]
    return slice(*ends[dist.get_rank(group) :][:2])


def made(make: Callable[[], nn.Module], group: Any) -> nn.Module:
    torch.manual_seed(1)
    loss = make()
    holder: Any = loss if isinstance(loss, losses.CrossEntropyLoss) else loss.base
    holder.process_group = group
    if hasattr(loss, "data_group"):  # the rows are the same on all ranks
        loss.data_group = alone[dist.get_rank()]
    return loss


def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(N, D, generator=generator, dtype=torch.float64)
    head = torch.randn(C, D, generator=generator, dtype=torch.float64)
    target = torch.randint(C, (N,), generator=generator)
    target[4] = -100
    return features, head, target


def walk(group: Any, names: list[str]) -> dict[str, str]:
    wrong = {}
    for name in names:
        try:
            same(group, name)
        except Exception as error:
            wrong[name] = repr(error)
    return wrong


def same(group: Any, name: str) -> None:
    features, head, target = data()
    single, shared = made(HAVE[name], None), made(HAVE[name], group)
    whole, part = (features @ head.t()), (features @ head[here(group)].t())
    layer, mine = head.clone().requires_grad_(), head[here(group)].clone().requires_grad_()
    for step in range(2):  # what evolves evolves alike
        of_whole = (whole + step).requires_grad_()
        of_part = (part + step).requires_grad_()
        for of, (expected, found) in {
            "logits": (single(of_whole, target), shared(of_part, target)),
            "layer": (
                single.linear(features, layer, target),  # type: ignore[operator]
                shared.linear(features, mine, target),  # type: ignore[operator]
            ),
        }.items():
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6, msg=of)
            first, second = (of_whole, of_part) if of == "logits" else (layer, mine)
            (of_all_of,) = torch.autograd.grad(expected.sum(), first)
            (of_mine,) = torch.autograd.grad(found.sum(), second)
            dim = 1 if of == "logits" else 0
            joined = of_all(group, of_mine, dim)
            torch.testing.assert_close(joined, of_all_of, rtol=1e-6, atol=1e-8, msg=of)
    for key, value in single.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[key], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_losses_are_as_on_one_rank(ranks: Ranks, world: int) -> None:
    wrong = ranks.run(world, walk, [name for name in HAVE if name not in LEFT_OUT])
    assert not any(wrong), wrong


def refusals(group: Any) -> dict[str, str]:
    said = {}
    for name, make in REFUSE.items():
        loss = make()
        if not isinstance(loss, losses.CrossEntropyLoss):
            said[name] = error_of(lambda loss=loss: type(loss)(process_group=group))
            continue
        said[name] = error_of(lambda loss=loss: setattr(loss, "process_group", group))
        if name == "lpl-through":
            loss.process_group = None
    return said


def test_others_refuse_by_name(ranks: Ranks) -> None:
    for said in ranks.run(2, refusals):
        for name, words in said.items():
            assert "process_group" in words or "required positional" in words, (name, words)


def test_a_loss_says_whether_it_has_linear() -> None:
    for name, make in HAVE.items():
        assert make().has_linear, name  # type: ignore[union-attr]
    for name, make in REFUSE.items():
        assert not make().has_linear, name  # type: ignore[union-attr]


def of_modules(group: Any) -> None:
    loss = losses.LDAMLoss([9, 8, 7, 6, 5], process_group=group)
    again = copy.deepcopy(loss)
    assert again.process_group is group
    buffer = io.BytesIO()
    torch.save(loss.state_dict(), buffer)
    assert "process_group" not in loss.state_dict()
    loss.process_group = None
    assert loss.process_group is None
    with pytest.raises(TypeError, match="process_group: expected a ProcessGroup"):
        loss.process_group = "world"
    with pytest.raises(ValueError, match="ArcFaceLoss looks at the logits of all classes"):
        losses.ArcFaceLoss(process_group=group)
    with pytest.raises(ValueError, match="LPLLoss looks at the logits of all classes"):
        losses.LPLLoss([9, 8, 7], variant="official-long-tail-10", process_group=group)


def test_modules(ranks: Ranks) -> None:
    ranks.run(2, of_modules)


def bad_calls(group: Any) -> dict[str, str]:
    """What every rank hears where one alone calls a loss with what is wrong."""
    features, head, target = data()
    rank, head = dist.get_rank(group), head[here(group)]
    counts, said = [9, 8, 7, 6, 5], {}
    wrong = head[:, :-1] if rank else head

    def fails(logits: Tensor) -> None:
        raise ValueError("perturbation: fails")

    for make in (losses.LDAMLoss, losses.LPLLoss):
        loss: Any = make(counts, process_group=group)
        name = make.__name__
        said[f"{name}: linear_weight"] = error_of(lambda: loss.linear(features, wrong, target))  # noqa: B023
        if rank:
            loss.perturbation = fails
        said[f"{name}: perturbation"] = error_of(lambda: loss(features @ head.t(), target))  # noqa: B023
    dense = torch.full((N, len(head)), 0.2, dtype=torch.float64) if rank else target
    learned: Any = losses.LPLLoss(counts, process_group=group)
    said["target"] = error_of(lambda: learned(features @ head.t(), dense))
    margin: Any = losses.MbLSLoss(base=losses.CrossEntropyLoss(process_group=group))
    said["MbLSLoss: linear_weight"] = error_of(lambda: margin.linear(features, wrong, target))
    # and all is well again
    found = learned.linear(features, head, target)
    torch.testing.assert_close(found, losses.LPLLoss(counts)(features @ data()[1].t(), target))
    return said


def test_what_is_wrong_before_a_function_is_called_is_heard_by_all(ranks: Ranks) -> None:
    for said in ranks.run(3, bad_calls):
        assert len(said) == 6
        for name, words in said.items():
            assert name.rpartition(": ")[2] in words, (name, words)


# -- torch.distributed.checkpoint ------------------------------------------------------------------


def state(group: Any, seed: int) -> dict[str, Any]:
    """A loss that evolves, and a classifier that is sharded over its classes."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    torch.manual_seed(seed)
    loss = losses.LPLLoss([9, 8, 7, 6, 5], split="balanced", statistics="ema")
    loss.data_group = alone[dist.get_rank()]
    for _ in range(2):
        loss(torch.randn(N, C), torch.randint(C, (N,)))
    mesh = DeviceMesh.from_group(group, "cpu")
    head = distribute_tensor(torch.randn(C, D), mesh, [Shard(0)])
    assert isinstance(head, DTensor)
    return {"loss": loss.state_dict(), "head": head}


def save(group: Any, folder: str) -> tuple[Any, Tensor]:
    import torch.distributed.checkpoint as checkpoint

    found = state(group, seed=3)
    checkpoint.save(found, checkpoint_id=folder, process_group=group)
    return {k: v.clone() for k, v in found["loss"].items()}, found["head"].full_tensor()


def load(group: Any, folder: str) -> tuple[Any, Tensor]:
    import torch.distributed.checkpoint as checkpoint

    found = state(group, seed=4 + dist.get_rank())
    checkpoint.load(found, checkpoint_id=folder, process_group=group)
    fresh = losses.LPLLoss([9, 8, 7, 6, 5], split="balanced", statistics="ema")
    fresh.load_state_dict(found["loss"])
    return {k: v.clone() for k, v in fresh.state_dict().items()}, found["head"].full_tensor()


@pytest.mark.filterwarnings("ignore")
def test_what_two_ranks_save_one_and_three_load(ranks: Ranks, tmp_path: Any) -> None:
    saved, *_ = ranks.run(2, save, str(tmp_path))
    for world in (1, 3):
        for loaded in ranks.run(world, load, str(tmp_path)):
            assert loaded[0].keys() == saved[0].keys()
            for name, value in saved[0].items():
                assert value.equal(loaded[0][name])
            assert loaded[1].equal(saved[1])
