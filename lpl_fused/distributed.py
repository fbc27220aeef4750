"""Sums over the ranks of torch.distributed; on one process, without it, nothing happens."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not initialised."""
    return distributed.get_world_size() if _running() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """Sum over the ranks, the same on each; every rank must call it. Not differentiable."""
    if not _running():
        return tensor
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def all_rows(tensor: Tensor) -> Tensor:
    """(ranks, …): every rank's tensor, the same on each; every rank must call it.

    Not differentiable.
    """
    if not _running():
        return tensor[None]
    rows = [torch.empty_like(tensor) for _ in range(world_size())]
    distributed.all_gather(rows, tensor.detach().contiguous())
    return torch.stack(rows)


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
