"""Code that serves some problems only, and says which: what it does not name it refuses, so that a
new part of a problem is never left out by code that has not heard of it. The native modules have
their own (csrc/paths.h).
"""

from __future__ import annotations

from typing import ClassVar

from .problem import BinaryProblem, Problem

WEIGHING = "weight", "sample_weight", "reduction", "ignore_index", "phi", "phi_parameter"
SCALING = "scale", "offset", "margin", "rows", "row_index", "inverse_temperature"
LEARNING = "steps", "step_size", "normalize"


class Path:
    """For problems of a kind with nothing on but `features`."""

    known: ClassVar[list[Path]] = []

    def __init__(
        self, name: str, kind: type[Problem] | type[BinaryProblem], *features: str
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
