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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("names", "temperature"),
    [
        (("margin",), 1.0),
        (("margin",), 1 / 4),
        ((), 1 / 4),
        (("margin", "offset"), 1.0),
        (("margin", "scale"), 1.0),
        (("margin", "scale", "offset"), 1.0),
    ],
    ids=str,
)
def test_margins_temperature_and_weights_are_torchs_too(
    left_to_torch: list[bool],
    names: tuple[str, ...],
    temperature: float,
    weighted: bool,
    dtype: torch.dtype,
) -> None:
    logits, target = batch(dtype=dtype)
    before = logits.detach().clone()
    generator = torch.Generator().manual_seed(1)
    tables = {name: torch.rand(C, generator=generator, dtype=dtype) for name in names}
    weight = torch.rand(C, generator=generator, dtype=dtype) if weighted else None
    perturbation = Perturbation(**tables, temperature=temperature)
    for reduction in ("mean", "sum"):
        keywords: dict[str, Any] = {"perturbation": perturbation, "reduction": reduction}
        keywords["weight"] = weight

        def found(
            backend: str, keywords: dict[str, Any] = keywords
        ) -> tuple[Tensor, Tensor, Tensor]:
            loss = LF.cross_entropy(logits, target, backend=backend, **keywords)
            (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
            (second,) = torch.autograd.grad(grad.square().sum(), logits)
            return loss, grad, second

        left_to_torch.clear()
        small = found("auto")
        assert left_to_torch
        for one, other in zip(small, found(REFERENCE), strict=True):
            # entries of the second derivative are differences of larger ones
            rounding = 64 * torch.finfo(dtype).eps * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=rounding)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("layout", ["columns", "every other", "expanded"])
def test_margins_find_their_place_in_any_layout(left_to_torch: list[bool], layout: str) -> None:
    generator = torch.Generator().manual_seed(2)
    if layout == "columns":
        logits = torch.randn(C, N, generator=generator).t()
    elif layout == "every other":
        logits = torch.randn(2 * N, 2 * C, generator=generator)[::2, ::2]
    else:
        logits = torch.randn(1, C, generator=generator).expand(N, C)
    logits = logits.detach().requires_grad_()
    target = torch.arange(N) % C
    for temperature in (1.0, 0.5):
        perturbation = Perturbation(margin=torch.arange(C) / C, temperature=temperature)
        both = [
            LF.cross_entropy(logits, target, perturbation=perturbation, backend=backend)
            for backend in ("auto", REFERENCE)
        ]
        torch.testing.assert_close(*both)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in both))
    assert left_to_torch


def test_margins_of_labels_that_mean_nothing_are_not_taken(left_to_torch: list[bool]) -> None:
    """Neither from another place's memory nor from an ignored row, whose label may be a class."""
    logits, target = batch()
    perturbation = Perturbation(margin=torch.ones(C), temperature=0.5)
    for label in (C, -1, 2**40, -(2**40)):
        wrong = target.clone()
        wrong[5] = label
        with pytest.raises(IndexError, match=f"target {label} is out of range"):
            LF.cross_entropy(logits, wrong, perturbation=perturbation)
    for ignored in (-100, 3):
        some = target.clone()
        some[4] = ignored
        keywords: dict[str, Any] = {"perturbation": perturbation, "ignore_index": ignored}
        loss = LF.cross_entropy(logits, some, **keywords)
        exact = LF.cross_entropy(logits, some, backend=REFERENCE, **keywords)
        torch.testing.assert_close(loss, exact)
    assert not left_to_torch


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("at_target", [False, True])
def test_margins_of_logits_that_are_not_finite(value: float, at_target: bool) -> None:
    logits, target = batch()
    with torch.no_grad():
        logits[2, target[2] if at_target else (target[2] + 1) % C] = value
    perturbation = Perturbation(margin=torch.ones(C), temperature=0.5)
    losses, grads = [], []
    for backend in ("auto", REFERENCE):
        loss = LF.cross_entropy(logits, target, perturbation=perturbation, backend=backend)
        losses.append(loss)
        grads.append(torch.autograd.grad(loss, logits)[0])
    torch.testing.assert_close(*losses, equal_nan=True)
    torch.testing.assert_close(*grads, equal_nan=True)


def test_whoever_watches_operations_sees_margins(left_to_torch: list[bool]) -> None:
    logits, target = batch()
    perturbation = Perturbation(margin=torch.ones(C), temperature=0.5)

    def loss(logits: Tensor) -> Tensor:
        return LF.cross_entropy(logits, target, perturbation=perturbation)

    expected = torch.autograd.grad(loss(logits), logits)[0]
    assert left_to_torch
    left_to_torch.clear()
    plain = logits.detach()
    torch.testing.assert_close(torch.func.grad(loss)(plain), expected)
    traced = torch.fx.experimental.proxy_tensor.make_fx(torch.func.grad(loss))(plain)
    torch.testing.assert_close(traced(2 * plain), torch.func.grad(loss)(2 * plain))
    assert not left_to_torch


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


@pytest.mark.parametrize(
    "made",
    [
        losses.CrossEntropyLoss(),
        losses.CrossEntropyLoss(torch.ones(C)),
        losses.LogitAdjustedLoss([100] * C),
        losses.LDAMLoss([100] * C),
        losses.LDAMLoss([100] * C, weight=torch.ones(C)),
        losses.CosFaceLoss(),
        losses.VSLoss([100] * C),
    ],
    ids=lambda made: type(made).__name__,
)
def test_the_module_goes_the_same_way(
    left_to_torch: list[bool], made: losses.CrossEntropyLoss
) -> None:
    made(*batch())
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
        {"weight": torch.ones(C, dtype=torch.float64)},
        {"weight": torch.ones(C, requires_grad=True)},
        {"sample_weight": torch.ones(N)},
        {"perturbation": Perturbation(margin=torch.zeros(C, requires_grad=True))},
        {"perturbation": Perturbation(margin=torch.zeros(2 * C)[::2])},
        {"perturbation": Perturbation(margin=torch.zeros(C, dtype=torch.float64))},
        {"perturbation": Perturbation(rows=torch.zeros(C, C))},
        {"perturbation": Perturbation(offset=torch.zeros(C), temperature=2.0)},
        {"perturbation": Perturbation(temperature=torch.ones(()))},
        {"perturbation": Perturbation(temperature=2)},
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
    for wrong in (torch.int64, "float32"):
        with pytest.raises(TypeError, match="dtype: expected .* floating"):
            explain("cpu", wrong)  # type: ignore[arg-type]
