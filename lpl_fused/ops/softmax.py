"""The operators of the softmax link: schemas, fakes, autograd. Imports torch alone; a backend
(backends/contract.py) is loaded when it runs.

    cross_entropy(Problem, backend, want_grad, return_stats)
            -> (loss, norm, terms, grad, state, statistics)
        Backend.forward; what is not there is an empty tensor, or no tensor of a list
    cross_entropy_gradient(Problem, backend, terms, upstream, want)
            -> (input, scale, offset, margin, rows), empty where not wanted
        Backend.gradient of whole rows, upstream (N,) with stride 0 or 1
    learned_gradient(Problem, backend, upstream, state) -> input
        the same of a problem with `steps`, δ held constant; found anew where `state` is empty
    learned_perturbation(Problem, backend) -> (delta (N, C), slot (N,))
        as reference.learned_perturbation

Tables that want a gradient beside `steps` are served by functional/, which hands δ over as `rows`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..algebra.known import Known
from ..algebra.learned import with_delta
from ..algebra.statistics import RowStatistics, dtypes
from ..algebra.sweep import with_steps
from ..algebra.terms import Terms
from ..backends import load
from ..backends.buffers import of_rows
from ..backends.contract import Choose, Forward, Gradients
from ..problem import NONE, TABLES, Options, Problem, accumulate_dtype
from ..tracing import direct, settled, tangent
from .dispatch import (
    AUTO,
    GONE,
    GONE_ROWS,
    INPLACE,
    SCHEMA,
    SWEEP,
    Moved,
    given,
    kept_as_saved,
    laid_out,
    once_backward,
    packed,
    register,
    spend,
    sweeps_by,
    unshared,
)

_LIBRARY = torch.library.Library("lpl_fused", "DEF")
_LIBRARY.define(
    f"cross_entropy({SCHEMA}, bool want_grad, bool return_stats)"
    " -> (Tensor loss, Tensor norm, Tensor terms, Tensor grad, Tensor[] state, Tensor[] statistics)"
)
_LIBRARY.define(
    f"cross_entropy_gradient({SCHEMA}, Tensor terms, Tensor upstream, bool[] want)"
    f" -> ({', '.join(f'Tensor {name}' for name in Gradients._fields)})"
)
_LIBRARY.define(f"learned_gradient({SCHEMA}, Tensor upstream, Tensor[] state) -> Tensor")
_LIBRARY.define(f"learned_perturbation({SCHEMA}) -> (Tensor delta, Tensor slot)")


def _unpacked(
    input: Tensor,
    target: Tensor,
    parts: Sequence[Tensor | None],
    codes: Sequence[int],
    numbers: Sequence[float],
) -> Problem:
    tensors = laid_out(input, target, *parts)
    return Problem(*tensors, Options.unpacked(codes, numbers))  # type: ignore


def _cross_entropy(input, target, parts, codes, numbers, backend, want_grad, return_stats):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    found = load(backend).forward(problem, want_grad, return_stats=return_stats)
    loss, norm, terms, grad, _, state, rows = found
    nothing, statistics = loss.new_empty(0), list(rows or ())
    if want_grad:
        return loss, nothing, nothing.clone(), grad, [], statistics
    norm = loss.new_ones(()) if norm is None else unshared(norm, problem)
    terms = nothing if terms is None else terms
    return loss, norm, terms, input.new_empty(0), list(state), statistics


def _gradient(  # type: ignore[no-untyped-def]
    input, target, parts, codes, numbers, backend, terms, upstream, want
):
    problem = _unpacked(input, target, parts, codes, numbers)
    names = [name for name, wanted in zip(Gradients._fields, want, strict=True) if wanted]
    found = load(backend).gradient(problem, Known(terms), upstream, names)
    return tuple(terms.new_empty(0) if tensor is None else tensor for tensor in found)


def _learned_gradient(input, target, parts, codes, numbers, backend, upstream, state):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load(backend).learned_gradient(problem, upstream, tuple(state))


def _learned_perturbation(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    return load(backend).learned_perturbation(problem)


def _cross_entropy_fake(input, target, parts, codes, numbers, backend, want_grad, return_stats):  # type: ignore[no-untyped-def]
    problem = _unpacked(input, target, parts, codes, numbers)
    n, dtype = input.shape[0], accumulate_dtype(input.dtype)
    loss = input.new_empty((n,) if problem.options.reduction == NONE else (), dtype=dtype)
    statistics = [input.new_empty((n,), dtype=each) for each in dtypes(input.dtype) if return_stats]
    if want_grad:
        grad = input.new_empty(tuple(input.shape))
        return loss, loss.new_empty(0), loss.new_empty(0), grad, [], statistics
    terms, state = loss.new_empty((n, len(Terms._fields))), []
    if problem.steps is not None:
        terms = loss.new_empty(0)
        forms = load(backend).learned_state(problem)
        state = [loss.new_empty(shape, dtype=dtype) for shape, dtype in forms]
    return loss, loss.new_empty(()), terms, input.new_empty(0), state, statistics


def _gradient_fake(  # type: ignore[no-untyped-def]
    input, target, parts, codes, numbers, backend, terms, upstream, want
):
    problem = _unpacked(input, target, parts, codes, numbers)
    table = terms.new_empty
    tables = [getattr(problem, name) for name in TABLES]
    return (
        input.new_empty(tuple(input.shape) if want[0] else (0,)),
        *(
            table(tuple(each.shape) if wanted else (0,))
            for each, wanted in zip(tables, want[1:], strict=True)
        ),
    )


def _learned_gradient_fake(input, target, parts, codes, numbers, backend, upstream, state):  # type: ignore[no-untyped-def]
    return input.new_empty(tuple(input.shape))


def _learned_perturbation_fake(input, target, parts, codes, numbers, backend):  # type: ignore[no-untyped-def]
    delta = input.new_empty(input.shape, dtype=accumulate_dtype(input.dtype))
    return delta, torch.empty_like(target)


_forward_op = register(_LIBRARY, "cross_entropy", _cross_entropy, _cross_entropy_fake)
_gradient_op = register(_LIBRARY, "cross_entropy_gradient", _gradient, _gradient_fake)
_learned_gradient_op = register(
    _LIBRARY, "learned_gradient", _learned_gradient, _learned_gradient_fake
)
_perturbation_op = register(
    _LIBRARY, "learned_perturbation", _learned_perturbation, _learned_perturbation_fake
)

_TABLE_FIELDS = tuple(Problem._fields.index(name) for name in TABLES)
# Gradients, and the fields of a problem that they are of
_OF_GRADIENTS = tuple(zip(Gradients._fields, (0, *_TABLE_FIELDS), strict=True))
# what stands before the tensors in CrossEntropy.apply
_BEFORE_TENSORS = 6
_NO_GRADIENTS = (None,) * _BEFORE_TENSORS


def _forward(
    problem: Problem,
    backend: str,
    want_grad: bool,
    past: bool,
    *,
    final: bool = False,
    return_stats: bool = False,
) -> Forward:
    """`past`: what `direct` says of the problem."""
    if past:
        return load(backend).forward(problem, want_grad, final=final, return_stats=return_stats)
    loss, norm, terms, grad, state, rows = _forward_op(
        *packed(problem, backend), want_grad, return_stats
    )
    statistics = RowStatistics(*rows) if return_stats else None
    return Forward(loss, norm, terms, grad, None, tuple(state), statistics)


def _forward_of(backend: str, problem: Problem, want_grad: bool, final: bool = False) -> Forward:
    return _forward(problem, backend, want_grad, direct(*problem[:-1]), final=final)


class CrossEntropy(torch.autograd.Function):
    """Loss of a problem with its gradient, once differentiable.

    *By sweep* the gradient goes into a buffer of our own, which the first backward takes; a second
    one makes it again. *By statistics* the backward makes it from the rows' terms: see `by_sweep`;
    also where tables learn, and where the backend leaves a state of the learned perturbation.

    `tensors` are the leading fields of a Problem whose options are the `call`, up to the last that
    is present; or they are its input alone, which then is all that learns, and the `call` is the
    problem: who does not trace does not make it again. `choose`, if any, makes the steps of the
    learned perturbation from the losses of the rows without it. `form` is one of dispatch.FORMS;
    *in place* is by statistics, into the memory of the logits. `return_stats`: beside the loss,
    those of RowStatistics. `past`: what tracing.direct says of the tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Options | Problem,
        backend: str,
        choose: Choose | None,
        form: str,
        return_stats: bool,
        past: bool,
        *tensors: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        if isinstance(call, Problem):
            problem, tensors, tables_learn = call, call[:-1], False
        else:
            problem = _problem(tensors, call)
            tables_learn = any(ctx.needs_input_grad[_BEFORE_TENSORS + 2 :])
        learned = problem.steps is not None or choose is not None
        sweeps = _sweeps(problem, backend, form, tables_learn, learned)
        held = None
        if choose is None:
            found = _forward(problem, backend, sweeps, past, return_stats=return_stats)
        else:
            found = load(backend).forward(problem, sweeps, choose, return_stats=return_stats)
            tensors = problem._replace(steps=found.steps)[:-1]  # type: ignore[assignment]
        if not sweeps:
            ctx.save_for_backward(*tensors, found.norm, found.terms, *found.state)
        elif not past or kept_as_saved():
            ctx.save_for_backward(*tensors, found.grad, None)
        else:
            # nothing that would keep the logits alive beside what is saved
            labels = GONE_ROWS if problem.target.dim() == 2 else problem.target
            rows = found.grad, labels, problem.other
            of_shape: Problem = tuple.__new__(Problem, (*rows, *_ABSENT, problem.options))
            held = of_shape, Forward(GONE, found.norm, found.terms, found.grad, found.steps)
            ctx.save_for_backward(*tensors, None, None)
        ctx.held, ctx.spent = held, False
        # in one: an attribute costs more than a place in a tuple
        chosen, in_place = choose is not None, form == INPLACE
        ctx.call = problem.options, backend, sweeps, chosen, past, len(found.state), in_place
        if found.statistics is None:
            return found.loss
        ctx.mark_non_differentiable(*found.statistics)
        return found.loss, *found.statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_loss = settled(grad_loss)
        if ctx.call[-1]:  # in place
            spend(ctx)
        if torch.is_grad_enabled():
            return once_backward(ctx, grad_loss, _backward)
        return _backward(ctx, grad_loss)


