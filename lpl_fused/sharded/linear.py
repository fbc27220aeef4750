"""A linear layer some of whose classes are here, and its softmax loss: logits come in chunks of
rows, and every chunk's sums go to all ranks. The features' gradient is summed over the ranks once,
in the backward; that of the layer is of its own classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..algebra.known import Known
from ..algebra.rows import label_rows
from ..algebra.statistics import RowStatistics
from ..algebra.sweep import with_steps
from ..backends import REFERENCE
from ..backends.contract import Choose, Forward
from ..ops import chunks
from ..ops.chunks import OF_LAYER, Index, Layer, checked_memory
from ..ops.dispatch import given, once_backward
from ..ops.linear import finished, layer_and_problem, sweeps_by, wanted
from ..precision import full_precision
from ..problem import NONE, Options, Problem, accumulate_dtype
from ..tracing import direct, settled, uncompiled
from ..validation import Target, moved_by_two
from .agree import agreed, agreed_choice
from .local import PartOfLayer, summed
from .loss import Built, Run


class _Sweep(chunks.Sweep):
    """Chunks of rows whose classes are on several ranks, which all have the same rows in each. A
    class with more rows than a chunk has all of its logits here at once."""

    def __init__(
        self, run: Run, layer: Layer, problem: Problem, *arguments: Any, return_stats: bool = False
    ) -> None:
        self._run, self._widest = run, max(run.shards.widths)
        super().__init__(layer, problem, run.backend, *arguments, return_stats=return_stats)

    def _zeros(self, name: str) -> Tensor:
        found = super()._zeros(name)
        # to be added to others' before it is rounded
        return found.to(self._dtype) if name == "input" else found

    def _differentiated(self, run: chunks.Run, rows: Index, problem: Problem) -> Tensor | None:
        here = slice(run.begin, run.end)
        if self._given is not None and problem.steps is None:
            known = Known(self._given[here])
        else:
            known = self._run.sweep(problem)
            self._store_known(rows, known)
            if self.statistics:
                self._store_statistics(rows, self._run.statistics(problem, known))
        if self._keep:
            self.terms[here] = known.terms
        return self._gradient(rows, problem, known)

    def _by_columns(self, rows: Index, x: Tensor, problem: Problem) -> bool:
        return False


class ShardedLinearCrossEntropy(torch.autograd.Function):
    """As `ops.linear.LinearCrossEntropy`, of the classes of several ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        options: Options,
        run: Run,
        form: str,
        dtype: torch.dtype,
        memory: int,
        return_stats: bool,
        *tensors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        layer, problem = layer_and_problem(tensors, options, dtype, memory)
        ctx.numbers, ctx.run = (options, dtype, memory), run
        ctx.sweeps = sweeps_by(form, problem)
        want = wanted(ctx.needs_input_grad[_BEFORE:])
        with full_precision(layer.input.device):
            keep = not ctx.sweeps
            found = _Sweep(
                run, layer, problem, want, None, None, keep, return_stats=return_stats
            ).run()
        ctx.tensors = len(tensors)
        ctx.save_for_backward(*tensors, found.terms, *(found.gradients if ctx.sweeps else ()))
        if not return_stats:
            return found.loss
        ctx.mark_non_differentiable(*found.statistics)
        return found.loss, *found.statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return once_backward(ctx, settled(grad_loss), _backward)


_BEFORE = 6  # options, run, form, dtype, memory and return_stats stand before the tensors


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    tensors, terms, found = saved[: ctx.tensors], saved[ctx.tensors], saved[ctx.tensors + 1 :]
    layer, problem = layer_and_problem(tensors, *ctx.numbers)
    want = wanted(ctx.needs_input_grad[_BEFORE:])
    if not ctx.sweeps:
        upstream = upstream.to(accumulate_dtype(layer.dtype))
        with full_precision(layer.input.device):
            found = _Sweep(ctx.run, layer, problem, want, upstream, terms).run().gradients
    over_ranks = functools.partial(summed, group=ctx.run.shards.group)
    factor = upstream if ctx.sweeps else None
    count = len(ctx.needs_input_grad) - _BEFORE
    grads = finished(layer, problem, want, found, factor, count, over_ranks)
    return (*[None] * _BEFORE, *grads)


