"""`python -m benchmarks.device_cost`: what the GPU kernels cost, without a GPU.

Compiles the kernels of both GPU backends and counts in their machine code (loop_cost.py), per form
of call and element type: instructions of a thread and MUFU (exponential, logarithm, reciprocal: 16
lanes a cycle and multiprocessor, where others have 128) per logit, rare code apart; bytes per logit
of device memory and of L2; registers; blocks beside each other on a multiprocessor; launches; and
the time that a model predicts. A launch takes the longest of

    bytes / rate,   instructions·logits / (multiprocessors·128·clock) / busy,
    MUFU·logits / (multiprocessors·16·clock)

with `busy` as measured on an H200: 0.7 where a third of a multiprocessor's threads find room, else
0.5. Predicted is not measured: the model knows nothing of latencies, waits or launches' own time.

Counts belong to a compiler; `results/device_cost.json` holds them for those that somebody has
counted with `--record`, and tests/test_device_cost.py fails where a kernel grows.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import lpl_fused

from . import loop_cost, sass, triton_launches
from .options import pattern
from .triton_launches import Launch

ROOT = Path(__file__).parent.parent
SOURCES = tuple(ROOT / "csrc" / "cuda" / f"{name}.cu" for name in ("kernels", "binary_kernels"))
RESULTS = Path(__file__).parent / "results"
BASELINE = RESULTS / "device_cost.json"
OBJECTS, SAID = tuple(f"{source.stem}.o" for source in SOURCES), "said.txt"
COUNTED = (*OBJECTS, "usual.o")  # objects whose kernels are counted
ARCHITECTURES = ("80", "90", "100")  # the default of setup.py
TOLERANCE = 1.05  # of the count on record
RATES = (4.2e12, 3.0e12)  # bytes a second: an H200, an H100
ROWS, CLASSES = 8192, 32000  # of the predicted times

# An H100 or H200 of 132 multiprocessors
_PROCESSORS, _CLOCK, _LANES, _MUFU_LANES = 132, 1.98e9, 128, 16
_REGISTERS, _THREADS, _MOST_BLOCKS = 65536, 2048, 32
_SHARED = {"80": 164 * 1024, "90": 228 * 1024, "100": 228 * 1024}  # of a multiprocessor
_KEPT = 1024  # bytes of it that every block costs beside its own
_OPTIN = {"80": 163 * 1024, "90": 227 * 1024, "100": 227 * 1024}  # of one block at most

DTYPES = {"bf16": "__nv_bfloat16", "fp16": "__half", "fp32": "float", "fp64": "double"}
SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}

# ------------------------------------------------------ what forms of call launch: to be amended

# Threads that share a row where they are not 256, and rows of which they make one: the first
# pattern that a kernel's name has.
THREADS: tuple[tuple[str, int], ...] = (
    ("batch_kernel", 1024),
    ("warp_kernel|beside_kernel", 32),
    ("LearnedStatisticsBody", 128),
    ("", 256),
)

# Logits of a thread where they are not its share of a row.
LOGITS: tuple[tuple[str, float], ...] = (
    (r"\b(Statistics|Gradients)Body\b", 4 * CLASSES / 256),  # of four rows
    (r"\bBinary(Span|Tile|Sided|Scale)Body\b", 64),
    (r"\bBinaryMomentsBody\b", 128),
    (r"\bBinaryGuessBody\b", 32),
)

# Those whose threads do a number for a row, or for a class, not for a logit.
OF_ROWS = (
    r"\b(LossBody|NormBody|RanksBody|SortBody|RowStepsBody|list_groups|group_rows"
    r"|BinaryLossBody|BinaryNormBody|BinaryStepsBody)\b"
)

# Those that read some rows only, and how many.
SOME_ROWS: tuple[tuple[str, int], ...] = ((r"\bBinaryGuessBody\b", 256),)

# What a kernel writes that is as large as the logits, by the first pattern that its name has: T of
# their type, A of the type that sums are of. More it does not write, whatever ways its code has:
# of those that exclude each other one is taken, and a list or a number of a row is not of logits.
WRITES: tuple[tuple[str, str], ...] = (
    (r"\b(Row|Gradient)Body<\w+, 63u>|\bBinaryTileBody<\w+, \w+, true>", "TA"),
    (r"\b(Swept|BinarySided)Body\b", "TA"),
    (r"\b(Row|Gradients?|LearnedGradient|GroupGradient|Scale)Body\b", "T"),
    (r"\bBinary(Span|Tile|Scale)Body\b", "T"),
    (r"\b(LearnedDelta|GroupDelta|Perturbed)Body\b", "A"),
    (r"Body\b", ""),
)

# Those that walk down columns, logit by logit.
COLUMNS = r"\bBinary(Guess|Moments)Body\b"
# Those that do so beside labels of whatever size, and logits of a turn (`kBatch`).
SINGLY: tuple[tuple[str, int], ...] = (
    (r"\bBinaryTileBody<\w+, Any, true>|\bBinarySidedBody\b", 4),
)

# Kernels that a form launches, forward and backward, T the element type: patterns of their names.
# "16:" and "32:" stand before what only logits of so many bits have; "sums:" before a kernel that
# here leaves out what writes. Sets of a problem's features (csrc/cuda/algebra.h) are numbers.
ALONE = "LPL, 10 steps, a class a row"  # a form's name


def _rows(set: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Loss and gradient in one sweep; another upstream makes 16 bits anew, and scales others."""
    again = f"16:GradientBody<T, {set}u>", "32:ScaleBody<T>"
    return (f"RowBody<T, {set}u>", "NormBody", "LossBody"), again


