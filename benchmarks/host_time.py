"""`python -m benchmarks.host_time`: what a call costs the host on the GPU backends, without a GPU.

Forward and backward of small batches, everything that the host does but what a launch itself takes:
Triton through its own launcher on a CUDA driver that runs nothing (tests/triton_driver.c), compiled
for sm_90; CUDA through its bindings, built as a release with launchers that count and return
(tests/cuda_on_host.cpp, LPL_IDLE). In turn with them eager's plain cross-entropy of a few logits on
the CPU, where dispatch and autograd are all there is. Times are those of the process's processor,
medians of many short blocks, one thread.

What is left out, and is not: cudaLaunchKernelEx and its like on all three sides, for which a launch
is taken to cost `LAUNCH` (an assumption, printed as such); of CUDA how rows are dealt to blocks;
which device and stream is current, asked once a call on CUDA and once a launch on Triton; the
device's allocator, in whose place is malloc, for all three.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import importlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lpl_fused import functional as LF
from lpl_fused import losses

from . import records
from .options import pattern

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "results" / "host_time.json"
BACKENDS = ("cuda", "triton")
LAUNCH = 2.5  # microseconds: an assumption
REACH = {"cross-entropy": 1.5, "LPL": 2.5}  # of eager's plain cross-entropy
# operations of torch that make a tensor, or give one back, without a kernel of their own
_NO_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "detach", "alias", "resolve_conj"),
    *("expand", "as_strided", "unbind", "select", "slice", "split", "split_with_sizes", "view"),
    *("reshape", "flatten", "to", "_to_copy", "contiguous"),
}
# … and what launches as many kernels on a device, whatever it calls on the CPU
_WHOLE = {"sum": 1, "nll_loss_backward": 2}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
Run = Callable[[], object]


class Counted(NamedTuple):
    """Launches of a call."""

    kernels: int  # ours
    operations: int  # of torch

    @property
    def all(self) -> int:
        return self.kernels + self.operations


def launches_of_torch(run: Run) -> collections.Counter[str]:
    """The kernels that operations of torch launch on a device, by those that call no other."""
    run()
    with torch.profiler.profile() as profile:
        run()
    found: collections.Counter[str] = collections.Counter()

    def add(event: Any) -> None:
        name = event.name.removeprefix("aten::")
        inner = [child for child in event.cpu_children if child.name.startswith("aten::")]
        if name in _WHOLE or (not inner and name not in _NO_KERNEL):
            found[name] += _WHOLE.get(name, 1)
        else:
            for child in inner:
                add(child)

    for event in profile.events():
        parent = event.cpu_parent
        if event.name.startswith("aten::") and not (parent and parent.name.startswith("aten::")):
            add(event)
    return found


class Idle:
    """Both GPU backends in this process, their launches counted and nothing run."""

    def __init__(self, folder: Path) -> None:
        if "lpl_fused._cuda" in sys.modules or os.environ.get("TRITON_INTERPRET"):
            raise RuntimeError("expected a process that has no backend yet and interprets nothing")
        with _tests_at_hand():
            cuda_on_host: Any = importlib.import_module("cuda_on_host")
            triton_driver: Any = importlib.import_module("triton_driver")
            self._cuda = ctypes.CDLL(cuda_on_host.install(idle=True).__file__)
            self._triton = triton_driver.Driver(folder)
        # memory that is freed stays here, as it does with the device's allocator
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            if mallopt is not None:
                mallopt(parameter, 1 << 30)
        # for tensors of the CPU to be taken
        backend: Any = importlib.import_module("lpl_fused.backends.triton")
        backend.interpreted = lambda: True

    def launches(self) -> int:
        """How many there were, on both."""
        counts = (ctypes.c_long * 2)()
        self._cuda.take_counts(counts)
        self._before = getattr(self, "_before", 0) + counts[0]
        return self._before + int(self._triton.launches)

    def count(self, run: Run) -> Counted:
        """Of a call that was made before: what is compiled is compiled."""
        operations = sum(launches_of_torch(run).values())
        before = self.launches()
        run()
        return Counted(self.launches() - before, operations)


@contextlib.contextmanager
def _tests_at_hand() -> Iterator[None]:
    """What stands in for a device belongs to the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        yield
    finally:
        sys.path.remove(str(ROOT / "tests"))


