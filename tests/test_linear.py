"""The layer and its loss at once are the loss of the layer's logits, which nobody holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from cases import Draw, cross_entropy_cases, lpl_cases, penalty_cases, table_cases
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lpl_fused import Perturbation
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE
from lpl_fused.ops import chunks, linear
from lpl_fused.problem import Problem, accumulate_dtype
from lpl_fused.testing import Case, Result, budget, device_of, error
from lpl_fused.validation import MixedTarget

N, C, D = 24, 17, 5
ROWS = 7  # of a chunk, where nothing else is said: the last one is smaller
CASES = {
    name: build
    for name, build in {
        **cross_entropy_cases(),
        **table_cases(),
        **penalty_cases(),
        **{f"lpl-{name}": build for name, build in lpl_cases().items()},
    }.items()
    # −inf in the logits comes out of no product; what goes through the steps is not offered
    if "masked" not in name and "through" not in name
}


class Layer(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @staticmethod
    def draw(n: int, classes: int, features: int = D, *, bias: bool = True, seed: int = 3) -> Layer:
        draw = Draw(n, classes, seed)
        weight = 2 * draw.normal(classes, features) / features**0.5
        return Layer(draw.normal(n, features), weight, draw.normal(classes) if bias else None)

    def to(self, dtype: torch.dtype) -> Layer:
        return Layer(*(None if part is None else part.to(dtype) for part in self))


def memory(rows: int, classes: int, dtype: torch.dtype, case: Case) -> int:
    """chunk_memory for so many rows."""
    copies = 1
    if case.steps is not None:
        copies = 2 + (4 * accumulate_dtype(dtype).itemsize // dtype.itemsize if case.learn else 0)
    return rows * classes * dtype.itemsize * copies


def leaves_of(case: Case, layer: Layer) -> dict[str, Tensor]:
    dtype = accumulate_dtype(layer.hidden.dtype)
    found = {
        name: part.detach().clone().requires_grad_()
        for name, part in layer._asdict().items()
        if part is not None
    }
    for name in case.learn:
        table = torch.as_tensor(getattr(case.keywords["perturbation"], name), dtype=dtype)
        found[name] = table.detach().clone().requires_grad_()
    return found


def run(case: Case, leaves: dict[str, Tensor], fused: bool, **more: Any) -> Tensor:
    """The loss by the fused functions, or of logits by the reference."""
    keywords = dict(case.keywords)
    if case.learn:
        tables = {name: leaves[name] for name in case.learn}
        keywords["perturbation"] = replace(keywords["perturbation"], **tables)
    hidden, weight, bias = (leaves.get(name) for name in Layer._fields)
    assert hidden is not None
    assert weight is not None
    steps = () if case.steps is None else (case.steps,)
    if not fused:
        logits = F.linear(hidden, weight, bias)
        of_logits: Callable[..., Tensor] = LF.lpl_cross_entropy if steps else LF.cross_entropy
        return of_logits(logits, case.target, *steps, backend=REFERENCE, **keywords)
    of_layer: Callable[..., Tensor] = (
        LF.linear_lpl_cross_entropy if steps else LF.linear_cross_entropy
    )
    return of_layer(hidden, weight, case.target, *steps, linear_bias=bias, **keywords, **more)


def result(loss: Tensor, leaves: dict[str, Tensor], upstream: Tensor) -> Result:
    grads = torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.device, loss.dtype))
    found = {name: grad.cpu() for name, grad in zip(leaves, grads, strict=True)}
    return Result(loss.detach().cpu(), found)


def any_upstream(loss: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(loss.numel())
    return 0.5 + torch.rand(loss.shape, generator=generator, dtype=torch.float64)


def check(
    case: Case,
    layer: Layer,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    rows: int | None = ROWS,
    upstream: Callable[[Tensor], Tensor] = any_upstream,
    **more: Any,
) -> Result:
    """Loss and gradients against float64 truth, as close as PyTorch with all logits comes."""
    exact, layer = case.rounded(dtype), layer.to(dtype).to(torch.float64)
    narrow = exact.to(dtype if dtype == torch.float64 else torch.float32)
    leaves = leaves_of(exact, layer)
    loss = run(exact, leaves, False)
    factors = upstream(loss).float()
    truth = result(loss, leaves, factors)
    leaves = leaves_of(narrow, layer.to(dtype))
    eager = result(run(narrow, leaves, False), leaves, factors)
    device = device_of(backend)
    leaves = {name: leaf.detach().to(device).requires_grad_() for name, leaf in leaves.items()}
    if rows is not None:
        more["chunk_memory"] = memory(rows, layer.weight.shape[0], dtype, case)
    loss = run(narrow.on(device), leaves, True, backend=backend, **more)
    found = result(loss, leaves, factors)
    assert found.loss.shape == truth.loss.shape
    assert found.loss.dtype == accumulate_dtype(dtype)
    soft = isinstance(case.target, MixedTarget) or case.target.is_floating_point()
    soft = soft or "label_smoothing" in case.keywords
    pairs = [("loss", found.loss, eager.loss, truth.loss)]
    for name, grad in found.grads.items():
        assert grad.dtype == leaves[name].dtype, name
        pairs.append((name, grad, eager.grads[name], truth.grads[name]))
    for name, value, plain, exactly in pairs:
        # sums over rows cancel, as those of soft targets do
        cancels = soft or name != "loss"
        # on a CPU a chunk's part of it is rounded to 16 bits before the sum is
        parts = name == "weight" and rows is not None and device_of(backend) == "cpu"
        ulps = 2.0 if parts else 1.0
        allowed = budget(value.dtype, error(plain, exactly, cancels=cancels), ulps)
        actual = error(value, exactly, cancels=cancels)
        assert actual <= allowed, f"{name}: error {actual:.2e} exceeds {allowed:.2e}"
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_loss(case: str) -> None:
    check(CASES[case](Draw(N, C, seed=7)), Layer.draw(N, C))


@pytest.mark.devices
@pytest.mark.parametrize(
    "case", ["everything", "lpl-groups-normalized", "lpl-tables-learned", "dense-smoothed"]
)
def test_backends(backend: str, case: str) -> None:
    rows = 6 if device_of(backend) == "cpu" and backend == "triton" else N
    check(CASES[case](Draw(rows, C, seed=8)), Layer.draw(rows, C), backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [ROWS, None])
@pytest.mark.parametrize("case", ["everything", "smoothed", "lpl-groups", "lpl-tables-learned"])
def test_dtypes(case: str, rows: int | None, dtype: torch.dtype) -> None:
    check(CASES[case](Draw(N, C, seed=9)), Layer.draw(N, C), dtype=dtype, rows=rows)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", ["sweep", "statistics"])
@pytest.mark.parametrize("case", ["everything", "mixed-ignore", "lpl-groups", "lpl-tables-learned"])
def test_forms(case: str, form: str, reduction: str) -> None:
    made = CASES[case](Draw(N, C, seed=10))
    keywords = {**made.keywords, "reduction": reduction}
    keywords.pop("normalizer", None)
    made = replace(made, keywords=keywords)
    if (form, reduction) == ("sweep", "none"):
        with pytest.raises(ValueError, match='"sweep" is for one upstream gradient'):
            check(made, Layer.draw(N, C), gradient=form)
    else:
        check(made, Layer.draw(N, C), gradient=form)


@pytest.mark.parametrize("rows", [1, 2, 5, N - 1, N, N + 1])
@pytest.mark.parametrize("case", ["ignore", "lpl-ignore", "lpl-groups"])
def test_chunks_of_any_size(case: str, rows: int) -> None:
    check(CASES[case](Draw(N, C, seed=11)), Layer.draw(N, C), rows=rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keywords", [{}, {"reduction": "none"}, {"label_smoothing": 0.1}])
def test_a_class_larger_than_a_chunk(
    keywords: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 rows of one class among others, whose logits come by columns."""
    n, classes = 520, 61
    draw = Draw(n, classes, seed=12)
    target = torch.full((n,), 40)
    target[::26] = draw.labels()[::26]
    case = Case(draw.input(), target, {"step_size": 0.2, **keywords}, draw.steps())
    done = []
    by_columns = chunks.Sweep._by_columns

    def noted(self: chunks.Sweep, *arguments: Any) -> bool:
        done.append(by_columns(self, *arguments))
        return done[-1]

    monkeypatch.setattr(chunks.Sweep, "_by_columns", noted)
    check(case, Layer.draw(n, classes), dtype=dtype, rows=100)
    assert done
    assert all(done)


