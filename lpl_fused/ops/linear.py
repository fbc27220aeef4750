"""The operators of a linear layer with its loss: schemas, fakes, autograd. What they do: chunks.py.

linear_cross_entropy(Layer, Problem, backend, want, keep, return_stats)
        -> (loss, terms, gradients, statistics)
    `Problem.input` is made anew: `Layer.stand_in`. `gradients`: of WANTED those that are
    wanted, for an upstream of 1; with `keep` none, but the rows' terms where there are such.
    `statistics`: RowStatistics, if `return_stats`
linear_gradient(Layer, Problem, backend, want, terms, upstream) -> gradients
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..algebra.rows import ignored_rows
from ..algebra.statistics import RowStatistics, dtypes
from ..algebra.sweep import with_steps
from ..algebra.terms import Terms
from ..backends.contract import Choose, Forward
from ..precision import full_precision
from ..problem import NONE, TABLES, Options, Problem, accumulate_dtype
from ..tracing import direct, settled
from .chunks import OF_LAYER, WANTED, Layer, Sweep, input_sum_dtype, weight_sum_dtype
from .dispatch import (
    AUTO,
    STATISTICS,
    SWEEP,
    checked_form,
    given,
    laid_out,
    once_backward,
    register,
)

# how a gradient comes about
FORMS = AUTO, SWEEP, STATISTICS

_SCHEMA = (
    "Tensor input, Tensor weight, Tensor? bias, ScalarType dtype, int memory, Tensor target,"
    " Tensor?[] parts, int[] codes, float[] numbers, str backend, bool[] want"
)
_Found = tuple[Tensor, Tensor, list[Tensor], list[Tensor]]  # what the forward operator returns
_LIBRARY = torch.library.Library("lpl_fused", "FRAGMENT")
_LIBRARY.define(
    f"linear_cross_entropy({_SCHEMA}, bool keep, bool return_stats)"
    " -> (Tensor loss, Tensor terms, Tensor[] gradients, Tensor[] statistics)"
)
_LIBRARY.define(f"linear_gradient({_SCHEMA}, Tensor terms, Tensor upstream) -> Tensor[] gradients")


def _packed(layer: Layer, problem: Problem, backend: str, want: Sequence[str]) -> tuple[Any, ...]:
    _, target, *parts, options = problem
    return (*layer, target, parts, *options.packed(), backend, [name in want for name in WANTED])


def _unpacked(*packed: Any) -> tuple[Layer, Problem, str, list[str]]:
    layer = Layer(*packed[:5])
    target, parts, codes, numbers, backend, flags = packed[5:]
    input, options = layer.stand_in(target.shape[0]), Options.unpacked(codes, numbers)
    problem = Problem(input, *laid_out(target, *parts), options)  # type: ignore[call-arg, arg-type]
    return layer, problem, backend, [n for n, w in zip(WANTED, flags, strict=True) if w]


def _forward_kernel(*packed: Any) -> _Found:
    return _swept(*_unpacked(*packed[:-2]), *packed[-2:])


def _swept(
    layer: Layer,
    problem: Problem,
    backend: str,
    want: Sequence[str],
    keep: bool,
    return_stats: bool,
) -> _Found:
    with torch.no_grad(), full_precision(layer.input.device):
        found = Sweep(layer, problem, backend, want, keep=keep, return_stats=return_stats).run()
    gradients = [] if keep else found.gradients
    return found.loss, found.terms, gradients, list(found.statistics)


def _gradient_kernel(*packed: Any) -> list[Tensor]:
    return _swept_again(*_unpacked(*packed[:-2]), *packed[-2:])


def _swept_again(
    layer: Layer,
    problem: Problem,
    backend: str,
    want: Sequence[str],
    terms: Tensor,
    upstream: Tensor,
) -> list[Tensor]:
    # of a learned perturbation there are none
    kept = None if problem.steps is not None and not _tables(want) else terms
    with torch.no_grad(), full_precision(layer.input.device):
        return Sweep(layer, problem, backend, want, upstream, kept).run().gradients


def _tables(want: Sequence[str]) -> bool:
    return any(name in TABLES for name in want)


def _forward_fake(*packed: Any) -> _Found:
    layer, problem, _, want = _unpacked(*packed[:-2])
    keep, return_stats = packed[-2:]
    n, dtype = problem.input.shape[0], accumulate_dtype(layer.dtype)
    shape = (n,) if problem.options.reduction == NONE else ()
    loss = layer.weight.new_empty(shape, dtype=dtype)
    terms = loss.new_empty((n if keep else 0, len(Terms._fields)))
    gradients = [] if keep else _fake_gradients(layer, problem, want)
    statistics = [loss.new_empty(n, dtype=each) for each in dtypes(layer.dtype) if return_stats]
    return loss, terms, gradients, statistics


def _gradient_fake(*packed: Any) -> list[Tensor]:
    layer, problem, _, want = _unpacked(*packed[:-2])
    return _fake_gradients(layer, problem, want)


def _fake_gradients(layer: Layer, problem: Problem, want: Sequence[str]) -> list[Tensor]:
    dtypes = {
        "input": input_sum_dtype(layer, problem),
        "weight": weight_sum_dtype(layer, problem, _tables(want)),
    }
    found = []
    for name in want:
        like = getattr(layer if name in OF_LAYER else problem, name)
        dtype = dtypes.get(name, accumulate_dtype(layer.dtype))
        found.append(like.new_empty(tuple(like.shape), dtype=dtype))
    return found


_forward_op = register(_LIBRARY, "linear_cross_entropy", _forward_kernel, _forward_fake)
_gradient_op = register(_LIBRARY, "linear_gradient", _gradient_kernel, _gradient_fake)


def _forward(
    layer: Layer,
    problem: Problem,
    backend: str,
    want: Sequence[str] = (),
    keep: bool = False,
    return_stats: bool = False,
) -> _Found:
    if direct(*layer[:3], *problem[:-1]):
        problem = problem._replace(input=layer.stand_in(problem.target.shape[0]))
        return _swept(layer, problem, backend, want, keep, return_stats)
    return _forward_op(*_packed(layer, problem, backend, want), keep, return_stats)  # type: ignore[no-any-return]


_BEFORE_TENSORS = 6  # options, backend, form, dtype, memory and return_stats
_LAYER = len(OF_LAYER)
# where the tables stand among the tensors of a problem, its input apart
_TABLE_PLACES = [_LAYER + Problem._fields.index(name) - 1 for name in TABLES]


class LinearCrossEntropy(torch.autograd.Function):
    """Loss of a layer and a problem with the gradients of the layer and the tables, once
    differentiable.

    *By sweep* they come with the forward, for an upstream of 1, which the backward multiplies: a
    chunk's logits are made once. *By statistics* the backward makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        backend: str,
        form: str,
        dtype: torch.dtype,
        memory: int,
        return_stats: bool,
        *tensors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        layer, problem = layer_and_problem(tensors, options, dtype, memory)
        ctx.numbers, ctx.backend = (options, dtype, memory), backend
        ctx.sweeps = sweeps_by(form, problem)
        want = wanted(ctx.needs_input_grad[_BEFORE_TENSORS:])
        loss, terms, found, statistics = _forward(
            layer, problem, backend, want, not ctx.sweeps, return_stats
        )
        ctx.tensors = len(tensors)
        ctx.save_for_backward(*tensors, terms, *found)
        if not return_stats:
            return loss
        ctx.mark_non_differentiable(*statistics)
        return loss, *statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return once_backward(ctx, settled(grad_loss), _backward)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    tensors, terms, found = saved[: ctx.tensors], saved[ctx.tensors], saved[ctx.tensors + 1 :]
    layer, problem = layer_and_problem(tensors, *ctx.numbers)
    want = wanted(ctx.needs_input_grad[_BEFORE_TENSORS:])
    if not ctx.sweeps:
        past = direct(*layer[:3], *problem[:-1], upstream)
        # a float64 loss may be asked for a gradient by a float32 one
        upstream = upstream.to(accumulate_dtype(layer.dtype))
        if past:
            found = _swept_again(layer, problem, ctx.backend, want, terms, upstream)
        else:
            found = _gradient_op(*_packed(layer, problem, ctx.backend, want), terms, upstream)
    count = len(ctx.needs_input_grad) - _BEFORE_TENSORS
    grads = finished(layer, problem, want, found, upstream if ctx.sweeps else None, count)
    return (*[None] * _BEFORE_TENSORS, *grads)