# past what Function.apply does for functorch, which runs on the reference
_apply = super(torch.autograd.Function, CrossEntropy).apply


def _backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
    options, backend, sweeps, chosen, past, states, in_place = ctx.call
    held, ctx.held = ctx.held, None
    if held is not None and held[0].input.element_size() > 2:
        # scaled as it is; asking for what is saved would cost as much as the kernel of few logits
        grad = load(backend).rescale_(held[0], held[1], grad_loss)
        if grad is None:
            problem = _problem(ctx.saved_tensors[:-2], options)
            grad = _scaled_past_ignored(problem, held[1].grad, grad_loss)
        return _only_input(ctx, grad)
    saved = ctx.saved_tensors  # raises where one was changed since
    state = saved[len(saved) - states :]
    *tensors, first, terms = saved[: len(saved) - states]
    problem = _problem(tensors, options)
    if sweeps:
        if first is not None:  # nobody could hold it
            return _only_input(ctx, _scaled_past_ignored(problem, first, grad_loss))
        # the buffer may have gone to an earlier backward
        swept = _swept_again(problem, backend, chosen) if held is None else held[1]
        scaled = load(backend).rescale_(problem, swept, grad_loss)
        if scaled is None:
            scaled = _scaled_past_ignored(problem, swept.grad, grad_loss)
        return _only_input(ctx, scaled)
    norm = None if grad_loss.dim() else first
    past = in_place or (past and direct(grad_loss))
    if problem.steps is not None:
        if past:
            learned = load(backend).learned_gradient(problem, grad_loss, state, norm)
        else:
            upstream = of_rows(problem, grad_loss, norm)
            learned = _learned_gradient_op(*packed(problem, backend), upstream, state)
        return _only_input(ctx, learned)
    inputs = len(ctx.needs_input_grad) - _BEFORE_TENSORS
    names = ["input"]
    if inputs > 1:
        needed = (*ctx.needs_input_grad[_BEFORE_TENSORS:], *[False] * len(Problem._fields))
        names = [name for name, field in _OF_GRADIENTS if needed[field]]
    found: Sequence[Tensor | None]
    if past:
        module = load(backend)
        found = gradient_past(problem, module, Known(terms), grad_loss, names, in_place, norm)
    else:
        upstream = of_rows(problem, grad_loss, norm)
        want = [name in names for name in Gradients._fields]
        found = _gradient_op(*packed(problem, backend), terms, upstream, want)
    if inputs == 1:
        return (*_NO_GRADIENTS, found[0])
    grads: list[Tensor | None] = [None] * len(tensors)
    for (name, field), grad in zip(_OF_GRADIENTS, found, strict=True):
        if name in names:
            grads[field] = grad
    return (*_NO_GRADIENTS, *grads[:inputs])


