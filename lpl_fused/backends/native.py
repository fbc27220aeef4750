"""What the native modules are handed: tuples whose fields they read in the order of csrc/row.h,
which is compared once, when a module is loaded.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..algebra.parts import Detail, Kind, Mass, Part, Rivals, Size, Statistics
from ..algebra.terms import Terms
from ..problem import BinaryProblem, Problem, accumulate_dtype

Record = TypeVar("Record", bound="tuple[Any, ...]")

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # of csrc/row.h
LABELS = {  # LabelType of csrc/binary.h: a bool is a byte
    **DTYPES,
    **{torch.bool: 4, torch.uint8: 4, torch.int8: 5, torch.int16: 6, torch.int32: 7},
    torch.int64: 8,
}
# the parts whose numbers kernels store, in the order of Kind in csrc/parts.h
PARTS: dict[Kind, type[Part]] = {
    Kind.SIZE: Size,
    Kind.MASS: Mass,
    Kind.DETAIL: Detail,
    Kind.RIVALS: Rivals,
    Kind.STATISTICS: Statistics,
}


class Sizes(NamedTuple):
    """What is told of a problem beside the addresses of its tensors."""

    n: int = 0
    c: int = 0
    row_stride: int = 0
    probabilities: bool = False  # the target is class probabilities
    dense_stride: int = 0  # of them
    row_count: int = 0
    dtype: int = 0
    dense_dtype: int = 0
    threads: int = 0

    @staticmethod
    def of(problem: Problem, threads: int = 1) -> Sizes:
        input, target, rows = problem.input, problem.target, problem.rows
        n, classes = input.shape
        dense = target.dim() == 2
        # in the order of the fields, past their names, which would cost as long as the rest of this
        found: Sizes = tuple.__new__(
            Sizes,
            (
                n,
                classes,
                input.stride(0),
                dense,
                target.stride(0) if dense else 0,
                0 if rows is None else rows.shape[0],
                DTYPES[input.dtype],
                DTYPES[target.dtype] if dense else 0,
                threads,
            ),
        )
        return found


# a tensor's memory, or an address within that of one that its caller holds
Place = Tensor | int | None


class Outputs(NamedTuple):
    """Where the kernels write what is wanted, and the gradient that they start from."""

    loss: Tensor | None = None
    norm: Place = None
    grad: Tensor | None = None
    grad_rows: Tensor | None = None
    grad_rows_stride: int = 0
    terms: Tensor | None = None
    grad_perturbed: Tensor | None = None
    grad_scale: Tensor | None = None
    grad_offset: Tensor | None = None
    grad_margin: Tensor | None = None
    swept: Tensor | None = None
    delta: Place = None
    slot: Place = None
    lse: Tensor | None = None
    entropy: Tensor | None = None
    correct: Tensor | None = None

    def and_tables(self, places: Mapping[str, Tensor | None]) -> Outputs:
        """With places for the gradients of tables; `grad_rows` being upstream, that of `rows`,
        for each sample, is `grad_perturbed`."""
        fields: dict[str, Any] = {f"grad_{name}": place for name, place in places.items()}
        fields["grad_perturbed"] = fields.pop("grad_rows")
        return self._replace(**fields)


class BinarySizes(NamedTuple):
    """What is told of a multi-label problem beside the addresses of its tensors."""

    n: int = 0
    c: int = 0
    row_stride: int = 0
    target_stride: int = 0
    dtype: int = 0
    target_type: int = 0
    threads: int = 0

    @staticmethod
    def of(problem: BinaryProblem, threads: int = 1) -> BinarySizes:
        input, target = problem.input, problem.target
        n, classes = input.shape
        strides = input.stride(0), target.stride(0)
        types = DTYPES[input.dtype], LABELS[target.dtype]
        # past the names, as Sizes.of
        found: BinarySizes = tuple.__new__(BinarySizes, (n, classes, *strides, *types, threads))
        return found


class BinaryOutputs(NamedTuple):
    """Where the kernels write what is wanted, and the gradient that they start from."""

    loss: Tensor | None = None
    norm: Tensor | None = None
    grad: Tensor | None = None
    upstream: Tensor | None = None
    upstream_each: bool = False  # one for each logit
    delta: Tensor | None = None


def with_known_labels(problem: BinaryProblem) -> BinaryProblem:
    """The problem with labels of a dtype that kernels read."""
    if problem.target.dtype in LABELS:
        return problem
    return problem._replace(target=problem.target.to(accumulate_dtype(problem.input.dtype)))


def replaced(record: Record, changes: Mapping[str, Any]) -> Record:
    """`record._replace(**changes)`, in a third of its time: it looks at every field by name."""
    values, kind = list(record), type(record)
    for name, value in changes.items():
        values[_places(kind)[name]] = value
    return tuple.__new__(kind, values)


@functools.cache
def _places(kind: Any) -> dict[str, int]:
    return {name: place for place, name in enumerate(kind._fields)}


def load(name: str, *records: Any) -> ModuleType:
    """A native module that reads `records`, classes of named tuples, as they are here.

    Raises:
        ImportError: there is none, or it was built from sources of other fields.
    """
    module = importlib.import_module(f"lpl_fused.{name}")
    theirs = module.fields() if hasattr(module, "fields") else {}
    for record in records:
        difference = _difference(_fields(record), theirs.get(record.__name__, []))
        if difference is not None:
            raise ImportError(
                f"lpl_fused.{name} was built from other sources: {record.__name__}'s {difference}"
            )
    numbers = module.numbers() if hasattr(module, "numbers") else {}
    for kind, expected in _NUMBERS.items():
        found = numbers.get(kind)
        if found != expected:
            raise ImportError(
                f"lpl_fused.{name} was built from other sources: {kind}'s numbers are {expected} in"
                f" Python, {found} in C++"
            )
    return module


def not_built(error: ImportError, needs: str) -> str:
    """Why a native module is missing, and what to do about it."""
    return (
        f"its native module was not built ({error}); reinstall with {needs} at hand and"
        " --no-cache-dir, since pip keeps what it built"
    )


_NUMBERS = {
    "Terms": list(Terms._fields),
    **{part.__name__: part.numbers() for part in PARTS.values()},
}


def _fields(record: Any) -> list[tuple[str, object]]:
    """(name, what switches it off) of every field; None for tensors, and for a tuple of options,
    which is compared by itself."""
    off = record._field_defaults
    return [
        (name, None if isinstance(off.get(name), tuple) else off.get(name))
        for name in record._fields
    ]


def _difference(ours: list[tuple[str, object]], theirs: list[tuple[str, object]]) -> str | None:
    """The first field in which Python and C++ differ, in words."""
    nothing = "nothing", None
    for place in range(max(len(ours), len(theirs))):
        here = ours[place] if place < len(ours) else nothing
        there = theirs[place] if place < len(theirs) else nothing
        if here[0] != there[0]:
            return f"field {place} is {here[0]} in Python, {there[0]} in C++"
        if here[1] != there[1] or type(here[1]) is not type(there[1]):
            return f"{here[0]} is off at {here[1]!r} in Python, at {there[1]!r} in C++"
    return None
