"""Problems of classes with several rows, for every solver of their common δ, and how exact it has to
be."""

from __future__ import annotations

from typing import Any

import torch
from cases import Draw
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from lpl_fused import reference, testing
from lpl_fused.problem import NONE, Options, Problem

FP32, FP64 = torch.float32, torch.float64


def problem(
    sizes: list[int],
    steps: list[int],
    classes: int,
    spread: float = 2.0,
    ease: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Groups of the given sizes, each with its steps; the rows of a group resemble each other."""
    draw = Draw(sum(sizes), classes, seed)
    target = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    alike = Draw(len(sizes), classes, seed + 1).input(spread)[target]
    logits = (0.8 * alike + 0.6 * draw.input(spread)).float().double()
    logits.scatter_add_(1, target[:, None], torch.full((draw.n, 1), ease, dtype=FP64))
    shuffled = torch.randperm(draw.n, generator=draw.generator)
    counts = torch.zeros(classes, dtype=torch.int32)
    counts[: len(steps)] = torch.tensor(steps, dtype=torch.int32)
    options.setdefault("step_size", 0.1)
    return Problem(
        logits[shuffled],
        target[shuffled],
        steps=counts,
        options=Options(reduction=NONE, **options),
    )


@st.composite
def problems(
    draw: st.DrawFn, all_classes: tuple[int, ...] = (3, 70, 513, 900), most: int = 50
) -> Problem:
    """Groups of all kinds, with steps from the least to the absurd."""
    steps = draw(st.sampled_from([1, 3, 7, 9, 12, most]))
    sizes = draw(st.sampled_from([[2], [3, 2], [9], [2, 4, 2], [40]]))
    signs = draw(st.lists(st.sampled_from([-1, 1]), min_size=len(sizes), max_size=len(sizes)))
    return problem(
        sizes,
        [sign * steps for sign in signs],
        draw(st.sampled_from(all_classes)),
        draw(st.sampled_from([0.01, 1.0, 3.0, 6.0, 20.0])),
        draw(st.sampled_from([0.0, 10.0, -10.0, 30.0])),
        draw(st.integers(0, 10**6)),
        step_size=draw(st.sampled_from([1e-3, 0.1, 0.5, 3.0])),
        normalize=draw(st.booleans()),
    )


def extremes(classes: int, normalize: bool) -> Problem:
    """Masked rivals and targets, no rivals at all, a target that has all mass, far offsets; nan
    and a row without any mass make their group nan, and no other.
    """
    asked = problem([4, 2, 3, 2, 2], [4, -4, 3, 3, -3], classes, normalize=normalize)
    logits, target = asked.input.clone(), asked.target
    rows = [torch.nonzero(target == label)[:, 0] for label in range(5)]
    logits[rows[0][0], 40:] = -torch.inf
    logits[rows[0][1], torch.arange(classes) != 0] = -torch.inf
    logits[rows[0][2]] += 5000
    logits[rows[0][3], 0] = 500
    logits[rows[1], 1] = -torch.inf
    logits[rows[2], 7] = 60.0
    logits[rows[3][0], 50] = torch.nan
    logits[rows[4][0]] = -torch.inf
    return asked._replace(input=logits)


def repeatable(examples: int) -> settings:
    """So many problems, the same ones every time."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def case(asked: Problem, **keywords: object) -> testing.Case:
    """The same as a call."""
    step_size, normalize = asked.options.step_size, asked.options.normalize
    keywords = {"step_size": step_size, "normalize": normalize, "reduction": "none"} | keywords
    return testing.Case(asked.input, asked.target, keywords, asked.steps)


def check_delta(asked: Problem, delta: Tensor) -> None:
    """δ is that of exact iteration for logits and a step size that differ by the tolerance or by
    rounding: what such a difference makes is measured.
    """
    truth, slot = reference.learned_perturbation(asked)
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(asked.input.shape, generator=generator, dtype=FP64) - 1
    size = 2e-7 + 1.2e-7 * (4 + asked.input.abs() + asked.input.amax(1, keepdim=True).abs())
    granted = torch.zeros((), dtype=FP64)
    for sign in (1, -1):
        options = asked.options._replace(step_size=asked.options.step_size * (1 + sign * 2e-7))
        moved = asked._replace(input=asked.input + sign * size * noise, options=options)
        other, _ = reference.learned_perturbation(moved)
        granted = granted.maximum((other - truth)[slot].abs().max())
    rounding = 16 * torch.finfo(FP32).eps * (1 + truth[slot].abs().max())
    assert (delta - truth[slot]).abs().max() <= 4 * granted + rounding
