"""What is shown: the table of the terminal and the summary in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.table import Table

from lpl_fused.backends import REFERENCE

from .cases import COPY, MODES
from .measure import BOTH
from .providers import COMPILE, EAGER, EAGER_CE
from .records import ABSENT, OK, SLOW, Record

LABELS = {COPY: "copy of logits", EAGER_CE.name: "eager plain CE"}
_HEADINGS = {
    "forward-no-grad": "fwd no-grad",
    "forward": "fwd",
    "backward": "bwd",
    "both": "fwd+bwd",
    "both-leaf": "+ leaf",
}
COLUMNS = (
    "provider",
    *(_HEADINGS[mode] for mode in MODES),
    "p20–p80",
    "× eager",
    "× plain CE",
    "GB/s",
    "% of copy",
    "gradient error",
)
_NOTES = """\
* Times are medians in milliseconds over blocks of calls, all providers in turn (A B A B …); p20 and
  p80 are those of forward + backward, as are the ratios, GB/s and % of copy.
* On a CPU caches are as the calls before left them; on a GPU the L2 cache is flushed before a call.
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
  ∝ 1/r, so that some have many rows; with "-unique" every row has a class of its own.
* "gradient error": worst relative error against float64, eager's beside it in its own row. Who
  misses the truth is named below and not timed.
"""


class Line(NamedTuple):
    """One provider in one case."""

    case: str
    cells: tuple[str, ...]


def lines(records: Iterable[Record]) -> Iterator[Line]:
    """The rows of the table, in the order of the records; yardsticks last in their case."""
    by_provider: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        if record.status == OK and record.mode is not None:
            by_provider.setdefault((record.case, record.provider), {})[record.mode] = record
    ordered = sorted(by_provider.items(), key=lambda item: _rank(item[0][1]))
    cases = list(dict.fromkeys(case for case, _ in by_provider))
    for (case, provider), modes in sorted(ordered, key=lambda item: cases.index(item[0][0])):
        both = modes[COPY if provider == COPY else BOTH]
        times = (_digits(modes[m].median_ms) if m in modes else "–" for m in MODES)
        if provider == COPY:
            times = (_digits(both.median_ms) if m == BOTH else "–" for m in MODES)
        cells = (
            LABELS.get(provider, provider),
            *times,
            f"{_digits(both.p20)}–{_digits(both.p80)}",
            _digits(both.ratio_to_eager),
            _digits(both.ratio_to_eager_ce),
            _digits(both.gb_per_s),
            _digits(both.percent_of_copy),
            "–" if both.grad_error is None else f"{both.grad_error:.0e}",
        )
        yield Line(case, cells)


def _rank(provider: str) -> int:
    """The baseline and its compiled self first, yardsticks last."""
    order = {EAGER.name: 0, COMPILE.name: 1, REFERENCE: 3, EAGER_CE.name: 4, COPY: 5}
    return order.get(provider, 2)


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
            found[f"{record.provider} in {record.case} is {record.status}: {record.reason}"] = None
    for reason, places in slow.items():
        found[f"all but forward + backward, since {reason}: {', '.join(places)}"] = None
    return list(found)


def table(records: list[Record]) -> Table:
    """For the terminal."""
    shown = Table(title="medians in milliseconds", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in COLUMNS:
        first = column == COLUMNS[0]
        shown.add_column(
            column.replace(" ", "\n", 1), justify="left" if first else "right", no_wrap=True
        )
    case = None
    for line in lines(records):
        if line.case != case:
            case = line.case
            shown.add_section()
            shown.add_row(f"[bold]{case}[/bold]")
        shown.add_row(*line.cells)
    return shown


def markdown(records: list[Record], plots: Iterable[Path], data: Path) -> str:
    """A page that stands beside the records and the plots."""
    first = records[0]
    machine = first.device
    if first.device_type == "cuda":
        machine += f", driver {first.driver}"
    text = [
        f"# Benchmark: {first.device}",
        "",
        f"{machine}; {first.threads} threads of {first.cpu_cores} cores ({first.cpu}, "
        f"{first.cpu_capability}); torch {first.torch}, triton {first.triton or 'absent'}, "
        f"Python {first.python}; lpl_fused {first.lpl_fused}, commit {first.git}; {first.date}.",
        "",
        f"Data: [{data.name}]({data.name}), one JSON record per case, provider and mode.",
        "",
        *(f"![{plot.stem}]({plot.name})\n" for plot in plots),
        "## How to read it",
        "",
        _NOTES,
    ]
    case = None
    for line in lines(records):
        if line.case != case:
            case = line.case
            text += ["", f"## {case}", "", _row(COLUMNS)]
            text += [_row(["---", *["---:"] * (len(COLUMNS) - 1)])]
        text.append(_row(line.cells))
    omitted = not_timed(records)
    if omitted:
        text += ["", "## Not timed", "", *(f"* {reason}" for reason in omitted)]
    return "\n".join(text) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _digits(value: float | None) -> str:
    """Three significant digits, never in powers of ten."""
    if value is None:
        return "–"
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.5f}"
