"""Peak memory and cache sizes, against what is known."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_conditions import CPU, conditions

from benchmarks import memory
from benchmarks.cases import Case
from benchmarks.measure import measure
from benchmarks.memory import last_level_cache, peak_bytes
from benchmarks.providers import EAGER, providers

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a process of its own, with one thread: threads that other tests
    have left shift the count of resident pages, which Linux keeps by thread.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *arguments).result()


# It adds them up by batches of 64, and a peak is the difference of two counts.
BATCHES = 2 * 64 * 4096


def peak(run: Callable[[], object]) -> int | None:
    """Of a second call: the first one loads code, which is memory, too."""
    run()
    return peak_bytes(run, CPU)


def touched(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


def peaks_of_allocations(size: int) -> list[int | None]:
    return [peak(lambda: touched(size)) for _ in range(3)]


@linux
@pytest.mark.parametrize("size", [MIB, 20 * MIB, 200 * MIB])
def test_an_allocation_is_counted_whatever_came_before(size: int) -> None:
    """From the second on, the C library may have kept the first's."""
    assert alone(peaks_of_allocations, size) == pytest.approx([size] * 3, abs=BATCHES)


def peaks_together_and_apart(size: int) -> tuple[int | None, ...]:
    def together() -> None:
        held = [touched(size), touched(size)]
        held.clear()

    def apart() -> None:
        for _ in range(4):
            touched(size)

    return peak(together), peak(apart)


@linux
def test_what_is_held_together_counts_and_what_follows_does_not() -> None:
    size = 40 * MIB  # more than the C library ever keeps for the next one
    assert alone(peaks_together_and_apart, size) == pytest.approx((2 * size, size), rel=0.02)


def peak_beside(size: int) -> int | None:
    held = touched(size)
    return peak(lambda: held.add_(1))


@linux
def test_what_was_there_before_does_not_count() -> None:
    assert alone(peak_beside, 100 * MIB) == pytest.approx(0, abs=BATCHES)


def test_where_memory_cannot_be_counted_there_is_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_SELF", tmp_path / "nothing")
    assert peak_bytes(lambda: None, CPU) is None


def peaks_of_providers() -> dict[str, tuple[float | None, int | None]]:
    case = Case.parse("256x8000", "fp32", "la")
    entrants = [EAGER, providers()["reference"]]
    records = [r for r in measure(case, entrants, conditions()) if r.mode == "both"]
    return {r.provider: (r.peak_of_logits, r.peak_bytes) for r in records}


@linux
def test_the_gradient_is_the_least_that_a_loss_takes() -> None:
    found = alone(peaks_of_providers)
    assert set(found) == {"eager", "reference", "eager-ce"}
    # the gradient of the logits, log-softmax's and log-softmax itself
    assert found["eager-ce"][0] == pytest.approx(3, rel=0.01)
    # and in some processes one more, as large as the logits; why is not known
    assert found["eager"][0] == pytest.approx(4 if found["eager"][0] > 3.5 else 3, rel=0.01)
    assert found["reference"][0] > 1
    assert found["eager"][1] == pytest.approx(found["eager"][0] * 256 * 8000 * 4)


@pytest.mark.gpu
def test_an_allocation_on_a_gpu_is_counted_to_the_byte() -> None:
    device = torch.device("cuda")
    held = torch.ones(MIB, device=device)

    def run() -> None:
        (held + 1).add_(1)

    assert peak_bytes(run, device) == held.nbytes


def _cache(folder: Path, size: str, shared: str) -> None:
    folder.mkdir(parents=True)
    (folder / "size").write_text(f"{size}\n")
    (folder / "shared_cpu_list").write_text(f"{shared}\n")


def test_the_last_level_caches_of_all_own_cores_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for core, shared in enumerate(("0-1", "0-1", "2", "3")):
        _cache(tmp_path / f"cpu{core}/cache/index0", "32K", str(core))
        _cache(tmp_path / f"cpu{core}/cache/index3", "1024K", shared)
    monkeypatch.setattr(memory, "_CPUS", tmp_path)
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert last_level_cache() == 2 * MIB


def test_an_unknown_cache_is_taken_for_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CPUS", tmp_path)
    assert last_level_cache() == 64 * MIB
