"""Steps that go far: by all backends as exact iteration in float64 has them, or by plain steps."""

from __future__ import annotations

import pytest
import torch
from cases import Draw

from lpl_fused import functional as LF

Case = tuple[torch.Tensor, list[int], int, float]  # logits, labels, steps, their size


def cases() -> dict[str, Case]:
    few = torch.tensor([[3.0, -2.0, 1.0], [1.0, 2.0, 3.0]])
    masked = Draw(3, 8, seed=1).normal(3, 8)
    masked[0] = -torch.inf
    broken = Draw(3, 8, seed=2).normal(3, 8)
    broken[0, 3] = torch.nan
    return {
        "lowered by 30 nats": (torch.tensor([[-40.0, 60.0, -60.0]]), [0], -30, 1.0),
        "lowered by 30 nats, many classes": (
            8 * Draw(2, 900, seed=3).normal(2, 900),
            [0, 5],
            -30,
            1.0,
        ),
        "raised by 1000 nats": (few[:1], [0], 100, 10.0),
        "raised by 1000 nats, a class of two": (few, [0, 0], 100, 10.0),
        "raised by 100 nats, a class of two": (few, [0, 0], 100, 1.0),
        "lowered by 100 nats, a class of two": (few, [0, 0], -100, 1.0),
        # the first two rows raise class 1 until the third, in whose float32 it was 0, is led by it
        "a rival from below the least number": (
            torch.tensor([[0.0, 100.0, -100.0], [0.0, 100.0, -100.0], [0.0, -60.0, 40.0]]),
            [0, 0, 0],
            30,
            10.0,
        ),
        # the third row's label is so far above class 3 that this was 0 in float32, but leads it
        "a rival from below, beside the label": (
            torch.tensor(
                [
                    [-47.25, 8.39, -48.02, 1.44, -6.12],
                    [-4.44, -4.42, -19.43, 19.43, -26.78],
                    [90.51, -54.66, 11.20, 1.60, -51.16],
                ]
            ),
            [0, 0, 0],
            10,
            15.0,
        ),
        **{f"a row of −∞, {k} steps": (masked, [2, 2, 1], k, 0.1) for k in (1, 6, 20)},
        **{f"a nan, {k} steps": (broken, [2, 2, 1], k, 0.1) for k in (1, 6, 20)},
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("name", cases())
def test_is_that_of_exact_iteration(
    backend: str, name: str, normalize: bool, dtype: torch.dtype
) -> None:
    logits, labels, count, step_size = cases()[name]
    target, steps = torch.tensor(labels), torch.full((logits.shape[1],), count)

    def asked(input: torch.Tensor, backend: str) -> tuple[torch.Tensor, ...]:
        input = input.clone().requires_grad_()
        keywords = {"step_size": step_size, "normalize": normalize, "backend": backend}
        loss = LF.lpl_cross_entropy(input, target, steps, reduction="none", **keywords)
        (grad,) = torch.autograd.grad(loss.sum(), input)
        return loss.detach(), grad, LF.lpl_perturbation(input, target, steps, **keywords)[1]

    found = asked(logits.to(dtype), backend)
    expected = asked(logits.to(dtype).double(), "reference")
    digits = 1e-9 if dtype == torch.float64 else 1e-5
    for what, one, other in zip(("loss", "gradient", "δ"), found, expected, strict=True):
        torch.testing.assert_close(
            one.double(),
            other,
            rtol=digits,
            atol=digits,
            equal_nan=True,
            msg=lambda text, what=what: f"{what}: {text}",
        )


def test_counts_that_no_kernel_can_take_are_refused() -> None:
    """Not taken modulo 2³²."""
    logits, target = Draw(2, 3, seed=4).normal(2, 3), torch.tensor([0, 2])
    for count in (2**31, -(2**31), 2**40):
        with pytest.raises(ValueError, match=rf"steps: expected counts .* got .*{count}"):
            LF.lpl_cross_entropy(logits, target, torch.tensor([0, count, 0]), step_size=0.1)
        for normalize in (False, True):
            with pytest.raises(ValueError, match=rf"steps: expected counts .* got .*{count}"):
                LF.lpl_binary_cross_entropy_with_logits(
                    logits,
                    logits > 0,
                    torch.tensor([0, count, 0]),
                    step_size=0.1,
                    normalize=normalize,
                )
