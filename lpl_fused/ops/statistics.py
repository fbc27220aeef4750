"""The operator of what rows are told of beside their loss.

row_statistics(Problem, backend) -> (lse, entropy, correct), all (N,)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..algebra.statistics import RowStatistics, statistics
from ..backends import load
from ..problem import Options, Problem, accumulate_dtype
from ..tracing import direct
from .dispatch import SCHEMA, packed, register
from .softmax import with_fixed_delta

_LIBRARY = torch.library.Library("lpl_fused", "FRAGMENT")
_LIBRARY.define(f"row_statistics({SCHEMA}) -> (Tensor lse, Tensor entropy, Tensor correct)")


def _kernel(input, target, parts, codes, numbers, backend) -> RowStatistics:  # type: ignore[no-untyped-def]
    problem = Problem(input, target, *parts, Options.unpacked(codes, numbers))  # type: ignore[call-arg]
    return statistics(load(backend), [problem])


def _fake(input: Tensor, *_: Any) -> RowStatistics:
    rows = input.new_empty(input.shape[0], dtype=accumulate_dtype(input.dtype))
    return RowStatistics(rows, torch.empty_like(rows), rows.new_empty(rows.shape, dtype=torch.bool))


_op = register(_LIBRARY, "row_statistics", _kernel, _fake)


def row_statistics(problem: Problem, backend: str) -> RowStatistics:
    """Those of a problem's rows; of one with steps δ is found once more, as a table."""
    with torch.no_grad():
        detached = [part.detach() if isinstance(part, Tensor) else part for part in problem]
        problem = Problem(*detached)  # type: ignore[arg-type]
        if problem.steps is not None:
            problem = with_fixed_delta(problem, backend)
            problem = problem._replace(options=problem.options._replace(through=False))
        if direct(*problem[:-1]):
            return statistics(load(backend), [problem])
        return RowStatistics(*_op(*packed(problem, backend)))
