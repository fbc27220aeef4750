"""Launch parameters: plain functions of shape, dtype and options, so that the same call always runs
the same code. Chosen for registers (no kernel spills, as the tests compile them) and for bytes in
flight; not tuned on a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ...paths import LEARNING, Path
from ...phi import LOG
from ...problem import BinaryProblem, Problem
from ...tracing import PLAIN

ENOUGH = 1024  # programs, for every multiprocessor to have some


Asked = TypeVar("Asked", Problem, BinaryProblem)
Made = TypeVar("Made")


def by_form(
    make: Callable[[Asked], Made], besides: Callable[[], tuple[Any, ...]] = tuple
) -> Callable[[Asked], Made]:
    """`make`, looked up for problems of a form it was made for: training repeats them. What it
    gives nobody changes. `besides`: what else it depends on."""
    kept: dict[Any, Made] = {}

    @functools.wraps(make)
    def known(problem: Asked) -> Made:
        input, target, *parts, options = problem
        if type(input) not in PLAIN and type(input).__torch_dispatch__ is not _NO_DISPATCH:
            return make(problem)  # of a trace, which has no numbers yet
        rows = input.shape, input.stride(), input.dtype, target.stride(), target.dtype
        form = (*rows, *map(type, parts), options, ENOUGH, *besides())
        found = kept.get(form)
        if found is None:
            if len(kept) >= _MOST_FORMS:
                kept.clear()
            found = kept[form] = make(problem)
        return found

    return known


_MOST_FORMS = 256
_NO_DISPATCH = Tensor.__torch_dispatch__  # subclasses that have this hold numbers as Tensor does


def power_of_two(n: int, least: int, most: int) -> int:
    if type(n) is int:
        return min(most, max(least, 1 << (n - 1).bit_length()))
    # of a trace: by comparisons, so that what is compiled is for all sizes between two powers
    found = least
    while found < most and found < n:
        found *= 2
    return min(most, found)


def meta(block: int, rows: int = 1, *, each: int = 8, ample: bool = False) -> dict[str, Any]:
    """`each` columns for a thread, more where 16 warps are not enough.

    Without `ample` registers ptxas rather spills a few bytes than let one block less on a
    multiprocessor; with it what needs no more than it had anyway may also get more.
    """
    warps = max(1, min(16, rows * block // (32 * each)))
    found: dict[str, Any] = {"BLOCK": block, "num_warps": warps}
    if ample and torch.version.hip is None:
        found["maxnreg"] = min(255, 65536 // (32 * warps))
    return found


# cross-entropy of labels and nothing else, as far as a logit is concerned
_PLAIN = Path(
    "triton, plain rows",
    Problem,
    (
        *("reduction", "normalizer", "ignore_index"),
        *("phi", "phi_parameter", "z_loss", "inverse_temperature"),
    ),
)


# … and that, under a perturbation that it learns
_ALONE = Path("triton, plain gradients", Problem, (*_PLAIN.features, *LEARNING))


def _heavy(problem: Problem) -> bool:
    """More arithmetic per logit than an exponential."""
    options = problem.options
    power = options.norm_p not in (0, 1, 2, math.inf)
    return options.softcap > 0 or power or (problem.spread and options.phi != LOG)


def _crowded(problem: Problem) -> bool:
    """A penalty beside that: more registers per logit than sixteen warps leave for a sweep."""
    return problem.options.penalty > 0 and _heavy(problem)


@functools.lru_cache(maxsize=64)
def filling_meta(classes: int) -> dict[str, Any]:
    """For a matrix that is but read and written."""
    return meta(power_of_two(classes, 16, 2048))


@functools.lru_cache(maxsize=64)
def counting_meta(rows: int) -> dict[str, Any]:
    """For one program that counts rows: all loads at once that it can have on their way."""
    return meta(power_of_two(rows, 32, 4096))


def lane_of(input: torch.Tensor) -> int:
    """Logits of a lane: as many as 16 bytes hold, what a thread reads at once."""
    return 16 // input.element_size()


def _places(problem: Problem) -> int:
    """How many places a row may take, counted from the multiple of 16 bytes before it."""
    return problem.input.shape[1] + (lane_of(problem.input) - 1 if phased(problem.input) else 0)


def phased(input: torch.Tensor) -> bool:
    """Whether rows begin anywhere between two multiples of 16 bytes."""
    return input.stride(0) % lane_of(input) != 0


def _tuned(problem: Problem, block: int, each: int) -> dict[str, Any]:
    return meta(block, each=each, ample=not _PLAIN.serves(problem))


def _sweep(problem: Problem) -> dict[str, Any]:
    """For a program that reads a row block by block. Where there are rows enough for every
    multiprocessor four warps a row hide more of each other's waiting than sixteen do.
    """
    n = problem.input.shape[0]
    block, each, most = _block(problem)
    wider = min(most, 4 if n < 256 else 2 if n < 1024 else 1)
    ample = wider > 1 or not _PLAIN.serves(problem)
    return meta(power_of_two(_places(problem), 16, block * wider), each=each, ample=ample)


def _block(problem: Problem) -> tuple[int, int, int]:
    """(logits of a block, of a thread, by how much one may be wider), by what a logit takes."""
    if problem.input.dtype == torch.float64 or _crowded(problem):
        return 1024, 4, 1
    if _heavy(problem):
        return 1024, 8, 2
    # sixteen warps leave too few registers for tables
    return 2048, 16, 4 if _PLAIN.serves(problem) else 2


@by_form
def row_meta(problem: Problem) -> dict[str, Any]:
    """One block for a row that fits the registers, else a sweep over smaller blocks."""
    most = 4096 if _heavy(problem) else 8192
    if problem.input.dtype == torch.float64:
        most = 4096 if _PLAIN.serves(problem) else 1024 if _crowded(problem) else 2048
    places = _places(problem)
    if places > most:
        return {**_sweep(problem), "ONE_BLOCK": False}
    return {**_tuned(problem, power_of_two(places, 16, most), 8), "ONE_BLOCK": True}


@by_form
def sweep_meta(problem: Problem) -> dict[str, Any]:
    """As row_meta, for a sweep, however short the row."""
    return _sweep(problem)


@by_form
def block_meta(problem: Problem) -> dict[str, Any]:
    """For programs that have one block of one row each."""
    block, each, _ = _block(problem)
    n, places = problem.input.shape[0], _places(problem)
    if not phased(problem.input) and _ALONE.serves(problem):
        # what a program asks of its row costs as much as two to four logits of each thread
        block, each = 2 * block, 2 * each
        blocks = -(-places // (2 * block))
        ample = n * blocks >= 2 * ENOUGH and 10 * 2 * block * blocks <= 11 * places
        if ample:
            block, each = 2 * block, 2 * each
    return _tuned(problem, power_of_two(places, 16, block), each)


def blocks_of(problem: Problem, meta: dict[str, Any]) -> int:
    """How many blocks a row takes."""
    return -(-_places(problem) // int(meta["BLOCK"]))


@by_form
def solver_meta(problem: Problem) -> dict[str, Any]:
    """As row_meta; at most HEAD rivals take their steps one by one, ORDER terms stand for all
    others: with the share of head_share as many as make steps exact.
    """
    classes, double = problem.input.shape[1], problem.input.dtype == torch.float64
    found = dict(row_meta(problem))
    if not (found["ONE_BLOCK"] or double or _heavy(problem)):
        # power sums of half as many logits of a thread leave room for twice as many programs
        found["BLOCK"] //= 2
        if "maxnreg" in found and _ALONE.serves(problem):
            found["maxnreg"] = 80
    return {
        **found,
        "HEAD": head_of(classes),
        "ORDER": 8 if double else 6,
    }


def head_of(classes: int) -> int:
    return power_of_two(classes, 16, 512)


def steps_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """For the steps of rows, by the solver's; a warp for each, two where all heads are double."""
    head, order = meta["HEAD"], meta["ORDER"]
    warps = 2 if order == 8 and head == 512 else 1
    return {"HEAD": head, "FEW": min(32, head), "ORDER": order, "num_warps": warps}


