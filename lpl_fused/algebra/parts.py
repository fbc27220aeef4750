"""What a backend sums over columns, round by round. Parts of disjoint columns join into the part of
their union; a part of no columns is neutral.

Numbers are (N,), one a row, float64, unless a shape is given. Rows that are ignored hold what no
columns add up to. A kernel stores them as the columns of one (N, len) tensor, in the order of the
fields; `Mass.of(stored)` reads them.

    e_j = exp(z_j − shift),  z the perturbed logits,  Σ over the columns of the part
    w_j = class weights, for class probabilities those times the probability
    x_j = (dz_j/dT_j)·u_j/n: what a norm multiplies by dL/dz_j; u_j = −inf counts as 0
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Part")


class Kind(Enum):
    """What a reduction is of; see the parts of these names."""

    SIZE = "size"
    MASS = "mass"
    DETAIL = "detail"
    RIVALS = "rivals"
    GROUP = "group"
    STATISTICS = "statistics"


class Round(NamedTuple):
    """One reduction. `turn` counts those of a kind that is repeated."""

    kind: Kind
    turn: int = 0


class Part:
    """Sums over some columns."""

    beside: ClassVar[int] = 0  # how many fields, the last, are no numbers of a row

    @classmethod
    def numbers(cls) -> list[str]:
        """The names of a row's numbers, in their order."""
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        return names[: len(names) - cls.beside]

    def join(self: Self, other: Self) -> Self:
        """The part of the columns of both."""
        raise NotImplementedError

    @classmethod
    def of(cls: type[Self], stored: Tensor, *others: Any) -> Self:
        """From the numbers that a kernel has stored, and what the part has beside them."""
        return cls(*stored.double().unbind(1), *others)


def finite(shift: Tensor) -> Tensor:
    """What to subtract before exp: 0 where there is nothing but −inf."""
    return torch.where(shift == -torch.inf, 0.0, shift)


