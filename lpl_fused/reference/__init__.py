"""The definition of correct, by link: every loss in plain, differentiable PyTorch, any dtype, any
device. Backends are tested against these run in float64.
"""

from ..algebra.learned import NORM_FLOOR
from . import sigmoid
from .softmax import (
    check_labels,
    cross_entropy,
    labels_with_shares,
    leaders,
    learned_perturbation,
    normalizer,
    penalty_of,
    perturb,
    renormed,
    row_losses,
    row_statistics,
    target_cross_entropy,
)

__all__ = [
    "NORM_FLOOR",
    "check_labels",
    "cross_entropy",
    "labels_with_shares",
    "leaders",
    "learned_perturbation",
    "normalizer",
    "penalty_of",
    "perturb",
    "renormed",
    "row_losses",
    "row_statistics",
    "sigmoid",
    "target_cross_entropy",
]
