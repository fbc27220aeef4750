"""Rows by class: every row is compared with all others, which for few of them costs less than the
dozen kernels of a sort, and leaves nothing to be sorted.
"""

import triton
import triton.language as tl

from .elementary import scales_exactly
from .lpl import is_worth_it

LISTED = tl.constexpr(1024)  # rows that are looked at at once


@triton.jit
def read_keys(index, inside, problem):
    """What rows of one class have in common: their label, for ignored rows a number of their own,
    and so for labels out of range."""
    label = tl.load(problem.target + index, mask=inside, other=problem.ignore_index)
    outside = (label < 0) | (label >= problem.classes)
    key = tl.where(outside, problem.classes + 1, label)
    key = tl.where(label == problem.ignore_index, problem.classes, key)
    return tl.where(inside, key, problem.classes + 2).to(tl.int32)


@triton.jit
def find_rows(first, problem, n_rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of ROWS rows from `first` on, each (ROWS,): where its class begins in the order of classes,
    how many rows of its class are before it, how many rows that has, and the first of them."""
    index = (first + tl.arange(0, ROWS))[:, None]
    key = read_keys(index, index < n_rows, problem)
    none = tl.zeros((ROWS, BLOCK), tl.int32)
    count = none
    earlier = none
    smaller = none
    leader = none + n_rows
    start = 0
    while start < n_rows:
        other = (start + tl.arange(0, BLOCK))[None, :]
        other_key = read_keys(other, other < n_rows, problem)
        same = other_key == key
        count += same.to(tl.int32)
        earlier += (same & (other < index)).to(tl.int32)
        smaller += (other_key < key).to(tl.int32)
        leader = tl.minimum(leader, tl.where(same, other, n_rows))
        start += BLOCK
    return tl.sum(smaller, 1), tl.sum(earlier, 1), tl.sum(count, 1), tl.min(leader, 1)


@triton.jit
def store_rows(first, problem, groups, n_rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`groups` of these rows; with the first of all, that no program of a later kernel is done."""
    begin, earlier, count, leader = find_rows(first, problem, n_rows, ROWS, BLOCK)
    row = first + tl.arange(0, ROWS)
    inside = row < n_rows
    tl.store(groups.slot + row, leader.to(tl.int64), mask=inside)
    tl.store(groups.count + row, count.to(tl.int64), mask=inside)
    tl.store(groups.begin + row, begin.to(tl.int64), mask=inside)
    tl.store(groups.order + begin + earlier, row.to(tl.int64), mask=inside)
    tl.store(groups.tickets + 1 + row, 0, mask=row == 0)
    return begin + earlier, count


@triton.jit
def group_rows(
    problem, groups, steps, listing, n_rows, resident_rows, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """`groups` of the rows. One program per ROWS rows, the last of which to be done lists classes,
    if there is a place for that, `listing`."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    store_rows(tl.program_id(0) * ROWS, problem, groups, n_rows, ROWS, BLOCK)
    if listing is not None:
        tl.debug_barrier()
        if tl.atomic_add(groups.tickets, 1) == tl.num_programs(0) - 1:
            list_classes(problem, groups, steps, listing, n_rows, resident_rows, LISTED)


@triton.jit
def list_groups(problem, groups, steps, listing, n_rows, resident_rows):
    """`leaders`, of groups that a sort has found. One program."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    list_classes(problem, groups, steps, listing, n_rows, resident_rows, LISTED)


@triton.jit
def list_classes(problem, groups, steps, listing, n_rows, resident_rows, AT_ONCE: tl.constexpr):
    """leaders (G + 1,) of the classes to be solved, in the order of their first rows, and their
    number, of grouped rows, AT_ONCE of them; no chunk of any class is done. One program."""
    listed = tl.full((), 0, tl.int64)
    start = 0
    while start < n_rows:
        index = start + tl.arange(0, AT_ONCE)
        inside = index < n_rows
        leads = tl.load(groups.slot + index, mask=inside, other=-1) == index
        count = tl.load(groups.count + index, mask=leads, other=0)
        label = tl.load(problem.target + index, mask=leads, other=problem.ignore_index)
        known = (label >= 0) & (label < problem.classes) & (label != problem.ignore_index)
        asked = leads & known & (count > 1)
        magnitude = tl.abs(tl.load(steps + label, mask=asked, other=0))
        worth = is_worth_it(count, magnitude, problem.classes, resident_rows)
        chosen = (asked & (magnitude != 0) & worth).to(tl.int64)
        place = listed + tl.cumsum(chosen, 0) - 1
        tl.store(listing.leaders + place, index.to(tl.int64), mask=chosen != 0)
        listed += tl.sum(chosen, 0)
        possible = index < listing.most
        tl.store(listing.filled + index, 0, mask=possible)
        tl.store(listing.tickets + index, 0, mask=possible)
        start += AT_ONCE
    tl.store(listing.leaders + listing.most, listed)
