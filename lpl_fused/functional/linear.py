"""A linear layer and its softmax loss at once: the logits are made in chunks, and nobody holds them
all.

What stands in `softmax.py` of the keywords holds here: these are its functions after
`torch.nn.functional.linear`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference, sharded
from ..algebra.rows import label_rows, mean_as_sum
from ..algebra.statistics import RowStatistics
from ..arguments import FLAG
from ..backends import REFERENCE, resolve
from ..backends.contract import Choose
from ..norm import Norm
from ..ops.chunks import checked_memory
from ..ops.dispatch import AUTO
from ..penalty import MarginPenalty
from ..perturbation import Perturbation
from ..phi import Phi
from ..problem import NONE, TABLES, Problem
from ..sharded import Built
from ..tracing import only_autograd_follows
from ..validation import (
    Projected,
    Target,
    call_options,
    empty_is_zero,
    moved_by_two,
)
from . import two_labels
from .softmax import chooser, with_chosen_steps

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import LinearKeywords, LinearLPLKeywords

__all__ = ["linear_cross_entropy", "linear_lpl_cross_entropy"]

_FIXED = tuple(name for name in Problem._fields if name not in ("input", "options", *TABLES))
_MADE = f'use backend="{REFERENCE}", which makes all logits'


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    return_stats: Literal[False] = False,
    **keywords: Unpack[LinearKeywords],
) -> Tensor: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    return_stats: Literal[True],
    **keywords: Unpack[LinearKeywords],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    return_stats: bool,
    **keywords: Unpack[LinearKeywords],
) -> Any: ...


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    perturbation: Perturbation | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    empty: str = "nan",
    normalizer: float | Tensor | None = None,
    label_smoothing: float | Tensor = 0.0,
    phi: Phi = "log",
    z_loss: float | None = 0.0,
    softcap: float | None = 0.0,
    norm: Norm | None = None,
    penalty: MarginPenalty | None = None,
    sample_weight: Tensor | None = None,
    chunk_memory: int | None = None,
    gradient: str = "auto",
    return_stats: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Any:
    r"""`cross_entropy` of the logits u = input·linear_weightᵀ + linear_bias, which are never held:

        L = cross_entropy(linear(input, linear_weight, linear_bias), target, …)

    They are made chunk by chunk. In the forward pass each chunk becomes its gradient where it is,
    and that goes on to the layer: three products in all, as many as without, and no N×C memory.

    Args:
        input: features, shape (D,) or (…, D), as (N, D) or (N, T, D) of tokens; float64, float32,
            bfloat16 or float16. Under autocast products are in its dtype, as those of `linear`.
        linear_weight: (C, D), as that of `torch.nn.Linear`.
        target: class indices, shape (…), one for each vector of features; or class probabilities,
            shape (…, C); or a `MixedTarget` of indices, whose logits are made twice where the
            label moves them (a margin, rows by class). (The classes are the last dimension, where
            `cross_entropy` has them second.)
        linear_bias: (C,).
        weight, perturbation, ignore_index, reduction, empty, normalizer, label_smoothing, phi,
            z_loss, softcap, norm, penalty, sample_weight: as in `cross_entropy`. Rows that are
            ignored take part in no product.
        chunk_memory: bytes, what the logits of a chunk may take. Default: half of what
            `linear_weight` takes, at least 64 MiB; no less than one row, in any case.
        gradient: "sweep": in the forward pass, for an upstream gradient of 1 by which the backward
            multiplies. Not float16, not "none". "statistics": in the backward pass, which makes
            the logits again (a fourth product), with no memory in between. "auto": the first where
            it can be.
        return_stats: as in `cross_entropy`, of each chunk while its logits are there.
        process_group: as in `cross_entropy`: every rank has some classes, which are the rows of its
            `linear_weight`, and the same features. Their gradient is summed over the ranks, in the
            backward pass. Fused backends alone.
        backend: as in `cross_entropy`. The reference makes the logits; so does "auto" where no
            other backend runs.

    Returns:
        The loss, with `return_stats` (loss, `RowStatistics`): 0-dim for "mean" and "sum", the shape
        of `target` for "none"; float32, float64 for float64 input. Gradients, for what requires one
        of input, layer and tables, come in their dtypes; what requires none costs neither product
        nor memory. Of 16-bit weights they are summed over chunks in float32. Differentiable once;
        backend="reference" differentiates twice.

    Raises:
        TypeError, ValueError: as `cross_entropy`.
        RuntimeError: a transform of torch.func, forward mode, or a gradient of other tensors, which
            only the reference serves; a backend asked for by name that cannot run here.

    Examples:
        >>> hidden, labels = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[2, -100]])
        >>> weight = torch.eye(3, 2, requires_grad=True)
        >>> loss = LF.linear_cross_entropy(hidden, weight, labels)
        >>> loss
        tensor(2.4076, grad_fn=<...>)
        >>> loss.backward()
        >>> weight.grad.shape
        torch.Size([3, 2])
    """

    def build(layer: Projected) -> Built:
        options = call_options(reduction, ignore_index, phi, label_smoothing, z_loss, softcap, norm)
        problem = layer.problem(
            options,
            perturbation,
            weight,
            sample_weight,
            label_smoothing,
            penalty=penalty,
            normalizer=normalizer,
        )
        found = resolve(backend, layer.device.type, layer.dtype)
        zero = empty != "nan" and empty_is_zero(empty)
        if return_stats is not False:
            FLAG("return_stats", return_stats)
        return Built(problem, found, None, zero, return_stats)

    arguments = input, linear_weight, linear_bias, target
    numbers = chunk_memory, gradient, process_group
    return _run("linear_cross_entropy", arguments, numbers, build)


@overload
def linear_lpl_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    steps: Tensor | Choose,
    *,
    step_size: float,
    return_stats: Literal[False] = False,
    **keywords: Unpack[LinearLPLKeywords],
) -> Tensor: ...


@overload
def linear_lpl_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    steps: Tensor | Choose,
    *,
    step_size: float,
    return_stats: Literal[True],
    **keywords: Unpack[LinearLPLKeywords],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def linear_lpl_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    steps: Tensor | Choose,
    *,
    step_size: float,
    return_stats: bool,
    **keywords: Unpack[LinearLPLKeywords],
) -> Any: ...


def linear_lpl_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Target,
    steps: Tensor | Choose,
    *,
    step_size: float,
    linear_bias: Tensor | None = None,
    normalize: bool = False,
    weight: Tensor | None = None,
    perturbation: Perturbation | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    empty: str = "nan",
    normalizer: float | Tensor | None = None,
    label_smoothing: float | Tensor = 0.0,
    phi: Phi = "log",
    z_loss: float | None = 0.0,
    softcap: float | None = 0.0,
    norm: Norm | None = None,
    sample_weight: Tensor | None = None,
    chunk_memory: int | None = None,
    gradient: str = "auto",
    return_stats: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Any:
    r"""`lpl_cross_entropy` of the logits u = input·linear_weightᵀ + linear_bias, never held.

    Rows are taken in the order of their labels, so that a class and its δ are in one chunk. A class
    with more rows than a chunk has is cut by columns, and its logits are made once for every round
    of sums, five times or so; once, and all of them, where the steps of so many rows are not as
    exact in sums as `lpl_cross_entropy` promises (float64, steps that go very far).

    Args:
        input, linear_weight, linear_bias, weight, perturbation, ignore_index, reduction,
            empty, normalizer, label_smoothing, phi, z_loss, softcap, norm, sample_weight,
            chunk_memory, gradient, return_stats, process_group, backend: as in
            `linear_cross_entropy`. Half as many rows fit in a chunk.
        target: class indices, shape (…), or a `MixedTarget` of them, whose logits are made twice.
        steps, step_size, normalize: as in `lpl_cross_entropy`. For a function that makes the steps
            the logits are made once more.

    Returns, Raises:
        as `linear_cross_entropy`; also TypeError for `steps` that are not integers. On a GPU the
        host waits to see how many rows each class has, where they do not fit in one chunk.

    Examples:
        >>> hidden, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
        >>> steps = torch.tensor([5, 0, 0])  # raise the loss of class 0
        >>> LF.linear_lpl_cross_entropy(hidden, torch.eye(3, 2), labels, steps, step_size=0.1)
        tensor(1.9984)
    """

    def build(layer: Projected) -> Built:
        options = call_options(
            *(reduction, ignore_index, phi, label_smoothing, z_loss, softcap, norm),
            *(step_size, normalize),
        )
        choose = None
        if callable(steps) and not isinstance(steps, Tensor):
            choose = chooser(layer, steps)
        problem = layer.problem(
            options,
            perturbation,
            weight,
            sample_weight,
            label_smoothing,
            None if choose else steps,  # type: ignore[arg-type]
            normalizer=normalizer,
        )
        found = resolve(backend, layer.device.type, layer.dtype)
        zero = empty != "nan" and empty_is_zero(empty)
        if return_stats is not False:
            FLAG("return_stats", return_stats)
        return Built(problem, found, choose, zero, return_stats)

    arguments = input, linear_weight, linear_bias, target
    numbers = chunk_memory, gradient, process_group
    return _run("linear_lpl_cross_entropy", arguments, numbers, build)


def _run(
    kind: str,
    arguments: tuple[Tensor, Tensor, Tensor | None, Target],
    numbers: tuple[int | None, str, Any],
    build: Callable[[Projected], Built],
) -> Any:
    """`arguments`: features, weight, bias, target; `numbers`: chunk_memory, gradient and
    process_group."""
    chunk_memory, form, process_group = numbers
    if process_group is not None and sharded.is_sharded(arguments[0], process_group):
        return sharded.linear_cross_entropy(
            kind, arguments, process_group, chunk_memory, form, build
        )
    memory = checked_memory(chunk_memory)
    layer = Projected(*arguments)
    problem, chosen, choose, zero, return_stats = build(layer)
    if zero:
        problem = mean_as_sum(problem, of_nothing=0.0)
    options = problem.options
    pairs = moved_by_two(problem, choose, return_stats, whole=chosen == REFERENCE)
    if chosen == REFERENCE:
        if form != AUTO:
            raise ValueError(
                f"gradient: {form!r} is for fused backends; the reference, which runs here, is"
                " differentiated by autograd"
            )
        logits = F.linear(layer.features, layer.weight, layer.bias)
        problem = problem._replace(input=logits)
        if pairs:
            loss = two_labels.cross_entropy(problem, reference.cross_entropy, form, choose)
            return layer.restore(loss, options)
        if choose is not None:
            problem = with_chosen_steps(problem, REFERENCE, choose)
        loss = layer.restore(reference.cross_entropy(problem), options)
        if not return_stats:
            return loss
        return loss, RowStatistics(*map(layer.of_rows, reference.row_statistics(problem)))
    _check_followed(layer, problem)
    given = ops.Layer(layer.features, layer.weight, layer.bias, layer.dtype, memory)
    rows = layer.features.shape[0]
    if pairs:
        reference.check_labels(problem)
        learned = problem.steps is not None or choose is not None
        problem = label_rows(problem, learned=learned)._replace(input=given.stand_in(2 * rows))
    loss, found = ops.linear.cross_entropy(given, problem, chosen, choose, form, return_stats)
    if pairs and options.reduction == NONE:
        loss = loss[:rows] + loss[rows:]
    loss = layer.restore(loss, options)
    return loss if found is None else (loss, RowStatistics(*map(layer.of_rows, found)))


def _check_followed(layer: Projected, problem: Problem) -> None:
    """Raises RuntimeError for what only operations of torch can follow."""
    what = only_autograd_follows(
        problem.input, (layer.features, layer.weight, layer.bias, *problem[1:-1])
    )
    if what is not None:
        raise RuntimeError(f"{what}: logits in chunks cannot be looked into; {_MADE}")
    if not torch.is_grad_enabled():
        return
    for name in _FIXED:
        part = getattr(problem, name)
        if part is not None and part.requires_grad:
            raise RuntimeError(
                f"{name} requires grad, but of logits in chunks only layer and tables are"
                f" differentiated; {_MADE}"
            )
