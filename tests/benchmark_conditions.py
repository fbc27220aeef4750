"""What the benchmark package's tests share: a device, a case, conditions that take no time."""

from __future__ import annotations

import torch

from benchmarks import records
from benchmarks.cases import Case, modes
from benchmarks.measure import Conditions
from benchmarks.timing import CpuSampler

CPU = torch.device("cpu")
CE = Case.parse("48x130", "fp32", "ce")
MULTILABEL = ("bce", "db", "bce-lpl3")
KINDS = (
    *("ce", "la", "vs", "ldam", "smoothing", "focal"),
    *("lpl3", "lpl3-zipf", "lpl3-unique", "lpl3-one"),
    *("linear-ce", *MULTILABEL),
)


def conditions(patience: float = 1.0) -> Conditions:
    """One thread, as few samples as there may be."""
    environment = records.environment(CPU, 1)
    return Conditions(CPU, CpuSampler(1), environment, 0.001, patience, modes("cpu"))
