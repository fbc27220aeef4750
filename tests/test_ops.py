"""The operators: dispatcher, autograd, torch.compile, autocast, inference mode."""

from __future__ import annotations

import copy
import importlib
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from cases import PHIS, Draw, cross_entropy_cases, lpl_cases
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import lpl_fused
from lpl_fused import Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.backends import load
from lpl_fused.ops import dispatch
from lpl_fused.problem import TABLES, BinaryOptions, Options, Problem
from lpl_fused.validation import Shaped, call_options

LEARNED = "lpl_fused.backends.triton.learned"
CASES, LPL_CASES = cross_entropy_cases(), lpl_cases()


def problem(name: str, n: int = 4, classes: int = 5, seed: int = 5):  # type: ignore[no-untyped-def]
    """A case of the tables as the Problem that ops and backends get, tables requiring grad."""
    case = {**CASES, **{f"lpl-{k}": v for k, v in LPL_CASES.items()}}[name](Draw(n, classes, seed))
    shaped = Shaped(case.input.requires_grad_(), case.target)
    keywords = dict(case.keywords)
    names = ("perturbation", "weight", "sample_weight", "label_smoothing")
    parts = {name: keywords.pop(name) for name in names if name in keywords}
    smoothing = parts.get("label_smoothing", 0.0)
    step_size = keywords.pop("step_size", 0.0)
    normalize = keywords.pop("normalize", False)
    settings = {
        "reduction": "mean",
        "ignore_index": -100,
        "phi": "log",
        "z_loss": 0.0,
        "softcap": 0.0,
    }
    options = call_options(label_smoothing=smoothing, **{**settings, **keywords})
    options = options._replace(step_size=step_size, normalize=normalize)
    return shaped.problem(options, **parts, steps=case.steps)


@pytest.mark.parametrize("name", ["hard", "dense", "mixed-weights", "everything", "lpl-tables"])
def test_opcheck(monkeypatch: pytest.MonkeyPatch, backend: str, name: str) -> None:
    if backend == "reference":
        pytest.skip("the reference is plain PyTorch, not an operator")
    if backend in ("cuda", "triton"):
        # lists in a state hold what memory held behind their end, which opcheck compares
        maker = load("cuda") if backend == "cuda" else importlib.import_module(LEARNED)
        make = maker.new
        monkeypatch.setattr(maker, "new", lambda *args, **kw: make(*args, **kw).zero_())
    p = problem(name)
    detached = Problem(*(t.detach() if isinstance(t, torch.Tensor) else t for t in p))
    packed = dispatch.packed(detached, backend)
    for flags in ((False, False), (True, True)):
        torch.library.opcheck(torch.ops.lpl_fused.cross_entropy.default, (*packed, *flags))
    upstream = torch.ones(4, dtype=torch.float64)
    if p.steps is None:
        terms = torch.ops.lpl_fused.cross_entropy(*packed, False, False)[2]
        want = [True] + [getattr(p, table) is not None for table in TABLES]
        torch.library.opcheck(
            torch.ops.lpl_fused.cross_entropy_gradient.default, (*packed, terms, upstream, want)
        )
    else:
        operator = torch.ops.lpl_fused.learned_gradient.default
        torch.library.opcheck(operator, (*packed, upstream, []))
        torch.library.opcheck(torch.ops.lpl_fused.learned_perturbation.default, packed)


@pytest.mark.parametrize(
    "name",
    ["hard", "ignore", "smoothed-by-class", "mixed", "dense-weights", "softcap", "tables-mixed"],
)
def test_gradcheck(backend: str, name: str) -> None:
    case = CASES[name](Draw(3, 4, seed=6))

    def loss(input: torch.Tensor) -> torch.Tensor:
        return LF.cross_entropy(input, case.target, backend=backend, **case.keywords)

    assert torch.autograd.gradcheck(loss, case.input.requires_grad_())


