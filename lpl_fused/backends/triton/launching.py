"""How a kernel is launched, and what it takes for a number."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch
from torch import Tensor

from ...problem import BinaryProblem, Problem


def interpreted() -> bool:
    # as triton reads it
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Runs a kernel on the device of its first argument's tensor, if there is anything to do."""
    on = arguments[0]
    if grid[0] <= 0:
        return
    check_memory(arguments)
    device = (on if isinstance(on, Tensor) else on.input).get_device()
    if device < 0 or device == torch.cuda.current_device():
        _run(device, kernel, grid, arguments, meta)
    else:
        with torch.cuda.device(device):
            _run(device, kernel, grid, arguments, meta)


def check_memory(arguments: tuple[Any, ...]) -> None:
    """Raises for a tensor with elements and no memory, as the native modules do (bindings.h)."""
    for value in arguments:
        if isinstance(value, tuple):
            check_memory(value)
        elif isinstance(value, Tensor) and not value.data_ptr() and value.numel():
            raise RuntimeError("a tensor without memory: its storage was freed")


# Compiled kernels by all that Triton specialises them by. Its own launch asks every time what that
# is, option by option, and whether a global has changed since: four times what is asked here.
_compiled: dict[Any, Any] = {}


def _run(
    device: int,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    meta: dict[str, Any],
) -> None:
    key = device, kernel, _key(arguments), *meta.items()
    compiled = _compiled.get(key)
    if compiled is None or not _direct():
        made = kernel[grid](*arguments, **meta, enable_fp_fusion=True)
        if _can_run(made):
            _compiled[key] = made
        return
    names = kernel.arg_names[len(arguments) :]
    sizes = (*grid, 1, 1)[:3]
    stream = _driver().active.get_current_stream(device)
    what = compiled.function, compiled.packed_metadata, None, None, None
    compiled.run(*sizes, stream, *what, *arguments, *[meta[name] for name in names])


def _key(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a kernel is specialised by of arguments."""
    found: list[Any] = [type(values)]
    add = found.append
    for value in values:
        if value is None:
            add(None)
            continue
        kind = type(value)
        if kind is Tensor:
            add(value.dtype)
            add(value.data_ptr() & 15 == 0)
        elif kind is int:
            if -(1 << 31) <= value < 1 << 31:
                add(1 if value == 1 else 16 if value & 15 == 0 else 32)
            else:
                add(48 if value & 15 == 0 else 64)
        elif kind is float:
            add(kind)
        elif isinstance(value, tuple):
            add(_key(value))
        elif isinstance(value, Tensor):
            add(value.dtype)
            add(value.data_ptr() & 15 == 0)
        else:  # a constant
            add((kind, getattr(value, "value", value)))
    return tuple(found)


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
