"""`python -m benchmarks.instructions`: what the C++ kernels cost, in instructions per logit.

A count is the same whatever else the machine does, so a change of a few per cent shows. Each case
is called once through the library, its native calls are recorded, and done again in a process
without torch (benchmarks/replay.py) under valgrind's callgrind, one thread, forward + backward.

Counts belong to a compiler and to an instruction set; `results/instructions.json` holds them for
those that somebody has counted with `--record`.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lpl_fused.backends import cpp

from . import replay
from .cases import Case, draw
from .correctness import evaluate
from .providers import fused

TOLERANCE = 1.05  # of the count on record
BASELINE = Path(__file__).parent / "results" / "instructions.json"
# Few rows, for a count needs no repetition; the classes of a vocabulary, of ImageNet, of CIFAR.
CASES = tuple(
    Case.parse(*words.split())
    for words in (
        *("16x8142 fp32 ce", "16x8142 bf16 ce", "16x8142 fp16 ce", "16x8142 fp64 ce"),
        *("64x1000 fp32 ce", "128x100 fp32 ce", "256x10 fp32 ce"),
        *("16x8142 fp32 la", "16x8142 fp32 vs", "16x8142 fp32 ldam", "16x8142 fp32 smoothing"),
        *("16x8142 fp32 logitclip", "16x8142 fp32 logitnorm"),
        *("16x8142 fp32 mbls", "16x8142 fp32 cals"),
        *("16x8142 fp32 lpl10-unique", "16x8142 fp32 lpl50-unique", "64x1000 fp32 lpl10-zipf"),
        *("64x9605 fp32 bce", "64x9605 fp32 db", "64x9605 fp32 bce-lpl10"),
        *("512x1024 fp32 bce-lpl50", "256x80 fp32 db", "256x20 fp32 bce"),
    )
)
# Counted is what these do, with whatever they call.
_ENTRIES = (
    *("cross_entropy(lpl::Problem*", "gradient(lpl::Problem*"),
    *("scale_rows(*", "binary_cross_entropy(*"),
)


class Recorder:
    """Stands in for the native module: passes calls on, and keeps what they were given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._native = cpp._native()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, _without_torch(arguments)))
            return getattr(self._native, name)(*arguments)

        return call


def _without_torch(value: Any) -> Any:
    if isinstance(value, Tensor):
        return bytes(value.contiguous().flatten().view(torch.uint8).tolist())
    return tuple(map(_without_torch, value)) if isinstance(value, tuple) else value


@contextmanager
def recorded() -> Iterator[Recorder]:
    """While it lasts native calls are recorded, on one thread."""
    recorder, native, threads = Recorder(), cpp._native, torch.get_num_threads()
    cpp._native = lambda: recorder  # type: ignore[assignment]
    torch.set_num_threads(1)
    try:
        yield recorder
    finally:
        cpp._native = native
        torch.set_num_threads(threads)


def calls_of(case: Case) -> list[tuple[str, tuple[Any, ...]]]:
    """The native calls of forward and backward."""
    batch = draw(case, torch.device("cpu"))
    with recorded() as recorder:
        evaluate(fused("cpp")(case, batch), batch)
    return recorder.calls


def isa() -> str:
    """The instruction set that is counted: the best that valgrind knows."""
    names: list[str] = cpp._native().usable_isas()
    return next(name for name in names if name != "avx512")


def build() -> str:
    """What counts belong to: compiler and instruction set of the native module."""
    comment = re.search(rb"(GCC: [^\0]+|clang version [^\0]+)\0", Path(_module()).read_bytes())
    return f"{comment[1].decode() if comment else 'unknown compiler'}, {isa()}"


def unavailable() -> str | None:
    """Why nothing can be counted here; None if it can."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if reason := cpp.unavailable():
        return reason
    if b".symtab" not in Path(_module()).read_bytes():
        return "the native module is stripped, as a wheel's is: valgrind cannot find its functions"
    return None


def count(cases: Iterable[Case]) -> dict[str, float]:
    """Instructions per logit of every case, by its name."""
    cases = list(cases)
    with tempfile.TemporaryDirectory() as folder:
        calls, out = Path(folder) / "calls", Path(folder) / "out"
        calls.write_bytes(b"".join(pickle.dumps(calls_of(case)) for case in cases))
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no"]
        command += [f"--toggle-collect=lpl::{isa()}::{entry}" for entry in _ENTRIES]
        command += ["--dump-before=lpl::use_isa*", f"--callgrind-out-file={out}"]
        command += [sys.executable, "-S", replay.__file__, _module(), isa(), str(calls)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"counting failed: {done.stderr[-2000:]}")
        # a dump before each case, which holds the case before it, and the last at the end
        dumps = [Path(f"{out}.{k + 1}") for k in range(1, len(cases))] + [out]
        totals = [int(_total(dump.read_text())) for dump in dumps]
    return {c.name: n / (c.rows * c.classes) for c, n in zip(cases, totals, strict=True)}


def _total(dump: str) -> str:
    found = re.search(r"^totals: (\d+)$", dump, re.MULTILINE)
    assert found is not None
    return found[1]


def _module() -> str:
    return str(cpp._native().__file__)


def baseline() -> dict[str, float]:
    """The counts on record for this build; empty if there are none."""
    found: dict[str, dict[str, float]] = json.loads(BASELINE.read_text())
    return found.get(build(), {})


def record(counts: dict[str, float]) -> None:
    """Makes counts the baseline of this build."""
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    known[build()] = {name: round(number, 3) for name, number in counts.items()}
    BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def grown(counts: dict[str, float], known: dict[str, float]) -> dict[str, float]:
    """By how much, of the cases on record, those have grown that take over 5 % more."""
    ratios = {name: number / known[name] for name, number in counts.items() if name in known}
    return {name: ratio for name, ratio in ratios.items() if ratio > TOLERANCE}


def table(counts: dict[str, float], known: dict[str, float]) -> Table:
    """For the terminal."""
    shown = Table(title=f"instructions per logit, forward + backward: {build()}")
    shown.add_column("case")
    for column in ("counted", "on record", "ratio"):
        shown.add_column(column, justify="right")
    for name, number in counts.items():
        was = known.get(name)
        rest = ("–", "–") if was is None else (f"{was:.2f}", f"{number / was:.3f}")
        shown.add_row(name, f"{number:.2f}", *rest)
    return shown


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    made.add_argument("--record", action="store_true", help="make the counts the baseline")
    options = made.parse_args(arguments)
    reason = unavailable()
    if reason is not None:
        made.error(reason)
    known, counts = baseline(), count(CASES)
    Console().print(table(counts, known))
    if options.record:
        record(counts)


if __name__ == "__main__":
    main()
