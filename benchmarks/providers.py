"""Who takes part: eager PyTorch, torch.compile, every backend of the library, and the peers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lpl_fused
from lpl_fused import functional as LF
from lpl_fused import losses
from lpl_fused.backends import REFERENCE, has_multilabel

from . import baselines
from .cases import STEP_SIZE, Batch, Case

Criterion = Callable[..., Tensor]


class Refusal(Exception):
    """Why a provider does not take part in one case."""


@dataclass(frozen=True)
class Provider:
    """An implementation of the losses.

    Attributes:
        name: as the command line and the records call it.
        criterion: makes, from a case and its batch, the function from `batch.inputs` to the mean
            loss; may raise `Refusal`.
        absent: why it cannot be timed on a device ("cpu", "cuda"); None if it can.
        solves: whether a case is of its kind.
        truth: makes what it is to compute where that is not the case's own loss; called on a batch
            in float64.
        plain: its own plain cross-entropy on the batch of a perturbed case. No rival, but the price
            of not perturbing at all, beside which a perturbation's cost is seen.
    """

    name: str
    criterion: Callable[[Case, Batch], Criterion]
    absent: Callable[[str], str | None] = lambda device: None
    solves: Callable[[Case], bool] = lambda case: True
    truth: Callable[[Case, Batch], Criterion] | None = None
    plain: Provider | None = None


def _balanced(case: Case, batch: Batch) -> losses.DistributionBalancedLoss:
    """The loss of a batch's counts; every other training sample has the commonest class."""
    assert batch.counts is not None
    samples = 2 * int(batch.counts.max())
    return losses.DistributionBalancedLoss(batch.counts, samples).to(batch.logits.device)


def _plain_multilabel(
    case: Case,
    batch: Batch,
    balanced: Callable[..., Tensor],
    bce: Callable[[Tensor, Tensor], Tensor],
    step: Callable[..., Tensor],
) -> Criterion:
    """A multi-label loss of PyTorch's operations, each part as it is or compiled."""
    target = batch.target
    if batch.counts is not None:
        loss = _balanced(case, batch)
        inverse, bias = loss.table("inverse_count", target), loss.table("bias", target)
        wide = target.to(inverse.dtype)
        return lambda u: balanced(u.to(wide.dtype), wide, inverse, bias, loss.neg_scale)
    if batch.steps is not None:
        steps, most = batch.steps, case.loss.steps
        return lambda u: baselines.lpl_binary_cross_entropy(
            u, target, steps, STEP_SIZE, most, step=step, loss=bce
        )
    return lambda u: bce(u, target)


def composed(case: Case, batch: Batch, loss: baselines.Loss) -> Criterion:
    """A loss as its users perturb it: logits changed by PyTorch's operations, then `loss`."""
    if batch.steps is not None:
        target, steps, most = batch.target, batch.steps, case.loss.steps
        return lambda u: baselines.lpl_cross_entropy(u, target, steps, STEP_SIZE, most, loss=loss)
    what = _of_loss(batch)
    return lambda u: baselines.cross_entropy(u, *what, loss=loss)


def _eager(case: Case, batch: Batch) -> Criterion:
    if case.loss.multilabel:
        bce = F.binary_cross_entropy_with_logits
        balanced, step = baselines.distribution_balanced, baselines.binary_pgd_step
        return _plain_multilabel(case, batch, balanced, bce, step)
    if case.loss.linear:
        return _of_features(case, batch, F.linear, _of_rows(batch))
    return composed(case, batch, _of_rows(batch))


def _of_features(
    case: Case, batch: Batch, linear: Callable[[Tensor, Tensor], Tensor], loss: baselines.Loss
) -> Criterion:
    """A classifier's last layer, and the loss of its logits."""
    of_logits = composed(case, batch, loss)
    return lambda x, w: of_logits(linear(x, w))


def _of_rows(batch: Batch) -> baselines.Loss:
    """What PyTorch has for the rows of a batch, or what its users write."""
    return F.cross_entropy if batch.phi == "log" else baselines.focal_cross_entropy


def _of_loss(batch: Batch) -> tuple[Any, ...]:
    """What `baselines.cross_entropy` takes beside the logits."""
    tables = batch.perturbation, batch.label_smoothing
    return (batch.target, *tables, batch.norm, batch.penalty)


def _compiled(case: Case, batch: Batch) -> Criterion:
    # cases share code objects: past a few shapes the compiler would fall back to eager, silently
    torch.compiler.reset()
    mode = "max-autotune-no-cudagraphs" if batch.logits.is_cuda else None
    compiled = functools.partial(torch.compile, dynamic=False, fullgraph=True, mode=mode)
    if case.loss.multilabel:
        parts = (
            baselines.distribution_balanced,
            F.binary_cross_entropy_with_logits,
            baselines.binary_pgd_step,
        )
        return _plain_multilabel(case, batch, *map(compiled, parts))
    if case.loss.linear and batch.steps is None:
        linear = compiled(baselines.linear_cross_entropy)
        return lambda x, w: linear(x, w, batch.target)
    if batch.steps is not None:
        # unrolled, 50 steps take minutes to compile; one step is a graph of its own
        lpl = functools.partial(
            baselines.lpl_cross_entropy,
            step=compiled(baselines.pgd_step),
            loss=compiled(F.cross_entropy),
        )
        target, steps, most = batch.target, batch.steps, case.loss.steps
        if case.loss.linear:
            return lambda x, w: lpl(F.linear(x, w), target, steps, STEP_SIZE, most)
        return lambda u: lpl(u, target, steps, STEP_SIZE, most)
    loss = compiled(functools.partial(baselines.cross_entropy, loss=_of_rows(batch)))
    what = _of_loss(batch)
    return lambda u: loss(u, *what)


