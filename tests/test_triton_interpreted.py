"""What only the Triton kernels can get wrong: block boundaries, masked blocks, strange labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Draw
from multilabel_cases import binary_cases
from torch import Tensor

from lpl_fused import Focal, LogitNorm, Perturbation, testing
from lpl_fused import functional as LF
from lpl_fused.algebra.known import Known
from lpl_fused.algebra.sweep import sweep
from lpl_fused.backends import load, reason_against
from lpl_fused.backends.contract import Forward
from lpl_fused.backends.kernels import launch
from lpl_fused.penalty import RELU
from lpl_fused.problem import MEAN, NONE, SUM, TABLES, Options, Problem

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl
from triton_memory import check, watched

from lpl_fused.backends.kernels import batch
from lpl_fused.backends.kernels import forward as forward_kernels
from lpl_fused.backends.triton import launching, shortcut
from lpl_fused.backends.triton.arguments import arguments_of

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

backend = load("triton")


# the most classes in one block, or the block of a sweep: see the launch parameters
@pytest.mark.parametrize("beside", [-1, 0, 1])
@pytest.mark.parametrize(
    ("block", "keywords"),
    [
        pytest.param(8192, {}, id="plain"),
        pytest.param(3 * 8192, {}, id="swept"),
        pytest.param(4096, {"softcap": 5.0}, id="softcap"),
        pytest.param(4096, {"label_smoothing": 0.1, "phi": Focal(2.0)}, id="smoothed focal"),
    ],
)
def test_block_boundaries(block: int, keywords: dict[str, object], beside: int) -> None:
    classes = block + beside
    target = torch.tensor([0, classes - 1])
    check(testing.Case(Draw(2, classes, seed=classes).input(), target, keywords))


@pytest.mark.parametrize("n", [4, 9])
@pytest.mark.parametrize(
    ("dtype", "reduction"), [(torch.bfloat16, MEAN), (torch.bfloat16, SUM), (torch.float64, MEAN)]
)
def test_what_a_batch_adds_up_to(
    dtype: torch.dtype, reduction: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the last program, in turns of few losses: the sum in float64, rounded once; as torch does
    of many rows."""
    monkeypatch.setattr(forward_kernels, "SUMMED", tl.constexpr(4))
    draw = Draw(n, 7, seed=n)
    target = draw.ignoring()
    target[0] = 3
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, each = draw.uniform(7).to(wide), draw.uniform(n).to(wide)
    normalizer = torch.tensor(2.5, dtype=wide)
    for others in (
        {},
        {"weight": weight, "sample_weight": each},
        {"normalizer": normalizer} if reduction == SUM else {"smoothing": weight / 9},
        {"other": target.flip(0), "lam": each},
    ):
        asked = Problem(draw.input().to(dtype), target, options=Options(reduction), **others)
        each_row = asked._replace(options=Options(NONE), normalizer=None)
        rows = backend.forward(each_row, False).loss.double()
        for want_grad in (False, True):
            found = backend.forward(asked, want_grad)
            if reduction == SUM:
                expected = rows.sum() / others.get("normalizer", torch.ones(()))
            else:
                expected = rows.sum() / backend.forward(asked, False).norm.double()
            unit = 4 * torch.finfo(wide).eps
            torch.testing.assert_close(found.loss.double(), expected, rtol=unit, atol=0)
            with monkeypatch.context() as many:
                many.setattr(shortcut, "MOST_SUMMED", 0)
                as_torch = backend.forward(asked, want_grad)
            torch.testing.assert_close(found.loss, as_torch.loss, rtol=1e-6, atol=0)
            if want_grad:
                torch.testing.assert_close(found.grad, as_torch.grad, rtol=1e-2, atol=1e-6)
            elif reduction == MEAN:
                torch.testing.assert_close(found.norm, as_torch.norm, rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [1, 33, 4096, 9001])
