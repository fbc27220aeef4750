"""What kernels have beside logits, losses and gradients: parts of one memory, by their places.

An allocation, and each view of one, costs the host as much as reading a whole call; an address
within is a number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from ...algebra import learned
from ...problem import Problem, accumulate_dtype
from ..native import DTYPES
from .module import Scratch, native

FLAGS = 8  # of 32 bits: kFlags of csrc/cuda/call.h
_LINE = 256  # bytes that every part begins at a multiple of


class Layout(NamedTuple):
    """Bytes of a memory, and of its parts the place of their field, where they begin, and bytes."""

    size: int
    places: tuple[tuple[int, int, int], ...]

    @staticmethod
    def of(parts: dict[str, int], fields: tuple[str, ...]) -> Layout:
        """Of so many bytes each; a part of none is not there."""
        places, size = [], 0
        for name, wanted in parts.items():
            if wanted:
                places.append((fields.index(name), size, wanted))
                size += -(-wanted // _LINE) * _LINE
        return Layout(size, tuple(places))


class Learned(NamedTuple):
    """Of a problem with steps."""

    state: Layout  # the numbers of rows, heads and classes: what a gradient is made of
    work: Layout  # what nobody asks for later
    again: Layout  # the same of a gradient from the state: what became of rows is known there
    teams: int  # rows that take plain steps at once, each with memory for its δ
    delta: int  # where in the state δ (N, C) is, for kernels that want it; 0: it is not
    slot: int


def of_learned(problem: Problem, delta: bool) -> Learned:
    """`delta`: it is kept with the state."""
    input = problem.input
    n, width = input.shape
    if type(n) is int and type(width) is int:
        return _of_learned(n, width, input.dtype, input.get_device(), delta)
    # of a trace, which has no number of rows, what it asks for: how large the state is
    kept, beside = _state(n, int(width), input.dtype)
    size = kept.size + beside.size if delta else kept.size
    nothing = Layout(0, ())
    return Learned(Layout(size, ()), nothing, nothing, 0, 0, 0)


@functools.lru_cache(maxsize=64)
def _of_learned(n: int, width: int, dtype: torch.dtype, device: int, delta: bool) -> Learned:
    number, teams = accumulate_dtype(dtype).itemsize, min(n, native().most_teams(device))
    kept, beside = _state(n, width, dtype)
    swept = {"swept": number * teams * width}
    work = Layout.of({**swept, "outcome": 4 * n}, Scratch._fields)
    again = Layout.of(swept, Scratch._fields)
    if not delta:
        return Learned(kept, work, again, teams, 0, 0)
    first, second = ([begin for _, begin, _ in beside.places] + [0, 0])[:2]
    size = kept.size
    kept = kept._replace(size=size + beside.size)
    return Learned(kept, work, again, teams, size + first, size + second)


def _state(n: int, width: int, dtype: torch.dtype) -> tuple[Layout, Layout]:
    """What is kept, and δ beside it."""
    code, number = DTYPES[dtype], accumulate_dtype(dtype).itemsize
    heads = n * min(learned.HEADS, width)
    kept = {
        "learned": n * native().learned_bytes(code),
        "head_columns": 4 * heads,
        "head_numbers": number * heads,
        "order": 8 * n,
        "begin": 8 * n,
        "counts": 8 * n,
        "flags": 4 * FLAGS,
        "groups": _group_bytes(n, width, code),
    }
    beside = {"delta": number * n * width, "slot": 8 * n}
    return Layout.of(kept, Scratch._fields), Layout.of(beside, ("delta", "slot"))


def _group_bytes(n: int, width: int, code: int) -> int:
    of_rows: Callable[[int, int, int], int] = native().group_bytes
    if type(n) is int:
        return of_rows(n, width, code)
    # of a trace: so many for a row, so many for two, of which a class may be
    two = of_rows(2, width, code)
    row = of_rows(3, width, code) - two
    return n // 2 * (two - 2 * row) + n * row
