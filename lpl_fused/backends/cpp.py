"""Launcher of the vectorised C++ kernels: CPU tensors, every dtype."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import fields
from types import ModuleType

import torch
from torch import Tensor

from ..algebra import groups, learned
from ..algebra.known import Known
from ..algebra.parts import Detail, Kind, Mass, Part, Rivals, Round, Size
from ..algebra.settle import rounds, settle
from ..algebra.sweep import with_steps
from ..algebra.terms import Terms
from ..problem import (
    NONE,
    BinaryProblem,
    NotDifferentiable,
    Problem,
    accumulate_dtype,
    label_range_error,
)
from .contract import Choose, Forward, Gradients
from .native import DTYPES, sizes

__all__ = [
    "binary_forward",
    "binary_gradient",
    "binary_perturbation",
    "binary_rescale_",
    "describe",
    "forward",
    "gradient",
    "learned_gradient",
    "learned_perturbation",
    "perturbed",
    "reduce",
    "rescale_",
    "rounds",
    "settle",
    "unavailable",
    "unsupported",
]

_LABELS = {
    **DTYPES,
    **{torch.bool: 4, torch.uint8: 4, torch.int8: 5, torch.int16: 6, torch.int32: 7},
    torch.int64: 8,
}
_FAULT_TARGET, _FAULT_ROW_INDEX, _FAULT_THROUGH = 1, 2, 3
# of csrc/parts.h
_KINDS: dict[Kind, tuple[int, type[Part]]] = {
    Kind.SIZE: (0, Size),
    Kind.MASS: (1, Mass),
    Kind.DETAIL: (2, Detail),
    Kind.RIVALS: (3, Rivals),
}
_TERMS = len(Terms._fields)

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
            raise label_range_error("target", value, problem.classes, ignore_index)
        if fault == _FAULT_THROUGH:
            raise NotDifferentiable(
                "through_perturbation: the cpp backend differentiates the steps of rows alone in "
                'their class, with unsmoothed labels, no softcap and no norm; use backend="auto"'
            )
        assert problem.rows is not None
        raise label_range_error("row_index", value, problem.rows.shape[0], None)
    solver_rows["solved"] += solved
    solver_rows["swept"] += swept


def forward(problem: Problem, want_grad: bool, choose: Choose | None = None) -> Forward:
    if choose is not None:
        if want_grad and _sweeps_first(problem):
            return _forward_after(problem, choose)
        problem = with_steps(forward, problem, choose)
    input, steps = problem.input, problem.steps
    dtype, reduction = accumulate_dtype(input.dtype), problem.options.reduction
    loss = torch.empty(input.shape[:1] if reduction == NONE else (), dtype=dtype)
    norm = torch.empty((), dtype=dtype)
    grad = torch.empty(input.shape, dtype=input.dtype) if want_grad else None
    terms = None
    if steps is None and (grad is None or (_narrow(grad) and reduction != NONE)):
        terms = torch.empty((input.shape[0], _TERMS), dtype=dtype)
    status = _native().cross_entropy(
        problem,
        _sizes(problem),
        0,
        loss.data_ptr(),
        norm.data_ptr(),
        0 if grad is None else grad.data_ptr(),
        0 if terms is None else terms.data_ptr(),
        *(0, 0),
    )
    _check(status, problem)
    return Forward(loss, norm, terms, grad, None if choose is None else steps)


def _narrow(grad: Tensor) -> bool:
    """16 bits."""
    return grad.element_size() == 2


def _sweeps_first(problem: Problem) -> bool:
    """Whether the sweep that gives the losses without steps can serve those with them."""
    options = problem.options
    plain = not (problem.dense or problem.smooth or options.softcap or options.norm_p)
    return plain and problem.input.dtype in (torch.float32, torch.float64)


def _forward_after(problem: Problem, choose: Choose) -> Forward:
    input, sizes = problem.input, _sizes(problem)
    rows = input.shape[0]
    losses, swept = torch.empty(rows, dtype=input.dtype), torch.empty((rows, 3), dtype=input.dtype)
    grad, norm = torch.empty(input.shape, dtype=input.dtype), torch.empty((), dtype=input.dtype)
    native = _native()
    places = swept.data_ptr(), losses.data_ptr(), grad.data_ptr()
    _check(native.sweep(problem, sizes, *places), problem)
    problem = problem._replace(steps=choose(losses))
    loss = torch.empty((rows,) if problem.options.reduction == NONE else (), dtype=input.dtype)
    places = swept.data_ptr(), loss.data_ptr(), norm.data_ptr(), grad.data_ptr()
    _check(native.cross_entropy(problem, sizes, *places, *(0, 0, 0)), problem)
    return Forward(loss, norm, None, grad, problem.steps)


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    grad, norm = forward.grad, forward.norm
    assert grad is not None
    assert norm is not None
    if not _narrow(grad) or _scales_exactly(upstream):
        return _scaled_(grad, upstream)
    upstream = (upstream / norm).expand(grad.shape[0])
    if forward.terms is None:
        return _recomputed(problem, upstream, grad)
    _differentiate(problem, Known(forward.terms), upstream, grad)
    return grad


def _scales_exactly(upstream: Tensor) -> bool:
    """Whether products with it need no rounding, or are beyond it: powers of two, 0, inf and nan."""
    if upstream.dim() == 0:
        factor = upstream.item()
        return not math.isfinite(factor) or abs(math.frexp(factor)[0]) in (0, 0.5)
    part = torch.frexp(upstream).mantissa.abs()
    return bool(((part == 0) | (part == 0.5) | ~upstream.isfinite()).all())


def _scaled_(grad: Tensor, upstream: Tensor) -> Tensor:
    """grad (N, C) times the upstream gradient, 0-dim or (N,), in place."""
    _native().scale_rows(
        grad.data_ptr(),
        *grad.shape,
        DTYPES[grad.dtype],
        upstream.data_ptr(),
        upstream.stride(0) if upstream.dim() else 0,
        torch.get_num_threads(),
    )
    return grad


def _recomputed(problem: Problem, upstream: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the input by all of the sweep, for an upstream gradient (N,) of the rows'."""
    upstream = upstream.to(accumulate_dtype(grad.dtype))
    status = _native().cross_entropy(
        problem,
        _sizes(problem),
        *(0, 0, 0),
        grad.data_ptr(),
        0,
        upstream.data_ptr(),
        upstream.stride(0),
    )
    _check(status, problem)
    return grad