def test_a_large_class_whose_steps_sums_do_not_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are made at once."""
    n, classes = 60, 700
    draw = Draw(n, classes, seed=12)
    case = Case(draw.input(), torch.full((n,), 40), {"step_size": 40.0}, draw.steps() + 20)
    done = []
    by_columns = chunks.Sweep._by_columns

    def noted(self: chunks.Sweep, *arguments: Any) -> bool:
        done.append(by_columns(self, *arguments))
        return done[-1]

    monkeypatch.setattr(chunks.Sweep, "_by_columns", noted)
    check(case, Layer.draw(n, classes), dtype=torch.float64, rows=20)
    assert done == [False]


def test_a_class_larger_than_a_chunk_beside_tables_that_learn() -> None:
    draw = Draw(40, C, seed=13)
    case = Case(
        draw.input(),
        torch.full((40,), 3),
        {"step_size": 0.2, "perturbation": draw.tables()},
        draw.steps(),
        ("scale", "offset", "margin", "rows"),
    )
    check(case, Layer.draw(40, C), rows=ROWS)
    by_class = Perturbation(rows=draw.normal(C, C))
    case = replace(case, keywords={"step_size": 0.2, "perturbation": by_class}, learn=("rows",))
    check(case, Layer.draw(40, C), rows=ROWS)
    check(case, Layer.draw(40, C), rows=40)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("classes", [1, 2, 131])
@pytest.mark.parametrize("steps", [False, True])
def test_odd_sizes(features: int, classes: int, steps: bool) -> None:
    draw = Draw(11, classes, seed=14)
    case = Case(draw.input(), draw.labels())
    if steps:
        case = replace(case, keywords={"step_size": 0.3}, steps=draw.steps())
    check(case, Layer.draw(11, classes, features), rows=4)
    check(case, Layer.draw(11, classes, features, bias=False), rows=None)


@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [0, 3])
def test_no_row_counts(n: int, reduction: str, steps: bool) -> None:
    """Of an empty batch, and of one that is ignored, as the losses of logits."""
    layer = Layer.draw(n, C).to(torch.float32)
    case = Case(torch.empty(0), torch.full((n,), -100), {"reduction": reduction})
    if steps:
        case = replace(
            case, keywords={**case.keywords, "step_size": 0.3}, steps=torch.ones(C).int()
        )
    found = []
    for fused in (True, False):
        leaves = leaves_of(case, layer)
        loss = run(case, leaves, fused)
        found.append(result(loss, leaves, torch.ones_like(loss)))
    torch.testing.assert_close(found[0].loss, found[1].loss, equal_nan=True)
    for name, grad in found[0].grads.items():
        assert not grad.any(), name
        assert grad.shape == leaves[name].shape


def test_ignored_rows_take_part_in_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does what is in them, whatever the upstream gradient."""
    layer = Layer.draw(N, C).to(torch.float32)
    target = Draw(N, C, seed=15).labels()
    ignored = torch.arange(N) % 3 == 1
    target[ignored] = -100
    layer.hidden[ignored] = torch.nan
    rows = []
    logits = chunks.Sweep._logits

    def counted(self: chunks.Sweep, x: Tensor, begin: int, end: int) -> Tensor:
        rows.append(x.shape[0])
        return logits(self, x, begin, end)

    monkeypatch.setattr(chunks.Sweep, "_logits", counted)
    for steps in (None, torch.ones(C).int()):
        rows.clear()
        case = Case(torch.empty(0), target, {} if steps is None else {"step_size": 0.3}, steps)
        leaves = leaves_of(case, layer)
        loss = run(case, leaves, True, chunk_memory=memory(ROWS, C, torch.float32, case))
        assert sum(rows) == N - int(ignored.sum())
        grads = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        assert all(grad.isfinite().all() for grad in grads)
        assert not grads[0][ignored].any()
        (grad,) = torch.autograd.grad(loss, leaves["hidden"], torch.tensor(torch.inf))
        assert not grad[ignored].any()


