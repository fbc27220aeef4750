"""Launcher of the vectorised C++ kernels: CPU tensors, every dtype."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..algebra import groups, learned, statistics
from ..algebra.known import Known
from ..algebra.parts import Kind, Part, Rivals, Round, Size, Statistics
from ..algebra.settle import rounds, settle
from ..algebra.statistics import RowStatistics
from ..algebra.sweep import with_steps
from ..algebra.terms import Terms
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
from .buffers import of_rows
from .contract import Choose, Form, Forward, Gradients, leaves_terms
from .native import (
    DTYPES,
    PARTS,
    BinaryOutputs,
    BinarySizes,
    Outputs,
    Sizes,
    load,
    not_built,
    with_known_labels,
)

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
    "learned_state",
    "perturbed",
    "reduce",
    "rescale_",
    "rounds",
    "settle",
    "unavailable",
    "unsupported",
]

_FAULT_TARGET, _FAULT_ROW_INDEX, _FAULT_THROUGH = 1, 2, 3
_TERMS = len(Terms._fields)
CPU = torch.device("cpu")  # whatever device is the default

# Rows whose learned perturbation the solver found, and those that it left to plain steps because
# its error bound was not met; counted since the process began.
solver_rows = {"solved": 0, "swept": 0}
solver_columns = {"solved": 0, "swept": 0}  # the same of the classes of multi-label problems


class Given(NamedTuple):
    """What the kernels get of what is known of a problem's rows."""

    terms: Tensor | None = None
    threshold: Tensor | None = None
    delta: Tensor | None = None

    @staticmethod
    def of(problem: Problem, known: Known, moved: bool = True) -> Given:
        threshold = None if known.threshold is None else known.threshold.double().contiguous()
        delta = learned.delta(problem, known, perturbed) if moved else None
        return Given(known.terms.contiguous(), threshold, delta)


class Sums(NamedTuple):
    """Where they write the sums of a part."""

    numbers: Tensor | None = None
    powers: Tensor | None = None
    columns: Tensor | None = None
    logits: Tensor | None = None
    heads: int = 0


@functools.cache
def _native() -> ModuleType:
    of_labels = BinaryProblem, BinaryOptions, BinarySizes, BinaryOutputs
    return load("_cpu", Problem, Options, Sizes, Outputs, Given, Sums, *of_labels)


@functools.cache
def unavailable() -> str | None:
    try:
        _native()
    except ImportError as error:
        return not_built(error, "a C++ compiler")
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


def forward(
    problem: Problem,
    want_grad: bool,
    choose: Choose | None = None,
    *,
    final: bool = False,
    return_stats: bool = False,
) -> Forward:
    if choose is not None:
        if want_grad and not return_stats and _sweeps_first(problem):
            return _forward_after(problem, choose)
        problem = with_steps(forward, problem, choose)
    input, steps = problem.input, problem.steps
    dtype, reduction = accumulate_dtype(input.dtype), problem.options.reduction
    loss = torch.empty(input.shape[:1] if reduction == NONE else (), dtype=dtype, device=CPU)
    grad = torch.empty(input.shape, dtype=input.dtype, device=CPU) if want_grad else None
    norm = terms = None
    # a wide gradient is scaled as it is
    if not final and (grad is None or _narrow(grad)):
        norm = torch.empty((), dtype=dtype, device=CPU)
        if leaves_terms(problem, want_grad, final):
            terms = torch.empty((input.shape[0], _TERMS), dtype=dtype, device=CPU)
    outputs = Outputs(loss, norm, grad)  # by place, in a third of the time
    if terms is not None:
        outputs = outputs._replace(terms=terms)
    found = None
    if return_stats:
        places = statistics.dtypes(input.dtype)
        found = RowStatistics(*(torch.empty(input.shape[:1], dtype=d, device=CPU) for d in places))
        outputs = outputs._replace(**found._asdict())
    _check(_native().cross_entropy(problem, _sizes(problem), outputs), problem)
    return Forward(loss, norm, terms, grad, None if choose is None else steps, statistics=found)


def _narrow(grad: Tensor) -> bool:
    """16 bits."""
    return grad.element_size() == 2


def _sweeps_first(problem: Problem) -> bool:
    """Whether the sweep that gives the losses without steps can serve those with them."""
    exact = problem.input.dtype in (torch.float32, torch.float64)
    return exact and problem.features <= _swept_features()


@functools.cache
def _swept_features() -> frozenset[str]:
    return frozenset(_native().paths()["one sweep"][0])


