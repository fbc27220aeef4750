"""How a kernel is launched, and what it takes for a number."""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...problem import BinaryProblem, Problem


def interpreted() -> bool:
    # as triton reads it
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Runs a kernel on the device of its first argument's tensor, if there is anything to do.

    Raises:
        RuntimeError: a tensor has elements and no memory, as the native modules say (bindings.h).
    """
    on = arguments[0]
    if grid[0] <= 0:
        return
    device = (on if isinstance(on, Tensor) else on.input).get_device()
    if device < 0 or device == torch.cuda.current_device():
        _run(device, kernel, grid, arguments, meta)
    else:
        with torch.cuda.device(device):
            _run(device, kernel, grid, arguments, meta)


class Kernels:
    """The modules of ../kernels by their names. Triton comes with the first; an import statement
    within a function costs every call as much as a tenth of a launch."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(f"lpl_fused.backends.kernels.{name}")
        setattr(self, name, module)
        return module


kernels = Kernels()


class _Direct(NamedTuple):
    """A compiled kernel, and what every launch of it hands over."""

    run: Any
    what: tuple[Any, ...]
    rest: tuple[Any, ...]  # its parameters behind the arguments
    native: _Native | None


class _Native(NamedTuple):
    """How the native part of Triton's launcher is handed a compiled kernel and its parameters."""

    types: tuple[Any, ...]  # of all parameters, in the tuples that they come in
    before: tuple[Any, ...]  # what stands between the stream and them
    handed: tuple[Any, ...]  # of what is handed over, in tuples, where constants may be anything


# Compiled kernels by all that Triton specialises them by. Its own launch asks every time what that
# is, option by option, and whether a global has changed since: four times what is asked here.
_compiled: dict[Any, _Direct] = {}


def _run(
    device: int,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    meta: dict[str, Any],
) -> None:
    # a kernel's own hash is one of its source
    asked: list[Any] = [device, kernel.fn, *meta, *meta.values()]
    _ask(asked, arguments)
    place = tuple(asked)
    found = _compiled.get(place)
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    if found is None or not _direct():
        made = kernel[grid](*arguments, **meta, enable_fp_fusion=True)
        if _can_run(made):
            names = kernel.arg_names[len(arguments) :]
            found = _direct_of(made, tuple(meta[name] for name in names))
            _compiled[place] = found
    else:
        stream = _driver().active.get_current_stream(device)
        found.run(x, y, z, stream, *found.what, *arguments, *found.rest)
    tape: Tape | None = getattr(_local, "tape", None)
    if tape is not None:
        tape.add(found, (x, y, z), arguments)


def _direct_of(made: Any, rest: tuple[Any, ...]) -> _Direct:
    """How a compiled kernel is launched; past the launcher's part in Python, which looks for memory
    that the kernel would want of the host, only by plans, and of NVIDIA's in the Triton that it is
    known of."""
    what = made.function, made.packed_metadata, None, None, None
    return _Direct(made.run, what, rest, _native_of(made))


# releases whose launcher is looked at
_NESTED = ("3.6.",)  # it has a native part for every signature
_FLAT = ("3.7.", "3.9.")
PLANNED = _NESTED + _FLAT


def _native_of(made: Any) -> _Native | None:
    triton: Any = importlib.import_module("triton")
    run, version = made.run, triton.__version__
    needs = "global_scratch_size", "profile_scratch_size"
    if (
        not version.startswith(PLANNED)
        or type(run).__name__ != "CudaLauncher"
        or any(getattr(run, name, True) for name in needs)
        or getattr(run, "gsan_enabled", False)  # from 3.9 on
    ):
        return None
    types = tuple(made.src.signature.values())
    what = made.function, run.launch_cooperative_grid, run.launch_pdl
    no_memory, nobody = (None,) * 2, (None,) * 3  # is wanted, is told of it
    if version.startswith(_NESTED):
        return _Native(types, (*what, *no_memory, made.packed_metadata, *nobody), types)
    driver = importlib.import_module("triton.backends.nvidia.driver")
    one = driver.PyKernelArg(nested_tuple=None, type=driver.ARG_KERNEL)
    leaves = tuple(type for type, _ in _leaves(types, types))
    before = *what, made.packed_metadata, *nobody, *no_memory, [one] * len(leaves)
    return _Native(types, (*before, run.kernel_signature), (leaves,))


# Launches of a call, for others of its form: on the current stream of a device, for tensors at
# these addresses.
Plan = Callable[[int, Sequence[int]], object]


