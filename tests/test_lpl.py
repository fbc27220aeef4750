"""The learned perturbation: its definition, hand-checked numbers, groups, large problems."""

from __future__ import annotations

import pytest
import torch
from cases import Draw
from torch import Tensor

from lpl_fused import Focal, Perturbation
from lpl_fused import functional as LF

ROW = torch.tensor([[2.0, 1.0, 0.0]])
TARGET = torch.tensor([0])


def steps_of(count: int, classes: int = 3) -> Tensor:
    return torch.full((classes,), count, dtype=torch.int32)


# METHODS: one row u = [2, 1, 0], y = 0; (normalize, steps, δ or None, loss) at α = 0.1
NUMBERS = [
    (False, 1, [-0.033476, 0.024473, 0.009003], 0.425944),
    (False, -1, [0.033476, -0.024473, -0.009003], 0.389928),
    (True, 1, [-0.078890, 0.057673, 0.021217], 0.451900),
    (True, -1, [0.078890, -0.057673, -0.021217], 0.366976),
    (True, 5, [-0.392763, 0.292758, 0.100005], 0.668696),
    (False, 5, [-0.180157, 0.132887, 0.047270], 0.514619),
    (True, 0, [0.0, 0.0, 0.0], 0.407606),
]


@pytest.mark.parametrize(("normalize", "count", "delta", "loss"), NUMBERS)
def test_hand_checked(
    backend: str, normalize: bool, count: int, delta: list[float], loss: float
) -> None:
    keywords = {"step_size": 0.1, "normalize": normalize, "backend": backend}
    classes, found = LF.lpl_perturbation(ROW, TARGET, steps_of(count), **keywords)
    assert classes.tolist() == [0]
    torch.testing.assert_close(found, torch.tensor([delta]), atol=1e-6, rtol=0)
    value = LF.lpl_cross_entropy(ROW, TARGET, steps_of(count), **keywords)
    torch.testing.assert_close(value, torch.tensor(loss), atol=1e-6, rtol=0)


def written_out(input: Tensor, target: Tensor, steps: Tensor, step_size: float, normalize: bool):  # type: ignore[no-untyped-def]
    """The definition with a loop over classes, as DESIGN writes it; the slow twin of everything."""
    z = input.clone()
    for c in target.unique().tolist():
        if c < 0:
            continue
        rows = target == c
        for _ in range(abs(int(steps[c]))):
            g = torch.softmax(z[rows], 1).mean(0)
            g[c] -= 1
            if normalize:
                g = g / g.norm()
            z[rows] = z[rows] + steps[c].sign().double() * step_size * g
    return z


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("n", "classes", "labels"),
    [(9, 6, 6), (40, 5, 2), (12, 300, 300), (7, 3, 1)],
    ids=["mixed", "large groups", "mostly unique", "one class"],
)
def test_against_the_definition(
    backend: str, n: int, classes: int, labels: int, normalize: bool
) -> None:
    draw = Draw(n, classes, seed=n)
    input, target, steps = draw.input(), draw.labels() % labels, draw.steps(5)
    target[3] = -100
    z = written_out(input, target, steps, 0.25, normalize)
    keywords = {"step_size": 0.25, "normalize": normalize, "backend": backend}
    present, delta = LF.lpl_perturbation(input, target, steps, **keywords)
    assert present.tolist() == sorted(set(target.tolist()) - {-100})
    for c, row in zip(present.tolist(), delta, strict=True):
        i = int((target == c).nonzero()[0])
        torch.testing.assert_close(row, (z - input)[i], atol=1e-12, rtol=1e-9)
    found = LF.lpl_cross_entropy(input, target, steps, reduction="none", **keywords)
    expected = torch.nn.functional.cross_entropy(z, target, reduction="none")
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_properties(backend: str) -> None:
    """δ sums to 0, points as it should, keeps its bound, and only touches classes that step."""
    draw = Draw(20, 11, seed=1)
    input, target, steps = draw.input(), draw.labels(), draw.steps(7)
    keywords = {"step_size": 0.2, "normalize": True, "backend": backend}
    classes, delta = LF.lpl_perturbation(input, target, steps, **keywords)
    counts = steps[classes]
    assert delta.sum(1).abs().max() < 1e-12
    assert (delta.norm(dim=1) <= counts.abs() * 0.2 + 1e-12).all()
    own = delta.gather(1, classes[:, None])[:, 0]
    assert torch.equal(own.sign(), -counts.sign().double())
    plain = LF.cross_entropy(input, target, reduction="none", backend=backend)
    raised = LF.lpl_cross_entropy(input, target, steps, reduction="none", **keywords)
    moved = (raised - plain).sign()
    mean_moved = torch.zeros(11).double().index_add(0, target, raised - plain)[classes].sign()
    assert torch.equal(mean_moved, counts.sign().double())
    assert (moved[steps[target] == 0] == 0).all()


