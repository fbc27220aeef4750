"""The reference's learned perturbation as operators: how many steps it takes is in the data, so
that whoever traces (torch.compile, export, fake tensors, meta tensors) has to take it as a whole.

    reference_perturbation(Problem) -> (delta (N, C), slot (N,))
    reference_binary_perturbation(BinaryProblem) -> delta (2, C)
    official_perturbation(Problem, …) -> (delta (N, C), slot (N,)), of losses/lpl_official.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..problem import BinaryOptions, BinaryProblem, Options, Problem, accumulate_dtype
from ..tracing import direct, transformed

AnyProblem = TypeVar("AnyProblem", Problem, BinaryProblem)

_SCHEMA = "Tensor input, Tensor target, Tensor?[] parts, int[] codes, float[] numbers"
_LIBRARY = torch.library.Library("lpl_fused", "FRAGMENT")


def opaque(problem: Problem | BinaryProblem) -> bool:
    """Whether numbers cannot be looked at, but an operator that does so can be called."""
    return (problem.input.is_meta or not direct(*problem[:-1])) and not transformed()


def constant(problem: AnyProblem) -> AnyProblem:
    """Of numbers that neither mode differentiates: no_grad stops the reverse mode alone."""
    parts = [part.detach() if isinstance(part, Tensor) else part for part in problem]
    return type(problem)(*parts)  # type: ignore[arg-type, return-value]


def check_not_recorded() -> None:
    """Raises RuntimeError under torch.jit.trace."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "torch.jit.trace: how many steps are taken is in the data, of which a trace would make"
            " a constant; torch.export and torch.compile take them as one operator"
        )


def operator(
    name: str, result: str, run: Callable[..., Any], fake: Callable[..., Any], beside: str = ""
) -> Any:
    """`run` of a problem as an operator of this name; called with a problem, and what is `beside`
    that in its schema."""
    _LIBRARY.define(f"{name}({_SCHEMA}{beside}) -> {result}")
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lpl_fused::{name}", fake, lib=_LIBRARY)
    made = getattr(torch.ops.lpl_fused, name).default

    def call(problem: Problem | BinaryProblem, *others: Any) -> Any:
        check_not_recorded()
        input, target, *parts, options = problem
        with torch.no_grad():
            return made(input, target, parts, *options.packed(), *others)

    return call


def problem_of(input, target, parts, codes, numbers) -> Problem:  # type: ignore[no-untyped-def]
    return Problem(input, target, *parts, Options.unpacked(codes, numbers))  # type: ignore[call-arg]


def binary_problem_of(input, target, parts, codes, numbers) -> BinaryProblem:  # type: ignore[no-untyped-def]
    return BinaryProblem(input, target, *parts, BinaryOptions.unpacked(codes, numbers))  # type: ignore[call-arg]


def fake_rows(input: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    delta = input.new_empty(tuple(input.shape), dtype=accumulate_dtype(input.dtype))
    return delta, torch.empty_like(target)


def fake_sides(input: Tensor, *_: Any) -> Tensor:
    return input.new_empty((2, input.shape[1]), dtype=accumulate_dtype(input.dtype))
