"""Launchers of the CUDA kernels: CUDA tensors, every dtype.

binary     the sigmoid link
module     the native module, and how its kernels are queued

As on Triton, no launcher waits for the device: kernels and torch operations are queued on the
current stream, in numbers that shapes and options alone decide, so that a CUDA graph can record
them. (Only `settle`, which every backend shares, looks at how many steps there are.) Sums over
rows run in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...algebra import groups, learned, statistics
from ...algebra.known import Known
from ...algebra.parts import Kind, Part, Round
from ...algebra.settle import rounds, settle
from ...algebra.sweep import with_steps
from ...algebra.terms import Terms
from ...problem import MEAN, NONE, Problem, accumulate_dtype, divides
from ..buffers import gradients, new, table_places
from ..contract import Choose, Form, Forward, Gradients, leaves_terms
from ..native import DTYPES, PARTS, Outputs, Sizes, not_built, replaced
from .binary import (
    binary_forward,
    binary_gradient,
    binary_perturbation,
    binary_rescale_,
    steps_left,
)
from .module import Scratch, native, queue

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
    "outcomes",
    "perturbed",
    "reduce",
    "rescale_",
    "rounds",
    "settle",
    "steps_left",
    "unavailable",
    "unsupported",
]


_native = native


class Buffers(NamedTuple):
    """All that a call writes to."""

    out: Outputs = Outputs()
    scratch: Scratch = Scratch()

    def and_out(self, **tensors: Any) -> Buffers:
        return Buffers(replaced(self.out, tensors), self.scratch)

    def and_scratch(self, **tensors: Any) -> Buffers:
        return Buffers(self.out, replaced(self.scratch, tensors))


@functools.cache
def unavailable() -> str | None:
    try:
        device = _native().device
    except ImportError as error:
        return not_built(error, "nvcc")
    return None if device == "cpu" or torch.cuda.is_available() else "no GPU"


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    if device != _native().device:
        return f"runs on {_native().device} tensors, not on {device}"
    return None if dtype in DTYPES else f"no kernels for {dtype}"


def describe() -> str:
    if _native().device == "cpu":
        return "CUDA C++, its kernels run by the host: for tests, slow"
    return f"CUDA C++ on {torch.cuda.get_device_name()}"


def reduce(problem: Problem, round: Round, known: Known) -> Part:
    if round.kind is Kind.GROUP:
        return groups.reduce(problem, round, known, perturbed)
    if round.kind is Kind.STATISTICS:
        return statistics.reduce(problem, known, perturbed)
    part = PARTS[round.kind]
    n, width = problem.input.shape
    stored = new(problem, n, len(part.numbers()), dtype=torch.float64)
    buffers = Buffers(Outputs(terms=known.terms), Scratch(part=stored))
    beside: tuple[object, ...] = ()
    if round.kind is Kind.SIZE:
        beside = (problem.options.norm_p,)
    elif round.kind is Kind.RIVALS:
        heads, order = min(learned.HEADS, width), learned.order(problem.input.dtype)
        powers = new(problem, n, order, dtype=torch.float64)
        columns, logits = new(problem, n, heads, dtype=torch.int32), new(problem, n, heads)
        beside = powers, columns, logits
        buffers = buffers.and_scratch(
            threshold=known.threshold, powers=powers, head_columns=columns, head_numbers=logits
        )
    else:
        buffers = buffers.and_out(delta=learned.delta(problem, known, perturbed))
    _run(getattr(_native(), round.kind.value), problem, buffers)
    return part.of(stored, *beside)


def perturbed(problem: Problem, known: Known, begin: int, end: int) -> Tensor:
    """z (N, end − begin) of columns of the problem, without learned perturbation."""
    z = new(problem, problem.input.shape[0], end - begin)
    buffers = Buffers(Outputs(terms=known.terms), Scratch(perturbed=z))
    _run(_native().perturbed, problem.columns(begin, end), buffers)
    return z


def gradient(
    problem: Problem,
    known: Known,
    upstream: Tensor,
    want: Sequence[str],
    out: Tensor | None = None,
) -> Gradients:
    upstream = upstream.to(known.terms.dtype)
    input, grad = problem.input, out
    if grad is None and "input" in want:
        grad = new(problem, *input.shape, dtype=input.dtype)
    outputs = Outputs(
        grad=grad,
        grad_rows=upstream,
        grad_rows_stride=upstream.stride(0),
        terms=known.terms,
        delta=learned.delta(problem, known, perturbed),
    )
    if list(want) == ["input"]:
        _run(_native().gradient, problem, Buffers(outputs))
        return Gradients(grad)
    chunk, tables = table_places(problem, want)
    buffers = Buffers(outputs.and_tables(tables), Scratch(chunk=chunk))
    _run(_native().gradient, problem, buffers)
    return gradients(problem, grad, tables)


def forward(
    problem: Problem,
    want_grad: bool,
    choose: Choose | None = None,
    *,
    final: bool = False,
    told: bool = False,
) -> Forward:
    _refuse_parts(problem)
    if choose is not None:
        problem = with_steps(forward, problem, choose)
    input, reduction = problem.input, problem.options.reduction
    n = input.shape[0]
    losses = new(problem, n)
    loss = None if reduction == NONE else new(problem)
    grad = new(problem, *input.shape, dtype=input.dtype) if want_grad else None
    leaves = leaves_terms(problem, want_grad, final)
    terms = new(problem, n, len(Terms._fields)) if leaves else None
    buffers = Buffers(Outputs(loss=loss, grad=grad, terms=terms), Scratch(losses=losses))
    buffers = _with_norm(problem, buffers)
    state = _new_state(problem)
    _run(_native().cross_entropy, problem, _with_steps(problem, buffers, state))
    norm = buffers.out.norm
    if norm is None and not final and (terms is not None or not want_grad):
        norm = losses.new_ones(())
    steps = None if choose is None else problem.steps
    left = () if want_grad or final else state
    found = statistics.of_rows(problem, reduce, learned_perturbation) if told else None
    return Forward(losses if loss is None else loss, norm, terms, grad, steps, left, found)


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    """Which factors would round a 16-bit gradient once more, so that it is made anew, the device
    decides: kernels that have nothing to do return at once."""
    grad, terms = forward.grad, forward.terms
    assert grad is not None
    if forward.steps is not None:
        problem = problem._replace(steps=forward.steps)
    upstream = upstream.to(accumulate_dtype(problem.input.dtype))
    by_row = upstream.dim() == 1
    if by_row and terms is None and _narrow(problem):
        return _anew(problem, upstream, grad)
    stride = upstream.stride(0) if by_row else 0
    buffers = Buffers(Outputs(grad=grad), Scratch(factor=upstream, factor_stride=stride))
    if terms is not None:
        norm = forward.norm if divides(problem) else None
        buffers = buffers.and_out(norm=norm, terms=terms)
    elif _narrow(problem):
        buffers = _with_steps(problem, _with_norm(problem, buffers), _new_state(problem))
    _run(_native().rescale, problem, buffers)
    return grad


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    """(delta, slot): see contract.py"""
    out = _solved(problem).out
    delta, slot = out.delta, out.slot
    assert delta is not None
    assert slot is not None
    return delta, slot


def learned_state(problem: Problem) -> tuple[Form, ...]:
    """The rows' numbers, the columns of their heads and a number of each; the rows by class, what
    there is of classes, and the numbers of those with several rows. Where loss and gradient want δ,
    that of every class."""
    n, classes = problem.input.shape
    dtype = accumulate_dtype(problem.input.dtype)
    code = DTYPES[problem.input.dtype]
    heads = n, min(learned.HEADS, classes)
    return (
        ((n, _native().learned_bytes(code) // dtype.itemsize), dtype),
        (heads, torch.int32),
        (heads, dtype),
        ((3, n), torch.int64),
        ((8,), torch.int32),
        ((_native().group_bytes(n, classes, code),), torch.uint8),
        *((((n, classes), dtype), ((n,), torch.int64)) if _wants_delta(problem) else ()),
    )


def _wants_delta(problem: Problem) -> bool:
    """Whether kernels find loss and gradient under δ, not from what the steps leave: where a target
    is more than one label, and where a norm is measured."""
    options = problem.options
    return (
        options.norm_p > 0
        or options.label_smoothing > 0
        or problem.smoothing is not None
        or problem.other is not None
    )


def learned_gradient(problem: Problem, upstream: Tensor, state: tuple[Tensor, ...] = ()) -> Tensor:
    """dL/d input of a problem with steps, which without a state are taken anew; `upstream` (N,):
    the gradient of each row's loss."""
    _refuse_parts(problem)
    grad = new(problem, *problem.input.shape, dtype=problem.input.dtype)
    if not state:
        return _anew(problem, upstream, grad)
    _run(_native().learned_gradient, problem, _from(problem, state, upstream, grad))
    return grad


