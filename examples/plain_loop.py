"""A plain training loop: cross-entropy, logit adjustment and LPL on long-tailed data.
Shows: accuracy on frequent, medium and rare classes. Logit adjustment lifts the rare ones.
Run: python examples/plain_loop.py"""

import torch
from longtail import COUNTS, batches, network, show, test_set, training_set
from torch import nn

from lpl_fused import evaluation, losses

images, labels = training_set()
test_images, test_labels = test_set()
found = {}

for name, criterion in {
    "cross-entropy": nn.CrossEntropyLoss(),
    "logit adjustment": losses.LogitAdjustedLoss(COUNTS),  # CHANGED: the loss knows the counts
    "LPL": losses.LPLLoss(COUNTS, tau=1.0),  # CHANGED
}.items():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for epoch in range(6):
        for image, label in batches(images, labels, size=128, seed=epoch):
            optimizer.zero_grad()
            loss = criterion(model(image), label)  # the same line for every loss
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        logits = model(test_images)  # the raw logits, as before: no loss is asked
    found[name] = evaluation.accuracy(logits, test_labels, torch.tensor(COUNTS))

show(found)
