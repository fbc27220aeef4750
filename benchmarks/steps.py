"""What is timed of a provider: the steps of every mode, and the yardstick's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cases import Batch
from .memory import last_level_cache
from .providers import Criterion

Inputs = tuple[Tensor, ...]
COLD, HOT, WALL = "cold", "hot", "wall"
_MOST = 8192


@dataclass(frozen=True)
class Step:
    """What is timed: `run(prepare())`, the clock standing still during `prepare`.

    Attributes:
        pace: of a GPU's clock alone. "cold": each call by itself, after the L2 cache was flushed;
            "hot": the device's time for a block of calls, one after the other; "wall": the caller's
            time for a block, until the device has done all of it.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] | None = None
    needs_grad: bool = True
    pace: str = COLD


def rotation(batch: Batch) -> list[Inputs]:
    """The inputs, and copies of them that take twice the last-level cache with them.

    Used in turn, each has left the cache when its turn comes again. Inputs that large themselves
    are not copied: their end drives out their beginning. Of inputs of a few kilobytes `_MOST` must
    do; they leave the caches before the last in any case.
    """
    size = sum(part.nbytes for part in batch.inputs)
    copies = min(_MOST, -(-2 * last_level_cache() // size))
    made = [tuple(part.detach().clone() for part in batch.inputs) for _ in range(copies - 1)]
    return [batch.inputs, *made]


def steps(criterion: Criterion, batch: Batch, others: Sequence[Inputs] = ()) -> dict[str, Step]:
    """The step of every mode; a CPU's cold one goes through `others`, its `rotation`, in turn.

    Models hand over logits that are no leaf: their gradient is passed on, not accumulated. A leaf
    as in most benchmarks adds what autograd does to keep its gradient. Each backward is the first
    of its graph, as in training; repeated on a retained graph it would time another thing.
    """
    plain = [part.detach() for part in batch.inputs]
    leaves = [part.detach().requires_grad_() for part in batch.inputs]
    inner = _passed_on(leaves)
    # some give a loss in the logits' dtype, some a wider one
    upstream = {d: batch.upstream.to(d) for d in (batch.logits.dtype, batch.upstream.dtype)}

    def backward(loss: Tensor, inputs: Inputs = inner) -> object:
        return torch.autograd.grad(loss, inputs, upstream[loss.dtype])

    def both(inputs: Inputs) -> object:
        return backward(criterion(*inputs), inputs)

    def both_leaf(_: None) -> None:
        loss = criterion(*leaves)
        loss.backward(upstream[loss.dtype])  # type: ignore[no-untyped-call]
        for leaf in leaves:
            leaf.grad = None

    made = {
        "forward-no-grad": Step(lambda _: criterion(*plain), needs_grad=False),
        "forward": Step(lambda _: criterion(*inner)),
        "backward": Step(backward, prepare=lambda: criterion(*inner)),
        "both": Step(lambda _: both(inner)),
        "both-leaf": Step(both_leaf),
    }
    if batch.logits.is_cuda:
        # views made during the capture, lest autograd waits for the stream that made the others
        replay = _Replay(lambda: both(_passed_on(leaves)))
        made["both-hot"] = Step(replay, pace=HOT)
        made["both-wall"] = Step(lambda _: both(inner), pace=WALL)
    elif others:
        turns = itertools.cycle([_passed_on(part.detach() for part in parts) for parts in others])
        made["both-cold"] = Step(lambda _: both(next(turns)))
    return made


def _passed_on(leaves: Iterable[Tensor]) -> Inputs:
    """As a model hands them over: no leaves."""
    return tuple(leaf.view_as(leaf) for leaf in map(Tensor.requires_grad_, leaves))


class _Replay:
    """What is captured in a CUDA graph at the first call, and replayed at all calls."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, _: object) -> None:
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """As torch's notes on CUDA graphs ask for: after some calls on a stream beside.

        What waits for the device cannot be captured. The last of these calls finds that out, since
        a capture that breaks off leaves torch's generators and streams as they are within one.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()
            self._run()
            torch.cuda.set_sync_debug_mode("error")
            try:
                self._run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run()
        return graph


def copy_step(batch: Batch) -> Step:
    """The yardstick: the inputs copied into memory that is there already."""
    sources = [part.detach() for part in batch.inputs]
    pairs = [(source, torch.empty_like(source)) for source in sources]

    def copy(_: None) -> None:
        for source, destination in pairs:
            destination.copy_(source)

    return Step(copy, needs_grad=False)
