"""The public functions: documentation, and which implementation runs.

Equations are those of one algebra, `z → ℓ → φ → weighted mean`, in which every loss of the package
is a choice of tables; see `Perturbation` and `lpl_fused.phi`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference, sharded
from ..algebra.rows import mean_as_sum, present
from ..algebra.statistics import RowStatistics
from ..algebra.sweep import with_steps
from ..arguments import FLAG, OFF_OR_NOT_NEGATIVE
from ..backends import OVERRIDE, REFERENCE, SMALL, cpp, resolve
from ..backends.contract import Choose, Forward
from ..norm import Norm, numbers_of
from ..ops.dispatch import AUTO, checked_form
from ..penalty import MarginPenalty
from ..perturbation import Perturbation
from ..phi import Phi
from ..problem import NONE, TABLES, NotDifferentiable, Options, Problem
from ..sharded import Built, is_sharded
from ..tracing import PLAIN, direct, readable, tangent
from ..validation import (
    MixedTarget,
    Shaped,
    Target,
    call_options,
    checked_step_size,
    empty_is_zero,
    integer,
    moved_by_two,
)
from . import two_labels
from .differentiable import Fixed, device_type
from .inplace import check_form
from .usual import usual, usual_learned

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .keywords import CrossEntropyKeywords, LPLKeywords

P = ParamSpec("P")

__all__ = ["MixedTarget", "cross_entropy", "lpl_cross_entropy", "lpl_perturbation"]


# arguments with which torch's function does what ours does; every other one must be off
_TORCHS = "input", "target", "weight", "ignore_index", "reduction", "perturbation"

_ANY, _UNKNOWN = object(), object()


def _left_to_torch(function: Callable[P, Any]) -> Callable[P, Any]:
    """`function`, a cross-entropy, but for calls that torch's does as well and faster."""
    parameters = inspect.signature(function).parameters.values()
    off = {p.name: _ANY if p.name in _TORCHS else p.default for p in parameters}

    @functools.wraps(function)
    def call(input: Tensor, target: Target, *others: Any, **keywords: Any) -> Any:
        if (
            OVERRIDE == "auto"
            and not others
            and _unchanged(keywords, off)
            and isinstance(target, Tensor)
            and _small(input, target)
        ):
            ignore_index = keywords.get("ignore_index", -100)
            reduction = keywords.get("reduction", "mean")
            weight = keywords.get("weight")
            if (
                type(ignore_index) is int
                and reduction != "none"
                and (weight is None or (_is_table(weight, input) and not weight.requires_grad))
            ):
                z = _moved(input, target, ignore_index, keywords.get("perturbation"))
                if z is not None:
                    try:
                        return F.cross_entropy(
                            z, target, weight, None, ignore_index, None, reduction
                        )
                    except (TypeError, ValueError, IndexError):
                        pass  # said by ours, as everywhere else
        return function(input, target, *others, **keywords)  # type: ignore[call-arg, arg-type]

    return call  # type: ignore[return-value]


def _unchanged(keywords: dict[str, Any], off: dict[str, Any]) -> bool:
    """Whether keywords say nothing beside what is torch's, but that something is off."""
    for name, value in keywords.items():
        default = off.get(name, _UNKNOWN)
        if value is default or default is _ANY:
            continue
        if type(value) is not type(default) or value != default:
            return False
    return True


def _small(input: Tensor, target: Tensor) -> bool:
    """Whether these are so few float logits on the CPU that torch's own cross-entropy is faster.

    An `autograd.Function` in Python costs more than the fused kernel saves on them. Where no
    gradient is wanted none is made, and torch's loses the digits of small losses.
    """
    return (
        type(input) in PLAIN
        and input.requires_grad
        and torch.is_grad_enabled()
        and torch._C._get_tracing_state() is None  # which takes down what is asked of sizes, too
        and type(target) is Tensor
        and 0 < input.numel() <= SMALL
        and (input.dtype is torch.float32 or input.dtype is torch.float64)
        and target.dtype is torch.int64
        and input.is_cpu
        and target.is_cpu
        and input.ndim == 2
        and target.ndim == 1
        and input.shape[0] == target.numel()
        and not torch.compiler.is_compiling()
    )