@pytest.mark.parametrize("phi", PHIS)
def test_gradcheck_phi(backend: str, phi: str) -> None:
    draw = Draw(2, 3, seed=7)
    input, target = draw.input(), draw.labels()

    def loss(input: torch.Tensor) -> torch.Tensor:
        return LF.cross_entropy(
            input, target, phi=PHIS[phi], reduction="none", backend=backend, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, input.requires_grad_())


def test_gradcheck_tables(backend: str) -> None:
    draw = Draw(3, 4, seed=8)
    input, target, tables = draw.input(), draw.ignoring(), draw.tables()
    index = tables.row_index

    def loss(scale, offset, margin, rows, temperature):  # type: ignore[no-untyped-def]
        perturbation = Perturbation(scale, offset, margin, rows, index, temperature)
        return LF.cross_entropy(input, target, perturbation=perturbation, backend=backend)

    leaves = [tables.scale, tables.offset, tables.margin, tables.rows, torch.tensor(0.7).double()]
    assert torch.autograd.gradcheck(loss, [leaf.requires_grad_() for leaf in leaves])


def test_gradcheck_through_the_perturbation() -> None:
    draw = Draw(4, 5, seed=9)
    input, target, steps = draw.input(), draw.labels() % 2, draw.steps(4)

    def loss(input: torch.Tensor) -> torch.Tensor:
        return LF.lpl_cross_entropy(
            input, target, steps, step_size=0.3, normalize=True, through_perturbation=True
        )

    assert torch.autograd.gradcheck(loss, input.requires_grad_())
    constant = LF.lpl_cross_entropy(input, target, steps, step_size=0.3, normalize=True)
    through = loss(input)
    torch.testing.assert_close(constant, through)
    one, other = (torch.autograd.grad(x, input)[0] for x in (constant, through))
    assert not torch.allclose(one, other)
    with pytest.raises(RuntimeError, match="through_perturbation"):
        LF.lpl_cross_entropy(
            input, target, steps, step_size=0.3, through_perturbation=True, backend="cpp"
        )


def test_double_backward(backend: str) -> None:
    """The reference differentiates twice; fused backends refuse instead of dropping terms."""
    draw = Draw(3, 4, seed=10)
    input, target = draw.input().requires_grad_(), draw.labels()
    loss = LF.cross_entropy(input, target, backend=backend)
    grad = torch.autograd.grad(loss, input, create_graph=True)[0]
    if backend == "reference":
        assert torch.autograd.gradgradcheck(
            lambda z: LF.cross_entropy(z, target, backend="reference"), input
        )
    else:
        with pytest.raises(RuntimeError, match="differentiable once"):
            grad.square().sum().backward()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compile_fullgraph_dynamic(backend: str, reduction: str) -> None:
    torch._dynamo.reset()
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()

    @torch.compile(fullgraph=True, dynamic=True)
    def step(input, target, offset, steps):  # type: ignore[no-untyped-def]
        plain = LF.cross_entropy(
            input * 2,
            target,
            perturbation=Perturbation(offset=offset, temperature=0.5),
            reduction=reduction,
            backend=backend,
        )
        if backend == "reference":
            return plain.mean()
        learned = LF.lpl_cross_entropy(
            input, target, steps, step_size=0.1, reduction=reduction, backend=backend
        )
        return (plain * 3).mean() + learned.mean()

    for n, classes in ((4, 6), (7, 6), (3, 11)):
        draw = Draw(n, classes, seed=n)
        input, offset = draw.input().float(), draw.normal(classes).float()
        target, steps = draw.labels(), draw.steps()
        leaf = input.clone().requires_grad_()
        found = step(leaf, target, offset, steps)
        grad = torch.autograd.grad(found, leaf)[0]
        again = input.clone().requires_grad_()
        expected = step._torchdynamo_orig_callable(again, target, offset, steps)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(grad, torch.autograd.grad(expected, again)[0])
        # how large the state of a learned perturbation is on CUDA the number of classes decides
        anew = backend == "cuda" and classes != 6
        assert counted["unique_graphs"] == 1 + anew, f"{n} rows of {classes}"