def _labelled(
    sweep: str, labels: str, moments: str = ""
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The same of multi-label losses, with moments under a learned perturbation."""
    again = f"Binary{sweep}Body<{', '.join(('T', labels) if labels else 'T')}>"
    forward: tuple[str, ...] = again, "BinaryLossBody"
    if moments:
        learns = "BinaryGuessBody<T>", f"BinaryMomentsBody<T, {moments}>", "BinaryStepsBody<T>"
        forward = (*learns, *forward)
    return forward, ("BinaryScaleBody<T>", f"16:{again}")


def _learned(set: int, groups: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """LPL of rows; kernels of classes with several rows, of which there are none, end at once."""
    tail = (f"GroupTailBody<T, {groups}u>",) * 2
    forward = (
        "RanksBody",
        f"LearnedStatisticsBody<T, {set}u>",
        "beside_kernel<RowStepsBody",
        *(f"FirstTailBody<T, {groups}u>", f"GroupGatherBody<T, {groups}u>", *tail),
        "SweptBody<T>",
    )
    gradient = f"LearnedGradientBody<T, {set}u>", f"GroupGradientBody<T, {groups}u>", "SweptBody<T>"
    return forward, gradient


CUDA: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain, a margin, φ": _rows(0),
    "plain, by statistics": (("sums:RowBody<T, 0u>",), ("GradientBody<T, 0u>",)),
    "tables": _rows(1),
    "tables, by statistics": (("StatisticsBody<T, 1u>",), ("GradientsBody<T, 1u>",)),
    "smoothing": _rows(2),
    "norm": _rows(4),
    "norm, with tables": _rows(5),
    "penalty": _rows(8),
    "everything": _rows(63),
    "BCE": _labelled("Span", "T"),
    "BCE, bool labels": _labelled("Span", "Bool"),
    "BCE, everything": _labelled("Tile", "Any, true"),
    "BCE, asymmetric": _labelled("Sided", ""),
    "BCE, LPL, 10 steps": _labelled("Tile", "T, false", "T"),
    "BCE, LPL, 10 steps, bool labels": _labelled("Tile", "Bool, false", "Bool"),
    ALONE: _learned(0, 0),
    f"{ALONE}, tables": _learned(1, 63),
}
# Instructions a logit that kernels for bf16 are to keep to: (what, kernels, reach, stretch).
BUDGETS: tuple[tuple[str, tuple[str, ...], int, int], ...] = (
    ("loss and gradient, plain", ("RowBody<T, 0u>",), 16, 12),
    ("tables, by statistics", ("StatisticsBody<T, 1u>", "GradientsBody<T, 1u>"), 22, 16),
    ("smoothing", ("RowBody<T, 2u>",), 22, 16),
    ("norm", ("RowBody<T, 4u>",), 40, 30),
    ("penalty", ("RowBody<T, 8u>",), 40, 30),
    ("LPL, statistics", ("LearnedStatisticsBody<T, 0u>",), 16, 11),
    ("LPL, gradient", ("LearnedGradientBody<T, 0u>",), 16, 11),
    ("BCE", ("BinarySpanBody<T, T>",), 30, 22),
)

# Kernels that are also compiled for the way that most threads take (LPL_USUALLY in
# csrc/cuda/call.h): no label and no head among a thread's logits, rows of whole pieces, the row's
# own numbers made by another warp; a 2-norm of numbers that need no scaling, ReLU's penalty.
USUAL = "(usual way)"
_USUAL_FILE, _USUAL_OBJECT = "usual.cu", "usual.o"


def usual_text() -> str:
    """The file that instantiates those of bf16 that have ways which exclude each other."""
    lines = ["#define LPL_USUAL", f'#include "{SOURCES[0]}"', "namespace lpl {", "namespace {"]
    for name in (name for _, kernels, _, _ in BUDGETS for name in kernels):
        if name.startswith("Binary"):
            continue
        of_pieces = re.match(r"LearnedGradient|Gradients", name)
        kernel, rest = ("piece", "int") if of_pieces else ("row", "int, Fill")
        body = name.replace("<T", "<BFloat16")
        lines.append(
            f"template __global__ void {kernel}_kernel<{body}>"
            f"(const __grid_constant__ Call, {rest});"
        )
    return "\n".join([*lines, "}", "}", ""])


# What is launched lest the host waits for the device, and ends at once: where the upstream gradient
# is 1, in forms whose forward has written the gradient; where every row has a class of its own.
IDLE_UPSTREAM = r"^(rescale_rows|scale_rows|scale_labels|.*ScaleBody.*)$"
# … and where a gradient of 16 bits is made anew.
IDLE_ANEW = r".*\bBinaryScaleBody<(__half|__nv_bfloat16)>"
IDLE_ALONE = (
    r"^(list_groups|split_columns|move_tail|move_groups|plain_steps"
    r"|.*Group\w*Body.*|.*FirstTailBody.*|.*SweptBody.*)$"
)


# ------------------------------------------------------------------------------------- counting


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
        sass.demangled(name) + (f" {USUAL}" if path.name == _USUAL_OBJECT else ""): value
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


# ------------------------------------------------------------------------------------ compiling


def nvcc() -> str | None:
    return os.environ.get("NVCC") or shutil.which("nvcc")


def compile_cuda(arch: str, folder: Path, sources: Iterable[Path] = SOURCES) -> None:
    """Leaves objects with machine code and PTX, and what the compiler said, in a folder."""
    code = f"arch=compute_{arch},code=[sm_{arch},compute_{arch}]"
    flags = *(str(nvcc()), "-std=c++17", "-O3", "-gencode", code, "-Xptxas", "-v"), "-c"
    with open(folder / SAID, "w") as said:
        for source in sources:
            command = [*flags, str(source), "-o", str(folder / f"{source.stem}.o")]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            said.write(done.stdout + done.stderr)
            if done.returncode:
                raise RuntimeError(f"nvcc failed: {(done.stdout + done.stderr)[-4000:]}")
    (folder / _USUAL_FILE).write_text(usual_text())
    command = [*flags, "-DLPL_SPLIT", str(folder / _USUAL_FILE), "-o", str(folder / _USUAL_OBJECT)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed: {(done.stdout + done.stderr)[-4000:]}")


def compile_triton(arch: str, folder: Path) -> None:
    """Leaves cubins and `triton_launches.FILE` in a folder, by a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        (str(ROOT), str(Path(lpl_fused.__file__).parents[1]))
    )
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", triton_launches.__name__, arch, str(folder)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"compiling Triton's kernels failed: {done.stderr[-4000:]}")


