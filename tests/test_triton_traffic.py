"""Memory traffic of the Triton kernels, counted in the interpreter, against a budget.

A budget says in bytes per logit how much of every (N, C) matrix a call loads and stores: what a
kernel must move if it keeps what it once has read. It must be met exactly, but for LABELS bytes per
row and matrix, which pay for the logits of the labels, and beside all matrices ROW bytes per row,
for labels and statistics, and 1/16 byte per logit, for what every block reads of its row. Tables of C entries are read again by every row, from a cache, and have a
budget of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from lpl_fused.algebra.known import Known
from lpl_fused.algebra.parts import Kind, Round
from lpl_fused.algebra.settle import begin
from lpl_fused.backends import load, reason_against
from lpl_fused.backends.contract import Forward
from lpl_fused.norm import LogitNorm
from lpl_fused.penalty import RELU
from lpl_fused.phi import FOCAL
from lpl_fused.problem import TABLES as ALL
from lpl_fused.problem import BinaryOptions, BinaryProblem, Options, Problem

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl
from triton_memory import Operations, Traffic, host_alone, watched

from lpl_fused.backends.triton import launching, learned

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

LABELS, ROW = 128, 1024
TABLES = ("scale", "offset", "weight")
PLAIN = Options()
ONE_BLOCK, SWEEP = 8142, 20_000  # classes: a row fits the registers, or it does not
HEAVY = 5000  # does not where a logit takes more arithmetic
N = 4

backend = load("triton")


def forward(problem: Problem) -> None:
    backend.forward(problem, False)


def forward_and_gradient(problem: Problem) -> None:
    backend.forward(problem, True)


def forward_stats(problem: Problem) -> None:
    backend.forward(problem, False, return_stats=True)


def gradient_stats(problem: Problem) -> None:
    backend.forward(problem, True, return_stats=True)


def known_of(problem: Problem) -> Known:
    """Any terms: what is moved does not depend on them."""
    known = begin(problem)
    return known._replace(terms=torch.ones_like(known.terms))


def gradient(*wanted: str) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        known = known_of(problem)
        upstream = known.terms.new_ones(()).expand(problem.input.shape[0])
        backend.gradient(problem, known, upstream, wanted)

    return run


def by_statistics(problem: Problem) -> None:
    state = backend.forward(problem, False).state
    backend.learned_gradient(problem, torch.ones(()).expand(problem.input.shape[0]), state)


def learned_gradient(problem: Problem) -> None:
    backend.learned_gradient(problem, torch.ones(()).expand(problem.input.shape[0]))


def reduce(kind: Kind) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        steps = torch.full((problem.classes,), 5, dtype=torch.int32)
        known = known_of(problem._replace(steps=steps))
        backend.reduce(problem, Round(kind), known)

    return run


def perturb(problem: Problem) -> None:
    backend.perturbed(problem, known_of(problem), 0, problem.input.shape[1])


def rescale(factor: float) -> Callable[[Problem], None]:
    def run(problem: Problem) -> None:
        shape, dtype = problem.input.shape, problem.input.dtype
        terms = known_of(problem).terms if problem.steps is None else None
        found = Forward(torch.zeros(()), torch.ones(()), terms, torch.zeros(shape, dtype=dtype))
        backend.rescale_(problem, found, torch.tensor(factor))

    return run


@dataclass
class Budget:
    """Bytes per logit, loaded and stored, of each matrix; of all tables, loaded, together."""

    run: Callable[[Problem], object]
    classes: int
    matrices: dict[str, tuple[float, float]]
    tables: float = 0.0
    parts: tuple[str, ...] = ()
    options: Options = PLAIN
    steps: int | None = None
    dtype: torch.dtype = torch.bfloat16
    n: int = N

    def problem(self) -> Problem:
        generator = torch.Generator().manual_seed(0)
        n, classes = self.n, self.classes
        shapes = dict.fromkeys((*TABLES, "margin"), (classes,)) | {"rows": (2, classes)}
        parts = {
            name: torch.rand(shapes[name], generator=generator)
            for name in self.parts
            if name in shapes
        }
        target = torch.arange(n)
        if "dense" in self.parts:
            target = torch.rand(n, classes, generator=generator).to(self.dtype)
        if "rows" in self.parts:
            parts["row_index"] = torch.arange(n) % 2
        if self.steps is not None:
            parts["steps"] = torch.full((classes,), self.steps, dtype=torch.int32)
        if "one class" in self.parts:
            target = torch.zeros_like(target)
        logits = torch.randn(n, classes, generator=generator).to(self.dtype)
        return Problem(logits, target, **parts, options=self.options)


LPL = Options(step_size=0.1)
LPL_NORMALIZED = Options(step_size=0.1, normalize=True)
TOO_FAR = Options(step_size=1e3)  # for the solver, which leaves such rows to plain steps
SMOOTHED_FOCAL = Options(phi=FOCAL, phi_parameter=2.0, label_smoothing=0.1)
NORMED = Options().with_norm(LogitNorm().numbers())
PENALISED = Options(penalty=RELU, penalty_strength=0.1)

BUDGETS = {
    # loss alone: every logit once
    "forward": Budget(forward, ONE_BLOCK, {"input": (2, 0)}),
    "forward, swept": Budget(forward, SWEEP, {"input": (2, 0)}),
    "forward, fp32": Budget(forward, ONE_BLOCK, {"input": (4, 0)}, dtype=torch.float32),
    # loss and gradient: one read and one write, or a second read
    "gradient": Budget(forward_and_gradient, ONE_BLOCK, {"input": (2, 0), "wanted.grad": (0, 2)}),
    "gradient, fp32": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {"input": (4, 0), "wanted.grad": (0, 4)},
        dtype=torch.float32,
    ),
    "gradient, swept": Budget(
        forward_and_gradient, SWEEP, {"input": (4, 0), "wanted.grad": (0, 2)}
    ),
    # statistics of rows come from the same reads
    "forward, with stats, swept": Budget(forward_stats, SWEEP, {"input": (2, 0)}),
    "gradient, with stats": Budget(
        gradient_stats, ONE_BLOCK, {"input": (2, 0), "wanted.grad": (0, 2)}
    ),
    "gradient, with stats, swept": Budget(
        gradient_stats, SWEEP, {"input": (4, 0), "wanted.grad": (0, 2)}
    ),
    "gradient, tables, with stats, swept": Budget(
        gradient_stats,
        SWEEP,
        {"input": (4, 0), "wanted.grad": (0, 2), "rows": (8, 0)},
        tables=20,
        parts=ALL,
    ),
    # gradient from the terms of the rows: one read, whatever the loss
    **{
        f"gradient from terms{name}": Budget(
            gradient("input"), SWEEP, {"input": (2, 0), "grad": (0, 2)}, options=options
        )
        for name, options in {
            "": PLAIN,
            ", smoothed": Options(label_smoothing=0.1),
            ", norm": NORMED,
            ", penalty": PENALISED,
        }.items()
    },
    # tables: their own bytes alone, once for z and, for scale, once for its derivative
    "gradient, tables": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {"input": (2, 0), "wanted.grad": (0, 2), "rows": (4, 0)},
        tables=12,
        parts=ALL,
    ),
    "gradient, tables, swept": Budget(
        forward_and_gradient,
        SWEEP,
        {"input": (4, 0), "wanted.grad": (0, 2), "rows": (8, 0)},
        tables=20,
        parts=ALL,
    ),
    # 16 rows are 2 chunks: 2/16 of an (N, C) float32 matrix of partial sums for each table
    "backward, all tables learn": Budget(
        gradient("input", *ALL),
        ONE_BLOCK,
        {
            "input": (2, 0),
            "wanted.input": (0, 2),
            "rows": (4, 0),
            "wanted.rows": (0, 4),
            "wanted.scale": (0, 0.5),
            "wanted.offset": (0, 0.5),
        },
        tables=12,
        parts=ALL,
        n=16,
    ),
    # soft targets
    "gradient, smoothed": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {"input": (2, 0), "wanted.grad": (0, 2)},
        tables=4,
        parts=("weight",),
        options=Options(label_smoothing=0.1),
    ),
    "gradient, smoothed focal, swept": Budget(
        forward_and_gradient,
        HEAVY,
        {"input": (6, 0), "wanted.grad": (0, 2)},
        options=SMOOTHED_FOCAL,
    ),
    "gradient, dense": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {"input": (2, 0), "wanted.grad": (0, 2), "target": (2, 0)},
        parts=("dense",),
    ),
    "gradient, dense, swept": Budget(
        forward_and_gradient,
        SWEEP,
        {"input": (4, 0), "wanted.grad": (0, 2), "target": (4, 0)},
        parts=("dense",),
    ),
    # a norm: one read to measure it
    "gradient, norm": Budget(
        forward_and_gradient, ONE_BLOCK, {"input": (4, 0), "wanted.grad": (0, 2)}, options=NORMED
    ),
    "gradient, norm, swept": Budget(
        forward_and_gradient, SWEEP, {"input": (6, 0), "wanted.grad": (0, 2)}, options=NORMED
    ),
    # a penalty: one read for the maximum, one for what lies below it
    "gradient, penalty": Budget(
        forward_and_gradient, ONE_BLOCK, {"input": (6, 0), "wanted.grad": (0, 2)}, options=PENALISED
    ),
    # learned perturbation of a class with one row: as the plain loss by statistics, whatever the
    # steps
    **{
        f"LPL, {steps} steps": Budget(
            forward_and_gradient,
            ONE_BLOCK,
            {"input": (4, 0), "grad": (0, 2)},
            steps=steps,
            options=LPL,
        )
        for steps in (1, 7, -7)
    },
    "LPL, normalized": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {"input": (4, 0), "grad": (0, 2)},
        steps=3,
        options=LPL_NORMALIZED,
    ),
    # the head's bound is known after one read
    "LPL, swept": Budget(
        forward_and_gradient,
        SWEEP,
        {"input": (6, 0), "grad": (0, 2)},
        steps=3,
        options=LPL,
    ),
    "LPL, loss": Budget(forward, SWEEP, {"input": (4, 0)}, steps=2, options=LPL),
    "LPL, gradient": Budget(
        learned_gradient, ONE_BLOCK, {"input": (4, 0), "grad": (0, 2)}, steps=2, options=LPL
    ),
    # of what the forward has left: one read more
    "LPL, gradient by statistics": Budget(
        by_statistics, SWEEP, {"input": (4 + 2, 0), "grad": (0, 2)}, steps=2, options=LPL
    ),
    # δ itself is a matrix more
    "LPL, δ": Budget(
        backend.learned_perturbation,
        ONE_BLOCK,
        {"input": (4, 0), "delta": (0, 4)},
        steps=2,
        options=LPL,
    ),
    # fallen back after one read. A step reads the logits twice, δ twice, and writes δ; the loss
    # reads both once more, the gradient twice; with the gradient steps are taken once more
    "LPL, too far": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {
            "input": (2 + (4 * 2 + 2) + (4 * 2 + 4), 0),
            "wanted.grad": (0, 2),
            "work": (8 * 2 + 4 + 8 * 2 + 8, 2 * (4 + 4 * 2)),
        },
        steps=2,
        options=TOO_FAR,
    ),
    "LPL, too far, swept": Budget(
        forward_and_gradient,
        SWEEP,
        {
            "input": (4 + (4 * 2 + 2) + (4 * 2 + 4), 0),
            "wanted.grad": (0, 2),
            "work": (8 * 2 + 4 + 8 * 2 + 8, 2 * (4 + 4 * 2)),
        },
        steps=2,
        options=TOO_FAR,
    ),
    "LPL, normalized, too far, swept": Budget(
        forward_and_gradient,
        SWEEP,
        {
            "input": (4 + (4 * 2 + 2) + (4 * 2 + 4), 0),
            "wanted.grad": (0, 2),
            "work": (12 * 2 + 4 + 12 * 2 + 8, 2 * (4 + 4 * 2)),
            "direction": (2 * 4 * 2, 2 * 4 * 2),
        },
        steps=2,
        options=TOO_FAR._replace(normalize=True),
    ),
    # a class of 4 rows whose steps cost less than a solver: one δ for all, a quarter of a matrix,
    # which a step reads for each row and once to move it
    "LPL, one class, swept": Budget(
        forward_and_gradient,
        ONE_BLOCK,
        {
            "input": ((4 * 2 + 2) + (4 * 2 + 4), 0),
            "wanted.grad": (0, 2),
            "work": ((4 + 1) * 2 + 4 + (4 + 1) * 2 + 8, 2 * (1 + 2)),
        },
        steps=2,
        options=LPL,
        parts=("one class",),
    ),
    # another upstream: nothing to do for 1; 16 bits are made anew where scaling would round
    "scale by 1": Budget(rescale(1.0), ONE_BLOCK, {}, dtype=torch.float32),
    "scale by 3": Budget(rescale(3.0), ONE_BLOCK, {"matrix": (4, 4)}, dtype=torch.float32),
    "rescale by 1": Budget(rescale(1.0), ONE_BLOCK, {}),
    "rescale by 2": Budget(rescale(2.0), ONE_BLOCK, {"grad": (2, 2)}),
    "rescale by 3": Budget(rescale(3.0), ONE_BLOCK, {"input": (2, 0), "grad": (0, 2)}),
    "LPL, rescale by 1": Budget(rescale(1.0), ONE_BLOCK, {}, steps=2, options=LPL),
    "LPL, rescale by 2": Budget(rescale(2.0), ONE_BLOCK, {"matrix": (2, 2)}, steps=2, options=LPL),
    "LPL, rescale by 3": Budget(
        rescale(3.0), ONE_BLOCK, {"input": (4, 0), "grad": (0, 2)}, steps=2, options=LPL
    ),
    # reductions: one read each, but for rivals, which are told apart by their sum
    "size": Budget(reduce(Kind.SIZE), SWEEP, {"input": (2, 0)}, options=NORMED),
    "mass": Budget(reduce(Kind.MASS), SWEEP, {"input": (2, 0)}),
    "mass, norm": Budget(reduce(Kind.MASS), SWEEP, {"input": (2, 0)}, options=NORMED),
    "detail": Budget(reduce(Kind.DETAIL), SWEEP, {"input": (2, 0)}, options=SMOOTHED_FOCAL),
    "detail, penalty": Budget(reduce(Kind.DETAIL), SWEEP, {"input": (2, 0)}, options=PENALISED),
    "rivals": Budget(reduce(Kind.RIVALS), SWEEP, {"input": (4, 0)}, options=LPL),
    "perturbed": Budget(perturb, SWEEP, {"input": (2, 0), "z": (0, 4)}),
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every program that shares work of unknown size asks how much there is."""
    monkeypatch.setattr(learned, "PROGRAMS", 8)


