"""What is timed: a case (shape × dtype × loss), its data and its least traffic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lpl_fused import LogitClip, LogitNorm, MarginPenalty, Perturbation, losses
from lpl_fused.norm import Norm
from lpl_fused.phi import Focal, Phi
from lpl_fused.problem import accumulate_dtype

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
LABELS_PER_ROW = 3.0  # positives of a multi-label row on average, as in COCO
IMBALANCE = 100.0  # most over fewest training samples per class, the usual long-tail benchmark's
SMOOTHING = 0.1
KINDS = (
    *("ce", "la", "vs", "ldam", "smoothing", "focal", "logitclip", "logitnorm", "mbls", "cals"),
    "linear-ce",
)
# as the authors set them; every row of the logits drawn here is longer than τ
NORMS: dict[str, Norm] = {"logitclip": LogitClip(1.0), "logitnorm": LogitNorm(0.04)}
_MARGIN = 6.0
STEP_SIZE = 0.1
_LOGITS_STD = 2.0
_COSINE_STD = 0.125  # of cosines between random 64-dimensional vectors, which LDAM asks for
_BYTES_OF_LABEL = 8
FEATURES = 512  # of a row where logits are made from features

MODES = ("forward-no-grad", "forward", "backward", "both", "both-leaf")
# How "both" is met on a device whose own way it is not: caches cold on a CPU (other logits at every
# call), warm on a GPU (a replayed CUDA graph), and what a caller of a GPU waits (wall time).
COLD = "both-cold"
DEVICE_MODES = {"cpu": (COLD,), "cuda": ("both-hot", "both-wall")}
COPY = "copy"  # the mode of the yardstick: the inputs copied once


def modes(device_type: str) -> tuple[str, ...]:
    """The modes of a device."""
    return MODES + DEVICE_MODES.get(device_type, ())


@dataclass(frozen=True)
class Loss:
    """A loss as the command line names it: ce, la, vs, ldam, smoothing, focal, logitclip,
    logitnorm, mbls, cals, lplK, and of features @ weightᵀ linear-ce, linear-lplK; then its labels.
    Or a multi-label one, without more: bce, db (the distribution-balanced loss), bce-lplK.

    Attributes:
        kind: the name without the rest; "lpl", "linear-lpl" and "bce-lpl" for every K.
        steps: K, the steps of the learned perturbation; 0 for the other losses.
        labels: "uniform"; "-zipf": the class of rank r has probability ∝ 1/r; "-unique": every row
            has a class of its own; "-one": all rows have the same.
    """

    kind: str
    steps: int = 0
    labels: str = "uniform"

    @staticmethod
    def parse(name: str) -> Loss:
        if found := re.fullmatch(r"bce|db|bce-lpl([1-9]\d{0,3})", name):
            return Loss("bce-lpl", int(found[1])) if found[1] else Loss(name)
        found = re.fullmatch(
            rf"(?:({'|'.join(KINDS)})|((?:linear-)?lpl)(\d{{1,4}}))(?:-(zipf|unique|one))?", name
        )
        if found is None or found[3] == "0":
            kinds = ", ".join(KINDS)
            expected = (
                f"{kinds}, lplK or linear-lplK with K >= 1, then -zipf, -unique, -one or"
                " nothing; or bce, db or bce-lplK"
            )
            raise ValueError(f"loss: expected {expected}, got {name!r}")
        kind, learned, steps, labels = found.groups()
        return Loss(kind or learned, int(steps or 0), labels or "uniform")

    @property
    def name(self) -> str:
        suffix = "" if self.labels == "uniform" else f"-{self.labels}"
        return f"{self.kind}{self.steps or ''}{suffix}"

    @property
    def multilabel(self) -> bool:
        return self.kind in ("bce", "db", "bce-lpl")

    @property
    def linear(self) -> bool:
        return self.kind in ("linear-ce", "linear-lpl")


@dataclass(frozen=True)
class Case:
    """Logits of (rows, classes) in a dtype, and the loss that is taken of them."""

    rows: int
    classes: int
    dtype_name: str
    loss: Loss

    @staticmethod
    def parse(shape: str, dtype: str, loss: str) -> Case:
        found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", shape)
        if found is None:
            raise ValueError(f"shape: expected rows x classes, as 512x8142, got {shape!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
        case = Case(int(found[1]), int(found[2]), dtype, Loss.parse(loss))
        if case.loss.labels == "unique" and case.rows > case.classes:
            raise ValueError(f"shape: expected a class for every row of {loss}, got {shape}")
        return case

    @property
    def shape(self) -> str:
        return f"{self.rows}x{self.classes}"

    @property
    def name(self) -> str:
        return f"{self.shape} {self.dtype_name} {self.loss.name}"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]

    @property
    def plain(self) -> Case:
        """The same inputs and labels under plain cross-entropy."""
        plain = "bce" if self.loss.multilabel else "linear-ce" if self.loss.linear else "ce"
        return replace(self, loss=Loss(plain, labels=self.loss.labels))

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.classes * self.dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """Of what a gradient is asked for: the logits, or the features and the weight."""
        if self.loss.linear:
            return (self.rows + self.classes) * FEATURES * self.dtype.itemsize
        return self.logits_bytes

    def least_bytes(self, mode: str) -> int:
        """The memory traffic that no implementation of `mode` can avoid.

        Inputs are read once, their gradients are written once, labels and class tables are read
        once; scalars count nothing. It is each mode's own floor, so forward and backward exceed
        both: alone, a backward has to read the logits again. A copy reads and writes the inputs.
        """
        gradient = 0 if mode.startswith("forward") else self.input_bytes
        if mode == COPY:
            return self.input_bytes + gradient
        tables = {"la": 1, "vs": 2, "ldam": 1, "cals": 2, "db": 2}.get(self.loss.kind, 0)
        table_bytes = tables * self.classes * accumulate_dtype(self.dtype).itemsize
        if self.loss.steps:
            table_bytes += self.classes * torch.int32.itemsize
        labels = self.rows * _BYTES_OF_LABEL
        if self.loss.multilabel:
            labels = self.logits_bytes
        return self.input_bytes + gradient + labels + table_bytes


class Batch(NamedTuple):
    """The data of a case, the same for all who solve it."""

    logits: Tensor  # (N, C); beside a weight the features (N, FEATURES) that it makes them from
    target: Tensor  # (N,) int64; (N, C) of multi-label losses, in the logits' dtype
    upstream: Tensor  # 0-dim: the gradient that backward starts from; not 1
    perturbation: Perturbation | None
    label_smoothing: float
    steps: Tensor | None  # (C,) int32, ±K
    norm: Norm | None = None
    penalty: MarginPenalty | None = None
    counts: Tensor | None = None  # (C,) training samples, which "db" is made from
    weight: Tensor | None = None  # (C, FEATURES), of linear losses
    phi: Phi = "log"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What a gradient is asked for."""
        return (self.logits,) if self.weight is None else (self.logits, self.weight)

    def of(self, inputs: Sequence[Tensor]) -> Batch:
        """The same with other inputs."""
        logits, weight = (*inputs, None)[:2]
        assert logits is not None
        return self._replace(logits=logits, weight=weight)

    def rows(self, index: Tensor) -> Batch:
        """Some of the rows."""
        return self._replace(logits=self.logits[index], target=self.target[index])