def _ignores(target: Tensor, ignore_index: int) -> bool:
    """Whether a row is ignored, where torch's gradient makes nan of logits that are not finite."""
    if not -(2**63) <= ignore_index < 2**63:
        return True
    if direct(target) and target.is_contiguous() and _has_native():
        return cpp.has_label(target, ignore_index)
    return not readable(target) or bool((target == ignore_index).any())


def _has_native() -> bool:
    return resolve("auto", "cpu", torch.float32) == "cpp"


def _is_table(table: Any, input: Tensor) -> bool:
    """Whether it is one number per class as operations of torch take them beside the logits."""
    return (
        isinstance(table, Tensor)
        and table.shape == (input.shape[1],)
        and table.dtype is input.dtype
        and table.is_cpu
    )


@functools.lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """It as operations of torch take it: made of a number in every forward and every backward, it
    costs as much as a tenth of a small loss."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device="cpu")


def _moved(
    input: Tensor, target: Tensor, ignore_index: int, perturbation: Perturbation | None
) -> Tensor | None:
    """The perturbed logits where that is one operation of torch: by scale, by offset, by both or by
    a temperature; and by margins, in the numbers that it made. None where it is not, or where a row
    is ignored."""
    if perturbation is None:
        return None if _ignores(target, ignore_index) else input
    if (
        type(perturbation) is not Perturbation
        or perturbation.rows is not None
        or perturbation.row_index is not None
        or type(perturbation.temperature) is not float
        or not 0 < perturbation.temperature < math.inf
    ):
        return None
    scale, offset, margin = perturbation.scale, perturbation.offset, perturbation.margin
    inverse_temperature = 1.0 / perturbation.temperature
    if inverse_temperature != 1 and not (scale is None and offset is None):
        return None
    for table in (scale, offset, margin):
        if table is not None and not _is_table(table, input):
            return None
    if margin is None:
        if _ignores(target, ignore_index):
            return None
    elif (
        margin.requires_grad
        or not -(2**63) <= ignore_index < 2**63
        or not direct(input, target, margin)
        or not (target.is_contiguous() and margin.is_contiguous())
        or not _has_native()
    ):
        return None
    if inverse_temperature != 1:
        plain = margin is None  # somebody may watch
        z = input * (inverse_temperature if plain else _number(inverse_temperature, input.dtype))
    elif scale is not None:
        z = input * scale if offset is None else torch.addcmul(offset, input, scale)
    elif offset is not None:
        z = input + offset
    else:
        z = input if margin is None else input.clone()
    # z is nobody's yet, and what made it does not keep it: autograd need not hear of this
    if margin is None or cpp.take_margins_(z, target, margin, inverse_temperature, ignore_index):
        return z
    return None


@overload
def cross_entropy(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *,
    return_stats: Literal[False] = False,
    **keywords: Unpack[CrossEntropyKeywords],
) -> Tensor: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *,
    return_stats: Literal[True],
    **keywords: Unpack[CrossEntropyKeywords],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def cross_entropy(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *,
    return_stats: bool,
    **keywords: Unpack[CrossEntropyKeywords],
) -> Any: ...


@_left_to_torch
@usual
def cross_entropy(
    input: Tensor,
    target: Target,
    weight: Tensor | None = None,
    *,
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
    gradient: str = "auto",
    return_stats: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Any:
    r"""Softmax cross-entropy of class-level perturbed logits, fused with its backward.

    Without the keywords that `torch.nn.functional.cross_entropy` lacks it is that function. With
    them, for logits u (rows i, classes j) and target distribution t:

        z    = perturbation(softcap·tanh(T(u)/softcap))     see `norm`, `Perturbation`
        ℓ_ij = logsumexp(z_i) − z_ij
        L_i  = s_i · Σ_j w_j t_ij (φ(ℓ_ij) + z_loss·logsumexp(z_i)²)
        L    = Σ_i L_i / Σ_i s_i w_{y_i} + mean_i P_i       reduction "mean"; P: see `penalty`

    One read of the logits for the loss, one write for the gradient, no other N×C memory.

    Args:
        input: logits, shape (C,), (N, C) or (N, C, d1, …); float64, float32, bfloat16 or float16;
            read as they are, summed in float32 (float64 for float64), never written to.
        target: class indices, shape (), (N,) or (N, d1, …), any integer dtype; or class
            probabilities, the shape of `input`, floating; or a `MixedTarget` (or 3-tuple) of
            indices.
        weight: (C,), class weights w.
        perturbation: the tables between u and z; None leaves the logits as they are. With a margin,
            or rows by class, a `MixedTarget` is λ·L(u, y) + (1 − λ)·L(u, y'): two calls of the
            fused loss; not gradient="inplace", nor beside process_group a penalty.
        ignore_index: rows with this label count nothing. Class indices only.
        reduction: "none", "mean" or "sum". As in torch the mean divides by the summed class weights
            of the targets (by the number of rows for class probabilities), times sample weights.
        empty: what a mean over nothing is, where no row counts or all that count weigh 0: "nan", as
            in torch, or "zero", with gradients of 0 (a batch of padding alone, say).
        normalizer: beside reduction "sum" alone, a number > 0 or a 0-dim tensor: the sum, penalties
            included, is divided by it. Where gradients accumulate over several batches that is the
            number of labels of all of them, which keeps each batch's upstream gradient at 1: what
            came with the forward sweep is the gradient. No GPU is waited for; a tensor is not
            looked at, 0 gives nan or inf.
        label_smoothing: ε in [0, 1], or a (C,) tensor, by target class (MiSLAS): t becomes
            (1 − ε)·t + ε/C.
        phi: "log", or `Alpha`, `GCE`, `Focal`, `Poly1`.
        z_loss: ≥ 0, weight of the squared logsumexp (PaLM uses 1e-4); None is 0. Class and sample
            weights multiply it as they do ℓ, and the mean divides both alike (Liger's kernel adds
            it to a row without the class weight).
        softcap: > 0 bounds the logits before the perturbation (Gemma 2 uses 30); 0 and None do not.
        norm: `LogitClip` or `LogitNorm`, T(u) = u·f(‖u‖_p), before the softcap; None leaves u.
        penalty: a `MarginPenalty` P_i of each row, on the raw logits, 0 where the label is ignored.
            No weight touches it: the mean is over the rows that count, the sum and "none" add P_i.
        sample_weight: weights s, one per loss: the shape of `target` (class indices).
        gradient: how that of the logits comes about, with V for the logits' bytes moved once.
            "sweep": in the forward, for an upstream gradient of 1, in memory of its own: 2 V in all
            where the upstream gradient is 1, else up to 4 V. Not float16, not where tables learn.
            "statistics": in the backward, from a dozen numbers that the forward left of each row:
            3 V always, and until then no memory beside the logits. "inplace": by statistics, over
            the logits, whose memory it takes: no other N×C memory at all. For (N, C) logits that
            are contiguous, no leaf, and not a part of a larger tensor; who saved them for its own
            backward, and a second backward, get an error. "auto": "sweep" for "mean" and "sum"
            of float64, float32 and bfloat16 where no table learns (C++: for "none", too, but for 16
            bits; CUDA: not beside a scale or an offset, of which several rows then share what is
            read), else "statistics".
        return_stats: also gives a `RowStatistics`: lse, entropy and correctness of every row; the
            loss is what it is without. docs/evaluation.md says what that costs.
        process_group: a `torch.distributed.ProcessGroup`, or a DeviceMesh of one dimension, whose
            ranks have some of the classes each, in the order of their ranks: `input` (and class
            probabilities) are of this rank's, which may be none; labels are those of all classes,
            and they, weights of rows and options are the same on all ranks. Tables and `weight` are
            of all classes or, on every rank, of its own. Every rank gets the same loss, and the
            gradient of its own logits. DTensor logits, Shard(1), need no such word. See
            docs/scale.md.
        backend: "auto", "cpp", "triton", "cuda" or "reference"; see `lpl_fused.explain()`. "auto"
            leaves to torch's function what it can do, too, and does faster: a mean or sum, plain or
            by scale and offset, or a temperature, margins and class weights beside, with gradient
            of (N, C) float32 or float64 logits on the CPU, at most `backends.SMALL`.

    Returns:
        The loss, with `return_stats` (loss, `RowStatistics`): 0-dim for "mean" and "sum", the shape
        of `target` for "none"; float32, float64 for float64 input. Gradients come in `input`'s
        dtype, and for tables that require grad in theirs. Differentiable once; backend="reference"
        differentiates twice and works under `torch.func`.

    Raises:
        TypeError: wrong type or dtype.
        ValueError: wrong shape, device, table length or number; a label out of range (also an
            IndexError, as in torch). On CUDA a label out of range makes its row's loss and gradient
            nan instead, without a host synchronisation.
        RuntimeError: a backend asked for by name that cannot run here, or cannot differentiate
            what requires grad: beside the logits and the tables of the perturbation only the
            reference does, which "auto" takes for it.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([2])
        >>> LF.cross_entropy(logits, target)
        tensor(2.4076)
        >>> prior = torch.tensor([100.0, 10.0, 1.0]) / 111
        >>> adjusted = lpl_fused.Perturbation(offset=prior.log())
        >>> LF.cross_entropy(logits, target, perturbation=adjusted, phi=lpl_fused.Focal(2.0))
        tensor(6.6253)
    """

    def build(shaped: Shaped) -> Built:
        options = call_options(reduction, ignore_index, phi, label_smoothing, z_loss, softcap, norm)
        problem = shaped.problem(
            options,
            perturbation,
            weight,
            sample_weight,
            label_smoothing,
            penalty=penalty,
            normalizer=normalizer,
        )
        found = _resolve(backend, problem)
        if gradient != AUTO:
            check_form(gradient, shaped.input, found)
        zero = empty != "nan" and empty_is_zero(empty)
        if return_stats is not False:
            FLAG("return_stats", return_stats)
        return Built(problem, found, None, zero, return_stats)

    if (process_group is not None or type(input) not in PLAIN) and is_sharded(input, process_group):
        return sharded.cross_entropy("cross_entropy", input, target, process_group, gradient, build)
    shaped = Shaped(input, target)
    problem, found, _, zero, _ = build(shaped)
    if zero:
        problem = mean_as_sum(problem, of_nothing=0.0)
    rows = None
    if problem.other is not None and moved_by_two(problem, None, return_stats):
        loss = _of_two_labels(problem, found, gradient)
    else:
        loss, rows = _run(problem, found, form=gradient, return_stats=return_stats)
    loss = shaped.restore(loss, problem.options) if problem.options.reduction == NONE else loss
    return loss if rows is None else (loss, RowStatistics(*map(shaped.of_rows, rows)))


@overload
def lpl_cross_entropy(
    input: Tensor,
    target: Target,
    steps: Tensor | Choose,
    weight: Tensor | None = None,
    *,
    step_size: float,
    return_stats: Literal[False] = False,
    **keywords: Unpack[LPLKeywords],
) -> Tensor: ...


@overload
def lpl_cross_entropy(
    input: Tensor,
    target: Target,
    steps: Tensor | Choose,
    weight: Tensor | None = None,
    *,
    step_size: float,
    return_stats: Literal[True],
    **keywords: Unpack[LPLKeywords],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def lpl_cross_entropy(
    input: Tensor,
    target: Target,
    steps: Tensor | Choose,
    weight: Tensor | None = None,
    *,
    step_size: float,
    return_stats: bool,
    **keywords: Unpack[LPLKeywords],
) -> Any: ...


@usual_learned
def lpl_cross_entropy(
    input: Tensor,
    target: Target,
    steps: Tensor | Choose,
    weight: Tensor | None = None,
    *,
    step_size: float,
    normalize: bool = False,
    through_perturbation: bool = False,
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
    gradient: str = "auto",
    return_stats: bool = False,
    process_group: Any = None,
    backend: str = "auto",
) -> Any:
    r"""Cross-entropy under the learned class-level logit perturbation (LPL; Li, Su, Wu, Zhang).

    All rows I_c of a class c in the batch share one δ_c, found by |steps[c]| steps of a PGD-like
    ascent (steps[c] > 0: raises the class's loss) or descent (< 0: lowers it), from z⁰ =
    perturbation(u):

        g = mean_{i∈I_c} softmax(z_i + δ_c) − e_c ;   if normalize: g ← g/‖g‖₂  (0 below 1e-12)
        δ_c ← δ_c + sign(steps[c])·step_size·g

    The loss is that of `cross_entropy` at z + δ. δ is a constant in the backward pass. A row of two
    labels, y with the share λ and y' with 1 − λ (`MixedTarget`), is that much of a row of both:

        L = λ·L(z + δ_y, y) + (1 − λ)·L(z + δ_y', y')
        g = Σ_i λ_ic·(softmax(z_i + δ_c) − e_c) / Σ_i λ_ic        λ_ic: the row's share of class c

    Args:
        input, weight, perturbation, ignore_index, reduction, empty, normalizer, label_smoothing,
            phi, z_loss, softcap, norm, sample_weight, gradient, return_stats, process_group,
            backend: as in `cross_entropy`. Ignored rows take no part in δ. gradient="auto" is
            "statistics" where the backend leaves the numbers that δ is made of; else that finds δ
            twice. Not "inplace". On a GPU `return_stats` has room for δ, a table (N, C).
        target: class indices, or a `MixedTarget` of them. That takes 2·|steps| sweeps in plain
            PyTorch for δ, and the fused loss twice (sums in rounds, of twice the rows, beside
            process_group); neither gradient="inplace" nor `return_stats`.
        steps: (C,), integer; 0 leaves a class untouched. Or a function that makes them from the
            batch: it is called once with the unweighted cross-entropy of z of every row (the shape
            of `target`, 0 where ignored, no gradient), for which no row is swept twice. Of a
            `MixedTarget` those of both labels, shape (2, …).
        step_size: α ≥ 0, finite. With `normalize` ‖δ_c‖₂ ≤ |steps[c]|·α.
        normalize: unit-length steps (the paper's eq. 11 is the plain gradient).
        through_perturbation: differentiate through all steps (the official long-tail code does).
            The cpp backend does so for rows alone in their class, with unsmoothed labels, no
            softcap, no norm and tables that do not learn; "auto" takes the reference for
            everything else, which needs memory for |steps| copies of the logits.

    Returns, Raises:
        as `cross_entropy`; also TypeError for `steps` that are not integers.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
        >>> steps = torch.tensor([5, 0, 0])  # raise the loss of class 0
        >>> LF.lpl_cross_entropy(logits, target, steps, step_size=0.1, normalize=True)
        tensor(0.6687)
        >>> LF.lpl_cross_entropy(logits, target, -steps, step_size=0.1, normalize=True)
        tensor(0.2373)
    """

    def build(shaped: Shaped) -> Built:
        options = call_options(
            *(reduction, ignore_index, phi, label_smoothing, z_loss, softcap, norm),
            *(step_size, normalize, through_perturbation),
        )
        choose = None
        if callable(steps) and not isinstance(steps, Tensor):
            choose = chooser(shaped, steps)
        given = None if choose else steps
        problem = shaped.problem(
            options,
            perturbation,
            weight,
            sample_weight,
            label_smoothing,
            given,  # type: ignore[arg-type]
            normalizer=normalizer,
        )
        zero = empty != "nan" and empty_is_zero(empty)
        if return_stats is not False:
            FLAG("return_stats", return_stats)
        if through_perturbation:  # who runs is seen with its gradient
            return Built(problem, backend, choose, zero, return_stats)
        found = _resolve(backend, problem)
        if gradient != AUTO:
            check_form(gradient, shaped.input, found)
        return Built(problem, found, choose, zero, return_stats)

    if (process_group is not None or type(input) not in PLAIN) and is_sharded(input, process_group):
        return sharded.cross_entropy(
            "lpl_cross_entropy", input, target, process_group, gradient, build
        )
    shaped = Shaped(input, target)
    problem, found, choose, zero, _ = build(shaped)
    if zero:
        problem = mean_as_sum(problem, of_nothing=0.0)
    rows = None
    if problem.other is not None and moved_by_two(problem, choose, return_stats):
        loss = _of_two_labels(problem, _resolve(found, problem), gradient, choose)
    elif through_perturbation:
        loss, rows = _through_perturbation(problem, found, choose, gradient, return_stats)
    else:
        loss, rows = _run(problem, found, choose, gradient, return_stats)
    loss = shaped.restore(loss, problem.options) if problem.options.reduction == NONE else loss
    return loss if rows is None else (loss, RowStatistics(*map(shaped.of_rows, rows)))


def lpl_perturbation(
    input: Tensor,
    target: Target,
    steps: Tensor,
    *,
    step_size: float,
    normalize: bool = False,
    perturbation: Perturbation | None = None,
    ignore_index: int = -100,
    softcap: float | None = 0.0,
    norm: Norm | None = None,
    process_group: Any = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The δ that `lpl_cross_entropy` uses, for inspection; not differentiable.

    Args:
        as in `lpl_cross_entropy`.

    Returns:
        classes: (G,) int64, the classes present in the batch, ascending.
        delta: (G, C), their perturbations; float32, float64 for float64 input.

    Examples:
        >>> logits, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
        >>> classes, delta = LF.lpl_perturbation(
        ...     logits, target, torch.tensor([5, 0, 0]), step_size=0.1, normalize=True
        ... )
        >>> classes, delta
        (tensor([0]), tensor([[-0.3928,  0.2928,  0.1000]]))
    """

    def build(shaped: Shaped) -> Built:
        options = Options(
            ignore_index=integer("ignore_index", ignore_index),
            softcap=OFF_OR_NOT_NEGATIVE("softcap", softcap),
        )
        options = options.with_norm(numbers_of(norm))
        options = options._replace(
            step_size=checked_step_size(step_size), normalize=FLAG("normalize", normalize)
        )
        problem = shaped.problem(options, perturbation, steps=steps)
        return Built(problem, _resolve(backend, problem))

    if (process_group is not None or type(input) not in PLAIN) and is_sharded(input, process_group):
        return sharded.lpl_perturbation(input, target, process_group, build)
    problem, found, *_ = build(Shaped(input, target))
    if problem.other is not None:
        reference.check_labels(problem)
        problem, found = two_labels.members(problem), REFERENCE
    with torch.no_grad():
        find = reference if found == REFERENCE else ops
        arguments = () if found == REFERENCE else (found,)
        delta, slot = find.learned_perturbation(problem, *arguments)
        classes, leader = present(problem, slot)
        return classes, delta[leader]


def _run(
    problem: Problem,
    backend: str,
    choose: Choose | None = None,
    form: str = AUTO,
    return_stats: bool = False,
) -> tuple[Tensor, RowStatistics | None]:
    """The loss on a backend that was resolved; `return_stats`: and the statistics of its rows."""
    learns = torch.is_grad_enabled() and ops.tables_learn(problem)
    if choose is not None and (learns or backend == REFERENCE):
        problem, choose = with_chosen_steps(problem, backend, choose), None
    if backend == REFERENCE:
        rows = reference.row_statistics(problem) if return_stats else None
        return reference.cross_entropy(problem), rows
    if problem.steps is not None and learns:
        problem = ops.with_fixed_delta(problem, backend)
    return ops.cross_entropy(problem, backend, choose, form, return_stats)


def _of_two_labels(
    problem: Problem, backend: str, form: str, choose: Choose | None = None
) -> Tensor:
    """The loss of rows of two labels that move their logits, on a backend that was resolved."""
    if problem.options.through and checked_form(form) != AUTO:
        raise ValueError(f"gradient: {form!r} can not be chosen beside through_perturbation")
    return two_labels.cross_entropy(
        problem, lambda half: _run(half, backend, form=form)[0], form, choose
    )


def chooser(shaped: Shaped, steps: Choose) -> Choose:
    shaped.check_labelled()

    def choose(losses: Tensor) -> Tensor:
        with torch.no_grad():
            # of two labels: one after the other
            shape = (2, *shaped.loss_shape) if shaped.other is not None else shaped.loss_shape
            return shaped.steps(steps(losses.reshape(tuple(shape))))

    return choose


def with_chosen_steps(problem: Problem, backend: str, choose: Choose) -> Problem:
    """The problem with its steps, chosen after a sweep of their own."""
    if backend != REFERENCE:
        return ops.with_chosen_steps(problem, backend, choose)

    def forward(problem: Problem, want_grad: bool, *, final: bool) -> Forward:
        return Forward(reference.cross_entropy(problem))

    with torch.no_grad():
        return with_steps(forward, problem, choose)


def _through_perturbation(
    problem: Problem, backend: str, choose: Choose | None, form: str, return_stats: bool
) -> tuple[Tensor, RowStatistics | None]:
    """Loss and gradient through the steps, fused where that is possible; `return_stats`: and the
    statistics of the rows."""
    if checked_form(form) != AUTO:
        raise ValueError(f"gradient: {form!r} can not be chosen beside through_perturbation")
    fused = _resolve(backend, problem)
    if choose is not None:
        problem = with_chosen_steps(problem, fused, choose)
    moves = tangent(problem.input) is not None
    if fused == REFERENCE or not (torch.is_grad_enabled() or moves):
        return _run(problem, fused, return_stats=return_stats)
    reason = None
    if moves:
        reason = "the fused backends differentiate the steps in reverse mode alone"
    elif fused != "cpp":
        reason = f"the {fused} backend does not differentiate the steps"
    elif ops.tables_learn(problem) or problem.input.dtype == torch.float16:
        reason = "the cpp backend takes no learnable tables and no float16 beside it"
    elif torch.compiler.is_compiling():
        reason = "not under torch.compile"
    elif problem.input.element_size() == 2 and not direct(problem.input):
        reason = "no 16 bits where somebody traces"
    if reason is None:
        try:
            return _run(problem, fused, return_stats=return_stats)
        except NotDifferentiable:
            if backend != "auto":
                raise
    elif backend != "auto":
        raise NotDifferentiable(f'through_perturbation: {reason}; use backend="auto"')
    return _run(problem, REFERENCE, return_stats=return_stats)


# what no backend differentiates
_FIXED = Fixed(Problem, but=("input", *TABLES))


def _resolve(backend: str, problem: Problem) -> str:
    """The backend to run; "auto" leaves to the reference what only it differentiates."""
    if _FIXED.left_to_reference(problem, backend):
        return REFERENCE
    return resolve(backend, device_type(problem.input), problem.input.dtype)
