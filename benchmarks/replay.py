"""Native calls of a file, done again: a process without torch, for valgrind to count in.

    python benchmarks/replay.py MODULE ISA CALLS

MODULE is the compiled lpl_fused._cpu, ISA the instruction set that is to be used, CALLS what
`benchmarks.instructions` recorded: pickled cases, each a list of (function, arguments); what a
tensor held stands there as bytes. Every case begins with a call of `use_isa`, by which callgrind
tells them apart.
"""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

_CACHE_LINE = 64


class Memory:
    """What the bindings ask of a tensor: the address of its data, 0 where there are none."""

    def __init__(self, content: bytes) -> None:
        self._room = ctypes.create_string_buffer(len(content) + _CACHE_LINE)
        start = ctypes.addressof(self._room)
        self._start = (start + _CACHE_LINE - 1) // _CACHE_LINE * _CACHE_LINE
        ctypes.memmove(self._start, content, len(content))
        self._empty = not content

    def data_ptr(self) -> int:
        return 0 if self._empty else self._start

    def numel(self) -> int:
        """Asked where there is no address."""
        return 0


def _placed(value: Any) -> Any:
    if isinstance(value, bytes):
        return Memory(value)
    return tuple(map(_placed, value)) if isinstance(value, tuple) else value


def _load(path: str) -> ModuleType:
    """The module in a file, without the package around it."""
    spec = importlib.util.spec_from_file_location("lpl_fused._cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _cases(path: str) -> Iterator[list[tuple[str, tuple[Any, ...]]]]:
    """One after another, so that no case finds those to come in the memory that it allocates from,
    which changes what allocating costs."""
    with open(path, "rb") as file:
        while file.peek():
            yield pickle.load(file)


def main(module: str, isa: str, calls: str) -> None:
    """Does every call of every case once."""
    native = _load(module)
    for case in _cases(calls):
        if not native.use_isa(isa):
            sys.exit(f"this processor, or valgrind, does not run {isa}")
        for name, arguments in case:
            getattr(native, name)(*_placed(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
