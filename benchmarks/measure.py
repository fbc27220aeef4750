"""One case, measured: everybody is checked, whoever is right is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch

from . import records
from .cases import COPY, MODES, Batch, Case, draw
from .correctness import Errors, allowed_errors, errors, evaluate, truth
from .providers import EAGER, EAGER_CE, Criterion, Provider
from .records import Environment, Record, Timing
from .timing import Plan, Sampler, Step, alternate, copy_step, steps

BOTH = "both"


@dataclass(frozen=True)
class Entrant:
    """A provider after the check."""

    name: str
    status: str
    reason: str | None = None
    errors: Errors | None = None
    criterion: Criterion | None = None  # where it may be timed


@dataclass(frozen=True)
class Conditions:
    """Under which all cases are measured.

    Attributes:
        device: where.
        sampler: its clock.
        environment: what every record says about it.
        budget: seconds for each provider and mode.
        patience: seconds that one call may take; what is slower is timed in mode "both" alone.
    """

    device: torch.device
    sampler: Sampler
    environment: Environment
    budget: float
    patience: float


def measure(
    case: Case,
    providers: Iterable[Provider],
    conditions: Conditions,
    notify: Callable[[str], None] = lambda phase: None,
) -> list[Record]:
    """The records of a case, by every provider and mode.

    Args:
        providers: eager among them, where ratios are wanted.
        notify: hears what is being done.
    """
    batch = draw(case, conditions.device)
    entrants = list(admit(case, batch, providers, conditions.device.type, notify))
    contestants = {
        entrant.name: steps(entrant.criterion, batch)
        for entrant in entrants
        if entrant.criterion is not None
    }
    contestants[COPY] = {BOTH: copy_step(batch)}
    if case.loss.kind != "ce":
        contestants[EAGER_CE.name] = steps(EAGER_CE.criterion(case.plain, batch), batch)
    slow, timings = _time(contestants, conditions, notify)
    sheet = _Sheet(case, conditions, {entrant.name: entrant for entrant in entrants}, timings)
    return list(sheet.records(slow))


def out_of_memory(case: Case, conditions: Conditions) -> Record:
    """What is kept of a case too large for the device."""
    sheet = _Sheet(case, conditions, {}, {})
    return sheet.record("everybody", None, records.FAILED, "the device is out of memory")


def admit(
    case: Case,
    batch: Batch,
    providers: Iterable[Provider],
    device: str,
    notify: Callable[[str], None] = lambda phase: None,
) -> Iterator[Entrant]:
    """Checks every provider against float64 truth; eager, the measure of the others, first."""
    notify("float64 truth")
    exact = truth(case, batch)
    eager: Errors | None = None
    for provider in sorted(providers, key=lambda p: p.name != EAGER.name):
        reason = provider.absent(device, case.loss.multilabel)
        if reason is not None:
            yield Entrant(provider.name, records.ABSENT, records.without_paths(reason))
            continue
        notify(f"checking {provider.name}")
        try:
            criterion = provider.criterion(case, batch)
            found = errors(evaluate(criterion, batch), exact)
        except Exception as error:  # whatever a compiler or a kernel raises is a finding
            first = next(iter(str(error).splitlines()), "")
            reason = records.without_paths(f"{type(error).__name__}: {first}")
            yield Entrant(provider.name, records.FAILED, reason)
            continue
        reason = found.exceeding(allowed_errors(case, eager))
        if reason is not None:
            yield Entrant(provider.name, records.WRONG, reason, found)
            continue
        if provider.name == EAGER.name:
            eager = found
        yield Entrant(provider.name, records.OK, None, found, criterion)


def _time(
    contestants: dict[str, dict[str, Step]], conditions: Conditions, notify: Callable[[str], None]
) -> tuple[set[str], dict[tuple[str, str], Timing]]:
    """Who was slow, and the timings by (provider, mode)."""
    sampler, budget = conditions.sampler, conditions.budget
    timings: dict[tuple[str, str], Timing] = {}
    plans = {name: Plan.of(modes[BOTH], sampler, budget) for name, modes in contestants.items()}
    slow = {name for name, plan in plans.items() if plan.seconds > conditions.patience} - {COPY}
    for mode in MODES:
        notify(mode)
        field: dict[str, tuple[Step, Plan]] = {}
        for name, modes in contestants.items():
            if mode == BOTH:
                field[name] = modes[mode], plans[name]
            elif mode in modes and name not in slow:
                sampler.seconds(modes[mode])  # compiles, allocates
                field[name] = modes[mode], Plan.of(modes[mode], sampler, budget)
        if field:
            samples = alternate(field, sampler)
            timings |= {(name, mode): Timing.of(values) for name, values in samples.items()}
    return slow, timings


@dataclass(frozen=True)
class _Sheet:
    """Turns entrants and timings into records."""

    case: Case
    conditions: Conditions
    entrants: dict[str, Entrant]
    timings: dict[tuple[str, str], Timing]

    def records(self, slow: set[str]) -> Iterator[Record]:
        for entrant in self.entrants.values():
            if entrant.status != records.OK:
                yield self.record(entrant.name, None, entrant.status, entrant.reason)
        for (name, mode), timing in self.timings.items():
            yield self._timed(name, mode, timing)
        for name in slow:
            for mode in MODES:
                if mode != BOTH:
                    reason = f"a call takes more than {self.conditions.patience:g} s"
                    yield self.record(name, mode, records.SLOW, reason)

    def _timed(self, name: str, mode: str, timing: Timing) -> Record:
        least = self.case.least_bytes(COPY if name == COPY else mode)
        rate = least / timing.median / 1e6
        copy = self.case.least_bytes(COPY) / self.timings[COPY, BOTH].median / 1e6
        eager = self.timings.get((EAGER.name, mode))
        plain = eager if self.case.loss.kind == "ce" else self.timings.get((EAGER_CE.name, mode))
        return self.record(
            name,
            COPY if name == COPY else mode,
            records.OK,
            clock=self.conditions.sampler.clock,
            samples=timing.samples,
            median_ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            bytes=least,
            gb_per_s=rate,
            percent_of_copy=100 * rate / copy,
            ratio_to_eager=timing.median / eager.median if eager else None,
            ratio_to_eager_ce=timing.median / plain.median if plain else None,
        )

    def record(
        self, name: str, mode: str | None, status: str, reason: str | None = None, **numbers: object
    ) -> Record:
        case, entrant = self.case, self.entrants.get(name)
        found = entrant.errors if entrant is not None else None
        return Record(
            case=case.name,
            provider=name,
            mode=mode,
            dtype=case.dtype_name,
            rows=case.rows,
            classes=case.classes,
            loss=case.loss.name,
            steps=case.loss.steps,
            labels=case.loss.labels,
            status=status,
            reason=reason,
            loss_error=records.finite(found.loss) if found else None,
            grad_error=records.finite(found.grad) if found else None,
            **asdict(self.conditions.environment),
            **numbers,  # type: ignore[arg-type]
        )
