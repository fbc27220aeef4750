"""The CUDA kernels compiled for every architecture, and what the compiler says of them: no spills,
registers and shared memory within a budget. Needs nvcc, but no GPU."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.kernel_compile import ARCHITECTURES, OBJECTS, SAID, compile_cuda, nvcc
from benchmarks.kernel_forms import DTYPES
from benchmarks.sass import demangled

if nvcc() is None:
    pytest.skip("no nvcc on PATH, and NVCC does not name one", allow_module_level=True)

TYPES = {"f": "float", "d": "double", "6__half": "half", "13__nv_bfloat16": "bfloat16"}


# Set of csrc/cuda/algebra.h
BARE, TABLES, EVEN, LENGTH, PULL, MOVE, REST = 0, 1, 2, 4, 8, 16, 32
ALL = 63
LEAN_ROWS = BARE, TABLES, EVEN, LENGTH, TABLES | LENGTH, PULL
LEAN = *LEAN_ROWS, MOVE
GRADIENTS = "LearnedGradient, GroupGradient, Swept"  # of one kernel


class Kernel(NamedTuple):
    body: str
    type: str
    set: int  # of the features that it is compiled for


class Labelled(NamedTuple):
    """A kernel of multi-label losses."""

    body: str
    type: str
    labels: str = ""  # their type, where it is the kernel's
    everything: bool = False


class Use(NamedTuple):
    registers: int
    shared: int  # bytes of static shared memory
    spilled: int  # bytes


def budget(kernel: Kernel) -> Use:
    """Blocks of 256 threads: two of them share 65,536 registers, in double one has them alone. What
    only reads and writes a row must leave room for as many as find threads."""
    registers = 255 if kernel.type == "double" else 128
    rows = "Row", "Row, Loss", "StatsRow", "Gradient", "Mass", "LearnedGradient"
    if kernel.body in rows and not kernel.set & REST:
        registers = 64 if kernel.set in (BARE, MOVE) and kernel.body != "StatsRow" else 80
    if kernel.body == GRADIENTS:
        registers = 80
    if kernel.body in ("Scale", "Norm", "Loss", "Size", "Perturbed"):
        registers = 64 if kernel.type != "double" else 80
    wide = kernel.type == "double"
    heads = {
        "LearnedStatistics, Ranks": 512 * (12 if wide else 8),
        # of eight warps, or in double of four
        **dict.fromkeys(("RowSteps", "RowSteps, FirstSteps"), 8 * 384 * 12),
        **dict.fromkeys(
            ("FirstTail", "FirstNormalizedTail", "GroupDelta", "GroupGradient", GRADIENTS),
            (8 if wide else 32) << 10,
        ),
        # or numbers of classes, and as many of each crew
        "GroupGather": 512 * 48,
        **dict.fromkeys(("GroupTail", "NormalizedTail"), 512 * 48 if wide else 32 << 10),
        "Rivals": 512 * (12 if wide else 8),
        **dict.fromkeys(("Norm", "Loss", "Sort"), 4096),  # of a block of 1,024 threads
        "Ranks": 4096 + 8192 * 4,
    }
    return Use(registers, 4096 + heads.get(kernel.body, 0), 0)


def labelled_budget(kernel: Labelled, arch: str) -> Use:
    """Four blocks where logits have no tables, three that walk down columns, else two; one less
    where the compiler for an architecture wants more registers."""
    registers = 255 if kernel.type == "double" else 128
    if kernel.type != "double" and not kernel.everything:
        blocks = {
            "Span": 3 if arch == "100" else 4,
            "Tile": 3,
            "Moments": 2 if arch == "80" else 3,
        }
        registers = {2: 128, 3: 80, 4: 64}[blocks.get(kernel.body, 2)]
    if kernel.body in ("Scale", "Labels", "Norm", "Loss"):
        registers = 80 if kernel.type == "double" or arch == "100" else 64
    moments = 8 * 24 * 32 * 4 + 1024 * 4  # of eight warps, and masks of rows
    own = {
        "Moments": moments,
        "Guess": moments + 2 * 24 * 32 * 4,
        "Steps": moments + 2 * 24 * 32 * 8 + 2048,
        **dict.fromkeys(("Norm", "Loss"), 4096),
    }
    return Use(registers, 4096 + own.get(kernel.body, 0), 0)


def labelled_kernels() -> set[Labelled]:
    """Lean ones for labels that are bool, of the logits' type or float; of all others one."""
    found = {
        Labelled(body, type) for body in ("Labels", "Norm", "Loss") for type in ("float", "double")
    }
    for type in DTYPES.values():
        found |= {Labelled(body, type) for body in ("Steps", "Scale", "Sided")}
        found.add(Labelled("Tile", type, "Any", True))
        if type == "double":
            continue
        found.add(Labelled("Guess", type))
        found |= {
            Labelled(body, type, y) for body in ("Span", "Tile") for y in ("Bool", type, "float")
        }
        found |= {Labelled("Moments", type, labels) for labels in ("Bool", type, "Any")}
    return found


