"""Rows of a learned perturbation that the sums over their columns do not settle: every rank gets
all their logits and takes their steps one by one, one softmax each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..algebra import learned
from ..algebra.known import Known
from ..algebra.parts import finite
from ..algebra.rows import Classes, Rows
from ..algebra.settle import stepped
from ..problem import Problem
from .agree import Shards
from .local import gathered

LOGITS = 1 << 24  # of whole rows that are gathered at once, unless one class has more


def left_rows(door: Any, problem: Problem, shards: Shards, known: Known) -> Known:
    """What is known once rows are exact that were not: a collective for every LOGITS of theirs."""
    found = known.learned
    assert found is not None
    classes = Classes.of(problem)
    left = classes.max((~found.exact).double()) > 0
    if not bool(left.any()):
        return known
    rows = left.nonzero()[:, 0]
    rows = rows[classes.slot[rows].argsort(stable=True)]
    found = found._replace(
        **{name: getattr(found, name).clone() for name in ("shift", "inverse", "lift", "rest")},
        columns=found.columns.masked_fill(left[:, None], -1),
        exact=found.exact | left,
    )
    made = []
    for index in _chunks(classes.slot[rows], max(1, LOGITS // shards.classes)):
        some = rows[index]
        z = _of_all_classes(door, problem, shards, known, some)
        delta = learned.by_plain_steps(_of(problem, some), z)
        moved = z + delta
        label = Rows.of(problem).label[some][:, None]
        rivals = moved.scatter(1, label, -torch.inf)
        top = finite(rivals.amax(1))
        found.shift[some], found.inverse[some] = top, torch.ones_like(top)
        found.rest[some] = torch.exp(rivals - top[:, None]).sum(1)
        found.lift[some] = moved.gather(1, label)[:, 0] - top
        first = shards.first
        here = delta[:, first : first + problem.input.shape[1]]
        made.append(here.to(known.terms.dtype))
    found = found._replace(left=rows, left_delta=torch.cat(made))
    return stepped(problem, known._replace(learned=found, walk=None))


def _chunks(slots: Tensor, size: int) -> Iterator[slice]:
    """Runs of whole classes of about `size` rows, from their rows' slots in order."""
    begin, ends = 0, [*(slots.diff().nonzero()[:, 0] + 1).tolist(), slots.numel()]
    for end, after in zip(ends, [*ends[1:], None], strict=True):
        if after is None or after - begin > size:
            yield slice(begin, end)
            begin = end


def _of_all_classes(
    door: Any, problem: Problem, shards: Shards, known: Known, rows: Tensor
) -> Tensor:
    """z (n, C) of rows, float64."""
    some = _of(problem, rows)
    own = door.perturbed(some, Known(known.terms[rows]), 0, some.input.shape[1])
    parts = gathered(F.pad(own, (0, max(shards.widths) - own.shape[1])), shards.group)
    pairs = zip(parts, shards.widths, strict=True)
    return torch.cat([part[:, :width] for part, width in pairs], 1).double()


def _of(problem: Problem, rows: Tensor) -> Problem:
    """The problem of some rows, as far as their δ is concerned."""
    given = {name: getattr(problem, name) for name in ("lam", "row_index")}
    taken = {name: value[rows] for name, value in given.items() if value is not None}
    input, target = problem.input[rows], problem.target[rows]
    return problem._replace(input=input, target=target, sample_weight=None, **taken)
