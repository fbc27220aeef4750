"""Class-level logit perturbation at the cost of plain cross-entropy."""

from . import functional, losses
from .backends import backends, explain
from .functional import MixedTarget
from .norm import LogitClip, LogitNorm
from .penalty import MarginPenalty
from .perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from .phi import GCE, Alpha, Focal, Poly1
from .version import __version__

__all__ = [
    "GCE",
    "Alpha",
    "BinaryPerturbation",
    "Focal",
    "LogitClip",
    "LogitNorm",
    "MarginPenalty",
    "MixedTarget",
    "Perturbation",
    "Poly1",
    "RebalancedWeight",
    "__version__",
    "backends",
    "explain",
    "functional",
    "losses",
]
