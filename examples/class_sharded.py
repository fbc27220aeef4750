"""Classes over two ranks: each has half of the last layer, and all rows of the batch.
Shows: loss and gradients are those of the whole layer, and no rank ever holds the other's logits.
Run: torchrun --nproc-per-node 2 examples/class_sharded.py"""

import time

import torch
import torch.distributed as dist
from torch import nn

from lpl_fused import functional as LF
from lpl_fused import losses

CLASSES, WIDTH, ROWS = 601, 32, 64

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same body, head and data on all ranks
body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
whole = nn.Linear(WIDTH, CLASSES, bias=False)  # here only to compare with
centres = torch.randn(CLASSES, WIDTH)

# CHANGED: this rank's classes, in the order of ranks; shares may be unequal
shard = nn.Parameter(whole.weight.detach().tensor_split(ranks)[rank].clone())
group = dist.group.WORLD
criterion = losses.CrossEntropyLoss(process_group=group)  # CHANGED: or LDAM, LPL, …
optimizer = torch.optim.AdamW([*body.parameters(), shard], lr=1e-2)

for step in range(60):
    target = torch.randint(CLASSES, (ROWS,))  # labels of all classes, the same on all ranks
    features = body(centres[target] + 0.3 * torch.randn(ROWS, WIDTH))
    if step == 0:  # what one rank with all classes would have
        expected = nn.functional.cross_entropy(whole(features), target)
        gradient = torch.autograd.grad(expected, whole.weight, retain_graph=True)[0]

    optimizer.zero_grad()
    # CHANGED: was criterion(head(features), target)
    loss = criterion.linear(features, shard, target)
    loss.backward()
    if step == 0:
        # with logits in memory, of this rank's classes
        logits = features.detach() @ shard.detach().t()
        again = LF.cross_entropy(logits, target, process_group=group)
        first = loss.item()
        own = gradient.tensor_split(ranks)[rank]
        away = (shard.grad - own).norm() / own.norm()
    optimizer.step()

if rank == 0:
    print(
        f"loss with all classes {expected.item():.6f}, of shards {first:.6f}, "
        f"by their logits {again:.6f}"
    )
    print(f"the gradient of this rank's classes differs by {away:.0e}")
    print(f"after {step + 1} steps the loss is {loss.item():.2f}")
time.sleep(0.1)  # gloo lets go of the last backward, or may abort at the end (docs/scale.md)
dist.destroy_process_group()
