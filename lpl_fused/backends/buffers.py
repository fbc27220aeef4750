"""What the kernels of the GPU backends write to, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..problem import BinaryProblem, Problem, accumulate_dtype
from .contract import Gradients


def new(problem: Problem | BinaryProblem, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory beside the logits; by default of the dtype that is calculated in."""
    dtype = dtype or accumulate_dtype(problem.input.dtype)
    return torch.empty(shape, dtype=dtype, device=problem.input.device)


def gradients(
    problem: Problem,
    input: Tensor | None,
    scale: Tensor | None,
    offset: Tensor | None,
    margin: Tensor | None,
    rows: Tensor | None,
) -> Gradients:
    """The gradients, where not None, from what the kernels store: of scale and offset sums over
    chunks of rows (chunks, W), of margin and rows what each row adds to them."""

    def finished(stored: Tensor | None, finish: Callable[[Tensor], Tensor]) -> Tensor | None:
        return None if stored is None else finish(stored)

    label = problem.target
    index = label if problem.row_index is None else problem.row_index
    return Gradients(
        input,
        finished(scale, lambda sums: sums.sum(0)),
        finished(offset, lambda sums: sums.sum(0)),
        finished(margin, lambda values: _scattered(values, label, problem.margin)),
        finished(rows, lambda values: _scattered(values, index, problem.rows)),
    )


def _scattered(values: Tensor, index: Tensor, table: Tensor | None) -> Tensor:
    """Sums values (N, …) by the table row that each took, in the order of the rows."""
    assert table is not None
    # rows whose index means nothing have value 0 (ignored) or nan (out of range)
    index = index.clamp(0, table.shape[0] - 1)
    # index_put_ sorts, where index_add_ would add in whatever order
    sums = values.new_zeros((table.shape[0], *values.shape[1:]))
    return sums.index_put_((index,), values, accumulate=True)
