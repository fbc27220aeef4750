"""Triton's own launcher on a CUDA driver that runs nothing (triton_driver.c): what kernels would be
handed, of the nested tuples that launchers pass.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_suffix(".c")
COMPILER = os.environ.get("CC", "cc")
GRID = (7, 3, 2)


def unavailable() -> str | None:
    if torch.cuda.is_available():
        return "the driver of this machine launches, in other tests"
    return None if shutil.which(COMPILER) else f"no C compiler {COMPILER!r}"


class Driver:
    """Triton's driver from now on, in a process that has loaded no other."""

    def __init__(self, folder: Path) -> None:
        from triton.backends.compiler import GPUTarget
        from triton.backends.nvidia import driver
        from triton.runtime import driver as active

        library = folder / "libcuda.so.1"
        used = re.findall(
            r"\bcu[A-Z]\w*(?=\()", Path(driver.__file__).with_name("driver.c").read_text()
        )
        ours = SOURCE.read_text()
        # what no launch calls, but has to be there to be linked to
        rest = sorted(name for name in set(used) if f"{name}(" not in ours)
        text = ours + "".join(f"int {name}() {{ return 0; }}\n" for name in rest)
        command = [COMPILER, "-w", "-shared", "-fPIC", "-x", "c", "-"]
        command += ["-Wl,-soname,libcuda.so.1", "-o", str(library)]
        subprocess.run(command, input=text, text=True, check=True)
        # what is linked to, or opened by, this name later finds it here
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
        made = driver.CudaDriver.__new__(driver.CudaDriver)  # without a look for devices
        made.utils = driver.CudaUtils()
        made.launcher_cls = self._launcher = driver.CudaLauncher
        made.get_current_device = lambda: 0
        made.get_current_stream = lambda device: 0
        made.get_current_target = lambda: GPUTarget("cuda", 90, 32)
        active.set_active(made)
        self._launches = ctypes.c_int.in_dll(self._library, "launches")

    @property
    def launches(self) -> int:
        """How many there were."""
        return self._launches.value

    def launch(self, source: Any, binary: Any, values: tuple[Any, ...]) -> int:
        """Launches what was compiled, `values` by parameter of the kernel's Python function; how
        many the machine's kernel has, each of which came as it was given."""
        expected = [
            leaf
            for pair in zip(source.signature.values(), values, strict=True)
            for leaf in _leaves(*pair)
        ]
        ctypes.c_int.in_dll(self._library, "wanted").value = len(expected)
        before, meta = self.launches, binary.metadata
        packed = (meta.num_warps, meta.num_ctas, meta.shared)
        self._launcher(source, meta)(*GRID, 0, 1, packed, None, None, None, *values)
        assert self.launches == before + 1
        assert tuple((ctypes.c_uint * 3).in_dll(self._library, "grid")) == GRID
        handed = (ctypes.c_ulonglong * 1024).in_dll(self._library, "handed")
        for place, (type, value) in enumerate(expected):
            bits = _bits(type, value)
            got = struct.pack("Q", handed[place])[: len(bits)]
            assert got == bits, (
                f"parameter {place}, {type}: expected {bits!r} of {value}, got {got!r}"
            )
        head = binary.asm["ptx"].split(".entry")[1].split(")")[0]
        scratch = 2  # pointers that Triton adds
        assert head.count(".param ") == len(expected) + scratch
        return len(expected)


def _leaves(type: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """What of an argument reaches the machine, in order."""
    if isinstance(type, tuple):
        for pair in zip(type, value, strict=True):
            yield from _leaves(*pair)
    elif type != "constexpr":
        yield type, value


def _bits(type: str, value: Any) -> bytes:
    if type[0] == "*":
        return struct.pack("Q", value.data_ptr())
    form = {"i1": "?", "u1": "?", "i32": "i", "i64": "q", "fp32": "f", "f32": "f", "fp64": "d"}[
        type
    ]
    return struct.pack(form, value)
