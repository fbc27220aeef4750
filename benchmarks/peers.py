"""Peers: losses of other libraries, called as their users call them, and LPL as its authors wrote
it. What a peer's function does not take is done with PyTorch's operations around it.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import losses
from lpl_fused.losses.lpl_official import Variant, official_cross_entropy

from . import baselines
from .cases import STEP_SIZE, Batch, Case
from .providers import Criterion, Provider, Refusal, composed

_MATRICES = 4  # C×C that a step of the published algorithm holds at a time
_SHARE = 0.25  # of the device's memory that they may take


def _function(module: str, name: str) -> Callable[..., Tensor]:
    return getattr(importlib.import_module(module), name)  # type: ignore[no-any-return]


def _not_importable(module: str, name: str, device: str) -> str | None:
    """Why a GPU library's function cannot be called."""
    if device != "cuda":
        return f"runs on a GPU, not on {device}"
    try:
        _function(module, name)
    except ModuleNotFoundError as error:
        return f"module {error.name} is not installed"
    except Exception as error:  # whatever an import meets on a machine that it was not made for
        return f"{module}.{name} cannot be imported: {type(error).__name__}: {error}"
    return None


def _of_logits(name: str, module: str, function: str, *, smooths: bool) -> Provider:
    """A library's cross-entropy of logits; `smooths` where it knows label smoothing."""

    def criterion(case: Case, batch: Batch) -> Criterion:
        cross_entropy = _function(module, function)

        def loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
            smoothing = {"label_smoothing": label_smoothing} if label_smoothing else {}
            return cross_entropy(logits, target, **smoothing)

        return composed(case, batch, loss)

    def solves(case: Case) -> bool:
        kind = case.loss
        if kind.multilabel or kind.linear or kind.kind == "focal":
            return False
        return smooths or kind.kind != "smoothing"

    absent = functools.partial(_not_importable, module, function)
    return Provider(name, criterion, absent, solves)


def _is_linear(case: Case) -> bool:
    return case.loss.kind == "linear-ce"


def _of_features(name: str, module: str, function: str) -> Provider:
    """A library's cross-entropy of features and a weight, which never holds all logits."""

    def criterion(case: Case, batch: Batch) -> Criterion:
        cross_entropy = _function(module, function)
        return lambda x, w: cross_entropy(x, w, batch.target)

    absent = functools.partial(_not_importable, module, function)
    return Provider(name, criterion, absent, _is_linear)


def _torch_linear(case: Case, batch: Batch) -> Criterion:
    chunked = torch.nn.LinearCrossEntropyOptions()
    return lambda x, w: F.linear_cross_entropy(x, w, batch.target, options=chunked)


def _torch_linear_absent(device: str) -> str | None:
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    return f"torch {torch.__version__} has no chunked linear_cross_entropy"


def _published(case: Case, batch: Batch) -> Criterion:
    item = torch.promote_types(case.dtype, torch.float32).itemsize
    needed, allowed = _MATRICES * item * case.classes**2, _SHARE * _memory(batch.logits.device)
    if needed > allowed:
        raise Refusal(
            f"{_MATRICES} matrices of {case.classes}×{case.classes} take {needed / 2**30:.1f} GiB,"
            f" more than {_SHARE:.0%} of memory, {allowed / 2**30:.1f} GiB"
        )
    target, steps = batch.target, case.loss.steps
    return lambda u: baselines.published_lpl_cross_entropy(u, target, STEP_SIZE, steps)


def _memory(device: torch.device) -> int:
    """All bytes of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _published_truth(case: Case, batch: Batch) -> Criterion:
    """The library's own account of the authors' script, which forms no C×C matrix."""
    variant = Variant(STEP_SIZE, case.loss.steps, split="all", count="fixed")
    keywords = losses.CrossEntropyLoss(backend="reference").keywords()
    counts = torch.ones(case.classes, device=batch.logits.device)
    return lambda u: official_cross_entropy(u, batch.target, variant, counts, 0, keywords)


OFFICIAL = Provider(
    "official",
    _published,
    solves=lambda case: case.loss.kind == "lpl",
    truth=_published_truth,
)
PEERS = (
    _of_logits(
        "liger", "liger_kernel.transformers.functional", "liger_cross_entropy", smooths=True
    ),
    _of_logits("quack", "quack.cross_entropy", "cross_entropy", smooths=False),
    _of_features(
        "liger-linear", "liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"
    ),
    _of_features("quack-linear", "quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
    _of_features("cut-cross-entropy", "cut_cross_entropy", "linear_cross_entropy"),
    Provider("torch-linear", _torch_linear, _torch_linear_absent, _is_linear),
    OFFICIAL,
)