def test_ignored_and_absent_classes_take_no_part(backend: str) -> None:
    draw = Draw(8, 6, seed=2)
    input, target, steps = draw.input(), draw.labels(), steps_of(4, 6)
    keywords = {"step_size": 0.3, "reduction": "none", "backend": backend}
    padded = torch.cat([input, torch.full((3, 6), float("nan"), dtype=torch.float64)])
    labels = torch.cat([target, torch.full((3,), -100)])
    found = LF.lpl_cross_entropy(padded, labels, steps, **keywords)
    expected = LF.lpl_cross_entropy(input, target, steps, **keywords)
    torch.testing.assert_close(found[:8], expected)
    assert (found[8:] == 0).all()


def test_saturated_targets_stay_finite(backend: str) -> None:
    """p_y = 1 to the last digit: where the norm vanishes a normalised step is 0, not nan."""
    input = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0], [40.0, 0.0, 0.0]])
    for count in (3, -3):
        loss, grad = _loss_and_grad(input, torch.tensor([0, 1, 2]), count, backend)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_normalised_step_below_the_norm_floor_is_zero(backend: str) -> None:
    input = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    _, delta = LF.lpl_perturbation(
        input, TARGET, steps_of(2), step_size=0.5, normalize=True, backend=backend
    )
    assert (delta == 0).all()
    input = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float64)
    _, delta = LF.lpl_perturbation(
        input, TARGET, steps_of(2), step_size=0.5, normalize=True, backend=backend
    )
    torch.testing.assert_close(delta.norm(), torch.tensor(1.0).double(), rtol=1e-6, atol=0)


def _loss_and_grad(
    input: Tensor, target: Tensor, count: int, backend: str
) -> tuple[Tensor, Tensor]:
    leaf = input.clone().requires_grad_()
    steps = steps_of(count, input.shape[1])
    loss = LF.lpl_cross_entropy(leaf, target, steps, step_size=0.5, normalize=True, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def test_masked_classes(backend: str) -> None:
    """A class at −inf gets no δ and no gradient."""
    input = torch.tensor([[1.0, -float("inf"), 0.3, 0.2], [0.1, -float("inf"), 2.0, 0.0]])
    target = torch.tensor([0, 0])
    _, delta = LF.lpl_perturbation(input, target, steps_of(5, 4), step_size=0.3, backend=backend)
    assert delta[0, 1] == 0
    loss, grad = _loss_and_grad(input, target, 5, backend)
    assert loss.isfinite()
    assert (grad[:, 1] == 0).all()


def test_adjusted_base_logits(backend: str) -> None:
    """LA+LPL: δ is found on the adjusted logits, equal to adjusting first and perturbing then."""
    draw = Draw(10, 7, seed=3)
    input, target, steps, offset = draw.input(), draw.labels(), draw.steps(), draw.normal(7)
    keywords = {"step_size": 0.2, "backend": backend}
    found = LF.lpl_cross_entropy(
        input, target, steps, perturbation=Perturbation(offset=offset), **keywords
    )
    expected = LF.lpl_cross_entropy(input + offset, target, steps, **keywords)
    torch.testing.assert_close(found, expected)


def test_large_groups_and_thousands_of_classes() -> None:
    """A Zipf batch: one class with hundreds of rows, most with one; against the reference."""
    draw = Draw(700, 3000, seed=4)
    target = torch.cat([torch.full((400,), 17), draw.labels()[400:]])
    input, steps = draw.input(1.0).float(), draw.steps(3)
    keywords = {"step_size": 0.2, "normalize": True, "reduction": "none"}
    found = LF.lpl_cross_entropy(input, target, steps, backend="cpp", **keywords)
    expected = LF.lpl_cross_entropy(input.double(), target, steps, backend="reference", **keywords)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=2e-6)


def test_thread_count_only_rounds() -> None:
    draw = Draw(300, 200, seed=5)
    input, target, steps = draw.input(), draw.labels() % 4, draw.steps(6)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(LF.lpl_cross_entropy(input, target, steps, step_size=0.3, backend="cpp"))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=1e-13, atol=0)