def test_rows_are_counted(n: int) -> None:
    """Turn by turn; a number that is not looked for is none that is ignored."""
    target = torch.randint(-1, 3, (n,), generator=torch.Generator().manual_seed(n))
    target[-1] = 2
    options = Options(ignore_index=-1)
    asked = Problem(torch.zeros(n, 3), target, options=options)
    for dtype in (torch.float32, torch.float64):
        norm, ticket = (
            torch.full((), torch.nan, dtype=dtype),
            torch.full((1,), 7, dtype=torch.int32),
        )
        what = arguments_of(asked), norm, ticket, n
        launching.launch(batch.count_rows, (1,), *what, **launch.counting_meta(n))
        assert (norm, ticket) == ((target != -1).sum(), 0)
    launching.launch(
        batch.count_rows, (1,), what[0], None, ticket.fill_(3), n, **launch.counting_meta(n)
    )
    assert ticket == 0


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_block_boundaries_of_the_backward(beside: int) -> None:
    """Tables that learn have their gradient from `gradient`, block of columns by block."""
    draw = Draw(10, 2048 + beside, seed=beside + 1)  # two chunks of rows
    tables = Perturbation(scale=draw.uniform(draw.classes), offset=draw.normal(draw.classes))
    keywords = {"perturbation": tables}
    check(testing.Case(draw.input(), draw.ignoring(), keywords, learn=("scale", "offset")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [41, 8190, 16391])
@pytest.mark.parametrize(("begin", "beyond"), [(0, 1), (3, 4), (8, 0), (5, 6)])
def test_rows_that_begin_anywhere(
    begin: int, beyond: int, classes: int, dtype: torch.dtype
) -> None:
    """Columns of a wider matrix, in one block, in edges alone, with blocks between: what is found
    is what is found of a copy, and what is beside them is not touched."""
    draw = Draw(9, classes, seed=begin)
    wide = torch.full((9, begin + classes + beyond), torch.nan, dtype=dtype)
    wide[:, begin : begin + classes] = draw.input()
    target = draw.ignoring()
    target[1], target[2] = 0, classes - 1
    view = Problem(wide[:, begin : begin + classes], target)
    copy = view._replace(input=view.input.contiguous())
    with watched():
        found = backend.forward(view, True)
        _, norm, terms, *_ = backend.forward(view, False)
        grad = backend.gradient(view, Known(terms), torch.ones(9), ["input"]).input
        backend.rescale_(view, found, torch.tensor(3.0))
    expected = backend.forward(copy, True)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    for one in (found.grad / 3, (grad / norm).to(dtype)):
        torch.testing.assert_close(one, expected.grad, rtol=max(2 * unit, 1e-6), atol=1e-9)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        pytest.param(2, 8191, id="row in registers"),
        pytest.param(2, 8192, id="full row in registers"),
        pytest.param(2, 8193, id="row too long"),
        pytest.param(4, 500, id="group in registers"),
        pytest.param(5, 500, id="group too large"),
        pytest.param(9, 500, id="group of three tiles"),
    ],
)
def test_tile_boundaries_of_the_learned_perturbation(
    rows: int, classes: int, normalize: bool
) -> None:
    draw = Draw(rows, classes, seed=rows)
    target = torch.full((rows,), 3) if classes == 500 else torch.arange(rows)
    steps = torch.where(torch.arange(classes) % 2 == 0, -4, 3)
    keywords = {"step_size": 0.3, "normalize": normalize}
    check(testing.Case(draw.input(), target, keywords, steps))


@pytest.mark.parametrize("classes", [8192, 8193], ids=["in registers", "in blocks"])
def test_rows_far_from_0_under_a_learned_perturbation_that_are_smoothed(classes: int) -> None:
    offset = torch.tensor([[1e4], [-1e4], [100.0], [-100.0]])
    input = (Draw(4, classes, seed=3).input().float() + offset).double()
    keywords = {"step_size": 0.3, "label_smoothing": 0.1}
    steps = torch.where(torch.arange(classes) % 2 == 0, -4, 3)
    check(testing.Case(input, torch.tensor([3, 3, 4, 5]), keywords, steps))