def outcomes(problem: Problem) -> Tensor:
    """(N,) what the solver made of each row of a problem with `steps`, by the codes of
    csrc/cuda/call.h. For tests and diagnosis."""
    outcome = _solved(problem).scratch.outcome
    assert outcome is not None
    return outcome


def _solved(problem: Problem) -> Buffers:
    _refuse_parts(problem)
    buffers = _with_steps(problem, Buffers(), _new_state(problem), only_delta=True)
    _run(_native().learned_perturbation, problem, buffers)
    return buffers


def _anew(problem: Problem, upstream: Tensor, grad: Tensor) -> Tensor:
    """Fills `grad` by all sweeps there are, the gradient (N,) of each row's loss known."""
    upstream = upstream.to(accumulate_dtype(problem.input.dtype))
    buffers = Buffers(Outputs(grad=grad, grad_rows=upstream, grad_rows_stride=upstream.stride(0)))
    if problem.options.penalty:
        buffers = _with_norm(problem, buffers)
    buffers = _with_steps(problem, buffers, _new_state(problem))
    _run(_native().cross_entropy, problem, buffers)
    return grad


def _refuse_parts(problem: Problem) -> None:
    options = problem.options
    if options.first or options.classes:
        raise ValueError(
            f"options: expected all columns, got {problem.input.shape[1]} from {options.first} on "
            f"of {problem.classes}; parts are for reduce, settle and gradient"
        )


