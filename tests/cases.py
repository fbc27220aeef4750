"""The cases that every backend solves: one small problem for each part of the algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lpl_fused import (
    GCE,
    Alpha,
    Focal,
    LogitClip,
    LogitNorm,
    MarginPenalty,
    MixedTarget,
    Perturbation,
    Poly1,
)
from lpl_fused.norm import Norm
from lpl_fused.problem import TABLES as FIELDS
from lpl_fused.testing import TABLES, Case

PHIS = {
    "alpha0.5": Alpha(0.5),
    "alpha2": Alpha(2.0),
    "alpha-inf": Alpha(float("inf")),
    "gce0.7": GCE(0.7),
    "focal0.5": Focal(0.5),
    "focal2": Focal(2.0),
    "poly1": Poly1(2.0),
}


# by name: made for rows of a number of classes, so that about half of them are clipped
NORMS: dict[str, Callable[[int], Norm]] = {
    "clip": lambda classes: LogitClip(2.0 * classes**0.5),
    "clip-p1": lambda classes: LogitClip(1.6 * classes, 1.0),
    "clip-p1.5": lambda classes: LogitClip(1.8 * classes ** (2 / 3), 1.5),
    "clip-p3": lambda classes: LogitClip(2.3 * classes ** (1 / 3), 3.0),
    "clip-infinity": lambda classes: LogitClip(4.0, math.inf),
    "clip-official": lambda classes: LogitClip(0.5, form="official"),
    "logit-norm": lambda classes: LogitNorm(0.2),
}


PENALTIES = ("relu", "phr", "p2", "p3")


class Draw:
    """Random parts of a problem of `n` rows and `classes` classes, in float64."""

    def __init__(self, n: int, classes: int, seed: int) -> None:
        self.n, self.classes = n, classes
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def labels(self, low: int = 0) -> Tensor:
        return torch.randint(low, self.classes, (self.n,), generator=self.generator)

    def input(self, spread: float = 2.0) -> Tensor:
        return spread * self.normal(self.n, self.classes)

    def ignoring(self) -> Tensor:
        target = self.labels()
        target[:: max(2, self.n // 3)] = -100
        return target

    def dense(self) -> Tensor:
        target = torch.softmax(2 * self.normal(self.n, self.classes), 1)
        return target.masked_fill(self.uniform(self.n, self.classes) < 0.3, 0)

    def mixed(self) -> MixedTarget:
        return MixedTarget(self.labels(), self.labels(), self.uniform(self.n))

    def tables(self) -> Perturbation:
        return Perturbation(
            scale=0.5 + self.uniform(self.classes),
            offset=self.normal(self.classes),
            margin=0.5 * self.uniform(self.classes),
            rows=self.normal(3, self.classes),
            row_index=torch.randint(3, (self.n,), generator=self.generator),
            temperature=0.7,
        )

    def penalty(self, kind: str, margin: float = 2.0, normalize: bool = True) -> MarginPenalty:
        if kind == "relu":
            return MarginPenalty(margin=margin, strength=0.3, normalize=normalize)
        lam, rho = self.uniform(self.classes), 1 + self.uniform(self.classes)
        return MarginPenalty(kind, margin, normalize=normalize, multiplier=lam, rho=rho)

    def steps(self, largest: int = 6) -> Tensor:
        return torch.randint(-largest, largest + 1, (self.classes,), generator=self.generator)


Build = Callable[[Draw], Case]


def targets() -> dict[str, Build]:
    """Every target form, without anything else."""
    return {
        "hard": lambda d: Case(d.input(), d.labels()),
        "ignore": lambda d: Case(d.input(), d.ignoring()),
        "smoothed": lambda d: Case(d.input(), d.ignoring(), {"label_smoothing": 0.2}),
        "smoothed-by-class": lambda d: Case(
            d.input(), d.labels(), {"label_smoothing": 0.4 * d.uniform(d.classes)}
        ),
        "mixed": lambda d: Case(d.input(), d.mixed()),
        "mixed-same-label": lambda d: Case(
            d.input(), MixedTarget(y := d.labels(), y.clone(), d.uniform(d.n))
        ),
        "mixed-smoothed": lambda d: Case(d.input(), d.mixed(), {"label_smoothing": 0.1}),
        "mixed-ignore": lambda d: Case(
            d.input(), MixedTarget(d.ignoring(), d.ignoring().roll(1), d.uniform(d.n))
        ),
        "dense": lambda d: Case(d.input(), d.dense()),
        "dense-smoothed": lambda d: Case(d.input(), d.dense(), {"label_smoothing": 0.2}),
    }


def with_keywords(build: Build, make: Callable[[Draw], dict[str, object]]) -> Build:
    def built(draw: Draw) -> Case:
        case = build(draw)
        keywords = {**case.keywords, **make(draw)}
        return Case(case.input, case.target, keywords, learn=case.learn)

    return built


def cross_entropy_cases() -> dict[str, Build]:
    cases = dict(targets())
    for name, build in targets().items():
        cases[f"{name}-weights"] = with_keywords(
            build, lambda d: {"weight": d.uniform(d.classes), "sample_weight": d.uniform(d.n)}
        )
        cases[f"{name}-zloss"] = with_keywords(build, lambda d: {"z_loss": 1e-2})
    for name, phi in PHIS.items():
        for form in ("hard", "smoothed", "mixed", "dense-smoothed"):
            cases[f"{form}-{name}"] = with_keywords(
                targets()[form], lambda d, phi=phi: {"phi": phi, "weight": d.uniform(d.classes)}
            )
    for reduction in ("none", "sum"):
        for form in ("ignore", "smoothed", "dense"):
            cases[f"{form}-{reduction}"] = with_keywords(
                targets()[form], lambda d, r=reduction: {"reduction": r}
            )
    for form in ("ignore", "mixed", "dense"):
        cases[f"{form}-normalizer"] = with_keywords(
            targets()[form], lambda d: {"reduction": "sum", "normalizer": 37.5}
        )
    cases["everything-normalizer"] = lambda d: Case(
        d.input(),
        d.ignoring(),
        {
            "weight": d.uniform(d.classes),
            "sample_weight": d.uniform(d.n),
            "perturbation": d.tables(),
            "label_smoothing": 0.3 * d.uniform(d.classes),
            "phi": Focal(1.5),
            "norm": NORMS["clip"](d.classes),
            "reduction": "sum",
            "normalizer": 7 + d.uniform(1)[0],
        },
        learn=TABLES,
    )
    cases["softcap"] = with_keywords(targets()["hard"], lambda d: {"softcap": 3.0})
    cases.update(masked_label_cases())
    cases.update(table_cases())
    cases.update(norm_cases())
    cases.update(penalty_cases())
    cases["everything"] = lambda d: Case(
        d.input(),
        d.ignoring(),
        {
            "weight": d.uniform(d.classes),
            "sample_weight": d.uniform(d.n),
            "perturbation": d.tables(),
            "label_smoothing": 0.3 * d.uniform(d.classes),
            "phi": Focal(1.5),
            "z_loss": 1e-3,
            "softcap": 5.0,
        },
        learn=TABLES,
    )
    return cases


def masked(draw: Draw, target: Tensor) -> Tensor:
    """Logits that are −inf at the labels of every other row, whose loss is infinite, and at some
    other classes."""
    input = draw.input()
    every_other = torch.arange(draw.n) % 2 == 1  # of which `ignoring` leaves out none
    input[every_other, target[every_other].clamp(min=0)] = -torch.inf
    input[:, 0] = torch.where(target == 0, input[:, 0], -torch.inf)
    return input


def masked_label_cases() -> dict[str, Build]:
    """Infinite losses, whose gradients are not: by row, as a sum would be infinite."""

    def build(d: Draw, **keywords: object) -> Case:
        target = d.ignoring()
        return Case(masked(d, target), target, {"reduction": "none", **keywords})

    return {
        "masked-label": build,
        "masked-label-zloss": lambda d: build(d, z_loss=1e-3),
        "masked-label-zloss-focal": lambda d: build(d, z_loss=1e-3, phi=Focal(2.0)),
        "masked-label-zloss-tables": lambda d: Case(
            masked(d, target := d.labels()),
            target,
            {"reduction": "none", "z_loss": 1e-3, "perturbation": d.tables()},
        ),
    }


def table_cases() -> dict[str, Build]:
    def only(name: str, learn: bool, **others: object) -> Build:
        def build(d: Draw) -> Case:
            tables = d.tables()
            keep = {name: getattr(tables, name), **others}
            if name == "rows" and "row_index" not in keep:
                keep["row_index"] = tables.row_index
            perturbation = Perturbation(**keep)
            return Case(
                d.input(),
                d.ignoring(),
                {"perturbation": perturbation},
                learn=(name,) if learn else (),
            )

        return build

    cases: dict[str, Build] = {}
    for name in FIELDS:
        cases[name] = only(name, learn=False)
        cases[f"{name}-learned"] = only(name, learn=True)
        cases[f"{name}-cold-learned"] = only(name, learn=True, temperature=0.3)
    cases["temperature"] = lambda d: Case(
        d.input(), d.labels(), {"perturbation": Perturbation(temperature=1 / 30)}
    )
    cases["temperature-learned"] = lambda d: Case(
        d.input(),
        d.labels(),
        {"perturbation": Perturbation(temperature=torch.tensor(0.4, dtype=torch.float64))},
        learn=("temperature",),
    )
    cases["rows-by-target"] = lambda d: Case(
        d.input(),
        d.ignoring(),
        {"perturbation": Perturbation(rows=d.normal(d.classes, d.classes))},
        learn=("rows",),
    )
    cases["offset-of-minus-infinity"] = lambda d: Case(
        d.input(),
        torch.zeros(d.n, dtype=torch.int64),
        {
            "perturbation": Perturbation(
                offset=torch.where(torch.arange(d.classes) % 3 == 1, -torch.inf, 0.0).double()
            )
        },
    )
    cases["tables-mixed"] = lambda d: Case(
        d.input(),
        d.mixed(),
        {"perturbation": Perturbation(scale=d.uniform(d.classes), offset=d.normal(d.classes))},
        learn=("scale", "offset"),
    )
    cases["tables-dense"] = lambda d: Case(
        d.input(),
        d.dense(),
        {"perturbation": Perturbation(scale=d.uniform(d.classes), offset=d.normal(d.classes))},
        learn=("scale", "offset"),
    )
    cases["softcap-scale-learned"] = lambda d: Case(
        d.input(),
        d.labels(),
        {"perturbation": Perturbation(scale=d.uniform(d.classes)), "softcap": 2.0},
        learn=("scale",),
    )
    return cases


def norm_cases() -> dict[str, Build]:
    """Every norm alone, and one of them under everything else."""

    def norm_of(name: str) -> Callable[[Draw], dict[str, object]]:
        return lambda d: {"norm": NORMS[name](d.classes)}

    cases = {name: with_keywords(targets()["ignore"], norm_of(name)) for name in NORMS}
    for form in targets():
        cases[f"{form}-logit-norm"] = with_keywords(targets()[form], norm_of("logit-norm"))
    for form, others in (("softcap", "hard"), ("scale-learned", ""), ("tables-mixed", "")):
        build = table_cases()[form] if not others else targets()[others]
        for name in ("clip", "clip-p3"):
            cases[f"{form}-{name}"] = with_keywords(
                build,
                lambda d, form=form, name=name: {
                    "norm": NORMS[name](d.classes),
                    **({"softcap": 3.0} if form == "softcap" else {}),
                },
            )
    for name in ("temperature", "offset", "rows-learned", "margin-cold-learned"):
        cases[f"{name}-clip"] = with_keywords(table_cases()[name], norm_of("clip"))
    cases["clip-focal"] = with_keywords(
        targets()["hard"], lambda d: {"norm": NORMS["clip"](d.classes), "phi": Focal(2.0)}
    )
    cases["clip-everything"] = lambda d: Case(
        d.input(),
        d.ignoring(),
        {
            "weight": d.uniform(d.classes),
            "sample_weight": d.uniform(d.n),
            "perturbation": d.tables(),
            "label_smoothing": 0.3 * d.uniform(d.classes),
            "phi": Focal(1.5),
            "z_loss": 1e-3,
            "softcap": 5.0,
            "norm": NORMS["clip"](d.classes),
        },
        learn=TABLES,
    )
    return cases


def penalty_cases() -> dict[str, Build]:
    """Every kind alone, with ties for the maximum, and beside everything else."""
    cases = {}
    for kind in PENALTIES:
        cases[f"penalty-{kind}"] = with_keywords(
            targets()["ignore"], lambda d, kind=kind: {"penalty": d.penalty(kind)}
        )
        cases[f"penalty-{kind}-ties"] = lambda d, kind=kind: Case(
            d.input().round(), d.labels(), {"penalty": d.penalty(kind, 0.5, normalize=False)}
        )
    for form in targets():
        for reduction in ("none", "mean", "sum"):
            cases[f"{form}-{reduction}-penalty"] = with_keywords(
                targets()[form],
                lambda d, reduction=reduction: {
                    "weight": d.uniform(d.classes),
                    "sample_weight": d.uniform(d.n),
                    "reduction": reduction,
                    "penalty": d.penalty("phr"),
                },
            )
    cases["ignore-normalizer-penalty"] = with_keywords(
        targets()["ignore"],
        lambda d: {
            "sample_weight": d.uniform(d.n),
            "reduction": "sum",
            "normalizer": torch.tensor(1009),
            "penalty": d.penalty("p3"),
        },
    )
    for name in ("clip", "clip-p3", "logit-norm"):
        cases[f"{name}-penalty"] = with_keywords(
            norm_cases()[name], lambda d: {"penalty": d.penalty("p2")}
        )
    for name in ("scale-learned", "rows-learned", "margin-cold-learned", "softcap-scale-learned"):
        cases[f"{name}-penalty"] = with_keywords(
            table_cases()[name], lambda d: {"penalty": d.penalty("relu")}
        )
    cases["penalty-everything"] = with_keywords(
        norm_cases()["clip-everything"], lambda d: {"penalty": d.penalty("phr")}
    )
    return cases


def lpl_cases() -> dict[str, Build]:
    def lpl(build: Build, largest: int = 6, step_size: float = 0.3, **keywords: object) -> Build:
        def built(d: Draw) -> Case:
            case = build(d)
            merged = {**case.keywords, "step_size": step_size, **keywords}
            return Case(case.input, case.target, merged, d.steps(largest), case.learn)

        return built

    def few_classes(d: Draw) -> Case:
        """Groups: all rows share two labels."""
        return Case(d.input(), d.labels() % 2)

    def one_class(d: Draw) -> Case:
        return Case(d.input(), torch.full((d.n,), d.classes - 1))

    forms: dict[str, Build] = {
        "unique": lambda d: Case(d.input(), torch.arange(d.n) * 3 % d.classes),
        "groups": few_classes,
        "one-class": one_class,
        "ignore": lambda d: Case(d.input(), d.ignoring()),
        "tables": lambda d: Case(d.input(), d.ignoring(), {"perturbation": d.tables()}),
        "tables-learned": lambda d: Case(
            d.input(), d.ignoring(), {"perturbation": d.tables()}, learn=("offset", "rows")
        ),
        "temperature-learned": lambda d: Case(
            d.input(),
            d.labels(),
            {"perturbation": Perturbation(temperature=torch.tensor(0.6, dtype=torch.float64))},
            learn=("temperature",),
        ),
    }
    cases = {}
    for name, build in forms.items():
        cases[name] = lpl(build)
        cases[f"{name}-normalized"] = lpl(build, normalize=True)
    for name in ("clip", "clip-infinity", "logit-norm"):
        for form in ("unique", "groups", "tables-learned"):
            build = with_keywords(
                forms[form], lambda d, name=name: {"norm": NORMS[name](d.classes)}
            )
            cases[f"{form}-{name}"] = lpl(build, normalize=form == "groups")
    for form in ("unique", "groups"):
        cases[f"{form}-masked-label-zloss"] = lpl(
            lambda d, form=form: Case(masked(d, target := forms[form](d).target), target),
            z_loss=1e-3,
            reduction="none",
        )
    for form in ("unique", "groups", "tables-learned"):
        cases[f"{form}-normalizer"] = lpl(forms[form], reduction="sum", normalizer=53.0)
    cases["no-steps"] = lpl(few_classes, largest=0)
    cases["many-small-steps"] = lpl(few_classes, largest=60, step_size=0.02)
    cases["one-huge-step"] = lpl(few_classes, largest=1, step_size=40.0)
    cases["smoothed-focal-weights"] = lambda d: Case(
        d.input(),
        d.labels() % 3,
        {
            "step_size": 0.2,
            "label_smoothing": 0.1,
            "phi": Focal(2.0),
            "weight": d.uniform(d.classes),
            "reduction": "none",
        },
        d.steps(),
    )
    return cases
