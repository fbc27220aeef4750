"""What only the reference differentiates."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..backends import REFERENCE
from ..problem import BinaryProblem, Problem


def left_to_reference(problem: Problem | BinaryProblem, names: Iterable[str], backend: str) -> bool:
    """Whether one of these fields requires grad, and a gradient may be asked for.

    Raises:
        RuntimeError: so it is, and `backend` was asked for by name: its gradient would be missing.
    """
    if not torch.is_grad_enabled() or backend == REFERENCE:
        return False
    for name in names:
        part = getattr(problem, name)
        if part is None or not part.requires_grad:
            continue
        if backend != "auto":
            raise RuntimeError(
                f"{name} requires grad, which backend {backend!r} does not differentiate; use"
                ' backend="auto" or "reference"'
            )
        return True
    return False