def moved_meta(problem: Problem, meta: dict[str, Any]) -> dict[str, Any]:
    """For what is made of the steps, by the solver's."""
    found = {**block_meta(problem), "HEAD": meta["HEAD"], "ORDER": meta["ORDER"]}
    if "maxnreg" in found and meta["ORDER"] < 8 and _ALONE.serves(problem):
        found["maxnreg"] = 80  # which is enough, and leaves room for six programs
    return found


def gradients_meta(
    moved: dict[str, Any], plain: dict[str, Any], groups: GroupMeta | None
) -> dict[str, Any]:
    """For one kernel that does what three do, by theirs."""
    group = dict.fromkeys(("HEAD", "NODES", "ROWS", "BLOCK", "num_warps"), 0)
    if groups is not None:
        group = groups.move_groups
    warps = max(moved["num_warps"], group["num_warps"], plain["num_warps"] // 2)
    return {
        **{name: moved[name] for name in ("HEAD", "ORDER", "BLOCK")},
        **{"GROUP_HEAD": group["HEAD"], "NODES": group["NODES"]},
        **{f"GROUP_{name}": group[name] for name in ("ROWS", "BLOCK")},
        **{f"PLAIN_{name}": plain[name] for name in ("ROWS", "BLOCK")},
        "num_warps": warps,
        **({"maxnreg": min(255, 65536 // (32 * warps))} if torch.version.hip is None else {}),
    }


@by_form
def grouping_meta(problem: Problem) -> dict[str, Any]:
    n = problem.input.shape[0]
    rows, block = power_of_two(n, 1, 16), power_of_two(n, 16, 128)
    return {**meta(block, rows, each=16), "ROWS": rows}


def listing_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """For a kernel of which one program lists classes: rows that it looks at at once."""
    return {"LISTING": min(1024, 128 * int(meta["num_warps"]))}


class GroupForm(NamedTuple):
    """Of the solver of classes with several rows, what its memory is made for."""

    head: int  # exact classes
    nodes: int
    block: int  # columns of a chunk
    most: int  # … at most


def group_form(problem: Problem) -> GroupForm:
    classes, normalize = problem.input.shape[1], problem.options.normalize
    # a piece is four warps', each of which has all rows of its columns: what it adds up over rows
    # is in its registers, of which there are twice as many where steps are normalised
    most = (256 if _much(problem) else 512) if normalize else 1024
    return GroupForm(power_of_two(classes, 16, 256), 8, power_of_two(classes, 16, most), most)


def _much(problem: Problem) -> bool:
    """More registers for each logit of classes with several rows."""
    return _heavy(problem) or problem.rows is not None


class GroupMeta(NamedTuple):
    """For the solver of classes with several rows, by kernel."""

    rounds: int
    head: int  # exact classes
    nodes: int
    block: int  # columns of a chunk
    split_columns: dict[str, Any]
    move_tail: dict[str, Any]
    move_groups: dict[str, Any]


@by_form
def group_meta(problem: Problem) -> GroupMeta:
    """Three rounds bring the error below the tolerance where the dose is 5, and mostly where it is
    10; they are not needed where all classes are exact.
    """
    n, classes = problem.input.shape
    head, nodes, block, most = group_form(problem)
    rows = power_of_two(n, 2, 2 if _much(problem) else 4)
    tile = {**meta(block, rows, each=rows * most // 128, ample=True), "ROWS": rows}
    # the last of them takes the class's steps
    warps = tile["num_warps"]
    step_rows, few = power_of_two(n, 2, max(2, 512 * warps // head)), min(16, head)
    many = power_of_two(n, 2, step_rows * head // few)
    stepping = {"STEP_ROWS": step_rows, "FEW": few, "MANY": many}
    whole = {**tile, "HEAD": head, "NODES": nodes}
    kind = {"NORMALIZE": problem.options.normalize}
    verdicts = {"VERDICTS": power_of_two(n, 2, 32 * warps)}
    return GroupMeta(
        3 if classes > head else 1,
        head,
        nodes,
        block,
        {**whole, **kind, **stepping},
        {**whole, **kind, **stepping, **verdicts},
        whole,
    )


@by_form
def column_meta(problem: Problem) -> dict[str, Any]:
    few = problem.input.dtype == torch.float64 or _crowded(problem)
    block = power_of_two(problem.input.shape[1], 16, 1024 if few else 2048)
    return meta(block, each=4 if few else 8, ample=not _PLAIN.serves(problem))


@by_form
def plain_meta(problem: Problem) -> dict[str, Any]:
    """A tile of several rows for few classes, of one row for many."""
    n, classes = problem.input.shape
    much = _heavy(problem) or problem.input.dtype == torch.float64
    block = power_of_two(classes, 16, 1024 if much else 2048)
    rows = min(power_of_two(n, 1, 64), max(1, 2048 // block))
    return {**meta(block, rows, ample=True), "ROWS": rows}


def _binary_tile(problem: BinaryProblem, most: int) -> int:
    """Logits of a tile: fewer where each takes more registers."""
    heavy = problem.options.phi != LOG or problem.inverse_count is not None
    return most // (4 if problem.input.dtype == torch.float64 else 2 if heavy else 1)


def _binary_meta(problem: BinaryProblem, block: int, rows: int) -> dict[str, Any]:
    double = problem.input.dtype == torch.float64
    return {**meta(block, rows, each=4 if double else 8, ample=True), "ROWS": rows}


@by_form
def binary_tile_meta(problem: BinaryProblem) -> dict[str, Any]:
    """Tiles as wide as the classes allow; what is read of classes serves all tiles of a program."""
    n, classes = problem.input.shape
    each = lane_of(problem.input)
    together = problem.input.stride(0) == problem.target.stride(0) == classes
    if together and phased(problem.input) and classes >= 1024:
        block = 128 * each
        turns = _turns(n * classes, block, -(-n // each))
        return {**meta(block, each=each, ample=True), "ROWS": 1, **turns, "STEP": each}
    most = _binary_tile(problem, 2048)
    block = power_of_two(classes, 16, most)
    rows = min(power_of_two(n, 1, 64), max(1, most // block))
    turns = _turns(n * classes, block * rows, -(-n // rows))
    return {**_binary_meta(problem, block, rows), **turns, "STEP": 1}


@by_form
def binary_flat_meta(problem: BinaryProblem) -> dict[str, Any]:
    """For logits that need to know nothing of their row and their class: 16 bytes of a thread."""
    each, total = lane_of(problem.input), problem.input.numel()
    block = power_of_two(total, 16, 128 * each)
    found = meta(block, each=each, ample=True)
    if "maxnreg" in found and problem.options.phi == LOG and each > 2:
        found["maxnreg"] = 72  # which is enough, and leaves room for more programs
    return {**found, "ROWS": 1, **_turns(total, block, -(-total // block)), "STEP": 1}


def _turns(logits: int, tile: int, most: int) -> dict[str, Any]:
    """Tiles of a program: more leave less to be summed up in the end, but programs enough for
    every multiprocessor; and 2^8 to their power, what kernels multiply, is to be finite."""
    return {"TURNS": power_of_two(min(most, logits // tile // ENOUGH), 1, 8)}


@by_form
def binary_mass_meta(problem: BinaryProblem) -> dict[str, Any]:
    return meta(power_of_two(problem.input.shape[1], 16, 2048))


@by_form
def binary_learned_meta(problem: BinaryProblem) -> dict[str, Any]:
    """Whole columns in registers where at least 16 of them fit side by side, a sector of memory
    in half precision and more; else tiles of them, half as high: of larger ones Triton 3.7 spills
    registers on sm_80.
    """
    n, classes = problem.input.shape
    most = _binary_tile(problem, 4096)
    if n > most // 16:
        most //= 2
    rows = power_of_two(n, 1, most // 16)
    block = power_of_two(classes, 16, max(16, min(64, most // rows)))
    return {**_binary_meta(problem, block, rows), "RESIDENT": n <= rows}


class WalkMeta(NamedTuple):
    """For steps of the multi-label perturbation that come from moments."""

    legs: int  # centres
    chunk: int  # rows whose moments are summed in float32
    moments: dict[str, Any]
    walk: dict[str, Any]
    rest: dict[str, Any]


@by_form
def binary_walk_meta(problem: BinaryProblem) -> WalkMeta | None:
    """None where whole columns stay in registers, and in float64, where a walk left out too much.

    A leg of a hard class's steps adds up to 1.4, the first to 0.9.
    """
    classes = problem.input.shape[1]
    rest = dict(binary_learned_meta(problem))
    if rest.pop("RESIDENT") or problem.input.dtype == torch.float64:
        return None
    block = power_of_two(classes, 16, 64)
    # two logits of a thread, which has 22 sums of each
    rows = max(1, 256 // block)
    moments = {**meta(block, rows, each=2, ample=True), "ROWS": rows}
    return WalkMeta(5, 256, moments, {"BLOCK": 64, "num_warps": 2}, rest)
