"""Every way that torch looks at a function, other than eager reverse mode: the right value, or an
error that names the way out. Promised in docs/reliability.md."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lpl_fused import Focal, Perturbation
from lpl_fused import functional as LF
from lpl_fused.backends import REFERENCE, has_multilabel

N, C = 6, 9
Call = Callable[[Tensor, str], Tensor]


class Function(NamedTuple):
    """A loss of logits (N, C) alone."""

    call: Call
    multilabel: bool = False
    by_row: bool = False  # reduction "none"
    steps: bool = False


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LABELS = torch.tensor([1, 4, -100, 1, 8, 0])
MANY = torch.randint(2, (N, C), generator=generator(1)).float()
OFFSET = torch.randn(C, generator=generator(2))
STEPS = torch.tensor([3, -2, 0, 1, 2, 0, -1, 2, 4])
LOGITS = torch.randn(N, C, generator=generator(3))
OTHER = torch.randn(N, C, generator=generator(4))
UPSTREAM = torch.rand(N, generator=generator(5))


def cross_entropy(**keywords: Any) -> Call:
    return lambda u, backend: LF.cross_entropy(u, on(u, LABELS), backend=backend, **keywords)


def on(u: Tensor, *values: Tensor) -> Any:
    """The constants of a loss beside logits: where these are meta or fake, so are they."""
    made = tuple(value.to(u.device) for value in values)
    return made[0] if len(made) == 1 else made


FUNCTIONS = {
    "cross_entropy": Function(cross_entropy()),
    "cross_entropy none": Function(cross_entropy(reduction="none"), by_row=True),
    "offset, focal": Function(
        lambda u, backend: LF.cross_entropy(
            u,
            on(u, LABELS),
            perturbation=Perturbation(offset=on(u, OFFSET)),
            phi=Focal(2.0),
            z_loss=1e-2,
            backend=backend,
        )
    ),
    "lpl": Function(
        lambda u, backend: LF.lpl_cross_entropy(
            u, on(u, LABELS), on(u, STEPS), step_size=0.2, backend=backend
        ),
        steps=True,
    ),
    "binary": Function(
        lambda u, backend: LF.binary_cross_entropy_with_logits(u, on(u, MANY), backend=backend),
        multilabel=True,
    ),
    "binary lpl": Function(
        lambda u, backend: LF.lpl_binary_cross_entropy_with_logits(
            u, on(u, MANY), on(u, STEPS), step_size=0.2, backend=backend
        ),
        multilabel=True,
        steps=True,
    ),
}


@pytest.fixture(params=FUNCTIONS)
def function(request: pytest.FixtureRequest, named: str) -> Function:
    found = FUNCTIONS[request.param]
    if found.multilabel and named not in ("auto", REFERENCE) and not has_multilabel(named):
        pytest.skip(f"{named} has no multi-label losses")
    return found


def total(function: Function, u: Tensor, backend: str) -> Tensor:
    loss = function.call(u, backend)
    return (loss * UPSTREAM.to(loss)).sum() if function.by_row else loss


def truth(function: Function, u: Tensor = LOGITS) -> tuple[Tensor, Tensor]:
    """Value and gradient of a total, by the reference in float64."""
    wide = u.detach().double().requires_grad_()
    loss = total(function, wide, REFERENCE)
    return loss.detach(), torch.autograd.grad(loss, wide)[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach().double(), expected.double(), rtol=1e-5, atol=1e-6)


def refused(backend: str, run: Callable[[], object]) -> bool:
    """Whether a backend that was asked for by name refuses, as it must, and says where to go."""
    if backend in ("auto", REFERENCE):
        return False
    with pytest.raises(RuntimeError, match=REFERENCE):
        run()
    return True


def test_forward_mode_is_the_gradient_along_the_tangent(function: Function, named: str) -> None:
    expected = (truth(function)[1] * OTHER.double()).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(LOGITS, OTHER)
        found = forward_ad.unpack_dual(total(function, dual, named)).tangent
    assert found is not None
    close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_forward_mode_of_16_bits(function: Function, named: str, dtype: torch.dtype) -> None:
    logits, moves = LOGITS.to(dtype), OTHER.to(dtype)
    expected = (truth(function, logits)[1] * moves.double()).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, moves)
        found = forward_ad.unpack_dual(total(function, dual, named)).tangent
    close(found, expected)


def test_forward_mode_of_a_table(named: str) -> None:
    def loss(offset: Tensor, backend: str) -> Tensor:
        perturbation = Perturbation(offset=offset, temperature=2.0)
        return LF.cross_entropy(LOGITS, LABELS, perturbation=perturbation, backend=backend)

    leaf = OFFSET.double().requires_grad_()
    wide = LF.cross_entropy(
        LOGITS.double(),
        LABELS,
        perturbation=Perturbation(offset=leaf, temperature=2.0),
        backend=REFERENCE,
    )
    moves = torch.randn(C, generator=generator(7))
    expected = (torch.autograd.grad(wide, leaf)[0] * moves).sum()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(OFFSET, moves)
        if refused(named, lambda: loss(dual, named)):
            return
        close(forward_ad.unpack_dual(loss(dual, named)).tangent, expected)


def test_forward_over_reverse(function: Function, named: str) -> None:
    """A Hessian along a tangent: not of the fused kernels."""

    def along(u: Tensor, backend: str) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(u, OTHER.to(u))
            gradient = torch.autograd.grad(total(function, dual, backend), u)[0]
            found = forward_ad.unpack_dual(gradient).tangent
            assert found is not None
            return found

    if refused(named, lambda: along(LOGITS.clone().requires_grad_(), named)):
        return
    wide = LOGITS.double().requires_grad_()
    gradient = torch.autograd.grad(total(function, wide, REFERENCE), wide, create_graph=True)[0]
    expected = torch.autograd.grad((gradient * OTHER.double()).sum(), wide)[0]
    close(along(LOGITS.clone().requires_grad_(), named), expected)


def test_double_backward(function: Function, named: str) -> None:
    def twice(u: Tensor, backend: str) -> Tensor:
        gradient = torch.autograd.grad(total(function, u, backend), u, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), u)[0]

    expected = twice(LOGITS.double().requires_grad_(), REFERENCE)
    leaf = LOGITS.clone().requires_grad_()
    if named == REFERENCE:
        close(twice(leaf, named), expected)
        return
    with pytest.raises(RuntimeError, match=REFERENCE):
        twice(leaf, named)


def test_several_upstreams_at_once(function: Function, named: str) -> None:
    leaf, upstreams = LOGITS.clone().requires_grad_(), torch.tensor([1.0, -2.0])
    loss = total(function, leaf, named)

    def run() -> Tensor:
        return torch.autograd.grad(loss, leaf, upstreams, is_grads_batched=True)[0]

    if named != REFERENCE:
        with pytest.raises(RuntimeError, match=f"is_grads_batched.*{REFERENCE}"):
            run()
        return
    gradient = truth(function)[1]
    close(run(), torch.stack([gradient, -2 * gradient]))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "grad": lambda loss: torch.func.grad(loss)(LOGITS),
    "jvp": lambda loss: torch.func.jvp(loss, (LOGITS,), (OTHER,))[1],
    "vjp": lambda loss: torch.func.vjp(loss, LOGITS)[1](torch.ones(()))[0],
    "jacrev": lambda loss: torch.func.jacrev(loss)(LOGITS),
    "jacfwd": lambda loss: torch.func.jacfwd(loss)(LOGITS),
    "vmap": lambda loss: torch.func.vmap(loss)(torch.stack([LOGITS, OTHER])),
    "vmap of grad": lambda loss: torch.func.vmap(torch.func.grad(loss))(
        torch.stack([LOGITS, OTHER])
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(function: Function, named: str, transform: str) -> None:
    def run(backend: str) -> Tensor:
        return TRANSFORMS[transform](lambda u: total(function, u, backend))

    if refused(named, lambda: run(named)):
        return
    value, gradient = truth(function)
    second = truth(function, OTHER)
    expected = {
        "jvp": lambda: (gradient * OTHER.double()).sum(),
        "vmap": lambda: torch.stack([value, second[0]]),
        "vmap of grad": lambda: torch.stack([gradient, second[1]]),
    }.get(transform, lambda: gradient)()
    close(run(named), expected)


def test_per_sample_gradients_of_a_model(named: str) -> None:
    """Rows and labels mapped over: a loss of one row each."""
    weight = torch.randn(C, 4, generator=generator(8))
    features, labels = torch.randn(N, 4, generator=generator(9)), LABELS.clamp(min=0)

    def of_one(weight: Tensor, feature: Tensor, label: Tensor, backend: str) -> Tensor:
        return LF.cross_entropy((weight @ feature)[None], label[None], backend=backend)

    def run(backend: str) -> Tensor:
        each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0, None))
        return each(weight, features, labels, backend)

    if refused(named, lambda: run(named)):
        return
    expected = []
    for feature, label in zip(features, labels, strict=True):
        leaf = weight.double().requires_grad_()
        loss = F.cross_entropy((leaf @ feature.double())[None], label[None])
        expected.append(torch.autograd.grad(loss, leaf)[0])
    close(run(named), torch.stack(expected))


@pytest.mark.parametrize("learned", [True, False], ids=["softmax", "sigmoid"])
def test_steps_of_each_sample(learned: bool) -> None:
    """Mapped over with the logits, as those that a loss makes of each sample's own probabilities."""
    logits, steps = torch.stack([LOGITS, OTHER]).double(), torch.stack([STEPS, -2 * STEPS])

    def loss(u: Tensor, steps: Tensor) -> Tensor:
        if learned:
            return LF.lpl_cross_entropy(u, LABELS, steps, step_size=0.2)
        return LF.lpl_binary_cross_entropy_with_logits(u, MANY, steps, step_size=0.2)

    found = torch.func.vmap(torch.func.grad_and_value(loss))(logits, steps)
    for sample, (u, own) in enumerate(zip(logits, steps, strict=True)):
        gradient, value = torch.func.grad_and_value(loss)(u, own)
        close(found[0][sample], gradient)
        close(found[1][sample], value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("learns", [False, True], ids=["", "requires grad"])
def test_jit_trace(function: Function, named: str, learns: bool) -> None:
    def traced() -> Any:
        logits = LOGITS.clone().requires_grad_(learns)
        return torch.jit.trace(lambda u: total(function, u, named), (logits,))

    if function.steps:  # their number is in the data, which a trace would take for a constant
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace"):
            traced()
        return
    if refused(named, traced):
        return
    made = traced()
    for u in (LOGITS, OTHER):
        leaf = u.clone().requires_grad_()
        loss = made(leaf)
        value, gradient = truth(function, u)
        close(loss, value)
        close(torch.autograd.grad(loss, leaf)[0], gradient)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(function: Function, named: str, mode: str) -> None:
    def step(u: Tensor) -> tuple[Tensor, Tensor]:
        leaf = u.detach().requires_grad_()
        loss = total(function, leaf, named)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    made = make_fx(step, tracing_mode=mode, _allow_non_fake_inputs=True)(LOGITS)
    for u in (LOGITS, OTHER):
        for found, expected in zip(made(u), truth(function, u), strict=True):
            close(found, expected)


def test_fake_tensors(function: Function, named: str) -> None:
    """Estimates of memory: shapes alone."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        leaf = torch.empty(N, C, requires_grad=True)
        loss = function.call(leaf, named)
        gradient = torch.autograd.grad(loss.sum(), leaf)[0]
    real = function.call(LOGITS, named)
    assert (loss.shape, loss.dtype) == (real.shape, real.dtype)
    assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype)


def test_a_subclass_that_keeps_its_values_elsewhere(function: Function, named: str) -> None:
    wrapped = TwoTensor(LOGITS.clone(), OTHER.clone()).requires_grad_()
    loss = total(function, wrapped, named)
    gradient = torch.autograd.grad(loss, wrapped)[0]
    for u, value, found in ((LOGITS, loss.a, gradient.a), (OTHER, loss.b, gradient.b)):
        expected = truth(function, u)
        close(value, expected[0])
        close(found, expected[1])


def test_a_mode_that_only_watches(function: Function, named: str) -> None:
    leaf = LOGITS.clone().requires_grad_()
    with FlopCounterMode(display=False):
        loss = total(function, leaf, named)
        gradient = torch.autograd.grad(loss, leaf)[0]
    for found, expected in zip((loss, gradient), truth(function), strict=True):
        close(found, expected)


def test_meta_tensors(function: Function, named: str) -> None:
    leaf = torch.empty(N, C, device="meta", requires_grad=True)
    if named not in ("auto", REFERENCE):
        with pytest.raises(RuntimeError, match="meta"):
            function.call(leaf, named)
        return
    loss = function.call(leaf, named)
    gradient = torch.autograd.grad(loss.sum(), leaf)[0]
    real = function.call(LOGITS, REFERENCE)
    assert (loss.shape, loss.dtype, loss.device.type) == (real.shape, real.dtype, "meta")
    assert (gradient.shape, gradient.device.type) == (leaf.shape, "meta")


def test_another_default_device(function: Function, named: str) -> None:
    leaf = LOGITS.clone().requires_grad_()
    with torch.device("meta"):
        loss = total(function, leaf, named)
        gradient = torch.autograd.grad(loss, leaf)[0]
    for found, expected in zip((loss, gradient), truth(function), strict=True):
        assert found.device.type == "cpu"
        close(found, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export(function: Function, named: str, strict: bool) -> None:
    class Model(torch.nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return total(function, u, named)

    made = torch.export.export(Model(), (LOGITS,), strict=strict).module()
    for u in (LOGITS, OTHER):
        close(made(u), truth(function, u)[0])


def test_compile(function: Function, named: str) -> None:
    torch._dynamo.reset()
    made = torch.compile(
        lambda u: total(function, u, named), fullgraph=True, backend="aot_eager", dynamic=False
    )
    for u in (LOGITS, OTHER):
        leaf = u.clone().requires_grad_()
        loss = made(leaf)
        value, gradient = truth(function, u)
        close(loss, value)
        close(torch.autograd.grad(loss, leaf)[0], gradient)


@contextlib.contextmanager
def kept_tensors() -> Iterator[list[torch.Size]]:
    """The shapes of tensors that were made within and are still there, cycles put aside."""
    shapes: list[torch.Size] = []
    gc.freeze()  # what is there already is not looked at, which would take most of the time
    try:
        yield shapes
        gc.collect()
        shapes += [t.shape for t in gc.get_objects() if type(t) is Tensor]
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_keep_nothing(function: Function, named: str, reentrant: bool) -> None:
    leaf = LOGITS.clone().requires_grad_()

    def loss(u: Tensor) -> Tensor:
        return total(function, u * 1.5, named)  # logits that are made within

    with kept_tensors() as kept:
        found = checkpoint(loss, leaf, use_reentrant=reentrant)
    assert (N, C) not in kept
    found.backward()
    gradient = 1.5 * truth(function, 1.5 * LOGITS.double())[1]
    close(leaf.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_holds_no_gradient(named: str, dtype: torch.dtype) -> None:
    rows, columns, chunks = 8, 3001, 4
    h = torch.randn(rows, 4, dtype=dtype, requires_grad=True)
    w = torch.randn(columns, 4, dtype=dtype, requires_grad=True)
    labels = torch.arange(rows)

    def loss(h: Tensor) -> Tensor:
        return LF.cross_entropy(h @ w.t(), labels, backend=named)

    with kept_tensors() as kept:
        found = [checkpoint(loss, h, use_reentrant=False) for _ in range(chunks)]
    assert (rows, columns) not in kept  # what guards them in tests is bytes
    assert len(found) == chunks


def test_lazily_negated(function: Function, named: str) -> None:
    """As `imag` of a conjugate is: memory of the other sign."""
    negated = torch._neg_view(-LOGITS)
    assert negated.is_neg()
    assert torch.equal(negated, LOGITS)
    leaf = negated.detach().requires_grad_()
    loss = total(function, leaf, named)
    gradient = torch.autograd.grad(loss, leaf, torch._neg_view(-torch.ones(())))[0]
    for found, expected in zip((loss, gradient), truth(function), strict=True):
        close(found, expected)


def test_an_upstream_without_storage(function: Function, named: str) -> None:
    leaf = LOGITS.clone().requires_grad_()
    loss = function.call(leaf, named)
    nothing = torch._efficientzerotensor(tuple(loss.shape))
    gradient = torch.autograd.grad(loss, leaf, nothing)[0]
    assert torch.equal(gradient, torch.zeros_like(LOGITS))


@pytest.mark.parametrize("shape", [(N, C), (N, 1)], ids=str)
def test_zeros_without_storage(named: str, shape: tuple[int, int]) -> None:
    """Logits, labels and tables: the dispatcher has one number in the place of all."""
    nothing, classes = torch._efficientzerotensor, shape[1]
    labels, offset = nothing((N,), dtype=torch.int64), nothing((classes,))
    steps = nothing((classes,), dtype=torch.int32)
    for logits in (nothing(shape), torch.randn(shape, generator=generator(6))):
        expected = F.cross_entropy(logits.clone(), torch.zeros(N, dtype=torch.int64))
        moved = LF.cross_entropy(
            logits, labels, perturbation=Perturbation(offset=offset), backend=named
        )
        learned = LF.lpl_cross_entropy(logits, labels, steps, step_size=0.1, backend=named)
        linear = LF.linear_cross_entropy(
            logits, torch.eye(classes), labels, linear_bias=offset, backend=named
        )
        for found in (moved, learned, linear):
            close(found, expected)
        if named in ("auto", REFERENCE) or has_multilabel(named):
            found = LF.binary_cross_entropy_with_logits(logits, nothing(shape), backend=named)
            close(found, F.softplus(logits.clone()).mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_no_rows_and_an_upstream_of_stride_0(named: str, dtype: torch.dtype) -> None:
    leaf = torch.zeros(0, C, dtype=dtype, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    losses = [LF.cross_entropy(leaf, labels, reduction="none", backend=named)]
    losses.append(
        LF.lpl_cross_entropy(leaf, labels, STEPS, step_size=0.1, reduction="none", backend=named)
    )
    if named in ("auto", REFERENCE) or has_multilabel(named):
        binary = LF.binary_cross_entropy_with_logits
        losses.append(binary(leaf, leaf.detach(), reduction="none", backend=named))
    for loss in losses:
        gradient = torch.autograd.grad(loss.sum(), leaf)[0]
        assert gradient.shape == (0, C)


FREED = """
import torch
from lpl_fused import functional as LF
logits, labels = torch.randn(4, 60), torch.arange(4)
freed = {what}
freed.untyped_storage().resize_(0)
try:
    LF.cross_entropy(logits, labels, backend={backend!r})
except RuntimeError as error:
    assert "memory" in str(error), error
    print("refused")
"""


@pytest.mark.parametrize("what", ["logits", "labels"])
def test_freed_memory_is_refused(named: str, what: str) -> None:
    """As FSDP frees it. In a process of its own, which is what used to die."""
    if named in (REFERENCE, "cuda"):
        pytest.skip("torch's own" if named == REFERENCE else "its host stand-in is in this process")
    if named == "triton" and what == "labels":
        pytest.skip("an operation of torch comes first, which dies of it")
    run = subprocess.run(
        [sys.executable, "-c", FREED.format(what=what, backend=named)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert run.stdout.strip() == "refused", (run.returncode, run.stderr[-500:])
