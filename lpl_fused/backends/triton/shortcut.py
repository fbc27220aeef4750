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
from ..kernels.arguments import FELL_BACK, TERMS, Upstream, Wanted
from ..kernels.launch import filling_meta, sweep_meta
from . import launching, learned
from .arguments import arguments_of, form_of, prepared
from .launching import kernels


def forward(
    problem: Problem,
    want_grad: bool,
    choose: Choose | None = None,
    *,
    final: bool = False,
    told: bool = False,
) -> Forward:
    if choose is not None:
        problem = with_steps(forward, problem, choose)
    steps = None if choose is None else problem.steps
    how = None if problem.steps is None else learned.how(problem)
    if how is not None and how.solves:
        left = _learned(problem, how, want_grad, final, told)
        return left if steps is None else left._replace(steps=steps)
    input = problem.input
    n = input.shape[0]
    norm = normalizer(problem) if divides(problem) else None
    losses = new(problem, n)
    terms = new(problem, n, TERMS) if leaves_terms(problem, want_grad, final) else None
    grad = like(input) if want_grad else None
    wanted, found = Wanted(losses=losses, terms=terms, grad=grad), None
    if told:
        found = _told(problem)
        wanted = _telling(problem, found, wanted)
    _sweep(problem, wanted, Upstream(norm))
    return Forward(_reduced(problem, losses, norm), norm, terms, grad, steps, statistics=found)


def _told(problem: Problem) -> RowStatistics:
    """Places for what is told of rows."""
    n, input = problem.input.shape[0], problem.input
    return RowStatistics(*(new(problem, n, dtype=each) for each in dtypes(input.dtype)))


def _telling(problem: Problem, found: RowStatistics, wanted: Wanted) -> Wanted:
    """With that beside."""
    return wanted._replace(aim=statistics.aim(problem), **found._asdict())


def _reduced(problem: Problem, losses: Tensor, norm: Tensor | None) -> Tensor:
    loss = losses if problem.options.reduction == NONE else losses.sum()
    return loss if norm is None else loss / norm


def _learned(
    problem: Problem, how: learned.How, want_grad: bool, final: bool, told: bool
) -> Forward:
    """`forward` of a problem that the solver solves."""
    n = problem.input.shape[0]
    losses, reduced = new(problem, n), None
    norm: Tensor | None
    if problem.options.reduction == NONE or n == 0:
        norm = normalizer(problem) if divides(problem) else None
    else:
        reduced, norm = learned.reduction(problem)
    memory, saved, arguments = learned.solve(problem, how, losses, told=told)
    learned.finish(problem, arguments, saved, Wanted(losses=losses), Upstream(), reduced)
    loss = _reduced(problem, losses, norm) if reduced is None else reduced.loss
    found = None
    if told:
        found = _told(problem)
        learned.tell(problem, arguments, saved, _telling(problem, found, Wanted()))
    if not want_grad:
        return Forward(loss, norm, state=() if final else (memory,), statistics=found)
    grad = like(problem.input)
    upstream = Upstream(norm)
    learned.gradient(problem, arguments, saved, upstream, grad)
    return Forward(loss, norm, grad=grad, statistics=found)


def _sweep(
    problem: Problem, wanted: Wanted, upstream: Upstream, unless: Tensor | None = None
) -> None:
    """Leaves what is wanted; nothing where `unless`, 0-dim, scales 16 bits exactly."""
    n = problem.input.shape[0]
    if problem.steps is None:
        form = form_of(problem)
        arguments = prepared(problem, wanted.terms, unless, form)
    else:
        form = learned.how(problem).form
        arguments, _ = learned.with_learned(problem, wanted.terms, unless)
    kernel = kernels.forward.forward
    launching.launch(kernel, (n,), arguments, upstream, wanted, **form.sweep)


def _learned_anew(
    problem: Problem, upstream: Upstream, grad: Tensor, unless: Tensor | None = None
) -> Tensor:
    """The gradient of a problem with steps, of which nothing is known; nothing where `unless`."""
    how = learned.how(problem)
    if how.solves:
        losses = new(problem, problem.input.shape[0])
        _, saved, arguments = learned.solve(problem, how, losses, unless)
        learned.gradient(problem, arguments, saved, upstream, grad)
    else:
        _sweep(problem, Wanted(grad=grad), upstream, unless)
    return grad


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    kernel = kernels.gradient
    grad = forward.grad
    assert grad is not None
    n, classes = grad.shape
    stride = upstream.stride(0) if upstream.dim() else 0
    norm = forward.norm if divides(problem) else None
    factors = Upstream(norm, upstream, stride)
    labels = None if problem.target.is_floating_point() else problem.target
    ignored = labels, problem.other, problem.options.ignore_index
    scaled = (grad, upstream, stride, classes, *ignored)
    meta = filling_meta(classes)
    if grad.element_size() > 2:
        launching.launch(kernel.scale_rows, (n,), *scaled, EXACTLY=False, **meta)
    elif problem.steps is None:
        arguments = arguments_of(problem, forward.terms)
        launching.launch(kernel.rescale_rows, (n,), arguments, factors, grad, **sweep_meta(problem))
    elif upstream.dim():
        _learned_anew(problem, factors, grad)
    else:
        launching.launch(kernel.scale_rows, (n,), *scaled, EXACTLY=True, **meta)
        _learned_anew(problem, factors, grad, unless=upstream)
    return grad


def learned_state(problem: Problem) -> tuple[Form, ...]:
    if problem.steps is None:
        return ()
    how = learned.how(problem)
    return (((how.saved.size,), torch.uint8),) if how.solves else ()


def learned_gradient(problem: Problem, upstream: Tensor, state: tuple[Tensor, ...] = ()) -> Tensor:
    """dL/d input (N, C) of a problem with steps; `upstream` (N,) the gradient of each row's loss.
    Steps that `state` does not know, those of classes left to plain steps, are taken anew."""
    grad = like(problem.input)
    factors = Upstream(rows=upstream, stride=upstream.stride(0))
    if not state:
        return _learned_anew(problem, factors, grad)
    how = learned.how(problem)
    saved = learned.Saved.within(how, *state)
    learned.gradient(problem, prepared(problem, form=how.form), saved, factors, grad)
    return grad


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    arguments, _ = learned.with_learned(problem)
    return arguments.delta, arguments.slot.clone()  # not all of the memory that it is in


def fallbacks(problem: Problem) -> Tensor:
    """0-dim: how many rows of a problem with `steps` the solvers leave to plain steps because they
    are not exact enough (kernels/solver.py, kernels/group_solver.py). For tests and diagnosis."""
    return (learned.with_learned(problem)[1] == FELL_BACK).sum()