@pytest.mark.parametrize("form", ["labels", "smoothed", "dense", "learned"])
def test_blocks_of_minus_infinity(form: str) -> None:
    """Masked classes may fill whole blocks of a sweep, or all of a row (nan, as in torch)."""
    classes, block = 20_000, 8192
    draw = Draw(6, classes, seed=0)
    logits = draw.input()
    logits[0, :block] = -torch.inf
    logits[1, block : 2 * block] = -torch.inf
    logits[2, 2 * block :] = -torch.inf
    logits[3, torch.arange(classes) != 9000] = -torch.inf
    logits[4, block:] = -torch.inf  # the target is masked too: infinite loss
    logits[5] = -torch.inf
    target = torch.tensor([9000, 0, 9000, 9000, 9000, 9000])
    keywords: dict[str, object] = {"reduction": "none"}
    if form == "smoothed":
        keywords["label_smoothing"] = 0.1
    if form == "dense":
        dense = torch.zeros(6, classes, dtype=torch.float64)
        dense[torch.arange(6), target] = 1
        check(testing.Case(logits, dense, keywords))
        return
    steps = None
    if form == "learned":
        steps, keywords["step_size"] = torch.full((classes,), 2), 0.3
        target = torch.tensor([9000, 0, 9001, 9002, 9003, 9004])
        logits[3, 9002], logits[3, 9000] = logits[3, 9000].clone(), -torch.inf
    check(testing.Case(logits, target, keywords, steps))


BAD_LABELS = (-5, -1, 12, 2**31 + 3, 2**40)
CLASSES = 12


def problem(label: int, name: str, reduction: int) -> Problem:
    """Four rows, the third with a label (or row index) out of range, the last one ignored."""
    draw = Draw(4, CLASSES, seed=7)
    fine = torch.tensor([1, 5, 0, -100])
    strange = torch.tensor([1, 5, label, -100])
    table = draw.uniform(CLASSES).float()
    parts: dict[str, object] = {"target": strange}
    options = Options(reduction=reduction, step_size=0.3)
    if name in ("weights", "everything"):
        parts |= {"weight": table, "smoothing": table / 2}
    if name in ("margin", "everything"):
        parts |= {"margin": table}
    if name == "rows by label":
        parts |= {"rows": draw.normal(CLASSES, CLASSES).float()}
    if name in ("row index", "everything"):
        index = torch.tensor([0, 2, label, 1])
        parts |= {"target": fine, "rows": draw.normal(3, CLASSES).float(), "row_index": index}
    if name == "mixed":
        parts |= {"target": fine, "other": strange, "lam": torch.full((4,), 0.6)}
    if name == "mixed, no share":
        parts |= {"target": fine, "other": strange, "lam": torch.ones(4)}
    if name == "learned":
        parts |= {"steps": torch.full((CLASSES,), 3, dtype=torch.int32)}
    return Problem(draw.input().float(), **parts, options=options)  # type: ignore[arg-type]


