"""The shortcut: loss and gradient of a problem that has all its columns, in one sweep."""

from __future__ import annotations

from torch import Tensor

from ...algebra.rows import normalizer
from ...algebra.sweep import with_steps
from ...problem import NONE, Problem, divides
from ..buffers import new
from ..contract import Choose, Form, Forward, leaves_terms
from ..kernels.arguments import FELL_BACK, TERMS, Upstream, Wanted
from ..kernels.launch import filling_meta, row_meta, sweep_meta
from . import launching, learned
from .arguments import arguments_of, group_rows, prepared


def forward(
    problem: Problem, want_grad: bool, choose: Choose | None = None, *, final: bool = False
) -> Forward:
    if choose is not None:
        problem = with_steps(forward, problem, choose)
    input, reduction = problem.input, problem.options.reduction
    n = input.shape[0]
    norm = normalizer(problem)
    losses = new(problem, n)
    terms = new(problem, n, TERMS) if leaves_terms(problem, want_grad, final) else None
    grad = new(problem, *input.shape, dtype=input.dtype) if want_grad else None
    wanted = Wanted(losses=losses, terms=terms, grad=grad)
    state: tuple[Tensor, ...] = ()
    if learned_state(problem) and not (want_grad or final):
        state = _learned_losses(problem, losses)
    else:
        _sweep(problem, wanted, Upstream(norm=norm if divides(problem) else None))
    loss = losses
    if reduction != NONE:
        loss = losses.sum()
    if divides(problem):
        loss = loss / norm
    return Forward(loss, norm, terms, grad, None if choose is None else problem.steps, state)


def _learned_losses(problem: Problem, losses: Tensor) -> tuple[Tensor, ...]:
    """The losses of a problem that the solver solves, and what the gradient wants of it."""
    from ..kernels.forward import forward as kernel

    arguments = prepared(problem)
    memory, saved = learned.new_saved(problem)
    group_rows(problem, arguments, saved.groups)
    learned.solve_rows(problem, arguments, saved.groups, saved.rows, losses)
    saved.outcome.copy_(saved.rows.outcome)  # which stays what the solver of rows has made of it
    arguments = learned.step_classes(problem, arguments, saved)
    what = (arguments, saved.outcome, Upstream(), Wanted(losses=losses))
    launching.launch(kernel, (losses.shape[0],), *what, **row_meta(problem))
    return memory


def _sweep(
    problem: Problem, wanted: Wanted, upstream: Upstream, unless: Tensor | None = None
) -> None:
    """Leaves what is wanted; nothing where `unless`, 0-dim, scales 16 bits exactly."""
    from ..kernels.forward import forward as kernel

    n = problem.input.shape[0]
    arguments, outcome = learned.with_learned(problem, wanted, upstream, unless)
    launching.launch(kernel, (n,), arguments, outcome, upstream, wanted, **row_meta(problem))


def rescale_(problem: Problem, forward: Forward, upstream: Tensor) -> Tensor:
    from ..kernels.gradient import rescale_rows, scale_rows

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
        launching.launch(scale_rows, (n,), *scaled, EXACTLY=False, **meta)
    elif problem.steps is None:
        arguments = arguments_of(problem, forward.terms)
        launching.launch(rescale_rows, (n,), arguments, factors, grad, **sweep_meta(problem))
    elif upstream.dim():
        _sweep(problem, Wanted(grad=grad), factors)
    else:
        launching.launch(scale_rows, (n,), *scaled, EXACTLY=True, **meta)
        _sweep(problem, Wanted(grad=grad), factors, unless=upstream)
    return grad


def learned_state(problem: Problem) -> tuple[Form, ...]:
    return learned.Saved.forms(problem) if learned.solves(problem) else ()


def learned_gradient(problem: Problem, upstream: Tensor, state: tuple[Tensor, ...] = ()) -> Tensor:
    """dL/d input (N, C) of a problem with steps; `upstream` (N,) the gradient of each row's loss.
    Steps that `state` does not know, those of classes left to plain steps, are taken anew."""
    from ..kernels.forward import forward as kernel

    grad = new(problem, *problem.input.shape, dtype=problem.input.dtype)
    factors = Upstream(rows=upstream, stride=upstream.stride(0))
    if not state:
        _sweep(problem, Wanted(grad=grad), factors)
        return grad
    arguments, saved = prepared(problem), learned.Saved.within(problem, state)
    learned.move_rows(problem, arguments, saved.groups, saved.rows, factors, grad=grad)
    arguments = learned.step_classes(problem, arguments, saved, again=True)
    what = (arguments, saved.outcome, factors, Wanted(grad=grad))
    launching.launch(kernel, (grad.shape[0],), *what, **row_meta(problem))
    return grad


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    delta = new(problem, *problem.input.shape)
    arguments, _ = learned.take_steps(problem, Wanted(delta=delta))
    return delta, arguments.slot


def fallbacks(problem: Problem) -> Tensor:
    """0-dim: how many rows of a problem with `steps` the solvers leave to plain steps because they
    are not exact enough (kernels/solver.py, kernels/group_solver.py). For tests and diagnosis."""
    losses = new(problem, problem.input.shape[0])
    _, outcome = learned.take_steps(problem, Wanted(losses=losses))
    return (outcome == FELL_BACK).sum()
