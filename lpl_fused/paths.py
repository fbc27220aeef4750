"""Code that serves some problems only, and says which: what it does not name it refuses, so that a
new part of a problem is never left out by code that has not heard of it. The native modules have
their own (csrc/paths.h).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from .problem import BinaryProblem, Problem

WEIGHING = (
    "weight",
    "sample_weight",
    "reduction",
    "normalizer",
    "ignore_index",
    "phi",
    "phi_parameter",
)
SCALING = "scale", "offset", "margin", "rows", "row_index", "inverse_temperature"
LEARNING = "steps", "step_size", "normalize"
TARGETS = "dense", "other", "lam", "smoothing", "label_smoothing"
NORMING = "norm_p", "norm_limit", "norm_gain", "norm_offset"
PENALISING = (
    "penalty",
    "penalty_margin",
    "penalty_unit",
    "penalty_strength",
    "multiplier",
    "rho",
)
# of multi-label problems
PHI_OF_LABELS = "phi", "phi_parameter", "phi_negative", "phi_clip", "phi_detached"
SIDE_TABLES = (
    "positive_weight",
    "negative_weight",
    "positive_scale",
    "positive_offset",
    "negative_scale",
    "negative_offset",
)
WEIGHING_LABELS = (
    "positive_weight",
    "negative_weight",
    "sample_weight",
    "inverse_count",
    "alpha",
    "beta",
    "mu",
    "reduction",
    "normalizer",
    "missing",
    "ignored",
)


class Path:
    """For problems of a kind with nothing on but `features`."""

    known: ClassVar[list[Path]] = []

    def __init__(
        self, name: str, kind: type[Problem] | type[BinaryProblem], features: Iterable[str]
    ) -> None:
        self.name, self.kind, self.features = name, kind, frozenset(features)
        self.known.append(self)

    def serves(self, problem: Problem | BinaryProblem) -> bool:
        return problem.features <= self.features

    def demand(self, problem: Problem | BinaryProblem) -> None:
        """Raises where the path does not serve a problem and nothing else would."""
        if not self.serves(problem):
            missing = ", ".join(sorted(problem.features - self.features))
            raise RuntimeError(f"{self.name}: no kernel serves {missing}")
