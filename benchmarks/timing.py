"""How the clock runs: block by block, all providers in turn (A B A B …).

A block is a few calls of one provider. Between two blocks of a provider every other one has its
turn, so that what drifts (clock frequency, heat, a neighbour on the machine) meets all alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils import benchmark
from torch.utils.benchmark.utils.common import set_torch_threads

from .steps import COLD, WALL, Step

MIN_BLOCKS, MAX_BLOCKS = 3, 40
_BLOCK_SECONDS = 0.01


class Sampler(Protocol):
    """A device's clock."""

    def clock(self, step: Step) -> str:
        """What its times of a step are: "wall" or "device"."""
        ...

    def seconds(self, step: Step) -> float:
        """How long one call takes, preparation included, to plan by."""
        ...

    def block(self, step: Step, calls: int) -> list[float]:
        """Times of `calls` calls in seconds: one each, or their mean."""
        ...


class _Stopwatch:
    """A clock that stands still between `stop` and `go`."""

    def __init__(self) -> None:
        self._lost = self._stopped = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._lost

    def stop(self) -> None:
        self._stopped = time.perf_counter()

    def go(self) -> None:
        self._lost += time.perf_counter() - self._stopped


class _BlockTimer(benchmark.Timer):
    """torch's Timer, one block of a given size at a time."""

    def block(self, calls: int) -> float:
        """The mean time of `calls` calls."""
        with set_torch_threads(self._task_spec.num_threads):
            return float(self._timeit(calls)) / calls


class CpuSampler:
    """`torch.utils.benchmark.Timer`: wall time of blocks, caches as the calls before leave them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def clock(self, step: Step) -> str:
        return "wall"

    def seconds(self, step: Step) -> float:
        def whole(state: object) -> None:
            step.run(None if step.prepare is None else step.prepare())

        return self.block(Step(whole, needs_grad=step.needs_grad), 1)[0]

    def block(self, step: Step, calls: int) -> list[float]:
        clock = _Stopwatch()
        statement = "run(None)"
        if step.prepare is not None:
            statement = "clock.stop(); state = prepare(); clock.go(); run(state); del state"
        names = {"run": step.run, "prepare": step.prepare, "clock": clock}
        timer = _BlockTimer(statement, timer=clock, globals=names, num_threads=self.threads)
        with torch.set_grad_enabled(step.needs_grad):
            if calls > 1:  # the provider before has left its own data in the caches
                timer.block(1)
            return [timer.block(calls)]


class CudaSampler:
    """CUDA events around single calls, the L2 cache flushed before each (triton's `do_bench`); or
    a block of calls as the step's pace says.
    """

    def clock(self, step: Step) -> str:
        return "wall" if step.pace == WALL else "device"

    def seconds(self, step: Step) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.set_grad_enabled(step.needs_grad):
            step.run(None if step.prepare is None else step.prepare())
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def block(self, step: Step, calls: int) -> list[float]:
        with torch.set_grad_enabled(step.needs_grad):
            if step.pace != COLD:
                return [self._in_a_row(step, calls)]
            if step.prepare is not None:
                return [self._after_preparation(step) for _ in range(calls)]
            from triton.testing import do_bench

            milliseconds = calls * 1e3 * _BLOCK_SECONDS
            times = do_bench(lambda: step.run(None), warmup=1, rep=milliseconds, return_mode="all")
            return [value / 1e3 for value in times]

    @staticmethod
    def _in_a_row(step: Step, calls: int) -> float:
        """The mean time of calls that nothing stands between, after one of them."""
        step.run(None)
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        begin.record()
        for _ in range(calls):
            step.run(None)
        end.record()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
        return (wall if step.pace == WALL else begin.elapsed_time(end) / 1e3) / calls

    @staticmethod
    def _after_preparation(step: Step) -> float:
        """As `do_bench` does it, with the preparation before the first event."""
        from triton.runtime import driver

        assert step.prepare is not None
        state = step.prepare()
        driver.active.clear_cache(driver.active.get_empty_cache_for_benchmark())
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step.run(state)
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def sampler_for(device: torch.device, threads: int) -> Sampler:
    """The clock of a device."""
    return CudaSampler() if device.type == "cuda" else CpuSampler(threads)


@dataclass(frozen=True)
class Plan:
    """How one step is sampled."""

    seconds: float  # one call
    calls: int  # in a block
    blocks: int

    @staticmethod
    def of(step: Step, sampler: Sampler, budget: float) -> Plan:
        """For a step that has run before, `budget` seconds of it; `MIN_BLOCKS` if it is slow."""
        seconds = sampler.seconds(step)
        calls = max(1, round(_BLOCK_SECONDS / seconds))
        blocks = round(budget / (calls * seconds))
        return Plan(seconds, calls, min(max(blocks, MIN_BLOCKS), MAX_BLOCKS))


def alternate(
    contestants: Mapping[str, tuple[Step, Plan]], sampler: Sampler
) -> dict[str, list[float]]:
    """Samples of every step in seconds, by name, taken in turn."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for name in _turns({name: plan.blocks for name, (_, plan) in contestants.items()}):
        step, plan = contestants[name]
        samples[name] += sampler.block(step, plan.calls)
    return samples


def _turns(blocks: Mapping[str, int]) -> Iterator[str]:
    """Every name as often as it has blocks, each name's spread evenly over the whole."""
    rounds = max(blocks.values(), default=0)
    for i in range(rounds):
        for name, wanted in blocks.items():
            if (i + 1) * wanted // rounds > i * wanted // rounds:
                yield name
