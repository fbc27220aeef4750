"""One bad batch must not ruin a training: what evolves takes up finite rows alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from compositions import C
from every_loss import SUBJECTS, states
from torch import Tensor, nn

from lpl_fused import LogitClip, losses

N = 6
EVOLVING = [name for name, subject in SUBJECTS.items() if subject.evolves]
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", EVOLVING)
def test_a_training_recovers_from_a_bad_batch(name: str, bad: float) -> None:
    """Where the label is, too, and whatever of it is taken up."""
    subject = SUBJECTS[name]
    hurt, whole = subject.make(), subject.make()
    batch = subject.batch(0)
    spoilt = batch.logits.clone()
    spoilt[3, 3] = bad
    subject.step(hurt, replace(batch, logits=spoilt), lead=False)
    assert all(not v.isnan().any() for v in states(hurt).values() if isinstance(v, Tensor))
    came, expected = [
        [subject.step(loss, batch, lead=False)["loss"] for _ in range(60)][-1]
        for loss in (hurt, whole)
    ]
    torch.testing.assert_close(came, expected, rtol=0, atol=2e-2)


def test_truncated_gce_prunes_no_sample_for_a_nan() -> None:
    loss = losses.TruncatedGCELoss(N, k=0.01)
    loss.update(torch.full((N, C), math.nan), LABELS, torch.arange(N))
    assert loss.kept.all()
    loss.update(LOGITS - 50 * nn.functional.one_hot(LABELS, C), LABELS, torch.arange(N))
    assert not loss.kept.any()


def test_truncated_gce_prunes_by_the_logits_that_its_loss_sees() -> None:
    loss = losses.TruncatedGCELoss(2, norm=LogitClip(0.5))
    logits = torch.tensor([[9.0, 0, 0], [0, 1.0, 0]])
    loss.update(logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    clipped = logits * (0.5 / logits.norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.equal(loss.kept, clipped.softmax(1)[:, 0] > 0.5)
