"""Launcher of the vectorised C++ kernels: CPU tensors, every dtype."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..problem import NONE, Problem, accumulate_dtype, label_range_error

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_FAULT_TARGET = 1


@functools.cache
def _native() -> ModuleType:
    return importlib.import_module("lpl_fused._cpu")


@functools.cache
def unavailable() -> str | None:
    try:
        _native()
    except ImportError as error:
        return f"its native module was not built ({error}); reinstall with a C++ compiler at hand"
    return None


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    if device != "cpu":
        return f"runs on cpu tensors, not on {device}"
    return None if dtype in _DTYPES else f"no kernels for {dtype}"


def describe() -> str:
    return f"C++, {_native().isa()} kernels, {torch.get_num_threads()} threads"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _arguments(problem: Problem) -> tuple[tuple[float, ...], ...]:
    """The tuples that the bindings unpack, in their order."""
    input, target, other, lam, weight, sample_weight, smoothing = problem[:7]
    n, classes = input.shape
    dense = target if target.dim() == 2 else None
    rows = problem.rows
    tensors = (
        input.data_ptr(),
        target.data_ptr() if dense is None else 0,
        *map(_address, (dense, other, lam, weight, sample_weight, smoothing)),
        *map(_address, (problem.scale, problem.offset, problem.margin, rows)),
        *map(_address, (problem.row_index, problem.steps)),
    )
    sizes = (
        n,
        classes,
        input.stride(0),
        0 if dense is None else dense.stride(0),
        0 if rows is None else rows.shape[0],
        _DTYPES[input.dtype],
        0 if dense is None else _DTYPES[dense.dtype],
        torch.get_num_threads(),
    )
    codes, numbers = problem.options.packed()
    return tensors, sizes, tuple(codes), tuple(numbers)


def _check(status: tuple[int, int], problem: Problem) -> None:
    fault, value = status
    if fault == 0:
        return
    if fault == _FAULT_TARGET:
        ignore_index = problem.options.ignore_index
        raise label_range_error("target", value, problem.input.shape[1], ignore_index)
    assert problem.rows is not None
    raise label_range_error("row_index", value, problem.rows.shape[0], None)


def cross_entropy(problem: Problem, want_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    input = problem.input
    n, dtype = input.shape[0], accumulate_dtype(input.dtype)
    loss = torch.empty((n,) if problem.options.reduction == NONE else (), dtype=dtype)
    stats, norm = torch.empty((2, n), dtype=dtype), torch.empty((), dtype=dtype)
    grad = torch.empty(input.shape if want_grad else (0,), dtype=input.dtype)
    outputs = (loss.data_ptr(), stats.data_ptr(), norm.data_ptr(), grad.data_ptr())
    status = _native().cross_entropy(*_arguments(problem), *outputs, 0, 0, 0, 0, 0, 0)
    _check(status, problem)
    return loss, stats, norm, grad


def cross_entropy_backward(
    problem: Problem, grad_rows: Tensor, stats: Tensor, want: Sequence[bool]
) -> tuple[Tensor, ...]:
    input, rows = problem.input, problem.rows
    dtype = accumulate_dtype(input.dtype)
    classes = input.shape[1]
    grad = torch.empty(input.shape if want[0] else (0,), dtype=input.dtype)
    tables = [torch.empty(classes if wanted else 0, dtype=dtype) for wanted in want[1:4]]
    # dL/d(the row of logits' offsets) of every sample; summed by row below
    by_sample = torch.empty(input.shape if want[4] else (0,), dtype=dtype)
    grad_rows = grad_rows.to(dtype)
    status = _native().cross_entropy(
        *_arguments(problem),
        *(0, 0, 0),
        grad.data_ptr(),
        grad_rows.data_ptr(),
        grad_rows.stride(0),
        *(tensor.data_ptr() for tensor in (by_sample, *tables)),
    )
    _check(status, problem)
    if want[4]:
        assert rows is not None
        index = problem.target if problem.row_index is None else problem.row_index
        if problem.row_index is None:  # ignored rows add their zeros to row 0
            index = index.masked_fill(index == problem.options.ignore_index, 0)
        by_row = torch.zeros_like(rows).index_add_(0, index, by_sample)
    else:
        by_row = torch.empty(0, dtype=dtype)
    return (grad, *tables, by_row)


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    delta = torch.zeros(problem.input.shape, dtype=accumulate_dtype(problem.input.dtype))
    slot = torch.empty_like(problem.target)
    status = _native().learned_perturbation(*_arguments(problem), delta.data_ptr(), slot.data_ptr())
    _check(status, problem)
    return delta, slot


def scale_rows_(buffer: Tensor, grad_loss: Tensor) -> None:
    """buffer (N, C) times the upstream gradient, 0-dim or (N,), in place."""
    if grad_loss.dim():
        buffer.mul_(grad_loss[:, None])
    elif grad_loss.item() != 1:  # no synchronisation: a CPU number
        buffer.mul_(grad_loss)
