"""The operators of the sigmoid link.

    binary_cross_entropy(BinaryProblem, backend, want_grad) -> (loss, norm, grad)
        loss   0-dim, or (N, C) for reduction "none"; accumulate dtype
        grad   (N, C), input dtype, dL/d input for an upstream gradient of 1; if wanted
        norm   0-dim: what the loss was divided by (1 unless reduction is "mean"); unless grad is
               wanted
    binary_cross_entropy_backward(BinaryProblem, backend, upstream) -> grad
        upstream  the gradient of each logit's loss, (N, C) or 0-dim, accumulate dtype, contiguous
    binary_perturbation(BinaryProblem, backend) -> delta (2, C)
        as reference.sigmoid.learned_perturbation

A launcher of a backend returns None where its operator returns an empty tensor. Logits alone are
differentiated; what else requires grad is the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import load
from ..problem import NONE, BinaryOptions, BinaryProblem, accumulate_dtype
from .dispatch import SCHEMA, Once, direct, given, packed, register

_LIBRARY = torch.library.Library("lpl_fused", "FRAGMENT")
_LIBRARY.define(
    f"binary_cross_entropy({SCHEMA}, bool want_grad) -> (Tensor loss, Tensor norm, Tensor grad)"
)
_LIBRARY.define(f"binary_cross_entropy_backward({SCHEMA}, Tensor upstream) -> Tensor")
_LIBRARY.define(f"binary_perturbation({SCHEMA}) -> Tensor")


def _unpacked(
    input: Tensor,
    target: Tensor,
    parts: Sequence[Tensor | None],
    codes: Sequence[int],
    numbers: Sequence[float],
) -> BinaryProblem:
    return BinaryProblem(input, target, *parts, BinaryOptions.unpacked(codes, numbers))  # type: ignore


def _forward_kernel(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    loss, norm, grad = load(backend).binary_cross_entropy(problem, want_grad)
    if want_grad:
        return loss, loss.new_empty(0), grad
    return loss, norm, input.new_empty(0)


def _backward_kernel(input, target, parts, codes, numbers, backend, upstream):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load(backend).binary_cross_entropy_backward(problem, upstream)


def _perturbation_kernel(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    return load(backend).binary_perturbation(_unpacked(input, target, parts, codes, numbers))


def _forward_fake(input, target, parts, codes, numbers, backend, want_grad):  # type: ignore[no-untyped-def]
    options = BinaryOptions.unpacked(codes, numbers)
    shape = tuple(input.shape) if options.reduction == NONE else ()
    loss = input.new_empty(shape, dtype=accumulate_dtype(input.dtype))
    if want_grad:
        return loss, loss.new_empty(0), input.new_empty(tuple(input.shape))
    return loss, loss.new_empty(()), input.new_empty(0)


def _backward_fake(input, target, parts, codes, numbers, backend, upstream):  # type: ignore[no-untyped-def]
    return input.new_empty(tuple(input.shape))


def _perturbation_fake(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    return input.new_empty((2, input.shape[1]), dtype=accumulate_dtype(input.dtype))


_forward_op = register(_LIBRARY, "binary_cross_entropy", _forward_kernel, _forward_fake)
_backward_op = register(_LIBRARY, "binary_cross_entropy_backward", _backward_kernel, _backward_fake)
_perturbation_op = register(
    _LIBRARY, "binary_perturbation", _perturbation_kernel, _perturbation_fake
)


def _forward(problem: BinaryProblem, backend: str, want_grad: bool) -> tuple[Tensor | None, ...]:
    if direct(problem.input):
        return load(backend).binary_cross_entropy(problem, want_grad)  # type: ignore[no-any-return]
    return _forward_op(*packed(problem, backend), want_grad)  # type: ignore[no-any-return]


class BinaryCrossEntropy(torch.autograd.Function):
    """Loss of a problem with its gradient, once differentiable.

    As in `softmax.CrossEntropy` the gradient comes in the forward sweep, into a buffer that the
    first backward takes; a second one recomputes it, and so does float16, whose small gradients
    live only after the upstream factor (a loss scaler's) was applied.
    """

    @staticmethod
    def forward(ctx: Any, options: BinaryOptions, backend: str, *tensors: Tensor | None) -> Tensor:
        in_sweep = tensors[0].dtype != torch.float16  # type: ignore[union-attr]
        loss, norm, grad = _forward(_problem(tensors, options), backend, in_sweep)
        ctx.options, ctx.backend, ctx.buffer = options, backend, None
        if not in_sweep:
            ctx.save_for_backward(*tensors, norm, None)
        elif torch.compiler.is_compiling():
            ctx.save_for_backward(*tensors, None, grad)
        else:
            ctx.buffer = grad
            ctx.save_for_backward(*tensors, None, None)
        return loss  # type: ignore[return-value]

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            grad = _backward(ctx, grad_loss)
        if torch.is_grad_enabled():  # create_graph=True, as in softmax.CrossEntropy
            anchors = [tensor for tensor in ctx.saved_tensors if tensor is not None]
            grad = Once.apply(grad, grad_loss, *anchors)
        return (None, None, grad, *[None] * (len(ctx.needs_input_grad) - 3))


def _backward(ctx: Any, grad_loss: Tensor) -> Tensor:
    buffer, ctx.buffer = ctx.buffer, None
    if buffer is not None:
        if grad_loss.dim() == 2:
            return buffer.mul_(grad_loss)  # type: ignore[no-any-return]
        load(ctx.backend).scale_rows_(buffer, grad_loss)
        return buffer  # type: ignore[no-any-return]
    *tensors, norm, grad = ctx.saved_tensors
    if grad is not None:
        return (grad * grad_loss).to(grad.dtype)  # type: ignore[no-any-return]
    problem = _problem(tensors, ctx.options)
    if norm is None:  # the buffer went to an earlier backward
        _, norm, _ = _forward_op(*packed(problem, ctx.backend), False)
    upstream = grad_loss.contiguous() if grad_loss.dim() else grad_loss / norm
    return _backward_op(*packed(problem, ctx.backend), upstream)  # type: ignore[no-any-return]


def _problem(tensors: Sequence[Tensor | None], options: BinaryOptions) -> BinaryProblem:
    return BinaryProblem(*tensors, options=options)  # type: ignore


def binary_cross_entropy(problem: BinaryProblem, backend: str) -> Tensor:
    """The loss of a problem, differentiable with respect to its input."""
    if torch.is_grad_enabled() and problem.input.requires_grad:
        return BinaryCrossEntropy.apply(problem.options, backend, *given(problem))  # type: ignore[no-any-return]
    return _forward(problem, backend, False)[0]  # type: ignore[return-value]


def learned_perturbation(problem: BinaryProblem, backend: str) -> Tensor:
    """(2, C): δ⁺ and δ⁻ of a problem with steps; not differentiable."""
    return _perturbation_op(*packed(problem, backend))  # type: ignore[no-any-return]
