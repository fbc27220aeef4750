"""Checks a built wheel: what is in it, what it links, and that it works where it is installed.

    python tools/check_wheel.py dist/lpl_fused-….whl --archs "80;90;100" --python env/bin/python

The file: its tags, the modules that its version promises, no library brought along or linked but
the system's and libgomp, the GPU architectures in it (by cuobjdump). Then for every `--python`, an
interpreter with torch and the test extra's packages: the wheel is installed into a folder of its
own, tools/smoke.py tries it (a driver is not needed), and tests run in a folder without the
package's source: SOME, or `--tests all`, or `none`. Needs `pip install --group wheels`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
# what every Linux has, and torch's own libgomp; no torch, no libcudart, no driver
LINKED = re.compile(
    r"(libgomp\.so\.1|libstdc\+\+\.so\.6|libgcc_s\.so\.1|lib(c|m|dl|rt|pthread)\.so\.\d|ld-linux.*)$"
)
# every backend against float64 truth, in one dtype, and what packaging or another Triton can break
SOME = (
    *("tests/test_backends.py", "tests/test_multilabel_backends.py", "tests/test_triton_groups.py"),
    *("tests/test_loss_modules.py", "tests/test_packaging.py"),
    *("-k", "not float64 and not float16"),
)
# the tools' own tests need the source tree
ALL = ("tests", "--ignore=tests/test_wheels.py", "--numprocesses=auto", "--dist=loadfile")
SMOKE = ROOT / "tools" / "smoke.py"


def promised(version: str) -> list[str]:
    """The native modules of a wheel of this version."""
    return ["_cpu", *(["_cuda"] if "+cu" in version else [])]


def linked(module: Path) -> set[str]:
    """What a shared library needs, and where it would look for it."""
    with open(module, "rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        tags: list[Any] = list(dynamic.iter_tags()) if isinstance(dynamic, DynamicSection) else []
        paths = {f"{t.entry.d_tag} {t.rpath}" for t in tags if t.entry.d_tag == "DT_RPATH"}
        paths |= {f"{t.entry.d_tag} {t.runpath}" for t in tags if t.entry.d_tag == "DT_RUNPATH"}
        return paths | {t.needed for t in tags if t.entry.d_tag == "DT_NEEDED"}


def architectures(module: Path) -> tuple[list[str], list[str]]:
    """The GPU architectures with machine code, and those with PTX."""
    beside = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/*/bin")  # of PyPI's cuobjdump
    path = os.pathsep.join([os.environ["PATH"], *map(str, beside)])
    tool = shutil.which("cuobjdump", path=path)
    if tool is None:
        raise SystemExit("no cuobjdump; pip install nvidia-cuda-cuobjdump")
    found = []
    for option, suffix in (("--list-elf", "cubin"), ("--list-ptx", "ptx")):
        done = subprocess.run([tool, option, str(module)], capture_output=True, text=True)
        names = set(re.findall(rf"sm_(\d+[af]?)\.{suffix}", done.stdout))
        found.append(sorted(names, key=lambda name: (len(name), name)))
    return found[0], found[1]


def problems(wheel: Path, archs: list[str]) -> list[str]:
    """What is wrong with the file; prints what it found."""
    name, version, _, tags = parse_wheel_filename(wheel.name)
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.2f} MiB")
    wrong = []
    if name != "lpl-fused":
        wrong.append(f"expected a wheel of lpl-fused, got one of {name}")
    if not all(tag.platform.startswith(("manylinux", "musllinux")) for tag in tags):
        wrong.append(f"platform: expected manylinux, got {', '.join(t.platform for t in tags)}")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        beside = {n.split("/")[0] for n in archive.namelist()} - {"lpl_fused"}
        beside -= {f"lpl_fused-{version}.dist-info"}
        if beside:
            wrong.append(f"expected lpl_fused and its metadata alone, got also {sorted(beside)}")
        archive.extractall(folder)
        modules = {m.name.split(".")[0]: m for m in Path(folder).glob("lpl_fused/**/*.so")}
        expected = promised(str(version))
        if sorted(modules) != sorted(expected):
            wrong.append(f"native modules: expected {expected}, got {sorted(modules)}")
        for module, path in sorted(modules.items()):
            needs = linked(path)
            print(f"  {module}: {path.stat().st_size / 2**20:.2f} MiB, needs {sorted(needs)}")
            if strange := {need for need in needs if not LINKED.match(need)}:
                wrong.append(f"{module} needs {sorted(strange)}")
        if "_cuda" in modules:
            cubins, ptx = architectures(modules["_cuda"])
            print(f"  _cuda: machine code for {cubins}, PTX of {ptx}")
            if (cubins, ptx) != (archs, archs[-1:]):
                wrong.append(f"architectures: expected {archs} and PTX of {archs[-1:]}")
    return wrong


def installed(wheel: Path, python: str, tests: list[str]) -> list[str]:
    """What goes wrong where the wheel is installed for the interpreter `python`."""
    version = str(parse_wheel_filename(wheel.name)[1])
    python = shutil.which(os.path.abspath(python)) or python  # a path, or a name on PATH
    with tempfile.TemporaryDirectory() as folder:
        site, suite = Path(folder) / "site", Path(folder) / "suite"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LPL_FUSED")}
        environment["PYTHONPATH"] = str(site)
        steps = {
            "install": [
                *("-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
                *("--target", str(site), str(wheel.resolve())),
            ],
            "tools/smoke.py": [str(SMOKE), version, *promised(version)],
        }
        if tests:
            steps["tests"] = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        for part in ("tests", "csrc", "benchmarks"):  # the package's source stays behind
            shutil.copytree(ROOT / part, suite / part, ignore=shutil.ignore_patterns("*.so"))
        shutil.copy(ROOT / "pyproject.toml", suite)
        for step, command in steps.items():
            if subprocess.run([python, *command], cwd=suite, env=environment).returncode:
                return [f"{python}: {step} failed"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--archs", default="", help='of a CUDA wheel, as built: "80;90;100"')
    parser.add_argument("--python", action="append", default=[], help="may be given repeatedly")
    parser.add_argument("--tests", choices=["none", "some", "all"], default="some")
    options = parser.parse_args()
    tests = {"none": [], "some": [*SOME], "all": [*ALL]}[options.tests]
    for python in options.python:
        if shutil.which(os.path.abspath(python)) is None and shutil.which(python) is None:
            parser.error(f"--python: {python} is no program")
    try:
        wrong = problems(options.wheel, [arch for arch in options.archs.split(";") if arch])
    except (OSError, ValueError, zipfile.BadZipFile, ELFError) as error:
        parser.error(f"{options.wheel} is no wheel: {error}")
    for python in options.python:
        wrong += installed(options.wheel, python, tests)
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
