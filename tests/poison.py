"""Poisoned memory: who reads what nobody has written, or writes beside what is theirs, shows.

Whatever a backend allocates for its kernels holds a pattern, between guards that must stay as they
are. So do what kernels have beside it: C++ scratch, the chip's memory where the host runs CUDA
kernels, the lanes of a Triton load that its mask leaves out. One pattern is not enough: nan passes
no comparison, so that a maximum leaves it out, an index of -1 may mean something, and what is no
code is taken for none, where memory that was used before holds codes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpl_fused.backends import BACKENDS, load

RANDOM, CODES = 256, 257
MOST_CODES = 8  # words of 32 bits that hold less, by chance, as an outcome or a count does
# bytes: nan and -1, huge, usual numbers; neighbours differ where a comparison is made of floats
PATTERNS = (0xFF, 0x7B, CODES, 0x3F, RANDOM)
GUARD, MARK = 64, 0xA5  # bytes on either side, and what they hold
MOST = 64 << 20  # bytes that wait for the end of a test
M_PERTURB = -6  # glibc's: bytes of new memory


def _there(found: Any, *_: Any) -> tuple[Tensor, ...]:
    """The tensors of a tuple or of a part of lpl_fused.algebra."""
    values = found if isinstance(found, tuple) else vars(found).values()
    return tuple(value for value in values if isinstance(value, Tensor))


# what launchers return that is defined: all of it, unless said
CONTRACT: dict[str, Callable[..., Any]] = {
    "forward": lambda found, *_: (*_there(found), *(found.statistics or ())),
    "reduce": _there,
    "perturbed": lambda found, *_: (found,),
    "gradient": _there,
    "learned_gradient": lambda found, *_: (found,),
    # rows that lead no class hold whatever the steps left
    "learned_perturbation": lambda found, _: (found[0][found[1]], found[1]),
    "binary_forward": _there,
    "binary_gradient": lambda found, *_: (found,),
    "binary_perturbation": lambda found, _: (found,),
}


class BesideError(AssertionError):
    """A byte before or behind a buffer has changed."""


class Poison:
    """`torch` as a backend's modules see it, with allocations that are poisoned and guarded."""

    def __init__(self) -> None:
        self._pattern = PATTERNS[0]
        self._random = torch.Generator().manual_seed(0)
        self.kept: list[Tensor] = []
        self._bytes = 0
        for name in ("empty", "empty_like", "zeros", "zeros_like"):
            setattr(self, name, self._guarded(getattr(torch, name), written="zeros" in name))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def _guarded(self, make: Callable[..., Tensor], written: bool) -> Callable[..., Tensor]:
        def made(*args: Any, **keywords: Any) -> Tensor:
            like = make(*args, **{**keywords, "device": "meta"})
            if type(like) is not Tensor or torch.compiler.is_compiling():
                return make(*args, **keywords)
            device = keywords.get("device")
            if args and isinstance(args[0], Tensor):
                device = args[0].device
            memory = torch.empty(2 * GUARD + like.nbytes, dtype=torch.uint8, device=device)
            own = slice(GUARD, GUARD + like.nbytes)
            memory[: own.start] = memory[own.stop :] = MARK
            self._fill(memory[own], 0 if written else self._pattern)
            self._keep(memory)
            # a storage that begins and ends where the tensor does, as any other
            storage = memory.untyped_storage()[own]
            return torch.empty(0, dtype=like.dtype, device=device).set_(  # type: ignore[no-any-return]
                storage, 0, like.shape, like.stride()
            )

        return made

    def _fill(self, memory: Tensor, pattern: int) -> None:
        if pattern < RANDOM:
            memory.fill_(pattern)
        else:
            memory.copy_(self._words(memory.numel(), pattern))

    def _words(self, size: int, pattern: int) -> Tensor:
        here: dict[str, Any] = {"device": "cpu", "generator": self._random}
        if pattern == RANDOM:
            return torch.randint(256, (size,), dtype=torch.uint8, **here)
        if pattern == CODES:
            words = torch.randint(MOST_CODES, (size // 4 + 1,), dtype=torch.int32, **here)
            return words.view(torch.uint8)[:size]
        return torch.full((size,), pattern, dtype=torch.uint8, device="cpu")

    def _keep(self, memory: Tensor) -> None:
        self.kept.append(memory)
        self._bytes += memory.nbytes
        if self._bytes > MOST:
            self.check()

    def check(self) -> None:
        """Raises BesideError if anything was written beside a buffer made since the last time."""
        kept, self.kept, self._bytes = self.kept, [], 0
        for memory in kept:
            for where, guard in (("before", memory[:GUARD]), ("behind", memory[-GUARD:])):
                changed = (guard != MARK).nonzero().flatten().tolist()
                if changed:
                    size = memory.nbytes - 2 * GUARD
                    raise BesideError(f"{where} a buffer of {size} bytes: changed at {changed}")

    def use(self, pattern: int) -> None:
        """What memory holds from now on."""
        self._pattern = pattern
        on_chip().use_poison(pattern)
        # one byte; the bit above, which no byte has, because 0 would mean none
        perturb(self._byte() ^ 0xFF | 0x100)

    def _byte(self) -> int:
        return int(self._words(1, self._pattern))

    def load(self, load: Callable[..., Any]) -> Callable[..., Any]:
        """InterpreterBuilder.create_masked_load, with poison where the mask leaves out a lane that
        nothing else is given for: on a device there may be anything."""

        def loaded(builder: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
            found = load(builder, pointers, mask, other, *rest)
            left = ~np.broadcast_to(mask.data, found.data.shape)
            if other is None and left.any() and found.data.dtype != np.bool_:
                lanes = found.data.copy()
                others = self._words(int(left.sum()) * lanes.itemsize, self._pattern)
                lanes[left] = others.numpy().view(lanes.dtype)
                found.data = lanes
            return found

        return loaded

    @contextlib.contextmanager
    def otherwise(self) -> Iterator[None]:
        """Another pattern, and another order of the threads that the host runs."""
        before = self._pattern
        self.use(PATTERNS[(PATTERNS.index(before) + 1) % len(PATTERNS)])
        on_chip().turn_order()
        try:
            yield
        finally:
            on_chip().turn_order()
            self.use(before)

    def twice(
        self, launcher: Callable[..., Any], defined: Callable[..., Any]
    ) -> Callable[..., Any]:
        """A launcher whose results must be the same bits `otherwise`, the next pattern each time.

        Of the interpreted kernels, which take minutes, those of one dtype.
        """
        interpreted = "triton" in launcher.__module__ and "TRITON_INTERPRET" in os.environ

        @functools.wraps(launcher)
        def launched(*args: Any, **keywords: Any) -> Any:
            found = launcher(*args, **keywords)
            if interpreted and args[0].input.dtype != torch.float32:
                return found
            with self.otherwise():
                again = launcher(*args, **keywords)
            pairs = zip(defined(found, *args), defined(again, *args), strict=True)
            for place, (one, other) in enumerate(pairs):
                assert one is other is None or same(one, other), (
                    f"result {place} of {launcher.__name__} depends on what memory held before, or "
                    f"on who came first: {difference(one, other)}"
                )
            self.use(PATTERNS[(PATTERNS.index(self._pattern) + 1) % len(PATTERNS)])
            return found

        return launched


def perturb(value: int) -> None:
    """mallopt(M_PERTURB): 0 leaves new memory as it comes. Other C libraries may have no such."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_PERTURB, value)


def difference(one: Tensor, other: Tensor) -> str:
    """Where the first of their differences is."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"
    differs = (one != other) & ~(one.isnan() & other.isnan())
    place = tuple(differs.nonzero()[0].tolist()) if differs.any() else ()
    return f"{int(differs.sum())} numbers, at {place} {one[place]} and {other[place]}"


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; any nan is as good as another."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    if torch.equal(*bits):
        return True
    equal = (one == other) & (one.signbit() == other.signbit())
    return bool((equal | (one.isnan() & other.isnan())).all())


def modules() -> list[Any]:
    """Those of the backends that may allocate."""
    for name in BACKENDS:
        load(name)
    prefix = f"{load.__module__}."
    return [
        module
        for name, module in list(sys.modules.items())
        if name.startswith(prefix) and getattr(module, "torch", None) is torch
    ]


class _Device:
    """Has memory of its own on chip, and an order that nobody can turn."""

    def use_poison(self, pattern: int) -> None:
        pass

    def turn_order(self) -> None:
        pass


@functools.cache
def on_chip() -> Any:
    """The host's run of the CUDA kernels (cuda_on_host.cpp)."""
    backend = load("cuda")
    if backend.unavailable() is None and backend._native().device == "cpu":
        return ctypes.CDLL(backend._native().__file__)
    return _Device()
