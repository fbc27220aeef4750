"""The launches of a learned perturbation: rows that their solver can solve, classes with several
rows, plain steps for what both have left.

The logits are read by the forward and once more by the backward. In between there are some numbers
of each row and each class (Saved); δ, N×C, is made only where it is all that is wanted, where
the solvers do not know the loss under it (_SOLVED), and where logits are few: then all classes take
plain steps, and the gradient is made of their δ (Few).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...paths import LEARNING, SCALING, WEIGHING, Path
from ...problem import MEAN, Problem, accumulate_dtype
from ..buffers import new
from ..kernels.arguments import (
    NOT_REDUCED,
    NUMBERS,
    TERMS,
    Arguments,
    Groups,
    Listing,
    Members,
    Reduced,
    Shared,
    State,
    Upstream,
    Wanted,
)
from ..kernels.launch import (
    GroupForm,
    GroupMeta,
    block_meta,
    blocks_of,
    by_form,
    gradients_meta,
    group_form,
    group_meta,
    grouping_meta,
    head_of,
    listing_meta,
    moved_meta,
    plain_meta,
    power_of_two,
    solver_meta,
    steps_meta,
    sweep_meta,
)
from . import launching
from .arguments import MOST_COMPARED, form_of, group_rows, prepared
from .launching import kernels, number
from .memory import Layout, Part, size_of

# rows of which the solver gives all that is wanted, not only their δ
_SOLVED = Path(
    "triton, solved rows",
    Problem,
    (*WEIGHING, "z_loss", *SCALING, "softcap", *LEARNING, "through"),
)
PROGRAMS = 2048  # that share the work of a kernel whose size the host does not know
# Logits of a batch whose classes all take plain steps: three launches for eight, half as many where
# none is spared. The most that is lost is what a class of all rows costs the one program that takes
# them (predicted: 1.6 ms for 50 steps, mostly far less).
FEW_LOGITS = 1 << 17
# Rows of a batch whose programs find their class each by itself, at most: each reads all labels, of
# so few less than its logits.
FINDING = 512
# Logits of a batch whose gradients are written by one launch, not by three: its kernel has room for
# two programs where that of rows alone has six, so that what memory takes 2 to 4 µs for may take
# twice that (predicted), less than two launches.
ONE_LAUNCH = 1 << 21
# Programs that take plain steps, each with memory for δ of a class: so many numbers they may have
# beside an eighth of N×C
MOST_PLAIN, ENOUGH_NUMBERS = 256, 1 << 18


class How:
    """How the perturbation of problems of a form is learned."""

    def __init__(self, problem: Problem) -> None:
        n, classes = problem.input.shape
        self.rows = n
        # the solver gives all that is wanted of rows, not only their δ
        self.solves = _SOLVED.serves(problem)
        self.form = form_of(problem)
        self.grouping = grouping_meta(problem)
        number = accumulate_dtype(problem.input.dtype)
        self.solver, self.plain = solver_meta(problem), plain_meta(problem)
        self.finding = {"GROUPING": power_of_two(n, 16, 256) if n <= FINDING else 0}
        self.weighing = {**self.solver, **self.finding}
        self.steps, self.moved = steps_meta(self.solver), moved_meta(problem, self.solver)
        self.stepping = {**self.steps, **listing_meta(self.steps)}
        self.blocks = blocks_of(problem, self.moved)
        self.alone = {**self.plain, "SUMMED": min(1024, 256 * int(self.plain["num_warps"]))}
        # rows of a class whose plain steps are taken in registers
        few = classes <= self.plain["BLOCK"]
        self.resident = int(self.plain["ROWS"]) if few else 0
        # … where all classes take them: four times as many, by steps of their own, for which a row
        # alone is not to pay
        self.many = min(4 * self.resident, power_of_two(n, 1, 1 << 14))
        self.groups = group_meta(problem) if solves_groups(problem) else None
        self.chunks = self.pieces = 0
        # programs that take plain steps where δ is not wanted
        self.programs = min(max(n // 8, ENOUGH_NUMBERS // max(1, classes), 1), n, MOST_PLAIN)
        directions = self.programs if problem.options.normalize else 0
        scratch = _scratch(n, self.programs, directions, classes, number)
        self.backward_scratch = Layout(scratch)
        if self.groups is not None:
            head, nodes = self.groups.head, self.groups.nodes
            self.chunks = -(-classes // self.groups.block)
            self.pieces = min(n // 2 * self.chunks, PROGRAMS)
            scratch += _groups_scratch(n, number, head, nodes, self.chunks)
        self.saved = Layout(_saved_parts(problem, self.solver["HEAD"], self.groups))
        self.scratch = Layout(scratch)
        self.at_once = None
        if n * classes <= ONE_LAUNCH:
            self.at_once = gradients_meta(self.moved, self.plain, self.groups)
        self.few = None
        if is_few(problem):
            self.few = Layout(_few_parts(problem))
        self.left_bytes = (self.few or self.saved).size  # by the forward, for a backward
        self.block = block_meta(problem)
        self.few_blocks = blocks_of(problem, self.block)
        self.plans = launching.Plans()


class OfTrace(How):
    """As much of that as a trace asks for, whose sizes are no numbers: all else would make them
    such, and what is compiled be for these alone."""

    def __init__(self, problem: Problem) -> None:
        self.solves = _SOLVED.serves(problem)
        if is_few(problem):
            parts = _few_parts(problem)
        else:
            head = head_of(problem.input.shape[1])
            groups = group_form(problem) if solves_groups(problem) else None
            parts = _saved_parts(problem, head, groups)
        self.left_bytes = size_of(parts)


def _how(problem: Problem) -> How:
    numbers = all(type(size) is int for size in problem.input.shape)
    return How(problem) if numbers else OfTrace(problem)


def _other_than_form() -> tuple[Any, ...]:
    metas = solver_meta, plain_meta, group_meta
    return (
        *metas,
        MOST_COMPARED,
        MOST_PLAIN,
        ENOUGH_NUMBERS,
        FINDING,
        FEW_LOGITS,
        ONE_LAUNCH,
        PROGRAMS,
    )


how = functools.partial(by_form, besides=_other_than_form)(_how)


class Scratch(NamedTuple):
    """What no backward of its own wants to know."""

    rowwise: Tensor  # (2, N)
    work: Tensor  # (programs, C): for plain steps, where δ is not wanted
    direction: Tensor | None  # likewise, where steps are normalised
    losses: Tensor  # (N,), where nobody asks for them


class Saved(NamedTuple):
    """What the forward leaves for a backward of its own, parts of one memory."""

    rows: State
    groups: Groups
    shared: Shared | None  # classes with several rows, if they are solved
    how: How
    scratch: Scratch
    solving: Shared | None = None  # `shared` with what is needed until they are solved

    @staticmethod
    def within(how: How, memory: Tensor, scratch: Tensor, solves: bool = True) -> Saved:
        """The parts of memory as `new_saved` makes it; unless it `solves`, with the scratch of
        `new_scratch`."""
        tickets, slot, count, begin, order, *parts = how.saved.within(memory)
        numbers, heads, changes, outcome, *of_groups = parts
        layout = how.scratch if solves else how.backward_scratch
        rowwise, work, direction, losses, *solving = layout.within(scratch)
        shared = whole = None
        if of_groups:
            n = how.rows
            shared = Shared(n, n // 2, how.chunks, *of_groups)
            whole = Shared(*shared[:_KEPT], *solving) if solving else None
        return Saved(
            State(numbers, heads, changes, outcome),
            Groups(slot, count, begin, order, tickets),
            shared,
            how,
            Scratch(rowwise, work, direction if len(direction) else None, losses),
            whole,
        )


def _saved_parts(
    problem: Problem, head: int, groups: GroupMeta | GroupForm | None
) -> tuple[Part, ...]:
    (n, classes), number = problem.input.shape, accumulate_dtype(problem.input.dtype)
    parts = _rows_saved(n, head, number)
    if groups is not None:
        chunks = -(-classes // groups.block)
        parts += _groups_saved(n, number, groups.head, groups.nodes, chunks)
    return parts


def _rows_saved(n: int, head: int, number: torch.dtype) -> tuple[Part, ...]:
    return (
        ((2,), torch.int32),
        *[((n,), torch.int64)] * 4,
        ((n, NUMBERS), number),
        *(((n, head), torch.int32), ((n, head), number), ((n,), torch.int32)),
    )


def _groups_saved(
    n: int, number: torch.dtype, head: int, nodes: int, chunks: int
) -> tuple[Part, ...]:
    most = n // 2
    return (
        *(((most + 1,), torch.int64), ((most,), torch.int32), ((most,), torch.int32)),
        *(((most, chunks), torch.int32), ((n, head), torch.int32)),
        *[((n,), number)] * 4,
        *[((n, nodes), number)] * 2,
        *(((most, head), number), ((most, 4, nodes), number), ((most, 2), number)),
    )


def is_few(problem: Problem) -> bool:
    """Whether all classes take plain steps, with all that is wanted of their rows."""
    n, classes = problem.input.shape
    return 0 < n <= MOST_COMPARED and n * classes <= FEW_LOGITS and _SOLVED.serves(problem)


def solves_groups(problem: Problem) -> bool:
    """Whether classes with several rows are solved: not in float64, where what the relaxation
    leaves would show, and not where there is little to be gained."""
    n, classes = problem.input.shape
    if n <= 1 or problem.input.dtype == torch.float64 or is_few(problem):
        return False
    return n * classes > FEW_LOGITS // 2


def new_saved(problem: Problem, how: How) -> tuple[Tensor, Tensor]:
    """Memory for `Saved`, and scratch for a forward."""
    memory = new(problem, how.saved.size, dtype=torch.uint8)
    if how.groups is not None and how.finding["GROUPING"] == 0:
        how.saved.part(memory, 0).zero_()  # tickets of programs that group rows
    return memory, new(problem, how.scratch.size, dtype=torch.uint8)


def new_state(problem: Problem, how: How) -> tuple[Tensor, Tensor | None]:
    """Memory for what the forward leaves, and scratch, if that takes any."""
    if how.few is None:
        return new_saved(problem, how)
    return new(problem, how.few.size, dtype=torch.uint8), None


def new_scratch(problem: Problem, how: How) -> Tensor | None:
    """For a backward alone."""
    if how.few is not None:
        return None
    return new(problem, how.backward_scratch.size, dtype=torch.uint8)


def take_steps(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    losses: Tensor | None = None,
) -> None:
    """Takes all steps that the solvers can; where losses (N,) are wanted they know them, and what
    gradients are made of. The classes that are left take theirs in `finish`."""
    n, how = problem.input.shape[0], saved.how
    shared = saved.solving
    groups, run = saved.groups, kernels.solver
    finds = how.finding["GROUPING"] > 0
    members = listing = None
    if shared is not None:
        members = Members(shared.shift, shared.unit, shared.lift)
        listing = Listing(shared.most, shared.leaders, shared.filled, shared.tickets)
    if not finds:
        group_rows(problem, arguments, groups, listing, how.resident, how.grouping)
    kind = {"NORMALIZE": problem.options.normalize}
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = arguments, groups, steps, step_size, saved.rows
    beside = n, how.resident, losses
    launching.launch(run.weigh_rivals, (n,), *what, members, *beside, **kind, **how.weighing)
    # where rows find their class by themselves a program more lists classes
    listed = listing if finds else None
    programs = n if listed is None else n + 1
    launching.launch(run.step_rows, (programs,), *what, listed, *beside, **kind, **how.stepping)
    if shared is not None:
        of_groups = arguments, groups, steps, step_size, shared
        _solve_groups(how, of_groups, saved.rows.outcome, losses)


def finish(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    wanted: Wanted,
    upstream: Upstream,
    reduced: Reduced = NOT_REDUCED,
) -> None:
    """Plain steps for the classes that the solvers have left, and what is wanted of their rows: δ
    (N, C), or losses and gradients. At last the loss of the batch, if there is a place for it."""
    n, how, scratch = problem.input.shape[0], saved.how, saved.scratch
    by_row, normalize = wanted.delta is not None, problem.options.normalize
    programs, work, direction = how.programs, scratch.work, scratch.direction
    if by_row:
        programs, work = min(n, MOST_PLAIN), wanted.delta
        direction = new(problem, *problem.input.shape) if normalize else None
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (arguments, saved.groups, steps, step_size, saved.rows.outcome, work)
    whose = wanted._replace(delta=None) if by_row else wanted, upstream, reduced
    launching.launch(
        kernels.lpl.plain_steps,
        (programs,),
        *what,
        scratch.rowwise,
        direction,
        *whose,
        n,
        how.resident,
        BY_ROW=by_row,
        NORMALIZE=normalize,
        MANY=0,
        **how.alone,
    )


def move(
    problem: Problem, arguments: Arguments, saved: Saved, upstream: Upstream, wanted: Wanted
) -> None:
    """The gradient of rows that the solvers have solved, or their δ."""
    n, how = problem.input.shape[0], saved.how
    whither = upstream, wanted.grad, wanted.delta
    grid = (n, how.blocks)
    kernel = kernels.solver.move_rows
    launching.launch(kernel, grid, arguments, saved.groups, saved.rows, *whither, **how.moved)
    if saved.shared is not None:
        _move_groups(problem, arguments, saved, *whither)


def _move_groups(
    problem: Problem,
    arguments: Arguments,
    saved: Saved,
    upstream: Upstream,
    grad: Tensor | None,
    delta: Tensor | None,
) -> None:
    """The same of classes with several rows."""
    how = saved.how
    assert how.groups is not None
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = (arguments, saved.groups, steps, step_size, saved.shared, saved.rows.outcome)
    kernel, meta = kernels.group_solver.move_groups, how.groups.move_groups
    launching.launch(kernel, (how.pieces,), *what, upstream, grad, delta, **meta)


def row_stats(problem: Problem, arguments: Arguments, saved: Saved, wanted: Wanted) -> None:
    """Statistics of rows whose steps are taken: where their class is theirs from what these have
    left, else under δ."""
    rows, how = (problem.input.shape[0],), saved.how
    sums = {"HEAD": how.solver["HEAD"], "ORDER": how.solver["ORDER"], **sweep_meta(problem)}
    launching.launch(kernels.stats.row_stats, rows, arguments, saved.rows, wanted, **sums)
    delta = new(problem, *problem.input.shape)
    if saved.shared is not None:
        _move_groups(problem, arguments, saved, Upstream(), None, delta)
    finish(problem, arguments, saved, Wanted(delta=delta), Upstream())
    moved = arguments._replace(delta=delta, slot=saved.groups.slot)
    others = wanted._replace(outcome=saved.rows.outcome)
    kernel, meta = kernels.forward.forward, how.form.sweep
    launching.launch(kernel, rows, moved, Upstream(), others, NOT_REDUCED, None, **meta)


def _with_terms(problem: Problem, arguments: Arguments) -> Arguments:
    """With a place for the shift of each row's terms, which the steps leave there: what is taken
    off z before δ is added."""
    if arguments.terms is not None:
        return arguments
    return arguments._replace(terms=new(problem, problem.input.shape[0], TERMS))


def with_learned(
    problem: Problem, terms: Tensor | None = None, unless: Tensor | None = None
) -> tuple[Arguments, Tensor]:
    """The problem, prepared, with δ (N, C) and, as the shift of its terms, what is taken off a row
    before δ is added; and what the solvers made of each row (N,)."""
    found = how(problem)
    arguments = _with_terms(problem, prepared(problem, terms, unless, found.form))
    delta = new(problem, *problem.input.shape)
    saved = Saved.within(found, *new_saved(problem, found))
    take_steps(problem, arguments, saved)
    wanted = Wanted(delta=delta)
    move(problem, arguments, saved, Upstream(), wanted)
    finish(problem, arguments, saved, wanted, Upstream())
    slot, outcome = saved.groups.slot, saved.rows.outcome
    return arguments._replace(delta=delta, slot=slot), outcome


def solve(
    problem: Problem,
    saved: Saved,
    losses: Tensor,
    unless: Tensor | None = None,
    return_stats: bool = False,
) -> Arguments:
    """Takes the steps of a problem that the solver solves: the losses (N,) of its rows, but for
    classes that are left, which `finish`, or `gradient`, has. (The problem, prepared: for
    `row_stats`, if `return_stats`.)"""
    arguments = prepared(problem, None, unless, saved.how.form)
    if return_stats:
        arguments = _with_terms(problem, arguments)
    take_steps(problem, arguments, saved, losses)
    return arguments


def gradient(
    problem: Problem, arguments: Arguments, saved: Saved, upstream: Upstream, grad: Tensor
) -> None:
    """grad (N, C) of what `solve` has left. Plain steps are taken anew."""
    wanted, how = Wanted(grad=grad), saved.how
    if how.at_once is None:
        move(problem, arguments, saved, upstream, wanted)
        finish(problem, arguments, saved, wanted, upstream)
        return
    n, scratch = how.rows, saved.scratch
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    what = arguments, saved.groups, steps, step_size, saved.rows, saved.shared
    whither = scratch.work, scratch.rowwise, scratch.direction, wanted, upstream
    programs = how.pieces + how.programs + n * how.blocks
    launching.launch(
        kernels.beside.move_all,
        (programs,),
        *what,
        *whither,
        *(n, how.resident, how.pieces, how.programs),
        BLOCKS=how.blocks,
        NORMALIZE=problem.options.normalize,
        **how.at_once,
    )


class Few(NamedTuple):
    """What is known of the rows of few logits, parts of one memory; of it the backward wants δ,
    `terms`, and the slots of `groups`."""

    delta: Tensor  # (N, C): of a class in the row of the first of its rows
    terms: Tensor  # (N, TERMS)
    groups: Groups
    rowwise: Tensor  # (2, N): scratch
    losses: Tensor  # (N,)
    direction: Tensor | None  # (N, C): scratch, where steps are normalised

    @staticmethod
    def within(how: How, memory: Tensor) -> Few:
        assert how.few is not None
        delta, terms, *groups, rowwise, losses, direction = how.few.within(memory)
        scratch = direction if len(direction) else None
        return Few(delta, terms, Groups(*groups), rowwise, losses, scratch)


def _few_parts(problem: Problem) -> tuple[Part, ...]:
    (n, classes), number = problem.input.shape, accumulate_dtype(problem.input.dtype)
    normalize = problem.options.normalize
    return (
        ((n, classes), number),
        ((n, TERMS), number),
        *[((n,), torch.int64)] * 4,
        ((2,), torch.int32),
        *(((2, n), number), ((n,), number), ((n if normalize else 0, classes), number)),
    )


def take_all(
    problem: Problem,
    how: How,
    few: Few,
    losses: Tensor,
    reduced: Reduced = NOT_REDUCED,
    unless: Tensor | None = None,
) -> Arguments:
    """Plain steps of all classes: `losses` (N,) of their rows, and that of the batch, if there is a
    place for it. (The problem as `moved`.)"""
    n, normalize = how.rows, problem.options.normalize
    arguments = prepared(problem, None, unless, how.form)
    group_rows(problem, arguments, few.groups, None, how.resident, how.grouping)
    steps, step_size = problem.steps, number(problem, problem.options.step_size)
    launching.launch(
        kernels.lpl.plain_steps,
        (min(n, MOST_PLAIN),),
        *(arguments, few.groups, steps, step_size, None, few.delta, few.rowwise, few.direction),
        *(Wanted(losses=losses, terms=few.terms), Upstream(), reduced, n, how.resident),
        BY_ROW=True,
        NORMALIZE=normalize,
        MANY=how.many,
        **how.alone,
    )
    return _moved(arguments, few)


def moved(problem: Problem, how: How, few: Few) -> Arguments:
    """The problem as its steps have left it."""
    return _moved(prepared(problem, form=how.form), few)


def _moved(arguments: Arguments, few: Few) -> Arguments:
    return arguments._replace(delta=few.delta, terms=few.terms, slot=few.groups.slot)


def few_gradient(moved: Arguments, how: How, upstream: Upstream, grad: Tensor) -> None:
    """grad (N, C) of a problem as `moved`."""
    grid, kernel = (how.rows, how.few_blocks), kernels.gradient.gradient_rows
    launching.launch(kernel, grid, moved, upstream, grad, **how.block)


def few_stats(moved: Arguments, how: How, wanted: Wanted) -> None:
    """Statistics of the rows of a problem as `moved`."""
    what = moved, Upstream(), wanted, NOT_REDUCED, None
    launching.launch(kernels.forward.forward, (how.rows,), *what, **how.form.sweep)


def reduction(problem: Problem) -> tuple[Reduced, Tensor | None]:
    """Where the loss of a batch goes, and what it is divided by, if it is."""
    averages = problem.options.reduction == MEAN
    norm = new(problem) if averages and problem.normalizer is None else None
    reduced = Reduced(new(problem), norm, problem.normalizer)
    return reduced, problem.normalizer if norm is None else norm


def _solve_groups(how: How, what: tuple[Any, ...], outcome: Tensor, losses: Tensor | None) -> None:
    """All steps of the classes with several rows for which that costs less than plain ones."""
    meta, pieces = how.groups, (how.pieces,)
    assert meta is not None
    launching.launch(kernels.group_solver.split_columns, pieces, *what, **meta.split_columns)
    kernel = kernels.group_solver.move_tail
    for turn in range(meta.rounds):
        which = {"ROUND": turn, "LAST": turn == meta.rounds - 1}
        launching.launch(kernel, pieces, *what, outcome, losses, **which, **meta.move_tail)


# fields of Shared before those that only the solving needs
_KEPT = Shared._fields.index("listed")


def _groups_scratch(
    n: int, number: torch.dtype, head: int, nodes: int, chunks: int
) -> tuple[Part, ...]:
    most = n // 2
    return (
        ((most, head), torch.int32),
        *[((n,), number)] * 6,
        *(((n, head), number), ((chunks, nodes, n), number), ((most, chunks, nodes), number)),
        *[((n, nodes), number)] * 2,
    )


def _scratch(
    n: int, programs: int, directions: int, classes: int, number: torch.dtype
) -> tuple[Part, ...]:
    shapes = (2, n), (programs, classes), (directions, classes), (n,)
    return tuple((shape, number) for shape in shapes)
