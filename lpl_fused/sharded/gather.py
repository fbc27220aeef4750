"""Sums over the columns of all ranks from those of each rank's.

One message a round: what numbers of a row the problem makes use of, float64, and as many listed
classes (heads, exact ones) as there are, row after row, in a place of fixed size. What has no room
there comes in one more collective, of which all know then whether and how large it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import phi
from ..algebra.groups import Tail
from ..algebra.learned import HEADS
from ..algebra.parts import Detail, Kind, Mass, Part, Rivals, Round, Size, Statistics
from ..problem import Problem, accumulate_dtype
from .agree import Shards
from .local import exchanged, gathered

# ranks from which on the rows' owners join them: a collective more, for a sixty-fourth of the bytes
MANY = 64
LISTED = 16  # classes a row for which there is room in a message, on average over the rows


def whole(problem: Problem, shards: Shards, round: Round, part: Part) -> Part:
    """The part of all columns, the same bits on every rank."""
    if len(shards.widths) == 1:
        return part
    names = _used(problem, part)
    numbers = torch.stack([_column(part, name) for name in names], 1)
    for name in _wide(problem, part):
        numbers = torch.cat([numbers, getattr(part, name)], 1)
    if round.kind is not Kind.RIVALS and (round.kind is not Kind.GROUP or round.turn > 0):
        if len(shards.widths) >= MANY:
            return _by_owners(problem, shards, part, names, numbers)
        rows = gathered(numbers.contiguous(), shards.group)
        return _join([_part(problem, part, names, each) for each in rows])
    listed = _Listed.of(problem, part)
    room, dtype = _room(problem, shards), listed.values.dtype
    rows = gathered(_packed(numbers, listed, room), shards.group)
    opened = [_opened(row, numbers.shape, dtype, room) for row in rows]
    counts = torch.stack([each.counts for each in opened])  # (ranks, N)
    totals: list[int] = counts.sum(1).tolist()
    lists = [each.listed for each in opened]
    beyond = max(totals) - room
    if beyond > 0:
        rest = _Flat(*(values[room:] for values in _flat(listed, room + beyond)))
        more = gathered(_words(*rest), shards.group)
        lists = [one.then(_split(two, beyond, dtype)) for one, two in zip(lists, more, strict=True)]
    columns, values = _by_row(counts, totals, lists)
    joined = _join([_part(problem, part, names, each.numbers) for each in opened])
    if isinstance(joined, Rivals):
        return replace(joined, columns=columns, logits=values.double())
    assert isinstance(joined, Tail)
    return replace(joined, columns=columns, shares=values)


# -- numbers of a row ------------------------------------------------------------------------------


def _used(problem: Problem, part: Part) -> list[str]:
    """The numbers, (N,), that say something; all others are what no columns add up to."""
    spread, norm = problem.spread, problem.options.norm_p > 0
    if isinstance(part, Mass):
        names = ["shift", "rest", "own"]
        names += ["other"] if problem.other is not None else []
        names += ["mass", "pull"] if spread else []
        names += ["along", "along_own"] if norm else []
        names += ["along_other"] if norm and problem.other is not None else []
        return names + (["along_spread"] if norm and spread else [])
    if isinstance(part, Detail):
        of_phi = spread and problem.options.phi != phi.LOG
        names = ["value", "slope"] if of_phi else []
        names += ["along"] if of_phi and norm else []
        return names + (["penalty", "push"] if problem.options.penalty else [])
    if isinstance(part, Size):
        return ["peak", "total", "top", "ties"]
    if isinstance(part, Statistics):
        names = ["shift", "total", "heat", "top", "place"]
        return names + (["likely", "aim"] if problem.dense else [])
    if isinstance(part, Rivals):
        return ["shift", "rest", "own", "largest", "listed"]
    return ["mass", "most", "listed"]


def _wide(problem: Problem, part: Part) -> list[str]:
    """The numbers of which a row has several."""
    if isinstance(part, Rivals):
        return ["powers"]
    if isinstance(part, Tail):
        return ["gains", *(["squares"] if problem.options.normalize else [])]
    return []


def _column(part: Part, name: str) -> Tensor:
    return getattr(part, name).double()  # type: ignore[no-any-return]


_OF_NOTHING = {"other": -torch.inf}


def _part(problem: Problem, like: Part, names: Sequence[str], numbers: Tensor) -> Part:
    """A rank's part from the numbers that it sent, its lists empty."""
    found = dict(zip(names, numbers[:, : len(names)].unbind(1), strict=True))
    begin = len(names)
    for name in _wide(problem, like):
        width = getattr(like, name).shape[1]
        found[name] = numbers[:, begin : begin + width]
        begin += width
    made = {}
    for field in fields(like):  # type: ignore[arg-type]
        own = getattr(like, field.name)
        if field.name in found:
            made[field.name] = found[field.name]
        elif field.name in ("columns", "logits", "shares"):
            made[field.name] = own[:, :0]
        elif isinstance(own, Tensor):
            made[field.name] = torch.full_like(own, _OF_NOTHING.get(field.name, 0.0))
        else:
            made[field.name] = own
    return type(like)(**made)


