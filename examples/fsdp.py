"""FSDP2 (`fully_shard`) on two ranks, with a loss whose state is that of all of them (LPL).
Shows: each rank holds half of every weight, and its loss knows the classes' means over both.
Run: torchrun --nproc-per-node 2 examples/fsdp.py"""

import time

import torch
import torch.distributed as dist
from longtail import CLASSES, COUNTS, batches, network, show, test_set, training_set
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lpl_fused import evaluation, losses

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, ranks = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("data",))
images, labels = training_set()
test_images, test_labels = test_set()

model = network()
whole = sum(p.numel() for p in model.parameters())
for layer in model:
    if any(True for _ in layer.parameters()):
        fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
held = sum(p.to_local().numel() for p in model.parameters())

# CHANGED: the loss is not sharded; what it gathers is that of the ranks that have other rows
criterion = losses.LPLLoss(
    COUNTS, split="balanced", statistics="ema", data_group=mesh.get_group("data")
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
for epoch in range(4):
    # each rank has its share of every batch
    for image, label in batches(images, labels, size=128, seed=epoch):
        image, label = image[rank::ranks], label[rank::ranks]
        optimizer.zero_grad()
        loss = criterion(model(image), label)
        loss.backward()
        optimizer.step()

with torch.no_grad():
    logits = model(test_images)  # all ranks: weights are gathered layer by layer
means = [torch.zeros_like(criterion.mean_probability) for _ in range(ranks)]
dist.all_gather(means, criterion.mean_probability)
if rank == 0:
    show({"LPL": evaluation.accuracy(logits, test_labels, torch.tensor(COUNTS))})
    print(f"weights: of {whole} rank 0 holds {held}")
    print(f"mean probabilities of {int(criterion.seen.sum())} of {CLASSES} classes")
    print("the same on all ranks:", all(mean.equal(means[0]) for mean in means))
time.sleep(0.1)  # gloo lets go of the last backward, or may abort at the end (docs/scale.md)
dist.destroy_process_group()