def kernels() -> set[Kernel]:
    """One for each element type that serves all calls; for less than everything separate ones,
    except in double."""
    sets = {"Row": LEAN_ROWS, "Gradient": LEAN}
    sets |= dict.fromkeys(("Mass", "StatsRow", "StatsSteps"), (BARE,))
    sets |= {"LearnedStatistics, Ranks": (BARE, TABLES), "LearnedGradient": (TABLES,)}
    sets |= {f"Group{body}": (BARE,) for body in ("Tail", "Gather", "Delta")}
    sets["GroupGradient"] = ()
    sets |= dict.fromkeys(("NormalizedTail", "FirstTail", "FirstNormalizedTail"), (BARE,))
    found = {Kernel(body, type, ALL) for body in sets for type in TYPES.values()}
    found |= {
        Kernel(body, type, ALL)
        for body in ("Norm", "Loss", "Ranks", "Sort", "RowSteps", "RowSteps, FirstSteps")
        for type in ("float", "double")
    }
    found |= {
        Kernel(body, type, ALL)
        for body in (
            *("Table", "Scale", "Size", "Detail", "Rivals", "Perturbed"),
            *("LearnedDelta", "Swept"),
        )
        for type in TYPES.values()
    }
    for type in ("float", "half", "bfloat16"):
        found |= {Kernel(body, type, of) for body, all in sets.items() for of in all}
        found |= {Kernel(body, type, TABLES) for body in ("Statistics", "Gradients")}
        found |= {Kernel(GRADIENTS, type, BARE), Kernel("Row, Loss", type, BARE)}
    return found


@pytest.fixture(
    scope="module",
    params=[
        arch if arch == "90" else pytest.param(arch, marks=pytest.mark.architectures)
        for arch in ARCHITECTURES
    ],
)
def compiled(
    request: pytest.FixtureRequest, once: Callable[[str, Callable[[Path], None]], Path]
) -> tuple[str, tuple[Path, ...], str]:
    """(architecture, objects with code and PTX, what the compiler said)"""
    arch: str = request.param
    folder = once(f"cuda-{arch}", functools.partial(compile_cuda, arch))
    return arch, tuple(folder / name for name in OBJECTS), (folder / SAID).read_text()


def named(mangled: str) -> Kernel | Labelled:
    name = demangled(mangled)
    if found := re.search(r"<Binary(\w+)Body<(\w+)(?:, (\w+))?(, true)?", name):
        return Labelled(found[1], found[2], found[3] or "", bool(found[4]))
    found = re.search(
        r"kernelINS_(?:\d+(?:InTurns|InTurnsAndLeft|AndLoss)INS_)?\d+(\w+?)BodyI"
        r"(f|d|6__half|13__nv_bfloat16)(?:Lj(\d+)E)?",
        mangled,
    )
    assert found, name
    beside = {
        "beside_kernel": "RowSteps, FirstSteps",
        "pieces_beside_kernel": GRADIENTS,
        "rows_beside_kernel": "LearnedStatistics, Ranks",
    }
    body = beside.get(name.split("<")[0], found[1])
    if "AndLoss<" in name:
        body = f"{body}, Loss"
    return Kernel(body, TYPES[found[2]], ALL if found[3] is None else int(found[3]))


def uses(said: str) -> dict[Kernel | Labelled, Use]:
    found = {}
    for part in said.split("Compiling entry function ")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        assert spills
        assert registers
        shared = re.search(r"(\d+) bytes smem", part)
        use = Use(
            int(registers[1]), int(shared[1]) if shared else 0, int(spills[1]) + int(spills[2])
        )
        found[named(part.split("'")[1])] = use
    return found


def test_every_kernel_keeps_to_its_budget(compiled: tuple[str, tuple[Path, ...], str]) -> None:
    arch, _, said = compiled
    found = uses(said)
    assert set(found) == kernels() | labelled_kernels()

    def allowed(kernel: Kernel | Labelled) -> Use:
        return budget(kernel) if isinstance(kernel, Kernel) else labelled_budget(kernel, arch)

    over = {
        kernel: use
        for kernel, use in found.items()
        if any(have > may for have, may in zip(use, allowed(kernel), strict=True))
    }
    assert not over, f"sm_{arch}"
    assert not re.search(r"\bwarning\b", said), said


def test_the_object_has_machine_code_and_ptx(compiled: tuple[str, tuple[Path, ...], str]) -> None:
    """PTX runs on what is newer than the last architecture; clusters are there from Hopper on."""
    arch, (made, _), _ = compiled
    tool = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if tool is None and triton is not None and triton.origin is not None:
        tool = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
    if tool is None or not Path(tool).exists():
        pytest.skip("no cuobjdump")

    def said(*options: str) -> str:
        return subprocess.run(
            [str(tool), *options, str(made)], capture_output=True, text=True, check=True
        ).stdout

    assert f"sm_{arch}.cubin" in said("-lelf")
    ptx = said("-ptx")
    assert f".target sm_{arch}" in ptx
    assert ("barrier.cluster" in ptx) == (int(arch) >= 90)
    assert "cp.async.ca.shared.global" in ptx
    assert ("cp.async.bulk.shared" in ptx) == (int(arch) >= 90)
