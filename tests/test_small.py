"""What is too small for a fused kernel behind a Python function: "auto" leaves it to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import Focal, Perturbation, losses
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE, SMALL, explain
from lpl_fused.functional import softmax

N, C = 12, 7


def batch(
    n: int = N, classes: int = C, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator, dtype=dtype, requires_grad=True)
    return logits, torch.randint(classes, (n,), generator=generator)


@pytest.fixture
def left_to_torch(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for every call that `F.cross_entropy` answers."""
    calls, own = [], F.cross_entropy

    def counted(*arguments: Any, **keywords: Any) -> Tensor:
        calls.append(True)
        return own(*arguments, **keywords)

    monkeypatch.setattr(softmax.F, "cross_entropy", counted)
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_is_torchs_to_the_bit(
    left_to_torch: list[bool], reduction: str, dtype: torch.dtype
) -> None:
    logits, target = batch(dtype=dtype)
    keywords: dict[str, Any] = {"ignore_index": -7, "reduction": reduction}
    found = LF.cross_entropy(logits, target, **keywords)
    assert left_to_torch
    exact = F.cross_entropy(logits, target, **keywords)
    assert torch.equal(found, exact)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (found, exact)]
    assert torch.equal(*grads)


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("names", [("offset",), ("scale",), ("scale", "offset")], ids=str)
def test_scale_and_offset_are_an_operation_of_torch(
    left_to_torch: list[bool], names: tuple[str, ...], learns: bool
) -> None:
    logits, target = batch()
    generator = torch.Generator().manual_seed(1)
    tables = {name: torch.randn(C, generator=generator, requires_grad=learns) for name in names}
    wanted = [logits, *(tables.values() if learns else ())]

    def found(backend: str) -> tuple[Tensor, ...]:
        perturbation = Perturbation(**tables)
        loss = LF.cross_entropy(logits, target, perturbation=perturbation, backend=backend)
        return loss, *torch.autograd.grad(loss, wanted)

    small = found("auto")
    assert left_to_torch
    for one, other in zip(small, found(REFERENCE), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_a_table_of_a_wrong_shape_gets_our_message(left_to_torch: list[bool]) -> None:
    logits, target = batch()
    with pytest.raises(ValueError, match="offset: expected shape"):
        LF.cross_entropy(logits, target, perturbation=Perturbation(offset=torch.zeros(1)))
    assert not left_to_torch


def test_ignored_rows_are_ours(left_to_torch: list[bool]) -> None:
    """Torch's gradient of one with nan is nan."""
    logits, target = batch()
    target[3] = -7
    loss = LF.cross_entropy(logits, target, ignore_index=-7)
    assert not left_to_torch
    exact = F.cross_entropy(logits, target, ignore_index=-7)
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, exact)))


def test_the_module_goes_the_same_way(left_to_torch: list[bool]) -> None:
    losses.CrossEntropyLoss()(*batch())
    assert left_to_torch


@pytest.mark.parametrize(
    "keywords",
    [
        {"backend": "reference"},
        {"reduction": "none"},
        {"phi": Focal(2.0)},
        {"z_loss": 1e-4},
        {"softcap": 30.0},
        {"label_smoothing": 0.1},
        {"label_smoothing": torch.full((C,), 0.1)},
        {"weight": torch.ones(C)},
        {"sample_weight": torch.ones(N)},
        {"perturbation": Perturbation(margin=torch.zeros(C))},
        {"perturbation": Perturbation(rows=torch.zeros(C, C))},
        {"perturbation": Perturbation(offset=torch.zeros(C), temperature=2.0)},
        {"perturbation": Perturbation(offset=torch.zeros(C), temperature=torch.ones(()))},
        {"perturbation": Perturbation(offset=torch.zeros(C, dtype=torch.float64))},
    ],
    ids=str,
)
def test_whatever_else_is_asked_for_is_ours(
    left_to_torch: list[bool], keywords: dict[str, Any]
) -> None:
    LF.cross_entropy(*batch(), **keywords)
    assert not left_to_torch


def test_large_logits_are_ours(left_to_torch: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "SMALL", N * C - 1)
    LF.cross_entropy(*batch())
    assert not left_to_torch


def test_losses_without_gradient_keep_their_digits() -> None:
    """As those of rows do: torch's are 0 here."""
    logits = torch.tensor([[40.0, 0.0], [0.0, 41.0]])
    target = torch.tensor([0, 1])
    exact = torch.tensor([-40.0, -41.0]).exp()
    torch.testing.assert_close(LF.cross_entropy(logits, target, reduction="none"), exact)
    logits.requires_grad_()
    torch.testing.assert_close(LF.cross_entropy(logits, target, reduction="none"), exact)
    with torch.no_grad():
        torch.testing.assert_close(LF.cross_entropy(logits, target), exact.mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_are_ours(left_to_torch: list[bool], dtype: torch.dtype) -> None:
    """Torch's loss of them is in 16 bits, ours in float32."""
    logits, target = batch()
    assert LF.cross_entropy(logits.to(dtype), target).dtype == torch.float32
    assert not left_to_torch


def test_an_override_is_obeyed(left_to_torch: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "OVERRIDE", "reference")
    LF.cross_entropy(*batch())
    assert not left_to_torch


@pytest.mark.parametrize(
    "arguments",
    [
        {"target": torch.full((N,), C)},
        {"target": torch.full((N,), -1)},
        {"target": torch.zeros(N + 1, dtype=torch.int64)},
        {"reduction": "average"},
        {"ignore_index": True},
        {"ignore_index": 2**70},
    ],
    ids=str,
)
def test_bad_input_gets_our_messages(arguments: dict[str, Any]) -> None:
    logits, target = batch()
    given = {"input": logits, "target": target, **arguments}
    messages = []
    for backend in ("auto", REFERENCE):
        with pytest.raises((TypeError, ValueError, OverflowError)) as caught:
            LF.cross_entropy(**given, backend=backend)
        messages.append((type(caught.value), str(caught.value)))
    assert messages[0] == messages[1]


def test_explain_says_so() -> None:
    assert f"at most {SMALL:,} logits: torch's own" in explain()
    assert "torch's own" not in explain("cuda")
