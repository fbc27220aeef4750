"""What state that is kept over a batch needs to be the same on all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Ranks of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(tensor: Tensor) -> Tensor:
    """The rows of all ranks, in the order of ranks, on every rank; not differentiable.

    All ranks must bring the same shape, as batches from a `DistributedSampler` have.
    """
    ranks = world_size()
    if ranks == 1:
        return tensor
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(ranks)]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """`tensor`, which may be written to, summed over all ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
