"""What is shown: the table of the terminal, the summary in Markdown, the pictures.

`python -m benchmarks.report FOLDER…` makes them anew from the records of earlier runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from lpl_fused.backends import REFERENCE

from . import plots, suite
from .cases import COPY, modes
from .measure import BOTH
from .options import written
from .providers import COMPILE, EAGER, is_plain, without_plain
from .records import ABSENT, FILE, OK, SLOW, STEP, Record, read

_NOTHING = "–"
_WIDTH = 170  # of the table where the output is no terminal
_HEADINGS = {
    "forward-no-grad": "fwd no-grad",
    "forward": "fwd",
    "backward": "bwd",
    "both": "fwd+bwd",
    "both-leaf": "+ leaf",
    "both-cold": "cold",
    "both-hot": "hot",
    "both-wall": "wall",
}
_NOTES = """\
* Times are medians in milliseconds over blocks of calls, all providers in turn (A B A B …); p20 and
  p80 are those of forward + backward, as are the ratios, GB/s and % of copy.
* The logits are no leaf, as in a model: their gradient is handed on. "+ leaf" adds what autograd
  does to keep the gradient of a leaf. The upstream gradient is a random number, not 1.
* Every backward is the first of its graph. Forward of the fused backends already writes the
  gradient (where it is wanted), so compare forward + backward, or forward without gradients.
* "× eager": time over that of eager PyTorch for the same loss, less than 1 is faster. For `lpl`
  eager is the straight implementation over the classes present, without C×C matrices and without a
  loop over classes. "× plain CE": over eager `F.cross_entropy` of the same logits, not perturbed.
* GB/s counts the least traffic (logits read once, gradient written once); "copy" is a copy of the
  logits, into memory already there, in the same run.
* Labels are drawn uniformly; with "-zipf" as tokens come, the class of rank r with probability
  ∝ 1/r, so that some have many rows; with "-unique" every row has a class of its own; with "-one"
  all rows have the same.
* "gradient error": worst relative error against float64, eager's beside it in its own row. Who
  misses the truth is named below and not timed.
"""
# what only some pages need: by the mode, provider or loss that they have, or "peak"
_NOTES_ON = {
    "cpu": """\
* Caches are as the calls before left them.
""",
    "cuda": """\
* Times are the device's, the L2 cache flushed before every call.
""",
    "both-cold": """\
* "cold": forward + backward of other logits at every call, in turn, so many that those of a call
  have left the last-level cache when their turn comes again.
""",
    "both-hot": """\
* "hot": forward + backward captured in a CUDA graph, replayed without a flush, the device's time.
""",
    "both-wall": """\
* "wall": what a caller waits for forward + backward, over blocks that end with a synchronisation.
""",
    "own": """\
* "× own CE": over plain cross-entropy of the same logits by the same provider, in turn with it.
""",
    "peak": """\
* "peak ÷ logits": memory beyond what was held before the call, at the worst moment of forward +
  backward, gradient included (so 1 is the gradient alone), as a multiple of the logits' bytes. On
  a CPU it is what the process has resident, in whole pages: rough where the logits are few.
""",
    "linear-ce": """\
* "linear-ce" and "linear-lplK": the loss of features (N, 512) times a weight (C, 512), with
  the gradients of both; least traffic and copy are theirs, and peak memory counts logits where they
  are formed.
""",
    "liger": """\
* Liger's forward writes the gradient, over the logits that it was given: it is timed on logits of
  its own. Tables are added to the logits before, as its users would.
""",
    "quack": """\
* QuACK takes plain logits: tables are added to them before, as its users would.
""",
    "cut-cross-entropy": """\
* cut-cross-entropy leaves out gradients too small to count in the dtype, as is its default.
""",
    "official": """\
* "official": LPL as its authors' scripts compute it, with C×C matrices in every step, here as in
  networks/train_adv.py, which raises every class by K steps of normed length. It is another
  perturbation than that of the rows beside it, of as many steps, and is checked against
  `lpl_fused.losses.lpl_official` in float64; its time is what to compare.
