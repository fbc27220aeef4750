"""Susceptibility: r is what one step on noise does, and nothing remembers the step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpl_fused import losses
from lpl_fused.susceptibility import Susceptibility

CLASSES = 4
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, amsgrad=True),
    "rprop": lambda p: torch.optim.Rprop(p, 1e-2),
}


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, CLASSES)
    )
    net[1].eval()  # one module frozen on purpose
    return net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(16, 6)), torch.randint(CLASSES, (16,))).backward()
        optimizer.step()


def snapshot(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return copy.deepcopy(
        {
            "model": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "grads": [p.grad for p in net.parameters()],
            "modes": [m.training for m in net.modules()],
            "random": torch.get_rng_state(),
        }
    )


def assert_same(a: object, b: object) -> None:
    if isinstance(a, Tensor):
        assert isinstance(b, Tensor) and torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert isinstance(b, dict) and list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple)) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_numbers() -> None:
    probe = Susceptibility(3)
    assert math.isnan(probe.zeta)
    for before, after in ((2.3, 2.0), (2.2, 2.1), (2.1, 2.05)):
        probe.add(before - after)
    assert probe.zeta == pytest.approx(0.15)
    assert probe.notebook_zeta == pytest.approx(0.05)
    assert copy.deepcopy(probe).half().zeta == probe.zeta  # as a part of a model that is cast


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("trained", [0, 3])
def test_nothing_remembers_the_probe(name: str, trained: int) -> None:
    """Model, buffers, modes, gradients, optimizer, generators; the same tensors, too."""
    net = model()
    net.train()
    optimizer = OPTIMIZERS[name](net.parameters())
    train(net, optimizer, trained)
    net[1].eval()
    before, places = snapshot(net, optimizer), [id(p) for p in net.parameters()]
    grads = [p.grad for p in net.parameters()]
    r = Susceptibility(CLASSES).probe(net, optimizer, torch.randn(32, 6, generator=torch.Generator().manual_seed(1)))  # fmt: skip
    assert r != 0
    assert_same(before, snapshot(net, optimizer))
    assert places == [id(p) for p in net.parameters()]
    assert all(a is p.grad for a, p in zip(grads, net.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_been(name: str) -> None:
    states = []
    for probes in (0, 2):
        net = model().train()
        optimizer = OPTIMIZERS[name](net.parameters())
        tracker, x = Susceptibility(CLASSES), torch.ones(8, 6).cumsum(0)
        torch.manual_seed(5)
        for _ in range(3):
            train(net, optimizer, 2)
            for _ in range(probes):
                tracker.probe(net, optimizer, x)
        states.append(snapshot(net, optimizer))
    assert_same(*states)


def test_gradients_in_the_buckets_of_data_parallel_are_restored(tmp_path: Path) -> None:
    """There the probe's backward writes into the very memory of the gradients it must keep."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)  # fmt: skip
    try:
        net = nn.parallel.DistributedDataParallel(model().train(), gradient_as_bucket_view=True)
        optimizer = OPTIMIZERS["sgd"](net.parameters())
        train(net, optimizer, 2)
        before = snapshot(net.module, optimizer)
        assert Susceptibility(CLASSES).probe(net, optimizer, torch.ones(8, 6).cumsum(0)) != 0
        assert_same(before, snapshot(net.module, optimizer))
    finally:
        torch.distributed.destroy_process_group()


def test_r_is_the_difference_of_the_two_losses() -> None:
    """By hand on a copy of a linear model: one SGD step on the labels of the seed."""
    torch.manual_seed(0)
    net = nn.Linear(6, CLASSES).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    x = torch.randn(32, 6).double()
    labels = torch.randint(CLASSES, (32,), generator=torch.Generator().manual_seed(7))
    twin = copy.deepcopy(net)
    before = F.cross_entropy(twin(x), labels)
    grads = torch.autograd.grad(before, list(twin.parameters()))
    with torch.no_grad():
        for p, g in zip(twin.parameters(), grads, strict=True):
            p -= 0.5 * g
        expected = before - F.cross_entropy(twin(x), labels)
    probe = Susceptibility(CLASSES, seed=7)
    assert probe.probe(net, optimizer, x) == pytest.approx(expected.item(), rel=1e-12)
    other = probe.probe(net, optimizer, x)  # other labels: seed 8
    assert other != pytest.approx(expected.item())
    assert probe.zeta == pytest.approx((expected.item() + other) / 2)


