"""What a rank hands over of a call: its group, its columns, tables of these or of all classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from ..perturbation import Perturbation
from ..validation import Projected, Shaped, Target


def is_dtensor(value: Any) -> bool:
    return type(value).__name__ == "DTensor"


def is_sharded(input: Any, process_group: Any) -> bool:
    """Whether a call is about the classes of several ranks. A group of one is as none.

    Raises:
        as `group_of`.
    """
    if process_group is None:
        return is_dtensor(input)
    return is_dtensor(input) or distributed.get_world_size(group_of(process_group)) > 1


def group_of(process_group: Any) -> distributed.ProcessGroup:
    """The group that a caller means.

    Raises:
        RuntimeError: torch.distributed is not there.
        TypeError, ValueError: no group, a mesh of several dimensions, a group without this rank.
    """
    if not distributed.is_available():
        raise RuntimeError("process_group: this torch was built without torch.distributed")
    if type(process_group).__name__ == "DeviceMesh":
        if process_group.ndim != 1:
            raise ValueError(
                f"process_group: expected a mesh of one dimension, got {process_group.ndim}"
            )
        process_group = process_group.get_group()
    # what new_group gives to who is not in the group is a number
    outside = distributed.is_initialized() and (
        process_group == distributed.GroupMember.NON_GROUP_MEMBER
    )
    if not outside and not isinstance(process_group, distributed.ProcessGroup):
        raise TypeError(
            "process_group: expected a ProcessGroup of torch.distributed (group.WORLD is that of"
            f" all ranks), or a mesh of one dimension, got {type(process_group).__name__}"
        )
    if outside or distributed.get_rank(process_group) < 0:
        raise ValueError(
            f"process_group: rank {distributed.get_rank()} is not in this group; only its members"
            " may call"
        )
    return process_group  # type: ignore[no-any-return]


def _unpacked(input: Any) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """(this rank's logits, what becomes of the loss): that of DTensor logits is a DTensor which all
    ranks have."""
    if not is_dtensor(input):
        return input, lambda loss: loss
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = input.device_mesh, input.placements
    dim = 0 if input.dim() == 1 else 1
    if len(placements) != 1 or not placements[0].is_shard(dim):
        raise ValueError(
            f"input: expected a DTensor whose classes are sharded, Shard({dim}), over a mesh of one"
            f" dimension, got {tuple(placements)}; of rows that are sharded pass input.to_local()"
        )

    def back(loss: Tensor) -> Tensor:
        found: Tensor = DTensor.from_local(loss, mesh, [Replicate()], run_check=False)
        return found

    return input.to_local(), back


def _local(name: str, value: Any) -> Any:
    """What this rank has of a table or of labels."""
    if not is_dtensor(value):
        return value
    if any(placement.is_partial() for placement in value.placements):
        raise ValueError(f"{name}: expected no partial DTensor, got {tuple(value.placements)}")
    return value.to_local()


@dataclass
class Reduction:
    """Whether the gradient of a table is summed over the ranks: known once they have agreed."""

    group: Any = None


class _Whole(torch.autograd.Function):
    """A table that every rank has whole, of whose gradient each finds its own columns'."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, reduction: Reduction) -> Tensor:
        ctx.reduction = reduction
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        group = ctx.reduction.group
        return grad if group is None else summed(grad, group), None


class Some(Shaped):
    """Some of the classes; tables may be of these or of all, which is settled later."""

    of_some_classes = True
    agreed = False  # how many classes there are is known
    reductions: dict[str, Reduction]
    restored: Callable[[Tensor], Tensor]  # of a loss, what the caller gets

    def _labels(self, name: str, labels: Tensor) -> Tensor:
        return super()._labels(name, _local(name, labels))

    def _per_row(self, name: str, value: Tensor | float) -> Tensor:
        return super()._per_row(name, _local(name, value))

    def _table(self, name: str, value: Tensor | None, rows: bool = False) -> Tensor | None:
        value = _local(name, value)
        if isinstance(value, Tensor):
            own, self.classes = self.classes, value.shape[-1] if value.dim() else -1
            try:
                return super()._table(name, self._learning(name, value), rows)
            finally:
                self.classes = own
        return super()._table(name, value, rows)

    def _learning(self, name: str, value: Tensor) -> Tensor:
        if not (value.requires_grad and torch.is_grad_enabled()):
            return value
        reduction = self.reductions.setdefault(name, Reduction())
        return _Whole.apply(value, reduction)  # type: ignore

    def steps(self, steps: Tensor) -> Tensor:
        steps = _local("steps", steps)
        if self.agreed or not isinstance(steps, Tensor) or steps.dim() != 1:
            return super().steps(steps)
        own, self.classes = self.classes, steps.shape[0]
        try:
            return super().steps(steps)
        finally:
            self.classes = own

    def _tables(
        self, perturbation: Perturbation, *, labelled: bool
    ) -> tuple[dict[str, Tensor | None], float]:
        p = perturbation
        if isinstance(p, Perturbation):
            by_label = p.rows is not None and p.row_index is None
            if by_label:
                raise ValueError(
                    "rows: beside process_group they need a row_index (for one row per class pass"
                    " the target)"
                )
            if isinstance(p.temperature, Tensor):
                temperature = self._learning("temperature", _local("temperature", p.temperature))
                p = Perturbation(p.scale, p.offset, p.margin, p.rows, p.row_index, temperature)
        return super()._tables(p, labelled=labelled)


class Part(Some):
    """Logits of some classes."""

    def __init__(self, input: Any, target: Target) -> None:
        self.reductions = {}
        logits, self.restored = _unpacked(input)
        super().__init__(logits, _local("target", target))


class PartOfLayer(Some, Projected):
    """Features, and what makes logits of some classes of them."""

    def __init__(
        self, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Target
    ) -> None:
        self.reductions, self.restored = {}, lambda loss: loss
        super().__init__(input, linear_weight, linear_bias, _local("target", target))


def device_of(group: distributed.ProcessGroup, device: torch.device) -> torch.device:
    """Where the group's collectives take tensors of this device."""
    config = str(distributed.get_backend_config(group))
    engines = dict(pair.split(":") for pair in config.split(","))
    engine = engines.get(device.type)
    if engine is not None and (device.type == "cpu" or engine != "gloo"):
        return device  # gloo gathers on the CPU alone
    if "cpu" in engines:
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def gathered(message: Tensor, group: distributed.ProcessGroup) -> list[Tensor]:
    """Every rank's message, of the same length on all, in their order: one collective."""
    if distributed.get_world_size(group) == 1:
        return [message]
    sent = message.to(device_of(group, message.device))
    found = [torch.empty_like(sent) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(found, sent, group=group)
    return [each.to(message.device) for each in found]


def exchanged(message: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """Of every rank's message, cut into as many parts as there are ranks, this rank's part, in the
    order of ranks: one collective."""
    sent = message.to(device_of(group, message.device)).contiguous()
    found = torch.empty_like(sent)
    distributed.all_to_all_single(found, sent, group=group)
    return found.to(message.device)


def summed(values: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """The sum of all ranks' values: one collective."""
    total = values.to(device_of(group, values.device), copy=True).contiguous()
    distributed.all_reduce(total, group=group)
    return total.to(values.device)