def _forward_after(problem: Problem, choose: Choose) -> Forward:
    input, sizes = problem.input, _sizes(problem)
    rows = input.shape[0]
    losses, swept = (
        torch.empty(rows, dtype=input.dtype, device=CPU),
        torch.empty((rows, 3), dtype=input.dtype, device=CPU),
    )
    grad = torch.empty(input.shape, dtype=input.dtype, device=CPU)
    native, outputs = _native(), Outputs(loss=losses, grad=grad, swept=swept)
    _check(native.sweep(problem, sizes, outputs), problem)
    problem = problem._replace(steps=choose(losses))
    loss = torch.empty(
        (rows,) if problem.options.reduction == NONE else (), dtype=input.dtype, device=CPU
    )
    outputs = outputs._replace(loss=loss)
    _check(native.cross_entropy_after(problem, sizes, outputs), problem)
    return Forward(loss, None, None, grad, problem.steps)


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor | None:
    grad, norm = forward.grad, forward.norm
    assert grad is not None
    if not _narrow(grad) or _scales_exactly(upstream):
        return _scaled_(grad, upstream)
    assert norm is not None
    upstream = (upstream / norm).expand(grad.shape[0])
    if forward.terms is None:
        return _recomputed(problem, upstream, grad)
    _differentiate(problem, Known(forward.terms), upstream, Outputs(grad=grad))
    return grad


def _scales_exactly(upstream: Tensor) -> bool:
    """Whether products with it need no rounding, or are beyond it: powers of 2, 0, inf and nan."""
    if upstream.dim() == 0:
        factor = upstream.item()
        return not math.isfinite(factor) or abs(math.frexp(factor)[0]) in (0, 0.5)
    part = torch.frexp(upstream).mantissa.abs()
    return bool(((part == 0) | (part == 0.5) | ~upstream.isfinite()).all())


def _scaled_(grad: Tensor, upstream: Tensor) -> Tensor | None:
    """grad (N, C) times the upstream gradient, 0-dim or (N,), in place; None where that is not
    finite."""
    stride = upstream.stride(0) if upstream.dim() else 0
    n, classes = grad.shape
    dtype, threads = DTYPES[grad.dtype], torch.get_num_threads()
    done = _native().scale_rows(grad, upstream, n, classes, dtype, stride, threads)
    return grad if done else None


def has_label(labels: Tensor, label: int) -> bool:
    """Whether a label is among (N,) labels, contiguous and int64."""
    return bool(_native().has_label(labels, labels.shape[0], label))


def take_margins_(
    z: Tensor, labels: Tensor, margin: Tensor, factor: float, ignore_index: int
) -> bool:
    """Takes factor·margin[y] from the numbers of z (N, C) at the rows' labels y; autograd does not
    hear of it. False, and nothing is done, where a label is ignored or out of range. Labels (N,)
    int64 and margin (C,), of z's dtype, are contiguous."""
    (n, classes), (row, column) = z.shape, z.stride()
    double = z.dtype is torch.float64
    return bool(
        _native().take_margins(
            z, labels, margin, n, classes, row, column, factor, ignore_index, double
        )
    )


