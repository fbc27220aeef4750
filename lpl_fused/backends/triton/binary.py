"""The sigmoid link: launchers of the multi-label kernels."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...paths import PHI_OF_LABELS, SIDE_TABLES, WEIGHING_LABELS, Path
from ...phi import ASYMMETRIC, LOG
from ...problem import MEAN, NONE, BinaryProblem, accumulate_dtype, divides
from ..buffers import like, new
from ..contract import Forward
from ..kernels.launch import (
    WalkMeta,
    binary_flat_meta,
    binary_learned_meta,
    binary_mass_meta,
    binary_tile_meta,
    binary_walk_meta,
    by_form,
    filling_meta,
)
from . import launching
from .launching import kernels
from .memory import Layout

# both sides have the same z, and φ = log: one exponential for both
_SHARED = Path("triton, shared sides", BinaryProblem, WEIGHING_LABELS)
# each logit by itself
_FLAT = Path(
    "triton, logits alone",
    BinaryProblem,
    ("reduction", "normalizer", "missing", "ignored", *PHI_OF_LABELS, "steps", "step_size"),
)
# of which none has a weight
_EVEN = Path(
    "triton, losses as they are",
    BinaryProblem,
    (
        *("reduction", "normalizer", "missing", "ignored", "steps", "step_size"),
        *("positive_scale", "positive_offset", "negative_scale", "negative_offset"),
    ),
)
# of which both labels have the same z
_ALIKE = Path(
    "triton, one z", BinaryProblem, (*WEIGHING_LABELS, *PHI_OF_LABELS, "steps", "step_size")
)
_KERNELS = Path(
    "triton, multi-label",
    BinaryProblem,
    (*WEIGHING_LABELS, *SIDE_TABLES, *PHI_OF_LABELS, "steps", "step_size"),
)


class _Form(NamedTuple):
    """What problems of a form have in common."""

    plans: launching.Plans
    walk: WalkMeta | None  # how δ is found before all else, if it is
    programs: int  # whose losses are summed


@by_form
def _form_of(problem: BinaryProblem) -> _Form:
    walk = _walk_meta(problem)
    tiles = problem.steps is None or walk is not None
    flat = walk is None and _is_flat(problem)
    return _Form(launching.Plans(), walk, math.prod(_tiles(problem, tiles, flat)[0]))


def binary_forward(problem: BinaryProblem, want_grad: bool) -> Forward:
    input, reduction = problem.input, problem.options.reduction
    norm, form = _normalizer(problem), _form_of(problem)
    grad = like(input) if want_grad else None
    losses = new(problem, *input.shape) if reduction == NONE else None
    sums = None if losses is not None else new(problem, form.programs if input.numel() else 0)
    divisor = norm if divides(problem) else None
    walk = form.walk
    known = scratch = None
    if walk is not None:
        known, scratch = Learned.of(problem, walk), new_scratch(problem, walk)

    def launches() -> None:
        if walk is not None:
            assert known is not None
            assert scratch is not None
            _learn(problem, walk, known, scratch)
        _run(problem, sums=sums, known=known, losses=losses, grad=grad, norm=divisor)

    state = () if known is None else tuple(part for part in known if part is not None)
    places = scratch, *(known or ()), losses, sums, grad
    places += (None if divisor is problem.normalizer else divisor,)
    given = [part for part in problem if isinstance(part, Tensor)]
    form.plans.run("forward", (*given, *places), launches)
    if losses is not None:
        return Forward(losses, norm, None, grad, state=state)
    assert sums is not None
    total = sums.sum()
    return Forward(total if divisor is None else total / norm, norm, None, grad, state=state)


def binary_gradient(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    grad, walk = like(problem.input), _walk_meta(problem)
    known = None if walk is None else _learned(problem, walk)
    _run(problem, grad=grad, known=known, upstream=_contiguous(problem, upstream))
    return grad


def binary_rescale_(problem: BinaryProblem, forward: Forward, upstream: Tensor) -> Tensor | None:
    grad, norm = forward.grad, forward.norm
    assert grad is not None
    assert norm is not None
    if grad.element_size() == 2:
        # of each logit its own: made anew; one for all: unless it scales exactly
        anew = _contiguous(problem, upstream if upstream.dim() else upstream / norm)
        unless = None if upstream.dim() else upstream
        known = (
            Learned(*forward.state, *(None,) * (2 - len(forward.state))) if forward.state else None
        )
        _run(problem, grad=grad, known=known, upstream=anew, unless=unless)
    elif upstream.dim():
        return None if problem.options.missing else grad.mul_(upstream)
    else:
        n, classes = grad.shape
        labels: tuple[Any, ...] = None, None, None
        if problem.options.missing:
            labels = _labels(problem), problem.target.stride(0), _ignored(problem)
        rows = grad, upstream, classes, *labels

        def scaled() -> None:
            launching.launch(kernels.binary.scale_labels, (n,), *rows, **filling_meta(classes))

        # of what is ignored the number itself is part of the form
        kind = n, classes, labels[1], repr(problem.options.ignored)
        _SCALING.run(kind, (grad, upstream, labels[0]), scaled)
    return grad


_SCALING = launching.Plans()


def _contiguous(problem: BinaryProblem, upstream: Tensor) -> Tensor:
    return upstream.to(accumulate_dtype(problem.input.dtype)).contiguous()


def binary_perturbation(problem: BinaryProblem) -> Tensor:
    walk = _walk_meta(problem)
    if walk is not None:
        return _learned(problem, walk).delta
    delta = new(problem, 2, problem.input.shape[1])
    _run(problem, delta=delta)
    return delta


def _walk_meta(problem: BinaryProblem) -> WalkMeta | None:
    """How δ is found before all else, if it is."""
    if problem.steps is None or 0 in problem.input.shape:
        return None
    return binary_walk_meta(problem)


class Learned(NamedTuple):
    """δ (2, C), and which labels (chunks, blocks of classes) may be other than 0 and 1; None of
    labels that cannot."""

    delta: Tensor
    soft: Tensor | None = None

    @staticmethod
    def of(problem: BinaryProblem, walk: WalkMeta) -> Learned:
        """Places for them."""
        n, classes = problem.input.shape
        soft = None
        if problem.target.dtype != torch.bool:
            blocks = -(-classes // walk.moments["BLOCK"])
            soft = new(problem, -(-n // walk.chunk), blocks, dtype=torch.int32)
        return Learned(new(problem, 2, classes), soft)


def new_scratch(problem: BinaryProblem, walk: WalkMeta) -> Tensor:
    """Memory for the steps."""
    return new(problem, _scratch(*problem.input.shape, walk.chunk).size, dtype=torch.uint8)


@functools.lru_cache(maxsize=64)
def _scratch(n: int, classes: int, chunk: int) -> Layout:
    """Of walks, of sums over chunks of rows, of steps that are left."""
    from ..kernels.binary import MOMENTS, WALK

    sums = 2, MOMENTS.value + 1, -(-n // chunk), classes
    return Layout(
        [
            ((2, WALK.value, classes), torch.float64),
            (sums, torch.float32),
            ((classes,), torch.int32),
        ]
    )


def _learned(problem: BinaryProblem, walk: WalkMeta) -> Learned:
    known = Learned.of(problem, walk)
    _learn(problem, walk, known, new_scratch(problem, walk))
    return known


def _learn(problem: BinaryProblem, walk: WalkMeta, known: Learned, scratch: Tensor) -> None:
    """From moments of the batch."""
    from ..kernels.binary import (
        BOTH,
        HARD,
        MIRRORED,
        OWN,
        binary_moments,
        binary_rest,
        binary_walk,
    )

    n, classes = problem.input.shape
    chunks = -(-n // walk.chunk)
    arguments, steps = _arguments(problem), problem.steps
    numbers, partial, left = _scratch(n, classes, walk.chunk).within(scratch)
    dtype = _language_dtype(problem)
    size = float(problem.options.step_size)
    grid, each = (-(-classes // walk.moments["BLOCK"]), chunks), walk.walk
    hard = arguments.form is HARD
    kind = OWN if hard else BOTH
    alike = _ALIKE.serves(problem)
    for leg in range(walk.legs):
        of_rows = (arguments, numbers, steps, partial, known.soft, walk.chunk)
        first = {"FIRST": leg == 0}
        of_kind = {"KIND": (MIRRORED if leg == 0 and alike else kind).value, "DTYPE": dtype}
        launching.launch(binary_moments, grid, *of_rows, **first, **of_kind, **walk.moments)
        sides = (-(-classes // each["BLOCK"]), 2)
        launching.launch(
            binary_walk, sides, numbers, steps, size, partial, classes, chunks, **first, **each
        )
    what = (arguments, numbers, steps, size, known.delta, left)
    blocks = (-(-classes // walk.rest["BLOCK"]),)
    launching.launch(binary_rest, blocks, *what, DTYPE=dtype, **walk.rest)


def _tiles(
    problem: BinaryProblem, tiles: bool, flat: bool
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(grid, launch parameters) of the kernel that gives what is wanted."""
    n, classes = problem.input.shape
    if not tiles:
        meta = binary_learned_meta(problem)
        return (-(-classes // meta["BLOCK"]),), meta
    meta = binary_flat_meta(problem) if flat else binary_tile_meta(problem)
    rows, width = (-(-n * classes // meta["BLOCK"]), 1) if flat else (n, classes)
    step = meta["STEP"]
    grid = (
        step * -(-rows // (step * meta["ROWS"] * meta["TURNS"])),
        -(-(width + step - 1) // meta["BLOCK"]),
    )
    return grid, meta


def _run(
    problem: BinaryProblem,
    *,
    known: Learned | None = None,
    **places: Tensor | None,
) -> None:
    """Runs the kernels for what is wanted. `known`: δ, found before."""
    from triton.language import constexpr

    n, classes = problem.input.shape
    tiles = problem.steps is None or known is not None
    flat = known is None and _is_flat(problem)
    grid, meta = _tiles(problem, tiles, flat)
    upstream = places.get("upstream")
    each = constexpr(upstream is not None and upstream.dim() > 0)
    wanted = kernels.binary.BinaryWanted(each=each, **places)
    if n == 0 or classes == 0:
        if places.get("delta") is not None:
            places["delta"].zero_()  # type: ignore[union-attr]
        return
    meta = {**meta, "DTYPE": _language_dtype(problem)}
    if tiles and flat:
        arguments = _in_rows(problem, meta["BLOCK"])
    else:
        arguments = _weighed(problem, _arguments(problem, known))
        if known is not None and known.soft is not None and _EVEN.serves(problem):
            walk = binary_walk_meta(problem)
            assert walk is not None
            block = constexpr(walk.moments["BLOCK"])
            arguments = arguments._replace(
                soft=known.soft, soft_chunk=walk.chunk, soft_block=block, even=constexpr(True)
            )
    if tiles:
        launching.launch(kernels.binary.binary_tiles, grid, arguments, wanted, **meta)
    else:
        step_size = launching.number(problem, problem.options.step_size)
        launching.launch(
            kernels.binary.binary_learned, grid, arguments, wanted, problem.steps, step_size, **meta
        )


def _arguments(problem: BinaryProblem, known: Learned | None = None) -> Any:
    from triton.language import constexpr

    from ..kernels.binary import HARD, SHARED, SIDES, BinaryArguments

    _KERNELS.demand(problem)
    input, target, options = problem.input, problem.target, problem.options
    form = SIDES
    if target.dtype == torch.bool:
        form = HARD
    elif _SHARED.serves(problem):
        form = SHARED

    def number(value: float) -> Any:
        return launching.number(problem, value)

    weighs = problem.inverse_count is not None
    return BinaryArguments(
        input=input,
        input_stride=input.stride(0),
        rows=input.shape[0],
        classes=input.shape[1],
        total=None,
        target=_labels(problem),
        target_stride=target.stride(0),
        form=form,
        even=constexpr(form is not SIDES and _EVEN.serves(problem)),
        missing=constexpr(bool(options.missing)),
        ignored=_ignored(problem) if options.missing else None,
        **{name: getattr(problem, name) for name in SIDE_TABLES},
        inverse_count=problem.inverse_count,
        delta=None if known is None else known.delta,
        masses=None,
        alpha=number(options.alpha) if weighs else None,
        beta=number(options.beta) if weighs else None,
        mu=number(options.mu) if weighs else None,
        sample_weight=problem.sample_weight,
        phi=constexpr(options.phi),
        phi_parameter=None if options.phi == LOG else number(options.phi_parameter),
        phi_negative=number(options.phi_negative) if options.phi == ASYMMETRIC else None,
        phi_clip=number(options.phi_clip) if options.phi == ASYMMETRIC else None,
        phi_detached=constexpr(options.phi_detached),
    )


def _labels(problem: BinaryProblem) -> Tensor:
    """As a kernel reads them, to which a bool is a byte."""
    target = problem.target
    return target.view(torch.uint8) if target.dtype == torch.bool else target


def _ignored(problem: BinaryProblem) -> Any:
    """What labels that are missing say, beside nan."""
    ignored = problem.options.ignored
    return launching.number(problem, ignored) if ignored == ignored else None


def _is_flat(problem: BinaryProblem) -> bool:
    """Whether a logit needs to know nothing of its row and its class, so that any cut will do."""
    together = problem.input.is_contiguous() and problem.target.is_contiguous()
    return together and _FLAT.serves(problem)


def _in_rows(problem: BinaryProblem, width: int) -> Any:
    """The problem with its logits in rows of `width`, all of which begin as the first one does."""
    from triton.language import constexpr

    total, each = problem.input.numel(), constexpr(width)
    return _arguments(problem)._replace(
        **{"input_stride": each, "target_stride": each, "classes": each},
        rows=-(-total // width),
        total=total,
    )


def _weighed(problem: BinaryProblem, arguments: Any) -> Any:
    """The problem with what its re-balanced weights want to know of each row."""
    if problem.inverse_count is None:
        return arguments
    n = problem.input.shape[0]
    masses = new(problem, n)
    meta = binary_mass_meta(problem)
    dtype = _language_dtype(problem)
    launching.launch(kernels.binary.row_masses, (n,), arguments, masses, DTYPE=dtype, **meta)
    return arguments._replace(masses=masses)


def _normalizer(problem: BinaryProblem) -> Tensor:
    """0-dim: what the summed losses are divided by."""
    if problem.normalizer is not None:
        return problem.normalizer
    options, target = problem.options, problem.target
    dtype = accumulate_dtype(problem.input.dtype)
    if options.reduction != MEAN or not options.missing:
        count = target.numel() if options.reduction == MEAN else 1
        return problem.input.new_full((), count, dtype=dtype)
    known = target == target
    if options.ignored == options.ignored:
        known = known & (target.to(dtype) != options.ignored)
    return known.sum().to(dtype)


def _language_dtype(problem: BinaryProblem) -> Any:
    import triton.language as tl

    return tl.float64 if problem.input.dtype == torch.float64 else tl.float32
