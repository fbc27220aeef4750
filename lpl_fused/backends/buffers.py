"""What the kernels of the GPU backends write to, and what is made of it."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from ..problem import TABLES, BinaryProblem, Problem, accumulate_dtype
from .contract import Gradients


def new(problem: Problem | BinaryProblem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory beside the logits; by default of the dtype that is calculated in."""
    dtype = dtype or accumulate_dtype(problem.input.dtype)
    # by name: who reads `shape` by its place tries a number first
    return torch.empty(size=shape, dtype=dtype, device=problem.input.device)


def like(rows: Tensor) -> Tensor:
    """Contiguous memory of the shape and dtype of rows; asking for these by word takes twice as
    long."""
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


def of_rows(problem: Problem, upstream: Tensor, norm: Tensor | None) -> Tensor:
    """The gradient (N,) of each row's loss, from what `gradient` may be given."""
    if upstream.dim():
        return upstream
    if norm is not None:
        upstream = upstream / norm
    return upstream.expand(problem.input.shape[0])


def table_places(problem: Problem, want: Container[str]) -> tuple[int, dict[str, Tensor | None]]:
    """Where the kernels store the gradients of TABLES, of those that are wanted: (chunk, {table:
    place}). Of margin and rows it is what each row adds to them, of the others sums over chunks of
    so many rows.
    """
    n, width = problem.input.shape
    by_row = {"margin": (n,), "rows": (n, width)}
    summed = any(name in want for name in TABLES if name not in by_row)
    # the partial sums take 1/8 of N×W at most
    chunk = max(8, -(-n // 64)) if summed else 1
    shapes = dict.fromkeys(TABLES, (-(-n // chunk), width)) | by_row
    places = {name: new(problem, *shapes[name]) if name in want else None for name in TABLES}
    margin = places["margin"]
    if margin is not None and problem.classes != width:
        margin.zero_()  # of rows whose label is elsewhere
    return chunk, places


def gradients(
    problem: Problem, input: Tensor | None, tables: Mapping[str, Tensor | None]
) -> Gradients:
    """What the kernels have stored in table_places, summed."""
    label = problem.target
    index = {"margin": label, "rows": label if problem.row_index is None else problem.row_index}

    def finished(name: str) -> Tensor | None:
        stored = tables[name]
        if stored is None:
            return None
        if name not in index:
            return stored.sum(0)
        return _scattered(stored, index[name], getattr(problem, name))

    return Gradients(input, **{name: finished(name) for name in TABLES})


def _scattered(values: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """Sums values (N, …) by the table row that each took, in the order of the rows."""
    # rows whose index means nothing have value 0 (ignored) or nan (out of range)
    index = index.clamp(0, table.shape[0] - 1)
    # index_put_ sorts, where index_add_ would add in whatever order
    shape = table.shape[0], *values.shape[1:]
    sums = torch.zeros(shape, dtype=values.dtype, device=values.device)
    return sums.index_put_((index,), values, accumulate=True)
