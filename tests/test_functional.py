"""`functional.cross_entropy` as its users meet it: torch's equal, hard numbers."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import PHIS
from torch import Tensor

from lpl_fused import GCE, Alpha, Focal, MarginPenalty, MixedTarget, Perturbation, Poly1
from lpl_fused import functional as LF

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

OPINFO = next(op for op in op_db if op.name == "nn.functional.cross_entropy")
# METHODS' running example: u, y = 0 and 2
EXAMPLE = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def labels(n: int, classes: int, seed: int = 1) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def widened(value: object, dtype: torch.dtype) -> object:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.detach().to(dtype).requires_grad_(value.requires_grad)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_equals_torch_on_opinfo_samples(backend: str, dtype: torch.dtype) -> None:
    """PyTorch's own samples of F.cross_entropy: value and gradients (of class probabilities too)."""
    count = 0
    for sample in OPINFO.sample_inputs("cpu", dtype, requires_grad=True):
        target, *others = sample.args
        keywords = sample.kwargs
        # beside probabilities that want a gradient only the reference serves, and "auto" says so
        chosen = "auto" if target.requires_grad else backend
        found = LF.cross_entropy(sample.input, target, *others, backend=chosen, **keywords)
        leaves = [t for t in (sample.input, target) if t.requires_grad]
        upstream = random(*found.shape).to(dtype) + 2
        given = torch.autograd.grad(found, leaves, upstream.to(found.dtype))

        # in 16 bits torch itself rounds gradients away: it is asked in float32
        wide = dtype if dtype.itemsize > 2 else torch.float32
        exact = [widened(t, wide) for t in (sample.input, target, *others)]
        keywords = {name: widened(value, wide) for name, value in keywords.items()}
        expected = F.cross_entropy(*exact, **keywords)
        wanted = torch.autograd.grad(
            expected, [t for t in exact[:2] if t.requires_grad], upstream.to(wide)
        )
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, equal_nan=True)
        for one, other in zip(given, wanted, strict=True):
            torch.testing.assert_close(one, other.to(dtype), equal_nan=True)
        count += 1
    assert count >= 20


@pytest.mark.parametrize(
    ("phi", "expected"),
    [
        ("log", [0.407606, 2.407606]),
        (Alpha(0.5), [0.503215, 10.107338]),
        (Alpha(1.0), [0.407606, 2.407606]),
        (Alpha(2.0), [0.368754, 1.399898]),
        (Alpha(4.0), [0.351194, 1.114188]),
        (Alpha(float("inf")), [0.334759, 0.909969]),
        (Focal(2.0), [0.045678, 1.993605]),
        (Poly1(2.0), [1.077124, 4.227545]),
        (GCE(0.7), [0.354614, 1.163737]),
    ],
    ids=str,
)
def test_phi_numbers(backend: str, phi: object, expected: list[float]) -> None:
    loss = LF.cross_entropy(EXAMPLE, LABELS, phi=phi, reduction="none", backend=backend)
    torch.testing.assert_close(loss, torch.tensor(expected), atol=2e-6, rtol=1e-6)


def test_other_numbers(backend: str) -> None:
    def loss(**keywords: object) -> Tensor:
        return LF.cross_entropy(EXAMPLE, LABELS, reduction="none", backend=backend, **keywords)

    def check(found: Tensor, expected: list[float]) -> None:
        torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-6)

    check(loss(label_smoothing=0.1), [0.507606, 2.307606])
    check(loss(z_loss=1e-4), [0.408186, 2.408186])
    check(loss(perturbation=Perturbation(offset=torch.tensor([-0.104360, -2.406945, -4.709530]))), [0.037432, 6.642602])  # fmt: skip
    mixed = MixedTarget(torch.tensor([0]), torch.tensor([2]), 0.7)
    check(LF.cross_entropy(EXAMPLE[:1], mixed, reduction="none", backend=backend), [1.007606])
    row = Perturbation(
        rows=torch.tensor([[0, 0.175, 0.5], [0.5, 0.175, 0]]), row_index=torch.tensor([0, 1])
    )
    check(loss(perturbation=row), [0.507640, 2.798539])


def test_poly1_vector() -> None:
    """A check from optax: soft targets, four values of epsilon."""
    logits = torch.tensor([[0.14, 1.456, 2.356, -0.124, -2.47]])
    target = torch.tensor([[0.1, 0.15, 0.2, 0.25, 0.3]])
    # poly-1 of soft targets as optax has it, ℓ + ε(1 − Σ t p), is Σ t φ: linear in p
    for epsilon, expected in ((0, 2.8990), (1, 3.7153), (2, 4.5317), (-1, 2.0827)):
        found = LF.cross_entropy(logits, target, phi=Poly1(epsilon))
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)


