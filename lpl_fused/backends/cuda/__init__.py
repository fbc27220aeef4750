"""Launchers of the CUDA kernels: CUDA tensors, every dtype.

binary     the sigmoid link
memory     where in one memory the parts of a learned perturbation are
module     the native module, and how its kernels are queued

As on Triton, no launcher waits for the device: kernels and torch operations are queued on the
current stream, in numbers that shapes and options alone decide, so that a CUDA graph can record
them. (Only the rounds of a learned perturbation, which every backend shares, look at how many
steps there are, and how many rows their classes have.) Sums over rows run in a fixed order, so that
results repeat bit for bit.
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
from ...algebra.statistics import RowStatistics, dtypes
from ...algebra.sweep import with_steps
from ...algebra.terms import Terms
from ...problem import MEAN, NONE, Problem, accumulate_dtype, divides
from ..buffers import gradients, like, new, of_rows, table_places
from ..contract import Choose, Form, Forward, Gradients, leaves_terms
from ..native import DTYPES, PARTS, Outputs, Place, Sizes, not_built, replaced
from . import memory
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
_made = tuple.__new__
_TERMS = len(Terms._fields)
_TEAMS = Scratch._fields.index("teams")
# what stands behind the first fields of these, where they are all that is said: to say so by name,
# or to ask a named tuple for its defaults, costs the host more than to read it
_NO_MORE_OUTPUTS = Outputs()[6:]
_NO_RANKS = Scratch()[2 : Scratch._fields.index("flags")]
_NO_MORE_SCRATCH = Scratch()[Scratch._fields.index("flags") + 1 :]
_BEFORE_FACTOR = Scratch()[: Scratch._fields.index("factor")]
_BEHIND_FACTOR = Scratch()[Scratch._fields.index("factor_stride") + 1 :]
_DIVISOR = Scratch._fields.index("divisor")
_BEFORE_DIVISOR, _BEHIND_DIVISOR = Scratch()[:_DIVISOR], Scratch()[_DIVISOR + 1 :]


class Buffers(NamedTuple):
    """All that a call writes to."""

    out: Outputs = Outputs()
    scratch: Scratch = Scratch()
    held: tuple[Tensor, ...] = ()  # until all is queued: memory that addresses are within

    def and_out(self, **tensors: Any) -> Buffers:
        return Buffers(replaced(self.out, tensors), self.scratch, self.held)

    def and_scratch(self, **tensors: Any) -> Buffers:
        return Buffers(self.out, replaced(self.scratch, tensors), self.held)


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
    norm: Tensor | None = None,
) -> Gradients:
    only_input = list(want) == ["input"]
    if not only_input:  # the kernels of tables ask for it once a logit
        upstream, norm = of_rows(problem, upstream, norm), None
    if upstream.dtype != known.terms.dtype:
        upstream = upstream.to(known.terms.dtype)
    input, grad = problem.input, out
    if grad is None and "input" in want:
        grad = like(input)
    delta = learned.delta(problem, known, perturbed)
    stride = upstream.stride(0) if upstream.dim() else 0
    rows = None, None, grad, upstream, stride, known.terms
    outputs: Outputs = _made(Outputs, (*rows, *_NO_MORE_OUTPUTS))
    if delta is not None:
        outputs = replaced(outputs, {"delta": delta})
    if only_input:
        _run(_native().gradient, problem, Buffers(outputs, _over(norm)))
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
    return_stats: bool = False,
) -> Forward:
    _refuse_parts(problem)
    if choose is not None:
        problem = with_steps(forward, problem, choose)
    input, options = problem.input, problem.options
    n, dtype, device = input.shape[0], accumulate_dtype(input.dtype), input.device
    grad = like(input) if want_grad else None
    terms = None
    if not final and leaves_terms(problem, want_grad, final):
        terms = torch.empty(size=(n, _TERMS), dtype=dtype, device=device)
    norm: Place = problem.normalizer
    averages = norm is None and options.reduction == MEAN
    # who asks for the norm later gets a tensor of its own
    if averages and not final and (not want_grad or input.element_size() == 2):
        norm = torch.empty(size=(), dtype=dtype, device=device)
    each = options.reduction == NONE
    losses = torch.empty(n if each else n + 2 + memory.FLAGS, dtype=dtype, device=device)
    loss = losses if each else torch.empty(size=(), dtype=dtype, device=device)
    beside = losses.data_ptr() + n * dtype.itemsize
    if averages and norm is None:
        norm = beside
    weight = beside + dtype.itemsize if averages and options.penalty else None
    flags = beside + 2 * dtype.itemsize if averages else None
    place = None if each else loss
    out: Outputs = _made(Outputs, (place, norm, grad, None, 0, terms, *_NO_MORE_OUTPUTS))
    scratch: Scratch = _made(Scratch, (losses, weight, *_NO_RANKS, flags, *_NO_MORE_SCRATCH))
    left: tuple[Tensor, ...] = ()
    found = None
    if return_stats:
        (out, scratch, _), found = _with_stats(problem, Buffers(out, scratch))
    if problem.steps is not None:
        out, scratch, held = _with_steps(problem, Buffers(out, scratch))
        left = () if want_grad or final else held[:1]
    queue(_native().cross_entropy, problem, Sizes.of(problem), out, scratch)
    steps = None if choose is None else problem.steps
    kept = norm if isinstance(norm, Tensor) else None
    return Forward(loss, kept, terms, grad, steps, left, found)


def _with_stats(problem: Problem, buffers: Buffers) -> tuple[Buffers, RowStatistics]:
    """The buffers with places for statistics of the rows, and those; with room for δ of classes
    with several rows, which that asks for."""
    n = problem.input.shape[0]
    found = RowStatistics(*(new(problem, n, dtype=each) for each in dtypes(problem.input.dtype)))
    buffers = buffers.and_out(**found._asdict())
    buffers = buffers.and_scratch(aim=statistics.aim(problem).contiguous())
    if problem.steps is not None and not _wants_delta(problem):
        slot = new(problem, n, dtype=torch.int64)
        buffers = buffers.and_out(delta=new(problem, *problem.input.shape), slot=slot)
    return buffers, found


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    """Which factors would round a 16-bit gradient once more, so that it is made anew, the device
    decides: kernels that have nothing to do return at once."""
    grad, terms = forward.grad, forward.terms
    assert grad is not None
    if forward.steps is not None:
        problem = problem._replace(steps=forward.steps)
    dtype = accumulate_dtype(grad.dtype)
    if upstream.dtype != dtype:
        upstream = upstream.to(dtype)
    by_row = upstream.dim() == 1
    narrow = grad.element_size() == 2
    if by_row and terms is None and narrow:
        return _anew(problem, upstream, grad)
    factor = upstream, upstream.stride(0) if by_row else 0
    out: Outputs = _made(Outputs, (None, None, grad, None, 0, None, *_NO_MORE_OUTPUTS))
    scratch: Scratch = _made(Scratch, (*_BEFORE_FACTOR, *factor, *_BEHIND_FACTOR))
    if not narrow:  # scaled, whatever its terms are
        queue(_native().rescale, problem, Sizes.of(problem), out, scratch)
        return grad
    buffers = Buffers(out, scratch)
    if terms is not None:
        norm = forward.norm if divides(problem) else None
        buffers = buffers.and_out(norm=norm, terms=terms)
    else:
        buffers = _with_norm(problem, buffers)
        if problem.steps is not None:
            buffers = _with_steps(problem, buffers)
    _run(_native().rescale, problem, buffers)
    return grad


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    """(delta, slot): see contract.py"""
    delta, slot, _ = _solved(problem)
    return delta, slot


def learned_state(problem: Problem) -> tuple[Form, ...]:
    """The rows' numbers, the columns of their heads and a number of each; the rows by class, what
    there is of classes, and the numbers of those with several rows. Where loss and gradient want δ,
    that of every class."""
    layout = memory.of_learned(problem, _wants_delta(problem))
    return (((layout.state.size,), torch.uint8),)


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


def learned_gradient(
    problem: Problem,
    upstream: Tensor,
    state: tuple[Tensor, ...] = (),
    norm: Tensor | None = None,
) -> Tensor:
    """dL/d input of a problem with steps, which without a state are taken anew."""
    _refuse_parts(problem)
    grad = like(problem.input)
    if not state:
        return _anew(problem, of_rows(problem, upstream, norm), grad)
    dtype = accumulate_dtype(problem.input.dtype)
    if upstream.dtype != dtype:
        upstream = upstream.to(dtype)
    rows = None, None, grad, upstream, upstream.stride(0) if upstream.dim() else 0, None
    out: Outputs = _made(Outputs, (*rows, *_NO_MORE_OUTPUTS))
    layout = memory.of_learned(problem, _wants_delta(problem))
    buffers = _placed(problem, Buffers(out, _over(norm)), layout, layout.again, *state)
    _run(_native().learned_gradient, problem, buffers)
    return grad


def _over(norm: Tensor | None) -> Scratch:
    """What says that the upstream gradient is to be divided."""
    return _made(Scratch, (*_BEFORE_DIVISOR, norm, *_BEHIND_DIVISOR))


def outcomes(problem: Problem) -> Tensor:
    """(N,) what the solver made of each row of a problem with `steps`, by the codes of
    csrc/cuda/call.h. For tests and diagnosis."""
    return _solved(problem)[2]


def _solved(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(delta, slot, outcome)"""
    _refuse_parts(problem)
    n, width = problem.input.shape
    delta, slot = new(problem, n, width), new(problem, n, dtype=torch.int64)
    outcome = new(problem, n, dtype=torch.int32)
    buffers = _with_steps(problem, Buffers(Outputs(delta=delta, slot=slot)))
    _run(_native().learned_perturbation, problem, buffers.and_scratch(outcome=outcome))
    return delta, slot, outcome