def finished(
    layer: Layer,
    problem: Problem,
    want: Sequence[str],
    found: Sequence[Tensor],
    upstream: Tensor | None,
    count: int,
    summed: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor | None]:
    """The gradients of `count` tensors, those of the layer first.

    Args:
        found: of `want`.
        upstream: what those for an upstream of 1 are multiplied by; None: they are for theirs.
        summed: makes the input's from those that several have found, before it is rounded.
    """
    grads: list[Tensor | None] = [None] * count
    for name, grad in zip(want, found, strict=True):
        like = getattr(layer if name in OF_LAYER else problem, name)
        of_input = name == "input"
        if upstream is not None:
            parts = of_input and summed is not None
            grad = scaled_gradient(grad, upstream, grad.dtype if parts else like.dtype)
            if of_input and not problem.dense:
                # an upstream that is nan or infinite is none of ignored rows
                nothing = ignored_rows(problem)
                if nothing.shape[0] != grad.shape[0]:  # with either of two labels
                    nothing = nothing.unflatten(0, (-1, grad.shape[0])).all(0)
                grad = grad.masked_fill(nothing[:, None], 0)
        if of_input and summed is not None:
            grad = summed(grad)
        grads[PLACES[name]] = grad.to(like.dtype)
    return grads


PLACES = {
    **{name: place for place, name in enumerate(OF_LAYER)},
    **dict(zip(TABLES, _TABLE_PLACES, strict=True)),
}
_PIECE = 1 << 20  # numbers that are between two dtypes at once


