"""How a kernel is launched, and what it takes for a number."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem import BinaryProblem, Problem
from ..kernels.arguments import Address, Kept


def interpreted() -> bool:
    # as triton reads it
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Runs a kernel on the device of its first argument's tensor, if there is anything to do.

    Raises:
        RuntimeError: a tensor has elements and no memory, as the native modules say (bindings.h).
    """
    on = arguments[0]
    if grid[0] <= 0:
        return
    device = (on if isinstance(on, Tensor) else on.input).get_device()
    if device < 0 or device == torch.cuda.current_device():
        _run(device, kernel, grid, arguments, meta)
    else:
        with torch.cuda.device(device):
            _run(device, kernel, grid, arguments, meta)


class Kernels:
    """The modules of ../kernels by their names. Triton comes with the first; an import statement
    within a function costs every call as much as a tenth of a launch."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(f"lpl_fused.backends.kernels.{name}")
        setattr(self, name, module)
        return module


kernels = Kernels()


class _Direct(NamedTuple):
    """A compiled kernel, and what every launch of it hands over."""

    run: Any
    what: tuple[Any, ...]
    rest: tuple[Any, ...]  # its parameters behind the arguments
    in_one: bool  # the parameters are one tuple


# Compiled kernels by all that Triton specialises them by. Its own launch asks every time what that
# is, option by option, and whether a global has changed since: four times what is asked here.
_compiled: dict[Any, _Direct] = {}


def past_triton() -> bool:
    """Whether there have been launches that can go past Triton's own: an interpreter's can not."""
    return bool(_compiled)


def _run(
    device: int,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    meta: dict[str, Any],
) -> None:
    # a kernel's own hash is one of its source
    asked: list[Any] = [device, kernel.fn, *meta, *meta.values()]
    _ask(asked, arguments)
    place = tuple(asked)
    found = _compiled.get(place)
    if found is None or not _direct():
        typed = [each.typed() if isinstance(each, Kept | Address) else each for each in arguments]
        made = kernel[grid](*typed, **meta, enable_fp_fusion=True)
        if _can_run(made):
            names = kernel.arg_names[len(arguments) :]
            _compiled[place] = _direct_of(made, tuple(meta[name] for name in names))
        return
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    stream = _driver().active.get_current_stream(device)
    if found.in_one:
        found.run(x, y, z, stream, *found.what, arguments + found.rest)
    else:
        found.run(x, y, z, stream, *found.what, *arguments, *found.rest)


def _direct_of(made: Any, rest: tuple[Any, ...]) -> _Direct:
    """How a compiled kernel is launched. Of NVIDIA's launcher in the Triton that it is known of,
    past its part in Python, which looks for memory that the kernel would want of the host."""
    import triton

    run = made.run
    needs = "global_scratch_size", "profile_scratch_size", "gsan_enabled"
    if (
        triton.__version__.startswith("3.9.")
        and type(run).__name__ == "CudaLauncher"
        and not any(getattr(run, name, True) for name in needs)
    ):
        kind = run.launch_cooperative_grid, run.launch_pdl
        nobody = (None,) * 5  # is told of it, and no memory is wanted
        how = made.function, *kind, made.packed_metadata, *nobody
        return _Direct(run.launch, (*how, run.arg_annotations, run.kernel_signature), rest, True)
    what = made.function, made.packed_metadata, None, None, None
    return _Direct(run, what, rest, False)


# numbers of what kept tuples are keyed by
_known: dict[Any, int] = {}
_number = itertools.count()


def key(values: Kept) -> Any:
    """What a kernel is specialised by of a kept tuple, found once."""
    if values.known is None:
        found: list[Any] = []
        _ask(found, values.typed())
        # several threads may find a number at once, never two for a key
        values.known = type(values), _known.setdefault((type(values), *found), next(_number))
    return values.known


def _ask(found: list[Any], values: Iterable[Any]) -> None:
    """Adds what a kernel is specialised by of arguments."""
    add = found.append
    for value in values:
        if value is None:
            add(None)
            continue
        kind = type(value)
        if kind is int:
            if -(1 << 31) <= value < 1 << 31:
                add(1 if value == 1 else 16 if value & 15 == 0 else 32)
            else:
                add(48 if value & 15 == 0 else 64)
        elif isinstance(value, tuple):
            if isinstance(value, Kept):
                add(value.known or key(value))
            else:
                add(kind)
                add(len(value))
                _ask(found, value)
        elif kind is Tensor or isinstance(value, Tensor):
            place = value.data_ptr()
            if not place and value.numel():
                raise RuntimeError("a tensor without memory: its storage was freed")
            add(value.dtype)
            add(place & 15 == 0)
        elif kind is float:
            add(kind)
        elif kind is Address:
            add(value.dtype)
            add(value & 15 == 0)
        else:  # a constant
            add((kind, getattr(value, "value", value)))


@functools.cache
def _driver() -> Any:
    return importlib.import_module("triton.runtime").driver


def _can_run(made: Any) -> bool:
    """Whether a compiled kernel has what a launch past Triton's own takes, as in 3.6 to 3.9."""
    return all(hasattr(made, name) for name in ("run", "function", "packed_metadata"))


def _direct() -> bool:
    """Whether nobody wants to be told of launches."""
    hooks = _hooks()
    return hooks is not None and not (hooks[0].calls or hooks[1].calls)


@functools.cache
def _hooks() -> tuple[Any, Any] | None:
    """Who is told of launches; None where this Triton says it in another way."""
    try:
        runtime = importlib.import_module("triton").knobs.runtime
        hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    except AttributeError:
        return None
    return hooks if all(hasattr(hook, "calls") for hook in hooks) else None


def number(problem: Problem | BinaryProblem, value: float) -> Any:
    """A float argument; triton passes those as float32, which is not enough beside float64."""
    if problem.input.dtype != torch.float64:
        return value
    from triton.language import constexpr

    return constexpr(value)