FEW, SOME, MANY, TAGS = (4, 9), (64, 1100), (256, 1100), (512, 80)


def _batch(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Logits and one label for each row: classes with several rows where there are rows enough."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    return logits, torch.randint(min(shape[1], 16), shape[:1], generator=generator)


def _backward(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor, each: bool = False
) -> Run:
    """`each`: a loss of every row."""
    upstream = torch.ones(len(logits)) if each else torch.ones(())

    def run() -> object:
        return torch.autograd.grad(loss(logits, target), logits, upstream)

    return run


def eager() -> Run:
    """What all are compared with."""
    return _backward(F.cross_entropy, *_batch(FEW))


def cases(backend: str) -> dict[str, Run]:
    """Forward and backward of every case, by name."""

    def softmax(shape: tuple[int, int] = FEW, **keywords: Any) -> Run:
        def loss(input: Tensor, target: Tensor) -> Tensor:
            found: Tensor = LF.cross_entropy(input, target, backend=backend, **keywords)
            return found

        return _backward(loss, *_batch(shape), "reduction" in keywords)

    def module(kind: Any, shape: tuple[int, int] = FEW, **keywords: Any) -> Run:
        counts = [2.0 * (k + 1) for k in reversed(range(shape[1]))]
        return _backward(kind(counts, backend=backend, **keywords), *_batch(shape))

    def learned(shape: tuple[int, int]) -> Run:
        steps = torch.full(shape[1:], 5, dtype=torch.int32)

        def loss(input: Tensor, target: Tensor) -> Tensor:
            return LF.lpl_cross_entropy(input, target, steps, step_size=0.1, backend=backend)

        return _backward(loss, *_batch(shape))

    def tags(learns: bool) -> Run:
        logits, _ = _batch(TAGS)
        labels = (torch.rand(TAGS, generator=torch.Generator().manual_seed(2)) < 0.1).float()
        steps = torch.full(TAGS[1:], 5, dtype=torch.int32)

        def loss(input: Tensor, target: Tensor) -> Tensor:
            if not learns:
                return LF.binary_cross_entropy_with_logits(input, target, backend=backend)
            return LF.lpl_binary_cross_entropy_with_logits(
                input, target, steps, step_size=0.1, backend=backend
            )

        return _backward(loss, logits, labels)

    return {
        "cross-entropy": softmax(),
        "cross-entropy, by statistics": softmax(gradient="statistics"),
        'cross-entropy, reduction="none"': softmax(reduction="none"),
        "LogitAdjustedLoss": module(losses.LogitAdjustedLoss),
        "LDAMLoss": module(losses.LDAMLoss),
        "LPL, one row": learned((1, FEW[1])),
        "LPL": learned(SOME),
        "LPL, many logits": learned(MANY),
        "LPLLoss": module(losses.LPLLoss, SOME),
        "binary cross-entropy": tags(False),
        "multi-label LPL": tags(True),
    }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A case on a backend, or eager's plain cross-entropy."""

    backend: str
    case: str
    microseconds: float  # of the host, without its launches; median
    p20: float
    p80: float
    kernels: int
    operations: int

    def at(self, launch: float) -> float:
        """Microseconds with launches of so many."""
        return self.microseconds + launch * (self.kernels + self.operations)


EAGER = "eager"


def measure(
    idle: Idle, rounds: int, chosen: Callable[[str, str], bool] = lambda *_: True
) -> list[Measured]:
    """Everything once to be compiled, then counted, then timed in turn."""
    runs = {(EAGER, "cross-entropy"): eager()}
    for backend in BACKENDS:
        runs |= {
            (backend, name): run for name, run in cases(backend).items() if chosen(backend, name)
        }
    counted = {}
    for (backend, name), run in runs.items():
        run()
        run()
        counted[backend, name] = found = idle.count(run)
        if (found.kernels > 0) != (backend != EAGER):
            raise RuntimeError(f"{backend}, {name}: nothing is in a device's place, {found}")
    times = _in_turn(runs, rounds)
    return [Measured(*key, *_spread(times[key]), *counted[key]) for key in runs]


def _spread(values: list[float]) -> tuple[float, float, float]:
    """(median, p20, p80)"""
    cuts = statistics.quantiles(values, n=5) if len(values) > 1 else values * 4
    return round(statistics.median(values), 2), round(cuts[0], 2), round(cuts[3], 2)


_CALLS = 20  # of a block


def _in_turn(runs: dict[tuple[str, str], Run], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Microseconds of a call, by block; between two blocks of a case all others have a turn."""
    found: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            run()  # what was there before has left its own in the caches
            begin = time.process_time_ns()
            for _ in range(_CALLS):
                run()
            found[key].append((time.process_time_ns() - begin) / _CALLS / 1e3)
    return found


def table(measured: list[Measured]) -> Table:
    """For the terminal."""
    base = next(one for one in measured if one.backend == EAGER)
    shown = Table(title=f"the host, forward + backward; a launch taken to cost {LAUNCH} µs")
    for column in ("backend", "case"):
        shown.add_column(column)
    for column in ("µs", "p20", "p80", "kernels", "torch's", "÷ eager", "with launches"):
        shown.add_column(column, justify="right")
    for one in measured:
        shown.add_row(
            one.backend,
            one.case,
            *(f"{value:.1f}" for value in (one.microseconds, one.p20, one.p80)),
            *(str(value) for value in (one.kernels, one.operations)),
            f"{one.microseconds / base.microseconds:.2f}",
            f"{one.at(LAUNCH) / base.at(LAUNCH):.2f}",
        )
    return shown


def recorded() -> list[Measured]:
    """What `record` has kept."""
    return [Measured(**one) for one in json.loads(RECORD.read_text())["measured"]]


def markdown(measured: list[Measured]) -> list[str]:
    """The lines of docs/cuda.md, a case each."""
    base = next(one for one in measured if one.backend == EAGER)
    found = {(one.backend, one.case): one for one in measured}

    def cells(one: Measured) -> str:
        ratio = one.microseconds / base.microseconds
        whole = one.at(LAUNCH) / base.at(LAUNCH)
        return (
            f"{one.microseconds:.0f} | {one.kernels} + {one.operations} | {ratio:.1f} | {whole:.1f}"
        )

    names = [case for backend, case in found if backend == BACKENDS[0]]
    return [
        f"| {name} | {' | '.join(cells(found[backend, name]) for backend in BACKENDS)} |"
        for name in names
    ]


def record(measured: list[Measured]) -> None:
    """Keeps them with what they belong to; docs/cuda.md shows them."""
    environment = records.environment(torch.device("cpu"), 1)
    kept = {
        "environment": dataclasses.asdict(environment),
        "launch": LAUNCH,
        "measured": [dataclasses.asdict(one) for one in measured],
    }
    RECORD.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.host_time", description=__doc__)
    made.add_argument("--rounds", type=int, default=100, help="blocks of every case")
    made.add_argument(
        "--only", type=pattern, default="", help="cases whose `backend, name` have this in them"
    )
    made.add_argument("--json", action="store_true", help="print what was measured as JSON")
    made.add_argument("--record", action="store_true", help="keep it in benchmarks/results")
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Idle(Path(folder)),
            options.rounds,
            lambda backend, name: bool(re.search(options.only, f"{backend}, {name}")),
        )
    if options.json:
        print(json.dumps([dataclasses.asdict(one) for one in found]))
    else:
        Console(width=110).print(table(found))
    if options.record:
        record(found)
        print("\n".join(markdown(found)))


if __name__ == "__main__":
    main()
