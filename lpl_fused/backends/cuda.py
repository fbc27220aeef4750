"""Launcher of the CUDA kernels: CUDA tensors, every dtype, cross-entropy (no multi-label losses).

As on Triton, no launcher waits for the device: kernels and torch operations are queued on the
current stream, in numbers that shapes and options alone decide, so that a CUDA graph can record
them. Sums over rows run in a fixed order, so that results repeat bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import MEAN, NONE, Options, Problem, accumulate_dtype
from .buffers import gradients, new, table_places
from .native import DTYPES, Outputs, Sizes, load

STATS = 0  # rows of the statistics that the backward wants: it recomputes them on chip


class Scratch(NamedTuple):
    """What the kernels need beside; see csrc/cuda/call.h."""

    losses: Tensor | None = None
    penalty_weight: Tensor | None = None
    terms: Tensor | None = None
    order: Tensor | None = None
    begin: Tensor | None = None
    counts: Tensor | None = None
    outcome: Tensor | None = None
    groups: Tensor | None = None
    rowwise: Tensor | None = None
    direction: Tensor | None = None
    chunk: int = 1


class Buffers(NamedTuple):
    """All that a call writes to."""

    out: Outputs = Outputs()
    scratch: Scratch = Scratch()

    def and_out(self, **tensors: Any) -> Buffers:
        return self._replace(out=self.out._replace(**tensors))

    def and_scratch(self, **tensors: Any) -> Buffers:
        return self._replace(scratch=self.scratch._replace(**tensors))


@functools.cache
def _native() -> ModuleType:
    return load("_cuda", Problem, Options, Sizes, Outputs, Scratch)


@functools.cache
def unavailable() -> str | None:
    try:
        device = _native().device
    except ImportError as error:
        return f"its native module was not built ({error}); reinstall with nvcc at hand"
    return None if device == "cpu" or torch.cuda.is_available() else "no GPU"


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    if device != _native().device:
        return f"runs on {_native().device} tensors, not on {device}"
    return None if dtype in DTYPES else f"no kernels for {dtype}"


def describe() -> str:
    if _native().device == "cpu":
        return "CUDA C++, its kernels run by the host: for tests, slow"
    return f"CUDA C++ on {torch.cuda.get_device_name()}"


def sweeps_first(problem: Problem) -> bool:
    """Steps are chosen after a sweep of their own."""
    return False


def cross_entropy(
    problem: Problem, want_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(loss, stats, norm, grad): see ops/"""
    input, reduction = problem.input, problem.options.reduction
    losses = new(problem, input.shape[0])
    loss = None if reduction == NONE else new(problem)
    grad = new(problem, *input.shape, dtype=input.dtype) if want_grad else None
    wanted = Buffers(Outputs(loss=loss, grad=grad), Scratch(losses=losses))
    wanted = _with_norm(problem, wanted)
    _run(_native().cross_entropy, problem, _with_steps(problem, wanted))
    norm = wanted.out.norm
    if norm is None and not want_grad:
        norm = losses.new_ones(())
    return losses if loss is None else loss, None, norm, grad


def cross_entropy_backward(
    problem: Problem, grad_rows: Tensor, stats: Tensor | None, want: list[bool]
) -> tuple[Tensor, ...]:
    """(input, *TABLES), empty where not wanted: see ops/"""
    n, classes = problem.input.shape
    want_input, *want_tables = want
    chunk, tables = table_places(problem, want_tables)
    grad_rows = grad_rows.to(accumulate_dtype(problem.input.dtype))
    out = Outputs(
        grad=new(problem, n, classes, dtype=problem.input.dtype) if want_input else None,
        grad_rows=grad_rows,
        grad_rows_stride=grad_rows.stride(0),
    ).and_tables(tables)
    terms = None if chunk == 1 else new(problem, n, 8)  # for the sums
    wanted = Buffers(out, Scratch(terms=terms, chunk=chunk))
    if problem.options.penalty:
        wanted = _with_norm(problem, wanted)
    _run(_native().cross_entropy, problem, _with_steps(problem, wanted))

    return gradients(problem, out.grad, tables)


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    """(delta, slot): see ops/"""
    buffers = _with_steps(problem, Buffers())
    _run(_native().learned_perturbation, problem, buffers)
    delta, slot = buffers.out.delta, buffers.out.slot
    assert delta is not None
    assert slot is not None
    return delta, slot


def outcomes(problem: Problem) -> Tensor:
    """(N,) what the solver made of each row of a problem with `steps`, by the codes of
    csrc/cuda/call.h. For tests and diagnosis."""
    buffers = _with_steps(problem, Buffers())
    _run(_native().learned_perturbation, problem, buffers)
    assert buffers.scratch.outcome is not None
    return buffers.scratch.outcome


def scale_rows_(buffer: Tensor, grad_loss: Tensor) -> None:
    """Multiplies a finished (N, C) gradient by its upstream gradient, 0-dim or (N,), in place."""
    stride = grad_loss.stride(0) if grad_loss.dim() else 0
    n, classes = buffer.shape
    what = buffer, grad_loss, n, classes, DTYPES[buffer.dtype], stride
    with torch.cuda.device_of(buffer):
        _native().scale_rows(*what, _stream(buffer))


def _run(kernels: Callable[..., None], problem: Problem, buffers: Buffers) -> None:
    """Queues kernels on the current stream of the problem's device."""
    with torch.cuda.device_of(problem.input):
        kernels(problem, Sizes.of(problem), *buffers, _stream(problem.input))


def _with_norm(problem: Problem, buffers: Buffers) -> Buffers:
    """The buffers and those of what a mean divides by."""
    if problem.options.reduction != MEAN:
        return buffers
    weight = new(problem) if problem.options.penalty else None
    return buffers.and_out(norm=new(problem)).and_scratch(penalty_weight=weight)


def _with_steps(problem: Problem, buffers: Buffers) -> Buffers:
    """The buffers and those that the learned perturbation needs, if there is one."""
    if problem.steps is None:
        return buffers
    n, classes = problem.input.shape
    target = problem.target
    # rows by class; those without one are a class of their own, which takes no steps
    without = (target < 0) | (target >= classes) | (target == problem.options.ignore_index)
    label = target.masked_fill(without, classes)
    ordered, order = label.sort(stable=True)
    begin = torch.searchsorted(ordered, label)
    groups = _native().group_bytes(n, classes, DTYPES[problem.input.dtype])
    buffers = buffers.and_out(delta=new(problem, n, classes), slot=order[begin])
    return buffers.and_scratch(
        order=order,
        begin=begin,
        counts=torch.searchsorted(ordered, label, right=True) - begin,
        outcome=new(problem, n, dtype=torch.int32),
        groups=new(problem, groups, dtype=torch.uint8) if groups else None,
        rowwise=new(problem, n, 3),
        direction=new(problem, n, classes) if problem.options.normalize else None,
    )


def _stream(tensor: Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream) if tensor.is_cuda else 0
