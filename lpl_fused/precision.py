"""Precision that stays: of products, whatever autocast says, and of what modules keep."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


_autocasts._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch 2.11 cannot trace it


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Within it nothing is cast."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()


def devices_alone(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a module's `_apply` does to tensors that follow devices, never dtypes."""

    def moved(tensor: Tensor) -> Tensor:
        found = fn(tensor)
        return found if found.dtype == tensor.dtype else tensor.to(found.device)

    return moved


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        with full_precision(a.device):
            return a @ b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        first, second = ctx.needs_input_grad
        return (
            product(grad, b.t()) if first else None,
            product(a.t(), grad) if second else None,
        )


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of matrices, its gradient too, where the backward runs under autocast."""
    return _Product.apply(a, b)  # type: ignore[no-any-return, no-untyped-call]
