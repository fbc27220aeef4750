"""Class-level logit perturbation at the cost of plain cross-entropy.

Losses are in `losses`, as modules, and in `functional`, as functions; everything around them is in
modules that are imported when they are first asked for (`lpl_fused.evaluation`).

    criterion = losses.LPLLoss(counts, tau=1.0)  # was: torch.nn.CrossEntropyLoss()
    loss = criterion(logits, target)

Examples in docstrings have `import torch, lpl_fused` and `from lpl_fused import functional as LF,
losses` before them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional, losses
from .algebra.statistics import RowStatistics
from .backends import backends, explain
from .functional import MixedTarget
from .norm import LogitClip, LogitNorm
from .penalty import MarginPenalty
from .perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from .phi import GCE, Alpha, Asymmetric, Focal, Poly1
from .version import __version__

if TYPE_CHECKING:
    from . import average_precision as average_precision
    from . import certification as certification
    from . import class_stats as class_stats
    from . import evaluation as evaluation
    from . import integrations as integrations
    from . import ladc as ladc
    from . import linear as linear
    from . import metrics as metrics
    from . import sampling as sampling
    from . import schedules as schedules
    from . import susceptibility as susceptibility

__all__ = [
    "GCE",
    "Alpha",
    "Asymmetric",
    "BinaryPerturbation",
    "Focal",
    "LogitClip",
    "LogitNorm",
    "MarginPenalty",
    "MixedTarget",
    "Perturbation",
    "Poly1",
    "RebalancedWeight",
    "RowStatistics",
    "__version__",
    "backends",
    "explain",
    "functional",
    "losses",
]

# modules that are imported when they are first asked for
_MODULES = (
    *("average_precision", "certification", "class_stats", "evaluation", "integrations"),
    *("ladc", "linear", "metrics", "sampling", "schedules", "susceptibility"),
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    there = [f"; see {m.__name__}.{name}" for m in (losses, functional) if name in m.__all__]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{''.join(there)}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