@pytest.mark.parametrize("what", ["two labels", "many logits"])
def test_another_batch_size_compiles_nothing_anew(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    two = what == "two labels"
    if not two:
        monkeypatch.setattr(importlib.import_module(LEARNED), "FEW_LOGITS", 0)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(input, target, steps):  # type: ignore[no-untyped-def]
        backend = "cpp" if two else "triton"
        return LF.lpl_cross_entropy(input, target, steps, step_size=0.1, backend=backend)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 8, 7):
        draw = Draw(n, 6, seed=n)
        input, target, steps = draw.input().float(), draw.labels(), draw.steps()
        if two:
            target = LF.MixedTarget(target, draw.labels(), draw.uniform(n).float() / 3)
        leaf, other = (input.clone().requires_grad_() for _ in range(2))
        found, expected = compiled(leaf, target, steps), loss(other, target, steps)
        torch.testing.assert_close(found, expected)
        found, expected = torch.autograd.grad(found, leaf), torch.autograd.grad(expected, other)
        torch.testing.assert_close(found, expected)
        assert counter.frame_count == 2, f"{n} rows"  # a forward and its backward


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", ["", "normalize", "smooth", "rows"])
def test_the_state_in_a_trace(
    monkeypatch: pytest.MonkeyPatch, native: str, other: str, dtype: torch.dtype, few: bool
) -> None:
    """An expression of the number of rows, which stays one, and the right one."""
    if not few:
        monkeypatch.setattr(importlib.import_module(LEARNED), "FEW_LOGITS", 0)
    smooth, normalize = 0.1 if other == "smooth" else 0.0, other == "normalize"
    options = Options(step_size=0.1, label_smoothing=smooth, normalize=normalize)
    for n, classes in ((2, 3), (3, 300), (17, 16), (64, 1025), (513, 700), (1001, 8142)):
        mode = FakeTensorMode(shape_env=ShapeEnv())
        sizes = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
        input = torch.empty(n, classes, dtype=dtype, device="meta")
        source = ConstantSource("input")
        traced = mode.from_tensor(input, symbolic_context=sizes, source=source)
        labels, steps = torch.zeros(n, dtype=torch.int64), torch.ones(classes, dtype=torch.int32)
        rows = torch.zeros(1, classes) if other == "rows" else None
        p = Problem(input, labels, rows=rows, steps=steps, options=options)
        expected = load(native).learned_state(p)
        found = load(native).learned_state(p._replace(input=traced))
        size = traced.shape[0].node.expr
        assert size not in mode.shape_env.replacements, "for this number of rows alone"
        assert len(found) == len(expected)
        for (shape, kind), of_numbers in zip(found, expected, strict=True):
            assert size in shape[0].node.expr.free_symbols
            assert ((int(shape[0]),), kind) == of_numbers


def test_compiled_equals_eager_bitwise() -> None:
    torch._dynamo.reset()
    draw = Draw(16, 50, seed=3)
    input, target = draw.input().float().requires_grad_(), draw.ignoring()
    compiled = torch.compile(LF.cross_entropy, fullgraph=True)
    one, other = (loss(input, target, backend="cpp") for loss in (compiled, LF.cross_entropy))
    assert torch.equal(one, other)
    assert torch.equal(torch.autograd.grad(one, input)[0], torch.autograd.grad(other, input)[0])


