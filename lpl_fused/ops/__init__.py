"""The operators, by link: schemas, fakes, autograd. Imports torch alone; a backend is loaded when
it runs.
"""

from . import sigmoid
from .softmax import (
    Choose,
    CrossEntropy,
    cross_entropy,
    learned_perturbation,
    one_sweep,
    tables_learn,
)

__all__ = [
    "Choose",
    "CrossEntropy",
    "cross_entropy",
    "learned_perturbation",
    "one_sweep",
    "sigmoid",
    "tables_learn",
]
