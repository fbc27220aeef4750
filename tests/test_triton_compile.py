"""Every Triton kernel compiled for GPUs that are not here: no spills, no 32-bit row offsets.

The launchers run on small problems with the class counts of real ones; what they would launch, with
the launch parameters that they pick, is compiled for sm_90, and what takes most registers of each
kernel for gfx942, too (and for sm_80 and sm_100 with -m architectures). That needs a process
without TRITON_INTERPRET: this file, run as a script, is that process.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton_driver

from benchmarks import triton_launches
from benchmarks.triton_launches import Asked, asked
from lpl_fused.algebra.parts import Kind, Round
from lpl_fused.algebra.settle import begin
from lpl_fused.backends import load
from lpl_fused.backends.triton import launching
from lpl_fused.norm import LogitClip, LogitNorm
from lpl_fused.penalty import P2, PHR, RELU
from lpl_fused.phi import FOCAL
from lpl_fused.problem import TABLES as LEARNABLE
from lpl_fused.problem import BinaryOptions, BinaryProblem, Options, Problem, accumulate_dtype

pytest.importorskip("triton")

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
Once = Callable[[str, Callable[[Path], None]], Path]
REPORTS = "reports.jsonl"
TARGETS: dict[str, int | str] = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": "gfx942"}
TABLES = ("weight", "sample_weight", "scale", "offset", "margin", "rows")
PLAIN = Options()
ALL_OPTIONS = Options(
    phi=FOCAL, phi_parameter=1.5, z_loss=1e-4, softcap=30.0, inverse_temperature=2.0
)
SMOOTHED = Options(label_smoothing=0.1)
EVERYTHING = ALL_OPTIONS._replace(label_smoothing=0.1)
NORMED = Options().with_norm(LogitNorm().numbers())
NORMED_EVERYTHING = EVERYTHING.with_norm(LogitClip(p=3.0).numbers())
PENALISED = Options(penalty=RELU, penalty_strength=0.1)
PENALISED_EVERYTHING = NORMED_EVERYTHING._replace(penalty=P2)
LAGRANGIAN = ("multiplier", "rho")
LPL = Options(step_size=0.1)
LPL_EVERYTHING = ALL_OPTIONS._replace(step_size=0.1, normalize=True)


class Report(NamedTuple):
    """What a compiler said of a kernel."""

    kernel: str
    target: str
    meta: dict[str, Any]
    registers: int
    spilled: int  # bytes
    stack: int  # bytes
    exponentials: int  # instructions
    binary_bytes: int
    narrow_offsets: list[str]  # 32-bit products that number more than columns
    parameters: int = 0  # that a driver was handed as they were given; 0 where none was asked


class Compiled(NamedTuple):
    source: Any
    binary: Any
    log: str  # ptxas's
    values: tuple[Any, ...]  # by parameter


@dataclass
class Variant:
    """A launcher called with logits (n, classes) of some dtype, and the parts and options named."""

    call: str
    dtype: torch.dtype
    classes: int
    options: Options = PLAIN
    parts: tuple[str, ...] = ()
    n: int = 4
    return_stats: bool = False

    def problem(self) -> Problem:
        n, classes, dtype = self.n, self.classes, accumulate_dtype(self.dtype)
        shapes = {"sample_weight": (n,), "lam": (n,), "rows": (2, classes)}
        labels = torch.zeros(n, dtype=torch.int64)
        fields: dict[str, Any] = {}
        for name in self.parts:
            if name == "dense":
                continue
            fields[name] = torch.ones(shapes.get(name, (classes,)), dtype=dtype)
        if "rows" in self.parts:
            fields["row_index"] = labels
        if "lam" in self.parts:
            fields["other"] = labels
        if self.options.step_size:
            fields["steps"] = torch.ones(classes, dtype=torch.int32)
        logits = torch.zeros(n, classes, dtype=self.dtype)
        target = torch.zeros_like(logits) if "dense" in self.parts else labels
        return Problem(logits, target, options=self.options, **fields)

    def run(self) -> None:
        backend, problem = load("triton"), self.problem()
        upstream = torch.ones((), dtype=accumulate_dtype(self.dtype))
        if self.call in ("loss", "gradient", "learned"):
            backend.forward(problem, self.call != "loss", return_stats=self.return_stats)
        elif self.call == "backward":
            self._gradient(problem)
        elif self.call == "delta":
            backend.learned_perturbation(problem)
        elif self.call == "rescale":
            backend.rescale_(problem, backend.forward(problem, True), upstream)
        else:
            self._reduce(problem)

    def _gradient(self, problem: Problem) -> None:
        want = ["input", *(name for name in LEARNABLE if name in self.parts)]
        known = begin(problem)
        upstream = torch.ones(self.n, dtype=known.terms.dtype)
        load("triton").gradient(problem, known, upstream, want)

    def _reduce(self, problem: Problem) -> None:
        """Of half of the columns, all that is to be had of a part."""
        backend, half = load("triton"), problem.columns(self.classes // 2, self.classes)
        known = begin(half._replace(steps=torch.ones(self.classes, dtype=torch.int32)))
        for kind in (Kind.SIZE, Kind.MASS, Kind.DETAIL, Kind.STATISTICS, Kind.RIVALS):
            if kind is not Kind.RIVALS or not half.dense:
                backend.reduce(half, Round(kind), known)
        backend.perturbed(half, known, 0, self.classes // 2)
        self._gradient(half)


MULTILABEL = BinaryOptions()
MULTILABEL_ALL = BinaryOptions(
    phi=FOCAL, phi_parameter=1.5, missing=1, ignored=-1.0, alpha=0.1, beta=10.0, mu=0.2
)
MULTILABEL_TABLES = BinaryProblem._fields[2:10]


@dataclass
class MultilabelVariant:
    """A multi-label launcher called with logits (n, classes), as Variant."""

    call: str
    dtype: torch.dtype
    classes: int
    options: BinaryOptions = MULTILABEL
    parts: tuple[str, ...] = ()
    n: int = 4
    labels: torch.dtype = torch.float32

    def run(self) -> None:
        backend, dtype = load("triton"), accumulate_dtype(self.dtype)
        shapes = {"sample_weight": (self.n,)}
        fields: dict[str, Any] = {
            name: torch.ones(shapes.get(name, (self.classes,)), dtype=dtype) for name in self.parts
        }
        options = self.options
        if self.call in ("learned", "delta", "learned rescale"):
            fields["steps"] = torch.ones(self.classes, dtype=torch.int32)
            options = options._replace(step_size=0.1)
        logits = torch.zeros(self.n, self.classes, dtype=self.dtype)
        target = torch.zeros(self.n, self.classes, dtype=self.labels)
        problem = BinaryProblem(logits, target, **fields, options=options)
        if self.call == "backward":
            backend.binary_gradient(problem, torch.ones_like(logits, dtype=dtype))
        elif self.call == "delta":
            backend.binary_perturbation(problem)
        elif self.call.endswith("rescale"):
            found = backend.binary_forward(problem, True)
            backend.binary_rescale_(problem, found, torch.ones((), dtype=dtype))
        else:
            backend.binary_forward(problem, self.call != "loss")


# Chosen so that each dtype, class count, option, table and target form occurs, and for each kernel
# what takes most registers: the largest block that stays in registers, and everything switched on.
VARIANTS = {
    "plain, 10": Variant("gradient", BF16, 10),
    "plain, 100": Variant("gradient", FP16, 100),
    "plain, 1000": Variant("gradient", FP32, 1000),
    "plain, 8142": Variant("gradient", BF16, 8142),
    "plain, 16384": Variant("gradient", FP32, 16384),
    "plain, 128256": Variant("gradient", BF16, 128256),
    "plain loss, 50257": Variant("loss", FP16, 50257),
    "plain, 1": Variant("gradient", FP32, 1),
    "with stats, 8142": Variant("gradient", BF16, 8142, return_stats=True),
    "with stats, 128256": Variant("gradient", BF16, 128256, return_stats=True),
    "with stats, loss, 50257": Variant("loss", FP16, 50257, return_stats=True),
    "with stats, everything, 50257": Variant(
        "gradient", BF16, 50257, EVERYTHING, TABLES, return_stats=True
    ),
    "with stats, everything fp64, 2000": Variant(
        "gradient", FP64, 2000, EVERYTHING, TABLES, return_stats=True
    ),
    "with stats, mixed, 8142": Variant("gradient", FP32, 8142, PLAIN, ("lam",), return_stats=True),
    "with stats, dense, 1000": Variant(
        "gradient", BF16, 1000, SMOOTHED, ("dense",), return_stats=True
    ),
    "with stats, lpl, 8142": Variant("learned", BF16, 8142, LPL, n=17, return_stats=True),
    "plain fp64, 1000": Variant("gradient", FP64, 1000),
    "tables, 8142": Variant("gradient", FP32, 8142, ALL_OPTIONS._replace(softcap=0.0), TABLES),
    "tables, 16384": Variant("gradient", FP32, 16384, ALL_OPTIONS._replace(softcap=0.0), TABLES),
    "everything, 50257": Variant("gradient", BF16, 50257, EVERYTHING, TABLES),
    "everything fp64, 2000": Variant("gradient", FP64, 2000, EVERYTHING, TABLES),
    "mixed, 32000": Variant("gradient", FP32, 32000, PLAIN, ("lam",)),
    "dense, 1000": Variant("gradient", BF16, 1000, SMOOTHED, ("dense",)),
    "smoothed, 128256": Variant("gradient", BF16, 128256, SMOOTHED, ("weight",)),
    "backward, 8142": Variant("backward", BF16, 8142),
    "backward fp16, 128256": Variant("backward", FP16, 128256),
    "backward, tables, 8142": Variant("backward", FP32, 8142, ALL_OPTIONS, TABLES),
    "backward, everything, 1000": Variant("backward", BF16, 1000, EVERYTHING, TABLES),
    "backward, everything fp64, 1000": Variant("backward", FP64, 1000, EVERYTHING, TABLES),
    "norm, 8142": Variant("gradient", BF16, 8142, NORMED),
    "norm, 32000": Variant("gradient", FP32, 32000, NORMED),
    "norm, everything, 4096": Variant("gradient", FP32, 4096, NORMED_EVERYTHING, TABLES),
    "norm, everything fp64, 2000": Variant("gradient", FP64, 2000, NORMED_EVERYTHING, TABLES),
    "norm, backward, everything, 50257": Variant(
        "backward", BF16, 50257, NORMED_EVERYTHING, TABLES
    ),
    "norm, lpl, 8142": Variant("learned", FP32, 8142, LPL.with_norm(LogitClip().numbers())),
    "penalty, 8142": Variant("gradient", BF16, 8142, PENALISED),
    "penalty, phr, 32000": Variant(
        "gradient", FP32, 32000, PLAIN._replace(penalty=PHR), LAGRANGIAN
    ),
    "penalty, everything, 4096": Variant(
        "gradient", FP32, 4096, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "penalty, everything fp64, 2000": Variant(
        "gradient", FP64, 2000, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "penalty, backward, everything, 1000": Variant(
        "backward", BF16, 1000, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "lpl, 1": Variant("learned", FP32, 1, LPL),
    "lpl, 100": Variant("learned", FP32, 100, LPL, n=128),
    "lpl, few, 8142": Variant("learned", BF16, 8142, LPL, n=16, return_stats=True),
    "lpl, few, 1000": Variant("learned", FP32, 1000, LPL._replace(normalize=True), n=128),
    "lpl, 8142": Variant("learned", BF16, 8142, LPL, n=40),
    "lpl, apart, 8142": Variant("learned", BF16, 8142, LPL, n=520),
    "lpl, normalized, apart, 8142": Variant(
        "learned", FP32, 8142, LPL._replace(normalize=True), n=520
    ),
    "lpl, groups of 520, 128256": Variant("learned", BF16, 128256, LPL, n=520),
    "lpl, sorted, 16": Variant("learned", BF16, 16, LPL, n=16385),
    "lpl, everything, 10": Variant("learned", FP64, 10, LPL_EVERYTHING, TABLES, n=128),
    "lpl, everything, 32000": Variant("learned", FP32, 32000, LPL_EVERYTHING, TABLES, n=5),
    "lpl, everything fp64, 2049": Variant("learned", FP64, 2049, LPL_EVERYTHING, TABLES, n=70),
    "lpl, everything fp64, few, 2049": Variant("learned", FP64, 2049, LPL_EVERYTHING, TABLES),
    "lpl, δ, 8142": Variant("delta", FP32, 8142, LPL),
    "lpl, δ, everything, 32000": Variant("delta", BF16, 32000, LPL_EVERYTHING, TABLES),
    "scale, 8142": Variant("rescale", FP32, 8142),
    "rescale, 8142": Variant("rescale", BF16, 8142),
    "rescale, everything, 50257": Variant(
        "rescale", BF16, 50257, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "rescale, lpl, 8142": Variant("rescale", BF16, 8142, LPL),
    "rescale, lpl, everything, 32000": Variant("rescale", BF16, 32000, LPL_EVERYTHING, TABLES),
    "parts, 128256": Variant("reduce", BF16, 128256),
    "parts, 20": Variant("reduce", FP32, 20, PENALISED),
    "parts, dense, 1000": Variant("reduce", FP16, 1000, NORMED, ("dense",)),
    "parts, everything, 50257": Variant(
        "reduce", BF16, 50257, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "parts, everything fp64, 8142": Variant(
        "reduce", FP64, 8142, PENALISED_EVERYTHING, (*TABLES, *LAGRANGIAN)
    ),
    "multi-label, 20": MultilabelVariant("gradient", FP32, 20, n=1024),
    "multi-label, 9605": MultilabelVariant("gradient", BF16, 9605, labels=BF16),
    "multi-label bool, 9605": MultilabelVariant("gradient", FP16, 9605, labels=torch.bool),
    "multi-label loss, 80": MultilabelVariant("loss", FP32, 80, labels=torch.int64),
    "multi-label, everything, 9605": MultilabelVariant(
        "gradient", FP32, 9605, MULTILABEL_ALL, MULTILABEL_TABLES
    ),
    "multi-label, everything fp64, 80": MultilabelVariant(
        "gradient", FP64, 80, MULTILABEL_ALL, MULTILABEL_TABLES, n=64
    ),
    "multi-label, backward, 9605": MultilabelVariant(
        "backward", FP16, 9605, MULTILABEL_ALL, MULTILABEL_TABLES, labels=torch.bool
    ),
    "multi-label lpl, 9605": MultilabelVariant("learned", BF16, 9605, n=256),
    "multi-label lpl, 80": MultilabelVariant("learned", FP32, 80, n=4096, labels=torch.bool),
    "multi-label lpl, everything, 9605": MultilabelVariant(
        "learned", FP32, 9605, MULTILABEL_ALL, MULTILABEL_TABLES, n=64
    ),
    "multi-label lpl, everything fp64, 80": MultilabelVariant(
        "learned", FP64, 80, MULTILABEL_ALL, MULTILABEL_TABLES, n=100
    ),
    "multi-label lpl, everything, 32000": MultilabelVariant(
        "learned", BF16, 32000, MULTILABEL_ALL, MULTILABEL_TABLES, n=1000
    ),
    "multi-label, rescale, everything, 9605": MultilabelVariant(
        "rescale", BF16, 9605, MULTILABEL_ALL, MULTILABEL_TABLES
    ),
    "multi-label, scale, everything, 9605": MultilabelVariant(
        "rescale", FP32, 9605, MULTILABEL_ALL, MULTILABEL_TABLES
    ),
    "multi-label lpl, rescale, 9605": MultilabelVariant("learned rescale", BF16, 9605, n=256),
    "multi-label δ, 9605": MultilabelVariant("delta", BF16, 9605, n=128),
}

# What other targets compile beside everything at once: the largest blocks, and every kernel.
LARGEST = {
    *("plain, 16384", "plain, 128256", "tables, 16384", "scale, 8142", "parts, 128256"),
    *("lpl, 100", "lpl, 8142", "lpl, apart, 8142", "lpl, sorted, 16"),
    "lpl, groups of 520, 128256",
    *("multi-label, 9605", "multi-label lpl, 9605", "multi-label lpl, 80", "with stats, lpl, 8142"),
}
# two minutes each, in which sm_90 nearly always says the same
RARE = {"sm_80": pytest.mark.architectures, "sm_100": pytest.mark.architectures}


# Budgets are set with the newest compiler. An older one leaves some kernels without room for a few
# bytes of their registers, and may not see that two exponentials are one.
SPILLED = {"3.6": {"forward": 24, "split_columns": 76}, "3.7": {"forward": 32}}
ALIKE = {"3.6": 1}
RELEASE = metadata.version("triton")[:3]

# Beside those that are RARE: more with statistics of rows, kernels that others nearly are
STATS = {"with stats, 128256", "with stats, loss, 50257", "with stats, everything fp64, 2000"}


def chosen(target: str) -> list[str]:
    """The variants that are compiled for a target."""
    most = {name for name, v in VARIANTS.items() if "everything" in name and v.call != "delta"}
    wanted = set(VARIANTS) if target == "sm_90" else LARGEST | most
    wanted = wanted | STATS if target in RARE else wanted - STATS
    return [name for name in VARIANTS if name in wanted]


def launches(
    variant: Variant | MultilabelVariant,
) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The (kernel, arguments, launch parameters) of a variant, not launched."""
    found: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def launched(kernel: Any, _: Any, *arguments: Any, **meta: Any) -> None:
        # what a round of the solver launches again; those before the last differ in a constant
        which = meta | ({"ROUND": 0} if "ROUND" in meta else {})
        found.setdefault(f"{kernel.fn.__name__} {which}", (kernel, arguments, meta))

    launching.launch = launched
    variant.run()
    return list(found.values())


