"""The comparison behind `lpl-fused train`: every loss with every seed, recorded as it goes."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..backends import REFERENCE, resolve
from ..data import DataError, LongTailedData, load
from ..extras import needs_extra
from .kinds import kind_of
from .loop import DivergedError, prepare, steps_per_epoch, train
from .models import TORCHVISION
from .plots import save_plot
from .progress import progress
from .ranks import Ranks, ToldError, joined
from .recipes import RECIPES
from .record import Record, environment
from .report import beside_published, table
from .settings import RunSettings, SettingsError

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

RECORD_NAME = "run.json"
PLOT_NAME = "plot.png"
DEFAULT_DATA = "glyphs"
DEFAULT_SEEDS = (0, 1, 2)
FAILED = 2
INTERRUPTED = 130  # the shell's status of a program ended by Ctrl-C

_MOST_LEFT_OUT = 20  # faults of the data that are listed
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
        resume: a run.json, or its folder, to continue in its place: pairs that it has are not
            trained again. A pair interrupted in the middle starts anew, and with it what its loss
            had gathered.

    Returns:
        0; 130 after Ctrl-C (what was finished is written all the same); 2 where a run failed, a
        loss no longer finite, say: the others are trained and written, the error is recorded, and a
        resumed comparison tries the run again. Under torchrun, where the ranks have some of the
        classes each (`shard_classes`), the first speaks and writes; the others have its status, and
        2 where it says what is wrong.

    Raises:
        SettingsError, DataError: before any training, nothing is written; or a file could not be
            written, which leaves it as it was, and what was finished before in it.
    """
    try:
        with joined() as ranks, contextlib.ExitStack() as locks:
            console = Console(quiet=not ranks.leads)
            record, folder = ranks.of_first(
                lambda: _prepared(given, losses, seeds, output, resume, ranks, console, locks)
            )
            with ranks.together():
                _check_device(record.settings, ranks)
            return _trained(record, folder, console, locks, ranks, new=resume is None)
    except ToldError:
        return FAILED


def _prepared(
    given: Mapping[str, Any],
    losses: Sequence[str] | None,
    seeds: Sequence[int] | None,
    output: str | None,
    resume: str | None,
    ranks: Ranks,
    console: Console,
    locks: contextlib.ExitStack,
) -> tuple[Record, Path]:
    """What is wanted, and the folder that it goes to."""
    if resume is not None:
        if output is not None:
            raise SettingsError("output: a resumed run is written where it was, leave it out")
        path = Path(resume)
        if resume and os.path.isdir(path):
            path /= RECORD_NAME
        if os.path.isfile(path):  # locked before it is read: nobody may write it in between
            locks.enter_context(_alone(path.parent))
        record, folder = Record.load(path), path.parent
        if path.name != RECORD_NAME:
            raise SettingsError(f"expected a {RECORD_NAME}, which is written anew, got {path}")
        record.settings.check_losses(losses or ())
        record.settings.check_unchanged(given)
        _check_ranks(record.settings, ranks)
        _check_backend(record.settings)
        _check_backbone(record.settings)
        record.extend(losses or (), seeds or ())
        _note_changed_environment(record, ranks, console)
    else:
        settings = _new_settings(given)
        settings.check_losses(losses or ())
        _check_ranks(settings, ranks)
        record = Record(settings, [], [], environment={})
        record.extend(losses or record.kind.default_losses, seeds or DEFAULT_SEEDS)
        _check_loss_options(record)
        _check_backend(settings)
        _check_backbone(settings)
        record.environment = environment(settings, ranks.size)
        if output is None:
            output = f"runs/{settings.data}-{time.strftime('%Y%m%d-%H%M%S')}"
        if output == "":
            raise SettingsError("output: expected a folder, got ''")
        folder = Path(output)
        _check_free(folder)
    return record, folder


