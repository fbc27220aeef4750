"""Promises of docs/reliability.md that no other file makes: the same bits whatever is repeated or however many
threads there are, offsets beyond 32 bits, flat memory, dtypes, the version."""

from __future__ import annotations

import gc
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import Draw
from packaging.version import Version
from torch import Tensor

import lpl_fused
from lpl_fused import Focal, Perturbation, RebalancedWeight
from lpl_fused import functional as LF
from lpl_fused.backends import BACKENDS, REFERENCE, has_multilabel

ROOT = Path(__file__).resolve().parent.parent
SLOW = "triton", "cuda"


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Each a loss and all that it differentiates.
Call = Callable[[str, int, int], list[Tensor]]


def _solved(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    upstream = torch.linspace(0.5, 2, loss.numel()).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream)]


def _tables(backend: str, n: int, classes: int) -> list[Tensor]:
    d = Draw(n, classes, seed=1)
    input = d.input().float().requires_grad_()
    names = ("scale", "offset", "margin", "rows")
    tables = {m: getattr(d.tables(), m).float().requires_grad_() for m in names}
    given = Perturbation(**tables, row_index=torch.arange(n) % 3)
    loss = LF.cross_entropy(input, d.ignoring(), perturbation=given, backend=backend)
    return _solved(loss, input, *tables.values())


def _lpl(backend: str, n: int, classes: int, *, few: int, largest: int) -> list[Tensor]:
    d = Draw(n, classes, seed=2)
    input = d.input().float().requires_grad_()
    target, steps = d.labels() % min(few, classes), d.steps(largest)
    return _solved(
        LF.lpl_cross_entropy(input, target, steps, step_size=0.3, backend=backend), input
    )


def _labels(backend: str, n: int, classes: int, *, largest: int = 0) -> list[Tensor]:
    d = Draw(n, classes, seed=3)
    input = d.input().float().requires_grad_()
    target = (d.uniform(n, classes) < 0.1).float()
    given = {"rebalance": RebalancedWeight(0.1 + d.uniform(classes).float()), "phi": Focal(2.0)}
    if not largest:
        loss = LF.binary_cross_entropy_with_logits(input, target, backend=backend, **given)
    else:
        loss = LF.lpl_binary_cross_entropy_with_logits(
            input, target, d.steps(largest), step_size=0.1, backend=backend
        )
    return _solved(loss, input)


CALLS: dict[str, Call] = {
    "tables": _tables,
    "alone in their class": lambda b, n, c: _lpl(b, n, c, few=10**9, largest=9),
    "classes of rows": lambda b, n, c: _lpl(b, n, c, few=3, largest=9),
    "plain steps": lambda b, n, c: _lpl(b, n, c, few=2, largest=2),
    "labels": _labels,
    "labels, learned": lambda b, n, c: _labels(b, n, c, largest=8),
}


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _there(backend: str, name: str) -> None:
    if name.startswith("labels") and backend in BACKENDS and not has_multilabel(backend):
        pytest.skip(f"{backend} has no multi-label losses")


@pytest.mark.parametrize("name", CALLS)
def test_a_hundred_repeats_give_the_same_bits(backend: str, name: str) -> None:
    _there(backend, name)
    shape, repeats = ((5, 37), 5 if backend == "triton" else 100)
    if backend not in SLOW:
        shape = (40, 700)
    first = CALLS[name](backend, *shape)
    for _ in range(repeats):
        assert _same(first, CALLS[name](backend, *shape))


