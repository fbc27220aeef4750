"""What all further loss modules have in common: they trace, they train, their copies agree."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lpl_fused import losses
from lpl_fused.linear import NormalizedLinear

N, C, A = 24, 5, 6
COUNTS = [50, 20, 10, 5, 1]

# name: the module, and whether its logits are cosines; further arguments by the kind of loss below
MODULES = {
    "logit-clip": lambda: losses.LogitClipLoss(2.0),
    "logit-clip-official": lambda: losses.LogitClipLoss(1.5, 3.0, form="official"),
    "logit-norm": lambda: losses.LogitNormLoss(0.2),
    "alpha": lambda: losses.AlphaLoss(),
    "gce": lambda: losses.GCELoss(),
    "truncated-gce": lambda: losses.TruncatedGCELoss(N),
    "poly-1": lambda: losses.Poly1Loss(),
    "z-loss": lambda: losses.ZLoss(),
    "t5x": lambda: losses.T5XCrossEntropyLoss(0.1, 1e-3),
    "cosface": lambda: losses.CosFaceLoss(16.0, 0.2),
    "am-softmax": lambda: losses.AMSoftmaxLoss(16.0),
    "arcface": lambda: losses.ArcFaceLoss(16.0, 0.2),
    "group-vs": lambda: losses.GroupVSLoss([30, 8, 2]),
    "seesaw": lambda: losses.SeesawLoss(C),
    "gcl": lambda: losses.GCLLoss(COUNTS, s=16.0),
    "blv": lambda: losses.BLVLoss(COUNTS),
    "softmax-eql": lambda: losses.SoftmaxEQLLoss(COUNTS, 0.1),
    "eql": lambda: losses.EQLLoss(COUNTS, 0.1),
    "eql-v2": lambda: losses.EQLv2Loss(C),
    "isda": lambda: losses.ISDALoss(C, A),
    "isda-full": lambda: losses.ISDALoss(C, A, covariance="full"),
    "l-infinity": lambda: losses.LInfMixtureLoss(1.0),
    "l-infinity-hinge": lambda: losses.LInfHingeLoss(1.0),
}
COSINES = ("cosface", "am-softmax", "arcface", "gcl")


def further(loss: nn.Module, features: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The arguments of a loss beside logits and target."""
    if isinstance(loss, losses.ISDALoss):
        return features, weight
    if isinstance(loss, losses.GroupVSLoss):
        return (torch.arange(N) % 3,)
    return (torch.arange(N),) if isinstance(loss, losses.TruncatedGCELoss) else ()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(C, (N,), generator=generator)
    centers = torch.randn(C, A, generator=generator)
    return centers[target] + 0.5 * torch.randn(N, A, generator=generator), target


@pytest.mark.parametrize("name", MODULES)
def test_compiles_as_one_graph(name: str) -> None:
    """Loss, gradient and state come out as without torch.compile."""
    features, target = data()
    weight = torch.randn(C, A, generator=torch.Generator().manual_seed(1))
    eager = MODULES[name]()
    compiled = copy.deepcopy(eager)
    torch._dynamo.reset()
    traced = torch.compile(compiled, fullgraph=True, backend="eager")
    results = []
    for loss in (eager, traced):
        logits = torch.tanh(features @ weight.t()).requires_grad_()
        torch.manual_seed(2)
        value = loss(logits, target, *further(eager, features, weight))
        results.append((value.detach(), *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(eager.named_buffers()))


@pytest.mark.parametrize("name", MODULES)
def test_no_step_looks_at_a_value(name: str) -> None:
    """On the meta device there are none: what a GPU would have to be waited for raises here."""
    loss = MODULES[name]().to("meta")
    features, target = (tensor.to("meta") for tensor in data())
    weight = torch.empty(C, A, device="meta")
    logits = torch.empty(N, C, device="meta", requires_grad=True)
    arguments = [tensor.to("meta") for tensor in further(loss, features, weight)]
    loss(logits, target, *arguments).backward()
    assert logits.grad.shape == (N, C)
    if isinstance(loss, losses.TruncatedGCELoss):
        loss.update(logits, target, *arguments)


@pytest.mark.parametrize("name", MODULES)
def test_trains_a_model(name: str) -> None:
    """Gradients reach the classifier and cross-entropy, or the loss itself, falls."""
    features, target = data()
    torch.manual_seed(3)
    loss = MODULES[name]()
    model = NormalizedLinear(A, C) if name in COSINES else nn.Linear(A, C)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    right = []
    for _ in range(60):
        optimizer.zero_grad()
        logits = model(features)
        loss(logits, target, *further(loss, features, model.weight)).backward()
        optimizer.step()
        right.append(int((logits.argmax(1) == target).sum()))
    assert right[-1] > max(right[0], N // 2)


@pytest.mark.parametrize("name", MODULES)
def test_16_bit_logits_beside_the_module(name: str) -> None:
    """A model in bfloat16 with its loss: float32 loss, bfloat16 gradient, tables not rounded."""
    features, target = data()
    weight = torch.randn(C, A, generator=torch.Generator().manual_seed(1))
    module, reference = MODULES[name](), MODULES[name]()
    kept = {n: b.clone() for n, b in module.named_buffers()}
    module.bfloat16()
    for n, buffer in module.named_buffers():
        assert torch.equal(buffer, kept[n])
    logits = torch.tanh(features @ weight.t()).bfloat16().requires_grad_()
    torch.manual_seed(2)
    value = module(logits, target, *further(module, features, weight))
    torch.manual_seed(2)
    wide = reference(logits.float(), target, *further(reference, features, weight))
    torch.testing.assert_close(value, wide)
    assert value.dtype == torch.float32
    (grad,) = torch.autograd.grad(value, logits)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", MODULES)
def test_labels_out_of_range(name: str) -> None:
    """An error where values can be looked at, which leaves no trace in the state; nan elsewhere."""
    features, target = data()
    weight, bad = torch.randn(C, A), target.clone()
    bad[3] = C
    loss = MODULES[name]()
    before = copy.deepcopy(loss.state_dict())
    arguments = (torch.tanh(features @ weight.t()), bad, *further(loss, features, weight))
    with pytest.raises(ValueError, match=f"target {C} is out of range"):
        loss(*arguments)
    assert all(torch.equal(tensor, before[key]) for key, tensor in loss.state_dict().items())


@pytest.mark.parametrize("name", ["eql", "eql-v2", "l-infinity-hinge", "group-vs"])
def test_labels_nobody_looks_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: the row of a label out of range is nan, no state and no other row is touched."""
    features, target = data()
    bad = target.clone()
    bad[3] = 7 * C if name != "group-vs" else bad[3]
    logits = torch.tanh(features @ torch.randn(C, A).t())
    loss, alone = MODULES[name](), MODULES[name]()
    loss.reduction = alone.reduction = "none"
    monkeypatch.setattr("lpl_fused.losses.rows.readable", lambda _: False)
    monkeypatch.setattr("lpl_fused.losses.group.readable", lambda _: False)
    others = torch.arange(N) != 3
    groups = ()
    if name == "group-vs":
        groups = (torch.where(others, torch.arange(N) % 3, 99),)
    value = loss(logits, bad, *groups)
    assert value[3].isnan()
    rest = alone(logits[others], target[others], *(group[others] for group in groups))
    torch.testing.assert_close(value[others], rest)
    for mine, expected in zip(loss.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)
