"""What only the reference differentiates."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch

from ..backends import REFERENCE
from ..problem import BinaryProblem, Problem


class Fixed:
    """The fields of a problem of this kind but for those that every backend differentiates."""

    def __init__(self, kind: type[Problem] | type[BinaryProblem], but: tuple[str, ...]) -> None:
        self.names = tuple(name for name in kind._fields if name not in ("options", *but))
        self._parts = attrgetter(*self.names)

    def left_to_reference(self, problem: Any, backend: str) -> bool:
        """Whether one of the fields requires grad, and a gradient may be asked for.

        Raises:
            RuntimeError: so it is, and `backend` was asked for by name: its gradient would be
                missing.
        """
        if backend == REFERENCE or not torch.is_grad_enabled():
            return False
        parts = self._parts(problem)
        for part in parts:
            if part is not None and part.requires_grad:
                break
        else:
            return False
        if backend == "auto":
            return True
        name = next(n for n, other in zip(self.names, parts, strict=True) if other is part)
        raise RuntimeError(
            f"{name} requires grad, which backend {backend!r} does not differentiate; use"
            ' backend="auto" or "reference"'
        )
