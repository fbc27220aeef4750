"""Usual calls, which are checked at once: they are what all others are, and what is not one is
checked as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lpl_fused import Perturbation
from lpl_fused import functional as LF
from lpl_fused.backends import BACKENDS, load
from lpl_fused.functional import softmax

Call = Callable[..., Tensor]
LEARNS = {"step_size": 0.1}


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels, one of which is ignored, and steps."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 9, generator=generator).to(dtype).requires_grad_()
    target = torch.tensor([0, 3, 3, -100, 8, 1, 3])
    return logits, target, torch.tensor([1, 0, 2, -2, 0, 3, 0, 0, 4], dtype=torch.int32)


def plain(logits: Tensor, target: Tensor, _: Tensor, **keywords: Any) -> Tensor:
    found: Tensor = LF.cross_entropy(logits, target, **keywords)
    return found


def learned(logits: Tensor, target: Tensor, steps: Tensor, **keywords: Any) -> Tensor:
    found: Tensor = LF.lpl_cross_entropy(logits, target, steps, **LEARNS, **keywords)
    return found


CALLS = [plain, learned]


@pytest.fixture
def one() -> str:
    """Any of them: what is wrong is told before it runs."""
    return next(name for name in BACKENDS if load(name).unavailable() is None)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was checked argument by argument."""
    found: list[object] = []

    class Shaped(softmax.Shaped):
        def __init__(self, *arguments: Any) -> None:
            found.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(softmax, "Shaped", Shaped)
    return found


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none", "ignore_index": 3},
        {"gradient": "statistics"},
    ],
    ids=lambda keywords: ", ".join(keywords) or "none",
)
def test_a_usual_call_is_as_any_other(
    call: Call, dtype: torch.dtype, keywords: dict[str, Any], native: str, checked: list[object]
) -> None:
    found = []
    keywords = {**keywords, "backend": native}
    for unusual in ({}, {"z_loss": None}):
        logits, target, steps = batch(dtype)
        if "ignore_index" in keywords:
            target = target.clamp(min=0)
        loss = call(logits, target, steps, **keywords, **unusual)
        (loss * 0.75).sum().backward()
        found.append((loss.detach(), logits.grad))
        assert len(checked) == len(unusual)
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


TABLE = torch.linspace(-1, 2, 9)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tables", "temperature"),
    [
        (("offset",), 1.0),
        (("scale", "offset"), 1.0),
        (("margin",), 0.25),
        (("scale", "offset", "margin"), 2.0),
        ((), 1.0),
    ],
)
def test_fixed_tables_are_usual(
    call: Call,
    dtype: torch.dtype,
    tables: tuple[str, ...],
    temperature: float,
    native: str,
    checked: list[object],
) -> None:
    of = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = {name: TABLE.to(of) + 2 * (name == "scale") for name in tables}
    moved = Perturbation(**numbers, temperature=temperature)
    found = []
    for unusual in ({}, {"z_loss": None}):
        logits, target, steps = batch(dtype)
        loss = call(logits, target, steps, perturbation=moved, backend=native, **unusual)
        loss.backward()
        found.append((loss.detach(), logits.grad))
        assert len(checked) == len(unusual)
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "tables",
    [
        {"offset": TABLE.double()},
        {"offset": TABLE.repeat_interleave(2)[::2]},
        {"offset": TABLE.tolist()},
        {"offset": TABLE[:8]},
        {"margin": TABLE[None]},
        {"rows": TABLE.expand(9, 9).contiguous()},
        {"rows": TABLE[None], "row_index": torch.zeros(7, dtype=torch.int64)},
        {"temperature": torch.tensor(0.5)},
        {"temperature": 2},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"scale": TABLE.clone().requires_grad_()},
    ],
    ids=lambda tables: ", ".join(tables),
)
def test_other_tables_are_checked_one_by_one(
    call: Call, tables: dict[str, Any], native: str, checked: list[object]
) -> None:
    """They say as ever what is wrong with them, and learn if they do."""
    found = []
    for unusual in ({}, {"z_loss": None}):
        moved = Perturbation(**tables)
        logits, target, steps = batch()
        try:
            loss = call(logits, target, steps, perturbation=moved, backend=native, **unusual)
        except (TypeError, ValueError) as error:
            found.append([type(error), str(error)])
            continue
        learns = [logits, *(t for t in tables.values() if t is tables.get("scale"))]
        found.append([loss.item(), *(g.tolist() for g in torch.autograd.grad(loss, learns))])
    assert found[0] == found[1]
    assert len(checked) == (1 if type(tables.get("temperature")) is float else 2)


