"""Differential fuzzing: random calls of every public function, backends against the reference in
float64. `make fuzz`; `test_fuzz.py` has some hundred of the same cases.

A case is a number: what is drawn depends on it and the seed alone, so that

    make fuzz ARGS="--seed 0 --case 1234"

repeats one. It looks for mistakes, not for last digits (`test_digits.py` does): what a backend finds
may be four times as wrong as plain PyTorch in the same dtype, or as wrong as rounding the perturbed
logits makes it. Where plain PyTorch itself is lost (it overflows) nothing is compared. Memory holds
one of the patterns of poison.py, by the case's number, unless LPL_FUSED_POISON=0.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from cases import NORMS, PENALTIES, PHIS, Draw
from multilabel_cases import rebalance, split_tables
from poison import PATTERNS, Poison, modules
from torch import Tensor

import lpl_fused
from lpl_fused import Focal, MixedTarget, Perturbation, functional, testing
from lpl_fused.backends import REFERENCE, load
from lpl_fused.reference import sigmoid, softmax
from lpl_fused.testing import TABLES, Case

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ISAS = ("baseline", "avx2", "avx512")
SPECIAL = ("nan", "inf", "-inf", "the row", "the label", "huge", "largest", "denormal", "ties",
           "equal", "far")  # fmt: skip
LAYOUTS = ("contiguous", "transposed", "columns", "rows", "expanded", "grid")
UPSTREAMS = ("ones", "random", "zeros", "some zeros", "large", "inf", "nan")
EPS = torch.finfo(torch.float32).eps
WIDTH = 5  # of a layer before the logits
AT = Path(__file__).parents[1] / "build" / "fuzz.at"  # the case at which a process that dies was


@dataclass
class Trial:
    """A case, and how it is called."""

    number: int
    case: Case
    dtype: torch.dtype
    layout: str = "contiguous"
    upstream: str = "ones"
    form: str = "auto"
    isa: str = "avx2"
    said: dict[str, Any] = field(default_factory=dict)
    lost: Tensor = field(default_factory=lambda: torch.zeros(()))  # the true loss
    hidden: Tensor | None = None  # what comes into a layer, whose weights are
    matrix: Tensor | None = None
    factors: Tensor = field(default_factory=lambda: torch.ones(()))  # what comes from upstream
    stretch: Tensor = field(default_factory=lambda: torch.ones(()))  # of `stretches`

    def __str__(self) -> str:
        case = self.case
        keywords = {
            k: v if not isinstance(v, Tensor) else list(v.shape) for k, v in case.keywords.items()
        }
        return (
            f"{tuple(case.input.shape)} {self.dtype} {self.layout}, upstream {self.upstream},"
            f" gradient {self.form!r}, {self.isa}, {self.said} {sorted(keywords)}"
            f"{'' if case.steps is None else f', steps to {int(case.steps.abs().max())}'}"
            f" learn {case.learn}"
        )


def draw(seed: int, number: int, small: bool = False) -> Trial:
    """The trial of a number; `small`: no more than slow backends take."""
    at = random.Random(f"{seed}/{number}")
    n = at.choice([1, 1, 2, 3, at.randint(4, 24)])
    classes = at.choice([1, 2, 3, at.randint(4, 60), at.randint(4, 60)])
    if not small and at.random() < 0.08:
        classes = at.choice([255, 256, 257, 1023, 1024, 1025, 2049])
    if at.random() < 0.02:
        n = 0
    made = Draw(n, classes, seed=at.randrange(2**31))
    return (_binary if at.random() < 0.35 else _softmax)(at, made, number)


def _trial(at: random.Random, case: Case, number: int, said: dict[str, Any]) -> Trial:
    layout = at.choice(LAYOUTS) if at.random() < 0.5 else "contiguous"
    upstream = at.choice(UPSTREAMS) if at.random() < 0.6 else "ones"
    dtype = at.choice(DTYPES)
    form = at.choice(["auto", "auto", "sweep", "statistics"])
    if form == "sweep" and (dtype == torch.float16 or case.learn):
        form = "auto"
    if case.steps is not None and form == "sweep":
        form = "auto"
    if dtype == torch.float16:  # what it does not hold would be infinite
        finite = case.input.isfinite()
        case.input = torch.where(finite, case.input.clamp(-6e4, 6e4), case.input)
    isa = ISAS[number % 3]
    return Trial(number, case, dtype, layout, upstream, form, isa, said)


def _logits(at: random.Random, made: Draw, label: Tensor | None, said: dict[str, Any]) -> Tensor:
    spread = at.choice([0.01, 1.0, 1.0, 4.0, 20.0])
    input = made.input(spread)
    said["spread"] = spread
    if not made.n:
        return input
    specials = [at.choice(SPECIAL) for _ in range(at.choice([0, 0, 1, 1, 2]))]
    for special in specials:
        row, column = at.randrange(made.n), at.randrange(made.classes)
        if special in ("nan", "inf", "-inf"):
            input[row, column] = float(special)
        elif special == "the row":
            input[row] = -math.inf
        elif special == "the label":
            input[
                row, column if label is None else int(label[row].clamp(0, made.classes - 1))
            ] = -math.inf
        elif special in ("huge", "largest"):
            input[row, column] = at.choice([-1, 1]) * (1e4 if special == "huge" else 3e38)
        elif special == "denormal":
            input[row] = input[row] * 1e-40
        elif special == "ties":
            input = input.round()
        elif special == "equal":
            input[row] = at.uniform(-3, 3)
        else:
            input = input + at.choice([-1, 1]) * 10 ** at.uniform(1, 3)
    said["special"] = specials
    return input


def _softmax(at: random.Random, made: Draw, number: int) -> Trial:
    said: dict[str, Any] = {}
    form = at.choice(
        ["hard", "ignoring", "ignoring", "mixed", "mixed ignoring", "dense", "all ignored"]
    )
    target: Any = made.labels()
    if form == "ignoring":
        target = torch.where(made.uniform(made.n) < 0.3, -100, target)
    elif form == "all ignored":
        target = torch.full_like(target, -100)
    elif form == "mixed":
        target = made.mixed()
    elif form == "mixed ignoring":
        one, other = made.labels(), made.labels()
        one = torch.where(made.uniform(made.n) < 0.3, -100, one)
        other = torch.where(made.uniform(made.n) < 0.3, -100, other)
        lam = made.uniform(made.n)
        # (a row of which no label has a share is neither ignored nor does it count)
        lam = torch.where(
            (made.uniform(made.n) < 0.3) & (one >= 0) & (other >= 0), lam.round(), lam
        )
        target = MixedTarget(one, other, lam)
    elif form == "dense":
        target = made.dense()
        if made.classes:
            target[:, 0] += 0.1  # a row of no mass at all is neither ignored nor does it count
    said["target"] = form
    one_label = isinstance(target, Tensor) and not target.is_floating_point()
    labelled = one_label or isinstance(target, MixedTarget)
    label = target if one_label else target[0] if isinstance(target, MixedTarget) else None
    input = _logits(at, made, label, said)
    keywords: dict[str, Any] = {"reduction": at.choice(["none", "mean", "sum"])}
    finite = bool((input.abs() < 1e30).all())  # whatever a table makes of it
    if at.random() < 0.3:
        keywords["weight"] = made.uniform(made.classes)
        if at.random() < 0.3 and finite:
            keywords["weight"] = keywords["weight"].round()
    if at.random() < 0.3 and form != "dense":
        keywords["sample_weight"] = made.uniform(made.n)
        if at.random() < 0.3 and finite:
            keywords["sample_weight"] = keywords["sample_weight"].round()
    if at.random() < 0.25:
        keywords["label_smoothing"] = at.choice([0.05, 0.5, 1.0])
        if at.random() < 0.4 and one_label:
            keywords["label_smoothing"] = 0.4 * made.uniform(made.classes)
    if at.random() < 0.3:
        keywords["phi"] = PHIS[at.choice(sorted(PHIS))]
    if at.random() < 0.2:
        keywords["z_loss"] = at.choice([1e-4, 1e-2])
    if at.random() < 0.2:
        keywords["softcap"] = at.choice([2.0, 30.0])
    if at.random() < 0.2:
        keywords["norm"] = NORMS[at.choice(sorted(NORMS))](made.classes)
    if at.random() < 0.15 and keywords["reduction"] == "sum":
        keywords["normalizer"] = at.choice([7.5, torch.tensor(53.0)])
    if {"norm", "softcap"} & set(keywords):
        input = input.masked_fill(input == math.inf, math.nan)  # would become a number
        if "norm" in keywords:  # ‖u‖ of such numbers a float does not hold
            input = torch.where(input.abs() == 3e38, input.sign() * 1e4, input)
    chosen: list[str] = []
    if at.random() < 0.4:
        allowed = [name for name in TABLES if labelled or name != "margin"]
        chosen = at.sample(allowed, at.randint(1, min(4, len(allowed))))
        tables = made.tables()
        kept = {name: getattr(tables, name) for name in chosen}
        if "rows" in chosen:
            kept["row_index"] = tables.row_index
        if "offset" in chosen and at.random() < 0.1:
            masked = at.randrange(made.classes)
            if made.classes > 1:
                kept["offset"][masked] = -math.inf
        keywords["perturbation"] = Perturbation(**kept)
    learn = tuple(name for name in chosen if name != "temperature") if at.random() < 0.4 else ()
    steps = None
    learns = at.random() < 0.4 and (
        made.classes > 1 or finite
    )  # (of one class δ is nothing, or nan)
    if labelled and learns:
        steps = made.steps(at.choice([0, 1, 3, 8, 40]))
        keywords["step_size"] = at.choice([0.01, 0.3, 1.0])
        keywords["normalize"] = at.random() < 0.5
    elif at.random() < 0.15:
        # a distance times a weight, or squared, is to be one that a float holds
        input = torch.where(input.abs() == 3e38, input.sign() * 1e9, input)
        keywords["penalty"] = made.penalty(at.choice(PENALTIES), normalize=at.random() < 0.5)
    said["function"] = "cross_entropy" if steps is None else "lpl_cross_entropy"
    trial = _trial(at, Case(input, target, keywords, steps, learn), number, said)
    moved = not one_label and (steps is not None or "margin" in chosen)
    if moved:
        said["kind"] = "two labels that move the logits"
    often = 0.2 if moved and "penalty" not in keywords else 0 if moved else 0.06
    if at.random() < often and made.n and bool(input.isfinite().all()):
        # the layer that makes the logits, too; in 16 bits these are rounded, by whoever makes them
        trial.hidden = made.normal(made.n, WIDTH).float().double()
        trial.matrix = made.normal(made.classes, WIDTH).float().double()
        trial.case.input = trial.hidden @ trial.matrix.T
        trial.dtype = torch.float64 if trial.dtype == torch.float64 else torch.float32
        trial.layout = "contiguous"
        said["function"] = "linear_" + said["function"]
    return trial


def _binary(at: random.Random, made: Draw, number: int) -> Trial:
    said: dict[str, Any] = {}
    form = at.choice(["hard", "hard", "few", "soft", "missing", "all missing", "bool", "int64"])
    y = (made.uniform(made.n, made.classes) < (0.01 if form == "few" else 0.3)).double()
    keywords: dict[str, Any] = {"reduction": at.choice(["none", "mean", "sum"])}
    if form == "soft":
        y = torch.where(made.uniform(*y.shape) < 0.5, made.uniform(*y.shape), y)
    elif form in ("missing", "all missing"):
        mark = at.choice([-1.0, math.nan])
        y = y.masked_fill(made.uniform(*y.shape) < (0.3 if form == "missing" else 2), mark)
        keywords["ignore_index"] = mark
    elif form != "hard" and form != "few":
        y = y.bool() if form == "bool" else y.long()
    said["target"] = form
    input = _logits(at, made, None, said)
    if at.random() < 0.3:
        keywords["pos_weight"] = made.uniform(made.classes)
    if at.random() < 0.2:
        keywords["neg_weight"] = made.uniform(made.classes)
    if at.random() < 0.3:
        keywords["weight"] = made.uniform(made.n, at.choice([1, made.classes]))
        if at.random() < 0.3:
            keywords["weight"] = keywords["weight"].round()
    if at.random() < 0.3:
        keywords["perturbation"] = at.choice(
            [
                split_tables(made),
                Perturbation(offset=made.normal(made.classes)),
                Perturbation(margin=made.uniform(made.classes), temperature=0.5),
            ]
        )
    if at.random() < 0.2:
        keywords["rebalance"] = rebalance(made)
    if at.random() < 0.3:
        keywords["phi"] = at.choice([PHIS[at.choice(sorted(PHIS))], Focal(1.5)])
    elif at.random() < 0.3:
        said["kind"] = "asymmetric"
        keywords["phi"] = lpl_fused.Asymmetric(
            *(at.choice([0.0, 0.5, 1.0, 2.5, 4.0]) for _ in range(2)),
            at.choice([0.0, 0.05, 0.3]),
            detach=at.random() < 0.5,
        )
    if at.random() < 0.15 and keywords["reduction"] == "sum":
        keywords["normalizer"] = 7.5
    steps = None
    if at.random() < 0.4:
        steps = made.steps(at.choice([0, 1, 3, 8, 40]))
        keywords["step_size"] = at.choice([0.01, 0.3, 1.0])
        keywords["normalize"] = at.random() < 0.5
    said["function"] = ("" if steps is None else "lpl_") + "binary_cross_entropy_with_logits"
    case = Case(input, y, keywords, steps, multilabel=True)
    return _trial(at, case, number, said)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers, otherwise in memory."""
    n, classes = values.shape
    if layout == "transposed":
        return values.T.contiguous().T
    if layout == "columns":
        wide = torch.full((n, classes + 5), math.nan, dtype=values.dtype)
        wide[:, 2 : classes + 2] = values
        return wide[:, 2 : classes + 2]
    if layout == "rows":
        return torch.stack([values, torch.full_like(values, math.nan)], 1)[:, 0]
    if layout == "expanded" and n:
        return values[:1].expand(n, classes)
    return values.contiguous()


