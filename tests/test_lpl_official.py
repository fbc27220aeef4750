"""The authors' scripts, reproduced: the regression vectors that running them gave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch._dynamo.testing

from lpl_fused import losses
from lpl_fused.losses import lpl_official
from lpl_fused.losses.lpl_official import (
    VARIANTS,
    Variant,
    official_adjustment,
    official_cross_entropy,
    official_perturbation,
    official_steps,
)
from lpl_fused.problem import Problem

KEYWORDS = losses.CrossEntropyLoss().keywords()


def test_one_row_is_judged_above_the_absent_classes() -> None:
    variant = Variant(0.1, 1, "mean", "fixed")
    logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
    counts = torch.ones(3, dtype=torch.float64)
    delta, _ = official_perturbation(Problem(logits, target), variant, counts, 1)
    expected = torch.tensor([[0.1, -0.073106, -0.026894]])
    torch.testing.assert_close(delta, expected, atol=1e-6, rtol=0)
    loss = official_cross_entropy(logits, target, variant, counts, 1, KEYWORDS)
    torch.testing.assert_close(loss, torch.tensor(0.356703), atol=1e-6, rtol=0)


def test_four_class_vector() -> None:
    logits = torch.tensor([[2.0, 1, 0, 0], [1, 1, 0, 0], [0, 0.5, 2, 0], [0, 1, 0, 0]])
    target = torch.tensor([0, 0, 2, 1])
    variant = replace(VARIANTS["official-balanced"], step_size=0.1, steps=10)
    counts = torch.ones(4, dtype=torch.float64)
    delta, slot = official_perturbation(Problem(logits, target), variant, counts, 1)
    expected = torch.tensor(
        [
            [1.9465, -0.9930, -0.4767, -0.4767],
            [1.9465, -0.9930, -0.4767, -0.4767],
            [-0.4920, -0.7222, 1.7062, -0.4920],
            [-0.6194, 1.8581, -0.6194, -0.6194],
        ]
    )
    torch.testing.assert_close(delta[slot], expected, atol=1e-4, rtol=0)
    loss = official_cross_entropy(logits, target, variant, counts, 1, KEYWORDS)
    torch.testing.assert_close(loss, torch.tensor(0.072828), atol=2e-6, rtol=0)
    gap = torch.tensor([0.1, -0.2, 0.3, 0.0])
    index = official_steps(Problem(logits, target), variant, counts, 1, gap)
    assert index.tolist() == [10, 10, 10, 10]


def profile(classes: int, most: int) -> torch.Tensor:
    counts = [int(most * 0.01 ** (i / (classes - 1))) for i in range(classes)]
    return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "classes", "most", "head", "where", "expected"),
    [
        ("official-long-tail-10", 10, 5000, 4, range(10), [5, 3, 1, 0, 0, 0, 1, 3, 5, 9]),
        ("official-la-long-tail", 100, 500, 27, [0, 26, 27, 50, 99], [9, 2, 1, 4, 49]),
    ],
)
def test_step_indices(name, classes, most, head, where, expected) -> None:  # type: ignore[no-untyped-def]
    problem = Problem(torch.zeros(1, classes), torch.zeros(1, dtype=torch.int64))
    counts = profile(classes, most)
    index = official_steps(problem, VARIANTS[name], counts, head, torch.zeros(classes))
    assert index[list(where)].tolist() == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_heads_are_the_scripts(name: str) -> None:
    lowered = {
        classes: losses.LPLLoss(range(classes, 0, -1), variant=name).num_head
        for classes in (10, 100)
    }
    expected = {10: 3, 100: 27} if name == "official-la-long-tail" else {10: 4, 100: 40}
    assert lowered == expected
    assert losses.LPLLoss(range(100, 0, -1), variant=name, head=0.5).num_head == 50
    assert losses.LPLLoss(range(100, 0, -1)).num_head == 40


def test_rounded_index_wraps_to_the_last_snapshot() -> None:
    """1000 classes, imbalance 256: 142 classes get index −1, the strongest snapshot."""
    counts = torch.tensor([int(1280 * 256 ** (-i / 999)) for i in range(1000)]).double()
    problem = Problem(torch.zeros(1, 1000), torch.zeros(1, dtype=torch.int64))
    variant = VARIANTS["official-la-long-tail"]
    index = official_steps(problem, variant, counts, 27, torch.zeros(1000))
    assert (index == 999).sum() > 100


def test_adjustment_is_permuted_from_eleven_classes_on() -> None:
    counts = torch.arange(12, 0, -1).double()
    adjusted = official_adjustment(counts)
    prior = torch.log(counts / counts.sum() + 1e-12)
    assert torch.equal(adjusted[2], prior[10])
    assert torch.equal(
        official_adjustment(counts[:10]), torch.log(counts[:10] / counts[:10].sum() + 1e-12)
    )


def test_saturated_class_is_nan_as_in_the_scripts() -> None:
    logits = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]])
    loss = losses.LPLLoss([1, 1, 1], split="balanced", variant="official-balanced")
    assert loss(logits, torch.tensor([0, 1])).isnan()


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_and_differentiate(name: str) -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 10, requires_grad=True)
    target = torch.randint(10, (16,))
    loss = losses.LPLLoss(profile(10, 5000), variant=name)
    value = loss(logits, target)
    grad = torch.autograd.grad(value, logits)[0]
    assert value.isfinite()
    assert grad.isfinite().all()
    assert grad.sum(1).abs().max() < 1e-6
    constant = losses.LPLLoss(profile(10, 5000))
    assert not torch.equal(value, constant(logits, target))


def test_long_tail_scripts_differentiate_the_steps() -> None:
    torch.manual_seed(0)
    logits = torch.randn(16, 10, requires_grad=True)
    target = torch.randint(10, (16,))
    counts = profile(10, 5000)
    through = VARIANTS["official-long-tail-10"]
    grads = []
    for variant in (through, replace(through, differentiable=False)):
        value = official_cross_entropy(logits, target, variant, counts, 4, KEYWORDS)
        grads.append(torch.autograd.grad(value, logits)[0])
    relative = (grads[0] - grads[1]).norm() / grads[0].norm()
    assert 0.005 < relative < 0.5


class Trained(torch.nn.Module):
    """Logits that require grad, and their loss."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.head = torch.nn.Linear(12, 12)
        self.loss = losses.LPLLoss(profile(12, 100).tolist(), variant=variant)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.loss(self.head(x), target)


