"""Triton backend: launchers of the kernels in kernels/. Triton itself is imported at first use.

No launcher waits for the device: what depends on data (labels, weights, step counts) is decided by
kernels or by torch operations on the device. Sums over rows run in a fixed order, without floating
atomics, so that results repeat bit for bit.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from ..paths import LEARNING, SCALING, WEIGHING, Path
from ..phi import LOG
from ..problem import MEAN, NONE, Options, Problem, accumulate_dtype
from .buffers import gradients, new, table_places
from .kernels.arguments import (
    DENSE,
    FELL_BACK,
    LABELS,
    ONE_LABEL,
    Arguments,
    Gradients,
    Groups,
    Shared,
    Wanted,
)
from .kernels.launch import (
    column_meta,
    filling_meta,
    group_meta,
    resident_meta,
    row_meta,
    solver_meta,
    spread,
    sweeping_meta,
)
from .triton_binary import (
    binary_cross_entropy,
    binary_cross_entropy_backward,
    binary_perturbation,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_backward",
    "binary_perturbation",
    "cross_entropy",
    "cross_entropy_backward",
    "learned_perturbation",
    "scale_rows_",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
STATS = 2  # rows of the statistics that the backward wants

# what the kernels are told of, and what launchers do about the rest
_KERNELS = Path(
    "triton",
    Problem,
    (
        *{*Arguments._fields} & {*Problem._fields, *Options._fields},
        *("dense", "reduction", "through", *LEARNING),
    ),
)
# rows of which the solver gives all that is wanted, not only their δ
_SOLVED = Path(
    "triton, solved rows",
    Problem,
    (*WEIGHING, "z_loss", *SCALING, "softcap", *LEARNING, "through"),
)
PROGRAMS = 1024  # that share the work of a kernel whose size the host does not know


def unavailable() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not (torch.cuda.is_available() or _interpreted()):
        return "no GPU (TRITON_INTERPRET=1 interprets the kernels on the CPU, for tests)"
    return None


def unsupported(device: str, dtype: torch.dtype) -> str | None:
    if dtype not in _DTYPES:
        return f"no kernels for {dtype}"
    if device == "cuda" or (device == "cpu" and _interpreted()):
        return None
    if device == "cpu":
        return "on the CPU kernels are only interpreted, with TRITON_INTERPRET=1"
    return f"no kernels for device {device!r}"


def describe() -> str:
    import triton

    if _interpreted():
        return f"triton {triton.__version__}, interpreted on the CPU: for tests, slow"
    return f"triton {triton.__version__} on {torch.cuda.get_device_name()}"


def _interpreted() -> bool:
    # as triton reads it
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def sweeps_first(problem: Problem) -> bool:
    """Steps are chosen after a sweep of their own."""
    return False


def cross_entropy(problem: Problem, want_grad: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, stats, norm, grad): see ops/"""
    from .kernels.forward import forward

    input, reduction = problem.input, problem.options.reduction
    n, classes = input.shape
    losses = new(problem, n)
    stats = new(problem, 2, n)
    norm = _normalizer(problem) if reduction == MEAN else losses.new_ones(())
    grad = new(problem, *((n, classes) if want_grad else (0,)), dtype=input.dtype)
    wanted = Wanted(losses, stats, grad if want_grad else None)
    mean_norm = norm if reduction == MEAN else None
    arguments, outcome = _learned(problem, wanted, norm=mean_norm)
    _launch(
        forward,
        (n,),
        arguments,
        outcome,
        mean_norm,
        losses,
        stats,
        grad if want_grad else None,
        **row_meta(problem),
    )
    if reduction == NONE:
        return losses, stats, norm, grad
    loss = losses.sum()
    return loss / norm if reduction == MEAN else loss, stats, norm, grad