def _scaled_past_ignored(problem: Problem, grad: Tensor | None, upstream: Tensor) -> Tensor:
    """The gradient for an upstream of 1 times an upstream that may be nan or infinite: of ignored
    rows it stays 0."""
    assert grad is not None
    factor = upstream[:, None] if upstream.dim() else upstream
    scaled = (grad * factor).to(grad.dtype)
    if problem.dense:
        return scaled
    nothing = problem.target == problem.options.ignore_index
    if problem.other is not None:
        nothing = nothing & (problem.other == problem.options.ignore_index)
    return scaled.masked_fill(nothing[:, None], 0)


def gradient_past(
    problem: Problem,
    module: Any,
    known: Known,
    upstream: Tensor,
    names: Sequence[str],
    in_place: bool,
    norm: Tensor | None = None,
) -> Gradients:
    """`_gradient_op` past the dispatcher; `in_place`: that of the logits where they are. `module`
    may be the reference's parts, which have no place to write to, and divide by nothing."""
    beside = () if norm is None else (None, norm)
    if not in_place:
        return module.gradient(problem, known, upstream, names, *beside)  # type: ignore[no-any-return]
    found, tables = Gradients(), [name for name in names if name != "input"]
    if tables:  # they read the logits
        found = module.gradient(problem, known, upstream, tables, *beside)
    # sharing memory and version with what autograd saved, for all who still want the logits
    logits = problem.input.detach()
    module.gradient(problem._replace(input=logits), known, upstream, ["input"], logits, norm)
    torch.autograd.graph.increment_version(logits)
    return found._replace(input=logits)


