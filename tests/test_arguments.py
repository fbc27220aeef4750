"""Every argument of every loss: wrong values are refused by name, and what is assigned later acts or
is refused."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lpl_fused import (
    GCE,
    Alpha,
    Asymmetric,
    Focal,
    LogitClip,
    LogitNorm,
    MarginPenalty,
    Perturbation,
    Poly1,
    certification,
    losses,
)
from lpl_fused import functional as LF
from lpl_fused.losses.module import LossModule

COUNTS = [50, 20, 10, 5, 2]
C, N = len(COUNTS), 8
KINDS = [
    kind
    for kind in map(vars(losses).get, losses.__all__)
    if inspect.isclass(kind) and issubclass(kind, nn.Module)
]
# what a constructor needs
NEEDED: dict[str, Any] = {
    "cls_num_list": COUNTS,
    "num_samples": 100,
    "num_classes": C,
    "num_features": 3,
    "group_counts": [5, 5],
    "group_num_list": [5, 3],
    "epsilon": 0.5,
    "threshold": 0.1,
}
# another value, by argument; where the kind of the argument does not say it
OTHER: dict[str, Any] = {
    "empty": "zero",
    "weight": torch.arange(1.0, C + 1),
    "pos_weight": torch.arange(1.0, C + 1),
    "phi": Poly1(0.5),
    "norm": LogitClip(0.5),
    "backend": "reference",
    "gradient": "statistics",
    "reduction": "sum",
    "ignore_index": 1,
    "split": "balanced",
    "statistics": "ema",
    "variant": "official-fixed",
    "form": "official",
    "iota": "power",
    "delta": "none",
    "lam": 2.0,
    "first_lam": 3.0,
    "cvar": 0.5,
    "penalty": "p2",
    "covariance": "full",
    "dtype": torch.float64,
    "normalization": "weight",
    "tau": 0.75,
    "shape": "linear",
    "weighting": "inverse",
    "weighting_mode": "average-weight",
    "weight_norm": "by-row",
    "head": 2,
    "multiplier_bounds": (0.1, 2.0),
    "rho_bounds": (0.5, 3.0),
    "test_prior": [1.0, 2, 3, 4, 5],
    "delta_epsilon": (0.5, 0.7),
    "epsilon": 0.25,
    "step_size": 0.05,
    "s": 7.0,
    "p": 3.0,
    "cls_num_list": [9, 8, 7, 6, 5],
    "group_counts": [7, 3],
    "group_num_list": [7, 3],
    "num_samples": 200,
    "num_classes": C,
    "num_features": 3,
    "threshold": 0.3,
    "data_group": "none here: test_every_loss.py has some",
    "process_group": "none here: test_sharded_losses.py has some",
}


def parameters(kind: type[nn.Module]) -> dict[str, Any]:
    """Every argument of a constructor and its default, those of the classes above it included."""
    found: dict[str, Any] = {}
    for above in kind.__mro__:
        if above is LossModule or above is nn.Module:
            break
        if "__init__" not in vars(above):
            continue
        signature = inspect.signature(above.__init__).parameters.values()  # type: ignore[misc]
        own = [
            p
            for p in signature
            if p.name not in ("self", "keywords") and p.kind is not p.VAR_POSITIONAL
        ]
        found.update({p.name: p.default for p in own if p.name not in found})
        if not any(p.kind is p.VAR_KEYWORD for p in signature):
            break
    return found


def made(kind: type[nn.Module], **keywords: Any) -> Any:
    names = inspect.signature(kind.__init__).parameters
    needed = {
        name: value
        for name, value in NEEDED.items()
        if name in names and names[name].default is inspect.Parameter.empty
    }
    if kind is losses.BinaryVSLoss:
        needed["cls_num_list"] = [5, 3]
    return kind(**{**needed, **keywords})


def other(kind: type[nn.Module], name: str, default: Any) -> Any:
    if kind is losses.BinaryVSLoss:
        special = {"weight": torch.tensor([1.0, 2.0]), "cls_num_list": [7, 2]}
        if name in special:
            return special[name]
    if name == "base":
        multi = kind is losses.MultiLabelLPLLoss
        return (
            losses.MultiLabelLoss(phi=Focal(1.0))
            if multi
            else losses.CrossEntropyLoss(reduction="none", phi=GCE(0.5))
        )
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    assert isinstance(default, (int, float)), (kind, name, default)
    return default + 1 if isinstance(default, int) else default * 0.5 + 0.125


def value(loss: Any, cap: float = math.inf) -> Tensor:
    """Two steps of a loss, whatever it is called with, from one random state, of logits that are
    bounded."""
    torch.manual_seed(3)
    logits, target = torch.randn(N, C), torch.tensor([0, 1, 2, 3, 4, 0, 1, 0])
    logits = logits if cap == math.inf else cap * torch.tanh(logits / cap)
    features, weight = torch.randn(N, 3), torch.randn(C, 3)
    more: tuple[Any, ...] = ()
    kind = type(loss)
    if issubclass(kind, losses.MultiLabelLoss):
        arguments: tuple[Any, ...] = (logits, (torch.rand(N, C) < 0.5).float())
    elif kind in (losses.BinaryAlphaLoss, losses.BinaryVSLoss):
        arguments = (logits[:, 0], (target > 1).long())
    elif kind is losses.SmoothMixLoss:
        arguments = (torch.randn(2, N, C), torch.randn(2, N, C), torch.rand(N), target)
    else:
        more = {
            losses.TruncatedGCELoss: (torch.arange(N),),
            losses.IBLoss: (features.abs().sum(1),),
            losses.ISDALoss: (features, weight),
            losses.GroupVSLoss: (target % 2,),
            losses.GroupDROLoss: (target % 2,),
        }.get(kind, ())
        arguments = (logits, target, *more)
    if hasattr(loss, "set_epoch"):
        loss.set_epoch(100)
    if kind is losses.TruncatedGCELoss:
        loss.update(*arguments)
    if kind is losses.CDBLoss:
        loss.update(torch.linspace(0.2, 0.9, C))
    if kind is losses.CALSLoss:
        for _ in range(2):
            loss.observe(5 * logits)
            loss.update()
    return torch.stack([loss(*arguments).double().sum() for _ in range(2)])


ARGUMENTS = [(kind, name) for kind in KINDS for name in parameters(kind)]


@pytest.mark.parametrize(
    ("kind", "name"), ARGUMENTS, ids=[f"{k.__name__}-{n}" for k, n in ARGUMENTS]
)
def test_what_is_assigned_acts_as_if_it_had_been_given_or_is_refused(
    kind: type[nn.Module], name: str
) -> None:
    given = other(kind, name, parameters(kind)[name])
    fixed: dict[str, Any] = {}
    if kind is losses.IBLoss and name != "start_epoch":
        fixed = {"start_epoch": 0}
    try:
        expected = value(made(kind, **{**fixed, name: given}))
    except (TypeError, ValueError):  # this loss is not made with it: it must not be assigned either
        with pytest.raises((AttributeError, TypeError, ValueError), match=name):
            setattr(made(kind, **fixed), name, given)
        return
    loss = made(kind, **fixed)
    before = copy.deepcopy(loss)
    try:
        setattr(loss, name, given)
    except (AttributeError, TypeError, ValueError) as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert name in refused
        torch.testing.assert_close(value(loss), value(before), rtol=0, atol=0)  # nothing happened
        return
    torch.testing.assert_close(value(loss), expected, rtol=1e-6, atol=1e-6)


WRONG = ["x", [0.5, 0.5, 0.5], {}, object(), math.nan, 1j]


@pytest.mark.parametrize(
    ("kind", "name"), ARGUMENTS, ids=[f"{k.__name__}-{n}" for k, n in ARGUMENTS]
)
def test_a_wrong_value_is_refused_by_name_in_the_constructor_and_afterwards(
    kind: type[nn.Module], name: str
) -> None:
    loss = made(kind)
    for wrong in WRONG:
        if isinstance(wrong, list) and name in ("cls_num_list", "group_counts", "test_prior"):
            wrong = [[0.5]]
        if isinstance(wrong, list) and name == "group_num_list":
            wrong = [math.nan]
        if wrong is math.nan and name == "ignore_index" and loss.ignore_index is None:
            continue  # labels that are nan may be the missing ones
        with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
            made(kind, **{name: wrong})
        with pytest.raises((AttributeError, TypeError, ValueError), match=rf"\b{name}\b"):
            setattr(loss, name, wrong)


LOOK_AT_LOGITS = {
    losses.ArcFaceLoss,
    losses.GroupVSLoss,
    losses.IBLoss,
    losses.LADELoss,
    losses.LInfHingeLoss,
    losses.LInfMixtureLoss,
    losses.SeesawLoss,
}
NORMED = {losses.LogitClipLoss, losses.LogitNormLoss}  # before they are bounded
CAPPED = [
    *((kind, {}) for kind in KINDS if issubclass(kind, losses.CrossEntropyLoss)),
    (losses.LPLLoss, {"split": "balanced", "statistics": "ema"}),
    (losses.LPLLoss, {"variant": "official-fixed"}),
    (losses.LPLLoss, {"variant": "official-la-long-tail"}),
    (losses.CDBLoss, {"normalization": "weight"}),
]


@pytest.mark.parametrize(
    ("kind", "more"), CAPPED, ids=[f"{k.__name__}-{'-'.join(map(str, m))}" for k, m in CAPPED]
)
def test_a_softcap_bounds_the_logits_or_is_refused(
    kind: type[nn.Module], more: dict[str, Any]
) -> None:
    if kind in LOOK_AT_LOGITS:
        with pytest.raises((TypeError, ValueError), match="softcap"):
            made(kind, softcap=1.5)
        with pytest.raises(AttributeError, match="softcap"):
            made(kind).softcap = 1.5
        return
    loss = made(kind, softcap=1.5, **more)
    if kind in NORMED:
        assert not torch.allclose(value(loss), value(made(kind, **more)))
        return
    torch.testing.assert_close(value(loss), value(made(kind, **more), 1.5), rtol=1e-5, atol=1e-6)
    loss.softcap = None
    torch.testing.assert_close(value(loss), value(made(kind, **more)), rtol=1e-6, atol=1e-6)


def test_a_softcap_without_logits() -> None:
    torch.manual_seed(0)
    hidden, weight, target = torch.randn(N, 3), 3 * torch.randn(C, 3), torch.arange(N) % C
    for kind in (losses.CrossEntropyLoss, losses.LogitAdjustedLoss, losses.LPLLoss):
        loss = made(kind, softcap=1.5)
        expected = loss(hidden @ weight.t(), target)
        torch.testing.assert_close(loss.linear(hidden, weight, target), expected)


def test_every_argument_of_every_loss_has_a_rule() -> None:
    for kind in KINDS:
        rules = kind.rules  # type: ignore[attr-defined]
        without = set(parameters(kind)) - set(rules) - {"covariance"}  # that is a buffer's name
        assert not without, kind


@pytest.mark.parametrize(
    ("first", "then", "function"),
    [
        (0.1, 1.0, lambda u, t, k, x: LF.lpl_cross_entropy(u, t, k, step_size=x)),
        (0.0, 0.5, lambda u, t, _, x: LF.cross_entropy(u, t, z_loss=x)),
        (2, 1, lambda u, t, _, x: LF.cross_entropy(u, t, ignore_index=x)),
    ],
    ids=["step_size", "z_loss", "ignore_index"],
)
def test_a_tensor_of_one_number_is_read_by_every_call(
    first: float, then: float, function: Any
) -> None:
    """What was made of it before is not looked up by the tensor that it was."""
    generator = torch.Generator().manual_seed(0)
    problem = (
        torch.randn(64, 4000, generator=generator),  # more logits than are left to torch
        torch.randint(4, (64,), generator=generator),
        torch.full((4000,), 5, dtype=torch.int32),
    )
    number = torch.tensor(first)
    found = []
    for value in (first, then):
        number.fill_(value)
        found.append(function(*problem, number))
        torch.testing.assert_close(found[-1], function(*problem, value), rtol=0, atol=0)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (Focal, (2.0,)),
        (GCE, (0.7,)),
        (Poly1, (2.0,)),
        (Alpha, (2.0,)),
        (Asymmetric, (1.0, 4.0, 0.05)),
        (LogitClip, (1.0, 2.0)),
        (LogitNorm, (0.04,)),
        (lambda *x: MarginPenalty("relu", *x), (10.0, 0.1)),
    ],
)
def test_what_is_frozen_holds_numbers(make: Any, numbers: tuple[float, ...]) -> None:
    """Not the tensors that it was given, which may change."""
    given = [torch.tensor(x, dtype=torch.float64) for x in numbers]
    made, expected = make(*given), make(*numbers)
    for tensor in given:
        tensor.zero_()
    assert vars(made) == vars(expected)


def test_numbers_of_numpy_and_tensors_of_one_number_are_numbers() -> None:
    expected = losses.LPLLoss(COUNTS, head=0.4).steps
    for head in (np.float32(0.4), torch.tensor(0.4), 2, np.int64(2), torch.tensor(2)):
        assert torch.equal(losses.LPLLoss(COUNTS, head=head).steps, expected)
    pair = losses.LPLLoss(COUNTS, delta_epsilon=[0.9, 1.5])  # type: ignore[arg-type]
    assert torch.equal(pair.steps, expected)
    logits, target = torch.randn(2, 3), torch.tensor([0, -1])
    plain = LF.cross_entropy(logits, target, ignore_index=-1)
    assert torch.equal(LF.cross_entropy(logits, target, ignore_index=np.int64(-1)), plain)
    with pytest.raises(TypeError, match="head: .*True"):
        losses.LPLLoss(COUNTS, head=True)


FUNCTIONS = {
    LF.cross_entropy: (torch.randn(4, 3), torch.tensor([0, 1, 2, 0])),
    LF.lpl_cross_entropy: (
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
        torch.ones(3, dtype=torch.int32),
    ),
    LF.lpl_perturbation: (
        torch.randn(4, 3),
        torch.tensor([0, 1, 2, 0]),
        torch.ones(3, dtype=torch.int32),
    ),
    LF.binary_cross_entropy_with_logits: (torch.randn(4, 3), torch.ones(4, 3)),
    LF.lpl_binary_cross_entropy_with_logits: (
        torch.randn(4, 3),
        torch.ones(4, 3),
        torch.ones(3, dtype=torch.int32),
    ),
    LF.lpl_binary_perturbation: (
        torch.randn(4, 3),
        torch.ones(4, 3),
        torch.ones(3, dtype=torch.int32),
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("grad", [False, True])
def test_a_function_refuses_a_wrong_value_by_name(function: Any, grad: bool) -> None:
    given = FUNCTIONS[function]
    signature = inspect.signature(function).parameters
    needed = {"step_size": 0.1} if "step_size" in signature else {}
    for index, name in enumerate(signature):
        for wrong in ("x", [0.5], {}, object(), 1j):
            arguments = [given[0].clone().requires_grad_(grad), *given[1:]]
            keywords = {**needed}
            if index < len(arguments):
                arguments[index] = wrong
            else:
                keywords[name] = wrong
            with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
                function(*arguments, **keywords)


@pytest.mark.parametrize("rows", [4, 2000])
@pytest.mark.parametrize("way", ["auto", "reference"])
def test_none_is_off_whatever_the_size(rows: int, way: str) -> None:
    logits = torch.randn(rows, 100, requires_grad=True)
    target = torch.zeros(rows, dtype=torch.long)
    plain = LF.cross_entropy(logits, target, backend=way)
    off = LF.cross_entropy(logits, target, z_loss=None, softcap=None, backend=way)
    torch.testing.assert_close(off, plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda wrong: Focal(wrong),
        lambda wrong: GCE(wrong),
        lambda wrong: Poly1(wrong),
        lambda wrong: LogitClip(wrong),
        lambda wrong: LogitNorm(wrong),
        lambda wrong: MarginPenalty(margin=wrong),
    ],
)
@pytest.mark.parametrize("wrong", [math.nan, "x", None, [1.0], math.inf])
def test_a_family_refuses_a_wrong_number_by_name(make: Any, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="(gamma|q|epsilon|tau|margin): expected"):
        make(wrong)


@pytest.mark.parametrize(("value", "chosen"), [("", "runs"), ("CPP", "LPL_FUSED_BACKEND='CPP'")])
def test_the_environment_s_backend_is_named(
    value: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import subprocess
    import sys

    call = (
        "import torch, lpl_fused.functional as LF;"
        "LF.cross_entropy(torch.randn(2, 3), torch.tensor([0, 1])); print('runs')"
    )
    run = subprocess.run(
        [sys.executable, "-c", call],
        env={**os.environ, "LPL_FUSED_BACKEND": value},
        capture_output=True,
        text=True,
    )
    assert chosen in run.stdout + run.stderr


def test_wrappers_answer_for_their_base() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, C), (torch.rand(6, C) < 0.5).float()
    loss = losses.MultiLabelLPLLoss(COUNTS, losses.MultiLabelLoss(reduction="none"))
    assert loss.reduction == "none"
    assert loss(logits, labels).shape == logits.shape
    loss.reduction = "mean"
    before = loss(logits, labels)
    loss.weight = torch.full((C,), 5.0)
    torch.testing.assert_close(loss(logits, labels), 5 * before)
    assert losses.MbLSLoss(base=losses.CrossEntropyLoss(reduction="sum")).reduction == "sum"


def test_lpl_on_lpl_learns_on_what_the_other_does() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, C), (torch.rand(6, C) < 0.5).float()
    balanced = losses.DistributionBalancedLoss(COUNTS, 100)
    inner = losses.MultiLabelLPLLoss(COUNTS, balanced, step_size=0.1, epsilon=0.3)
    outer = losses.MultiLabelLPLLoss(COUNTS, inner, step_size=0.2)
    under = inner.beneath(logits, labels, None)
    expected = LF.lpl_binary_cross_entropy_with_logits(
        logits,
        labels,
        outer.steps(logits, labels),
        step_size=0.2,
        normalize=True,
        perturbation=under,
        **balanced.keywords(logits, labels),
    )
    torch.testing.assert_close(outer(logits, labels), expected)
    assert outer(logits, labels) != inner(logits, labels)
    outer.eval()
    torch.testing.assert_close(outer(logits, labels), balanced(logits, labels))


@pytest.mark.parametrize(
    "base", [losses.MultiLabelLoss(reduction="none"), nn.BCEWithLogitsLoss(reduction="none")]
)
@pytest.mark.parametrize(
    "call",
    [
        lambda base, u, y: losses.ABSGDLoss(base=base)(u, y),
        lambda base, u, y: losses.GroupDROLoss([5, 5], base)(u, y, torch.zeros(6).long()),
    ],
    ids=["absgd", "dro"],
)
def test_losses_of_logits_are_no_base_of_rows(base: nn.Module, call: Any) -> None:
    logits, labels = torch.randn(6, C), torch.ones(6, C)
    with pytest.raises(ValueError, match="base: expected"):
        call(base, logits, labels)


def test_a_group_per_row_of_the_losses_shape() -> None:
    with pytest.raises(ValueError, match="group: .*shape"):
        losses.GroupDROLoss([5, 5])(
            torch.randn(6, C), torch.zeros(6, dtype=torch.long), torch.zeros(2, 3).long()
        )


def test_certification_refuses_what_is_out_of_range() -> None:
    for name, wrong in (("sigma", -1.0), ("sigma", math.nan), ("alpha", 0.7), ("alpha", "x")):
        keywords: dict[str, Any] = {"sigma": 0.5, "alpha": 0.001, name: wrong}
        with pytest.raises((TypeError, ValueError), match=name):
            certification.certified(99, 100, **keywords)
    with pytest.raises(ValueError, match="batch_size"):
        certification.SmoothedClassifier(lambda x: x, 0.5, 2, batch_size=-5)


def test_steps_beyond_counting_are_refused_and_leave_the_loss_as_it_was() -> None:
    for keywords in ({"step_size": 1e-12}, {"epsilon": 1e300}, {"delta_epsilon": (0.1, 1e12)}):
        with pytest.raises(ValueError, match=r"step_size: expected fewer than 2\*\*31"):
            losses.LPLLoss(COUNTS, **keywords)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"step_size: expected fewer than 2\*\*31"):
            losses.LPLLoss(COUNTS, split="balanced", **keywords)  # type: ignore[arg-type]
        loss = losses.LPLLoss(COUNTS)
        ((name, wrong),) = keywords.items()
        steps, before = loss.steps.clone(), getattr(loss, name)
        with pytest.raises(ValueError, match=r"step_size: expected fewer than 2\*\*31"):
            setattr(loss, name, wrong)
        assert getattr(loss, name) == before
        assert torch.equal(loss.steps, steps)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"split": "balanced", "head": 0.3}, "head"),
        ({"statistics": "ema"}, "statistics"),
        *(
            ({"variant": "official-fixed", **beside}, next(iter(beside)))
            for beside in (
                {"normalize": False},
                {"tau": 1.0},
                {"statistics": "ema", "split": "balanced"},
                {"through_perturbation": True},
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_a_kind_of_lpl_does_not_ask_for_is_refused(
    keywords: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        losses.LPLLoss(COUNTS, **keywords)
    if "variant" not in keywords:
        with pytest.raises(ValueError, match=f"^{name}: "):
            losses.MultiLabelLPLLoss(COUNTS, **keywords)
    elif "split" not in keywords:
        loss = losses.LPLLoss(COUNTS, variant=keywords["variant"])
        with pytest.raises(ValueError, match="variant: "):
            setattr(loss, name, keywords[name])
        assert getattr(loss, name) != keywords[name]


@pytest.mark.parametrize(
    "make",
    [
        lambda: losses.LogitAdjustedLoss([5, 0, 3], tau=-1.0),
        lambda: losses.VSLoss([5, 1, 3], gamma=-100.0),
        lambda: losses.LDAMLoss([5, 1, 3], max_m=1e39),
        lambda: losses.GroupVSLoss([5, 1, 3], gamma=80.0, iota="power"),
    ],
)
def test_tables_beyond_float32_are_refused(make: Any) -> None:
    """They would make every loss nan."""
    with pytest.raises(ValueError, match=r"is beyond float32, .* for class [01]$"):
        make()
    with pytest.raises(ValueError, match=r"-1e\+39 for class 1$"):  # which masks no class
        LossModule().register_table("offset", torch.tensor([0.0, -1e39], dtype=torch.float64))
    loss = losses.VSLoss([5, 1, 3])
    scale = loss.table("scale", torch.zeros(1)).clone()
    with pytest.raises(ValueError, match="beyond float32"):
        loss.gamma = -100.0
    assert loss.gamma == 0.3 and torch.equal(loss.table("scale", torch.zeros(1)), scale)


def test_buffers_may_be_put_in_the_place_of_read_only_ones() -> None:
    """As DataParallel does for each device."""
    loss = losses.ClassBalancedLoss(COUNTS)
    replica: Any = loss._replicate_for_data_parallel()
    replica.weight = 2 * loss.weight
    assert not torch.equal(replica.weight, loss.weight)
    with pytest.raises(AttributeError, match="weight: read-only"):
        loss.weight = 2 * loss.weight


_LOGITS, _LABELS, _LISTED = torch.zeros(2, C), torch.tensor([0, 1]), [0, 1]
WRONG_KINDS: dict[str, Any] = {
    "rows": lambda: LF.cross_entropy(
        _LOGITS,
        _LABELS,
        perturbation=Perturbation(rows=[[0.0] * C] * C),  # type: ignore[arg-type]
    ),
    "rows of no dimension": lambda: LF.cross_entropy(
        _LOGITS, _LABELS, perturbation=Perturbation(rows=torch.tensor(0.0))
    ),
    "index": lambda: losses.TruncatedGCELoss(5)(_LOGITS, _LABELS, _LISTED),
    "index of flags": lambda: losses.TruncatedGCELoss(5)(_LOGITS, _LABELS, _LABELS.bool()),
    "feature_norm": lambda: losses.IBLoss(start_epoch=0)(_LOGITS, _LABELS, [1.0, 1.0]),
    "features": lambda: losses.ISDALoss(C, 2)(_LOGITS, _LABELS, [[0.0] * 2] * 2, torch.ones(C, 2)),
    "classifier_weight": lambda: losses.ISDALoss(C, 2)(
        _LOGITS, _LABELS, torch.zeros(2, 2), nn.Linear(2, C)
    ),
    "accuracy": lambda: losses.CDBLoss(C).update("all"),
    "accuracy in percent": lambda: losses.CDBLoss(C).update([90.0] * C),
    "cls_num_list": lambda: losses.LPLLoss(torch.ones(C, device="meta")),
}


@pytest.mark.parametrize("what", WRONG_KINDS)
def test_what_comes_with_a_call_is_refused_by_name(what: str) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=f"^{what.split()[0]}: expected|^{what.split()[0]}: without"
    ):
        WRONG_KINDS[what]()


def test_accuracies_and_normalizers_of_numpy() -> None:
    expected, found = losses.CDBLoss(C, 1.0), losses.CDBLoss(C, 1.0)
    expected.update(torch.linspace(0.1, 0.9, C))
    found.update(np.linspace(0.1, 0.9, C, dtype=np.float32), samples=[1] * C)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-6, atol=0)
    for number in (np.int64(3), np.float32(3)):
        value = LF.cross_entropy(_LOGITS, _LABELS, reduction="sum", normalizer=number)
        torch.testing.assert_close(value, 2 / 3 * torch.tensor(float(C)).log())
