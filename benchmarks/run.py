"""`python -m benchmarks.run`: measures cases; writes table, records, plots and summary."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import cases, records, report, selections, suite
from .cases import Case, modes
from .measure import BOTH, Conditions, measure, out_of_memory
from .options import PATIENCE, SECONDS, THREADS, device, of, written
from .peers import OFFICIAL
from .providers import AUTO, COMPILE, EAGER, Provider, providers
from .records import Record
from .suite import Suite
from .timing import sampler_for


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    which = made.add_argument_group("what is measured (default: a selection of some minutes)")
    which.add_argument("--all", action="store_true", help="every shape and loss, K = 1 … 100")
    which.add_argument("--lpl", action="store_true", help="the steps of LPL beside plain CE")
    which.add_argument(
        "--sweep", action="store_true", help="plain CE from 2 to 262144 classes, 1 to 8192 rows"
    )
    which.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    which.add_argument("--shapes", type=_list, help="as 512x8142,256x32000")
    which.add_argument("--dtypes", type=_list, help=f"of {', '.join(cases.DTYPES)}")
    which.add_argument(
        "--losses",
        type=_list,
        help="of ce,la,vs,ldam,smoothing,focal,linear-ce,[linear-]lplK[-zipf|-unique|-one],bce,db,"
        "bce-lplK",
    )
    which.add_argument(
        "--providers",
        type=_list,
        help=f"of {','.join(providers())} (default: all but {OFFICIAL.name}, which takes minutes "
        "a case from thousands of classes on)",
    )
    how = made.add_argument_group("how")
    how.add_argument(
        "--modes", type=_list, help="of forward, backward, …; forward + backward is always timed"
    )
    how.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    how.add_argument("--threads", type=of(int, THREADS), default=torch.get_num_threads())
    how.add_argument("--budget", type=of(float, SECONDS), help="seconds for each provider and mode")
    how.add_argument(
        "--patience",
        type=of(float, PATIENCE),
        default=0.6,
        help="seconds; a provider whose call takes longer is timed forward + backward alone",
    )
    out = made.add_argument_group("what is written")
    out.add_argument("--output", type=Path, help="folder (default: benchmarks/results/<device>)")
    out.add_argument(
        "--tests", type=Path, help="what pytest --junitxml wrote here, to stand on the page as well"
    )
    out.add_argument("--markdown", action="store_true", help="print the summary, too")
    return made


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases that the options ask for."""
    if options.shapes or options.dtypes or options.losses:
        quick = selections.quick_cases()
        shapes = options.shapes or ([quick[0].shape] if options.quick else selections.COMMON_SHAPES)
        return selections.product(
            shapes, options.dtypes or ["fp32"], options.losses or selections.LOSSES
        )
    if options.quick:
        return selections.quick_cases()
    if options.sweep:
        return selections.sweep_cases(options.device.type)
    if options.lpl:
        return selections.lpl_cases(options.device.type)
    return (selections.all_cases if options.all else selections.default_cases)(options.device.type)


# Takes minutes a case; is one of the backends.
_WHERE_NAMED = (OFFICIAL.name, AUTO.name)


def contestants(options: argparse.Namespace) -> list[Provider]:
    """The providers that the options ask for; eager is always among them."""
    known = providers()
    names = options.providers or [name for name in known if name not in _WHERE_NAMED]
    if options.sweep and not options.providers:
        names = [EAGER.name, COMPILE.name, AUTO.name]
    if options.quick and not options.providers:
        names.remove(COMPILE.name)  # its compiler alone takes longer than a smoke run
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"providers: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return [known[name] for name in dict.fromkeys([EAGER.name, *names])]


def modes_of(options: argparse.Namespace) -> tuple[str, ...]:
    """The modes that the options ask for; forward + backward is always among them."""
    known = modes(options.device.type)
    wanted = (BOTH,) if options.sweep and options.modes is None else options.modes or known
    unknown = [mode for mode in wanted if mode not in known]
    if unknown:
        raise ValueError(f"modes: expected some of {', '.join(known)}, got {unknown[0]!r}")
    return tuple(mode for mode in known if mode == BOTH or mode in wanted)


def measure_all(
    chosen: list[Case],
    entrants: list[Provider],
    conditions: Conditions,
    console: Console,
    keep: Callable[[list[Record]], None],
) -> list[Record]:
    """All cases under a progress bar; `keep` gets the records so far after each."""
    found: list[Record] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for case in chosen:

            def notify(phase: str, case: Case = case) -> None:
                progress.update(task, description=f"{case.name}: {phase}")

            try:
                found += measure(case, entrants, conditions, notify)
            except torch.OutOfMemoryError:
                found.append(out_of_memory(case, conditions))
            keep(found)
            progress.advance(task)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = parser()
    options = made.parse_args(arguments)
    try:
        chosen, entrants, taken = selected(options), contestants(options), modes_of(options)
        tests = Suite.of(options.tests) if options.tests else None
    except ValueError as error:
        made.error(str(error))
    console = report.console()
    torch.set_num_threads(options.threads)
    environment = records.environment(options.device, options.threads)
    budget = options.budget or (0.02 if options.quick else 0.3)
    sampler = sampler_for(options.device, options.threads)
    conditions = Conditions(options.device, sampler, environment, budget, options.patience, taken)
    folder = options.output or records.default_folder(environment)
    data = folder / records.FILE
    with written(made):
        folder.mkdir(parents=True, exist_ok=True)
        suite.write(tests, folder)
        found = measure_all(
            chosen, entrants, conditions, console, lambda kept: records.write(kept, data)
        )
        pages = [data, *report.show(found, folder, console)]
    if options.markdown:
        console.print(pages[-1].read_text(), markup=False)
    console.print(f"written: {', '.join(path.name for path in pages)}")


if __name__ == "__main__":
    main()