def fused(backend: str, gradient: str = "auto") -> Callable[[Case, Batch], Criterion]:
    """A backend's losses; the gradient of a cross-entropy as `gradient` says."""

    def criterion(case: Case, batch: Batch) -> Criterion:
        if case.loss.multilabel:
            return fused_multilabel(case, batch, backend)
        if case.loss.linear:
            return fused_linear(batch, backend)
        if batch.steps is not None:
            target, steps = batch.target, batch.steps
            return lambda u: LF.lpl_cross_entropy(
                u, target, steps, step_size=STEP_SIZE, backend=backend
            )
        keywords: dict[str, Any] = {
            "perturbation": batch.perturbation,
            "label_smoothing": batch.label_smoothing,
            "norm": batch.norm,
            "penalty": batch.penalty,
            "phi": batch.phi,
            "gradient": gradient,
            "backend": backend,
        }
        target = batch.target
        return lambda u: LF.cross_entropy(u, target, **keywords)

    return criterion


def fused_linear(batch: Batch, backend: str) -> Criterion:
    """A layer and its loss, of this library."""
    target, steps = batch.target, batch.steps
    if steps is None:
        return lambda x, w: LF.linear_cross_entropy(x, w, target, backend=backend)
    return lambda x, w: LF.linear_lpl_cross_entropy(
        x, w, target, steps, step_size=STEP_SIZE, backend=backend
    )


def fused_multilabel(case: Case, batch: Batch, backend: str, **keywords: Any) -> Criterion:
    """A multi-label loss of this library; `keywords` go to its function."""
    target = batch.target
    if batch.counts is not None:
        loss = _balanced(case, batch)
        loss.backend = backend
        loss.reduction = keywords.get("reduction", "mean")
        return lambda u: loss(u, target)
    if batch.steps is not None:
        steps = batch.steps
        return lambda u: LF.lpl_binary_cross_entropy_with_logits(
            u, target, steps, step_size=STEP_SIZE, backend=backend, **keywords
        )
    return lambda u: LF.binary_cross_entropy_with_logits(u, target, backend=backend, **keywords)


def _backend_absent(backend: str, device: str) -> str | None:
    state = lpl_fused.backends()[backend]
    if state != "available":
        return state
    if backend in ("triton", "cuda") and device == "cpu":
        return "runs on a GPU; interpreted on the CPU its time means nothing"
    if backend == "cpp" and device != "cpu":
        return f"runs on the CPU, not on {device}"
    return None


def _backend_solves(backend: str, case: Case) -> bool:
    """Not every backend has kernels for labels of many classes at once."""
    if backend == REFERENCE or not case.loss.multilabel:
        return True
    return has_multilabel(backend)


def _compiler_absent(device: str) -> str | None:
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1" or os.environ.get("TORCHDYNAMO_DISABLE"):
        return "switched off by the environment"
    return None


_PLAIN = "-ce"


def is_plain(name: str) -> bool:
    """Whether a provider is another's `plain`."""
    return name.endswith(_PLAIN)


def without_plain(name: str) -> str:
    """Whose `plain` a provider is."""
    return name.removesuffix(_PLAIN)


def _eager_plain(case: Case, batch: Batch) -> Criterion:
    if case.loss.multilabel:
        return lambda u: F.binary_cross_entropy_with_logits(u, batch.target)
    if case.loss.linear:
        return lambda x, w: baselines.linear_cross_entropy(x, w, batch.target)
    return lambda u: F.cross_entropy(u, batch.target)


def _fused_plain(backend: str) -> Provider:
    def criterion(case: Case, batch: Batch) -> Criterion:
        if case.loss.linear:
            return fused_linear(batch._replace(steps=None), backend)
        plain = LF.binary_cross_entropy_with_logits if case.loss.multilabel else LF.cross_entropy
        return lambda u: plain(u, batch.target, backend=backend)

    return Provider(f"{backend}{_PLAIN}", criterion)


EAGER_CE = Provider(f"eager{_PLAIN}", _eager_plain)
EAGER = Provider("eager", _eager, plain=EAGER_CE)
COMPILE = Provider("compile", _compiled, _compiler_absent)
# what a user gets who names no backend
AUTO = Provider("auto", fused("auto"), plain=_fused_plain("auto"))


def by_statistics(backend: str) -> Provider:
    """A backend's cross-entropy whose gradient is not made in the forward."""

    def solves(case: Case) -> bool:
        return case.loss.steps == 0 and not case.loss.multilabel and not case.loss.linear

    criterion = fused(backend, "statistics")
    absent = functools.partial(_backend_absent, backend)
    return Provider(f"{backend}-statistics", criterion, absent, solves)


def providers() -> dict[str, Provider]:
    """All providers by name, the baseline first, peers last."""
    from .peers import PEERS  # they are providers, too

    backends = [
        Provider(
            name,
            fused(name),
            functools.partial(_backend_absent, name),
            functools.partial(_backend_solves, name),
            plain=None if name == REFERENCE else _fused_plain(name),
        )
        for name in lpl_fused.backends()
    ]
    return {provider.name: provider for provider in (EAGER, COMPILE, AUTO, *backends, *PEERS)}