def _trained(
    record: Record,
    folder: Path,
    console: Console,
    locks: contextlib.ExitStack,
    ranks: Ranks,
    new: bool,
) -> int:
    """The status of the comparison that `run` has prepared."""
    status = 0
    try:
        with _threads(record.settings.threads):
            _train_all(record, folder, console, locks, ranks, new)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/yellow]")
        if not record.results:
            console.print("no run was finished; nothing is written: the same command starts anew")
        status = INTERRUPTED
    finally:
        if ranks.leads and record.results and not _report(record, folder, console):
            status = FAILED
    if status != INTERRUPTED:
        for failure in record.failures:
            if ranks.leads:
                _tell(failure["error"])
            status = FAILED
    if status and (folder / RECORD_NAME).exists():
        command = "lpl-fused"
        if ranks.size > 1:
            command = f"torchrun --nproc-per-node {ranks.size} -m lpl_fused"
        again = f"{command} train --resume {shlex.quote(str(folder))}"
        console.print(f"to go on where this ended: {again}", soft_wrap=True, markup=False)
    return status


def _tell(error: object) -> None:
    print(f"lpl-fused train: error: {error}", file=sys.stderr)


def _report(record: Record, folder: Path, console: Console) -> bool:
    """Print the table and draw the plot; whether that could be written."""
    wide = console if console.is_terminal else Console(width=_TABLE_WIDTH)
    wide.print(table(record))
    beside = beside_published(record)
    if beside is not None:
        wide.print(beside)
    try:
        with _written(folder / PLOT_NAME):
            save_plot(record, folder / PLOT_NAME)
    except SettingsError as error:  # that of the record, where there is one, is worth more
        _tell(error)
        return False
    console.print(f"written: {folder / RECORD_NAME}, {folder / PLOT_NAME}", soft_wrap=True)
    return True


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Name the file that could not be written; `replacing` leaves the earlier one."""
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror or error}; it is as it was before"
        ) from error


def _check_free(folder: Path) -> None:
    """Raise SettingsError where results cannot be written, or would replace others."""
    # os.path says no where Path raises: of a name too long, or with a null byte
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise SettingsError(f"output: expected a folder, got the file {folder}")
    for name in (RECORD_NAME, PLOT_NAME):
        if os.path.exists(folder / name):
            what = f"a run: resume {folder / RECORD_NAME}" if name == RECORD_NAME else f"a {name}"
            raise SettingsError(f"{folder} already holds {what}, or choose another")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other comparisons out of the folder, until the process ends at the latest.

    On a file system without locks, or where Python has none, nobody is kept out.
    """
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"{folder} is in use: another run is writing there") from None
        except OSError:
            pass
        yield
    finally:
        os.close(place)  # and with it the lock


def _new_settings(given: Mapping[str, Any]) -> RunSettings:
    fields = dict(given)
    data = fields.pop("data", DEFAULT_DATA)
    fields.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    return RunSettings.for_data(data, fields)


def _check_ranks(settings: RunSettings, ranks: Ranks) -> None:
    """Raise SettingsError where processes would do the same work, or need what they have not."""
    if ranks.size > 1 and not settings.shard_classes:
        raise SettingsError(
            f"shard_classes: torchrun started {ranks.size} processes, and without it each would"
            " train everything"
        )
    if settings.linear and kind_of(settings.data).multi_label:
        raise SettingsError(f"linear: is for data of single labels, {settings.data!r} has several")
    if settings.linear and settings.backend == REFERENCE:
        raise SettingsError("linear: the reference makes all logits; expected another backend")


def _check_device(settings: RunSettings, ranks: Ranks) -> None:
    """Raise SettingsError where this rank has no device of its own."""
    device = torch.device(settings.device)
    if ranks.size == 1 or device.type != "cuda":
        return
    if device.index is not None:
        raise SettingsError(f"device: expected 'cuda', of which each rank takes one, got {device}")
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= count:
        raise SettingsError(f"device: expected a GPU for each rank of a machine, got {count}")


def _check_backbone(settings: RunSettings) -> None:
    """Name a missing or unfit torchvision before the data are loaded, which takes long."""
    if settings.backbone in TORCHVISION:
        try:
            with needs_extra():
                importlib.import_module("torchvision")
        except (RuntimeError, OSError) as error:  # that of another torch
            reason = str(error).partition("\n")[0]
            raise SettingsError(
                f"backbone: {settings.backbone} needs a torchvision that fits torch "
                f"{torch.__version__}, the one that is installed says: {reason}"
            ) from error


