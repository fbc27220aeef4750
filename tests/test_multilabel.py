"""The multi-label functions as their users meet them: torch's equal, hard numbers, bad input, ops."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from multilabel_cases import binary_cases, binary_lpl_cases, hard, missing, soft
from torch import Tensor

from lpl_fused import BinaryPerturbation, Focal, Perturbation, RebalancedWeight
from lpl_fused import functional as LF
from lpl_fused.multilabel import MultiLabel, binary_options
from lpl_fused.ops import dispatch

pytestmark = pytest.mark.multilabel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

OPINFO = next(op for op in op_db if op.name == "nn.functional.binary_cross_entropy_with_logits")
CASES, LPL_CASES = binary_cases(), binary_lpl_cases()
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
bce = LF.binary_cross_entropy_with_logits
lpl_bce = LF.lpl_binary_cross_entropy_with_logits


def draw(n: int = 6, classes: int = 5, seed: int = 1) -> Draw:
    return Draw(n, classes, seed)


def close(found: Tensor, expected: object, tolerance: float = 2e-6) -> None:
    wanted = torch.as_tensor(expected, dtype=found.dtype)
    torch.testing.assert_close(found.detach(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_on_opinfo_samples(backend: str, dtype: torch.dtype) -> None:
    """PyTorch's own samples: value and gradients (of the labels too, the reference's)."""

    def widened(value: object, dtype: torch.dtype) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(dtype).requires_grad_(value.requires_grad)

    count = 0
    for sample in OPINFO.sample_inputs("cpu", dtype, requires_grad=True):
        for of_labels in (False, True):
            (target,), keywords = sample.args, sample.kwargs
            target = target.detach().requires_grad_(of_labels)
            chosen = "auto" if of_labels else backend
            found = bce(sample.input, target, backend=chosen, **keywords)
            leaves = [t for t in (sample.input, target) if t.requires_grad]
            upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)) + 2
            given = torch.autograd.grad(found, leaves, upstream.to(found.dtype))
            # in 16 bits torch itself rounds gradients away: it is asked in float32
            wide = dtype if dtype.itemsize > 2 else torch.float32
            exact = [widened(t, wide) for t in (sample.input, target)]
            keywords = {name: widened(value, wide) for name, value in keywords.items()}
            expected = F.binary_cross_entropy_with_logits(*exact, **keywords)
            wanted = torch.autograd.grad(
                expected, [t for t in exact if t.requires_grad], upstream.to(wide)
            )
            torch.testing.assert_close(found, expected)
            for one, other in zip(given, wanted, strict=True):
                torch.testing.assert_close(one, other.to(dtype))
            count += 1
    assert count >= 50


@pytest.mark.parametrize("weights", ["(C,)", "(N, 1)", "(N, C)", "(2, 1, C)", "learned"])
@pytest.mark.parametrize("which", ["weight", "pos_weight"])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_weights_broadcast_as_in_torch(
    backend: str, which: str, weights: str, reduction: str
) -> None:
    d = draw(6, 4)
    shapes = {"(C,)": (4,), "(N, 1)": (2, 3, 1), "(N, C)": (2, 3, 4), "(2, 1, C)": (2, 1, 4)}
    input = d.normal(2, 3, 4).requires_grad_()
    target = soft(d).reshape(2, 3, 4)
    weight = d.uniform(*shapes.get(weights, (4,))).requires_grad_(weights == "learned")
    keywords = {which: weight, "reduction": reduction}
    found = bce(input, target, backend=backend, **keywords)
    # torch's own function differentiates no weights
    side = weight if which == "pos_weight" else 1.0
    losses = side * target * F.softplus(-input) + (1 - target) * F.softplus(input)
    losses = losses * (weight if which == "weight" else 1.0)
    expected = {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]
    if weights != "learned":
        torch.testing.assert_close(
            expected, F.binary_cross_entropy_with_logits(input, target, **keywords)
        )
    torch.testing.assert_close(found, expected)
    leaves = [input, weight] if weights == "learned" else [input]
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


LABEL_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]


@pytest.mark.parametrize("label_dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_dtype_of_labels(backend: str, dtype: torch.dtype, label_dtype: torch.dtype) -> None:
    d = draw(4, 37)
    input, y = d.input().to(dtype).requires_grad_(), hard(d)
    found = bce(input, y.to(label_dtype), backend=backend)
    expected = bce(input, y.to(input.dtype), backend="reference")
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(loss, input)[0] for loss in (found, expected))
    torch.testing.assert_close(one, other)


def test_missing_labels_are_as_if_they_were_not_there(backend: str) -> None:
    d = draw(8, 6)
    input, y = d.input(), missing(d)
    garbage = input.masked_fill(y == -1, torch.nan).requires_grad_()
    known = y != -1
    loss = bce(garbage, y, ignore_index=-1, backend=backend)
    close(loss, F.binary_cross_entropy_with_logits(input[known], y[known]), 1e-12)
    (grad,) = torch.autograd.grad(loss, garbage)
    assert grad[~known].count_nonzero() == 0
    assert grad[known].isfinite().all()
    none = bce(garbage, y.masked_fill(y == -1, math.nan), ignore_index=-5, reduction="none",
               backend=backend)  # fmt: skip
    assert none[~known].count_nonzero() == 0
    assert bce(input, torch.full_like(y, -1), ignore_index=-1, backend=backend).isnan()
    # without a marker nothing is missing, and a nan is seen
    assert bce(input, y.masked_fill(y == -1, math.nan), backend=backend).isnan()
    steps = torch.full((6,), 4)
    delta = LF.lpl_binary_perturbation(
        garbage, y, steps, step_size=0.3, ignore_index=-1, backend=backend
    )
    for k in range(6):
        rows = known[:, k]
        if rows.any():
            alone = LF.lpl_binary_perturbation(
                input[rows, k : k + 1], y[rows, k : k + 1], steps[:1], step_size=0.3
            )
            for one, other in zip(delta, alone, strict=True):
                close(one[k], other[0], 1e-12)
        else:
            assert delta[0][k] == delta[1][k] == 0


def test_lpl_numbers(backend: str) -> None:
    """METHODS 1.8: u = 0.5, K = 3, α = 0.1."""
    u = torch.tensor([[0.5]], dtype=torch.float64)
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    for sign, expected in ((3, 0.598139), (-3, 0.371101)):
        loss = lpl_bce(u, one, torch.tensor([sign]), step_size=0.1, normalize=True, backend=backend)
        close(loss, expected)
        delta = LF.lpl_binary_perturbation(
            u, one, torch.tensor([sign]), step_size=0.1, normalize=True, backend=backend
        )
        close(delta[0], [-0.1 * sign])
    plain = LF.lpl_binary_perturbation(u, one, torch.tensor([3]), step_size=0.1, backend=backend)
    close(plain[0], [-0.115965])
    close(plain[1], [0.0])
    # negatives of −u mirror positives of u
    mirror = LF.lpl_binary_perturbation(-u, zero, torch.tensor([3]), step_size=0.1, backend=backend)
    close(mirror[1], [0.115965])


@pytest.mark.parametrize("normalize", [False, True])
def test_delta_is_what_the_loss_used(backend: str, normalize: bool) -> None:
    d = draw(12, 7)
    input, y, steps = d.input(), missing(d), d.steps()
    keywords = {"step_size": 0.4, "normalize": normalize, "ignore_index": -1, "backend": backend}
    tables = BinaryPerturbation(Perturbation(scale=d.uniform(7)), Perturbation(offset=d.normal(7)))
    found = lpl_bce(input, y, steps, perturbation=tables, **keywords)
    positive, negative = LF.lpl_binary_perturbation(
        input, y, steps, perturbation=tables, **keywords
    )
    moved = tables.then(
        BinaryPerturbation(Perturbation(offset=positive), Perturbation(offset=negative))
    )
    close(bce(input, y, perturbation=moved, ignore_index=-1), found, 1e-12)
    assert (positive * steps <= 0).all()
    assert (negative * steps >= 0).all()


def test_raising_raises_and_lowering_lowers(backend: str) -> None:
    d = draw(16, 6)
    input, y = d.input(), hard(d)
    before = bce(input, y, reduction="none")
    for sign in (1, -1):
        steps = torch.full((6,), 5 * sign)
        after = lpl_bce(input, y, steps, step_size=0.2, reduction="none", backend=backend)
        assert ((after - before) * sign > 0).all()


def test_margin_is_taken_from_positives() -> None:
    d = draw()
    input, y, margin = d.input(), hard(d), d.uniform(5)
    found = bce(input, y, perturbation=Perturbation(margin=margin))
    close(found, F.binary_cross_entropy_with_logits(input - margin * y, y), 1e-12)


def test_rebalanced_weights_are_those_of_the_equation(backend: str) -> None:
    d = draw(6, 5)
    input, y, v = d.input(), hard(d), 1 / (1 + 100 * d.uniform(5))
    ratio = v / (y @ v)[:, None]
    weight = 0.3 + torch.sigmoid(5 * (ratio - 0.4))
    expected = F.binary_cross_entropy_with_logits(input, y, weight)
    close(bce(input, y, rebalance=RebalancedWeight(v, 0.3, 5.0, 0.4), backend=backend), expected)


@pytest.mark.parametrize("shape", [(), (5,), (3, 5), (2, 3, 5), (0, 5), (3, 0)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_shapes(backend: str, shape: tuple[int, ...], reduction: str) -> None:
    input = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    target = (input > 0.3).double()
    found = bce(input, target, reduction=reduction, backend=backend)
    expected = F.binary_cross_entropy_with_logits(input, target, reduction=reduction)
    torch.testing.assert_close(found, expected, equal_nan=True)
    upstream = torch.full_like(found, 1.5)
    one, other = (torch.autograd.grad(loss, input, upstream)[0] for loss in (found, expected))
    torch.testing.assert_close(one, other)


def test_logits_are_never_written(backend: str) -> None:
    d = draw(6, 9)
    base = d.input().requires_grad_()
    probabilities = torch.sigmoid(base)
    before, version = probabilities.detach().clone(), probabilities._version
    bce(probabilities, hard(d), backend=backend).backward()
    assert torch.equal(probabilities.detach(), before)
    assert probabilities._version == version


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_backward_twice(backend: str, reduction: str, dtype: torch.dtype) -> None:
    d = draw()
    input, y = d.input().to(dtype).requires_grad_(), hard(d)
    loss = bce(input, y, reduction=reduction, backend=backend)
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        upstream = torch.randn_like(loss)
        (found,) = torch.autograd.grad(loss, input, upstream, retain_graph=True)
        again = bce(input, y, reduction=reduction, backend="reference")
        torch.testing.assert_close(found, torch.autograd.grad(again, input, upstream)[0])


@pytest.mark.parametrize("name", ["hard", "soft", "missing-everything", "soft-alpha2-split"])
def test_gradcheck(backend: str, name: str) -> None:
    case = CASES[name](Draw(3, 4, seed=6))
    assert torch.autograd.gradcheck(
        lambda input: bce(input, case.target, backend=backend, **case.keywords),
        case.input.requires_grad_(),
    )


def test_tables_that_learn_take_the_reference() -> None:
    d = draw()
    input, y = d.input(), hard(d)
    scale = d.uniform(5).requires_grad_()

    def loss(scale: Tensor, temperature: Tensor, **keywords: object) -> Tensor:
        tables = BinaryPerturbation(Perturbation(scale=scale, temperature=temperature))
        return bce(input, y, perturbation=tables, **keywords)

    cold = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (scale, cold))
    with pytest.raises(RuntimeError, match="positive_scale requires grad"):
        loss(scale, cold, backend="cpp")


@pytest.mark.parametrize(
    "name", ["hard", "missing-everything", "lpl-hard", "lpl-missing-everything"]
)
def test_opcheck(backend: str, name: str) -> None:
    if backend == "reference":
        pytest.skip("the reference is plain PyTorch, not an operator")
    case = {**CASES, **{f"lpl-{k}": v for k, v in LPL_CASES.items()}}[name](Draw(4, 5, seed=5))
    keywords = dict(case.keywords)
    rebalance = keywords.get("rebalance")
    options = binary_options(
        "mean", keywords.get("phi", "log"), keywords.get("ignore_index"), rebalance
    )._replace(step_size=keywords.get("step_size", 0.0))
    problem = MultiLabel(case.input, case.target).problem(
        options, keywords.get("perturbation"), rebalance, case.steps
    )
    packed = dispatch.packed(problem, backend)
    operators = torch.ops.lpl_fused
    for want_grad in (False, True):
        torch.library.opcheck(operators.binary_cross_entropy.default, (*packed, want_grad))
    for upstream in (torch.ones(4, 5).double(), torch.tensor(0.3).double()):
        torch.library.opcheck(operators.binary_cross_entropy_gradient.default, (*packed, upstream))
    if case.steps is not None:
        torch.library.opcheck(operators.binary_perturbation.default, packed)


def test_double_backward(backend: str) -> None:
    d = draw()
    input, y = d.input().requires_grad_(), soft(d)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(lambda u: bce(u, y, backend="reference"), input)
        return
    (grad,) = torch.autograd.grad(bce(input, y, backend=backend), input, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.square().sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_fullgraph(backend: str, reduction: str) -> None:
    if backend == "reference":
        pytest.skip("its loop over the steps depends on data")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True)
    def step(input, target, steps, inverse):  # type: ignore[no-untyped-def]
        keywords = {"reduction": reduction, "backend": backend}
        plain = bce(input * 2, target, rebalance=RebalancedWeight(inverse), **keywords)
        learned = lpl_bce(input, target, steps, step_size=0.1, phi=Focal(2.0), **keywords)
        return (plain * 3).mean() + learned.mean()

    for n, classes in ((4, 6), (7, 11)):
        d = Draw(n, classes, seed=n)
        arguments = hard(d).float(), d.steps(), d.uniform(classes).float()
        leaf = d.input().float().requires_grad_()
        found = step(leaf, *arguments)
        expected = step._torchdynamo_orig_callable(leaf, *arguments)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, leaf)[0] for loss in (found, expected))
        )


def test_autocast_inference_mode(backend: str) -> None:
    d = draw(6, 9)
    input, y = d.input().bfloat16().requires_grad_(), hard(d).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bce(input, y, backend=backend)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss, input)[0].dtype == torch.bfloat16
    with torch.inference_mode():
        loss = lpl_bce(input, y, d.steps(), step_size=0.1, backend=backend)
    assert not loss.requires_grad
    assert loss.isfinite()


def test_float16_gradients_survive_a_loss_scaler(backend: str) -> None:
    input = torch.full((8, 64), -14.0).half().requires_grad_()
    loss = bce(input, torch.zeros(8, 64), backend=backend) * 65536.0
    (grad,) = torch.autograd.grad(loss, input)
    exact = input.detach().double().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(exact, torch.zeros(8, 64).double()) * 65536.0
    (wanted,) = torch.autograd.grad(expected, exact)
    assert (wanted / 65536 < 3e-8).all()
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-3, atol=1e-7)


U, Y = torch.zeros(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "target: expected a tensor, got list", {"target": [1]}),
        (TypeError, "input: expected float64.*got torch.int64", {"input": Y.long()}),
        (TypeError, "target: expected a real", {"target": Y.cfloat()}),
        (ValueError, r"target: expected shape \(2, 3\).*\(3,\)", {"target": Y[0]}),
        (ValueError, 'reduction: expected "none"', {"reduction": "max"}),
        (ValueError, r"pos_weight: expected a shape.*\(2, 3\), got \(4,\)", {"pos_weight": torch.ones(4)}),
        (TypeError, "weight: expected a tensor, got float", {"weight": 1.0}),
        (TypeError, "ignore_index: expected a number", {"ignore_index": "x"}),
        (TypeError, "perturbation: expected a Perturbation or", {"perturbation": 3}),
        (TypeError, "positive: expected a Perturbation", {"perturbation": BinaryPerturbation(3)}),
        (ValueError, "margin: given within positive", {"perturbation": BinaryPerturbation(Perturbation(margin=torch.ones(3)))}),
        (ValueError, "rows: a multi-label", {"perturbation": Perturbation(rows=torch.ones(3, 3))}),
        (ValueError, r"scale: expected shape \(3,\).*\(2,\)", {"perturbation": Perturbation(scale=torch.ones(2))}),
        (ValueError, "temperature: expected a finite", {"perturbation": Perturbation(temperature=0.0)}),
        (TypeError, "rebalance: expected a RebalancedWeight", {"rebalance": torch.ones(3)}),
        (ValueError, r"inverse_count: expected shape \(3,\)", {"rebalance": RebalancedWeight(torch.ones(2))}),
        (ValueError, "mu: expected a finite", {"rebalance": RebalancedWeight(torch.ones(3), mu=math.nan)}),
        (ValueError, "backend: expected one of", {"backend": "fast"}),
    ],
)  # fmt: skip
def test_bad_input(error: type[Exception], match: str, arguments: dict[str, object]) -> None:
    with pytest.raises(error, match=match):
        bce(**{"input": U, "target": Y, **arguments})


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "steps: expected a tensor", {"steps": 3}),
        (TypeError, "steps: expected signed integers", {"steps": torch.ones(3)}),
        (ValueError, r"steps: expected shape \(3,\)", {"steps": torch.ones(2).int()}),
        (ValueError, "step_size: expected a finite", {"step_size": math.inf}),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_bad_steps(
    error: type[Exception], match: str, arguments: dict[str, object], normalize: bool
) -> None:
    given = {"steps": torch.ones(3).int(), "step_size": 0.1, **arguments}
    for function in (lpl_bce, LF.lpl_binary_perturbation):
        with pytest.raises(error, match=match):
            function(U, Y, **given, normalize=normalize)


@pytest.mark.parametrize("way", ["auto", "reference"])
def test_a_row_without_positives_has_a_finite_gradient_by_counts_and_labels(way: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64)
    labels = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)
    inverse = (torch.rand(4, dtype=torch.float64) + 0.1).requires_grad_()

    def loss(inverse: Tensor, labels: Tensor = labels) -> Tensor:
        return bce(logits, labels, rebalance=RebalancedWeight(inverse), backend=way)

    assert torch.autograd.gradcheck(loss, inverse)
    soft = labels.clone().requires_grad_()
    (by_labels,) = torch.autograd.grad(loss(inverse.detach(), soft), soft)
    assert by_labels.isfinite().all()
