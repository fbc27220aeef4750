"""`python -m benchmarks.device_cost`: what the GPU kernels cost, without a GPU.

Compiles the kernels of both GPU backends and counts in their machine code (loop_cost.py), per form
of call and element type: instructions of a thread and MUFU (exponential, logarithm, reciprocal: 16
lanes a cycle and multiprocessor, where others have 128) per logit, rare code apart; bytes per logit
of device memory and of L2; registers; blocks beside each other on a multiprocessor; launches; and
the time that a model predicts. A launch takes the longest of

    bytes / rate,   instructions·logits / (multiprocessors·128·clock) / busy,
    MUFU·logits / (multiprocessors·16·clock)

with `busy` as measured on an H200: 0.7 where a third of a multiprocessor's threads find room, else
0.5. Predicted is not measured: the model knows nothing of latencies, waits or launches' own time.

Counts belong to a compiler; `results/device_cost.json` holds them for those that somebody has
counted with `--record`, and tests/test_device_cost.py fails where a kernel grows.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from . import kernel_compile, sass, triton_launches
from .kernel_compile import ARCHITECTURES, COUNTED, ROOT
from .kernel_cost import Kernel, object_kernels, of_code
from .kernel_forms import (
    ALONE,
    APART,
    BUDGETS,
    CLASSES,
    CUDA,
    DTYPES,
    IDLE_ALONE,
    IDLE_ANEW,
    ROWS,
    SIZES,
    USUAL,
    WALKED,
)
from .options import pattern
from .triton_launches import Launch

RESULTS = Path(__file__).parent / "results"
BASELINE = RESULTS / "device_cost.json"
TOLERANCE = 1.05  # of the count on record
RATES = (4.2e12, 3.0e12)  # bytes a second: an H200, an H100


class Use(NamedTuple):
    """A launch of a form."""

    form: str
    dtype: str
    backward: bool
    kernel: Kernel
    idle: bool = False  # there is nothing left for it to do


def triton_uses(folder: Path, arch: str) -> list[Use]:
    """What was compiled into a folder, launch by launch."""
    known: dict[tuple[str, float], Kernel] = {}
    found = []
    for launch in triton_launches.read(folder):
        key = launch.cubin, launch.logits
        if key not in known:
            known[key] = _of_launch(launch, folder / launch.cubin, arch)
        idle = launch.kernel in WALKED and launch.meta.get("FIRST") is not True
        found.append(Use(launch.form, launch.dtype, launch.backward, known[key], idle))
    return found


def _of_launch(launch: Launch, cubin: Path, arch: str) -> Kernel:
    ((code, found),) = sass.functions(cubin).values()
    return of_code(
        launch.kernel,
        code,
        found._replace(shared=0),  # of which a launch says how much it is
        arch=arch,
        dtype=launch.dtype,
        threads=launch.threads,
        logits=launch.logits,
        shared=launch.shared,
    )


def cuda_uses(kernels: Iterable[Kernel]) -> list[Use]:
    """What forms launch of an object's kernels, as the table CUDA has it."""
    kernels = list(kernels)
    return [
        Use(form, dtype, bool(backward), kernel)
        for form, both in CUDA.items()
        for dtype in DTYPES
        if all(
            of_pattern(kernels, pattern, dtype)
            for patterns in both
            for pattern in patterns
            if _applies(pattern, dtype)
        )
        for backward, patterns in enumerate(both)
        for pattern in patterns
        if _applies(pattern, dtype)
        for kernel in of_pattern(kernels, pattern, dtype)
    ]


def of_pattern(kernels: Iterable[Kernel], pattern: str, dtype: str) -> list[Kernel]:
    """The kernels that a pattern of the table CUDA names for an element type: what they do by
    themselves, in the room of what is launched."""
    *marks, pattern = pattern.split(":")
    if pattern in APART:
        kernels = list(kernels)
        launched = _of_name(kernels, APART[pattern], dtype)
        found = [
            replace(kernel, **{name: getattr(one, name) for name in _ROOM})
            for kernel in _of_name(kernels, pattern, dtype)
            for one in launched
        ]
    else:
        found = _of_name(kernels, pattern, dtype)
    return [kernel.sums for kernel in found] if "sums" in marks else found


