"""Digits: never fewer than plain PyTorch keeps in the same dtype, at rows that are certain of their label, of
another or of none, and in sums over many equal terms, whose roundings agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import NORMS, PHIS, Draw
from seam import Run, by_parts, cut
from torch import Tensor

from lpl_fused import GCE, Alpha, Focal, MixedTarget, Perturbation, Poly1, testing
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE
from lpl_fused.testing import Case

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# nats by which a label stands above the others: p from 1 − e^−80 to e^−300
GAPS = (5.0, 10.0, 17.0, 25.0, 40.0, 80.0, -10.0, -40.0, -100.0, -300.0)
SLOW = "triton", "cuda"
EPS = torch.finfo(torch.float32).eps
ROWS, CLASSES = 48, 19
LARGE = pytest.param(10**8, marks=pytest.mark.large)
MORE = PHIS | {
    "log": "log",
    "alpha10": Alpha(10.0),
    "gce0.01": GCE(0.01),
    "focal0.1": Focal(0.1),
    "focal5": Focal(5.0),
    "poly-1": Poly1(-1.0),
}


def raised(d: Draw, label: Tensor, gap: float) -> Tensor:
    input = d.normal(d.n, d.classes)
    return input.scatter(1, label[:, None], gap + input.gather(1, label[:, None]).clamp(-1, 1))


def one_hot(label: Tensor, d: Draw, share: float) -> Tensor:
    rest = (1 - share) / max(1, d.classes - 1)
    return torch.full((d.n, d.classes), rest).double().scatter(1, label[:, None], share)


def other(label: Tensor, d: Draw) -> Tensor:
    return (label + 1 + torch.arange(d.n) % (d.classes - 1)) % d.classes


FORMS: dict[str, Callable[[Draw, float], Case]] = {
    "hard": lambda d, gap: Case(raised(d, y := d.labels(), gap), y),
    "first": lambda d, gap: Case(
        raised(d, y := d.labels(), gap), MixedTarget(y, other(y, d), d.uniform(d.n))
    ),
    "second": lambda d, gap: Case(
        raised(d, y := d.labels(), gap), MixedTarget(other(y, d), y, d.uniform(d.n))
    ),
    "second alone": lambda d, gap: Case(
        raised(d, y := d.labels(), gap), MixedTarget(other(y, d), y, torch.zeros(d.n).double())
    ),
    "second, turned": lambda d, gap: Case(
        -raised(d, y := d.labels(), gap),
        MixedTarget(other(y, d), y, torch.zeros(d.n).double()),
        {"perturbation": Perturbation(scale=torch.full((d.classes,), -1.0).double())},
    ),
    "two alike": lambda d, gap: Case(
        raised(d, y := d.labels(), gap), MixedTarget(y, y.clone(), d.uniform(d.n))
    ),
    "two, one ignored": lambda d, gap: Case(
        raised(d, y := d.labels(), gap), MixedTarget(torch.full_like(y, -100), y, d.uniform(d.n))
    ),
    "smoothed": lambda d, gap: Case(raised(d, y := d.labels(), gap), y, {"label_smoothing": 0.1}),
    "dense": lambda d, gap: Case(raised(d, y := d.labels(), gap), one_hot(y, d, 1.0)),
    "dense, spread": lambda d, gap: Case(raised(d, y := d.labels(), gap), one_hot(y, d, 0.9)),
}


def soft(case: Case) -> bool:
    spread = isinstance(case.target, Tensor) and case.target.is_floating_point()
    return spread or "label_smoothing" in case.keywords


def check(case: Case, backend: str, dtype: str, run: Run = testing.evaluate) -> None:
    case.keywords["reduction"] = "none"
    if not soft(case):
        testing.assert_within_budget(case, backend, DTYPES[dtype], run=run)
    elif dtype != "float64":  # the truth has no more digits there than what is judged
        spread_within_budget(case, backend, DTYPES[dtype])


def spread_within_budget(case: Case, backend: str, dtype: torch.dtype) -> None:
    """p − t cancels to what rounding left of it, in plain PyTorch, too: on the whole no more."""
    exact = case.rounded(dtype)
    narrow = exact.to(torch.float32)
    narrow.input = narrow.input.to(dtype)
    truth, eager = testing.evaluate(exact, REFERENCE), testing.evaluate(narrow, REFERENCE)
    found = testing.evaluate(narrow, backend)

    def size(values: Tensor) -> float:
        return float(values.double().square().mean().sqrt())

    for got, plain, right in (
        (found.loss, eager.loss, truth.loss),
        (found.grads["input"], eager.grads["input"], truth.grads["input"]),
    ):
        unit = max(torch.finfo(got.dtype).eps * size(right), 4 * EPS * (1 + size(right)))
        assert size(got - right) <= max(2 * size(plain - right), unit)


@pytest.mark.parametrize("phi", MORE)
@pytest.mark.parametrize("form", FORMS)
def test_of_every_phi(backend: str, form: str, phi: str) -> None:
    gaps, dtypes = (GAPS, list(DTYPES))
    if backend in SLOW:
        gaps, dtypes = (25.0, -100.0), ["float32"]
        if form not in ("hard", "second", "two alike") or phi not in (
            "log",
            "alpha-inf",
            "focal0.5",
            "alpha0.5",
        ):
            pytest.skip("the algebra's text is shared; test_backends.py has every φ")
    for gap in gaps:
        for dtype in dtypes:
            case = FORMS[form](Draw(ROWS, CLASSES, seed=7), gap)
            if phi != "log":
                case.keywords["phi"] = MORE[phi]
            check(case, backend, dtype)


@pytest.mark.parametrize("form", ["auto", "statistics"])
def test_a_class_with_all_of_the_mass_that_is_not_right(backend: str, form: str) -> None:
    """Where the target is spread, its ℓ is 0 or what rounding leaves of that, of which no root is
    taken."""
    d = Draw(*((8, 301) if backend in SLOW else (200, 1024)), seed=11)
    steps = torch.randint(-8, 9, (d.classes,), generator=d.generator).int()
    given = {"step_size": 1.0, "phi": Focal(0.5), "label_smoothing": 0.3, "reduction": "none"}
    input, target = d.input(20.0).float().requires_grad_(), d.labels()
    more = {} if backend == REFERENCE else {"gradient": form}
    found = LF.lpl_cross_entropy(input, target, steps, backend=backend, **given, **more)
    truth = LF.lpl_cross_entropy(input.double(), target, steps, backend=REFERENCE, **given)
    torch.testing.assert_close(found, truth.float(), rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(found.sum(), input)
    (right,) = torch.autograd.grad(truth.sum(), input)
    torch.testing.assert_close(grad, right, rtol=1e-4, atol=1e-5)


def by_statistics(case: Case, backend: str, upstream: Tensor) -> testing.Result:
    """The gradient from a row's numbers, as it is where memory is short."""
    if backend != REFERENCE:  # which has no other
        case = replace(case, keywords={**case.keywords, "gradient": "statistics"})
    return testing.evaluate(case, backend, upstream)


