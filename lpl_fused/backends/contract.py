"""What a backend is: a module of this protocol. `backends/__init__` says which there are, and which
runs.

The door. A loss is reduced, settled, and differentiated, and whoever wants may stand in between
(steps of a learned perturbation, ranks that have a shard of the classes each, chunks of logits that
come out of a matrix product):

    rounds(problem)                       which reductions it needs; by shapes and options alone
    reduce(problem, round, known)         sums over the problem's columns: a Part, which join
    settle(problem, round, part, known)   what the next round wants to know, at last loss and terms;
                                          small tensors, no logits
    gradient(problem, known, upstream, want)    one sweep

Beside these `reduce` takes Kind.STATISTICS, no round of the loss: see algebra/statistics.py.

`problem.input` may be some columns of all, those from `options.first` on of `options.classes`:
logits (and class probabilities) are of these columns, tables, labels and steps of all classes.
`algebra.sweep` runs the rounds, over one part or many; what is known before the first is
`algebra.settle.begin`. Of a learned perturbation they give what the shortcut does, or nothing: a
row whose error bound is not met (more heads than are listed, a large class in float64) is nan, and
`known.learned.exact` says which. They round z + δ as z is: an offset of 1e4 to float32 logits costs
digits that the shortcut keeps for rows alone in their class.

The shortcut. `forward` does all rounds, and the gradient for an upstream of 1, in one sweep where
it can; `rescale_` makes that the gradient of any other upstream.

A 16-bit gradient is rounded once, whichever way it came; first and second backward are the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..algebra.known import Known
from ..algebra.parts import Part, Round
from ..algebra.statistics import RowStatistics
from ..algebra.terms import Gradients as Gradients
from ..problem import BinaryProblem, Problem

# shape and dtype of a tensor
Form = tuple[tuple[int, ...], torch.dtype]
# makes the steps (C,) of a learned perturbation from the losses (N,) of the rows without it
Choose = Callable[[Tensor], Tensor]


class Forward(NamedTuple):
    """What the shortcut leaves."""

    loss: Tensor  # 0-dim, or (N,) for reduction "none"; accumulate dtype
    # 0-dim: what the loss was divided by, where it was and a gradient may want it
    norm: Tensor | None = None
    terms: Tensor | None = None  # (N, len(Terms)), upstream 1; None where a gradient needs none
    grad: Tensor | None = None  # (N, C), input dtype: dL/d input for an upstream of 1; if wanted
    steps: Tensor | None = None  # those that `choose` has made
    state: tuple[Tensor, ...] = ()  # of a problem with steps, of no `grad`: see `learned_state`
    statistics: RowStatistics | None = None  # of the rows, if wanted


def leaves_terms(problem: Problem, want_grad: bool, final: bool) -> bool:
    """Whether `forward` leaves the terms of rows: where `gradient` or `rescale_` may ask for them.
    Of a learned perturbation both find δ anew, or have its state."""
    if final or problem.steps is not None:
        return False
    # a 16-bit gradient may have to be made anew
    return not want_grad or problem.input.element_size() == 2


class Backend(Protocol):
    """The softmax link."""

    def unavailable(self) -> str | None:
        """Why it cannot run here at all; None if it can."""

    def unsupported(self, device: str, dtype: torch.dtype) -> str | None:
        """Why it cannot run on such logits; None if it can."""

    def describe(self) -> str:
        """What would run, in words."""
        ...

    def rounds(self, problem: Problem) -> tuple[Round, ...]: ...

    def reduce(self, problem: Problem, round: Round, known: Known) -> Part: ...

    def settle(self, problem: Problem, round: Round, part: Part, known: Known) -> Known: ...

    def perturbed(self, problem: Problem, known: Known, begin: int, end: int) -> Tensor:
        """z (N, end − begin) of these columns of the problem's, without δ; accumulate dtype."""
        ...

    def gradient(
        self,
        problem: Problem,
        known: Known,
        upstream: Tensor,
        want: Sequence[str],
        out: Tensor | None = None,
        norm: Tensor | None = None,
    ) -> Gradients:
        """`upstream` (N,), stride 0 or 1: the gradient of each row's loss; or 0-dim, that of all,
        still to be divided by `norm` (0-dim) if there is one. `want`: fields of Gradients. `out`
        (N, W), contiguous: where the input's goes. That may be the input itself, if nothing else is
        wanted: whoever writes a number has read it, and all else that it is made of is in
        `known`."""
        ...

    def forward(
        self,
        problem: Problem,
        want_grad: bool,
        choose: Choose | None = None,
        *,
        final: bool = False,
        return_stats: bool = False,
    ) -> Forward:
        """`final`: the loss is all, nobody will ask for a gradient. `return_stats`: statistics of
        the rows are wanted, too; all else is what it is without."""
        ...

    def learned_state(self, problem: Problem) -> tuple[Form, ...]:
        """What `forward` leaves of a problem with steps as its `state`, where neither `want_grad`
        nor `final`: the few numbers of a row (no N×C) from which `learned_gradient` is one sweep.
        By shapes and options alone. (): nothing, δ is found anew.

        Where there is a state ops/ differentiates by it; where there is none, by `forward`'s own
        gradient, which saves finding δ twice."""
        ...

    def rescale_(self, problem: Problem, forward: Forward, upstream: Tensor) -> Tensor | None:
        """`forward.grad` for an upstream of `upstream`, 0-dim or (N,) for reduction "none", in its
        place. Ignored rows must not hear of one that is not finite: None, with nothing done, where
        the backend leaves it to its caller to see to that.

        Of a problem with more than 16 bits it may know no more than the gradient, in the place of
        the logits, the labels and the options."""
        ...

    def learned_gradient(
        self,
        problem: Problem,
        upstream: Tensor,
        state: tuple[Tensor, ...] = (),
        norm: Tensor | None = None,
    ) -> Tensor:
        """dL/d input (N, C) of a problem with steps; `upstream` and `norm` as `gradient`'s.
        `state`: what `forward` left of the same problem; without it δ is found anew."""
        ...

    def learned_perturbation(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """(delta (N, C), slot (N,)): row i has delta[slot[i]]. As the reference's."""
        ...


class BinaryBackend(Protocol):
    """The sigmoid link: every logit is its own loss, and its learned perturbation sums over rows,
    so that there is nothing to reduce over columns."""

    def binary_forward(self, problem: BinaryProblem, want_grad: bool) -> Forward:
        """`terms` is None, `loss` (N, C) for reduction "none"."""
        ...

    def binary_gradient(self, problem: BinaryProblem, upstream: Tensor) -> Tensor:
        """dL/d input (N, C); `upstream` the gradient of each logit's loss, (N, C) or 0-dim."""
        ...

    def binary_rescale_(
        self, problem: BinaryProblem, forward: Forward, upstream: Tensor
    ) -> Tensor | None:
        """As `rescale_`, of labels that are missing."""

    def binary_perturbation(self, problem: BinaryProblem) -> Tensor:
        """(2, C), as reference.sigmoid.learned_perturbation."""
        ...