_ROOM = "registers", "shared", "local", "threads", "blocks"


def _of_name(kernels: Iterable[Kernel], pattern: str, dtype: str) -> list[Kernel]:
    typed = "<T" in pattern
    name = re.escape(_typed(pattern, dtype))
    wanted = dtype if typed else _accumulates(dtype)
    return [
        kernel
        for kernel in kernels
        if re.search(rf"\b{name}", kernel.name)
        and not kernel.name.endswith(USUAL)
        and (kernel.dtype == wanted or "<" not in kernel.name)
    ]


def _typed(pattern: str, dtype: str) -> str:
    return re.sub(r"\bT\b", DTYPES[dtype], pattern)


def _applies(pattern: str, dtype: str) -> bool:
    """Whether logits of a type have such a kernel."""
    mark = pattern.split(":")[0]
    return not mark.isdigit() or int(mark) == 8 * min(SIZES[dtype], 4)


def _accumulates(dtype: str) -> str:
    return "fp64" if dtype == "fp64" else "fp32"


def unnamed(kernels: Iterable[Kernel], uses: Iterable[Use]) -> list[Kernel]:
    """The kernels that no form of call names: counted, and shown as such."""
    kernels = list(kernels)
    used = {use.kernel.name for use in uses}
    for by_itself, launched in APART.items():
        for dtype in DTYPES:
            if any(one.name in used for one in _of_name(kernels, by_itself, dtype)):
                used |= {one.name for one in _of_name(kernels, launched, dtype)}
    return [
        kernel for kernel in kernels if kernel.name not in used and not kernel.name.endswith(USUAL)
    ]


# ------------------------------------------------------------------------------------- the forms


@dataclass(frozen=True)
class Form:
    """A form of call with an element type: what works in it, and how much is launched."""

    name: str
    dtype: str
    working: tuple[Kernel, ...]
    launches: int

    def sum(self, what: str) -> float:
        return float(sum(getattr(kernel, what) for kernel in self.working))

    def microseconds(self, rate: float) -> float:
        logits = ROWS * CLASSES
        return 1e6 * sum(kernel.seconds(logits, rate) for kernel in self.working)

    def floor(self, rate: float) -> float:
        """Microseconds of the logits read once and the gradient written once."""
        return 1e6 * 2 * SIZES[self.dtype] * ROWS * CLASSES / rate


def forms(uses: Iterable[Use]) -> Iterator[Form]:
    """What is done in every form, where the upstream gradient is 1 and where it is any other."""
    grouped: dict[tuple[str, str], list[Use]] = {}
    for use in uses:
        grouped.setdefault((use.form, use.dtype), []).append(use)
    for (name, dtype), of_form in grouped.items():
        rows = [use for use in of_form if not (use.idle or _idle(IDLE_ANEW, use))]
        if name.startswith(ALONE):
            rows = [use for use in rows if not _idle(IDLE_ALONE, use)]
        forward = [use.kernel for use in rows if not use.backward]
        backward = [use.kernel for use in rows if use.backward]
        launches = len(of_form)
        one_sweep = sum(kernel.writes for kernel in forward) >= SIZES[dtype] / 2
        if one_sweep:
            yield Form(f"{name}; upstream 1", dtype, tuple(forward), launches)
            yield Form(f"{name}; any upstream", dtype, (*forward, *backward), launches)
        else:
            yield Form(name, dtype, (*forward, *backward), launches)


def _idle(pattern: str, use: Use) -> bool:
    return re.match(pattern, use.kernel.name) is not None


# -------------------------------------------------------------------------------------- records