def _made_and_found(call) -> tuple[int, bool]:  # type: ignore[no-untyped-def]
    """Graphs that inductor made code of; whether it, or AOTAutograd, found code of some."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.compile(call, fullgraph=True)()
    found = counters["inductor"]["fxgraph_cache_hit"]
    found += counters["aot_autograd"]["autograd_cache_hit"]
    return counters["inductor"]["fxgraph_cache_miss"], found > 0


@pytest.mark.parametrize("whole", [True, False], ids=["graphs of AOTAutograd, too", "inductor's"])
def test_no_code_that_was_compiled_with_another_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: bool
) -> None:
    """What operators return may differ between versions, and inductor looks at the graph alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    draw = Draw(4, 6, seed=3)
    input, target = draw.input().float(), draw.labels()

    def call() -> torch.Tensor:  # of an operator alone, for which nothing is compiled
        return LF.cross_entropy(input, target, reduction="sum", backend="cpp")

    with (
        torch._inductor.config.patch(fx_graph_cache=True, fx_graph_remote_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=whole),
    ):
        assert _made_and_found(call) == (1, False)
        assert _made_and_found(call) == (0, True)  # else this would test nothing
        monkeypatch.setattr(lpl_fused.problem, "text", lambda: 1)
        assert _made_and_found(call) == (1, False)


def test_every_operator_is_told_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("lpl_fused::")]
    assert len(names) > 8
    for name in names:
        schema = getattr(torch.ops.lpl_fused, name.partition("::")[2]).default._schema
        assert "codes" in [argument.name for argument in schema.arguments], name
    monkeypatch.setattr(lpl_fused.problem, "text", lambda: 12345)
    for options in (Options(), BinaryOptions()):
        codes, numbers = options.packed()
        assert codes[0] == 12345
        assert type(options).unpacked([1, *codes[1:]], numbers) == options


def test_another_text_is_another_number(tmp_path: Path) -> None:
    room = tmp_path / "of_any_name"
    (room / "inner").mkdir(parents=True)
    version = Path(shutil.copy(lpl_fused.version.__file__, room))

    def number() -> int:
        return runpy.run_path(str(version))["text"]()

    inner, native = room / "inner" / "a.py", room / "_cpu.so"
    found = [number(), number()]
    assert found[0] == found[1]
    inner.write_text("a")
    found.append(number())
    inner.write_text("b")
    found.append(number())
    inner.rename(inner.with_name("b.py"))
    found.append(number())
    native.write_bytes(b"\0")
    found.append(number())
    native.write_bytes(b"\1")
    found.append(number())
    assert len(set(found)) == 6
    assert all(0 <= n < 1 << 63 for n in found)
    assert lpl_fused.version.text() == lpl_fused.version.text()


def test_nobody_reads_the_text_past_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpl_fused.problem, "text", None)
    draw = Draw(4, 6, seed=3)
    input, target = draw.input().requires_grad_(), draw.labels()
    weight = draw.normal(6, 6).requires_grad_()
    for form in ("sweep", "statistics"):
        LF.cross_entropy(input, target, gradient=form, backend="cpp").backward()
        LF.linear_cross_entropy(input, weight, target, gradient=form, backend="cpp").backward()
    LF.lpl_cross_entropy(input, target, draw.steps(), step_size=0.1, backend="cpp").backward()
    labels = torch.ones_like(input)
    LF.binary_cross_entropy_with_logits(input, labels, backend="cpp").backward()
    with torch.no_grad():
        LF.linear_cross_entropy(input, weight, target, backend="cpp")


@pytest.mark.parametrize("change", ["a code more", "a number less"])
@pytest.mark.parametrize("kind", [Options, BinaryOptions])
def test_a_graph_of_other_options_is_refused(kind: Any, change: str) -> None:
    """Exported programs live on: fields that came or went since would take each other's values."""
    codes, numbers = kind().packed()
    assert kind.unpacked(codes, numbers) == kind()
    if change == "a code more":
        codes = [*codes, 0]
    else:
        numbers = numbers[:-1]
    with pytest.raises(RuntimeError, match="another version of lpl_fused: expected options of"):
        kind.unpacked(codes, numbers)


