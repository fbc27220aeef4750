"""The layer and its loss at once are the loss of the layer's logits, which nobody holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from cases import Draw, cross_entropy_cases, lpl_cases, penalty_cases, table_cases
from torch import Tensor

from lpl_fused import Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE, reason_against
from lpl_fused.problem import accumulate_dtype
from lpl_fused.testing import Case, Result, budget, device_of, error
from lpl_fused.validation import MixedTarget

N, C, D = 24, 17, 5
ROWS = 7  # of a chunk, where nothing else is said: the last one is smaller
CASES = {
    name: build
    for name, build in {
        **cross_entropy_cases(),
        **table_cases(),
        **penalty_cases(),
        **{f"lpl-{name}": build for name, build in lpl_cases().items()},
    }.items()
    # −inf in the logits comes out of no product; what goes through the steps is not offered
    if "masked" not in name and "through" not in name
}


class Layer(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def draw(n: int, classes: int, features: int = D, *, bias: bool = True, seed: int = 3) -> Layer:
        draw = Draw(n, classes, seed)
        weight = 2 * draw.normal(classes, features) / features**0.5
        return Layer(draw.normal(n, features), weight, draw.normal(classes) if bias else None)

    def to(self, dtype: torch.dtype) -> Layer:
        return Layer(*(None if part is None else part.to(dtype) for part in self))


def memory(rows: int, classes: int, dtype: torch.dtype, case: Case) -> int:
    """chunk_memory for so many rows."""
    copies = 1
    if case.steps is not None:
        copies = 2 + (4 * accumulate_dtype(dtype).itemsize // dtype.itemsize if case.learn else 0)
    return rows * classes * dtype.itemsize * copies


def leaves_of(case: Case, layer: Layer) -> dict[str, Tensor]:
    dtype = accumulate_dtype(layer.hidden.dtype)
    found = {
        name: part.detach().clone().requires_grad_()
        for name, part in layer._asdict().items()
        if part is not None
    }
    for name in case.learn:
        table = torch.as_tensor(getattr(case.keywords["perturbation"], name), dtype=dtype)
        found[name] = table.detach().clone().requires_grad_()
    return found


def run(case: Case, leaves: dict[str, Tensor], fused: bool, **more: Any) -> Tensor:
    """The loss by the fused functions, or of logits by the reference."""
    keywords = dict(case.keywords)
    if case.learn:
        tables = {name: leaves[name] for name in case.learn}
        keywords["perturbation"] = replace(keywords["perturbation"], **tables)
    hidden, weight, bias = (leaves.get(name) for name in Layer._fields)
    assert hidden is not None
    assert weight is not None
    steps = () if case.steps is None else (case.steps,)
    if not fused:
        logits = F.linear(hidden, weight, bias)
        of_logits: Callable[..., Tensor] = LF.lpl_cross_entropy if steps else LF.cross_entropy
        return of_logits(logits, case.target, *steps, backend=REFERENCE, **keywords)
    of_layer: Callable[..., Tensor] = (
        LF.linear_lpl_cross_entropy if steps else LF.linear_cross_entropy
    )
    return of_layer(hidden, weight, case.target, *steps, linear_bias=bias, **keywords, **more)


def result(loss: Tensor, leaves: dict[str, Tensor], upstream: Tensor) -> Result:
    grads = torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.device, loss.dtype))
    found = {name: grad.cpu() for name, grad in zip(leaves, grads, strict=True)}
    return Result(loss.detach().cpu(), found)


def any_upstream(loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


def check(
    case: Case,
    layer: Layer,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    rows: int | None = ROWS,
    upstream: Callable[[Tensor], Tensor] = any_upstream,
    **more: Any,
) -> Result:
    """Loss and gradients against float64 truth, as close as PyTorch with all logits comes."""
    exact, layer = case.rounded(dtype), layer.to(dtype).to(torch.float64)
    narrow = exact.to(dtype if dtype == torch.float64 else torch.float32)
    leaves = leaves_of(exact, layer)
    loss = run(exact, leaves, False)
    factors = upstream(loss).float()
    truth = result(loss, leaves, factors)
    leaves = leaves_of(narrow, layer.to(dtype))
    eager = result(run(narrow, leaves, False), leaves, factors)
    device = device_of(backend)
    leaves = {name: leaf.detach().to(device).requires_grad_() for name, leaf in leaves.items()}
    if rows is not None:
        more["chunk_memory"] = memory(rows, layer.weight.shape[0], dtype, case)
    loss = run(narrow.on(device), leaves, True, backend=backend, **more)
    found = result(loss, leaves, factors)
    assert found.loss.shape == truth.loss.shape
    assert found.loss.dtype == accumulate_dtype(dtype)
    soft = isinstance(case.target, MixedTarget) or case.target.is_floating_point()
    soft = soft or "label_smoothing" in case.keywords
    pairs = [("loss", found.loss, eager.loss, truth.loss)]
    for name, grad in found.grads.items():
        assert grad.dtype == leaves[name].dtype, name
        pairs.append((name, grad, eager.grads[name], truth.grads[name]))
    for name, value, plain, exactly in pairs:
        # sums over rows cancel, as those of soft targets do
        cancels = soft or name != "loss"
        allowed = budget(value.dtype, error(plain, exactly, cancels=cancels))
        actual = error(value, exactly, cancels=cancels)
        assert actual <= allowed, f"{name}: error {actual:.2e} exceeds {allowed:.2e}"
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_loss(case: str) -> None:
    check(CASES[case](Draw(N, C, seed=7)), Layer.draw(N, C))
