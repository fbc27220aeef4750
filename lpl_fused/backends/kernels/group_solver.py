"""The learned perturbation of classes with several rows, solved: a fixed number of sweeps, whatever
the number of steps.

With q_ij = exp(z_ij)/Σ_{l≠y} exp(z_il), the rivals of row i by their mass, x_j = exp(δ_j) and
Z_i = exp(lift_i + δ_y) + Σ_j q_ij·x_j, a step adds a·mean_i(q_ij·x_j/Z_i) to δ_j. Exact classes,
at most HEAD, those of largest mean_i q_ij, take it one by one: one exponential, however many rows.
All others, the tail, need the steps only through

    B_j = mean_i(W_i·q_ij) ,   W_i = Σ_k a_k/Z_i^k ,

because δ_j moves by β·exp(δ_j) where B_j moves by β, a map whose s-fold iterate is known. So
their mass in every row, T_i = Σ_tail q_ij·x_j, is found by relaxation: all steps are taken with
the T that one has, W is kept at some of them, the nodes, and a sweep finds T anew there; in between
T is interpolated by a polynomial in the mean of W. To begin with T is taken to first order,
proportional to mean W.

Every round makes the error smaller by about B, which the choice of exact classes keeps at 0.02.
What the last sweep finds is compared with what the last steps were taken with, at nodes that lie
between those of which they were interpolated: that is the error, relative to Z, measured, and a
class where it exceeds the tolerance is left to the plain steps of lpl.py.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from . import arguments
from .algebra import read_logits, read_row, unperturb
from .elementary import scales_exactly
from .group_rows import (
    count_exact,
    gather_heads,
    is_last,
    listed_group,
    read_rivals,
    read_shares,
    split_chunk,
    store_partial,
    tail_threshold,
)
from .lpl import FELL_BACK, GROUP, normalized, read_members
from .rows import Mass, row_terms, upstream_of
from .solver import LARGEST_LIFT, compensated

PERTURBED = tl.constexpr(arguments.PERTURBED)
TOLERANCE = tl.constexpr(2e-7)
LARGEST_B = tl.constexpr(0.25)  # above it the map's iterates are not known well enough
NEAREST = tl.constexpr(2e-3)  # nodes that are nearer than that would but carry rounding
PI = tl.constexpr(math.pi)


@triton.jit
def sum_chunks(node, place, inside, shared, NODES: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS,): sums over all chunks, in their order."""
    total = tl.zeros((ROWS,), tl.float32)
    start = tl.full((), 0, tl.int64)
    while start < shared.chunks:
        # of a tile one place for all nodes: those of each would be kept in registers, and spilled
        first = shared.partial + (start * NODES + node) * shared.rows
        chunk = tl.arange(0, 16)[:, None].to(tl.int64)
        here = first + (chunk * NODES * shared.rows + place[None, :])
        mask = (start + chunk < shared.chunks) & inside[None, :]
        total += tl.sum(tl.load(here, mask=mask, other=0), 0)
        start += 16
    return total


@triton.jit
def sum_squares(number, node, shared, NODES: tl.constexpr):
    """Σ over all chunks of `squares`."""
    total = tl.full((), 0, tl.float32)
    start = 0
    while start < shared.chunks:
        chunk = start + tl.arange(0, 64)
        here = (number * shared.chunks + chunk) * NODES + node
        total += tl.sum(tl.load(shared.squares + here, mask=chunk < shared.chunks, other=0))
        start += 64
    return total


@triton.jit
def node_scalars(shared, which, number, NODES: tl.constexpr):
    """Pointer to the numbers of one kind at the nodes of a class."""
    return shared.node + (number * 4 + which) * NODES