def run(trial: Trial, case: Case, backend: str, upstream: Tensor | None) -> testing.Result:
    """Loss and gradients, by the trial's layout and form."""
    layout = trial.layout
    values = case.input.detach()
    if layout == "expanded" and len(values):  # for all: the truth, too
        values = values[:1].expand_as(values)
    plain = backend == REFERENCE
    input = laid_out(values.clone(), "contiguous" if plain else layout)
    input = input.detach().requires_grad_()
    keywords = dict(case.keywords)
    leaves = {"input": input}
    layer: tuple[Tensor, ...] = ()
    if trial.hidden is not None:
        assert trial.matrix is not None
        input, matrix = (v.to(values.dtype).requires_grad_() for v in (trial.hidden, trial.matrix))
        leaves, layer = {"input": input, "linear_weight": matrix}, (matrix,)
    if case.learn:
        wide = torch.float64 if input.dtype == torch.float64 else torch.float32
        given = {name: getattr(keywords["perturbation"], name) for name in case.learn}
        tables = {name: v.detach().to(wide).clone().requires_grad_() for name, v in given.items()}
        keywords["perturbation"] = replace(keywords["perturbation"], **tables)
        leaves.update(tables)
    if not plain:
        keywords["gradient"] = trial.form
    arguments = (*layer, case.target, *(() if case.steps is None else (case.steps,)))
    name = (
        ("linear_" if layer else "")
        + ("" if case.steps is None else "lpl_")
        + ("binary_cross_entropy_with_logits" if case.multilabel else "cross_entropy")
    )
    if layer and trial.form == "sweep":
        keywords["gradient"] = "auto"
    if plain:
        keywords.pop("gradient", None)
    given_input: Tensor = input
    if layout == "grid" and not plain and _plain_labels(case):
        # rows as places of an image of (1, C, n)
        given_input = input.T[None]
        arguments = (case.target[None], *arguments[1:])  # type: ignore[index]
        keywords = {k: v[None] if k == "sample_weight" else v for k, v in keywords.items()}
        if "perturbation" in keywords and keywords["perturbation"].row_index is not None:
            index = keywords["perturbation"].row_index[None]
            keywords["perturbation"] = replace(keywords["perturbation"], row_index=index)
    loss = getattr(functional, name)(given_input, *arguments, backend=backend, **keywords)
    if given_input is not input and loss.dim():
        loss = loss[0]
    if upstream is None:
        return testing.Result(loss.detach(), {})
    factors = upstream.to(loss.dtype)
    if trial.upstream == "ones" and not plain:
        factors = torch.ones((), dtype=loss.dtype).expand(loss.shape)
    before = input.detach().clone()
    grads = torch.autograd.grad(loss, list(leaves.values()), factors)
    same = (before == input) | (before.isnan() & input.isnan())
    assert bool(same.all()), "logits were written"
    return testing.Result(loss.detach(), dict(zip(leaves, grads, strict=True)))


