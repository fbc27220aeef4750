"""One case, measured: everybody is checked, whoever is right is timed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import torch

from . import records
from .cases import COLD, COPY, Batch, Case, draw
from .correctness import Errors, allowed_errors, errors, evaluate, truth
from .memory import peak_bytes
from .providers import EAGER, EAGER_CE, Criterion, Provider, Refusal
from .records import Environment, Record, Timing
from .steps import Step, copy_step, rotation, steps
from .timing import Plan, Sampler, alternate

BOTH = "both"


@dataclass(frozen=True)
class Entrant:
    """A provider after the check."""

    name: str
    status: str
    reason: str | None = None
    errors: Errors | None = None
    criterion: Criterion | None = None  # where it may be timed
    overwrites: bool = False  # its inputs, with their gradients

    def batch(self, batch: Batch) -> Batch:
        """The batch that it is timed on; nobody else is to find numbers of its making there."""
        if self.overwrites:
            return batch.of([part.clone() for part in batch.inputs])
        return batch


@dataclass(frozen=True)
class Conditions:
    """Under which all cases are measured.

    Attributes:
        device: where.
        sampler: its clock.
        environment: what every record says about it.
        budget: seconds for each provider and mode.
        patience: seconds that one call may take; what is slower is timed in mode "both" alone.
        modes: what is timed, "both" among it.
    """

    device: torch.device
    sampler: Sampler
    environment: Environment
    budget: float
    patience: float
    modes: tuple[str, ...]


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
    providers = list(providers)
    plains = {provider.name: provider.plain for provider in providers if case.plain != case}
    entrants = list(admit(case, batch, providers, conditions.device.type, notify))
    others = rotation(batch) if COLD in conditions.modes else []
    contestants = {
        entrant.name: steps(entrant.criterion, entrant.batch(batch), others)
        for entrant in entrants
        if entrant.criterion is not None
    }
    contestants[COPY] = {BOTH: copy_step(batch)}
    for entrant in entrants:
        plain = plains.get(entrant.name)
        if plain is not None and entrant.criterion is not None:
            contestants[plain.name] = steps(plain.criterion(case, batch), batch, others)
    found = _time(contestants, conditions, notify)
    sheet = _Sheet(case, conditions, {entrant.name: entrant for entrant in entrants}, found, plains)
    return list(sheet.records())


def out_of_memory(case: Case, conditions: Conditions) -> Record:
    """What is kept of a case too large for the device."""
    sheet = _Sheet(case, conditions, {}, _Found())
    return sheet.record("everybody", None, records.FAILED, "the device is out of memory")


def admit(
    case: Case,
    batch: Batch,
    providers: Iterable[Provider],
    device: str,
    notify: Callable[[str], None] = lambda phase: None,
) -> Iterator[Entrant]:
    """Checks every provider that solves such cases against float64 truth; eager, the measure of
    the others, first.
    """
    notify("float64 truth")
    exact = truth(case, batch)
    eager: Errors | None = None
    entered = (provider for provider in providers if provider.solves(case))
    for provider in sorted(entered, key=lambda p: p.name != EAGER.name):
        reason = provider.absent(device)
        if reason is not None:
            yield Entrant(provider.name, records.ABSENT, records.without_paths(reason))
            continue
        notify(f"checking {provider.name}")
        try:
            criterion = provider.criterion(case, batch)
            copied = batch.of([part.clone() for part in batch.inputs])
            result = evaluate(criterion, copied)
            expected = exact
            if provider.truth is not None:
                wide = batch.of([part.double() for part in batch.inputs])
                expected = evaluate(provider.truth(case, wide), wide)
            found = errors(result, expected)
        except Refusal as refusal:
            yield Entrant(provider.name, records.ABSENT, str(refusal))
            continue
        except Exception as error:  # whatever a compiler or a kernel raises is a finding
            yield Entrant(provider.name, records.FAILED, _in_words(error))
            continue
        reason = found.exceeding(allowed_errors(case, eager))
        if reason is not None:
            yield Entrant(provider.name, records.WRONG, reason, found)
            continue
        if provider.name == EAGER.name:
            eager = found
        pairs = zip(copied.inputs, batch.inputs, strict=True)
        overwrites = not all(torch.equal(mine, given) for mine, given in pairs)
        yield Entrant(provider.name, records.OK, None, found, criterion, overwrites)


def _in_words(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return records.without_paths(f"{type(error).__name__}: {first}")


@dataclass
class _Found:
    """What was measured, by (provider, mode), of a provider in "both", and who was slow."""

    timings: dict[tuple[str, str], Timing] = field(default_factory=dict)
    clocks: dict[tuple[str, str], str] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)
    slow: list[str] = field(default_factory=list)


def _time(
    contestants: dict[str, dict[str, Step]], conditions: Conditions, notify: Callable[[str], None]
) -> _Found:
    """Plans by mode "both", then one mode after the other, and memory at the end."""
    sampler, budget = conditions.sampler, conditions.budget
    found = _Found()
    plans = {name: Plan.of(made[BOTH], sampler, budget) for name, made in contestants.items()}
    for name, plan in plans.items():
        if plan.seconds > conditions.patience and name != COPY:
            found.slow.append(name)
    for mode in conditions.modes:
        notify(mode)
        entered: dict[str, tuple[Step, Plan]] = {}
        for name, made in contestants.items():
            if mode == BOTH:
                entered[name] = made[mode], plans[name]
            elif mode in made and name not in found.slow:
                try:
                    sampler.seconds(made[mode])  # compiles, allocates, captures
                except Exception as error:  # not every graph can be captured
                    found.failures[name, mode] = _in_words(error)
                    continue
                entered[name] = made[mode], Plan.of(made[mode], sampler, budget)
        for name, samples in alternate(entered, sampler).items():
            found.timings[name, mode] = Timing.of(samples)
            found.clocks[name, mode] = sampler.clock(contestants[name][mode])
    notify("memory")
    for name, made in contestants.items():
        if name != COPY:
            call = functools.partial(made[BOTH].run, None)
            found.peaks[name] = peak_bytes(call, conditions.device)
    return found


@dataclass(frozen=True)
class _Sheet:
    """Turns entrants and timings into records."""

    case: Case
    conditions: Conditions
    entrants: dict[str, Entrant]
    found: _Found
    plains: Mapping[str, Provider | None] = field(default_factory=dict)  # of a perturbed case

    def records(self) -> Iterator[Record]:
        for entrant in self.entrants.values():
            if entrant.status != records.OK:
                yield self.record(entrant.name, None, entrant.status, entrant.reason)
        for (name, mode), timing in self.found.timings.items():
            yield self._timed(name, mode, timing)
        for (name, mode), reason in self.found.failures.items():
            yield self.record(name, mode, records.FAILED, reason)
        for name in self.found.slow:
            for mode in self.conditions.modes:
                if mode != BOTH:
                    reason = f"a call takes more than {self.conditions.patience:g} s"
                    yield self.record(name, mode, records.SLOW, reason)

    def _timed(self, name: str, mode: str, timing: Timing) -> Record:
        least = self.case.least_bytes(COPY if name == COPY else mode)
        rate = least / timing.median / 1e6
        timings = self.found.timings
        copy = self.case.least_bytes(COPY) / timings[COPY, BOTH].median / 1e6
        eager = timings.get((EAGER.name, mode))
        is_plain = self.case.plain == self.case
        plain = eager if is_plain else timings.get((EAGER_CE.name, mode))
        own = self.plains.get(name)
        own_plain = timings.get((own.name, mode)) if own is not None else None
        return self.record(
            name,
            COPY if name == COPY else mode,
            records.OK,
            clock=self.found.clocks[name, mode],
            samples=timing.samples,
            median_ms=timing.median,
            p20=timing.p20,
            p80=timing.p80,
            bytes=least,
            gb_per_s=rate,
            percent_of_copy=100 * rate / copy,
            ratio_to_eager=timing.median / eager.median if eager else None,
            ratio_to_eager_ce=timing.median / plain.median if plain else None,
            ratio_to_own_ce=timing.median / own_plain.median if own_plain else None,
            peak_bytes=self.found.peaks.get(name) if mode == BOTH else None,
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