def without_tool() -> str | None:
    """Why no machine code can be read here; None if it can."""
    try:
        sass.tool("cuobjdump")
    except FileNotFoundError as error:
        return str(error)
    return None


def unavailable(backend: str) -> str | None:
    """Why a backend's kernels cannot be counted here; None if they can."""
    if reason := without_tool():
        return reason
    if backend == "cuda":
        return None if nvcc() else "no nvcc on PATH, and NVCC does not name one"
    try:
        import triton  # noqa: F401
    except ImportError:
        return "triton is not installed"
    return None


def compiler(backend: str, arch: str) -> str:
    """Whose counts they are: a key of the record."""
    if backend == "cuda":
        said = subprocess.run(
            [str(nvcc()), "--version"], check=True, capture_output=True, text=True
        )
        found = re.search(r"release .*, V([\d.]+)", said.stdout)
        return f"CUDA sm_{arch}, nvcc {found[1] if found else 'unknown'}"
    import triton

    return f"Triton sm_{arch}, triton {triton.__version__}, torch {torch.__version__.split('+')[0]}"


class Use(NamedTuple):
    """A launch of a form."""

    form: str
    dtype: str
    backward: bool
    kernel: Kernel


def triton_uses(folder: Path, arch: str) -> list[Use]:
    """What was compiled into a folder, launch by launch."""
    known: dict[tuple[str, float], Kernel] = {}
    found = []
    for launch in triton_launches.read(folder):
        key = launch.cubin, launch.logits
        if key not in known:
            known[key] = _of_launch(launch, folder / launch.cubin, arch)
        found.append(Use(launch.form, launch.dtype, launch.backward, known[key]))
    return found


