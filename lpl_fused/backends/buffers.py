"""What the kernels of the GPU backends write to, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..problem import TABLES, BinaryProblem, Problem, accumulate_dtype


def new(problem: Problem | BinaryProblem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory beside the logits; by default of the dtype that is calculated in."""
    dtype = dtype or accumulate_dtype(problem.input.dtype)
    return torch.empty(shape, dtype=dtype, device=problem.input.device)


def table_places(problem: Problem, want: Sequence[bool]) -> tuple[int, dict[str, Tensor | None]]:
    """Where the kernels store the gradients of TABLES, of which those are made that `want` says:
    (chunk, {table: place}). Of margin and rows it is what each row adds to them, of the others sums
    over chunks of so many rows.
    """
    n, classes = problem.input.shape
    by_row = {"margin": (n,), "rows": (n, classes)}
    wanted = dict(zip(TABLES, want, strict=True))
    summed = any(wanted[name] for name in TABLES if name not in by_row)
    # the partial sums take 1/8 of N×C at most
    chunk = max(8, -(-n // 64)) if summed else 1
    shapes = dict.fromkeys(TABLES, (-(-n // chunk), classes)) | by_row
    places = {name: new(problem, *shapes[name]) if wanted[name] else None for name in TABLES}
    return chunk, places


def gradients(
    problem: Problem, input: Tensor | None, tables: Mapping[str, Tensor | None]
) -> tuple[Tensor, ...]:
    """(input, *TABLES), empty where None, from what the kernels have stored in table_places."""
    label = problem.target
    index = {"margin": label, "rows": label if problem.row_index is None else problem.row_index}

    def finished(name: str) -> Tensor:
        stored = tables[name]
        if stored is None:
            return new(problem, 0)
        if name not in index:
            return stored.sum(0)
        return _scattered(stored, index[name], getattr(problem, name))

    first = problem.input.new_empty(0) if input is None else input
    return (first, *map(finished, TABLES))


def _scattered(values: Tensor, index: Tensor, table: Tensor) -> Tensor:
    """Sums values (N, …) by the table row that each took, in the order of the rows."""
    # rows whose index means nothing have value 0 (ignored) or nan (out of range)
    index = index.clamp(0, table.shape[0] - 1)
    # index_put_ sorts, where index_add_ would add in whatever order
    return torch.zeros_like(table).index_put_((index,), values, accumulate=True)
