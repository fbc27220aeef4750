"""What the layer and its loss take beside their inputs and gradients: chunks, never all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.memory import peak_bytes
from lpl_fused import Perturbation
from lpl_fused import functional as LF


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """No poison, which keeps what it has poisoned."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["mean", "none", "lpl", "tables"])
def test_no_memory_of_all_logits(case: str, dtype: torch.dtype, one_thread: None) -> None:
    """Beside what is asked for there are chunks, and sums of 16-bit gradients in float32."""
    n, classes, features, chunk = 2048, 16384, 32, 4 * 2**20
    torch.manual_seed(0)
    hidden = torch.randn(n, features).to(dtype).requires_grad_()
    weight = torch.randn(classes, features).to(dtype).requires_grad_()
    target = torch.randint(classes, (n,))
    offset = torch.randn(classes, requires_grad=True)
    keywords: dict[str, Any] = {"chunk_memory": chunk}
    if case == "none":
        keywords["reduction"] = "none"
    if case == "tables":
        keywords["perturbation"] = Perturbation(offset=offset)
    steps = torch.full((classes,), 3)

    def run() -> None:
        if case == "lpl":
            loss = LF.linear_lpl_cross_entropy(
                hidden, weight, target, steps, step_size=0.1, **keywords
            )
        else:
            loss = LF.linear_cross_entropy(hidden, weight, target, **keywords)
        loss.sum().backward()
        for leaf in (hidden, weight, offset):
            leaf.grad = None

    run()
    peak = peak_bytes(run, torch.device("cpu"))
    if peak is None:
        pytest.skip("memory is not counted here")
    logits = n * classes * dtype.itemsize
    # the C library may keep what it was given back, of buffers as small as these
    assert peak < logits / 2, f"{peak / 2**20:.0f} MiB beside logits of {logits / 2**20:.0f}"


@pytest.mark.large
def test_an_eighth_of_what_all_logits_take() -> None:
    """The vocabulary of a language model, in bfloat16, beside inputs and their gradients."""
    n, classes, features = 8192, 128256, 1024
    torch.manual_seed(0)
    hidden = torch.randn(n, features).bfloat16().requires_grad_()
    weight = (torch.randn(classes, features) / features**0.5).bfloat16().requires_grad_()
    target, steps = torch.randint(classes, (n,)), torch.full((classes,), 10)
    losses = {
        "eager": lambda: F.cross_entropy(F.linear(hidden, weight), target),
        "ce": lambda: LF.linear_cross_entropy(hidden, weight, target),
        "lpl": lambda: LF.linear_lpl_cross_entropy(hidden, weight, target, steps, step_size=0.1),
    }
    LF.linear_cross_entropy(hidden[:8], weight, target[:8]).backward()  # what is loaded once
    gradients = hidden.nbytes + weight.nbytes
    beyond = {}
    for name, loss in losses.items():
        hidden.grad = weight.grad = None
        peak = peak_bytes(lambda loss=loss: loss().backward(), torch.device("cpu"))
        if peak is None:
            pytest.skip("memory is not counted here")
        beyond[name] = peak - gradients
    found = {name: f"{bytes / 2**20:.0f} MiB" for name, bytes in beyond.items()}
    assert beyond["ce"] <= beyond["eager"] / 8, found
    assert beyond["lpl"] <= beyond["eager"] / 8, found