WAYS: dict[str, Run] = {
    "statistics": by_statistics,
    "parts": by_parts(lambda width: cut(width, 3)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("beside", ["nothing", "z-loss", "clip", "focal"])
@pytest.mark.parametrize("form", ["first", "second", "two alike", "two, one ignored"])
def test_a_gradient_made_of_numbers_of_a_row(
    backend: str, form: str, beside: str, way: str
) -> None:
    """Of two labels it has the digits of the difference, not those of what each of them pulls."""
    slow = backend in SLOW
    for gap in (25.0, -100.0) if slow else (5.0, 25.0, 80.0, -100.0):
        for dtype in ("float32", "float16") if slow else DTYPES:
            d = Draw(12 if slow else ROWS, CLASSES, seed=9)
            case = FORMS[form](d, gap)
            if beside == "focal":
                case.keywords["phi"] = Focal(2.0)
            elif beside != "nothing":
                case.keywords.update(BESIDE[beside](d))
            check(case, backend, dtype, WAYS[way])


BESIDE: dict[str, Callable[[Draw], dict[str, object]]] = {
    "z-loss": lambda d: {"z_loss": 1e-2},
    "softcap": lambda d: {"softcap": 30.0},
    "clip": lambda d: {"norm": NORMS["clip"](d.classes)},
    "clip-p3": lambda d: {"norm": NORMS["clip-p3"](d.classes)},
    "logit-norm": lambda d: {"norm": NORMS["logit-norm"](d.classes)},
    "penalty": lambda d: {"penalty": d.penalty("phr")},
    "temperature": lambda d: {"perturbation": Perturbation(temperature=1 / 30)},
    "offset": lambda d: {"perturbation": Perturbation(offset=d.normal(d.classes))},
    "weight": lambda d: {"weight": d.uniform(d.classes), "sample_weight": None},
}


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("form", ["hard", "first", "second", "smoothed", "dense"])
def test_beside_everything_else(backend: str, form: str, beside: str) -> None:
    if backend in SLOW:
        pytest.skip("test_backends.py has them all")
    for gap in GAPS:
        for dtype in DTYPES:
            d = Draw(ROWS, CLASSES, seed=8)
            case = FORMS[form](d, gap)
            case.keywords.update(BESIDE[beside](d))
            check(case, backend, dtype)


# many equal terms, which expanded rows bring without memory of their own
@pytest.mark.parametrize("terms", [300_000, LARGE])
@pytest.mark.parametrize("value", [0.1, -1.7, 3.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_over_many_equal_labels(isa: str, reduction: str, value: float, terms: int) -> None:
    """In blocks of one row and of several, by the bare kernel and by that which has tables."""
    for classes, given in ((1000, {}), (7, {}), (1000, {"pos_weight": True})):
        rows = terms // classes
        input = torch.full((1, classes), value).expand(rows, classes)
        target = torch.zeros(1, classes).expand(rows, classes)
        if given:
            given = {"neg_weight": torch.full((classes,), 0.75)}
        found = LF.binary_cross_entropy_with_logits(
            input, target, reduction=reduction, backend="cpp", **given
        )
        one = math.log1p(math.exp(torch.tensor(value).double())) * (0.75 if given else 1)
        whole = one if reduction == "mean" else one * input.numel()
        assert abs(float(found) / whole - 1) < 5 * EPS, (
            f"{classes} classes: {float(found) / whole - 1}"
        )


@pytest.mark.parametrize("rows", [10**7, LARGE])
def test_sums_over_many_equal_rows(isa: str, rows: int) -> None:
    """Losses, and rows that give a table their gradients."""
    row = torch.tensor([[0.3, -1.1, 0.2, 0.9]])
    target = torch.zeros(1, dtype=torch.int64).expand(rows)
    exact = float(F.cross_entropy(row.double(), target[:1]))
    for reduction, whole in (("mean", exact), ("sum", exact * len(target))):
        found = LF.cross_entropy(
            row.expand(len(target), 4), target, reduction=reduction, backend="cpp"
        )
        assert abs(float(found) / whole - 1) < 2 * EPS
    few = target[: rows // 10]
    offset = torch.zeros(4, requires_grad=True)
    loss = LF.cross_entropy(
        row.expand(len(few), 4), few, perturbation=Perturbation(offset=offset), backend="cpp"
    )
    (gradient,) = torch.autograd.grad(loss, offset)
    p = torch.softmax(row.double(), 1)[0] - torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(gradient.double(), p, rtol=16 * EPS, atol=0)


def test_sums_are_no_worse_than_plain_pytorch(backend: str) -> None:
    n = 40 if backend == "triton" else 400
    input, target = torch.full((n, 700), 3.3), torch.zeros(n, 700)
    exact = math.log1p(math.exp(torch.tensor(3.3).double()))
    plain = abs(float(F.binary_cross_entropy_with_logits(input, target)) / exact - 1)
    found = float(LF.binary_cross_entropy_with_logits(input, target, backend=backend))
    assert abs(found / exact - 1) <= max(2 * plain, 9 * EPS)


def equal_classes(d: Draw, value: float) -> Tensor:
    return torch.full((d.n, d.classes), -value).double().index_fill(1, torch.tensor([1]), 0.0)


EVEN: dict[str, Callable[[Draw, float], Case]] = {
    "hard": lambda d, v: Case(equal_classes(d, v), d.labels()),
    "mixed": lambda d, v: Case(equal_classes(d, v), d.mixed()),
    "smoothed": lambda d, v: Case(equal_classes(d, v), d.labels(), {"label_smoothing": 0.1}),
    "smoothed focal": lambda d, v: Case(
        equal_classes(d, v), d.labels(), {"label_smoothing": 0.1, "phi": Focal(2.0)}
    ),
    "dense": lambda d, v: Case(equal_classes(d, v), torch.ones(d.n, d.classes).double() / 2048),
    "clip": lambda d, v: Case(equal_classes(d, v), d.labels(), {"norm": NORMS["clip"](d.classes)}),
}


@pytest.mark.parametrize("form", EVEN)
def test_sums_over_many_equal_classes(backend: str, form: str) -> None:
    for classes in (1000, 4097):
        for value in (0.3, 1.1, 2.7):
            case = EVEN[form](Draw(2, classes, seed=3), value)
            case.keywords["reduction"] = "none"
            testing.assert_within_budget(case, backend)


@pytest.mark.parametrize("classes", [3, 40, 3000])
def test_sums_that_no_float_holds(isa: str, classes: int) -> None:
    """Their mean is one that it does; so with labels of either kind, alone in a sum or not."""
    input = torch.zeros(3, classes)
    input[:, :2] = 3.0e38
    for target in (torch.zeros(3, classes), torch.eye(3, classes), torch.full((3, classes), 0.5)):
        found = LF.binary_cross_entropy_with_logits(input, target, backend="cpp")
        truth = F.binary_cross_entropy_with_logits(input.double(), target.double())
        torch.testing.assert_close(found, truth.float())


@pytest.mark.parametrize("value", [3.0e38, -3.0e38, 3.0e30, math.inf])
@pytest.mark.parametrize("phi", ["focal2", "focal0.5", "focal5", "poly1", "alpha2", "alpha-inf"])
def test_of_labels_near_the_largest_float(backend: str, phi: str, value: float) -> None:
    """A product with ℓ is not infinite where it vanishes."""
    input = torch.tensor([[value, 0.5, -0.5]] * 2, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    given = {"phi": MORE[phi], "reduction": "none"}
    found = LF.binary_cross_entropy_with_logits(input, target, backend=backend, **given)
    exact = input.detach().double().requires_grad_()
    truth = LF.binary_cross_entropy_with_logits(exact, target.double(), backend=REFERENCE, **given)
    for upstream in (torch.ones(2, 3), torch.full((2, 3), 0.3)):
        got = torch.autograd.grad(found, input, upstream, retain_graph=True)[0]
        right = torch.autograd.grad(truth, exact, upstream.double(), retain_graph=True)[0]
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-30)
    torch.testing.assert_close(found, truth.float(), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("name", ["clip-p3", "clip-p1.5", "clip", "logit-norm"])
def test_minus_zero_is_zero_to_a_norm(backend: str, name: str) -> None:
    """|−0| has no sign that a power would take for an exponent; beside −inf every p is a power."""
    input = torch.tensor([[-0.0, 1.0, -1.0, -math.inf, -0.0, 3.0]])
    norm = NORMS[name](1)

    def solved(values: Tensor, where: str) -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        loss = LF.cross_entropy(leaf, torch.tensor([1]), norm=norm, backend=where)
        return [loss.detach(), *torch.autograd.grad(loss, leaf)]

    for got, right in zip(solved(input, backend), solved(input.double(), REFERENCE), strict=True):
        torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-7)


def test_a_row_as_good_as_0_has_no_direction(backend: str) -> None:
    """1/‖u‖ of subnormal logits is no float."""
    input = torch.tensor([[1e-40, -2e-40, 0.0], [1.0, 2.0, 3.0]])
    for name in ("logit-norm", "clip-official", "clip"):
        leaf = input.clone().requires_grad_()
        loss = LF.cross_entropy(
            leaf, torch.tensor([0, 1]), norm=NORMS[name](3), reduction="none", backend=backend
        )
        for upstream in (torch.ones(2), torch.tensor([0.0, 1.0])):
            assert torch.autograd.grad(loss, leaf, upstream, retain_graph=True)[0].isfinite().all()


# classes of one row and of several, steps that are few, many, too many for what sums them up
TWICE = Perturbation(scale=torch.ones(41).double(), temperature=0.5)
# rows, steps at most, classes that have rows, what else is asked for
STEPPED: dict[str, tuple[int, int, int, dict[str, object]]] = {
    "few": (24, 3, 6, {"step_size": 0.1}),
    "many": (24, 30, 6, {"step_size": 0.1}),
    "far": (24, 25, 6, {"step_size": 2.0}),
    "alone": (24, 10, 24, {"step_size": 0.5}),
    "alone, far": (24, 25, 24, {"step_size": 4.0}),
    "one class": (50, 2, 1, {"step_size": 0.7}),
    "normalized": (24, 4, 6, {"step_size": 0.3, "normalize": True}),
    "z-loss": (24, 3, 6, {"step_size": 0.5, "z_loss": 1e-9}),
    "tables": (24, 3, 12, {"step_size": 0.5, "perturbation": TWICE}),
    "smoothed": (24, 3, 12, {"step_size": 0.5, "label_smoothing": 0.1}),
    "smoothed, tables": (
        24,
        3,
        6,
        {"step_size": 0.7, "label_smoothing": 0.1, "perturbation": TWICE},
    ),
    "smoothed, φ": (24, 9, 24, {"step_size": 0.4, "label_smoothing": 0.2, "phi": Focal(2.0)}),
    "smoothed, one class": (50, 2, 1, {"step_size": 0.7, "label_smoothing": 0.1}),
    "smoothed, z-loss": (24, 3, 6, {"step_size": 0.5, "label_smoothing": 0.1, "z_loss": 1e-9}),
}
STEPPED_DTYPES = [
    *((kind, "float32") for kind in STEPPED),
    *(
        (kind, dtype)
        for kind in ("few", "alone", "smoothed")
        for dtype in DTYPES
        if dtype != "float32"
    ),
]


@pytest.mark.parametrize(("steps", "dtype"), STEPPED_DTYPES)
def test_a_learned_perturbation_beside_logits_far_from_0(
    backend: str, steps: str, dtype: str
) -> None:
    """Where z + δ were rounded as z is a thousandth would be lost at 1e4. Every row of a class has
    another offset, which its softmax does not know of."""
    rows, most, labels, keywords = STEPPED[steps]
    draw = Draw(rows, 41, seed=22)
    offset = torch.tensor([1e4, -1e4, 100.0, -100.0, 0.0]).double()[torch.arange(rows) % 5, None]
    input = (draw.input() + offset).to(DTYPES[dtype] if dtype != "float64" else torch.float32)
    signed = torch.arange(41) % (2 * most + 1) - most
    signed[0] = most
    case = Case(
        input.double(), torch.arange(rows) % labels, {"reduction": "sum", **keywords}, signed
    )
    centred = case if "z_loss" in keywords else replace(case, input=case.input - offset)
    truth = testing.evaluate(centred, REFERENCE)
    narrow = case.to(torch.float64 if dtype == "float64" else torch.float32)
    found = testing.evaluate(replace(narrow, input=input.to(DTYPES[dtype])), backend)
    unit = 1e-12 if dtype == "float64" else 1e-6
    rounded = torch.finfo(DTYPES[dtype]).eps if dtype in ("bfloat16", "float16") else 0
    assert (found.loss.double() - truth.loss).abs() <= unit * truth.loss.abs()
    gradient = truth.grads["input"]
    off = (found.grads["input"].double() - gradient).abs().max()
    assert off <= (3 * unit + rounded) * gradient.abs().max()