@pytest.fixture(autouse=True)
def few_logits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many would be."""
    monkeypatch.setattr(learned, "FEW_LOGITS", 0)
    monkeypatch.setattr(learned, "ONE_LAUNCH", 0)


def measure(run: Callable[[Problem], object], problem: Problem) -> Traffic:
    with watched() as traffic:
        run(problem)
    return traffic


def check(budget: Budget, traffic: Traffic) -> None:
    logits, allowance = budget.n * budget.classes, budget.n * LABELS
    rest = traffic.total()
    for name, per_logit in budget.matrices.items():
        for way, found, expected in zip(
            ("loaded", "stored"), traffic.of(name), per_logit, strict=True
        ):
            over = found - expected * logits
            assert 0 <= over <= allowance, (
                f"{name}: {found / logits:.2f} bytes per logit {way}, budget {expected}"
            )
            rest -= found
    tables = sum(traffic.of(name)[0] for name in TABLES)
    over = tables - budget.tables * logits
    assert 0 <= over <= allowance, f"tables: {tables / logits:.2f} bytes, budget {budget.tables}"
    beside = budget.n * (ROW + budget.classes // 16)
    assert rest - tables <= beside, f"{(rest - tables) / logits:.2f} bytes per logit beside"


@pytest.mark.parametrize("name", BUDGETS)
def test_traffic_is_within_budget(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    budget = BUDGETS[name]
    traffic = measure(budget.run, budget.problem())
    record_property("bytes_per_logit", traffic.total() / (budget.n * budget.classes))
    check(budget, traffic)


MULTILABEL = BinaryOptions()
MULTILABEL_BUDGETS = {
    # (rows, parts, steps, options): bytes per logit of each matrix; labels are float32
    "multi-label": (
        8,
        (),
        0,
        MULTILABEL,
        {"input": (2, 0), "target": (4, 0), "wanted.grad": (0, 2)},
    ),
    "multi-label, missing": (
        *(8, (), 0, MULTILABEL._replace(missing=1, ignored=-1.0)),
        {"input": (2, 0), "target": (4, 0), "wanted.grad": (0, 2)},
    ),
    # the sum over a row's labels comes before any of its weights
    "multi-label, rebalanced": (
        *(8, ("inverse_count",), 0, MULTILABEL),
        {"input": (2, 0), "target": (8, 0), "wanted.grad": (0, 2)},
    ),
    # whole columns in registers: as the plain loss, whatever the steps
    **{
        f"multi-label LPL, {steps} steps": (
            *(100, (), steps, MULTILABEL._replace(step_size=0.1)),
            {"input": (2, 0), "target": (4, 0), "wanted.grad": (0, 2)},
        )
        for steps in (1, 7)
    },
    # too many rows: read once more for their moments, whatever the steps
    **{
        f"multi-label LPL, {steps} steps, from moments": (
            *(300, (), steps, MULTILABEL._replace(step_size=0.1)),
            {"input": (2 * 2, 0), "target": (4 * 2, 0), "wanted.grad": (0, 2)},
        )
        for steps in (3, 8)
    },
}


@pytest.mark.parametrize("name", MULTILABEL_BUDGETS)
def test_traffic_of_multilabel_losses(name: str) -> None:
    n, parts, steps, options, matrices = MULTILABEL_BUDGETS[name]
    classes = 200
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator).bfloat16()
    target = (torch.rand(n, classes, generator=generator) < 0.1).float()
    fields = {part: torch.rand(classes, generator=generator) for part in parts}
    if steps:
        fields["steps"] = torch.full((classes,), steps, dtype=torch.int32)
    problem = BinaryProblem(logits, target, **fields, options=options)
    with watched() as traffic:
        backend.binary_forward(problem, True)
    for matrix, (loaded, stored) in matrices.items():
        expected = (loaded * n * classes, stored * n * classes)
        assert traffic.of(matrix) == expected, f"{matrix}: {traffic.of(matrix)}"
    rest = traffic.total() - sum(sum(traffic.of(matrix)) for matrix in matrices)
    # 22 moments of two chunks of rows, the numbers of a walk, for every leg of which they are read
    walk = 1536 * classes if steps and n > 256 else 0
    assert rest <= 16 * classes + 16 * n + 16 * classes * len(parts) * n + walk


@pytest.mark.parametrize("density", [0.02, 0.5])
def test_moments_solve_usual_batches(density: float) -> None:
    """Steps of 0.1 from any start need no step that reads all rows, however far they go."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 40, generator=generator)
    target = torch.rand(300, 40, generator=generator) < density
    steps = torch.where(torch.rand(40, generator=generator) < 0.5, -50, 50).int()
    options = MULTILABEL._replace(step_size=0.1)
    with watched() as traffic:
        backend.binary_forward(BinaryProblem(logits, target, steps=steps, options=options), True)
    assert traffic.loaded["binary_moments", "input"] > 2 * logits.nbytes
    assert traffic.loaded["binary_rest", "input"] == 0