def test_memory_does_not_grow_with_steps() -> None:
    """Counted, not timed: K steps allocate what one step does; no C×C, no K copies."""
    n, classes = 32, 2000
    draw = Draw(n, classes, seed=6)
    input, target = draw.input().float().requires_grad_(), draw.labels()

    def allocated(count: int) -> int:
        def run() -> None:
            steps = steps_of(count, classes)
            loss = LF.lpl_cross_entropy(input, target, steps, step_size=0.1, backend="cpp")
            torch.autograd.grad(loss, input)

        run()
        with torch.profiler.profile(profile_memory=True) as profile:
            run()
        return sum(max(0, e.self_cpu_memory_usage) for e in profile.events())

    few, many = allocated(1), allocated(40)
    assert few == many
    assert many < 4 * n * classes * 1.3


@pytest.mark.parametrize(
    ("steps", "step_size", "kind", "message"),
    [
        (torch.ones(3), 0.1, TypeError, "steps.*float32"),
        (torch.ones(4).int(), 0.1, ValueError, r"steps.*\(3,\).*\(4,\)"),
        ([1, 1, 1], 0.1, TypeError, "steps.*list"),
        (torch.ones(3).bool(), 0.1, TypeError, "steps.*bool"),
        (torch.ones(3).int(), float("nan"), ValueError, "step_size.*nan"),
        (torch.ones(3).int(), float("inf"), ValueError, "step_size.*inf"),
        (torch.ones(3).int(), -0.1, ValueError, "step_size.*-0.1"),
    ],
    ids=str,
)
def test_bad_steps(steps: Tensor, step_size: float, kind: type[Exception], message: str) -> None:
    for function in (LF.lpl_cross_entropy, LF.lpl_perturbation):
        with pytest.raises(kind, match=message):
            function(ROW, TARGET, steps, step_size=step_size)


def test_targets_that_are_no_labels() -> None:
    with pytest.raises(ValueError, match="class indices, one per row or two"):
        LF.lpl_cross_entropy(ROW, torch.full((1, 3), 1 / 3), steps_of(1), step_size=0.1)


@pytest.mark.parametrize("form", ["plain", "tables", "weights", "smoothed", "through"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_steps_chosen_from_the_batch(backend: str, form: str, dtype: torch.dtype) -> None:
    """A function as `steps` sees the losses without them and gives what its result would give."""
    draw = Draw(12, 40, seed=11)
    target = draw.labels() % 9
    if form == "through":
        target = torch.arange(12)
    target[5] = -100
    keywords = {
        "plain": {},
        "tables": {"perturbation": draw.tables()},
        "weights": {"weight": draw.uniform(40), "phi": Focal(2.0), "reduction": "none"},
        "smoothed": {"label_smoothing": 0.1},
        "through": {"through_perturbation": True},
    }[form]
    if form == "through" and (backend in ("triton", "cuda") or dtype == torch.float16):
        pytest.skip("only the cpp backend differentiates the steps, and not beside float16")
    input = draw.input().to(dtype).requires_grad_()
    seen = []

    def choose(losses: torch.Tensor) -> torch.Tensor:
        assert not losses.requires_grad
        seen.append(losses)
        by_class = torch.zeros(40).index_add(0, target.clamp(min=0), losses.float())
        return (3 * torch.sin(9 * by_class)).round().to(torch.int64)

    def run(steps, backend):  # type: ignore[no-untyped-def]
        return LF.lpl_cross_entropy(
            input, target, steps, step_size=0.2, backend=backend, **keywords
        )

    loss = run(choose, backend)
    bare = {"perturbation": keywords.get("perturbation"), "reduction": "none"}
    expected = LF.cross_entropy(input.detach(), target, backend="reference", **bare)
    torch.testing.assert_close(seen[0], expected)
    assert len(seen) == 1
    steps = choose(seen[0])
    assert steps.count_nonzero() > 3
    given = run(steps, backend)
    torch.testing.assert_close(loss, given)
    upstream = torch.linspace(0.5, 2, loss.numel()).reshape(loss.shape)
    found = [torch.autograd.grad(x, input, upstream, retain_graph=True)[0] for x in (loss, given)]
    again = torch.autograd.grad(loss, input, upstream)[0]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(again, found[1])
    truth = torch.autograd.grad(run(steps, "reference"), input, upstream)[0]
    torch.testing.assert_close(
        found[0], truth, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-7
    )
    with torch.no_grad():
        torch.testing.assert_close(run(choose, backend), given)


def test_chosen_steps_are_checked() -> None:
    input, target = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"steps: expected shape \(4,\)"):
        LF.lpl_cross_entropy(input, target, lambda losses: torch.ones(3).int(), step_size=0.1)
    with pytest.raises(TypeError, match="steps: expected signed integers"):
        LF.lpl_cross_entropy(input, target, lambda losses: torch.ones(4), step_size=0.1)
    with pytest.raises(ValueError, match="class indices"):
        LF.lpl_cross_entropy(input, torch.rand(3, 4), lambda losses: target, step_size=0.1)
