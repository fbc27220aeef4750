"""All losses, led through several steps in every hand they come into: compiled, recomputed by
checkpoints, on several ranks, interrupted and resumed, beside a bad batch, under autocast. Loss,
gradient and state are the plain run's, or `TELLS` says by name why they are not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_loss import (
    SUBJECTS,
    Batch,
    Subject,
    nothing_counts,
    poisoned,
    states,
    without_spoilt_labels,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = (8, 8, 5, 9)
every = pytest.mark.parametrize("name", SUBJECTS)
Found = dict[str, Any]


def same(found: Found, expected: Found, said: str = "", **tolerance: float) -> None:
    """Two steps, or two states: tensors within the tolerance, 0 if none is said."""
    assert found.keys() == expected.keys()
    tolerance = {"rtol": 0, "atol": 0, **tolerance}
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                found[key], value, **tolerance, equal_nan=True, msg=lambda m, k=key: f"{said} {k}: {m}"
            )  # fmt: skip
        else:
            assert found[key] == value, (said, key)


def batches(subject: Subject) -> list[Batch]:
    return [subject.batch(step, n) for step, n in enumerate(SIZES)]


@every
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(name: str, reentrant: bool) -> None:
    """What runs again in the backward counts once, and finds what it found."""
    subject = SUBJECTS[name]
    plain, loss = subject.make(), subject.make()

    def again(*arguments: Tensor) -> Tensor:
        # the backward of a product needs its factors, so the segment is run again for it
        def segment(first: Tensor, *others: Tensor) -> Tensor:
            return loss(
                first @ torch.eye(first.shape[-1]) if first.dim() > 1 else first * 1, *others
            )

        return checkpoint(segment, *arguments, use_reentrant=reentrant)

    for step in batches(subject):
        expected = subject.step(plain, step)
        same(subject.step(loss, step, again), expected, rtol=1e-6, atol=1e-7)
        same(states(loss), states(plain), rtol=1e-6, atol=1e-7)


def through_a_file(loss: nn.Module, make: Callable[[], nn.Module], steps: list[Batch], subject: Subject) -> nn.Module:  # fmt: skip
    """`state_dict`, into a loss that has been through all of it with other data."""
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = make()
    for step in steps:
        subject.step(other, step.some(list(range(step.rows))[::-1]))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@every
def test_resumed(name: str) -> None:
    """Saved after each step, in every phase of what its user does, and gone on with."""
    subject = SUBJECTS[name]
    steps = batches(subject)
    for saved_after in range(1, len(steps)):
        loss = subject.make()
        for step in steps[:saved_after]:
            subject.step(loss, step)
        copies = {
            "state_dict": through_a_file(loss, subject.make, steps, subject),
            "into a fresh one": subject.make(),
            "deepcopy": copy.deepcopy(loss),
            "pickle": pickle.loads(pickle.dumps(loss)),
        }
        copies["into a fresh one"].load_state_dict(loss.state_dict())
        for step in steps[saved_after:]:
            expected = subject.step(loss, step)
            for how, other in copies.items():
                same(subject.step(other, step), expected, how)
                same(states(other), states(loss), how)


@every
@pytest.mark.parametrize("bad", ["nan", "inf", "ignored"])
def test_beside_a_bad_batch(name: str, bad: str) -> None:
    """What comes later is what it would be had the spoilt rows not been there."""
    subject = SUBJECTS[name]
    hurt, whole = subject.make(), subject.make()
    before, at, *after = batches(subject)
    for loss in (hurt, whole):
        subject.step(loss, before)
    if bad == "ignored":
        subject.step(hurt, nothing_counts(at))
        if subject.lead is not None:
            subject.lead(whole, at.some([]))
    else:
        spoilt, others = poisoned(at, float(bad))
        value = subject.step(hurt, spoilt)["loss"]
        assert bad != "nan" or value.isnan().any()  # nothing is hidden in the loss of that batch
        if "labels" in subject.takes:
            others = without_spoilt_labels(at)
        subject.step(whole, others)
    same(states(hurt), states(whole), rtol=1e-6, atol=1e-7)
    for step in after:
        same(subject.step(hurt, step), subject.step(whole, step), rtol=1e-6, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Logits of 16 bits, and of 32, under autocast: what the same numbers give without it."""
    subject = SUBJECTS[name]
    plain, low, wide = (subject.make() for _ in range(3))

    def mixed(loss: nn.Module) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return loss(*arguments)

        return call

    for step in batches(subject):
        rounded = step.to(dtype)
        expected = subject.step(plain, rounded.to(torch.float32))
        assert expected["loss"].dtype == torch.float32
        with torch.autocast("cpu", dtype=dtype):  # the backward, too, as some write it
            found = subject.step(low, rounded)
        came = subject.step(wide, rounded.to(torch.float32), mixed(wide))
        same(came, expected, rtol=1e-6, atol=1e-7)
        assert found["loss"].dtype == torch.float32
        digits = torch.finfo(dtype).eps
        for key, value in expected.items():
            gradient = {"rtol": digits, "atol": 1e-7} if key != "loss" else {"rtol": 1e-6, "atol": 1e-7}  # fmt: skip
            torch.testing.assert_close(found[key].float(), value, **gradient, msg=lambda m, k=key: f"{k}: {m}")  # fmt: skip
        same(states(low), states(plain), rtol=1e-6, atol=1e-7)
        same(states(wide), states(plain), rtol=1e-6, atol=1e-7)
