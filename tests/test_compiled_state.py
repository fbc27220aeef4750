"""Losses that evolve, compiled: several steps of changing batches give eager's losses, gradients and
state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lpl_fused import losses

C = 10
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "eqlv2": lambda: losses.EQLv2Loss(C),
    "seesaw": lambda: losses.SeesawLoss(C),
    "absgd": lambda: losses.ABSGDLoss(),
}


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_steps_are_eager_s(name: str, compiler: str) -> None:
    torch._dynamo.reset()
    eager, inner = LOSSES[name](), LOSSES[name]()
    compiled = torch.compile(inner, backend=compiler)
    for step, rows in enumerate((8, 8, 5, 8)):
        made = torch.Generator().manual_seed(step)
        logits = torch.randn(rows, C, generator=made)
        target = torch.randint(0, C, (rows,), generator=made)
        found = []
        for loss in (eager, compiled):
            leaf = logits.clone().requires_grad_()
            value = loss(leaf, target)
            found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        torch.testing.assert_close(found[1], found[0])
        for key, state in eager.state_dict().items():
            if isinstance(state, Tensor):
                torch.testing.assert_close(inner.state_dict()[key], state, msg=key)
