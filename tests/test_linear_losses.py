"""`loss.linear`: every loss has it, equal to the loss of the logits, or refuses it by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lpl_fused import Perturbation, losses

N, C, D = 18, 5, 4
COUNTS = [50, 20, 10, 5, 1]
HAVE = {
    "ce": lambda: losses.CrossEntropyLoss(weight=torch.rand(C), label_smoothing=0.1),
    "none": lambda: losses.CrossEntropyLoss(reduction="none"),
    "focal": lambda: losses.FocalLoss(),
    "la": lambda: losses.LogitAdjustedLoss(COUNTS),
    "balanced": lambda: losses.BalancedSoftmaxLoss(COUNTS),
    "bayias": lambda: losses.BayiasLoss(COUNTS),
    "class-balanced": lambda: losses.ClassBalancedLoss(COUNTS),
    "ldam": lambda: losses.LDAMLoss(COUNTS),
    "vs": lambda: losses.VSLoss(COUNTS),
    "cdt": lambda: losses.CDTLoss(COUNTS),
    "cosface": lambda: losses.CosFaceLoss(16.0, 0.2),
    "am-softmax": lambda: losses.AMSoftmaxLoss(16.0),
    "logit-clip": lambda: losses.LogitClipLoss(2.0),
    "logit-norm": lambda: losses.LogitNormLoss(0.2),
    "alpha": lambda: losses.AlphaLoss(),
    "gce": lambda: losses.GCELoss(),
    "poly-1": lambda: losses.Poly1Loss(),
    "z-loss": lambda: losses.ZLoss(),
    "las": lambda: losses.LabelAwareSmoothingLoss(COUNTS),
    "mbls": lambda: losses.MbLSLoss(margin=1.0, base=losses.LogitAdjustedLoss(COUNTS)),
    "cals": lambda: losses.CALSLoss(C, margin=1.0),
    "lpl": lambda: losses.LPLLoss(COUNTS, tau=1.0),
    "lpl-balanced": lambda: losses.LPLLoss(COUNTS, split="balanced"),
    "lpl-ema": lambda: losses.LPLLoss(COUNTS, split="balanced", statistics="ema"),
    "lpl-eval": lambda: losses.LPLLoss(COUNTS, tau=1.0, variant="official-long-tail-10").eval(),
}
REFUSE = {
    "lpl-variant": lambda: losses.LPLLoss(COUNTS, variant="official-long-tail-10"),
    "lpl-through": lambda: losses.LPLLoss(COUNTS, through_perturbation=True),
    "mbls": lambda: losses.MbLSLoss(base=losses.T5XCrossEntropyLoss()),
    "lade": lambda: losses.LADELoss(COUNTS),
    "arcface": lambda: losses.ArcFaceLoss(),
    "truncated-gce": lambda: losses.TruncatedGCELoss(N),
    "t5x": lambda: losses.T5XCrossEntropyLoss(),
    "group-vs": lambda: losses.GroupVSLoss([30, 8, 2]),
    "seesaw": lambda: losses.SeesawLoss(C),
    "gcl": lambda: losses.GCLLoss(COUNTS),
    "blv": lambda: losses.BLVLoss(COUNTS),
    "softmax-eql": lambda: losses.SoftmaxEQLLoss(COUNTS, 0.1),
    "eql": lambda: losses.EQLLoss(COUNTS, 0.1),
    "eql-v2": lambda: losses.EQLv2Loss(C),
    "isda": lambda: losses.ISDALoss(C, D),
    "l-infinity": lambda: losses.LInfMixtureLoss(1.0),
    "l-infinity-hinge": lambda: losses.LInfHingeLoss(1.0),
    "cdb": lambda: losses.CDBLoss(C),
    "ib": lambda: losses.IBLoss(COUNTS, start_epoch=0),
    "absgd": lambda: losses.ABSGDLoss(),
    "group-dro": lambda: losses.GroupDROLoss([9, 9]),
    "binary-alpha": lambda: losses.BinaryAlphaLoss(),
    "binary-vs": lambda: losses.BinaryVSLoss([[30, 10], [20, 5]]),
    "multi-label": lambda: losses.MultiLabelLoss(),
    "asymmetric": lambda: losses.AsymmetricLoss(),
    "multi-label-ldam": lambda: losses.MultiLabelLDAMLoss(COUNTS),
    "distribution-balanced": lambda: losses.DistributionBalancedLoss(COUNTS, 60),
    "multi-label-lpl": lambda: losses.MultiLabelLPLLoss(COUNTS, losses.MultiLabelLoss()),
    "smoothmix": lambda: losses.SmoothMixLoss(),
}


def data() -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    target = torch.randint(C, (3, N // 3))
    target[1, 2] = -100
    return torch.randn(3, N // 3, D, requires_grad=True), nn.Linear(D, C), target


def of_logits(loss: nn.Module, hidden: Tensor, head: nn.Linear, target: Tensor, **more: Any) -> Any:
    value = loss(head(hidden.reshape(-1, D)), target.reshape(-1), **more)
    return value.reshape(target.shape) if value.dim() else value


def test_none_is_forgotten() -> None:
    known = {type(make()) for make in (*HAVE.values(), *REFUSE.values())}
    every = {getattr(losses, name) for name in losses.__all__}
    assert known == {kind for kind in every if isinstance(kind, type)}


@pytest.mark.parametrize("chunk_memory", [None, 100])
@pytest.mark.parametrize("name", HAVE)
def test_equal_to_the_loss_of_logits(name: str, chunk_memory: int | None) -> None:
    torch.manual_seed(1)
    loss = HAVE[name]()
    other = copy.deepcopy(loss)
    hidden, head, target = data()
    leaves = (hidden, head.weight, head.bias)
    found = loss.linear(hidden, head.weight, target, head.bias, chunk_memory=chunk_memory)
    expected = of_logits(other, hidden, head, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), leaves), torch.autograd.grad(expected.sum(), leaves)
    )
    for key, state in loss.state_dict().items():
        torch.testing.assert_close(state, other.state_dict()[key])


@pytest.mark.parametrize("name", ["la", "lpl"])
def test_what_comes_after_its_tables(name: str) -> None:
    hidden, head, target = data()
    after, loss = Perturbation(scale=torch.rand(C)), HAVE[name]()
    loss.reduction = "sum"
    more: dict[str, Any] = {"perturbation": after, "normalizer": 7.0}
    found = loss.linear(hidden, head.weight, target, head.bias, **more)
    torch.testing.assert_close(found, of_logits(loss, hidden, head, target, **more))


@pytest.mark.parametrize("name", REFUSE)
def test_refused_by_name(name: str) -> None:
    hidden, head, target = data()
    loss = REFUSE[name]()
    with pytest.raises(NotImplementedError, match=f"{type(loss).__name__} .* has no `linear`"):
        loss.linear(hidden, head.weight, target, head.bias)


def test_a_loss_of_ones_own_that_looks_at_logits_is_refused() -> None:
    class Own(losses.LogitAdjustedLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(2 * input, target)

    hidden, head, target = data()
    with pytest.raises(NotImplementedError, match="Own looks at the logits"):
        Own(COUNTS).linear(hidden, head.weight, target)


def test_bad_input_is_said_as_by_the_function() -> None:
    hidden, head, target = data()
    with pytest.raises(ValueError, match="linear_weight: expected shape"):
        losses.LDAMLoss(COUNTS).linear(hidden, head.weight.t(), target)
    with pytest.raises(ValueError, match="target: the learned perturbation needs class indices"):
        losses.LPLLoss(COUNTS).linear(hidden, head.weight, torch.rand(3, N // 3, C))
    with pytest.raises(ValueError, match="input: expected 4 classes"):
        losses.CALSLoss(4).linear(hidden, head.weight, target)


@pytest.mark.parametrize("name", ["ldam", "lpl-balanced"])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    hidden, head, target = data()
    loss = HAVE[name]()

    def step() -> Tensor:
        return loss.linear(hidden, head.weight, target, head.bias, chunk_memory=100)

    torch.testing.assert_close(
        torch.compile(step, fullgraph=True, backend="aot_eager")(), step(), rtol=0, atol=0
    )
