"""What the operators of both links share: how a problem crosses the dispatcher, or goes past it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends.contract import Forward
from ..problem import NONE, BinaryProblem, Problem, accumulate_dtype
from ..tracing import direct, settled

Forwards = Callable[[Any, bool], Forward]  # of a problem, with its gradient or not

# a problem and its backend, as `packed` makes them
SCHEMA = "Tensor input, Tensor target, Tensor?[] parts, int[] codes, float[] numbers, str backend"


def packed(problem: Problem | BinaryProblem, backend: str) -> tuple[Any, ...]:
    input, target, *parts, options = problem
    return (input, target, parts, *options.packed(), backend)


def laid_out(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors as kernels read them: their numbers in memory, unit stride along the last dimension.
    The dispatcher puts others in the place of some (of zeros without storage one number, expanded),
    and leaves those in a list of what may be absent as they are."""
    return [None if tensor is None else _laid_out(settled(tensor)) for tensor in tensors]


def _laid_out(tensor: Tensor) -> Tensor:
    plain = tensor.dim() == 0 or tensor.stride(-1) == 1
    return tensor if plain else tensor.contiguous()


def register(
    library: torch.library.Library, name: str, kernel: Callable[..., Any], fake: Callable[..., Any]
) -> Any:
    """The operator of this name, its schema defined in `library`, once `kernel` serves it."""
    for device in ("CPU", "CUDA"):
        library.impl(name, kernel, device)
    torch.library.register_fake(f"lpl_fused::{name}", fake, lib=library)
    return getattr(torch.ops.lpl_fused, name).default


def unshared(norm: Tensor | None, problem: Problem | BinaryProblem) -> Tensor | None:
    """What a sum is divided by as an operator may return it: in no memory that it was given."""
    return norm.clone() if norm is not None and norm is problem.normalizer else norm


# in the place of a loss that its caller has: kept with it, the two would keep each other alive
GONE = torch.empty(0, device="cpu")
GONE_ROWS = torch.empty((1, 0), device="cpu")  # in that of class probabilities


def kept_as_saved() -> bool:
    """Whether somebody keeps what autograd saves in a way of his own (checkpoints, which forget it;
    another device's memory): a gradient that came with the forward must not wait beside that."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


class Moved(torch.autograd.Function):
    """A loss in forward mode: with the tangent of the logits comes its own, what the gradient for
    an upstream of 1 says of it, in the dtype of sums. Apart from the function of reverse mode,
    because torch.compile takes none that has a `jvp`."""

    @staticmethod
    def forward(
        ctx: Any, problem: Problem | BinaryProblem, forward: Forwards, input: Tensor
    ) -> Tensor:
        ctx.problem, ctx.run = problem._replace(input=input), forward
        return forward(ctx.problem, False).loss

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, moves: Tensor) -> Tensor:
        problem = ctx.problem
        wide = problem.input.to(accumulate_dtype(problem.input.dtype))
        grad = ctx.run(problem._replace(input=wide), True).grad
        along: Tensor = grad * moves.to(grad.dtype)
        if problem.options.reduction != NONE:
            return along.sum()
        return along.sum(1) if isinstance(problem, Problem) else along


def _can_wait(problem: Problem | BinaryProblem) -> bool:
    """A gradient, from the forward to the backward, to be scaled there where it is."""
    return direct(problem.input) and not kept_as_saved()


def by_sweep(problem: Problem | BinaryProblem, backend: str) -> bool:
    """Whether a problem's gradient with respect to its logits comes in the forward sweep, for an
    upstream of 1 that the backward replaces: one read and one write of the logits in all where it
    is 1. Else by statistics, one read more, whatever it is: for float16, whose small gradients live
    only after the upstream factor (a loss scaler's) was applied; where every row has an upstream of
    its own, which is not 1; where somebody traces, so that a 16-bit one would be rounded twice; and
    on CUDA for tables, of which a piece that is read then serves several rows: read anew for each
    they cost more than a second read of the logits.
    """
    dtype = problem.input.dtype
    if dtype == torch.float16:
        return False
    if backend == "cuda" and isinstance(problem, Problem) and _has_tables(problem):
        return False
    if dtype == torch.bfloat16:
        return problem.options.reduction != NONE and _can_wait(problem)
    # on a CPU scaling 32 bits again costs less than their exponentials
    return problem.options.reduction != NONE or backend == "cpp"


def _has_tables(problem: Problem) -> bool:
    return problem.scale is not None or problem.offset is not None


# how a gradient comes about, by a caller's word: see `cross_entropy` in functional/
AUTO, SWEEP, STATISTICS, INPLACE = FORMS = "auto", "sweep", "statistics", "inplace"


def checked_form(form: str, forms: Sequence[str] = FORMS) -> str:
    if form not in forms:
        expected = ", ".join(map(repr, forms))
        raise ValueError(f"gradient: expected one of {expected}, got {form!r}")
    return form


def sweeps_by(form: str, problem: Problem | BinaryProblem, backend: str) -> bool:
    """`by_sweep`, unless the caller has chosen.

    Raises:
        ValueError: it cannot be so.
    """
    if form == AUTO:
        return by_sweep(problem, backend)
    if form == SWEEP and problem.input.element_size() == 2:
        if problem.input.dtype == torch.float16:
            raise ValueError('gradient: "sweep" would lose small gradients of float16')
        if not _can_wait(problem):
            raise ValueError('gradient: "sweep" would round 16 bits twice where somebody traces')
    return form == SWEEP


def given(problem: Problem | BinaryProblem) -> tuple[Tensor | None, ...]:
    """The leading fields of a problem, up to the last that is present."""
    tensors = problem[:-1]
    present = len(tensors)
    while tensors[present - 1] is None:
        present -= 1
    return tensors[:present]


ONCE = 'the fused loss is differentiable once; backend="reference" differentiates twice'


class Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated; `anchors` are what it depends on."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *anchors: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(ONCE)


def once_backward(
    ctx: Any, upstream: Tensor, backward: Callable[[Any, Tensor], tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """`backward(ctx, upstream)`, which nobody differentiates."""
    if not torch.is_grad_enabled():
        return backward(ctx, upstream)
    # create_graph=True. once_differentiable would let a constant upstream pass, and with it a
    # second derivative without the loss's own part; it also costs every backward 10 µs
    with torch.no_grad():
        grads = backward(ctx, upstream)
    anchors = [tensor for tensor in ctx.saved_tensors if tensor is not None]
    return tuple(g if g is None else Once.apply(g, upstream, *anchors) for g in grads)


def spend(ctx: Any) -> None:
    """Of a gradient that goes where the logits are: once, and nobody differentiates it."""
    if ctx.spent:
        raise RuntimeError(
            'gradient="inplace": a second backward, but where the logits were is their gradient'
        )
    if torch.is_grad_enabled():
        raise RuntimeError('gradient="inplace" can not be differentiated (create_graph)')
    ctx.spent = True
