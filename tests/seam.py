"""Cases that go through the door of backends/contract.py, their columns cut in parts."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lpl_fused.functional.softmax as functional
from lpl_fused.algebra.known import Known
from lpl_fused.algebra.parts import Part
from lpl_fused.algebra.rows import normalizer
from lpl_fused.algebra.sweep import Door, sweep
from lpl_fused.backends import REFERENCE, load
from lpl_fused.problem import NONE, TABLES, Problem, accumulate_dtype
from lpl_fused.reference import parts as reference
from lpl_fused.testing import Case, Result, device_of

Run = Callable[[Case, str, Tensor], Result]


class Made(TorchDispatchMode):
    """How many numbers of float64 torch's operations write into memory of their own."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        found = function(*arguments, **(keywords or {}))
        own = not any(value.alias_info for value in function._schema.returns)
        if own and isinstance(found, Tensor) and found.dtype == torch.float64:
            self.count += found.numel()
        return found


def door(backend: str) -> Door:
    return reference if backend == REFERENCE else load(backend)


def problem_of(case: Case, backend: str, leaves: dict[str, Tensor]) -> Problem:
    """The problem that a case is to a backend; tables that learn come from `leaves`."""
    found = []

    class Found(Exception):
        pass

    def keep(problem: Problem, *_: object, **__: object) -> Tensor:
        found.append(problem)
        raise Found

    with mock.patch.object(functional, "_run", keep), suppress(Found):
        keywords = dict(case.keywords)
        if case.learn:
            keywords["perturbation"] = keywords["perturbation"].__class__(
                **{**vars(keywords["perturbation"]), **{name: leaves[name] for name in case.learn}}
            )
        # the functions themselves, past what usual calls go by
        function: Any = functional.cross_entropy
        arguments: tuple[Any, ...] = (case.input, case.target)
        if case.steps is not None:
            function, arguments = functional.lpl_cross_entropy, (*arguments, case.steps)
        inspect.unwrap(function)(*arguments, backend=backend, **keywords)
    return found[0]


def cut(width: int, parts: int) -> list[tuple[int, int]]:
    """Uneven runs of columns, `parts` of them where there are so many columns."""
    random_ = random.Random(31 * width + parts)
    places = sorted(random_.sample(range(1, width), min(parts, width) - 1))
    return list(zip([0, *places], [*places, width], strict=True))


def from_the_first(parts: list[Part]) -> Part:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.join(part)
    return whole


def in_pairs_from_the_last(parts: list[Part]) -> Part:
    """Another order, and other pairs."""
    parts = parts[::-1]
    while len(parts) > 1:
        pairs = [parts[k : k + 2] for k in range(0, len(parts), 2)]
        parts = [pair[0].join(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


def known_of(
    backend: str,
    problem: Problem,
    runs: list[tuple[int, int]],
    join: Callable[[list[Part]], Part] = from_the_first,
) -> tuple[Known, list[Problem]]:
    problems = [problem.columns(begin, end) for begin, end in runs]
    return sweep(door(backend), problems, join), problems


def by_parts(
    runs: Callable[[int], list[tuple[int, int]]],
    join: Callable[[list[Part]], Part] = from_the_first,
) -> Run:
    """Loss and gradients as `testing.evaluate` has them, by rounds over runs of columns."""

    def run(case: Case, backend: str, upstream: Tensor) -> Result:
        case = case.on(device_of(backend))
        dtype = accumulate_dtype(case.input.dtype)
        leaves = {
            name: torch.as_tensor(getattr(case.keywords["perturbation"], name), dtype=dtype)
            .detach()
            .clone()
            .requires_grad_()
            for name in case.learn
        }
        problem = problem_of(case, backend, leaves)
        whole = problem._replace(input=problem.input.detach())
        detached = Problem(*(part.detach() if isinstance(part, Tensor) else part for part in whole))
        known, problems = known_of(backend, detached, runs(detached.input.shape[1]), join)
        assert known.loss is not None
        if known.learned is not None:
            assert bool(known.learned.exact.all()), "a row is not as exact as promised"
        each = upstream.to(known.loss.device, dtype)
        loss, norm = known.loss, normalizer(detached)
        if problem.options.reduction == NONE:
            shape = case.input.shape[:1] + case.input.shape[2:]
            loss = loss.reshape(shape if case.input.dim() > 1 else ())
            rows = each.reshape(-1)
        else:
            loss = loss.double().sum().div(norm).to(dtype)
            rows = (each / norm).expand(detached.input.shape[0])
        tables = [name for name in TABLES if _learns(getattr(problem, name))]
        found = [
            door(backend).gradient(part, known, rows, ["input", *tables])  # type: ignore[attr-defined]
            for part in problems
        ]
        grads = {"input": torch.cat([part.input for part in found], 1)}
        made = []
        for name in tables:
            parts = [getattr(part, name) for part in found]
            made.append(sum(parts) if name == "margin" else torch.cat(parts, -1))
        if leaves:
            outputs = [getattr(problem, name) for name in tables]
            of_leaves = torch.autograd.grad(outputs, list(leaves.values()), made)
            grads.update(zip(leaves, of_leaves, strict=True))
        grads["input"] = _unflattened(grads["input"], case.input)
        return Result(loss.cpu(), {name: grad.cpu() for name, grad in grads.items()})

    return run


def _learns(table: Tensor | None) -> bool:
    return table is not None and table.requires_grad


def _unflattened(rows: Tensor, like: Tensor) -> Tensor:
    if like.dim() <= 2:
        return rows.reshape(like.shape)
    moved = like.movedim(1, -1)
    return rows.reshape(moved.shape).movedim(-1, 1)