def counts(uses: Iterable[Use], kernels: Iterable[Kernel] = ()) -> dict[str, list[float]]:
    """What a record has (NUMBERS) of every kernel, by a name that is its own."""
    found: dict[str, list[float]] = {}
    for kernel in kernels:
        found[kernel.name] = _numbers(kernel)
    if found:
        return found
    seen: dict[str, int] = {}
    for use in uses:
        way = "backward" if use.backward else "forward"
        name = f"{use.form} | {use.dtype} | {way} | {use.kernel.name}"
        seen[name] = seen.get(name, 0) + 1
        found[name if seen[name] == 1 else f"{name} {seen[name]}"] = _numbers(use.kernel)
    return found


# of a record: the first of them may not grow, all of them predict a time
NUMBERS = ("instructions", "mufu", "memory", "l2", "registers", "blocks", "threads")


def _numbers(kernel: Kernel) -> list[float]:
    return [round(getattr(kernel, name), 3) for name in NUMBERS]


def predicted(numbers: list[float], logits: float, rate: float) -> float:
    """Seconds that the model has for a kernel on record."""
    fields: dict[str, Any] = {"name": "", "dtype": "", "arch": "", "rare": 0.0}
    fields |= {"shared": 0, "local": 0} | dict(zip(NUMBERS, numbers, strict=True))
    return Kernel(**fields).seconds(logits, rate)


def baseline(key: str) -> dict[str, list[float]]:
    """The counts on record of a compiler; empty if there are none."""
    known: dict[str, dict[str, list[float]]] = (
        json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    )
    return known.get(key, {})


def record(key: str, found: dict[str, list[float]]) -> None:
    """Makes counts the baseline of their compiler."""
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    known[key] = found
    lines = []
    for name in sorted(known):
        inner = ",\n".join(
            f"  {json.dumps(kernel)}: {json.dumps(known[name][kernel])}"
            for kernel in sorted(known[name])
        )
        lines.append(f" {json.dumps(name)}: {{\n{inner}\n }}")
    BASELINE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def too_low(kernels: Iterable[Kernel]) -> dict[str, str]:
    """The kernels with code that no way was found to, whose counts say too little."""
    return {
        kernel.name: f"no way found to {kernel.lost} instructions: the counts are too low"
        for kernel in kernels
        if kernel.lost
    }


def grown(found: dict[str, list[float]], known: dict[str, list[float]]) -> dict[str, str]:
    """The kernels on record whose threads do over 5 % more for a logit, rounding apart."""
    return {
        name: f"{known[name][0]} → {numbers[0]} instructions a logit"
        for name, numbers in found.items()
        if name in known and numbers[0] > TOLERANCE * known[name][0] + 0.001
    }


# ----------------------------------------------------------------------------------- what is shown


_COLUMNS = (
    "form",
    "dtype",
    "instr.",
    "MUFU",
    "rare",
    "B memory",
    "B L2",
    "registers",
    "blocks",
    "launches",
    "µs, 4.2 TB/s",
    "floor",
    "µs, 3.0 TB/s",
    "floor",
)
_KERNEL_COLUMNS = (*_COLUMNS[:9], "threads", "shared", "spilled")


def form_rows(found: Iterable[Form]) -> Iterator[tuple[str, ...]]:
    for form in found:
        times = [(form.microseconds(rate), form.floor(rate)) for rate in RATES]
        yield (
            form.name,
            form.dtype,
            *(f"{form.sum(what):.1f}" for what in ("instructions", "mufu", "rare", "memory", "l2")),
            " · ".join(str(kernel.registers) for kernel in form.working),
            " · ".join(str(kernel.blocks) for kernel in form.working),
            str(form.launches),
            *(f"{number:.0f}" for pair in times for number in pair),
        )


def kernel_rows(kernels: Iterable[Kernel]) -> Iterator[tuple[str, ...]]:
    for one in kernels:
        yield (
            one.name,
            one.dtype,
            *(f"{n:.1f}" for n in (one.instructions, one.mufu, one.rare, one.memory, one.l2)),
            *map(str, (one.registers, one.blocks, one.threads, one.shared, one.local)),
        )


