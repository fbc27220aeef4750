"""A linear layer's logits chunk by chunk, and what becomes of each: nobody holds all of them.

A chunk is some rows and all classes: product, loss and gradient where the logits were, two products
that take the gradient further. Nothing is larger than a chunk but the gradients that are asked for.

* Rows that are ignored come into no chunk, which the host has to see: on a GPU one wait a call. (A
  stream that is captured has them in chunks, their features 0.)
* A learned perturbation is of all rows of a class: rows are taken in the order of their labels, and
  no class is in two chunks. One that is larger than a chunk is cut by columns, whose logits are
  made anew in every round (algebra/sweep.py).
* Of 16 bits the weight's gradient is summed over chunks in float32.
* A problem may have the rows of the features twice, one after the other: with one label each of
  two. Where rows have shares of their class's δ (`lam`) it is found in rounds, by any backend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algebra.known import Known
from ..algebra.learned import by_plain_steps, with_delta
from ..algebra.rows import ignored_rows, mean_as_sum
from ..algebra.statistics import RowStatistics, dtypes, statistics
from ..algebra.sweep import sweep
from ..algebra.terms import Terms
from ..arguments import Integer, Maybe
from ..backends import load
from ..backends.contract import Forward
from ..problem import NONE, TABLES, Problem, accumulate_dtype
from .softmax import with_fixed_delta

OF_LAYER = ("input", "weight", "bias")
WANTED = (*OF_LAYER, *TABLES)  # what may want a gradient

_BY_ROW = ("target", "other", "lam", "sample_weight", "row_index")
# What the logits of a chunk may take where the caller does not say: half of what the weight takes,
# whose gradient takes all of that, and no less than this
_LEAST_MEMORY = 64 * 2**20
# numbers of a part of the weight's gradient, on its way from 16 bits to a sum in float32
_PART = 1 << 20
_PART_OF_GPU = 1 << 25

Index = slice | Tensor  # of rows


class Layer(NamedTuple):
    """What makes the logits: input·weightᵀ + bias, in `dtype`."""

    input: Tensor  # (N, D)
    weight: Tensor  # (C, D)
    bias: Tensor | None  # (C,)
    dtype: torch.dtype
    memory: int  # bytes that a chunk's logits may take; 0: as many as seem right

    def stand_in(self, rows: int) -> Tensor:
        """(rows, C), of the logits' dtype, for all that asks for no numbers: there are none."""
        empty = self.weight.new_empty(self.weight.shape[0], dtype=self.dtype)
        return empty.expand(rows, -1)

    @property
    def widened(self) -> bool:
        """By way of float32: a CPU multiplies float16 number by number."""
        return self.dtype == torch.float16 and self.input.device.type == "cpu"


_MEMORY = Maybe(Integer(least=1))


def checked_memory(value: int | None) -> int:
    """`Layer.memory` as a caller gives it."""
    return _MEMORY("chunk_memory", value) or 0


class Chunks(NamedTuple):
    """How a problem is cut."""

    order: Tensor | None  # (M,) int64: the rows that are taken; None: all, as they come
    runs: list[Run]  # numbered in that order
    rows: int  # that fit in a chunk
    blank: bool = False  # ignored rows are among them

    def rows_of(self, run: Run) -> Index:
        here = slice(run.begin, run.end)
        return here if self.order is None else self.order[here]


class Run(NamedTuple):
    """Rows that are taken at once."""

    begin: int
    end: int
    cut: bool = False  # more than a chunk has, by columns