""",
}


class Line(NamedTuple):
    """One provider in one case."""

    case: str
    cells: tuple[str, ...]


Taken = dict[str, Record]  # of one provider in one case, by mode


class Column(NamedTuple):
    heading: str
    cell: Callable[[Taken], str]


def columns(records: list[Record]) -> list[Column]:
    """Those that the records fill."""
    taken = {record.mode for record in records}

    def time(mode: str) -> Column:
        def cell(of: Taken) -> str:
            return digits(of[mode].median_ms if mode in of else None)

        return Column(_HEADINGS[mode], cell)

    def of_both(heading: str, number: Callable[[Record], float | None]) -> Column:
        return Column(heading, lambda of: digits(number(of[BOTH])))

    def error(of: Taken) -> str:
        found = of[BOTH].grad_error
        return _NOTHING if found is None else f"{found:.0e}"

    made = [Column("provider", lambda of: shown_name(of[BOTH].provider))]
    made += [time(mode) for mode in modes(records[0].device_type) if mode in taken]
    made += [
        Column("p20–p80", lambda of: f"{digits(of[BOTH].p20)}–{digits(of[BOTH].p80)}"),
        of_both("× eager", lambda both: both.ratio_to_eager),
        of_both("× plain CE", lambda both: both.ratio_to_eager_ce),
        *([of_both("× own CE", lambda both: both.ratio_to_own_ce)] if _has_own(records) else []),
        of_both("GB/s", lambda both: both.gb_per_s),
        of_both("% of copy", lambda both: both.percent_of_copy),
    ]
    if any(record.peak_bytes is not None for record in records):
        made.append(of_both("peak ÷ logits", lambda both: both.peak_of_logits))
    return [*made, Column("gradient error", error)]


def lines(records: list[Record]) -> Iterator[Line]:
    """The rows of the table, in the order of the records; yardsticks last in their case."""
    by_provider: dict[tuple[str, str], Taken] = {}
    for record in records:
        if record.status == OK and record.mode is not None:
            mode = BOTH if record.mode == COPY else record.mode
            by_provider.setdefault((record.case, record.provider), {})[mode] = record
    ordered = sorted(by_provider.items(), key=lambda item: _rank(item[0][1]))
    cases = list(dict.fromkeys(case for case, _ in by_provider))
    shown = columns(records)
    for (case, _), taken in sorted(ordered, key=lambda item: cases.index(item[0][0])):
        yield Line(case, tuple(column.cell(taken) for column in shown))


def notes(records: list[Record]) -> str:
    """How the page is to be read."""
    have = {records[0].device_type}
    for record in records:
        if record.status == OK:
            have |= {record.provider, str(record.mode), record.what.loss.kind}
            have |= {"peak"} if record.peak_bytes is not None else set()
    have |= {"own"} if _has_own(records) else set()
    return _NOTES + "".join(note for key, note in _NOTES_ON.items() if key in have)


def _has_own(records: Iterable[Record]) -> bool:
    """Eager's own is that of everybody."""
    return any(r.ratio_to_own_ce is not None and r.provider != EAGER.name for r in records)


def shown_name(provider: str) -> str:
    if provider == COPY:
        return "copy of logits"
    return f"{without_plain(provider)} plain CE" if is_plain(provider) else provider


def _rank(provider: str) -> int:
    """The baseline and its compiled self first, yardsticks last."""
    order = {EAGER.name: 0, COMPILE.name: 1, REFERENCE: 3, COPY: 5}
    return 4 if is_plain(provider) else order.get(provider, 2)


def not_timed(records: Iterable[Record]) -> list[str]:
    """Who was not timed and why, in words; absences and slowness once, not once per case."""
    found: dict[str, None] = {}
    slow: dict[str, dict[str, None]] = {}
    for record in records:
        if record.status == ABSENT:
            found[f"{record.provider} is absent: {record.reason}"] = None
        elif record.status == SLOW:
            slow.setdefault(str(record.reason), {})[f"{record.provider} in {record.case}"] = None
        elif record.status != OK:
            mode = "" if record.mode is None else f", {_HEADINGS[record.mode]},"
            place = f"{record.provider} in {record.case}{mode}"
            found[f"{place} is {record.status}: {record.reason}"] = None
    for reason, places in slow.items():
        found[f"all but forward + backward, since {reason}: {', '.join(places)}"] = None
    return list(found)


