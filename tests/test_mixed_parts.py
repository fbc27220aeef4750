"""Rows of two labels that move their logits (margins, the learned perturbation) where the logits are
not in one place: of a layer in chunks, and with classes on several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from linear_cases import HAVE
from ranks import Ranks
from test_sharded import error_of, here, of_all
from test_sharded_losses import LEFT_OUT, made
from test_sharded_losses import here as classes_here
from torch import Tensor

from lpl_fused import Focal, LogitClip, MarginPenalty, MixedTarget, Perturbation, losses
from lpl_fused import functional as LF
from lpl_fused.ops import chunks
from lpl_fused.testing import budget, device_of, error

N, C, D = 30, 17, 6
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def pair(n: int = N, classes: int = C) -> MixedTarget:
    """Classes with several rows in either place, ignored labels of one and of both, shares of 0
    and of 1, a row whose labels are the same."""
    generator = torch.Generator().manual_seed(1)
    first, other = torch.randint(classes, (2, n), generator=generator)
    lam = torch.rand(n, generator=generator).double()
    first[0] = other[1] = first[2] = other[2] = -100
    lam[3], lam[4] = 0.0, 1.0
    other[5] = first[5]
    return MixedTarget(first, other, lam)


def layer() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = (N, D), (C, D), (C,)
    features, weight, bias = (torch.randn(*shape, generator=generator).double() for shape in shapes)
    return features, weight, bias


def tables() -> Perturbation:
    generator = torch.Generator().manual_seed(3)
    offset, margin = torch.rand(2, C, generator=generator).double()
    return Perturbation(offset=offset, margin=margin, temperature=0.8)


STEPS = torch.arange(C) % 7 - 3
CASES: dict[str, dict[str, Any]] = {
    "margins": {"perturbation": tables(), "weight": torch.linspace(0.1, 2, C)},
    "margins-none": {"perturbation": tables(), "reduction": "none"},
    "margins-everything": {
        **{"perturbation": tables(), "label_smoothing": 0.1, "phi": Focal(2.0), "z_loss": 1e-3},
        **{"norm": LogitClip(2.0), "sample_weight": torch.linspace(0.5, 1.5, N)},
    },
    "lpl": {"steps": STEPS, "step_size": 0.3},
    "lpl-normalized": {"steps": STEPS, "step_size": 0.3, "normalize": True, "reduction": "none"},
    "lpl-statistics": {"steps": STEPS, "step_size": 0.3, "gradient": "statistics"},
    "lpl-sum": {"steps": STEPS, "step_size": 0.3, "reduction": "sum", "normalizer": 7.0},
    "lpl-everything": {
        **{"steps": STEPS, "step_size": 0.3, "perturbation": tables(), "label_smoothing": 0.1},
        **{"phi": Focal(2.0), "norm": LogitClip(2.0), "weight": torch.linspace(0.1, 2, C)},
    },
}


def call(arguments: tuple[Tensor, ...], target: MixedTarget, keywords: dict[str, Any], **more: Any) -> Tensor:  # fmt: skip
    features, weight, bias = arguments
    keywords = {**keywords, **more, "linear_bias": bias}
    if "steps" in keywords:
        return LF.linear_lpl_cross_entropy(features, weight, target, **keywords)
    return LF.linear_cross_entropy(features, weight, target, **keywords)


def solved(arguments: tuple[Tensor, ...], loss: Tensor) -> list[Tensor]:
    up = torch.linspace(0.5, 1.5, loss.numel()).to(loss).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, arguments, up)]


def leaves(tensors: tuple[Tensor, ...], dtype: torch.dtype, device: Any = "cpu") -> tuple[Tensor, ...]:  # fmt: skip
    return tuple(each.to(device, dtype).detach().clone().requires_grad_() for each in tensors)


@pytest.mark.parametrize("memory", [None, 600], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_layer_as_its_logits(
    backend: str, name: str, dtype: torch.dtype, memory: int | None
) -> None:
    few = {"triton": ["margins-none"], "cuda": ["margins", "lpl-everything"], "reference": ["lpl"]}
    narrow = dtype.itemsize == 2 and not (name == "lpl" or memory is None)
    other = dtype != torch.float32 or memory is None or name not in few.get(backend, name)
    if narrow or (backend in few and other):
        pytest.skip("a way of the same kernels")
    keywords = CASES[name]
    whole = dict(keywords, gradient="auto", backend="reference")
    rounded = [each.to(dtype) for each in layer()]
    exact = leaves(tuple(rounded), torch.float64)
    truth = solved(exact, call(exact, pair(), whole))
    given = leaves(tuple(rounded), dtype)
    eager = solved(given, call(given, pair(), whole))
    there = device_of(backend)
    moved = {k: v.to(there) if isinstance(v, Tensor) else v for k, v in keywords.items()}
    own = leaves(tuple(rounded), dtype, there)
    target = MixedTarget(*(part.to(there) for part in pair()))
    if backend == "reference":
        moved["gradient"] = "auto"
    found = solved(own, call(own, target, moved, backend=backend, chunk_memory=memory))
    for k, (value, plain, exactly) in enumerate(zip(found, eager, truth, strict=True)):
        allowed = budget(value.dtype, error(plain, exactly, cancels=True))
        actual = error(value.cpu(), exactly, cancels=True)
        assert actual <= allowed, f"error {actual:.2e} of {k} exceeds {allowed:.2e}"


# -- classes on several ranks ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def of_ranks(group: Any, name: str, dtype: torch.dtype, backend: str) -> None:
    """Logits, and a layer, of this rank's classes, against those of all classes in one place."""
    keywords, mine = dict(CASES[name]), here(group)
    rounded = tuple(each.to(dtype) for each in layer())
    exact = leaves(rounded, torch.float64)
    truth = solved(exact, call(exact, pair(), dict(keywords, gradient="auto"), backend="reference"))
    features, weight, bias = rounded
    for memory in (None, 900) if backend != "reference" else ():
        own = leaves((features, weight[mine], bias[mine]), dtype)
        loss = call(own, pair(), keywords, process_group=group, chunk_memory=memory)
        found = solved(own, loss)
        found[2:] = [of_all(group, grad, 0) for grad in found[2:]]
        whole = leaves(rounded, dtype)
        plain = solved(whole, call(whole, pair(), keywords))
        near(name, found, plain, truth, dtype)
    logits = torch.nn.functional.linear(features, weight, bias)
    (whole_logits,) = leaves((logits,), torch.float64)
    keywords["gradient"] = "auto"
    truth = solved((whole_logits,), of_all_logits(whole_logits, keywords, backend="reference"))
    (plain_logits,) = leaves((logits,), dtype)
    plain = solved((plain_logits,), of_all_logits(plain_logits, keywords))
    (part,) = leaves((logits[:, mine],), dtype)
    keywords.update(process_group=group, backend=backend)
    found = solved((part,), of_all_logits(part, keywords))
    found[1] = of_all(group, found[1], 1)
    near(name, found, plain, truth, dtype)


