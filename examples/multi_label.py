"""Several labels per example, most of them rare: BCE, distribution-balanced loss, LPL on top of it.
Shows: mean average precision on frequent, medium and rare classes.
Run: python examples/multi_label.py    (needs pip install "lpl_fused[train]", for torchmetrics)"""

import torch
from longtail import CLASSES, batches, network
from torch import Tensor, nn

from lpl_fused import average_precision, losses


def scenes(number: int, share: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Images that are sums of their classes' patterns; each class is in a share of them."""
    patterns = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    tags = (torch.rand(number, CLASSES, generator=generator) < share).float()
    noise = torch.randn(number, 64, generator=generator)
    return (tags @ patterns + noise).view(-1, 1, 8, 8), tags


images, labels = scenes(
    3000, 1 / torch.arange(3, CLASSES + 3), seed=1
)  # labels: (N, C), any number of ones in a row
test_images, test_labels = scenes(2000, torch.full((CLASSES,), 0.05), seed=2)
counts = labels.sum(0)  # positive examples of each class
balanced = losses.DistributionBalancedLoss(counts, len(labels))  # CHANGED
found = {}
for name, criterion in {
    "BCE": nn.BCEWithLogitsLoss(),
    "distribution-balanced": balanced,
    "… and LPL": losses.MultiLabelLPLLoss(counts, balanced),  # CHANGED: a base in another loss
}.items():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for epoch in range(8):
        for image, label in batches(images, labels, size=64, seed=epoch):
            optimizer.zero_grad()
            loss = criterion(model(image), label)  # the same line for every loss
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        scores = model(test_images)
    found[name] = average_precision.mean_average_precision(
        scores, test_labels, counts, many_above=200, few_below=50
    )

print("mean average precision by training examples of a class")
print(f"{'':22}{'> 200':>8}{'50-200':>8}{'< 50':>8}{'all':>8}")
for name, mean in found.items():
    shares = (mean.many, mean.medium, mean.few, mean.overall)
    print(f"{name:22}" + "".join(f"{share:8.1%}" for share in shares))