def _refuse(layer: PartOfLayer, form: str, made: Built) -> None:
    sweeps_by(form, made.problem)
    if made.backend == REFERENCE:
        raise ValueError(
            "process_group: a layer whose logits come in chunks needs a fused backend; for the"
            " reference call cross_entropy with torch.nn.functional.linear(…)"
        )
    if not direct(layer.features, layer.weight, layer.bias):
        raise RuntimeError(
            "process_group: classes over ranks are for plain tensors in eager mode, not within"
            " torch.func, a trace or a mode"
        )


@uncompiled
def linear_cross_entropy(
    kind: str,
    arguments: tuple[Tensor, Tensor, Tensor | None, Target],
    process_group: Any,
    chunk_memory: int | None,
    form: str,
    build: Callable[[PartOfLayer], Built],
) -> Tensor | tuple[Tensor, RowStatistics]:
    """The loss of a call of the function `kind` whose layer has this rank's classes alone; and the
    statistics of its rows, if they are wanted.

    Args:
        arguments: features, weight, bias, target.
    """
    shaped: list[PartOfLayer] = []
    memory = 0

    def shape() -> PartOfLayer:
        shaped.append(PartOfLayer(*arguments))
        return shaped[0]

    def built(layer: PartOfLayer) -> Built:
        nonlocal memory
        memory = checked_memory(chunk_memory)
        made = build(layer)
        _refuse(layer, form, made)
        moved_by_two(made.problem, made.choose, made.return_stats, whole=False)
        return made

    def others() -> list[tuple[str, int]]:
        found = [("chunk_memory", memory), ("number of features", _last(arguments[0]))]
        names = "input", "linear_weight", "linear_bias"
        for name, tensor in zip(names, arguments[:3], strict=True):
            found.append((f"{name}: requires grad or not", _learns(tensor)))
        return found

    call = agreed(kind, arguments[0], process_group, shape, built, form, others)
    (layer,) = shaped
    run, problem = Run.of(call.built.backend, call.shards), call.problem
    of_layer = Layer(layer.features, layer.weight, layer.bias, layer.dtype, memory)
    choose, return_stats, rows = call.built.choose, call.built.return_stats, problem.target.shape[0]
    pairs = moved_by_two(problem, choose, return_stats, whole=False)
    if pairs:
        learned = problem.steps is not None or choose is not None
        problem = label_rows(problem, learned=learned)
        problem = problem._replace(input=of_layer.stand_in(2 * rows))
    if choose is not None:
        problem = _with_chosen_steps(run, of_layer, problem, choose)
    numbers = problem.options, run, form, layer.dtype, memory, return_stats
    tensors = (*of_layer[: len(OF_LAYER)], *given(problem)[1:])
    found = ShardedLinearCrossEntropy.apply(*numbers, *tensors)  # type: ignore[no-untyped-call]
    if pairs and problem.options.reduction == NONE:
        found = found[:rows] + found[rows:]
    return call.restored_with(*found) if return_stats else call.restored(found)


def _last(input: Any) -> int:
    return input.shape[-1] if isinstance(input, Tensor) and input.dim() else -1


def _learns(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.requires_grad and torch.is_grad_enabled()


def _with_chosen_steps(run: Run, layer: Layer, problem: Problem, choose: Choose) -> Problem:
    """The problem with the steps that `choose` makes, after products of their own."""

    def forward(problem: Problem, want_grad: bool, *, final: bool) -> Forward:
        with full_precision(layer.input.device):
            return Forward(_Sweep(run, layer, problem).run().loss)

    with torch.no_grad():
        return with_steps(forward, problem, agreed_choice(choose, run.shards))
