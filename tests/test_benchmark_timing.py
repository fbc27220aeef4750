"""How the benchmarks' clock runs: turns, blocks, preparation, modes."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from benchmarks import correctness
from benchmarks import steps as measured
from benchmarks.cases import MODES, Case, draw, modes
from benchmarks.providers import EAGER
from benchmarks.steps import COLD, HOT, WALL, Step, rotation, steps
from benchmarks.timing import CpuSampler, CudaSampler, Plan, alternate

CPU = torch.device("cpu")


class _Recorder:
    """A sampler that notes whose turn it was."""

    def __init__(self) -> None:
        self.turns: list[int] = []

    def clock(self, step: Step) -> str:
        return "wall"

    def seconds(self, step: Step) -> float:
        return 1.0

    def block(self, step: Step, calls: int) -> list[float]:
        self.turns.append(calls)
        return [float(calls)]


def test_providers_take_turns() -> None:
    recorder, step = _Recorder(), Step(lambda _: None)
    # the number of calls tells the three apart
    field = {str(c): (step, Plan(1.0, c, blocks)) for c, blocks in ((1, 6), (2, 6), (3, 3))}
    samples = alternate(field, recorder)
    assert recorder.turns == [1, 2, 1, 2, 3] * 3
    assert samples == {"1": [1.0] * 6, "2": [2.0] * 6, "3": [3.0] * 3}


def test_a_slow_step_still_gets_three_blocks() -> None:
    plan = Plan.of(Step(lambda _: time.sleep(0.03)), CpuSampler(1), budget=0.01)
    assert (plan.calls, plan.blocks) == (1, 3)


def test_preparation_is_not_timed() -> None:
    sampler = CpuSampler(1)
    idle = Step(lambda _: None, prepare=lambda: time.sleep(0.05))
    busy = Step(lambda _: time.sleep(0.05), prepare=lambda: None)
    assert sampler.block(idle, 2)[0] < 0.025 < sampler.block(busy, 2)[0]
    assert sampler.seconds(idle) > 0.025


def test_the_timer_sets_the_threads() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    CpuSampler(before + 1).block(Step(lambda _: seen.append(torch.get_num_threads())), 1)
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_modes_do_what_they_say() -> None:
    batch = draw(Case.parse("8x10", "bf16", "ce"), CPU)
    seen: list[tuple[bool, bool, bool]] = []

    def criterion(u: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), u.requires_grad, u.is_leaf))
        return F.cross_entropy(u, batch.target)

    called: dict[str, tuple[bool, bool, bool]] = {}
    for mode, step in steps(criterion, batch).items():
        CpuSampler(1).block(step, 1)
        called[mode] = seen.pop()
        assert not seen
    assert tuple(called) == MODES
    assert called == {
        "forward-no-grad": (False, False, True),
        "forward": (True, True, False),
        "backward": (True, True, False),
        "both": (True, True, False),
        "both-leaf": (True, True, True),
    }


def test_a_cold_call_meets_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = draw(Case.parse("8x10", "fp32", "ce"), CPU)  # 320 bytes
    monkeypatch.setattr(measured, "last_level_cache", lambda: 500)
    others = rotation(batch)
    assert len(others) == 4  # 1280 bytes, at least twice 500
    assert all(torch.equal(part, batch.logits) for (part,) in others)
    seen: list[int] = []

    def criterion(u: torch.Tensor) -> torch.Tensor:
        assert not u.is_leaf
        seen.append(u.data_ptr())
        return F.cross_entropy(u, batch.target)

    cold = steps(criterion, batch, others)["both-cold"]
    CpuSampler(1).block(cold, 7)
    assert len(seen) == 8
    assert len(set(seen[:4])) == 4
    assert seen[4:] == seen[:4]


def test_tiny_inputs_are_copied_some_thousand_times(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = draw(Case.parse("1x2", "fp32", "ce"), CPU)
    monkeypatch.setattr(measured, "last_level_cache", lambda: 2**30)
    assert len(rotation(batch)) == 8192


def test_inputs_beyond_the_cache_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = draw(Case.parse("8x10", "fp32", "linear-ce"), CPU)
    monkeypatch.setattr(measured, "last_level_cache", lambda: 10_000)
    (only,) = rotation(batch)
    assert [id(part) for part in only] == [id(part) for part in batch.inputs]


def test_what_a_gpu_clock_measures() -> None:
    clock = CudaSampler().clock
    paces = {pace: clock(Step(lambda _: None, pace=pace)) for pace in (COLD, HOT, WALL)}
    assert paces == {COLD: "device", HOT: "device", WALL: "wall"}


@pytest.mark.gpu
def test_a_hot_call_replays_what_was_captured() -> None:
    device = torch.device("cuda")
    batch = draw(Case.parse("64x1000", "bf16", "ce"), device)
    calls = 0

    def criterion(u: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return F.cross_entropy(u, batch.target)

    made = steps(criterion, batch)
    assert tuple(made) == modes("cuda")
    sampler = CudaSampler()
    sampler.seconds(made["both-hot"])
    captured = calls
    assert all(seconds > 0 for seconds in sampler.block(made["both-hot"], 5))
    assert calls == captured
    sampler.block(made["both-wall"], 5)
    assert calls == captured + 6


@pytest.mark.gpu
def test_what_waits_for_the_device_is_not_captured() -> None:
    device = torch.device("cuda")
    batch = draw(Case.parse("64x1000", "bf16", "ce"), device)

    def criterion(u: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(u, batch.target) * float(batch.upstream.item())

    made = steps(criterion, batch)
    with pytest.raises(RuntimeError, match="synchronizing"):
        CudaSampler().seconds(made["both-hot"])
    assert torch.cuda.get_sync_debug_mode() == 0
    assert not torch.cuda.is_current_stream_capturing()
    torch.randn(3, device=device)  # the generator is as it was


def test_backward_hands_the_upstream_on() -> None:
    case = Case.parse("8x10", "fp64", "ce")
    batch = draw(case, CPU)
    made = steps(EAGER.criterion(case, batch), batch)
    expected = correctness.truth(case, batch).grads[0]
    (both,) = made["both"].run(None)  # type: ignore[misc]
    torch.testing.assert_close(both, expected)
    assert made["backward"].prepare is not None
    (backward,) = made["backward"].run(made["backward"].prepare())  # type: ignore[misc]
    torch.testing.assert_close(backward, expected)
