"""Data that the examples share: 100 classes of images of 8×8 pixels, the most frequent with 500
training images, the rarest with 2; in the test set every class is as frequent as any other."""

import torch
from torch import Tensor, nn

from lpl_fused.evaluation import Accuracy

CLASSES, SIDE = 100, 8
COUNTS = [round(500 * (2 / 500) ** (c / (CLASSES - 1))) for c in range(CLASSES)]


def images(counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) and labels (N,): each class a pattern of its own, under noise."""
    patterns = torch.randn(CLASSES, SIDE * SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), SIDE * SIDE, generator=generator)
    return (patterns[labels] + 2.2 * noise).view(-1, 1, SIDE, SIDE), labels


def training_set() -> tuple[Tensor, Tensor]:
    return images(COUNTS, seed=1)


def test_set() -> tuple[Tensor, Tensor]:
    return images([20] * CLASSES, seed=2)


def network(head: nn.Module | None = None) -> nn.Sequential:
    """A small network, of the same weights each time."""
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(SIDE * SIDE, 256), nn.ReLU()]
    return nn.Sequential(*body, head or nn.Linear(256, CLASSES))


def batches(*tensors: Tensor, size: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """One epoch: all rows in random order, cut into batches."""
    order = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(seed))
    return list(zip(*(tensor[order].split(size) for tensor in tensors), strict=True))


def show(found: dict[str, Accuracy]) -> None:
    """Accuracy of each loss on frequent, medium and rare classes."""
    print("accuracy by training images of a class")
    print(f"{'':18}{'> 100':>8}{'20-100':>8}{'< 20':>8}{'all':>8}")
    for name, accuracy in found.items():
        shares = (accuracy.many, accuracy.medium, accuracy.few, accuracy.overall)
        print(f"{name:18}" + "".join(f"{share:8.1%}" for share in shares))