@pytest.mark.parametrize("classes", [ONE_BLOCK, SWEEP])
def test_learned_moves_no_more_than_plain(classes: int) -> None:
    """All bytes, those of the head included, on logits with a large one (σ = 3): those of the plain
    loss, and one read more."""

    def total(steps: int | None) -> int:
        problem = Budget(forward_and_gradient, classes, {}, steps=steps, options=LPL).problem()
        return measure(forward_and_gradient, problem._replace(input=3 * problem.input)).total()

    logits = N * classes * 2
    assert total(2) <= 1.1 * (total(None) + logits)


@pytest.mark.parametrize("parts", [(), ("one class",)], ids=["rows", "a group"])
def test_one_launch_moves_no_more(parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of rows and groups, as by kernels of their own."""
    problem = Budget(by_statistics, 2000, {}, steps=20, parts=parts, options=LPL).problem()
    apart = measure(by_statistics, problem)
    monkeypatch.setattr(learned, "ONE_LAUNCH", problem.input.numel())
    at_once = measure(by_statistics, problem)
    assert at_once.of("input") == apart.of("input")
    assert at_once.of("wanted.grad") == apart.of("grad") != (0, 0)
    assert at_once.total() <= apart.total()


@pytest.mark.parametrize("steps", [1, 9])
def test_few_logits_are_read_for_their_steps_and_twice(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class in registers, whatever its steps; one that is not twice a step."""
    monkeypatch.setattr(learned, "FEW_LOGITS", 1 << 17)
    for classes, reads in ((2000, 3), (3000, 2 * steps + 2)):
        problem = Budget(by_statistics, classes, {}, steps=steps, options=LPL, n=8).problem()
        traffic = measure(by_statistics, problem)
        logits = 8 * classes
        for way, found in zip((2 * reads, 0), traffic.of("input"), strict=True):
            assert 0 <= found - way * logits <= 8 * LABELS
        loaded, stored = traffic.of("grad")
        assert loaded == 0 <= stored - 2 * logits <= 8 * LABELS


@pytest.mark.parametrize("steps", [5, 20])
def test_a_group_is_read_six_times(steps: int) -> None:
    """Classes with several rows, the same dose in few steps or in many: once for the rows' mass,
    once to tell exact classes, three times for the tail, each of one tile of rows, once for the
    gradient.
    """
    n, classes = 4, 2000
    asked = Budget(forward_and_gradient, classes, {}, steps=steps, parts=("one class",))
    problem = asked.problem()._replace(options=Options(step_size=2.0 / steps))
    traffic = measure(forward_and_gradient, problem)
    logits = n * classes
    allowance = 2 * 256 * n  # q of the exact classes
    for name, per_logit in {"input": (6 * 2, 0), "grad": (0, 2), "work": (0, 0)}.items():
        for found, expected in zip(traffic.of(name), per_logit, strict=True):
            assert 0 <= found - expected * logits <= allowance, name
    # and the labels', of which the losses are
    assert 0 < traffic.loaded["move_tail", "input"] == 3 * 2 * logits + 2 * n


@pytest.mark.counts
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_memory_of_a_learned_perturbation(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside logits and gradient nothing of N×C, though all rows be left to plain steps: what the
    forward leaves, of each row some 6 KiB; sums over chunks of the columns; for programs that take
    plain steps δ of one class each."""
    host_alone(monkeypatch)
    n, classes, more = 512, 32_000, 2 if normalize else 1
    options = Options(step_size=0.1, normalize=normalize)
    budget = Budget(forward, classes, {}, steps=10, options=options, n=n)
    problem = budget.problem()._replace(input=torch.zeros(n, classes, dtype=torch.bfloat16))
    logits = problem.input.nbytes
    with Operations() as made:
        state = backend.forward(problem, False).state
        backend.learned_gradient(problem, torch.ones(()).expand(n), state)
    *rest, gradient = sorted(made.taken)
    assert gradient == logits
    assert sum(tensor.nbytes for tensor in state) <= 6800 * n
    plain = more * n // 8 * classes * 4
    of_chunks = more * classes // 256 * 13 * 4 * n
    assert sum(rest) <= 2 * plain + of_chunks + 10_500 * n


def test_a_second_read_breaks_a_budget() -> None:
    """The budget of a row in registers does not pass for a row that is swept twice."""
    swept, one_block = BUDGETS["gradient, swept"], BUDGETS["gradient"]
    with pytest.raises(AssertionError, match=r"input: 4.00 bytes per logit loaded, budget 2"):
        check(Budget(one_block.run, SWEEP, one_block.matrices), measure(swept.run, swept.problem()))


def test_a_matrix_without_budget_breaks_it() -> None:
    budget = BUDGETS["gradient"]
    with pytest.raises(AssertionError, match="beside"):
        check(
            Budget(budget.run, budget.classes, {"input": (2, 0)}),
            measure(budget.run, budget.problem()),
        )


@triton.jit
def copy(source, destination, count, BLOCK: tl.constexpr):
    """destination ← source"""
    lanes = tl.arange(0, BLOCK)
    tl.store(destination + lanes, tl.load(source + lanes, mask=lanes < count), mask=lanes < count)


def test_the_count_is_that_of_the_mask() -> None:
    source, destination = torch.arange(10.0), torch.zeros(10)
    with watched() as traffic:
        launching.launch(copy, (1,), source, destination, 7, BLOCK=16)
    assert traffic.of("source") == (28, 0)
    assert traffic.of("destination") == (0, 28)
    assert destination.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 0, 0]


def test_an_access_outside_is_caught() -> None:
    """One element more than the tensor has, though the memory behind it is there."""
    with watched(), pytest.raises(Exception, match="copy touches 1 elements outside"):
        launching.launch(copy, (1,), torch.arange(10.0)[:7], torch.zeros(10), 8, BLOCK=16)
