"""Launcher of the vectorised C++ kernels: CPU tensors, every dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import (
    NONE,
    TABLES,
    BinaryOptions,
    BinaryProblem,
    NotDifferentiable,
    Options,
    Problem,
    accumulate_dtype,
    label_range_error,
)
from .native import DTYPES, Outputs, Sizes, load

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


class BinarySizes(NamedTuple):
    """What the kernels are told of a multi-label problem beside the addresses of its tensors."""

    n: int = 0
    c: int = 0
    row_stride: int = 0
    target_stride: int = 0
    dtype: int = 0
    target_type: int = 0
    threads: int = 0


class BinaryOutputs(NamedTuple):
    """Where they write what is wanted, and the gradient that they start from."""

    loss: Tensor | None = None
    norm: Tensor | None = None
    grad: Tensor | None = None
    upstream: Tensor | None = None
    upstream_each: bool = False  # one for each logit
    delta: Tensor | None = None


@functools.cache
def _native() -> ModuleType:
    of_labels = BinaryProblem, BinaryOptions, BinarySizes, BinaryOutputs
    return load("_cpu", Problem, Options, Sizes, Outputs, *of_labels)


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


def _sizes(problem: Problem) -> Sizes:
    return Sizes.of(problem, torch.get_num_threads())


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
    outputs = Outputs(loss=loss, norm=norm, grad=grad)
    _check(_native().cross_entropy(problem, _sizes(problem), outputs), problem)
    return loss, None, norm, grad


def sweeps_first(problem: Problem) -> bool:
    """Whether `cross_entropy_after` can do in one sweep what else takes two."""
    exact = problem.input.dtype in (torch.float32, torch.float64)
    return exact and problem.features <= _swept_features()


@functools.cache
def _swept_features() -> frozenset[str]:
    return frozenset(_native().paths()["one sweep"][0])


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
    native, outputs = _native(), Outputs(loss=losses, grad=grad, swept=swept)
    _check(native.sweep(problem, sizes, outputs), problem)
    problem = problem._replace(steps=choose(losses))
    loss = torch.empty((rows,) if problem.options.reduction == NONE else (), dtype=input.dtype)
    outputs = outputs._replace(loss=loss)
    _check(native.cross_entropy_after(problem, sizes, outputs), problem)
    return loss, grad, problem


def cross_entropy_backward(
    problem: Problem, grad_rows: Tensor, stats: Tensor | None, want: Sequence[bool]
) -> tuple[Tensor, ...]:
    input, rows = problem.input, problem.rows
    dtype = accumulate_dtype(input.dtype)
    classes = input.shape[1]
    grad = torch.empty(input.shape if want[0] else (0,), dtype=input.dtype)
    wanted = dict(zip(TABLES, want[1:], strict=True))
    # of `rows` what every sample adds to its row; summed below
    shapes = dict.fromkeys(TABLES, (classes,)) | {"rows": tuple(input.shape)}
    tables = {
        name: torch.empty(shapes[name] if wanted[name] else (0,), dtype=dtype) for name in TABLES
    }
    grad_rows = grad_rows.to(dtype)
    outputs = Outputs(grad=grad, grad_rows=grad_rows, grad_rows_stride=grad_rows.stride(0))
    status = _native().cross_entropy(problem, _sizes(problem), outputs.and_tables(tables))
    _check(status, problem)
    if wanted["rows"]:
        assert rows is not None
        index = problem.target if problem.row_index is None else problem.row_index
        if problem.row_index is None:  # ignored rows add their zeros to row 0
            index = index.masked_fill(index == problem.options.ignore_index, 0)
        tables["rows"] = torch.zeros_like(rows).index_add_(0, index, tables["rows"])
    return (grad, *tables.values())


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    delta = torch.zeros(problem.input.shape, dtype=accumulate_dtype(problem.input.dtype))
    slot = torch.empty_like(problem.target)
    outputs = Outputs(delta=delta, slot=slot)
    _check(_native().learned_perturbation(problem, _sizes(problem), outputs), problem)
    return delta, slot


def _binary(problem: BinaryProblem, outputs: BinaryOutputs) -> None:
    """Runs the multi-label kernel."""
    input, target = problem.input, problem.target
    if target.dtype not in _LABELS:
        problem = problem._replace(target=target.to(accumulate_dtype(input.dtype)))
        target = problem.target
    n, classes = input.shape
    sizes = BinarySizes(
        n=n,
        c=classes,
        row_stride=input.stride(0),
        target_stride=target.stride(0),
        dtype=DTYPES[input.dtype],
        target_type=_LABELS[target.dtype],
        threads=torch.get_num_threads(),
    )
    solved, swept = _native().binary_cross_entropy(problem, sizes, outputs)
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
    _binary(problem, BinaryOutputs(loss=loss, norm=norm, grad=grad))
    return loss, norm, grad


def binary_cross_entropy_backward(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    grad = torch.empty(problem.input.shape, dtype=problem.input.dtype)
    upstream = upstream.to(accumulate_dtype(grad.dtype)).contiguous()
    each = upstream.dim() > 0
    _binary(problem, BinaryOutputs(grad=grad, upstream=upstream, upstream_each=each))
    return grad


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    dtype = accumulate_dtype(problem.input.dtype)
    delta = torch.empty((2, problem.input.shape[1]), dtype=dtype)
    _binary(problem, BinaryOutputs(delta=delta))
    return delta


def scale_rows_(buffer: Tensor, grad_loss: Tensor) -> None:
    """buffer (N, C) times the upstream gradient, 0-dim or (N,), in place."""
    stride = grad_loss.stride(0) if grad_loss.dim() else 0
    n, classes = buffer.shape
    dtype, threads = DTYPES[buffer.dtype], torch.get_num_threads()
    _native().scale_rows(buffer, grad_loss, n, classes, dtype, stride, threads)