@pytest.mark.parametrize("label", BAD_LABELS)
@pytest.mark.parametrize(
    "name",
    [
        "labels",
        "weights",
        "margin",
        "rows by label",
        "row index",
        "mixed",
        "mixed, no share",
        "learned",
        "everything",
    ],
)
def test_a_label_out_of_range_is_nan_and_never_followed(name: str, label: int) -> None:
    asked = problem(label, name, NONE)
    want = [name for name in TABLES if getattr(asked, name) is not None]
    with watched():
        losses, _, _, grad, *_ = backend.forward(asked, True)
        if asked.steps is not None:
            anew = backend.learned_gradient(asked, torch.ones(4))
        else:
            known = Known(backend.forward(asked, False).terms)
            anew = backend.gradient(asked, known, torch.ones(4), ["input", *want]).input
        mean = backend.forward(problem(label, name, MEAN), False).loss
    assert losses[2].isnan()
    assert mean.isnan()
    assert losses[3] == 0 or name.startswith("mixed")
    for gradient in (grad, anew):
        assert gradient[2].isnan().all()
        assert gradient[:2].isfinite().all()
        assert gradient[3].count_nonzero() == 0
    # the rows beside it do not notice
    others = Problem(
        *[part[:2] if isinstance(part, Tensor) and part.shape[0] == 4 else part for part in asked]
    )
    expected = backend.forward(others, True)
    assert torch.equal(losses[:2], expected.loss)
    assert torch.equal(grad[:2], expected.grad)


@pytest.mark.parametrize("label", BAD_LABELS)
@pytest.mark.parametrize("name", ["labels", "row index", "mixed", "everything"])
def test_a_part_never_follows_a_label_out_of_range(name: str, label: int) -> None:
    asked = problem(label, name, NONE)
    parts = [asked.columns(0, 5), asked.columns(5, CLASSES)]
    want = [name for name in TABLES if getattr(asked, name) is not None]
    with watched():
        known = sweep(backend, parts)
        grads = [
            backend.gradient(part, known, torch.ones(4), ["input", *want]).input for part in parts
        ]
    assert known.loss.isnan().tolist() == [False, False, True, False]
    grad = torch.cat(grads, 1)
    assert grad[2].isnan().all()
    assert grad[:2].isfinite().all()
    assert grad[3].count_nonzero() == 0 or name == "mixed"


def test_learned_perturbation_of_a_label_out_of_range() -> None:
    with watched():
        delta, slot = backend.learned_perturbation(problem(2**40, "learned", NONE))
    assert slot.tolist() == [0, 1, 2, 3]
    assert delta[:2].abs().sum(1).min() > 0
    assert delta[2].isnan().all()
    assert delta[3].count_nonzero() == 0


UPSTREAMS: dict[str, Callable[[], Tensor]] = {
    "per row": lambda: torch.tensor([1.0, 2.0, 1.0, -0.5]),
    "every other": lambda: torch.tensor([1.0, 9, 2, 9, 1, 9, -0.5, 9])[::2],
    "expanded": lambda: torch.tensor(3.0).expand(4),
    "one number": lambda: torch.tensor(3.0),
}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_scaled(name: str) -> None:
    """In place, whatever the upstream's strides; rows whose factor is 1 are not touched."""
    upstream = UPSTREAMS[name]()
    before = torch.randint(-8, 8, (4, 3000)).float()
    asked = Problem(torch.zeros(4, 3000), torch.zeros(4, dtype=torch.int64))
    found = Forward(torch.zeros(()), torch.ones(()), None, before.clone())
    with watched() as traffic:
        assert backend.rescale_(asked, found, upstream) is found.grad
    factors = upstream.expand(4)
    assert torch.equal(found.grad, before * factors[:, None])
    touched = int((factors != 1).sum()) * before[0].nbytes
    assert traffic.of("matrix") == (touched, touched)


def narrow_problems() -> dict[str, Problem]:
    """Of 16 bits: the whole algebra, and a learned perturbation of whichever rows."""
    draw = Draw(5, 40, seed=11)
    input, target = draw.input().bfloat16(), torch.tensor([3, 39, 3, -100, 0])
    table = draw.uniform(40).float()
    everything = Problem(
        input,
        target,
        scale=0.5 + table,
        margin=table,
        weight=table,
        options=Options(
            label_smoothing=0.1, softcap=9.0, penalty=RELU, penalty_strength=0.1
        ).with_norm(LogitNorm(1.0).numbers()),
    )
    steps = torch.full((40,), 3, dtype=torch.int32)
    learned = Problem(input, target, steps=steps, options=Options(step_size=0.3))
    return {
        "plain": Problem(input, target),
        "summed": Problem(input, target, options=Options(reduction=SUM)),
        "everything": everything,
        "learned": learned,
        "learned, smoothed": learned._replace(
            options=learned.options._replace(label_smoothing=0.1)
        ),
    }


