"""The learned perturbation of classes with several rows: a fixed number of turns, each a reduction
over columns and one walk through all steps.

docs/solver.md ("Several rows of one class") has the idea and why the error's bound holds. With q_ij
the rivals of row i in units of their mass, Z_i a row's mass and W_i = Σ_k 1/Z_i, e^(δ_j) of a class
that moves little is nearly a function of B_j = (step/N)·Σ_i W_i q_ij; those that move far, the
exact ones, are taken one by one. What the tail gains in mass by that is summed over columns for the
W of a few moments of the last walk, its nodes, and interpolated between them in the next.

Here a row carries what its class has: (N,) holds the same number for all rows of a class. Where
rows have shares of their class (`lam`), means are weighted by them: what stands above as 1/N.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import Problem, accumulate_dtype
from .known import Known
from .learned import CHUNK, HEADS, LARGEST, NORM_FLOOR, Perturbed, tolerance
from .parts import Part, Round
from .rows import Classes, Rows

TURNS = 3
NODES = 7  # beyond the start
LARGEST_TAIL = 5e-3  # B of an exact class is larger
NEAREST = 2e-3  # nodes that are nearer than that, relative to all the way, carry rounding
_BY_ROW = ("other", "lam", "sample_weight", "row_index")
BEYOND = 1.125  # how far behind the last node the polynomial is trusted


@dataclass(frozen=True)
class Tail(Part):
    """What the tail gains by the steps of the last walk, at its nodes m. float64."""

    mass: Tensor  # (N,): Σ_tail q_ij
    gains: Tensor  # (N, M): Σ_tail q_ij·(e^(δ_j) − 1)
    squares: Tensor  # (N, M): Σ_tail (mean_i q_ij·e^(δ_j)/Z_i)², where steps are normalised
    most: Tensor  # (N,): the largest |B_j| of the tail, at the walk's end
    listed: Tensor  # (N,): how many exact classes there are; so the next, in the first turn alone
    columns: Tensor  # (N, H) int64, numbered among all classes; −1: none
    shares: Tensor  # (N, H): their q_ij

    def join(self, other: Tail) -> Tail:
        return Tail(
            mass=self.mass + other.mass,
            gains=self.gains + other.gains,
            squares=self.squares + other.squares,
            most=torch.maximum(self.most, other.most),
            listed=self.listed + other.listed,
            columns=torch.cat([self.columns, other.columns], 1),
            shares=torch.cat([self.shares, other.shares], 1),
        )


class Nodes(NamedTuple):
    """Moments of a walk, the first of which is its start; (N, M) unless said otherwise."""

    last: Tensor  # (N,): how many there are beyond the start
    at: Tensor  # Σ of the mean of 1/Z, over the gradient's length where steps are normalised
    own: Tensor  # minus the gradient's entry at the target
    kappa: Tensor  # what finite steps take from the flow: 1/2 for a single one
    way: Tensor  # W, of each row
    inverse: Tensor  # 1/Z, of each row


class Walk(NamedTuple):
    """Classes with several rows, and where their last walk has come."""

    lift: Tensor  # (N,): log of the target's mass in units of the rivals'
    steps: Tensor  # (N,): how many; 0 for rows that have no such class
    size: Tensor  # (N,): of a step, with its sign
    nodes: Nodes
    columns: Tensor  # (N, H): the exact classes
    shares: Tensor  # (N, H)
    way: Tensor  # (N,): W, so the next, of the accepted walk
    second: Tensor
    third: Tensor
    change: Tensor  # (N, H): δ of the exact classes
    own_change: Tensor
    rest: Tensor  # (N,): the rivals' mass
    done: Tensor  # (N,) bool: a walk was accepted
    room: Tensor  # (N,) bool: all exact classes are listed


def start(
    problem: Problem,
    known: Known,
    classes: Classes,
    lift: Tensor,
    steps: Tensor,
    size: Tensor,
) -> Known:
    """The first walk, as if the rivals did not move."""
    if problem.input.shape[0] < 2:
        return known
    assert known.learned is not None
    steps = torch.where(classes.rows > 1, steps.abs(), 0)
    # a row that is nan makes its whole class nan
    lift = torch.where(known.learned.rest.isnan(), torch.nan, lift)
    n = lift.shape[0]
    none = lift.new_zeros((n, 0))
    nothing = torch.zeros_like(lift)
    zeros = lift.new_zeros((n, NODES + 1))
    nodes = Nodes(torch.zeros_like(steps), zeros, zeros, zeros, zeros, zeros)
    walk = Walk(
        lift=lift,
        steps=steps,
        size=size,
        nodes=nodes,
        columns=none.long(),
        shares=none,
        way=nothing,
        second=nothing,
        third=nothing,
        change=none,
        own_change=nothing,
        rest=torch.ones_like(lift),
        done=torch.zeros_like(steps, dtype=torch.bool),
        room=torch.ones_like(steps, dtype=torch.bool),
    )
    found = _take_steps(problem, classes, walk, None)
    return known._replace(walk=walk._replace(nodes=found.nodes))


def settle(problem: Problem, round: Round, part: Tail, known: Known) -> Known:
    """One more walk, with the gains of the last; accepted where its error is little enough."""
    assert known.walk is not None
    walk, classes = known.walk, Classes.of(problem)
    if round.turn == 0:
        listed = (part.columns >= 0).sum(1)
        walk = walk._replace(
            columns=part.columns,
            shares=part.shares,
            change=torch.zeros_like(part.shares),
            room=part.listed <= listed,
        )
    found = _take_steps(problem, classes, walk, part)
    # without a tail nothing is left out, however far a walk went
    largest = torch.where(part.most == 0, 0.0, part.most * (1 + found.distance))
    # the fourth power of B is left out
    error = found.error + largest**4
    good = (error <= tolerance(accumulate_dtype(problem.input.dtype))) & walk.room & ~walk.done
    good &= (found.own_change.abs() + found.way).isfinite()

    def accepted(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(good if new.dim() == 1 else good[:, None], new, old)

    kappa = found.kappa
    log_third = (1 - 2 * kappa) * (2 - 5 * kappa) / 6
    return known._replace(
        walk=walk._replace(
            nodes=found.nodes,
            way=accepted(found.way, walk.way),
            second=accepted(0.5 - kappa, walk.second),
            third=accepted(log_third, walk.third),
            change=accepted(found.change, walk.change),
            own_change=accepted(found.own_change, walk.own_change),
            rest=accepted(found.rest, walk.rest),
            done=walk.done | good,
        )
    )


def open_rows(known: Known) -> Tensor:
    """(N,) bool: of classes with several rows whose steps were not accepted yet."""
    assert known.walk is not None
    return (known.walk.steps > 0) & ~known.walk.done


def joined(problem: Problem, known: Known) -> Known:
    """What the walks made of rows, beside what became of rows alone in their class."""
    assert known.walk is not None
    assert known.learned is not None
    walk, alone, classes = known.walk, known.learned, Classes.of(problem)
    grouped = walk.steps > 0
    share = walk.size * classes.shares(problem)
    lost = classes.max(walk.lift.isnan().double()) > 0
    own = torch.where(lost, torch.nan, walk.own_change)
    return known._replace(
        learned=alone._replace(
            way=torch.where(grouped, share * walk.way, 0.0),
            second=torch.where(grouped, walk.second, 0.0),
            third=torch.where(grouped, walk.third, 0.0),
            columns=torch.cat([alone.columns, torch.where(grouped[:, None], walk.columns, -1)], 1),
            change=torch.cat([alone.change, walk.change], 1),
            own=torch.where(grouped, own, alone.own),
            lift=torch.where(grouped, walk.lift + own, alone.lift),
            rest=torch.where(grouped, walk.rest, alone.rest),
            exact=torch.where(grouped, walk.done | lost, alone.exact),
            grouped=True,
        )
    )


class _Found(NamedTuple):
    nodes: Nodes
    way: Tensor
    kappa: Tensor
    change: Tensor
    own_change: Tensor
    rest: Tensor
    error: Tensor
    distance: Tensor


def _take_steps(problem: Problem, classes: Classes, walk: Walk, tail: Tail | None) -> _Found:
    """All steps of all classes, from the start, with the tail's gains at the nodes of the walk
    before; without any if there is no `tail`."""
    normalize, before, steps = problem.options.normalize, walk.nodes, walk.steps
    share = classes.shares(problem)
    n = share.shape[0]
    nothing = torch.zeros_like(share)
    places = torch.arange(1, NODES, device=share.device).double() / NODES
    places = places * places * (3 - 2 * places)  # close to Lobatto's points
    known = before.last > 0 if tail is not None else torch.zeros_like(walk.done)
    base = torch.ones_like(share) if tail is None else tail.mass
    end = torch.where(known, before.at.gather(1, before.last[:, None])[:, 0], 1.0)
    pulls = _pulls(before, end, known)
    length_of_tail = torch.zeros_like(before.at)
    if tail is not None and normalize:
        square = before.own * before.own
        length_of_tail = torch.where(square > 0, tail.squares / square, 0.0)

    change, x = torch.zeros_like(walk.shares), torch.ones_like(walk.shares)
    own_change = walked = squares_walked = way = squares = last_at = nothing
    factor, inverse, kappa, error, distance = nothing, nothing, nothing, nothing, nothing
    rest_at_end = torch.ones_like(share)
    count, passed = torch.zeros_like(steps), torch.zeros_like(steps)
    noted = [torch.zeros((n, NODES + 1), dtype=share.dtype, device=share.device) for _ in range(5)]
    for k in range(int(steps.max()) + 1 if n else 0):
        live = (k <= steps) & (steps > 0)
        progress = torch.where(known, walked / end, k / steps.clamp(min=1))
        weights = _weights(pulls, before, end, progress, known)
        gain, square_way, met_way = nothing, nothing, nothing
        if tail is not None:
            gain = (weights * tail.gains).sum(1)
            met_way = (weights * before.way).sum(1)
            square_way = (weights * before.way**2).sum(1)
        rest = base + gain + (walk.shares * x).sum(1)
        if k > 0:
            way = torch.where(live, way + factor * inverse, way)
            squares = torch.where(live, squares + (factor * inverse) ** 2, squares)
        inverse = 1 / (rest + torch.exp((walk.lift + own_change).clamp(max=LARGEST)))
        part = share * inverse
        own = classes.sum(rest * part)
        mean = classes.sum(walk.shares * part[:, None]) * x
        factor, of_tail = torch.ones_like(share), nothing
        if normalize:
            length = (weights * length_of_tail).sum(1)
            square = own * own * (1 + length) + (mean * mean).sum(1)
            # without gains the tail's part is unknown: it is at most the target's
            longest = square if tail is not None else square + own * own
            factor = torch.where(longest.sqrt() < NORM_FLOOR, 0.0, 1 / square.sqrt())
            of_tail = torch.where(factor > 0, length * own * own / square, 0.0)
        if tail is not None and k > 0:
            far = classes.max(_excess(way, met_way))
            far_square = classes.max(_excess(way * way, square_way))
            gained = classes.max(gain.abs() * inverse)
            bound = torch.where(gained == 0, 0.0, (far + 2 * tail.most * far_square) * gained)
            if normalize:
                speed = torch.where(before.own > 0, before.inverse / before.own, 0.0)
                met = (weights * speed**2).sum(1)
                ratio = classes.max(_excess(inverse * inverse / met, own * own))
                shape = (ratio + 2 * tail.most * far) * of_tail
                bound = torch.maximum(bound, torch.where(of_tail == 0, 0.0, shape))
            measured = live & known
            error = torch.where(measured, torch.maximum(error, bound), error)
            distance = torch.where(measured, torch.maximum(distance, far), distance)

        reached = (progress[:, None] >= places).sum(1)
        due = (k > 0) & ((k == steps) | (steps <= NODES) | (reached > passed))
        passed = torch.maximum(passed, reached)
        due = due & (walked > 0) & live
        # one that is too near the last takes its place
        far_enough = (count == 0) | (walked - last_at > NEAREST * walked)
        count = torch.where(due & far_enough & (count < NODES), count + 1, count)
        due = due | (live & (k == 0))
        bend = torch.where(walked > 0, squares_walked / (2 * walked * walked), 0.0)
        last_at = torch.where(due, walked, last_at)
        kappa = torch.where(due, bend, kappa)
        for values, value in zip(noted, (walked, own, bend, way, inverse), strict=True):
            here = values.gather(1, count[:, None])[:, 0]
            values.scatter_(1, count[:, None], torch.where(due, value, here)[:, None])
        ends = live & (k == steps)
        rest_at_end = torch.where(ends, rest, rest_at_end)
        moves = live & ~ends
        change = torch.where(moves[:, None], change + (walk.size * factor)[:, None] * mean, change)
        x = torch.exp(change)
        own_change = torch.where(moves, own_change - walk.size * factor * own, own_change)
        weight = torch.where(moves, factor * classes.sum(part), 0.0)
        walked, squares_walked = walked + weight, squares_walked + weight * weight
    if tail is not None:
        # κ of a class is at most the largest of its rows, and at least that of equal steps
        bends = classes.max(torch.where(way > 0, squares / (2 * way * way), 0.0))
        spread = torch.maximum(kappa - 0.5 / steps.clamp(min=1), bends - kappa)
        moved = known & (walked > 0)
        error = torch.where(moved, torch.maximum(error, tail.most**2 * spread), error)
    at, owns, kappas, ways, inverses = noted
    nodes = Nodes(count, at, owns, kappas, ways, inverses)
    return _Found(nodes, way, kappa, change, own_change, rest_at_end, error, distance)


def _excess(value: Tensor, found: Tensor) -> Tensor:
    """How far a value is off the one that gains were found for, in units of the latter."""
    return torch.where(
        found > 0, (value / found - 1).abs(), torch.where(value == 0, 0.0, torch.inf)
    )


def _exists(nodes: Nodes) -> Tensor:
    """(N, M) bool: the nodes that there are."""
    return torch.arange(NODES + 1, device=nodes.last.device) <= nodes.last[:, None]


def _pulls(nodes: Nodes, end: Tensor, known: Tensor) -> Tensor:
    """(N, M): factors of the nodes in the barycentric formula."""
    exists = _exists(nodes) & known[:, None]
    apart = (nodes.at[:, :, None] - nodes.at[:, None, :]) / end[:, None, None]
    others = exists[:, None, :] & ~torch.eye(NODES + 1, dtype=torch.bool, device=end.device)
    product = torch.where(others, 1 / torch.where(others, apart, 1.0), 1.0).prod(2)
    return torch.where(exists, product, 0.0)


def _weights(pulls: Tensor, nodes: Nodes, end: Tensor, progress: Tensor, known: Tensor) -> Tensor:
    """(N, M): weights of the nodes in a polynomial through them; 0 where none are known."""
    off = progress.clamp(max=BEYOND)[:, None] - nodes.at / end[:, None]
    # at a node its own weight is overwhelming
    parts = pulls / torch.where(off == 0, 1e-100, off)
    total = parts.sum(1, keepdim=True)
    return torch.where(known[:, None], parts / torch.where(total == 0, 1.0, total), 0.0)


def least_exact(problem: Problem, walk: Walk) -> Tensor:
    """(N,): B of an exact class is larger. That of all classes adds up to what is walked times the
    step, so that no more than HEADS exceed their share of it."""
    if problem.classes <= HEADS:
        return torch.full_like(walk.lift, -1)
    end = walk.nodes.at.gather(1, walk.nodes.last[:, None])[:, 0]
    return (1.001 / HEADS * walk.size.abs() * end).clamp(min=LARGEST_TAIL)


class _Alike(NamedTuple):
    """Classes that have about as many rows, (G, S): what sums over the rows of each is a product of
    matrices, of all nodes at once."""

    rows: Tensor  # (G, S); a class with fewer has its first row in the place of those it lacks
    there: Tensor  # (G, S) float64: 0 of a row that is lacking
    all: bool  # one class, and its rows are those that there are

    def each(self, values: Tensor) -> Tensor:
        """(G, S, …) of (N, …)."""
        return values[None] if self.all else values[self.rows]

    def first(self, values: Tensor) -> Tensor:
        """(G, …) of (N, …) that hold the same for all rows of a class."""
        return values[self.rows[:, 0]]

    def put(self, place: Tensor, values: Tensor) -> None:
        """Into (N, …): values (G, S, …)."""
        here = self.there > 0
        place[self.rows[here]] = values[here]


def _alike(classes: Classes, live: Tensor) -> list[_Alike]:
    """Classes with live rows, those of about as many together: at most twice as many as any."""
    rows = live.nonzero()[:, 0]
    slot, order = classes.slot[rows].sort(stable=True)
    rows, sizes = rows[order], slot.unique_consecutive(return_counts=True)[1]
    begins, powers = sizes.cumsum(0) - sizes, sizes.double().frexp().exponent
    found = []
    for power in powers.unique():
        begin, size = begins[powers == power, None], sizes[powers == power, None]
        each = torch.arange(int(size.max()), device=rows.device)
        there = each < size
        places = rows[begin + torch.where(there, each, 0)]
        whole = places.shape[0] == 1 and places.shape[1] == live.shape[0]
        found.append(_Alike(places, there.double(), whole))
    return found


def reduce(problem: Problem, round: Round, known: Known, perturbed: Perturbed) -> Tail:
    """The sums of one turn over the problem's columns, chunk by chunk of logits."""
    assert known.walk is not None
    steps = known.walk.steps
    rows, n = steps.nonzero()[:, 0], steps.shape[0]
    if 2 * rows.shape[0] <= n:  # most are alone in their class: a copy of the others is little
        some = _sums(_of_rows(problem, rows), round, _known_of(known, rows), perturbed)
        return Tail(*(_spread(getattr(some, f.name), rows, n, f.name) for f in fields(some)))
    return _sums(problem, round, known, perturbed)