_BUDGET_COLUMNS = ("what", "dtype", "dearest ways", "usual way", "reach", "stretch")
_GUIDE_COLUMNS = ("kernel", "counted", "reach", "stretch", "budget")
GUIDE = ROOT / "docs" / "cuda.md"


def budget_rows(found: Mapping[str, list[float]]) -> Iterator[tuple[str, ...]]:
    """Instructions a logit of bf16, beside what they are to be, from counts of kernels."""
    for what, patterns, reach, stretch in BUDGETS:
        names = [rf"\b{re.escape(_typed(name, 'bf16'))}" for name in patterns]
        found_once = [one for one in found if not one.endswith(USUAL)]
        dearest = [one for one in found_once if any(re.search(name, one) for name in names)]
        usual = [f"{one} {USUAL}" if f"{one} {USUAL}" in found else one for one in dearest]
        sums = (sum(found[one][0] for one in ones) for ones in (dearest, usual))
        yield (what, "bf16", *(f"{number:.1f}" for number in sums), str(reach), str(stretch))


def budget_table(found: Mapping[str, list[float]]) -> str:
    """The same of the usual way, as docs/cuda.md has it."""
    rows = [_GUIDE_COLUMNS, ("---", *["---:"] * 3, "---")]
    for what, _, _, usual, reach, stretch in budget_rows(found):
        met = "met" if float(usual) <= float(reach) else "**missed**"
        rows.append((what, usual, reach, stretch, met))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_budgets(found: Mapping[str, list[float]]) -> None:
    """Puts the table in the place of the one that docs/cuda.md has."""
    head = re.escape(f"| {' | '.join(_GUIDE_COLUMNS)} |\n")
    table = budget_table(found)
    page, times = re.subn(rf"{head}(?:\|.*\n)*", lambda _: table, GUIDE.read_text())
    if times != 1:
        raise RuntimeError(f"{GUIDE.name}: expected one table of budgets, found {times}")
    GUIDE.write_text(page)


def page_of(backend: str) -> Path:
    """The page beside the record, of sm_90."""
    return RESULTS / f"device_cost_{backend}.md"


Section = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def markdown(sections: list[Section]) -> str:
    """The page that stands beside the record."""
    text = [
        "# What the GPU kernels cost",
        "",
        "Counted in machine code and **predicted**, not measured: `python -m "
        "benchmarks.device_cost --record` wrote this page, and its help says how. Instructions of "
        f"a thread, MUFU and bytes are per logit; times are of {ROWS}×{CLASSES} logits on 132 "
        "multiprocessors at 1.98 GHz. “Rare” counts every rare branch as if it were always taken, "
        "and is in no other number. A form that takes the gradient in its forward sweep has two "
        "rows: with an upstream gradient of 1, and with any other. “No form” marks kernels that "
        "no form of the table here launches.",
    ]
    if len(sections) > 2:
        text[-1] += (
            " A kernel “by itself” is one whose teams are launched as blocks beside those of "
            "another: what they do is counted of it, registers and room in forms of call are those "
            "of what is launched."
            " Of ways through a kernel that exclude each other the dearest is counted; the usual "
            "way is the same kernel compiled with what LPL_USUALLY says in csrc/cuda: nothing of "
            "a logit is left out but label and heads, of which a row has few."
        )
    for title, heads, rows in sections:
        text += ["", f"## {title}", "", f"| {' | '.join(heads)} |"]
        text += [f"| {' | '.join(['---', '---', *['---:'] * (len(heads) - 2)])} |"]
        text += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(text) + "\n"


