"""Classes with several rows, made ready for group_solver.py: which of them are solved, their rows
in units of their rivals' mass, and their exact classes.

The work of one class is spread over programs by chunks of BLOCK columns. How many classes there are
is known on the device alone: a fixed number of programs takes the pieces of work in turn.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .algebra import read_logits, read_row
from .elementary import exp, scales_exactly
from .lpl import GROUP, read_group, read_tile
from .rows import finite_shift
from .solver import sweep_rivals

TAIL_DOSE = tl.constexpr(0.02)  # a class of the tail has a mean q of at most this over its dose
LARGEST_LIFT = tl.constexpr(80.0)  # exp(80) is a float still
RESIDENT_STEPS = tl.constexpr(16)
SWEEPING_STEPS = tl.constexpr(2)
SMALL = tl.constexpr(1 << 18)


@triton.jit
def is_worth_it(count, steps, classes, resident_rows):
    """Whether a class is solved, or plain steps cost less.

    By estimated instructions per logit, neither counted nor timed: the solver takes some 200, in
    seven sweeps that all programs share, a plain step in registers 12. One that sweeps takes 30,
    in two sweeps by the one program that a class has: only where the class is small, too, and few
    steps are to be taken, is that less.
    """
    resident = (count <= resident_rows) & (steps <= RESIDENT_STEPS)
    swept = (steps <= SWEEPING_STEPS) & (count * classes <= SMALL)
    return (resident | swept) == 0


@triton.jit
def list_groups(
    problem, groups, steps, outcome, shared, n_rows, resident_rows, BLOCK: tl.constexpr
):  # fmt: skip
    """leaders (G + 1,) of the classes to be solved, in the order of their first rows, and their
    number. One program.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    listed = tl.full((), 0, tl.int64)
    start = 0
    while start < n_rows:
        index = start + tl.arange(0, BLOCK)
        inside = index < n_rows
        leads = tl.load(outcome + index, mask=inside, other=-1) == GROUP
        leads &= tl.load(groups.slot + index, mask=inside, other=-1) == index
        column = tl.load(problem.target + index, mask=leads, other=0)
        magnitude = tl.abs(tl.load(steps + column, mask=leads, other=0))
        count = tl.load(groups.count + index, mask=leads, other=0)
        chosen = leads & is_worth_it(count, magnitude, problem.classes, resident_rows)
        place = listed + tl.cumsum(chosen.to(tl.int64), 0) - 1
        tl.store(shared.leaders + place, index.to(tl.int64), mask=chosen)
        listed += tl.sum(chosen.to(tl.int64), 0)
        start += BLOCK
    tl.store(shared.leaders + shared.most, listed)


@triton.jit
def weigh_rows(
    problem, groups, steps, step_size, outcome, shared, resident_rows, BLOCK: tl.constexpr
):  # fmt: skip
    """shift, unit and lift of each row of a class to be solved. One program per row."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    place = tl.program_id(0).to(tl.int64)
    index = tl.load(groups.order + place)
    if tl.load(outcome + index) != GROUP:
        return
    leader = tl.load(groups.slot + index)
    group = read_group(leader, problem, groups, steps, step_size, tl.float32)
    if is_worth_it(group.count, group.steps, problem.classes, resident_rows) == 0:
        return

    _, row = read_row(index, problem, tl.float32)
    own = read_logits(row, row.column, problem)[1]
    # an index of a table's row that means nothing makes the whole class nan
    own = tl.where(row.lost, float("nan"), own)
    maximum, mass = sweep_rivals(row, problem, BLOCK)
    shift = finite_shift(maximum)
    # without rivals p_y = 1, and no step moves anything; without anything it is nan
    lift = tl.where(mass == 0, own - own, own - shift - tl.log(mass))
    tl.store(shared.shift + place, shift)
    tl.store(shared.unit + place, tl.where(mass == 0, 0, 1 / mass))
    tl.store(shared.lift + place, tl.where(lift > LARGEST_LIFT, LARGEST_LIFT, lift))


@triton.jit
def read_shares(group, first, columns, problem, groups, shared, ROWS: tl.constexpr):
    """q (ROWS, BLOCK) of the group's rows from its `first` on; 0 at the target and beyond."""
    z = read_tile(group, first, columns, problem, groups, ROWS)
    member = first + tl.arange(0, ROWS)
    place = group.begin + member
    shift = tl.load(shared.shift + place, mask=member < group.count, other=float("inf"))
    unit = tl.load(shared.unit + place, mask=member < group.count, other=0)
    return tl.where(columns == group.column, 0, exp(z - shift[:, None]) * unit[:, None])


@triton.jit
def listed_group(number, problem, groups, steps, step_size, shared):
    """A Group by its number in `leaders`."""
    leader = tl.load(shared.leaders + number)
    return read_group(leader, problem, groups, steps, step_size, tl.float32)


