"""Parts of one memory: an allocation costs the host more than a view of one, and a view less the
fewer operations it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Part = tuple[tuple[int, ...], torch.dtype]
_LINE = 16  # bytes that every part begins at a multiple of, as kernels are compiled for


def _taken(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _LINE) * _LINE


def size_of(parts: Sequence[Part]) -> int:
    """Bytes of a memory with these parts, whose sizes may be a trace's, which are no numbers."""
    return sum(_taken(*part) for part in parts)


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    begin: int  # in elements


class Layout:
    """Where the parts are."""

    def __init__(self, parts: Sequence[Part]) -> None:
        places, size = [], 0
        for shape, dtype in parts:
            strides = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
            places.append(_Place(dtype, shape, strides, size // dtype.itemsize))
            size += _taken(shape, dtype)
        self.size = size  # bytes
        self._places = places
        self._dtypes = {place.dtype for place in places}
        self._offsets = [place.begin * place.dtype.itemsize for place in places]

    def within(self, memory: Tensor) -> list[Tensor]:
        """The parts of such a memory (uint8)."""
        typed = {dtype: memory.view(dtype) for dtype in self._dtypes}
        first = memory.storage_offset()
        return [
            typed[dtype].as_strided(shape, strides, begin + first // dtype.itemsize)
            for dtype, shape, strides, begin in self._places
        ]

    def addresses(self, memory: Tensor) -> list[int]:
        """Of the parts."""
        begin = memory.data_ptr()
        return [begin + offset for offset in self._offsets]

    def part(self, memory: Tensor, which: int) -> Tensor:
        """One of the parts."""
        dtype, shape, strides, begin = self._places[which]
        first = memory.storage_offset() // dtype.itemsize
        return memory.view(dtype).as_strided(shape, strides, begin + first)
