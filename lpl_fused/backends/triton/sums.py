"""Sums over the columns of a problem, which may be some of all, and the gradient that is made of
what they settle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...algebra import groups, learned, statistics
from ...algebra.known import Known
from ...algebra.parts import Detail, Kind, Mass, Part, Rivals, Round, Size, Statistics
from ...problem import Problem
from ..buffers import gradients, like, new, of_rows, table_places
from ..contract import Gradients
from ..kernels.arguments import Arguments, Upstream
from ..kernels.arguments import Gradients as Stored
from ..kernels.launch import block_meta, blocks_of, column_meta, sweep_meta
from . import launching
from .arguments import arguments_of, factors_of, form_of, row_count
from .launching import kernels


def reduce(problem: Problem, round: Round, known: Known) -> Part:
    run = kernels.reductions
    kind, n = round.kind, problem.input.shape[0]
    if kind is Kind.GROUP:
        return groups.reduce(problem, round, known, perturbed)
    if kind is Kind.RIVALS:
        return _rivals(problem, known)
    if kind is Kind.SIZE:
        sizes, arguments = _numbers(problem, 4), arguments_of(problem, known.terms)
        launching.launch(run.measure_rows, (n,), arguments, sizes, **column_meta(problem))
        return Size.of(sizes, problem.options.norm_p)
    arguments = _under_delta(problem, known)
    if kind is Kind.MASS:
        masses = _numbers(problem, 10)
        launching.launch(run.mass_rows, (n,), arguments, masses, **sweep_meta(problem))
        return Mass.of(masses)
    if kind is Kind.STATISTICS:
        numbers = _numbers(problem, 5)
        launching.launch(run.statistic_rows, (n,), arguments, numbers, **column_meta(problem))
        return Statistics.of(numbers, *statistics.likely(problem))
    details = _numbers(problem, 5)
    launching.launch(run.detail_rows, (n,), arguments, details, **sweep_meta(problem))
    return Detail.of(details)


def _rivals(problem: Problem, known: Known) -> Part:
    n, width = problem.input.shape
    order, room = learned.order(problem.input.dtype), min(learned.HEADS, width)
    sums, powers = _numbers(problem, 5), _numbers(problem, order)
    columns = new(problem, n, room, dtype=torch.int32).fill_(-1)
    logits = new(problem, n, room).fill_(-torch.inf)
    what = (arguments_of(problem, known.terms), known.threshold, sums, powers, columns, logits)
    launching.launch(
        kernels.reductions.rival_rows, (n,), *what, room, POWERS=order, **column_meta(problem)
    )
    return Rivals.of(sums, powers, columns, logits)


def _numbers(problem: Problem, count: int) -> Tensor:
    return new(problem, problem.input.shape[0], count, dtype=torch.float64)


def _under_delta(problem: Problem, known: Known) -> Arguments:
    return arguments_of(problem, known.terms, learned.delta(problem, known, perturbed))


def perturbed(problem: Problem, known: Known, begin: int, end: int) -> Tensor:
    """z without δ (N, end − begin), accumulate dtype, of the problem's columns from `begin` on."""
    n, meta = problem.input.shape[0], column_meta(problem)
    z = new(problem, n, end - begin)
    grid = (n, -(-(end - begin) // meta["BLOCK"]))
    arguments = arguments_of(problem, known.terms)
    launching.launch(kernels.reductions.perturb_rows, grid, arguments, z, begin, end, **meta)
    return z


def gradient(
    problem: Problem,
    known: Known,
    upstream: Tensor,
    want: Sequence[str],
    out: Tensor | None = None,
    norm: Tensor | None = None,
) -> Gradients:
    n, width = problem.input.shape
    if list(want) == ["input"]:
        grad = like(problem.input) if out is None else out
        meta = block_meta(problem)
        factors, terms = factors_of(upstream, norm), known.terms

        def launches() -> None:
            rows = (_under_delta(problem, known), factors, grad)
            blocks = blocks_of(problem, meta)
            launching.launch(kernels.gradient.gradient_rows, (n, blocks), *rows, **meta)

        if problem.steps is not None:
            launches()
            return Gradients(grad)
        form = form_of(problem)
        tensors = (*form.present(problem), terms, upstream, grad)
        if factors.norm is not problem.normalizer:
            tensors += (factors.norm,)
        kind = "gradient", factors.stride, factors.norm is None, out is None, row_count(problem)
        form.plans.run(kind, tensors, launches)
        return Gradients(grad)
    upstream = of_rows(problem, upstream, norm)
    chunk, tables = table_places(problem, want)
    of_input = out
    if of_input is None and "input" in want:
        of_input = like(problem.input)
    wanted, meta = Stored(input=of_input, **tables), column_meta(problem)
    grid = (-(-n // chunk), -(-width // meta["BLOCK"]))
    what = (_under_delta(problem, known), Upstream(None, upstream, upstream.stride(0)), wanted)
    launching.launch(kernels.gradient.gradient, grid, *what, n, chunk, **meta)
    return gradients(problem, of_input, tables)