def _plain_labels(case: Case) -> bool:
    return (
        isinstance(case.target, Tensor)
        and not case.target.is_floating_point()
        and not case.multilabel
    )


def factors_of(trial: Trial, loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(trial.number)
    random_ = torch.randn(loss.shape, generator=generator, dtype=torch.float64)
    some = torch.rand(loss.shape, generator=generator) < 0.4
    return {
        "ones": torch.ones_like(random_),
        "random": random_,
        "zeros": torch.zeros_like(random_),
        "some zeros": random_.masked_fill(some, 0),
        "large": 1024 * random_,
        "inf": random_.masked_fill(some, math.inf),
        "nan": random_.masked_fill(some, math.nan),
    }[trial.upstream].to(torch.float32)


@contextmanager
def instruction_set(isa: str) -> Iterator[None]:
    native = load("cpp")._native()
    best = native.isa()
    native.use_isa(isa)
    try:
        yield
    finally:
        native.use_isa(best)


def conditions(case: Case) -> float:
    """The largest perturbed logit: by so many units of rounding a probability changes."""
    with suppress(RuntimeError, ValueError):  # said by the trial itself
        largest = [1.0, _largest(case.input)]

        def seen(found: Any) -> Any:
            for z in found if isinstance(found, tuple) else (found,):
                largest.append(_largest(z.detach()))
            return found

        where, name = (sigmoid, "sides") if case.multilabel else (softmax, "perturb")
        original = getattr(where, name)
        with mock.patch.object(where, name, lambda problem: seen(original(problem))):
            testing.evaluate(replace(case, learn=()), REFERENCE)
        return max(largest)
    return 1.0


def stretches(trial: Trial, case: Case) -> Tensor:
    """(N, 1): how many times a norm lengthens a row's logits, and with them what p − t leaves of
    its gradient; 1 where it does not. A row near 0 is lengthened without end."""
    found = torch.ones(len(case.input), 1, dtype=torch.float64)
    if "norm" not in case.keywords:
        return found
    u = case.input.masked_fill(case.input == -math.inf, 0)
    norm = case.keywords["norm"].numbers()
    length = softmax.row_norm(u, norm.p, 1) + norm.offset
    found = torch.where(length > norm.limit, norm.gain / length, found).clamp(min=1)
    return found[:1].expand_as(found) if trial.layout == "expanded" else found


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 0.0


def distances(value: Tensor, truth: Tensor) -> Tensor:
    """Elementwise, relative to the number, to its row's and the batch's typical one."""
    value, truth = value.double(), truth.double()
    same = (value == truth) | (value.isnan() & truth.isnan())
    typical = torch.where(truth.isfinite(), truth.abs(), 0.0)
    scale = typical + typical.mean(-1, keepdim=truth.dim() > 0) + typical.mean()
    scale = scale + torch.finfo(torch.float32).tiny
    distance = (value - truth).abs()
    same |= distance < torch.finfo(torch.float32).tiny  # what a float does not hold
    return torch.where(same, 0.0, distance / scale).nan_to_num(nan=math.inf)


LOST = 1e-2  # from where plain PyTorch has nothing to say


def compare(
    trial: Trial, name: str, found: Tensor, eager: Tensor, truth: Tensor, condition: float
) -> str | None:
    """What is wrong, or None."""
    # which of inf and nan stands where there is no number test_not_finite.py asks
    lost = ~truth.isfinite()
    if "penalty" in trial.case.keywords:  # how infinite distances add up is nobody's promise
        if name != "loss" and not trial.lost.isfinite().all():
            return None
    else:
        lost &= ~found.isfinite()
    found = torch.where(lost, truth.to(found.dtype), found)
    if found.shape != truth.shape:
        return f"{name} of shape {tuple(found.shape)} instead of {tuple(truth.shape)}"
    if not found.numel():
        return None
    off = distances(found, truth)
    if trial.dtype == torch.float64:
        allowed = torch.full_like(off, 1e-9 * max(1.0, condition / 10))
    else:
        plain = distances(eager, truth)
        if name == "loss" or name == "input":  # a row that is lost says nothing
            rows = plain.reshape(len(plain), -1) if plain.dim() else plain[None, None]
            lost = (rows > LOST).any(1)
            off = off.reshape(rows.shape)
            off[lost] = 0
            plain = rows.clone()
            plain[lost] = 0
        elif bool((plain > LOST).any()):
            return None
        eps = max(EPS, 2 * torch.finfo(found.dtype).eps if found.dtype.itemsize == 2 else 0)
        allowed = torch.full_like(off, 4 * float(plain.max()) + eps + EPS * (32 + 4 * condition))
    # p − t may cancel to nothing but the rounding of what is taken from each other
    if name != "loss":
        unit = 1e-12 if trial.dtype == torch.float64 else 8 * EPS
        largest = trial.factors[trial.factors.isfinite()].abs()
        size: Any = unit * float(largest.max()) if largest.numel() else 0
        if name == "input":
            size = size * trial.stretch
        if name.startswith("delta"):
            steps = trial.case.steps
            assert steps is not None
            size = unit * trial.case.keywords["step_size"] * float(steps.abs().max())
        if name == "scale":  # times a logit
            size *= condition
        off = torch.where((found.double() - truth).abs().reshape(off.shape) <= size, 0.0, off)
    elif trial.dtype == torch.float64:  # as float64 does where a loss is as good as 0
        off = torch.where((found - truth).abs().reshape(off.shape) <= 1e-15, 0.0, off)
    bad = off > allowed
    if not bool(bad.any()):
        return None
    worst = int((off / allowed).argmax())
    got, expected = found.flatten()[worst].item(), truth.flatten()[worst].item()
    return (
        f"{name}[{worst}] is {got!r} instead of {expected!r}, {float(off.flatten()[worst]):.1e} off,"
        f" plain PyTorch {eager.flatten()[worst].item()!r}; {int(bad.sum())} of {bad.numel()}"
    )


def poisoned() -> Poison | None:
    """What backends allocate from now on shows what they have left unwritten."""
    if os.environ.get("LPL_FUSED_POISON") == "0":
        return None
    memory = Poison()
    for module in modules():
        module.torch = memory
    return memory


def check(trial: Trial, backends: tuple[str, ...]) -> dict[str, str]:
    """By backend what is wrong with it."""
    dtype = trial.dtype
    exact = trial.case.rounded(dtype)
    narrow = exact.to(dtype if dtype == torch.float64 else torch.float32)
    narrow = replace(narrow, input=narrow.input.to(dtype))
    truth = run(trial, exact, REFERENCE, None)
    factors = trial.factors = factors_of(trial, truth.loss)
    truth = run(trial, exact, REFERENCE, factors)
    trial.lost, trial.stretch = truth.loss, stretches(trial, exact)
    with mock.patch.object(softmax, "target_cross_entropy", testing._by_log_softmax):
        eager = run(trial, narrow, REFERENCE, factors)
    condition = conditions(exact)
    wrong: dict[str, str] = {}
    for backend in backends:
        if backend == "cuda" and condition > 1e9 and dtype != torch.float64:
            continue  # not yet promised (docs/reliability.md)
        try:
            if backend == "cpp":
                with instruction_set(trial.isa):
                    found = run(trial, narrow, backend, factors)
            else:
                found = run(trial, narrow, backend, factors)
        except Exception as error:
            wrong[backend] = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
            continue
        problems = [compare(trial, "loss", found.loss, eager.loss, truth.loss, condition)]
        ignored = _ignored(trial.case)
        if ignored is not None and backend not in ("triton", "cuda"):
            own = found.grads["input"][ignored]
            if bool((own != 0).any()):
                problems.append("an ignored row has a gradient")
        if trial.upstream not in ("inf", "nan"):
            for name, grad in truth.grads.items():
                got = found.grads[name]
                problems.append(compare(trial, name, got, eager.grads[name], grad, condition))
        if trial.case.steps is not None and trial.hidden is None and exact.input.shape[1] > 1:
            problems += compare_perturbations(trial, exact, narrow, backend, condition)
        said = [problem for problem in problems if problem]
        if said:
            wrong[backend] = "; ".join(said)
    return wrong


def perturbation_of(trial: Trial, case: Case, backend: str) -> tuple[Tensor, ...]:
    """What `lpl_perturbation` or `lpl_binary_perturbation` says of a case with steps."""
    asked = ("step_size", "normalize", "perturbation", "ignore_index")
    asked += () if case.multilabel else ("softcap", "norm")
    keywords = {name: case.keywords[name] for name in asked if name in case.keywords}
    values = case.input
    if trial.layout == "expanded" and len(values):
        values = values[:1].expand_as(values)
    find = functional.lpl_binary_perturbation if case.multilabel else functional.lpl_perturbation
    assert case.steps is not None
    found = find(values, case.target, case.steps, backend=backend, **keywords)
    return found if isinstance(found, tuple) else (found,)


def compare_perturbations(
    trial: Trial, exact: Case, narrow: Case, backend: str, condition: float
) -> list[str | None]:
    truth = perturbation_of(trial, exact, REFERENCE)
    eager = perturbation_of(trial, narrow, REFERENCE)
    found = perturbation_of(trial, narrow, backend)
    return [
        compare(trial, f"delta{k}", f.double(), e.double(), t.double(), condition)
        for k, (f, e, t) in enumerate(zip(found, eager, truth, strict=True))
    ]


def _ignored(case: Case) -> Tensor | None:
    """The rows that count nothing."""
    if case.multilabel or "penalty" in case.keywords:
        return None
    if isinstance(case.target, MixedTarget):
        return (case.target[0] == -100) & (case.target[1] == -100)
    return None if case.target.is_floating_point() else case.target == -100


def available() -> list[str]:
    return [name for name, state in lpl_fused.backends().items() if state == "available"]


def backends_of(number: int, there: list[str]) -> tuple[str, ...]:
    """C++ takes every case; what is slow every so many."""
    every = {"cpp": 1, "auto": 4, "cuda": 10, "triton": 100}
    return tuple(name for name in every if name in ("auto", *there) and number % every[name] == 0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--kind", help="those alone that are called so: asymmetric, two labels")
    parser.add_argument("--backends", nargs="+", help="these alone, each for every case")
    parser.add_argument("--report", type=Path, help="a file for the counts and the failures")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and "cuda" in (options.backends or ["cuda"]):
        import cuda_on_host

        with suppress(ImportError, OSError):
            cuda_on_host.install()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    there = available()
    numbers: Any = range(options.first, options.first + options.count)
    if options.case is not None:
        numbers = [options.case]
    counts: collections.Counter[str] = collections.Counter()
    failures: list[dict[str, Any]] = []
    began = time.monotonic()
    AT.parent.mkdir(exist_ok=True)
    at = os.open(AT, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    memory = poisoned()
    for number in numbers:
        os.pwrite(at, f"{number:12}".encode(), 0)
        chosen = tuple(options.backends or backends_of(number, there))
        slow = bool({"triton", "cuda"} & set(chosen)) or number % 10 == 0
        trial = draw(options.seed, number, small=slow)
        if options.kind is not None and options.kind not in trial.said.get("kind", ""):
            continue
        try:
            if memory is not None:
                memory.use(PATTERNS[number % len(PATTERNS)])
            wrong = check(trial, chosen)
            if memory is not None:
                memory.check()
        except Exception as error:
            wrong = {
                REFERENCE: f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
            }
        counts["cases"] += 1
        counts[trial.said["function"]] += 1
        counts[f"target {trial.said['target']}"] += 1
        if "kind" in trial.said:
            counts[trial.said["kind"]] += 1
        counts[str(trial.dtype)] += 1
        counts[f"layout {trial.layout}"] += 1
        counts[f"upstream {trial.upstream}"] += 1
        counts[f"gradient {trial.form}"] += 1
        for special in trial.said.get("special", ()):
            counts[f"special {special}"] += 1
        for keyword in trial.case.keywords:
            counts[f"with {keyword}"] += 1
        for name in chosen:
            counts[f"on {name}" + (f" {trial.isa}" if name == "cpp" else "")] += 1
        for name, what in wrong.items():
            failures.append({"case": number, "backend": name, "wrong": what, "trial": str(trial)})
            again = f'make fuzz ARGS="--seed {options.seed} --case {number}"'
            print(f"\n{again}\n  {name}: {what}\n  {trial}", flush=True)
    seconds = time.monotonic() - began
    print(
        f"{counts['cases']} cases of seed {options.seed}, {len(failures)} failures, {seconds:.0f} s"
    )
    if options.report:
        report = {
            "seed": options.seed,
            "first": options.first,
            "version": lpl_fused.__version__,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "sanitizers": "address, undefined"
            if "asan" in os.environ.get("LD_PRELOAD", "")
            else None,
            "seconds": round(seconds),
            "counts": dict(sorted(counts.items())),
            "failures": failures,
        }
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
