"""Which implementation runs, and why. What a backend is stands in contract.py; one without the
functions of the sigmoid link has no multi-label losses.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, cast

import torch

from .contract import Backend, BinaryBackend

if TYPE_CHECKING:
    from . import cpp, cuda, triton

    _backends: tuple[Backend, ...] = (cpp, cuda, triton)
    _binary: tuple[BinaryBackend, ...] = (cpp, cuda, triton)

BACKENDS = ("cpp", "triton", "cuda")
REFERENCE = "reference"
# what "auto" tries, best first; on the rest the reference runs. On a GPU as benchmarks/results has
# it (nvidia-h200): of large problems all but LPL with 50 steps were faster on Triton
PREFERENCE = {"cpu": ("cpp",), "cuda": ("triton", "cuda")}


@functools.cache
def load(name: str) -> Backend:
    """The backend's module; importing it is cheap, whatever it needs comes with the first use."""
    return cast(Backend, importlib.import_module(f"{__name__}.{name}"))


def has_multilabel(name: str) -> bool:
    """Whether a backend has the sigmoid link."""
    return hasattr(load(name), "binary_forward")


def load_binary(name: str) -> BinaryBackend:
    """The same module as a backend of the sigmoid link, which `has_multilabel`."""
    return cast(BinaryBackend, load(name))


def reason_against(
    name: str, device: str, dtype: torch.dtype, multilabel: bool = False
) -> str | None:
    """Why backend `name` cannot run on `device` ("cpu", "cuda", …) and `dtype`; None if it can."""
    module = load(name)
    reason: str | None = module.unavailable() or module.unsupported(device, dtype)
    if reason is None and multilabel and not has_multilabel(name):
        return "no kernels for multi-label losses"
    return reason


# Logits on the CPU up to which torch's own plain cross-entropy is faster than a fused one behind an
# autograd.Function in Python; measured on 2 cores with AVX2.
SMALL = 100_000

# what "auto" means, where the environment says it
OVERRIDE = os.environ.get("LPL_FUSED_BACKEND") or "auto"


@functools.cache
def preferred(device: str, dtype: torch.dtype, multilabel: bool = False) -> str:
    """The backend that "auto" means; cached, so what is installed is looked at once a process."""
    if OVERRIDE != "auto":
        try:
            return resolve(OVERRIDE, device, dtype, multilabel)
        except (ValueError, RuntimeError) as error:
            raise type(error)(
                f"LPL_FUSED_BACKEND={OVERRIDE!r} in the environment: {error}"
            ) from None
    for name in PREFERENCE.get(device, ()):
        if reason_against(name, device, dtype, multilabel) is None:
            return name
    return REFERENCE


# what was asked for by name, and can run: a process does not lose that
_can_run: set[tuple[str, str, torch.dtype, bool]] = set()


def resolve(backend: str, device: str, dtype: torch.dtype, multilabel: bool = False) -> str:
    """The name of the implementation that runs: a member of BACKENDS, or "reference".

    "auto" takes LPL_FUSED_BACKEND if the environment sets it, else the first backend that can run.
    A backend asked for by name runs or raises.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend asked for cannot run here; says why.
    """
    if backend == "auto":
        return preferred(device, dtype, multilabel)
    if backend == REFERENCE:
        return REFERENCE
    if backend not in BACKENDS:
        expected = ", ".join(repr(name) for name in ("auto", *BACKENDS, REFERENCE))
        raise ValueError(f"backend: expected one of {expected}, got {backend!r}")
    if (backend, device, dtype, multilabel) in _can_run:
        return backend
    reason = reason_against(backend, device, dtype, multilabel)
    if reason is not None:
        raise RuntimeError(f"backend {backend!r} cannot run on {device} {dtype}: {reason}")
    _can_run.add((backend, device, dtype, multilabel))
    return backend


# what torch.compiler.assume_constant_result(resolve) does, without its import of torch._dynamo
resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backends() -> dict[str, str]:
    """Every backend, and "available" or the reason why it is not.

    Examples:
        >>> lpl_fused.backends()["reference"]
        'available'
    """
    report = {name: load(name).unavailable() or "available" for name in BACKENDS}
    return {**report, REFERENCE: "available"}


def explain(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> str:
    """A report in words: what "auto" runs for such logits, and why not the others.

    Args:
        device: the logits' device, "cpu" or "cuda".
        dtype: the logits' dtype.

    Raises:
        TypeError: another dtype than logits may have.

    Examples:
        >>> print(lpl_fused.explain())
        backend="auto" on cpu torch.float32 runs: ...
          reference plain PyTorch, always there; slower, defines what is correct
    """
    kind = torch.device(device).type
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype: expected that of logits, a floating torch.dtype, got {dtype!r}")
    chosen = resolve("auto", kind, dtype)
    lines = [f'backend="auto" on {kind} {dtype} runs: {chosen}']
    if OVERRIDE != "auto":
        lines[0] += f" (LPL_FUSED_BACKEND={OVERRIDE})"
    elif kind == "cpu":
        small = "training losses, plain or by tables of classes"
        lines[0] += f"; {small}, of at most {SMALL:,} logits: torch's own"
    for name in BACKENDS:
        module = load(name)
        reason = reason_against(name, kind, dtype)
        lines.append(f"  {name:<9} {module.describe() if reason is None else 'no: ' + reason}")
    lines.append(f"  {REFERENCE:<9} plain PyTorch, always there; slower, defines what is correct")
    return "\n".join(lines)