def test_nobody_waits_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored rows are in the chunks then, and what is in them still touches nothing."""
    layer = Layer.draw(N, C).to(torch.float32)
    target = Draw(N, C, seed=27).ignoring()
    layer.hidden[target == -100] = torch.nan
    chosen = torch.ones(C).int()
    for steps in (None, chosen):
        case = Case(torch.empty(0), target, {} if steps is None else {"step_size": 0.3}, steps)
        found = []
        for captures in (False, True):
            monkeypatch.setattr(chunks, "_captures", lambda _, captures=captures: captures)
            leaves = leaves_of(case, layer)
            more = {} if steps is not None else {"chunk_memory": ROWS * C * 4}
            loss = run(case, leaves, True, **more)
            found.append([loss, *torch.autograd.grad(loss, list(leaves.values()))])
        assert all(part.isfinite().all() for part in found[1])
        torch.testing.assert_close(found[0], found[1])
    with pytest.raises(RuntimeError, match="chunk_memory: expected room for all 24 rows"):
        run(case, leaves, True, chunk_memory=1)


@pytest.mark.parametrize("form", ["sweep", "statistics"])
def test_checkpoints_and_what_is_saved_elsewhere(form: str) -> None:
    layer = Layer.draw(N, C).to(torch.float32)
    case = Case(torch.empty(0), Draw(N, C, seed=28).labels())
    leaves = leaves_of(case, layer)

    def loss() -> Tensor:
        return run(case, leaves, True, gradient=form, chunk_memory=ROWS * C * 4)

    expected = torch.autograd.grad(loss(), list(leaves.values()))
    with torch.autograd.graph.save_on_cpu():
        saved = torch.autograd.grad(loss(), list(leaves.values()))
    again = torch.utils.checkpoint.checkpoint(loss, use_reentrant=False)
    again = torch.autograd.grad(again, list(leaves.values()))
    for grad, other, third in zip(expected, saved, again, strict=True):
        assert torch.equal(grad, other)
        assert torch.equal(grad, third)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("dense", [False, True])
def test_shapes(shape: tuple[int, ...], dense: bool) -> None:
    """As rows of a matrix, whatever stands before the features."""
    draw = Draw(12, C, seed=16)
    hidden = draw.normal(*shape, D).requires_grad_()
    weight = draw.normal(C, D).requires_grad_()
    target = torch.randint(C, shape)
    if dense:
        target = torch.softmax(draw.normal(*shape, C), -1)
    flat = target.reshape(-1, *target.shape[len(shape) :])
    for reduction in ("mean", "none"):
        loss = LF.linear_cross_entropy(hidden, weight, target, reduction=reduction)
        logits = F.linear(hidden.reshape(-1, D), weight)
        expected = F.cross_entropy(logits, flat, reduction=reduction)
        assert loss.shape == (() if reduction == "mean" else shape)
        torch.testing.assert_close(loss.reshape(-1), expected.reshape(-1))
        found = torch.autograd.grad(loss.sum(), (hidden, weight))
        for grad, other in zip(
            found, torch.autograd.grad(expected.sum(), (hidden, weight)), strict=True
        ):
            torch.testing.assert_close(grad, other)


def test_what_belongs_to_rows_has_their_shape() -> None:
    draw = Draw(6, C, seed=17)
    hidden, weight = draw.normal(2, 3, D), draw.normal(C, D)
    share, index = draw.uniform(2, 3), torch.tensor([[0, 1, 1], [2, 0, 2]])
    tables = Perturbation(rows=draw.normal(3, C), row_index=index)
    target = MixedTarget(draw.labels().reshape(2, 3), draw.labels().reshape(2, 3), share)
    keywords: dict[str, Any] = {"sample_weight": 1 + share, "perturbation": tables}
    loss = LF.linear_cross_entropy(hidden, weight, target, chunk_memory=1, **keywords)
    logits = F.linear(hidden, weight).movedim(-1, 1)
    torch.testing.assert_close(loss, LF.cross_entropy(logits, target, **keywords))


def test_strides_of_any_kind() -> None:
    draw = Draw(6, C, seed=18)
    for hidden, weight in (
        (draw.normal(D, 6).t(), draw.normal(D, C).t()),
        (draw.normal(6, 2 * D)[:, ::2], draw.normal(2 * C, D)[::2]),
        (draw.normal(1, D).expand(6, D), draw.normal(1, D).expand(C, D)),
    ):
        labels = draw.labels()
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        loss = LF.linear_cross_entropy(*leaves, labels, chunk_memory=8 * C * 4)
        expected = F.cross_entropy(F.linear(*leaves), labels)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves)
        )


@pytest.mark.parametrize("case", ["hard", "lpl-groups", "scale-learned"])
@pytest.mark.parametrize("form", ["sweep", "statistics"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_second_backward_gives_the_same_bits(case: str, form: str, dtype: torch.dtype) -> None:
    made, layer = CASES[case](Draw(N, C, seed=19)), Layer.draw(N, C).to(dtype)
    made = made.rounded(dtype).to(torch.float32)
    leaves = leaves_of(made, layer)
    loss = run(made, leaves, True, gradient=form, chunk_memory=memory(ROWS, C, dtype, made))
    upstream = torch.tensor(0.7)
    first, second = (
        torch.autograd.grad(loss, list(leaves.values()), upstream, retain_graph=True)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
    for grad in torch.autograd.grad(loss, list(leaves.values()), create_graph=True):
        with pytest.raises(RuntimeError, match="differentiable once"):
            grad.sum().backward(retain_graph=True)


@pytest.mark.parametrize("frozen", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ()])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_frozen_parts_cost_nothing(
    frozen: tuple[str, ...], reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sum is kept, no product made."""
    layer = Layer.draw(N, C).to(torch.float32)
    case = Case(torch.empty(0), Draw(N, C, seed=20).ignoring(), {"reduction": reduction})
    leaves = leaves_of(case, layer)
    whole = run(case, leaves, False)
    for name in frozen:
        leaves[name].requires_grad_(False)
    made, asked = [], [name for name in leaves if name not in frozen]
    zeros = chunks.Sweep._zeros

    def noted(self: chunks.Sweep, name: str) -> Tensor:
        made.append({"input": "hidden"}.get(name, name))
        return zeros(self, name)

    monkeypatch.setattr(chunks.Sweep, "_zeros", noted)
    loss = run(case, leaves, True, chunk_memory=ROWS * C * 4)
    products = []
    monkeypatch.setattr(torch, "mm", lambda *a, **k: products.append(a) or mm(*a, **k))
    grads = torch.autograd.grad(loss.sum(), [leaves[name] for name in asked])
    assert set(made) == set(asked)
    if reduction == "none":
        assert bool(products) == ("hidden" in asked)
    expected = torch.autograd.grad(whole.sum(), [leaves[name] for name in asked])
    torch.testing.assert_close(grads, expected)