def _recomputed(problem: Problem, upstream: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the input by all of the sweep, for an upstream gradient (N,) of the rows'."""
    upstream = upstream.to(accumulate_dtype(grad.dtype))
    outputs = Outputs(grad=grad, grad_rows=upstream, grad_rows_stride=upstream.stride(0))
    _check(_native().cross_entropy(problem, _sizes(problem), outputs), problem)
    return grad


def learned_state(problem: Problem) -> tuple[Form, ...]:
    return ()


def learned_gradient(
    problem: Problem,
    upstream: Tensor,
    state: tuple[Tensor, ...] = (),
    norm: Tensor | None = None,
) -> Tensor:
    grad = torch.empty(problem.input.shape, dtype=problem.input.dtype, device=CPU)
    return _recomputed(problem, of_rows(problem, upstream, norm), grad)


def reduce(problem: Problem, round: Round, known: Known) -> Part:
    if round.kind is Kind.GROUP:
        return groups.reduce(problem, round, known, perturbed)
    (n, width), dtype = problem.input.shape, accumulate_dtype(problem.input.dtype)
    part, kind = PARTS[round.kind], list(PARTS).index(round.kind)
    sums = Sums(torch.empty((n, len(part.numbers())), dtype=torch.float64, device=CPU))
    if part is Rivals:
        heads = min(learned.HEADS, width)
        sums = sums._replace(
            powers=torch.empty(
                (n, learned.order(problem.input.dtype)), dtype=torch.float64, device=CPU
            ),
            columns=torch.empty((n, heads), dtype=torch.int32, device=CPU),
            logits=torch.empty((n, heads), dtype=dtype, device=CPU),
            heads=heads,
        )
    given = Given.of(problem, known, part is not Rivals)
    _check(_native().reduce(problem, _sizes(problem), given, kind, sums), problem)
    beside: tuple[object, ...] = ()
    if part is Rivals:
        beside = sums.powers, sums.columns, sums.logits
    elif part is Size:
        beside = (problem.options.norm_p,)
    elif part is Statistics:
        beside = statistics.likely(problem)
    return part.of(sums.numbers, *beside)  # type: ignore[arg-type]


def perturbed(problem: Problem, known: Known, begin: int, end: int) -> Tensor:
    n, dtype = problem.input.shape[0], accumulate_dtype(problem.input.dtype)
    z = torch.empty((n, end - begin), dtype=dtype, device=CPU)
    given = Given.of(problem, known, moved=False)
    _check(_native().perturbed(problem, _sizes(problem), given, begin, end, z), problem)
    return z


def gradient(
    problem: Problem,
    known: Known,
    upstream: Tensor,
    want: Sequence[str],
    out: Tensor | None = None,
    norm: Tensor | None = None,
) -> Gradients:
    upstream = of_rows(problem, upstream, norm)
    (n, width), dtype = problem.input.shape, accumulate_dtype(problem.input.dtype)
    grad = out
    if grad is None and "input" in want:
        grad = torch.empty((n, width), dtype=problem.input.dtype, device=CPU)
    outputs = Outputs(grad=grad)
    # of `rows` what every sample adds to its row; summed below
    shapes = dict.fromkeys(TABLES, (width,)) | {"margin": (problem.classes,), "rows": (n, width)}
    places = {
        name: torch.zeros(shapes[name], dtype=dtype, device=CPU) for name in TABLES if name in want
    }
    if places:
        outputs = outputs.and_tables({name: places.get(name) for name in TABLES})
    _differentiate(problem, known, upstream, outputs)
    return Gradients(
        input=outputs.grad,
        scale=outputs.grad_scale,
        offset=outputs.grad_offset,
        margin=outputs.grad_margin,
        rows=_by_row(problem, outputs.grad_perturbed) if places else None,
    )


def _by_row(problem: Problem, by_sample: Tensor | None) -> Tensor | None:
    if by_sample is None:
        return None
    assert problem.rows is not None
    index = problem.row_index
    if index is None:  # ignored rows add their zeros to row 0
        ignored = problem.target == problem.options.ignore_index
        index = problem.target.masked_fill(ignored, 0)
    zeros = torch.zeros(
        (problem.rows.shape[0], by_sample.shape[1]), dtype=by_sample.dtype, device=CPU
    )
    return zeros.index_add_(0, index, by_sample)


def _differentiate(problem: Problem, known: Known, upstream: Tensor, outputs: Outputs) -> None:
    upstream = upstream.to(known.terms.dtype)
    outputs = outputs._replace(grad_rows=upstream, grad_rows_stride=upstream.stride(0))
    given = Given.of(problem, known)
    _check(_native().gradient(problem, _sizes(problem), given, outputs), problem)


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    delta = torch.zeros(
        problem.input.shape, dtype=accumulate_dtype(problem.input.dtype), device=CPU
    )
    slot = torch.empty_like(problem.target)
    outputs = Outputs(delta=delta, slot=slot)
    _check(_native().learned_perturbation(problem, _sizes(problem), outputs), problem)
    return delta, slot


def _binary(problem: BinaryProblem, outputs: BinaryOutputs) -> None:
    """Runs the multi-label kernel."""
    problem = with_known_labels(problem)
    sizes = BinarySizes.of(problem, torch.get_num_threads())
    solved, swept = _native().binary_cross_entropy(problem, sizes, outputs)
    solver_columns["solved"] += solved
    solver_columns["swept"] += swept


def binary_forward(problem: BinaryProblem, want_grad: bool) -> Forward:
    input = problem.input
    dtype = accumulate_dtype(input.dtype)
    loss = torch.empty(
        input.shape if problem.options.reduction == NONE else (), dtype=dtype, device=CPU
    )
    grad = torch.empty(input.shape, dtype=input.dtype, device=CPU) if want_grad else None
    norm = torch.empty((), dtype=dtype, device=CPU) if grad is None or _narrow(grad) else None
    _binary(problem, BinaryOutputs(loss=loss, norm=norm, grad=grad))
    return Forward(loss, norm, None, grad)


def binary_gradient(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    grad = torch.empty(problem.input.shape, dtype=problem.input.dtype, device=CPU)
    return _binary_gradient(problem, upstream, grad)


def _binary_gradient(problem: BinaryProblem, upstream: Tensor, grad: Tensor) -> Tensor:
    upstream = upstream.to(accumulate_dtype(grad.dtype)).contiguous()
    each = upstream.dim() > 0
    _binary(problem, BinaryOutputs(grad=grad, upstream=upstream, upstream_each=each))
    return grad


def binary_rescale_(problem: BinaryProblem, forward: Forward, upstream: Tensor) -> Tensor | None:
    grad, norm = forward.grad, forward.norm
    assert grad is not None
    if _narrow(grad) and not _scales_exactly(upstream):
        assert norm is not None
        return _binary_gradient(problem, upstream / norm, grad)
    if upstream.dim() == 0:
        return _scaled_(grad, upstream)
    if problem.options.missing and not upstream.isfinite().all():
        return None
    return grad.mul_(upstream)


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    dtype = accumulate_dtype(problem.input.dtype)
    delta = torch.empty((2, problem.input.shape[1]), dtype=dtype, device=CPU)
    _binary(problem, BinaryOutputs(delta=delta))
    return delta
