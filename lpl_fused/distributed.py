"""Sums over the ranks of torch.distributed; on one process, without it, nothing happens.

`group` is a ProcessGroup that this process is of; None: all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from .arguments import shown


def world_size(group: Any = None) -> int:
    """Number of ranks; 1 where torch.distributed is not initialised."""
    return distributed.get_world_size(group) if _running() else 1


def all_sum(tensor: Tensor, group: Any = None) -> Tensor:
    """Sum over the ranks, the same on each; every rank must call it. Not differentiable."""
    if not _running():
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total, group=group)
    return total


def all_rows(tensor: Tensor, group: Any = None) -> Tensor:
    """(ranks, …): every rank's tensor, of one shape, the same on each; every rank must call it.

    Not differentiable.
    """
    if not _running():
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(world_size(group))]
    distributed.all_gather(rows, tensor.detach().contiguous(), group=group)
    return torch.stack(rows)


def joined_rows(tensor: Tensor, group: Any = None) -> Tensor:
    """(N of all ranks, …): the rows of one rank after those of another, however many each has.

    Every rank must call it, and waits for the numbers of rows. Not differentiable.
    """
    if not _running():
        return tensor
    sizes = all_rows(torch.tensor([len(tensor)], device=tensor.device), group).flatten().tolist()
    room = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    room[: len(tensor)] = tensor.detach()
    gathered = all_rows(room, group)
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def is_group(value: Any) -> bool:
    """Whether it is a ProcessGroup."""
    kind = getattr(distributed, "ProcessGroup", None)
    return kind is not None and isinstance(value, kind)


def checked_group(name: str, value: Any) -> Any:
    """A ProcessGroup that this process is of, as a check of an argument."""
    if not is_group(value):
        raise TypeError(f"{name}: expected a ProcessGroup of this rank, got {shown(value)}")
    return value


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