def learned_gradient(problem: Problem, upstream: Tensor) -> Tensor:
    return _recomputed(problem, upstream, torch.empty(problem.input.shape, dtype=problem.input.dtype))


def reduce(problem: Problem, round: Round, known: Known) -> Part:
    if round.kind is Kind.GROUP:
        return groups.reduce(problem, round, known, perturbed)
    (n, width), dtype = problem.input.shape, accumulate_dtype(problem.input.dtype)
    kind, part = _KINDS[round.kind]
    tail: tuple[Tensor, ...] = ()
    if round.kind is Kind.RIVALS:
        heads = min(learned.HEADS, width)
        tail = (
            torch.empty((n, learned.order(problem.input.dtype)), dtype=torch.float64),
            torch.empty((n, heads), dtype=torch.int32),
            torch.empty((n, heads), dtype=dtype),
        )
    numbers = torch.empty((n, _numbers(part)), dtype=torch.float64)
    given = _Given(problem, known, round.kind is not Kind.RIVALS)
    status = _native().reduce(
        problem,
        _sizes(problem),
        *given.addresses,
        kind,
        numbers.data_ptr(),
        *((tensor.data_ptr() for tensor in tail) if tail else (0, 0, 0)),
        tail[1].shape[1] if tail else 0,
    )
    _check(status, problem)
    if part is Size:
        return Size.of(numbers, problem.options.norm_p)
    return part.of(numbers, *tail)


@functools.cache
def _numbers(part: type[Part]) -> int:
    """How many numbers of a row a kernel stores."""
    beside = {Size: 1, Rivals: 3}.get(part, 0)
    return len(fields(part)) - beside  # type: ignore[arg-type]


