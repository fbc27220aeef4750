"""Builds cuda_on_host.cpp, the CUDA backend's module for machines without a GPU."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "cuda_on_host.cpp"
NAME = "lpl_fused._cuda"


# no thread jumps: what threads meet at stands once in the code; numbers that lie in memory as their
# types ask for, indices inside of arrays
_CHECKED = (
    *("-O1", "-fno-thread-jumps"),
    *("-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"),
)
_IDLE = "-O2", "-DLPL_IDLE"


def build(*, idle: bool = False) -> Path:
    """The compiled module; compiled once for the same text, whoever asks first.

    `idle`: its launches are counted, and nothing runs; all else as in a release.
    """
    import pybind11

    flags = _IDLE if idle else _CHECKED
    text = hashlib.sha256((sys.version + str(flags)).encode())
    for source in [
        SOURCE,
        *sorted((ROOT / "csrc").glob("*.h")),
        *sorted((ROOT / "csrc/cuda").iterdir()),
    ]:
        text.update(source.read_bytes())
    folder = ROOT / "build" / "cuda_on_host"
    folder.mkdir(parents=True, exist_ok=True)
    module = folder / f"_cuda-{text.hexdigest()[:16]}.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not module.exists():
            includes = (
                f"-isystem{path}"
                for path in (sysconfig.get_paths()["include"], pybind11.get_include())
            )
            made = module.with_suffix(".tmp")
            command = [
                os.environ.get("CXX", "c++"),
                "-std=c++17",
                *flags,
                "-fPIC",
                "-shared",
                "-fvisibility=hidden",
                "-Wall",
                "-Wno-unknown-pragmas",
                *includes,
                str(SOURCE),
                "-o",
                str(made),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ImportError(f"{SOURCE.name} does not compile:\n{done.stderr[-4000:]}")
            made.rename(module)
    return module


def install(*, idle: bool = False) -> ModuleType:
    """Puts it in the place of lpl_fused._cuda."""
    path = build(idle=idle)
    specification = importlib.util.spec_from_file_location(NAME, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sys.modules[NAME] = module
    return module