def compiled(wanted: Asked, known: dict[str, tuple[Any, str]]) -> Compiled:
    """What variants share is compiled once."""
    if wanted.key not in known:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            binary = wanted.compile()
        known[wanted.key] = binary, log.getvalue()
    return Compiled(wanted.source, *known[wanted.key], wanted.values)


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"{pattern} not in {text!r}"
    return int(found.group(1))


def report(kernel: Any, made: Compiled, meta: dict[str, Any], target: str) -> Report:
    binary, log = made.binary, made.log
    # multiplications make offsets; a 32-bit one may only number columns
    text = re.sub(r"{[^}]*}", "", binary.asm["ttir"])  # without what is said of results
    narrow = re.findall(r"%(\w+) = arith\.muli .*: (?:tensor<[\dx]*)?i32\b", text)
    narrow = [name for name in narrow if not name.startswith("column")]
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        registers = number(r"\.vgpr_count:\s+(\d+)", text)
        spilled = number(r"\.vgpr_spill_count:\s+(\d+)", text)
        stack = number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        exponentials, size = text.count("v_exp_f32"), len(binary.asm["hsaco"])
    else:
        registers = number(r"Used (\d+) registers", log)
        spilled = number(r"(\d+) bytes spill stores", log)
        spilled += number(r"(\d+) bytes spill loads", log)
        stack = number(r"(\d+) bytes stack frame", log)
        exponentials, size = binary.asm["ptx"].count("ex2.approx"), len(binary.asm["cubin"])
    return Report(
        kernel.fn.__name__, target, meta, registers, spilled, stack, exponentials, size, narrow
    )


