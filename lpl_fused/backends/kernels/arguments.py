"""What kernels are told. An absent tensor or number is None, which a kernel knows when it is
compiled, so that an option that is off costs nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...algebra import terms

TERMS = len(terms.Terms._fields)  # numbers of a row of Arguments.terms

# forms of a target: where a row's weight lies
ONE_LABEL = 0  # all of it on one label
LABELS = 1  # on one or two labels; smoothed ones spread some over all columns
DENSE = 2  # on all columns: class probabilities

# what the solvers made of a row with a learned perturbation
SOLVED = 0  # it is done
GROUP = 1  # not tried: its class has other rows
FELL_BACK = 2  # not as exact as promised
PERTURBED = 3  # its class has other rows, and their δ
WEIGHED = 4  # its rivals are summed, its steps are still to be taken


INFINITY = float("inf")


class Arguments(NamedTuple):
    """A lpl_fused.problem.Problem in kernel form, with its δ if there is one, and with what is
    known of its rows.

    Kernels number columns by their place in the input; of all classes these are the W from `first`
    on. `first` and `total` are None where the input has all.
    """

    input: Any  # (N, W), row stride input_stride
    input_stride: Any  # None where rows follow each other
    each: Any  # constexpr: columns of a lane, as many as 16 bytes hold
    phased: Any  # constexpr: rows begin anywhere between two multiples of 16 bytes
    ragged: Any  # constexpr: a lane may have columns that are there beside such as are not
    raw: Any  # constexpr: z is the logits themselves, but for δ
    classes: Any  # W
    first: Any
    total: Any  # C
    unless: Any  # one number, or None: nothing is to be done where it is a power of two
    terms: Any  # (N, TERMS): lpl_fused.algebra.terms; None where nothing is known or asked
    target: Any  # (N,) labels, or (N, W) probabilities with row stride target_stride
    target_stride: Any
    form: Any  # constexpr
    spread: Any  # constexpr: there is weight on all columns
    other: Any  # (N,)
    lam: Any  # (N,)
    ignore_index: Any
    weight: Any  # (C,)
    sample_weight: Any  # (N,)
    smoothing: Any  # (C,)
    label_smoothing: Any
    scale: Any  # (C,)
    offset: Any  # (C,)
    margin: Any  # (C,)
    rows: Any  # (R, C)
    row_index: Any  # (N,)
    row_count: Any
    delta: Any  # (N, W): the learned perturbation; row i has delta[slot[i]]
    slot: Any  # (N,); None: row i has delta[i]
    softcap: Any
    norm_p: Any  # constexpr; of lpl_fused.norm, as the numbers that follow
    norm_limit: Any
    norm_gain: Any
    norm_offset: Any
    inverse_temperature: Any
    phi: Any  # constexpr, a code of lpl_fused.phi
    phi_parameter: Any
    z_loss: Any
    penalty: Any  # constexpr, a code of lpl_fused.penalty, or None as all that belongs to it
    penalty_margin: Any
    penalty_unit: Any
    penalty_strength: Any
    multiplier: Any  # (C,)
    rho: Any  # (C,)
    penalties: Any  # (N,): what the penalty adds to the loss of each row


class Numbers(NamedTuple):
    """What the solver knows of a row, in this order: Σ over rivals of e_j = exp(z_j − shift), then
    what its steps have made of it."""

    shift: Any
    mass: Any  # Σ e_j
    largest: Any  # of the tail's e_j
    own: Any  # the label's logit, less the shift
    count: Any  # of the head
    own_change: Any  # the label's δ
    unit: Any  # z_j + δ_j − shift − unit is what the row's terms count from
    strength: Any  # of its Terms, for an upstream gradient of 1; so `part`
    part: Any


NUMBERS = 32  # of a row: these, power sums from POWERS on, the series' coefficients from SERIES on
POWERS = 10
SERIES = 20


class State(NamedTuple):
    """Of rows that have their class for themselves, from which δ and the gradient are one sweep."""

    numbers: Any  # (N, NUMBERS)
    heads: Any  # (N, HEAD) int32: the columns of the head
    changes: Any  # (N, HEAD): their δ
    outcome: Any  # (N,) int32


class Groups(NamedTuple):
    """The rows of each class; the first of them leads its group."""

    slot: Any  # (N,): the leader of a row's group
    count: Any  # (N,): how many rows the group has
    begin: Any  # (N,): where the group begins in order
    order: Any  # (N,): the rows, group by group
    tickets: Any  # (2,), 0: programs that are done, of kernels of which the last one does more


class Shared(NamedTuple):
    """Of the solver of classes with several rows (kernels/group_solver.py).

    G is the most groups that a batch can have, K chunks of columns, M nodes, H exact classes. What
    is (N, …) goes by a row's place in Groups.order, but for `heads`: H from where a group begins.
    What is None by default nobody needs once they are solved.
    """

    rows: Any  # N
    most: Any  # G
    chunks: Any  # K
    leaders: Any  # (G + 1,): of the groups that are solved; at the end how many these are
    filled: Any  # (G,), 0: how many exact classes are listed
    tickets: Any  # (G,), 0: chunks that are done
    counts: Any  # (G, K): exact classes of a chunk
    heads: Any  # (N, H): the exact classes
    shift: Any  # (N,): e_ij = exp(z_ij − shift)
    unit: Any  # (N,): 1 / Σ e_ij over the rivals
    strength: Any  # (N,): of the rows' Terms, for an upstream gradient of 1; so `part`
    part: Any  # (N,)
    ways: Any  # (N, M): W_i at the nodes
    inverses: Any  # (N, M): 1/Z_i at the nodes
    change: Any  # (G, H): δ of the exact classes
    node: Any  # (G, 4, M): number of steps, mean W, tail's share in the squares, own gradient
    ends: Any  # (G, 2): the target's δ; the tail's share in the squares at the start
    listed: Any = None  # (G, H): the exact classes, chunk by chunk as they came
    lift: Any = None  # (N,): log of the target's mass in units of the rivals'
    tail: Any = None  # (N,): Σ_tail q_ij
    slope: Any = None  # (N,): Σ_tail q_ij·b_j, b_j the rows' mean of q_ij by their first 1/Z_i
    way: Any = None  # (N,): W_i so far
    inverse: Any = None  # (N,): 1/Z_i of the step before
    rest: Any = None  # (N,): the rivals' mass in the end
    exact: Any = None  # (N, H): their q
    partial: Any = None  # (K, M, N): sums over a chunk, by node
    squares: Any = None  # (G, K, M): likewise
    gains: Any = None  # (N, M): what the tail's mass has grown by at the nodes before
    used: Any = None  # (N, M): the `gains` that the steps have been taken with


class Members(NamedTuple):
    """Of Shared, what is known of a row before its class takes steps. (The more a launch is handed
    the longer it takes.)"""

    shift: Any
    unit: Any
    lift: Any


class Listing(NamedTuple):
    """Of Shared, which classes are solved, and what is to be 0 before that."""

    most: Any
    leaders: Any
    filled: Any
    tickets: Any


class Reduced(NamedTuple):
    """Where the loss of a batch goes, if that is wanted, and what it is divided by. (Triton 3.6 can
    not tell whether a tuple that has a None is there itself.)"""

    loss: Any = None
    norm: Any = None  # where that goes, the weights of the rows that count; or None
    normalizer: Any = None  # what is known of it before, or None


NOT_REDUCED = Reduced()


class Upstream(NamedTuple):
    """What a row's gradient is multiplied by, each or None."""

    norm: Any = None  # one: divided by it
    rows: Any = None  # number i·stride is row i's
    stride: Any = 0


class Wanted(NamedTuple):
    """What of each row is stored where, each or None."""

    losses: Any = None  # (N,)
    terms: Any = None  # (N, TERMS), for an upstream gradient of 1
    grad: Any = None  # (N, C)
    delta: Any = None  # (N, C)
    aim: Any = None  # (N,) int64, read: the class that is right; None: no statistics are wanted
    lse: Any = None  # (N,); so `entropy`
    entropy: Any = None
    correct: Any = None  # (N,) bool
    outcome: Any = None  # (N,), read: rows that are SOLVED are left out


class Gradients(NamedTuple):
    """Where `gradient` stores what, each or None; P chunks of rows are summed afterwards."""

    input: Any  # (N, W)
    scale: Any  # (P, W)
    offset: Any  # (P, W)
    margin: Any  # (N,)
    rows: Any  # (N, W)