def _of_launch(launch: Launch, cubin: Path, arch: str) -> Kernel:
    ((code, found),) = sass.functions(cubin).values()
    return of_code(
        launch.kernel,
        code,
        found._replace(shared=0),  # of which a launch says how much it is
        arch=arch,
        dtype=launch.dtype,
        threads=launch.threads,
        logits=launch.logits,
        shared=launch.shared,
    )


def cuda_uses(kernels: Iterable[Kernel]) -> list[Use]:
    """What forms launch of an object's kernels, as the table CUDA has it."""
    kernels = list(kernels)
    return [
        Use(form, dtype, bool(backward), kernel)
        for form, both in CUDA.items()
        for dtype in DTYPES
        if all(
            of_pattern(kernels, pattern, dtype)
            for patterns in both
            for pattern in patterns
            if _applies(pattern, dtype)
        )
        for backward, patterns in enumerate(both)
        for pattern in patterns
        if _applies(pattern, dtype)
        for kernel in of_pattern(kernels, pattern, dtype)
    ]


def of_pattern(kernels: Iterable[Kernel], pattern: str, dtype: str) -> list[Kernel]:
    """The kernels that a pattern of the table CUDA names for an element type."""
    *marks, pattern = pattern.split(":")
    typed = "<T" in pattern
    name = re.escape(_typed(pattern, dtype))
    wanted = dtype if typed else _accumulates(dtype)
    found = [
        kernel
        for kernel in kernels
        if re.search(rf"\b{name}", kernel.name)
        and not kernel.name.endswith(USUAL)
        and (kernel.dtype == wanted or "<" not in kernel.name)
    ]
    return [kernel.sums for kernel in found] if "sums" in marks else found


def _typed(pattern: str, dtype: str) -> str:
    return re.sub(r"\bT\b", DTYPES[dtype], pattern)


def _applies(pattern: str, dtype: str) -> bool:
    """Whether logits of a type have such a kernel."""
    mark = pattern.split(":")[0]
    return not mark.isdigit() or int(mark) == 8 * min(SIZES[dtype], 4)


def _accumulates(dtype: str) -> str:
    return "fp64" if dtype == "fp64" else "fp32"


def unnamed(kernels: Iterable[Kernel], uses: Iterable[Use]) -> list[Kernel]:
    """The kernels that no form of call names: counted, and shown as such."""
    used = {use.kernel.name for use in uses}
    return [
        kernel for kernel in kernels if kernel.name not in used and not kernel.name.endswith(USUAL)
    ]


# ------------------------------------------------------------------------------------- the forms