def _narrow(problem: Problem) -> bool:
    """The logits' dtype has fewer digits than what is calculated in."""
    return problem.input.element_size() == 2


def _run(kernels: Callable[..., None], problem: Problem, buffers: Buffers) -> None:
    """Queues kernels on the current stream of the problem's device."""
    queue(kernels, problem, Sizes.of(problem), *buffers)


def _with_norm(problem: Problem, buffers: Buffers) -> Buffers:
    """The buffers and those of what the losses' sum is divided by."""
    if problem.normalizer is not None:
        return buffers.and_out(norm=problem.normalizer)
    if problem.options.reduction != MEAN:
        return buffers
    weight = new(problem) if problem.options.penalty else None
    return buffers.and_out(norm=new(problem)).and_scratch(penalty_weight=weight)


def _new_state(problem: Problem) -> tuple[Tensor, ...]:
    """Memory of `learned_state`, where there is a learned perturbation."""
    if problem.steps is None:
        return ()
    return tuple(new(problem, *shape, dtype=dtype) for shape, dtype in learned_state(problem))


def _with_state(
    problem: Problem, buffers: Buffers, state: tuple[Tensor, ...], *, only_delta: bool = False
) -> Buffers:
    rows, columns, numbers, classes, flags, groups, *delta = state
    order, begin, counts = classes.unbind(0)
    n, width = problem.input.shape
    if only_delta and not delta:
        delta = [new(problem, n, width), new(problem, n, dtype=torch.int64)]
    if delta:
        buffers = buffers.and_out(delta=delta[0], slot=delta[1])
    # rows that take plain steps share the memory of as many classes as are at work at once
    teams = min(n, _native().most_teams(problem.input.get_device()))
    return buffers.and_scratch(
        order=order,
        begin=begin,
        counts=counts,
        flags=flags,
        learned=rows,
        head_columns=columns,
        head_numbers=numbers,
        groups=groups if groups.numel() else None,
        teams=teams,
        swept=new(problem, teams, width),
    )


def _from(problem: Problem, state: tuple[Tensor, ...], upstream: Tensor, grad: Tensor) -> Buffers:
    """The buffers of a gradient from what a forward has left."""
    upstream = upstream.to(accumulate_dtype(problem.input.dtype))
    out = Outputs(grad=grad, grad_rows=upstream, grad_rows_stride=upstream.stride(0))
    return _with_state(problem, Buffers(out), state)


def _with_steps(
    problem: Problem, buffers: Buffers, state: tuple[Tensor, ...], *, only_delta: bool = False
) -> Buffers:
    """The buffers and those that the learned perturbation needs, if there is one."""
    if problem.steps is None:
        return buffers
    buffers = _with_state(problem, buffers, state, only_delta=only_delta)
    outcome = new(problem, problem.input.shape[0], dtype=torch.int32)
    return buffers.and_scratch(outcome=outcome)
