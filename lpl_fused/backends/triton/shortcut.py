"""The shortcut: loss and gradient of a problem that has all its columns, in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from ...algebra import statistics
from ...algebra.rows import normalizer
from ...algebra.statistics import RowStatistics, dtypes
from ...algebra.sweep import with_steps
from ...problem import NONE, Problem, divides
from ..buffers import like, new
from ..contract import Choose, Form, Forward, leaves_terms
from ..kernels.arguments import FELL_BACK, NOT_REDUCED, TERMS, Reduced, Upstream, Wanted
from ..kernels.launch import counting_meta, filling_meta, sweep_meta
from . import launching, learned
from .arguments import arguments_of, factors_of, form_of, prepared, row_count
from .launching import kernels


def forward(
    problem: Problem,
    want_grad: bool,
    choose: Choose | None = None,
    *,
    final: bool = False,
    return_stats: bool = False,
) -> Forward:
    if choose is not None:
        problem = with_steps(forward, problem, choose)
    steps = None if choose is None else problem.steps
    how = None if problem.steps is None else learned.how(problem)
    if how is not None and how.solves:
        left = _learned(problem, how, want_grad, final, return_stats)
        return left if steps is None else left._replace(steps=steps)
    input, reduction = problem.input, problem.options.reduction
    n, grad = input.shape[0], like(input) if want_grad else None
    terms = new(problem, n, TERMS) if leaves_terms(problem, want_grad, final) else None
    found = _new_stats(problem) if return_stats else None
    wanted = _with_stats(problem, found, Wanted(None, terms, grad))
    if reduction != NONE and 0 < n <= MOST_SUMMED and problem.steps is None:
        loss, norm = _sweep_batch(problem, wanted)
        return Forward(loss, norm, terms, grad, steps, (), found)
    norm = normalizer(problem) if divides(problem) else None
    losses = new(problem, n)
    _sweep(problem, wanted._replace(losses=losses), Upstream(norm))
    loss = losses if reduction == NONE else losses.sum()
    return Forward(loss if norm is None else loss / norm, norm, terms, grad, steps, (), found)


# Rows whose losses one program sums: operations of torch, of many programs each, take less for more
# of them, and the device as long as the host takes for these.
MOST_SUMMED = 8192


def _new_stats(problem: Problem) -> RowStatistics:
    """Places for the statistics of rows."""
    n, input = problem.input.shape[0], problem.input
    return RowStatistics(*(new(problem, n, dtype=each) for each in dtypes(input.dtype)))


def _with_stats(problem: Problem, found: RowStatistics | None, wanted: Wanted) -> Wanted:
    """With places for statistics beside, if there are any."""
    if found is None:
        return wanted
    return wanted._replace(aim=statistics.aim(problem), **found._asdict())


def _learned(
    problem: Problem, how: learned.How, want_grad: bool, final: bool, return_stats: bool
) -> Forward:
    """`forward` of a problem that the solver solves, or whose logits are few."""
    n = problem.input.shape[0]
    reduced = NOT_REDUCED
    norm: Tensor | None
    if problem.options.reduction == NONE or n == 0:
        norm = normalizer(problem) if divides(problem) else None
    else:
        reduced, norm = learned.reduction(problem)
    # those that nobody asks for are within other memory
    losses = new(problem, n) if reduced.loss is None else None
    memory, scratch = learned.new_state(problem, how)
    grad = like(problem.input) if want_grad else None
    found = _new_stats(problem) if return_stats else None

    def launches() -> None:
        if how.few is None:
            assert scratch is not None
            saved = learned.Saved.within(how, memory, scratch)
            each = saved.scratch.losses if losses is None else losses
            arguments = learned.solve(problem, saved, each, return_stats=return_stats)
            learned.finish(problem, arguments, saved, Wanted(losses=each), Upstream(), reduced)
            if found is not None:
                learned.row_stats(problem, arguments, saved, _with_stats(problem, found, Wanted()))
            if grad is not None:
                learned.gradient(problem, arguments, saved, Upstream(norm), grad)
            return
        few = learned.Few.within(how, memory)
        each = few.losses if losses is None else losses
        moved = learned.take_all(problem, how, few, each, reduced)
        if found is not None:
            learned.few_stats(moved, how, _with_stats(problem, found, Wanted()))
        if grad is not None:
            learned.few_gradient(moved, how, Upstream(norm), grad)

    tensors = (*how.form.present(problem), losses, memory, scratch, grad)
    if reduced.loss is not None:
        tensors += (reduced.loss, reduced.norm)
    elif norm is not problem.normalizer:
        tensors += (norm,)
    kind = "forward", reduced.loss is None, return_stats, row_count(problem)
    how.plans.run(kind, tensors, launches)
    loss: Tensor
    if reduced.loss is not None:
        loss = reduced.loss
    else:
        assert losses is not None
        loss = losses if problem.options.reduction == NONE else losses.sum()  # of no rows
        loss = loss if norm is None else loss / norm
    state = () if want_grad or final else (memory,)
    return Forward(loss, norm, None, grad, state=state, statistics=found)


def _sweep(
    problem: Problem, wanted: Wanted, upstream: Upstream, unless: Tensor | None = None
) -> None:
    """Leaves what is wanted; nothing where `unless`, 0-dim, scales 16 bits exactly."""
    n = problem.input.shape[0]
    kernel, alone = kernels.forward.forward, (NOT_REDUCED, None)
    if problem.steps is not None:
        form = learned.how(problem).form
        arguments, _ = learned.with_learned(problem, wanted.terms, unless)
        launching.launch(kernel, (n,), arguments, upstream, wanted, *alone, **form.sweep)
        return
    form, norm = form_of(problem), upstream.norm
    terms = wanted.terms
    if form.measured and terms is None:
        terms = new(problem, n, TERMS)

    def launches() -> None:
        arguments = prepared(problem, terms, unless, form)
        launching.launch(kernel, (n,), arguments, upstream, wanted, *alone, **form.sweep)

    tensors = (*form.present(problem), terms, wanted.losses, wanted.grad)
    if wanted.aim is not None:
        tensors += wanted[_STATS]
    if norm is not problem.normalizer:
        tensors += (norm,)
    kind = "sweep", wanted.terms is None, wanted.aim is None, unless is None, row_count(problem)
    form.plans.run(kind, tensors, launches)


_STATS = slice(Wanted._fields.index("aim"), Wanted._fields.index("outcome"))


def _sweep_batch(problem: Problem, wanted: Wanted) -> tuple[Tensor, Tensor | None]:
    """`_sweep` with losses that are summed in the end: (loss of the batch, what it was divided by,
    if it was and somebody may want that)."""
    n, form = problem.input.shape[0], form_of(problem)
    terms, given, kept = wanted.terms, None, None
    loss, memory = new(problem), new(problem, form.batch.size, dtype=torch.uint8)
    if not form.counts:
        given = normalizer(problem) if divides(problem) else None
    elif wanted.grad is None or terms is not None:
        kept = new(problem)
    if form.measured and terms is None:
        terms = new(problem, n, TERMS)

    def launches() -> None:
        losses, ticket, place = form.batch.within(memory)
        counted = (place if kept is None else kept) if form.counts else None
        norm = counted if given is None else given
        arguments = prepared(problem, terms, None, form)
        count = kernels.batch.count_rows
        launching.launch(count, (1,), arguments, counted, ticket, n, **counting_meta(n))
        summed = wanted._replace(losses=losses), Reduced(loss, None, norm), ticket
        kernel = kernels.forward.forward
        launching.launch(kernel, (n,), arguments, Upstream(norm), *summed, **form.sweep)

    tensors = (*form.present(problem), memory, loss, terms, wanted.grad, kept)
    if wanted.aim is not None:
        tensors += wanted[_STATS]
    if given is not problem.normalizer:
        tensors += (given,)
    kind = "batch", wanted.terms is None, wanted.aim is None, row_count(problem)
    form.plans.run(kind, tensors, launches)
    return loss, kept if given is None else given


def _learned_anew(
    problem: Problem, upstream: Upstream, grad: Tensor, unless: Tensor | None = None
) -> Tensor:
    """The gradient of a problem with steps, of which nothing is known; nothing where `unless`."""
    how = learned.how(problem)
    if how.few is not None:
        few = learned.Few.within(how, learned.new_state(problem, how)[0])
        moved = learned.take_all(problem, how, few, few.losses, unless=unless)
        learned.few_gradient(moved, how, upstream, grad)
    elif how.solves:
        saved = learned.Saved.within(how, *learned.new_saved(problem, how))
        losses = new(problem, problem.input.shape[0])
        arguments = learned.solve(problem, saved, losses, unless)
        learned.gradient(problem, arguments, saved, upstream, grad)
    else:
        _sweep(problem, Wanted(grad=grad), upstream, unless)
    return grad


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    grad = forward.grad
    assert grad is not None
    stride = upstream.stride(0) if upstream.dim() else 0
    if grad.element_size() > 2:
        return _scale(problem, grad, upstream, stride, exactly=False)
    factors = Upstream(forward.norm if divides(problem) else None, upstream, stride)
    if problem.steps is None:
        return _rescale_rows(problem, forward.terms, factors, grad)
    if upstream.dim():
        return _learned_anew(problem, factors, grad)
    _scale(problem, grad, upstream, stride, exactly=True)
    return _learned_anew(problem, factors, grad, unless=upstream)


def _rescale_rows(
    problem: Problem, terms: Tensor | None, factors: Upstream, grad: Tensor
) -> Tensor:
    """The gradient in 16 bits, anew unless it scales exactly."""
    n, form, norm = grad.shape[0], form_of(problem), factors.norm

    def launches() -> None:
        arguments, meta = arguments_of(problem, terms), sweep_meta(problem)
        launching.launch(kernels.gradient.rescale_rows, (n,), arguments, factors, grad, **meta)

    tensors = (*form.present(problem), terms, factors.rows, grad)
    if norm is not problem.normalizer:
        tensors += (norm,)
    form.plans.run(("rescale", factors.stride, row_count(problem)), tensors, launches)
    return grad


def _scale(
    problem: Problem, grad: Tensor, upstream: Tensor, stride: int, *, exactly: bool
) -> Tensor:
    """The gradient times the upstream; `exactly`: only where that rounds nothing."""
    target, other, ignore_index = problem.target, problem.other, problem.options.ignore_index
    labels = target if target.dtype is torch.int64 else None
    shape = grad.shape

    def launches() -> None:
        n, classes = shape
        what = grad, upstream, stride, classes, labels, other, ignore_index
        meta = filling_meta(classes)
        launching.launch(kernels.gradient.scale_rows, (n,), *what, EXACTLY=exactly, **meta)

    kind = grad.dtype, shape, stride, ignore_index, exactly
    _SCALING.run(kind, (grad, upstream, labels, other), launches)
    return grad


_SCALING = launching.Plans()


def learned_state(problem: Problem) -> tuple[Form, ...]:
    if problem.steps is None:
        return ()
    how = learned.how(problem)
    return (((how.left_bytes,), torch.uint8),) if how.solves else ()


def learned_gradient(
    problem: Problem,
    upstream: Tensor,
    state: tuple[Tensor, ...] = (),
    norm: Tensor | None = None,
) -> Tensor:
    """dL/d input (N, C) of a problem with steps. Steps that `state` does not know, those of classes
    left to plain steps, are taken anew."""
    grad, factors = like(problem.input), factors_of(upstream, norm)
    if not state:
        return _learned_anew(problem, factors, grad)
    how, (memory,) = learned.how(problem), state
    scratch = learned.new_scratch(problem, how)

    def launches() -> None:
        if how.few is not None:
            moved = learned.moved(problem, how, learned.Few.within(how, memory))
            learned.few_gradient(moved, how, factors, grad)
            return
        assert scratch is not None
        saved = learned.Saved.within(how, memory, scratch, solves=False)
        learned.gradient(problem, prepared(problem, form=how.form), saved, factors, grad)

    tensors = (*how.form.present(problem), upstream, memory, scratch, grad)
    if factors.norm is not problem.normalizer:
        tensors += (factors.norm,)
    kind = "backward", factors.stride, factors.norm is None, row_count(problem)
    how.plans.run(kind, tensors, launches)
    return grad


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    arguments, _ = learned.with_learned(problem)
    return arguments.delta, arguments.slot.clone()  # not all of the memory that it is in


def fallbacks(problem: Problem) -> Tensor:
    """0-dim: how many rows of a problem with `steps` the solvers leave to plain steps because they
    are not exact enough (kernels/solver.py, kernels/group_solver.py). For tests and diagnosis."""
    return (learned.with_learned(problem)[1] == FELL_BACK).sum()