def _sweeps(problem: Problem, backend: str, form: str, tables_learn: bool, learned: bool) -> bool:
    """Whether the gradient comes in the forward sweep.

    Raises:
        ValueError: what the caller has chosen cannot be.
    """
    if problem.options.through:
        # only a sweep with its gradient says whether it can go through the steps
        if form not in (AUTO, SWEEP):
            raise ValueError(f"gradient: {form!r} does not go through the perturbation's steps")
        return not tables_learn
    if form == SWEEP and tables_learn:
        raise ValueError('gradient: "sweep" gives none of tables, which require grad')
    if form == INPLACE and learned:
        raise ValueError(
            'gradient: "inplace" is not for a learned perturbation, which is of several rows'
        )
    if tables_learn or not sweeps_by(form, problem, backend):
        return False
    return form == SWEEP or not (learned and _leaves_state(problem, backend))


def _leaves_state(problem: Problem, backend: str) -> bool:
    """Whether the backend leaves a state of a learned perturbation, which the backward needs."""
    if torch.compiler.is_compiling():
        return _leaves_states(backend)
    return bool(load(backend).learned_state(problem))


def _leaves_states(backend: str) -> bool:
    """Whether it does so at all: what can be asked without a problem's shapes, for a trace."""
    rows = torch.empty((2, 3), device="cpu")
    steps = torch.empty(3, dtype=torch.int32, device="cpu")
    any_problem = Problem(rows, torch.empty(2, dtype=torch.int64, device="cpu"), steps=steps)
    return bool(load(backend).learned_state(any_problem))


# as backends.resolve: a constant of the trace
_leaves_states._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _swept_again(problem: Problem, backend: str, chosen: bool) -> Forward:
    """What the forward left, bit for bit."""
    if not chosen:
        return _forward_of(backend, problem, True)
    steps = problem.steps
    assert steps is not None
    return load(backend).forward(problem._replace(steps=None), True, lambda losses: steps)