def of_all_logits(logits: Tensor, keywords: dict[str, Any], **more: Any) -> Tensor:
    function = LF.lpl_cross_entropy if "steps" in keywords else LF.cross_entropy
    return function(logits, pair(), **{**keywords, **more})


def near(name: str, found: list[Tensor], plain: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:  # fmt: skip
    """As far off as on one rank, or some roundings."""
    for k, (value, whole, exact) in enumerate(zip(found, plain, truth, strict=True)):
        assert value.dtype == whole.dtype
        scale = float(exact.abs().max())
        off, allowed = (float((each.double() - exact).abs().max()) for each in (value, whole))
        assert off <= max(2 * allowed, 8 * torch.finfo(dtype).eps * scale), (name, k, off, allowed)


def walk(group: Any, world: int) -> dict[str, str]:
    wrong = {}
    asked = [(name, torch.float64, "cpp") for name in ("margins", "lpl")]
    if world == 2:
        asked = [(name, torch.float64, "cpp") for name in CASES]
        asked += [("lpl-everything", torch.float32, "reference")]
    elif world == 3:
        asked += [(name, dtype, "cpp") for name in ("margins", "lpl") for dtype in DTYPES[1:]]
    for name, dtype, backend in asked:
        try:
            of_ranks(group, name, dtype, backend)
        except Exception as error:
            wrong[f"{name} {dtype} {backend}"] = repr(error)
    return wrong


@pytest.mark.parametrize("world", [1, 2, 3])
def test_classes_of_ranks_as_of_one(ranks: Ranks, world: int) -> None:
    wrong = ranks.run(world, walk, world)
    assert not any(wrong), wrong


def far(**parts: Any) -> tuple[Tensor, ...]:
    """Loss and gradients of steps that go further than sums in rounds promise: many alike classes."""
    classes, group = 600, parts.pop("group", None)
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(8, 3, generator=generator).double().requires_grad_()
    weight = 0.1 * torch.randn(classes, 3, generator=generator).double()
    mine = slice(None) if group is None else here(group, classes)
    weight = weight[mine].clone().requires_grad_()
    labels = torch.tensor([3, 3, 599, 20, 3, 20, -100, 7])
    target = MixedTarget(labels, labels.flip(0), torch.linspace(0.1, 0.9, 8).double())
    keywords = {"step_size": 1.0, "process_group": group, **parts}
    steps = torch.full((classes,), 60)
    if parts.pop("logits", False):
        keywords.pop("logits")
        loss = LF.lpl_cross_entropy(features @ weight.t(), target, steps, **keywords)
    else:
        loss = LF.linear_lpl_cross_entropy(features, weight, target, steps, **keywords)
    return (loss, *torch.autograd.grad(loss, (features, weight)))


def test_steps_too_far_for_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, plain = [], chunks.by_plain_steps
    monkeypatch.setattr(chunks, "by_plain_steps", lambda *a: taken.append(a) or plain(*a))
    truth = far(backend="reference")
    assert not taken
    for keywords in ({}, {"chunk_memory": 600 * 8 * 5}, {"gradient": "statistics"}):
        torch.testing.assert_close(far(**keywords), truth)
        assert taken
        taken.clear()


def far_on_ranks(group: Any) -> None:
    loss, of_features, of_weight = far(backend="reference")
    for logits in (False, True):
        found, own, part = far(group=group, **({"logits": True} if logits else {}))
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(of_all(group, part, 0), of_weight)
        if not logits:
            torch.testing.assert_close(own, of_features)


def test_steps_too_far_on_ranks(ranks: Ranks) -> None:
    ranks.run(2, far_on_ranks)


def of_chosen_steps(group: Any) -> None:
    features, weight, _ = layer()
    logits, mine, seen = features @ weight.t(), here(group), []

    def choose(row_losses: Tensor) -> Tensor:
        seen.append(row_losses)
        return STEPS

    keywords: dict[str, Any] = {"step_size": 0.3, "reduction": "none"}
    expected = LF.lpl_cross_entropy(logits, pair(), choose, **keywords)
    keywords["process_group"] = group
    whole = features, weight[mine], pair(), choose
    for found in (
        LF.lpl_cross_entropy(logits[:, mine], pair(), choose, **keywords),
        LF.linear_lpl_cross_entropy(*whole, **keywords),
    ):
        torch.testing.assert_close(found, expected)
    for others in seen[1:]:
        assert others.shape == (2, N)
        torch.testing.assert_close(others, seen[0])
    keywords = {"step_size": 0.3, "normalize": True}
    classes, delta = LF.lpl_perturbation(logits, pair(), STEPS, **keywords)
    found_classes, part = LF.lpl_perturbation(
        logits[:, mine], pair(), STEPS, process_group=group, **keywords
    )
    assert torch.equal(classes, found_classes)
    torch.testing.assert_close(part, delta[:, mine])


def test_chosen_steps_and_delta(ranks: Ranks) -> None:
    ranks.run(2, of_chosen_steps)


# -- the losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HAVE)
def test_every_loss_of_a_layer(name: str) -> None:
    torch.manual_seed(1)
    loss, target = HAVE[name](), pair(18, 5)
    torch.manual_seed(1)
    other = HAVE[name]()
    head, hidden = torch.nn.Linear(4, 5), torch.randn(18, 4, requires_grad=True)
    learn = (hidden, head.weight, head.bias)
    found = loss.linear(hidden, head.weight, target, head.bias, chunk_memory=100)
    expected = other(head(hidden), target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), learn), torch.autograd.grad(expected.sum(), learn)
    )
    for key, state in loss.state_dict().items():
        torch.testing.assert_close(state, other.state_dict()[key])


