"""Segmentation: logits (N, C, H, W), labels (N, H, W), some pixels without a label.
Shows: how many pixels of rare classes are found, and what it costs the frequent ones.
Run: python examples/segmentation.py"""

import torch
from torch import Tensor, nn

from lpl_fused import class_stats, losses

CLASSES, IGNORED = 6, 255  # class 0 is the background
SHARE = [1.0, 0.5, 0.25, 0.12, 0.06]  # of the images in which classes 1 … 5 appear


def scenes(number: int, share: list[float], seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images (N, 3, 24, 24) with a square of a colour for every class that appears."""
    colours = 1.5 * torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(number, 24, 24, dtype=torch.long)
    for image in range(number):
        for c in range(1, CLASSES):
            row, column = torch.randint(20, (2,), generator=generator).tolist()
            if torch.rand((), generator=generator) < share[c - 1]:
                labels[image, row : row + 5, column : column + 5] = c
    images = colours[labels].movedim(-1, 1)
    images = images + 1.2 * torch.randn(images.shape, generator=generator)
    labels[:, 0] = IGNORED  # a border nobody labelled
    return images, labels


images, labels = scenes(120, SHARE, seed=1)
test_images, test_labels = scenes(60, [1.0] * 5, seed=2)
counts = torch.bincount(labels[labels != IGNORED], minlength=CLASSES)  # pixels of each class
found = {}
for name, criterion in {
    "cross-entropy": nn.CrossEntropyLoss(ignore_index=IGNORED),
    # CHANGED: it knows the pixels of each class
    "logit adjustment": losses.LogitAdjustedLoss(counts, tau=0.5, ignore_index=IGNORED),
    "Seesaw": losses.SeesawLoss(CLASSES, ignore_index=IGNORED),  # CHANGED: it counts by itself
}.items():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, CLASSES, 1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(4):
        for image, label in zip(images.split(8), labels.split(8), strict=True):
            optimizer.zero_grad()
            loss = criterion(model(image), label)  # no reshaping
            loss.backward()
            optimizer.step()

    with torch.no_grad():
        right = (model(test_images).argmax(1) == test_labels)[test_labels != IGNORED]
    truth = test_labels[test_labels != IGNORED]
    found[name] = class_stats.class_mean(right.double(), truth, CLASSES)[0].tolist()

print("pixels found, by class")
print(f"{'pixels to train on':18}" + "".join(f"{count:>8}" for count in counts.tolist()))
for name, shares in found.items():
    print(f"{name:18}" + "".join(f"{share:8.1%}" for share in shares))
