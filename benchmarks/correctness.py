"""Who is let in: losses and gradients against float64 truth, relative to what eager gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import Perturbation
from lpl_fused import functional as LF
from lpl_fused.testing import TABLES, budget, error

from .cases import STEP_SIZE, Batch, Case
from .providers import Criterion, fused_multilabel

# A right answer summed in another order; a wrong one misses by orders of magnitude.
MARGIN = 4.0
# The baseline has nobody beside it; rounding alone leaves it far below.
EAGER_LIMIT = {
    torch.float64: 1e-10,
    torch.float32: 1e-3,
    torch.float16: 0.05,
    torch.bfloat16: 0.4,
}
_FEW_CLASSES = 40
_CHUNK = 2**22  # logits that are held in float64 with all that their gradient needs


class Errors(NamedTuple):
    """Worst relative errors, as `lpl_fused.testing.error` counts them."""

    loss: float
    grad: float

    def exceeding(self, allowed: Errors) -> str | None:
        """Which errors are too large, in words; None if none is."""
        parts = []
        for name, mine, limit in zip(self._fields, self, allowed, strict=True):
            if not mine <= limit:
                parts.append(f"{name} error {mine:.1e} exceeds {limit:.1e}")
        return "; ".join(parts) or None


class Result(NamedTuple):
    loss: Tensor  # 0-dim
    grads: tuple[Tensor, ...]  # of the inputs, (N, C) of logits


def evaluate(criterion: Criterion, batch: Batch) -> Result:
    """What a provider makes of a batch."""
    inputs = [part.detach().requires_grad_() for part in batch.inputs]
    loss = criterion(*inputs)
    grads = torch.autograd.grad(loss, inputs, batch.upstream.to(loss.dtype))
    return Result(loss.detach(), grads)


def truth(case: Case, batch: Batch) -> Result:
    """Loss and gradient in float64, by the library's reference, a chunk of rows after the other."""
    if case.loss.multilabel:
        return _multilabel_truth(case, batch)
    if batch.weight is not None:
        return _linear_truth(batch, batch.weight)
    n = len(batch.target)
    keywords: dict[str, Any] = {"backend": "reference", "reduction": "sum"}
    perturbation = _in_float64(batch.perturbation)
    total = torch.zeros((), dtype=torch.float64, device=batch.logits.device)
    grad = torch.empty_like(batch.logits, dtype=torch.float64)
    size = max(1, _CHUNK // batch.logits.shape[1])
    chunks = torch.arange(n, device=batch.logits.device).split(size)
    for index in chunks if batch.steps is None else whole_classes(batch.target, size):
        part = batch.rows(index)
        logits = part.logits.double().requires_grad_()
        if batch.steps is not None:
            loss = LF.lpl_cross_entropy(
                logits, part.target, batch.steps, step_size=STEP_SIZE, **keywords
            )
        else:
            loss = LF.cross_entropy(
                logits,
                part.target,
                perturbation=perturbation,
                label_smoothing=batch.label_smoothing,
                norm=batch.norm,
                penalty=batch.penalty,
                phi=batch.phi,
                **keywords,
            )
        (grad[index],) = torch.autograd.grad(loss / n, logits, batch.upstream.double())
        total += loss.detach() / n
    return Result(total, (grad,))


def _linear_truth(batch: Batch, weight: Tensor) -> Result:
    """The same from features and a weight, whose gradient all chunks add to."""
    n = len(batch.target)
    wide = weight.double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    grad = torch.empty_like(batch.logits, dtype=torch.float64)
    grad_of_weight = torch.zeros_like(wide)
    size = max(1, _CHUNK // len(weight))
    chunks = torch.arange(n, device=weight.device).split(size)
    keywords: dict[str, Any] = {"backend": "reference", "reduction": "sum"}
    for index in chunks if batch.steps is None else whole_classes(batch.target, size):
        part = batch.logits[index].double().requires_grad_()
        logits, target = F.linear(part, wide), batch.target[index]
        if batch.steps is None:
            loss = LF.cross_entropy(logits, target, **keywords)
        else:
            loss = LF.lpl_cross_entropy(
                logits, target, batch.steps, step_size=STEP_SIZE, **keywords
            )
        found = torch.autograd.grad(loss / n, (part, wide), batch.upstream.double())
        grad[index], of_weight = found
        grad_of_weight += of_weight
        total += loss.detach() / n
    return Result(total, (grad, grad_of_weight))


def _multilabel_truth(case: Case, batch: Batch) -> Result:
    """The same; in chunks of columns, whose δ are means over all rows, where there are steps."""
    n, classes = batch.logits.shape
    of_columns = batch.steps is not None
    size = max(1, _CHUNK // (n if of_columns else classes))
    total = torch.zeros((), dtype=torch.float64, device=batch.logits.device)
    grads: list[Tensor] = []
    for start in range(0, classes if of_columns else n, size):
        chunk = slice(start, start + size)
        index = (slice(None), chunk) if of_columns else (chunk, slice(None))
        steps = None if batch.steps is None else batch.steps[chunk]
        part = batch._replace(logits=batch.logits[index], target=batch.target[index], steps=steps)
        logits = part.logits.double().requires_grad_()
        loss = fused_multilabel(case, part, "reference", reduction="sum")(logits)
        loss = loss / batch.logits.numel()
        grads += torch.autograd.grad(loss, logits, batch.upstream.double())
        total += loss.detach()
    return Result(total, (torch.cat(grads, 1 if of_columns else 0),))


def whole_classes(target: Tensor, size: int) -> Iterator[Tensor]:
    """Indices of rows in chunks of about `size`; the rows of one class stay together.

    A learned perturbation is found from all rows of its class and from no others.
    """
    order = target.argsort(stable=True)
    counts = torch.unique_consecutive(target[order], return_counts=True)[1].tolist()
    start = stop = 0
    for count in counts:
        stop += count
        if stop - start >= size:
            yield order[start:stop]
            start = stop
    if stop > start:
        yield order[start:stop]


def errors(found: Result, exact: Result) -> Errors:
    """How far a result is from the truth, its gradients by the worst of them."""
    worst = 0.0
    for mine, right in zip(found.grads, exact.grads, strict=True):
        rows = max(1, _CHUNK // right.shape[1])
        parts = zip(mine.split(rows), right.split(rows), strict=True)
        worst = max(worst, *(error(a, b) for a, b in parts))
    return Errors(error(found.loss, exact.loss), worst)


def allowed_errors(case: Case, eager: Errors | None) -> Errors:
    """What a provider may miss the truth by; the baseline itself where `eager` is None."""
    if eager is None:
        # with few classes p → 1 is common, where p − 1 cancels (6e-3 seen in float32, 8192×2)
        limit = EAGER_LIMIT[case.dtype] * max(1.0, _FEW_CLASSES / case.classes)
        return Errors(limit, limit)
    return Errors(*(MARGIN * budget(case.dtype, part) for part in eager))


def _in_float64(perturbation: Perturbation | None) -> Perturbation | None:
    if perturbation is None:
        return None
    tables = {name: getattr(perturbation, name) for name in TABLES}
    wide = {n: t.double() if isinstance(t, Tensor) else t for n, t in tables.items()}
    return replace(perturbation, **wide)
