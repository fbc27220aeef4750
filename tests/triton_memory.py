"""What interpreted Triton kernels do to memory: bytes by argument, and never one outside.

The interpreter runs every load and store of a kernel through two functions of its builder. Here
they are wrapped: each address that a mask lets through must lie in a tensor that the kernel was
given, and is counted for that argument.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from poison import Poison
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpreterBuilder

from lpl_fused import testing
from lpl_fused.backends.triton import launching


def host_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is taken as a user's call takes it, not poisoned and guarded, and nothing is launched:
    what is left is what the host does."""
    for module in list(sys.modules.values()):
        if isinstance(getattr(module, "torch", None), Poison):
            monkeypatch.setattr(module, "torch", torch)
    monkeypatch.setattr(launching, "launch", lambda *arguments, **meta: None)


class Operations(TorchDispatchMode):
    """What torch queues, by name, without views; and the bytes of all memory that is taken, though
    it may be given back meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.taken: list[int] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        found = function(*arguments, **(keywords or {}))
        name = function.overloadpacket.__name__
        if name.startswith(("empty", "new_empty")):
            self.taken.append(found.untyped_storage().nbytes())
        elif name[-1] == "_" or not any(value.alias_info for value in function._schema.returns):
            self.names.append(name)
        return found


class OutsideError(Exception):
    """A kernel touched memory that is none of its arguments'."""


class Region(NamedTuple):
    """Where an argument lies."""

    name: str
    start: int
    end: int


def _regions(name: str, argument: Any) -> Iterator[Region]:
    if isinstance(argument, torch.Tensor):
        if argument.numel():
            last = sum((n - 1) * s for n, s in zip(argument.shape, argument.stride(), strict=True))
            start = argument.data_ptr()
            yield Region(name, start, start + (last + 1) * argument.element_size())
    elif hasattr(argument, "_fields"):
        for field, value in zip(argument._fields, argument, strict=True):
            yield from _regions(field if name == "problem" else f"{name}.{field}", value)


class Traffic:
    """Bytes that kernels loaded and stored, by (kernel, argument); those of `problem` by field."""

    def __init__(self) -> None:
        self.loaded: Counter[tuple[str, str]] = Counter()
        self.stored: Counter[tuple[str, str]] = Counter()
        self._kernel = ""
        self._regions: list[Region] = []

    def enter(self, kernel: Any, arguments: tuple[Any, ...]) -> None:
        self._kernel = kernel.fn.__name__
        named = zip(kernel.arg_names, arguments, strict=False)
        self._regions = [region for name, value in named for region in _regions(name, value)]

    def count(self, counter: Counter[tuple[str, str]], pointers: Any, mask: Any) -> None:
        addresses, active = np.broadcast_arrays(pointers.data, mask.data)
        addresses = addresses[active]
        size = pointers.get_element_ty().primitive_bitwidth // 8
        if not addresses.size:
            return
        first, end = int(addresses.min()), int(addresses.max()) + size
        for region in self._regions:
            if region.end <= first or end <= region.start:
                continue
            inside = (addresses >= region.start) & (addresses + size <= region.end)
            counter[self._kernel, region.name] += int(inside.sum()) * size
            addresses = addresses[~inside]
        if addresses.size:
            raise OutsideError(f"{self._kernel} touches {addresses.size} elements outside")

    def of(self, name: str) -> tuple[int, int]:
        """(loaded, stored) bytes of an argument, over all kernels."""
        return tuple(
            sum(size for (_, argument), size in counter.items() if argument == name)
            for counter in (self.loaded, self.stored)
        )  # type: ignore[return-value]

    def total(self) -> int:
        return self.loaded.total() + self.stored.total()


@contextlib.contextmanager
def watched() -> Iterator[Traffic]:
    """Counts what the Triton backend's kernels do, and raises OutsideError where they may not."""
    traffic = Traffic()
    launch = launching.launch
    masked_load = InterpreterBuilder.create_masked_load
    masked_store = InterpreterBuilder.create_masked_store

    def launched(kernel: Any, grid: Any, *arguments: Any, **meta: Any) -> None:
        traffic.enter(kernel, arguments)
        launch(kernel, grid, *arguments, **meta)

    def loaded(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(traffic.loaded, pointers, mask)
        return masked_load(builder, pointers, mask, *rest)

    def stored(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        traffic.count(traffic.stored, pointers, mask)
        return masked_store(builder, pointers, value, mask, *rest)

    with (
        mock.patch.object(launching, "launch", launched),
        mock.patch.object(InterpreterBuilder, "create_masked_load", loaded),
        mock.patch.object(InterpreterBuilder, "create_masked_store", stored),
    ):
        yield traffic


def check(case: testing.Case, dtype: torch.dtype = torch.float32) -> None:
    """Within the error budget, and without an access outside of the tensors."""
    # the interpreter truncates to bfloat16, once for the gradient and once for the upstream
    ulps = 2.0 if dtype == torch.bfloat16 else 1.0
    with watched():
        testing.assert_within_budget(
            case, "triton", dtype, upstream=lambda loss: torch.full_like(loss, 0.7), ulps=ulps
        )
