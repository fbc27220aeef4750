"""The comparison behind `lpl-fused train`: every loss with every seed, recorded as it goes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..backends import resolve
from ..data import LongTailedData, load
from .loop import DivergedError, prepare, steps_per_epoch, train
from .plots import save_plot
from .recipes import RECIPES
from .record import Record, environment
from .report import table
from .settings import RunSettings, SettingsError

RECORD_NAME = "run.json"
PLOT_NAME = "plot.png"
DEFAULT_DATA = "glyphs"
DEFAULT_SEEDS = (0, 1, 2)
FAILED = 2
INTERRUPTED = 130  # the shell's status of a program ended by Ctrl-C

_TABLE_WIDTH = 110  # where the output is no terminal whose width is known


def list_losses() -> list[tuple[str, str]]:
    """Name and summary of every loss; a multi-label one says so."""
    return [
        (name, f"multi-label: {recipe.summary}" if recipe.multi_label else recipe.summary)
        for name, recipe in RECIPES.items()
    ]


def run(
    given: Mapping[str, Any],
    *,
    losses: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    output: str | None = None,
    resume: str | None = None,
) -> int:
    """Train every loss with every seed; write run.json and plot.png; print the table.

    Args:
        given: fields of `RunSettings`; the rest are the data set's defaults, or the resumed run's.
        losses: names in `RECIPES` that fit the data's kind; by default those of the kind, or the
            resumed run's.
        seeds: by default 0, 1 and 2, or the resumed run's.
        output: a folder without a run in it; by default runs/DATA-TIME.
        resume: a run.json to continue in its place: pairs that it has are not trained again. A
            pair interrupted in the middle starts anew, and with it what its loss had gathered.

    Returns:
        0; 130 after Ctrl-C (what was finished is written all the same); 2 where a run failed, a
        loss no longer finite, say: the others are trained and written, the error is recorded, and a
        resumed comparison tries the run again.

    Raises:
        SettingsError, DataError: before any training; nothing is written.
    """
    console = Console()
    if resume is not None:
        if output is not None:
            raise SettingsError("a resumed run is written where it was: leave the output out")
        record, folder = Record.load(Path(resume)), Path(resume).parent
        record.settings.check_unchanged(given)
        record.settings.check_losses(losses or ())
        _check_backend(record.settings)
        record.extend(losses or (), seeds or ())
        _note_changed_environment(record, console)
    else:
        settings = _new_settings(given)
        settings.check_losses(losses or ())
        _check_backend(settings)
        record = Record(settings, [], [], environment=environment(settings))
        record.extend(losses or record.kind.default_losses, seeds or DEFAULT_SEEDS)
        folder = Path(output or f"runs/{settings.data}-{time.strftime('%Y%m%d-%H%M%S')}")
        if (folder / RECORD_NAME).exists():
            raise SettingsError(
                f"{folder} already holds a run: resume {folder / RECORD_NAME}, or choose another"
            )

    try:
        with _threads(record.settings.threads):
            _train_all(record, folder, console)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/yellow]")
        if not record.results:
            console.print("no run was finished; nothing is written")
        return INTERRUPTED
    finally:
        if record.results:
            _report(record, folder, console)
    for failure in record.failures:
        print(f"lpl-fused train: error: {failure['error']}", file=sys.stderr)
    return FAILED if record.failures else 0


def _report(record: Record, folder: Path, console: Console) -> None:
    save_plot(record, folder / PLOT_NAME)
    wide = console if console.is_terminal else Console(width=_TABLE_WIDTH)
    wide.print(table(record))
    console.print(f"written: {folder / RECORD_NAME}, {folder / PLOT_NAME}", soft_wrap=True)


def _new_settings(given: Mapping[str, Any]) -> RunSettings:
    fields = dict(given)
    data = fields.pop("data", DEFAULT_DATA)
    fields.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    return RunSettings.for_data(data, fields)


def _check_backend(settings: RunSettings) -> None:
    """Name a device or backend that cannot run before the data are loaded."""
    try:
        device = torch.device(settings.device)
        torch.empty(0, device=device)
        resolve(settings.backend, device.type, torch.float32)
    except (RuntimeError, ValueError, AssertionError) as error:
        # torch asserts where it was built without CUDA
        raise SettingsError(
            f"device {settings.device!r} with backend {settings.backend!r} cannot run: {error}"
        ) from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _note_changed_environment(record: Record, console: Console) -> None:
    now = environment(record.settings)
    changed = [
        f"{name} {record.environment.get(name)} → {value}"
        for name, value in now.items()
        if record.environment.get(name) != value
    ]
    if changed:
        console.print(
            "[yellow]the finished runs come from another environment[/yellow]: "
            + "; ".join(changed)
        )


def _train_all(record: Record, folder: Path, console: Console) -> None:
    """Train the pairs that are missing, seed by seed so that all losses share a seed's data."""
    pending = {seed: record.missing_losses(seed) for seed in record.seeds}
    pairs = sum(map(len, pending.values()))
    if not pairs:
        return
    with _progress(console) as progress:
        bar = progress.add_task("", total=None)
        for seed, losses in pending.items():
            if not losses:
                continue
            progress.update(bar, description=f"{record.settings.data}, seed {seed}")
            data = load(record.settings.data, seed=seed, **record.settings.data_options)
            record.describe_data(data, seed)
            _check_losses(record, data, losses, seed)
            _make(folder)
            steps = record.settings.epochs * steps_per_epoch(data, record.settings)
            progress.update(bar, total=pairs * steps)
            for loss in losses:
                progress.update(bar, description=f"{loss}, seed {seed}")
                try:
                    trained = train(
                        data, loss, seed, record.settings, on_step=lambda: progress.advance(bar)
                    )
                except Exception as error:  # whatever it is, the other losses are worth having
                    record.add_failure(loss, seed, error)
                    if not isinstance(error, DivergedError):
                        console.print_exception()
                else:
                    record.add(loss, seed, trained)
                record.save(folder / RECORD_NAME)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"the output folder {folder} cannot be made: {error}") from error


def _check_losses(record: Record, data: LongTailedData, losses: Sequence[str], seed: int) -> None:
    """Build every loss once, so that a bad option ends the comparison before it starts."""
    for loss in losses:
        options = record.settings.loss_options.get(loss, {})
        try:
            prepare(data, loss, seed, record.settings)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"loss {loss!r} with options {options}: {error}") from error


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
        console=console,
    )
