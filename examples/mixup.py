"""Mixup and CutMix, a batch either or, as timm's `Mixup` does it, here in plain tensors.
Shows: logit adjustment and LPL under mixup; two labels and a share are the loss of timm's N×C
matrix, and can be made of it.
Run: python examples/mixup.py    (timm is not needed)"""

import torch
import torch.nn.functional as F
from longtail import CLASSES, COUNTS, SIDE, batches, network, show, test_set, training_set
from torch import Tensor

from lpl_fused import MixedTarget, evaluation, losses

images, labels = training_set()
test_images, test_labels = test_set()


def mixup(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means of images, and each row's share of the first."""
    share = torch.distributions.Beta(0.4, 0.4).sample((len(image),))
    weight = share[:, None, None, None]
    return weight * image + (1 - weight) * other, share


def cutmix(image: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """A box of the other images in the first, and the share of pixels that stay."""
    height, width = torch.randint(1, SIDE + 1, (2,)).tolist()
    row, column = (
        int(torch.randint(SIDE - height + 1, ())),
        int(torch.randint(SIDE - width + 1, ())),
    )
    mixed = image.clone()
    box = (..., slice(row, row + height), slice(column, column + width))
    mixed[box] = other[box]
    return mixed, torch.full((len(image),), 1 - height * width / SIDE**2)


found = {}
for name, criterion in {
    "cross-entropy": losses.CrossEntropyLoss(),  # nn.CrossEntropyLoss takes the matrix alone
    "logit adjustment": losses.LogitAdjustedLoss(COUNTS),  # CHANGED: it knows the counts
    "LPL": losses.LPLLoss(COUNTS, tau=1.0),  # CHANGED: each label under its class's perturbation
}.items():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    for epoch in range(10):
        for image, label in batches(images, labels, size=128, seed=epoch):
            optimizer.zero_grad()
            mix = mixup if torch.rand(()) < 0.5 else cutmix
            mixed, share = mix(image, image.flip(0))
            target = MixedTarget(label, label.flip(0), share)  # CHANGED: no N×C matrix
            loss = criterion(model(mixed), target)
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        logits = model(test_images)
    found[name] = evaluation.accuracy(logits, test_labels, torch.tensor(COUNTS))

show(found)

# timm's `Mixup` returns the matrix, smoothed by 0.1 as it does by default; losses that need to know
# the labels take them out of it, and smooth them themselves
one, two = (F.one_hot(y, CLASSES) * 0.9 + 0.1 / CLASSES for y in (label, label.flip(0)))
matrix = share[:, None] * one + (1 - share[:, None]) * two
criterion.label_smoothing = 0.1
with torch.no_grad():
    pair = criterion(model(mixed), target)
    found_again = criterion(model(mixed), MixedTarget.of_probabilities(matrix, label_smoothing=0.1))
print(f"loss of labels and share {pair:.6f}, of the matrix {found_again:.6f}")
