"""State kept over batches, on two ranks: the same on both, and that of the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import Draw
from torch import Tensor

from lpl_fused import losses


def state_after_training(mine: slice) -> list[Tensor]:
    """All buffers after three batches of 8 samples, of which this process sees `mine`."""
    draw = Draw(8, 4, seed=9)
    weight = draw.normal(4, 3)
    diagonal = losses.ISDALoss(4, 3, dtype=torch.float64)
    full = losses.ISDALoss(4, 3, covariance="full", decay=0.9, dtype=torch.float64)
    seesaw, eql = losses.SeesawLoss(4), losses.EQLv2Loss(4)
    pruned = losses.TruncatedGCELoss(24, k=0.3)
    for step in range(3):
        x, y = draw.normal(8, 3)[mine] + step, draw.labels()[mine]
        logits = x @ weight.t()
        index = torch.arange(8 * step, 8 * step + 8)[mine]
        diagonal(logits, y, x, weight)
        full(logits, y, x, weight)
        seesaw(logits, y)
        eql(logits, y)
        pruned.update(logits, y, index)
    assert not pruned.kept.all()
    modules = (diagonal, full, seesaw, eql, pruned)
    return [buffer for module in modules for buffer in module.buffers()]


def _rank(rank: int, address: str, results) -> None:  # type: ignore[no-untyped-def]
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        state = state_after_training(slice(4 * rank, 4 * rank + 4))
        results.put((rank, [buffer.tolist() for buffer in state]))
    finally:
        dist.destroy_process_group()


def test_ranks_hold_the_state_of_the_whole_batch(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    address = f"file://{tmp_path}/rendezvous"
    ranks = [context.Process(target=_rank, args=(rank, address, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert process.exitcode == 0
    found = dict(results.get() for _ in ranks)
    assert found[0] == found[1]
    for shared, whole in zip(found[0], state_after_training(slice(None)), strict=True):
        torch.testing.assert_close(torch.tensor(shared).to(whole.dtype), whole)
