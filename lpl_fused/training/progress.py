"""How far a comparison is: a bar on a terminal, lines where the output goes to a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

_EVERY = 60.0  # seconds between the lines of a run that takes long


class Progress(Protocol):
    """Of all runs together: a context around them."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def total(self, steps: int) -> None:
        """There will be so many steps in all."""

    def begin(self, what: str) -> None:
        """What is done from now on."""

    def step(self) -> None:
        """A step is done."""


class Bar(RichProgress):
    """The bar of a terminal."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self.add_task("", total=None)

    def total(self, steps: int) -> None:
        self.update(self._bar, total=steps)

    def begin(self, what: str) -> None:
        self.update(self._bar, description=what)

    def step(self) -> None:
        self.advance(self._bar)


class Lines:
    """A line where something begins, and one a minute while it lasts."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._what = ""
        self._steps, self._total = 0, 0
        self._first: float | None = None  # when the first step began
        self._last = clock()

    def __enter__(self) -> object:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def total(self, steps: int) -> None:
        self._total = steps

    def begin(self, what: str) -> None:
        self._what = what
        self._print()

    def step(self) -> None:
        self._steps += 1
        if self._clock() >= self._last + _EVERY:
            self._print()

    def _print(self) -> None:
        now = self._clock()
        self._last = now
        line = f"{self._what}: {self._share()} done"
        if self._first is None:
            self._first = now if self._total else None
        elif self._steps:
            left = (now - self._first) / self._steps * (self._total - self._steps)
            line += f", about {_duration(left)} left"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _share(self) -> str:
        return f"{100 * self._steps // max(1, self._total)} %"


def _duration(seconds: float) -> str:
    """In the largest unit of which there are at least two."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def progress(console: Console) -> Progress:
    """What fits the console."""
    return Bar(console) if console.is_terminal else Lines(console)