def test_modules_compile() -> None:
    from lpl_fused import losses

    counts = [100, 30, 10, 3, 1]
    for loss, compiler in (
        (losses.LogitAdjustedLoss(counts), "aot_eager"),
        (losses.LPLLoss(counts, tau=1.0), "aot_eager"),
        # of what others leave to operators this one has a part for inductor
        (losses.LPLLoss(counts, split="balanced", statistics="ema"), "inductor"),
    ):
        torch._dynamo.reset()
        draw = Draw(12, 5, seed=4)
        input, target = draw.input().float().requires_grad_(), draw.labels()
        eager = copy.deepcopy(loss)
        found = torch.compile(loss, fullgraph=True, backend=compiler)(input, target)
        expected = eager(input, target)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, input) for v in (found, expected)))
        torch.testing.assert_close(loss.state_dict(), eager.state_dict())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_learned_state_waits_for_the_backward(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, reduction: str
) -> None:
    """Of a backend that leaves one: forward makes no gradient, backward gets what forward left."""
    module = load("cpp")
    forward, gradient = module.forward, module.learned_gradient
    seen: list[tuple[torch.Tensor, ...]] = []

    def learned_state(problem: Problem):  # type: ignore[no-untyped-def]
        rows = problem.input.shape[0]
        return ((rows, 3), torch.float32), ((rows,), torch.int64)

    def leaving(asked, want_grad, choose=None, **more):  # type: ignore[no-untyped-def]
        found = forward(asked, want_grad, choose, **more)
        if more.get("final") or found.grad is not None:
            return found
        rows = asked.input.shape[0]
        return found._replace(state=(torch.full((rows, 3), 7.0), torch.arange(rows)))

    def taking(asked, upstream, state=(), norm=None):  # type: ignore[no-untyped-def]
        seen.append(state)
        return gradient(asked, upstream, (), norm)

    draw = Draw(6, 9, seed=1)
    input, target, steps = draw.input().float(), draw.labels(), draw.steps()

    def run(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = torch.compile(LF.lpl_cross_entropy) if compiled else LF.lpl_cross_entropy
        leaf = input.clone().requires_grad_()
        value = loss(leaf, target, steps, step_size=0.1, reduction=reduction, backend="cpp")
        (first,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        assert torch.equal(first, torch.autograd.grad(value.sum(), leaf)[0])
        return value.detach(), first

    torch._dynamo.reset()
    expected = run(input)
    torch._dynamo.reset()
    monkeypatch.setattr(module, "learned_state", learned_state)
    monkeypatch.setattr(module, "forward", leaving)
    monkeypatch.setattr(module, "learned_gradient", taking)
    loss, grad = run(input)
    assert torch.equal(loss, expected[0])
    torch.testing.assert_close(grad, expected[1])
    assert len(seen) == 2
    for numbers, places in seen:
        assert torch.equal(numbers, torch.full((6, 3), 7.0))
        assert torch.equal(places, torch.arange(6))
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_that_is_left_has_the_forms_that_were_said(
    backend: str, dtype: torch.dtype
) -> None:
    if backend == "reference":
        pytest.skip("the reference is plain PyTorch, differentiated by autograd")
    p = problem("lpl-groups", n=6, classes=9)
    steps, options = p.steps, p.options._replace(step_size=0.1)
    asked = Problem(p.input.detach().to(dtype), p.target, steps=steps, options=options)
    module = load(backend)
    forms = module.learned_state(asked)
    found = module.forward(asked, False)
    assert tuple((tuple(each.shape), each.dtype) for each in found.state) == forms
    assert module.forward(asked, False, final=True).state == ()
    assert module.forward(asked, True).state == ()
    upstream = torch.linspace(0.5, 2, 6)
    testing_budget = torch.finfo(dtype).eps
    torch.testing.assert_close(
        module.learned_gradient(asked, upstream, found.state),
        module.learned_gradient(asked, upstream),
        rtol=2 * testing_budget,
        atol=testing_budget,
    )
    # few numbers a row
    wide = asked._replace(input=torch.empty((64, 100_000), dtype=dtype, device="meta"))
    numbers = sum(math.prod(shape) for shape, _ in module.learned_state(wide))
    assert numbers < wide.input.numel() / 10 or backend == "triton"


def test_autocast() -> None:
    """Under autocast 16-bit logits are read as they are: float32 loss, 16-bit gradient."""
    draw = Draw(6, 9, seed=1)
    input, target = draw.input().bfloat16().requires_grad_(), draw.labels()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LF.cross_entropy(input, target)
        expected = F.cross_entropy(input, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(loss, input)[0].dtype == torch.bfloat16


def test_inference_mode(backend: str) -> None:
    draw = Draw(6, 9, seed=1)
    input, target, steps = draw.input(), draw.labels(), draw.steps()
    with torch.inference_mode():
        loss = LF.cross_entropy(input, target, backend=backend)
        learned = LF.lpl_cross_entropy(input, target, steps, step_size=0.1, backend=backend)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, F.cross_entropy(input, target))
    assert learned.isfinite()


def test_float16_gradients_survive_a_loss_scaler(backend: str) -> None:
    """1/N of a small probability underflows float16; scaled by 2^16 it must not have been lost."""
    n, classes = 256, 64
    draw = Draw(1, classes, seed=2)
    if backend == "triton":
        n = 8
    input = draw.input()
    input[:, 0] += 16  # the others' probabilities, divided by n, are below float16's smallest
    input = input.expand(n, classes).half().requires_grad_()
    target = torch.zeros(n, dtype=torch.int64)
    loss = LF.cross_entropy(input, target, backend=backend) * 65536.0
    grad = torch.autograd.grad(loss, input)[0]
    exact = input.detach().double().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(exact, target) * 65536.0, exact)[0]
    assert (expected.abs() / 65536 < 6e-8).any()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-3, atol=1e-6)


