"""What one kernel does for a logit, and the time that a model has for it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import loop_cost, sass
from .kernel_forms import (
    CLASSES,
    COLUMNS,
    DTYPES,
    LOGITS,
    OF_ROWS,
    ROWS,
    SINGLY,
    SIZES,
    SOME_ROWS,
    THREADS,
    USUAL,
    USUAL_OBJECT,
    WRITES,
)

# An H100 or H200 of 132 multiprocessors
_PROCESSORS, _CLOCK, _LANES, _MUFU_LANES = 132, 1.98e9, 128, 16
_REGISTERS, _THREADS, _MOST_BLOCKS = 65536, 2048, 32
_SHARED = {"80": 164 * 1024, "90": 228 * 1024, "100": 228 * 1024}  # of a multiprocessor
_KEPT = 1024  # bytes of it that every block costs beside its own
_OPTIN = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024}  # of one block at most


@dataclass(frozen=True)
class Kernel:
    """A kernel's machine code for a use of it; what is counted is per logit."""

    name: str
    dtype: str
    arch: str
    instructions: float
    mufu: float
    rare: float
    memory: float  # bytes: logits and labels once, if they are read, and all that is written
    l2: float  # bytes: all that is read and written
    registers: int
    shared: int  # bytes, static and dynamic
    local: int
    threads: int
    blocks: int  # beside each other on a multiprocessor
    loops: tuple[str, ...] = field(default=(), compare=False)
    writes: float = 0.0
    writing: tuple[float, float] = field(default=(0.0, 0.0), compare=False)  # loops that write:
    # their instructions and MUFU
    lost: int = field(default=0, compare=False)  # instructions that the tool found no way to

    @property
    def sums(self) -> Kernel:
        """Where nothing that is as large as the logits is to be written."""
        count, mufu = self.writing
        return replace(
            self,
            instructions=self.instructions - count,
            mufu=self.mufu - mufu,
            memory=self.memory - self.writes,
            l2=self.l2 - self.writes,
            writes=0.0,
        )

    @property
    def occupancy(self) -> float:
        return self.blocks * self.threads / _THREADS

    def seconds(self, logits: float, rate: float) -> float:
        """As the model has it."""
        busy = 0.7 if self.occupancy >= 1 / 3 else 0.5
        cycles = _PROCESSORS * _CLOCK
        return max(
            self.memory * logits / rate,
            self.instructions * logits / (cycles * _LANES * busy),
            self.mufu * logits / (cycles * _MUFU_LANES),
        )


def of_code(
    name: str,
    code: list[sass.Instruction],
    resources: sass.Resources,
    *,
    arch: str,
    dtype: str,
    threads: int,
    logits: float,
    shared: int | None = None,
) -> Kernel:
    """What a kernel costs whose threads have so many logits each.

    Args:
        shared: bytes on chip that a launch asks for, beside the static ones; by default a row of
            CLASSES logits where the kernel copies rows on chip.
    """
    size = SIZES[dtype]
    labels = label_bytes(name, size)
    # labels as wide as the logits are loaded as these are
    columns = re.search(COLUMNS, name) is not None
    cost = loop_cost.cost(
        code,
        size * (2 if columns and labels == size else 1),
        columns=columns,
        singly=next((most for pattern, most in SINGLY if re.search(pattern, name)), None),
    )
    count, mufu = cost.per_logit(logits)
    loads = cost.bytes_per_logit(logits, "LDG", "LD")
    writes = min(cost.bytes_per_logit(logits, "STG", "ST"), written_bytes(name, size))
    copies = cost.bytes_per_logit(logits, "LDGSTS") + (size if cost.bulk else 0)
    if shared is None:
        row = CLASSES * size + 16 if copies else 0
        shared = row // math.ceil((row + resources.shared) / _OPTIN[arch]) if row else 0
    on_chip = shared + resources.shared
    each = 1 / CLASSES if re.search(OF_ROWS, name) else 1.0
    each *= next((rows / ROWS for pattern, rows in SOME_ROWS if re.search(pattern, name)), 1.0)
    loops = []
    for loop in cost.loops:
        done = loop.instructions * loop.turns_per_logit
        what = "remainder" if loop.remainder else f"{done:.2f} a logit" if done else "counted once"
        turn = f", {loop.logits:g} logits a turn" if loop.logits else ""
        shares = f", shared by {loop.shared_by}" if loop.shared_by > 1 else ""
        loops.append(
            f"{'  ' * loop.depth}loop at {loop.first:#06x}: {loop.instructions} instructions, MUFU "
            f"{loop.mufu}, rare {loop.rare}{turn}{shares}: {what}"
        )
    return Kernel(
        name=name,
        dtype=dtype,
        arch=arch,
        instructions=count * each,
        mufu=mufu * each,
        rare=cost.rare_per_logit(logits) * each,
        memory=(min(loads + copies, size + labels) + writes) * each,
        l2=(loads + copies + writes) * each,
        registers=resources.registers,
        shared=on_chip,
        local=resources.local,
        threads=threads,
        blocks=beside(resources.registers, on_chip, threads, arch),
        loops=tuple(loops),
        writes=writes * each,
        writing=_writing(cost),
        lost=cost.lost,
    )