def rescaled(total: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Σ exp(z − new) from Σ exp(z − old), old ≤ new; 0 stays 0 where there were no columns."""
    return total * torch.exp(old - finite(new))


def power(x: Tensor, p: float) -> Tensor:
    """x^p for x ≥ 0."""
    return x if p == 1 else x * x if p == 2 else x**p


@dataclass(frozen=True)
class Size(Part):
    """Of the raw logits: what their norm is made of, and the maximum that a penalty is below."""

    peak: Tensor  # max |u_j|, u_j = −inf counting as 0
    total: Tensor  # Σ (|u_j|/peak)^p, 0 where peak is; for p = inf how many |u_j| are the peak
    top: Tensor  # max u_j
    ties: Tensor  # how many u_j are the top
    p: float  # of the norm

    beside = 1

    def join(self, other: Size) -> Size:
        peak = torch.maximum(self.peak, other.peak)
        unit = torch.where(peak == 0, 1.0, peak)
        totals = [part.total * self._shrunk(part.peak, peak, unit) for part in (self, other)]
        top = torch.maximum(self.top, other.top)
        ties = [torch.where(part.top == top, part.ties, 0.0) for part in (self, other)]
        return Size(peak, sum(totals), top, sum(ties), self.p)  # type: ignore[arg-type]

    def _shrunk(self, peak: Tensor, joint: Tensor, unit: Tensor) -> Tensor:
        return (peak == joint).double() if self.p == torch.inf else power(peak / unit, self.p)


@dataclass(frozen=True)
class Mass(Part):
    """What a softmax's loss is made of.

    Where nothing of a target is spread over the classes, `shift`, `rest` and `along` leave its
    label out, and the other one, so that 1 − p keeps its digits.
    """

    shift: Tensor  # max z_j, −inf of no columns; 0 serves as the shift of e_j where it is −inf
    rest: Tensor  # Σ e_j
    own: Tensor  # z at the label, −inf where its column is elsewhere
    other: Tensor  # z at the other label of a mixed target, likewise
    mass: Tensor  # Σ w_j, where targets are smoothed or dense
    pull: Tensor  # Σ w_j·(z_j − shift), where φ = log as well; of dense targets where w_j ≠ 0
    along: Tensor  # Σ e_j·x_j, where there is a norm
    along_own: Tensor  # x at the label, 0 where its column is elsewhere
    along_other: Tensor
    along_spread: Tensor  # Σ w_j·x_j, where targets are smoothed or dense and φ = log

    def join(self, other: Mass) -> Mass:
        shift = torch.maximum(self.shift, other.shift)
        pair = (self, other)

        def pull(part: Mass) -> Tensor:
            return part.pull + part.mass * (finite(part.shift) - finite(shift))

        return Mass(
            shift=shift,
            rest=_sum(rescaled(part.rest, part.shift, shift) for part in pair),
            own=torch.maximum(self.own, other.own),
            other=torch.maximum(self.other, other.other),
            mass=self.mass + other.mass,
            pull=pull(self) + pull(other),
            along=_sum(rescaled(part.along, part.shift, shift) for part in pair),
            along_own=self.along_own + other.along_own,
            along_other=self.along_other + other.along_other,
            along_spread=self.along_spread + other.along_spread,
        )


@dataclass(frozen=True)
class Detail(Part):
    """What is summed once ℓ_j and the penalty's maximum are known."""

    value: Tensor  # Σ w_j·φ(ℓ_j), where targets are smoothed or dense and φ is not log; so the next
    slope: Tensor  # Σ w_j·φ'(ℓ_j)
    along: Tensor  # Σ w_j·φ'(ℓ_j)·x_j, where there is a norm as well
    penalty: Tensor  # Σ P(h_j), where there is a penalty; so the next
    push: Tensor  # Σ P'(h_j)

    def join(self, other: Detail) -> Detail:
        return Detail(*(a + b for a, b in zip(_numbers(self), _numbers(other), strict=True)))


@dataclass(frozen=True)
class Rivals(Part):
    """What the learned perturbation's steps are made of: all columns but the label's.

    Those that have more than their row's threshold of the part's mass, the heads, are listed; of
    the others, the tail, power sums do. A part's mass is at most the whole's, so that a part may
    list too many, never too few; `settle` puts those back that the whole's threshold leaves out.
    """

    shift: Tensor  # max z_j of the rivals, −inf of no columns
    rest: Tensor  # Σ e_j, heads among them
    own: Tensor  # z at the label, −inf where its column is elsewhere
    largest: Tensor  # max e_j of the tail, 0 of none
    listed: Tensor  # how many heads there are; more than are listed where these have no room
    powers: Tensor  # (N, R): Σ e_j^r of the tail, r = 1 … R
    columns: Tensor  # (N, H), int64: of the heads, numbered among all classes, ascending; −1: none
    logits: Tensor  # (N, H): z of the heads; −inf: none

    beside = 3

    @classmethod
    def of(cls, stored: Tensor, *others: Any) -> Rivals:
        powers, columns, logits = others
        shift, rest, own, largest, listed = stored.double().unbind(1)
        of_heads = columns.long(), logits.double()
        return cls(shift, rest, own, largest, listed, powers.double(), *of_heads)

    def join(self, other: Rivals) -> Rivals:
        shift = torch.maximum(self.shift, other.shift)
        pair = (self, other)
        orders = torch.arange(1, self.powers.shape[1] + 1, device=shift.device)

        def powers(part: Rivals) -> Tensor:
            return part.powers * torch.exp((part.shift - finite(shift))[:, None] * orders)

        return Rivals(
            shift=shift,
            rest=_sum(rescaled(part.rest, part.shift, shift) for part in pair),
            own=torch.maximum(self.own, other.own),
            largest=torch.maximum(*(rescaled(part.largest, part.shift, shift) for part in pair)),
            # what has no room in a part is missed in the whole
            listed=self.listed + other.listed,
            powers=powers(self) + powers(other),
            columns=torch.cat([self.columns, other.columns], 1),
            logits=torch.cat([self.logits, other.logits], 1),
        )


@dataclass(frozen=True)
class Statistics(Part):
    """Statistics of rows beside their loss: see statistics.py. Rows that are ignored hold
    anything."""

    shift: Tensor  # max z_j, −inf of no columns
    total: Tensor  # Σ e_j
    heat: Tensor  # Σ e_j·(z_j − shift); what is at −inf adds nothing
    top: Tensor  # max u_j, the raw logits; −inf of no columns
    place: Tensor  # the first class that has it, numbered among all; inf of no columns
    likely: Tensor  # of class probabilities the largest, −inf of no columns or of labels
    aim: Tensor  # the first class that has it, likewise

    beside = 2

    def join(self, other: Statistics) -> Statistics:
        shift = torch.maximum(self.shift, other.shift)
        pair = (self, other)

        def heat(part: Statistics) -> Tensor:
            further = torch.where(part.shift == -torch.inf, 0.0, part.shift - finite(shift))
            return rescaled(part.heat + part.total * further, part.shift, shift)

        top, place = _first_largest((self.top, self.place), (other.top, other.place))
        likely, aim = _first_largest((self.likely, self.aim), (other.likely, other.aim))
        return Statistics(
            shift=shift,
            total=_sum(rescaled(part.total, part.shift, shift) for part in pair),
            heat=_sum(heat(part) for part in pair),
            top=top,
            place=place,
            likely=likely,
            aim=aim,
        )


def _first_largest(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of two values and where they are the larger; of equal ones that which is earlier."""
    first = (one[0] > two[0]) | ((one[0] == two[0]) & (one[1] < two[1]))
    return torch.where(first, one[0], two[0]), torch.where(first, one[1], two[1])


def _numbers(part: Part) -> list[Tensor]:
    return [getattr(part, field.name) for field in fields(part)]  # type: ignore[arg-type]


def _sum(values: Any) -> Tensor:
    first, second = values
    return first + second  # type: ignore[no-any-return]
