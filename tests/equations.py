"""Losses judged against their equation, written down in plain PyTorch and run in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lpl_fused.testing import budget, error

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
COSINES = torch.tensor([[0.6, 0.2, -0.1], [0.6, 0.2, -0.1]])
LABELS = torch.tensor([0, 2])
COUNTS = [100, 10, 1]

Rows = Callable[[Tensor], Tensor]


def own(z: Tensor, target: Tensor) -> Tensor:
    return z.gather(1, target[:, None])[:, 0]


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    """log(1 + Σ_{j≠y} e^{z_j − z_y}): also where p_y → 1 truth keeps its digits."""
    rivals = z.scatter(1, target[:, None], -torch.inf)
    return -logsigmoid(own(z, target) - torch.logsumexp(rivals, 1))


def close(value: Tensor, expected: object, tolerance: float = 2e-6) -> None:
    """Equal to numbers that were printed with six digits."""
    expected = torch.as_tensor(expected).to(value.dtype)
    torch.testing.assert_close(value.detach(), expected, atol=tolerance, rtol=tolerance)


def assert_equation(loss: Rows, equation: Rows, logits: Tensor, dtype: torch.dtype) -> None:
    """`loss` of logits in `dtype` gives what `equation` gives in float64, and so does its gradient.

    Args:
        loss, equation: map logits (N, C) to the losses of the rows, (N,).
        logits: float64; rounded to `dtype` before anybody sees them.
    """
    rounded = logits.to(dtype)

    def solved(function: Rows, u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().clone().requires_grad_()
        value = function(u)
        (grad,) = torch.autograd.grad(value.sum(), u)
        return value.detach(), grad

    wide = dtype if dtype == torch.float64 else torch.float32
    truth = solved(equation, rounded.double())
    eager = solved(equation, rounded.to(wide))
    found = solved(loss, rounded)
    assert found[0].dtype == wide
    assert found[1].dtype == dtype
    for name, value, plain, exactly in zip(("loss", "gradient"), found, eager, truth, strict=True):
        allowed = budget(value.dtype, error(plain, exactly))
        actual = error(value, exactly)
        assert actual <= allowed, f"{dtype}: error {actual:.2e} of the {name} exceeds {allowed:.2e}"
