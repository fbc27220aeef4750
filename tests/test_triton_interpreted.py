"""What only the Triton kernels can get wrong: block boundaries, masked blocks, strange labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Draw
from torch import Tensor

from lpl_fused import Focal, Perturbation, testing
from lpl_fused.backends import load, reason_against
from lpl_fused.problem import MEAN, NONE, Options, Problem

if reason_against("triton", "cpu", torch.float32) is not None:
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from triton_memory import check, watched

# NumPy's, where a kernel handles −inf and its like
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")

backend = load("triton")


# the most classes in one block, or the block of a sweep: see the launch parameters
@pytest.mark.parametrize("beside", [-1, 0, 1])
@pytest.mark.parametrize(
    ("block", "keywords"),
    [
        pytest.param(16384, {}, id="plain"),
        pytest.param(3 * 8192, {}, id="swept"),
        pytest.param(4096, {"softcap": 5.0}, id="softcap"),
        pytest.param(4096, {"label_smoothing": 0.1, "phi": Focal(2.0)}, id="smoothed focal"),
    ],
)
def test_block_boundaries(block: int, keywords: dict[str, object], beside: int) -> None:
    classes = block + beside
    target = torch.tensor([0, classes - 1])
    check(testing.Case(Draw(2, classes, seed=classes).input(), target, keywords))


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_block_boundaries_of_the_backward(beside: int) -> None:
    """Tables that learn have their gradient from `backward`, block of columns by block."""
    draw = Draw(10, 2048 + beside, seed=beside + 1)  # two chunks of rows
    tables = Perturbation(scale=draw.uniform(draw.classes), offset=draw.normal(draw.classes))
    keywords = {"perturbation": tables}
    check(testing.Case(draw.input(), draw.ignoring(), keywords, learn=("scale", "offset")))


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
    want = [True] + [part is not None for part in (asked.scale, asked.offset, asked.margin)]
    with watched():
        losses, stats, _, grad = backend.cross_entropy(asked, True)
        recomputed, *_ = backend.cross_entropy_backward(
            asked, torch.ones(4), stats, [*want, asked.rows is not None]
        )
        mean, *_ = backend.cross_entropy(problem(label, name, MEAN), False)
    assert losses[2].isnan()
    assert mean.isnan()
    assert losses[3] == 0 or name.startswith("mixed")
    for gradient in (grad, recomputed):
        assert gradient[2].isnan().all()
        assert gradient[:2].isfinite().all()
        assert gradient[3].count_nonzero() == 0
    # the rows beside it do not notice
    others = Problem(
        *[part[:2] if isinstance(part, Tensor) and part.shape[0] == 4 else part for part in asked]
    )
    expected, _, _, expected_grad = backend.cross_entropy(others, True)
    assert torch.equal(losses[:2], expected)
    assert torch.equal(grad[:2], expected_grad)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", UPSTREAMS)
def test_scale_rows(name: str, dtype: torch.dtype) -> None:
    """In place, whatever the upstream's strides; rows whose factor is 1 are not touched."""
    upstream = UPSTREAMS[name]()
    before = torch.randint(-8, 8, (4, 3000)).to(dtype)  # exact in every dtype
    matrix = before.clone()
    with watched() as traffic:
        backend.scale_rows_(matrix, upstream)
    factors = upstream.expand(4)
    assert torch.equal(matrix, (before.float() * factors[:, None]).to(dtype))
    touched = int((factors != 1).sum()) * before[0].nbytes
    assert traffic.of("matrix") == (touched, touched)


def test_empty_batch() -> None:
    empty = Problem(torch.empty(0, 5), torch.empty(0, dtype=torch.int64))
    learned = empty._replace(steps=torch.ones(5, dtype=torch.int32))
    for asked in (empty, learned):
        loss, stats, norm, grad = backend.cross_entropy(asked, True)
        assert (loss.isnan(), norm, stats.shape, grad.shape) == (True, 0, (2, 0), (0, 5))
        want = [True, True, True, False, False]
        asked = asked._replace(scale=torch.ones(5), offset=torch.ones(5))
        found = backend.cross_entropy_backward(asked, torch.ones(0), stats, want)
        assert [part.shape for part in found] == [(0, 5), (5,), (5,), (0,), (0,)]
        assert found[1].count_nonzero() == found[2].count_nonzero() == 0
