"""scikit-learn's handwritten digits, made long-tailed: ten classes, seconds to train."""

from __future__ import annotations

import torch

from .base import DataError, LongTailedData, long_tail_counts

LARGEST_CLASS = 100
TEST_PER_CLASS = 70  # with LARGEST_CLASS within the 174 images that the rarest digit has
NUM_CLASSES = 10


def load_digits(
    seed: int = 0, imbalance: float = 100.0, profile: str = "exp", largest: int = LARGEST_CLASS
) -> LongTailedData:
    """Long-tailed handwritten digits (UCI, as shipped with scikit-learn): `(1, 8, 8)` uint8 images.

    70 images of every digit are set aside for the test; training images are drawn from the rest.
    `seed` decides both draws and which digits are frequent, so that no digit's own difficulty
    passes for an effect of its frequency.

    Args:
        seed: of the split and of the order of the classes by frequency.
        imbalance: ratio of the largest to the smallest class in training.
        profile: "exp" or "zipf", see `long_tail_counts`.
        largest: training images of the most frequent digit, at most 100.

    Raises:
        DataError: `largest` above 100, or a profile that cannot be made.
    """
    from sklearn import datasets

    if largest > LARGEST_CLASS:
        raise DataError(
            f"largest: digits has {LARGEST_CLASS} training images per class, got {largest}"
        )
    counts = long_tail_counts(NUM_CLASSES, largest, imbalance, profile)
    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()

    generator = torch.Generator().manual_seed(seed)
    frequency_rank = torch.randperm(NUM_CLASSES, generator=generator)
    train, test = [], []
    for digit in range(NUM_CLASSES):
        members = (labels == digit).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        test.append(members[:TEST_PER_CLASS])
        size = int(counts[frequency_rank[digit]])
        train.append(members[TEST_PER_CLASS : TEST_PER_CLASS + size])
    train_index, test_index = torch.cat(train), torch.cat(test)
    return LongTailedData(
        name="digits",
        train_inputs=images[train_index],
        train_targets=labels[train_index],
        test_inputs=images[test_index],
        test_targets=labels[test_index],
        class_names=tuple(str(digit) for digit in range(NUM_CLASSES)),
    )
