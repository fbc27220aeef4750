"""The multi-label cases that every backend solves: one for each part of the algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from cases import PHIS, Build, Draw
from torch import Tensor

from lpl_fused import Asymmetric, BinaryPerturbation, Focal, Perturbation, RebalancedWeight
from lpl_fused.testing import Case


def hard(d: Draw, density: float = 0.3) -> Tensor:
    """Labels 0 and 1; the first row has no positive, the first class none, the last class only."""
    y = (d.uniform(d.n, d.classes) < density).double()
    y[:, 0], y[:, -1] = 0, 1
    y[0] = 0
    return y


def soft(d: Draw) -> Tensor:
    return torch.where(d.uniform(d.n, d.classes) < 0.5, d.uniform(d.n, d.classes), hard(d))


def missing(d: Draw, marker: float = -1.0) -> Tensor:
    """Labels of which some are missing, among them a whole row and a whole class."""
    y = hard(d).masked_fill(d.uniform(d.n, d.classes) < 0.3, marker)
    y[d.n // 2], y[:, d.classes // 2] = marker, marker
    return y


def split_tables(d: Draw) -> BinaryPerturbation:
    def side() -> Perturbation:
        return Perturbation(scale=0.5 + d.uniform(d.classes), offset=d.normal(d.classes))

    return BinaryPerturbation(side(), side())


def rebalance(d: Draw) -> RebalancedWeight:
    return RebalancedWeight(1 / (1 + 100 * d.uniform(d.classes)))


def binary_cases() -> dict[str, Build]:
    def case(label: str = "hard", **keywords: object) -> Build:
        """A case with keywords, each a value or a function of the draw."""
        labels = {"hard": hard, "soft": soft, "missing": missing}

        def build(d: Draw) -> Case:
            made = {
                name: value(d) if callable(value) else value for name, value in keywords.items()
            }
            return Case(d.input(), labels[label](d), made, multilabel=True)

        return build

    cases = {
        "hard": case(),
        "soft": case("soft"),
        "missing": case("missing", ignore_index=-1),
        "missing-nan": lambda d: Case(
            d.input(), missing(d, math.nan), {"ignore_index": math.nan}, multilabel=True
        ),
        "bool": lambda d: Case(d.input(), hard(d).bool(), multilabel=True),
        "int64": lambda d: Case(
            d.input(), missing(d).long(), {"ignore_index": -1}, multilabel=True
        ),
        "int32": lambda d: Case(d.input(), hard(d).int(), multilabel=True),
        "uint8": lambda d: Case(d.input(), hard(d).to(torch.uint8), multilabel=True),
        "int8": lambda d: Case(
            d.input(), missing(d).to(torch.int8), {"ignore_index": -1}, multilabel=True
        ),
        "strided": lambda d: Case(
            (2 * d.normal(d.n, d.classes + 3))[:, 1 : d.classes + 1],
            torch.cat([hard(d), hard(d)], 1)[:, : d.classes],
            multilabel=True,
        ),
        "transposed": lambda d: Case(
            (2 * d.normal(d.classes, d.n)).T, hard(d).T.contiguous().T, multilabel=True
        ),
        "no-positives": lambda d: Case(
            d.input(), torch.zeros(d.n, d.classes), {"rebalance": rebalance(d)}, multilabel=True
        ),
        "saturated": lambda d: Case(
            20 * d.input(), hard(d), {"reduction": "none"}, multilabel=True
        ),
        "infinite": infinite,
    }
    for label, mark in (("hard", {}), ("soft", {}), ("missing", {"ignore_index": -1})):
        more = {
            "weights": {
                "pos_weight": lambda d: d.uniform(d.classes),
                "neg_weight": lambda d: d.uniform(d.classes),
            },
            "row-weights": {"weight": lambda d: d.uniform(d.n, 1)},
            "logit-weights": {"weight": lambda d: d.uniform(d.n, d.classes)},
            "split": {"perturbation": split_tables},
            "none": {"reduction": "none"},
            "sum": {"reduction": "sum"},
            "normalizer": {"reduction": "sum", "normalizer": lambda d: 90 + d.uniform(1)[0]},
            "rebalance": {"rebalance": rebalance},
            "focal2": {"phi": Focal(2.0)},
            "everything": {
                "weight": lambda d: d.uniform(d.n, 1),
                "pos_weight": lambda d: d.uniform(d.classes),
                "neg_weight": lambda d: d.uniform(d.classes),
                "perturbation": split_tables,
                "rebalance": rebalance,
                "phi": Focal(1.5),
            },
        }
        for name, keywords in more.items():
            cases[f"{label}-{name}"] = case(label, **{**keywords, **mark})
    cases["hard-asymmetric"] = case(phi=Asymmetric())
    cases["hard-asymmetric-detached"] = case(phi=Asymmetric(1.0, 2.5, 0.2, detach=True))
    cases["soft-asymmetric-split"] = case("soft", phi=Asymmetric(1.0), perturbation=split_tables)
    cases["soft-asymmetric-unclipped"] = case("soft", phi=Asymmetric(0.5, 3.0, 0.0))
    cases["missing-asymmetric"] = case(
        "missing", ignore_index=-1, phi=Asymmetric(0.0, 0.0, 0.3), rebalance=rebalance
    )
    for name, phi in PHIS.items():
        cases[f"hard-{name}"] = case(phi=phi)
        cases[f"soft-{name}-split"] = case("soft", phi=phi, perturbation=split_tables)
    cases["margin"] = case(
        perturbation=lambda d: Perturbation(margin=d.uniform(d.classes), temperature=0.5)
    )
    cases["temperature"] = case(perturbation=Perturbation(temperature=1 / 30))
    return cases


def infinite(d: Draw) -> Case:
    """Logits of ±∞ on the side where they cost nothing."""
    input, y = d.input(), hard(d)
    input = torch.where((d.uniform(d.n, d.classes) < 0.2) & (y == 0), -torch.inf, input)
    input = torch.where((d.uniform(d.n, d.classes) < 0.2) & (y == 1), torch.inf, input)
    return Case(input, y, multilabel=True)


def binary_lpl_cases() -> dict[str, Build]:
    def lpl(build: Build, largest: int = 6, step_size: float = 0.3, **keywords: object) -> Build:
        def built(d: Draw) -> Case:
            case = build(d)
            merged = {**case.keywords, "step_size": step_size, **keywords}
            return Case(case.input, case.target, merged, d.steps(largest), multilabel=True)

        return built

    plain = binary_cases()
    names = ("hard", "soft", "missing", "int64", "hard-split", "hard-everything", "infinite")
    cases = {}
    for name in (*names, "missing-everything", "soft-everything", "hard-none", "no-positives"):
        cases[name] = lpl(plain[name])
        cases[f"{name}-normalized"] = lpl(plain[name], normalize=True)
    for name in ("hard-normalizer", "missing-normalizer"):
        cases[name] = lpl(plain[name])
    cases["no-steps"] = lpl(plain["hard"], largest=0)
    cases["many-small-steps"] = lpl(plain["hard"], largest=60, step_size=0.02)
    cases["far"] = lpl(plain["hard"], largest=40, step_size=0.5)
    cases["one-huge-step"] = lpl(plain["hard"], largest=1, step_size=40.0)
    cases["saturated"] = lpl(plain["saturated"])
    return cases


def few_positives_cases() -> dict[str, Build]:
    """Labels of which one in some hundred is 1, or missing where a case says so."""

    def few(d: Draw) -> Tensor:
        y = (d.uniform(d.n, d.classes) < 0.004).double()
        y[1, 0] = y[1, -1] = y[-1, -1] = 1
        return y

    def case(transform: Callable[[Tensor], Tensor] = Tensor.double, **keywords: object) -> Build:
        def build(d: Draw) -> Case:
            made = {
                name: value(d) if callable(value) else value for name, value in keywords.items()
            }
            return Case(d.input(), transform(few(d)), made, multilabel=True)

        return build

    def some_missing(y: Tensor) -> Tensor:
        return y.masked_fill((torch.arange(y.numel()) % 401 == 7).reshape(y.shape), -1)

    def well_known(d: Draw, infinite: bool = False) -> Case:
        """Losses that are nothing beside those that the other label would cost."""
        y = few(d)
        far = torch.where(y == 1, 30.0, -12.0) + d.normal(d.n, d.classes)
        return Case(torch.where(y == 1, torch.inf, far) if infinite else far, y, multilabel=True)

    def lpl(build: Build, **keywords: object) -> Build:
        def built(d: Draw) -> Case:
            case = build(d)
            merged = {**case.keywords, "step_size": 0.1, **keywords}
            return Case(case.input, case.target, merged, d.steps(10), multilabel=True)

        return built

    everything = {
        "weight": lambda d: d.uniform(d.n, 1),
        "pos_weight": lambda d: d.uniform(d.classes),
        "neg_weight": lambda d: d.uniform(d.classes),
        "perturbation": split_tables,
        "rebalance": rebalance,
        "phi": Focal(2.0),
    }
    cases = {
        "plain": case(),
        "bool": case(Tensor.bool),
        "int64": case(Tensor.long),
        "none": case(reduction="none"),
        "sum": case(reduction="sum"),
        "normalizer": case(reduction="sum", normalizer=7.5),
        "missing": case(some_missing, ignore_index=-1),
        "ignored-negatives": case(ignore_index=0),
        "everything": case(**everything),
        "missing-everything": case(some_missing, ignore_index=-1, **everything),
        "well-known": well_known,
        "infinite": lambda d: well_known(d, infinite=True),
    }
    for name in ("plain", "missing", "everything", "well-known", "bool"):
        cases[f"{name}-lpl"] = lpl(cases[name])
    cases["plain-lpl-far"] = lpl(cases["plain"], step_size=2.0)
    return cases
