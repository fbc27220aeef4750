"""Launcher of the vectorised C++ kernels: CPU tensors, every dtype."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor

from ..problem import (
    NONE,
    BinaryProblem,
    NotDifferentiable,
    Problem,
    accumulate_dtype,
    label_range_error,
)
from .native import DTYPES, sizes

_LABELS = {
    **DTYPES,
    **{torch.bool: 4, torch.uint8: 4, torch.int8: 5, torch.int16: 6, torch.int32: 7},
    torch.int64: 8,
}
_FAULT_TARGET, _FAULT_ROW_INDEX, _FAULT_THROUGH = 1, 2, 3
STATS = 0  # rows of the statistics that the backward wants: it recomputes them

# Rows whose learned perturbation the solver found, and those that it left to plain steps because
# its error bound was not met; counted since the process began.
solver_rows = {"solved": 0, "swept": 0}
solver_columns = {"solved": 0, "swept": 0}  # the same of the classes of multi-label problems


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
    return None if dtype in DTYPES else f"no kernels for {dtype}"


def describe() -> str:
    return f"C++, {_native().isa()} kernels, {torch.get_num_threads()} threads"


def _sizes(problem: Problem) -> tuple[int, ...]:
    return sizes(problem, torch.get_num_threads())


def _check(status: tuple[int, int, int, int], problem: Problem) -> None:
    fault, value, solved, swept = status
    if fault:
        if fault == _FAULT_TARGET:
            ignore_index = problem.options.ignore_index
            raise label_range_error("target", value, problem.input.shape[1], ignore_index)
        if fault == _FAULT_THROUGH:
            raise NotDifferentiable(
                "through_perturbation: the cpp backend differentiates the steps of rows alone in "
                'their class, with unsmoothed labels, no softcap and no norm; use backend="auto"'
            )
        assert problem.rows is not None
        raise label_range_error("row_index", value, problem.rows.shape[0], None)
    solver_rows["solved"] += solved
    solver_rows["swept"] += swept


def cross_entropy(
    problem: Problem, want_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    input = problem.input
    dtype = accumulate_dtype(input.dtype)
    loss = torch.empty(input.shape[:1] if problem.options.reduction == NONE else (), dtype=dtype)
    norm = None if want_grad else torch.empty((), dtype=dtype)
    grad = torch.empty(input.shape, dtype=input.dtype) if want_grad else None
    status = _native().cross_entropy(
        problem,
        _sizes(problem),
        0,
        loss.data_ptr(),
        0 if norm is None else norm.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        *(0, 0, 0, 0, 0, 0),
    )
    _check(status, problem)
    return loss, None, norm, grad


def sweeps_first(problem: Problem) -> bool:
    """Whether `cross_entropy_after` can do in one sweep what else takes two."""
    options = problem.options
    plain = not (problem.dense or problem.smooth or options.softcap or options.norm_p)
    return plain and problem.input.dtype in (torch.float32, torch.float64)


def cross_entropy_after(
    problem: Problem, choose: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Problem]:
    """(loss, grad, problem with its steps) of a problem whose `steps` are still to be chosen, from
    the losses (N,) of its rows without them; one sweep serves both.
    """
    input, sizes = problem.input, _sizes(problem)
    rows = input.shape[0]
    losses, swept = torch.empty(rows, dtype=input.dtype), torch.empty((rows, 3), dtype=input.dtype)
    grad = torch.empty(input.shape, dtype=input.dtype)
    native = _native()
    places = swept.data_ptr(), losses.data_ptr(), grad.data_ptr()
    _check(native.sweep(problem, sizes, *places), problem)
    problem = problem._replace(steps=choose(losses))
    loss = torch.empty((rows,) if problem.options.reduction == NONE else (), dtype=input.dtype)
    status = native.cross_entropy(
        problem,
        sizes,
        swept.data_ptr(),
        loss.data_ptr(),
        0,
        grad.data_ptr(),
        *(0, 0, 0, 0, 0, 0),
    )
    _check(status, problem)
    return loss, grad, problem


def cross_entropy_backward(
    problem: Problem, grad_rows: Tensor, stats: Tensor | None, want: Sequence[bool]
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
        problem,
        _sizes(problem),
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
    status = _native().learned_perturbation(
        problem, _sizes(problem), delta.data_ptr(), slot.data_ptr()
    )
    _check(status, problem)
    return delta, slot


def _binary(problem: BinaryProblem, **outputs: Tensor | None) -> None:
    """Runs the multi-label kernel; `outputs` are its arguments, absent ones not wanted."""
    input, target = problem.input, problem.target
    if target.dtype not in _LABELS:
        problem = problem._replace(target=target.to(accumulate_dtype(input.dtype)))
        target = problem.target
    sizes = (
        *input.shape,
        input.stride(0),
        target.stride(0),
        DTYPES[input.dtype],
        _LABELS[target.dtype],
        torch.get_num_threads(),
    )
    upstream = outputs.get("upstream")
    places = {name: 0 if t is None else t.data_ptr() for name, t in outputs.items()}
    names = ("loss", "norm", "grad", "upstream")
    solved, swept = _native().binary_cross_entropy(
        problem,
        sizes,
        *(places.get(name, 0) for name in names),
        upstream is not None and upstream.dim() > 0,
        places.get("delta", 0),
    )
    solver_columns["solved"] += solved
    solver_columns["swept"] += swept


def binary_cross_entropy(
    problem: BinaryProblem, want_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    input = problem.input
    dtype = accumulate_dtype(input.dtype)
    loss = torch.empty(input.shape if problem.options.reduction == NONE else (), dtype=dtype)
    norm = None if want_grad else torch.empty((), dtype=dtype)
    grad = torch.empty(input.shape, dtype=input.dtype) if want_grad else None
    _binary(problem, loss=loss, norm=norm, grad=grad)
    return loss, norm, grad


def binary_cross_entropy_backward(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    grad = torch.empty(problem.input.shape, dtype=problem.input.dtype)
    upstream = upstream.to(accumulate_dtype(grad.dtype)).contiguous()
    _binary(problem, grad=grad, upstream=upstream)
    return grad


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    dtype = accumulate_dtype(problem.input.dtype)
    delta = torch.empty((2, problem.input.shape[1]), dtype=dtype)
    _binary(problem, delta=delta)
    return delta


def scale_rows_(buffer: Tensor, grad_loss: Tensor) -> None:
    """buffer (N, C) times the upstream gradient, 0-dim or (N,), in place."""
    stride = grad_loss.stride(0) if grad_loss.dim() else 0
    _native().scale_rows(
        buffer.data_ptr(),
        *buffer.shape,
        DTYPES[buffer.dtype],
        grad_loss.data_ptr(),
        stride,
        torch.get_num_threads(),
    )
