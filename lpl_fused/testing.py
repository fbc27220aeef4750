"""How this package is judged: problems to solve, and errors against float64 truth.

No tolerance is tuned by hand: a result passes if it is as close to the float64 reference as plain
PyTorch in the same dtype gets (its worst element, which among a few hundred roundings scatters by
`SCATTER`), or within one unit in the last place of the output dtype plus eight of float32: four for
the arithmetic, four because rounding a difference of 8 nats alone changes a probability by as much.
Four in all is what nearly everything reaches. Of the common suite's results in float32 two need
more, beside eager ones with luck: 5.8 beyond the unit on Triton, interpreted, by NumPy's exp and
log (within it by exact ones), and 6.5 on C++ without fused multiply-add (2.3 with it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from . import functional
from .backends import REFERENCE, reason_against
from .penalty import MarginPenalty
from .perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from .problem import TABLES as FIELDS
from .problem import accumulate_dtype
from .reference import softmax as reference
from .validation import MixedTarget, Target

SCATTER = 2.0
TABLES = (*FIELDS, "temperature")  # of a Perturbation, that may learn
_TABLES = (Perturbation, BinaryPerturbation, RebalancedWeight, MarginPenalty)


@dataclass
class Case:
    """One call of `functional.cross_entropy`, or of `lpl_cross_entropy` where there are `steps`; if
    `multilabel` of `binary_cross_entropy_with_logits` and `lpl_binary_cross_entropy_with_logits`.
    """

    input: Tensor
    target: Target
    keywords: dict[str, Any] = field(default_factory=dict)
    steps: Tensor | None = None
    learn: tuple[str, ...] = ()  # tables of the perturbation that require grad
    multilabel: bool = False

    def to(self, dtype: torch.dtype) -> Case:
        """The same with logits, tables and numbers per row cast."""
        return self._changed(lambda tensor: tensor.to(dtype) if _is_real(tensor) else tensor)

    def on(self, device: str) -> Case:
        """The same with all tensors on a device."""
        return self._changed(lambda tensor: tensor.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Case:
        def changed(value: Any) -> Any:
            """A tensor, or the tensors of a dataclass or target and of those within it."""
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, MixedTarget):
                return MixedTarget(*map(changed, value))
            if not isinstance(value, _TABLES):
                return value
            parts = {part.name: changed(getattr(value, part.name)) for part in fields(value)}
            return replace(value, **parts)

        keywords = {name: changed(value) for name, value in self.keywords.items()}
        return replace(
            self,
            input=change(self.input),
            target=changed(self.target),
            keywords=keywords,
            steps=changed(self.steps),
        )

    def rounded(self, dtype: torch.dtype) -> Case:
        """The same in float64, every number one that beside `dtype` logits is held exactly."""
        if dtype == torch.float64:
            return self
        exact = self.to(torch.float32).to(torch.float64)
        target = exact.target
        if isinstance(target, Tensor) and _is_real(target):
            target = target.to(dtype).double()
        return replace(exact, input=exact.input.to(dtype).double(), target=target)


@dataclass
class Result:
    loss: Tensor
    grads: dict[str, Tensor]


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def evaluate(case: Case, backend: str, upstream: Tensor | None = None) -> Result:
    """Loss and gradients of a case; `upstream` (the loss's shape) defaults to ones. Runs where the
    backend does, and gives its results on the CPU."""
    case = case.on(device_of(backend))
    input = case.input.detach().clone().requires_grad_()
    keywords = dict(case.keywords)
    leaves = {"input": input}
    if case.learn:
        table_dtype = accumulate_dtype(input.dtype)
        tables = {
            name: torch.as_tensor(
                getattr(keywords["perturbation"], name), dtype=table_dtype, device=input.device
            )
            .detach()
            .clone()
            .requires_grad_()
            for name in case.learn
        }
        keywords["perturbation"] = replace(keywords["perturbation"], **tables)
        leaves.update(tables)
    if case.multilabel:
        assert isinstance(case.target, Tensor)
        steps = () if case.steps is None else (case.steps,)
        run = functional.lpl_binary_cross_entropy_with_logits  # type: ignore[assignment]
        if case.steps is None:
            run = functional.binary_cross_entropy_with_logits  # type: ignore[assignment]
        loss = run(input, case.target, *steps, backend=backend, **keywords)
    elif case.steps is None:
        loss = functional.cross_entropy(input, case.target, backend=backend, **keywords)
    else:
        loss = functional.lpl_cross_entropy(
            input, case.target, case.steps, backend=backend, **keywords
        )
    if upstream is None:
        upstream = torch.ones_like(loss)
    grads = torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.device, loss.dtype))
    return Result(
        loss.detach().cpu(),
        {name: grad.cpu() for name, grad in zip(leaves, grads, strict=True)},
    )


def device_of(backend: str) -> str:
    """ "cpu" where the backend takes tensors there, else "cuda"."""
    runs = backend in ("auto", REFERENCE) or reason_against(backend, "cpu", torch.float32) is None
    return "cpu" if runs else "cuda"


def error(value: Tensor, truth: Tensor, *, cancels: bool = False) -> float:
    """Worst |value − truth| / (|truth| + the mean |truth| of its row); inf where only one is nan.

    Relative, so that the small gradients of many classes are not hidden by an absolute tolerance.
    Equal infinities and nan beside nan count as no error. Where p − t may cancel (`cancels`: soft
    targets), the typical gradient of the whole batch counts as well as that of the row.
    """
    value, truth = value.double(), truth.double()
    if truth.numel() == 0:
        return 0.0
    same = (value == truth) | (value.isnan() & truth.isnan())
    typical = torch.where(truth.isfinite(), truth.abs(), 0.0)
    batch = typical.mean() if cancels else 0
    typical = typical + typical.mean(dim=-1, keepdim=truth.dim() > 0) + batch
    # nothing below what a float holds with all its digits counts
    typical = typical + torch.finfo(torch.float32).tiny
    distance = torch.where(same, 0.0, (value - truth).abs() / typical)
    return float(distance.nan_to_num(nan=float("inf")).max())


def _by_log_softmax(z: Tensor, label: Tensor) -> Tensor:
    """ℓ as plain PyTorch forms it, without the reference's care at p_y → 1."""
    return -torch.log_softmax(z, 1).gather(1, label[:, None])[:, 0]


def budget(dtype: torch.dtype, eager: float, ulps: float = 1.0) -> float:
    """The largest `error` allowed to a tensor of `dtype` where plain PyTorch makes `eager`."""
    if dtype == torch.float64:
        # the truth is float64 itself, and differences p − t lose some digits of it
        return max(SCATTER * eager, 4096 * torch.finfo(dtype).eps)
    return max(SCATTER * eager, ulps * torch.finfo(dtype).eps + 8 * torch.finfo(torch.float32).eps)


def assert_within_budget(
    case: Case,
    backend: str,
    dtype: torch.dtype = torch.float32,
    *,
    upstream: Callable[[Tensor], Tensor] = torch.ones_like,
    ulps: float = 1.0,
    run: Callable[[Case, str, Tensor], Result] = evaluate,
) -> None:
    """Checks loss and all gradients of `case` on `backend` in `dtype` against float64 truth.

    Args:
        case: with float64 tensors; its logits are rounded to `dtype` before anybody sees them.
        upstream: makes the upstream gradient from the loss.
        ulps: units in the last place granted to the output dtype.
        run: how the backend comes to loss and gradients.
    """
    exact = case.rounded(dtype)
    # tables, weights and numbers per row are float32 beside 16-bit logits
    narrow = exact.to(dtype if dtype == torch.float64 else torch.float32)
    narrow = replace(narrow, input=narrow.input.to(dtype))
    factors = upstream(evaluate(exact, "reference").loss).to(torch.float32)
    truth = evaluate(exact, "reference", factors)
    with mock.patch.object(reference, "target_cross_entropy", _by_log_softmax):
        eager = evaluate(narrow, "reference", factors)
    found = run(narrow, backend, factors)
    loss_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.loss.dtype == loss_dtype, f"loss in {found.loss.dtype}"
    assert found.loss.shape == truth.loss.shape
    pairs = [("loss", found.loss, eager.loss, truth.loss)]
    for name, grad in found.grads.items():
        expected = dtype if name == "input" else loss_dtype
        assert grad.dtype == expected, f"gradient of {name} in {grad.dtype}"
        pairs.append((f"gradient of {name}", grad, eager.grads[name], truth.grads[name]))
    soft = not isinstance(case.target, Tensor) or _is_real(case.target)
    soft = soft or "label_smoothing" in case.keywords
    if case.multilabel:
        soft = bool((case.target.double().frac().abs() > 0).any())  # type: ignore[union-attr]
    for name, value, plain, exactly in pairs:
        allowed = budget(value.dtype, error(plain, exactly, cancels=soft), ulps)
        actual = error(value, exactly, cancels=soft)
        assert actual <= allowed, (
            f"{backend} {dtype}: error {actual:.2e} of the {name} exceeds {allowed:.2e}"
        )
