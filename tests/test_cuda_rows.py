"""How the CUDA backend stages its rows, what it is compiled for, and which digits that keeps. Without
a GPU the kernels' bodies run on the host."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lpl_fused import Focal, LogitClip, LogitNorm, MarginPenalty, Perturbation
from lpl_fused import functional as LF
from lpl_fused.backends import load

backend = load("cuda")
if backend.unavailable() is not None:
    pytest.skip(f"cuda: {backend.unavailable()}", allow_module_level=True)
DEVICE = backend._native().device
ON_HOST = pytest.mark.skipif(DEVICE != "cpu", reason="the host's teams are tests' own")


@pytest.fixture
def use_fill() -> Iterator[Any]:
    """Sets (rows staged, in bulk, blocks of a team) of the host's teams."""
    library = ctypes.CDLL(backend._native().__file__)

    def use(staged: bool, bulk: bool, blocks: int) -> None:
        library.use_shape(blocks, 4, staged, False)
        library.use_bulk(bulk)

    yield use
    use(True, True, 2)


def drawn(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64) * 2
    return logits, torch.randint(classes, (n,), generator=generator)


# a table beside every kernel that is compiled for less than everything, and one for everything
FORMS: dict[str, dict[str, Any]] = {
    "bare": {},
    "tables": {"perturbation": ("scale", "offset")},
    "offset": {"perturbation": ("offset",)},
    "margin": {"perturbation": ("margin",), "phi": Focal(2.0), "z_loss": 1e-3},
    "temperature": {"perturbation": ("temperature",)},
    "even": {"label_smoothing": 0.1},
    "norm": {"norm": LogitClip(2.0)},
    "norm-1": {"norm": LogitClip(9.0, 1.0)},
    "norm-infinity": {"norm": LogitClip(2.0, math.inf), "perturbation": ("scale", "temperature")},
    "logit-norm": {"norm": LogitNorm(0.1)},
    "penalty": {"penalty": MarginPenalty(margin=2.0)},
    "everything": {"label_smoothing": 0.1, "softcap": 9.0, "norm": LogitClip(2.0, 3.0)},
}


def keywords_of(form: str, classes: int, dtype: torch.dtype) -> dict[str, Any]:
    """Tables are float32 numbers, in float64 where the truth is wanted."""
    generator = torch.Generator().manual_seed(5)
    keywords = dict(FORMS[form])
    parts = keywords.pop("perturbation", ())
    tables: dict[str, Any] = {}
    for name in parts:
        if name == "temperature":
            tables[name] = 0.25
            continue
        table = torch.rand(classes, generator=generator) + (0.5 if name == "scale" else 0.0)
        tables[name] = table.to(DEVICE, dtype)
    if parts:
        keywords["perturbation"] = Perturbation(**tables)
    return keywords


def truth_of(
    logits: torch.Tensor, target: torch.Tensor, keywords: dict[str, Any], upstream: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    input = logits.double().detach().requires_grad_()
    loss = LF.cross_entropy(input, target, reduction="none", backend="reference", **keywords)
    (grad,) = torch.autograd.grad(loss, input, upstream.double())
    return loss, grad


def assert_near(found: torch.Tensor, truth: torch.Tensor, eps: float) -> None:
    """Within some ulps of a number that is as large as its row's mean; of one class the gradient is
    a difference that leaves nothing."""
    typical = truth.abs() + truth.abs().mean(-1, keepdim=True) + (truth.shape[1] == 1)
    worst = ((found.double() - truth).abs() / typical.clamp(min=1e-30)).max()
    assert worst <= eps, f"off by {float(worst):.2e}, expected at most {eps:.2e}"


@ON_HOST
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "fill",
    [(True, True, 1), (True, True, 2), (True, False, 2), (False, False, 1)],
    ids=["bulk", "bulk-cluster", "lines", "not-staged"],
)
def test_all_phases_and_nothing_beside_a_row(use_fill, fill, form: str) -> None:  # type: ignore[no-untyped-def]
    """Rows that begin at any place in a line of 16 bytes, of lengths with and without whole lines."""
    use_fill(*fill)
    for classes, start in itertools.product(
        (1, 7, 8, 40, 67), range(0, 9, 1 if fill[2] == 1 else 3)
    ):
        values, target = drawn(5, classes, seed=start)
        stride = classes + 8 - classes % 8 + start % 3
        memory = torch.full((start + 5 * stride + 16,), 1e30).bfloat16()
        rows = memory.as_strided((5, classes), (stride, 1), start)
        rows.copy_(values)
        before = memory.clone()
        upstream = torch.linspace(0.5, 2.0, 5)
        expected = truth_of(rows, target, keywords_of(form, classes, torch.float64), upstream)
        input = rows.detach().requires_grad_()
        keywords = keywords_of(form, classes, torch.float32)
        loss = LF.cross_entropy(input, target, reduction="none", backend="cuda", **keywords)
        (grad,) = torch.autograd.grad(loss, input, upstream)
        assert torch.equal(memory, before)
        torch.testing.assert_close(loss.double(), expected[0], rtol=3e-6, atol=1e-6)
        assert_near(grad, expected[1], 2.0**-7)