def table(records: list[Record]) -> Table:
    """For the terminal."""
    shown = Table(title="medians in milliseconds", box=box.SIMPLE_HEAD, padding=(0, 1))
    for i, column in enumerate(columns(records)):
        heading = column.heading.replace(" ", "\n", 1)
        shown.add_column(heading, justify="right" if i else "left", no_wrap=True)
    case = None
    for line in lines(records):
        if line.case != case:
            case = line.case
            shown.add_section()
            shown.add_row(f"[bold]{case}[/bold]")
        shown.add_row(*line.cells)
    return shown


def machine(record: Record) -> str:
    """Where and with what a record was taken, in a sentence."""
    driver = f", driver {record.driver}" if record.device_type == "cuda" else ""
    return (
        f"{record.device}{driver}; {record.threads} threads of {record.cpu_cores} cores "
        f"({record.cpu}, {record.cpu_capability}); torch {record.torch}, triton "
        f"{record.triton or 'absent'}, Python {record.python}; lpl_fused {record.lpl_fused}, "
        f"commit {record.git}; {record.date}."
    )


def markdown(
    records: list[Record], pictures: Iterable[Path], tests: suite.Suite | None = None
) -> str:
    """A page that stands beside the records and the pictures."""
    text = [
        f"# Benchmark: {records[0].device}",
        "",
        machine(records[0]),
        "",
        f"Data: [{FILE}]({FILE}), one JSON record per case, provider and mode.",
        "",
        *(tests.markdown() if tests else ()),
        *(f"![{picture.stem}]({picture.name})\n" for picture in pictures),
        "## How to read it",
        "",
        notes(records),
    ]
    headings = [column.heading for column in columns(records)]
    case = None
    for line in lines(records):
        if line.case != case:
            case = line.case
            text += ["", f"## {case}", "", row(headings)]
            text += [row(["---", *["---:"] * (len(headings) - 1)])]
        text.append(row(line.cells))
    omitted = not_timed(records)
    if omitted:
        text += ["", "## Not timed", "", *(f"* {reason}" for reason in omitted)]
    return "\n".join(text) + "\n"


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def digits(value: float | None) -> str:
    """Three significant digits, never in powers of ten."""
    if value is None:
        return _NOTHING
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.5f}"


def console() -> Console:
    """The terminal, or what stands for it, wide enough for the table."""
    made = Console()
    return made if made.is_terminal else Console(width=_WIDTH)


def show(records: list[Record], folder: Path, out: Console) -> list[Path]:
    """Prints the table, writes pictures and summary into the records' folder, and names them."""
    if any(record.mode == STEP for record in records):
        from . import end_to_end  # which shows its own records, by this module's means

        return end_to_end.show(records, folder, out)
    pictures = plots.save(records, folder)
    summary = folder / "README.md"
    summary.write_text(markdown(records, pictures, suite.read(folder)))
    out.print(table(records))
    for line in not_timed(records):
        out.print(f"not timed: {line}", markup=False)
    return [*pictures, summary]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Redraws table, summary and pictures from records, measuring nothing.",
    )
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help=f"holds {FILE}")
    folders: list[Path] = made.parse_args(arguments).folders
    for folder in folders:
        if not (folder / FILE).is_file():
            made.error(f"expected a folder with {FILE}, got {folder}")
    try:
        found = [read(folder / FILE) for folder in folders]
    except ValueError as error:
        made.error(str(error))
    out = console()
    for folder, kept in zip(folders, found, strict=True):
        with written(made):
            pages = show(kept, folder, out)
        out.print(f"{folder}: {', '.join(path.name for path in pages)}", markup=False)


if __name__ == "__main__":
    main()
