"""What only the reference differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends import REFERENCE
from ..problem import BinaryProblem, Problem
from ..tracing import only_autograd_follows


def device_type(tensor: Tensor) -> str:
    """Where it is, in a third of the time that a device takes to say so."""
    return "cuda" if tensor.is_cuda else "cpu" if tensor.is_cpu else tensor.device.type


class Fixed:
    """The fields of a problem of this kind but for those that every backend differentiates."""

    def __init__(self, kind: type[Problem] | type[BinaryProblem], but: tuple[str, ...]) -> None:
        self._names = {name for name in kind._fields if name not in ("options", *but)}

    def left_to_reference(self, problem: Any, backend: str) -> bool:
        """Whether one of the fields requires grad, and a gradient may be asked for, or what is done
        with the call is for operations of torch alone.

        Raises:
            RuntimeError: so it is, and `backend` was asked for by name: its gradient would be
                missing.
        """
        if backend == REFERENCE:
            return False
        others = problem[1:-1]
        what = only_autograd_follows(problem.input, others)
        if what is not None:
            if backend == "auto":
                return True
            raise RuntimeError(
                f"{what}: backend {backend!r} cannot be looked into; use"
                ' backend="auto" or "reference"'
            )
        if not torch.is_grad_enabled():
            return False
        for place, part in enumerate(others, 1):
            if part is None or not part.requires_grad:
                continue
            name = problem._fields[place]
            if name not in self._names:
                continue
            if backend == "auto":
                return True
            raise RuntimeError(
                f"{name} requires grad, which backend {backend!r} does not"
                ' differentiate; use backend="auto" or "reference"'
            )
        return False
