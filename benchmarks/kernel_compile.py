"""The kernels of both GPU backends, compiled where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from . import sass, triton_launches
from .kernel_forms import APART, APART_OBJECT, BUDGETS, USUAL_OBJECT

ROOT = Path(__file__).parent.parent
SOURCES = tuple(ROOT / "csrc" / "cuda" / f"{name}.cu" for name in ("kernels", "binary_kernels"))
OBJECTS, SAID = tuple(f"{source.stem}.o" for source in SOURCES), "said.txt"
COUNTED = (*OBJECTS, USUAL_OBJECT, APART_OBJECT)  # objects whose kernels are counted
ARCHITECTURES = ("80", "90", "100")  # the default of setup.py


def _instantiated(kernels: Iterable[str], first: str = "") -> str:
    """The file that has these kernels and no others."""
    lines = [first, f'#include "{SOURCES[0]}"', "namespace lpl {", "namespace {"]
    for name in kernels:
        rest = "int" if name.startswith("piece_kernel") else "int, Fill"
        lines.append(f"template __global__ void {name}(const __grid_constant__ Call, {rest});")
    return "\n".join([*lines, "}", "}", ""])


def usual_text() -> str:
    """Those of bf16 that have ways which exclude each other."""
    kernels = []
    for name in (name for _, kernels, _, _ in BUDGETS for name in kernels):
        if name.startswith("Binary"):
            continue
        kernel = "piece_kernel" if name.startswith("Gradients") else "row_kernel"
        whole = name if "_kernel<" in name else f"{kernel}<{name}"
        kernels.append(f"{whole}>".replace("<T", "<BFloat16"))
    return _instantiated(kernels, "#define LPL_USUAL")


def apart_text() -> str:
    """Those of less than double that are parts of one."""
    types = "BFloat16", "Float16", "float"
    whole = [name + ">" * (name.count("<") - name.count(">")) for name in APART]
    return _instantiated(re.sub(r"\bT\b", type, name) for name in whole for type in types)


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
    for object, text in ((USUAL_OBJECT, usual_text()), (APART_OBJECT, apart_text())):
        file = (folder / object).with_suffix(".cu")
        file.write_text(text)
        command = [*flags, "-DLPL_SPLIT", str(file), "-o", str(folder / object)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"nvcc failed: {(done.stdout + done.stderr)[-4000:]}")


def compile_triton(arch: str, folder: Path) -> None:
    """Leaves cubins and `triton_launches.FILE` in a folder, by a process of its own."""
    environment = triton_launches.environment(folder)
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