def test_logits_are_never_written(backend: str) -> None:
    base = random(6, 9, seed=3).requires_grad_()
    probabilities = torch.softmax(base, 1)
    probabilities.retain_grad()
    before, version = probabilities.detach().clone(), probabilities._version
    target = labels(6, 9)
    LF.cross_entropy(probabilities, target, backend=backend).backward()
    assert torch.equal(probabilities.detach(), before)
    assert probabilities._version == version
    expected = torch.autograd.grad(F.cross_entropy(torch.softmax(base, 1), target), base)[0]
    torch.testing.assert_close(base.grad, expected)


def test_backward_twice(backend: str) -> None:
    """The gradient buffer goes to the first backward; later ones must not see what became of it."""
    input = random(5, 7).requires_grad_()
    target = labels(5, 7)
    loss = LF.cross_entropy(input, target, reduction="none", backend=backend)
    for seed in (1, 2, 3):
        upstream = random(5, seed=seed)
        found = torch.autograd.grad(loss, input, upstream, retain_graph=True)[0]
        kept = found.clone()
        expected = torch.autograd.grad(
            F.cross_entropy(input, target, reduction="none"), input, upstream
        )[0]
        torch.testing.assert_close(kept, expected)


def test_accumulated_gradients(backend: str) -> None:
    input = random(5, 7).requires_grad_()
    target = labels(5, 7)
    for _ in range(2):
        LF.cross_entropy(input, target, backend=backend).backward()
    expected = torch.autograd.grad(F.cross_entropy(input, target), input)[0]
    torch.testing.assert_close(input.grad, 2 * expected)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_upstream_layouts(backend: str, reduction: str) -> None:
    """Expanded, strided and transposed upstream gradients."""
    target = labels(12, 7).reshape(4, 3)
    input = random(4, 7, 3).requires_grad_()
    for use in (
        lambda loss: loss.sum(),
        lambda loss: (loss.mean() * 3).expand(2, 5).sum(),
        lambda loss: (loss.t() * random(3, 4)).sum() if loss.dim() == 2 else loss * 2,
        lambda loss: loss[..., ::2].sum() if loss.dim() == 2 else loss,
    ):
        found = torch.autograd.grad(
            use(LF.cross_entropy(input, target, reduction=reduction, backend=backend)), input
        )[0]
        expected = torch.autograd.grad(
            use(F.cross_entropy(input, target, reduction=reduction)), input
        )[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "layout",
    [
        "transposed",
        "sliced columns",
        "sliced rows",
        "every other column",
        "expanded row",
        "channels last",
    ],
)
def test_logit_layouts(backend: str, layout: str) -> None:
    views = {
        "transposed": lambda: random(7, 12).t(),
        "sliced columns": lambda: random(12, 20)[:, 3:10],
        "sliced rows": lambda: random(24, 7)[::2],
        "every other column": lambda: random(12, 14)[:, ::2],
        "expanded row": lambda: random(1, 7).expand(12, 7),
        "channels last": lambda: random(3, 7, 2, 2).to(memory_format=torch.channels_last),
    }
    base = views[layout]()
    target = labels(12, 7)
    if base.dim() == 4:
        target = target.reshape(3, 2, 2)
    input = base.detach().requires_grad_()
    found = LF.cross_entropy(input, target, backend=backend)
    expected = F.cross_entropy(input, target)
    torch.testing.assert_close(found, expected)
    upstream = torch.tensor(1.7)
    torch.testing.assert_close(
        torch.autograd.grad(found, input, upstream)[0],
        torch.autograd.grad(expected, input, upstream)[0],
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_integer_targets(backend: str, dtype: torch.dtype) -> None:
    input, target = random(6, 9), labels(6, 9)
    torch.testing.assert_close(
        LF.cross_entropy(input, target.to(dtype), backend=backend), F.cross_entropy(input, target)
    )


def test_common_offset_keeps_the_loss(backend: str) -> None:
    """lse − z_y would cancel to 0 under a large common offset."""
    input = random(6, 9, dtype=torch.float64)
    target = labels(6, 9)
    expected = F.cross_entropy(input, target, reduction="none")
    for offset in (1e4, 1e8, -1e8):
        shifted = input + offset
        exact = F.cross_entropy(shifted, target, reduction="none")
        found = LF.cross_entropy(shifted, target, reduction="none", backend=backend)
        torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)
    single = LF.cross_entropy((input.float() + 4096.0), target, reduction="none", backend=backend)
    exact = F.cross_entropy((input.float() + 4096.0).double(), target, reduction="none")
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)
    assert expected.isfinite().all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("offset", [100.0, -100.0, 1e4, -1e4])
