"""`loss.linear`: every loss has it, equal to the loss of the logits, or refuses it by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from linear_cases import COUNTS, HAVE, REFUSE, C, D, N
from torch import Tensor, nn

from lpl_fused import Perturbation, losses


def data() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    target = torch.randint(C, (3, N // 3))
    target[1, 2] = -100
    return torch.randn(3, N // 3, D, requires_grad=True), nn.Linear(D, C), target


def of_logits(loss: nn.Module, hidden: Tensor, head: nn.Linear, target: Tensor, **more: Any) -> Any:
    value = loss(head(hidden.reshape(-1, D)), target.reshape(-1), **more)
    return value.reshape(target.shape) if value.dim() else value


def test_none_is_forgotten() -> None:
    known = {type(make()) for make in (*HAVE.values(), *REFUSE.values())}
    every = {getattr(losses, name) for name in losses.__all__}
    assert known == {kind for kind in every if isinstance(kind, type)}


@pytest.mark.parametrize("chunk_memory", [None, 100])
@pytest.mark.parametrize("name", HAVE)
def test_equal_to_the_loss_of_logits(name: str, chunk_memory: int | None) -> None:
    torch.manual_seed(1)
    loss = HAVE[name]()
    other = copy.deepcopy(loss)
    hidden, head, target = data()
    leaves = (hidden, head.weight, head.bias)
    found = loss.linear(hidden, head.weight, target, head.bias, chunk_memory=chunk_memory)
    expected = of_logits(other, hidden, head, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)
    )
    for key, state in loss.state_dict().items():
        torch.testing.assert_close(state, other.state_dict()[key])


@pytest.mark.parametrize("name", ["la", "lpl"])
def test_what_comes_after_its_tables(name: str) -> None:
    hidden, head, target = data()
    after, loss = Perturbation(scale=torch.rand(C)), HAVE[name]()
    loss.reduction = "sum"
    more: dict[str, Any] = {"perturbation": after, "normalizer": 7.0}
    found = loss.linear(hidden, head.weight, target, head.bias, **more)
    torch.testing.assert_close(found, of_logits(loss, hidden, head, target, **more))


@pytest.mark.parametrize("name", REFUSE)
def test_refused_by_name(name: str) -> None:
    hidden, head, target = data()
    loss = REFUSE[name]()
    with pytest.raises(NotImplementedError, match=f"{type(loss).__name__} .* has no `linear`"):
        loss.linear(hidden, head.weight, target, head.bias)


def test_a_loss_of_ones_own_that_looks_at_logits_is_refused() -> None:
    class Own(losses.LogitAdjustedLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(2 * input, target)

    hidden, head, target = data()
    with pytest.raises(NotImplementedError, match="Own looks at the logits"):
        Own(COUNTS).linear(hidden, head.weight, target)


def test_bad_input_is_said_as_by_the_function() -> None:
    hidden, head, target = data()
    with pytest.raises(ValueError, match="linear_weight: expected shape"):
        losses.LDAMLoss(COUNTS).linear(hidden, head.weight.t(), target)
    with pytest.raises(ValueError, match="target: the learned perturbation needs class indices"):
        losses.LPLLoss(COUNTS).linear(hidden, head.weight, torch.rand(3, N // 3, C))
    with pytest.raises(ValueError, match="input: expected 4 classes"):
        losses.CALSLoss(4).linear(hidden, head.weight, target)


@pytest.mark.parametrize("name", ["ldam", "lpl-balanced"])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    hidden, head, target = data()
    loss = HAVE[name]()

    def step() -> Tensor:
        return loss.linear(hidden, head.weight, target, head.bias, chunk_memory=100)

    torch.testing.assert_close(
        torch.compile(step, fullgraph=True, backend="aot_eager")(), step(), rtol=0, atol=0
    )
