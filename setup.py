"""The native build and nothing else; everything static is in pyproject.toml.

Builds lpl_fused._cpu and lpl_fused._cuda with ninja, independently: pybind11 without torch, one
object per instruction set, one per CUDA source. Where a compiler does not work the package is
installed without that module, with one line that says so.

    LPL_FUSED_CUDA=auto|0|1       auto: build _cuda where there is an nvcc; 1: complain without
    LPL_FUSED_CUDA_ARCHS          compute capabilities times ten, "80;90;100"; PTX of the last
    LPL_FUSED_REQUIRE_EXT=cpu|cuda|all    turns a failed build into an error
    LPL_FUSED_LOCAL_VERSION       what follows "+" in a wheel's version: "cu130"
    MAX_JOBS                      parallel compiler processes
    CXX, NVCC                     the compilers
    CXXFLAGS                      more options of the C++ compiler, after ours
"""

from __future__ import annotations

import io
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path(__file__).resolve().parent / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS: dict[str, list[str]] = {"baseline": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ]
NVCC = shutil.which(os.environ.get("NVCC", "nvcc"))
CUDA_TYPES = "BFloat16", "Float16", "float", "double"  # ninja's order: first what takes longest
CUDA_ARCHS = os.environ.get("LPL_FUSED_CUDA_ARCHS", "80;90;100").split(";")


def wanted() -> list[Extension]:
    """The modules to build; which of them must be is LPL_FUSED_REQUIRE_EXT's to say."""
    choice = os.environ.get("LPL_FUSED_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise ValueError(f"LPL_FUSED_CUDA: expected auto, 0 or 1, got {choice!r}")
    cuda = choice == "1" or required("cuda") or (choice == "auto" and NVCC is not None)
    return [Extension(f"lpl_fused.{name}", []) for name in ("_cpu", "_cuda")[: 2 if cuda else 1]]


def required(module: str) -> bool:
    return os.environ.get("LPL_FUSED_REQUIRE_EXT", "") in (module, "all")


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self.build_with_ninja(ext)
        except (OSError, subprocess.CalledProcessError) as error:
            if required(ext.name.rpartition("_")[2]):
                raise
            print(
                f"lpl_fused: {ext.name} was not built ({error}); other backends serve", flush=True
            )

    def build_with_ninja(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / ext.name
        work.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        rules = Writer(text, width=200)  # type: ignore[arg-type]
        rules.variable("cxx", os.environ.get("CXX", "c++"))
        (cpu_rules if ext.name.endswith("_cpu") else cuda_rules)(rules, target)
        (work / "build.ninja").write_text(text.getvalue())
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(work)]
        if os.environ.get("MAX_JOBS"):
            command.append(f"-j{os.environ['MAX_JOBS']}")
        subprocess.run(command, check=True)


def compiler(n: Writer, *flags: str) -> None:
    """The rule `compile` for C++."""
    include = [sysconfig.get_paths()["include"], pybind11.get_include()]
    flags = (*flags, "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall")
    flags = (*flags, *os.environ.get("CXXFLAGS", "").split())
    n.variable("flags", " ".join([*flags, *(f"-isystem {path}" for path in include)]))
    command = "$cxx $flags $isa -MMD -MF $out.d -c $in -o $out"
    n.rule("compile", command, depfile="$out.d", deps="gcc", description="compile $out")


def cpu_rules(n: Writer, target: Path) -> None:
    compiler(
        n,
        "-fopenmp",
        # own exponentials handle inf and nan, so no -ffast-math, least of all at link time
        *("-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas", "-Wno-psabi"),
        *(["-DLPL_X86"] if X86 else []),
    )
    link = ["-undefined dynamic_lookup"] if sys.platform == "darwin" else []
    n.rule("link", " ".join(["$cxx -shared -fopenmp", *link, "$in -o $out"]))
    objects = []
    for name in ("bindings", "dispatch"):
        objects.append(f"{name}.o")
        n.build(objects[-1:], "compile", [str(CSRC / "cpu" / f"{name}.cpp")])
    for isa, options in ISAS.items():
        variables = {"isa": " ".join([f"-DLPL_ISA={isa}", *options])}
        for name in ("kernels", "part_kernels", "binary_kernels"):
            objects.append(f"{name}_{isa}.o")
            text = [str(CSRC / "cpu" / f"{name}.cpp")]
            n.build(objects[-1:], "compile", text, variables=variables)
    n.build([str(target)], "link", objects)


def cuda_rules(n: Writer, target: Path) -> None:
    if NVCC is None:
        raise OSError("no nvcc on PATH, and NVCC does not name one")
    compiler(n)
    n.variable("nvcc", NVCC)
    # where the toolkit of PyPI has its libraries and nvcc's own profile does not look
    beside = Path(NVCC).resolve().parents[1] / "lib"
    codes = [f"-gencode arch=compute_{arch},code=sm_{arch}" for arch in CUDA_ARCHS]
    last = f"-gencode arch=compute_{CUDA_ARCHS[-1]},code=compute_{CUDA_ARCHS[-1]}"
    # ninja sees one file, nvcc several architectures, which it compiles side by side; 0: all cores
    threads = f"--threads {os.environ.get('MAX_JOBS') or 0}"
    flags = f"-std=c++17 -O3 {threads} -ccbin $cxx -Xcompiler -fPIC,-fvisibility=hidden"
    n.rule(
        "kernels",
        " ".join(["$nvcc", flags, *codes, last, "$part -MD -MF $out.d -c $in -o $out"]),
        depfile="$out.d",
        deps="gcc",
        description="compile $out",
    )
    # of a toolkit of its own nvcc knows; a wrapper of it on PATH does not tell us. It links device
    # code as well, without -gencode an empty image for an architecture that nobody asked for
    link = ["$nvcc -shared -cudart static -ccbin $cxx", *codes, f"-L{beside} $in -o $out"]
    n.rule("link", " ".join(link))
    n.build(["bindings.o"], "compile", [str(CSRC / "cuda" / "bindings.cpp")])
    # the kernels of each element type by themselves: side by side
    parts = {f"_{name}": f"-DLPL_TYPE={name}" for name in CUDA_TYPES} | {"": "-DLPL_SPLIT"}
    objects = ["bindings.o"]
    for name in ("kernels", "binary_kernels"):
        text = [str(CSRC / "cuda" / f"{name}.cu")]
        for which, part in parts.items():
            objects.append(f"{name}{which}.o")
            n.build(objects[-1:], "kernels", text, variables={"part": part})
    n.build([str(target)], "link", objects)


def version() -> str:
    """The version of lpl_fused/version.py; a wheel's has LPL_FUSED_LOCAL_VERSION after it."""
    public = runpy.run_path(str(CSRC.parent / "lpl_fused" / "version.py"))["__version__"]
    local = os.environ.get("LPL_FUSED_LOCAL_VERSION", "")
    return f"{public}+{local}" if local and "sdist" not in sys.argv else public


setup(version=version(), ext_modules=wanted(), cmdclass={"build_ext": NinjaBuild})