@triton.jit
def polynomial(shared, number, end, NODES: tl.constexpr):
    """(positions of the nodes (NODES,), their barycentric weights, that of the start at 0).

    Nodes too near to one another, or of no way at all, have weight 0.
    """
    slots = tl.arange(0, NODES)
    walked = node_scalars(shared, 1, number, NODES)
    length = tl.where(end == 0, 1, end)
    at = tl.load(walked + slots) / length
    scalars = ()
    keeps = ()
    last = tl.full((), 0, tl.float32)
    for m in tl.static_range(NODES):
        here = tl.load(walked + m) / length
        keep = (here - last > NEAREST) & ((here == 1) | (1 - here > NEAREST))
        last = tl.where(keep, here, last)
        scalars += (here,)
        keeps += (keep.to(tl.int32),)
    product = at
    kept = slots * 0
    first = tl.full((), 1, tl.float32)
    for m in tl.static_range(NODES):
        other = tl.where(slots == m, 0, keeps[m]) > 0
        product *= tl.where(other, at - scalars[m], 1)
        kept = tl.where(slots == m, keeps[m], kept)
        first *= tl.where(keeps[m] > 0, -scalars[m], 1)
    weights = tl.where(kept > 0, 1 / tl.where(kept > 0, product, 1), 0)
    return at, weights, 1 / first