def test_common_offset_keeps_the_loss_under_a_learned_perturbation(
    backend: str, offset: float, smoothing: float
) -> None:
    shifted = random(6, 9).float() + offset
    target, steps = torch.tensor([3, 1, 3, 0, 8, 3]), torch.tensor([2, -4, 0, 3, 1, 1, 1, 1, -2])

    def found(input: Tensor, backend: str) -> tuple[Tensor, ...]:
        leaf = input.clone().requires_grad_()
        keywords = {"step_size": 0.6, "label_smoothing": smoothing, "reduction": "none"}
        loss = LF.lpl_cross_entropy(leaf, target, steps, backend=backend, **keywords)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    truth = found(shifted.double() - offset, "reference")
    for value, exact in zip(found(shifted, backend), truth, strict=True):
        off = (value.double() - exact).abs().max() / exact.abs().max()
        assert off <= 1e-6
    for value, exact in zip(found(shifted.double(), backend), truth, strict=True):
        assert (value - exact).abs().max() <= 1e-12 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_confident_rows_keep_their_digits(backend: str, dtype: torch.dtype) -> None:
    """1 − p_y is formed from the rivals' mass: at p_y = 1 − 1e-13 it is not rounded to 0."""
    input = torch.tensor([[30.0, 0.0, -1.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    loss = LF.cross_entropy(input, torch.tensor([0]), backend=backend)
    grad = torch.autograd.grad(loss, input)[0].double()
    exact = input.detach().double().requires_grad_()
    truth = LF.cross_entropy(exact, torch.tensor([0]), backend="reference")
    expected = torch.autograd.grad(truth, exact)[0]
    assert expected[0, 0] < 0
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        grad, expected, rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=0
    )


def test_minus_infinity(backend: str) -> None:
    """Masked classes get no probability; a masked target loses all."""
    inf = float("inf")
    input = torch.tensor(
        [[1.0, -inf, 0.5, -inf], [-inf, -inf, -inf, 2.0], [-inf, 0.0, 1.0, 2.0]], requires_grad=True
    )
    target = torch.tensor([0, 3, 0])
    found = LF.cross_entropy(input, target, reduction="none", backend=backend)
    expected = F.cross_entropy(input, target, reduction="none")
    torch.testing.assert_close(found, expected)
    assert found[2] == inf
    ours = torch.autograd.grad(found, input, torch.ones(3))[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, input, torch.ones(3))[0])
    assert (ours[0, 1::2] == 0).all()


def test_rows_that_are_no_numbers(backend: str) -> None:
    """nan, +inf and all −inf give nan, as in torch, and nothing else is touched."""
    inf, nan = float("inf"), float("nan")
    input = torch.tensor(
        [[1.0, 2.0, 3.0], [nan, 0.0, 1.0], [0.0, inf, 1.0], [-inf, -inf, -inf], [0.0, 1.0, nan]],
        requires_grad=True,
    )
    target = torch.tensor([1, 0, 1, 2, 0])
    found = LF.cross_entropy(input, target, reduction="none", backend=backend)
    assert found[0].isfinite()
    assert found[1:].isnan().all()
    grad = torch.autograd.grad(found.sum(), input)[0]
    assert grad[0].isfinite().all()
    assert grad[1:].isnan().any(1).all()


def test_ignored_rows_may_hold_garbage(backend: str) -> None:
    input = random(4, 5)
    input[2] = float("nan")
    input.requires_grad_()
    target = torch.tensor([0, 1, -100, 4])
    loss = LF.cross_entropy(input, target, backend=backend)
    grad = torch.autograd.grad(loss, input)[0]
    assert loss.isfinite()
    assert (grad[2] == 0).all()
    assert grad.isfinite().all()


def test_dense_target_without_mass_on_a_masked_class(backend: str) -> None:
    """0·(−log 0) is 0 here; torch gives nan."""
    input = torch.tensor([[1.0, 2.0, -float("inf")]], requires_grad=True)
    target = torch.tensor([[0.25, 0.75, 0.0]])
    loss = LF.cross_entropy(input, target, backend=backend)
    expected = F.cross_entropy(input[:, :2], target[:, :2])
    torch.testing.assert_close(loss, expected)
    assert torch.autograd.grad(loss, input)[0].isfinite().all()


def test_nothing_to_average(backend: str) -> None:
    """As in torch: an empty mean is nan, an empty sum 0."""
    ignored = torch.full((3,), -100)
    for input, target in (
        (random(3, 5), ignored),
        (torch.empty(0, 5), torch.empty(0, dtype=torch.long)),
    ):
        input = input.detach().requires_grad_()
        mean = LF.cross_entropy(input, target, backend=backend)
        assert mean.isnan()
        assert torch.autograd.grad(mean, input)[0].shape == input.shape
        assert LF.cross_entropy(input, target, reduction="sum", backend=backend) == 0
        assert (
            LF.cross_entropy(input, target, reduction="none", backend=backend).shape == target.shape
        )


def test_regularisers_off_leave_plain_cross_entropy(backend: str) -> None:
    input, target = random(8, 21), labels(8, 21)
    plain = LF.cross_entropy(input, target, reduction="none", backend=backend)
    for keywords in (
        {"z_loss": 0.0},
        {"label_smoothing": 0.0},
        {"softcap": 0.0},
        {"phi": Focal(0.0)},
        {"phi": Alpha(1.0)},
        {"perturbation": Perturbation()},
        {"perturbation": Perturbation(offset=torch.zeros(21), scale=torch.ones(21))},
    ):
        same = LF.cross_entropy(input, target, reduction="none", backend=backend, **keywords)
        assert torch.equal(plain, same), keywords


def test_bitwise_repeatable(backend: str) -> None:
    input, target = random(40, 333).requires_grad_(), labels(40, 333)
    tables = {
        n: random(333, seed=s).requires_grad_() for s, n in enumerate(("scale", "offset", "margin"))
    }

    def once() -> list[Tensor]:
        loss = LF.cross_entropy(input, target, perturbation=Perturbation(**tables), backend=backend)
        return [loss, *torch.autograd.grad(loss, [input, *tables.values()])]

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


@pytest.mark.parametrize("phi", PHIS)
def test_phi_at_certainty(backend: str, phi: str) -> None:
    """p_y = 1 exactly: finite loss and gradient, also for focal with γ < 1."""
    input = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, -200.0]], requires_grad=True)
    loss = LF.cross_entropy(input, torch.tensor([0, 0]), phi=PHIS[phi], backend=backend)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, input)[0].isfinite().all()