def test_loss_scaler_is_restored() -> None:
    net = model().train()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    for growth in (1, 1000):  # the scale would grow with every step; or only count it
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=growth)
        before, state = snapshot(net, optimizer), copy.deepcopy(scaler.state_dict())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            r = Susceptibility(CLASSES).probe(net, optimizer, torch.ones(8, 6).cumsum(0), scaler=scaler)  # fmt: skip
        assert math.isfinite(r) and r != 0
        assert scaler.state_dict() == state
        assert_same(before, snapshot(net, optimizer))


def test_restored_after_an_error_too() -> None:
    net = model().train()
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    train(net, optimizer, 1)
    before = snapshot(net, optimizer)

    def fails(logits: Tensor, labels: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise ArithmeticError("after the step")
        return F.cross_entropy(logits, labels)

    with pytest.raises(ArithmeticError):
        Susceptibility(CLASSES, fails).probe(net, optimizer, torch.ones(8, 6))
    assert_same(before, snapshot(net, optimizer))


def test_another_loss_and_another_place_for_a_buffer() -> None:
    """A module that puts a new tensor into a buffer's place gets the old one back."""

    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, CLASSES)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, input: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(input)

    net = Counting()
    place = net.calls
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = Susceptibility(CLASSES, losses.FocalLoss(2.0))
    assert tracker.probe(net, optimizer, torch.ones(5, 6)) != 0
    assert net.calls is place and place == 0


class Tempered(nn.Module):
    """A loss that learns a number, and counts its calls in a buffer that it puts anew."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return F.cross_entropy(logits / self.temperature, labels)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.SeesawLoss(CLASSES),
        lambda: losses.EQLv2Loss(CLASSES),
        lambda: losses.ABSGDLoss(),
        lambda: losses.LPLLoss([1] * CLASSES, split="balanced", statistics="ema"),
        Tempered,
    ],
)
def test_noise_is_nothing_that_a_loss_remembers(loss: Callable[[], nn.Module]) -> None:
    net, criterion = model(), loss()
    optimizer = torch.optim.SGD([*net.parameters(), *criterion.parameters()], 0.1)
    logits, labels = torch.randn(8, CLASSES, requires_grad=True), torch.randint(CLASSES, (8,))
    criterion(logits, labels).backward()  # something to remember, and a gradient
    states = [criterion.state_dict(), [p.grad for p in criterion.parameters()]]
    before, expected = copy.deepcopy(states), copy.deepcopy(criterion)(logits, labels)
    places = list(criterion.buffers())
    probe = Susceptibility(CLASSES, criterion)
    assert probe.probe(net, optimizer, torch.randn(16, 6)) != 0
    assert_same([criterion.state_dict(), [p.grad for p in criterion.parameters()]], before)
    assert all(a is b for a, b in zip(criterion.buffers(), places, strict=True))
    torch.testing.assert_close(criterion(logits, labels), expected, rtol=0, atol=0)


def test_continuation_from_state() -> None:
    net, x = model().train(), torch.ones(8, 6).cumsum(0)
    optimizer = OPTIMIZERS["sgd"](net.parameters())
    tracker = Susceptibility(CLASSES, seed=3)
    tracker.probe(net, optimizer, x)
    again = Susceptibility(CLASSES, seed=3)
    again.load_state_dict(copy.deepcopy(tracker.state_dict()))
    assert tracker.probe(net, optimizer, x) == again.probe(net, optimizer, x)
    assert_same(tracker.state_dict(), again.state_dict())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_classes"):
        Susceptibility(0)
    net = nn.Linear(6, 3)
    with pytest.raises(ValueError, match=r"logits \(2, 4\), got \(2, 3\)"):
        Susceptibility(4).probe(net, torch.optim.SGD(net.parameters(), 0.1), torch.ones(2, 6))


def test_another_default_device() -> None:
    """Labels are drawn on the CPU, as the numbers of a probe are."""
    net = model()
    optimizer, input = OPTIMIZERS["sgd"](net.parameters()), torch.randn(4, 6)
    expected = Susceptibility(CLASSES).probe(net, optimizer, input)
    probe = Susceptibility(CLASSES)
    with torch.device("meta"):
        assert probe.probe(net, optimizer, input) == expected
