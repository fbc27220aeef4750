"""Rows by class: every row is compared with all others, which for few of them costs less than the
dozen kernels of a sort, and leaves nothing to be sorted.
"""

import triton
import triton.language as tl

from .elementary import scales_exactly


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
def group_rows(problem, groups, n_rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`groups` of the rows. One program per ROWS rows."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    index = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
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
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    begin = tl.sum(smaller, 1)
    tl.store(groups.slot + row, tl.min(leader, 1).to(tl.int64), mask=inside)
    tl.store(groups.count + row, tl.sum(count, 1).to(tl.int64), mask=inside)
    tl.store(groups.begin + row, begin.to(tl.int64), mask=inside)
    tl.store(groups.order + begin + tl.sum(earlier, 1), row.to(tl.int64), mask=inside)
