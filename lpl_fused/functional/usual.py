"""Usual calls, checked at once: logits in rows, a label each, fixed tables, no option of ours.

A call may be much else, which validation.py looks for argument by argument: on a GPU, whose kernels
are queued meanwhile, that takes a quarter of the host's time for such a call.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import ops
from ..arguments import FLAG, POSITIVE
from ..backends import REFERENCE, resolve
from ..ops.dispatch import AUTO
from ..perturbation import Perturbation
from ..problem import Options, Problem, accumulate_dtype
from ..tracing import direct, in_memory
from ..validation import FLOATING, call_options, checked_step_size
from .differentiable import device_type
from .inplace import check_form

P = ParamSpec("P")

_KEYWORDS = frozenset({"reduction", "ignore_index", "gradient", "backend", "perturbation"})
_LEARNING = _KEYWORDS | {"step_size", "normalize"}
# of a problem, what stands between its labels and its options; of that, what stands before tables
# of classes, between them and steps, before steps, and behind these
_ABSENT = (None,) * (len(Problem._fields) - 3)
_TABLES, _BEHIND_TABLES, _STEPS = map(Problem._fields.index, ("scale", "rows", "steps"))
_BEFORE_TABLES, _BETWEEN = _ABSENT[: _TABLES - 2], _ABSENT[: _STEPS - _BEHIND_TABLES]
_BEFORE_STEPS, _BEHIND_STEPS = _ABSENT[: _STEPS - 2], _ABSENT[_STEPS - 1 :]


def usual(function: Callable[P, Any]) -> Callable[P, Any]:
    """`function`, cross_entropy, which usual calls go past."""

    off = _defaults(function)

    @functools.wraps(function)
    def call(input: Tensor, target: Any, *others: Any, **keywords: Any) -> Any:
        said = None
        if not others and _direct(input, target):
            said = _said(keywords, _KEYWORDS, off)
        if said is not None and _are_rows(input, target):
            moved = said.pop("perturbation", None)
            parts = _ABSENT if moved is None else _between(moved, input, None, said)
            loss = None if parts is None else _run(input, target, parts, _plain_options, said)
            if loss is not None:
                return loss
        return function(input, target, *others, **keywords)  # type: ignore[call-arg, arg-type]

    return call  # type: ignore[return-value]


def usual_learned(function: Callable[P, Any]) -> Callable[P, Any]:
    """`function`, lpl_cross_entropy, which usual calls go past."""

    off = _defaults(function)

    @functools.wraps(function)
    def call(input: Tensor, target: Any, steps: Any, *others: Any, **keywords: Any) -> Any:
        said = None
        if not others and _direct(input, target):
            said = _said(keywords, _LEARNING, off)
        if (
            said is not None
            and "step_size" in said
            and _are_rows(input, target)
            and _are_steps(steps, input)
        ):
            moved = said.pop("perturbation", None)
            parts: Any = (*_BEFORE_STEPS, steps, *_BEHIND_STEPS)
            if moved is not None:
                parts = _between(moved, input, steps, said)
            loss = None if parts is None else _run(input, target, parts, _learned_options, said)
            if loss is not None:
                return loss
        return function(input, target, steps, *others, **keywords)  # type: ignore[call-arg, arg-type]

    return call  # type: ignore[return-value]


def _between(
    perturbation: Any, input: Tensor, steps: Tensor | None, said: dict[str, Any]
) -> tuple[Any, ...] | None:
    """What stands of a problem between its labels and its options, a temperature among what is
    `said`; None where a table learns, or is not one number of each class as kernels take it."""
    if (
        type(perturbation) is not Perturbation
        or perturbation.rows is not None
        or perturbation.row_index is not None
        or type(perturbation.temperature) is not float
    ):
        return None
    tables = perturbation.scale, perturbation.offset, perturbation.margin
    dtype = accumulate_dtype(input.dtype)
    for table in tables:
        if table is not None and not _is_table(table, input, dtype):
            return None
    if perturbation.temperature != 1:
        said["temperature"] = perturbation.temperature
    return *_BEFORE_TABLES, *tables, *_BETWEEN, steps, *_BEHIND_STEPS


def _direct(input: Tensor, target: Any) -> bool:
    there = input is not None and target is not None  # what is absent is direct
    return there and forward_ad._current_level < 0 and direct(input, target)


def _is_table(table: Any, input: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(table) is Tensor
        and in_memory(table)
        and not table.requires_grad
        and table.dtype is dtype
        and table.shape == input.shape[1:]
        and table.is_contiguous()
        and table.device == input.device
    )


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _said(
    keywords: dict[str, Any], usual: AbstractSet[str], off: dict[str, Any]
) -> dict[str, Any] | None:
    """What keywords say, if that is usual: all others are as they are by default."""
    if keywords.keys() <= usual:
        return keywords.copy()
    said = {}
    for name, value in keywords.items():
        if name in usual:
            said[name] = value
            continue
        default = off.get(name, off)
        if value is not default and (type(value) is not type(default) or value != default):
            return None
    return said


def _are_rows(input: Tensor, target: Any) -> bool:
    """Whether these are logits (N, C) and labels (N,) as kernels take them."""
    shape, rows = input.shape, target.shape
    return (
        len(shape) == 2
        and len(rows) == 1
        and shape[0] == rows[0]
        and shape[1] > 0
        and input.stride()[1] == 1
        and input.dtype in FLOATING
        and target.dtype is torch.int64
        and target.is_contiguous()
        and target.device == input.device
    )


def _are_steps(steps: Any, input: Tensor) -> bool:
    """Whether these are counts (C,) as kernels take them."""
    return (
        type(steps) is Tensor
        and in_memory(steps)
        and steps.dtype is torch.int32
        and steps.shape == input.shape[1:]
        and steps.is_contiguous()
        and steps.device == input.device
    )


# by type, too: True is no 1
@functools.lru_cache(maxsize=256, typed=True)
def _plain_options(
    reduction: str = "mean", ignore_index: int = -100, temperature: float = 1.0
) -> Options:
    found = call_options(reduction, ignore_index, "log", 0.0, 0.0, 0.0)
    return found._replace(inverse_temperature=1.0 / POSITIVE("temperature", temperature))


@functools.lru_cache(maxsize=256, typed=True)
def _learned_options(
    step_size: float,
    normalize: bool = False,
    reduction: str = "mean",
    ignore_index: int = -100,
    temperature: float = 1.0,
) -> Options:
    return _plain_options.__wrapped__(reduction, ignore_index, temperature)._replace(
        step_size=checked_step_size(step_size), normalize=FLAG("normalize", normalize)
    )


# what is the same as long as it is equal: a tensor may be given anew, with another number in it
_LASTING = {bool, float, int, str}


def _run(
    input: Tensor, target: Tensor, parts: tuple[Any, ...], options_of: Any, said: dict[str, Any]
) -> Tensor | None:
    """The loss under what was `said`; None where the reference is to run."""
    backend, form = said.pop("backend", "auto"), said.pop("gradient", AUTO)
    found = resolve(backend, device_type(input), input.dtype)
    if found == REFERENCE:
        return None
    for value in said.values():
        if type(value) not in _LASTING:
            options_of = options_of.__wrapped__
            break
    options = options_of(**said)
    if form != AUTO:
        check_form(form, input, found)
    problem: Problem = tuple.__new__(Problem, (input, target, *parts, options))
    return ops.fixed_cross_entropy(problem, found, form)