NARROW = narrow_problems()


@pytest.mark.parametrize("factor", [1.0, 0.0, -0.5, 1024.0, torch.inf, torch.nan])
@pytest.mark.parametrize("name", NARROW)
def test_16_bits_are_scaled_where_that_is_exact(name: str, factor: float) -> None:
    """The same bits as the product, and not one logit is read for it; 0 of ignored rows."""
    found = backend.forward(NARROW[name], True)
    expected = found.grad * factor
    expected[NARROW[name].target == -100] = 0
    with watched() as traffic:
        backend.rescale_(NARROW[name], found, torch.tensor(factor))
    torch.testing.assert_close(found.grad, expected, rtol=0, atol=0, equal_nan=True)
    assert traffic.of("input") == (0, 0)


@pytest.mark.parametrize("name", NARROW)
def test_16_bits_are_rounded_once(name: str) -> None:
    """The same bits as if the gradient in float32 had been multiplied, and rounded then."""
    asked, factor = NARROW[name], torch.tensor(3.0)
    wide = asked._replace(input=asked.input.float())
    exactly = backend.rescale_(wide, backend.forward(wide, True), factor)
    once = backend.rescale_(asked, backend.forward(asked, True), factor)
    # the interpreter truncates to bfloat16: at most one unit in the last place
    unit = torch.finfo(torch.bfloat16).eps
    off = (once.double() - exactly.double()).abs()
    assert (off <= unit * exactly.double().abs() * (1 + 1e-5)).all()
    twice = (exactly / 3).bfloat16().float() * 3
    assert not torch.equal(once.float(), twice.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NARROW)