def _shown(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title)
    for k, head in enumerate(heads):
        table.add_column(head, justify="left" if k < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.device_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--arch", choices=ARCHITECTURES, default="90", help="default: 90")
    made.add_argument("--backends", default="cuda,triton", help="of cuda,triton")
    made.add_argument("--record", action="store_true", help="make the counts the baseline")
    made.add_argument(
        "--kernel", type=pattern, default="", metavar="REGEX", help="shows these kernels' loops"
    )
    made.add_argument(
        "--object", type=Path, help="counts the kernels of this object, cubin or library instead"
    )
    return made


def main(arguments: list[str] | None = None) -> None:
    """Runs the command."""
    made = parser()
    options = made.parse_args(arguments)
    out = Console(width=200)
    sections: list[Section] = []
    if options.object:
        if not options.object.is_file():
            made.error(f"--object: {options.object} is no file")
        if reason := kernel_compile.without_tool():
            made.error(reason)
        kernels = list(object_kernels(options.arch, options.object))
        _show_kernels(out, options.object.name, kernels, options.kernel)
        return
    backends = options.backends.split(",")
    for backend in backends:
        if backend not in ("cuda", "triton"):
            made.error(f"backends: expected cuda, triton or both, got {backend!r}")
        if reason := kernel_compile.unavailable(backend):
            made.error(f"{backend}: {reason}")
    for backend in backends:
        with tempfile.TemporaryDirectory() as folder:
            key = kernel_compile.compiler(backend, options.arch)
            kernels = []
            if backend == "cuda":
                kernel_compile.compile_cuda(options.arch, Path(folder))
                kernels = list(
                    object_kernels(options.arch, *(Path(folder) / name for name in COUNTED))
                )
                uses = cuda_uses(kernels)
            else:
                kernel_compile.compile_triton(options.arch, Path(folder))
                uses = triton_uses(Path(folder), options.arch)
        found = counts(uses, kernels)
        rows = list(form_rows(forms(uses)))
        sections.append((f"{key}: forms of call", _COLUMNS, rows))
        out.print(_shown(*sections[-1]))
        if kernels:
            title = f"{key}: instructions a logit beside their budget"
            sections.insert(0, (title, _BUDGET_COLUMNS, list(budget_rows(found))))
            out.print(_shown(*sections[0]))
            alone = {kernel.name for kernel in unnamed(kernels, uses)}
            apart = {
                one.name
                for pattern in APART
                for dtype in DTYPES
                for one in _of_name(kernels, pattern, dtype)
            }
            kernels = [
                replace(one, name=f"{one.name} (by itself)")
                if one.name in apart
                else replace(one, name=f"{one.name} (no form)")
                if one.name in alone
                else one
                for one in kernels
            ]
            sections.append((f"{key}: kernels", _KERNEL_COLUMNS, list(kernel_rows(kernels))))
        else:
            kernels = [
                replace(use.kernel, name=f"{use.kernel.name} ({use.form})")
                for use in {use.kernel: use for use in reversed(uses)}.values()
            ][::-1]
            sections.append((f"{key}: kernels", _KERNEL_COLUMNS, list(kernel_rows(kernels))))
        _show_kernels(out, key, kernels, options.kernel)
        for name, how in grown(found, baseline(key)).items():
            out.print(f"grown: {name}: {how}", markup=False)
        if options.record:
            record(key, found)
        if options.record and options.arch == "90":
            page_of(backend).write_text(markdown(sections))
            if backend == "cuda":
                write_budgets(found)
        sections.clear()


def _show_kernels(out: Console, title: str, kernels: list[Kernel], pattern: str) -> None:
    chosen = [kernel for kernel in kernels if re.search(pattern, kernel.name)]
    out.print(_shown(f"{title}: kernels", _KERNEL_COLUMNS, list(kernel_rows(chosen))))
    for name, how in too_low(kernels).items():
        out.print(f"{name}: {how}", markup=False)
    if pattern:
        for kernel in chosen:
            out.print(f"{kernel.name} ({kernel.dtype})", markup=False)
            for line in kernel.loops:
                out.print(f"  {line}", markup=False)


if __name__ == "__main__":
    main()
