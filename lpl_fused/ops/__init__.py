"""The operators, by link: schemas, fakes, autograd. Imports torch alone; a backend is loaded when
it runs.
"""

from . import linear, sigmoid
from .chunks import Layer
from .softmax import (
    CrossEntropy,
    cross_entropy,
    fixed_cross_entropy,
    learned_perturbation,
    row_statistics,
    tables_learn,
    with_chosen_steps,
    with_fixed_delta,
)

__all__ = [
    "CrossEntropy",
    "Layer",
    "cross_entropy",
    "fixed_cross_entropy",
    "learned_perturbation",
    "linear",
    "row_statistics",
    "sigmoid",
    "tables_learn",
    "with_chosen_steps",
    "with_fixed_delta",
]