@dataclass(frozen=True)
class Form:
    """A form of call with an element type: what works in it, and how much is launched."""

    name: str
    dtype: str
    working: tuple[Kernel, ...]
    launches: int

    def sum(self, what: str) -> float:
        return float(sum(getattr(kernel, what) for kernel in self.working))

    def microseconds(self, rate: float) -> float:
        logits = ROWS * CLASSES
        return 1e6 * sum(kernel.seconds(logits, rate) for kernel in self.working)

    def floor(self, rate: float) -> float:
        """Microseconds of the logits read once and the gradient written once."""
        return 1e6 * 2 * SIZES[self.dtype] * ROWS * CLASSES / rate


def forms(uses: Iterable[Use]) -> Iterator[Form]:
    """What is done in every form, where the upstream gradient is 1 and where it is any other."""
    grouped: dict[tuple[str, str], list[Use]] = {}
    for use in uses:
        grouped.setdefault((use.form, use.dtype), []).append(use)
    for (name, dtype), of_form in grouped.items():
        rows = [use for use in of_form if not _idle(IDLE_ANEW, use)]
        if name.startswith(ALONE):
            rows = [use for use in rows if not _idle(IDLE_ALONE, use)]
        forward = [use.kernel for use in rows if not use.backward]
        backward = [use.kernel for use in rows if use.backward]
        launches = len(of_form)
        one_sweep = sum(kernel.writes for kernel in forward) >= SIZES[dtype] / 2
        if one_sweep:
            yield Form(f"{name}; upstream 1", dtype, tuple(forward), launches)
            yield Form(f"{name}; any upstream", dtype, (*forward, *backward), launches)
        else:
            yield Form(name, dtype, (*forward, *backward), launches)


def _idle(pattern: str, use: Use) -> bool:
    return re.match(pattern, use.kernel.name) is not None


# -------------------------------------------------------------------------------------- records


