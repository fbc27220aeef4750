"""Usual calls, checked at once: logits in rows, a label each, no table and no option of ours.

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

from .. import ops
from ..arguments import FLAG
from ..backends import REFERENCE, resolve
from ..ops.dispatch import AUTO
from ..problem import Options, Problem
from ..tracing import PLAIN, unwatched
from ..validation import FLOATING, call_options, checked_step_size
from .differentiable import device_type
from .inplace import check_form

P = ParamSpec("P")

_KEYWORDS = frozenset({"reduction", "ignore_index", "gradient", "backend"})
_LEARNING = _KEYWORDS | {"step_size", "normalize"}
# of a problem, what stands between its labels and its options; the same, before and behind steps
_ABSENT = (None,) * (len(Problem._fields) - 3)
_STEPS = Problem._fields.index("steps")
_BEFORE_STEPS, _BEHIND_STEPS = _ABSENT[: _STEPS - 2], _ABSENT[_STEPS - 1 :]


def usual(function: Callable[P, Any]) -> Callable[P, Any]:
    """`function`, cross_entropy, which usual calls go past."""

    off = _defaults(function)

    @functools.wraps(function)
    def call(input: Tensor, target: Any, *others: Any, **keywords: Any) -> Any:
        said = None if others else _said(keywords, _KEYWORDS, off)
        if said is not None and _are_rows(input, target):
            backend, form = said.pop("backend", "auto"), said.pop("gradient", AUTO)
            found = resolve(backend, device_type(input), input.dtype)
            if found != REFERENCE:
                options = _looked_up(_plain_options, said)
                if form != AUTO:
                    check_form(form, input, found)
                problem: Problem = tuple.__new__(Problem, (input, target, *_ABSENT, options))
                return ops.cross_entropy(problem, found, None, form)[0]
        return function(input, target, *others, **keywords)  # type: ignore[call-arg, arg-type]

    return call  # type: ignore[return-value]


def usual_learned(function: Callable[P, Any]) -> Callable[P, Any]:
    """`function`, lpl_cross_entropy, which usual calls go past."""

    off = _defaults(function)

    @functools.wraps(function)
    def call(input: Tensor, target: Any, steps: Any, *others: Any, **keywords: Any) -> Any:
        said = None if others else _said(keywords, _LEARNING, off)
        if (
            said is not None
            and "step_size" in said
            and _are_rows(input, target)
            and _are_steps(steps, input)
        ):
            backend, form = said.pop("backend", "auto"), said.pop("gradient", AUTO)
            found = resolve(backend, device_type(input), input.dtype)
            if found != REFERENCE:
                parts = *_BEFORE_STEPS, steps, *_BEHIND_STEPS
                options = _looked_up(_learned_options, said)
                if form != AUTO:
                    check_form(form, input, found)
                problem: Problem = tuple.__new__(Problem, (input, target, *parts, options))
                return ops.cross_entropy(problem, found, None, form)[0]
        return function(input, target, steps, *others, **keywords)  # type: ignore[call-arg, arg-type]

    return call  # type: ignore[return-value]


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _said(
    keywords: dict[str, Any], usual: AbstractSet[str], off: dict[str, Any]
) -> dict[str, Any] | None:
    """What keywords say, if that is usual: all others are as they are by default. None, too, where
    somebody watches."""
    if keywords.get("perturbation") is not None or not unwatched():
        return None
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
    if type(input) not in PLAIN or type(target) is not Tensor:
        return False
    shape = input.shape
    return (
        len(shape) == 2
        and shape[1] > 0
        and input.stride(1) == 1
        and input.dtype in FLOATING
        and target.dtype is torch.int64
        and target.shape == shape[:1]
        and target.is_contiguous()
        and target.device == input.device
    )


def _are_steps(steps: Any, input: Tensor) -> bool:
    """Whether these are counts (C,) as kernels take them."""
    return (
        type(steps) is Tensor
        and steps.dtype is torch.int32
        and steps.shape == input.shape[1:]
        and steps.is_contiguous()
        and steps.device == input.device
    )


# by type, too: True is no 1
@functools.lru_cache(maxsize=256, typed=True)
def _plain_options(reduction: str = "mean", ignore_index: int = -100) -> Options:
    return call_options(reduction, ignore_index, "log", 0.0, 0.0, 0.0)


@functools.lru_cache(maxsize=256, typed=True)
def _learned_options(
    step_size: float, normalize: bool = False, reduction: str = "mean", ignore_index: int = -100
) -> Options:
    return call_options(reduction, ignore_index, "log", 0.0, 0.0, 0.0)._replace(
        step_size=checked_step_size(step_size), normalize=FLAG("normalize", normalize)
    )


# what is the same as long as it is equal: a tensor may be given anew, with another number in it
_LASTING = {bool, float, int, str}


def _looked_up(options: Any, said: dict[str, Any]) -> Options:
    for value in said.values():
        if type(value) not in _LASTING:
            return options.__wrapped__(**said)  # type: ignore[no-any-return]
    return options(**said)  # type: ignore[no-any-return]
