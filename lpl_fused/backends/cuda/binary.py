"""The sigmoid link: launchers of the multi-label kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...problem import MEAN, NONE, BinaryProblem, accumulate_dtype
from ..buffers import like, new
from ..contract import Forward
from ..native import BinaryOutputs, BinarySizes, replaced, with_known_labels
from .module import BinaryScratch, native, queue

# to say fields by name costs the host as much as to read them
_made = tuple.__new__
_NO_SCRATCH = BinaryScratch()
_NO_MORE_PARTS = BinaryProblem(None, None)[2:]  # type: ignore[arg-type]


def binary_forward(problem: BinaryProblem, want_grad: bool) -> Forward:
    problem = with_known_labels(problem)
    input, reduction = problem.input, problem.options.reduction
    grad = like(input) if want_grad else None
    each = reduction == NONE
    loss = new(problem, *input.shape) if each else new(problem)
    if each:
        norm: Tensor | None = None
    else:
        norm = new(problem) if problem.normalizer is None else problem.normalizer
    sizes = BinarySizes.of(problem)
    scratch, delta = _scratch(problem, sizes, sums=not each)
    outputs: BinaryOutputs = _made(BinaryOutputs, (loss, norm, grad, None, False, delta))
    _run(native().binary_cross_entropy, problem, outputs, scratch, sizes)
    if norm is None:
        norm = torch.ones((), dtype=loss.dtype, device=input.device)
    return Forward(loss, norm, None, grad, state=() if delta is None else (delta,))


def binary_gradient(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    grad = like(problem.input)
    return _gradient(problem, upstream, grad)


def _gradient(
    problem: BinaryProblem, upstream: Tensor, grad: Tensor, state: tuple[Tensor, ...] = ()
) -> Tensor:
    """Fills `grad`, the gradient of each logit's loss known."""
    problem = with_known_labels(problem)
    sizes = BinarySizes.of(problem)
    scratch, delta = _scratch(problem, sizes, state=state)
    upstream = upstream.to(accumulate_dtype(grad.dtype)).contiguous()
    each = upstream.dim() > 0
    outputs = BinaryOutputs(grad=grad, upstream=upstream, upstream_each=each, delta=delta)
    _run(native().binary_cross_entropy, _settled(problem, state), outputs, scratch, sizes)
    return grad


def binary_rescale_(problem: BinaryProblem, forward: Forward, upstream: Tensor) -> Tensor | None:
    """Which factors would round a 16-bit gradient once more, so that it is made anew, the device
    decides."""
    grad, state = forward.grad, forward.state
    assert grad is not None
    if upstream.dim():
        if grad.element_size() > 2:
            return None if problem.options.missing else grad.mul_(upstream)
        return _gradient(problem, upstream, grad, state)
    dtype = accumulate_dtype(grad.dtype)
    if upstream.dtype != dtype:
        upstream = upstream.to(dtype)
    wide, delta = grad.element_size() > 2, None
    if wide and not problem.options.missing:  # no more than its shape
        problem = _made(BinaryProblem, (grad, grad, *_NO_MORE_PARTS))
    else:
        problem = with_known_labels(problem)
    scratch, sizes = _NO_SCRATCH, BinarySizes.of(problem)
    if not wide:
        scratch, delta = _scratch(problem, sizes, state=state)
        problem = _settled(problem, state)
    outputs: BinaryOutputs = _made(BinaryOutputs, (None, forward.norm, grad, None, False, delta))
    _run(native().binary_rescale, problem, outputs, replaced(scratch, {"factor": upstream}), sizes)
    return grad


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    problem = with_known_labels(problem)
    sizes = BinarySizes.of(problem)
    scratch, delta = _scratch(problem, sizes)
    assert delta is not None
    if problem.input.shape[0] == 0:
        return delta.zero_()
    _run(native().binary_perturbation, problem, BinaryOutputs(delta=delta), scratch, sizes)
    return delta


def steps_left(problem: BinaryProblem) -> Tensor:
    """(C,) how many of a class's steps moments did not give, of a problem with `steps`. For tests
    and diagnosis."""
    problem = with_known_labels(problem)
    sizes = BinarySizes.of(problem)
    scratch, delta = _scratch(problem, sizes)
    left = new(problem, problem.input.shape[1], dtype=torch.int32)
    outputs = BinaryOutputs(delta=delta)
    scratch = replaced(scratch, {"left": left})
    _run(native().binary_perturbation, problem, outputs, scratch, sizes)
    return left


def _settled(problem: BinaryProblem, state: tuple[Tensor, ...]) -> BinaryProblem:
    """The problem without steps, where these are taken."""
    return problem._replace(steps=None) if state else problem


def _scratch(
    problem: BinaryProblem,
    sizes: BinarySizes,
    *,
    sums: bool = False,
    state: tuple[Tensor, ...] = (),
) -> tuple[BinaryScratch, Tensor | None]:
    """What kernels need beside, and δ (2, C), there if `state` has it."""
    options, target = problem.options, problem.target
    n, classes = problem.input.shape
    fields: dict[str, Any] = {"hard": target.dtype == torch.bool and not options.missing}
    if problem.inverse_count is not None:
        fields["masses"] = new(problem, n)
    delta = None
    learns = problem.steps is not None and not state
    if learns or sums:
        losses, partial = native().binary_room(problem, sizes)
    if sums:
        fields["losses"] = new(problem, losses)
        if options.reduction == MEAN and options.missing:
            fields["known"] = new(problem, n, dtype=torch.int64)
    if problem.steps is not None:
        delta = state[0] if state else new(problem, 2, classes)
        fields["delta"] = delta
    if learns and partial:
        fields["partial"] = new(problem, partial, dtype=torch.float32)
        fields["centre"] = new(problem, 2, classes, dtype=torch.float32)
    return replaced(_NO_SCRATCH, fields), delta


def _run(
    kernels: Any,
    problem: BinaryProblem,
    outputs: BinaryOutputs,
    scratch: BinaryScratch,
    sizes: BinarySizes,
) -> None:
    if problem.steps is not None and problem.input.shape[0] == 0:  # nobody moves a class
        if outputs.delta is not None:
            outputs.delta.zero_()
        problem = problem._replace(steps=None)
    queue(kernels, problem, sizes, outputs, scratch)