def scaled_gradient(grad: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """grad·upstream, multiplied in the upstream's dtype and rounded once."""
    if grad.dtype == upstream.dtype == dtype:
        return grad * upstream
    if torch.compiler.is_compiling():
        return (grad.to(upstream.dtype) * upstream).to(dtype)
    scaled = torch.empty(grad.shape, dtype=dtype, device=grad.device)
    step = max(1, _PIECE // max(1, grad[:1].numel()))
    for begin in range(0, grad.shape[0], step):
        here = slice(begin, begin + step)
        scaled[here] = grad[here].to(upstream.dtype) * upstream
    return scaled


def wanted(needs: Sequence[bool]) -> list[str]:
    """Of WANTED those whose tensors want a gradient."""
    return [n for n, place in PLACES.items() if place < len(needs) and needs[place]]


def layer_and_problem(
    tensors: Sequence[Tensor | None], options: Options, dtype: torch.dtype, memory: int
) -> tuple[Layer, Problem]:
    layer = Layer(*tensors[:_LAYER], dtype, memory)  # type: ignore
    rows: int = tensors[_LAYER].shape[0]  # type: ignore[union-attr]
    return layer, Problem(layer.stand_in(rows), *tensors[_LAYER:], options=options)  # type: ignore


def sweeps_by(form: str, problem: Problem) -> bool:
    """Whether the gradients come with the forward.

    float16 whose small gradients live only after the upstream factor (a loss scaler's) was applied,
    and rows that have an upstream of their own, have to wait for it.

    Raises:
        ValueError: what the caller has chosen cannot be.
    """
    checked_form(form, FORMS)
    reason = None
    if problem.input.dtype == torch.float16:
        reason = "would lose small gradients of float16"
    elif problem.options.reduction == NONE:
        reason = 'is for one upstream gradient, not for reduction="none"'
    if form == SWEEP and reason is not None:
        raise ValueError(f'gradient: "sweep" {reason}')
    return form != STATISTICS and reason is None


def cross_entropy(
    layer: Layer,
    problem: Problem,
    backend: str,
    choose: Choose | None = None,
    form: str = AUTO,
    return_stats: bool = False,
) -> tuple[Tensor, RowStatistics | None]:
    """The loss of a layer and a problem (of whose `input` only the dtype is asked for),
    differentiable with respect to the layer and to the problem's tables; `return_stats`: and
    the statistics of its rows."""
    sweeps_by(form, problem)
    if choose is not None:
        problem = _with_chosen_steps(layer, problem, backend, choose)
    tensors = (layer.input, layer.weight, layer.bias, *given(problem)[1:])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        numbers = problem.options, backend, form, layer.dtype, layer.memory, return_stats
        found = LinearCrossEntropy.apply(*numbers, *tensors)
        return (found[0], RowStatistics(*found[1:])) if return_stats else (found, None)
    loss, _, _, rows = _forward(layer, problem, backend, return_stats=return_stats)
    return loss, RowStatistics(*rows) if return_stats else None


def _with_chosen_steps(layer: Layer, problem: Problem, backend: str, choose: Choose) -> Problem:
    """The problem with the steps that `choose` makes, after products of their own."""

    def forward(problem: Problem, want_grad: bool, *, final: bool) -> Forward:
        return Forward(_forward(layer, problem, backend)[0])

    with torch.no_grad():
        return with_steps(forward, problem, choose)
