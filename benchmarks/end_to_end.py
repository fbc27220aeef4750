"""`python -m benchmarks.end_to_end`: what the loss is worth in a whole training step.

The models and batches of `lpl-fused train`, one and the same batch again and again: forward, loss,
backward and the update of SGD, by every provider in turn on a model of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lpl_fused.data import LongTailedData, load
from lpl_fused.training.models import build_model
from lpl_fused.training.settings import RunSettings

from . import records, report
from .cases import Batch, Case, draw
from .measure import Conditions, Entrant, admit
from .memory import peak_bytes
from .options import SECONDS, THREADS, device, of, written
from .providers import EAGER, EAGER_CE, Criterion, Provider, providers
from .records import STEP, Record, Timing, default_folder
from .steps import Step
from .timing import Plan, alternate, sampler_for

DATA = ("glyphs", "tokens")
LOSSES = ("ce", "la", "lpl10")
PROVIDERS = ("eager", "auto")
_RATE = 1e-3  # of learning; what is learned is not looked at


@dataclass(frozen=True)
class Task:
    """A model and a batch of real inputs and labels."""

    data: str
    model: nn.Module
    inputs: Tensor
    target: Tensor
    classes: int

    @staticmethod
    def of(name: str, device: torch.device) -> Task:
        """With the settings of `lpl-fused train`."""
        settings = RunSettings.for_data(name, {})
        data: LongTailedData = load(name, seed=0, **settings.data_options)
        torch.manual_seed(0)
        model = build_model(data).to(device)
        index = torch.randperm(len(data.train_inputs))[: settings.batch_size]
        target = data.train_targets[index]
        assert isinstance(target, Tensor)
        return Task(
            name, model, data.train_inputs[index].to(device), target.to(device), data.num_classes
        )

    def case(self, loss: str) -> Case:
        return Case.parse(f"{len(self.target)}x{self.classes}", "fp32", loss)

    def batch(self, case: Case) -> Batch:
        """The case's tables and steps, with this model's logits and these labels."""
        with torch.no_grad():
            logits = self.model(self.inputs)
        return draw(case, logits.device)._replace(logits=logits, target=self.target)

    def step(self, criterion: Criterion) -> Step:
        """A training step of a copy of the model."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=_RATE, momentum=0.9)

        def run(_: object) -> None:
            optimizer.zero_grad()
            criterion(model(self.inputs)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return Step(run)


def measure(
    task: Task, case: Case, entrants: Iterable[Provider], conditions: Conditions
) -> Iterator[Record]:
    """The records of one loss; whoever misses the truth on these logits is not timed."""
    batch = task.batch(case)
    admitted = list(admit(case, batch, entrants, conditions.device.type))
    made = {e.name: task.step(e.criterion) for e in admitted if e.criterion is not None}
    if case.plain != case:
        made[EAGER_CE.name] = task.step(EAGER_CE.criterion(case.plain, batch))
    for step in made.values():
        conditions.sampler.seconds(step)  # allocates, and makes the optimiser's buffers
    plans = {n: Plan.of(step, conditions.sampler, conditions.budget) for n, step in made.items()}
    samples = alternate({n: (step, plans[n]) for n, step in made.items()}, conditions.sampler)
    timings = {name: Timing.of(seconds) for name, seconds in samples.items()}
    eager = timings.get(EAGER.name)
    plain = timings.get(EAGER.name if case.plain == case else EAGER_CE.name)
    yardstick = [Entrant(EAGER_CE.name, records.OK)] if EAGER_CE.name in made else []
    for entrant in [*admitted, *yardstick]:
        numbers: dict[str, Any] = {}
        if entrant.name in made:
            timing, whole = timings[entrant.name], made[entrant.name]
            numbers = {
                "clock": conditions.sampler.clock(whole),
                "samples": timing.samples,
                "median_ms": timing.median,
                "p20": timing.p20,
                "p80": timing.p80,
                "ratio_to_eager": timing.median / eager.median if eager else None,
                "ratio_to_eager_ce": timing.median / plain.median if plain else None,
                "peak_bytes": peak_bytes(functools.partial(whole.run, None), conditions.device),
            }
        yield Record(
            case=f"{task.data} {case.name}",
            provider=entrant.name,
            mode=STEP if numbers else None,
            dtype=case.dtype_name,
            rows=case.rows,
            classes=case.classes,
            loss=case.loss.name,
            steps=case.loss.steps,
            labels=task.data,
            status=entrant.status,
            reason=entrant.reason,
            loss_error=records.finite(entrant.errors.loss) if entrant.errors else None,
            grad_error=records.finite(entrant.errors.grad) if entrant.errors else None,
            **asdict(conditions.environment),
            **numbers,
        )


COLUMNS = ("data and loss", "provider", "step ms", "p20–p80", "× eager", "× plain CE", "peak MiB")


def rows(found: Iterable[Record]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    for record in found:
        if record.status == records.OK:
            peak = None if record.peak_bytes is None else record.peak_bytes / 2**20
            yield (
                record.case,
                report.shown_name(record.provider),
                report.digits(record.median_ms),
                f"{report.digits(record.p20)}–{report.digits(record.p80)}",
                report.digits(record.ratio_to_eager),
                report.digits(record.ratio_to_eager_ce),
                report.digits(peak),
            )


def table(found: list[Record]) -> Table:
    """For the terminal."""
    shown = Table(title="whole training steps", box=box.SIMPLE_HEAD)
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    for row in rows(found):
        shown.add_row(*row)
    return shown


def markdown(found: list[Record]) -> str:
    """A page that stands beside the records."""
    text = [
        f"# Training steps: {found[0].device}",
        "",
        report.machine(found[0]),
        "",
        f"Models and batches of `lpl-fused train`, momentum SGD; data: [{records.FILE}]"
        f"({records.FILE}). A step is forward, loss, backward and update, in turns on models of "
        "their own, medians in milliseconds; × eager: over the step with the same loss of plain "
        "PyTorch, × plain CE: over the step with eager `F.cross_entropy`. Peak: memory at the "
        "step's worst moment beyond what was held before it.",
        "",
        report.row(COLUMNS),
        report.row(["---", "---", *["---:"] * (len(COLUMNS) - 2)]),
        *map(report.row, rows(found)),
    ]
    omitted = report.not_timed(found)
    if omitted:
        text += ["", "## Not timed", "", *(f"* {reason}" for reason in omitted)]
    return "\n".join(text) + "\n"


def show(found: list[Record], folder: Path, out: Console) -> list[Path]:
    """Prints the table, writes the page into the records' folder, and names it."""
    page = folder / "README.md"
    page.write_text(markdown(found))
    out.print(table(found))
    for line in report.not_timed(found):
        out.print(f"not timed: {line}", markup=False)
    return [page]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    made.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    made.add_argument(
        "--losses", nargs="+", default=list(LOSSES), help="as benchmarks.run names them"
    )
    made.add_argument("--providers", nargs="+", choices=list(providers()), default=list(PROVIDERS))
    made.add_argument(
        "--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu"
    )
    made.add_argument("--threads", type=of(int, THREADS), default=torch.get_num_threads())
    made.add_argument(
        "--budget", type=of(float, SECONDS), default=2.0, help="seconds for each provider"
    )
    made.add_argument(
        "--output", type=Path, help="folder (default: benchmarks/results/<device>-steps)"
    )
    options = made.parse_args(arguments)
    try:
        for loss in options.losses:
            Case.parse("8x16", "fp32", loss)
    except ValueError as error:
        made.error(str(error))
    torch.set_num_threads(options.threads)
    place = options.device
    environment = records.environment(place, options.threads)
    sampler = sampler_for(place, options.threads)
    conditions = Conditions(place, sampler, environment, options.budget, float("inf"), (STEP,))
    known = providers()
    entrants = [known[name] for name in dict.fromkeys([EAGER.name, *options.providers])]
    default = default_folder(environment)
    folder: Path = options.output or default.with_name(f"{default.name}-steps")
    found: list[Record] = []
    console = report.console()
    with written(made):
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.data:
            with console.status(f"{name}: data and model"):
                task = Task.of(name, place)
            for loss in options.losses:
                with console.status(f"{name}: {loss}"):
                    found += measure(task, task.case(loss), entrants, conditions)
                records.write(found, folder / records.FILE)
        show(found, folder, console)


if __name__ == "__main__":
    main()