def main(target: str, output: str) -> None:
    known: dict[str, tuple[Any, str]] = {}
    driven = target == "sm_90" and triton_driver.unavailable() is None
    driver = triton_driver.Driver(Path(output).parent) if driven else None
    with open(output, "w") as file:
        for name in chosen(target):
            for kernel, arguments, meta in launches(VARIANTS[name]):
                made = compiled(asked(kernel, arguments, meta, TARGETS[target]), known)
                found = report(kernel, made, meta, target)
                if driver is not None:
                    parameters = driver.launch(made.source, made.binary, made.values)
                    found = found._replace(parameters=parameters)
                print(json.dumps([name, found], default=str), file=file)  # a dtype among meta


def compile_for(target: str, folder: Path) -> None:
    """Leaves the reports of a target in a folder: by a process that does not interpret Triton."""
    environment = triton_launches.environment(folder) | {"TRITON_DUMP_PTXAS_LOG": "1"}
    command = [sys.executable, __file__, target, str(folder / REPORTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def reports(request: pytest.FixtureRequest, once: Once) -> dict[str, list[Report]]:
    """What the compiler said, by variant."""
    target = request.param
    folder = once(f"triton-{target}", functools.partial(compile_for, target))
    found: dict[str, list[Report]] = {}
    for line in (folder / REPORTS).read_text().splitlines():
        name, fields = json.loads(line)
        found.setdefault(name, []).append(Report(*fields))
    return found


def reported(target: str, *more: str) -> Any:
    return pytest.param(target, *more, marks=RARE.get(target, ()))


ALL = pytest.mark.parametrize("reports", map(reported, TARGETS), indirect=True)
HOPPER = pytest.mark.parametrize("reports", ["sm_90"], indirect=True)


@pytest.mark.parametrize(
    ("reports", "variant"),
    [reported(target, variant) for target in TARGETS for variant in chosen(target)],
    indirect=["reports"],
)
def test_no_spills(
    reports: dict[str, list[Report]],
    variant: str,
    record_property: Callable[[str, object], None],
) -> None:
    for kernel in reports[variant]:
        record_property(f"{kernel.kernel} registers", kernel.registers)
        assert kernel.binary_bytes > 0
        most = SPILLED.get(RELEASE, {}).get(kernel.kernel, 0)
        assert max(kernel.spilled, kernel.stack) <= most, kernel
        assert kernel.narrow_offsets == [], kernel


@ALL
def test_every_kernel_is_compiled(reports: dict[str, list[Report]]) -> None:
    kernels = {kernel.kernel for found in reports.values() for kernel in found}
    assert kernels == {
        "count_rows",
        "forward",
        "prepare_rows",
        "gradient",
        "gradient_rows",
        "rescale_rows",
        "scale_rows",
        "measure_rows",
        "mass_rows",
        "detail_rows",
        "rival_rows",
        "statistic_rows",
        "perturb_rows",
        "weigh_rivals",
        "step_rows",
        "move_rows",
        "row_stats",
        "plain_steps",
        "binary_tiles",
        "scale_labels",
        "row_masses",
        "binary_learned",
        "binary_moments",
        "binary_walk",
        "binary_rest",
        "group_rows",
        "list_groups",
        "move_all",
        "split_columns",
        "move_tail",
        "move_groups",
    }


@HOPPER
@pytest.mark.skipif(
    triton_driver.unavailable() is not None, reason=triton_driver.unavailable() or ""
)
def test_launches_hand_over_every_argument(reports: dict[str, list[Report]]) -> None:
    """Compared where the launcher, Triton's own, hands them to a driver (triton_driver.py)."""
    for variant, found in reports.items():
        for kernel in found:
            assert kernel.parameters > 0, (variant, kernel.kernel)


@HOPPER
@pytest.mark.parametrize("variant", ["plain, 10", "plain, 1000", "plain, 8142"])
def test_one_exponential_per_logit(reports: dict[str, list[Report]], variant: str) -> None:
    """A row in registers: loss and gradient share their exponentials, and the label has one more."""
    count, kernel = reports[variant]
    assert count.kernel == "count_rows"
    each = max(1, kernel.meta["BLOCK"] // (32 * kernel.meta["num_warps"]))
    assert kernel.exponentials == each + 1


@HOPPER
@pytest.mark.parametrize("variant", ["lpl, apart, 8142", "lpl, normalized, apart, 8142"])
def test_solved_in_two_exponentials_per_logit(
    reports: dict[str, list[Report]], variant: str
) -> None:
    """One for what the steps want to know of a row in registers, one for its gradient by what they
    have made of it, whatever their number. Beside these one for the head's share and those of the
    lanes that are looked at again for heads; in the gradient, which is there for blocks in a row and
    for its edges, one for the tail's unit, and those of the heads."""
    from lpl_fused.backends.kernels.solver import AT_ONCE, FEW

    found = {kernel.kernel: kernel for kernel in reports[variant]}
    weighed, moved = found["weigh_rivals"], found["move_rows"]
    threads, each = 32 * weighed.meta["num_warps"], 16 // VARIANTS[variant].dtype.itemsize
    again = max(1, AT_ONCE.value * each // threads)
    more = weighed.exponentials - (weighed.meta["BLOCK"] // threads + 1 + again)
    assert 0 <= more <= ALIKE.get(RELEASE, 0)
    threads = 32 * moved.meta["num_warps"]
    heads = moved.meta["HEAD"] // FEW.value * max(1, FEW.value // threads)
    assert moved.exponentials == 2 * (moved.meta["BLOCK"] // threads + 1) + heads


if __name__ == "__main__":
    main(*sys.argv[1:])