@triton.jit
def split_columns(
    problem, groups, steps, step_size, shared,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, STEP_ROWS: tl.constexpr, FEW: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Of each class the exact columns and the sums of its tail (split_chunk); then its first
    steps."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    item = tl.program_id(0).to(tl.int64)
    items = tl.load(shared.leaders + shared.most) * shared.chunks
    while item < items:
        number = item // shared.chunks
        chunk = item % shared.chunks
        group = listed_group(number, problem, groups, steps, step_size, shared)
        split_chunk(
            item, number, chunk, group, problem, groups, step_size, shared, NORMALIZE, HEAD, NODES,
            ROWS, BLOCK,
        )  # fmt: skip
        if is_last(number, shared):
            width = tl.load(shared.filled + number)
            gather_heads(number, group, width, problem, groups, shared, HEAD, 4 * STEP_ROWS)
            take_group_steps(number, group, shared, 0, NORMALIZE, HEAD, NODES, STEP_ROWS, FEW, MANY)
        item += tl.num_programs(0)


@triton.jit
def take_group_steps(
    number, group, shared,
    ROUND: tl.constexpr, NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr,
    ROWS: tl.constexpr, FEW: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """All steps of a class, from the start: δ of its exact classes and target; its nodes.

    On tiles of ROWS rows; of MANY where it has but a FEW exact classes, as large classes do. The
    mass of the tail is that of `partial`: in ROUND 0 of split_chunk, later of move_chunk.
    """
    width = tl.load(shared.filled + number)
    if width <= FEW:
        walk_group(number, group, width, shared, ROUND, NORMALIZE, HEAD, FEW, NODES, MANY)
    else:
        walk_group(number, group, width, shared, ROUND, NORMALIZE, HEAD, HEAD, NODES, ROWS)


@triton.jit
def walk_group(
    number, group, width, shared,
    ROUND: tl.constexpr, NORMALIZE: tl.constexpr, HEAD: tl.constexpr, LANES: tl.constexpr,
    NODES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """take_group_steps of a class with at most LANES exact classes."""
    slots = tl.arange(0, NODES)
    lanes = tl.arange(0, LANES)
    zero = tl.full((), 0, tl.float32)
    speed = zero  # the mean of 1/Z before all steps
    first = group.count * 0
    while first < group.count:
        member = first + tl.arange(0, ROWS)
        inside = member < group.count
        place = group.begin + member
        if ROUND == 0:
            m = tl.full((), 0, tl.int32)
            while m < 2:  # not twice the code, of which less stays in registers
                found = sum_chunks(m, place, inside, shared, NODES, ROWS)
                if m == 0:
                    tl.store(shared.tail + place, found, mask=inside)
                else:
                    tl.store(shared.slope + place, found, mask=inside)
                m += 1
            lift = tl.load(shared.lift + place, mask=inside, other=0)
            speed += tl.sum(tl.where(inside, 1 / (1 + tl.exp(lift)), 0))
        else:
            m = tl.full((), 0, tl.int32)
            while m < NODES:
                gain = sum_chunks(m, place, inside, shared, NODES, ROWS)
                tl.store(shared.gains + place * NODES + m, gain, mask=inside)
                m += 1
        tl.store(shared.way + place, tl.zeros((ROWS,), tl.float32), mask=inside)
        tl.store(shared.inverse + place, tl.zeros((ROWS,), tl.float32), mask=inside)
        first += ROWS
    speed /= group.count

    # the tail's share in the squares of the gradient, relative to that of the target's entry
    ratio_start = zero
    ratios = tl.zeros((NODES,), tl.float32)
    end = zero
    if ROUND > 0:
        end = tl.load(node_scalars(shared, 1, number, NODES) + NODES - 1)
        at, weights, weight_start = polynomial(shared, number, end, NODES)
    if NORMALIZE:
        if ROUND == 0:
            square_start = sum_squares(number, 0, shared, NODES)
        else:
            ratio_start = tl.load(shared.ends + number * 2 + 1)
            for m in tl.static_range(NODES):
                ratios = tl.where(slots == m, sum_squares(number, m, shared, NODES), ratios)
            own_before = tl.load(node_scalars(shared, 3, number, NODES) + slots)
            ratios /= tl.where(own_before == 0, 1, own_before * own_before)
    # Chebyshev's points and, in odd rounds, those between; near them will do, so the sine has its
    # first terms only (Triton's takes a stack, for angles that do not occur here)
    angle = (slots + (1 - 0.5 * (ROUND % 2))) * (PI / 2 / NODES)
    square = angle * angle
    sine = angle * (1 + square * (-1 / 6 + square * (1 / 120 - square / 5040)))
    passing = tl.where(slots < NODES - 1, sine * sine, 2)

    change = tl.zeros((LANES,), tl.float32)
    lost = tl.zeros((LANES,), tl.float32)
    own_change = zero
    own_lost = zero
    walked = zero
    walked_lost = zero
    factor = zero
    passed = tl.full((), 0, tl.int32)
    filled = tl.full((), 0, tl.int32)
    k = group.steps * 0
    while k <= group.steps:
        tl.debug_barrier()
        if ROUND == 0:
            progress = k / group.steps.to(tl.float32)
            linear = walked / tl.where(speed > 0, speed, 1)
            ratio = ratio_start
        else:
            progress = walked / tl.where(end == 0, 1, end)
            # the barycentric formula; at a node its own weight is overwhelming
            off = progress - at
            pull = weights / tl.where(off == 0, 1e-12, off)
            pull_start = weight_start / tl.where(progress == 0, 1e-20, progress)
            pulls = tl.sum(pull) + pull_start
            pull = tl.where(end == 0, 0, pull / pulls)
            ratio = tl.sum(pull * ratios) + ratio_start * (pull_start / pulls)
        now_passed = tl.sum((passing <= progress).to(tl.int32))
        last = k == group.steps
        node = (k > 0) & ((group.steps <= NODES) | (now_passed > passed))
        passed = now_passed
        # the end stands at every node that is left
        beyond = tl.where(last, NODES, filled + 1)
        noted = (slots >= tl.where(node | last, filled, NODES)) & (slots < beyond)

        x = tl.exp(change)
        mean = tl.zeros((LANES,), tl.float32)
        own = zero
        inverses = zero
        first = group.count * 0
        while first < group.count:
            member = first + tl.arange(0, ROWS)
            inside = member < group.count
            place = group.begin + member
            here = place[:, None] * HEAD + lanes[None, :]
            filled_lanes = inside[:, None] & (lanes < width)[None, :]
            exact = tl.load(shared.exact + here, mask=filled_lanes, other=0)
            at_nodes = place[:, None] * NODES + slots[None, :]
            if ROUND == 0:
                gain = tl.load(shared.slope + place, mask=inside, other=0) * linear
            else:
                known = tl.load(shared.gains + at_nodes, mask=inside[:, None], other=0)
                gain = tl.sum(known * pull[None, :], 1)
            rest = tl.load(shared.tail + place, mask=inside, other=0) + gain
            rest += tl.sum(exact * x[None, :], 1)
            lift = tl.load(shared.lift + place, mask=inside, other=0) + own_change
            z = rest + tl.exp(tl.where(lift > LARGEST_LIFT, LARGEST_LIFT, lift))
            inverse = tl.where(inside, 1 / z, 0)
            # of the step before, whose factor is known now
            way = tl.load(shared.way + place, mask=inside, other=0)
            way += tl.load(shared.inverse + place, mask=inside, other=0) * factor
            tl.debug_barrier()
            tl.store(shared.way + place, way, mask=inside)
            tl.store(shared.inverse + place, inverse, mask=inside)
            if node | last:
                mask = inside[:, None] & noted[None, :]
                filler = tl.zeros((ROWS, NODES), tl.float32)
                tl.store(shared.ways + at_nodes, way[:, None] + filler, mask=mask)
                tl.store(shared.used + at_nodes, gain[:, None] + filler, mask=mask)
                tl.store(shared.inverses + at_nodes, inverse[:, None] + filler, mask=mask)
                tl.store(shared.rest + place, rest, mask=inside)  # the last is that of the end
            mean += tl.sum(exact * inverse[:, None], 0)
            own += tl.sum(rest * inverse)
            inverses += tl.sum(inverse)
            first += ROWS
        own /= group.count
        g = mean * x / group.count
        factor = group.step
        if NORMALIZE:
            if ROUND == 0:
                found = square_start / tl.where(own == 0, 1, own * own)
                ratio_start = tl.where(k == 0, found, ratio_start)
                ratio = ratio_start
            factor = normalized(factor, own, tl.sum(g * g) + ratio * own * own)
        if node | last:
            tl.store(node_scalars(shared, 0, number, NODES) + slots, k + slots * 0.0, mask=noted)
            tl.store(
                node_scalars(shared, 1, number, NODES) + slots, walked + slots * 0.0, mask=noted
            )
            tl.store(
                node_scalars(shared, 2, number, NODES) + slots, ratio + slots * 0.0, mask=noted
            )
            tl.store(node_scalars(shared, 3, number, NODES) + slots, own + slots * 0.0, mask=noted)
            filled += 1
        if last == 0:
            change, lost = compensated(change, lost, g * factor)
            own_change, own_lost = compensated(own_change, own_lost, -own * factor)
            walked, walked_lost = compensated(walked, walked_lost, inverses / group.count * factor)
        k += 1
    tl.store(shared.change + number * HEAD + lanes, change)
    tl.store(shared.ends + number * 2, own_change)
    tl.store(shared.ends + number * 2 + 1, ratio_start)


@triton.jit
def move_tail(
    problem, groups, steps, step_size, shared, outcome, losses,
    ROUND: tl.constexpr, LAST: tl.constexpr, NORMALIZE: tl.constexpr, HEAD: tl.constexpr,
    NODES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP_ROWS: tl.constexpr,
    FEW: tl.constexpr, MANY: tl.constexpr, VERDICTS: tl.constexpr,
):  # fmt: skip
    """Of each class what its tail gains (move_chunk); then its steps once more or, if this is the
    LAST of the rounds, its verdict, on VERDICTS rows at once."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    item = tl.program_id(0).to(tl.int64)
    items = tl.load(shared.leaders + shared.most) * shared.chunks
    while item < items:
        number = item // shared.chunks
        chunk = item % shared.chunks
        group = listed_group(number, problem, groups, steps, step_size, shared)
        move_chunk(
            item, number, chunk, group, problem, groups, shared, NORMALIZE, HEAD, NODES, ROWS, BLOCK
        )
        if is_last(number, shared):
            if LAST:
                finish_group(
                    number, group, step_size, problem, groups, shared, outcome, losses, NORMALIZE,
                    HEAD, NODES, VERDICTS,
                )  # fmt: skip
            else:
                take_group_steps(
                    number, group, shared, ROUND + 1, NORMALIZE, HEAD, NODES, STEP_ROWS, FEW, MANY
                )
        item += tl.num_programs(0)


@triton.jit
def move_chunk(
    item, number, chunk, group, problem, groups, shared,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """By row, what the tail's mass has gained at the nodes (`partial`); its squares."""
    columns = chunk.to(tl.int32) * BLOCK + tl.arange(0, BLOCK)[None, :]
    zeros = tl.zeros((1, BLOCK), tl.float32)
    b = (zeros,) * NODES
    u = (zeros,) * NODES
    q = tl.zeros((ROWS, BLOCK), tl.float32)
    first = group.count * 0
    while first < group.count:
        q = read_shares(group, first, columns, problem, groups, shared, ROWS)
        b = added_rows(b, q, first, shared.ways, group, ROWS, NODES)
        if NORMALIZE:
            u = added_rows(u, q, first, shared.inverses, group, ROWS, NODES)
        first += ROWS

    of_tail = (columns < problem.classes) & (columns != group.column)
    found = tl.load(shared.counts + item)
    heads = shared.heads + group.begin * HEAD
    heads += count_exact(shared.counts + number * shared.chunks, chunk)
    t = 0
    while t < found:
        of_tail &= columns != tl.load(heads + t)
        t += 1

    gains = ()
    moved = (zeros, zeros, zeros)
    count_before = tl.full((), 0, tl.float32)
    for m in tl.static_range(NODES):
        mean = tl.where(of_tail, b[m] / group.count, 0)
        taken = tl.load(node_scalars(shared, 0, number, NODES) + m)
        moved = moved_on(moved, mean, taken - count_before)
        gains += (moved[1],)
        count_before = taken
        if NORMALIZE:
            speed = tl.where(of_tail, u[m] * (1 + moved[1]) / group.count, 0)
            tl.store(shared.squares + item * NODES + m, tl.sum(speed * speed))
    while first > 0:
        first -= ROWS
        for m in tl.static_range(NODES):
            gained = tl.sum(q * gains[m], 1)
            store_partial(group, first, chunk, m, gained, shared, NODES, ROWS)
        if first > 0:
            q = read_shares(group, first - ROWS, columns, problem, groups, shared, ROWS)


@triton.jit
def moved_on(moved, mean, count):
    """(δ, exp(δ) − 1, B) of columns, from those at the node before, `count` steps later."""
    by = iterated((mean - moved[2]) * (1 + moved[1]), count)
    change = moved[0] + by
    # exp(by) − 1
    by *= 1 + by * (0.5 + by * (1 / 6 + by * (1 / 24 + by * (1 / 120))))
    return change, moved[1] + (by + moved[1] * by), mean


@triton.jit
def move_groups(
    problem, groups, steps, step_size, shared, outcome, upstream, grad, delta,
    HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What is wanted of each class that is solved: grad (N, C), the gradients of its rows times
    `upstream`, or delta (N, C), δ in the row of the first of them. Pieces of work as in move_tail.
    """
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    move_pieces(
        tl.program_id(0).to(tl.int64), tl.num_programs(0), problem, groups, steps, step_size,
        shared, outcome, upstream, grad, delta, HEAD, NODES, ROWS, BLOCK,
    )  # fmt: skip


@triton.jit
def move_pieces(
    item, programs, problem, groups, steps, step_size, shared, outcome, upstream, grad, delta,
    HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_groups of one of so many programs, from its first piece of work on."""
    items = tl.load(shared.leaders + shared.most) * shared.chunks
    while item < items:
        number = item // shared.chunks
        if tl.load(outcome + tl.load(shared.leaders + number)) == PERTURBED:
            group = listed_group(number, problem, groups, steps, step_size, shared)
            move_group(
                number, item % shared.chunks, group, problem, groups, shared, upstream, grad, delta,
                HEAD, NODES, ROWS, BLOCK,
            )  # fmt: skip
        item += programs


@triton.jit
def move_group(
    number, chunk, group, problem, groups, shared, upstream, grad, delta,
    HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """move_groups of a chunk of a class."""
    columns = chunk.to(tl.int32) * BLOCK + tl.arange(0, BLOCK)[None, :]
    zeros = tl.zeros((1, BLOCK), tl.float32)
    b = (zeros,) * NODES
    u = tl.zeros((ROWS, BLOCK), tl.float32)
    q = u
    first = group.count * 0
    while first < group.count:
        u, q = read_rivals(group, first, columns, problem, groups, shared, ROWS)
        b = added_rows(b, q, first, shared.ways, group, ROWS, NODES)
        first += ROWS
    moved = (zeros, zeros, zeros)
    count_before = tl.full((), 0, tl.float32)
    for m in tl.static_range(NODES):
        taken = tl.load(node_scalars(shared, 0, number, NODES) + m)
        moved = moved_on(moved, b[m] / group.count, taken - count_before)
        count_before = taken
    change = moved[0]
    x = moved[1] + 1
    found = tl.load(shared.counts + number * shared.chunks + chunk)
    before = count_exact(shared.counts + number * shared.chunks, chunk)
    t = 0
    while t < found:
        own = columns == tl.load(shared.heads + group.begin * HEAD + before + t)
        head = tl.load(shared.change + number * HEAD + before + t)
        change = tl.where(own, head, change)
        x = tl.where(own, tl.exp(head), x)
        t += 1
    if delta is not None:
        change = tl.where(columns == group.column, tl.load(shared.ends + number * 2), change)
        here = delta + group.leader * problem.classes + columns
        tl.store(here, change, mask=columns < problem.classes)
    if grad is not None:
        # the last rows are still at hand
        while first > 0:
            first -= ROWS
            row = read_members(group, first, problem, groups, ROWS)
            member = first + tl.arange(0, ROWS)[:, None]
            inside = (member < group.count) & (columns < problem.classes)
            factor = upstream_of(row.index, upstream)
            place = group.begin + member
            strength = tl.load(shared.strength + place, mask=member < group.count, other=0)
            part = tl.load(shared.part + place, mask=member < group.count, other=0)
            dz = q * x * (strength * factor)
            dz = tl.where(columns == group.column, part * factor, dz)
            du = unperturb(dz, u, columns, columns < problem.classes, row, problem)[0]
            here = grad + row.index * problem.classes + columns
            tl.store(here, du.to(grad.dtype.element_ty), mask=inside)
            if first > 0:
                u, q = read_rivals(group, first - ROWS, columns, problem, groups, shared, ROWS)


@triton.jit
def added_rows(sums, q, first, factors, group, ROWS: tl.constexpr, NODES: tl.constexpr):
    """sums + Σ over rows of q times their factors (N, NODES)."""
    member = first + tl.arange(0, ROWS)
    here = factors + (group.begin + member) * NODES
    result = ()
    for m in tl.static_range(NODES):
        factor = tl.load(here + m, mask=member < group.count, other=0)
        result += (sums[m] + tl.sum(q * factor[:, None], 0)[None, :],)
    return result


@triton.jit
def iterated(b, count):
    """δ after `count` times δ ← δ + (b/count)·exp(δ), from 0: to the third order."""
    each = 1 / tl.where(count > 1, count, 1)
    second = (1 - each) / 2
    third = (1 - each) * (4 - 5 * each) / 12
    return b * (1 + b * (second + b * third))


@triton.jit
def finish_group(
    number, group, step_size, problem, groups, shared, outcome, losses,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Judges the error of a class: its rows are PERTURBED, or they FELL_BACK; if there is a place
    for them, their losses, and what their gradients are made of.
    """
    judge_group(
        number, group, step_size, problem, groups, shared, outcome, NORMALIZE, HEAD, NODES, ROWS
    )
    if losses is not None:
        first = group.count * 0
        while first < group.count:
            row_losses(number, group, first, problem, groups, shared, losses, NODES, ROWS)
            first += ROWS


@triton.jit
def row_losses(
    number, group, first, problem, groups, shared, losses,
    NODES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Losses of ROWS rows of a class, strength and part of their Terms; of one that fell back they
    mean nothing, and are overwritten."""
    member = first + tl.arange(0, ROWS)
    inside = member < group.count
    place = group.begin + member
    index = tl.load(groups.order + place, mask=inside, other=group.leader)
    _, row = read_row(index, problem, tl.float32)
    shift = tl.load(shared.shift + place, mask=inside, other=0)
    unit = tl.load(shared.unit + place, mask=inside, other=1)
    # of logits far from 0 what is added to them less their shift keeps its digits
    level = -tl.where(unit == 0, 0, tl.log(tl.where(unit == 0, 1, unit)))
    own = (read_logits(row, row.column, problem)[1] - shift) - level
    own += tl.load(shared.ends + number * 2)
    # what the tail has gained since the steps were taken with it
    last: tl.constexpr = NODES - 1
    rest = tl.load(shared.rest + place, mask=inside, other=0)
    rest -= tl.load(shared.used + place * NODES + last, mask=inside, other=0)
    rest += sum_chunks(last, place, inside, shared, NODES, ROWS)
    zero = tl.zeros_like(own)
    mass = Mass(shift + level, rest, zero, zero, zero, zero, zero, zero)
    value, terms = row_terms(index, row, (own, zero), (own, zero), mass, mass, problem)
    tl.store(losses + index, value, mask=inside)
    tl.store(shared.strength + place, terms.strength, mask=inside)
    tl.store(shared.part + place, terms.part, mask=inside)


@triton.jit
def judge_group(
    number, group, step_size, problem, groups, shared, outcome,
    NORMALIZE: tl.constexpr, HEAD: tl.constexpr, NODES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The outcome of a class's rows."""
    # a comparison with nan is false
    good = number >= 0
    hopeless = number < 0
    if NORMALIZE:
        for m in tl.static_range(NODES):
            ratio = tl.load(node_scalars(shared, 2, number, NODES) + m)
            own = tl.load(node_scalars(shared, 3, number, NODES) + m)
            square = sum_squares(number, m, shared, NODES)
            found = square / tl.where(own == 0, 1, own * own)
            good &= (tl.abs(found - ratio) <= 2 * TOLERANCE) | (own == 0)
    threshold = tail_threshold(group, step_size, problem.classes, HEAD)
    first = group.count * 0
    while first < group.count:
        member = first + tl.arange(0, ROWS)
        inside = member < group.count
        place = group.begin + member
        unit = tl.load(shared.unit + place, mask=inside, other=0)
        lift = tl.load(shared.lift + place, mask=inside, other=0)
        # nan stays nan, whoever takes the steps
        hopeless |= tl.sum(((unit != unit) | (lift != lift)).to(tl.int32)) > 0
        at_nodes = place * NODES
        for m in tl.static_range(NODES):
            gain = sum_chunks(m, place, inside, shared, NODES, ROWS)
            used = tl.load(shared.used + at_nodes + m, mask=inside, other=0)
            inverse = tl.load(shared.inverses + at_nodes + m, mask=inside, other=0)
            off = tl.abs(gain - used) * inverse <= TOLERANCE
            good &= tl.sum((off | (inside == 0)).to(tl.int32)) == ROWS
        way = tl.load(shared.ways + at_nodes + NODES - 1, mask=inside, other=0)
        far = tl.abs(way) * threshold <= LARGEST_B
        good &= tl.sum(far.to(tl.int32)) == ROWS
        first += ROWS
    own_change = tl.load(shared.ends + number * 2)
    good &= own_change == own_change
    found = tl.where(good, PERTURBED, tl.where(hopeless, GROUP, FELL_BACK))
    first = group.count * 0
    while first < group.count:
        member = first + tl.arange(0, ROWS)
        inside = member < group.count
        index = tl.load(groups.order + group.begin + member, mask=inside, other=0)
        tl.store(outcome + index, found + member * 0, mask=inside)
        first += ROWS
