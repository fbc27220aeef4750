"""The poison itself: a store left out, a store beside a buffer, a read of what nobody has written
are seen on every backend."""

from __future__ import annotations

import ctypes
import importlib
import os
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import Draw, cross_entropy_cases
from poison import (
    CODES,
    GUARD,
    MOST_CODES,
    PATTERNS,
    RANDOM,
    BesideError,
    Poison,
    modules,
    on_chip,
    perturb,
)
from torch import Tensor

from lpl_fused import testing
from lpl_fused.backends import load

pytestmark = pytest.mark.skipif(
    os.environ.get("LPL_FUSED_POISON") == "0", reason="memory is left as it comes"
)
CASE = cross_entropy_cases()["hard"](Draw(6, 37, seed=1))


def test_reaches_every_module_that_allocates(poisoned: Poison) -> None:
    found, package = [], importlib.import_module("lpl_fused.backends")
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".kernels" in info.name:  # of Triton's language
            continue
        module = importlib.import_module(info.name)
        text = Path(str(module.__file__)).read_text()
        # these ask a tensor, not torch
        assert not re.search(r"\.new_(empty|zeros)\((?!0\))", text), info.name
        if re.search(r"\btorch\.(empty|zeros)(_like)?\(", text):
            assert module.torch is poisoned, info.name
            found.append(info.name)
    assert {f"{package.__name__}.{name}" for name in ("buffers", "cpp")} <= set(found)
    assert modules() == []  # all have it already


@pytest.mark.parametrize("by", [-1, 1])
def test_a_store_beside_a_buffer_is_seen(
    native: str, poisoned: Poison, monkeypatch: pytest.MonkeyPatch, by: int
) -> None:
    """Kernels that take every buffer for beginning an element too early or too late."""
    make = poisoned.empty  # type: ignore[has-type]

    def shifted(*args: Any, **keywords: Any) -> Tensor:
        tensor = make(*args, **keywords)
        memory, start = poisoned.kept[-1].untyped_storage(), GUARD // tensor.itemsize
        off = 16 * by if tensor.dtype == torch.uint8 else by  # of parts: a line
        return tensor.set_(memory, start + off, tensor.shape, tensor.stride())

    monkeypatch.setattr(poisoned, "empty", shifted)
    testing.evaluate(CASE.to(torch.float32), native)
    with pytest.raises(BesideError, match="before" if by < 0 else "behind"):
        poisoned.check()


def forgets_the_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's kernels are not told where it goes."""
    module = load(name)
    if name == "cpp":
        kernels = module._native()

        def forgetful(problem: Any, sizes: Any, outputs: Any) -> Any:
            return kernels.cross_entropy(problem, sizes, outputs._replace(grad=None))

        made = SimpleNamespace(cross_entropy=forgetful, scale_rows=kernels.scale_rows)
        monkeypatch.setattr(module, "_native", lambda: made)
    elif name == "cuda":
        queue = module.queue

        def queued(kernels: Any, problem: Any, sizes: Any, outputs: Any, scratch: Any) -> None:
            queue(kernels, problem, sizes, outputs._replace(grad=None), scratch)

        monkeypatch.setattr(module, "queue", queued)
    else:
        launching = importlib.import_module(f"{module.__name__}.launching")
        launch = launching.launch

        def without(kernel: Any, grid: Any, *arguments: Any, **meta: Any) -> None:
            if kernel.fn.__name__ == "forward":
                problem, upstream, wanted, *others = arguments
                arguments = (problem, upstream, wanted._replace(grad=None), *others)
            launch(kernel, grid, *arguments, **meta)

        monkeypatch.setattr(launching, "launch", without)
        monkeypatch.setattr(launching, "_direct", lambda: False)  # no plan goes past it


def test_a_store_that_is_left_out_is_seen(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forgets_the_gradient(native, monkeypatch)
    with pytest.raises(AssertionError, match="error inf of the gradient of input"):
        testing.assert_within_budget(CASE, native)


def test_so_it_is_by_the_second_time(
    native: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Whatever the numbers, without a truth to compare them with."""
    forgets_the_gradient(native, monkeypatch)
    request.getfixturevalue("twice")
    for _ in PATTERNS:
        with pytest.raises(AssertionError, match="depends on what memory held"):
            testing.evaluate(CASE.to(torch.float32), native)


Launcher = Callable[[], tuple[Tensor]]


def again_and_again(poison: Poison, launcher: Launcher) -> None:
    """Whatever pattern comes first, the second time is another."""
    for pattern in PATTERNS:
        poison.use(pattern)
        with pytest.raises(AssertionError, match="depends on what memory held"):
            poison.twice(launcher, lambda found: found)()


def test_a_maximum_that_leaves_out_nan_is_seen(poisoned: Poison, twice: None) -> None:
    def launcher() -> tuple[Tensor]:
        """As `if (x > peak) peak = x`."""
        stale = poisoned.empty(8)  # type: ignore[operator]
        return (torch.where(stale > 0.5, stale, 0.5),)

    again_and_again(poisoned, launcher)


def on_host() -> Any:
    chip = on_chip()
    if not isinstance(chip, ctypes.CDLL):
        pytest.skip("no CUDA kernels on the host")
    return chip


def careless() -> Tensor:
    """(2, 4) stage, shared memory, a local number and the rank of the first fibre of two rows."""
    seen = torch.zeros(2, 4, dtype=torch.int64)
    on_host().careless(ctypes.c_void_p(seen.data_ptr()))
    return seen


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_chip_is_left_with(poisoned: Poison, twice: None, pattern: int) -> None:
    on_host()
    poisoned.use(pattern)
    found = careless()[:, :3].contiguous()
    if pattern == RANDOM:
        assert len(set(found.flatten().tolist())) == 6
    elif pattern == CODES:
        words = set(found.view(torch.int32).flatten().tolist())
        assert len(words) > 1 and words <= set(range(MOST_CODES))
    else:
        assert set(found.view(torch.uint8).flatten().tolist()) == {pattern}


def test_reads_on_a_chip_are_seen(poisoned: Poison, twice: None) -> None:
    on_host()
    for place in range(3):
        again_and_again(poisoned, lambda place=place: (careless()[:, place],))


def test_who_comes_first_is_seen(poisoned: Poison, twice: None) -> None:
    on_host()
    again_and_again(poisoned, lambda: (careless()[:, 3],))


def test_lanes_that_a_mask_leaves_out_are_seen(poisoned: Poison, twice: None) -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("a device has lanes of its own")
    pytest.importorskip("triton")
    from masked_lanes import copy_lanes

    for dtype in (torch.float32, torch.bfloat16, torch.int32):
        source = torch.ones(3).to(dtype)

        def launcher(source: Tensor = source, dtype: torch.dtype = dtype) -> tuple[Tensor]:
            found = torch.zeros(8, dtype=dtype)
            copy_lanes[(1,)](source, found, 3, BLOCK=8)
            assert torch.equal(found[:3], source)
            return (found,)

        again_and_again(poisoned, launcher)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern < RANDOM])
def test_what_the_c_library_gives(poisoned: Poison, twice: None, pattern: int) -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        pytest.skip("not glibc")
    poisoned.use(pattern)
    library.malloc.restype = ctypes.c_void_p
    size = 1 << 20
    place = library.malloc(ctypes.c_size_t(size))
    try:
        assert set(ctypes.string_at(place, size)) == {pattern}
    finally:
        library.free(ctypes.c_void_p(place))
        perturb(0)


def test_what_is_written_in_full_is_the_same_twice(native: str, twice: None) -> None:
    for _ in PATTERNS:
        testing.assert_within_budget(CASE, native)
