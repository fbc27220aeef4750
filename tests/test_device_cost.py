"""The GPU kernels take no more instructions than on record: no device, no noise."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from test_loop_cost import code

from benchmarks import device_cost, kernel_compile, kernel_cost, kernel_forms, sass
from benchmarks.device_cost import Form, Use
from benchmarks.kernel_cost import Kernel

Once = Callable[[str, Callable[[Path], None]], Path]
ARCHITECTURES = [
    arch if arch == "90" else pytest.param(arch, marks=pytest.mark.architectures)
    for arch in kernel_compile.ARCHITECTURES
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
    if reason := kernel_compile.unavailable(backend):
        pytest.skip(reason)


def moves_what_it_must(form: Form) -> None:
    """Logits read and gradients written, once a sweep and not more often."""
    size = kernel_forms.SIZES[form.dtype]
    least = (
        4 if form.name.endswith("any upstream") else 2 if "upstream" in form.name else 3
    ) * size
    if form.name.startswith("LPL") and form.name.endswith("with stats"):
        least += size  # what their steps have left has no entropy
    most = math.inf if form.name.startswith("BCE") else least
    if form.name.startswith("everything"):
        most += max(size, 4)  # gradients of what the logits were perturbed to
    if form.name.startswith(("norm (", "penalty (")):
        most += size  # Triton measures a row by a launch of its own
    assert 0.99 * least <= form.sum("memory") <= 1.1 * most, form.name


def compare(backend: str, arch: str, found: dict[str, list[float]]) -> None:
    key = kernel_compile.compiler(backend, arch)
    known = device_cost.baseline(key)
    if not known:
        pytest.skip(f"no counts on record for {key}")
    assert set(found) == set(known), RENEW.format(arch)
    grown = device_cost.grown(found, known)
    assert not grown, f"{key}: {grown}; {RENEW.format(arch)}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_cuda_kernel_takes_five_per_cent_more_than_on_record(once: Once, arch: str) -> None:
    needs("cuda")
    folder = once(f"cuda-{arch}", functools.partial(kernel_compile.compile_cuda, arch))
    objects = (folder / name for name in kernel_compile.COUNTED)
    kernels = list(kernel_cost.object_kernels(arch, *objects))
    uses = device_cost.cuda_uses(kernels)
    # what the table of forms names is there: a kernel that was renamed is missed
    assert {use.form for use in uses} == set(kernel_forms.CUDA)
    for form, both in kernel_forms.CUDA.items():
        for pattern in (*both[0], *both[1]):
            dtype = "fp32" if pattern.startswith("32:") else "bf16"
            assert device_cost.of_pattern(kernels, pattern, dtype), (form, pattern)
    assert not device_cost.too_low(kernels)
    for form in device_cost.forms(uses):
        moves_what_it_must(form)
    found = device_cost.counts(uses, kernels)
    # the usual way of a kernel is one of its ways
    for what, _, dearest, usual, _, _ in device_cost.budget_rows(found):
        assert 0 < float(usual) <= 1.05 * float(dearest), what
    compare("cuda", arch, found)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_triton_kernel_takes_five_per_cent_more_than_on_record(once: Once, arch: str) -> None:
    needs("triton")
    folder = once(f"launches-{arch}", functools.partial(kernel_compile.compile_triton, arch))
    uses = device_cost.triton_uses(folder, arch)
    assert not device_cost.too_low(use.kernel for use in uses)
    for form in device_cost.forms(uses):
        moves_what_it_must(form)
    found = {form.name: form for form in device_cost.forms(uses) if form.dtype == "bf16"}
    plain = found["plain; upstream 1"]
    # an exponential a logit for the sum and one for the gradient, logits read and gradient written
    assert 1.9 < plain.sum("mufu") < 3
    assert plain.sum("memory") == pytest.approx(4, rel=0.05)
    assert found["plain; any upstream"].sum("instructions") > plain.sum("instructions")
    compare("triton", arch, device_cost.counts(uses))


def test_growth_is_told_from_what_is_near() -> None:
    known = {"a": [10.0, 1.0, 32], "b": [10.0, 1.0, 32], "c": [10.0, 1.0, 32], "row": [0.004, 0, 8]}
    found = {"a": [10.4, 1.0, 32], "b": [10.6, 1.0, 32], "c": [5.0, 1.0, 32], "new": [1.0, 0, 8]}
    found["row"] = [0.005, 0, 8]  # a row's own numbers, rounded
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
    assert kernel_cost.beside(registers, shared, threads, "90") == blocks


def test_of_what_excludes_each_other_nothing_is_added_up() -> None:
    """Zeros of rows that count nothing are written instead of gradients, not beside them; and what
    a kernel writes into lists is none of its logits, however many there might be."""
    sweep = """L: IADD3 R2, R2, R7, RZ
        LDG.E.128 R8, desc[UR4][R2.64]
        FFMA R8, R8, R9, R10
        STG.E.128 desc[UR4][R2.64], R8
        @!P0 BRA @L"""
    zeros = """Z: IADD3 R2, R2, R7, RZ
        STG.E.128 desc[UR4][R2.64], RZ
        @!P0 BRA @Z"""
    resources = sass.Resources(32, 0, 0)

    def of(name: str, text: str) -> Kernel:
        kinds = {"arch": "90", "dtype": "bf16"}
        return kernel_cost.of_code(name, code(text), resources, threads=256, logits=1e6, **kinds)

    name = "piece_kernel<GradientsBody<__nv_bfloat16, 1u> >"
    both = of(name, f"{sweep}\n{zeros}\nEXIT")
    alone = of(name, f"{sweep}\nEXIT")
    assert both.memory == alone.memory == pytest.approx(4)
    assert both.l2 == alone.l2
    assert both.instructions == pytest.approx(alone.instructions, rel=1e-3)
    # by themselves they are what there is to do
    assert of(name, f"{zeros}\nEXIT").memory == pytest.approx(2)
    # written twice by the code, but the gradient is there once
    twice = sweep.replace("L:", "M:").replace("@L", "@M").replace("FFMA", "FMUL")
    assert of(name, f"{sweep}\n{twice}\nEXIT").memory == pytest.approx(4)
    lists = of("row_kernel<LearnedStatisticsBody<__nv_bfloat16, 0u> >", f"{sweep}\nEXIT")
    assert (lists.memory, lists.writes) == (pytest.approx(2), 0)


@pytest.mark.parametrize(
    ("name", "size", "bytes"),
    [
        ("row_kernel<RowBody<__nv_bfloat16, 0u> >", 2, 2),
        ("row_kernel<RowBody<__nv_bfloat16, 63u> >", 2, 6),
        ("row_kernel<RowBody<double, 63u> >", 8, 16),
        ("row_kernel<InTurns<GroupDeltaBody<__half, 0u> > >", 2, 4),
        ("warp_kernel<RowStepsBody<float> >", 4, 0),
        ("team_kernel<BinaryTileBody<float, Any, true> >", 4, 8),
        ("team_kernel<BinaryTileBody<float, Bool, false> >", 4, 4),
        ("team_kernel<BinarySidedBody<double> >", 8, 16),
        ("forward", 2, math.inf),
    ],
)
def test_what_kernels_write_of_each_logit(name: str, size: int, bytes: float) -> None:
    assert kernel_cost.written_bytes(name, size) == bytes


def test_what_is_not_found_is_said_aloud() -> None:
    found, lost = kernel("found"), kernel("lost", lost=411)
    assert device_cost.too_low([found, lost]) == {
        "lost": "no way found to 411 instructions: the counts are too low"
    }


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
    """Where the upstream gradient is 1 nothing is scaled; a row alone in its class has no group;
    steps that one leg does leave nothing to others."""
    uses = [
        Use(kernel_forms.ALONE, "bf16", False, kernel("solve")),
        Use(kernel_forms.ALONE, "bf16", False, kernel("move_tail", instructions=500.0)),
        Use(kernel_forms.ALONE, "bf16", True, kernel("rescale_rows", instructions=3.0)),
        Use("by statistics", "bf16", False, kernel("sums", writes=0.0)),
        Use("by statistics", "bf16", True, kernel("gradient")),
        Use("steps", "bf16", False, kernel("binary_moments", instructions=7.0)),
        Use("steps", "bf16", False, kernel("binary_moments", instructions=5.0), idle=True),
    ]
    found = {form.name: form for form in device_cost.forms(uses)}
    assert found[f"{kernel_forms.ALONE}; upstream 1"].sum("instructions") == 10
    assert found[f"{kernel_forms.ALONE}; any upstream"].sum("instructions") == 13
    assert found[f"{kernel_forms.ALONE}; any upstream"].launches == 3
    assert found["by statistics"].sum("instructions") == 20
    assert found["steps; upstream 1"].sum("instructions") == 7
    assert found["steps; upstream 1"].launches == 2


def test_kernels_that_no_form_names_are_shown() -> None:
    form = "plain, a margin, φ"
    forward, backward = kernel_forms.CUDA[form]
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
    assert len(table.splitlines()) == 2 + len(kernel_forms.BUDGETS)
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
