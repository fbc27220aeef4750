"""Data-parallel training on two ranks with a loss that learns from the labels it sees (Seesaw).
Shows: what it collects is that of all ranks, so that both train on the same loss.
Run: torchrun --nproc-per-node 2 examples/ddp.py"""

import time

import torch
import torch.distributed as dist
from longtail import CLASSES, COUNTS, batches, network, show, test_set, training_set
from torch.nn.parallel import DistributedDataParallel

from lpl_fused import evaluation, losses

dist.init_process_group("gloo")  # "nccl" on GPUs
rank, ranks = dist.get_rank(), dist.get_world_size()
images, labels = training_set()
test_images, test_labels = test_set()

model = DistributedDataParallel(network())
criterion = losses.SeesawLoss(CLASSES)  # CHANGED: nothing to wrap; it sums its counts over ranks
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
seen = torch.zeros(CLASSES)
for epoch in range(6):
    # each rank has its share of every batch
    for image, label in batches(images, labels, size=128, seed=epoch):
        image, label = image[rank::ranks], label[rank::ranks]
        optimizer.zero_grad()
        loss = criterion(model(image), label)
        loss.backward()
        optimizer.step()
        seen += torch.bincount(label, minlength=CLASSES)

own, all_ranks = int(seen.sum()), int(criterion.seen.sum())
states = [torch.zeros_like(criterion.seen) for _ in range(ranks)]
dist.all_gather(states, criterion.seen)
if rank == 0:
    with torch.no_grad():
        logits = model.module(test_images)
    show({"Seesaw": evaluation.accuracy(logits, test_labels, torch.tensor(COUNTS))})
    print(f"labels that rank 0 saw: {own}, that its loss knows: {all_ranks}")
    print("the same on all ranks:", all(state.equal(states[0]) for state in states))
time.sleep(0.1)  # gloo lets go of the last backward, or may abort at the end (docs/scale.md)
dist.destroy_process_group()