class Tape:
    """Writes down what a call launches."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        self._spans = [
            (which, each.data_ptr(), _extent(each))
            for which, each in enumerate(tensors)
            if each is not None
        ]
        self._values: dict[Any, int] = {}
        self._launches: list[tuple[_Native, _Direct, tuple[int, int, int], list[Any]]] = []
        self.whole = True  # all that was done is known, and can be done for other tensors

    def add(self, made: _Direct | None, grid: tuple[int, int, int], values: Any) -> None:
        """A launch."""
        if made is None or made.native is None:
            self.whole = False
            return
        keys = [self._key(*each) for each in _leaves(made.native.types, (*values, *made.rest))]
        self.whole = self.whole and None not in keys
        self._launches.append((made.native, made, grid, keys))

    def _key(self, type: str, value: Any) -> Any:
        """Of a parameter: a number is itself, a tensor is a place behind one of those at hand."""
        if type[0] != "*":
            return type, repr(value), value  # −0 is not 0
        place = value.data_ptr()
        found = [
            (which, place - begin)
            for which, begin, size in self._spans
            if begin <= place < begin + size
        ]
        return (None, found[0]) if len(found) == 1 else None

    def plan(self) -> Plan | None:
        """Of what was written down, if that is all."""
        if not self.whole or not self._launches:
            return None
        text = _Text()
        current = text.word(_driver().active.get_current_stream)
        lines = [f"stream := {current}(device)"]
        for how, made, grid, keys in self._launches:
            before = [text.word(each) for each in (*grid, *how.before)]
            handed = _tuple(how.handed, iter([text.parameter(*key) for key in keys]))
            what = ", ".join([*before[:3], "stream", *before[3:], f"*{handed}"])
            lines.append(f"{text.word(made.run.launch)}({what})")
        found: Plan = eval(f"lambda device, places: ({', '.join(lines)})", text.known)
        return found


class _Text:
    """Words of a plan's text."""

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self._places: dict[Any, str] = {}

    def word(self, value: Any) -> str:
        """For what is the same every time."""
        found = f"known{len(self.known)}"
        self.known[found] = value
        return found

    def parameter(self, type: str | None, value: Any, *number: Any) -> str:
        """For a key of Tape's; an address is added up where the first launch has it."""
        if type is not None:
            return self.word(*number)
        found = self._places.get(value)
        if found is None:
            which, behind = value
            self._places[value] = found = f"place{len(self._places)}"
            return f"({found} := places[{which}] + {behind})"
        return found


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to behind the last of its elements."""
    if not tensor.numel():
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def _leaves(types: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """(type, value) of all parameters that are handed over."""
    for type, value in zip(types, values, strict=True):
        if isinstance(type, tuple):
            yield from _leaves(type, value)
        elif type != "constexpr":
            yield type, value


def _tuple(types: tuple[Any, ...], each: Iterator[str]) -> str:
    """Tuples as these in Python, `each` in the place of what is no constant."""
    parts = []
    for type in types:
        if isinstance(type, tuple):
            parts.append(_tuple(type, each))
        else:
            parts.append("None" if type == "constexpr" else next(each))
    return f"({''.join(part + ',' for part in parts)})"


class _Operations(TorchDispatchMode):
    """Looks out for what a plan would leave out: operations of torch that do something."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not (func.is_view or "empty" in func.name()):
            self._tape.whole = False
        return func(*args, **kwargs or {})


_local = threading.local()


class Plans:
    """Launches of calls of one form. A form says all that they depend on but the tensors: of these
    Triton asks type, alignment and whether they are there.

    What a launch is specialised by, what was compiled for that, and in which order its parameters
    come is found once for all launches of a call, and once for all calls.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, Plan | None] = {}

    def run(
        self, kind: Any, tensors: Sequence[Tensor | None], launches: Callable[[], None]
    ) -> None:
        """`launches()`, or what it launches, for `tensors`, all that it reads and writes. It does
        nothing else: what does is done every time. `kind`: what it is, beside the form's others,
        and what numbers it has that the form does not know."""
        first = tensors[0]
        assert first is not None
        device = first.get_device()
        places = [-1 if each is None else each.data_ptr() for each in tensors]
        key = (
            kind,
            device,
            *[None if each is None else each.dtype for each in tensors],
            *[place & 15 for place in places],
        )
        plan = self._kept.get(key, _UNKNOWN)
        if plan is None or not all(places) or not _direct():
            launches()
        elif plan is _UNKNOWN:
            self._write_down(key, tensors, launches)
        elif device < 0 or device == torch.cuda.current_device():
            plan(device, places)
        else:
            with torch.cuda.device(device):
                plan(device, places)

    def _write_down(
        self, key: Any, tensors: Sequence[Tensor | None], launches: Callable[[], None]
    ) -> None:
        if interpreted() or getattr(_local, "tape", None) is not None:
            launches()
            return
        _local.tape = tape = Tape(tensors)
        try:
            with _Operations(tape):
                launches()
        finally:
            _local.tape = None
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        self._kept[key] = tape.plan()


_UNKNOWN: Any = object()
_MOST_KEPT = 64


def _ask(found: list[Any], values: Iterable[Any]) -> None:
    """Adds what a kernel is specialised by of arguments."""
    add = found.append
    for value in values:
        if value is None:
            add(None)
            continue
        kind = type(value)
        if kind is int:
            if -(1 << 31) <= value < 1 << 31:
                add(1 if value == 1 else 16 if value & 15 == 0 else 32)
            else:
                add(48 if value & 15 == 0 else 64)
        elif isinstance(value, tuple):
            add(kind)
            add(len(value))
            _ask(found, value)
        elif kind is Tensor or isinstance(value, Tensor):
            place = value.data_ptr()
            if not place and value.numel():
                raise RuntimeError("a tensor without memory: its storage was freed")
            add(value.dtype)
            add(place & 15 == 0)
        elif kind is float:
            add(kind)
        else:  # a constant
            add((kind, getattr(value, "value", value)))


@functools.cache
def _driver() -> Any:
    return importlib.import_module("triton.runtime").driver


def _can_run(made: Any) -> bool:
    """Whether a compiled kernel has what a launch past Triton's own takes, as in 3.6 to 3.9."""
    return all(hasattr(made, name) for name in ("run", "function", "packed_metadata"))


def _direct() -> bool:
    """Whether nobody wants to be told of launches."""
    hooks = _hooks()
    return hooks is not None and not (hooks[0].calls or hooks[1].calls)


@functools.cache
def _hooks() -> tuple[Any, Any] | None:
    """Who is told of launches; None where this Triton says it in another way."""
    try:
        runtime = importlib.import_module("triton").knobs.runtime
        hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    except AttributeError:
        return None
    return hooks if all(hasattr(hook, "calls") for hook in hooks) else None


def number(problem: Problem | BinaryProblem, value: float) -> Any:
    """A float argument; triton passes those as float32, which is not enough beside float64."""
    if problem.input.dtype != torch.float64:
        return value
    from triton.language import constexpr

    return constexpr(value)
