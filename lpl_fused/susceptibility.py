"""Susceptibility ζ: how fast a model would memorise noise, without a clean test set."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .arguments import Instance, Integer, Number, function, shown
from .distributed import all_sum, world_size
from .precision import devices_alone

Loss = Callable[[Tensor, Tensor], Tensor]


class Susceptibility(nn.Module):
    """Tracking memorisation (Forouzesh, Sedghi, Thiran, 2023): ζ(t) = (1/t)·Σ_{τ≤t} r_τ,

        r = Φ(w, S) − Φ(w', S)

    where S is one batch with labels drawn uniformly, w the weights and w' those after one step of
    the optimizer on S. Needs no labels. Of two models that fit the training set alike the one with
    the lower ζ generalises better. Call `probe` once per epoch, before it, with another batch each
    time. Cost: two forward passes and one backward.

    Args:
        num_classes: C, of the random labels.
        loss: Φ(logits, labels), 0-dim; default `functional.cross_entropy`.
        seed: of the random labels. The t-th probe draws from seed + t: a run can be repeated, and
            continued from `state_dict`. (The authors' code is seeded by the clock.)

    State: `total`, `first`, `last`, `probes`. Under torch.distributed every rank must call `probe`,
    each with a batch of its own, the labels of which differ by rank; r is averaged over ranks.

    Raises:
        ValueError: `num_classes` below 1.

    Examples:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> memory = lpl_fused.susceptibility.Susceptibility(num_classes=3)
        >>> for epoch in range(2):  # beside the training, which is left as it is
        ...     _ = memory.probe(model, optimizer, torch.randn(8, 4))
        >>> memory.zeta > 0
        True
    """

    total: Tensor
    first: Tensor
    last: Tensor
    probes: Tensor

    def __init__(
        self, num_classes: int, loss: Loss = functional.cross_entropy, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.num_classes = Integer(least=1)("num_classes", num_classes)
        self.loss, self.seed = function("loss", loss), Integer()("seed", seed)
        for name in ("total", "first", "last"):
            self.register_buffer(name, torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("probes", torch.tensor(0))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Susceptibility:
        super()._apply(devices_alone(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def zeta(self) -> float:
        """The running mean of r; nan before the first probe."""
        return float(self.total / self.probes)

    @property
    def notebook_zeta(self) -> float:
        """As the authors' notebook has it: Σ of all r but the first and the last, over t − 1."""
        return float((self.total - self.first - self.last) / (self.probes - 1))

    def probe(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        input: Any,
        *,
        batch_size: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> float:
        """r of one batch; model, gradients, optimizer, torch's random number generators and a loss
        that is a module, with what it gathers, are left as they were, bit by bit; the step is taken
        with a copy of the scaler.

        Args:
            model: called `model(input)` in training mode, as in training; gives logits (N, C).
            optimizer: over `model`'s parameters; its `step()` needs no closure.
            input: of the model.
            batch_size: N; left out, `len(input)`.
            scaler: the loss scaler of mixed precision. Call `probe` under the same `torch.autocast`
                as the training step.

        Raises:
            ValueError: logits of another shape than (N, C).
        """
        Instance(nn.Module, "a module")("model", model)
        _like("optimizer", optimizer, "step", "param_groups", "state")
        if scaler is not None:
            _like("scaler", scaler, "scale", "step")
        if batch_size is None and not hasattr(input, "__len__"):
            raise TypeError(
                f"batch_size: expected the number of samples, as {type(input).__name__}"
                " has no length, got None"
            )
        size = len(input) if batch_size is None else Integer(least=1)("batch_size", batch_size)
        parts = [model, self.loss] if isinstance(self.loss, nn.Module) else [model]
        with _restored(parts, optimizer), torch.enable_grad():
            model.train()
            logits = model(input)
            if logits.shape != (size, self.num_classes):
                raise ValueError(
                    f"model: expected logits {(size, self.num_classes)}, got {tuple(logits.shape)}"
                )
            labels = self._labels(size).to(logits.device)
            before = self.loss(logits, labels)
            if scaler is None:
                before.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            else:
                scaler = copy.deepcopy(scaler)
                scaler.scale(before).backward()  # type: ignore[no-untyped-call]
                scaler.step(optimizer)
            with torch.no_grad():
                after = self.loss(model(input), labels)
        r = all_sum((before.detach() - after).to(self.total)) / world_size()
        self.add(r)
        return float(r)

    def add(self, r: Tensor | float) -> None:
        """Counts a variation r that was found otherwise."""
        if not isinstance(r, Tensor) or r.dim() or r.is_complex():
            r = Number(infinite=True)("r", r)
        self.last.fill_(r)
        if self.probes == 0:
            self.first.copy_(self.last)
        self.total.add_(self.last)
        self.probes.add_(1)

    def _labels(self, size: int) -> Tensor:
        rank = torch.distributed.get_rank() if world_size() > 1 else 0
        seed = self.seed + int(self.probes) + (rank << 32)
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randint(self.num_classes, (size,), generator=generator, device="cpu")


def _like(name: str, value: Any, *parts: str) -> None:
    """Raise where it lacks what torch's have; a wrapper need not be of torch's class."""
    if not all(hasattr(value, part) for part in parts):
        raise TypeError(f"{name}: expected one of torch, got {shown(value)}")


@contextmanager
def _restored(parts: list[nn.Module], optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Everything a step changes is as before on leaving, in the same tensors."""
    groups = optimizer.param_groups
    parameters = {id(p): p for part in parts for p in part.parameters()}
    parameters.update({id(p): p for group in groups for p in group["params"]})
    values = [(p, p.detach().clone()) for p in parameters.values()]
    # their content too: DistributedDataParallel may let them lie in buckets it writes into
    gradients = [(p.grad, p.grad.clone()) for p, _ in values if p.grad is not None]
    places = [(p, p.grad) for p, _ in values]
    # a module may put another tensor in a buffer's place: the place is what is restored
    buffers = [
        (module, name, buffer, buffer.clone())
        for part in parts
        for module in part.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    # the optimizer works on copies meanwhile; loading a state_dict would cast its state to the
    # dtype of its parameters
    state = dict(optimizer.state)
    options = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    devices = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
    try:
        for parameter in parameters.values():
            parameter.grad = None
        optimizer.state.update({parameter: _copied(entry) for parameter, entry in state.items()})
        for group, option in zip(groups, options, strict=True):
            group.update(_copied(option))
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
            for gradient, content in gradients:
                gradient.copy_(content)
            for parameter, place in places:
                parameter.grad = place
            for module, name, buffer, content in buffers:
                module._buffers[name] = buffer.copy_(content)
        for module, mode in modes:
            module.training = mode
        optimizer.state.clear()
        optimizer.state.update(state)
        for group, option in zip(groups, options, strict=True):
            group.update(option)


def _copied(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for key, value in entry.items()
    }