def _by_owners(
    problem: Problem, shards: Shards, part: Part, names: Sequence[str], numbers: Tensor
) -> Part:
    """The part of all columns by two collectives, of which a rank hears twice a rank's numbers,
    however many ranks there are: each joins some of the rows, in the same order, and sends these.
    """
    rows, ranks = numbers.shape[0], len(shards.widths)
    own = -(-rows // ranks)  # rows that a rank joins
    like = replace(part, **{f.name: _first(getattr(part, f.name), own) for f in fields(part)})  # type: ignore[arg-type, type-var]
    found = exchanged(F.pad(numbers, (0, 0, 0, own * ranks - rows)), shards.group)
    joined = _join([_part(problem, like, names, each) for each in found.chunk(ranks)])
    made = torch.stack([_column(joined, name) for name in names], 1)
    for name in _wide(problem, part):
        made = torch.cat([made, getattr(joined, name)], 1)
    whole = torch.cat(gathered(made.contiguous(), shards.group))[:rows]
    return _part(problem, part, names, whole)


def _first(value: Any, rows: int) -> Any:
    return value[:rows] if isinstance(value, Tensor) else value


def _join(parts: list[Part]) -> Part:
    return functools.reduce(lambda a, b: a.join(b), parts)


# -- lists -----------------------------------------------------------------------------------------


class _Flat(NamedTuple):
    """Listed classes of all rows, one row after the other."""

    columns: Tensor  # int32
    values: Tensor

    def then(self, other: _Flat) -> _Flat:
        return _Flat(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class _Listed(NamedTuple):
    """The lists of a part's rows."""

    there: Tensor  # (N, H) bool
    columns: Tensor
    values: Tensor

    @staticmethod
    def of(problem: Problem, part: Part) -> _Listed:
        if isinstance(part, Rivals):  # z, as it was made
            values = part.logits.to(accumulate_dtype(problem.input.dtype))
        else:
            assert isinstance(part, Tail)
            values = part.shares
        return _Listed(part.columns >= 0, part.columns, values)


class _Opened(NamedTuple):
    numbers: Tensor
    counts: Tensor  # (N,) int64
    listed: _Flat


def _room(problem: Problem, shards: Shards) -> int:
    """For how many listed classes of all rows there is room in a message: of so few classes that
    all are listed, for all."""
    rows = problem.input.shape[0]
    if shards.classes <= HEADS:
        return rows * max(shards.widths)
    return rows * min(LISTED, max(shards.widths)) + 64


def _flat(listed: _Listed, size: int) -> _Flat:
    """The lists, one after the other, `size` of them; without a look at how many there are."""
    place = listed.there.reshape(-1).cumsum(0) - 1
    place = torch.where(listed.there.reshape(-1) & (place < size), place, size)
    made = []
    for values, dtype in ((listed.columns, torch.int32), (listed.values, listed.values.dtype)):
        flat = values.new_zeros(size + 1, dtype=dtype)
        made.append(flat.scatter_(0, place, values.reshape(-1).to(dtype))[:size])
    return _Flat(*made)


def _words(*tensors: Tensor) -> Tensor:
    """One message of tensors of 32 and 64 bits."""
    return torch.cat([tensor.contiguous().view(torch.int32).reshape(-1) for tensor in tensors])


def _split(words: Tensor, size: int, dtype: torch.dtype) -> _Flat:
    """What `_words` made of a `_Flat` of this size."""
    # where it lies now 64 bits may not begin
    return _Flat(words[:size], words[size : size + size * dtype.itemsize // 4].clone().view(dtype))


def _packed(numbers: Tensor, listed: _Listed, room: int) -> Tensor:
    flat = _flat(listed, room)
    return _words(numbers, listed.there.sum(1).int(), *flat)


def _opened(words: Tensor, shape: torch.Size, dtype: torch.dtype, room: int) -> _Opened:
    rows, width = shape
    numbers = words[: 2 * rows * width].view(torch.float64).view(rows, width)
    words = words[2 * rows * width :]
    return _Opened(numbers, words[:rows].long(), _split(words[rows:], room, dtype))


def _by_row(counts: Tensor, totals: Sequence[int], lists: Sequence[_Flat]) -> tuple[Tensor, Tensor]:
    """((N, H) int64 columns, −1 where there is none, and their values) of all ranks' lists."""
    ranks, rows = counts.shape
    width = int(counts.sum(0).max()) if rows else 0
    columns = counts.new_full((rows, width), -1)
    values = lists[0].values.new_zeros((rows, width))
    each, before = torch.arange(rows, device=counts.device), torch.zeros_like(counts[0])
    for rank in range(ranks):
        count = counts[rank]
        row = each.repeat_interleave(count, output_size=totals[rank])
        begin = count.cumsum(0) - count  # of each row in the rank's list
        place = torch.arange(row.numel(), device=row.device) - begin[row] + before[row]
        columns[row, place] = lists[rank].columns[: totals[rank]].long()
        values[row, place] = lists[rank].values[: totals[rank]]
        before = before + count
    return columns, values
