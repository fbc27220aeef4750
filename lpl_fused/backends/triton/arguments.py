"""A problem in kernel form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...algebra.rows import Classes, normalizer, penalty_weight
from ...paths import LEARNING, TARGETS, WEIGHING, Path
from ...phi import LOG
from ...problem import Options, Problem
from ..buffers import new
from ..kernels.arguments import DENSE, LABELS, ONE_LABEL, TERMS, Arguments, Groups, Shared
from ..kernels.launch import column_meta, grouping_meta, lane_of, phased
from . import launching

# what the kernels are told of, and what launchers do about the rest
_KERNELS = Path(
    "triton",
    Problem,
    (
        *{*Arguments._fields} & {*Problem._fields, *Options._fields},
        *("dense", "reduction", "normalizer", "through", *LEARNING),
    ),
)
# whose softmax is of the logits as they are, but for what is learned
_RAW = Path(
    "triton, logits as they are",
    Problem,
    (*WEIGHING, *TARGETS, *LEARNING, "z_loss", "first", "classes"),
)
# what is done in one sweep has all columns
_SHORTCUT = Path("triton, shortcut", Problem, _KERNELS.features - {"first", "classes"})


def arguments_of(
    problem: Problem,
    terms: Tensor | None = None,
    delta: Tensor | None = None,
    unless: Tensor | None = None,
) -> Arguments:
    """The problem with what is known of its rows, and with δ of each."""
    from triton.language import constexpr

    features = problem.features
    if not features <= _KERNELS.features:
        _KERNELS.demand(problem)
    form = DENSE if problem.dense else ONE_LABEL if problem.one_label else LABELS
    options, width = problem.options, problem.input.shape[1]
    whole = problem.classes == width
    stride, each = problem.input.stride(0), lane_of(problem.input)

    def number(value: float) -> Any:
        return launching.number(problem, value)

    def besides(off: float, value: float) -> Any:
        return None if value == off else number(value)

    norm, penalty = options.norm_p > 0, options.penalty
    return Arguments(
        input=problem.input,
        input_stride=None if stride == width else stride,
        each=constexpr(each),
        phased=constexpr(phased(problem.input)),
        ragged=constexpr(phased(problem.input) or width % each != 0),
        raw=constexpr(features <= _RAW.features),
        classes=width,
        first=None if whole else options.first,
        total=None if whole else problem.classes,
        unless=unless,
        terms=terms,
        target=problem.target,
        target_stride=problem.target.stride(0),
        form=constexpr(form),
        spread=constexpr(problem.spread),
        other=problem.other,
        lam=problem.lam,
        ignore_index=options.ignore_index,
        weight=problem.weight,
        sample_weight=problem.sample_weight,
        smoothing=problem.smoothing,
        label_smoothing=besides(0, options.label_smoothing),
        scale=problem.scale,
        offset=problem.offset,
        margin=problem.margin,
        rows=problem.rows,
        row_index=problem.row_index,
        row_count=None if problem.rows is None else problem.rows.shape[0],
        delta=delta,
        slot=None,
        softcap=besides(0, options.softcap),
        norm_p=constexpr(options.norm_p) if norm else None,
        norm_limit=number(options.norm_limit) if norm else None,
        norm_gain=number(options.norm_gain) if norm else None,
        norm_offset=number(options.norm_offset) if norm else None,
        inverse_temperature=besides(1, options.inverse_temperature),
        phi=constexpr(options.phi),
        phi_parameter=None if options.phi == LOG else number(options.phi_parameter),
        z_loss=besides(0, options.z_loss),
        penalty=constexpr(penalty) if penalty else None,
        penalty_margin=number(options.penalty_margin) if penalty else None,
        penalty_unit=number(options.penalty_unit) if penalty else None,
        penalty_strength=number(options.penalty_strength) if penalty else None,
        multiplier=problem.multiplier,
        rho=problem.rho,
        penalties=None,
    )


def prepared(
    problem: Problem, terms: Tensor | None = None, unless: Tensor | None = None
) -> Arguments:
    """The problem with what its norm and its penalty want to know of each row, into `terms` if
    there is a place for them; for what is done in one sweep."""
    _SHORTCUT.demand(problem)
    n, options = problem.input.shape[0], problem.options
    if not (options.norm_p > 0 or options.penalty):
        return arguments_of(problem, unless=unless)
    from ..kernels.forward import prepare_rows

    known = new(problem, n, TERMS) if terms is None else terms
    arguments, weight = arguments_of(problem, known, unless=unless), None
    if options.penalty:
        arguments = arguments._replace(penalties=new(problem, n))
        weight = penalty_weight(problem, normalizer(problem))
    launching.launch(prepare_rows, (n,), arguments, weight, **column_meta(problem))
    return arguments


MOST_COMPARED = 16384  # rows: with more of them a sort costs less than to compare each with all


def group_rows(
    problem: Problem, arguments: Arguments, groups: Groups, shared: Shared | None, resident: int
) -> None:
    """`groups` of the rows by class; ignored rows, and rows with a label out of range, have none to
    learn. Which classes are solved, if there is a place for that, `shared`; of at most `resident`
    rows plain steps are taken in registers."""
    from ..kernels.grouping import group_rows as kernel
    from ..kernels.grouping import list_groups

    n = problem.input.shape[0]
    what = arguments, groups, problem.steps, shared, n, resident
    if n <= MOST_COMPARED:
        meta = grouping_meta(problem)
        launching.launch(kernel, (-(-n // meta["ROWS"]),), *what, **meta)
        return
    slot, count = Classes.of(problem)
    ordered, order = slot.sort(stable=True)
    found = slot, count, torch.searchsorted(ordered, slot), order
    for place, part in zip(groups[:4], found, strict=True):
        place.copy_(part)
    if shared is not None:
        launching.launch(list_groups, (1,), *what, num_warps=4)
