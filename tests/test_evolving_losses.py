"""Losses that evolve: their stage, in half precision, in one graph, on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Draw
from torch import Tensor, nn

from lpl_fused import losses

CLASSES, GROUPS = 5, 3
COUNTS = [100, 50, 20, 5, 1]
Cast = Callable[[Tensor], Tensor]
Step = Callable[[nn.Module, int, Cast], Tensor]


def batch(t: int, cast: Cast = Tensor.float, n: int = 12) -> tuple[Tensor, Tensor]:
    draw = Draw(n, CLASSES, seed=t)
    return cast(draw.input()), draw.ignoring()


def plain(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    logits, target = batch(t, cast)
    return loss(logits.requires_grad_(), target)  # type: ignore[no-any-return]


def grouped(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    logits, target = batch(t, cast)
    return loss(logits.requires_grad_(), target, torch.arange(len(target)) % GROUPS)  # type: ignore[no-any-return]


def influenced(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    loss.set_epoch(t // 2)
    logits, target = batch(t, cast)
    return loss(logits.requires_grad_(), target, Draw(len(target), 1, t).uniform(len(target)))  # type: ignore[no-any-return]


def staged(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    if t == 2:
        loss.set_epoch(3)
    return plain(loss, t, cast)


def difficult(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    value = plain(loss, t, cast)
    if t % 2:
        loss.update(Draw(1, CLASSES, t).uniform(CLASSES))
    return value


def constrained(loss: nn.Module, t: int, cast: Cast = Tensor.float) -> Tensor:
    value = plain(loss, t, cast)
    loss.observe(batch(t + 100, cast)[0])
    if t % 2:  # saved in the middle of an epoch, too
        loss.update()
    return value


def running_lpl() -> losses.LPLLoss:
    return losses.LPLLoss(COUNTS, split="balanced", statistics="ema", reduction="none")


EVOLVING: dict[str, tuple[Callable[[], nn.Module], Step]] = {
    "absgd": (lambda: losses.ABSGDLoss(0.5, gamma=0.3, bias_correction=True), plain),
    "absgd, two stages": (lambda: losses.ABSGDLoss(-1.0, start_epoch=3), staged),
    "absgd over lpl": (lambda: losses.ABSGDLoss(1.0, running_lpl(), gamma=0.3), plain),
    "group dro": (lambda: losses.GroupDROLoss([50, 30, 20], step_size=0.3), grouped),
    "group cvar": (lambda: losses.GroupDROLoss([50, 30, 20], cvar=0.4), grouped),
    "cdb": (lambda: losses.CDBLoss(CLASSES), difficult),
    "ib": (lambda: losses.IBLoss(COUNTS, start_epoch=2), influenced),
    "cals": (lambda: losses.CALSLoss(CLASSES, margin=1.0, rho_every=1), constrained),
}


def test_the_stage_is_part_of_the_state() -> None:
    for make in (lambda: losses.ABSGDLoss(start_epoch=3), lambda: losses.IBLoss(start_epoch=3)):
        loss, again = make(), make()
        loss.set_epoch(3)
        again.load_state_dict(loss.state_dict())
        assert again.started and again.epoch == 3


def test_a_state_of_the_model_alone_leaves_the_loss_s_weight() -> None:
    """Of before the weight was assigned: there is none. Of no loss at all: it stays."""
    model, loss = nn.Linear(2, CLASSES), losses.LDAMLoss(COUNTS)
    both = nn.ModuleList([model, loss])
    before = both.state_dict()
    loss.weight = torch.ones(CLASSES)
    both.load_state_dict(nn.ModuleList([model]).state_dict(), strict=False)
    assert loss.weight is not None
    with pytest.raises(RuntimeError, match=r"1\.weight"):
        both.load_state_dict(nn.ModuleList([model]).state_dict())
    both.load_state_dict(before)
    assert loss.weight is None


RESTING: dict[str, tuple[Callable[[], nn.Module], Step]] = {
    "mbls": (lambda: losses.MbLSLoss(0.5, 1.0), plain),
    "lade": (lambda: losses.LADELoss(COUNTS), plain),
    "bayias": (lambda: losses.BayiasLoss(COUNTS), plain),
    "label-aware": (lambda: losses.LabelAwareSmoothingLoss(COUNTS), plain),
}


@pytest.mark.parametrize("name", EVOLVING | RESTING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(name: str, dtype: torch.dtype) -> None:
    """The loss is that of the rounded logits in float32, the gradient has the logits' dtype."""
    make, step = (EVOLVING | RESTING)[name]
    low, exact = make(), make()
    for t in range(4):
        seen: list[Tensor] = []  # the logits come first

        def cast(u: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(u.to(dtype))
            return seen[-1]

        value, truth = step(low, t, cast), step(exact, t, lambda u: u.to(dtype).double())
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), truth, rtol=2e-5, atol=1e-6)
        (grad,) = torch.autograd.grad(value, seen[0])
        assert grad.dtype == dtype and grad.isfinite().all() and grad.any()