def _anew(problem: Problem, upstream: Tensor, grad: Tensor) -> Tensor:
    """Fills `grad` by all sweeps there are, the gradient (N,) of each row's loss known."""
    upstream = upstream.to(accumulate_dtype(problem.input.dtype))
    buffers = Buffers(Outputs(grad=grad, grad_rows=upstream, grad_rows_stride=upstream.stride(0)))
    if problem.options.penalty:
        buffers = _with_norm(problem, buffers)
    if problem.steps is not None:
        buffers = _with_steps(problem, buffers)
    _run(_native().cross_entropy, problem, buffers)
    return grad


def _refuse_parts(problem: Problem) -> None:
    options = problem.options
    if options.first or options.classes:
        raise ValueError(
            f"options: expected all columns, got {problem.input.shape[1]} from {options.first} on "
            f"of {problem.classes}; parts are for reduce, settle and gradient"
        )


def _run(kernels: Callable[..., None], problem: Problem, buffers: Buffers) -> None:
    """Queues kernels on the current stream of the problem's device."""
    queue(kernels, problem, Sizes.of(problem), buffers.out, buffers.scratch)


def _with_norm(problem: Problem, buffers: Buffers) -> Buffers:
    """The buffers and those of what the losses' sum is divided by."""
    if problem.normalizer is not None:
        return buffers.and_out(norm=problem.normalizer)
    if problem.options.reduction != MEAN:
        return buffers
    weight = new(problem) if problem.options.penalty else None
    return buffers.and_out(norm=new(problem)).and_scratch(penalty_weight=weight)


def _with_steps(problem: Problem, buffers: Buffers) -> Buffers:
    """The buffers and those of a learned perturbation."""
    wants = buffers.out.delta is None and _wants_delta(problem)
    layout = memory.of_learned(problem, wants)
    state = new(problem, layout.state.size, dtype=torch.uint8)
    return _placed(problem, buffers, layout, layout.work, state)


def _placed(
    problem: Problem, buffers: Buffers, layout: memory.Learned, beside: memory.Layout, state: Tensor
) -> Buffers:
    """The buffers and those within the state of a learned perturbation, and the memory `beside` it
    that nobody asks for later."""
    work = new(problem, beside.size, dtype=torch.uint8)
    scratch: list[Any] = list(buffers.scratch)
    for part, held in ((layout.state, state), (beside, work)):
        begin = held.data_ptr()
        for place, offset, _ in part.places:
            scratch[place] = begin + offset
    scratch[_TEAMS] = layout.teams
    out = buffers.out
    if layout.delta:
        begin = state.data_ptr()
        out = replaced(out, {"delta": begin + layout.delta, "slot": begin + layout.slot})
    return Buffers(out, _made(Scratch, scratch), (state, work))
