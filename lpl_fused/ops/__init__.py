"""The operators, by link: schemas, fakes, autograd. Imports torch alone; a backend is loaded when
it runs.
"""

from . import sigmoid
from .softmax import (
    CrossEntropy,
    cross_entropy,
    learned_perturbation,
    tables_learn,
    with_chosen_steps,
)

__all__ = [
    "CrossEntropy",
    "cross_entropy",
    "learned_perturbation",
    "sigmoid",
    "tables_learn",
    "with_chosen_steps",
]
