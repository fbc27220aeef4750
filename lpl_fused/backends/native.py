"""What the native modules are told of a problem beside the addresses of its tensors."""

from __future__ import annotations

import torch

from ..problem import Problem

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # of csrc/row.h


def sizes(problem: Problem, threads: int = 1) -> tuple[int, ...]:
    input, target, rows = problem.input, problem.target, problem.rows
    n, classes = input.shape
    dense = target.dim() == 2
    return (
        n,
        classes,
        input.stride(0),
        dense,
        target.stride(0) if dense else 0,
        0 if rows is None else rows.shape[0],
        DTYPES[input.dtype],
        DTYPES[target.dtype] if dense else 0,
        threads,
    )