mm = torch.mm


@pytest.mark.parametrize("count", [15, 30, -30])
@pytest.mark.parametrize("rows", [1, 2])
def test_steps_that_go_far(native: str, count: int, rows: int) -> None:
    """Beyond what float32 holds as an exponential; a class is cut by columns."""
    hidden = torch.tensor([[-60.0, 80.0, 0.0], [-90.0, 95.0, -80.0]])[:rows].requires_grad_()
    labels, steps = torch.zeros(rows, dtype=torch.int64), torch.full((3,), count)

    def asked(hidden: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        eye = torch.eye(3, dtype=hidden.dtype)
        loss = LF.linear_lpl_cross_entropy(
            hidden, eye, labels, steps, step_size=5.0, reduction="none", **more
        )
        return loss.detach().double(), torch.autograd.grad(loss.sum(), hidden)[0].double()

    expected = asked(hidden.detach().double().requires_grad_(), backend=REFERENCE)
    found = asked(hidden, backend=native, chunk_memory=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_nan_in_a_class_that_takes_no_steps(native: str) -> None:
    """There is no δ that it could spoil."""
    draw = Draw(5, 3, seed=24)
    hidden, labels = draw.normal(5, 3).float(), torch.tensor([0, 1, 0, 1, 0])
    hidden[2, 1] = torch.nan
    steps = torch.tensor([0, 3, 0])

    def asked(hidden: Tensor, **more: Any) -> list[Tensor]:
        leaf = hidden.clone().requires_grad_()
        eye = torch.eye(3, dtype=hidden.dtype)
        loss, stats = LF.linear_lpl_cross_entropy(
            leaf, eye, labels, steps, step_size=0.5, reduction="none", return_stats=True, **more
        )
        return [each.double() for each in (loss, *torch.autograd.grad(loss.sum(), leaf), *stats)]

    expected = asked(hidden.double(), backend=REFERENCE)
    assert expected[0].isnan().tolist() == [False, False, True, False, False]
    found = asked(hidden, backend=native, chunk_memory=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_without_gradients_nothing_but_chunks_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer.draw(N, C).to(torch.float32)
    case = Case(torch.empty(0), Draw(N, C, seed=21).labels())
    monkeypatch.setattr(chunks.Sweep, "_zeros", None)
    leaves = leaves_of(case, layer)
    with torch.no_grad():
        loss = run(case, leaves, True)
    torch.testing.assert_close(loss, run(case, leaves, False).detach())
    assert not run(case, {name: leaf.detach() for name, leaf in leaves.items()}, True).requires_grad


@pytest.mark.parametrize("rows", [ROWS, None])
@pytest.mark.parametrize("case", ["hard", "lpl-groups"])
def test_autocast(case: str, rows: int | None) -> None:
    """Products in bfloat16, gradients in the dtype of what they are of."""
    made = CASES[case](Draw(N, C, seed=22)).to(torch.float32)
    layer = Layer.draw(N, C).to(torch.bfloat16).to(torch.float32)
    exact = leaves_of(made, layer)
    loss = run(made, exact, False)
    truth = result(loss, exact, torch.ones(()))
    found = []
    for fused in (True, False):
        leaves = leaves_of(made, layer)
        more = {"chunk_memory": rows * C * 2} if fused and rows else {}
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(made, leaves, fused, **more)
        assert loss.dtype == torch.float32
        found.append(result(loss, leaves, torch.ones(())))
    for name, grad in found[0].grads.items():
        assert grad.dtype == torch.float32
        allowed = budget(torch.bfloat16, error(found[1].grads[name], truth.grads[name]))
        assert error(grad, truth.grads[name]) <= allowed, name


@pytest.mark.parametrize("case", ["everything", "lpl-groups", "ignore-none"])
def test_compiled(case: str) -> None:
    made = CASES[case](Draw(N, C, seed=23)).to(torch.float32)
    layer = Layer.draw(N, C).to(torch.float32)
    found = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        torch._dynamo.reset()
        leaves = leaves_of(made, layer)
        loss = wrap(run)(made, leaves, True, chunk_memory=memory(ROWS, C, torch.float32, made))
        found.append(result(loss, leaves, torch.full_like(loss, 0.7)))
    assert torch.equal(found[0].loss, found[1].loss)
    for name, grad in found[0].grads.items():
        assert torch.equal(grad, found[1].grads[name]), name


def test_fakes() -> None:
    layer = Layer.draw(N, C).to(torch.bfloat16)
    case = Case(torch.empty(0), Draw(N, C, seed=24).labels())
    for more in ({}, {"chunk_memory": 100}, {"gradient": "statistics"}):
        with FakeTensorMode() as mode:
            leaves = {
                name: mode.from_tensor(part).requires_grad_()
                for name, part in layer._asdict().items()
            }
            loss = run(replace(case, target=mode.from_tensor(case.target)), leaves, True, **more)
            grads = torch.autograd.grad(loss, list(leaves.values()))
        assert loss.shape == ()
        for grad, leaf in zip(grads, leaves.values(), strict=True):
            assert (grad.shape, grad.dtype) == (leaf.shape, leaf.dtype)


def test_operators() -> None:
    layer = Layer.draw(N, C).to(torch.float32)
    target = Draw(N, C, seed=25).ignoring()
    tables = Problem(torch.empty(N, C), target, offset=torch.randn(C))
    steps = torch.ones(C, dtype=torch.int32)
    learned = tables._replace(offset=None, steps=steps)
    for problem, want in (
        (tables, ["input", "weight", "bias", "offset"]),
        (tables, ["weight"]),
        (learned, ["input", "bias"]),
    ):
        for memory_ in (0, 4 * C * ROWS):
            given = chunks.Layer(*layer, torch.float32, memory_)
            packed = linear._packed(given, problem, "cpp", want)
            for return_stats in (False, True):
                operator = torch.ops.lpl_fused.linear_cross_entropy
                torch.library.opcheck(operator, (*packed, False, return_stats))
            loss, terms, *_ = torch.ops.lpl_fused.linear_cross_entropy(*packed, True, False)
            arguments = (*packed, terms, torch.ones_like(loss))
            torch.library.opcheck(torch.ops.lpl_fused.linear_gradient, arguments)


def test_what_cannot_be_followed_is_refused() -> None:
    layer = Layer.draw(N, C).to(torch.float32)
    target = Draw(N, C, seed=26).labels()

    def loss(hidden: Tensor, **keywords: Any) -> Tensor:
        return LF.linear_cross_entropy(hidden, layer.weight, target, **keywords)

    hint = 'backend="reference", which makes all logits'
    with pytest.raises(RuntimeError, match=hint):
        torch.func.grad(loss)(layer.hidden)
    with pytest.raises(RuntimeError, match=hint):
        torch.func.jvp(loss, (layer.hidden,), (layer.hidden,))
    with pytest.raises(RuntimeError, match=hint), torch.autograd.forward_ad.dual_level():
        loss(torch.autograd.forward_ad.make_dual(layer.hidden, layer.hidden))
    with pytest.raises(RuntimeError, match=f"^weight requires grad.*{hint}"):
        loss(layer.hidden, weight=torch.ones(C, requires_grad=True))
    torch.func.grad(lambda x: loss(x, backend=REFERENCE))(layer.hidden)
    hidden = layer.hidden.double().requires_grad_()
    weight = layer.weight.double().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda *x: LF.linear_cross_entropy(*x, target[:3], backend=REFERENCE),
        (hidden[:3].detach().requires_grad_(), weight),
    )


BAD: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "no tensor": (TypeError, "input: expected a tensor, got list", {"input": [1.0]}),
    "integers": (TypeError, "linear_weight: .* got torch.int64", {"linear_weight": torch.ones(C, D).long()}),
    "other features": (ValueError, rf"linear_weight: expected shape \(C, {D}\)", {"linear_weight": torch.ones(C, D + 1)}),
    "a vector": (ValueError, r"linear_weight: expected shape", {"linear_weight": torch.ones(D)}),
    "no class": (ValueError, "linear_weight: expected at least one class", {"linear_weight": torch.ones(0, D)}),
    "another dtype": (TypeError, "linear_weight: expected torch.float32, as input", {"linear_weight": torch.ones(C, D).double()}),
    "bias": (ValueError, rf"linear_bias: expected shape \({C},\)", {"linear_bias": torch.ones(C, 1)}),
    "0-dim": (ValueError, "input: expected shape", {"input": torch.ones(())}),
    "fewer labels": (ValueError, r"target: expected shape \(24,\)", {"target": torch.zeros(3).long()}),
    "no such label": (ValueError, f"target {C} is out of range", {"target": torch.full((N,), C)}),
    "tables": (ValueError, r"weight: expected shape", {"weight": torch.ones(C + 1)}),
    "memory": (ValueError, "chunk_memory: expected an int >= 1 or None", {"chunk_memory": 0}),
    "memory as float": (TypeError, "chunk_memory: expected an int", {"chunk_memory": 1e6}),
    "form": (ValueError, "gradient: expected one of", {"gradient": "inplace"}),
    "form of the reference": (ValueError, "gradient: 'sweep' is for fused", {"gradient": "sweep", "backend": "reference"}),
    "float16 by sweep": (ValueError, "float16", {"gradient": "sweep", "input": torch.ones(N, D).half(), "linear_weight": torch.ones(C, D).half()}),
    "margins of mixed targets": (ValueError, "margin: needs class indices, one per row or two", {"target": torch.full((N, C), 1 / C), "perturbation": Perturbation(margin=torch.ones(C))}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    kind, message, changed = BAD[name]
    layer = Layer.draw(N, C).to(torch.float32)
    arguments = {
        "input": layer.hidden,
        "linear_weight": layer.weight,
        "target": torch.arange(N) % C,
    }
    with pytest.raises(kind, match=message):
        LF.linear_cross_entropy(**{**arguments, **changed})


def _samples() -> list[Any]:
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError:
        return []
    return [op for op in op_db if op.name == "nn.functional.linear_cross_entropy"]


@pytest.mark.parametrize("op", _samples(), ids=lambda op: op.variant_test_name or "plain")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_torchs_own_samples(op: Any, dtype: torch.dtype) -> None:
    """Of one dimension of classes; more are refused."""
    taken = 0
    for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
        weight, target = sample.args
        target = target.detach()  # that of class probabilities the reference alone differentiates
        keywords = {name: value for name, value in sample.kwargs.items() if name != "options"}
        if keywords.get("ignore_index", -100) is None:
            keywords.pop("ignore_index")
        if weight.dim() != 2:
            with pytest.raises(ValueError, match="linear_weight: expected shape"):
                LF.linear_cross_entropy(sample.input, weight, target, **keywords)
            continue
        taken += 1
        expected = op.op(sample.input, weight, target, **{**sample.kwargs, "options": None})
        for memory_ in (None, 1):
            loss = LF.linear_cross_entropy(
                sample.input, weight, target, chunk_memory=memory_, **keywords
            )
            torch.testing.assert_close(loss, expected, check_dtype=dtype == torch.float64)
            leaves = [leaf for leaf in (sample.input, weight) if leaf.requires_grad]
            upstream = any_upstream(expected).to(dtype)
            grads = torch.autograd.grad(loss, leaves, upstream)
            others = torch.autograd.grad(expected, leaves, upstream, retain_graph=True)
            torch.testing.assert_close(grads, others)
    assert taken > 10