def _check_backend(settings: RunSettings) -> None:
    """Name a device or backend that cannot run before the data are loaded."""
    try:
        device = torch.device(settings.device)
        if device.type == "meta":
            raise ValueError("tensors there have no numbers")
        torch.empty(0, device=device)
        resolve(settings.backend, device.type, torch.float32)
    except (RuntimeError, ValueError, AssertionError) as error:
        # torch asserts where it was built without CUDA
        reason = str(error).partition("\n")[0]
        raise SettingsError(
            f"device {settings.device!r} with backend {settings.backend!r} cannot run: {reason}"
        ) from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _note_changed_environment(record: Record, ranks: Ranks, console: Console) -> None:
    now = environment(record.settings, ranks.size)
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


def _train_all(
    record: Record,
    folder: Path,
    console: Console,
    locks: contextlib.ExitStack,
    ranks: Ranks,
    new: bool,
) -> None:
    """Train the pairs that are missing, seed by seed so that all losses share a seed's data."""
    pending = {seed: record.missing_losses(seed) for seed in record.seeds}
    pairs = sum(map(len, pending.values()))
    if not pairs:
        return
    beside = {} if ranks.group is None else {"process_group": ranks.group}
    shown = progress(console)
    with shown:
        for seed, losses in pending.items():
            if not losses:
                continue
            shown.begin(f"{record.settings.data}, seed {seed}")
            with ranks.together():
                data = load(record.settings.data, seed=seed, **record.settings.data_options)
                record.describe_data(data, seed)
                if data.left_out:
                    console.print(f"left out, seed {seed}: {len(data.left_out)}")
                    some = data.left_out[:_MOST_LEFT_OUT]
                    console.print(*some, sep="\n", markup=False, soft_wrap=True)
                _check_losses(record, data, losses, seed, ranks)
            with ranks.together():
                if new and ranks.leads:
                    _make(folder)
                    locks.enter_context(_alone(folder))
                    _check_free(folder)  # another run may have been faster
                new = False
            steps = record.settings.epochs * steps_per_epoch(data, record.settings)
            shown.total(pairs * steps)
            for loss in losses:
                shown.begin(f"{loss}, seed {seed}")
                try:
                    trained = train(data, loss, seed, record.settings, on_step=shown.step, **beside)
                except DataError:  # an image that cannot be read, which no loss has
                    raise
                except Exception as error:  # whatever it is, the other losses are worth having
                    diverged = isinstance(error, DivergedError)
                    if ranks.size > 1 and not diverged:
                        raise  # of this rank, perhaps, for which the others would wait
                    record.add_failure(loss, seed, error)
                    if not diverged:
                        console.print_exception()
                else:
                    record.add(loss, seed, trained)
                if ranks.leads:
                    with _written(folder / RECORD_NAME):
                        record.save(folder / RECORD_NAME)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a null byte is a ValueError
        raise SettingsError(f"the output folder {folder} cannot be made: {error}") from error
    if not os.access(folder, os.W_OK | os.X_OK):  # better now than after the first training
        raise SettingsError(f"the output folder {folder} cannot be written to")


def _check_loss_options(record: Record) -> None:
    """Raise SettingsError where options are given of a loss that is not compared."""
    for loss, options in record.settings.loss_options.items():
        if loss not in record.losses:
            raise SettingsError(
                f"loss_options.{loss}.{next(iter(options))}: expected an option of a loss that is "
                f"compared ({', '.join(record.losses)}), got one of {loss!r}"
            )


def _check_losses(
    record: Record, data: LongTailedData, losses: Sequence[str], seed: int, ranks: Ranks
) -> None:
    """Build every loss once, so that a bad option ends the comparison before it starts."""
    beside = () if ranks.group is None else (ranks.group,)
    for loss in losses:
        options = record.settings.loss_options.get(loss, {})
        try:
            prepare(data, loss, seed, record.settings, *beside)
        except DataError:
            raise
        except (TypeError, ValueError) as error:
            if str(error).partition(":")[0] in options:
                raise SettingsError(f"loss_options.{loss}.{error}") from error
            given = f" with options {options}" if options else ""
            raise SettingsError(f"loss {loss!r}{given}: {error}") from error
