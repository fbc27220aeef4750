"""The gradients of a learned perturbation in one launch, whoever has taken the steps."""

import triton
import triton.language as tl

from .elementary import scales_exactly
from .group_solver import move_pieces
from .lpl import take_plain_steps
from .solver import move_row


@triton.jit
def move_all(
    problem, groups, steps, step_size, state, shared, work, rowwise, direction, wanted, upstream,
    n_rows, resident, pieces, programs, NORMALIZE: tl.constexpr, HEAD: tl.constexpr,
    ORDER: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, GROUP_HEAD: tl.constexpr,
    NODES: tl.constexpr, GROUP_ROWS: tl.constexpr, GROUP_BLOCK: tl.constexpr,
    PLAIN_ROWS: tl.constexpr, PLAIN_BLOCK: tl.constexpr,
):  # fmt: skip
    """wanted.grad (N, C): the first `programs` programs do plain_steps, `pieces` move_groups, if
    there are GROUP_ROWS, all others move_rows, BLOCKS of them for a row."""
    if problem.unless is not None and scales_exactly(tl.load(problem.unless)):
        return
    place = tl.program_id(0).to(tl.int64)
    if place < pieces + programs:
        if place < programs:
            take_plain_steps(
                place, programs, problem, groups, steps, step_size, state.outcome, work, rowwise,
                direction, wanted, upstream, n_rows, resident, False, NORMALIZE, PLAIN_ROWS, 0,
                PLAIN_BLOCK,
            )  # fmt: skip
        elif GROUP_ROWS > 0:
            move_pieces(
                place - programs, pieces, problem, groups, steps, step_size, shared, state.outcome,
                upstream, wanted.grad, None, GROUP_HEAD, NODES, GROUP_ROWS, GROUP_BLOCK,
            )  # fmt: skip
    else:
        place -= pieces + programs
        column_start = (place % BLOCKS * BLOCK).to(tl.int32)
        move_row(
            place // BLOCKS, column_start, problem, groups, state, upstream, wanted.grad, None,
            HEAD, ORDER, BLOCK,
        )  # fmt: skip
