"""What the operators of both links share: how a problem crosses the dispatcher, or goes past it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..problem import NONE, BinaryProblem, Problem

# a problem and its backend, as `packed` makes them
SCHEMA = "Tensor input, Tensor target, Tensor?[] parts, int[] codes, float[] numbers, str backend"


def packed(problem: Problem | BinaryProblem, backend: str) -> tuple[Any, ...]:
    input, target, *parts, options = problem
    return (input, target, parts, *options.packed(), backend)


def register(
    library: torch.library.Library, name: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Any:
    """The operator of this name, its schema defined in `library`, once `kernel` serves it."""
    for device in ("CPU", "CUDA"):
        library.impl(name, kernel, device)
    torch.library.register_fake(f"lpl_fused::{name}", fake, lib=library)
    return getattr(torch.ops.lpl_fused, name).default


# in the place of a loss that its caller has: kept with it, the two would keep each other alive
GONE = torch.empty(0, device="cpu")


def direct(tensor: Tensor) -> bool:
    """A plain tensor with nobody tracing: the launcher may be called past the dispatcher.

    The dispatcher's way into Python costs as much as a small loss (20 µs of 60).
    """
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def by_sweep(problem: Problem | BinaryProblem) -> bool:
    """Whether a problem's gradient with respect to its logits comes in the forward sweep, for an
    upstream of 1 that the backward replaces: one read and one write of the logits in all where it
    is 1. Else by statistics, one read more, whatever it is: for float16, whose small gradients live
    only after the upstream factor (a loss scaler's) was applied; where every row has an upstream of
    its own, which would make a 16-bit gradient anew; and where somebody traces, so that a 16-bit
    one would be rounded twice.
    """
    dtype = problem.input.dtype
    if dtype == torch.float16:
        return False
    if dtype == torch.bfloat16:
        return problem.options.reduction != NONE and direct(problem.input)
    return True


def given(problem: Problem | BinaryProblem) -> tuple[Tensor | None, ...]:
    """The leading fields of a problem, up to the last that is present."""
    tensors = problem[:-1]
    present = len(tensors)
    while tensors[present - 1] is None:
        present -= 1
    return tensors[:present]


class Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated; `anchors` are what it depends on."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *anchors: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            'the fused loss is differentiable once; backend="reference" differentiates twice'
        )
