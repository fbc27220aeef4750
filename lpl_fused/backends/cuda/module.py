"""The native module of the CUDA kernels, and how they are queued."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import BinaryOptions, BinaryProblem, Options, Problem
from ..native import BinaryOutputs, BinarySizes, Outputs, Place, Sizes, load


class Scratch(NamedTuple):
    """What the kernels need beside; see csrc/cuda/call.h."""

    losses: Place = None
    penalty_weight: Place = None
    order: Place = None
    begin: Place = None
    counts: Place = None
    flags: Place = None
    outcome: Place = None
    groups: Place = None
    chunk: int = 1
    factor: Tensor | None = None
    factor_stride: int = 0
    divisor: Place = None
    part: Tensor | None = None
    threshold: Tensor | None = None
    powers: Tensor | None = None
    head_columns: Place = None
    head_numbers: Place = None
    learned: Place = None
    swept: Place = None
    teams: int = 1
    perturbed: Tensor | None = None
    aim: Tensor | None = None


class BinaryScratch(NamedTuple):
    """The same of multi-label losses; see csrc/cuda/binary_call.h."""

    losses: Tensor | None = None
    masses: Tensor | None = None
    known: Tensor | None = None
    delta: Tensor | None = None
    partial: Tensor | None = None
    centre: Tensor | None = None
    left: Tensor | None = None
    factor: Tensor | None = None
    hard: bool = False


@functools.cache
def native() -> ModuleType:
    of_rows = Problem, Options, Sizes, Outputs, Scratch
    of_labels = BinaryProblem, BinaryOptions, BinarySizes, BinaryOutputs, BinaryScratch
    return load("_cuda", *of_rows, *of_labels)


def queue(
    kernels: Callable[..., None], problem: Problem | BinaryProblem, *arguments: object
) -> None:
    """Queues kernels on the current stream of the problem's device."""
    input = problem.input
    if not input.is_cuda:
        return kernels(problem, *arguments, 0)
    device = input.get_device()
    if device == torch.cuda.current_device():  # entering it would cost as much as a launch
        return kernels(problem, *arguments, _stream(device))
    with torch.cuda.device(device):
        return kernels(problem, *arguments, _stream(device))


def _stream(device: int) -> int:
    """The current stream's handle, without making a torch.cuda.Stream of it."""
    return int(torch._C._cuda_getCurrentRawStream(device))