def every_loss(group: Any) -> dict[str, str]:
    wrong, target = {}, pair(18, 5)
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(18, 4, generator=generator).double()
    head = torch.randn(5, 4, generator=generator).double()
    mine = classes_here(group)
    for name in HAVE:
        if name in LEFT_OUT:
            continue
        single, shared = made(HAVE[name], None), made(HAVE[name], group)
        try:
            expected = single(hidden @ head.t(), target)
            for found in (
                shared(hidden @ head[mine].t(), target),
                made(HAVE[name], group).linear(hidden, head[mine], target),  # type: ignore[operator]
            ):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        except Exception as error:
            wrong[name] = repr(error)
    return wrong


def test_every_loss_of_ranks(ranks: Ranks) -> None:
    wrong = ranks.run(2, every_loss)
    assert not any(wrong), wrong


# -- what does not go ------------------------------------------------------------------------------


def refusals(logits: Tensor, hidden: Tensor, weight: Tensor, **more: Any) -> dict[str, str]:
    target, said = pair(), {}
    penalty = {"perturbation": tables(), "penalty": MarginPenalty(margin=1.0), **more}
    told = {"perturbation": tables(), "return_stats": True, **more}
    lpl = {"steps": STEPS, "step_size": 0.1, "return_stats": True, **more}
    said["penalty"] = error_of(lambda: LF.linear_cross_entropy(hidden, weight, target, **penalty))
    said["return_stats"] = error_of(lambda: LF.linear_cross_entropy(hidden, weight, target, **told))
    said["return_stats "] = error_of(
        lambda: LF.linear_lpl_cross_entropy(hidden, weight, target, **lpl)
    )
    if more:
        said["penalty "] = error_of(lambda: LF.cross_entropy(logits, target, **penalty))
        said["inplace"] = error_of(
            lambda: LF.cross_entropy(
                logits.clone().requires_grad_() * 1,
                target,
                perturbation=tables(),
                gradient="inplace",
                **more,
            )
        )
    wrong = target._replace(other=target.other + C)
    margin = {"perturbation": tables(), **more}
    said["out of range"] = error_of(
        lambda: LF.linear_cross_entropy(hidden, weight, wrong, **margin)
    )
    return said


def refused_by_ranks(group: Any) -> dict[str, str]:
    features, weight, _ = layer()
    logits, mine = features @ weight.t(), here(group)
    return refusals(logits[:, mine], features, weight[mine], process_group=group)


def test_refused_by_name(ranks: Ranks) -> None:
    features, weight, _ = layer()
    for said in (
        refusals(features @ weight.t(), features, weight),
        *ranks.run(2, refused_by_ranks),
    ):
        for name, words in said.items():
            assert name.strip() in words, (name, words)


def test_nothing_counts() -> None:
    """No rows, or rows of which neither label counts."""
    for rows in (0, 3):
        label = torch.full((rows,), -100)
        hidden = torch.full((rows, D), torch.nan).requires_grad_()
        weight = torch.randn(C, D, requires_grad=True)
        for make in (losses.LDAMLoss, losses.LPLLoss):
            loss = make([9] * C, reduction="sum").linear(
                hidden, weight, MixedTarget(label, label, 0.3)
            )
            assert loss.item() == 0
            for grad in torch.autograd.grad(loss, (hidden, weight)):
                assert (grad == 0).all()
