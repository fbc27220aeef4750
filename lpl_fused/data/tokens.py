"""Next-token prediction over the Python standard library's own source: a real Zipf vocabulary."""

from __future__ import annotations

import re
import tokenize
from collections import Counter

import torch
from torch import Tensor

from .base import DataError, LongTailedData
from .stdlib import readable_source, source_files

NUM_CLASSES = 10_000
CONTEXT = 4
TRAIN_SAMPLES = 250_000
TEST_PER_CLASS = 3

# Words (identifiers, keywords, numbers, the prose of comments and docstrings) and single marks.
_TOKEN = re.compile(r"\w+|[^\w\s]")


def load_tokens(
    seed: int = 0,
    num_classes: int = NUM_CLASSES,
    train_samples: int = TRAIN_SAMPLES,
    context: int = CONTEXT,
) -> LongTailedData:
    """Predict a token from the `context` tokens before it: `(context,)` int64 inputs.

    The classes are the `num_classes` most frequent tokens of the running Python's standard
    library, numbered from the most frequent; their frequencies are what they are in the source.
    In a context, `num_classes` stands for a rarer token and for what lies before a file's start.
    Three occurrences of every class are set aside for the test and one is always kept for
    training; the other training examples are a uniform draw from the remaining occurrences.

    Args:
        seed: of the draws.
        num_classes: C, the size of the vocabulary.
        train_samples: N, the number of training examples, at least `num_classes`.
        context: number of preceding tokens.

    Raises:
        DataError: the standard library's source is missing or has too few distinct tokens, or
            `train_samples` is smaller than `num_classes`.
    """
    if train_samples < num_classes:
        raise DataError(
            f"train_samples: expected at least one for each of {num_classes} classes, got "
            f"{train_samples}"
        )
    files = _tokenised_files()
    frequency = Counter(token for file in files for token in file)
    usable = [item for item in frequency.items() if item[1] > TEST_PER_CLASS]
    if len(usable) < num_classes:
        raise DataError(
            f"num_classes: the standard library's source has {len(usable)} tokens that occur more "
            f"than {TEST_PER_CLASS} times, got {num_classes}"
        )
    usable.sort(key=lambda item: (-item[1], item[0]))
    names = tuple(token for token, _ in usable[:num_classes])
    number = {name: i for i, name in enumerate(names)}

    stream: list[int] = []
    for file in files:
        stream += [num_classes] * context  # the window never reaches into the file before
        stream += [number.get(token, num_classes) for token in file]
    ids = torch.tensor(stream)
    windows = ids.unfold(0, context + 1, 1)  # (positions, context + 1)
    positions = (windows[:, -1] < num_classes).nonzero().flatten()

    generator = torch.Generator().manual_seed(seed)
    positions = positions[torch.randperm(len(positions), generator=generator)]
    test, train = _split(positions, windows[positions, -1], num_classes, train_samples)
    return LongTailedData(
        name="tokens",
        train_inputs=windows[train, :-1].contiguous(),
        train_targets=windows[train, -1].contiguous(),
        test_inputs=windows[test, :-1].contiguous(),
        test_targets=windows[test, -1].contiguous(),
        class_names=names,
    )


def _tokenised_files() -> list[list[str]]:
    files = []
    for path, _ in source_files():
        with (
            readable_source(path),
            tokenize.open(path) as file,
        ):  # honours the file's coding declaration
            files.append(_TOKEN.findall(file.read()))
    return files


def _split(
    positions: Tensor, targets: Tensor, num_classes: int, train_samples: int
) -> tuple[Tensor, Tensor]:
    """Test and training positions out of shuffled `positions` `(P,)` with classes `targets`."""
    counts = torch.bincount(targets, minlength=num_classes)
    by_class = targets.argsort(stable=True)  # keeps the shuffled order within a class
    rank = torch.empty_like(targets)
    rank[by_class] = torch.arange(len(targets)) - (counts.cumsum(0) - counts)[targets[by_class]]
    test = positions[rank < TEST_PER_CLASS]
    kept = positions[rank == TEST_PER_CLASS]
    rest = positions[rank > TEST_PER_CLASS][: train_samples - num_classes]
    return test, torch.cat([kept, rest])