@pytest.mark.parametrize("shape", [(40, 4097), (600, 90), (4000, 12)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_any_number_of_threads_gives_the_same_bits(
    threads: Callable[[int], None], name: str, shape: tuple[int, int]
) -> None:
    found = []
    for count in (1, 2, 3, 4):
        threads(count)
        found.append(CALLS[name]("cpp", *shape))
    for other in found[1:]:
        assert _same(found[0], other)


def test_a_row_stride_beyond_32_bits() -> None:
    """Rows 2³¹ elements apart and more, in memory that nobody else touches: pages come as they are
    written, two rows of them."""
    stride, classes = 2**31 + 64, 300
    whole = torch.empty(2 * stride + classes, dtype=torch.bfloat16)  # 8.6 GB that nobody has seen
    logits = whole.as_strided((3, classes), (stride, 1))
    values = Draw(3, classes, seed=1).input().bfloat16()
    logits.copy_(values)
    target, labels = torch.tensor([0, 5, 299]), (values > 2).float()
    steps = torch.full((classes,), 3)
    for backend in ("cpp", REFERENCE):
        for run in (
            lambda u, b: LF.cross_entropy(u, target, reduction="none", backend=b),
            lambda u, b: LF.cross_entropy(u, target, label_smoothing=0.1, backend=b),
            lambda u, b: LF.lpl_cross_entropy(u, target, steps, step_size=0.1, backend=b),
            lambda u, b: LF.binary_cross_entropy_with_logits(u, labels, backend=b),
            lambda u, b: LF.lpl_binary_cross_entropy_with_logits(
                u, labels, steps, step_size=0.1, backend=b
            ),
        ):
            found = []
            for u in (logits, values):
                leaf = u.detach().requires_grad_()
                loss = run(leaf, backend)
                found.append([loss.detach(), *torch.autograd.grad(loss.sum(), leaf)])
            assert _same(*found)


@pytest.mark.large
@pytest.mark.parametrize("form", ["inplace", "auto"])
def test_more_than_two_to_the_31_elements(form: str) -> None:
    """Of logits and gradients that are all there, in one place (4.3 GB) or in two."""
    n, classes = 8200, 262_145
    input = torch.zeros(n, classes, dtype=torch.bfloat16)
    target = torch.arange(n) % classes
    input[torch.arange(n), target] = 3.0
    exact = input[:1].double().requires_grad_()
    seen = []

    class Made(torch.autograd.Function):
        """Logits of which nobody keeps more than the loss does."""

        @staticmethod
        def forward(ctx: Any, one: Tensor) -> Tensor:
            return input

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(grad)
            return grad.new_zeros(())

    logits = Made.apply(torch.ones((), requires_grad=True))
    loss = LF.cross_entropy(logits, target, reduction="none", gradient=form, backend="cpp")
    loss.sum().backward()
    (grad,) = seen
    assert (grad.data_ptr() == input.data_ptr()) == (form == "inplace")
    expected = F.cross_entropy(exact, target[:1])
    right = torch.autograd.grad(expected, exact)[0][0]
    torch.testing.assert_close(loss.double(), expected.detach().expand(n), rtol=1e-6, atol=0)
    for row in (0, n // 2, n - 1):
        got = grad[row].double()
        assert abs(float(got[target[row]] / right[0]) - 1) < 1e-2
        got[target[row]] = got[(int(target[row]) + 1) % classes]
        assert float((got / right[1] - 1).abs().max()) < 1e-2


def test_offsets_have_64_bits() -> None:
    """No product with a stride, and none of rows and classes, is formed in 32."""
    narrow = re.compile(
        r"\b(?:int|int32_t|uint32_t)\s+\w+\s*=[^;]*(?:row_stride|stride|\bn \* |\bi \* )"
    )
    for source in sorted((ROOT / "csrc" / "cpu").iterdir()):
        for line in source.read_text().splitlines():
            assert "threads" in line or not narrow.search(line), f"{source.name}: {line}"


def _dtypes(backend: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """By name a loss of logits of `dtype`, and leaves; numbers beside them are float32."""
    d = Draw(6, 9, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def leaf(values: Tensor, to: torch.dtype = wide) -> Tensor:
        return values.to(to).requires_grad_()

    input = leaf(d.input(), dtype)
    yield "plain", LF.cross_entropy(input, d.labels(), backend=backend), [input]
    tables = {m: leaf(getattr(d.tables(), m)) for m in ("scale", "offset", "margin")}
    given = Perturbation(**tables)
    loss = LF.cross_entropy(input, d.labels(), perturbation=given, backend=backend)
    yield "tables", loss, [input, *tables.values()]
    steps = d.steps()
    loss = LF.lpl_cross_entropy(input, d.labels(), steps, step_size=0.1, backend=backend)
    yield "learned", loss, [input]
    y = (d.uniform(6, 9) < 0.3).to(dtype)
    if backend not in BACKENDS or has_multilabel(backend):
        yield "labels", LF.binary_cross_entropy_with_logits(input, y, backend=backend), [input]
    if backend == REFERENCE:
        soft, weight = leaf(d.dense(), dtype), leaf(d.uniform(9))
        yield "dense", LF.cross_entropy(input, soft, weight, backend=backend), [input, soft, weight]
        of_rows = leaf(d.uniform(6))
        loss = LF.cross_entropy(input, d.labels(), sample_weight=of_rows, backend=backend)
        yield "weights of rows", loss, [input, of_rows]
        y = leaf(d.uniform(6, 9), dtype)
        yield "soft", LF.binary_cross_entropy_with_logits(input, y, backend=backend), [input, y]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_dtypes_of_losses_and_gradients(backend: str, dtype: torch.dtype, autocast: bool) -> None:
    """Of every input its own, of a loss float32 (float64), whatever autocast would like."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        for name, loss, leaves in _dtypes(backend, dtype):
            assert loss.dtype == (dtype if dtype == torch.float64 else torch.float32), name
            for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
                assert grad.dtype == leaf.dtype, name
                assert grad.isfinite().all(), name


def test_16_bit_losses_are_summed_in_32(backend: str) -> None:
    """A sum of 4000 losses of 0.69 would stand still in bfloat16 at 256, in float16 be coarse."""
    n = 300 if backend in SLOW else 4000
    for dtype in (torch.bfloat16, torch.float16):
        input = torch.zeros(n, 2, dtype=dtype, requires_grad=True)
        target = torch.zeros(n, dtype=torch.int64)
        loss = LF.cross_entropy(input, target, reduction="sum", backend=backend)
        torch.testing.assert_close(loss.item(), n * 0.6931471805599453, rtol=1e-6, atol=0)
        # a table's gradient is a sum over rows
        offset = torch.zeros(2, requires_grad=True)
        given = Perturbation(offset=offset)
        loss = LF.cross_entropy(input, target, perturbation=given, reduction="sum", backend=backend)
        gradient = torch.autograd.grad(loss, offset)[0]
        torch.testing.assert_close(gradient, torch.tensor([-n / 2, n / 2]), rtol=1e-6, atol=0)


def test_a_mean_of_nothing_is_nan_as_in_torch(backend: str) -> None:
    """Of no row that counts, and of no row; the gradient is 0."""
    for n in (3, 0):
        input = torch.randn(n, 5, requires_grad=True)
        target = torch.full((n,), -100)
        for run in (
            lambda u, y, r: LF.cross_entropy(u, y, reduction=r, backend=backend),
            lambda u, y, r: LF.lpl_cross_entropy(
                u, y, torch.ones(5).int(), step_size=0.1, reduction=r, backend=backend
            ),
        ):
            assert run(input, target, "mean").isnan() == F.cross_entropy(input, target).isnan()
            assert run(input, target, "sum") == 0
            assert not torch.autograd.grad(run(input, target, "mean"), input)[0].any()
            assert run(input, target, "none").tolist() == [0.0] * n


@pytest.mark.parametrize("shape", [(0, 3), (0, 700), (3, 0)], ids=str)
def test_labels_of_no_row_or_no_class(backend: str, shape: tuple[int, int]) -> None:
    """Nothing is read, nothing dies."""
    _there(backend, "labels")
    classes = shape[1]
    input = torch.zeros(shape, requires_grad=True)
    steps = torch.ones(classes, dtype=torch.int64)
    for target in (torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)):
        for reduction in ("none", "sum"):
            given = {"reduction": reduction, "backend": backend}
            for loss in (
                LF.binary_cross_entropy_with_logits(input, target, **given),
                LF.lpl_binary_cross_entropy_with_logits(
                    input, target, steps, step_size=0.1, **given
                ),
            ):
                assert loss.sum() == 0
                assert torch.autograd.grad(loss.sum(), input)[0].shape == shape
        for delta in LF.lpl_binary_perturbation(
            input, target, steps, step_size=0.1, backend=backend
        ):
            assert delta.tolist() == [0.0] * classes


def test_the_version_is_that_of_the_changelog_and_of_the_tag() -> None:
    """The last that the changelog has released, or what its unreleased part becomes; a tag of this
    commit is it."""
    version = lpl_fused.__version__
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## \[([^\]]*)\]", text, re.M)
    assert heads, "CHANGELOG.md has no section"
    released = [head for head in heads if head != "Unreleased"]
    assert released == sorted(released, key=Version, reverse=True)
    if heads[0] != "Unreleased":
        assert version == heads[0]
    elif released:
        assert Version(version) >= Version(released[0])
    with suppress(PackageNotFoundError):
        assert Version(installed("lpl_fused")).public == version
    asked = subprocess.run(
        ["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    for tag in re.findall(r"^v(\d\S*)$", asked.stdout, re.M):
        assert tag == version == heads[0]


def test_every_promise_names_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    named, file = 0, ""
    for found in re.finditer(r"`(test_\w+\.py|…)(?:::(\w+))?", text):
        file = found[1] if found[1] != "…" else file
        source = (ROOT / "tests" / file).read_text()
        assert not found[2] or f"def {found[2]}(" in source, f"{file}::{found[2]}"
        named += 1
    assert named > 60
    numbers = re.findall(r"^\| (R\d[^|]*) \|", text, re.M)
    assert [n for line in numbers for n in line.split(", ")] == [f"R{k}" for k in range(1, 34)]


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.endurance
def test_20000_steps_of_changing_shapes_keep_memory_flat(one_thread: None) -> None:
    """Losses of all kinds; whatever a backend keeps from one call to the next must not grow."""
    kinds = (
        lambda u, y, c: LF.cross_entropy(u, y),
        lambda u, y, c: LF.cross_entropy(u, y, label_smoothing=0.1, reduction="none").sum(),
        lambda u, y, c: LF.cross_entropy(u, y, perturbation=Perturbation(offset=torch.zeros(c))),
        lambda u, y, c: LF.lpl_cross_entropy(u, y, torch.ones(c).int(), step_size=0.1),
        lambda u, y, c: LF.binary_cross_entropy_with_logits(u, F.one_hot(y, c).float()),
        lambda u, y, c: LF.lpl_binary_cross_entropy_with_logits(
            u, F.one_hot(y, c).float(), torch.ones(c).int(), step_size=0.1
        ),
    )
    generator = torch.Generator().manual_seed(0)

    def draw(most: int) -> int:
        return int(torch.randint(1, most, (), generator=generator))

    seen = []
    for step in range(20_000):
        n, classes = draw(64), draw(600)
        dtype = (torch.float32, torch.bfloat16)[step % 2]
        input = torch.randn(n, classes, generator=generator).to(dtype).requires_grad_()
        target = torch.randint(classes, (n,), generator=generator)
        kinds[step % len(kinds)](input, target, classes).backward()
        if step % 2000 == 1999:
            gc.collect()
            seen.append(_resident())
    # after a tenth of the way everything has been loaded
    assert max(seen[2:]) - seen[1] < 16 << 20, [size >> 20 for size in seen]