def features(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(n)
    return torch.randn(n, 12, generator=made), torch.randint(12, (n,), generator=made)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("strict", [False, True])
def test_exported(name: str, strict: bool) -> None:
    """How many steps there are is in the data, so they are one operator: all but those that are
    differentiated, which say so."""
    model, through = Trained(name), VARIANTS[name].differentiable
    if through:
        with pytest.raises(Exception, match=r"variant: .*torch\.no_grad"):
            torch.export.export(model, features(8), strict=strict)
        plain = Trained(name).eval()
        made = torch.export.export(plain, features(8), strict=strict).module()
        torch.testing.assert_close(made(*features(8)), plain(*features(8)))
    with torch.set_grad_enabled(not through):
        made = torch.export.export(model, features(8), strict=strict).module()
    given = torch.randn(8, 12), torch.arange(8) // 2
    torch.testing.assert_close(made(*given), model(*given))


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if not v.differentiable])
def test_compiled_as_one_graph_for_all_sizes(name: str) -> None:
    torch._dynamo.reset()
    model = Trained(name)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for n in (9, 7, 12):
        found, expected = (
            torch.autograd.grad(call(*features(n)), model.head.weight) for call in (compiled, model)
        )
        torch.testing.assert_close(found, expected)
    assert counter.frame_count == 2  # a forward and its backward


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_looked_at_otherwise(name: str) -> None:
    """Without numbers, and by a trace, which would make constants of them."""
    loss, (logits, target) = Trained(name).loss, features(12)
    assert loss(logits.to("meta"), target.to("meta")).is_meta
    for learns in (False, True):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace: .*torch\.export"):
            torch.jit.trace(loss, (logits.requires_grad_(learns), target), check_trace=False)


def test_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []
    made = lpl_official._perturbation_op
    monkeypatch.setattr(lpl_official, "_perturbation_op", lambda *a: seen.append(a) or made(*a))
    torch.export.export(Trained("official-varied"), features(8))
    problem, _, num_head, *variant = seen[0]
    assert lpl_official.Variant(*variant) == VARIANTS["official-varied"]
    x, target = features(8)
    packed = (x, target, [None] * (len(problem) - 3), *problem.options.packed())  # type: ignore[arg-type, attr-defined]
    operator = torch.ops.lpl_fused.official_perturbation.default
    torch.library.opcheck(operator, (*packed, profile(12, 100), num_head, *variant))
