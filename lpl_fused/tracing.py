"""Who looks at a call: whether its tensors are numbers in memory and nothing else, or somebody
watches what is done with them (a trace, a mode, a transform, a subclass)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")

PLAIN = {Tensor, torch.nn.Parameter}


def direct(*tensors: Tensor | None) -> bool:
    """Plain tensors whose numbers are in memory (no lazy negation, no zeros without storage), with
    no mode, transform or trace that wants to see every operation: a launcher may be called past the
    dispatcher, which makes plain ones of all others.

    Its way into Python costs as much as a small loss (20 µs of 60).
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or tensor.is_neg() or tensor._is_zerotensor():
            return False
    return (
        not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def in_memory(tensor: Tensor) -> bool:
    """Whether the numbers of a plain tensor are there (see `direct`)."""
    return not tensor.is_neg() and not tensor._is_zerotensor()


def readable(tensor: Tensor) -> bool:
    """Values may be looked at: no GPU synchronisation, nobody tracing, one number each."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in PLAIN
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
        and not batched()
    )


def settled(tensor: Tensor) -> Tensor:
    """The tensor with its numbers in memory.

    Raises:
        RuntimeError: it is one of several at once, as upstream gradients may be.
    """
    if torch.compiler.is_compiling():
        return tensor
    if torch._C._functorch.is_legacy_batchedtensor(tensor):
        raise RuntimeError(
            "several upstream gradients at once (is_grads_batched, vectorize=True): fused kernels"
            ' take one, backend="reference" all'
        )
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor.clone() if tensor._is_zerotensor() else tensor


def transformed() -> bool:
    """Within a transform of torch.func; torch.compile has made operations of it."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    )


def batched() -> bool:
    """Within `vmap`."""
    if not transformed():
        return False
    vmap = torch._C._functorch.TransformType.Vmap
    stack: list[Any] = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() == vmap for level in stack)


def of_all_levels(tensor: Tensor) -> Tensor:
    """The numbers of a tensor with every dimension that a transform hides: those of all samples of
    `vmap`, of which none may be looked at alone."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def recomputing() -> bool:
    """Within a backward: activation checkpointing runs a forward again, which was counted once."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def tangent(tensor: Tensor | None) -> Tensor | None:
    """That of a dual number in forward mode; None outside it."""
    if tensor is None or forward_ad._current_level < 0 or not tensor.is_floating_point():
        return None
    found: Tensor | None = forward_ad.unpack_dual(tensor).tangent
    return found


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which torch.compile leaves as it is: a graph breaks around it. As
    torch.compiler.disable, but without its import of torch._dynamo before anybody compiles."""
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        compiler = sys.modules.get("torch._dynamo")
        if compiler is None:
            return function(*arguments, **keywords)
        if not disabled:
            disabled.append(compiler.disable(function))
        return disabled[0](*arguments, **keywords)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call


def only_autograd_follows(input: Tensor, others: Iterable[Tensor | None]) -> str | None:
    """What is done with a call that nothing but operations of torch can follow, in words; None if
    the fused operators can."""
    if torch.compiler.is_compiling():
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "torch.func"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if forward_ad._current_level < 0:
        return None
    if any(tangent(other) is not None for other in others):
        return "forward mode of more than the logits"
    moves = tangent(input)
    if moves is None or not torch.is_grad_enabled():
        return None
    reverse = input.requires_grad or moves.requires_grad
    return "forward mode beside reverse mode" if reverse else None