def _of_rows(problem: Problem, rows: Tensor) -> Problem:
    """The problem of whole classes."""
    given = {name: getattr(problem, name) for name in _BY_ROW}
    taken = {name: value[rows] for name, value in given.items() if value is not None}
    return problem._replace(input=problem.input[rows], target=problem.target[rows], **taken)


def _known_of(known: Known, rows: Tensor) -> Known:
    walk, found = known.walk, known.learned
    assert walk is not None
    assert found is not None
    nodes = Nodes._make(value[rows] for value in walk.nodes)
    some = {name: getattr(walk, name)[rows] for name in Walk._fields if name != "nodes"}
    learned = found._replace(shift=found.shift[rows], inverse=found.inverse[rows])
    return Known(known.terms[rows], learned=learned, walk=Walk(nodes=nodes, **some))


def _spread(values: Tensor, rows: Tensor, n: int, name: str) -> Tensor:
    """(n, …): those of all rows; none where there was nothing to sum."""
    none = -1 if name == "columns" else 0
    return values.new_full((n, *values.shape[1:]), none).index_copy(0, rows, values)


def _sums(problem: Problem, round: Round, known: Known, perturbed: Perturbed) -> Tail:
    assert known.walk is not None
    assert known.learned is not None
    walk, found = known.walk, known.learned
    n, width = problem.input.shape
    label = Rows.of(problem).label[:, None] - problem.options.first
    classes = Classes.of(problem)
    tails = [
        _OfAlike(problem, round, walk, alike, classes, label)
        for alike in _alike(classes, walk.steps > 0)
    ]
    size = max(1, CHUNK // max(1, n))
    for begin in range(0, width if tails else 0, size):
        end = min(width, begin + size)
        z = perturbed(problem, known, begin, end)
        q = (z - found.shift[:, None]).exp_().mul_(found.inverse[:, None])
        own = (label - begin).clamp(0, end - begin - 1)
        q.scatter_(1, own, torch.where(label - begin == own, 0.0, q.gather(1, own)))
        for tail in tails:
            tail.add(q, begin, end)
    room = _room(problem, round)
    zeros = torch.zeros_like
    sums = Tail(
        mass=zeros(walk.lift),
        gains=zeros(walk.nodes.way),
        squares=zeros(walk.nodes.way),
        most=zeros(walk.lift),
        listed=zeros(walk.steps),
        columns=walk.steps.new_full((n, room), -1),
        shares=walk.lift.new_zeros((n, room)),
    )
    for tail in tails:
        tail.put(sums)
    return sums


def _room(problem: Problem, round: Round) -> int:
    """For how many exact classes of a row there is room in a part; they are found but once."""
    return min(HEADS, problem.input.shape[1]) if round.turn == 0 else 0


class _OfAlike:
    """The sums of some classes, on their way through the columns."""

    def __init__(
        self,
        problem: Problem,
        round: Round,
        walk: Walk,
        alike: _Alike,
        classes: Classes,
        label: Tensor,
    ) -> None:
        nodes, first = walk.nodes, problem.options.first
        self._alike, self._offset = alike, first
        self._label = alike.first(label)
        self._threshold = alike.first(least_exact(problem, walk))[:, None]
        self._size = alike.first(walk.size)[:, None]
        self._listing = round.turn == 0
        self._listed_before = alike.first(walk.columns) - first
        # (G, M, 1); what a node that is none gains is nothing, as its way is 0
        kappa = alike.first(nodes.kappa)[:, :, None]
        self._second = 1 - kappa
        self._third = 1 - kappa * (2.5 - kappa * 5 / 3)
        self._exists = alike.first(_exists(nodes))
        share = (alike.each(classes.shares(problem)) * alike.there)[:, None]
        self._of_way = share * alike.each(nodes.way).mT * self._size[:, :, None]  # (G, M, S)
        self._of_inverse = share * alike.each(nodes.inverse).mT
        self._normalize = problem.options.normalize
        last = alike.first(nodes.last)[:, None, None].expand(-1, 1, share.shape[2])
        self._of_last = self._of_way.gather(1, last).abs()
        (g, s), m = alike.rows.shape, nodes.way.shape[1]
        self._room = _room(problem, round)
        self._mass, self._most = share.new_zeros((g, s)), share.new_zeros(g)
        self._gains, self._squares = share.new_zeros((g, s, m)), share.new_zeros((g, m))
        self._columns = alike.rows.new_full((g, self._room + 1), -1)
        self._shares = share.new_zeros((g, s, self._room + 1))
        self._listed = alike.rows.new_zeros(g)

    def add(self, q: Tensor, begin: int, end: int) -> None:
        """Columns from begin to end: q (N, end − begin), of a row's own label 0."""
        q = self._alike.each(q)
        of_all = torch.bmm(self._of_last, q)[:, 0]
        exact = self._list(q, of_all, begin, end) if self._listing else self._known(begin, end)
        q = q.masked_fill(exact[:, None], 0.0)
        self._mass += q.sum(2)
        self._most = torch.maximum(self._most, of_all.masked_fill(exact, 0.0).amax(1))
        b = torch.bmm(self._of_way, q)
        gain = b * (1 + b * (self._second + b * self._third))
        self._gains += torch.bmm(q, gain.mT)
        if self._normalize:
            mean = torch.bmm(self._of_inverse, q)
            self._squares += (mean * (1 + gain)).square().sum(2)

    def _list(self, q: Tensor, of_all: Tensor, begin: int, end: int) -> Tensor:
        """(G, end − begin) bool: the classes that are exact from now on, which are listed."""
        each = torch.arange(begin, end, device=q.device)
        exact = (of_all > self._threshold) & (each != self._label)
        place = self._listed[:, None] + exact.cumsum(1) - 1
        # what has no room goes behind the last place
        place = torch.where(exact & (place < self._room), place, self._room)
        self._columns.scatter_(1, place, (each + self._offset).expand_as(place))
        self._shares.scatter_(2, place[:, None].expand_as(q), q)
        self._listed += exact.sum(1)
        return exact

    def _known(self, begin: int, end: int) -> Tensor:
        """(G, end − begin) bool: the classes that are listed."""
        there = self._listed_before
        wide = torch.zeros((there.shape[0], end - begin + 1), dtype=torch.bool, device=there.device)
        inside = (there >= begin) & (there < end)
        return wide.scatter_(1, torch.where(inside, there - begin, end - begin), True)[:, :-1]

    def put(self, sums: Tail) -> None:
        """Where the rows of the classes have theirs."""
        alike, shape = self._alike, self._alike.rows.shape
        alike.put(sums.mass, self._mass)
        alike.put(sums.gains, self._gains)
        squares = torch.where(self._exists, self._squares, 0.0)
        for place, values in (
            (sums.squares, squares),
            (sums.most, self._most),
            (sums.listed, self._listed),
            (sums.columns, self._columns[:, : self._room]),
        ):
            alike.put(place, values[:, None].expand(*shape, *values.shape[1:]))
        alike.put(sums.shares, self._shares[:, :, : self._room])