def chunk_rows(layer: Layer, problem: Problem, tables: bool, classes: int | None = None) -> int:
    """Rows of a chunk, so that all are about the same; by shapes alone. `classes`: of a layer that
    is as the widest of several ranks."""
    n, width = problem.input.shape
    classes, size = width if classes is None else classes, layer.dtype.itemsize
    memory = layer.memory or max(_LEAST_MEMORY, classes * layer.weight.shape[1] * size // 2)
    copies = 1
    if problem.steps is not None:
        # the gradient beside the logits; where tables learn δ as rows, and what is summed of it
        wide = accumulate_dtype(layer.dtype).itemsize // size
        copies = 2 + (4 * wide if tables else 2 * wide if problem.lam is not None else 0)
    most = max(1, memory // (classes * size * copies))
    return n if most >= n else -(-n // -(-n // most))


def input_sum_dtype(layer: Layer, problem: Problem) -> torch.dtype:
    """What the features' gradient is summed in: their own dtype where each row has one."""
    once = problem.input.shape[0] == layer.input.shape[0]
    return layer.dtype if once else accumulate_dtype(layer.dtype)


def weight_sum_dtype(
    layer: Layer, problem: Problem, tables: bool, classes: int | None = None
) -> torch.dtype:
    """What the weight's gradient is summed in: its products' own dtype where there is but one."""
    rows = chunk_rows(layer, problem, tables, classes)
    one = problem.input.shape[0] <= rows and not layer.widened
    return layer.dtype if one else accumulate_dtype(layer.dtype)


def _captures(tensor: Tensor) -> bool:
    """Whether a CUDA graph takes down what is done, so that the host sees no numbers."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def cut(layer: Layer, problem: Problem, tables: bool, classes: int | None = None) -> Chunks:
    n, rows = problem.input.shape[0], chunk_rows(layer, problem, tables, classes)
    order, blank = None, False
    if not problem.dense:
        ignored = ignored_rows(problem)
        if _captures(problem.target):
            blank = True
        elif ignored.any():
            order = (~ignored).nonzero()[:, 0]
    count = n if order is None else order.shape[0]
    if problem.steps is None or count <= rows:
        runs = [Run(begin, min(begin + rows, count)) for begin in range(0, count, max(rows, 1))]
        return Chunks(order, runs, rows, blank)
    if blank:
        raise RuntimeError(
            f"chunk_memory: expected room for all {n} rows while a CUDA graph is captured, as"
            " nobody can wait to see which of them are of one class"
        )
    label = problem.target if order is None else problem.target[order]
    label, sorting = label.sort(stable=True)
    order = sorting if order is None else order[sorting]
    return Chunks(order, _whole_classes(label, rows), rows)


def _whole_classes(label: Tensor, rows: int) -> list[Run]:
    """Runs of sorted labels, no class in two of them."""
    runs, begin, end = [], 0, 0
    for size in label.unique_consecutive(return_counts=True)[1].tolist():
        if end > begin and end - begin + size > rows:
            runs.append(Run(begin, end))
            begin = end
        end += size
        if size > rows:
            runs.append(Run(begin, end, cut=True))
            begin = end
    if end > begin:
        runs.append(Run(begin, end))
    return runs


def _of_rows(problem: Problem, rows: Index) -> Problem:
    """The problem of some of the rows."""
    given = {name: getattr(problem, name) for name in _BY_ROW}
    taken = {name: value[rows] for name, value in given.items() if value is not None}
    return problem._replace(input=problem.input[: taken["target"].shape[0]], **taken)


class Sweep:
    """Loss and gradients of a problem, chunk by chunk.

    Args:
        problem: its `input` the layer's `stand_in`.
        backend: a fused one.
        want: of WANTED, whose gradients are asked for.
        upstream: 0-dim, or (N,) for reduction "none", beside the forward's `terms` where these were
            kept: the gradients are for that, and there is no loss. None: for 1.
        keep: the rows' terms, for a gradient by `upstream`.
        return_stats: statistics of the rows are wanted.
    """

    _widest: int | None = None  # classes of the layer by whose width chunks are cut; None: this

    def __init__(
        self,
        layer: Layer,
        problem: Problem,
        backend: str,
        want: Sequence[str] = (),
        upstream: Tensor | None = None,
        terms: Tensor | None = None,
        keep: bool = False,
        *,
        return_stats: bool = False,
    ) -> None:
        self._layer, self._backend, self._door = layer, backend, load(backend)
        self._want = want
        self._tables = [name for name in want if name in TABLES]
        self._problem = problem = mean_as_sum(problem)
        self._upstream, self._given, self._keep = upstream, terms, keep
        self._dtype = accumulate_dtype(layer.dtype)
        self._each = problem.options.reduction == NONE
        self._once = problem.input.shape[0] == layer.input.shape[0]
        n, device = problem.input.shape[0], problem.input.device
        norm = problem.normalizer
        self._norm = torch.ones((), dtype=self._dtype, device=device) if norm is None else norm
        self._weight = layer.weight.to(layer.dtype)
        self._bias = None if layer.bias is None else layer.bias.to(layer.dtype)
        self._chunks = cut(layer, problem, bool(self._tables), self._widest)
        self._memory = self._weight.new_empty(0)
        shape, of_sum = ((n,), self._dtype) if self._each else ((), torch.float64)
        self._loss = torch.zeros(shape, dtype=of_sum, device=device)
        self.terms = torch.empty(
            (n if keep else 0, len(Terms._fields)), dtype=self._dtype, device=device
        )
        self._sums = {name: self._zeros(name) for name in want}
        # RowStatistics, those of rows in no chunk 0
        self.statistics = tuple(
            torch.zeros(n, dtype=each, device=device)
            for each in dtypes(layer.dtype)
            if return_stats
        )

    @property
    def loss(self) -> Tensor:
        """0-dim, or (N,) for reduction "none"; accumulate dtype."""
        return self._loss.to(self._dtype)

    @property
    def gradients(self) -> list[Tensor]:
        """Those that are wanted, in that order."""
        return [self._sums[name] for name in self._want]

    def run(self) -> Sweep:
        chunks = self._chunks
        for run in chunks.runs:
            rows = chunks.rows_of(run)
            problem, x = _of_rows(self._problem, rows), self._layer.input[self._features(rows)]
            if chunks.blank:
                x = x.masked_fill(ignored_rows(problem)[:, None], 0)
            x = x.to(self._layer.dtype)
            if run.cut and self._by_columns(rows, x, problem):
                continue
            logits = self._logits(x, 0, problem.input.shape[1])
            grad = self._differentiated(run, rows, problem._replace(input=logits))
            if grad is not None:
                self._store_input(rows, self._through_layer(x, grad, 0, None))
        if not chunks.runs and not self._each:
            self._loss = self._loss / self._norm  # nan, where a mean is of no rows
        return self

    # losses

    def _differentiated(self, run: Run, rows: Index, problem: Problem) -> Tensor | None:
        """The gradient of a chunk's logits, where the layer wants it; loss and tables are added."""
        if problem.steps is None:
            return self._known(run, rows, problem)
        if problem.lam is not None:
            return self._shared(run, rows, problem)
        if not self._tables:
            return self._learned(rows, problem)
        fixed = with_fixed_delta(problem, self._backend)
        return self._known(run, rows, fixed, self._table_rows(problem))

    def _table_rows(self, problem: Problem) -> Tensor | None:
        """What row each sample takes of a table of rows."""
        if problem.rows is None or problem.row_index is not None:
            return problem.row_index
        return problem.target.clamp(0, problem.rows.shape[0] - 1)

    def _shared(self, run: Run, rows: Index, problem: Problem) -> Tensor | None:
        """Under a δ of which rows have shares: in rounds, or where they are not as exact as
        promised by steps one after the other."""
        known = sweep(self._door, [problem])
        assert known.learned is not None
        if bool(known.learned.exact.all()):
            self._store_known(rows, known)
            return self._gradient(rows, problem, known)
        z = self._door.perturbed(problem, known, 0, problem.classes)
        slot = torch.arange(z.shape[0], device=z.device)
        fixed = with_delta(problem._replace(lam=None), by_plain_steps(problem, z), slot)
        return self._known(run, rows, fixed, self._table_rows(problem))

    def _known(
        self, run: Run, rows: Index, problem: Problem, index: Tensor | None = None
    ) -> Tensor | None:
        """By statistics, over the logits. `index`: what row each sample took of a table of rows
        that its learned δ is in."""
        here = slice(run.begin, run.end)
        if self._given is None:
            final = not (self._want or self._keep)
            terms = self._forward(rows, problem, False, final=final).terms
            if self._keep:
                assert terms is not None
                self.terms[here] = terms
        else:
            terms = self._given[here]
        return None if terms is None else self._gradient(rows, problem, Known(terms), index)

    def _gradient(
        self, rows: Index, problem: Problem, known: Known, index: Tensor | None = None
    ) -> Tensor | None:
        """From what is known of a chunk's rows: the gradient of its logits, in their place, where
        the layer wants it; those of tables are added. `index`: as `_known`'s."""
        if not self._want or self._keep:
            return None
        upstream = self._upstream_of(rows, problem.input.shape[0])
        self._add_to_tables(problem, known, upstream, index)
        if len(self._tables) == len(self._want):
            return None
        self._door.gradient(problem, known, upstream, ["input"], problem.input)
        return problem.input

    def _learned(self, rows: Index, problem: Problem) -> Tensor | None:
        """Of a learned perturbation, beside which no table learns."""
        if not self._want or self._keep:
            self._forward(rows, problem, False, final=True)
            return None
        by_state = bool(self._door.learned_state(problem))
        state: tuple[Tensor, ...] = ()
        if by_state or self._upstream is None:
            found = self._forward(rows, problem, not by_state)
            if found.grad is not None:
                return found.grad
            state = found.state
        upstream = self._upstream_of(rows, problem.input.shape[0])
        return self._door.learned_gradient(problem, upstream, state)

    def _forward(
        self, rows: Index, problem: Problem, want_grad: bool, *, final: bool = False
    ) -> Forward:
        """A chunk's, whose loss and statistics are stored."""
        return_stats = bool(self.statistics)
        found: Forward = self._door.forward(
            problem, want_grad, final=final, return_stats=return_stats
        )
        self._store_loss(rows, found.loss)
        if found.statistics is not None:
            self._store_statistics(rows, found.statistics)
        return found

    def _by_columns(self, rows: Index, x: Tensor, problem: Problem) -> bool:
        """Of a class that is larger than a chunk. False, with nothing done, where its steps are not
        as exact as promised: its logits are made at once then, whatever they take."""
        n, classes = problem.input.shape
        columns = _Columns(self, x, problem, max(1, self._chunks.rows * classes // n))
        known = sweep(self._door, columns, whole=problem)
        assert known.learned is not None
        if not bool(known.learned.exact.all()):
            return False
        self._store_known(rows, known)
        if self.statistics:
            self._store_statistics(
                rows, statistics(self._door.reduce, columns, known, whole=problem)
            )
        if not self._want or self._keep:
            return True
        upstream, of_input = self._upstream_of(rows, n), None
        for part in columns:
            begin = part.options.first
            self._add_to_tables(part, known, upstream)
            self._door.gradient(part, known, upstream, ["input"], part.input)
            of_input = self._through_layer(x, part.input, begin, of_input)
        self._store_input(rows, of_input)
        return True

    def _store_known(self, rows: Index, known: Known) -> None:
        """The loss of rows that were settled in rounds."""
        loss = known.loss
        assert loss is not None
        self._store_loss(rows, loss if self._each else loss.double().sum() / self._norm)

    def _add_to_tables(
        self, part: Problem, known: Known, upstream: Tensor, index: Tensor | None = None
    ) -> None:
        """What columns of rows add to the gradients of the tables; they read the logits."""
        if not self._tables:
            return
        found, begin = self._door.gradient(part, known, upstream, self._tables), part.options.first
        columns = slice(begin, begin + part.input.shape[1])
        for name in self._tables:
            place = self._sums[name][..., slice(None) if name == "margin" else columns]
            if name == "rows" and index is not None:
                place.index_add_(0, index, getattr(found, name))
            else:
                place += getattr(found, name)

    def _features(self, rows: Index) -> Index:
        """The places of rows among those of the features."""
        if self._once:
            return rows
        device = self._layer.input.device
        if isinstance(rows, slice):
            rows = torch.arange(rows.start, rows.stop, device=device)
        return rows % self._layer.input.shape[0]

    def _upstream_of(self, rows: Index, n: int) -> Tensor:
        """(n,): that of each row's loss."""
        if self._upstream is None:
            return self._norm.reciprocal().expand(n)
        return self._upstream[rows] if self._each else (self._upstream / self._norm).expand(n)

    def _store_loss(self, rows: Index, loss: Tensor) -> None:
        if self._each:
            self._loss[rows] = loss
        else:
            self._loss = self._loss + loss

    def _store_statistics(self, rows: Index, found: RowStatistics) -> None:
        for place, numbers in zip(self.statistics, found, strict=True):
            place[rows] = numbers

    # the layer's products

    def _zeros(self, name: str) -> Tensor:
        """Where a gradient is summed."""
        dtype = self._dtype
        if name == "input":
            dtype = input_sum_dtype(self._layer, self._problem)
        elif name == "weight":
            tables = bool(self._tables)
            dtype = weight_sum_dtype(self._layer, self._problem, tables, self._widest)
        like = getattr(self._layer if name in OF_LAYER else self._problem, name)
        return torch.zeros(like.shape, dtype=dtype, device=like.device)

    def _room(self, rows: int, columns: int) -> Tensor:
        """Memory for the logits of a chunk, the same for all that fit in it."""
        size = rows * columns
        if self._memory.numel() < size:
            self._memory = self._weight.new_empty(0)  # not both
            self._memory = self._weight.new_empty(size)
        return self._memory[:size].view(rows, columns)

    def _parts(self, begin: int, end: int) -> Iterator[slice]:
        """Runs of classes, whose part of the weight is no large tensor."""
        most = _PART if self._weight.device.type == "cpu" else _PART_OF_GPU
        step = max(1, most // max(1, self._weight.shape[1]))
        return (slice(first, min(first + step, end)) for first in range(begin, end, step))

    def _logits(self, x: Tensor, begin: int, end: int) -> Tensor:
        """Of the classes from begin to end, (n, end − begin)."""
        out = self._room(x.shape[0], end - begin)
        weight, bias = self._weight, self._bias
        if self._layer.widened:
            x = x.float()
            for part in self._parts(begin, end):
                wide = None if bias is None else bias[part].float()
                made = F.linear(x, weight[part].float(), wide)
                out[:, part.start - begin : part.stop - begin] = made
        elif bias is None:
            torch.mm(x, weight[begin:end].t(), out=out)
        else:
            torch.addmm(bias[begin:end], x, weight[begin:end].t(), out=out)
        return out

    def _through_layer(
        self, x: Tensor, grad: Tensor, begin: int, of_input: Tensor | None
    ) -> Tensor | None:
        """The gradient of logits from class `begin` on, taken to weight and bias; returns the
        input's, on top of what other classes have given."""
        end = begin + grad.shape[1]
        if "weight" in self._want:
            self._add_to_weight(x, grad, begin)
        if "bias" in self._want:
            self._sums["bias"][begin:end] += grad.sum(0, dtype=self._dtype)
        if "input" not in self._want:
            return None
        if not self._layer.widened:
            more = torch.mm(grad, self._weight[begin:end])
            return more if of_input is None else of_input.to(self._dtype) + more
        for part in self._parts(begin, end):
            columns = grad[:, part.start - begin : part.stop - begin]
            more = torch.mm(columns.float(), self._weight[part].float())
            of_input = more if of_input is None else of_input + more
        return of_input

    def _add_to_weight(self, x: Tensor, grad: Tensor, begin: int) -> None:
        total, widened = self._sums["weight"], self._layer.widened
        end = begin + grad.shape[1]
        if total.dtype == grad.dtype:
            total[begin:end].addmm_(grad.t(), x)
            return
        x = x.float() if widened else x
        for part in self._parts(begin, end):
            columns = grad[:, part.start - begin : part.stop - begin].t()
            if x.is_cuda:
                more = torch.mm(columns, x, out_dtype=total.dtype)
            else:
                more = torch.mm(columns.float() if widened else columns, x)
            total[part] += more

    def _store_input(self, rows: Index, of_input: Tensor | None) -> None:
        if of_input is not None:
            total, places = self._sums["input"], self._features(rows)
            if self._once:
                total[places] = of_input.to(total.dtype)
            else:  # index_put_ adds in an order of its own, where index_add_ would in any
                assert isinstance(places, Tensor)
                total.index_put_((places,), of_input.to(total.dtype), accumulate=True)


class _Columns:
    """A problem by columns, whose logits are made when their turn comes, one where the last was."""

    def __init__(self, sweep: Sweep, x: Tensor, problem: Problem, width: int) -> None:
        self._sweep, self._x, self._problem, self._width = sweep, x, problem, width

    def __iter__(self) -> Iterator[Problem]:
        classes = self._problem.classes
        for begin in range(0, classes, self._width):
            end = min(begin + self._width, classes)
            logits = self._sweep._logits(self._x, begin, end)
            yield self._problem.columns(begin, end)._replace(input=logits)