def test_a_second_backward_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    asked = NARROW[name]._replace(input=NARROW[name].input.to(dtype))
    factor = torch.tensor(0.7)
    first, second = (
        backend.rescale_(asked, backend.forward(asked, True), factor) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_garbage_in_ignored_rows_reaches_no_gradient() -> None:
    """Padding may hold anything; a norm's factor and a softcap of it must not be multiplied by 0."""
    draw = Draw(4, 20, seed=3)
    input, target = draw.input().float(), draw.ignoring()
    table = draw.uniform(20).float()
    options = Options(softcap=5.0).with_norm(LogitNorm(1.0).numbers())
    clean = Problem(input, target, scale=table, offset=table, options=options)
    ignored = target == options.ignore_index
    assert ignored.any()
    padded = clean._replace(input=input.masked_fill(ignored[:, None], torch.nan))
    for asked in (clean, padded):
        known = Known(backend.forward(asked, False).terms)
        found = backend.gradient(asked, known, torch.ones(4), ["input", "scale", "offset"])
        if asked is clean:
            expected = found
    for one, other in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(one, other)
    assert found.input[ignored].count_nonzero() == 0


def test_the_shortcut_wants_all_columns() -> None:
    steps = torch.ones(6, dtype=torch.int32)
    asked = Problem(torch.zeros(2, 6), torch.tensor([0, 5]), steps=steps).columns(2, 6)
    for call in (
        lambda: backend.forward(asked, True),
        lambda: backend.learned_gradient(asked, torch.ones(2)),
        lambda: backend.learned_perturbation(asked),
    ):
        with pytest.raises(RuntimeError, match="shortcut: no kernel serves classes, first"):
            call()


def test_empty_batch() -> None:
    empty = Problem(torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    learned = empty._replace(steps=torch.ones(5, dtype=torch.int32))
    for asked in (empty, learned):
        found = backend.forward(asked, True)
        assert (found.loss.isnan(), found.norm, found.grad.shape) == (True, 0, (0, 5))
    asked = empty._replace(scale=torch.ones(5), offset=torch.ones(5))
    known = Known(backend.forward(asked, False).terms)
    found = backend.gradient(asked, known, torch.ones(0), ["input", "scale", "offset"])
    assert [part.shape for part in found[:3]] == [(0, 5), (5,), (5,)]
    assert found.scale.count_nonzero() == found.offset.count_nonzero() == 0
    assert found.margin is found.rows is None


MULTILABEL = binary_cases()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [13, 1031, 1096])
@pytest.mark.parametrize("case", ["hard", "bool", "missing", "hard-everything"])
def test_tiles_below_each_other(
    case: str, classes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs with several tiles, of which some are whole and some have rows or columns that are
    not there; rows that begin anywhere; logits that know nothing of their rows."""
    monkeypatch.setattr(launch, "ENOUGH", 1)
    made = MULTILABEL[case](Draw(70, classes, seed=classes))
    with watched():
        # to the last place but one, as the interpreter rounds to bfloat16
        testing.assert_within_budget(made, "triton", dtype, ulps=2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 3.0])
def test_labels_of_which_none_counts_pull_nowhere(upstream: float, dtype: torch.dtype) -> None:
    """Their mean is divided by 0, in tiles that are whole and tiles that are not."""
    logits = torch.randn(2, 3000, dtype=dtype, requires_grad=True)
    loss = LF.binary_cross_entropy_with_logits(
        logits, torch.full((2, 3000), -1.0), ignore_index=-1, backend="triton"
    )
    (grad,) = torch.autograd.grad(loss, logits, torch.tensor(upstream))
    assert torch.count_nonzero(grad) == 0


@pytest.mark.parametrize("some", [0.0, 0.5, torch.nan])
@pytest.mark.parametrize("classes", [70, 1031])
def test_labels_in_part_other_than_0_and_1(
    classes: int, some: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned perturbation from moments: tiles whose labels are 0 and 1 ask for one side of each
    logit, beside one that has another label, or one that is not there."""
    monkeypatch.setattr(launch, "ENOUGH", 1)
    draw = Draw(300, classes, seed=5)
    target = (draw.uniform(300, classes) < 0.3).double()
    target[260, 65] = some
    steps = torch.full((classes,), 20, dtype=torch.int32)
    ignored = {"ignore_index": torch.nan} if some != some else {}
    made = testing.Case(draw.input(), target, {"step_size": 0.1, **ignored}, steps, multilabel=True)
    with watched() as traffic:
        testing.assert_within_budget(made, "triton", torch.float32)
    assert traffic.loaded["binary_rest", "input"] == 0


@triton.jit
def combined(a, b, out, KIND: tl.constexpr):
    x, y = tl.load(a), tl.load(b)
    tl.store(out, x + y if KIND == "add" else x - y if KIND == "sub" else x * y)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32], ids=str)
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
def test_an_integer_that_overflows_is_told(dtype: torch.dtype, kind: str) -> None:
    """conftest.py asks for it in its own way."""
    half = torch.iinfo(dtype).max // 2 + 1
    out = torch.zeros(1, dtype=dtype)
    exact = {"add": 2 * half - 1, "sub": -2 * half, "mul": -2 * half}[kind]
    # the last numbers that fit, and the first that do not
    fits = {"add": (half, half - 1), "sub": (-half, half), "mul": (-half, 2)}[kind]
    over = {"add": (half, half), "sub": (-half, half + 1), "mul": (half, 2)}[kind]
    combined[(1,)](*(torch.tensor([x], dtype=dtype) for x in fits), out, kind)
    assert out.item() == exact
    with pytest.raises(Exception, match=rf"{str(dtype)[6:]} overflow"):
        combined[(1,)](*(torch.tensor([x], dtype=dtype) for x in over), out, kind)
