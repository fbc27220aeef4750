"""Triton backend: launchers of the kernels in ../kernels. Triton itself is imported at first use.

shortcut   loss and gradient in one sweep, and another upstream for it
sums       the reductions and the gradient that is made of what they settle
learned    the learned perturbation's launches: statistics, steps, gradient
binary     the sigmoid link
arguments  a problem in kernel form
launching  how a kernel is launched
memory     parts of one memory

No launcher waits for the device: what depends on data (labels, weights, step counts, the upstream
gradient) is decided by kernels or by torch operations on the device. Sums over rows run in a fixed
order, without floating atomics, so that results repeat bit for bit.
"""

from __future__ import annotations

import importlib.util

import torch

from ...algebra.settle import rounds, settle
from .binary import binary_forward, binary_gradient, binary_perturbation, binary_rescale_
from .launching import interpreted
from .shortcut import (
    fallbacks,
    forward,
    learned_gradient,
    learned_perturbation,
    learned_state,
    rescale_,
)
from .sums import gradient, perturbed, reduce

__all__ = [
    "binary_forward",
    "binary_gradient",
    "binary_perturbation",
    "binary_rescale_",
    "describe",
    "fallbacks",
    "forward",
    "gradient",
    "learned_gradient",
    "learned_perturbation",
    "learned_state",
    "perturbed",
    "reduce",
    "rescale_",
    "rounds",
    "settle",
    "unavailable",
    "unsupported",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (torch.cuda.is_available() or interpreted()):
        return "no GPU (TRITON_INTERPRET=1 interprets the kernels on the CPU, for tests)"
    return None


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    if dtype not in _DTYPES:
        return f"no kernels for {dtype}"
    if device == "cuda" or (device == "cpu" and interpreted()):
        return None
    if device == "cpu":
        return "on the CPU kernels are only interpreted, with TRITON_INTERPRET=1"
    return f"no kernels for device {device!r}"


def describe() -> str:
    import triton

    if interpreted():
        return f"triton {triton.__version__}, interpreted on the CPU: for tests, slow"
    return f"triton {triton.__version__} on {torch.cuda.get_device_name()}"