def draw(case: Case, device: torch.device) -> Batch:
    """The batch of a case: random, and the same at every call."""
    generator = torch.Generator(device).manual_seed(case.rows * 1_000_003 + case.classes)
    std = _COSINE_STD if case.loss.kind == "ldam" else _LOGITS_STD
    size = (case.rows, case.classes)

    def normal(rows: int, columns: int, std: float) -> Tensor:
        made = torch.randn((rows, columns), dtype=case.dtype, device=device, generator=generator)
        return made.mul_(std)

    weight = None
    if case.loss.linear:
        logits = normal(case.rows, FEATURES, 1.0)
        weight = normal(case.classes, FEATURES, std / FEATURES**0.5)
    else:
        logits = normal(*size, std)
    frequency = torch.ones(case.classes, device=device)
    if case.loss.labels == "zipf":
        frequency /= torch.arange(1, case.classes + 1, device=device)
    if case.loss.multilabel:
        share = min(0.5, LABELS_PER_ROW / case.classes)
        chance = torch.rand(size, device=device, generator=generator)
        target = (chance < share).to(case.dtype)  # as eager's own function asks for
    else:
        repeated = case.loss.labels != "unique"
        drawn = 1 if case.loss.labels == "one" else case.rows
        target = torch.multinomial(frequency, drawn, replacement=repeated, generator=generator)
        target = target.expand(case.rows).contiguous()
    # any loss's dtype holds a number of few bits
    upstream = (torch.rand((), device=device, generator=generator) + 0.25).bfloat16()
    steps = None
    if case.loss.steps:
        # half of the classes raised, half lowered, as a split by a threshold would
        raised = torch.rand(case.classes, device=device, generator=generator) < 0.5
        steps = torch.where(raised, case.loss.steps, -case.loss.steps).to(torch.int32)
    return Batch(
        logits,
        target,
        upstream.to(accumulate_dtype(case.dtype)),
        _perturbation(case, logits),
        SMOOTHING if case.loss.kind == "smoothing" else 0.0,
        steps,
        NORMS.get(case.loss.kind),
        _penalty(case, logits),
        _counts(case) if case.loss.kind == "db" else None,
        weight,
        Focal() if case.loss.kind == "focal" else "log",
    )


def _penalty(case: Case, logits: Tensor) -> MarginPenalty | None:
    """The authors' penalties, with margins that some of these logits exceed."""
    if case.loss.kind == "mbls":
        return losses.MbLSLoss(margin=_MARGIN).margin_penalty()
    if case.loss.kind == "cals":
        loss = losses.CALSLoss(case.classes, margin=_MARGIN).to(logits.device)
        loss.multiplier.copy_(torch.linspace(1e-6, 0.1, case.classes))
        penalty = loss.margin_penalty()
        dtype = accumulate_dtype(case.dtype)
        tables = (penalty.multiplier, penalty.rho)
        lam, rho = (None if table is None else table.to(dtype) for table in tables)
        return replace(penalty, multiplier=lam, rho=rho)
    return None


def _counts(case: Case) -> Tensor:
    """Training samples per class, falling exponentially by `IMBALANCE`."""
    rank = torch.arange(case.classes) / max(case.classes - 1, 1)
    return (1000 * IMBALANCE**-rank).round().to(torch.int64)


def _perturbation(case: Case, logits: Tensor) -> Perturbation | None:
    """The class tables of the loss."""
    counts = _counts(case)
    if case.loss.kind == "la":
        return losses.LogitAdjustedLoss(counts).to(logits.device).perturbation(logits)
    if case.loss.kind == "vs":
        return losses.VSLoss(counts).to(logits.device).perturbation(logits)
    if case.loss.kind == "ldam":
        return losses.LDAMLoss(counts).to(logits.device).perturbation(logits)
    return None
