"""Who has which classes, and whether all ranks ask for the same: one collective of some hundred
numbers before any other. What is wrong on one rank, or differs between two, is an error on all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from ..algebra.rows import mean_as_sum
from ..algebra.statistics import RowStatistics
from ..backends import BACKENDS, REFERENCE
from ..backends.contract import Choose
from ..ops.dispatch import AUTO, FORMS
from ..problem import REDUCTIONS, Options, Problem
from ..reference import check_labels
from ..tracing import direct
from .local import Reduction, Some, gathered, group_of, is_dtensor, is_sharded

# fields of a problem by what is made of a rank's own part of them: needed of columns alone, of
# which all others may be anything; or of every row's label, wherever its column is
_OF_COLUMNS = "scale", "offset", "margin", "rows", "multiplier", "rho"
_OF_LABELS = "weight", "smoothing", "steps"
_TABLES = (*_OF_COLUMNS, *_OF_LABELS)
_OF_ROWS = "target", "other", "lam", "sample_weight", "row_index", "normalizer"
_OTHERS = 5  # numbers at most that a function has to say of its own
_TEXT = 320  # bytes of a message that others get to see
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DEVICES = ("cpu", "cuda")
_BACKENDS = (*BACKENDS, REFERENCE)


class Shards(NamedTuple):
    """How the classes lie on the ranks of a group."""

    group: distributed.ProcessGroup
    rank: int  # in the group
    widths: tuple[int, ...]  # classes of each rank, in their order

    @property
    def first(self) -> int:
        return sum(self.widths[: self.rank])

    @property
    def classes(self) -> int:
        return sum(self.widths)


class HasProblem(Protocol):
    @property
    def problem(self) -> Problem: ...

    @property
    def backend(self) -> str: ...

    @property
    def zero(self) -> bool: ...

    @property
    def return_stats(self) -> bool: ...


B = TypeVar("B", bound=HasProblem)
S = TypeVar("S", bound=Some)


@dataclass(frozen=True)
class Call(Generic[B]):
    """What a rank has of a call that all agreed on."""

    built: B
    problem: Problem  # of its columns, numbered among all
    shards: Shards
    restored: Callable[[Tensor], Tensor]  # makes of a loss what the caller gets
    of_rows: Callable[[Tensor], Tensor]  # of a number of every row

    def restored_with(self, loss: Tensor, *numbers: Tensor) -> tuple[Tensor, RowStatistics]:
        """What the caller gets of a loss and the statistics of its rows."""
        return self.restored(loss), RowStatistics(*map(self.of_rows, numbers))


# -- what ranks tell each other ------------------------------------------------------------------


@dataclass
class _Said:
    """The numbers that a rank tells, and what they are called. What must be the same has a name."""

    names: list[str] = field(default_factory=list)
    values: list[int] = field(default_factory=list)

    def add(self, name: str, value: int | float | bool) -> None:
        self.names.append(name)
        if isinstance(value, float):
            (value,) = struct.unpack("q", struct.pack("d", value))
        self.values.append(int(value))


def _checksum(values: Tensor) -> Tensor:
    """0-dim int64: differs where numbers differ, or their order."""
    bits = values.detach().reshape(-1).contiguous()
    if bits.is_floating_point():
        bits = bits.view(torch.int64 if bits.dtype == torch.float64 else torch.int32)
    bits = bits.long()
    odd = 2 * torch.arange(bits.numel(), device=bits.device) + 1
    # a multiplication that mixes, modulo 2⁶⁴
    return ((bits + 0x2545F491) * (odd * 0x2545F4914F6CDD1D)).sum()


def _said(kind: str, problem: Problem | None, form: str) -> _Said:
    """The header, the same length whatever there is to say."""
    said = _Said()
    nothing = problem is None
    said.add("failed", nothing)
    said.add("classes", -1 if nothing else problem.input.shape[1])  # type: ignore[union-attr]
    for name in _TABLES:
        table = None if problem is None else getattr(problem, name)
        said.add(f"length of {name}", -1 if table is None else table.shape[-1])
    said.add("=function", _KINDS.index(kind))
    said.add("=rows of input", -1 if nothing else problem.input.shape[0])  # type: ignore[union-attr]
    said.add("=dtype of input", -1 if nothing else _DTYPES.index(problem.input.dtype))  # type: ignore[union-attr]
    # a group may have an engine for each, which do not hear each other
    kind_of_device = "" if problem is None else problem.input.device.type
    said.add("=device of input", _at(_DEVICES, kind_of_device))
    options = Options() if problem is None else problem.options
    for name in Options._fields:
        said.add(f"={name}", getattr(options, name))
    for name in Problem._fields[:-1]:
        part = None if problem is None else getattr(problem, name)
        said.add(f"={name}: given or not", part is not None)
        learns = part is not None and part.requires_grad and torch.is_grad_enabled()
        said.add(f"={name}: requires grad or not", learns)
    rows = None if problem is None else problem.rows
    said.add("=number of rows of perturbation.rows", -1 if rows is None else rows.shape[0])
    dense = problem is not None and problem.dense
    said.add("=class probabilities or not", dense)
    said.add("=gradient", _at(FORMS, form))
    return said


def _at(words: Sequence[str], word: str) -> int:
    """Where it is among them; −1: nowhere."""
    return words.index(word) if word in words else -1


_KINDS = (
    *("cross_entropy", "lpl_cross_entropy", "lpl_perturbation"),
    *("linear_cross_entropy", "linear_lpl_cross_entropy"),
)


def agreed(
    kind: str,
    input: Any,
    process_group: Any,
    shape: Callable[[], S],
    build: Callable[[S], B],
    form: str = AUTO,
    others: Callable[[], Sequence[tuple[str, int]]] = tuple,
) -> Call[B]:
    """What this rank has of a call, once all ranks have said what they have.

    Args:
        kind: the function that was called.
        input: as it was called with.
        shape: validates logits and target, or the layer that makes the logits.
        build: makes of that the problem of this rank's columns.
        form: of dispatch.FORMS.
        others: gives what else must be the same on all ranks, and its name; asked after `build`.

    Raises:
        ValueError, TypeError: as the function itself raises, on all ranks; what differs between
            ranks.
    """
    built, shaped, error = None, None, None
    if is_dtensor(input) and process_group is None:
        process_group = input.device_mesh
    group = group_of(process_group)
    try:
        shaped = shape()
        built = build(shaped)
        _refuse(built.problem)
    except Exception as raised:
        error, built = raised, None
    problem = None if built is None else built.problem
    said = _said(kind, problem, form)
    said.add("=backend", -1 if built is None else _at(_BACKENDS, built.backend))
    said.add("=empty", built is not None and built.zero)
    said.add("=return_stats", built is not None and built.return_stats)
    own = others()
    for name, value in own:
        said.add(f"={name}", value)
    for _ in range(_OTHERS - len(own)):
        said.add("nothing", 0)  # as long as another function's, which another rank may have called
    numbers = _exchanged(said, problem, error, group)
    if error is not None:
        raise error
    assert built is not None
    assert problem is not None
    assert shaped is not None
    _compare(said, numbers)
    widths = tuple(numbers[:, said.names.index("classes")].tolist())
    shards = Shards(group, distributed.get_rank(group), widths)
    if shards.classes == 0:
        raise ValueError("input: expected at least one class on some rank, got none on any")
    problem = _whole(problem, shards, said, numbers, shaped.reductions)
    check_labels(problem)
    if built.zero:
        problem = mean_as_sum(problem, of_nothing=0.0)
    shaped.classes, shaped.agreed = shards.classes, True
    options, back = problem.options, shaped.restored
    restore, of_rows = shaped.restore, shaped.of_rows
    return Call(
        built,
        problem,
        shards,
        lambda loss: back(restore(loss, options)),
        lambda numbers: back(of_rows(numbers)),
    )


def refused(input: Any, process_group: Any, error: Exception) -> None:
    """Raises the error of a call that fails before its function is reached, which the other ranks
    have reached, perhaps: on all of them."""

    def fails() -> Some:
        raise error

    def unreached(shaped: Some) -> HasProblem:
        raise AssertionError

    if is_sharded(input, process_group):
        agreed(_KINDS[0], input, process_group, fails, unreached)
    raise error


def agreed_choice(choose: Choose, shards: Shards) -> Choose:
    """A function that makes steps as one that makes the same on all ranks, or an error on all."""

    def agreeing(losses: Tensor) -> Tensor:
        steps, error = None, None
        try:
            steps = choose(losses)
        except Exception as raised:
            error = raised
        check = 0 if steps is None else int(_checksum(steps))
        sent = torch.tensor([error is not None, check, *_words_of(error)], device="cpu")
        numbers = torch.stack(gathered(sent, shards.group))
        if error is not None:
            raise error
        _raise_of_others(numbers, 2)
        others = (numbers[:, 1] != numbers[0, 1]).nonzero()
        if len(others):
            raise ValueError(
                f"steps: what the function chose on rank {int(others[0])} is not as on rank 0"
            )
        assert steps is not None
        return steps

    return agreeing


def _refuse(problem: Problem) -> None:
    """What shards can not do."""
    if problem.input.is_meta:
        raise ValueError("input: expected numbers beside process_group, got a tensor on meta")
    if not direct(*problem[:-1]):
        raise RuntimeError(
            "process_group: classes over ranks are for plain tensors in eager mode, not within"
            " torch.func, a trace or a mode"
        )
    if problem.options.through:
        raise ValueError("through_perturbation: not beside process_group")
    if torch.is_grad_enabled():
        learn = ("input", "scale", "offset", "margin", "rows")
        for name in Problem._fields[:-1]:
            part = getattr(problem, name)
            if part is not None and part.requires_grad and name not in learn:
                raise ValueError(f"{name}: requires grad, which has none beside process_group")
            tables = part is not None and part.requires_grad and name != "input"
            if tables and problem.steps is not None:
                raise ValueError(
                    f"{name}: tables do not learn beside a learned perturbation and process_group"
                )


def _exchanged(
    said: _Said, problem: Problem | None, error: Exception | None, group: distributed.ProcessGroup
) -> Tensor:
    """(ranks, n): what every rank has said. Raises what another rank failed with."""
    checks = [None if problem is None else getattr(problem, name) for name in _OF_ROWS]
    sums = [
        torch.zeros((), dtype=torch.int64, device="cpu")
        if each is None or each.dim() > 1  # class probabilities are of a rank's columns
        else _checksum(each)
        for each in checks
    ]
    device = torch.device("cpu") if problem is None else problem.input.device
    checked = torch.stack([each.to(device) for each in sums]).cpu()  # one wait for a GPU
    # of the CPU, whatever the input: what lies elsewhere on another rank has to be heard, too
    words = torch.tensor(said.values + _words_of(error), device="cpu")
    message = torch.cat([words, checked])
    numbers = torch.stack(gathered(message, group))
    if error is None:
        _raise_of_others(numbers, len(said.values))
    return numbers


def _words_of(error: Exception | None) -> list[int]:
    """What an error says, in numbers, as many whatever it says."""
    text = b"" if error is None else str(error).encode()[:_TEXT]
    return list(struct.unpack(f"{_TEXT // 8}q", text.ljust(_TEXT, b"\0")))


def _raise_of_others(numbers: Tensor, begin: int) -> None:
    """Raises what the first rank says that failed; the first number says whether one has, its words
    begin there."""
    failed = numbers[:, 0].nonzero()
    if len(failed):
        rank = int(failed[0])
        words = numbers[rank, begin : begin + _TEXT // 8].tolist()
        what = struct.pack(f"{_TEXT // 8}q", *words).rstrip(b"\0").decode(errors="replace")
        raise ValueError(f"on rank {rank} of the group: {what}")


def _compare(said: _Said, numbers: Tensor) -> None:
    """Raises ValueError where ranks ask for different things."""
    begin = len(said.values) + _TEXT // 8
    places = [(name[1:], k) for k, name in enumerate(said.names) if name.startswith("=")]
    places += [(f"{name} (its numbers)", begin + k) for k, name in enumerate(_OF_ROWS)]
    same = numbers[:, [place for _, place in places]]
    differing = (same != same[0]).t().nonzero()
    if len(differing):
        (which, rank), first = differing[0].tolist(), 0
        name = places[which][0]
        raise ValueError(
            f"process_group: {name} must be the same on all ranks, but differs:"
            f" {_shown(name, int(same[first, which]))} on rank {first},"
            f" {_shown(name, int(same[rank, which]))} on rank {rank}"
        )


def _shown(name: str, value: int) -> str:
    if name == "function":
        return _KINDS[value]
    if name == "dtype of input":
        return str(_DTYPES[value])
    for words, what in ((FORMS, "gradient"), (_DEVICES, "device of input"), (_BACKENDS, "backend")):
        if name == what:
            return repr(words[value]) if value >= 0 else "another"
    if name == "empty":
        return repr("zero" if value else "nan")
    if name == "reduction":
        return repr(list(REDUCTIONS)[value])
    if isinstance(Options._field_defaults.get(name), float):
        return str(struct.unpack("d", struct.pack("q", value))[0])
    if name.endswith("or not") or name == "return_stats":
        return str(bool(value))
    return f"checksum {value & 0xFFFFFFFF:08x}" if name.endswith("numbers)") else str(value)


def _whole(
    problem: Problem,
    shards: Shards,
    said: _Said,
    numbers: Tensor,
    reductions: dict[str, Reduction],
) -> Problem:
    """The problem, numbered among all classes, with its tables as long as there are classes."""
    classes, first, width = shards.classes, shards.first, shards.widths[shards.rank]
    fields: dict[str, Any] = {
        "options": problem.options._replace(first=first, classes=classes),
    }
    if len(shards.widths) == 1:
        return problem._replace(**fields) if width else problem
    asked = []
    for name in _TABLES:
        place = said.names.index(f"length of {name}")
        lengths: list[int] = numbers[:, place].tolist()
        if lengths[0] < 0:
            continue
        if all(length == classes for length in lengths):
            if name in reductions:
                reductions[name].group = shards.group
            continue
        for rank, length in enumerate(lengths):
            if length != shards.widths[rank]:
                raise ValueError(
                    f"{name}: expected all {classes} classes on every rank, or on each its own,"
                    f" {shards.widths[rank]} on rank {rank}, which has {length}"
                )
        table = getattr(problem, name)
        if name in _OF_COLUMNS:
            fields[name] = F.pad(table, (first, classes - first - width))
        else:
            asked.append(name)
    if "temperature" in reductions:
        reductions["temperature"].group = shards.group
    if asked:
        fields.update(_joined(problem, shards, asked))
    return problem._replace(**fields)


def _joined(problem: Problem, shards: Shards, names: list[str]) -> dict[str, Tensor]:
    """Tables that rows look up by label, from every rank's part: one collective."""
    most = max(shards.widths)
    own = torch.stack([getattr(problem, name).detach().double() for name in names])
    parts = gathered(F.pad(own, (0, most - own.shape[1])), shards.group)
    whole = torch.cat([part[:, :w] for part, w in zip(parts, shards.widths, strict=True)], 1)
    return {
        name: row.to(getattr(problem, name).dtype)
        for name, row in zip(names, whole.unbind(0), strict=True)
    }
