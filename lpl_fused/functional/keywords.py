"""The keywords of the softmax functions and their types, for signatures that name none of them (a
function with `return_stats` has one for each of its results)."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor

from ..norm import Norm
from ..penalty import MarginPenalty
from ..perturbation import Perturbation
from ..phi import Phi


class Keywords(TypedDict, total=False):
    """Of all of them."""

    perturbation: Perturbation | None
    ignore_index: int
    reduction: str
    empty: str
    normalizer: float | Tensor | None
    label_smoothing: float | Tensor
    phi: Phi
    z_loss: float | None
    softcap: float | None
    norm: Norm | None
    sample_weight: Tensor | None
    gradient: str
    process_group: Any
    backend: str


class CrossEntropyKeywords(Keywords, total=False):
    penalty: MarginPenalty | None


class LPLKeywords(Keywords, total=False):
    normalize: bool
    through_perturbation: bool


class LinearKeywords(CrossEntropyKeywords, total=False):
    linear_bias: Tensor | None
    weight: Tensor | None
    chunk_memory: int | None


class LinearLPLKeywords(Keywords, total=False):
    linear_bias: Tensor | None
    normalize: bool
    weight: Tensor | None
    chunk_memory: int | None