@pytest.mark.parametrize("call", CALLS)
def test_without_a_gradient(call: Call, native: str, checked: list[object]) -> None:
    logits, target, steps = batch()
    with torch.no_grad():
        found = call(logits, target, steps, backend=native)
        assert not checked
        assert torch.equal(found, call(logits, target, steps, backend=native, z_loss=None))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda x, t, s: (x, t.int(), s), id="labels of 32 bits"),
        pytest.param(lambda x, t, s: (x.t().contiguous().t(), t, s), id="columns apart"),
        pytest.param(lambda x, t, s: (x[0], t[0], s), id="one row"),
        pytest.param(lambda x, t, s: (x, t.repeat_interleave(2)[::2], s), id="labels apart"),
    ],
)
def test_others_are_checked_one_by_one(
    call: Call, other: Callable[..., tuple[Tensor, ...]], native: str, checked: list[object]
) -> None:
    batched = batch()
    found = call(*other(*batched), backend=native)
    assert len(checked) == 1
    same = slice(0, 1) if found.dim() == 0 and other(*batched)[0].dim() == 1 else slice(None)
    logits, target, steps = batched
    torch.testing.assert_close(found, call(logits[same], target[same], steps, backend=native))


def test_steps_of_64_bits_are_checked(checked: list[object], native: str) -> None:
    logits, target, steps = batch()
    found = learned(logits, target, steps.long(), backend=native)
    assert len(checked) == 1
    assert torch.equal(found, learned(logits, target, steps, backend=native))


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"reduction": "avg"}, ValueError),
        ({"reduction": ["mean"]}, (TypeError, ValueError)),
        ({"ignore_index": True}, TypeError),
        ({"ignore_index": 1.0}, TypeError),
        ({"backend": "nobody"}, ValueError),
        ({"gradient": "somehow"}, ValueError),
        ({"gradient": "inplace"}, ValueError),  # of a leaf
        ({"unknown": 1}, TypeError),
    ],
)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_wrong_is_told_as_ever(
    call: Call, keywords: dict[str, Any], error: Any, one: str
) -> None:
    said = []
    keywords = {"backend": one, **keywords}
    for unusual in ({}, {"z_loss": None}):
        call(*batch(), **{"backend": one})  # what was right before is no excuse
        with pytest.raises(error) as raised:
            call(*batch(), **keywords, **unusual)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"step_size": -1.0}, ValueError),
        ({"step_size": float("nan")}, ValueError),
        ({"step_size": "0.1"}, TypeError),
        ({"step_size": 1.0, "normalize": 1}, TypeError),
        ({}, TypeError),
    ],
)
def test_so_is_what_is_wrong_with_steps(
    keywords: dict[str, Any], error: type[Exception], one: str
) -> None:
    LF.lpl_cross_entropy(*batch(), step_size=1.0, normalize=True, backend=one)
    with pytest.raises(error):
        LF.lpl_cross_entropy(*batch(), **keywords, backend=one)


@pytest.mark.parametrize("call", CALLS)
def test_a_label_too_many_is_an_error(call: Call, one: str) -> None:
    logits, target, steps = batch()
    with pytest.raises(ValueError, match="target: expected shape"):
        call(logits, target[:-1], steps, backend=one)
