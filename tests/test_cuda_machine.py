"""What only a device would show of the CUDA backend, as far as its host can: that faults of threads
who work together are seen, how rows are dealt to blocks, and that a call leaves nothing behind."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases
from multilabel_cases import binary_cases, binary_lpl_cases
from test_cuda import ON_HOST, backend

from lpl_fused import testing

pytestmark = ON_HOST
KIB = 1024
FAULTS = ["none", "lanes", "crews", "blocks", "ended", "returned", "diverged", "beside", "waits"]


def library() -> Any:
    return ctypes.CDLL(backend._native().__file__)


def told(fault: str, mixed: bool = False) -> tuple[str, list[int]]:
    """What the host says of a fault, or what threads tell each other in spite of it."""
    on_host = library()
    on_host.faulty.restype = ctypes.c_char_p
    seen = (ctypes.c_int * 16)()
    said = on_host.faulty(FAULTS.index(fault), seen)
    return said.decode(), list(seen)


@pytest.fixture
def turned() -> Iterator[Any]:
    """Turns the order of threads round, or mixes it."""
    count = 0

    def turn() -> None:
        nonlocal count
        count += 1
        library().turn_order()

    yield turn
    if count % 2:
        library().turn_order()


def test_who_waits_as_asked_sees_the_same_in_every_order(turned: Any) -> None:
    expected = "", [15 - rank for rank in range(16)]
    for _ in range(6):
        assert told("none") == expected
        turned()


@pytest.mark.parametrize("fault", ["lanes", "crews", "blocks", "ended"])
def test_a_barrier_that_is_missing_shows_in_some_order(fault: str, turned: Any) -> None:
    found = []
    for _ in range(4):
        said, seen = told(fault)
        assert said == ""
        found.append(seen)
        turned()
    assert any(one != found[0] for one in found)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("returned", "different barriers"),
        ("diverged", "wait for each other"),
        ("beside", "beside its memory"),
        ("waits", "not waited for"),
    ],
)
def test_what_no_device_says_the_host_does(fault: str, said: str) -> None:
    assert said in told(fault)[0]


def planned(
    chip: int, clusters: bool, own: int, threads: int, n: int, size: int, staged: bool
) -> list[int] | None:
    """(blocks, threads, bytes of the stage, of any stage) of a row, None if a grid has not so many."""
    found = (ctypes.c_int64 * 4)()
    numbers = ctypes.c_int64(chip), clusters, ctypes.c_int64(own), threads, ctypes.c_int64(n)
    on_host = library()
    on_host.row_plan.restype = ctypes.c_bool
    return list(found) if on_host.row_plan(*numbers, ctypes.c_int64(size), staged, found) else None


@pytest.mark.parametrize(
    ("chip", "clusters"), [(99, False), (163, False), (227, True), (99, True)], ids=str
)
@pytest.mark.parametrize("own", [2016, 2016 + 512 * 8, 2016 + 512 * 12])
@pytest.mark.parametrize("most", [128, 256])
def test_a_block_asks_for_no_more_than_a_chip_has(
    chip: int, clusters: bool, own: int, most: int
) -> None:
    """Rows of every length about each bound: what is staged holds the row wherever it begins, and
    with what a kernel has for itself, and 128 bytes to lie as asked, is no more than a block may
    have."""
    room = chip * KIB
    sizes = {16, 2000, 64000, 100514, 256512, 1 << 22, (1 << 31) - 2}
    for blocks in (1, 2, 4, 8):
        for bound in (room, room - own, (room + KIB) // 2 - KIB - own):
            sizes |= {blocks * bound + by for by in range(-400, 64, 2)}
    for size, n in itertools.product(sorted(sizes), (1, 8192)):
        plan = planned(room, clusters, own, most, n, size, True)
        assert plan is not None
        blocks, threads, stage, allowed = plan
        assert blocks in (1, 2, 4, 8)
        assert clusters or blocks == 1
        assert threads in (32, 64, 128, 256)
        assert threads <= (128 if blocks > 1 else most)
        assert stage <= allowed <= room - own - 128
        assert stage % 16 == 0
        if stage:
            assert blocks * stage >= size + 15
        else:  # one that finds no room is read again
            assert blocks == 1
            assert size + 31 > (8 if clusters else 1) * allowed


def test_a_grid_has_no_more_rows_than_it_can() -> None:
    for clusters, size in ((True, 1 << 20), (False, 2000)):
        blocks = planned(227 * KIB, clusters, 2016, 256, 1, size, True)[0]  # type: ignore[index]
        most = (1 << 31) // blocks - 1
        assert planned(227 * KIB, clusters, 2016, 256, most, size, True) is not None
        assert planned(227 * KIB, clusters, 2016, 256, most + 1, size, True) is None


FORMS = {
    "plain": cross_entropy_cases()["ignore"],
    "everything": cross_entropy_cases()["penalty-everything"],
    "lpl": lpl_cases()["unique"],
    "lpl-groups": lpl_cases()["groups-normalized"],
    "lpl-smoothed": lpl_cases()["smoothed-focal-weights"],
    "labels": binary_cases()["missing-everything"],
    "labels-lpl": binary_lpl_cases()["missing-everything"],
    "labels-lpl-far": binary_lpl_cases()["far"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_may_be_launched_again(form: str) -> None:
    """All kernels of a call find what they themselves have left: the same bits."""
    case = FORMS[form](Draw(6, 45, seed=4)).to(torch.float32)
    if form.startswith("lpl"):  # some classes of whose rows are solved, some left
        case = replace(case, keywords=case.keywords | {"step_size": 0.5})
    found = testing.evaluate(case, "cuda")
    library().use_replay(True)
    try:
        again = testing.evaluate(case, "cuda")
    finally:
        library().use_replay(False)
    assert torch.equal(found.loss, again.loss)
    for name, grad in found.grads.items():
        assert torch.equal(grad, again.grads[name])
