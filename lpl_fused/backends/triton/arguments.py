"""A problem in kernel form."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...algebra.rows import Classes, normalizer, penalty_weight
from ...paths import LEARNING, TARGETS, WEIGHING, Path
from ...phi import LOG
from ...problem import MEAN, Options, Problem, accumulate_dtype
from ..buffers import new
from ..kernels.arguments import (
    DENSE,
    LABELS,
    ONE_LABEL,
    TERMS,
    Arguments,
    Groups,
    Listing,
    Upstream,
)
from ..kernels.launch import by_form, column_meta, grouping_meta, lane_of, phased, row_meta
from . import launching
from .launching import kernels
from .memory import Layout

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


class Form(NamedTuple):
    """What arguments of problems of a form have in common."""

    values: tuple[Any, ...]  # of Arguments, without tensors
    tensors: tuple[tuple[int, int], ...]  # places in Arguments, and in the Problem
    present: Callable[[Problem], tuple[Tensor, ...]]  # all tensors of a Problem
    one_sweep: bool  # it can be done in
    measured: bool  # norms or penalties have to be known of its rows
    plans: launching.Plans
    batch: Layout  # losses of the rows, what counts the programs that are done, a number
    counts: bool  # a mean over rows with a label each
    sweep: dict[str, Any]  # row_meta


@by_form
def form_of(problem: Problem) -> Form:
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
    values = Arguments(
        input=None,
        input_stride=None if stride == width else stride,
        each=constexpr(each),
        phased=constexpr(phased(problem.input)),
        ragged=constexpr(phased(problem.input) or width % each != 0),
        raw=constexpr(features <= _RAW.features),
        classes=width,
        first=None if whole else options.first,
        total=None if whole else problem.classes,
        unless=None,
        terms=None,
        target=None,
        target_stride=None,
        form=constexpr(form),
        spread=constexpr(problem.spread),
        other=None,
        lam=None,
        ignore_index=options.ignore_index,
        weight=None,
        sample_weight=None,
        smoothing=None,
        label_smoothing=besides(0, options.label_smoothing),
        scale=None,
        offset=None,
        margin=None,
        rows=None,
        row_index=None,
        row_count=None,
        delta=None,
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
        multiplier=None,
        rho=None,
        penalties=None,
    )
    tensors = tuple(
        (Arguments._fields.index(name), place)
        for place, name in enumerate(Problem._fields)
        if name in Arguments._fields and isinstance(problem[place], Tensor)
    )
    alone = problem.other is None and problem.lam is None and not problem.dense
    accumulate = accumulate_dtype(problem.input.dtype)
    present = [place for place, part in enumerate(problem[:-1]) if part is not None]
    one_sweep, measured = features <= _SHORTCUT.features, norm or penalty > 0
    return Form(
        tuple(values),
        tensors,
        operator.itemgetter(*present),
        one_sweep,
        measured,
        launching.Plans(),
        Layout([((problem.input.shape[0],), accumulate), ((1,), torch.int32), ((), accumulate)]),
        options.reduction == MEAN and problem.normalizer is None and alone,
        row_meta(problem),
    )


_TERMS, _DELTA, _UNLESS, _STRIDE, _COUNT = map(
    Arguments._fields.index, ("terms", "delta", "unless", "target_stride", "row_count")
)


def arguments_of(
    problem: Problem,
    terms: Tensor | None = None,
    delta: Tensor | None = None,
    unless: Tensor | None = None,
) -> Arguments:
    """The problem with what is known of its rows, and with δ of each."""
    return _arguments(form_of(problem), problem, terms, delta, unless)


def _arguments(
    form: Form,
    problem: Problem,
    terms: Tensor | None,
    delta: Tensor | None,
    unless: Tensor | None,
) -> Arguments:
    values = list(form.values)
    for to, place in form.tensors:
        values[to] = problem[place]
    values[_TERMS], values[_DELTA], values[_UNLESS] = terms, delta, unless
    values[_STRIDE] = problem.target.stride(0)
    values[_COUNT] = row_count(problem)
    return Arguments(*values)


def prepared(
    problem: Problem,
    terms: Tensor | None = None,
    unless: Tensor | None = None,
    form: Form | None = None,
) -> Arguments:
    """The problem with what its norm and its penalty want to know of each row, into `terms` if
    there is a place for them; for what is done in one sweep. `form`: that of the problem, if it was
    looked up."""
    form = form or form_of(problem)
    if not form.one_sweep:
        _SHORTCUT.demand(problem)
    if not form.measured:
        return _arguments(form, problem, None, None, unless)
    n, options = problem.input.shape[0], problem.options
    known = new(problem, n, TERMS) if terms is None else terms
    arguments, weight = _arguments(form, problem, known, None, unless), None
    if options.penalty:
        arguments = arguments._replace(penalties=new(problem, n))
        weight = penalty_weight(problem, normalizer(problem))
    launching.launch(kernels.forward.prepare_rows, (n,), arguments, weight, **column_meta(problem))
    return arguments


def factors_of(upstream: Tensor, norm: Tensor | None) -> Upstream:
    """What rows' gradients are multiplied by, of what `gradient` may be given."""
    if upstream.dim():
        return Upstream(None, upstream, upstream.stride(0))
    return Upstream(norm, upstream, 0)


def row_count(problem: Problem) -> int | None:
    """The one number of Arguments that a form does not know."""
    return None if problem.rows is None else problem.rows.shape[0]


MOST_COMPARED = 16384  # rows: with more of them a sort costs less than to compare each with all


def group_rows(
    problem: Problem,
    arguments: Arguments,
    groups: Groups,
    listing: Listing | None,
    resident: int,
    meta: dict[str, Any] | None = None,
) -> None:
    """`groups` of the rows by class; ignored rows, and rows with a label out of range, have none to
    learn. Which classes are solved, if there is a place for that, `listing`; of at most `resident`
    rows plain steps are taken in registers. `meta`: its grouping_meta, if it was looked up."""
    n = problem.input.shape[0]
    what = arguments, groups, problem.steps, listing, n, resident
    if n <= MOST_COMPARED:
        meta = meta or grouping_meta(problem)
        launching.launch(kernels.grouping.group_rows, (-(-n // meta["ROWS"]),), *what, **meta)
        return
    slot, count = Classes.of(problem)
    ordered, order = slot.sort(stable=True)
    found = slot, count, torch.searchsorted(ordered, slot), order
    for place, part in zip(groups[:4], found, strict=True):
        place.copy_(part)
    groups.tickets.zero_()
    if listing is not None:
        launching.launch(kernels.grouping.list_groups, (1,), *what, num_warps=4)
