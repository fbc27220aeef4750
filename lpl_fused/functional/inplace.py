"""Whose memory may take the gradient: what `gradient="inplace"` asks of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import REFERENCE
from ..ops.dispatch import AUTO, INPLACE, checked_form
from ..tracing import direct


def check_form(form: str, input: Tensor, backend: str) -> None:
    """Whether a gradient can come about in this form, as far as logits and backend say.

    Raises:
        ValueError: it can not.
    """
    if checked_form(form) == AUTO:
        return
    if backend == REFERENCE:
        raise ValueError(
            f"gradient: {form!r} is for fused backends; the reference, which runs here, is"
            " differentiated by autograd"
        )
    if form == INPLACE:
        check_owned(input)


def check_owned(input: Tensor) -> None:
    """Whether the gradient of these logits may be written over them.

    Raises:
        ValueError: it may not.
    """
    reason = _why_not(input)
    if reason is not None:
        raise ValueError(f'gradient: "inplace" needs logits that may be overwritten, {reason}')


def _why_not(input: Tensor) -> str | None:
    if not torch.is_grad_enabled():
        return None  # nobody writes
    if not input.requires_grad:
        return "these require no grad"
    if not direct(input):
        return "not where somebody traces"
    if input.dim() != 2:
        return f"in rows (N, C), got shape {tuple(input.shape)}"
    if input.is_leaf:
        return "but a leaf that requires grad is a parameter"
    if not input.is_contiguous():
        return f"whose memory is theirs alone; got strides {input.stride()}"
    if input._is_view():
        base = input._base
        if base is None or base.numel() != input.numel():
            return "but these are a part of a larger tensor"
        if base.is_leaf and base.requires_grad:
            return "but these are a view of a leaf that requires grad"
    return None
