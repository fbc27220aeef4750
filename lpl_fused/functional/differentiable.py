"""What only the reference differentiates."""

from __future__ import annotations

from typing import Any

import torch

from ..backends import REFERENCE
from ..problem import BinaryProblem, Problem
from ..tracing import only_autograd_follows


class Fixed:
    """The fields of a problem of this kind but for those that every backend differentiates."""

    def __init__(self, kind: type[Problem] | type[BinaryProblem], but: tuple[str, ...]) -> None:
        self._places = tuple(
            place for place, name in enumerate(kind._fields) if name not in ("options", *but)
        )

    def left_to_reference(self, problem: Any, backend: str) -> bool:
        """Whether one of the fields requires grad, and a gradient may be asked for, or what is done
        with the call is for operations of torch alone.

        Raises:
            RuntimeError: so it is, and `backend` was asked for by name: its gradient would be
                missing.
        """
        if backend == REFERENCE:
            return False
        what = only_autograd_follows(problem.input, problem[1:-1])
        if what is not None:
            if backend == "auto":
                return True
            raise RuntimeError(
                f"{what}: backend {backend!r} cannot be looked into; use"
                ' backend="auto" or "reference"'
            )
        if not torch.is_grad_enabled():
            return False
        for place in self._places:
            part = problem[place]
            if part is None or not part.requires_grad:
                continue
            if backend == "auto":
                return True
            raise RuntimeError(
                f"{problem._fields[place]} requires grad, which backend {backend!r} does not"
                ' differentiate; use backend="auto" or "reference"'
            )
        return False