def cross_entropy_backward(
    problem: Problem, grad_rows: Tensor, stats: Tensor, want: list[bool]
) -> tuple[Tensor, ...]:
    """(input, *TABLES), empty where not wanted: see ops/"""
    from .kernels.backward import backward, row_alongs, row_sums

    n, classes = problem.input.shape
    want_input, *want_tables = want
    chunk, tables = table_places(problem, want_tables)
    of_input = new(problem, n, classes, dtype=problem.input.dtype) if want_input else None
    wanted = Gradients(input=of_input, **tables)
    meta, stride = column_meta(problem), grad_rows.stride(0)
    only_input = Wanted(grad=of_input) if want_input and not any(want_tables) else None
    arguments, outcome = _learned(problem, only_input, grad_rows=grad_rows)
    sums = None
    if spread(problem):
        sums = new(problem, 2, n)
        _launch(row_sums, (n,), arguments, stats, sums, **meta)
    alongs = None
    if problem.options.norm_p > 0:
        alongs = new(problem, n)
        _launch(row_alongs, (n,), arguments, grad_rows, stride, stats, sums, alongs, **meta)
    grid = (-(-n // chunk), -(-classes // meta["BLOCK"]))
    what = (arguments, outcome, grad_rows, stride, stats, sums, alongs, wanted, n, chunk)
    _launch(backward, grid, *what, **meta)

    return gradients(problem, of_input, tables)


def learned_perturbation(problem: Problem) -> tuple[Tensor, Tensor]:
    """(delta, slot): see ops/"""
    n, classes = problem.input.shape
    arguments, _ = _take_steps(problem, Wanted(delta=new(problem, n, classes)))
    return arguments.delta, arguments.slot


def fallbacks(problem: Problem) -> Tensor:
    """0-dim: how many rows of a problem with `steps` the solvers leave to plain steps because they
    are not exact enough (kernels/solver.py, kernels/group_solver.py). For tests and diagnosis."""
    n = problem.input.shape[0]
    _, outcome = _take_steps(problem, Wanted(new(problem, n), new(problem, 2, n)))
    return (outcome == FELL_BACK).sum()


def scale_rows_(buffer: Tensor, grad_loss: Tensor) -> None:
    """Multiplies a finished (N, C) gradient by its upstream gradient, 0-dim or (N,), in place."""
    from .kernels.backward import scale_rows

    n, classes = buffer.shape
    stride = grad_loss.stride(0) if grad_loss.dim() else 0
    _launch(scale_rows, (n,), buffer, grad_loss, stride, classes, **filling_meta(classes))


def _learned(
    problem: Problem,
    wanted: Wanted | None,
    norm: Tensor | None = None,
    grad_rows: Tensor | None = None,
) -> tuple[Arguments, Tensor | None]:
    """The arguments of a problem with its δ, if any; and, where all weight of a row is on its
    label, which rows already have what is `wanted`: see _take_steps.
    """
    if problem.steps is None:
        return _arguments(problem), None
    if wanted is None or not _SOLVED.serves(problem):
        delta = new(problem, *problem.input.shape)
        return _take_steps(problem, Wanted(delta=delta))[0], None
    return _take_steps(problem, wanted, norm, grad_rows)


def _take_steps(
    problem: Problem,
    wanted: Wanted,
    norm: Tensor | None = None,
    grad_rows: Tensor | None = None,
) -> tuple[Arguments, Tensor]:
    """Solves what rows it can, and takes plain steps for the others' classes.

    Returns:
        arguments: of the problem with δ (N, C), of all rows if wanted.delta is given, else of those
            left alone, the others' never touched.
        outcome: (N,), SOLVED where a row has what is `wanted`.
    """
    from .kernels.lpl import resident_steps, sweeping_steps
    from .kernels.solver import solve

    n, classes = problem.input.shape
    normalize = problem.options.normalize
    arguments, groups = _arguments(problem), _groups(problem)
    steps, step_size = problem.steps, _number(problem, problem.options.step_size)
    meta = solver_meta(problem)
    heads = new(problem, n, meta["HEAD"], dtype=torch.int32)
    outcome = new(problem, n, dtype=torch.int32)
    stride = 0 if grad_rows is None else grad_rows.stride(0)
    what = (arguments, groups, steps, step_size, outcome)
    _launch(solve, (n,), *what, heads, wanted, norm, grad_rows, stride, NORMALIZE=normalize, **meta)
    delta = new(problem, n, classes) if wanted.delta is None else wanted.delta
    meta = resident_meta(problem)
    done = meta["ROWS"] if classes <= meta["BLOCK"] else 0
    if n > 1 and problem.input.dtype != torch.float64:
        _solve_groups(problem, what, delta, done)
    if done:
        _launch(resident_steps, (n,), *what, delta, NORMALIZE=normalize, **meta)
    if n > done:
        rowwise = new(problem, 2, n)
        direction = new(problem, n, classes) if normalize else None
        meta = sweeping_meta(problem)
        _launch(sweeping_steps, (n,), *what, delta, rowwise, direction, done, **meta)
    return arguments._replace(delta=delta, slot=groups.slot), outcome


def _solve_groups(problem: Problem, what: tuple[Any, ...], delta: Tensor, resident: int) -> None:
    """δ of the classes with several rows for which that costs less than plain steps, into the row
    of `delta` (N, C) of their first row. `resident`: the most rows that have these in registers.

    In float64 there are none, because what the relaxation leaves would show.
    """
    from .kernels.group_rows import gather_heads, list_groups, split_columns, weigh_rows
    from .kernels.group_solver import finish_groups, move_tail, take_group_steps

    n, classes = problem.input.shape
    arguments, groups, steps, _, outcome = what
    meta = group_meta(problem)
    shared = _shared(problem, -(-classes // meta.block), meta.head, meta.nodes)
    alone, each = (1,), (shared.most,)
    pieces = (min(shared.most * shared.chunks, PROGRAMS),)
    block = min(1024, max(16, 1 << (n - 1).bit_length()))
    listed = (arguments, groups, steps, outcome, shared, n, resident)
    _launch(list_groups, alone, *listed, BLOCK=block)
    _launch(weigh_rows, (n,), *what, shared, resident, **meta.weigh_rows)
    common = (*what[:4], shared)
    _launch(split_columns, pieces, *common, delta, **meta.split_columns)
    _launch(gather_heads, pieces, *common, delta, **meta.gather_heads)
    for turn in range(meta.rounds):
        last = turn == meta.rounds - 1
        _launch(take_group_steps, each, *common, ROUND=turn, **meta.take_group_steps)
        _launch(move_tail, pieces, *common, delta, LAST=last, **meta.move_tail)
    _launch(finish_groups, each, *common, delta, outcome, **meta.finish_groups)


def _shared(problem: Problem, chunks: int, head: int, nodes: int) -> Shared:
    n = problem.input.shape[0]
    most = n // 2

    def indices(*shape: int) -> Tensor:
        return new(problem, *shape, dtype=torch.int32)

    shift, unit, lift, tail, slope, way, inverse = new(problem, 7, n).unbind()
    gains, ways, used, inverses = new(problem, 4, n, nodes).unbind()
    return Shared(
        rows=n,
        most=most,
        chunks=chunks,
        leaders=new(problem, most + 1, dtype=torch.int64),
        shift=shift,
        unit=unit,
        lift=lift,
        tail=tail,
        slope=slope,
        way=way,
        inverse=inverse,
        counts=indices(most, chunks),
        heads=indices(n, head),
        exact=new(problem, n, head),
        change=new(problem, most, head),
        partial=new(problem, chunks, nodes, n),
        squares=new(problem, most, chunks, nodes),
        gains=gains,
        ways=ways,
        used=used,
        inverses=inverses,
        node=new(problem, most, 4, nodes),
        ends=new(problem, most, 2),
    )


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Runs a kernel on the device of its first argument's tensor, if there is anything to do."""
    on = arguments[0]
    if grid[0] > 0:
        with torch.cuda.device_of(on if isinstance(on, Tensor) else on.input):
            kernel[grid](*arguments, **meta, enable_fp_fusion=True)


def _number(problem: Problem, value: float) -> Any:
    """A float argument; triton passes those as float32, which is not enough beside float64."""
    if problem.input.dtype != torch.float64:
        return value
    from triton.language import constexpr

    return constexpr(value)


def _arguments(problem: Problem) -> Arguments:
    """The problem in kernel form, without a δ, what its norm or penalty wants to know of each
    row included."""
    from triton.language import constexpr

    _KERNELS.demand(problem)
    form = ONE_LABEL
    if problem.dense:
        form = DENSE
    elif problem.smooth or problem.other is not None:
        form = LABELS
    options = problem.options

    def unless(off: float, value: float) -> Any:
        return None if value == off else _number(problem, value)

    norm = options.norm_p > 0
    arguments = Arguments(
        input=problem.input,
        input_stride=problem.input.stride(0),
        classes=problem.input.shape[1],
        target=problem.target,
        target_stride=problem.target.stride(0),
        form=constexpr(form),
        spread=constexpr(spread(problem)),
        other=problem.other,
        lam=problem.lam,
        ignore_index=options.ignore_index,
        weight=problem.weight,
        sample_weight=problem.sample_weight,
        smoothing=problem.smoothing,
        label_smoothing=unless(0, options.label_smoothing),
        scale=problem.scale,
        offset=problem.offset,
        margin=problem.margin,
        rows=problem.rows,
        row_index=problem.row_index,
        row_count=None if problem.rows is None else problem.rows.shape[0],
        delta=None,
        slot=None,
        softcap=unless(0, options.softcap),
        norm_p=constexpr(options.norm_p) if norm else None,
        norm_limit=_number(problem, options.norm_limit) if norm else None,
        norm_gain=_number(problem, options.norm_gain) if norm else None,
        norm_offset=_number(problem, options.norm_offset) if norm else None,
        lengths=None,
        penalty=constexpr(options.penalty) if options.penalty else None,
        penalty_margin=_number(problem, options.penalty_margin) if options.penalty else None,
        penalty_unit=_number(problem, options.penalty_unit) if options.penalty else None,
        penalty_strength=_number(problem, options.penalty_strength) if options.penalty else None,
        multiplier=problem.multiplier,
        rho=problem.rho,
        penalties=None,
        inverse_temperature=unless(1, options.inverse_temperature),
        phi=constexpr(options.phi),
        phi_parameter=None if options.phi == LOG else _number(problem, options.phi_parameter),
        z_loss=unless(0, options.z_loss),
    )
    n, meta = problem.input.shape[0], column_meta(problem)
    if norm:
        from .kernels.norms import measure_rows

        lengths = new(problem, n, 3)
        _launch(measure_rows, (n,), arguments, lengths, **meta)
        arguments = arguments._replace(lengths=lengths)
    if options.penalty:
        from .kernels.penalties import penalise_rows

        penalties = new(problem, n, 4)
        _launch(penalise_rows, (n,), arguments, _penalty_weight(problem), penalties, **meta)
        arguments = arguments._replace(penalties=penalties)
    return arguments


def _normalizer(problem: Problem) -> Tensor:
    """0-dim: the summed weights of the rows that count, as reference.normalizer."""
    dtype = accumulate_dtype(problem.input.dtype)
    if problem.dense:
        if problem.sample_weight is None:
            return problem.input.new_full((), problem.input.shape[0], dtype=dtype)
        return problem.sample_weight.sum()

    def weights(label: Tensor, share: Tensor | None) -> Tensor:
        counts = label != problem.options.ignore_index
        if problem.weight is not None:
            # a label out of range has made the loss nan, but must not be followed
            column = label.clamp(0, problem.weight.shape[0] - 1)
            counts = torch.where(counts, problem.weight[column], 0)
        return counts if share is None else counts * share

    total = weights(problem.target, problem.lam)
    if problem.other is not None and problem.lam is not None:
        total = total + weights(problem.other, 1 - problem.lam)
    if problem.sample_weight is not None:
        total = total * problem.sample_weight
    return total.sum(dtype=dtype)


def _penalty_weight(problem: Problem) -> Tensor | None:
    """0-dim: what undoes the weights of a mean, as a penalty's is over the rows that count."""
    if problem.options.reduction != MEAN:
        return None
    norm = _normalizer(problem)
    if problem.dense:
        return norm / problem.input.shape[0]
    counted = problem.target != problem.options.ignore_index
    if problem.other is not None:
        counted = counted | (problem.other != problem.options.ignore_index)
    return norm / counted.sum()


def _groups(problem: Problem) -> Groups:
    """The rows by class, as reference.leaders; without a group to learn: ignored rows, and rows
    with a label out of range."""
    n, classes = problem.input.shape
    target = problem.target
    ignored = target == problem.options.ignore_index
    label = target.masked_fill((target < 0) | (target >= classes), classes + 1)
    label = label.masked_fill(ignored, classes)
    each = torch.arange(n, device=label.device)
    first = label.new_full((classes + 2,), n).scatter_reduce(0, label, each, "amin")
    slot = first[label]
    count = torch.zeros_like(slot).index_add(0, slot, torch.ones_like(slot))[slot]
    ordered, order = slot.sort(stable=True)
    return Groups(slot, count, torch.searchsorted(ordered, slot), order)
