"""The public functions, by link: documentation, and which implementation runs."""

from .softmax import MixedTarget, cross_entropy, lpl_cross_entropy, lpl_perturbation

__all__ = ["MixedTarget", "cross_entropy", "lpl_cross_entropy", "lpl_perturbation"]
