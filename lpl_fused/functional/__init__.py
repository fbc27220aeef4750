"""The public functions, by link: documentation, and which implementation runs."""

from .linear import linear_cross_entropy, linear_lpl_cross_entropy
from .sigmoid import (
    binary_cross_entropy_with_logits,
    lpl_binary_cross_entropy_with_logits,
    lpl_binary_perturbation,
)
from .softmax import MixedTarget, cross_entropy, lpl_cross_entropy, lpl_perturbation

__all__ = [
    "MixedTarget",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "linear_cross_entropy",
    "linear_lpl_cross_entropy",
    "lpl_binary_cross_entropy_with_logits",
    "lpl_binary_perturbation",
    "lpl_cross_entropy",
    "lpl_perturbation",
]
