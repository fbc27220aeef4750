"""The operators of the sigmoid link.

    binary_cross_entropy(BinaryProblem, backend, want_grad) -> (loss, norm, grad)
        BinaryBackend.binary_forward; what is not there is an empty tensor
    binary_cross_entropy_gradient(BinaryProblem, backend, upstream) -> grad
        upstream  the gradient of each logit's loss, (N, C) or 0-dim
    binary_perturbation(BinaryProblem, backend) -> delta (2, C)
        as reference.sigmoid.learned_perturbation

Logits alone are differentiated; what else requires grad is the reference's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import load_binary
from ..backends.contract import Forward
from ..problem import NONE, BinaryOptions, BinaryProblem, accumulate_dtype
from ..tracing import direct, settled, tangent
from .dispatch import (
    AUTO,
    GONE,
    SCHEMA,
    Moved,
    given,
    kept_as_saved,
    laid_out,
    once_backward,
    packed,
    register,
    sweeps_by,
    unshared,
)

_LIBRARY = torch.library.Library("lpl_fused", "FRAGMENT")
_LIBRARY.define(
    f"binary_cross_entropy({SCHEMA}, bool want_grad) -> (Tensor loss, Tensor norm, Tensor grad)"
)
_LIBRARY.define(f"binary_cross_entropy_gradient({SCHEMA}, Tensor upstream) -> Tensor")
_LIBRARY.define(f"binary_perturbation({SCHEMA}) -> Tensor")


def _unpacked(
    input: Tensor,
    target: Tensor,
    parts: Sequence[Tensor | None],
    codes: Sequence[int],
    numbers: Sequence[float],
) -> BinaryProblem:
    tensors = laid_out(input, target, *parts)
    return BinaryProblem(*tensors, BinaryOptions.unpacked(codes, numbers))  # type: ignore


def _forward_kernel(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    loss, norm, _, grad, *_ = load_binary(backend).binary_forward(problem, want_grad)
    if want_grad:
        return loss, loss.new_empty(0), grad
    return loss, unshared(norm, problem), input.new_empty(0)


def _gradient_kernel(input, target, parts, codes, numbers, backend, upstream):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load_binary(backend).binary_gradient(problem, upstream)


def _perturbation_kernel(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load_binary(backend).binary_perturbation(problem)


def _forward_fake(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    options = BinaryOptions.unpacked(codes, numbers)
    shape = tuple(input.shape) if options.reduction == NONE else ()
    loss = input.new_empty(shape, dtype=accumulate_dtype(input.dtype))
    if want_grad:
        return loss, loss.new_empty(0), input.new_empty(tuple(input.shape))
    return loss, loss.new_empty(()), input.new_empty(0)


def _gradient_fake(input, target, parts, codes, numbers, backend, upstream):  # type: ignore[no-untyped-def]
    return input.new_empty(tuple(input.shape))


def _perturbation_fake(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    return input.new_empty((2, input.shape[1]), dtype=accumulate_dtype(input.dtype))


_forward_op = register(_LIBRARY, "binary_cross_entropy", _forward_kernel, _forward_fake)
_gradient_op = register(_LIBRARY, "binary_cross_entropy_gradient", _gradient_kernel, _gradient_fake)
_perturbation_op = register(
    _LIBRARY, "binary_perturbation", _perturbation_kernel, _perturbation_fake
)


def _forward(
    problem: BinaryProblem, backend: str, want_grad: bool, past: bool | None = None
) -> Forward:
    """`past`: as in softmax.py."""
    if direct(*problem[:-1]) if past is None else past:
        return load_binary(backend).binary_forward(problem, want_grad)
    loss, norm, grad = _forward_op(*packed(problem, backend), want_grad)
    return Forward(loss, norm, grad=grad)


def _forward_of(backend: str, problem: BinaryProblem, want_grad: bool) -> Forward:
    return _forward(problem, backend, want_grad)


class BinaryCrossEntropy(torch.autograd.Function):
    """Loss of a problem with its gradient, once differentiable; by sweep or by statistics (of which
    there are none: the labels and logits again), as softmax.CrossEntropy, whose `call` and
    `tensors` these are, too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: BinaryOptions | BinaryProblem,
        backend: str,
        form: str,
        *tensors: Tensor | None,
    ) -> Tensor:
        if isinstance(call, BinaryProblem):
            problem, tensors = call, call[:-1]
        else:
            problem = _problem(tensors, call)
        options = problem.options
        sweeps, past, held = sweeps_by(form, problem, backend), direct(*tensors), None
        found = _forward(problem, backend, sweeps, past)
        if not sweeps:
            ctx.save_for_backward(*tensors, found.norm)
        elif not past or kept_as_saved():
            ctx.save_for_backward(*tensors, found.grad)
        else:
            labels = problem.target if options.missing else GONE
            of_shape = BinaryProblem(found.grad, labels, options=options)  # type: ignore[arg-type]
            held = of_shape, Forward(GONE, found.norm, grad=found.grad, state=found.state)
            ctx.save_for_backward(*tensors, None)
        ctx.held, ctx.call = held, (options, backend, sweeps, past)
        return found.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return once_backward(ctx, settled(grad_loss), _backward)