def _only_input(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    others = len(ctx.needs_input_grad) - _BEFORE_TENSORS - 1
    return (*_NO_GRADIENTS, grad, *(None,) * others)


# of a problem, what is there beside logits and labels
_ABSENT = (None,) * (len(Problem._fields) - 4)


def _problem(tensors: Sequence[Tensor | None], options: Options) -> Problem:
    return Problem(*tensors, options=options)  # type: ignore


def cross_entropy(
    problem: Problem,
    backend: str,
    choose: Choose | None = None,
    form: str = AUTO,
    return_stats: bool = False,
) -> tuple[Tensor, RowStatistics | None]:
    """The loss of a problem, differentiable with respect to its input and its tables;
    `return_stats`: and the statistics of its rows.

    `choose` makes its steps from the losses (N,) of its rows without them. Tables do not learn
    beside steps. `form`: of dispatch.FORMS.
    """
    tables = tables_learn(problem)
    learns = torch.is_grad_enabled() and (problem.input.requires_grad or tables)
    moves = forward_ad._current_level >= 0 and tangent(problem.input) is not None
    past = direct(*problem[:-1])
    if choose is not None and not (learns and not moves and past):
        problem, choose = with_chosen_steps(problem, backend, choose), None
    if moves:
        run = functools.partial(_forward_of, backend)
        loss = Moved.apply(problem, run, problem.input)
        return loss, row_statistics(problem, backend) if return_stats else None
    if learns:
        found: Any
        if torch.compiler.is_compiling():
            all_of = problem.options, backend, choose, form, return_stats, past, *given(problem)
            found = CrossEntropy.apply(*all_of)  # type: ignore[no-untyped-call]
        else:
            call, *tensors = (problem.options, *given(problem)) if tables else (problem, problem[0])
            found = _apply(call, backend, choose, form, return_stats, past, *tensors)
        return (found[0], RowStatistics(*found[1:])) if return_stats else (found, None)
    made = _forward(problem, backend, False, past, final=True, return_stats=return_stats)
    return made.loss, made.statistics


def fixed_cross_entropy(problem: Problem, backend: str, form: str) -> Tensor:
    """`cross_entropy` of a problem that is `direct`, without a dual number, and whose tables do not
    learn: what its caller has seen."""
    if torch.is_grad_enabled() and problem.input.requires_grad:
        return _apply(problem, backend, None, form, False, True, problem.input)  # type: ignore[no-any-return]
    return _forward(problem, backend, False, True, final=True).loss


def row_statistics(problem: Problem, backend: str) -> RowStatistics:
    """Those of a problem's rows alone."""
    with torch.no_grad():
        detached = [part.detach() if isinstance(part, Tensor) else part for part in problem]
        problem = Problem(*detached)  # type: ignore[arg-type]
        past = direct(*problem[:-1])
        found = _forward(problem, backend, False, past, final=True, return_stats=True).statistics
        assert found is not None
        return found


def with_chosen_steps(problem: Problem, backend: str, choose: Choose) -> Problem:
    """The problem with the steps that `choose` makes, after a sweep of their own."""
    with torch.no_grad():
        return with_steps(functools.partial(_forward_of, backend), problem, choose)


def tables_learn(problem: Problem) -> bool:
    """Whether a table of the problem wants a gradient."""
    for field in _TABLE_FIELDS:
        table = problem[field]
        if table is not None and table.requires_grad:  # type: ignore[union-attr]
            return True
    return False


def learned_perturbation(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    """(delta, slot) of a problem with steps; not differentiable."""
    return _perturbation_op(*packed(problem, backend))  # type: ignore[no-any-return]


def with_fixed_delta(problem: Problem, backend: str) -> Problem:
    """The same problem with its learned δ handed over as rows, beside which tables may learn."""
    detached = [part.detach() if isinstance(part, Tensor) else part for part in problem]
    delta, slot = learned_perturbation(Problem(*detached), backend)  # type: ignore[arg-type]
    return with_delta(problem, delta, slot)