PRECISION = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 4e-6}


@ON_HOST
@pytest.mark.parametrize("dtype", [*PRECISION, torch.float64], ids=str)
@pytest.mark.parametrize("form", ["bare", "tables", "lpl"])
def test_gradients_begin_at_any_place_whatever_that_of_the_logits(
    use_fill: Any, form: str, dtype: torch.dtype
) -> None:
    """Of rows that all begin at one place in a line of 16 bytes the gradients, an odd number of
    elements each, begin at every place in turn; one row counts nothing."""
    classes, count, line = 67, 10, 16 // dtype.itemsize
    values, target = drawn(count, classes, seed=3)
    if form == "lpl":
        target = torch.arange(count) * 6
    target[3] = -100
    steps = torch.full((classes,), 3)

    def differentiated(input: torch.Tensor, reduction: str, name: str) -> list[torch.Tensor]:
        input = input.detach().requires_grad_()
        given: dict[str, Any] = {"reduction": reduction, "backend": name}
        if form == "lpl":
            loss = LF.lpl_cross_entropy(input, target, steps, step_size=0.2, **given)
        else:
            wide = torch.float64 if input.dtype == torch.float64 else torch.float32
            loss = LF.cross_entropy(input, target, **keywords_of(form, classes, wide), **given)
        return [loss, *torch.autograd.grad(loss.sum(), input)]

    for start, reduction in itertools.product(range(line), ("sum", "none")):
        use_fill(True, True, 1 + start % 2)
        memory = torch.full((start + count * 72,), 77.0, dtype=dtype)
        rows = memory.as_strided((count, classes), (72, 1), start)
        rows.copy_(values)
        before = memory.clone()
        expected = differentiated(rows.double(), reduction, "reference")
        loss, grad = differentiated(rows, reduction, "cuda")
        assert torch.equal(memory, before)
        assert {row.data_ptr() % 16 // dtype.itemsize for row in grad} == set(range(line))
        assert (grad[3] == 0).all()
        torch.testing.assert_close(loss.double(), expected[0], rtol=3e-6, atol=1e-6)
        assert_near(grad, expected[1], PRECISION.get(dtype, 1e-12))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("offset", [0.0, 100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("form", ["bare", "offset", "even", "norm-1", "penalty"])
def test_a_common_offset_costs_no_digits(form: str, offset: float, reduction: str) -> None:
    """More than it costs the logits themselves, which are float32 numbers already."""
    if offset and form == "norm-1":
        pytest.skip("a norm is of the logits with their offset")
    values, target = drawn(6, 300, seed=1)
    logits = (values + offset).float().to(DEVICE)
    target = target.to(DEVICE)
    upstream = torch.full((6,), 1 / 6, device=DEVICE) if reduction == "mean" else torch.ones(6)
    keywords = keywords_of(form, 300, torch.float64)
    if form == "offset" and offset:
        # z = u + o is rounded once as a float32 number
        z = logits + keywords_of(form, 300, torch.float32)["perturbation"].offset
        expected = truth_of(z, target, {}, upstream.to(DEVICE))
    else:
        expected = truth_of(logits, target, keywords, upstream.to(DEVICE))
    input = logits.requires_grad_()
    loss = LF.cross_entropy(
        input, target, reduction=reduction, backend="cuda", **keywords_of(form, 300, torch.float32)
    )
    (grad,) = torch.autograd.grad(loss.sum(), input)
    value = expected[0].mean() if reduction == "mean" else expected[0]
    torch.testing.assert_close(loss.double(), value, rtol=2e-6, atol=1e-7)
    # where weight is spread, gradients are differences of two numbers
    assert_near(grad, expected[1], 4e-6 if form == "even" else 2e-6)


@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("rest", [1e-7, 1e-12, 1e-30])
def test_confident_rows_keep_their_digits(classes: int, rest: float) -> None:
    """1 − p_y is never a difference: the loss of p_y = 1 − 1e-7 and its gradient are exact."""
    logits = torch.zeros(2, classes)
    logits[:, 1] = -math.log(rest / (classes - 1))
    target = torch.ones(2, dtype=torch.long, device=DEVICE)
    logits = logits.to(DEVICE)
    expected = truth_of(logits, target, {}, torch.ones(2, device=DEVICE))
    input = logits.requires_grad_()
    loss = LF.cross_entropy(input, target, reduction="none", backend="cuda")
    (grad,) = torch.autograd.grad(loss.sum(), input)
    torch.testing.assert_close(loss.double(), expected[0], rtol=3e-6, atol=0)
    torch.testing.assert_close(grad.double(), expected[1], rtol=3e-6, atol=0)


@pytest.mark.parametrize("form", ["bare", "tables", "even"])
def test_many_rows_share_tables(form: str) -> None:
    """Losses without gradient of so many rows that they lie beside each other, an odd number of
    them, ignored ones and those of nan and −inf among them."""
    values, target = drawn(11, 48, seed=2)
    values[3, 5], values[4, :], values[6, :7] = math.nan, -math.inf, -math.inf
    target[7] = -100
    values[7, 0] = math.nan  # ignored, so that nobody sees it
    values, target = values.float().to(DEVICE), target.to(DEVICE)
    keywords = keywords_of(form, 48, torch.float32)
    found = LF.cross_entropy(values, target, reduction="none", backend="cuda", **keywords)
    wide = keywords_of(form, 48, torch.float64)
    expected = LF.cross_entropy(
        values.double(), target, reduction="none", backend="reference", **wide
    )
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("classes", [48, 43])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("names", [("scale", "offset"), ("scale",), ("offset",), ()], ids=str)
def test_tables_and_a_temperature_beside_each_other(
    names: tuple[str, ...], dtype: torch.dtype, classes: int, start: int
) -> None:
    """Tables that begin at any place in a line of 16 bytes, logits far from 0, and a temperature
    that is no power of two: the row's loss and gradient, zeros where it counts nothing."""
    values, target = drawn(11, classes, seed=classes)
    values[3, 5], values[6, :7] = math.nan, -math.inf
    values[2] += 100
    values[5] -= 100
    target[7:9] = -100
    values[7, 0] = math.nan
    target[9], target[10] = 0, classes - 1
    memory = torch.zeros(11, 48, dtype=dtype, device=DEVICE)
    memory[:, :classes] = values.to(dtype)
    logits, target = memory[:, :classes], target.to(DEVICE)
    generator = torch.Generator().manual_seed(start)
    tables = {}
    for name in names:
        numbers = torch.rand(classes + start, generator=generator) + (name == "scale")
        tables[name] = numbers.to(DEVICE)[start:]
    upstream = torch.linspace(-1.0, 3.0, 11, device=DEVICE)
    wide = {name: table.double() for name, table in tables.items()}
    expected = truth_of(
        logits, target, {"perturbation": Perturbation(temperature=0.7, **wide)}, upstream
    )
    input = logits.detach().requires_grad_()
    keywords = {"perturbation": Perturbation(temperature=0.7, **tables)}
    loss = LF.cross_entropy(input, target, reduction="none", backend="cuda", **keywords)
    (grad,) = torch.autograd.grad(loss, input, upstream)
    # z of a label far from 0 is rounded
    torch.testing.assert_close(loss.double(), expected[0], rtol=2e-6, atol=4e-5, equal_nan=True)
    near = [0, 1, 4, 6, 7, 8, 9, 10]
    torch.testing.assert_close(loss[near].double(), expected[0][near], rtol=2e-6, atol=1e-6)
    tolerance = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 4e-6}[dtype]
    least = 2.0**-24 if dtype == torch.float16 else 1e-7
    torch.testing.assert_close(grad[near].double(), expected[1][near], rtol=tolerance, atol=least)
    torch.testing.assert_close(
        grad.double(), expected[1], rtol=tolerance + 4e-5, atol=least, equal_nan=True
    )
    assert torch.equal(grad[7:9], torch.zeros_like(grad[7:9]))
