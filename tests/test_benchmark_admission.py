"""Who is let in: right losses and gradients, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from benchmark_conditions import CE, CPU, KINDS, MULTILABEL, conditions
from rich.console import Console

from benchmarks import correctness, records, run
from benchmarks.cases import COPY, Batch, Case, draw, modes
from benchmarks.measure import admit, measure
from benchmarks.providers import COMPILE, EAGER, Criterion, Provider, providers


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("loss", KINDS)
def test_eager_and_every_backend_are_right(dtype: str, loss: str) -> None:
    case = Case.parse("48x130", dtype, loss)
    others = [p for p in providers().values() if p != COMPILE]
    found = {e.name: e.status for e in admit(case, draw(case, CPU), others, "cpu")}
    assert set(found.values()) <= {"ok", "absent"}, found
    assert found["eager"] == found["reference"] == "ok"


def _plain(u: torch.Tensor, batch: object) -> torch.Tensor:
    return F.cross_entropy(u, batch.target)  # type: ignore[attr-defined]


class _ForgetsUpstream(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, target):  # type: ignore[no-untyped-def]
        with torch.enable_grad():
            inner = u.detach().requires_grad_()
            loss = F.cross_entropy(inner, target)
        ctx.grad = torch.autograd.grad(loss, inner)[0]
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return ctx.grad, None


def _raises(u: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no kernel in /home/somebody/lib/kernel.so\nsecond line")


WRONG = {
    "off by a thousandth": lambda case, batch: lambda u: 1.001 * _plain(u, batch),
    "wrong gradient alone": lambda case, batch: (
        lambda u: _plain(u, batch) + (u.sum() - u.sum().detach()) * 1e-4
    ),
    "forgets the upstream": lambda case, batch: lambda u: _ForgetsUpstream.apply(u, batch.target),
    "nan": lambda case, batch: lambda u: _plain(u, batch) * float("nan"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_provider_is_reported_and_not_timed(fault: str) -> None:
    found = measure(CE, [EAGER, Provider("wrong", WRONG[fault])], conditions())
    mine = [r for r in found if r.provider == "wrong"]
    assert [(r.status, r.mode, r.median_ms) for r in mine] == [("wrong", None, None)]
    assert mine[0].reason is not None
    assert "error" in mine[0].reason
    assert {r.mode for r in found if r.provider == "eager"} == set(modes("cpu"))


def _overwriting(case: Case, batch: Batch) -> Criterion:
    """As some libraries do: the gradient takes the place of the logits."""

    def criterion(u: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(u.clone(), batch.target)
        u.data.fill_(7.0)
        return loss

    return criterion


def test_who_overwrites_its_logits_harms_nobody() -> None:
    batch = draw(CE, CPU)
    before = batch.logits.clone()
    order = [EAGER, Provider("overwriting", _overwriting), providers()["reference"]]
    found = {e.name: e for e in admit(CE, batch, order, "cpu")}
    assert {name: e.status for name, e in found.items()} == dict.fromkeys(found, "ok")
    assert [name for name, e in found.items() if e.overwrites] == ["overwriting"]
    assert torch.equal(batch.logits, before)
    assert found["eager"].batch(batch) is batch
    given = found["overwriting"].batch(batch)
    assert given.logits.data_ptr() != batch.logits.data_ptr()
    assert torch.equal(given.logits, before)


def test_a_mode_that_fails_is_reported_and_the_others_timed() -> None:
    def needs_grad(u: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not u.requires_grad:
            raise RuntimeError("training alone")
        return F.cross_entropy(u, target)

    provider = Provider("training", lambda case, batch: lambda u: needs_grad(u, batch.target))
    found = measure(CE, [EAGER, provider], conditions())
    status = {r.mode: (r.status, r.reason) for r in found if r.provider == "training"}
    assert status.pop("forward-no-grad") == ("failed", "RuntimeError: training alone")
    assert status == {m: ("ok", None) for m in modes("cpu") if m != "forward-no-grad"}


def test_who_does_not_solve_a_case_is_no_part_of_it() -> None:
    provider = Provider("other", EAGER.criterion, solves=lambda case: case.loss.kind == "la")
    assert {r.provider for r in measure(CE, [EAGER, provider], conditions())} == {"eager", COPY}


def test_who_computes_another_thing_is_held_to_that() -> None:
    def doubled(case: Case, batch: Batch) -> Criterion:
        return lambda u: 2 * F.cross_entropy(u, batch.target)

    seen: list[torch.dtype] = []

    def truth(case: Case, batch: Batch) -> Criterion:
        seen.append(batch.logits.dtype)
        return doubled(case, batch)

    order = [EAGER, Provider("doubled", doubled), Provider("held", doubled, truth=truth)]
    found = {e.name: e.status for e in admit(CE, draw(CE, CPU), order, "cpu")}
    assert found == {"eager": "ok", "doubled": "wrong", "held": "ok"}
    assert seen == [torch.float64]


def test_a_wrong_gradient_of_the_weight_is_seen() -> None:
    def criterion(case: Case, batch: Batch) -> Criterion:
        return lambda x, w: F.cross_entropy(x @ w.T, batch.target) + 0 * x.sum() + _tilt(w)

    def _tilt(w: torch.Tensor) -> torch.Tensor:
        return 1e-3 * (w.sum() - w.sum().detach())

    case = Case.parse("48x130", "fp32", "linear-ce")
    found = list(admit(case, draw(case, CPU), [EAGER, Provider("wrong", criterion)], "cpu"))
    assert [e.status for e in found] == ["ok", "wrong"]
    assert found[1].reason is not None
    assert "grad error" in found[1].reason


def test_features_in_chunks_have_the_same_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.parse("48x20", "fp32", "linear-ce")
    batch = draw(case, CPU)
    whole = correctness.truth(case, batch)
    monkeypatch.setattr(correctness, "_CHUNK", 100)
    parts = correctness.truth(case, batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.grads, whole.grads, rtol=1e-12, atol=1e-18)


def test_a_provider_that_raises_is_reported_without_paths() -> None:
    provider = Provider("broken", lambda case, batch: _raises)
    found = list(admit(CE, draw(CE, CPU), [EAGER, provider], "cpu"))[1]
    assert (found.name, found.status, found.criterion) == ("broken", "failed", None)
    assert found.reason == "RuntimeError: no kernel in kernel.so"


def test_a_case_too_large_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure_or_fail(case: Case, *rest: object) -> list[records.Record]:
        if case.rows > 48:
            raise torch.OutOfMemoryError("too large")
        return measure(case, [EAGER], conditions())

    monkeypatch.setattr(run, "measure", measure_or_fail)
    large = Case.parse("96x130", "fp32", "ce")
    found = run.measure_all([large, CE], [EAGER], conditions(), Console(quiet=True), len)
    assert [r.reason for r in found if r.case == large.name] == ["the device is out of memory"]
    assert {r.mode for r in found if r.case == CE.name} >= set(modes("cpu"))


def test_a_wrong_baseline_gives_no_ratios() -> None:
    wrong = replace(EAGER, criterion=lambda case, batch: lambda u: 2 * _plain(u, batch))
    found = measure(CE, [wrong, providers()["reference"]], conditions())
    assert {r.status for r in found if r.provider == "eager"} == {"wrong"}
    timed = [r for r in found if r.provider == "reference"]
    assert {(r.status, r.ratio_to_eager) for r in timed} == {("ok", None)}


@pytest.mark.parametrize("loss", MULTILABEL)
def test_multilabel_truth_in_chunks_is_the_truth(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case.parse("48x20", "fp32", loss)
    batch = draw(case, CPU)
    whole = correctness.truth(case, batch)
    monkeypatch.setattr(correctness, "_CHUNK", 150)
    parts = correctness.truth(case, batch)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.grads, whole.grads, rtol=1e-12, atol=1e-18)


def test_truth_in_chunks_is_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.parse("48x20", "fp32", "lpl3-zipf")
    batch = draw(case, CPU)
    whole = correctness.truth(case, batch)
    monkeypatch.setattr(correctness, "_CHUNK", 100)
    chunks = [batch.target[i].tolist() for i in correctness.whole_classes(batch.target, 5)]
    parts = correctness.truth(case, batch)
    assert len(chunks) > 2
    assert sum(map(len, chunks)) == 48
    assert sum(len(set(chunk)) for chunk in chunks) == len(batch.target.unique())
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-14, atol=0)
    torch.testing.assert_close(parts.grads, whole.grads, rtol=1e-12, atol=1e-18)
