"""`python -m benchmarks.device_tables --seconds 150`: the GPU tables, on a device.

Cases one after the other, the most important first, until the time is up; what was found so far is
on disk after each of them. In every case everybody is checked against float64 truth before the
clock runs, by the rules of benchmarks/correctness.py. Then, for an upstream gradient of 1 and for a
random one:

* device time of forward + backward: a CUDA graph of both, replayed, the L2 cache flushed before
  each replay; where a call cannot be captured, CUDA events around it, which also sees the host
  where that is slower than the device (the record's "clock" says which);
* wall time of a block of calls, the way a caller meets them;
* of this library's backends also each kernel's own time, beside what the model of
  benchmarks/device_cost.py predicts for it from the machine code on record.

Needs torch, Triton and NumPy; rivals take part where they can be imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import lpl_fused

from . import device_cost, kernel_forms, records, sass
from .cases import COPY, Batch, Case, draw
from .measure import admit
from .memory import peak_bytes
from .options import SECONDS, of, pattern
from .providers import Criterion, Provider, by_statistics, providers
from .steps import copy_step, steps
from .suite import Suite

FILE, PAGE, KERNELS = "device.jsonl", "device.md", "kernels.jsonl"
OURS = ("cuda", "triton")
STATISTICS = tuple(f"{name}-statistics" for name in OURS)
ONE, RANDOM = "1", "random"
_PATIENCE = 0.05  # seconds; eager calls that take longer are checked, and timed three times
_BLOCK = 0.03  # seconds of calls of a clock
_WALL_CALLS = 20
_WARM_ROWS = 512
_LARGE = 2**27  # bytes whose copy tells the memory's rate
_SLOW = ("compile",)  # compiles by timing: not while others work on the device
_OVERHEAD = 6.0  # seconds that the page and the last case may take


class Entry(NamedTuple):
    """A case, and who is timed in it."""

    case: Case
    timed: tuple[str, ...]


def _entries() -> tuple[Entry, ...]:
    """Compilers that take long over every shape come last, for cases that were there before."""
    main, ours, both = "8192x32000 bf16", OURS, (*OURS, "eager")
    of_ce = (*both, "quack", "liger", *STATISTICS)
    plain = ("8192x32000 bf16", "4096x128256 bf16", "4096x50257 bf16", "4096x32000 fp32")
    small = ("4096x8142 bf16", "512x8142 fp32", "128x100 fp32")
    made: list[tuple[str, tuple[str, ...]]] = [
        (f"{main} ce", of_ce),
        (f"{main} lpl50-unique", both),
        *((f"{main} lpl{k}-unique", ours) for k in (5, 100)),
        *((f"{shape} ce", of_ce) for shape in (*plain[1:], small[0])),
        *((f"{main} {loss}", (*both, *STATISTICS)) for loss in ("la", "vs")),
        *((f"{main} {loss}", both) for loss in ("ldam", "smoothing", "focal")),
        *((f"{main} {loss}", both) for loss in ("logitclip", "mbls")),
        (f"{main} lpl10-zipf", both),
        (f"{main} lpl50-zipf", ours),
        *((f"8192x128256 bf16 lpl10-{labels}", ours) for labels in ("unique", "zipf")),
        ("4096x9605 bf16 bce", both),
        *((f"4096x9605 bf16 bce-lpl{k}", both) for k in (10, 50)),
        *((f"{shape} ce", of_ce) for shape in small[1:]),
        ("512x8142 fp32 lpl10-unique", both),
        *((f"{shape} ce", ("compile",)) for shape in (*plain, *small)),
        ("4096x9605 bf16 bce", ("compile",)),
        (f"{main} linear-ce", (*both, "liger-linear", "quack-linear", "cut-cross-entropy")),
    ]
    return tuple(Entry(Case.parse(*words.split()), timed) for words, timed in made)


ENTRIES = _entries()


@dataclasses.dataclass(frozen=True)
class Measured(records.Environment):
    """One provider in one case under one upstream gradient. Times are microseconds, medians with
    the 20th and 80th percentile; what was not measured is null."""

    case: str
    provider: str
    upstream: str  # "1", "random"; of a copy ""
    status: str
    reason: str | None = None
    clock: str | None = None  # "graph" or "events"
    device_us: float | None = None
    p20: float | None = None
    p80: float | None = None
    wall_us: float | None = None
    percent_of_copy: float | None = None  # of the logits read once and the gradient written once
    peak_of_logits: float | None = None
    loss_error: float | None = None
    grad_error: float | None = None

    @property
    def what(self) -> Case:
        return Case.parse(*self.case.split())


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """A kernel of a backend in one case: measured beside predicted, microseconds a launch."""

    case: str
    provider: str
    upstream: str
    kernel: str
    launches: int
    measured_us: float
    predicted_us: float | None
    of: str | None  # whose machine code the prediction has


# ------------------------------------------------------------------------------------- measuring


class Flush:
    """Clears the L2 cache as triton's do_bench does."""

    def __init__(self) -> None:
        from triton.runtime import driver

        self._driver = driver.active
        self._memory = self._driver.get_empty_cache_for_benchmark()

    def __call__(self) -> None:
        self._driver.clear_cache(self._memory)


