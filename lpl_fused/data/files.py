"""Images that are read from their files when they are asked for: the data need not fit memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from ..arguments import Integer

DRAWS = 5  # random numbers that a crop takes

_SIZE = Integer(least=1)
_From = TypeVar("_From")
_To = TypeVar("_To")


class ImageFiles:
    """N image files in the place of a tensor `(N, 3, size, size)` uint8; `files[index]` is a batch.

    An image is its centre: of the square that its shorter side spans, 7/8 of the side (224 of 256
    pixels, as is usual).

    Args:
        paths: of the files.
        size: side of the square.
        device: of the batches.

    A batch raises DataError where one of its images cannot be read.
    """

    def __init__(self, paths: Sequence[str], size: int, device: torch.device | str = "cpu") -> None:
        self.paths = tuple(paths)
        self.size = _SIZE("size", size)
        self.device = torch.device(device)

    @property
    def shape(self) -> torch.Size:
        """(N, 3, size, size)"""
        return torch.Size((len(self.paths), 3, self.size, self.size))

    @property
    def ndim(self) -> int:
        """4"""
        return 4

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        """(n, 3, size, size) uint8, the images `index` (n,) int64."""
        return self.reading(index)()

    def reading(self, index: Tensor, draws: Tensor | None = None) -> Callable[[], Tensor]:
        """What gives the batch `index` (n,), whose files threads read from now on.

        Args:
            index: numbers of images.
            draws: (n, `DRAWS`) in [0, 1): another part of each image in the place of its centre,
                mirrored or not, as `images.random_box` has it.
        """
        from .base import DataError
        from .images import read_crop

        crops = [None] * len(index) if draws is None else draws.tolist()
        read = [
            _readers().submit(read_crop, self.paths[i], self.size, crop)
            for i, crop in zip(index.tolist(), crops, strict=True)
        ]
        none = torch.empty(0, *self.shape[1:], dtype=torch.uint8)

        def batch() -> Tensor:
            try:
                images = torch.stack([one.result() for one in read]) if read else none
            except DataError as error:
                hint = "skip_broken finds such images first, and leaves them out"
                raise DataError(f"{error} ({hint})") from error
            return images.to(self.device)

        return batch

    def select(self, index: Tensor) -> ImageFiles:
        """The images `index`: (n,) int64 numbers or a bool per image."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        return ImageFiles([self.paths[i] for i in index.tolist()], self.size, self.device)

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same with batches on another device."""
        return ImageFiles(self.paths, self.size, device)


def for_each(function: Callable[[_From], _To], items: Iterable[_From]) -> list[_To]:
    """What a function gives of every file, by threads."""
    return list(_readers().map(function, items))


@cache
def _readers() -> ThreadPoolExecutor:
    # decoders let others run meanwhile
    return ThreadPoolExecutor(min(32, os.cpu_count() or 1), thread_name_prefix="images")
