"""Whole training steps: everybody trains the same model, whoever is right is timed."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmark_conditions import conditions
from torch import nn

from benchmarks import end_to_end, records
from benchmarks.end_to_end import STEP, Task, markdown, measure
from benchmarks.providers import Provider, providers

ROWS, CLASSES = 24, 30


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, 8, generator=generator)
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    torch.manual_seed(0)
    return Task("toy", nn.Linear(8, CLASSES), inputs, target, CLASSES)


@pytest.mark.parametrize("loss", ["ce", "la", "lpl5"])
def test_every_provider_takes_the_same_step(task: Task, loss: str) -> None:
    """And the task's own model is left as it was, for the next one."""
    before, weights = copy.deepcopy(task.model.state_dict()), []
    case = task.case(loss)
    batch = task.batch(case)
    for name in ("eager", "auto", "reference"):
        made = task.step(providers()[name].criterion(case, batch))
        made.run(None)
        (model,) = [
            cell.cell_contents
            for cell in made.run.__closure__ or ()
            if isinstance(cell.cell_contents, nn.Module)
        ]
        weights.append(model.weight.detach())
    for weight in weights[1:]:
        torch.testing.assert_close(weight, weights[0])
    assert not torch.equal(weights[0], before["weight"])
    assert torch.equal(task.model.weight, before["weight"])  # type: ignore[arg-type]


def test_records_say_what_a_step_takes(task: Task) -> None:
    known = providers()
    found = list(measure(task, task.case("la"), [known["eager"], known["auto"]], conditions()))
    assert [r.provider for r in found] == ["eager", "auto", "eager-ce"]
    for record in found:
        assert (record.case, record.mode, record.status) == ("toy 24x30 fp32 la", STEP, records.OK)
        assert record.p20 is not None
        assert record.p80 is not None
        assert 0 < record.p20 <= (record.median_ms or 0) <= record.p80
    assert found[0].ratio_to_eager == found[2].ratio_to_eager_ce == 1.0
    page = markdown(found)
    assert page.count("toy 24x30 fp32 la") == 3
    assert found[0].torch in page


def test_a_wrong_loss_is_named_and_not_timed(task: Task) -> None:
    wrong = Provider("wrong", lambda case, batch: lambda u: u.sum())
    eager = providers()["eager"]
    found = list(measure(task, task.case("ce"), [eager, wrong], conditions()))
    assert [(r.provider, r.status) for r in found] == [("eager", "ok"), ("wrong", "wrong")]
    assert found[1].median_ms is None
    assert "wrong in toy 24x30 fp32 ce" in markdown(found)


@pytest.mark.parametrize("name", end_to_end.DATA)
def test_tasks_are_those_of_the_trainer(name: str) -> None:
    made = Task.of(name, torch.device("cpu"))
    assert made.model(made.inputs).shape == (len(made.target), made.classes)
