"""Checks of what a caller passes: messages name the argument, what was expected and what came.

A check is called `check(name, value)`. It returns the value as the package keeps it (a NumPy number
or a 0-dim tensor as Python's own), and raises

    TypeError    something that is no number, no tensor, … at all
    ValueError   a number that is out of range or nan, a word that is none of the known ones

What an attribute of a loss may become later is a `Rule` with such a check: see `losses.module`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Number:
    """A real number within bounds; infinite, or nan, only if said so. Gives a float."""

    least: float | None = None  # value >= least
    above: float | None = None  # value > above
    most: float | None = None  # value <= most
    below: float | None = None  # value < below
    infinite: bool = False
    nan: bool = False  # where it says something: nan too

    def __str__(self) -> str:
        low = self.least if self.above is None else self.above
        high = self.most if self.below is None else self.below
        if self.infinite:
            high = math.inf if high is None and low is not None else high
        if low is not None and low == high:
            return f"{low:g}"
        if low is not None and high is not None:
            opens = "[" if self.above is None else "("
            closes = ")" if self.below is not None else "]"
            return f"a number in {opens}{low:g}, {high:g}{closes}"
        if low is not None:
            return f"a finite number {'>' if self.least is None else '>='} {low:g}"
        if high is not None:
            return f"a finite number {'<' if self.most is None else '<='} {high:g}"
        if self.nan:
            return "a number or nan"
        return "a number" if self.infinite else "a finite number"

    def __call__(self, name: str, value: Any) -> float:
        number = value if type(value) is float else real_number(value)
        if number is None:
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        if not self.holds(number):
            raise ValueError(f"{name}: expected {self}, got {shown(value)}")
        return number

    def holds(self, number: float) -> bool:
        if number != number:
            return self.nan
        return (
            (-math.inf < number < math.inf or self.infinite)
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )


@dataclass(frozen=True)
class Integer:
    """A whole number of an integer type (no bool, no 3.0). Gives an int."""

    least: int | None = None
    most: int | None = None

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"an int in [{self.least}, {self.most}]"
        if self.least is not None:
            return f"an int >= {self.least}"
        return "an int" if self.most is None else f"an int <= {self.most}"

    def __call__(self, name: str, value: Any) -> int:
        number = whole_number(value)
        if number is None:
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        low = -(2**63) if self.least is None else self.least
        high = 2**63 - 1 if self.most is None else self.most
        if not low <= number <= high:
            unsaid = self.least is None if number < low else self.most is None
            of = " of 64 bits" if unsaid else ""
            raise ValueError(f"{name}: expected {self}{of}, got {number}")
        return number


class Flag:
    """True or False, Python's or NumPy's, nothing that is merely true."""

    def __str__(self) -> str:
        return "True or False"

    def __call__(self, name: str, value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy":
            return bool(value)
        raise TypeError(f"{name}: expected {self}, got {shown(value)}")


class Choice:
    """One of some words."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __str__(self) -> str:
        words = [f'"{choice}"' for choice in self.choices]
        return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"

    def __call__(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.choices:
            raise ValueError(f"{name}: expected {self}, got {shown(value)}")
        return value


@dataclass(frozen=True)
class Maybe:
    """None, or what another check takes."""

    check: Check

    def __str__(self) -> str:
        return f"{self.check} or None"

    def __call__(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        return _or(self, self.check, name, value)


@dataclass(frozen=True)
class Off:
    """None, which is 0, or what another check takes."""

    check: Check

    def __str__(self) -> str:
        return f"{self.check}, or None, which is 0"

    def __call__(self, name: str, value: Any) -> Any:
        return 0.0 if value is None else self.check(name, value)


@dataclass(frozen=True)
class Either:
    """What the first check takes, or else the second."""

    first: Check
    second: Check

    def __str__(self) -> str:
        return f"{self.first} or {self.second}"

    def __call__(self, name: str, value: Any) -> Any:
        try:
            return self.first(name, value)
        except ValueError as error:  # of the right type
            raise ValueError(f"{name}: expected {self}, got {shown(value)}") from error
        except TypeError:
            return _or(self, self.second, name, value)


def _or(outer: Check, check: Check, name: str, value: Any) -> Any:
    """`check`, whose message says what `outer` would have taken."""
    if isinstance(check, FunctionType):
        return check(name, value)  # a function, which says itself what it expects
    try:
        return check(name, value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: expected {outer}, got {shown(value)}") from None


@dataclass(frozen=True)
class Pair:
    """Two of what another check takes, as a tuple, list or array."""

    check: Check

    def __str__(self) -> str:
        return f"a pair, each {self.check}"

    def __call__(self, name: str, value: Any) -> tuple[Any, Any]:
        if isinstance(value, (str, bytes, dict, set)) or not hasattr(value, "__len__"):
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        try:
            size = len(value)
        except TypeError:  # of a 0-dim tensor
            raise TypeError(f"{name}: expected {self}, got {shown(value)}") from None
        if size != 2:
            raise ValueError(f"{name}: expected {self}, got {shown(value)}")
        first, second = (_or(self, self.check, name, entry) for entry in value)
        return first, second


@dataclass(frozen=True)
class RealTensor:
    """A real tensor, of `dims` dimensions if that is said."""

    dims: int | None = None
    what: str = "a real tensor"

    def __str__(self) -> str:
        return self.what

    def __call__(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor) or value.is_complex():
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        if self.dims is not None and value.dim() != self.dims:
            raise ValueError(f"{name}: expected {self}, got shape {tuple(value.shape)}")
        return value


@dataclass(frozen=True)
class Numbers:
    """A tensor of integers, or of floating numbers, of `dims` dimensions if that is said."""

    floating: bool
    dims: int | None = None
    what: str = ""

    def __str__(self) -> str:
        kind = "floating numbers" if self.floating else "integers"
        return f"a tensor of {kind}{self.what and ', ' + self.what}"

    def __call__(self, name: str, value: Any) -> Tensor:
        integers = isinstance(value, Tensor) and is_integer(value)
        floating = isinstance(value, Tensor) and value.is_floating_point()
        if not (floating if self.floating else integers):
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        if self.dims is not None and value.dim() != self.dims:
            raise ValueError(f"{name}: expected {self}, got shape {tuple(value.shape)}")
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Instance:
    """Something of a class, which messages call `what`."""

    kind: type | tuple[type, ...]
    what: str

    def __str__(self) -> str:
        return self.what

    def __call__(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.kind):
            raise TypeError(f"{name}: expected {self}, got {shown(value)}")
        return value


def function(name: str, value: Any) -> Any:
    """Something that can be called, as a check."""
    if not callable(value):
        raise TypeError(f"{name}: expected a function, got {shown(value)}")
    return value


CLASSES = Numbers(False, 1, "one class per sample, shape (N,)")
GENERATOR = Maybe(Instance(torch.Generator, "a torch.Generator"))
CLASS_WEIGHTS = Maybe(RealTensor(1, "a tensor (C,), one number per class"))
FLAG = Flag()
REAL = Number()
POSITIVE = Number(above=0)
NOT_NEGATIVE = Number(least=0)
OFF_OR_NOT_NEGATIVE = Off(NOT_NEGATIVE)
SHARE = Number(least=0, most=1)
BELOW_ONE = Number(least=0, below=1)


class Rule(NamedTuple):
    """What may become of an attribute after construction."""

    check: Check | None
    assignable: bool
    rebuilds: bool = False  # what was made of it is made anew


def live(check: Check) -> Rule:
    """May be assigned at any time: read by every call."""
    return Rule(check, True)


def rebuilding(check: Check) -> Rule:
    """May be assigned at any time: `LossModule.rebuild` makes the tables anew."""
    return Rule(check, True, True)


def fixed(check: Check) -> Rule:
    """Read-only: set once, by the constructor."""
    return Rule(check, False)


CONSUMED = Rule(None, False)  # an argument of the constructor that is no attribute at all


def is_integer(tensor: Tensor) -> bool:
    """Of an integer dtype, signed or not (a bool is none)."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def hold(frozen: Any, **checks: Check) -> None:
    """Lets a frozen dataclass hold what the checks of its fields give: plain numbers, and no tensor
    that may change while what was made of it is looked up."""
    for name, check in checks.items():
        object.__setattr__(frozen, name, check(name, getattr(frozen, name)))


def real_number(value: Any) -> float | None:
    """`value` as a float; None if it is no real number (a bool is none)."""
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if isinstance(value, Tensor):
        plain = value.dim() == 0 and not value.requires_grad and not value.is_complex()
        return float(value) if plain and value.dtype != torch.bool else None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    return float(value)


def whole_number(value: Any) -> int | None:
    """`value` as an int; None if it is of no integer type (a bool is none)."""
    if type(value) is int:
        return value
    if isinstance(value, Tensor):
        if value.dim() or value.is_floating_point() or value.is_complex():
            return None
        return None if value.dtype == torch.bool else int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    return int(value)


def shown(value: Any) -> str:
    """What came, short enough for a message."""
    if isinstance(value, Tensor) and value.dim() > 0:
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