def test_torch_func_works_on_the_reference() -> None:
    draw = Draw(3, 5, seed=11)
    input, target = draw.input(), draw.labels()

    def loss(input: torch.Tensor, target: torch.Tensor, backend: str) -> torch.Tensor:
        return LF.cross_entropy(input, target, backend=backend)

    grad = torch.func.grad(loss)(input, target, "reference")
    leaf = input.clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(F.cross_entropy(leaf, target), leaf)[0])
    with pytest.raises(RuntimeError, match='torch.func: .* "reference"'):
        torch.func.grad(loss)(input, target, "cpp")


def test_vmap_without_grad_goes_through_the_dispatcher() -> None:
    draw = Draw(6, 5, seed=12)
    stacked, target = draw.input().reshape(2, 3, 5), draw.labels().reshape(2, 3)
    with torch.no_grad():
        found = torch.vmap(lambda z, y: LF.cross_entropy(z, y, backend="reference"))(
            stacked, target
        )
    expected = torch.stack([F.cross_entropy(z, y) for z, y in zip(stacked, target, strict=True)])
    torch.testing.assert_close(found, expected)


def test_no_grad_leaves_no_buffer() -> None:
    """Without a gradient wanted, no N×C memory at all."""
    draw = Draw(64, 4096, seed=1)
    input, target = draw.input().float(), draw.labels()

    def run() -> None:
        with torch.no_grad():
            LF.cross_entropy(input.requires_grad_(), target, backend="cpp")
        LF.cross_entropy(input.detach(), target, backend="cpp")

    run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in profile.events())
    assert allocated < 8 * 64 * 64


def test_error_budget_can_fail() -> None:
    """The judge itself: a gradient off by one part in 10⁵ does not pass."""
    case = CASES["hard"](Draw(24, 7, seed=1))
    found = testing.evaluate(case.to(torch.float32), "cpp")
    truth = testing.evaluate(case.rounded(torch.float32), "reference")
    assert testing.error(found.grads["input"], truth.grads["input"]) < 1e-6
    assert testing.error(found.grads["input"] * (1 + 1e-5), truth.grads["input"]) > 4e-6
    assert testing.error(torch.full((2, 2), float("nan")), torch.ones(2, 2)) == float("inf")
