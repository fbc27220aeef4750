"""How a kernel is launched, and what it takes for a number."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ...problem import BinaryProblem, Problem


def interpreted() -> bool:
    # as triton reads it
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Runs a kernel on the device of its first argument's tensor, if there is anything to do."""
    on = arguments[0]
    if grid[0] > 0:
        with torch.cuda.device_of(on if isinstance(on, Tensor) else on.input):
            kernel[grid](*arguments, **meta, enable_fp_fusion=True)


def number(problem: Problem | BinaryProblem, value: float) -> Any:
    """A float argument; triton passes those as float32, which is not enough beside float64."""
    if problem.input.dtype != torch.float64:
        return value
    from triton.language import constexpr

    return constexpr(value)