def counts(uses: Iterable[Use], kernels: Iterable[Kernel] = ()) -> dict[str, list[float]]:
    """What a record has (NUMBERS) of every kernel, by a name that is its own."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        found[kernel.name] = _numbers(kernel)
    if found:
        return found
    seen: dict[str, int] = {}
    for use in uses:
        way = "backward" if use.backward else "forward"
        name = f"{use.form} | {use.dtype} | {way} | {use.kernel.name}"
        seen[name] = seen.get(name, 0) + 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = _numbers(use.kernel)
    return found


# of a record: the first of them may not grow, all of them predict a time
NUMBERS = ("instructions", "mufu", "memory", "l2", "registers", "blocks", "threads")


def _numbers(kernel: Kernel) -> list[float]:
    return [round(getattr(kernel, name), 3) for name in NUMBERS]


def predicted(numbers: list[float], logits: float, rate: float) -> float:
    """Seconds that the model has for a kernel on record."""
    fields: dict[str, Any] = {"name": "", "dtype": "", "arch": "", "rare": 0.0}
    fields |= {"shared": 0, "local": 0} | dict(zip(NUMBERS, numbers, strict=True))
    return Kernel(**fields).seconds(logits, rate)


def baseline(key: str) -> dict[str, list[float]]:
    """The counts on record of a compiler; empty if there are none."""
    known: dict[str, dict[str, list[float]]] = (
        json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    )
    return known.get(key, {})


def record(key: str, found: dict[str, list[float]]) -> None:
    """Makes counts the baseline of their compiler."""
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    known[key] = found
    lines = []
    for name in sorted(known):
        inner = ",\n".join(
            f"  {json.dumps(kernel)}: {json.dumps(known[name][kernel])}"
            for kernel in sorted(known[name])
        )
        lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def too_low(kernels: Iterable[Kernel]) -> dict[str, str]:
    """The kernels with code that no way was found to, whose counts say too little."""
    return {
        kernel.name: f"no way found to {kernel.lost} instructions: the counts are too low"
        for kernel in kernels
        if kernel.lost
    }


def grown(found: dict[str, list[float]], known: dict[str, list[float]]) -> dict[str, str]:
    """The kernels on record whose threads do over 5 % more for a logit."""
    return {
        name: f"{known[name][0]} → {numbers[0]} instructions a logit"
        for name, numbers in found.items()
        if name in known and numbers[0] > TOLERANCE * known[name][0]
    }


# ----------------------------------------------------------------------------------- what is shown


_COLUMNS = (
    "form",
    "dtype",
    "instr.",
    "MUFU",
    "rare",
    "B memory",
    "B L2",
    "registers",
    "blocks",
    "launches",
    "µs, 4.2 TB/s",
    "floor",
    "µs, 3.0 TB/s",
    "floor",
)
_KERNEL_COLUMNS = (*_COLUMNS[:9], "threads", "shared", "spilled")


def form_rows(found: Iterable[Form]) -> Iterator[tuple[str, ...]]:
    for form in found:
        times = [(form.microseconds(rate), form.floor(rate)) for rate in RATES]
        yield (
            form.name,
            form.dtype,
            *(f"{form.sum(what):.1f}" for what in ("instructions", "mufu", "rare", "memory", "l2")),
            " · ".join(str(kernel.registers) for kernel in form.working),
            " · ".join(str(kernel.blocks) for kernel in form.working),
            str(form.launches),
            *(f"{number:.0f}" for pair in times for number in pair),
        )


def kernel_rows(kernels: Iterable[Kernel]) -> Iterator[tuple[str, ...]]:
    for one in kernels:
        yield (
            one.name,
            one.dtype,
            *(f"{n:.1f}" for n in (one.instructions, one.mufu, one.rare, one.memory, one.l2)),
            *map(str, (one.registers, one.blocks, one.threads, one.shared, one.local)),
        )


_BUDGET_COLUMNS = ("what", "dtype", "dearest ways", "usual way", "reach", "stretch")
_GUIDE_COLUMNS = ("kernel", "counted", "reach", "stretch", "budget")
GUIDE = ROOT / "docs" / "cuda.md"


def budget_rows(found: Mapping[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """Instructions a logit of bf16, beside what they are to be, from counts of kernels."""
    for what, patterns, reach, stretch in BUDGETS:
        names = [rf"\b{re.escape(_typed(name, 'bf16'))}" for name in patterns]
        found_once = [one for one in found if not one.endswith(USUAL)]
        dearest = [one for one in found_once if any(re.search(name, one) for name in names)]
        usual = [f"{one} {USUAL}" if f"{one} {USUAL}" in found else one for one in dearest]
        sums = (sum(found[one][0] for one in ones) for ones in (dearest, usual))
        yield (what, "bf16", *(f"{number:.1f}" for number in sums), str(reach), str(stretch))


def budget_table(found: Mapping[str, list[float]]) -> str:
    """The same of the usual way, as docs/cuda.md has it."""
    rows = [_GUIDE_COLUMNS, ("---", *["---:"] * 3, "---")]
    for what, _, _, usual, reach, stretch in budget_rows(found):
        met = "met" if float(usual) <= float(reach) else "**missed**"
        rows.append((what, usual, reach, stretch, met))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_budgets(found: Mapping[str, list[float]]) -> None:
    """Puts the table in the place of the one that docs/cuda.md has."""
    head = re.escape(f"| {' | '.join(_GUIDE_COLUMNS)} |\n")
    table = budget_table(found)
    page, times = re.subn(rf"{head}(?:\|.*\n)*", lambda _: table, GUIDE.read_text())
    if times != 1:
        raise RuntimeError(f"{GUIDE.name}: expected one table of budgets, found {times}")
    GUIDE.write_text(page)


def page_of(backend: str) -> Path:
    """The page beside the record, of sm_90."""
    return RESULTS / f"device_cost_{backend}.md"


Section = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def markdown(sections: list[Section]) -> str:
    """The page that stands beside the record."""
    text = [
        "# What the GPU kernels cost",
        "",
        "Counted in machine code and **predicted**, not measured: `python -m "
        "benchmarks.device_cost --record` wrote this page, and its help says how. Instructions of "
        f"a thread, MUFU and bytes are per logit; times are of {ROWS}×{CLASSES} logits on 132 "
        "multiprocessors at 1.98 GHz. “Rare” counts every rare branch as if it were always taken, "
        "and is in no other number. A form that takes the gradient in its forward sweep has two "
        "rows: with an upstream gradient of 1, and with any other. “No form” marks kernels that "
        "no form of the table here launches.",
    ]
    if len(sections) > 2:
        text[-1] += (
            " Of ways through a kernel that exclude each other the dearest is counted; the usual "
            "way is the same kernel compiled with what LPL_USUALLY says in csrc/cuda: nothing of "
            "a logit is left out but label and heads, of which a row has few."
        )
    for title, heads, rows in sections:
        text += ["", f"## {title}", "", f"| {' | '.join(heads)} |"]
        text += [f"| {' | '.join(['---', '---', *['---:'] * (len(heads) - 2)])} |"]
        text += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(text) + "\n"


def _shown(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title)
    for k, head in enumerate(heads):
        table.add_column(head, justify="left" if k < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.device_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--arch", choices=ARCHITECTURES, default="90", help="default: 90")
    made.add_argument("--backends", default="cuda,triton", help="of cuda,triton")
    made.add_argument("--record", action="store_true", help="make the counts the baseline")
    made.add_argument(
        "--kernel", type=pattern, default="", metavar="REGEX", help="shows these kernels' loops"
    )
    made.add_argument(
        "--object", type=Path, help="counts the kernels of this object, cubin or library instead"
    )
    return made


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = parser()
    options = made.parse_args(arguments)
    out = Console(width=200)
    sections: list[Section] = []
    if options.object:
        if not options.object.is_file():
            made.error(f"--object: {options.object} is no file")
        if reason := without_tool():
            made.error(reason)
        kernels = list(object_kernels(options.arch, options.object))
        _show_kernels(out, options.object.name, kernels, options.kernel)
        return
    backends = options.backends.split(",")
    for backend in backends:
        if backend not in ("cuda", "triton"):
            made.error(f"backends: expected cuda, triton or both, got {backend!r}")
        if reason := unavailable(backend):
            made.error(f"{backend}: {reason}")
    for backend in backends:
        with tempfile.TemporaryDirectory() as folder:
            key = compiler(backend, options.arch)
            kernels = []
            if backend == "cuda":
                compile_cuda(options.arch, Path(folder))
                kernels = list(
                    object_kernels(options.arch, *(Path(folder) / name for name in COUNTED))
                )
                uses = cuda_uses(kernels)
            else:
                compile_triton(options.arch, Path(folder))
                uses = triton_uses(Path(folder), options.arch)
        found = counts(uses, kernels)
        rows = list(form_rows(forms(uses)))
        sections.append((f"{key}: forms of call", _COLUMNS, rows))
        out.print(_shown(*sections[-1]))
        if kernels:
            title = f"{key}: instructions a logit beside their budget"
            sections.insert(0, (title, _BUDGET_COLUMNS, list(budget_rows(found))))
            out.print(_shown(*sections[0]))
            alone = {kernel.name for kernel in unnamed(kernels, uses)}
            kernels = [
                replace(one, name=f"{one.name} (no form)") if one.name in alone else one
                for one in kernels
            ]
            sections.append((f"{key}: kernels", _KERNEL_COLUMNS, list(kernel_rows(kernels))))
        else:
            kernels = [
                replace(use.kernel, name=f"{use.kernel.name} ({use.form})")
                for use in {use.kernel: use for use in reversed(uses)}.values()
            ][::-1]
            sections.append((f"{key}: kernels", _KERNEL_COLUMNS, list(kernel_rows(kernels))))
        _show_kernels(out, key, kernels, options.kernel)
        for name, how in grown(found, baseline(key)).items():
            out.print(f"grown: {name}: {how}", markup=False)
        if options.record:
            record(key, found)
        if options.record and options.arch == "90":
            page_of(backend).write_text(markdown(sections))
            if backend == "cuda":
                write_budgets(found)
        sections.clear()


def _show_kernels(out: Console, title: str, kernels: list[Kernel], pattern: str) -> None:
    chosen = [kernel for kernel in kernels if re.search(pattern, kernel.name)]
    out.print(_shown(f"{title}: kernels", _KERNEL_COLUMNS, list(kernel_rows(chosen))))
    for name, how in too_low(kernels).items():
        out.print(f"{name}: {how}", markup=False)
    if pattern:
        for kernel in chosen:
            out.print(f"{kernel.name} ({kernel.dtype})", markup=False)
            for line in kernel.loops:
                out.print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
