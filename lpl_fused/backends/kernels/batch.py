"""What the losses of a batch add up to, and what that is divided by: by one program, in an order
that is always the same.
"""

import triton
import triton.language as tl


@triton.jit
def row_weights(index, inside, problem):
    """What rows with a label each count, in float64; those that are ignored nothing."""
    label = tl.load(problem.target + index, mask=inside, other=problem.ignore_index)
    counts = inside & (label != problem.ignore_index)
    weight = counts.to(tl.float64)
    if problem.weight is not None:
        column = tl.where(label < 0, 0, label)
        column = tl.where(column < problem.classes, column, problem.classes - 1)
        weight *= tl.load(problem.weight + column, mask=counts, other=0).to(tl.float64)
    if problem.sample_weight is not None:
        here = problem.sample_weight + index
        weight *= tl.load(here, mask=inside, other=0).to(tl.float64)
    return weight


@triton.jit
def count_rows(problem, norm, ticket, n_rows, BLOCK: tl.constexpr):
    """What the losses of a batch are divided by, if there is a place for that; and no program of
    the next kernel is done. One program."""
    tl.store(ticket, 0)
    if norm is not None:
        weight = tl.zeros((BLOCK,), tl.float64)
        start = 0
        while start < n_rows:
            index = start + tl.arange(0, BLOCK)
            weight += row_weights(index, index < n_rows, problem)
            start += BLOCK
        tl.store(norm, tl.sum(weight, 0).to(norm.dtype.element_ty))


@triton.jit
def reduce_losses(problem, losses, reduced, n_rows, BLOCK: tl.constexpr):
    """The sum of the losses, over what it is divided by."""
    total = tl.zeros((BLOCK,), tl.float64)
    weight = total
    start = 0
    while start < n_rows:
        index = start + tl.arange(0, BLOCK)
        inside = index < n_rows
        total += tl.load(losses + index, mask=inside, other=0).to(tl.float64)
        if reduced.norm is not None:
            weight += row_weights(index, inside, problem)
        start += BLOCK
    dtype: tl.constexpr = losses.dtype.element_ty
    loss = tl.sum(total, 0)
    if reduced.norm is not None:
        norm = tl.sum(weight, 0)
        tl.store(reduced.norm, norm.to(dtype))
        loss = loss / norm
    elif reduced.normalizer is not None:
        loss = loss / tl.load(reduced.normalizer).to(tl.float64)
    tl.store(reduced.loss, loss.to(dtype))
