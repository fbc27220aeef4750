"""Machine code of CUDA kernels, read without a GPU: what `cuobjdump` prints of an object."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_FUNCTION = re.compile(r"\s*Function : (\S+)")
_USER = re.compile(r"\s*Function (\S+):$")
_TARGET = re.compile(r"\b0x([0-9a-f]+)\b\s*$")
_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1, "8": 1}


class Instruction(NamedTuple):
    address: int
    guard: str  # a predicate, or ""
    name: str  # with its modifiers
    operands: str

    @property
    def base(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def width(self) -> int:
        """Bytes of a thread that an access to memory moves."""
        found = [_WIDTHS[part] for part in self.name.split(".")[1:] if part in _WIDTHS]
        return found[-1] if found else 4

    @property
    def target(self) -> int | None:
        found = _TARGET.search(self.operands)
        return int(found[1], 16) if found else None


def tool(name: str) -> str:
    """A program of the CUDA toolkit, of PyPI's nvidia-cuda-… or of Triton; FileNotFoundError."""
    if found := shutil.which(name):
        return found
    for package, below in (("nvidia", ""), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(root, below).glob(f"**/bin/{name}" if not below else name)):
                if os.access(path, os.X_OK):
                    return str(path)
    raise FileNotFoundError(
        f"no {name}: it comes with the CUDA toolkit, with Triton, or as PyPI's nvidia-cuda-{name}"
    )


class Resources(NamedTuple):
    registers: int
    shared: int  # bytes of static shared memory
    local: int  # bytes of spills and stack, a thread


def parsed(listing: str) -> dict[str, tuple[list[Instruction], Resources]]:
    """The functions that `cuobjdump -sass -res-usage` prints."""
    codes: dict[str, list[Instruction]] = {}
    resources: dict[str, Resources] = {}
    code: list[Instruction] = []
    user = ""
    for line in listing.splitlines():
        if parts := _LINE.match(line):
            code.append(Instruction(int(parts[1], 16), parts[2] or "", parts[3], parts[4]))
        elif name := _FUNCTION.match(line):
            code = codes.setdefault(name[1], [])
        elif match := _USER.match(line):
            user = match[1]
        elif user and "REG:" in line:
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            local = max(numbers["STACK"], numbers["LOCAL"])
            resources[user] = Resources(numbers["REG"], numbers["SHARED"], local)
    return {name: (code, resources[name]) for name, code in codes.items()}


def functions(path: Path) -> dict[str, tuple[list[Instruction], Resources]]:
    """The code of every function of an object, a cubin or a shared library, and what it takes."""
    program = tool("cuobjdump")
    command = [program, "-sass", "-res-usage", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump failed: {done.stderr[-2000:]}")
    return parsed(done.stdout)


def demangled(name: str) -> str:
    """A C++ name as it was written, without the namespaces that this project's all have."""
    text = name
    if name.startswith("_Z"):
        library = ctypes.CDLL("libstdc++.so.6")
        library.__cxa_demangle.restype = ctypes.c_void_p
        status = ctypes.c_int()
        made = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
        if made:
            text = (ctypes.cast(made, ctypes.c_char_p).value or b"").decode()
            ctypes.CDLL(None).free(ctypes.c_void_p(made))
    text = re.sub(r"\(anonymous namespace\)::|\blpl::", "", text)
    text = text.removeprefix("void ")
    # without the parameters
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:at].strip()
    return text
