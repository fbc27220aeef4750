"""The operators: schemas, fakes, autograd. Imports torch alone; a backend is loaded when it runs.

    cross_entropy(Problem, backend, want_grad) -> (loss, stats, norm, grad)
        loss   0-dim, or (N,) for reduction "none"; accumulate dtype
        grad   (N, C), input dtype, dL/d input for an upstream gradient of 1; if wanted
        stats  (backend.STATS, N): what the backend's backward wants to know of the rows, for
               Triton the maximum m and Σ exp(z − m), without the target's own term where the
               target is one label (so that 1 − p_y keeps its digits); unless grad is wanted
        norm   0-dim: what the loss was divided by (1 unless reduction is "mean"); as stats
    cross_entropy_backward(Problem, backend, grad_rows, stats, want)
            -> (input, *TABLES), empty where not wanted
        grad_rows  (N,), stride 0 or 1: the gradient of each row's loss
    learned_perturbation(Problem, backend) -> (delta (N, C), slot (N,))
        as reference.learned_perturbation

A launcher of a backend returns None where its operator returns an empty tensor.

A problem with `steps` is differentiated with its δ held constant; tables that want a gradient
beside it are served by functional/, which hands δ over as `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import load
from ..problem import NONE, TABLES, Options, Problem, accumulate_dtype
from .dispatch import SCHEMA, Once, direct, given, packed, register

_LIBRARY = torch.library.Library("lpl_fused", "DEF")
_LIBRARY.define(
    f"cross_entropy({SCHEMA}, bool want_grad)"
    " -> (Tensor loss, Tensor stats, Tensor norm, Tensor grad)"
)
_LIBRARY.define(
    f"cross_entropy_backward({SCHEMA}, Tensor grad_rows, Tensor stats, bool[] want)"
    f" -> ({', '.join(f'Tensor {name}' for name in ('input', *TABLES))})"
)
_LIBRARY.define(f"learned_perturbation({SCHEMA}) -> (Tensor delta, Tensor slot)")


def _unpacked(
    input: Tensor,
    target: Tensor,
    parts: Sequence[Tensor | None],
    codes: Sequence[int],
    numbers: Sequence[float],
) -> Problem:
    return Problem(input, target, *parts, Options.unpacked(codes, numbers))  # type: ignore


def _cross_entropy(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    loss, stats, norm, grad = load(backend).cross_entropy(problem, want_grad)
    if want_grad:
        return loss, loss.new_empty(0), loss.new_empty(0), grad
    if stats is None:
        stats = loss.new_empty((0, input.shape[0]))
    return loss, stats, norm, input.new_empty(0)


def _cross_entropy_backward(  # type: ignore[no-untyped-def]
    input, target, parts, codes, numbers, backend, grad_rows, stats, want
):
    problem = _unpacked(input, target, parts, codes, numbers)
    return load(backend).cross_entropy_backward(problem, grad_rows, stats, want)


def _learned_perturbation(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load(backend).learned_perturbation(problem)


def _cross_entropy_fake(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    n, classes = input.shape
    reduction = Options.unpacked(codes, numbers).reduction
    loss = input.new_empty((n,) if reduction == NONE else (), dtype=accumulate_dtype(input.dtype))
    if want_grad:
        return loss, loss.new_empty(0), loss.new_empty(0), input.new_empty((n, classes))
    stats = loss.new_empty((load(backend).STATS, n))
    return loss, stats, loss.new_empty(()), input.new_empty(0)


def _cross_entropy_backward_fake(  # type: ignore[no-untyped-def]
    input, target, parts, codes, numbers, backend, grad_rows, stats, want
):
    problem = _unpacked(input, target, parts, codes, numbers)
    tables = (getattr(problem, name) for name in TABLES)
    return (
        input.new_empty(input.shape if want[0] else (0,)),
        *(
            stats.new_empty(table.shape if wanted else (0,))
            for table, wanted in zip(tables, want[1:], strict=True)
        ),
    )


def _learned_perturbation_fake(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    delta = input.new_empty(input.shape, dtype=accumulate_dtype(input.dtype))
    return delta, torch.empty_like(target)


_forward_op = register(_LIBRARY, "cross_entropy", _cross_entropy, _cross_entropy_fake)
_backward_op = register(
    _LIBRARY, "cross_entropy_backward", _cross_entropy_backward, _cross_entropy_backward_fake
)
_perturbation_op = register(
    _LIBRARY, "learned_perturbation", _learned_perturbation, _learned_perturbation_fake
)

Choose = Callable[[Tensor], Tensor]

_TABLE_FIELDS = tuple(Problem._fields.index(name) for name in TABLES)
_BEFORE_TENSORS = 3  # options, backend and choose stand before the tensors in CrossEntropy.apply


def _forward(problem: Problem, backend: str, want_grad: bool) -> tuple[Tensor | None, ...]:
    if direct(problem.input):
        return load(backend).cross_entropy(problem, want_grad)  # type: ignore[no-any-return]
    return _forward_op(*packed(problem, backend), want_grad)  # type: ignore[no-any-return]


class CrossEntropy(torch.autograd.Function):
    """Loss of a problem with its gradient, once differentiable.

    Two ways to the gradient. *In the forward sweep*, into a buffer of our own: one exponential
    per logit; the buffer is handed over to the first backward, a second one recomputes.
    *Recomputed* from the saved row statistics: where tables want gradients too, and for float16,
    whose small gradients live only after the upstream factor (a loss scaler's) was applied.

    `tensors` are the leading fields of a Problem, up to the last that is present. `choose`, if
    any, makes the steps of the learned perturbation from the losses of the rows without it.
    """

    @staticmethod
    def forward(
        ctx: Any, options: Options, backend: str, choose: Choose | None, *tensors: Tensor | None
    ) -> Tensor:
        tables_wanted = any(ctx.needs_input_grad[_BEFORE_TENSORS + 2 :])
        in_sweep = not tables_wanted and tensors[0].dtype != torch.float16  # type: ignore[union-attr]
        if choose is None:
            loss, stats, norm, grad = _forward(_problem(tensors, options), backend, in_sweep)
        else:
            problem = _problem(tensors, options)
            loss, grad, problem = load(backend).cross_entropy_after(problem, choose)
            tensors = problem[:-1]
        ctx.options, ctx.backend, ctx.buffer = options, backend, None
        if not in_sweep:
            ctx.save_for_backward(*tensors, stats, norm, None)
        elif torch.compiler.is_compiling():
            ctx.save_for_backward(*tensors, None, None, grad)
        else:
            ctx.buffer = grad
            ctx.save_for_backward(*tensors, None, None, None)
        return loss  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return _backward(ctx, grad_loss)
        # create_graph=True. once_differentiable would let a constant upstream pass, and with it a
        # second derivative without the loss's own part; it also costs every backward 10 µs
        with torch.no_grad():
            grads = _backward(ctx, grad_loss)
        anchors = [tensor for tensor in ctx.saved_tensors if tensor is not None]
        return tuple(g if g is None else Once.apply(g, grad_loss, *anchors) for g in grads)


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    buffer, ctx.buffer = ctx.buffer, None
    if buffer is not None:
        load(ctx.backend).scale_rows_(buffer, grad_loss)
        return _only_input(ctx, buffer)
    *tensors, stats, norm, grad = ctx.saved_tensors
    if grad is not None:
        factor = grad_loss[:, None] if grad_loss.dim() else grad_loss
        return _only_input(ctx, (grad * factor).to(grad.dtype))
    problem = _problem(tensors, ctx.options)
    if norm is None:  # the buffer went to an earlier backward
        _, stats, norm, _ = _forward_op(*packed(problem, ctx.backend), False)
    if stats is None:
        stats = norm.new_empty((0, problem.input.shape[0]))
    needed = (*ctx.needs_input_grad[_BEFORE_TENSORS:], *[False] * len(Problem._fields))
    want = [needed[field] for field in (0, *_TABLE_FIELDS)]
    grad_rows = grad_loss
    if not grad_loss.dim():
        grad_rows = (grad_loss / norm).expand(problem.input.shape[0])
    found = _backward_op(*packed(problem, ctx.backend), grad_rows, stats, want)
    grads: list[Tensor | None] = [None] * len(tensors)
    for field, wanted, grad in zip((0, *_TABLE_FIELDS), want, found, strict=True):
        if wanted:
            grads[field] = grad
    inputs = len(ctx.needs_input_grad) - _BEFORE_TENSORS
    return (*[None] * _BEFORE_TENSORS, *grads[:inputs])


def _only_input(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    others = len(ctx.needs_input_grad) - _BEFORE_TENSORS - 1
    return (*[None] * _BEFORE_TENSORS, grad, *[None] * others)


def _problem(tensors: Sequence[Tensor | None], options: Options) -> Problem:
    return Problem(*tensors, options=options)  # type: ignore


def cross_entropy(problem: Problem, backend: str, choose: Choose | None = None) -> Tensor:
    """The loss of a problem, differentiable with respect to its input and its tables.

    `choose` makes its steps from the losses (N,) of its rows without them, if `one_sweep` allows.
    """
    if torch.is_grad_enabled() and (problem.input.requires_grad or tables_learn(problem)):
        return CrossEntropy.apply(problem.options, backend, choose, *given(problem))  # type: ignore[no-any-return]
    return _forward(problem, backend, False)[0]  # type: ignore[return-value]


def one_sweep(problem: Problem, backend: str) -> bool:
    """Whether the sweep that gives the losses without learned perturbation can serve it too."""
    return (
        torch.is_grad_enabled()
        and problem.input.requires_grad
        and direct(problem.input)
        and not tables_learn(problem)
        and load(backend).sweeps_first(problem)
    )


def tables_learn(problem: Problem) -> bool:
    """Whether a table of the problem wants a gradient."""
    for field in _TABLE_FIELDS:
        table = problem[field]
        if table is not None and table.requires_grad:  # type: ignore[union-attr]
            return True
    return False


def learned_perturbation(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """(delta, slot) of a problem with steps; not differentiable."""
    return _perturbation_op(*packed(problem, backend))  # type: ignore[no-any-return]