class _Given:
    """What the kernels are told of what is known, kept as long as they run."""

    def __init__(self, problem: Problem, known: Known, moved: bool) -> None:
        self.terms = known.terms.contiguous()
        self.threshold = None if known.threshold is None else known.threshold.double().contiguous()
        self.delta = learned.delta(problem, known, perturbed) if moved else None
        parts = self.terms, self.threshold, self.delta
        self.addresses = tuple(0 if part is None else part.data_ptr() for part in parts)


def perturbed(problem: Problem, known: Known, begin: int, end: int) -> Tensor:
    n, dtype = problem.input.shape[0], accumulate_dtype(problem.input.dtype)
    z = torch.empty((n, end - begin), dtype=dtype)
    given = _Given(problem, known, False)
    status = _native().perturbed(
        problem, _sizes(problem), *given.addresses, begin, end, z.data_ptr()
    )
    _check(status, problem)
    return z


def gradient(
    problem: Problem, known: Known, upstream: Tensor, want: Sequence[str]
) -> Gradients:
    (n, width), dtype = problem.input.shape, accumulate_dtype(problem.input.dtype)
    input = torch.empty((n, width), dtype=problem.input.dtype) if "input" in want else None
    # dL/d(the row of logits' offsets) of every sample; summed by row below
    by_sample = torch.empty((n, width), dtype=dtype) if "rows" in want else None
    sizes = {"scale": width, "offset": width, "margin": problem.classes}
    tables = {name: torch.zeros(sizes[name], dtype=dtype) for name in want if name in sizes}
    _differentiate(problem, known, upstream, input, by_sample, **tables)
    rows = None
    if by_sample is not None:
        assert problem.rows is not None
        index = problem.row_index
        if index is None:  # ignored rows add their zeros to row 0
            ignored = problem.target == problem.options.ignore_index
            index = problem.target.masked_fill(ignored, 0)
        rows = torch.zeros((problem.rows.shape[0], width), dtype=dtype)
        rows.index_add_(0, index, by_sample)
    return Gradients(input=input, rows=rows, **tables)


def _differentiate(
    problem: Problem,
    known: Known,
    upstream: Tensor,
    input: Tensor | None,
    by_sample: Tensor | None = None,
    **tables: Tensor,
) -> None:
    given = _Given(problem, known, True)
    upstream = upstream.to(known.terms.dtype)
    outputs = (input, by_sample, *(tables.get(name) for name in ("scale", "offset", "margin")))
    status = _native().gradient(
        problem,
        _sizes(problem),
        *given.addresses,
        upstream.data_ptr(),
        upstream.stride(0),
        *(0 if output is None else output.data_ptr() for output in outputs),
    )
    _check(status, problem)


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


def binary_forward(problem: BinaryProblem, want_grad: bool) -> Forward:
    input = problem.input
    dtype = accumulate_dtype(input.dtype)
    loss = torch.empty(input.shape if problem.options.reduction == NONE else (), dtype=dtype)
    norm = torch.empty((), dtype=dtype)
    grad = torch.empty(input.shape, dtype=input.dtype) if want_grad else None
    _binary(problem, loss=loss, norm=norm, grad=grad)
    return Forward(loss, norm, None, grad)


def binary_gradient(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    return _binary_gradient(
        problem, upstream, torch.empty(problem.input.shape, dtype=problem.input.dtype)
    )


def _binary_gradient(problem: BinaryProblem, upstream: Tensor, grad: Tensor) -> Tensor:
    upstream = upstream.to(accumulate_dtype(grad.dtype)).contiguous()
    _binary(problem, grad=grad, upstream=upstream)
    return grad


def binary_rescale_(problem: BinaryProblem, forward: Forward, upstream: Tensor) -> Tensor:
    grad, norm = forward.grad, forward.norm
    assert grad is not None
    assert norm is not None
    if _narrow(grad) and not _scales_exactly(upstream):
        return _binary_gradient(problem, upstream / norm, grad)
    return _scaled_(grad, upstream) if upstream.dim() == 0 else grad.mul_(upstream)


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    dtype = accumulate_dtype(problem.input.dtype)
    delta = torch.empty((2, problem.input.shape[1]), dtype=dtype)
    _binary(problem, delta=delta)
    return delta