# as in softmax.py
_apply = super(torch.autograd.Function, BinaryCrossEntropy).apply


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    others = len(ctx.needs_input_grad) - 4
    return (None, None, None, _of_input(ctx, grad_loss), *(None,) * others)


def _of_input(ctx: Any, grad_loss: Tensor) -> Tensor:
    options, backend, sweeps, past = ctx.call
    held, ctx.held = ctx.held, None
    if held is not None and held[0].input.element_size() > 2:  # as in softmax.py
        grad = load_binary(backend).binary_rescale_(held[0], held[1], grad_loss)
        if grad is not None:
            return grad
        problem = _problem(ctx.saved_tensors[:-1], options)
        return _scaled_past_missing(problem, held[1].grad, grad_loss)
    *tensors, first = ctx.saved_tensors  # raises where one was changed since
    problem = _problem(tensors, options)
    if sweeps:
        if first is not None:  # nobody could hold it
            return _scaled_past_missing(problem, first, grad_loss)
        # the buffer may have gone to an earlier backward
        swept = _forward(problem, backend, True) if held is None else held[1]
        grad = load_binary(backend).binary_rescale_(problem, swept, grad_loss)
        return _scaled_past_missing(problem, swept.grad, grad_loss) if grad is None else grad
    upstream = grad_loss.contiguous() if grad_loss.dim() else grad_loss / first
    if past and direct(upstream):
        return load_binary(backend).binary_gradient(problem, upstream)
    return _gradient_op(*packed(problem, backend), upstream)  # type: ignore[no-any-return]


def _scaled_past_missing(problem: BinaryProblem, grad: Tensor | None, upstream: Tensor) -> Tensor:
    """As softmax._scaled_past_ignored: of missing labels it stays 0."""
    assert grad is not None
    scaled = (grad * upstream).to(grad.dtype)
    options, labels = problem.options, problem.target
    if not options.missing:
        return scaled
    return scaled.masked_fill(labels.isnan() | (labels == options.ignored), 0)


def _problem(tensors: Sequence[Tensor | None], options: BinaryOptions) -> BinaryProblem:
    return BinaryProblem(*tensors, options=options)  # type: ignore


def binary_cross_entropy(problem: BinaryProblem, backend: str, form: str = AUTO) -> Tensor:
    """The loss of a problem, differentiable with respect to its input; `form` of dispatch.FORMS."""
    if forward_ad._current_level >= 0 and tangent(problem.input) is not None:
        run = functools.partial(_forward_of, backend)
        return Moved.apply(problem, run, problem.input)  # type: ignore[no-any-return]
    if torch.is_grad_enabled() and problem.input.requires_grad:
        if torch.compiler.is_compiling():
            all_of = problem.options, backend, form, *given(problem)
            return BinaryCrossEntropy.apply(*all_of)  # type: ignore[no-any-return, no-untyped-call]
        return _apply(problem, backend, form, problem.input)  # type: ignore[no-any-return]
    return _forward(problem, backend, False).loss


def learned_perturbation(problem: BinaryProblem, backend: str) -> Tensor:
    """(2, C): δ⁺ and δ⁻ of a problem with steps; not differentiable."""
    return _perturbation_op(*packed(problem, backend))  # type: ignore[no-any-return]
