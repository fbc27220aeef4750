"""What is timed: the table of cases (shape × dtype × loss), their data and their least traffic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lpl_fused import LogitClip, LogitNorm, MarginPenalty, Perturbation, losses
from lpl_fused.norm import Norm
from lpl_fused.problem import accumulate_dtype

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
LOSSES = (
    *("ce", "la", "vs", "ldam", "smoothing", "logitclip", "logitnorm", "mbls", "cals"),
    *("lpl10", "lpl50", "lpl10-zipf"),
)
STEP_SWEEP = ("lpl1", "lpl2", "lpl5", "lpl10", "lpl20", "lpl50", "lpl100")
UNIQUE_SWEEP = ("ce-unique", "lpl5-unique", "lpl10-unique", "lpl50-unique", "lpl100-unique")

# From CIFAR's classes to a language model's. 8142 and 50257 leave rows off every vector's boundary.
SHAPES = (
    *("128x10", "128x100", "256x365", "256x1000", "512x8142", "256x21841", "256x32000"),
    *("128x50257", "64x128256", "64x151936", "32x262144"),
)
# The vocabularies of helion's public cross-entropy sweep, then the largest one in use.
GPU_SHAPES = (
    *SHAPES,
    *("4096x8142", "8192x32000", "8192x50257", "8192x128000", "8192x128256", "8192x129280"),
    *("4096x151936", "4096x152064", "4096x256000", "4096x262144", "2048x128256"),
)
# Labels of many classes at once: COCO, VOC, Open Images, a retrieval vocabulary.
MULTILABEL_LOSSES = ("bce", "db", "bce-lpl10", "bce-lpl50")
MULTILABEL_SHAPES = ("4096x80", "1024x20", "512x9605", "256x32000")
COMMON_SHAPES = ("128x100", "512x8142", "256x32000")
# With many rows of few classes, and gradients that the C library maps anew at every call.
CE_SHAPES = ("128x10", "8192x10", *COMMON_SHAPES, "1024x50257")
# Tokens of a language model: the second is a whole batch, for a GPU or for patience.
TOKEN_SHAPES = ("1024x32000", "8192x128000")

LABELS_PER_ROW = 3.0  # positives of a multi-label row on average, as in COCO
IMBALANCE = 100.0  # most over fewest training samples per class, the usual long-tail benchmark's
SMOOTHING = 0.1
KINDS = ("ce", "la", "vs", "ldam", "smoothing", "logitclip", "logitnorm", "mbls", "cals")
# as the authors set them; every row of the logits drawn here is longer than τ
NORMS: dict[str, Norm] = {"logitclip": LogitClip(1.0), "logitnorm": LogitNorm(0.04)}
_MARGIN = 6.0
STEP_SIZE = 0.1
_LOGITS_STD = 2.0
_COSINE_STD = 0.125  # of cosines between random 64-dimensional vectors, which LDAM asks for
_BYTES_OF_LABEL = 8

MODES = ("forward-no-grad", "forward", "backward", "both", "both-leaf")
COPY = "copy"  # the mode of the yardstick: the logits copied once


@dataclass(frozen=True)
class Loss:
    """A loss as the command line names it: ce, la, vs, ldam, smoothing, logitclip, logitnorm, mbls,
    cals, lplK; then its labels. Or a multi-label one, without more: bce, db (the
    distribution-balanced loss), bce-lplK.

    Attributes:
        kind: the name without the rest; "lpl" and "bce-lpl" for every K.
        steps: K, the steps of the learned perturbation; 0 for the other losses.
        labels: "uniform"; "-zipf": the class of rank r has probability ∝ 1/r; "-unique": every row
            has a class of its own.
    """

    kind: str
    steps: int = 0
    labels: str = "uniform"

    @staticmethod
    def parse(name: str) -> Loss:
        if found := re.fullmatch(r"bce|db|bce-lpl([1-9]\d{0,3})", name):
            return Loss("bce-lpl", int(found[1])) if found[1] else Loss(name)
        found = re.fullmatch(rf"(?:({'|'.join(KINDS)})|lpl(\d{{1,4}}))(?:-(zipf|unique))?", name)
        if found is None or found[2] == "0":
            kinds = ", ".join(KINDS)
            expected = (
                f"{kinds} or lplK with K >= 1, then -zipf, -unique or nothing;"
                " or bce, db or bce-lplK"
            )
            raise ValueError(f"loss: expected {expected}, got {name!r}")
        kind, steps, labels = found.groups()
        return Loss(kind or "lpl", int(steps or 0), labels or "uniform")

    @property
    def name(self) -> str:
        suffix = "" if self.labels == "uniform" else f"-{self.labels}"
        return f"{self.kind}{self.steps or ''}{suffix}"

    @property
    def multilabel(self) -> bool:
        return self.kind in ("bce", "db", "bce-lpl")


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
        """The same logits and labels under plain cross-entropy."""
        plain = "bce" if self.loss.multilabel else "ce"
        return replace(self, loss=Loss(plain, labels=self.loss.labels))

    @property
    def logits_bytes(self) -> int:
        return self.rows * self.classes * self.dtype.itemsize

    def least_bytes(self, mode: str) -> int:
        """The memory traffic that no implementation of `mode` can avoid.

        Logits are read once, a gradient is written once, labels and class tables are read once;
        scalars count nothing. It is each mode's own floor, so forward and backward exceed both:
        alone, a backward has to read the logits again. A copy reads and writes the logits.
        """
        gradient = 0 if mode.startswith("forward") else self.logits_bytes
        if mode == COPY:
            return self.logits_bytes + gradient
        tables = {"la": 1, "vs": 2, "ldam": 1, "cals": 2, "db": 2}.get(self.loss.kind, 0)
        table_bytes = tables * self.classes * accumulate_dtype(self.dtype).itemsize
        if self.loss.steps:
            table_bytes += self.classes * torch.int32.itemsize
        labels = self.rows * _BYTES_OF_LABEL
        if self.loss.multilabel:
            labels = self.logits_bytes
        return self.logits_bytes + gradient + labels + table_bytes


class Batch(NamedTuple):
    """The data of a case, the same for all who solve it."""

    logits: Tensor  # (N, C)
    target: Tensor  # (N,) int64; (N, C) of multi-label losses, in the logits' dtype
    upstream: Tensor  # 0-dim: the gradient that backward starts from; not 1
    perturbation: Perturbation | None
    label_smoothing: float
    steps: Tensor | None  # (C,) int32, ±K
    norm: Norm | None = None
    penalty: MarginPenalty | None = None
    counts: Tensor | None = None  # (C,) training samples, which "db" is made from

    def rows(self, index: Tensor) -> Batch:
        """Some of the rows."""
        return self._replace(logits=self.logits[index], target=self.target[index])


def draw(case: Case, device: torch.device) -> Batch:
    """The batch of a case: random, and the same at every call."""
    generator = torch.Generator(device).manual_seed(case.rows * 1_000_003 + case.classes)
    std = _COSINE_STD if case.loss.kind == "ldam" else _LOGITS_STD
    size = (case.rows, case.classes)
    logits = torch.randn(size, dtype=case.dtype, device=device, generator=generator).mul_(std)
    frequency = torch.ones(case.classes, device=device)
    if case.loss.labels == "zipf":
        frequency /= torch.arange(1, case.classes + 1, device=device)
    if case.loss.multilabel:
        share = min(0.5, LABELS_PER_ROW / case.classes)
        drawn = torch.rand(size, device=device, generator=generator)
        target = (drawn < share).to(case.dtype)  # as eager's own function asks for
    else:
        repeated = case.loss.labels != "unique"
        target = torch.multinomial(frequency, case.rows, replacement=repeated, generator=generator)
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


def product(shapes: Iterable[str], dtypes: Iterable[str], losses: Iterable[str]) -> list[Case]:
    """Every shape under every dtype and loss."""
    dtypes, losses = list(dtypes), list(losses)
    return [Case.parse(s, d, name) for s in shapes for d in dtypes for name in losses]


def default_cases(device: str) -> list[Case]:
    """A selection that ends in minutes: every loss at one shape, the common ones at others."""
    cases = product(CE_SHAPES, ["fp32"], ["ce"]) + product(["512x8142"], ["fp32"], LOSSES[1:])
    if device == "cuda":
        large = ("8192x32000", "8192x128256", "4096x151936", "4096x262144")
        cases += product(large, ["bf16"], ["ce", "la"]) + product(large[:1], ["bf16"], ["lpl50"])
    return cases


def lpl_cases(device: str) -> list[Case]:
    """What the steps of LPL cost: beside plain cross-entropy, one row per class; and in a batch of
    tokens, where frequent ones share a perturbation, beside as many rows that do not.
    """
    cases = product(COMMON_SHAPES[1:], ["fp32"], UNIQUE_SWEEP)
    tokens = ("ce-zipf", "lpl10-zipf", "lpl10-unique")
    if device == "cuda":
        return cases + product(TOKEN_SHAPES, ["bf16"], tokens)
    return cases + product(TOKEN_SHAPES[:1], ["fp32"], tokens)


def multilabel_cases(device: str) -> list[Case]:
    """Multi-label losses, in bfloat16 on a GPU."""
    return product(MULTILABEL_SHAPES, ["bf16" if device == "cuda" else "fp32"], MULTILABEL_LOSSES)


def all_cases(device: str) -> list[Case]:
    """Every shape and loss, and the sweeps over the number of steps."""
    cases = product(SHAPES, ["fp32"], LOSSES) + product(["512x8142"], ["fp32"], STEP_SWEEP)
    cases += product(CE_SHAPES, ["fp32"], ["ce"])
    cases += lpl_cases(device) + multilabel_cases(device)
    if device == "cuda":
        cases += product(GPU_SHAPES, ["bf16"], LOSSES)
    return list(dict.fromkeys(cases))


def quick_cases() -> list[Case]:
    """A smoke run."""
    return product(["64x100"], ["fp32"], ["ce", "la", "lpl2", "lpl5"])