def flushed(run: Callable[[], object], flush: Flush, calls: int) -> list[float]:
    """Microseconds of single calls, each after a flush."""
    pairs = []
    for _ in range(calls):
        flush()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) for begin, end in pairs]


def wall(run: Callable[[], object], calls: int) -> float:
    """Microseconds a call of a block that ends with a synchronisation."""
    run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start) / calls


def _seconds(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _calls(seconds: float) -> int:
    return int(min(50, max(3, _BLOCK / max(seconds, 1e-6))))


class Clocked(NamedTuple):
    clock: str
    samples: list[float]
    wall_us: float
    peak: int | None


def clocked(criterion: Criterion, batch: Batch, flush: Flush) -> Clocked:
    """Times forward + backward of a criterion on a batch; what takes long once."""
    made = steps(criterion, batch)

    def call() -> object:
        return made["both"].run(None)

    call()
    once = _seconds(call)
    if once > _PATIENCE:
        return Clocked("events", [1e6 * once], 1e6 * once, None)
    calls = _calls(once)
    wall_us = wall(call, min(_WALL_CALLS, calls))
    peak = peak_bytes(call, batch.logits.device)
    try:
        replay = made["both-hot"].run
        replay(None)
    except Exception:  # not every call can be captured
        return Clocked("events", flushed(call, flush, calls), wall_us, peak)
    return Clocked("graph", flushed(lambda: replay(None), flush, calls), wall_us, peak)


def kernel_times(criterion: Criterion, batch: Batch) -> dict[str, tuple[int, float]]:
    """(launches, microseconds of each) of a call's kernels, as torch's profiler names them."""
    from torch.profiler import ProfilerActivity, profile

    made, calls = steps(criterion, batch)["both"], 3
    made.run(None)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            made.run(None)
        torch.cuda.synchronize()
    found = {}
    for event in seen.key_averages():
        total = getattr(event, "device_time_total", 0.0)
        if total > 0:
            found[event.key] = max(1, round(event.count / calls)), total / event.count
    return found


def predictions(arch: str) -> dict[str, dict[str, list[float]]]:
    """The counts on record for an architecture, by compiler."""
    if not device_cost.BASELINE.exists():
        return {}
    known: dict[str, dict[str, list[float]]] = json.loads(device_cost.BASELINE.read_text())
    return {key: found for key, found in known.items() if f" sm_{arch}," in key}


def form_of(case: Case) -> str:
    """What benchmarks/device_cost.py calls a case's loss; "" where it does not count it."""
    return FORMS.get(re.sub(r"lpl\d+", "lpl", case.loss.name), "")


def predicted(
    name: str,
    provider: str,
    case: Case,
    known: dict[str, dict[str, list[float]]],
    rate: float,
) -> tuple[float, str] | None:
    """Microseconds that the model has for a kernel of a case, and whose code it has counted."""
    backend = "CUDA" if provider.startswith("cuda") else "Triton"
    form = form_of(case)
    for key, found in known.items():
        if not key.startswith(backend):
            continue
        if backend == "CUDA":
            wanted = sass.demangled(name).replace(" ", "")
            numbers = next((n for k, n in found.items() if k.replace(" ", "") == wanted), None)
        else:
            start = f"{form} | {case.dtype_name} | "
            ways = (f"{start}{way} | {name}" for way in ("forward", "backward"))
            numbers = next((found[way] for way in ways if way in found), None)
        if numbers is not None:
            seconds = device_cost.predicted(numbers, case.rows * case.classes, rate)
            return 1e6 * seconds, key
    return None


FORMS = {
    "ce": "plain",
    "la": "one table (logit adjustment)",
    "vs": "two tables (VS)",
    "ldam": "a margin (LDAM)",
    "smoothing": "smoothing",
    "focal": "focal",
    "logitclip": "norm (LogitClip)",
    "mbls": "penalty (MbLS)",
    "lpl-unique": kernel_forms.ALONE,
    "lpl-zipf": kernel_forms.ALONE,
    "bce": "BCE",
    "bce-lpl": "BCE, LPL, 10 steps",
}


def _architecture(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}{minor}"


def _known() -> dict[str, Provider]:
    """All providers, and this library's other way to a gradient."""
    return providers() | {f"{name}-statistics": by_statistics(name) for name in OURS}


class Run:
    """One run: what is measured, and what is on disk of it."""

    def __init__(
        self,
        out: Path | None,
        seconds: float,
        commit: str | None,
        entries: Iterable[Entry],
        device: str = "cuda",
        tests: Suite | None = None,
    ) -> None:
        self.entries, self.device, self.tests = list(entries), torch.device(device), tests
        self.end = time.monotonic() + seconds - _OVERHEAD
        environment = records.environment(self.device, torch.get_num_threads())
        if commit:
            environment = dataclasses.replace(environment, git=commit)
        self.out = out or records.default_folder(environment)
        self.environment = dataclasses.asdict(environment)
        self.known = predictions(_architecture(self.device))
        self.rate = device_cost.RATES[0]  # of a copy, bytes a second, once it was measured
        self.found: list[Measured] = []
        self.kernels: list[KernelTime] = []
        self.left: list[str] = []
        self.notes: list[str] = []
        self.flush = Flush()
        self.all = _known()
        self.out.mkdir(parents=True, exist_ok=True)

    def measure(self) -> None:
        for entry in self.entries:
            if time.monotonic() > self.end:
                self.left.append(entry.case.name)
                continue
            start = time.monotonic()
            try:
                self._case(entry)
            except Exception as error:  # a case that fails costs no other
                self.notes.append(f"{entry.case.name}: {_words(error)}")
            gc.collect()
            torch.cuda.empty_cache()
            took = time.monotonic() - start
            print(f"{entry.case.name}: {took:.1f} s, {self.end - time.monotonic():.0f} left")
            sys.stdout.flush()
            self.write()
        self.write()

    def _case(self, entry: Entry) -> None:
        case = entry.case
        batch = draw(case, self.device)
        copy = copy_step(batch)
        samples = flushed(lambda: copy.run(None), self.flush, 30)
        copied = statistics.median(samples)
        if case.logits_bytes > _LARGE:
            self.rate = case.least_bytes(COPY) / copied * 1e6
        self._keep(case, COPY, "", status=records.OK, clock="events", **_of(samples))
        # eager is the measure of the others, checked even where nobody wants its time
        names = dict.fromkeys(("eager", *entry.timed))
        entered = [_before(self.end)(self.all[name]) for name in names]
        for entrant in admit(case, batch, entered, self.device.type):
            errors = entrant.errors
            accuracy = {
                "loss_error": None if errors is None else records.finite(errors.loss),
                "grad_error": None if errors is None else records.finite(errors.grad),
            }
            if entrant.criterion is None:
                reason = entrant.reason
                self._keep(case, entrant.name, "", status=entrant.status, reason=reason, **accuracy)
                continue
            if entrant.name not in entry.timed:
                continue
            for upstream in (ONE, RANDOM):
                given = entrant.batch(batch)
                if upstream == ONE:
                    given = given._replace(upstream=torch.ones_like(batch.upstream))
                try:
                    timed = clocked(entrant.criterion, given, self.flush)
                except Exception as error:
                    reason = _words(error)
                    self._keep(case, entrant.name, upstream, status=records.FAILED, reason=reason)
                    continue
                numbers = _of(timed.samples)
                self._keep(
                    case,
                    entrant.name,
                    upstream,
                    status=records.OK,
                    clock=timed.clock,
                    wall_us=timed.wall_us,
                    percent_of_copy=100 * copied / numbers["device_us"],
                    peak_of_logits=None if timed.peak is None else timed.peak / case.logits_bytes,
                    **numbers,
                    **accuracy,
                )
                if timed.peak is None:
                    break  # slow, and the same with any upstream gradient
                if (
                    entrant.name in (*OURS, *STATISTICS) and upstream == RANDOM
                ):  # where every kernel works
                    self._kernels(case, entrant.name, upstream, entrant.criterion, given)

    def _kernels(
        self, case: Case, name: str, upstream: str, criterion: Criterion, batch: Batch
    ) -> None:
        try:
            found = kernel_times(criterion, batch)
        except Exception as error:  # a machine without CUPTI
            self.notes.append(f"no kernel times: {_words(error)}")
            return
        for kernel, (launches, microseconds) in found.items():
            model = predicted(kernel, name, case, self.known, self.rate)
            self.kernels.append(
                KernelTime(
                    case.name,
                    name,
                    upstream,
                    sass.demangled(kernel) if " " in kernel or "<" in kernel else kernel,
                    launches,
                    microseconds,
                    None if model is None else model[0],
                    None if model is None else model[1],
                )
            )

    def _keep(self, case: Case, provider: str, upstream: str, **numbers: Any) -> None:
        self.found.append(
            Measured(
                case=case.name, provider=provider, upstream=upstream, **self.environment, **numbers
            )
        )

    def write(self) -> None:
        """What there is so far."""
        for name, rows in ((FILE, self.found), (KERNELS, self.kernels)):
            lines = (json.dumps(dataclasses.asdict(row), allow_nan=False) for row in rows)
            (self.out / name).write_text("".join(f"{line}\n" for line in lines))
        (self.out / PAGE).write_text(
            page(self.found, self.kernels, self.left, self.notes, self.tests)
        )


def _before(end: float) -> Callable[[Provider], Provider]:
    """Rivals whose turn comes after the end say so instead of compiling."""

    def limited(provider: Provider) -> Provider:
        def absent(device: str) -> str | None:
            if provider.name not in ("eager", *OURS, *STATISTICS) and time.monotonic() > end:
                return "no time was left"
            return provider.absent(device)

        return dataclasses.replace(provider, absent=absent)

    return limited


def _of(samples: list[float]) -> dict[str, float]:
    timing = records.Timing.of(samples)  # which makes thousands of them
    return {"device_us": timing.median / 1e3, "p20": timing.p20 / 1e3, "p80": timing.p80 / 1e3}


def _words(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return records.without_paths(f"{type(error).__name__}: {first}")[:300]


# ------------------------------------------------------------------------------- compiling before


def warm(entries: Iterable[Entry], processes: int, seconds: float) -> None:
    """Fills the compilers' caches on disk: every (case, provider) runs once, several at a time, in
    processes of their own. What is not done in time compiles when its turn comes."""
    jobs = [f"{entry.case.name} {name}" for entry in entries for name in entry.timed]
    jobs = [job for job in jobs if not job.endswith(("eager", *_SLOW))]
    end = time.monotonic() + seconds
    running: list[subprocess.Popen[bytes]] = []
    for k in range(min(processes, len(jobs))):
        command = [sys.executable, "-m", __spec__.name, "--warm-only", *jobs[k::processes]]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    for process in running:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def warm_only(jobs: Iterable[str]) -> None:
    """What one such process does."""
    known = _known()
    for job in jobs:
        *words, name = job.split()
        case = Case.parse(*words)
        # kernels are the same for fewer rows, unless columns are grouped or shared
        if case.loss.labels != "zipf" and not case.loss.multilabel:
            case = dataclasses.replace(case, rows=min(case.rows, _WARM_ROWS))
        provider = known[name]
        if not provider.solves(case) or provider.absent("cuda") is not None:
            continue
        try:
            batch = draw(case, torch.device("cuda"))
            steps(provider.criterion(case, batch), batch)["both"].run(None)
            torch.cuda.synchronize()
        except Exception as error:  # is said where it is measured
            print(f"{job}: {_words(error)}", file=sys.stderr)
        torch.cuda.empty_cache()


# ----------------------------------------------------------------------------------------- the page


def page(
    found: list[Measured],
    kernels: list[KernelTime],
    left: Iterable[str] = (),
    notes: Iterable[str] = (),
    tests: Suite | None = None,
) -> str:
    """The tables in Markdown."""
    text = ["# GPU tables", ""]
    if not found:
        return "\n".join([*text, "Nothing was measured.", *(f"* {note}" for note in notes), ""])
    text += [_machine(found[0]), "", *(tests.markdown() if tests else ())]
    text += ["## Time of the device", ""]
    text += [
        "Microseconds of the device for forward + backward, medians: a replayed CUDA graph, the L2 "
        "cache flushed before each replay; with an asterisk CUDA events around a call, which also "
        "see a host that is slower than the device. In brackets the per cent of a copy of the "
        "logits in the same run, which reads and writes as many bytes as the logits and their "
        "gradient have; then wall time. “1 · random” is the upstream gradient.",
        "",
    ]
    cases = list(dict.fromkeys(record.case for record in found))
    by = {(r.case, r.provider, r.upstream): r for r in found if r.status == records.OK}
    names = [name for name in _names(found) if name != COPY]
    heads = ["case", "copy", *names]
    text += [_row(heads), _row(["---", *["---:"] * (len(heads) - 1)])]
    for case in cases:
        copy = by.get((case, COPY, ""))
        cells = [case, "–" if copy is None else _number(copy.device_us)]
        text.append(_row([*cells, *(_cell(by, case, name) for name in names)]))
    text += ["", "## Wall time of a caller (µs, upstream 1 · random), peak memory ÷ logits", ""]
    text += [_row(["case", *names]), _row(["---", *["---:"] * len(names)])]
    for case in cases:
        text.append(_row([case, *(_wall_cell(by, case, name) for name in names)]))
    ratios = list(_ratios(by))
    if ratios:
        text += ["", "## Ratios that the project follows", "", "| what | upstream 1 | random |"]
        text += ["| --- | ---: | ---: |", *(_row(ratio) for ratio in ratios)]
    if kernels:
        text += [
            "",
            "## Kernels: measured beside predicted",
            "",
            "µs a launch by torch's profiler (L2 as the kernel before left it); predicted from the "
            "machine code on record, named last.",
            "",
            _row(["case", "backend", "upstream", "kernel", "launches", "measured", "predicted"]),
            "| --- | --- | --- | --- | ---: | ---: | ---: |",
        ]
        for one in kernels:
            words = (one.case, one.provider, one.upstream, one.kernel[:90], str(one.launches))
            text.append(_row([*words, _number(one.measured_us), _number(one.predicted_us)]))
        compilers = sorted({one.of for one in kernels if one.of})
        text += ["", *(f"* predicted from {name}" for name in compilers)]
    reasons = dict.fromkeys(
        f"{r.provider} in {r.case} is {r.status}: {r.reason}"
        for r in found
        if r.status != records.OK
    )
    if reasons or left or notes:
        text += ["", "## Not timed", "", *(f"* {reason}" for reason in reasons)]
        text += [f"* {case}: no time was left" for case in left]
        text += [f"* {note}" for note in dict.fromkeys(notes)]
    text += ["", "## Errors", "", "Of the gradient against float64, by provider.", ""]
    text += [_row(["case", *names]), _row(["---", *["---:"] * len(names)])]
    for case in cases:
        errors = [by.get((case, name, ONE)) for name in names]
        shown = [
            "–" if r is None or r.grad_error is None else f"{r.grad_error:.0e}" for r in errors
        ]
        text.append(_row([case, *shown]))
    return "\n".join(text) + "\n"


def _machine(one: Measured) -> str:
    return (
        f"{one.device}, driver {one.driver}; torch {one.torch}, triton {one.triton}, Python "
        f"{one.python}; {one.cpu}; lpl_fused {one.lpl_fused}, commit {one.git}; {one.date}."
    )


def _names(found: Iterable[Measured]) -> Iterator[str]:
    return iter(dict.fromkeys(r.provider for r in found if r.status == records.OK))


Found = dict[tuple[str, str, str], Measured]


def _cell(by: Found, case: str, name: str) -> str:
    both = [by.get((case, name, upstream)) for upstream in (ONE, RANDOM)]
    if not any(both):
        return "–"
    return " · ".join(
        "–"
        if r is None
        else f"{_number(r.device_us)}{'*' if r.clock == 'events' else ''} "
        f"({_number(r.percent_of_copy)})"
        for r in both
    )


def _wall_cell(by: Found, case: str, name: str) -> str:
    both = [by.get((case, name, upstream)) for upstream in (ONE, RANDOM)]
    if not any(both):
        return "–"
    times = " · ".join("–" if r is None else _number(r.wall_us) for r in both)
    peaks = [r.peak_of_logits for r in both if r is not None and r.peak_of_logits is not None]
    return f"{times}, {max(peaks):.2f}" if peaks else times


def _ratios(by: Found) -> Iterator[tuple[str, str, str]]:
    """(what, with an upstream of 1, with a random one) of the pairs that were measured."""
    main, plain = "8192x32000 bf16", "8192x32000 bf16 ce"
    pairs: list[tuple[str, tuple[str, str], tuple[str, str]]] = []
    for ours in OURS:
        by_sums = f"{ours}-statistics"
        pairs.append(
            (
                f"{ours} LPL K = 50 over its CE by statistics",
                (f"{main} lpl50-unique", ours),
                (plain, by_sums),
            )
        )
        pairs += [
            (
                f"{ours} {loss} over its CE, both by statistics",
                (f"{main} {loss}", by_sums),
                (plain, by_sums),
            )
            for loss in ("la", "vs")
        ]
        for shape in (main, "4096x128256 bf16"):
            pairs.append(
                (f"{ours} CE over QuACK, {shape}", (f"{shape} ce", ours), (f"{shape} ce", "quack"))
            )
        for loss in ("la", "vs", "ldam", "smoothing", "focal", "logitclip", "mbls"):
            pairs.append((f"{ours} {loss} over its CE", (f"{main} {loss}", ours), (plain, ours)))
        lpl = f"{main} lpl50-unique"
        for other in ("eager", "quack", ours):
            pairs.append((f"{ours} LPL K = 50 over {other}'s CE", (lpl, ours), (plain, other)))
        pairs.append(
            (
                f"{ours} LPL K = 100 over K = 5",
                (f"{main} lpl100-unique", ours),
                (f"{main} lpl5-unique", ours),
            )
        )
        large = "8192x128256 bf16 lpl10"
        pairs.append(
            (
                f"{ours} LPL K = 10, Zipf over a class a row, 8192x128256",
                (f"{large}-zipf", ours),
                (f"{large}-unique", ours),
            )
        )
        bce = "4096x9605 bf16 bce"
        pairs.append((f"{ours} BCE's LPL K = 50 over BCE", (f"{bce}-lpl50", ours), (bce, ours)))
    for what, above, below in pairs:
        numbers = []
        for upstream in (ONE, RANDOM):
            a, b = by.get((*above, upstream)), by.get((*below, upstream))
            known = a and b and a.device_us and b.device_us
            numbers.append(f"{a.device_us / b.device_us:.2f}" if known else "–")  # type: ignore[union-attr, operator]
        if set(numbers) != {"–"}:
            yield what, numbers[0], numbers[1]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.device_tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--seconds", type=of(float, SECONDS), default=150, help="of the whole run; default: 150"
    )
    made.add_argument(
        "--out", type=Path, help="folder of records and page (default: benchmarks/results/<device>)"
    )
    made.add_argument(
        "--tests", type=Path, help="what pytest --junitxml wrote here, to stand on the page as well"
    )
    made.add_argument("--commit", help="what is measured, where no git says it")
    made.add_argument(
        "--only", type=pattern, default="", metavar="REGEX", help="cases whose name has it"
    )
    made.add_argument(
        "--warm", type=int, default=0, metavar="PROCESSES", help="that compile everything before"
    )
    made.add_argument("--warm-only", nargs="*", metavar="JOB", help=argparse.SUPPRESS)
    made.add_argument("--list", action="store_true", help="names the cases, measures nothing")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = parser()
    options = made.parse_args(arguments)
    if options.warm_only is not None:
        return warm_only(options.warm_only)
    entries = [entry for entry in ENTRIES if re.search(options.only, entry.case.name)]
    if options.list:
        print("\n".join(entry.case.name for entry in entries))
        return None
    if not entries:
        made.error(f"--only: expected some case to have {options.only!r}")
    if not torch.cuda.is_available():
        made.error("no CUDA device: these tables are measured on one")
    try:
        tests = Suite.of(options.tests) if options.tests else None
    except ValueError as error:
        made.error(str(error))
    start = time.monotonic()
    if options.warm:
        warm(entries, options.warm, options.seconds / 3)
        print(f"compiled for {time.monotonic() - start:.0f} s")
    spent = time.monotonic() - start
    print(f"{torch.cuda.get_device_name()}, lpl_fused from {Path(lpl_fused.__file__).parent.name}")
    run = Run(options.out, options.seconds - spent, options.commit, entries, tests=tests)
    run.measure()
    print(f"{time.monotonic() - start:.0f} s: {PAGE}, {FILE}, {KERNELS} in {run.out.name}")
    return None


if __name__ == "__main__":
    main()
