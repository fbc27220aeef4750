"""Classes with several rows, made ready for group_solver.py: their rows in units of their rivals'
mass, and their exact classes.

The work of one class is spread over programs by chunks of BLOCK columns. How many classes there are
is known on the device alone: a fixed number of programs takes the pieces of work in turn. What is
done once for a class the last of its chunks' programs does; nobody waits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .elementary import exp
from .lpl import read_group, read_tile

TAIL_DOSE = tl.constexpr(0.02)  # a class of the tail has a mean q of at most this over its dose


@triton.jit
def read_shares(group, first, columns, problem, groups, shared, ROWS: tl.constexpr):
    """q (ROWS, BLOCK) of the group's rows from its `first` on; 0 at the target and beyond."""
    _, q = read_rivals(group, first, columns, problem, groups, shared, ROWS)
    return q


@triton.jit
def read_rivals(group, first, columns, problem, groups, shared, ROWS: tl.constexpr):
    """(u, q) of read_shares."""
    u, z = read_tile(group, first, columns, problem, groups, ROWS)
    member = first + tl.arange(0, ROWS)
    place = group.begin + member
    shift = tl.load(shared.shift + place, mask=member < group.count, other=float("inf"))
    unit = tl.load(shared.unit + place, mask=member < group.count, other=0)
    q = tl.where(columns == group.column, 0, exp(z - shift[:, None]) * unit[:, None])
    return u, q


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
def split_chunk(
    item, number, chunk, group, problem, groups, step_size, shared,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tells exact classes from the tail, by the mean of q; sums q and q·b over the tail.

    The exact classes of a chunk are counted, and listed behind those of chunks that came before,
    whichever these were: (counts, list, two of `partial` for each row, `squares`).
    """
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
    count = tl.sum(found)
    tl.store(shared.counts + item, count)
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
    if count > 0:
        before = tl.atomic_add(shared.filled + number, count)
        list_chosen(shared.listed + number * HEAD + before, found, chunk, problem, BLOCK)


@triton.jit
def list_chosen(place, found, chunk, problem, BLOCK: tl.constexpr):
    """Stores the columns of a chunk that are 1 in `found`, in their order: lanes, of which a thread
    has all columns, make bits of them, so that nothing is handed from thread to thread.
    """
    lanes: tl.constexpr = BLOCK // problem.each
    found = found.reshape(lanes, problem.each)
    bits = tl.sum(found << tl.arange(0, problem.each)[None, :], 1)
    of_lane = tl.sum(found, 1)
    here = tl.cumsum(of_lane, 0) - of_lane
    column_lanes = tl.arange(0, lanes) * problem.each
    column = chunk.to(tl.int32) * BLOCK + column_lanes
    for _ in tl.static_range(problem.each):
        bit = bits & 1
        tl.store(place + here, column, mask=bit != 0)
        here += bit
        bits = bits >> 1
        column += 1


@triton.jit
def is_last(number, shared):
    """Whether this program is the last of those that have a chunk of a class: what the others have
    stored is there. Each kernel takes as many tickets as there are chunks.
    """
    tl.debug_barrier()
    before = tl.atomic_add(shared.tickets + number, 1)
    return before % shared.chunks == shared.chunks - 1


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
    number, group, width, problem, groups, shared, HEAD: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """heads and exact: the exact classes of a class, in their order, and their q."""
    lanes = tl.arange(0, HEAD)
    unordered = shared.listed + number * HEAD
    listed = tl.load(unordered + lanes, mask=lanes < width, other=problem.classes)
    rank = lanes * 0
    t = width * 0
    while t < width:
        other = t + tl.arange(0, 16)
        other = tl.load(unordered + other, mask=other < width, other=problem.classes)
        rank += tl.sum((other[None, :] < listed[:, None]).to(tl.int32), 1)
        t += 16
    heads = shared.heads + group.begin * HEAD
    tl.store(heads + rank, listed, mask=lanes < width)
    tl.debug_barrier()
    t = width * 0
    while t < width:
        few = t + tl.arange(0, 16)
        # beyond the last there is no column
        columns = tl.load(heads + few, mask=few < width, other=problem.classes)
        first = group.count * 0
        while first < group.count:
            q = read_shares(group, first, columns[None, :], problem, groups, shared, ROWS)
            member = first + tl.arange(0, ROWS)
            here = (group.begin + member)[:, None] * HEAD + few[None, :]
            mask = (member < group.count)[:, None] & (few < width)[None, :]
            tl.store(shared.exact + here, q, mask=mask)
            first += ROWS
        t += 16
    tl.debug_barrier()


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
