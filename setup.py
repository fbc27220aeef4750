"""The native build and nothing else; everything static is in pyproject.toml.

Builds lpl_fused._cpu with ninja: pybind11 without torch, one object per instruction set. Where no
compiler works the package is installed without it, with one line that says so.

    LPL_FUSED_REQUIRE_EXT=cpu   turns a failed build into an error
    MAX_JOBS                    parallel compiler processes
    CXX                         the compiler
"""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from ninja.ninja_syntax import Writer
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS: dict[str, list[str]] = {"baseline": []}
if X86:
    ISAS["avx2"] = ["-mavx2", "-mfma"]
    ISAS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
        "-mprefer-vector-width=512",
    ]


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            self.build_with_ninja(ext)
        except (OSError, subprocess.CalledProcessError) as error:
            short = ext.name.rpartition("_")[2]
            if os.environ.get("LPL_FUSED_REQUIRE_EXT", "") in (short, "all"):
                raise
            print(
                f"lpl_fused: {ext.name} was not built ({error}); slower backends serve", flush=True
            )

    def build_with_ninja(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(self.build_temp).resolve() / ext.name
        work.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).resolve().parent / "csrc" / "cpu"
        text = io.StringIO()
        self.write_rules(Writer(text, width=200), source, target)  # type: ignore[arg-type]
        (work / "build.ninja").write_text(text.getvalue())
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(work)]
        if os.environ.get("MAX_JOBS"):
            command.append(f"-j{os.environ['MAX_JOBS']}")
        subprocess.run(command, check=True)

    def write_rules(self, n: Writer, source: Path, target: Path) -> None:
        include = [sysconfig.get_paths()["include"], pybind11.get_include()]
        flags = [
            *("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wall"),
            # own exponentials handle inf and nan, so no -ffast-math, least of all at link time
            *("-fno-math-errno", "-fno-trapping-math", "-Wno-unknown-pragmas", "-Wno-psabi"),
            *(["-DLPL_X86"] if X86 else []),
            *(f"-isystem {path}" for path in include),
        ]
        n.variable("cxx", os.environ.get("CXX", "c++"))
        n.variable("flags", " ".join(flags))
        compile = "$cxx $flags $isa -MMD -MF $out.d -c $in -o $out"
        n.rule("compile", compile, depfile="$out.d", deps="gcc", description="compile $out")
        link = ["-undefined dynamic_lookup"] if sys.platform == "darwin" else []
        n.rule("link", " ".join(["$cxx -shared -fopenmp", *link, "$in -o $out"]))
        objects = []
        for name in ("bindings", "dispatch"):
            objects.append(f"{name}.o")
            n.build(objects[-1:], "compile", [str(source / f"{name}.cpp")])
        for isa, options in ISAS.items():
            variables = {"isa": " ".join([f"-DLPL_ISA={isa}", *options])}
            for name in ("kernels", "binary_kernels"):
                objects.append(f"{name}_{isa}.o")
                text = [str(source / f"{name}.cpp")]
                n.build(objects[-1:], "compile", text, variables=variables)
        n.build([str(target)], "link", objects)


setup(ext_modules=[Extension("lpl_fused._cpu", [])], cmdclass={"build_ext": NinjaBuild})
