"""Every loss with everything that it may meet: the equation's numbers, or a refusal that says why."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import PHIS, Draw
from compositions import COUNTS, ELSEWHERE, ENTRIES, A, C, Call, Entry, G
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpl_fused import MixedTarget, Perturbation, losses
from lpl_fused.class_stats import effective_number_weights
from lpl_fused.testing import budget, error

KEYWORDS = ("weight", "phi", "label_smoothing", "z_loss", "ignore_index", "reduction", "backend")

pytestmark = pytest.mark.usefixtures("one_thread")


@st.composite
def calls(draw: st.DrawFn, entry: Entry) -> Call:
    """A call in which half of what can be chosen is left at its default."""
    shape = draw(st.sampled_from(["rows", "rows", "grid", "single"]))
    n = {"single": 1, "rows": draw(st.integers(1, 9)), "grid": 2 * draw(st.integers(1, 4))}[shape]
    seed = draw(st.integers(0, 10**6))
    random = Draw(n, C, seed)
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
    logits = torch.tanh(random.input()) * 0.95 if entry.cosines else random.input()
    keywords: dict[str, Any] = {}
    if draw(st.booleans()):
        keywords["weight"] = effective_number_weights(COUNTS)
    if draw(st.integers(0, 2)) == 0:
        keywords["phi"] = PHIS[draw(st.sampled_from(["alpha2", "gce0.7", "focal2", "poly1"]))]
    smoothing = draw(st.sampled_from(["none", "none", "number", "by class"]))
    if smoothing != "none":
        by_class = 0.5 * random.uniform(C).float()
        keywords["label_smoothing"] = 0.25 if smoothing == "number" else by_class
    if draw(st.integers(0, 3)) == 0:
        keywords["z_loss"] = 0.0625
    if draw(st.integers(0, 3)) == 0:
        keywords["ignore_index"] = 1
    keywords["reduction"] = draw(st.sampled_from(["none", "mean", "sum"]))
    form = draw(st.sampled_from(["hard", "hard", "ignoring", "mixed", "dense"]))
    target: Any = random.labels()
    if form == "ignoring":
        target[1::2] = keywords.get("ignore_index", -100)
    target[0] = 0 if form != "dense" else target[0]  # one row counts, whatever is ignored
    if form == "mixed":
        target = MixedTarget(target, random.labels(), random.uniform(n).float())
    elif form == "dense":
        target = random.dense().float()
    perturbation = None
    if draw(st.booleans()):
        perturbation = Perturbation(
            scale=(0.5 + random.uniform(C)).float(),
            offset=random.normal(C).float(),
            margin=0.5 * random.uniform(C).float() if form in ("hard", "ignoring") else None,
            temperature=draw(st.sampled_from([1.0, 0.5])),
        )
    soft = form in ("mixed", "dense") or "label_smoothing" in keywords
    if soft and dtype == torch.float32:
        # where p − t of a few random rows cancels, only chance decides who rounds better;
        # test_backends judges float32 with soft targets, on problems that are chosen
        dtype = torch.float64
    call = Call(logits.to(dtype).double(), target, keywords, perturbation, shape, dtype, seed=seed)
    call.base = draw(st.sampled_from(["ce", "la", "lpl"]))
    if call.hard and draw(st.booleans()):  # padding may hold anything
        call.logits[~call.counted()] = draw(st.sampled_from([math.nan, math.inf, 1e30]))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    call.extra = {
        "index": torch.arange(n),
        "group": torch.randint(G, (n,), generator=random.generator),
        "feature_norm": (1 + random.uniform(n)).to(wide),
        "features": random.normal(n, A).to(wide),
        "classifier_weight": random.normal(C, A).to(wide),
        "label": call.label() if call.hard else torch.zeros(n, dtype=torch.int64),
    }
    return call


def refusals(call: Call, entry: Entry) -> list[str]:
    """What a message may name, of all that the call asks for and does not get."""
    smoothing = call.get("label_smoothing", None)
    by_class = isinstance(smoothing, Tensor)
    asked = {
        "weight": "weight" in call.keywords,
        "phi": "phi" in call.keywords,
        "z_loss": "z_loss" in call.keywords,
        "label_smoothing": smoothing is not None and not by_class,
        "smoothing by class": by_class,
        "perturbation": call.perturbation is not None,
        "mixed": isinstance(call.target, MixedTarget),
        "dense": call.dense,
        call.get("reduction", "mean"): True,
    }
    named = [entry.refuses[feature] for feature, is_asked in asked.items() if is_asked and feature in entry.refuses]  # fmt: skip
    # what class probabilities refuse everywhere
    if call.dense and by_class:
        named.append("label_smoothing")
    if call.dense and call.ignore_index >= 0:
        named.append("ignore_index")
    has_base = entry.make.__qualname__.startswith("based")
    if has_base and call.base == "lpl" and call.dense:
        named.append("target")
    return named


def shaped(call: Call, rows: Tensor) -> Tensor:
    """(M, …) as the call's shape has it; what has classes or features has them second."""
    if call.shape == "single":
        return rows[0]
    if call.shape == "rows":
        return rows
    grid = rows.reshape(len(rows) // 2, 2, *rows.shape[1:])
    return grid if rows.dim() == 1 else grid.movedim(-1, 1)


def solve(call: Call, entry: Entry) -> tuple[Tensor, Tensor]:
    """Loss and gradient of rows by the module."""
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    rows = call.logits.to(call.dtype).requires_grad_()
    target: Any = call.target
    if isinstance(target, MixedTarget):
        target = MixedTarget(*(shaped(call, part) for part in target))
    else:
        target = shaped(call, target.to(wide) if call.dense else target)
    further = [
        call.extra[name] if name == "classifier_weight" else shaped(call, call.extra[name])
        for name in entry.further
    ]
    keywords = {} if call.perturbation is None else {"perturbation": call.perturbation}
    loss = entry.make(call)
    torch.manual_seed(call.seed)
    value = loss(shaped(call, rows), target, *further, **keywords)
    assert value.dtype == wide
    by_row = getattr(loss, "reduction", "mean") == "none"
    assert value.shape == (shaped(call, call.extra["index"]).shape if by_row else ())
    (grad,) = torch.autograd.grad((value.reshape(-1) * factors(value)).sum(), rows)
    return value.detach().reshape(-1), grad


def factors(value: Tensor) -> Tensor:
    """A random upstream gradient, the same for all that solve a call."""
    generator = torch.Generator().manual_seed(value.numel())
    return torch.randn(value.numel(), generator=generator).to(value.dtype)


def by_equation(call: Call, entry: Entry, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows = call.logits.masked_fill(~call.counted()[:, None], 0.5)
    rows = rows.to(dtype).requires_grad_()
    value = entry.equation(call, rows)
    (grad,) = torch.autograd.grad((value.reshape(-1) * factors(value)).sum(), rows)
    return value.detach().reshape(-1), grad


def check(call: Call, entry: Entry) -> None:
    named = refusals(call, entry)
    if named:
        with pytest.raises((TypeError, ValueError), match="|".join(map(re.escape, named))):
            solve(call, entry)
        return
    truth = by_equation(call, entry, torch.float64)
    wide = torch.float64 if call.dtype == torch.float64 else torch.float32
    eager = by_equation(call, entry, wide)
    found = solve(call, entry)
    for name, value, plain, exactly in zip(("loss", "gradient"), found, eager, truth, strict=True):
        allowed = budget(value.dtype, error(plain, exactly, cancels=True))
        actual = error(value, exactly, cancels=True)
        assert actual <= allowed, f"error {actual:.2e} of the {name} exceeds {allowed:.2e}"


@pytest.mark.parametrize("name", ENTRIES)
def test_composes_or_says_why_not(name: str) -> None:
    @settings(
        max_examples=30,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(call=calls(ENTRIES[name]))
    def any_composition(call: Call) -> None:
        check(call, ENTRIES[name])

    any_composition()


# those that know no other reduction than theirs apart
SUMS = [name for name, entry in ENTRIES.items() if "sum" not in entry.refuses]
UNDIVIDED = (
    "LPLLoss, official",
    *(
        name
        for name in SUMS
        if "normalizer"
        not in inspect.signature(getattr(losses, name.partition(",")[0]).forward).parameters
    ),
)


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_is_divided_or_says_why_not(name: str) -> None:
    random, entry = Draw(4, C, 0), ENTRIES[name]
    call = Call(random.input(), random.labels(), {"reduction": "sum"})
    call.extra = {
        "index": torch.arange(4),
        "group": torch.arange(4) % G,
        "feature_norm": 1 + random.uniform(4),
        "features": random.normal(4, A),
        "classifier_weight": random.normal(C, A),
        "label": call.label(),
    }

    def found(**keywords: object) -> Tensor:
        torch.manual_seed(0)
        further = [call.extra[name] for name in entry.further]
        return entry.make(call)(call.logits, call.target, *further, **keywords)  # type: ignore[no-any-return]

    if name in UNDIVIDED:
        with pytest.raises((TypeError, ValueError), match="normalizer"):
            found(normalizer=4)
    else:
        torch.testing.assert_close(found(normalizer=4), found() / 4)


def test_penalties_are_divided_with_the_loss() -> None:
    assert not {"MbLSLoss", "CALSLoss"} & {*UNDIVIDED}


def test_every_loss_is_composed() -> None:
    """Those of one label; test_multilabel.py has the others."""
    named = {name: getattr(losses, name) for name in losses.__all__}
    classes = {
        name
        for name, loss in named.items()
        if inspect.isclass(loss) and not issubclass(loss, losses.MultiLabelLoss)
    }
    assert {name.partition(",")[0] for name in ENTRIES} | ELSEWHERE.keys() == classes


def test_every_loss_says_what_it_costs() -> None:
    for name in losses.__all__:
        if inspect.isclass(loss := getattr(losses, name)):
            assert "Cost:" in (loss.__doc__ or ""), name


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_losses_refuse_what_they_cannot_use(name: str) -> None:
    loss = getattr(losses, name)
    own = {"BinaryVSLoss": {"cls_num_list": [5, 2]}}.get(name, {})
    values = {"weight": torch.ones(2), "reduction": "sum", "backend": "reference", "phi": PHIS["focal2"]}  # fmt: skip
    for keyword in KEYWORDS:
        arguments = {**own, keyword: values.get(keyword, 0)}
        if keyword in ELSEWHERE[name]:
            loss(**arguments)
        else:
            with pytest.raises(TypeError, match=keyword):
                loss(**arguments)
    logits = torch.zeros(2, 3, 2) if name == "SmoothMixLoss" else torch.zeros(3)
    made = loss(**own)
    arguments = [logits, logits, torch.zeros(3), torch.zeros(3).long()][: 4 if logits.dim() > 1 else 2]  # fmt: skip
    made(*arguments)
    with pytest.raises(TypeError, match="perturbation"):
        made(*arguments, perturbation=Perturbation())


def test_the_check_can_fail() -> None:
    """A margin that is ignored, a refusal that is not there: neither passes."""
    entry = ENTRIES["CrossEntropyLoss"]
    random = Draw(4, C, 0)
    call = Call(random.input(), random.labels(), {"reduction": "mean"})
    check(call, entry)
    margin = Perturbation(scale=torch.ones(C), offset=torch.zeros(C), margin=torch.full((C,), 0.1))
    deaf = replace(entry, equation=lambda call, u: entry.equation(replace(call, perturbation=None), u))  # fmt: skip
    with pytest.raises(AssertionError, match="exceeds"):
        check(replace(call, perturbation=margin), deaf)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check(replace(call, perturbation=margin), replace(entry, refuses={"perturbation": "x"}))
    with pytest.raises(TypeError):
        check(replace(call, keywords={"reduction": "mean", "gamma": 1.0}), entry)