@pytest.mark.parametrize("name", EVOLVING | RESTING)
def test_compiles_in_one_graph(name: str) -> None:
    """fullgraph: nothing in the step needs Python's help; the state evolves all the same."""
    make, _ = (EVOLVING | RESTING)[name]
    eager, compiled = make(), make()
    extra = {
        "group": torch.arange(12) % GROUPS,
        "ib": torch.ones(12),
    }
    arguments = [value for key, value in extra.items() if name.startswith(key)]
    for loss in (eager, compiled):
        if hasattr(loss, "set_epoch"):
            loss.set_epoch(5)
    run = torch.compile(compiled, backend="eager", fullgraph=True)
    for t in range(3):
        logits, target = batch(t)
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        one, two = eager(a, target, *arguments), run(b, target, *arguments)
        torch.testing.assert_close(one, two)
        one.backward()
        two.backward()
        torch.testing.assert_close(a.grad, b.grad)
    for (key, one), two in zip(eager.named_buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=key)


def rows_of(reduction: str = "none") -> losses.CrossEntropyLoss:
    return losses.CrossEntropyLoss(reduction=reduction, backend="reference")


ANYWHERE: dict[str, Callable[[], nn.Module]] = {
    "absgd": lambda: losses.ABSGDLoss(0.5, rows_of(), bias_correction=True),
    "group dro": lambda: losses.GroupDROLoss([50, 30, 20], rows_of()),
    "group cvar": lambda: losses.GroupDROLoss([50, 30, 20], rows_of(), cvar=0.4),
    "cdb": lambda: losses.CDBLoss(CLASSES, backend="reference"),
    "ib": lambda: losses.IBLoss(COUNTS, start_epoch=0, backend="reference"),
    "cals": lambda: losses.CALSLoss(CLASSES, rows_of("mean")),
    "mbls": lambda: losses.MbLSLoss(base=rows_of("mean")),
    "lade": lambda: losses.LADELoss(COUNTS, backend="reference"),
    "bayias": lambda: losses.BayiasLoss(COUNTS, backend="reference"),
    "label-aware": lambda: losses.LabelAwareSmoothingLoss(COUNTS, backend="reference"),
}


@pytest.mark.parametrize("name", ANYWHERE)
def test_no_step_looks_at_a_value(name: str) -> None:
    """On the meta device there are none: a host synchronisation, or a table left on the CPU, fails."""
    loss = ANYWHERE[name]().to("meta")
    logits = torch.randn(12, CLASSES, device="meta", requires_grad=True)
    target = torch.zeros(12, dtype=torch.int64, device="meta")
    extra = {"group": target, "ib": torch.ones(12, device="meta")}
    value = loss(logits, target, *[v for key, v in extra.items() if name.startswith(key)])
    value.backward()
    assert logits.grad is not None and logits.grad.device.type == "meta"
    if name == "cals":
        loss.observe(logits.detach())