def _writing(cost: loop_cost.Cost) -> tuple[float, float]:
    """(instructions, MUFU) per logit of the loops that write to memory."""
    loops = [loop for loop in cost.loops if any(loop.work[name] for name in ("STG", "ST"))]
    count = sum(loop.instructions * loop.turns_per_logit for loop in loops)
    return count, sum(loop.mufu * loop.turns_per_logit for loop in loops)


def beside(registers: int, shared: int, threads: int, arch: str) -> int:
    """Blocks that find room on a multiprocessor."""
    warps = math.ceil(threads / 32)
    of_registers = _REGISTERS // (math.ceil(max(registers, 1) / 8) * 8 * 32 * warps)
    of_shared = _SHARED[arch] // (math.ceil(shared / 128) * 128 + _KEPT)
    return min(of_registers, of_shared, _THREADS // (32 * warps), _MOST_BLOCKS)


def label_bytes(name: str, size: int) -> int:
    """Bytes of a label that a multi-label kernel reads beside each logit of `size` bytes."""
    found = re.search(r"\bBinary(?:Span|Tile|Moments)Body<\w+, (\w+)", name)
    if found:
        return {"Bool": 1, "float": 4}.get(found[1], size)
    # those of Triton's kernels, too, are of the logits' type
    return size if re.search(r"\bBinary(Guess|Labels|Sided)Body\b|^binary_", name) else 0


def written_bytes(name: str, size: int) -> float:
    """Bytes at most that a kernel writes for a logit of `size` bytes."""
    for kernels, types in WRITES:
        if re.search(kernels, name):
            return sum(size if type == "T" else max(size, 4) for type in types)
    return math.inf


def logits_of(name: str) -> float:
    """Those of a thread."""
    found = next((logits for pattern, logits in LOGITS if re.search(pattern, name)), None)
    return found or CLASSES / threads_of(name)


def threads_of(name: str) -> int:
    return next(threads for pattern, threads in THREADS if re.search(pattern, name))


def dtype_of(name: str) -> str:
    """The element type that a kernel's name has among its arguments."""
    arguments = name[name.find("<") :]
    for dtype, type in DTYPES.items():
        if re.search(rf"\b{type}\b", arguments):
            return dtype
    return "fp32"


def object_kernels(arch: str, *paths: Path) -> Iterator[Kernel]:
    """All kernels of objects, in the order of their names; those of the usual ways by another."""
    found = {
        sass.demangled(name) + (f" {USUAL}" if path.name == USUAL_OBJECT else ""): value
        for path in paths
        for name, value in sass.functions(path).items()
    }
    for name, (code, resources) in sorted(found.items()):
        yield of_code(
            name,
            code,
            resources,
            arch=arch,
            dtype=dtype_of(name),
            threads=threads_of(name),
            logits=logits_of(name),
        )