@triton.jit
def tail_threshold(group, step_size, classes, HEAD: tl.constexpr):
    """The largest mean q of the tail: as its dose lets it, but with room for all above it."""
    # a constant divided by a tensor is a constant to Triton 3.7's interpreter
    threshold = tl.maximum(1 / (step_size * group.steps) * TAIL_DOSE, 1.0 / HEAD)
    return tl.where(classes > HEAD, threshold, -1)


@triton.jit
def split_columns(
    problem, groups, steps, step_size, shared, delta,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tells exact classes from the tail, by the mean of q; sums q and q·b over the tail.

    The exact classes of a chunk are counted, and listed where its δ will stand. A piece of work is
    a chunk of a class: (counts, list, two of `partial` for each row, `squares`).
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    item = tl.program_id(0).to(tl.int64)
    items = tl.load(shared.leaders + shared.most) * shared.chunks
    while item < items:
        number = item // shared.chunks
        chunk = item % shared.chunks
        group = listed_group(number, problem, groups, steps, step_size, shared)
        lanes = tl.arange(0, BLOCK)[None, :]
        columns = chunk.to(tl.int32) * BLOCK + lanes
        mean = tl.zeros((1, BLOCK), tl.float32)
        b = tl.zeros((1, BLOCK), tl.float32)
        q = tl.zeros((ROWS, BLOCK), tl.float32)
        first = group.count * 0
        while first < group.count:
            q = read_shares(group, first, columns, problem, groups, shared, ROWS)
            member = first + tl.arange(0, ROWS)
            here = shared.lift + group.begin + member
            lift = tl.load(here, mask=member < group.count, other=0)
            mean += tl.sum(q, 0)[None, :]
            b += tl.sum(q / (1 + tl.exp(lift))[:, None], 0)[None, :]
            first += ROWS
        b /= group.count
        threshold = tail_threshold(group, step_size, problem.classes, HEAD)
        chosen = (mean > threshold * group.count) & (columns < problem.classes)
        chosen &= columns != group.column
        found = chosen.to(tl.int32)
        here = delta + group.leader * problem.classes + chunk * BLOCK
        tl.store(here + tl.cumsum(found, 1) - 1, lanes.to(tl.float32), mask=chosen)
        tl.store(shared.counts + item, tl.sum(found))
        b = tl.where(chosen, 0, b)
        if NORMALIZE:
            tl.store(shared.squares + item * NODES, tl.sum(b * b))
        # the last rows are still at hand
        while first > 0:
            first -= ROWS
            tail = tl.sum(tl.where(chosen, 0, q), 1)
            store_partial(group, first, chunk, 0, tail, shared, NODES, ROWS)
            slope = tl.sum(q * b, 1)
            store_partial(group, first, chunk, 1, slope, shared, NODES, ROWS)
            if first > 0:
                q = read_shares(group, first - ROWS, columns, problem, groups, shared, ROWS)
        item += tl.num_programs(0)


@triton.jit
def store_partial(
    group, first, chunk, node, values, shared, NODES: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Stores (ROWS,) sums over a chunk."""
    member = first + tl.arange(0, ROWS)
    here = (chunk * NODES + node) * shared.rows + group.begin + member
    tl.store(shared.partial + here, values, mask=member < group.count)


@triton.jit
def gather_heads(
    problem, groups, steps, step_size, shared, delta,
    HEAD: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """heads and exact: the exact classes of a class, in their order, and their q."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    item = tl.program_id(0).to(tl.int64)
    items = tl.load(shared.leaders + shared.most) * shared.chunks
    while item < items:
        count = tl.load(shared.counts + item)
        if count > 0:
            number = item // shared.chunks
            chunk = item % shared.chunks
            group = listed_group(number, problem, groups, steps, step_size, shared)
            before = count_exact(shared.counts + number * shared.chunks, chunk)
            list_start = delta + group.leader * problem.classes + chunk * BLOCK
            t = 0
            while t < count:
                lanes = t + tl.arange(0, LANES)
                column = tl.load(list_start + lanes, mask=lanes < count, other=0).to(tl.int32)
                # beyond the last there is no column
                column += chunk.to(tl.int32) * BLOCK
                columns = tl.where(lanes < count, column, problem.classes)
                place = group.begin * HEAD + before + lanes
                tl.store(shared.heads + place, columns, mask=lanes < count)
                first = group.count * 0
                while first < group.count:
                    q = read_shares(group, first, columns[None, :], problem, groups, shared, ROWS)
                    member = first + tl.arange(0, ROWS)
                    here = place[None, :] + member[:, None] * HEAD
                    mask = (member < group.count)[:, None] & (lanes < count)[None, :]
                    tl.store(shared.exact + here, q, mask=mask)
                    first += ROWS
                t += LANES
        item += tl.num_programs(0)


@triton.jit
def count_exact(counts, chunks):
    """How many exact classes the first chunks of a class have."""
    total = tl.full((), 0, tl.int32)
    if chunks > 0:  # a loop that constants say is never entered breaks the compiler of Triton 3.6
        start = chunks * 0
        while start < chunks:
            here = start + tl.arange(0, 64)
            total += tl.sum(tl.load(counts + here, mask=here < chunks, other=0))
            start += 64
    return total