def test_allocates_one_gradient_and_nothing_else_that_big() -> None:
    """Forward and backward of the C++ backend: one N×C buffer, all else O(N + C)."""
    n, classes = 64, 4096
    input, target = random(n, classes).requires_grad_(), labels(n, classes)
    offset = random(classes)

    def run() -> None:
        loss = LF.cross_entropy(
            input, target, perturbation=Perturbation(offset=offset), backend="cpp"
        )
        torch.autograd.grad(loss, input)

    run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    allocated = [e.self_device_memory_usage or e.self_cpu_memory_usage for e in profile.events()]
    total = sum(size for size in allocated if size > 0)
    buffer = 4 * n * classes
    assert buffer <= total <= buffer + 64 * (n + classes)


PARTS = ("target", "weight", "sample_weight", "lam", "label_smoothing", "multiplier", "rho")


@pytest.mark.parametrize("part", PARTS)
def test_what_a_backend_does_not_differentiate_it_refuses(backend: str, part: str) -> None:
    """A gradient that is left out would be a wrong one; "auto" takes the reference for it."""
    logits, y = random(4, 3), labels(4, 3)
    leaf = (0.1 + 0.9 * torch.rand(4 if part in ("sample_weight", "lam") else 3)).requires_grad_()
    target: object = y
    keywords: dict[str, object] = {}
    if part == "target":
        leaf = torch.softmax(random(4, 3, seed=2), 1).requires_grad_()
        target = leaf
    elif part == "lam":
        target = MixedTarget(y, y.flip(0), leaf)
    elif part in ("multiplier", "rho"):
        tables = {"multiplier": torch.ones(3), "rho": torch.ones(3), part: leaf}
        keywords["penalty"] = MarginPenalty("phr", margin=0.1, **tables)
    else:
        keywords[part] = leaf

    def run(backend: str) -> Tensor:
        return LF.cross_entropy(logits.requires_grad_(), target, backend=backend, **keywords)  # type: ignore[arg-type]

    if backend != "reference":
        with pytest.raises(RuntimeError, match="requires grad, which backend"):
            run(backend)
        with torch.no_grad():
            run(backend)  # no gradient is asked for
    for name in ("auto", "reference"):
        (grad,) = torch.autograd.grad(run(name), leaf)
        assert grad.abs().sum() > 0
