"""What memory a call takes at its worst moment, and what the caches hold."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path

import torch

_SELF = Path("/proc/self")
_CPUS = Path("/sys/devices/system/cpu")
_LARGE_CACHE = 64 * 2**20  # where the machine does not say; most have less


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """The bytes that `run` holds beyond what was held before it, when it holds most.

    On a GPU of torch's allocator, to the byte. On a CPU of the whole process, native scratch
    included, to some pages: what is resident at most, as Linux counts it, with what the C library
    leaves between two allocations of less than 32 MiB; None elsewhere. `run` must have run before,
    or what it loads and keeps counts as well.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _starts_afresh():
        return None
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _starts_afresh() -> bool:
    """Gives freed memory back to the system and lets the high-water mark sink; False if it cannot.

    Freed memory that the C library keeps is resident already: reused, it would not be counted.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_SELF / "clear_refs").write_text("5")
    except (AttributeError, OSError):  # another C library, another system, a sandbox
        return False
    return True


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_SELF / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def last_level_cache() -> int:
    """Bytes of all last-level caches that the cores of this process have."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    found: dict[str, int] = {}  # by the cores that share one
    for core in cores:
        sizes = _CPUS.glob(f"cpu{core}/cache/index*/size")
        last = max(sizes, default=None)  # index3 after index2
        if last is not None:
            size = last.read_text().strip()
            found[last.with_name("shared_cpu_list").read_text()] = int(size.rstrip("K")) * 1024
    return sum(found.values()) or _LARGE_CACHE
