"""What is known of a batch's rows between rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from .parts import Mass, Size

if TYPE_CHECKING:
    from .groups import Walk
    from .learned import Learned


class Known(NamedTuple):
    """Filled round by round."""

    terms: Tensor  # (N, len(Terms)), accumulate dtype, contiguous: see terms.py
    loss: Tensor | None = None  # (N,), accumulate dtype; of the last round
    size: Size | None = None
    mass: Mass | None = None
    threshold: Tensor | None = None  # (N,) for RIVALS: a head has more than this part of the mass
    learned: Learned | None = None  # what the steps made of each row
    walk: Walk | None = None  # where the steps of classes with several rows have come
