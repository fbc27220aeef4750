"""The GPU kernels take no more instructions than on record: no device, no noise."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import device_cost
from benchmarks.device_cost import Kernel, Use

Once = Callable[[str, Callable[[Path], None]], Path]
ARCHITECTURES = [
    arch if arch == "90" else pytest.param(arch, marks=pytest.mark.architectures)
    for arch in device_cost.ARCHITECTURES
]
RENEW = (
    "python -m benchmarks.device_cost --record --arch {} makes what is counted now the record: say "
    "why in the commit"
)


def kernel(name: str = "k", **changes: object) -> Kernel:
    numbers: dict[str, object] = {
        **{"dtype": "bf16", "arch": "90", "instructions": 10.0, "mufu": 1.0, "rare": 0.0},
        **{"memory": 4.0, "l2": 6.0, "registers": 32, "shared": 0, "local": 0, "threads": 256},
        **{"blocks": 8, "writes": 2.0},
    }
    return Kernel(name=name, **{**numbers, **changes})  # type: ignore[arg-type]


def needs(backend: str) -> None:
    if reason := device_cost.unavailable(backend):
        pytest.skip(reason)


def compare(backend: str, arch: str, found: dict[str, list[float]]) -> None:
    key = device_cost.compiler(backend, arch)
    known = device_cost.baseline(key)
    if not known:
        pytest.skip(f"no counts on record for {key}")
    assert set(found) == set(known), RENEW.format(arch)
    grown = device_cost.grown(found, known)
    assert not grown, f"{key}: {grown}; {RENEW.format(arch)}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_cuda_kernel_takes_five_per_cent_more_than_on_record(once: Once, arch: str) -> None:
    needs("cuda")
    folder = once(f"cuda-{arch}", functools.partial(device_cost.compile_cuda, arch))
    objects = (folder / name for name in device_cost.COUNTED)
    kernels = list(device_cost.object_kernels(arch, *objects))
    uses = device_cost.cuda_uses(kernels)
    # what the table of forms names is there: a kernel that was renamed is missed
    assert {use.form for use in uses} == set(device_cost.CUDA)
    for form, both in device_cost.CUDA.items():
        for pattern in (*both[0], *both[1]):
            dtype = "fp32" if pattern.startswith("32:") else "bf16"
            assert device_cost.of_pattern(kernels, pattern, dtype), (form, pattern)
    found = device_cost.counts(uses, kernels)
    # the usual way of a kernel is one of its ways
    for what, _, dearest, usual, _, _ in device_cost.budget_rows(found):
        assert 0 < float(usual) <= 1.05 * float(dearest), what
    compare("cuda", arch, found)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_triton_kernel_takes_five_per_cent_more_than_on_record(once: Once, arch: str) -> None:
    needs("triton")
    folder = once(f"launches-{arch}", functools.partial(device_cost.compile_triton, arch))
    uses = device_cost.triton_uses(folder, arch)
    found = {form.name: form for form in device_cost.forms(uses) if form.dtype == "bf16"}
    plain = found["plain; upstream 1"]
    # an exponential a logit for the sum and one for the gradient, logits read and gradient written
    assert 1.9 < plain.sum("mufu") < 3
    assert plain.sum("memory") == pytest.approx(4, rel=0.05)
    assert found["plain; any upstream"].sum("instructions") > plain.sum("instructions")
    compare("triton", arch, device_cost.counts(uses))


def test_growth_is_told_from_what_is_near() -> None:
    known = {"a": [10.0, 1.0, 32], "b": [10.0, 1.0, 32], "c": [10.0, 1.0, 32]}
    found = {"a": [10.4, 1.0, 32], "b": [10.6, 1.0, 32], "c": [5.0, 1.0, 32], "new": [1.0, 0, 8]}
    assert device_cost.grown(found, known) == {"b": "10.0 → 10.6 instructions a logit"}


def test_records_belong_to_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_cost, "BASELINE", tmp_path / "device_cost.json")
    device_cost.record("one", {"a": [1.0, 0.5, 8]})
    device_cost.record("other", {"a": [2.0, 0.5, 8]})
    assert device_cost.baseline("one") == {"a": [1.0, 0.5, 8]}
    assert device_cost.baseline("third") == {}


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "blocks"),
    [
        (32, 0, 256, 8),  # 2048 threads
        (64, 0, 256, 4),  # 65,536 registers
        (33, 0, 256, 6),  # given out by eights
        (32, 66_000, 256, 3),  # 228 KiB, of which each block keeps one
        (16, 0, 32, 32),
        (255, 0, 512, 0),  # no room at all
    ],
)
def test_blocks_beside_each_other(registers: int, shared: int, threads: int, blocks: int) -> None:
    assert device_cost.beside(registers, shared, threads, "90") == blocks


def test_the_model_takes_what_lasts_longest() -> None:
    logits = 1e9
    moving = kernel(memory=42.0)
    assert moving.seconds(logits, 4.2e12) == pytest.approx(0.01)
    assert moving.seconds(logits, 2.1e12) == pytest.approx(0.02)
    counting = kernel(instructions=1000.0)
    peak = 132 * 128 * 1.98e9
    assert counting.seconds(logits, 4.2e12) == pytest.approx(1e12 / peak / 0.7)
    crowded = kernel(instructions=1000.0, blocks=2)
    assert crowded.seconds(logits, 4.2e12) == pytest.approx(1e12 / peak / 0.5)
    assert kernel(mufu=100.0).seconds(logits, 4.2e12) == pytest.approx(1e11 / peak * 8)


def test_forms_know_what_is_idle() -> None:
    """Where the upstream gradient is 1 nothing is scaled; a row alone in its class has no group."""
    uses = [
        Use(device_cost.ALONE, "bf16", False, kernel("solve")),
        Use(device_cost.ALONE, "bf16", False, kernel("move_tail", instructions=500.0)),
        Use(device_cost.ALONE, "bf16", True, kernel("rescale_rows", instructions=3.0)),
        Use("by statistics", "bf16", False, kernel("sums", writes=0.0)),
        Use("by statistics", "bf16", True, kernel("gradient")),
    ]
    found = {form.name: form for form in device_cost.forms(uses)}
    assert found[f"{device_cost.ALONE}; upstream 1"].sum("instructions") == 10
    assert found[f"{device_cost.ALONE}; any upstream"].sum("instructions") == 13
    assert found[f"{device_cost.ALONE}; any upstream"].launches == 3
    assert found["by statistics"].sum("instructions") == 20


def test_kernels_that_no_form_names_are_shown() -> None:
    form = "plain, a margin, φ"
    forward, backward = device_cost.CUDA[form]
    patterns = [name.split(":")[-1] for name in (*forward, *backward) if not name.startswith("32")]
    known = [
        kernel(name.replace("<T", "<__nv_bfloat16"), dtype="bf16" if "<T" in name else "fp32")
        for name in patterns
    ]
    new = kernel("row_kernel<NewBody<float> >", dtype="fp32")
    uses = device_cost.cuda_uses([*known, new])
    assert [use.kernel for use in uses if use.form == form] == known
    assert device_cost.unnamed([*known, new], uses) == [new]
    # of a form whose kernels are not all there nothing is said
    assert device_cost.cuda_uses([known[0], new]) == []


def test_the_guide_has_the_budgets_on_record() -> None:
    (key,) = (key for key in json.loads(device_cost.BASELINE.read_text()) if "CUDA sm_90" in key)
    table = device_cost.budget_table(device_cost.baseline(key))
    assert len(table.splitlines()) == 2 + len(device_cost.BUDGETS)
    assert table in device_cost.GUIDE.read_text()
    assert "missed" in device_cost.budget_table(
        {name: [99.0] for name in device_cost.baseline(key)}
    )


def test_the_page_says_that_times_are_predicted() -> None:
    uses = [Use("plain", "bf16", False, kernel())]
    rows = list(device_cost.form_rows(device_cost.forms(uses)))
    page = device_cost.markdown([("A compiler", device_cost._COLUMNS, rows)])
    assert "**predicted**, not measured" in page
    assert "| plain; upstream 1 | bf16 | 10.0 | 1.0 |" in page
    for backend in ("cuda", "triton"):
        assert device_cost.page_of(backend).exists()
